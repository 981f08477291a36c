"""Snapshots in chunks (§7): read for others to copy, written as a leader sends them, installed when the core says."""

from __future__ import annotations

from typing import Any

from actorraft.ports import SnapshotWriter, Storage
from actorraft.raft.errors import ProposalRefused
from actorraft.raft.messages import EntryId, InstallSnapshot


class SnapshotChunks:
    """A store's snapshots, chunk by chunk. Of those that arrive, at most one is unfinished.

    Args:
        storage: where they are.
        chunk_bytes: how much is read at once.
    """

    def __init__(self, storage: Storage, chunk_bytes: int) -> None:
        self._storage = storage
        self._chunk_bytes = chunk_bytes
        self._writers: dict[EntryId, SnapshotWriter] = {}
        self._complete: set[EntryId] = set()  # of these, what only waits to be installed

    def fill(self, message: InstallSnapshot) -> InstallSnapshot | None:
        """Put the bytes into a message; None if the snapshot is no longer there."""
        snapshot_id = EntryId(message.snapshot_term, message.snapshot_index)
        chunk = self._storage.read_snapshot(snapshot_id, message.offset, self._chunk_bytes)
        return None if chunk is None else message._replace(data=chunk[0], done=chunk[1])

    def read(self, snapshot_id: EntryId, offset: int) -> list[Any]:
        """Return [term, index, a chunk from `offset` on, whether it is the last] for somebody who copies it.

        Raises:
            ProposalRefused: there is no such snapshot now.
            ValueError: `offset` is none.
        """
        if type(offset) is not int or not 0 <= offset < 1 << 62:
            raise ValueError(f"an offset is a whole number, 0 or more, not {offset!r}")
        chunk = self._storage.read_snapshot(snapshot_id, offset, self._chunk_bytes)
        if chunk is None:
            raise ProposalRefused("there is no snapshot now")
        return [*snapshot_id, *chunk]

    def write(self, chunk: InstallSnapshot) -> None:
        """Write a chunk; the first one of a snapshot begins it, and ends what was unfinished."""
        snapshot_id = EntryId(chunk.snapshot_term, chunk.snapshot_index)
        if chunk.offset == 0:
            for unfinished in self._writers.keys() - self._complete:
                self._writers.pop(unfinished).abort()
            self._writers[snapshot_id] = self._storage.begin_snapshot(snapshot_id, chunk.configuration)
        self._writers[snapshot_id].write(chunk.data)
        if chunk.done:
            self._complete.add(snapshot_id)

    def install(self, snapshot_id: EntryId) -> None:
        """Let the log begin behind a snapshot that is complete."""
        self._storage.reset_log(self._writers.pop(snapshot_id).commit())
        for older in self._complete - {snapshot_id}:
            self._writers.pop(older).abort()  # two came in one batch
        self._complete.clear()
