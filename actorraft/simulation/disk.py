"""A disk in memory that fails the way disks do, behind the Storage port.

A write has two steps, as with a real file: it is *written*, then *synced*. A crash between the two loses what was not
synced, or tears it: any prefix of it may have reached the platter, the last batch perhaps in part. What is durable is
in fields of its own, so that the checker can ask what a node may truthfully promise at any instant.

Shape:      `entries[i]` has index `first_index + i`; `unsynced` holds writes in order, oldest first.
Not here:   the format of files and their recovery, which tests/storage crash at every byte.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from random import Random
from typing import Any, BinaryIO, NamedTuple, Protocol

from actorraft.errors import StorageFailed
from actorraft.ports import Recovered, SnapshotMeta
from actorraft.raft.messages import Configuration, EntryId, HardState, LogEntry
from actorraft.storage.marks import Marks

SNAPSHOTS_KEPT = 2


class DiskHooks(Protocol):
    """What a disk's node lends it: each effect may be the last before a crash, takes time, and is checked."""

    def effect(self, name: str) -> None: ...

    def spend_us(self, us: int) -> None: ...

    def wrote(self, hard_state: HardState | None, first_index: int, entries: Sequence[LogEntry]) -> None: ...

    def compacting(self) -> None: ...


class Write(NamedTuple):
    """One batch, as `persist` was given it."""

    hard_state: HardState | None
    first_index: int
    entries: Sequence[LogEntry]


class Image(NamedTuple):
    """A snapshot on the disk."""

    meta: SnapshotMeta
    data: bytes


class SimDisk:
    """The disk of one node; it survives the node's crashes."""

    def __init__(self, hooks: DiskHooks, rng: Random) -> None:
        self.hooks = hooks
        self.rng = rng
        # Durable
        self.hard_state = HardState()
        self.first_index = 0
        self.previous_term = -1  # of the entry at first_index - 1
        self.entries: list[LogEntry] = []
        self.images: list[Image] = []  # oldest first
        self.votes: dict[int, int | None] = {}  # term -> the vote ever made durable in it, for the checker
        self.configurations: list[tuple[int, Configuration]] = []  # found in the entries
        self.marks = Marks()  # mapped: they outlive the process
        # Written, not synced
        self.unsynced: list[Write] = []
        # Faults, set by the world
        self.sync_us = (80, 200)  # how long a write and sync takes
        self.stall_us = 0  # the next sync takes so much longer
        self.fail_next = False  # the next write fails
        self.counts = {"syncs": 0, "stalls": 0, "failures": 0, "torn": 0}

    # --- What is durable, for the checker ---

    @property
    def last_index(self) -> int:
        """Index of the last durable entry."""
        return self.first_index + len(self.entries) - 1

    @property
    def snapshot_index(self) -> int:
        """Last index inside the newest snapshot, -1 if there is none."""
        return self.images[-1].meta.snapshot_id.index if self.images else -1

    def holds(self, index: int, term: int) -> bool:
        """Whether the entry (term, index) is durable here, by itself or inside a snapshot."""
        position = index - self.first_index
        if 0 <= position < len(self.entries):
            return self.entries[position].term == term
        return index <= self.snapshot_index

    # --- Storage ---

    def recover(self) -> Recovered:
        """Return what is durable; a log that the newest snapshot passed or contradicts is dropped, as on a real one."""
        assert not self.unsynced, "recovering a disk that was not crashed or closed"
        snapshot = self.images[-1].meta if self.images else None
        if snapshot is not None:
            term, index = snapshot.snapshot_id
            position = index - self.first_index
            held = self.entries[position].term if 0 <= position < len(self.entries) else -1
            if held != term and (position, self.previous_term) != (-1, term):
                self._drop_log(snapshot)
        self.marks.begin(self.last_index)
        return Recovered(self.hard_state, snapshot, self.first_index, self.previous_term, list(self.entries))

    def persist(self, hard_state: HardState | None, first_index: int, entries: Sequence[LogEntry]) -> None:
        """Write, then sync; a crash may come before, between and after."""
        hooks = self.hooks
        hooks.effect("write")
        hooks.wrote(hard_state, first_index, entries)
        self.write(Write(hard_state, first_index, entries))
        hooks.effect("sync")
        self.sync()
        hooks.effect("synced")

    def write(self, batch: Write) -> None:
        """Hand a batch to the operating system."""
        if self.fail_next:
            self.fail_next = False
            self.counts["failures"] += 1
            self.unsynced.append(batch)
            raise StorageFailed("simulated: the disk refused a write")
        self.unsynced.append(batch)

    def sync(self) -> None:
        """Make everything written durable; takes time."""
        low, high = self.sync_us
        us = low + int(self.rng.random() * (high - low))
        self.counts["syncs"] += 1
        if self.stall_us:
            us += self.stall_us
            self.stall_us = 0
            self.counts["stalls"] += 1
        self.hooks.spend_us(us)
        for batch in self.unsynced:
            self._settle(*batch)
        self.unsynced.clear()

    def _settle(self, hard_state: HardState | None, first_index: int, entries: Sequence[LogEntry]) -> None:
        if hard_state is not None:
            self.hard_state = hard_state
            if hard_state.voted_for is not None:
                self.votes[hard_state.term] = hard_state.voted_for
        if first_index < 0:
            return
        position = first_index - self.first_index
        assert 0 <= position <= len(self.entries), f"a gap: {first_index} after {self.last_index}"
        if position < len(self.entries):
            del self.entries[position:]
            self.configurations = [known for known in self.configurations if known[0] < first_index]
        self.entries.extend(entries)
        for index, entry in enumerate(entries, first_index):
            if type(entry.item) is Configuration:
                self.configurations.append((index, entry.item))

    def begin_snapshot(self, snapshot_id: EntryId, configuration: Configuration) -> SimSnapshotWriter:
        """Start a snapshot aside."""
        self.hooks.compacting()
        return SimSnapshotWriter(self, snapshot_id, configuration)

    def open_snapshot(self) -> BinaryIO:
        """Open the newest snapshot."""
        return io.BytesIO(self.images[-1].data)

    def read_snapshot(self, snapshot_id: EntryId, offset: int, size_bytes: int) -> tuple[bytes, bool] | None:
        """Return a chunk of a snapshot that is still held."""
        for image in self.images:
            if image.meta.snapshot_id == snapshot_id:
                return image.data[offset : offset + size_bytes], offset + size_bytes >= len(image.data)
        return None

    def compact(self, first_index: int) -> None:
        """Forget entries below `first_index`."""
        self.hooks.effect("compact")
        assert first_index <= self.snapshot_index + 1, f"compacting to {first_index} behind {self.snapshot_index}"
        drop = first_index - self.first_index
        if drop <= 0:
            return
        self.previous_term = self.entries[drop - 1].term
        del self.entries[:drop]
        self.first_index = first_index
        self.configurations = [known for known in self.configurations if known[0] >= first_index]

    def reset_log(self, snapshot: SnapshotMeta) -> None:
        """Drop every entry; the next one follows the snapshot."""
        self.hooks.effect("reset log")
        self._drop_log(snapshot)

    def _drop_log(self, snapshot: SnapshotMeta) -> None:
        self.entries = []
        self.configurations = []
        self.first_index = snapshot.snapshot_id.index + 1
        self.previous_term = snapshot.snapshot_id.term

    def cut(self, last_index: int) -> None:
        """Be as an older copy of this disk: without the entries after `last_index`. Term and vote stay."""
        del self.entries[last_index + 1 - self.first_index :]
        self.configurations = [known for known in self.configurations if known[0] <= last_index]

    def close(self) -> None:
        """Nothing to let go of."""

    # --- Crashes ---

    def crash(self) -> None:
        """Lose what was not synced, or keep any prefix of it, the last batch perhaps torn."""
        rng = self.rng
        for batch in self.unsynced:
            fate = rng.random()
            if fate < 0.4:
                break
            if fate < 0.7 and batch.entries:
                self.counts["torn"] += 1
                self._settle(batch.hard_state, batch.first_index, batch.entries[: rng.randrange(len(batch.entries))])
                break
            self._settle(*batch)
        self.unsynced.clear()
        self.stall_us = 0
        self.fail_next = False

    def commit_image(self, meta: SnapshotMeta, data: bytes) -> None:
        """Make a snapshot the newest, unless a newer one came meanwhile, and forget old ones."""
        if meta.snapshot_id.index > self.snapshot_index:
            self.images.append(Image(meta, data))
            del self.images[:-SNAPSHOTS_KEPT]


class SimSnapshotWriter:
    """A snapshot being written aside; a crash before `commit` leaves nothing of it."""

    def __init__(self, disk: SimDisk, snapshot_id: EntryId, configuration: Configuration) -> None:
        self._disk = disk
        self._snapshot_id = snapshot_id
        self._configuration = configuration
        self._chunks: list[bytes] = []

    def write(self, data: bytes, /) -> Any:
        """Append."""
        self._chunks.append(bytes(data))

    def commit(self) -> SnapshotMeta:
        """Make it durable and the newest."""
        hooks = self._disk.hooks
        hooks.effect("commit snapshot")
        data = b"".join(self._chunks)
        meta = SnapshotMeta(self._snapshot_id, self._configuration, len(data))
        self._disk.commit_image(meta, data)
        hooks.spend_us(300)
        hooks.effect("snapshot committed")
        return meta

    def abort(self) -> None:
        """Throw it away."""
        self._chunks.clear()
