"""The ports of a node: what RaftControl needs from disk, network, clock and executor.

Threads, processes and real devices are one shell around it; the simulator is another.
Each method says who calls it, whether it may block, and what is durable on return.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple, Protocol

from actorraft.raft.messages import Configuration, EntryId, HardState, LogEntry, Message


class SnapshotMeta(NamedTuple):
    """A snapshot on disk: the last entry inside it, the configuration at or below that, and its size."""

    snapshot_id: EntryId
    configuration: Configuration
    size_bytes: int


class Recovered(NamedTuple):
    """What a store holds when it is opened.

    `entries` are contiguous from `first_index`; `snapshot` is the newest one, or None; then first_index is 0.
    `first_index` may lie below the snapshot's index (trailing entries are kept).
    `previous_term`: the term of the entry at first_index - 1 (-1 if first_index is 0).
    """

    hard_state: HardState
    snapshot: SnapshotMeta | None
    first_index: int
    previous_term: int
    entries: list[LogEntry]


class SnapshotWriter(Protocol):
    """A snapshot being written aside. Used by one thread at a time, not necessarily the loop's."""

    def write(self, data: bytes, /) -> Any:
        """Append; may block."""

    def commit(self) -> SnapshotMeta:
        """Make it durable (file, rename, directory) and the newest. Blocks on the disk."""

    def abort(self) -> None:
        """Throw it away."""


class Storage(Protocol):
    """Log, hard state and snapshots of one node. All but the writer's methods are called by the node's loop alone."""

    def recover(self) -> Recovered:
        """Return what is held. Called once, first.

        Raises CorruptionError rather than return less than was acknowledged.
        """

    def persist(self, hard_state: HardState | None, first_index: int, entries: Sequence[LogEntry]) -> None:
        """Write and sync; durable on return. Entries go in at `first_index` and replace what is held at and after it.

        Raises StorageFailed; the caller then stops the process and never calls again.
        """

    def begin_snapshot(self, snapshot_id: EntryId, configuration: Configuration) -> SnapshotWriter:
        """Start a snapshot of this node's own state (or one being received, chunk by chunk)."""

    def open_snapshot(self) -> BinaryIO:
        """Open the newest snapshot's content for reading, from its start. Raises CorruptionError."""

    def read_snapshot(self, snapshot_id: EntryId, offset: int, size_bytes: int) -> tuple[bytes, bool] | None:
        """Return (chunk, whether it is the last); None if that snapshot is no longer held."""

    def compact(self, first_index: int) -> None:
        """Forget entries below `first_index`; all of them must be inside the newest snapshot."""

    def reset_log(self, snapshot: SnapshotMeta) -> None:
        """After an installed snapshot: drop every entry of the log; the next one is at snapshot index + 1."""

    def close(self) -> None:
        """Flush and let go of locks. Idempotent."""


class Net(Protocol):
    """Sending to peers; may lose, repeat and reorder, never alters. Called by the loop alone; never blocks."""

    def send(self, message: Message, /) -> None: ...


class Clients(Protocol):
    """Answering clients; called by the loop alone; never blocks; an answer to a client that is gone is dropped."""

    def send_client(self, client: Any, frame: bytes) -> object: ...


class Clock(Protocol):
    """Seconds. `monotonic` never goes back; `wall` is the machine's idea of the time of day."""

    def monotonic(self) -> float: ...

    def wall(self) -> float: ...
