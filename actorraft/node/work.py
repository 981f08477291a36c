"""What an executor is given to do, in order, and what comes back.

Not here:   doing it (executor.py); in which thread (machine_thread.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

from actorraft import codec
from actorraft.loggers import guarded_logger
from actorraft.node.digests import Checked
from actorraft.ports import SnapshotMeta, SnapshotWriter, Storage
from actorraft.raft.messages import LogEntry

logger = guarded_logger("actorraft")

# --- Work, in the order given ---


class Apply(NamedTuple):
    """Committed entries, contiguous from `first_index`."""

    first_index: int
    entries: Sequence[LogEntry]
    quiet: bool = False  # nobody waits for it: that it is done may be seen later, with whatever comes next
    size_bytes: int = 0  # of the items


class Read(NamedTuple):
    """Reads that may be answered once everything handed over before is applied."""

    client: Any
    query: codec.Query


class TakeSnapshot(NamedTuple):
    """Write the state as of the last entry handed over."""

    writer: SnapshotWriter


class Restore(NamedTuple):
    """Replace everything by a snapshot whose last entry is at `last_index`."""

    last_index: int
    open: Callable[[], BinaryIO]

    @classmethod
    def newest(cls, last_index: int, storage: Storage) -> Restore:
        """Make it of the newest snapshot: opened now, as there may be a newer one by the time this is run."""
        file = storage.open_snapshot()
        return cls(last_index, lambda: file)


class Watch(NamedTuple):
    """Say what was published to a topic so far, and from then on everything."""

    client: Any
    watch: codec.Watch


class TakeDigest(NamedTuple):
    """Say a digest of the state as of the last entry handed over, to whoever asked."""

    client: Any
    request_id: int


class TryAgain(NamedTuple):
    """Of a node that holds: have the state as it was before that entry, and, if `apply`, try to go on.

    `restore` and then `entries` make that state, if it is not at hand: `entries` are contiguous from `first_index` to
    the one before the entry held at.
    """

    restore: Restore | None
    first_index: int
    entries: Sequence[LogEntry]
    apply: bool


class Doubt(NamedTuple):
    """A node with older code found that this one differs: while the older code rules, apply nothing further."""

    reason: str


Work = Apply | Read | TakeSnapshot | Restore | TakeDigest | Watch | TryAgain | Doubt

# --- What comes back ---

TOGETHER: Final = -1  # in the place of a position: all commands of an entry
BEFORE: Final = -2  # none of them: the state before the entry is what is missing


class Hold(NamedTuple):
    """Where a node holds (holding.py): at a command that it cannot apply for a reason that other nodes may not have.

    Attributes:
        index, position: of the entry, and of the command in it; TOGETHER: all of its commands; BEFORE: it has not the
            state before that entry, since a snapshot could not be restored.
        error: what the command would give on this node, as a result; None: not known in this life of the process.
        reason: the same for a person.
        module: the name that could not be imported; empty: it was something else.
        ready: the state is that before the entry.
    """

    index: int  # type: ignore[assignment]  # the field hides tuple.index, and is the better name
    position: int
    error: Any
    reason: str
    module: str = ""
    ready: bool = False


class Applied(NamedTuple):
    """Applied up to `last_index`. `replies`: (index of the entry, what its client is told)."""

    last_index: int
    replies: list[tuple[int, codec.Reply]]
    log_time_s: float
    wake_at_s: float | None
    events: list[tuple[int, str, Any]]
    checked: Sequence[Checked] = ()
    hold: Hold | None = None  # it holds at the entry after that


class Answered(NamedTuple):
    """An answer for one client."""

    client: Any
    reply: codec.Reply


class Watched(NamedTuple):
    """What a watch has missed so far; what is published from here on comes with Applied."""

    client: Any
    watch: codec.Watch
    replies: list[codec.Published]


class SnapshotTaken(NamedTuple):
    """The snapshot is durable; the log up to it may go. `held_up_s`: the longest time that commands waited for it."""

    meta: SnapshotMeta
    held_up_s: float = 0.0


class SnapshotFailed(NamedTuple):
    """The machine's snapshot raised, or does not fit on the disk; the log goes on growing until one succeeds."""

    reason: str


class Restored(NamedTuple):
    """The state is that of the snapshot whose last entry is at `last_index`."""

    last_index: int
    log_time_s: float
    wake_at_s: float | None
    code: codec.Code | None = None  # that made the state


class Tried(NamedTuple):
    """What came of trying again; `apply` as it was asked for. `restored`: a snapshot that could not be taken up is."""

    applied: Applied
    apply: bool
    restored: Restored | None = None


class Stopped(NamedTuple):
    """This node must stop: its machine cannot go on as the others do, or its `disk` refuses."""

    reason: str
    disk: bool = False


Done = Applied | Answered | Watched | SnapshotTaken | SnapshotFailed | Restored | Stopped | Tried


class ExecutorPort(Protocol):
    """Where work is done. `submit` never blocks; what is done comes back through `poll`, in order."""

    def submit(self, work: Work, /) -> None: ...

    def poll(self) -> list[Done]: ...


def held_up(done: SnapshotTaken | SnapshotFailed | Stopped, seconds: float) -> SnapshotTaken | SnapshotFailed | Stopped:
    """Say how long commands waited for a snapshot."""
    if type(done) is not SnapshotTaken:
        return done
    index, mib = done.meta.snapshot_id.index, done.meta.size_bytes / (1 << 20)
    logger.info("snapshot up to index %d: %.1f MiB; commands waited %.0f ms for it", index, mib, seconds * 1000)
    return done._replace(held_up_s=seconds)


def by_entry(events: Iterable[tuple[int, str, Any]]) -> Iterator[tuple[int, str, list[Any]]]:
    """Group what was published by entry and topic, in order: (index, topic, events), each pair once.

    Commands of one entry may publish to topics in turn; and what comes with an index that a watch has seen passes for a
    repetition.
    """
    for index, entry in groupby(events, key=itemgetter(0)):
        topics: dict[str, list[Any]] = {}
        for _, topic, event in entry:
            topics.setdefault(topic, []).append(event)
        for topic, values in topics.items():
            yield index, topic, values
