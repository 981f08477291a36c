"""Where Raft systems went wrong before: the parts of traps 10 and 12 beside the core; the others are in tests/raft.

Three replicas of one log: one applies it as it comes, one restarts and applies it again from the start, one goes on from
the first one's snapshot. Whatever is in the log, they answer the same, byte for byte, and end the same.
"""

from __future__ import annotations

import pickle
from typing import Any

import msgspec
import pytest

from actorraft import codec
from actorraft.machine import StateMachine, command, context
from actorraft.node.executor import Executor
from actorraft.node.host import MachineHost
from actorraft.node.work import Applied, Apply, Restore, Restored, SnapshotTaken, Stopped, TakeSnapshot
from actorraft.raft.messages import Configuration, EntryId, LogEntry
from actorraft.storage.memory import MemoryStorage

CLIENT = 1  # the index of its Register entry
OBJECT = 2  # the code of a pickled command object


class Diary(StateMachine):
    """Keeps what it is told, with everything that a context gives."""

    machine_version = 1

    def __init__(self) -> None:
        self.pages: list[Any] = []

    @command
    def write(self, text: str) -> int:
        now = context()
        self.pages.append((text, now.index, now.position, now.serial, now.time, now.random.random()))
        return len(self.pages)

    @command
    def fail(self, text: str) -> None:
        self.pages.append(text)  # stays: a command that raises midway is not rolled back
        raise ValueError(text)


class NewerDiary(Diary):
    machine_version = 2


def replica(machine: type[Diary] = Diary) -> Executor:
    return Executor(MachineHost(machine, 7), session_expiry_s=100_000.0)


def frame(first: int, *commands: Any) -> bytes:
    body = msgspec.msgpack.encode(commands)
    return codec.encode(codec.Commands(CLIENT, first, 0, len(commands), body))


# Leaders with other clocks: the second one is an hour behind the first, the third half a day ahead.
LOG = [
    LogEntry(1, None),
    LogEntry(1, codec.stamp(5_000.0, codec.encode(codec.Register(99)))),
    LogEntry(1, codec.stamp(5_001.0, frame(0, ["write", "a"], ["write", "b"]))),
    LogEntry(2, None),
    LogEntry(2, codec.stamp(1_400.0, frame(0, ["write", "a"], ["write", "b"]))),  # sent again
    LogEntry(2, codec.stamp(1_401.0, frame(2, ["fail", "c"], ["write", "d"]))),
    LogEntry(2, Configuration(voters=frozenset({0, 1, 2}))),
    LogEntry(2, codec.stamp(1_402.0, frame(4, msgspec.msgpack.Ext(OBJECT, b"\x80\x05no pickle"), ["write", "e"]))),
    LogEntry(2, codec.stamp(1_403.0, frame(6, ["no such method"], ["write"], msgspec.msgpack.Ext(9, b""), ["write", "f"]))),
    LogEntry(3, codec.stamp(48_000.0, b"no frame")),
    LogEntry(3, codec.stamp(48_001.0, frame(10, msgspec.msgpack.Ext(OBJECT, pickle.dumps(len)[:-3]), ["write", "g"]))),
    LogEntry(3, codec.stamp(48_002.0, frame(10, ["write", "sent again"], ["write", "as something else"]))),
]  # fmt: skip


def apply(executor: Executor, first: int, stop: int, *, at_once: int = 1) -> list[bytes]:
    """Apply part of the log, some entries at once; return what clients are told, as the bytes that leave."""
    told = []
    for start in range(first, stop, at_once):
        done = executor.run(Apply(start, LOG[start : min(start + at_once, stop)]))
        assert isinstance(done, Applied)
        told += [codec.encode(reply) for _, reply in done.replies]
    return told


def everything(executor: Executor) -> tuple[Any, ...]:
    """The whole replicated state."""
    return (
        executor.host.digest(),
        executor.sessions.state(),
        executor.serial,
        executor.log_time_s,
        executor.last_applied,
    )


def snapshot_of(executor: Executor) -> MemoryStorage:
    storage = MemoryStorage()
    snapshot_id = EntryId(LOG[executor.last_applied].term, executor.last_applied)
    assert isinstance(executor.run(TakeSnapshot(storage.begin_snapshot(snapshot_id, Configuration()))), SnapshotTaken)
    return storage


def restored(executor: Executor, machine: type[Diary] = Diary) -> Executor:
    """Another replica that goes on from this one's snapshot."""
    other = replica(machine)
    assert isinstance(other.run(Restore(executor.last_applied, snapshot_of(executor).open_snapshot)), Restored)
    return other


# -- 10: what rides in a snapshot


def test_trap_10_sessions_ride_in_the_snapshot() -> None:
    """A command whose answer was lost is sent again, to a node that restored a snapshot: it applies once."""
    first = replica()
    told = apply(first, 0, 3)

    second = restored(first)

    again = apply(second, 3, 5)
    assert again == [told[-1]]  # the remembered results, not new ones
    assert second.host.machine.pages == first.host.machine.pages


def test_trap_10_the_machines_version_rides_in_the_snapshot() -> None:
    """A node that runs older code stops rather than misread a newer state; newer code takes the older state."""
    newer, older = replica(NewerDiary), replica(Diary)
    for executor in (newer, older):
        apply(executor, 0, 3)

    refused = replica(Diary).run(Restore(2, snapshot_of(newer).open_snapshot))

    assert isinstance(refused, Stopped)
    assert "version 2" in refused.reason
    assert restored(older, NewerDiary).host.machine.pages == older.host.machine.pages


# -- 12: the same everywhere


@pytest.mark.parametrize("snapshot_at", range(2, len(LOG)))
def test_trap_12_skewed_clocks_restarts_and_snapshots_leave_equal_digests(snapshot_at: int) -> None:
    steady = replica()
    before = apply(steady, 0, snapshot_at)
    third = restored(steady)
    after = apply(steady, snapshot_at, len(LOG))

    started_again = replica()
    told_again = apply(started_again, 0, len(LOG), at_once=4)
    told_third = apply(third, snapshot_at, len(LOG), at_once=3)

    assert told_again == before + after
    assert told_third == after
    assert everything(steady) == everything(started_again) == everything(third)
    assert steady.log_time_s == 48_002.0
    times = [page[4] for page in steady.host.machine.pages if isinstance(page, tuple)]
    assert times == sorted(times)  # never falling, though the second leader's clock was an hour behind


def test_trap_12_an_exception_or_an_unpickling_failure_is_a_result_and_the_log_goes_on() -> None:
    executor = replica()

    told = [codec.decode_reply(reply) for reply in apply(executor, 0, len(LOG))]

    results = {one.first_sequence: one.values for one in told if isinstance(one, codec.Results)}
    assert [len(results[first]) for first in (2, 4, 6, 10)] == [2, 2, 4, 2]
    failed, written = results[2]
    assert isinstance(failed, msgspec.msgpack.Ext)
    assert written == 4
    assert [results[first][-1] for first in (4, 6)] == [5, 6]  # the command after each failure was applied
    texts = [page[0] for page in executor.host.machine.pages if isinstance(page, tuple)]
    assert texts == ["a", "b", "d", "e", "f", "g"]
    assert executor.last_applied == len(LOG) - 1
