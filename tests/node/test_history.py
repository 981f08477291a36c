"""The history of what was published: whole entries or a name, within events and bytes, the same after a restore."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest

from actorraft import codec
from actorraft.node.executor import Apply, Executor, Restore, TakeSnapshot, Watch
from actorraft.node.history import PUBLISHED_MAX, History
from actorraft.node.host import MachineHost
from actorraft.raft.messages import Configuration, EntryId, LogEntry
from actorraft.storage.memory import MemoryStorage
from tests.node.helpers import Publisher


def entry(index: int, events: int, size: int = 0) -> list[tuple[int, str, Any]]:
    return [(index, "t", "x" * size or number) for number in range(events)]


@pytest.mark.parametrize("sizes", [(10, 9_996), (1, 10_000), (3, 4, 5, 9_990), (10_000, 1), (20_000,), (5, 20_000, 5)])
def test_an_entry_is_held_whole_or_not_at_all(sizes: tuple[int, ...]) -> None:
    history = History()
    for index, events in enumerate(sizes):
        history.extend(entry(index, events))
    assert len(history) <= PUBLISHED_MAX
    for index, events in enumerate(sizes):
        held = [event for event in history.since(0, "t") if event[0] == index]
        assert len(held) == (events if index >= history.first_index else 0)


def test_the_history_is_bounded_by_bytes() -> None:
    history = History(bytes_max=10_000)
    for index in range(100):
        history.extend(entry(index, 1, 1_000))
    assert 9 == len(history)
    assert 91 == history.first_index
    history.extend(entry(100, 1, 50_000))
    assert (0, 101) == (len(history), history.first_index)


def executor() -> Executor:
    return Executor(MachineHost(Publisher), session_expiry_s=3600.0)


def apply(one: Executor, index: int, request: codec.Request) -> None:
    one.run(Apply(index, [LogEntry(1, codec.stamp(1.0, codec.encode(request)))]))


def emit(one: Executor, index: int, events: int) -> None:
    body = codec.join_body([msgspec.msgpack.encode(["emit", events])])
    apply(one, index, codec.Commands(0, index - 1, index - 1, 1, body))


def watched(one: Executor, from_index: int) -> list[codec.Published]:
    done = one.run(Watch("client", codec.Watch(1, "t", from_index)))
    return done.replies  # type: ignore[union-attr]


@pytest.mark.parametrize("first", [10, 9_999, 1])
def test_a_watch_from_inside_what_is_cut_is_told_so_and_never_given_a_part(first: int) -> None:
    one = executor()
    apply(one, 0, codec.Register(7))
    emit(one, 1, first)
    emit(one, 2, PUBLISHED_MAX - 4 if first > 4 else PUBLISHED_MAX)
    assert ["what was published before index 2 is no longer held"] == [said.error for said in watched(one, 1)]
    assert 2 == watched(one, 2)[0].index


MEMBERS = Configuration(voters=frozenset({0}), next_node_id=1)


def written(one: Executor) -> bytes:
    """A snapshot as the executor writes it while commands wait."""
    storage = MemoryStorage()
    one.run(TakeSnapshot(storage.begin_snapshot(EntryId(1, one.last_applied), MEMBERS)))
    return storage.open_snapshot().read()


def test_a_restored_node_answers_a_watch_as_the_others_do() -> None:
    first, second = executor(), executor()
    apply(first, 0, codec.Register(7))
    for index in range(1, 20):
        emit(first, index, 600)
    second.run(Restore(19, lambda: io.BytesIO(written(first))))
    for from_index in (0, 2, 3, 4, 10, 19):
        assert watched(first, from_index) == watched(second, from_index)


def test_a_snapshots_history_is_written_in_pieces() -> None:
    one = executor()
    apply(one, 0, codec.Register(7))
    for index in range(1, 17):
        emit(one, index, 600)
    sizes: list[int] = []
    writer = MemoryStorage().begin_snapshot(EntryId(1, one.last_applied), MEMBERS)
    write = writer.write

    class Watching:
        commit, abort = writer.commit, writer.abort

        def write(self, data: bytes) -> None:
            sizes.append(len(data))
            write(data)

    one.run(TakeSnapshot(Watching()))
    assert max(sizes) < 10_000
    assert len(sizes) > 16


@pytest.mark.parametrize("events", [3, PUBLISHED_MAX])
def test_a_snapshot_of_0_1_0_is_read_and_its_oldest_entry_taken_for_cut_if_it_was_full(events: int) -> None:
    one = executor()
    published = [[1, "t", n] for n in range(events - 1)] + [[2, "t", 0]]
    head = codec.encode([2, 1.0, 5, [], published])  # type: ignore[arg-type]
    machine = written(executor())
    (size,) = (int.from_bytes(machine[:4], "little"),)
    state = machine[4 + size + 4 :]
    one.run(Restore(2, lambda: io.BytesIO(len(head).to_bytes(4, "little") + head + state)))
    assert 2 == one.last_applied
    assert (2 if events == PUBLISHED_MAX else 0) == one.published.first_index
