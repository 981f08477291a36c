"""RaftControl: drives one RaftServer. Events in; messages, writes, applied entries and answers out.

The only place where the order of effects is carried out, as `Ready` asks for it: first what may leave at once (the
leader's entries travel while its own disk writes them), then one write and one sync, then the answers that had to wait
for the disk, then the committed entries to the executor. Everything it touches is a port: the node's process is one
shell around it (node.py), threads on a RaftNet another (`start`), the simulator the third.

Source:     Raft §5 and §8; D§10.2.1 (the leader's write beside the followers').
Threads:    every method but `client_append_entry`, `become_leader`, `start` and `stop` belongs to the loop's thread.
Not here:   what a command does (executor.py); the rules of the protocol (raft/).
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from actorraft import codec
from actorraft.errors import NoRoom, StorageFailed, Unavailable
from actorraft.node import executor
from actorraft.node.clock import SystemClock
from actorraft.node.digests import Checked, Schedule
from actorraft.node.executor import ExecutorPort, LogOnly, Restore
from actorraft.node.logtime import LogTime, Ticks
from actorraft.node.metrics import Metrics
from actorraft.node.snapshotting import SnapshotChunks
from actorraft.ports import Clients, Clock, Storage
from actorraft.raft.config import RaftConfig
from actorraft.raft.errors import NotLeader, ProposalRefused, RaftError
from actorraft.raft.log import RaftLog
from actorraft.raft.messages import AppendEntries, Configuration, EntryId, InstallSnapshot, LogEntry, Message
from actorraft.raft.ready import LeaderState, Ready
from actorraft.raft.server import RaftServer
from actorraft.storage.memory import MemoryStorage

logger = logging.getLogger("actorraft")

CLIENTS_MAX = 10_000  # clients that are told of leader changes; the least recently seen are forgotten first
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
    frame: bytes


class DisconnectEvent(NamedTuple):
    """The transport saw the connection to a peer break."""

    peer_id: int


class ConnectEvent(NamedTuple):
    """The transport saw the connection to a peer come up."""

    peer_id: int


class ProposeEvent(NamedTuple):
    """`client_append_entry` from another thread."""

    item: Any
    future: Future[int]


class CampaignEvent(NamedTuple):
    """`become_leader` from another thread."""

    future: Future[int]


Event = MessageEvent | TickEvent | ClientEvent | DisconnectEvent | ConnectEvent | ProposeEvent | CampaignEvent


class NodeStopped(Exception):
    """The node cannot go on; the message is the reason that its operator is told."""


class RaftControl:
    """One node's control.

    Args:
        net: a RaftNet (`address` is this node's id, `peers` the others), or anything with these and `send`.
        storage: the node's log and hard state; in memory by default.
        executor: where committed entries go; by default they only count as applied.
        clients: how clients are answered; None if there are none.
        configuration: the members of a new cluster; by default this node and its peers, all voters.
        rng: the source of election timeouts.
        noop: whether a new leader appends an empty entry (§8); off only for simulations of the paper's figures.
        commit_along: tell followers of a commit with the next append or a millisecond later, not at once, at its price.
    """

    def __init__(
        self,
        net: Any,
        *,
        storage: Storage | None = None,
        executor: ExecutorPort | None = None,
        clients: Clients | None = None,
        clock: Clock | None = None,
        config: RaftConfig | None = None,
        configuration: Configuration | None = None,
        rng: random.Random | None = None,
        noop: bool = True,
        commit_along: bool = False,
    ) -> None:
        self.net = net
        self.node_id: int = net.address
        self.storage: Storage = storage if storage is not None else MemoryStorage()
        self.executor: ExecutorPort = executor if executor is not None else LogOnly()
        self.clients = clients
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.config = config if config is not None else RaftConfig()
        rng = rng if rng is not None else random.Random()
        if configuration is None:
            members = frozenset(net.peers) | {self.node_id}
            configuration = Configuration(voters=members, next_node_id=max(members) + 1)
        self.observe: Callable[[str, Any], object] = lambda *_: None  # told what an operator may want to know
        self.highest_term: Callable[[], int] = lambda: self.server.current_term
        self.counts: Counter[str] = Counter()  # what went wrong and was dropped, by name
        self.metrics = Metrics()
        self.client_endpoints: list[tuple[int, str]] = []  # where clients reach each node, for clients that ask
        self.urgent_at_s: float | None = None  # when the core wants `urgent` (a broken link to the leader)
        self._urgent_delay_ms: int | None = None
        self._tell_at_s: float | None = None  # when followers hear of the last commit, if nothing has told them

        recovered = self.storage.recover()
        snapshot = recovered.snapshot
        snapshot_id = snapshot.snapshot_id if snapshot is not None else EntryId(-1, -1)
        self.server = RaftServer(
            self.node_id,
            configuration=snapshot.configuration if snapshot is not None else configuration,
            config=self.config,
            draw=rng.randrange,
            log=RaftLog(recovered.entries, first_index=recovered.first_index, previous_term=recovered.previous_term),
            hard_state=recovered.hard_state,
            snapshot_id=snapshot_id,
            noop=noop,
            commit_along=commit_along,
        )
        self._handed_index = snapshot_id.index  # the last entry given to the executor
        self._log_bytes = 0  # handed over since the last snapshot
        self._snapshot_bytes = snapshot.size_bytes if snapshot is not None else 0
        self._snapshot_index = snapshot_id.index
        self._snapshot_tried_index = -1  # where the last one was begun, whatever became of it
        if snapshot is not None:
            self.executor.submit(Restore.newest(snapshot_id.index, self.storage))
        self._snapshot_running, self._snapshot_pause_s = False, 0.0  # how long the last one kept commands waiting
        self._chunks = SnapshotChunks(self.storage, self.config.snapshot_chunk_bytes)
        self._pending: dict[int, Any] = {}  # index of an entry -> the client that waits for its result
        self._futures: dict[int, tuple[int, Future[int]]] = {}  # index -> (term, future)
        self._campaigns: list[Future[int]] = []
        self._reads: dict[int, tuple[Any, codec.Query | codec.Admin]] = {}  # token -> what waits for an index
        self._reads_behind: list[tuple[int, Any, codec.Query | codec.Admin]] = []  # whose index is not handed over yet
        self._next_token = 0
        self._watchers: OrderedDict[Any, None] = OrderedDict()
        self._watches: dict[tuple[Any, int], str] = {}  # (client, its number) -> topic
        self._snapshot_waiters: list[tuple[Any, int]] = []
        self._log_time = LogTime(self.server, self.clock)
        self._wake_at_s: float | None = None
        self._checks = Schedule(0.0 if isinstance(self.executor, LogOnly) else self.config.digest_every_s)
        self.difference = ""  # what a check found, in words; stays, for it does not mend itself
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
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
        if self.urgent_at_s is not None and self.clock.monotonic() >= self.urgent_at_s:
            self.urgent_at_s = None
            server.urgent()
        if self._tell_at_s is not None and self.clock.monotonic() >= self._tell_at_s:
            self._tell_at_s = None
            server.tell_commit()
        for event in events:
            match event:
                case MessageEvent(message):
                    server.step(message)
                case ClientEvent(client, frame):
                    self._on_client(client, frame)
                case TickEvent(ticks):
                    server.tick(ticks, asleep=ticks > self.config.heartbeat_ticks)
                    self._wake_machine()
                    self._maybe_check()
                case DisconnectEvent(peer_id):
                    server.peer_disconnected(peer_id)
                case ConnectEvent(peer_id):
                    server.peer_connected(peer_id)
                case ProposeEvent(item, future):
                    self._propose(item, future)
                case CampaignEvent(future):
                    self._campaigns.append(future)
                    server.campaign(pre_vote=False)
        self._flush()
        delay_ms = server.urgent_delay_ms
        if delay_ms is None:
            self.urgent_at_s = None
        elif self.urgent_at_s is None or delay_ms != self._urgent_delay_ms:
            self.urgent_at_s = self.clock.monotonic() + delay_ms / 1000
        self._urgent_delay_ms = delay_ms
        if server.commit_untold:  # each commit puts it off: while commands come, their appends tell it
            server.commit_untold = False
            self._tell_at_s = self.clock.monotonic() + COMMIT_TOLD_S

    @property
    def due_s(self) -> float | None:
        """When `process_events` must be called at the latest, by the clock; None if any time will do."""
        tell_s, urgent_s = self._tell_at_s, self.urgent_at_s
        return urgent_s if tell_s is None else tell_s if urgent_s is None else min(tell_s, urgent_s)

    # --- Out: the order of effects ---

    def _flush(self) -> None:
        """Do what the core asks for; only then look at what the executor did, when core and disk are at one again."""
        server = self.server
        while True:
            while server.has_ready():
                self._carry_out(server.ready())
            done = self.executor.poll()
            if not done:
                return
            for one in done:
                self._on_done(one)

    def _carry_out(self, ready: Ready) -> None:
        for message in ready.messages:
            self._send(message)
        self._persist(ready)
        self.server.advance(ready)
        for message in ready.messages_after_persist:
            self._send(message)
        if ready.committed:
            self._hand_over(ready.committed_from, ready.committed)
        for read in ready.reads:
            self._on_read_state(read.token, read.index)
        if ready.state_changed:
            self._on_state_changed()

    def _persist(self, ready: Ready) -> None:
        for chunk in ready.snapshot_chunks:
            self._chunks.write(chunk)
        if ready.install is not None:
            self._install(ready.install)
        if ready.hard_state is not None or ready.entries_from >= 0:
            if self._pending and self.server.state is not LeaderState:
                # Another leader replaced these entries: their clients hear nothing from here and ask there.
                for index in [index for index in self._pending if index >= ready.entries_from >= 0]:
                    del self._pending[index]
            self.storage.persist(ready.hard_state, ready.entries_from, ready.entries)
            self.metrics.wrote(len(ready.entries))

    def _send(self, message: Message) -> None:
        if type(message) is InstallSnapshot:
            filled = self._chunks.fill(message)
            if filled is None:
                return  # compacted past it meanwhile; the core sends its newest one when this stays unanswered
            message = filled
        elif type(message) is AppendEntries and message.entries:
            self.metrics.sent(len(message.entries))
        self.net.send(message)

    def _hand_over(self, first_index: int, entries: list[LogEntry]) -> None:
        assert first_index == self._handed_index + 1, f"handing over {first_index} after {self._handed_index}"
        self._handed_index = first_index + len(entries) - 1
        self.executor.submit(executor.Apply(first_index, entries, not self._pending and not self._watches))
        for _, item in entries:
            if type(item) is bytes:
                self._log_bytes += len(item)
        if self._futures:
            self._resolve_futures(first_index, entries)
        if self._reads_behind:
            ready = [read for read in self._reads_behind if read[0] <= self._handed_index]
            self._reads_behind = [read for read in self._reads_behind if read[0] > self._handed_index]
            for _, client, request in ready:
                self._serve(client, request)

    # --- What the executor did ---

    def _on_done(self, done: executor.Done) -> None:
        match done:
            case executor.Applied(index, replies, log_time_s, wake_at_s, events, checked):
                if events and self._watches:
                    self._tell_watchers(events)
                self._log_time.applied_s, self._wake_at_s = log_time_s, wake_at_s
                self._answer(index, replies)
                self.server.applied(index)
                self._maybe_snapshot()
                for check in checked:
                    self._on_checked(check)
            case executor.Answered(client, reply):
                self._reply(client, reply)
            case executor.Watched(client, watch, published):
                self._watches[(client, watch.watch_id)] = watch.topic
                for one in published:
                    self._reply(client, one)
            case executor.SnapshotTaken(meta, held_up_s):
                self._snapshot_running, self._snapshot_pause_s = False, held_up_s
                if meta.snapshot_id.index > self._snapshot_index:
                    self._snapshot_index, self._snapshot_bytes = meta.snapshot_id.index, meta.size_bytes
                    id_, members, trailing = meta.snapshot_id, meta.configuration, self.config.trailing_entries
                    self.storage.compact(self.server.snapshot_taken(id_, members, trailing))
                    self.observe("snapshot", meta.snapshot_id.index)
                self._answer_snapshot_waiters("")
            case executor.SnapshotFailed(reason):
                self._on_snapshot_failed(reason)
            case executor.Restored(index, log_time_s, wake_at_s):
                self._log_time.applied_s, self._wake_at_s = log_time_s, wake_at_s
                self.server.applied(index)
            case executor.Stopped(reason, disk):
                raise StorageFailed(reason) if disk else NodeStopped(reason)

    def _answer(self, applied_index: int, replies: list[tuple[int, codec.Reply]]) -> None:
        pending = self._pending
        if not pending:
            return
        for index, reply in replies:
            client = pending.pop(index, None)
            if client is not None:
                self._reply(client, reply)
        while pending and (index := next(iter(pending))) <= applied_index:
            del pending[index]  # a repetition whose results the client already has

    def _reply(self, client: Any, reply: codec.Reply) -> bool:
        """Answer a client; False if it is certainly gone."""
        return self.clients is None or self.clients.send_client(client, codec.encode(reply)) is not False

    # --- Clients ---

    def _on_client(self, client: Any, frame: bytes) -> None:
        try:
            request = codec.decode_request(frame)
        except codec.MalformedFrame as error:
            self.counts["malformed client frames"] += 1
            if self.counts["malformed client frames"] == 1:
                logger.warning("dropped a frame from a client (further ones are only counted): %s", error)
            return
        match request:
            case codec.Commands():
                self._on_commands(client, request, frame)
            case codec.Query():
                self._on_query(client, request)
            case codec.Register():
                self._append(client, frame, request.nonce, -1)
            case codec.CloseSession():
                self._append(client, frame, -1, -1)
                self._watchers.pop(client, None)
            case codec.Hello():
                self._watchers[client] = None
                self._watchers.move_to_end(client)
                if len(self._watchers) > CLIENTS_MAX:
                    self._watchers.popitem(last=False)
                self._reply(client, self._leader_is())
            case codec.Admin():
                self._on_admin(client, request)
            case codec.Watch():
                self.executor.submit(executor.Watch(client, request))
            case codec.Unwatch():
                self._watches.pop((client, request.watch_id), None)

    def _on_commands(self, client: Any, request: codec.Commands, frame: bytes) -> None:
        if not 0 < request.count <= len(request.body):  # each command is at least a byte
            self.counts["malformed client frames"] += 1
            return
        self._append(client, frame, request.client_id, request.first_sequence)

    def _append(self, client: Any, frame: bytes, client_id: int, first_sequence: int) -> None:
        """Append a client's frame as one entry, or say why not: refused by name is certainly not applied."""
        reason = "too large"
        if len(frame) <= self.config.frame_bytes_max:
            try:
                index = self.server.propose(codec.stamp(self._log_time.now_s(), frame))
            except NotLeader:
                reason = "not leader"
            except ProposalRefused:
                reason = "busy"
            else:
                self._pending[index] = client
                return
        self._reply(client, codec.Refused(client_id, first_sequence, reason, self.server.leader_id))

    def _on_query(self, client: Any, query: codec.Query) -> None:
        if self.server.state is not LeaderState and not query.follower:
            self._reply(client, codec.QueryRefused(query.request_id, "not leader", self.server.leader_id))
        elif query.consistency == "stale":
            self.executor.submit(executor.Read(client, query))
        else:
            self._ask_index(client, query, lease=query.consistency == "lease")

    def _ask_index(self, client: Any, request: codec.Query | codec.Admin, *, lease: bool) -> None:
        token, self._next_token = self._next_token, self._next_token + 1
        self._reads[token] = (client, request)
        self.server.read_index(token, lease=lease)

    def _on_read_state(self, token: int, index: int) -> None:
        waiting = self._reads.pop(token, None)
        if waiting is None:
            return
        client, request = waiting
        if index < 0 and type(request) is codec.Query:
            self._reply(client, codec.QueryRefused(request.request_id, "not leader", self.server.leader_id))
        elif index <= self._handed_index:
            self._serve(client, request)
        else:
            self._reads_behind.append((index, client, request))

    def _serve(self, client: Any, request: codec.Query | codec.Admin) -> None:
        """Serve what waited for the state to be recent enough."""
        if type(request) is codec.Query:
            self.executor.submit(executor.Read(client, request))
            return
        self._snapshot_waiters.append((client, request.request_id))
        self._begin_snapshot()
        if not self._snapshot_running:
            self._answer_snapshot_waiters("")

    def _tell_watchers(self, events: list[tuple[int, str, Any]]) -> None:
        """Pass on what the machine published; a client that is gone is forgotten."""
        for index, topic, values in executor.by_entry(events):
            for (client, watch_id), watched in list(self._watches.items()):
                if watched == topic and not self._reply(client, codec.Published(watch_id, index, values)):
                    del self._watches[(client, watch_id)]

    def _leader_is(self) -> codec.LeaderIs:
        return codec.LeaderIs(self.server.current_term, self.server.leader_id)

    def _on_state_changed(self) -> None:
        server = self.server
        self.metrics.leader_is(server.leader_id, self.clock.monotonic())
        if server.state is LeaderState:
            for future in self._campaigns:
                future.set_result(server.current_term)
            self._campaigns.clear()
        if self._watchers and server.leader_id is not None:
            told = self._leader_is()
            for client in self._watchers:
                self._reply(client, told)

    def _wake_machine(self) -> None:
        """Append a clock entry when the machine's time has come, so that expiries work on an idle cluster."""
        due_s = self._wake_at_s
        if due_s is None or self.server.state is not LeaderState:
            return
        now_s = self._log_time.now_s()
        if now_s >= due_s:
            self._wake_at_s = None  # said again with the next applied entry
            try:
                self.server.propose(codec.stamp(now_s, codec.encode(codec.Clock())))
            except RaftError:
                self._wake_at_s = due_s

    # --- Checks (checks.py) ---

    def _maybe_check(self) -> None:
        if self.server.state is not LeaderState or not self._checks.due(self.clock.monotonic(), self._handed_index):
            return
        entry = codec.encode(self._checks.entry(self.node_id))
        with contextlib.suppress(RaftError):  # later, then
            self.server.propose(codec.stamp(self._log_time.now_s(), entry))
            self._checks.appended(self.clock.monotonic())

    def _on_checked(self, checked: Checked) -> None:
        self._checks.checked(checked.sample)
        if checked.difference and not self.difference:
            self.difference = checked.difference
            logger.error("%s", checked.difference)
            self.observe("difference", checked.difference)

    # --- Snapshots (§7) ---

    def _maybe_snapshot(self) -> None:
        entries = self._handed_index - max(self._snapshot_index, self._snapshot_tried_index)
        # At least as much log as the last one was large: a large state is not written again and again.
        due_bytes = max(self.config.snapshot_after_bytes, self._snapshot_bytes)
        if self._log_bytes >= due_bytes or entries >= self.config.snapshot_after_entries:
            self._begin_snapshot()

    def _begin_snapshot(self) -> None:
        index = self._handed_index
        if self._snapshot_running or index <= max(self._snapshot_index, self.server.snapshot_id.index):
            return  # the core may have taken in a later snapshot that is about to be installed
        self._snapshot_running, self._log_bytes, self._snapshot_tried_index = True, 0, index
        snapshot_id = EntryId(self.server.log.term_at(index), index)
        try:
            writer = self.storage.begin_snapshot(snapshot_id, self.server.configuration_at(index))
        except NoRoom as error:
            self._on_snapshot_failed(str(error))
        else:
            self.executor.submit(executor.TakeSnapshot(writer))

    def _on_snapshot_failed(self, reason: str) -> None:
        """Go on without it; the next try is after as much log again."""
        self._snapshot_running = False
        logger.error("snapshot failed, the log goes on growing: %s", reason)
        self._answer_snapshot_waiters(f"the snapshot failed: {reason}")

    def _answer_snapshot_waiters(self, error: str) -> None:
        for client, request_id in self._snapshot_waiters:
            self._reply(client, codec.AdminReply(request_id, error, self._snapshot_index))
        self._snapshot_waiters.clear()

    def _install(self, snapshot_id: EntryId) -> None:
        self._chunks.install(snapshot_id)
        self._handed_index = self._snapshot_index = snapshot_id.index
        self._log_bytes = 0
        self.executor.submit(Restore.newest(snapshot_id.index, self.storage))

    # --- Administration ---

    def _on_admin(self, client: Any, request: codec.Admin) -> None:
        error = ""
        value: Any = None
        try:
            match request.verb:
                case "status":
                    value = self.status()
                case "transfer":
                    self.server.transfer_leadership(request.arguments.get("target"))
                case "snapshot":
                    # Of no less than its asker knows to be done. Cut off from a leader, it is of what is here.
                    self._ask_index(client, request, lease=False)
                    return
                case "read_snapshot":
                    value = self._chunks.read(self.server.snapshot_id, request.arguments["offset"])
                case "endpoints":
                    value = self.client_endpoints
                case "digest":
                    self.executor.submit(executor.TakeDigest(client, request.request_id))
                    return
                case "change_membership":
                    value = self.server.change_membership(codec.decode_changes(request.arguments["changes"]))
                case _:
                    error = f"unknown request {request.verb!r}"
        except NotLeader:
            error = "not leader"
        except (RaftError, KeyError, TypeError, ValueError) as problem:
            error = str(problem) or type(problem).__name__
        self._reply(client, codec.AdminReply(request.request_id, error, value))

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
            "snapshot_index": self._snapshot_index,
            "snapshot_pause_s": self._snapshot_pause_s,
            "voters": sorted(configuration.voters),
            "learners": sorted(configuration.learners),
            "joint": configuration.joint,
            "configuration_index": server.configurations[-1][0],
            "next_node_id": configuration.next_node_id,
            "dropped": dict(self.counts),
            "metrics": self.metrics.as_dict(),
            "error": self.difference or None,
        }

    # --- The mission's names: entries of any kind, futures, threads ---

    @property
    def outgoing(self) -> list[Message]:
        """Messages that a stepwise net (MockNetwork) holds until somebody takes them."""
        outgoing: list[Message] = getattr(self.net, "outgoing", [])
        return outgoing

    def is_leader(self) -> bool:
        """Return whether this node leads, as far as it knows."""
        return self.server.state is LeaderState

    def client_append_entry(self, item: Any) -> Future[int]:
        """Append an entry. From any thread.

        Returns:
            A future of its index, done when it is committed. It fails with NotLeader if this node does not lead, and
            with Unavailable if another leader's entry took the place.
        """
        future: Future[int] = Future()
        event = ProposeEvent(item, future)
        if self._threads:
            self._events.put(event)
        else:
            self.process_event(event)
        return future

    def become_leader(self) -> Future[int]:
        """Become the leader.

        In a simulation at once, in a term above every node's; on a real net by an election without pre-vote.

        Returns:
            A future of the term.
        """
        future: Future[int] = Future()
        if self._threads:
            self._events.put(CampaignEvent(future))
        else:
            self.server.become_leader_now(self.highest_term() + 1)
            self._flush()
            future.set_result(self.server.current_term)
        return future

    def _propose(self, item: Any, future: Future[int]) -> None:
        try:
            index = self.server.propose(item)
        except RaftError as error:
            future.set_exception(error)
        else:
            self._futures[index] = (self.server.current_term, future)

    def _resolve_futures(self, first_index: int, entries: list[LogEntry]) -> None:
        for index, entry in enumerate(entries, first_index):
            waiting = self._futures.pop(index, None)
            if waiting is None:
                continue
            term, future = waiting
            if term == entry.term:
                future.set_result(index)
            else:
                future.set_exception(Unavailable(f"another leader's entry of term {entry.term} took index {index}"))

    def start(self) -> None:
        """Run on a real net: one thread receives, one drives this control, both daemons."""
        if self._threads:
            return
        self.net.start()
        self._threads = [
            threading.Thread(target=self._receive, name=f"raft-{self.node_id}-receive", daemon=True),
            threading.Thread(target=self._run, name=f"raft-{self.node_id}", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop the threads and the net. Idempotent."""
        self._events.put(None)
        self.net.stop()
        for thread in self._threads:
            thread.join(timeout=5.0)
        self._threads = []
        self.storage.close()
        for _, future in self._futures.values():
            future.set_exception(Unavailable("this node was stopped before the entry was committed"))
        self._futures.clear()

    def _receive(self) -> None:
        while (message := self.net.receive()) is not None:
            self._events.put(MessageEvent(message))

    def _run(self) -> None:
        ticks = Ticks(self.clock, self.config.tick_s)
        while True:
            batch: list[Event] = []
            try:
                event = self._events.get(timeout=ticks.wait_s(self.due_s))
                while event is not None:
                    batch.append(event)
                    event = self._events.get_nowait()
                return
            except queue.Empty:
                pass
            # Time first: after a long pause a leader must learn that it may be deposed before it serves anybody.
            elapsed = ticks.take()
            self.process_events([TickEvent(elapsed), *batch] if elapsed else batch)
