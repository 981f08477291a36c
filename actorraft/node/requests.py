"""What clients ask of a node: commands, reads, watches, administration. Their frames in; entries, work and answers out.

Each request is answered once, by whoever comes to know its outcome: a command when its entry is applied, a read when
the state is recent enough, a watch with every entry that publishes. One whose entry another leader replaced is not
answered at all: its client asks that leader.

Invariant:  no client has more than a share of what the leader takes before it is applied, so none keeps others out.
Threads:    the node's loop.
Not here:   reads while they wait (reads.py), watches (watches.py); what is done for them (executor.py), the rules of
            reading (raft/reads.py), sessions (session_table.py).
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from actorraft import codec, roles
from actorraft.loggers import guarded_logger
from actorraft.node import admission, work
from actorraft.node.logtime import LogTime
from actorraft.node.metrics import Metrics
from actorraft.node.reads import Reads
from actorraft.node.rules import Rules
from actorraft.node.snapshotting import Snapshotting
from actorraft.node.tracing import Traces
from actorraft.node.watches import Watches
from actorraft.node.work import ExecutorPort
from actorraft.ports import Clients, Clock
from actorraft.raft.config import RaftConfig
from actorraft.raft.errors import NotLeader, ProposalRefused, RaftError
from actorraft.raft.messages import EntryId
from actorraft.raft.ready import LeaderState
from actorraft.raft.server import RaftServer

logger = guarded_logger("actorraft")

CLIENTS_MAX: Final = 10_000  # clients that are told of leader changes; the least recently seen are forgotten first
CLIENT_SHARE: Final = 4  # a client may have a quarter of what the leader takes
CLIENT_FRAMES_MAX: Final = 1_024  # and so many frames of commands
OWED_MAX: Final = 10_000  # refusals that found their client's queue full


class _Wanted(NamedTuple):
    """A snapshot that somebody asks for."""

    tell: Callable[[str, int | None], object]  # why not, "" if it is there; and up to which index the newest one is
    led: bool  # whether this node led when it was asked
    index: int = -1  # type: ignore[assignment]  # what it is to hold at least, once that is known


class Requests:
    """The requests of a node's clients that are not answered yet.

    Args:
        clients: how they are answered; None if there are none.
        counts: what went wrong and was dropped, by name; shared with the transport.
        metrics: where outcomes are counted.
        traces: told of what clients trace.
        status: this node's view of itself, as plain data.
        read_asked: told of each read that the core is asked about, by its token.
    """

    def __init__(
        self,
        server: RaftServer,
        executor: ExecutorPort,
        clients: Clients | None,
        clock: Clock,
        config: RaftConfig,
        *,
        snapshots: Snapshotting,
        rules: Rules,
        log_time: LogTime,
        counts: Counter[str],
        metrics: Metrics,
        traces: Traces,
        status: Callable[[], dict[str, Any]],
        read_asked: Callable[[int], object],
    ) -> None:
        self.own_verbs: dict[str, Callable[[Mapping[str, Any]], Any]] = {}  # what its process does for an administrator
        self.check: Callable[[Mapping[str, Any]], object] = dict  # raises at a key or an address that nobody could use
        self._server = server
        self._executor = executor
        self._clients = clients
        self._config = config
        self._snapshots = snapshots
        self._log_time = log_time
        self._rules = rules
        self._counts = counts
        self._metrics = metrics
        self._traces = traces
        self._status = status
        self._read_asked = read_asked
        self.endpoints: list[
            tuple[int | str, ...]
        ] = []  # (node id, where clients reach it, its keys), for clients that ask
        self.no_room = ""  # why the disk takes no writes of clients, in words
        self.closing = False  # nothing is appended any more: the log must come to its end
        self._pending: dict[int, tuple[Any, int]] = {}  # index of an entry -> who waits for its result, and its bytes
        self._held: dict[Any, list[int]] = {}  # client -> [its entries among them, their bytes]; no zeros
        self._share_bytes = config.uncommitted_bytes_max // CLIENT_SHARE
        self._asked: dict[int, Any] = {}  # token -> what waits for the core's answer: a read, or a _Wanted
        self._next_token = 0
        self._hearers: OrderedDict[Any, None] = OrderedDict()  # who is told who leads
        self._wanted: list[_Wanted] = []
        self._owed: deque[tuple[Any, codec.QueryRefused]] = deque(maxlen=OWED_MAX)
        self._reads = Reads(
            server, executor, clock, snapshots, reply=self.reply, ask=self._ask_index, is_gone=self._is_gone
        )
        self.watches = Watches(executor, clock, self.reply)

    @property
    def waiting(self) -> bool:
        """Whether somebody waits for what the next entries do."""
        return bool(self._pending or self.watches)

    def on_frame(self, client: Any, frame: codec.Body) -> None:
        """Take what a client sent."""
        try:
            request = codec.decode_request(frame)
        except codec.MalformedFrame as error:
            self._counts["malformed client frames"] += 1
            if self._counts["malformed client frames"] == 1:
                logger.warning("dropped a frame from a client (further ones are only counted): %s", error)
            return
        role = self._clients.role(client) if self._clients is not None else roles.ADMIN
        if role != roles.ADMIN and (why := roles.why_not(role, request)):
            self._counts["requests that a client's role does not allow"] += 1
            self._forbid(client, request, why)
            return
        match request:
            case codec.Commands():
                self._on_commands(client, request, frame)
            case codec.Query():
                self._reads.on_query(client, request)
            case codec.Register():
                self._append(client, frame, request.nonce, -1)
            case codec.CloseSession():
                self._append(client, frame, -1, -1)
                self._hearers.pop(client, None)
            case codec.Hello():
                self._hearers[client] = None
                self._hearers.move_to_end(client)
                if len(self._hearers) > CLIENTS_MAX:
                    self._hearers.popitem(last=False)
                self.reply(client, self._leader_is())
            case codec.Admin():
                self._on_admin(client, request)
            case codec.Watch():
                self.watches.watch(client, request)
            case codec.Unwatch():
                self.watches.unwatch(client, request.watch_id)

    def _forbid(self, client: Any, request: codec.Request, why: str) -> None:
        """Say that this will never be done for this client."""
        match request:
            case codec.Commands():
                self.reply(client, codec.Refused(request.client_id, request.first_sequence, why, None, True))
            case codec.Register():
                self.reply(client, codec.Refused(request.nonce, -1, why, None, True))
            case codec.Query():
                self.reply(client, codec.QueryRefused(request.request_id, why, None, True))
            case codec.Admin():
                self.reply(client, codec.AdminReply(request.request_id, why, None))

    def reply(self, client: Any, reply: codec.Reply) -> object:
        """Answer a client; see ports.Clients. What is too large for it is left out."""
        self._count(reply)
        if self._clients is None:
            return True
        return self._clients.send_client(client, codec.encode_reply(reply))

    def _is_gone(self, client: Any) -> bool:
        return self._clients is not None and self._clients.is_gone(client)

    def _count(self, reply: codec.Reply) -> None:
        kind = type(reply)
        if kind is codec.Results:
            self._metrics.commands["answered"] += 1
        elif kind is codec.Answers:
            self._metrics.reads["answered"] += 1
        elif isinstance(reply, codec.Refused):
            self._metrics.commands["forbidden" if reply.forbidden else reply.reason.partition(":")[0]] += 1
        elif isinstance(reply, codec.QueryRefused):
            self._metrics.reads["forbidden" if reply.forbidden else reply.reason] += 1
        elif kind is codec.Expired:
            self._metrics.commands["expired"] += 1

    # --- Commands ---

    def _on_commands(self, client: Any, request: codec.Commands, frame: codec.Body) -> None:
        if not 0 < request.count <= len(request.body):  # each command is at least a byte
            self._counts["malformed client frames"] += 1
            return
        index = self._append(client, frame, request.client_id, request.first_sequence)
        if request.traces and index is not None:
            self._traces.taken(index, self._server.current_term, request.traces)

    def _append(self, client: Any, frame: codec.Body, client_id: int, first_sequence: int) -> int | None:
        """Append a client's frame as one entry, return its index; or say why not, None: certainly not applied."""
        size = len(frame)
        held = self._held.get(client)
        if self.closing:
            reason = "not leader"
        elif self.no_room:
            reason = f"{codec.NO_ROOM}: {self.no_room}"
        elif size > self._config.frame_bytes_max:
            reason = "too large"
        elif held is not None and (held[0] >= CLIENT_FRAMES_MAX or held[1] + size > self._share_bytes):
            reason = "busy"  # it has its share; one frame it may always have
        else:
            try:
                if not self._rules.may_append():
                    raise NotLeader(None)
                index = self._server.propose(codec.stamp(self._log_time.now_s(), frame))
            except NotLeader:
                reason = "not leader"
            except ProposalRefused:
                reason = "busy"
            else:
                self._pending[index] = (client, size)
                if held is None:
                    self._held[client] = [1, size]
                else:
                    held[0] += 1
                    held[1] += size
                return index
        self.reply(client, codec.Refused(client_id, first_sequence, reason, self._server.leader_id))
        return None

    def replaced_from(self, first_index: int) -> None:
        """Another leader replaced entries: their clients hear nothing from here and ask there."""
        for index in [index for index in self._pending if index >= first_index]:
            self._take_pending(index)
        if self._traces.under_way:
            self._traces.replaced_from(first_index)

    def _take_pending(self, index: int) -> Any:
        """Return who waits for an entry, and let them send as much again; None: nobody."""
        waiting = self._pending.pop(index, None)
        if waiting is None:
            return None
        client, size = waiting
        held = self._held[client]
        if held[0] == 1:
            del self._held[client]
        else:
            held[0] -= 1
            held[1] -= size
        return client

    def applied(self, last_index: int, replies: list[tuple[int, codec.Reply]]) -> None:
        """Entries are applied: answer who waits for them. `replies`: (index, what its client is told)."""
        pending = self._pending
        if not pending:
            return
        for index, reply in replies:
            client = self._take_pending(index)
            if client is not None:
                self.reply(client, reply)
        while pending and (index := next(iter(pending))) <= last_index:
            self._take_pending(index)  # a repetition whose results the client already has

    # --- What waits for the state to be recent enough: reads, and snapshots that somebody asks for ---

    def _ask_index(self, what: Any, lease: bool) -> None:
        token, self._next_token = self._next_token, self._next_token + 1
        self._asked[token] = what
        self._read_asked(token)
        self._server.read_index(token, lease=lease)

    def want_snapshot(self, tell: Callable[[str, int | None], object]) -> None:
        """Have a snapshot of no less than is known to be done by whoever asks now, and say when it is there."""
        self._ask_index(_Wanted(tell, self._server.state is LeaderState), False)

    def on_read_index(self, token: int, index: int) -> None:
        """The core says at which index a read may be served; -1: not by this node now."""
        what = self._asked.pop(token, None)
        if type(what) is not _Wanted:
            self._reads.on_index(what, index)
        elif index < 0 and what.led:
            what.tell("not leader", None)
        elif index < 0 and self._snapshots.handed_index < 0:
            what.tell("nothing is committed here yet", None)
        else:
            # Cut off from a leader, it is of what is here.
            self._wanted.append(what._replace(index=index if index >= 0 else self._snapshots.handed_index))
            self._take_wanted()

    def handed_over(self) -> None:
        """The executor was given more: go on with what waited for it."""
        self._reads.handed_over()
        if self._wanted:
            self._take_wanted()

    def _take_wanted(self) -> None:
        """Answer who wants a snapshot of no more than there is now; begin the next one, if it can begin."""
        snapshots = self._snapshots
        for wanted in self._end_wanted(snapshots.newest_index):
            wanted.tell("", snapshots.newest_index)
        if not snapshots.running and any(wanted.index <= snapshots.handed_index for wanted in self._wanted):
            reason = snapshots.begin()
            if reason:
                self.snapshot_ended(reason)

    def snapshot_ended(self, reason: str) -> None:
        """The executor has taken a snapshot, or could not. `reason`: why not."""
        if reason and self._wanted:
            for wanted in self._end_wanted(self._snapshots.tried_index):
                wanted.tell(f"the snapshot failed: {reason}", self._snapshots.newest_index)
        self._take_wanted()

    def _end_wanted(self, index: int) -> list[_Wanted]:
        """Take out those who want no more than what is inside `index`."""
        ended = [wanted for wanted in self._wanted if wanted.index <= index]
        self._wanted = [wanted for wanted in self._wanted if wanted.index > index]
        return ended

    def answered(self, client: Any, reply: codec.Reply) -> None:
        """The executor has an answer, or the machine has not what is asked for yet."""
        if type(reply) is codec.Answers and reply.values == [codec.NOT_YET]:
            if not self._reads.not_yet(client, reply.request_id):
                self.reply(client, reply)
            return
        sent = self.reply(client, reply)
        if isinstance(reply, codec.Answers | codec.QueryRefused):
            self._reads.answered(client, reply.request_id)
            if sent is False:  # its client would wait for it to the end
                refused = codec.QueryRefused(reply.request_id, "busy", self._server.leader_id)
                self._owed.append((client, refused))

    def tick(self) -> None:
        """Time went by."""
        self._reads.tick()
        self.watches.tick()
        if self._owed:
            owed, self._owed = self._owed, deque(maxlen=OWED_MAX)
            full: set[Any] = set()
            for client, reply in owed:
                if client in full or self.reply(client, reply) is False:
                    full.add(client)
                    self._owed.append((client, reply))

    # --- Who leads ---

    def leader_changed(self) -> None:
        """Tell every client that is there who leads now."""
        self._reads.leader_changed()
        if self._hearers and self._server.leader_id is not None:
            told = self._leader_is()
            for client in self._hearers:
                self.reply(client, told)

    def _leader_is(self) -> codec.LeaderIs:
        return codec.LeaderIs(self._server.current_term, self._server.leader_id, self._config.frame_bytes_max)

    # --- Administration ---

    def _on_admin(self, client: Any, request: codec.Admin) -> None:
        error = ""
        value: Any = None
        try:
            match request.verb:
                case "status":
                    value = self._status()
                case "transfer":
                    self._server.transfer_leadership(request.arguments.get("target"))
                case "snapshot":
                    self.want_snapshot(
                        lambda error, index: self.reply(client, codec.AdminReply(request.request_id, error, index))
                    )
                    return
                case "read_snapshot":
                    term, index = request.arguments.get("id", self._server.snapshot_id)
                    value = self._snapshots.chunks.read(EntryId(term, index), request.arguments["offset"])
                case "endpoints":
                    value = self.endpoints
                case "digest":
                    self._executor.submit(work.TakeDigest(client, request.request_id))
                    return
                case "change_membership":
                    value = self._server.change_membership(codec.decode_changes(request.arguments["changes"]))
                case verb if verb in self.own_verbs:
                    value = self.own_verbs[verb](request.arguments)
                case verb if verb in admission.VERBS:
                    self.check(request.arguments)
                    asked = dict(request.arguments)
                    if verb == "join" and self._clients is not None:
                        asked["token"] = self._clients.key(client)  # proven, whatever it says
                    value = admission.VERBS[verb](self._server, self._log_time.now_s(), asked)
                case _:
                    error = f"unknown request {request.verb!r}"
        except NotLeader:
            error = "not leader"
        except (RaftError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, OSError) as problem:
            error = str(problem) or type(problem).__name__
        self.reply(client, codec.AdminReply(request.request_id, error, value))
