"""What every store promises, asked of both: the one on disk is closed and opened anew before each look."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actorraft.errors import UsageError
from actorraft.ports import Recovered, SnapshotMeta, Storage
from actorraft.raft.messages import Configuration, EntryId, HardState, LogEntry
from actorraft.storage.disk import DiskStorage
from actorraft.storage.memory import MemoryStorage

CONFIGURATION = Configuration(voters=frozenset({0, 1, 2}), next_node_id=3, storage_ids=((0, "ab"), (1, "cd")))


class Subject:
    """A store that can be closed and opened again."""

    def __init__(self, open_store: Callable[[], Storage]) -> None:
        self._open = open_store
        self.store = open_store()
        self.recovered = self.store.recover()

    def reopen(self) -> Recovered:
        self.store.close()
        self.store = self._open()
        self.recovered = self.store.recover()
        return self.recovered

    def snapshot(self, term: int, index: int, content: bytes = b"state") -> None:
        writer = self.store.begin_snapshot(EntryId(term, index), CONFIGURATION)
        writer.write(content)
        writer.commit()


@pytest.fixture(params=["memory", "disk", "disk-os", "disk-small-segments"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    if request.param == "memory":
        memory = MemoryStorage()
        yield Subject(lambda: memory)
        return
    durability = "os" if request.param == "disk-os" else "fsync"
    segment_bytes = 4096 if request.param == "disk-small-segments" else 64 << 20
    subject = Subject(lambda: DiskStorage(tmp_path / "node", durability=durability, segment_bytes=segment_bytes))
    yield subject
    subject.store.close()


def entries(*terms: int, size: int = 1) -> list[LogEntry]:
    return [LogEntry(term, b"%d" % number * size) for number, term in enumerate(terms)]


def test_a_new_store_is_empty(subject: Subject) -> None:
    assert subject.recovered == Recovered(HardState(), None, 0, -1, [])
    assert subject.reopen() == Recovered(HardState(), None, 0, -1, [])


def test_hard_state_is_kept(subject: Subject) -> None:
    subject.store.persist(HardState(3, 1), -1, [])
    assert subject.reopen().hard_state == HardState(3, 1)

    subject.store.persist(HardState(4, None), -1, [])
    assert subject.reopen().hard_state == HardState(4, None)


def test_entries_are_kept_in_order(subject: Subject) -> None:
    subject.store.persist(HardState(1, 0), 0, entries(1, 1))
    subject.store.persist(None, 2, [LogEntry(2, b"c")])
    assert subject.reopen().entries == [LogEntry(1, b"0"), LogEntry(1, b"1"), LogEntry(2, b"c")]
    assert subject.recovered.hard_state == HardState(1, 0)


def test_entries_replace_what_is_held_at_and_after_their_place(subject: Subject) -> None:
    subject.store.persist(None, 0, entries(1, 1, 1, 1))
    subject.store.persist(HardState(2), 1, [LogEntry(2, b"x")])
    assert subject.reopen().entries == [LogEntry(1, b"0"), LogEntry(2, b"x")]


def test_no_entries_within_the_log_cut_it(subject: Subject) -> None:
    subject.store.persist(None, 0, entries(1, 1, 1))
    subject.store.persist(None, 1, [])
    assert subject.reopen().entries == entries(1)

    subject.store.persist(None, 0, [])
    assert subject.reopen().entries == []


def test_nothing_to_persist_changes_nothing(subject: Subject) -> None:
    subject.store.persist(None, 0, entries(1))
    subject.store.persist(None, -1, [])
    subject.store.persist(None, 1, [])
    assert subject.reopen().entries == entries(1)


def test_items_come_back_as_they_were(subject: Subject) -> None:
    items = [b"", b"\x00" * 10_000, None, CONFIGURATION, "x=1", 7, [1, "a", None], {"k": b"v"}, Configuration(), True]
    subject.store.persist(None, 0, [LogEntry(1, item) for item in items])
    assert [entry.item for entry in subject.reopen().entries] == items
    assert isinstance(subject.recovered.entries[3].item, Configuration)


def test_a_gap_in_the_log_is_refused(subject: Subject) -> None:
    subject.store.persist(None, 0, entries(1))
    with pytest.raises(AssertionError):
        subject.store.persist(None, 2, entries(1))


def test_a_snapshot_is_kept_with_its_content(subject: Subject) -> None:
    content = bytes(range(256)) * 1000
    subject.store.persist(None, 0, entries(1, 1, 2))
    subject.snapshot(2, 2, content)
    meta = subject.reopen().snapshot
    assert meta is not None
    assert (meta.snapshot_id, meta.configuration, meta.size_bytes) == (EntryId(2, 2), CONFIGURATION, len(content))
    with subject.store.open_snapshot() as file:
        assert file.read() == content
    assert subject.recovered.entries == entries(1, 1, 2)


def test_a_snapshot_is_read_in_chunks(subject: Subject) -> None:
    content = bytes(range(251)) * 1000
    subject.store.persist(None, 0, entries(1))
    subject.snapshot(1, 0, content)
    chunks: list[bytes] = []
    done = False
    while not done:
        chunk, done = subject.store.read_snapshot(EntryId(1, 0), sum(len(one) for one in chunks), 100_001) or (
            b"",
            True,
        )
        chunks.append(chunk)
    assert b"".join(chunks) == content
    assert len(chunks) == 3


def test_an_empty_snapshot_is_one_empty_last_chunk(subject: Subject) -> None:
    subject.store.persist(None, 0, entries(1))
    subject.snapshot(1, 0, b"")
    assert subject.store.read_snapshot(EntryId(1, 0), 0, 100) == (b"", True)
    with subject.store.open_snapshot() as file:
        assert file.read() == b""


def test_a_snapshot_that_is_not_held_reads_as_none(subject: Subject) -> None:
    subject.store.persist(None, 0, entries(1, 1, 1))
    assert subject.store.read_snapshot(EntryId(1, 0), 0, 10) is None
    for index in range(3):
        subject.snapshot(1, index)
    assert subject.store.read_snapshot(EntryId(1, 0), 0, 10) is None
    assert subject.store.read_snapshot(EntryId(1, 1), 0, 10) == (b"state", True)


def test_an_aborted_snapshot_leaves_nothing(subject: Subject) -> None:
    writer = subject.store.begin_snapshot(EntryId(1, 0), CONFIGURATION)
    writer.write(b"half")
    writer.abort()
    writer.abort()
    assert subject.reopen().snapshot is None
    with pytest.raises(UsageError):
        writer.write(b"more")


def test_a_snapshot_that_was_not_committed_leaves_nothing(subject: Subject) -> None:
    subject.store.begin_snapshot(EntryId(1, 0), CONFIGURATION).write(b"half")
    assert subject.reopen().snapshot is None


def test_an_older_snapshot_never_becomes_the_newest(subject: Subject) -> None:
    subject.store.persist(None, 0, entries(1, 1, 1))
    late = subject.store.begin_snapshot(EntryId(1, 0), CONFIGURATION)
    subject.snapshot(1, 2, b"newer")
    late.write(b"older")
    late.commit()
    with subject.store.open_snapshot() as file:
        assert file.read() == b"newer"
    snapshot = subject.reopen().snapshot
    assert snapshot is not None
    assert snapshot.snapshot_id == EntryId(1, 2)


def test_opening_a_snapshot_where_there_is_none_is_a_usage_error(subject: Subject) -> None:
    with pytest.raises(UsageError):
        subject.store.open_snapshot()


def test_compaction_forgets_a_prefix_and_keeps_the_term_before_it(subject: Subject) -> None:
    subject.store.persist(HardState(3), 0, entries(1, 1, 2, 2, 3))
    subject.snapshot(2, 3)
    subject.store.compact(3)
    recovered = subject.reopen()
    assert (recovered.first_index, recovered.previous_term) == (3, 2)
    assert recovered.entries == entries(1, 1, 2, 2, 3)[3:]

    subject.store.persist(None, 5, [LogEntry(4, b"e")])
    assert subject.reopen().entries == [*entries(1, 1, 2, 2, 3)[3:], LogEntry(4, b"e")]


def test_compaction_to_where_the_log_begins_changes_nothing(subject: Subject) -> None:
    subject.store.persist(None, 0, entries(1, 1))
    subject.snapshot(1, 1)
    subject.store.compact(2)
    subject.store.compact(1)
    recovered = subject.reopen()
    assert (recovered.first_index, recovered.previous_term, recovered.entries) == (2, 1, [])


def test_compaction_past_the_snapshot_is_refused(subject: Subject) -> None:
    subject.store.persist(None, 0, entries(1, 1))
    subject.snapshot(1, 0)
    with pytest.raises(AssertionError):
        subject.store.compact(2)


def test_reset_drops_every_entry_and_goes_on_behind_the_snapshot(subject: Subject) -> None:
    subject.store.persist(HardState(7, 2), 0, entries(1, 1))
    subject.snapshot(5, 10)
    subject.store.reset_log(snapshot_of(subject))
    recovered = subject.reopen()
    assert (recovered.first_index, recovered.previous_term, recovered.entries) == (11, 5, [])
    assert recovered.hard_state == HardState(7, 2)

    subject.store.persist(None, 11, [LogEntry(7, b"k")])
    assert subject.reopen().entries == [LogEntry(7, b"k")]


@pytest.mark.parametrize("held", [entries(1, 1), entries(1, 1, 1, 1, 1)], ids=["ends before it", "conflicts with it"])
def test_a_snapshot_committed_before_the_reset_wins_over_the_log(subject: Subject, held: list[LogEntry]) -> None:
    subject.store.persist(None, 0, held)
    subject.snapshot(4, 3)
    recovered = subject.reopen()
    assert (recovered.first_index, recovered.previous_term, recovered.entries) == (4, 4, [])


def test_entries_behind_a_snapshot_that_agrees_with_the_log_are_kept(subject: Subject) -> None:
    subject.store.persist(None, 0, entries(1, 1, 2, 3))
    subject.snapshot(2, 2)
    recovered = subject.reopen()
    assert (recovered.first_index, recovered.entries) == (0, entries(1, 1, 2, 3))


def test_close_can_be_called_twice(subject: Subject) -> None:
    subject.store.close()
    subject.store.close()


def test_a_long_history_comes_back(subject: Subject) -> None:
    kept: list[LogEntry] = []
    first = 0
    for round_number in range(60):
        batch = [LogEntry(round_number, b"%d" % round_number * 100) for _ in range(3)]
        at = max(first, first + len(kept) - round_number % 3)
        subject.store.persist(HardState(round_number, 0), at, batch)
        kept[at - first :] = batch
        if round_number % 10 == 9:
            cut = len(kept) // 2
            subject.snapshot(kept[cut].term, first + cut)
            subject.store.compact(first + cut - 2)
            kept, first = kept[cut - 2 :], first + cut - 2
    recovered = subject.reopen()
    assert (recovered.first_index, recovered.entries) == (first, kept)
    assert recovered.hard_state == HardState(59, 0)


def snapshot_of(subject: Subject) -> SnapshotMeta:
    meta = subject.store.begin_snapshot(EntryId(5, 10), CONFIGURATION).commit()
    assert meta.snapshot_id == EntryId(5, 10)
    return meta
