"""Driver: drives one RaftServer. Events in; messages, writes, applied entries and answers out.

The only place where the order of effects is carried out, as `Ready` asks for it: first what may leave at once (the
leader's entries travel while its own disk writes them), then one write and one sync, then the answers that had to wait
for the disk, then the committed entries to the executor. Everything it touches is a port: the node's process is one
shell around it (process.py), threads on a RaftNet another (control.py), the simulator the third.

Source:     Raft §5 and §8; D§10.2.1 (the leader's write beside the followers').
Threads:    the node's loop.
One idea:   the order of effects around one server; its fields are the parts that take them, each a file of its own.
Not here:   what clients ask (requests.py); when snapshots are taken (snapshotting.py); what a command does
            (executor.py); the rules of the protocol (raft/).
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from actorraft import __version__, codec
from actorraft.errors import StorageFailed
from actorraft.loggers import guarded_logger
from actorraft.node import work
from actorraft.node.clock import SystemClock
from actorraft.node.digests import Checked, Schedule
from actorraft.node.executor import LogOnly
from actorraft.node.fetching import Fetching
from actorraft.node.holding import Gate, Holding
from actorraft.node.logtime import LogTime
from actorraft.node.metrics import Metrics
from actorraft.node.requests import Requests
from actorraft.node.rules import Rules
from actorraft.node.skipping import Learned, Skipping
from actorraft.node.snapshotting import Snapshotting
from actorraft.node.tracing import Traces
from actorraft.node.work import ExecutorPort
from actorraft.ports import Clients, Clock, Net, Storage
from actorraft.raft.config import RaftConfig
from actorraft.raft.errors import RaftError
from actorraft.raft.log import RaftLog
from actorraft.raft.messages import (
    AppendEntries,
    Compared,
    Configuration,
    EntryId,
    Holds,
    InstallSnapshot,
    Introduction,
    LogEntry,
    MayTry,
    Message,
    StatePart,
    StateWanted,
)
from actorraft.raft.probation import Probation
from actorraft.raft.ready import NOT_URGENT, LeaderState, LostLog, Ready
from actorraft.raft.server import RaftServer
from actorraft.storage.marks import Marks

logger = guarded_logger("actorraft")

COMMIT_TOLD_S = 0.001  # after a commit, if no append has told followers of it by then


class MessageEvent(NamedTuple):
    """A Raft message arrived."""

    message: Message


class TickEvent(NamedTuple):
    """Time went by."""

    ticks: int = 1


class ClientEvent(NamedTuple):
    """A client's frame arrived; `client` is whatever the Clients port can send to."""

    client: Any
    frame: bytes | memoryview


class DisconnectEvent(NamedTuple):
    """The transport saw the connection to a peer break."""

    peer_id: int


class ConnectEvent(NamedTuple):
    """The transport saw the connection to a peer come up."""

    peer_id: int


# A callable is something to do in the loop, in its turn among the other events.
Event = MessageEvent | TickEvent | ClientEvent | DisconnectEvent | ConnectEvent | Callable[[], object]


class NodeStopped(Exception):
    """The node cannot go on; the message is the reason that its operator is told."""


class Observer:
    """Told what a driver does, from within its loop; must not call it. This one does nothing."""

    def noticed(self, what: str, value: Any) -> None:
        """Something that an operator may want to know.

        "snapshot" (its index), "restored" (up to which), "difference" and "hold" (in words), "lost log" (whose, and in
        words), "disk" (why it takes no writes; "": it does again), "begun" (probation is over: what this node votes and
        acknowledges counts).
        """

    def about(self) -> dict[str, Any]:
        """Return what else belongs into the node's status, as plain data."""
        return {}

    def state_changed(self, server: RaftServer) -> None:
        """Role, term or leader are others than before."""

    def committed(self, first_index: int, entries: Sequence[LogEntry]) -> None:
        """Committed entries were given to the executor."""

    def installed(self, snapshot_id: EntryId) -> None:
        """A leader's snapshot took the place of log and state: entries up to it are committed, and never seen here."""

    def read_asked(self, token: int) -> None:
        """The core is about to be asked at which index a read may be served."""

    def read_answered(self, token: int, index: int) -> None:
        """The core has said so; -1: it refuses."""


class Driver:
    """One node's control.

    Args:
        net: sends to peers; `address` is this node's id.
        storage: the node's log, hard state and snapshots; recovered from here.
        executor: where committed entries go.
        clients: how clients are answered; None if there are none.
        configuration: the members of a new cluster.
        probation: its disk was empty, or not long ago: it neither votes nor counts until that is over.
        rng: the source of election timeouts.
        noop: whether a new leader appends an empty entry (§8); off only for simulations of the paper's figures.
        commit_along: tell followers of a commit with the next append or a millisecond later, not at once.
        counts: what goes wrong and is dropped, by name; may be shared with the transport.
        marks, skips: the executor's.
        keep_skips: makes what is to be skipped durable in the node's folder; None: nowhere.
        code: what this node's machine is; None: nobody looks after that.
        replay_from: the entry from which on all nodes compute anew by that code, if they do.
        python: the minor version of the interpreter; "": nobody looks after that.
        observer: told what happens.

    Attributes:
        server: the core.
        requests: what clients wait for.
        snapshots: what there is, and when the next one is due.
        difference: what a check found, in words; stays, for it does not mend itself.
        fault: what is wrong with the machine's hooks now, in words; set by whoever runs it, from any thread.
        lost_log: that this node came back without what it had acknowledged, in words; stays, for so does its cause.
    """

    def __init__(
        self,
        net: Net,
        *,
        storage: Storage,
        executor: ExecutorPort,
        clients: Clients | None = None,
        clock: Clock | None = None,
        config: RaftConfig,
        configuration: Configuration,
        probation: Probation | None = None,
        rng: random.Random | None = None,
        noop: bool = True,
        commit_along: bool = False,
        counts: Counter[str] | None = None,
        marks: Marks | None = None,
        skips: dict[int, int] | None = None,
        keep_skips: Callable[[dict[int, int]], object] | None = None,
        code: codec.Code | None = None,
        replay_from: int | None = None,
        python: str = "",
        observer: Observer | None = None,
    ) -> None:
        self.net = net
        self.node_id = net.address
        self.storage = storage
        self.executor = executor
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.config = config
        self.counts: Counter[str] = counts if counts is not None else Counter()
        self.observer = observer if observer is not None else Observer()
        self.metrics = Metrics()
        self.traces = Traces(self.node_id, self.counts)
        self._passed_on = -1  # up to there, who watches was told of all that was published
        self._handed: deque[tuple[int, float]] = deque()  # (last index, when) of what the executor has not applied yet
        self.difference = self.fault = self.lost_log = self.too_old = self.foreign = ""
        self.refused: dict[int, str] = {}  # members that are not heard: node id -> why
        self._urgent_at_s: float | None = None  # when the core wants `urgent` (a broken link to the leader)
        self._tell_at_s: float | None = None  # when followers hear of the last commit, if nothing has told them
        self._wake_at_s: float | None = None  # log time at which the machine wants a clock entry

        recovered = storage.recover()
        snapshot = recovered.snapshot
        self.server = RaftServer(
            self.node_id,
            configuration=snapshot.configuration if snapshot is not None else configuration,
            config=config,
            draw=(rng if rng is not None else random.Random()).randrange,
            log=RaftLog(recovered.entries, first_index=recovered.first_index, previous_term=recovered.previous_term),
            hard_state=recovered.hard_state,
            snapshot_id=snapshot.snapshot_id if snapshot is not None else EntryId(-1, -1),
            noop=noop,
            commit_along=commit_along,
            probation=probation,
        )
        self.log_time = LogTime(self.server, self.clock, restoring=snapshot is not None)
        self._checks = Schedule(0.0 if isinstance(executor, LogOnly) else config.digest_every_s)
        self.rules = Rules(
            self.server,
            self.log_time,
            code,
            replay_from=replay_from,
            compares=self._checks.on,
            python=python,
        )
        self.snapshots = Snapshotting(self.server, storage, executor, config, snapshot)
        self.requests = Requests(
            self.server,
            executor,
            clients,
            self.clock,
            config,
            snapshots=self.snapshots,
            rules=self.rules,
            log_time=self.log_time,
            counts=self.counts,
            metrics=self.metrics,
            traces=self.traces,
            status=self.status,
            read_asked=self.observer.read_asked,
        )
        marks = marks if marks is not None else Marks()
        self.holding = Holding(
            self.server,
            net,
            storage,
            executor,
            config,
            marks,
            self.log_time,
            changed=lambda reason: self.observer.noticed("hold", reason),
        )
        self.skipping = Skipping(self.server, net, marks, self.log_time, skips if skips is not None else {}, keep_skips)
        self.fetching = Fetching(self.server, net, storage, self.snapshots, config)
        self._handlers: dict[type, Callable[[Any], None]] = {
            Holds: self.holding.on_message,
            MayTry: self.holding.on_message,
            Compared: self._on_compared,
            StateWanted: self._on_state,
            StatePart: self._on_state,
        }
        self._careful = self.skipping.careful  # as of the last batch
        self._gate: Gate | None = Gate() if noop and not isinstance(executor, LogOnly) else None
        self._shut_out: list[LogEntry] = []  # by the gate, or for what another interpreter applies
        if snapshot is None:
            self._look_at_code()
        self._flush()

    # --- In ---

    def process_event(self, event: Event) -> None:
        """Process one event and everything that follows from it."""
        self.process_events((event,))

    def process_events(self, events: Sequence[Event]) -> None:
        """Process events in order, then carry out what the core asks for: one write for all of them.

        Raises:
            StorageFailed: the disk refused; the process must stop without another word to anybody.
            NodeStopped: the machine cannot go on.
        """
        server = self.server
        if self._urgent_at_s is not None and self.clock.monotonic() >= self._urgent_at_s:
            self._urgent_at_s = None
            server.urgent()
        if self._tell_at_s is not None and self.clock.monotonic() >= self._tell_at_s:
            self._tell_at_s = None
            server.tell_commit()
        careful = self._careful = self.skipping.careful
        handlers = self._handlers
        for event in events:
            match event:
                case MessageEvent(message):
                    kind = type(message)
                    if kind is Introduction or (careful and not self.skipping.talks_to(message.source)):
                        self._on_stranger(message)
                        careful = self._careful = self.skipping.careful
                        continue
                    handle = handlers.get(kind)  # what is the node's; all else is the core's
                    if handle is not None:
                        handle(message)
                        continue
                    if self._gate is not None:
                        self._gate.hear(message, server.current_term)
                    server.step(message)
                case ClientEvent(client, frame):
                    self.requests.on_frame(client, frame)
                case TickEvent(ticks):
                    server.tick(ticks, asleep=ticks > self.config.heartbeat_ticks)
                    self.holding.tick(ticks)
                    self.fetching.tick(ticks)
                    self._let_in()
                    self.rules.tick()
                    self.skipping.tick()
                    self._wake_machine()
                    self._maybe_check()
                    self.requests.tick()
                    self.metrics.tick()
                case DisconnectEvent(peer_id):
                    self.rules.lost(peer_id)
                    server.peer_disconnected(peer_id)
                    self.skipping.connected(peer_id)
                case ConnectEvent(peer_id):
                    self.skipping.connected(peer_id)
                    server.peer_connected(peer_id)
                case _:
                    event()
        self._flush()

    def settle(self) -> None:
        """Look at what the executor did, and carry out what follows from it. Raises as `process_events` does."""
        for done in self.executor.poll():
            self._on_done(done)
        self._flush()

    @property
    def due_s(self) -> float | None:
        """When `process_events` must be called at the latest, by the clock; None if any time will do."""
        tell_s, urgent_s = self._tell_at_s, self._urgent_at_s
        return urgent_s if tell_s is None else tell_s if urgent_s is None else min(tell_s, urgent_s)

    # --- Out: the order of effects ---

    def _flush(self) -> None:
        """Do what the core asks for; only then look at what the executor did, when core and disk are at one again."""
        server, executor = self.server, self.executor
        while True:
            while server.has_ready():
                self._carry_out(server.ready())
            done = executor.poll()
            if not done:
                return
            for one in done:
                self._on_done(one)

    def _carry_out(self, ready: Ready) -> None:
        if ready.messages:
            self._send(ready.messages)
        self._persist(ready)
        self.server.advance(ready)
        if ready.messages_after_persist:
            self._send(ready.messages_after_persist)
        if ready.committed:
            self._hand_over(ready.committed_from, ready.committed)
        for read in ready.reads:
            self.observer.read_answered(read.token, read.index)
            self.requests.on_read_index(read.token, read.index)
        if ready.begun:
            self.observer.noticed("begun", None)
        if ready.state_changed:
            self.metrics.leader_is(self.server.leader_id, self.clock.monotonic())
            self.observer.state_changed(self.server)
            self.requests.leader_changed()
        delay_ms = ready.urgent_delay_ms
        if delay_ms is not None:
            self._urgent_at_s = None if delay_ms == NOT_URGENT else self.clock.monotonic() + delay_ms / 1000
        for lost in ready.lost_logs:
            self._on_lost_log(lost)
        if ready.commit_untold:  # each commit puts it off: while commands come, their appends tell it
            self._tell_at_s = self.clock.monotonic() + COMMIT_TOLD_S

    def _persist(self, ready: Ready) -> None:
        for chunk in ready.snapshot_chunks:
            self.snapshots.chunks.write(chunk)
        if ready.install is not None:
            self.snapshots.install(ready.install)
            self.observer.installed(ready.install)
            self._shut_out = []
            self.log_time.restoring = True
            self.fetching.forget()
            self.requests.handed_over()
        if ready.hard_state is not None or ready.entries_from >= 0:
            entries = ready.entries
            leads = self.server.state is LeaderState
            if ready.entries_from >= 0 and not leads:
                self.requests.replaced_from(ready.entries_from)
            began_s = self.clock.monotonic()
            self.storage.persist(ready.hard_state, ready.entries_from, entries)
            self.metrics.wrote(len(entries), self.clock.monotonic() - began_s)
            if entries and leads:
                last_index = ready.entries_from + len(entries) - 1
                self.metrics.appended(last_index, began_s)
                if self.traces.under_way:
                    self.traces.written(last_index)

    def _on_stranger(self, message: Message) -> None:
        """A peer introduces itself, or says something before that."""
        if not isinstance(message, Introduction):
            self.counts["messages of nodes that skip other entries"] += 1
            return
        try:
            self.skipping.on_introduction(message)
        except Learned as error:
            raise NodeStopped(str(error)) from error

    def _send(self, messages: Sequence[Message]) -> None:
        careful, send = self._careful, self.net.send
        for message in messages:
            if careful and not self.skipping.talks_to(message.dest):
                continue
            if type(message) is InstallSnapshot:
                filled = self.snapshots.chunks.fill(message)
                if filled is not None:  # else compacted past it meanwhile; the core sends its newest one later
                    send(filled)
                continue
            if type(message) is AppendEntries and message.entries:
                self.metrics.sent(len(message.entries))
            send(message)

    def _hand_over(self, first_index: int, entries: list[LogEntry]) -> None:
        fits = self.rules.interpreters.fits() or not self._look_at_python()
        if self._gate is None and not self._shut_out and fits:
            self._give(first_index, entries)
            return
        known = self.snapshots.handed_index + len(self._shut_out)
        self._shut_out += entries[max(known + 1 - first_index, 0) :]  # a state that was fetched holds some, perhaps
        self._let_in()

    def _let_in(self) -> None:
        """Hand over what was shut out, once all that was committed at the start is at hand, and is for this code."""
        if (self._gate is not None and not self._gate.opens(self.server)) or self._look_at_python():
            return
        if self._gate is None:
            entries, self._shut_out = self._shut_out, []
            if entries:
                self._give(self.snapshots.handed_index + 1, entries)
            return
        handed_index = self.snapshots.handed_index
        last_index = handed_index + len(self._shut_out)
        if last_index < self.server.commit_index:
            return  # the rest comes with the next Ready
        if self.rules.replays(self._shut_out):
            return  # the leader says so first, in the log
        if not self.fetching.over:
            older = self.rules.older_rule(self._shut_out)
            if older is False and self.rules.interpreters.waited:  # another one has applied some of it, perhaps
                older = any(type(item) is bytes and codec.is_ruled(item) for _, item in self._shut_out)
            if older is None or (older and self.fetching.want(last_index)):
                return
        refused = self.rules.refusal(self._shut_out)
        if refused:
            raise NodeStopped(refused)
        self.fetching.forget()  # a part that is late must not take the state back behind what is handed over now
        self.fetching.over = True
        self._gate, entries, self._shut_out = None, self._shut_out, []
        if entries:
            self._give(handed_index + 1, entries)

    def _on_state(self, message: Message) -> None:
        """A peer asks for this node's state; or the leader gives its own."""
        if isinstance(message, StateWanted):
            self.fetching.answer(message, self.server.last_applied)
        elif isinstance(message, StatePart):
            before = self.snapshots.handed_index
            taken = self.fetching.take(message, before + len(self._shut_out))
            if taken is not None:
                del self._shut_out[: taken.index - before]
                self.log_time.restoring = True
                self.observer.installed(taken)
                self.requests.handed_over()
                self._let_in()

    def _give(self, first_index: int, entries: list[LogEntry]) -> None:
        handed_index = self.snapshots.handed_index
        assert first_index == handed_index + 1, f"handing over {first_index} after {handed_index}"
        now_s, last_index = self.clock.monotonic(), handed_index + len(entries)
        self.metrics.committed(last_index, now_s)
        if self.traces.under_way:
            self.traces.committed(last_index)
        self._handed.append((last_index, now_s))
        size = self.snapshots.handed_over(first_index, entries)
        self.executor.submit(work.Apply(first_index, entries, not self.requests.waiting, size))
        self.observer.committed(first_index, entries)
        self.requests.handed_over()

    # --- What the executor did ---

    def _on_applied(self, done: work.Applied) -> None:
        index, replies, self.log_time.applied_s, self._wake_at_s, events, checked, hold = done
        if hold is not self.holding.hold:
            self.holding.note(hold)
            self._look_at_code()
        if events:
            self.requests.watches.published(events)
        if hold is None or hold.position != work.BEFORE:
            self._passed_on = index
        self.requests.applied(index, replies)
        self.server.applied(index)
        if self.traces.under_way:
            self.traces.applied(index)
        handed = self._handed
        if handed and handed[0][0] <= index:
            now_s = self.clock.monotonic()
            while handed and handed[0][0] <= index:
                self.metrics.apply.observe(now_s - handed.popleft()[1])
        self.snapshots.begin_if_due()
        for check in checked:
            self._on_checked(check)

    def _on_done(self, done: work.Done) -> None:
        match done:
            case work.Applied():
                self._on_applied(done)
            case work.Tried(applied, apply, restored):
                if restored is not None:
                    self._on_done(restored)
                self.holding.tried(applied.hold, apply=apply)
                self._on_applied(applied)
            case work.Answered(client, reply):
                self.requests.answered(client, reply)
            case work.Watched(client, watch, published):
                self.requests.watches.looked_up(client, watch, published)
            case work.SnapshotTaken(meta, held_up_s):
                if self.snapshots.taken(meta, held_up_s):
                    self.observer.noticed("snapshot", meta.snapshot_id.index)
                self.requests.snapshot_ended("")
            case work.SnapshotFailed(reason):
                self.snapshots.failed(reason)
                self.requests.snapshot_ended(reason)
            case work.Restored(index, log_time_s, wake_at_s, code):
                self.rules.restored(code, index)
                self._look_at_code()
                self.holding.note(None)
                self.log_time.applied_s, self._wake_at_s = log_time_s, wake_at_s
                self.log_time.restoring = False
                self.requests.watches.restored(self._passed_on)
                self._passed_on = index
                self.server.applied(index)
                self.observer.noticed("restored", index)
                self._let_in()
            case work.Stopped(reason, disk):
                raise StorageFailed(reason) if disk else NodeStopped(reason)

    # --- What a leader appends of its own accord ---

    def _wake_machine(self) -> None:
        """Append a clock entry when the machine's time has come, so that expiries work on an idle cluster."""
        due_s = self._wake_at_s
        if due_s is None or self.server.state is not LeaderState or self.requests.closing:
            return
        now_s = self.log_time.now_s()
        if now_s >= due_s:
            self._wake_at_s = None  # said again with the next applied entry
            try:
                if self.rules.may_append():
                    self.server.propose(codec.stamp(now_s, codec.encode(codec.Clock())))
            except RaftError:
                self._wake_at_s = due_s

    def _maybe_check(self) -> None:
        """Append a check entry when it is due (digests.py)."""
        if self.server.state is not LeaderState or self.requests.closing or self.log_time.restoring:
            return
        mixed, awaited, eager = self.rules.mixed, bool(self.rules.to_compare), self.rules.compares_now
        now_s, handed_index = self.clock.monotonic(), self.snapshots.handed_index
        if not self._checks.due(now_s, handed_index, mixed=mixed, awaited=awaited, eager=eager):
            return
        entry = codec.encode(self._checks.entry(self.node_id, mixed=mixed))
        with contextlib.suppress(RaftError):  # later, then
            self.server.propose(codec.stamp(self.log_time.now_s(), entry))
            self._checks.appended(self.clock.monotonic())

    def _on_checked(self, checked: Checked) -> None:
        self._checks.checked(checked.sample)
        leader_id = self.server.leader_id
        if checked.compared_index >= 0 and leader_id not in (None, self.node_id):
            equal = not checked.difference
            self.net.send(Compared(self.node_id, leader_id, self.server.current_term, checked.compared_index, equal))
            if not equal and self.rules.is_newer(leader_id):
                return  # that node is in doubt, not this one
        if checked.difference and not self.difference:
            self.difference = checked.difference
            logger.error("%s", checked.difference)
            self.observer.noticed("difference", checked.difference)

    def _look_at_code(self) -> None:
        """See whether this node's code is too old for what it holds."""
        before, self.too_old = self.too_old, self.rules.look()
        if self.too_old != before:
            self.observer.noticed("hold", self.too_old or self.holding.reason)

    def _look_at_python(self) -> str:
        """See whether what is committed is for another interpreter than this node's."""
        before, self.foreign = self.foreign, self.rules.interpreters.look()
        if self.foreign != before:
            self.observer.noticed("hold", self.foreign or self.too_old or self.holding.reason)
        return self.foreign

    def _on_compared(self, message: Message) -> None:
        assert isinstance(message, Compared)
        if self.server.state is LeaderState and message.term == self.server.current_term:
            doubt = self.rules.compared(message.source, message.index, equal=message.equal)
            if doubt:
                self.executor.submit(work.Doubt(doubt))

    def _on_lost_log(self, lost: LostLog) -> None:
        words = (
            f"node {lost.node_id} came back without entries {lost.last_index + 1} to {lost.acknowledged_index}, "
            "which it had acknowledged: an older copy of its folder, or a store that forgets"
        )
        logger.error("%s", words)
        if lost.node_id == self.node_id:
            self.lost_log = words
        else:
            self.observer.noticed("lost log", (lost.node_id, words))

    # --- What it says of itself ---

    def _troubles(self) -> tuple[str, ...]:
        told = (
            self.too_old,
            self.foreign,
            self.rules.waiting,
            self.holding.reason,
            self.fetching.reason,
            self.skipping.reason,
            self.difference,
            self.fault,
            self.requests.no_room and f"takes no writes: {self.requests.no_room}",
            self.lost_log,
        )
        return (*told, self._on_probation())

    def status(self) -> dict[str, Any]:
        """Return this node's view of itself and its cluster, as plain data."""
        server, configuration = self.server, self.server.configuration
        return {
            "id": self.node_id,
            "state": server.state.name.removesuffix("State").lower(),
            "term": server.current_term,
            "leader_id": server.leader_id,
            "commit_index": server.commit_index,
            "last_applied": server.last_applied,
            "last_index": len(server.log) - 1,
            "snapshot_index": self.snapshots.newest_index,
            "snapshot_pause_s": self.snapshots.held_up_s,
            "voters": sorted(configuration.voters),
            "learners": sorted(configuration.learners),
            "joint": configuration.joint,
            "configuration_index": server.configurations[-1][0],
            "next_node_id": configuration.next_node_id,
            "dropped": dict(self.counts),
            "metrics": self.metrics.as_dict(),
            "refused": dict(self.refused),
            "version": __version__,
            "log_bytes": self.snapshots.log_bytes,
            "snapshot_bytes": self.snapshots.newest_bytes,
            "match_index": {peer_id: each.match_index for peer_id, each in server.progress.items()},
            **self.observer.about(),
            "error": "; ".join(filter(None, self._troubles())) or None,
        }

    def _on_probation(self) -> str:
        """Say that this node does not count yet, and for whom it waits; "" if it does."""
        known = self.server.probation
        if known is None:
            return ""
        silent = sorted(self.server.voters - known.terms.keys() - {self.node_id})
        return (
            "it came with an empty disk, and does not count before enough of the others have answered it and a leader "
            f"has brought it up to date{f'; not heard yet: {silent}' if silent else ''}"
        )
