"""Expiry by log time, on real processes: a key goes and a lease ends though nobody sends a command."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from actorraft import ReplicatedStateMachine, StateMachine, command, query
from statemachines.kv import KVStore
from statemachines.lock import LockService

pytestmark = pytest.mark.cluster


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait, ten seconds at most."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_key_goes_on_an_idle_cluster_and_on_every_node() -> None:
    with ReplicatedStateMachine(KVStore).spawn(3) as cluster:
        store = cluster.proxy()
        store.set("kept", 1)
        store.set_for("brief", 1, 0.3)
        wait_until(lambda: store.size() == 1)
        for node_id in cluster.nodes:
            assert cluster.proxy(to=node_id).keys() == ["kept"]


def test_a_lease_ends_without_its_holder_and_the_next_token_is_greater() -> None:
    with ReplicatedStateMachine(LockService).spawn(3) as cluster:
        locks = cluster.proxy()
        first = locks.acquire("disk", "ann", 2.0)
        assert locks.acquire("disk", "bob", 0.3) is None
        wait_until(lambda: locks.holder("disk") is None)
        second = locks.acquire("disk", "bob", 0.3)
        assert first is not None
        assert second is not None
        assert second > first


class Deaf(StateMachine):
    """Wants a clock entry, and does nothing about it."""

    wake_at: float | None = None

    @command
    def want(self) -> None:
        """Now."""
        self.wake_at = 1.0

    @query
    def wanted(self) -> float | None:
        """Return what was wanted."""
        return self.wake_at


def test_a_machine_that_does_nothing_when_it_is_woken_does_not_fill_the_log() -> None:
    with ReplicatedStateMachine(Deaf).spawn(1) as cluster:
        wanted = cluster.proxy().want.submit()
        wanted.result()
        wait_until(lambda: cluster.status()[0].commit_index > wanted.index)
        time.sleep(0.5)  # as long as many more would take
        assert cluster.status(timeout=10.0)[0].commit_index == wanted.index + 1
