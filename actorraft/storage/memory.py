"""The store in memory: for unit tests, teaching, and the simulator's disks.

It survives for as long as the object does; `recover` may be called again, as a restarted node does.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import BinaryIO

from actorraft.errors import UsageError
from actorraft.ports import Recovered, SnapshotMeta
from actorraft.raft.messages import Configuration, EntryId, HardState, LogEntry
from actorraft.storage.marks import Marks

KEEP = 2


class MemorySnapshotWriter:
    """A snapshot being collected. See ports.SnapshotWriter."""

    def __init__(self, store: MemoryStorage, snapshot_id: EntryId, configuration: Configuration) -> None:
        self._store = store
        self._snapshot_id = snapshot_id
        self._configuration = configuration
        self._content: bytearray | None = bytearray()

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Append."""
        if self._content is None:
            raise UsageError("this snapshot is committed or aborted already")
        self._content += data
        return memoryview(data).nbytes

    def commit(self) -> SnapshotMeta:
        """Make it the newest."""
        if self._content is None:
            raise UsageError("this snapshot is committed or aborted already")
        content, self._content = bytes(self._content), None
        meta = SnapshotMeta(self._snapshot_id, self._configuration, len(content))
        self._store.take(meta, content)
        return meta

    def abort(self) -> None:
        """Throw it away. Idempotent; nothing after a commit."""
        self._content = None


class MemoryStorage:
    """Implements ports.Storage; holds items as they are given."""

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.first_index = 0
        self.previous_term = -1
        self.entries: list[LogEntry] = []
        self._snapshots: list[tuple[SnapshotMeta, bytes]] = []
        self.marks = Marks()

    def recover(self) -> Recovered:
        """Return what is held."""
        snapshot = self._snapshots[-1][0] if self._snapshots else None
        if snapshot is not None and self._conflicts(snapshot.snapshot_id):
            self.reset_log(snapshot)
        self.marks.begin(self.first_index + len(self.entries) - 1)
        return Recovered(self.hard_state, snapshot, self.first_index, self.previous_term, list(self.entries))

    def persist(self, hard_state: HardState | None, first_index: int, entries: Sequence[LogEntry]) -> None:
        """As ports.Storage.persist."""
        if hard_state is not None:
            self.hard_state = hard_state
        next_index = self.first_index + len(self.entries)
        if entries or 0 <= first_index < next_index:
            assert self.first_index <= first_index <= next_index, (
                f"entries at {first_index}, but the log holds [{self.first_index}, {next_index})"
            )
            self.entries[first_index - self.first_index :] = entries

    def begin_snapshot(self, snapshot_id: EntryId, configuration: Configuration) -> MemorySnapshotWriter:
        """As ports.Storage.begin_snapshot."""
        return MemorySnapshotWriter(self, snapshot_id, configuration)

    def open_snapshot(self) -> BinaryIO:
        """As ports.Storage.open_snapshot; UsageError if there is none."""
        if not self._snapshots:
            raise UsageError("no snapshot is held")
        return io.BytesIO(self._snapshots[-1][1])

    def read_snapshot(self, snapshot_id: EntryId, offset: int, size_bytes: int) -> tuple[bytes, bool] | None:
        """As ports.Storage.read_snapshot."""
        for meta, content in self._snapshots:
            if meta.snapshot_id == snapshot_id:
                return content[offset : offset + size_bytes], offset + size_bytes >= len(content)
        return None

    def compact(self, first_index: int) -> None:
        """As ports.Storage.compact."""
        if first_index <= self.first_index:
            return
        next_index = self.first_index + len(self.entries)
        newest = self._snapshots[-1][0].snapshot_id.index if self._snapshots else -1
        assert first_index <= min(newest + 1, next_index), (
            f"compacting to {first_index}, but the snapshot ends at {newest} and the log before {next_index}"
        )
        self.previous_term = self.entries[first_index - self.first_index - 1].term
        del self.entries[: first_index - self.first_index]
        self.first_index = first_index

    def reset_log(self, snapshot: SnapshotMeta) -> None:
        """As ports.Storage.reset_log."""
        self.first_index = snapshot.snapshot_id.index + 1
        self.previous_term = snapshot.snapshot_id.term
        self.entries = []

    def close(self) -> None:
        """Nothing to let go of."""

    def take(self, meta: SnapshotMeta, content: bytes) -> None:
        """Add a complete snapshot, and forget all but the newest."""
        kept = [one for one in self._snapshots if one[0].snapshot_id != meta.snapshot_id]
        kept.append((meta, content))
        kept.sort(key=lambda one: (one[0].snapshot_id.index, one[0].snapshot_id.term))
        self._snapshots = kept[-KEEP:]

    def _conflicts(self, snapshot_id: EntryId) -> bool:
        """Whether the log ends before the snapshot does, or holds another entry in its place."""
        term, index = snapshot_id
        if index >= self.first_index + len(self.entries):
            return True
        if index < self.first_index:
            return index == self.first_index - 1 and self.previous_term != term
        return self.entries[index - self.first_index].term != term
