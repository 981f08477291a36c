"""A client that is closed by one thread while another one submits."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import pytest

from actorraft import UsageError
from actorraft.client.client import Client
from actorraft.client.thread import ClientThread
from actorraft.ports import Envelope
from statemachines.kv import KVStore


class Nowhere:
    """A channel that reaches nobody."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.refusals: dict[Any, str] = {}
        self._woken = threading.Event()

    def unresolved(self) -> dict[str, str]:
        return {}

    def set_keys(self, members: Mapping[int, tuple[str, ...]]) -> None:
        pass

    def set_endpoints(self, endpoints: Mapping[int, str]) -> None:
        pass

    def wait(self, timeout_s: float) -> list[Envelope]:
        self._woken.wait(timeout_s)
        return []

    def send(self, node_id: int, frame: bytes) -> bool:
        return False

    def drop(self, what: str) -> None:
        self.counts[what] += 1

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        pass


class ClosingInbox(deque[Any]):
    """Closes the client just before something is put into it."""

    client: Client[KVStore]

    def append(self, call: Any, /) -> None:
        self.client.close()
        super().append(call)


def test_what_comes_after_the_end_is_refused_and_waited_for_by_nobody() -> None:
    thread = ClientThread({0: "nowhere"}, Nowhere)
    client = Client(thread, KVStore)
    inbox = ClosingInbox()
    inbox.client = client
    thread._inbox = inbox
    with pytest.raises(UsageError, match="closed"):
        client.submit(len)
    assert not inbox
