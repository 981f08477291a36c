"""What a leader takes of a machine that joins, and what it does not: all members act on it, at every later start."""

from __future__ import annotations

from typing import Any

import pytest

from actorraft.errors import UsageError
from actorraft.node import admission
from actorraft.node.members import check_said
from actorraft.raft import roster
from actorraft.raft.errors import ProposalRefused
from actorraft.raft.messages import Token
from tests.helpers import Cluster

GOOD = {
    "token": "token",
    "public_key": "0" * 40,
    "storage_id": "ab" * 16,
    "peer": "host3:7100",
    "client": "[::1]:7101",
}


def led(**token: Any) -> Cluster:
    cluster = Cluster(3)
    cluster.elect(0)
    cluster.settle()
    leader = cluster.servers[0]
    leader.annotate(roster.issue(leader.configuration, Token("token", until_s=1e9, **token), 0.0))
    cluster.settle()
    return cluster


@pytest.mark.parametrize(
    "odd",
    [
        {"peer": "nonsense"}, {"peer": ""}, {"peer": "10.0.0.3:0"}, {"peer": "0.0.0.0:7100"}, {"client": "[::]:7101"},
        {"client": "host3"}, {"public_key": "0" * 39}, {"public_key": "~" * 40}, {"public_key": "#" * 40},
        {"public_key": 5}, {"peer": 5},
    ],
    ids=str,
)  # fmt: skip
def test_what_nobody_could_dial_or_prove_is_refused(odd: dict[str, Any]) -> None:
    check_said(GOOD)
    with pytest.raises(UsageError):
        check_said({**GOOD, **odd})


@pytest.mark.parametrize("storage_id", ["", "AB" * 16, "x" * 100_000])
def test_a_disk_that_nobody_could_know_again_is_refused(storage_id: str) -> None:
    leader = led().servers[0]
    before = leader.configuration
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        admission.join(leader, 0.0, {**GOOD, "storage_id": storage_id})
    assert leader.configuration is before


def test_who_asks_for_less_than_its_token_gives_is_told_to_ask_again_and_joins_then() -> None:
    cluster = led()
    leader = cluster.servers[0]
    with pytest.raises(ProposalRefused, match=admission.NOT_NOW):
        admission.join(leader, 0.0, {**GOOD, "learner": True})
    cluster.settle()
    assert admission.join(leader, 0.0, {**GOOD, "learner": True})["learner"] is True
    cluster.settle()
    assert leader.configuration.learners == {3}


def test_a_token_that_nobody_used_in_time_is_forgotten_and_one_that_is_bound_stays() -> None:
    tokens = (Token("late", 10.0), Token("in time", 20.0), Token("used", 5.0, node_id=3))
    configuration = Cluster(3).configuration._replace(tokens=tokens)
    assert roster.without_late_tokens(configuration, 9.0) is configuration
    assert [each.public_key for each in roster.without_late_tokens(configuration, 10.0).tokens] == ["in time", "used"]
