"""A node's snapshots (§7): when to take one of its own, and how those of others come and go, chunk by chunk.

Invariant:  `handed_index` is the last entry that the executor was given; a snapshot is of the state there.
Threads:    the node's loop; writing one is the executor's (executor.py).
Not here:   who asked for one (requests.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actorraft.errors import NoRoom
from actorraft.loggers import guarded_logger
from actorraft.node.work import ExecutorPort, Restore, TakeSnapshot
from actorraft.ports import SnapshotMeta, SnapshotWriter, Storage
from actorraft.raft.config import RaftConfig
from actorraft.raft.errors import ProposalRefused
from actorraft.raft.messages import EntryId, InstallSnapshot, LogEntry
from actorraft.raft.server import RaftServer

logger = guarded_logger("actorraft")


class Snapshotting:
    """When this node takes a snapshot, and what it has.

    Args:
        server: the core, as it was recovered.
        storage: where snapshots are.
        executor: who takes them, and restores from them.
        newest: the one that was recovered, if any.

    Attributes:
        chunks: of snapshots that come and go.
        handed_index: the last entry that was given to the executor.
        newest_index: of the newest snapshot that the executor took or was told to restore; -1: none.
        running: whether the executor is taking one.
        tried_index: where the last one was begun, whatever became of it; -1: none.
        held_up_s: how long the last one kept commands waiting.
        why_not: why the last one failed; empty if it did not.
    """

    def __init__(
        self,
        server: RaftServer,
        storage: Storage,
        executor: ExecutorPort,
        config: RaftConfig,
        newest: SnapshotMeta | None,
    ) -> None:
        self._server = server
        self._storage = storage
        self._executor = executor
        self._config = config
        self.chunks = SnapshotChunks(storage, config.snapshot_chunk_bytes)
        self.handed_index = self.newest_index = newest.snapshot_id.index if newest is not None else -1
        self.running = False
        self.held_up_s = 0.0
        self.why_not = ""
        self._last_item_index = -1  # of the last entry handed over that does more than count
        self._newest_bytes = newest.size_bytes if newest is not None else 0
        self.tried_index = -1
        self._log_bytes = 0  # handed over since then
        if newest is not None:
            executor.submit(Restore.newest(self.newest_index, storage))

    def handed_over(self, first_index: int, entries: Sequence[LogEntry]) -> int:
        """Note what the executor is given; return how many bytes its items have."""
        size, index = 0, first_index
        for _, item in entries:
            if type(item) is bytes:
                size += len(item)
                self._last_item_index = index
            index += 1
        self.handed_index = index - 1
        self._log_bytes += size
        return size

    @property
    def to_replay(self) -> bool:
        """Whether the next start would have anything to apply."""
        return self._last_item_index > self.newest_index

    @property
    def log_bytes(self) -> int:
        """Bytes of entries handed over since the newest snapshot was begun."""
        return self._log_bytes

    @property
    def newest_bytes(self) -> int:
        """Bytes of the newest snapshot."""
        return self._newest_bytes

    def begin_if_due(self) -> None:
        """Take one if enough was handed over since the last."""
        entries = self.handed_index - max(self.newest_index, self.tried_index)
        # At least as much log as the last one was large: a large state is not written again and again.
        enough = self._log_bytes >= self._config.snapshot_after_bytes and self._log_bytes >= self._newest_bytes
        if enough or entries >= self._config.snapshot_after_entries:
            self.begin()

    def begin(self) -> str:
        """Begin one, unless one is running or there is nothing new; return why it failed at once, if it did."""
        index = self.handed_index
        if self.running or index <= max(self.newest_index, self._server.snapshot_id.index):
            return ""  # the core may have taken in a later snapshot that is about to be installed
        self._log_bytes, self.tried_index = 0, index
        snapshot_id = EntryId(self._server.log.term_at(index), index)
        try:
            writer = self._storage.begin_snapshot(snapshot_id, self._server.configuration_at(index))
        except NoRoom as error:
            self.failed(str(error))
            return str(error)
        self.running = True
        self._executor.submit(TakeSnapshot(writer))
        return ""

    def taken(self, meta: SnapshotMeta, held_up_s: float) -> bool:
        """The executor has taken one: cut the log. Return whether it is the newest."""
        self.running, self.held_up_s, self.why_not = False, held_up_s, ""
        if meta.snapshot_id.index <= self.newest_index:
            return False
        self.newest_index, self._newest_bytes = meta.snapshot_id.index, meta.size_bytes
        id_, members, trailing = meta.snapshot_id, meta.configuration, self._config.trailing_entries
        self._storage.compact(self._server.snapshot_taken(id_, members, trailing))
        return True

    def failed(self, reason: str) -> None:
        """Go on without it; the next try is after as much log again."""
        self.running, self.why_not = False, reason
        logger.error("snapshot failed, the log goes on growing: %s", reason)

    def fetched(self, meta: SnapshotMeta) -> None:
        """One of another's state is here, durable, of what this log holds too: go on from it, and cut the log."""
        id_, members, trailing = meta.snapshot_id, meta.configuration, self._config.trailing_entries
        self.handed_index = self.newest_index = id_.index
        self._newest_bytes, self._log_bytes = meta.size_bytes, 0
        self._executor.submit(Restore.newest(id_.index, self._storage))
        self._storage.compact(self._server.snapshot_taken(id_, members, trailing))

    def install(self, snapshot_id: EntryId) -> None:
        """Put one that came from a leader in the place of log and state."""
        self.chunks.install(snapshot_id)
        self.handed_index = self.newest_index = snapshot_id.index
        self._log_bytes = 0
        self._executor.submit(Restore.newest(snapshot_id.index, self._storage))


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
