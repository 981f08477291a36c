"""The executor: committed entries in, results out. The only place where user code runs and pickles are opened.

It is handed work in log order and does it in that order, in the machine's thread (turns.py; or at once, in the
simulator), and touches no socket and no log. What it holds is exactly the replicated state: the machine, the sessions,
log time and the serial. All of it rides in a snapshot, so a restored node goes on as if it had applied every entry
itself.

Source:     Raft §5.3 (apply in order), §8 (exactly once), §7 (snapshots carry the sessions).
Threads:    `Executor.run` is called by one thread at a time.
Invariant:  after the same entries, the same state on every node, whatever the entries' bytes are.
"""

from __future__ import annotations

import logging
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, BinaryIO, NamedTuple, Protocol

import msgspec

from actorraft import codec
from actorraft.errors import CorruptionError, NoRoom, StorageFailed
from actorraft.machine import CommandContext
from actorraft.node.digests import EVERY_ENTRIES_MASK, Checked, Checks
from actorraft.node.guest import HookFailed
from actorraft.node.host import MachineHost, MachineStopped
from actorraft.node.session_table import Sessions
from actorraft.ports import SnapshotMeta, SnapshotWriter, Storage
from actorraft.raft.messages import LogEntry

logger = logging.getLogger("actorraft")

PUBLISHED_MAX = 10_000  # events held for those who watch from an earlier index
_HEAD = struct.Struct("<I")


# --- Work, in the order given ---


class Apply(NamedTuple):
    """Committed entries, contiguous from `first_index`."""

    first_index: int
    entries: Sequence[LogEntry]
    quiet: bool = False  # nobody waits for it: that it is done may be seen later, with whatever comes next


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


Work = Apply | Read | TakeSnapshot | Restore | TakeDigest | Watch

# --- What comes back ---


class Applied(NamedTuple):
    """Applied up to `last_index`. `replies`: (index of the entry, what its client is told)."""

    last_index: int
    replies: list[tuple[int, codec.Reply]]
    log_time_s: float
    wake_at_s: float | None
    events: list[tuple[int, str, Any]]
    checked: Sequence[Checked] = ()


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


class Stopped(NamedTuple):
    """This node must stop: its machine cannot go on as the others do, or its `disk` refuses."""

    reason: str
    disk: bool = False


Done = Applied | Answered | Watched | SnapshotTaken | SnapshotFailed | Restored | Stopped


class Executor:
    """Sessions, log time and the user's machine.

    Args:
        host: the machine; nobody else calls it.
        session_expiry_s: seconds of log time after which a silent session is forgotten.
        seed: of `context().random`, the same on every node.
        timer: seconds, for noticing that digests and snapshots of the state are not cheap.
    """

    def __init__(
        self, host: MachineHost, *, session_expiry_s: float, seed: int = 0, timer: Callable[[], float] | None = None
    ) -> None:
        self.host = host
        self._timer = timer if timer is not None else lambda: 0.0
        self.checks = Checks(host.sample, timer)
        self._checked: list[Checked] = []
        self.sessions = Sessions(session_expiry_s)
        self.last_applied = -1
        self.log_time_s = 0.0  # never falls, whatever leaders' clocks do
        self.serial = 0  # of the next command; over the cluster's whole life
        self.published: deque[tuple[int, str, Any]] = deque(maxlen=PUBLISHED_MAX)  # (index, topic, event)
        self._context = CommandContext(seed)
        self._passed_at: float | None = None  # a `wake_at` that a clock entry has reached and the machine has not moved

    def run(self, work: Work) -> Done:
        """Do one piece of work; never raises for what user code or bytes from outside do."""
        try:
            match work:
                case Apply():
                    return self._apply(work)
                case Read():
                    return self._read(work)
                case TakeSnapshot():
                    return self._take_snapshot(work.writer)
                case Restore():
                    return self._restore(work)
                case Watch():
                    return self._watch(work)
                case TakeDigest():
                    return self._take_digest(work)
        except MachineStopped as stop:
            return Stopped(f"at index {self.last_applied + 1}: {stop}")
        except (MemoryError, RecursionError) as error:
            return Stopped(f"at index {self.last_applied + 1}: {type(error).__name__}: {error}")

    def _take_digest(self, work: TakeDigest) -> Answered:
        try:
            value = {"last_applied": self.last_applied, "digest": self.host.digest().hex()}
        except HookFailed as error:
            return Answered(work.client, codec.AdminReply(work.request_id, str(error), None))
        return Answered(work.client, codec.AdminReply(work.request_id, "", value))

    def _apply(self, work: Apply) -> Applied:
        """Apply entries in order; a no-op and a configuration mean nothing here but an index."""
        replies: list[tuple[int, codec.Reply]] = []
        index = work.first_index
        assert index == self.last_applied + 1, f"applying {index} after {self.last_applied}"
        for term, item in work.entries:
            if type(item) is bytes:
                reply = self._apply_item(index, term, item)
                if reply is not None:
                    replies.append((index, reply))
            self.last_applied = index
            index += 1
        checked, self._checked = self._checked, []
        return Applied(self.last_applied, replies, self.log_time_s, self._wake_at(), self._take_events(), checked)

    def _wake_at(self) -> float | None:
        """Return when the machine wants a clock entry; one that it let pass is not asked for again."""
        wake_at = self.host.wake_at
        return None if wake_at is not None and wake_at == self._passed_at else wake_at

    def _take_events(self) -> list[tuple[int, str, Any]]:
        events = self._context.events
        if events:
            self._context.events = []
            self.published.extend(events)
        return events

    def _apply_item(self, index: int, term: int, item: bytes) -> codec.Reply | None:
        try:
            log_time_s, frame = codec.unstamp(item)
            request = codec.decode_request(frame)
        except codec.MalformedFrame:
            logger.error("the entry at index %d is no frame of this version; it changes nothing", index)
            return None
        if log_time_s > self.log_time_s:
            self.log_time_s = log_time_s
        self.sessions.expire(self.log_time_s)
        if type(request) is codec.Commands:
            return self._apply_commands(index, term, request)
        if type(request) is codec.Register:
            self.sessions.open(index, self.log_time_s)
            return codec.Registered(request.nonce, index)
        if type(request) is codec.CloseSession:
            self.sessions.close(request.client_id)
        if type(request) is codec.Clock:
            self._apply_clock(index, term)
        if type(request) is codec.Check:
            self._checked.append(self.checks.check(index, self.serial, request))
        return None

    def _apply_clock(self, index: int, term: int) -> None:
        """Tell the machine the time; counts as one command."""
        context = self._context
        context.begin_entry(index, term, self.log_time_s)
        context.position, context.serial = 0, self.serial
        self.serial += 1
        self.host.clock(context)
        wake_at = self.host.wake_at
        self._passed_at = wake_at if wake_at is not None and wake_at <= self.log_time_s else None

    def _apply_commands(self, index: int, term: int, frame: codec.Commands) -> codec.Reply | None:
        client_id, first = frame.client_id, frame.first_sequence
        admission = self.sessions.admit(frame, self.log_time_s)
        if admission.session is not None:
            results = self._run_commands(index, term, frame)
            if not index & EVERY_ENTRIES_MASK:
                self.checks.note(results)
            self.sessions.record(admission.session, frame, results)
            return codec.Results(client_id, first, results)
        if admission.repeated is not None:
            return codec.Results(client_id, first, admission.repeated)
        if admission.resume_from is not None:
            return codec.Resume(client_id, first, admission.resume_from)
        if admission.expired:
            return codec.Expired(client_id, first)
        return None

    def _run_commands(self, index: int, term: int, frame: codec.Commands) -> list[Any]:
        try:
            commands = codec.decode_body(frame.body)
        except codec.MalformedFrame:
            commands = []
        if len(commands) != frame.count:
            return [codec.MALFORMED] * frame.count
        context = self._context
        context.begin_entry(index, term, self.log_time_s)
        context.position, context.serial = 0, self.serial
        self.serial += len(commands)
        # A machine that asked for its commands together has the context of the first of them.
        apply = self.host.apply_many if self.host.takes_many else self.host.apply_in_order
        results = apply(commands, context)
        if None in commands:
            return [codec.GIVEN_UP if one is None else result for one, result in zip(commands, results, strict=True)]
        return results

    def _read(self, work: Read) -> Answered:
        query = work.query
        try:
            requests = codec.decode_body(query.body)
        except codec.MalformedFrame:
            requests = []
        if len(requests) != query.count:
            return Answered(work.client, codec.Answers(query.request_id, [codec.MALFORMED] * min(query.count, 1)))
        ask = self.host.query
        return Answered(work.client, codec.Answers(query.request_id, [ask(request) for request in requests]))

    def _watch(self, work: Watch) -> Watched:
        """Look up what a watch asks for; every node holds the same."""
        watch_id, topic, from_index = work.watch.watch_id, work.watch.topic, work.watch.from_index
        replies: list[codec.Published] = []
        if from_index is not None:
            full = len(self.published) == PUBLISHED_MAX
            if full and from_index < self.published[0][0]:
                error = f"what was published before index {self.published[0][0]} is no longer held"
                return Watched(work.client, work.watch, [codec.Published(watch_id, -1, [], error)])
            events = [event for event in self.published if event[1] == topic and event[0] >= from_index]
            replies = [codec.Published(watch_id, index, values) for index, _, values in by_entry(events)]
        replies.append(codec.Published(watch_id, self.last_applied, []))
        return Watched(work.client, work.watch, replies)

    # --- Snapshots (§7): the sessions and the clocks first, then what the machine writes ---

    def _take_snapshot(self, writer: SnapshotWriter) -> SnapshotTaken | SnapshotFailed | Stopped:
        """Write all of it now; commands wait."""

        def fill(write: Callable[[bytes], Any]) -> None:
            write(self._snapshot_head())
            self.host.snapshot(write)

        began_s = self._timer()
        done = self.write_snapshot(writer, fill)
        return held_up(done, self._timer() - began_s)

    def pieces(self) -> Generator[bytes, None, None]:
        """Yield what a snapshot holds, for a host that `serves_while_copied`: commands may run between two pieces.

        It is of the moment when the first piece was drawn.
        """
        head = self._snapshot_head()
        pieces = self.host.pieces()
        yield head + next(pieces)
        yield from pieces

    def _snapshot_head(self) -> bytes:
        state = [self.last_applied, self.log_time_s, self.serial, self.sessions.state(), list(self.published)]
        head = codec.encode(state)
        return _HEAD.pack(len(head)) + head

    def write_snapshot(
        self, writer: SnapshotWriter, fill: Callable[[Callable[[bytes], Any]], None]
    ) -> SnapshotTaken | SnapshotFailed | Stopped:
        """Write a snapshot and commit it; `fill` is given where to write. Of the state it touches nothing itself."""
        try:
            fill(writer.write)
            return SnapshotTaken(writer.commit())
        except NoRoom as error:  # it is removed already; the log has room of its own, and may have for long
            return SnapshotFailed(str(error))
        except StorageFailed as error:
            return Stopped(str(error), disk=True)
        except Exception as error:  # user code may not take the log's thread down
            try:
                writer.abort()
            except StorageFailed as failed:
                return Stopped(str(failed), disk=True)
            return SnapshotFailed(_why(error))

    def _restore(self, work: Restore) -> Restored | Stopped:
        try:
            with work.open() as file:
                (size,) = _HEAD.unpack(file.read(_HEAD.size))
                state = msgspec.msgpack.decode(file.read(size))
                self.last_applied, self.log_time_s, self.serial, sessions, published = state
                self.sessions.restore(sessions)
                self.published = deque((tuple(event) for event in published), maxlen=PUBLISHED_MAX)
                self.host.restore(file)
            self.checks.forget()
        except (StorageFailed, CorruptionError) as error:
            return Stopped(str(error), disk=True)
        except Exception as error:  # a state that is half restored must never be served
            return Stopped(f"the snapshot at index {work.last_index} cannot be restored: {_why(error)}")
        assert self.last_applied == work.last_index, (
            f"snapshot at {work.last_index} holds the state at {self.last_applied}"
        )
        return Restored(work.last_index, self.log_time_s, self._wake_at())


# --- Where work is done ---


class ExecutorPort(Protocol):
    """Where work is done. `submit` never blocks; what is done comes back through `poll`, in order."""

    def submit(self, work: Work, /) -> None: ...

    def poll(self) -> list[Done]: ...


class LogOnly:
    """An executor for a log without a machine: every entry counts as applied at once."""

    def __init__(self) -> None:
        self._done: list[Done] = []

    def submit(self, work: Work) -> None:
        if isinstance(work, Apply):
            last = work.first_index + len(work.entries) - 1
            self._done.append(Applied(last, [], 0.0, None, []))

    def poll(self) -> list[Done]:
        done, self._done = self._done, []
        return done


class InlineExecutor:
    """Runs work when it is submitted; for simulations, where nothing may depend on threads."""

    def __init__(self, machine: Executor) -> None:
        self.executor = machine
        self._done: list[Done] = []

    def submit(self, work: Work) -> None:
        self._done.append(self.executor.run(work))

    def poll(self) -> list[Done]:
        done, self._done = self._done, []
        return done


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, HookFailed) else f"{type(error).__name__}: {error}"


def held_up(done: SnapshotTaken | SnapshotFailed | Stopped, seconds: float) -> SnapshotTaken | SnapshotFailed | Stopped:
    """Say how long commands waited for a snapshot."""
    if type(done) is not SnapshotTaken:
        return done
    index, mib = done.meta.snapshot_id.index, done.meta.size_bytes / (1 << 20)
    logger.info("snapshot up to index %d: %.1f MiB; commands waited %.0f ms for it", index, mib, seconds * 1000)
    return done._replace(held_up_s=seconds)


def by_entry(events: Iterable[tuple[int, str, Any]]) -> Iterator[tuple[int, str, list[Any]]]:
    """Group what was published by entry and topic, in order: (index, topic, events)."""
    for (index, topic), group in groupby(events, key=lambda event: event[:2]):
        yield index, topic, [event for _, _, event in group]
