"""What a cluster's log has for a key ends nobody: older leaders took any 40 characters for one."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pytest

from actorraft.errors import UsageError
from transports.keys import Guest, KeyPair, Keys

NO_KEY = "~" * 40
GOOD, ANOTHER, CLIENT = (KeyPair.generate() for _ in range(3))


def test_what_is_no_key_is_left_out_of_what_a_cluster_says_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    keys = Keys(GOOD)
    clients = {CLIENT.public: Guest("reader", "read"), NO_KEY: Guest("an odd one", "admin")}
    members: Mapping[int, tuple[str, ...]] = {1: (GOOD.public, NO_KEY), 77: (NO_KEY,), 3: (ANOTHER.public,)}
    with caplog.at_level(logging.WARNING, "actorraft.transports"):
        for _ in range(3):
            told = keys.trusting(members, clients)

    assert told.members == {1: (GOOD.public,), 3: (ANOTHER.public,)}
    assert told.clients == {CLIENT.public: Guest("reader", "read")}
    for name in ("node 1 ", "node 77 ", "'an odd one' "):
        assert [name in record.getMessage() for record in caplog.records].count(True) == 1


def test_what_a_person_writes_for_a_key_is_refused_all_the_same() -> None:
    with pytest.raises(UsageError, match="Z85"):
        Keys(GOOD, {1: (NO_KEY,)})
    with pytest.raises(UsageError, match="Z85"):
        Keys(GOOD, {}, {NO_KEY: Guest("a client", "read")})
