"""The executor's thread: what it does after the machine cannot go on is nothing."""

from __future__ import annotations

import sys
import threading

import pytest

from actorraft import codec
from actorraft.executor import Applied, Apply, Executor, Stopped
from actorraft.host import MachineHost
from actorraft.raft.messages import LogEntry
from actorraft.turns import MachineThread
from tests.cluster.machines import EndsTheProcess


def entry(request: object) -> LogEntry:
    return LogEntry(1, codec.stamp(1.0, codec.encode(request)))


def test_only_what_somebody_waits_for_wakes_the_loop() -> None:
    woken = threading.Semaphore(0)
    executor = MachineThread(Executor(MachineHost(EndsTheProcess), session_expiry_s=10.0), woken.release)

    executor.submit(Apply(0, [entry(codec.Register(7))], quiet=True))
    assert not woken.acquire(timeout=0.2)
    executor.submit(Apply(1, [entry(codec.Register(8))]))
    assert woken.acquire(timeout=10.0)

    assert [one.last_index for one in executor.poll() if isinstance(one, Applied)] == [0, 1]


def test_nothing_is_applied_after_a_machine_that_stopped_so_its_own_reason_is_the_one_that_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os._exit", sys.exit)  # of its thread only
    body = codec.join_body([codec.encode(["run_out_of_stack"])])
    works = [
        Apply(0, [entry(codec.Register(7))]),
        Apply(1, [entry(codec.Commands(0, 0, 0, 1, body))]),
        Apply(2, [LogEntry(1, None)]),  # handed over before the loop has heard of it
    ]
    woken = threading.Semaphore(0)
    executor = MachineThread(Executor(MachineHost(EndsTheProcess), session_expiry_s=10.0), woken.release)
    for work in works:
        executor.submit(work)
    for _ in works[:2]:
        assert woken.acquire(timeout=10.0)
    assert not woken.acquire(timeout=0.2)
    done = executor.poll()
    assert [type(one).__name__ for one in done] == ["Applied", "Stopped"]
    assert isinstance(done[1], Stopped)
    assert "run_out_of_stack raised RecursionError: too deep" in done[1].reason
