"""What clients ask of a node: commands, reads, watches, administration. Their frames in; entries, work and answers out.

Each request is answered once, by whoever comes to know its outcome: a command when its entry is applied, a read when
the state is recent enough, a watch with every entry that publishes. One whose entry another leader replaced is not
answered at all: its client asks that leader.

Threads:    the node's loop.
Not here:   what is done for them (executor.py), the rules of reading (raft/reads.py), sessions (session_table.py).
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from actorraft import codec
from actorraft.node import admission, roles, work
from actorraft.node.logtime import LogTime
from actorraft.node.snapshotting import Snapshotting
from actorraft.node.work import ExecutorPort
from actorraft.ports import Clients
from actorraft.raft.config import RaftConfig
from actorraft.raft.errors import NotLeader, ProposalRefused, RaftError
from actorraft.raft.ready import LeaderState
from actorraft.raft.server import RaftServer

logger = logging.getLogger("actorraft")

CLIENTS_MAX = 10_000  # clients that are told of leader changes; the least recently seen are forgotten first


class Requests:
    """The requests of a node's clients that are not answered yet.

    Args:
        clients: how they are answered; None if there are none.
        counts: what went wrong and was dropped, by name; shared with the transport.
        status: this node's view of itself, as plain data.
        read_asked: told of each read that the core is asked about, by its token.
    """

    def __init__(
        self,
        server: RaftServer,
        executor: ExecutorPort,
        clients: Clients | None,
        config: RaftConfig,
        *,
        snapshots: Snapshotting,
        log_time: LogTime,
        counts: Counter[str],
        status: Callable[[], dict[str, Any]],
        read_asked: Callable[[int], object],
    ) -> None:
        self._server = server
        self._executor = executor
        self._clients = clients
        self._config = config
        self._snapshots = snapshots
        self._log_time = log_time
        self._counts = counts
        self._status = status
        self._read_asked = read_asked
        self.endpoints: list[
            tuple[int | str, ...]
        ] = []  # (node id, where clients reach it, its keys), for clients that ask
        self._pending: dict[int, Any] = {}  # index of an entry -> the client that waits for its result
        self._reads: dict[int, tuple[Any, codec.Query | codec.Admin]] = {}  # token -> what waits for an index
        self._reads_behind: list[tuple[int, Any, codec.Query | codec.Admin]] = []  # whose index is not handed over yet
        self._next_token = 0
        self._hearers: OrderedDict[Any, None] = OrderedDict()  # who is told who leads
        self._watches: dict[tuple[Any, int], str] = {}  # (client, its number) -> topic
        self._snapshot_waiters: list[tuple[Any, int]] = []

    @property
    def waiting(self) -> bool:
        """Whether somebody waits for what the next entries do."""
        return bool(self._pending or self._watches)

    def on_frame(self, client: Any, frame: bytes) -> None:
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
                self._on_query(client, request)
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
                self._executor.submit(work.Watch(client, request))
            case codec.Unwatch():
                self._watches.pop((client, request.watch_id), None)

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

    def reply(self, client: Any, reply: codec.Reply) -> bool:
        """Answer a client; False if it is certainly gone."""
        return self._clients is None or self._clients.send_client(client, codec.encode(reply)) is not False

    # --- Commands ---

    def _on_commands(self, client: Any, request: codec.Commands, frame: bytes) -> None:
        if not 0 < request.count <= len(request.body):  # each command is at least a byte
            self._counts["malformed client frames"] += 1
            return
        self._append(client, frame, request.client_id, request.first_sequence)

    def _append(self, client: Any, frame: bytes, client_id: int, first_sequence: int) -> None:
        """Append a client's frame as one entry, or say why not: refused by name is certainly not applied."""
        reason = "too large"
        if len(frame) <= self._config.frame_bytes_max:
            try:
                index = self._server.propose(codec.stamp(self._log_time.now_s(), frame))
            except NotLeader:
                reason = "not leader"
            except ProposalRefused:
                reason = "busy"
            else:
                self._pending[index] = client
                return
        self.reply(client, codec.Refused(client_id, first_sequence, reason, self._server.leader_id))

    def replaced_from(self, first_index: int) -> None:
        """Another leader replaced entries: their clients hear nothing from here and ask there."""
        for index in [index for index in self._pending if index >= first_index]:
            del self._pending[index]

    def applied(self, last_index: int, replies: list[tuple[int, codec.Reply]]) -> None:
        """Entries are applied: answer who waits for them. `replies`: (index, what its client is told)."""
        pending = self._pending
        if not pending:
            return
        for index, reply in replies:
            client = pending.pop(index, None)
            if client is not None:
                self.reply(client, reply)
        while pending and (index := next(iter(pending))) <= last_index:
            del pending[index]  # a repetition whose results the client already has

    # --- Reads ---

    def _on_query(self, client: Any, query: codec.Query) -> None:
        if self._server.state is not LeaderState and not query.follower:
            self.reply(client, codec.QueryRefused(query.request_id, "not leader", self._server.leader_id))
        elif query.consistency == "stale":
            self._executor.submit(work.Read(client, query))
        else:
            self._ask_index(client, query, lease=query.consistency == "lease")

    def _ask_index(self, client: Any, request: codec.Query | codec.Admin, *, lease: bool) -> None:
        token, self._next_token = self._next_token, self._next_token + 1
        self._reads[token] = (client, request)
        self._read_asked(token)
        self._server.read_index(token, lease=lease)

    def on_read_index(self, token: int, index: int) -> None:
        """The core says at which index a read may be served; -1: not by this node now."""
        waiting = self._reads.pop(token, None)
        if waiting is None:
            return
        client, request = waiting
        if index < 0 and type(request) is codec.Query:
            self.reply(client, codec.QueryRefused(request.request_id, "not leader", self._server.leader_id))
        elif index <= self._snapshots.handed_index:
            self._serve(client, request)
        else:
            self._reads_behind.append((index, client, request))

    def handed_over(self) -> None:
        """The executor was given more: serve the reads that waited for it."""
        if self._reads_behind:
            handed_index = self._snapshots.handed_index
            ready = [read for read in self._reads_behind if read[0] <= handed_index]
            self._reads_behind = [read for read in self._reads_behind if read[0] > handed_index]
            for _, client, request in ready:
                self._serve(client, request)

    def _serve(self, client: Any, request: codec.Query | codec.Admin) -> None:
        """Serve what waited for the state to be recent enough."""
        if type(request) is codec.Query:
            self._executor.submit(work.Read(client, request))
            return
        self._snapshot_waiters.append((client, request.request_id))
        reason = self._snapshots.begin()
        if not self._snapshots.running:
            self.snapshot_ended(reason)

    def snapshot_ended(self, reason: str) -> None:
        """Answer who asked for a snapshot. `reason`: why there is none; empty if there is one."""
        error = f"the snapshot failed: {reason}" if reason else ""
        for client, request_id in self._snapshot_waiters:
            self.reply(client, codec.AdminReply(request_id, error, self._snapshots.newest_index))
        self._snapshot_waiters.clear()

    # --- Watches ---

    def watched(self, client: Any, watch: codec.Watch, replies: list[codec.Published]) -> None:
        """A watch begins: send what it has missed so far."""
        self._watches[(client, watch.watch_id)] = watch.topic
        for reply in replies:
            self.reply(client, reply)

    def published(self, events: list[tuple[int, str, Any]]) -> None:
        """Pass on what the machine published; a client that is gone is forgotten."""
        if not self._watches:
            return
        for index, topic, values in work.by_entry(events):
            for (client, watch_id), watched in list(self._watches.items()):
                if watched == topic and not self.reply(client, codec.Published(watch_id, index, values)):
                    del self._watches[(client, watch_id)]

    # --- Who leads ---

    def leader_changed(self) -> None:
        """Tell every client that is there who leads now."""
        if self._hearers and self._server.leader_id is not None:
            told = self._leader_is()
            for client in self._hearers:
                self.reply(client, told)

    def _leader_is(self) -> codec.LeaderIs:
        return codec.LeaderIs(self._server.current_term, self._server.leader_id)

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
                    # Of no less than its asker knows to be done. Cut off from a leader, it is of what is here.
                    self._ask_index(client, request, lease=False)
                    return
                case "read_snapshot":
                    value = self._snapshots.chunks.read(self._server.snapshot_id, request.arguments["offset"])
                case "endpoints":
                    value = self.endpoints
                case "digest":
                    self._executor.submit(work.TakeDigest(client, request.request_id))
                    return
                case "change_membership":
                    value = self._server.change_membership(codec.decode_changes(request.arguments["changes"]))
                case verb if verb in admission.VERBS:
                    asked = dict(request.arguments)
                    if verb == "join" and self._clients is not None:
                        asked["token"] = self._clients.key(client)  # proven, whatever it says
                    value = admission.VERBS[verb](self._server, self._log_time.now_s(), asked)
                case _:
                    error = f"unknown request {request.verb!r}"
        except NotLeader:
            error = "not leader"
        except (RaftError, KeyError, TypeError, ValueError) as problem:
            error = str(problem) or type(problem).__name__
        self.reply(client, codec.AdminReply(request.request_id, error, value))
