"""A snapshot that is taken while commands go on: what it holds, and who waits for whom."""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.msgpack import Ext

from actorraft import codec
from actorraft.errors import NoRoom, StorageFailed
from actorraft.node.executor import Executor
from actorraft.node.host import MachineHost
from actorraft.node.machine_thread import MachineThread
from actorraft.node.work import Applied, Apply, Done, Restore, SnapshotFailed, SnapshotTaken, Stopped, TakeSnapshot
from actorraft.pickling.formats import OBJECT
from actorraft.ports import SnapshotMeta
from actorraft.raft.messages import Configuration, EntryId, LogEntry
from statemachines import kv
from statemachines.kv import KVStore
from tests.cluster.helpers import eventually


class Disk:
    """A snapshot's writer whose disk takes nothing until it is told to."""

    def __init__(self, index: int, error: Exception | None = None) -> None:
        self.content = b""
        self.may_write = threading.Event()
        self.aborted = False
        self._index = index
        self._error = error

    def write(self, data: bytes) -> None:
        assert self.may_write.wait(20.0)
        if self._error is not None:
            raise self._error
        self.content += data

    def commit(self) -> SnapshotMeta:
        assert self.may_write.wait(20.0)
        return SnapshotMeta(EntryId(1, self._index), Configuration(frozenset((0,)), next_node_id=1), len(self.content))

    def abort(self) -> None:
        self.aborted = True


class Node:
    """An executor in its thread, and commands for it in log order."""

    def __init__(self, machine: type = KVStore) -> None:
        self.host = MachineHost(machine)
        self.executor = MachineThread(Executor(self.host, session_expiry_s=10.0), lambda: None)
        self.done: list[Done] = []
        self._index = self._sequence = 0
        self.submit(codec.Register(7))

    def submit(self, request: Any) -> int:
        entry = LogEntry(1, codec.stamp(1.0, codec.encode(request)))
        self.executor.submit(Apply(self._index, [entry]))
        self._index += 1
        return self._index - 1

    def command(self, *call: Any) -> int:
        """Hand a command over; return its index."""
        body = codec.join_body([codec.encode(call[0] if len(call) == 1 else list(call))])
        self._sequence += 1
        return self.submit(codec.Commands(0, self._sequence - 1, 0, 1, body))

    def wait_for(self, found: Callable[[Done], bool]) -> Done:
        def look() -> Done | None:
            self.done += self.executor.poll()
            return next((one for one in self.done if found(one)), None)

        return eventually(look, within_s=20.0)  # type: ignore[return-value]

    def wait_until_applied(self, index: int) -> None:
        self.wait_for(lambda one: isinstance(one, Applied) and one.last_index >= index)

    def applied(self) -> int:
        self.done += self.executor.poll()
        return max((one.last_index for one in self.done if isinstance(one, Applied)), default=-1)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv, "SNAPSHOT_KEYS_MAX", 10)


def items_of(content: bytes) -> dict[Any, Any]:
    """What a node that is started from a snapshot holds."""
    host = MachineHost(KVStore)
    executor = Executor(host, session_expiry_s=10.0)
    index = 0
    while True:  # of its last entry, which the file says itself
        try:
            executor.run(Restore(index, lambda: io.BytesIO(content)))
        except AssertionError:
            index = executor.last_applied
        else:
            return dict(host.machine._data)


KEYS = 500


def filled() -> tuple[Node, int]:
    node = Node()
    last = node.command("update", {f"k{number}": number for number in range(KEYS)})
    return node, last


def test_commands_are_applied_while_the_disk_takes_its_time_and_change_nothing_in_the_snapshot() -> None:
    node, last = filled()
    disk = Disk(last)
    node.executor.submit(TakeSnapshot(disk))
    node.command("set", "k0", "changed")
    node.command("delete", "k499")
    changed = node.command("set", "new", 1)
    node.wait_until_applied(changed)
    assert not any(isinstance(one, SnapshotTaken) for one in node.done)

    disk.may_write.set()
    taken = node.wait_for(lambda one: isinstance(one, SnapshotTaken))
    assert isinstance(taken, SnapshotTaken)
    assert taken.held_up_s > 0.0
    assert items_of(disk.content) == {f"k{number}": number for number in range(KEYS)}
    assert node.host.machine.get("k0") == "changed"
    assert node.host.machine._kept is None


def test_without_a_thread_to_be_had_it_is_taken_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    node, last = filled()
    node.wait_until_applied(last)
    disk = Disk(last)
    disk.may_write.set()
    monkeypatch.setattr(threading.Thread, "start", no_more_threads)
    node.executor.submit(TakeSnapshot(disk))
    changed = node.command("set", "k0", "changed")
    node.wait_for(lambda one: isinstance(one, SnapshotTaken))
    node.wait_until_applied(changed)
    assert items_of(disk.content) == {f"k{number}": number for number in range(KEYS)}
    assert node.host.machine._kept is None


def no_more_threads(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_pieces_wait_for_the_disk_in_bounded_number() -> None:
    node, last = filled()
    disk = Disk(last)
    node.executor.submit(TakeSnapshot(disk))
    for number in range(100):
        node.command("set", "other", number)
    node.wait_until_applied(node.command("set", "other", -1))
    capture = node.executor._capture
    assert capture is not None, "the disk has taken nothing, so it cannot be drawn to its end"
    assert capture._waiting.qsize() <= 10
    disk.may_write.set()
    node.wait_for(lambda one: isinstance(one, SnapshotTaken))


class ChangesAValueInPlace:
    """What a machine's own commands never do."""

    def apply(self, state: KVStore) -> None:
        state._data["k499"].append(2)


def test_a_command_object_waits_until_the_snapshot_is_written_for_it_may_do_anything_to_the_state() -> None:
    node, _ = filled()
    disk = Disk(node.command("set", "k499", [1]))
    node.executor.submit(TakeSnapshot(disk))
    before = node.command("set", "k1", "changed")
    node.wait_until_applied(before)
    object_ = node.command(Ext(OBJECT, pickle.dumps(ChangesAValueInPlace())))
    eventually(lambda: node.executor._capture is None, within_s=20.0, what="it is being finished")
    assert node.applied() == before

    disk.may_write.set()
    node.wait_until_applied(object_)
    assert any(isinstance(one, SnapshotTaken) for one in node.done)
    assert items_of(disk.content)["k499"] == [1]
    assert node.host.machine.get("k499") == [1, 2]


def test_a_snapshot_from_the_leader_waits_for_the_one_under_way() -> None:
    node, last = filled()
    other, other_last = filled()
    other.executor.submit(TakeSnapshot(from_leader := Disk(other_last)))
    from_leader.may_write.set()
    other.wait_for(lambda one: isinstance(one, SnapshotTaken))

    disk = Disk(last)
    node.executor.submit(TakeSnapshot(disk))
    node.executor.submit(Restore(other_last, lambda: io.BytesIO(from_leader.content)))
    disk.may_write.set()
    node.wait_for(lambda one: type(one).__name__ == "Restored")
    assert [type(one).__name__ for one in node.done][-2:] == ["SnapshotTaken", "Restored"]
    assert items_of(disk.content) == items_of(from_leader.content)


@pytest.mark.parametrize(
    ("error", "ended"), [(NoRoom("full"), SnapshotFailed("full")), (StorageFailed("EIO"), Stopped("EIO", disk=True))]
)
def test_a_disk_that_refuses_ends_the_snapshot_and_commands_go_on(error: Exception, ended: Done) -> None:
    node, last = filled()
    disk = Disk(last, error)
    disk.may_write.set()
    node.executor.submit(TakeSnapshot(disk))
    assert node.wait_for(lambda one: isinstance(one, SnapshotFailed | Stopped)) == ended
    node.wait_until_applied(node.command("set", "k0", 1))
    eventually(lambda: node.command("set", "k0", 1) and node.host.machine._kept is None, within_s=20.0)


class Breaks(KVStore):
    """Its snapshot raises in the middle."""

    def snapshot_while_serving(self) -> Iterator[Any]:
        yield [("a", 1, None)]
        raise RuntimeError("no snapshot today")


def test_a_snapshot_that_raises_in_the_middle_has_failed_and_commands_go_on() -> None:
    node = Node(Breaks)
    disk = Disk(node.command("set", "k", 1))
    disk.may_write.set()
    node.executor.submit(TakeSnapshot(disk))
    ended = node.wait_for(lambda one: isinstance(one, SnapshotFailed))
    assert ended == SnapshotFailed("Breaks.snapshot_while_serving raised RuntimeError: no snapshot today")
    assert disk.aborted
    node.wait_until_applied(node.command("set", "k", 2))


class Inherits(KVStore):
    """A store with commands of its own, which know nothing of snapshots under way."""


def test_a_subclass_is_not_taken_at_its_base_classes_word() -> None:
    assert MachineHost(KVStore).serves_while_copied
    assert not MachineHost(Inherits).serves_while_copied
    assert not MachineHost(dict).serves_while_copied
