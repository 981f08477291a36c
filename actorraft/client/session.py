"""The client's side of a session: order, retries, deadlines and outcomes. Bytes and times in, bytes and outcomes out.

Commands wait in a queue until a frame may leave; a frame then takes all that wait (nobody waits for a timer), gets the
next dense sequences, and is sent again, to whoever leads, until it is answered. So order is kept across leader changes,
and the nodes' session table makes every repetition harmless.

A command whose deadline passes is ended truthfully. Never sent, or refused by name each time it was: it is certainly
not applied, and a no-op takes its sequence. Otherwise its outcome is unknown; a no-op is sent in its place under the
same sequence, so that whichever of the two the log holds first decides, and the answer to that says for good what
became of it (`OutcomeUnknown.resolve`).

Source:     D§6.3 (sessions), D§6.4 (reads).
Threads:    one at a time; no socket, clock or thread of its own: the client's I/O thread or the simulator drives it.
Invariant:  sequences are dense; a frame keeps its first sequence and its length for ever; frames leave in order.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgspec

from actorraft import codec
from actorraft.errors import ActorRaftError, Busy, OutcomeUnknown, Unavailable, UsageError

NOOP: Final = b"\xc0"  # msgpack nil
HELLO: Final = codec.encode(codec.Hello())

# One command: (its encoding, whoever waits for it, when that ends in seconds). A plain tuple: one is made per command.
Call = tuple[bytes, Any, float]
_Ext = msgspec.msgpack.Ext
_encoded_of: Callable[[Call], bytes] = itemgetter(0)
_deadline_of: Callable[[Call], float] = itemgetter(2)


class NodeSilent(Unavailable):
    """One node that was asked for something did not answer; another one, or the same a little later, may."""


class QueryCall(NamedTuple):
    """One read. `to`: "leader", "any" or a node's id."""

    encoded: bytes
    future: Any
    deadline_s: float
    consistency: str
    to: str | int


class Frame:
    """Commands that travel together under dense sequences."""

    __slots__ = ("attempts_open", "calls", "deadline_s", "first_sequence", "in_flight", "reason", "sent_s", "sent_to")

    def __init__(self, first_sequence: int, calls: list[Call]) -> None:
        self.first_sequence = first_sequence
        self.calls = calls
        self.deadline_s = min(map(_deadline_of, calls))
        self.attempts_open = 0  # sent, and neither answered nor refused by name
        self.in_flight = False  # an answer to the last sending may still come
        self.sent_to = -1
        self.sent_s = 0.0
        self.reason = ""  # of the last refusal


class QueryFrame(NamedTuple):
    """Reads that travel together."""

    calls: list[QueryCall]
    node_id: int
    sent_s: float


@dataclass
class WatchState:
    """One watch: what it asks for, and how far it came."""

    topic: str
    next_index: int | None  # None: from now on, and nobody has said yet where that is


class ClientSession:
    """One client's session with the cluster.

    Args:
        send: sends a frame to a node and returns whether it left; never blocks.
        nonce: a random number that tells this client's registration from all others.
        make_future: makes what `OutcomeUnknown.resolve` waits for.
        frames_max: frames that may be under way at once.
        frame_bytes_max: bytes of one frame's commands.
        frame_calls_max: commands of one frame.
    """

    RESEND_S = 1.0  # an answer that is later than this was probably lost
    HELLO_S = 0.05  # how often nodes are asked for a leader while none is known
    BACKOFF_S = (0.002, 0.1)

    def __init__(
        self,
        send: Callable[[int, bytes], bool],
        *,
        nonce: int,
        make_future: Callable[[], Any],
        frames_max: int = 4,
        frame_bytes_max: int = 1 << 20,
        frame_calls_max: int = 4096,
    ) -> None:
        self._send = send
        self._nonce = nonce
        self._make_future = make_future
        self._frames_max = frames_max
        self._frame_bytes_max = frame_bytes_max
        self._frame_calls_max = frame_calls_max
        self.nodes: set[int] = set()  # connected now
        self.leader: int | None = None
        self.stranger: int | None = None  # a leader that was named, and that there was no link to
        self.term = 0
        self.client_id: int | None = None
        self.results: list[tuple[list[Call], list[Any]]] = []  # answered frames; the owner takes and clears them
        self.answers: list[tuple[list[QueryCall], list[Any]]] = []
        self.failures: list[tuple[Any, ActorRaftError]] = []
        self.admin_replies: list[tuple[Any, codec.AdminReply]] = []
        self._queue: deque[Call] = deque()
        self._queue_deadline_s = math.inf
        self._frames: dict[int, Frame] = {}  # unanswered, by first sequence, in order
        self._next_sequence = 0
        self._registering_s: float | None = None  # when the registration was sent
        self._retry_s = math.inf
        self._refusals = 0  # in a row
        self._last_refusal = ""
        self._hello_s = 0.0
        self._queries: deque[QueryCall] = deque()
        self._query_frames: dict[int, QueryFrame] = {}
        self._query_retry_s = 0.0
        self.published: list[codec.Published] = []
        self._watches: dict[int, WatchState] = {}
        self._admin: dict[int, tuple[Any, int, float]] = {}  # request id -> future, node, deadline
        self._early: dict[int, tuple[Any, int, float, float, bytes]] = {}  # the same, for nodes not connected yet
        self._met: set[int] = set()  # nodes that were connected once
        self._next_request = 0
        self._round_robin = 0

    # --- What the user asks for ---

    @property
    def idle(self) -> bool:
        """Whether nothing is outstanding."""
        return not (self._queue or self._frames or self._queries or self._query_frames or self._admin or self._early)

    def submit(self, calls: Sequence[Call]) -> None:
        """Queue commands, in order."""
        self._queue.extend(calls)
        self._queue_deadline_s = min(self._queue_deadline_s, min(map(_deadline_of, calls), default=math.inf))

    def query(self, call: QueryCall) -> None:
        """Queue a read."""
        self._queries.append(call)

    def watch(self, watch_id: int, topic: str, from_index: int | None) -> None:
        """Ask for what the machine publishes; it goes to `published`, in order, across changes of leader."""
        self._watches[watch_id] = WatchState(topic, from_index)
        if self.leader is not None:
            self._send_watches(self.leader)

    def unwatch(self, watch_id: int) -> None:
        """Nobody reads it any more."""
        if self._watches.pop(watch_id, None) is not None and self.leader is not None:
            self._send(self.leader, codec.encode(codec.Unwatch(watch_id)))

    def _send_watches(self, leader: int) -> None:
        for watch_id, watch in self._watches.items():
            self._send(leader, codec.encode(codec.Watch(watch_id, watch.topic, watch.next_index)))

    def _on_published(self, reply: codec.Published) -> None:
        watch = self._watches.get(reply.watch_id)
        if watch is None:
            return
        if reply.error:
            del self._watches[reply.watch_id]
        elif watch.next_index is not None and reply.index < watch.next_index:
            return  # said before, by another node or this one
        else:
            watch.next_index = reply.index + 1
        if reply.values or reply.error:
            self.published.append(reply)

    def admin(
        self, node_id: int, verb: str, arguments: dict[str, Any], future: Any, deadline_s: float, link_by_s: float = 0.0
    ) -> None:
        """Ask one node for something rare; the reply, or that there is none, goes to `admin_replies` or `failures`.

        A node that was never connected is waited for until `link_by_s`: its link may be coming up.
        """
        request_id = self._request_id()
        frame = codec.encode(codec.Admin(request_id, verb, arguments))
        if node_id in self.nodes and self._send(node_id, frame):
            self._admin[request_id] = (future, node_id, deadline_s)
        elif node_id not in self._met:
            self._early[request_id] = (future, node_id, link_by_s, deadline_s, frame)
        else:
            self.failures.append((future, NodeSilent(f"node {node_id} is not reachable")))

    def _send_early(self, node_id: int) -> None:
        for request_id, (future, node, _, deadline_s, frame) in list(self._early.items()):
            if node == node_id and self._send(node_id, frame):
                del self._early[request_id]
                self._admin[request_id] = (future, node_id, deadline_s)

    def _request_id(self) -> int:
        self._next_request += 1
        return self._next_request

    # --- What the network tells ---

    def connected(self, node_id: int, now_s: float) -> None:
        """A node can be reached: ask who leads."""
        self.nodes.add(node_id)
        self._met.add(node_id)
        self._query_retry_s = 0.0
        self._send(node_id, HELLO)
        if self._early:
            self._send_early(node_id)

    def disconnected(self, node_id: int, now_s: float) -> None:
        """A node is gone: what was sent there may or may not have arrived."""
        self.nodes.discard(node_id)
        for request_id, (future, node, _) in list(self._admin.items()):
            if node == node_id:
                del self._admin[request_id]
                self.failures.append((future, NodeSilent(f"node {node_id} is gone")))
        for request_id, frame in list(self._query_frames.items()):
            if frame.node_id == node_id:
                self._requeue_query(request_id)
        if node_id == self.leader:
            self._lose_leader(now_s)

    def receive(self, node_id: int, reply: codec.Reply, now_s: float) -> None:
        """Take what a node sent."""
        match reply:
            case codec.Results():
                self._on_results(reply)
            case codec.Answers():
                query = self._query_frames.pop(reply.request_id, None)
                if query is not None:
                    self._query_retry_s = 0.0
                    self.answers.append((query.calls, reply.values))
            case codec.LeaderIs():
                self._on_leader(reply.term, reply.leader_id, now_s)
            case codec.Refused():
                self._on_refused(node_id, reply, now_s)
            case codec.QueryRefused():
                self._requeue_query(reply.request_id)
                self._on_not_leader(node_id, reply.leader_id, now_s)
                self._query_retry_s = now_s + self._backoff_s()
            case codec.Registered():
                if reply.nonce == self._nonce and self.client_id is None:
                    self.client_id, self._registering_s = reply.client_id, None
            case codec.Resume():
                self._on_resume(reply, now_s)
            case codec.Expired():
                self._on_expired(reply)
            case codec.Published():
                self._on_published(reply)
            case codec.AdminReply():
                waiting = self._admin.pop(reply.request_id, None)
                if waiting is not None:
                    self.admin_replies.append((waiting[0], reply))

    def _on_results(self, reply: codec.Results) -> None:
        if reply.client_id != self.client_id:
            return
        frame = self._frames.pop(reply.first_sequence, None)
        if frame is None:
            return  # a second answer to a frame that was sent twice
        self._refusals = 0
        if len(reply.values) != len(frame.calls):
            error = OutcomeUnknown(f"a node answered {len(frame.calls)} commands with {len(reply.values)} results")
            self.failures.extend((future, error) for _, future, _ in frame.calls)
            return
        if _Ext in set(map(type, reply.values)) and codec.GIVEN_UP in reply.values:
            self._on_given_up(frame, reply.values)
        self.results.append((frame.calls, reply.values))

    def _on_given_up(self, frame: Frame, values: list[Any]) -> None:
        """A no-op came first: those commands are definitely never applied, and whoever still asks is told so."""
        for position, value in enumerate(values):
            if value == codec.GIVEN_UP:
                future = frame.calls[position][1]
                frame.calls[position] = (NOOP, None, math.inf)
                if future is not None:
                    self.failures.append(
                        (future, Unavailable("the command was given up; it was never applied and never will be"))
                    )

    def _on_leader(self, term: int, leader_id: int | None, now_s: float) -> None:
        if leader_id is None or term < self.term:
            return
        self.term = term
        if leader_id not in self.nodes:  # who says so may not have noticed its death yet; or it joined lately
            self.stranger = leader_id
            if self.leader is not None:
                self._lose_leader(now_s + self.HELLO_S)
        elif leader_id != self.leader:
            self.leader = leader_id
            self._send_watches(leader_id)
            self._send_all_again(now_s)

    def _send_all_again(self, now_s: float) -> None:
        """To a new leader: everything unanswered, in order, at once."""
        self._registering_s = None
        self._retry_s = math.inf
        for frame in self._frames.values():
            frame.in_flight = False
        for request_id, query in list(self._query_frames.items()):
            if query.calls[0].to == "leader":
                self._requeue_query(request_id)
        self._query_retry_s = 0.0
        self._pump(now_s)

    def _lose_leader(self, now_s: float) -> None:
        self.leader = None
        self._hello_s = now_s  # ask the others now

    def _on_not_leader(self, node_id: int, hint: int | None, now_s: float) -> None:
        self._refusals += 1
        if node_id != self.leader:
            return
        if hint in self.nodes and hint != node_id and self._refusals < 3:
            self.leader = hint
        else:
            self.leader = None
            self._hello_s = now_s + self._backoff_s()

    def _on_refused(self, node_id: int, reply: codec.Refused, now_s: float) -> None:
        if reply.first_sequence < 0:  # the registration
            if reply.client_id == self._nonce:
                self._registering_s, self._last_refusal = None, reply.reason
        elif reply.client_id == self.client_id:
            frame = self._frames.get(reply.first_sequence)
            if frame is None:
                return
            frame.attempts_open -= 1
            frame.reason = self._last_refusal = reply.reason
            if frame.sent_to == node_id:
                frame.in_flight = False
            if reply.reason == "too large":
                self._fail_frame(
                    frame, UsageError("the cluster refuses a frame of this size; see RaftConfig.frame_bytes_max")
                )
        if reply.reason == "not leader":
            self._on_not_leader(node_id, reply.leader_id, now_s)
        else:
            self._refusals += 1
        self._retry_s = min(self._retry_s, now_s + self._backoff_s())

    def _backoff_s(self) -> float:
        low, high = self.BACKOFF_S
        return min(high, low * 2.0 ** min(self._refusals, 10))

    def _fail_frame(self, frame: Frame, error: ActorRaftError) -> None:
        """End a frame's commands for a reason of their own; no-ops keep their sequences."""
        for position, (_, future, _) in enumerate(frame.calls):
            if future is not None:
                self.failures.append((future, error))
            frame.calls[position] = (NOOP, None, math.inf)
        frame.deadline_s = math.inf

    def _on_resume(self, reply: codec.Resume, now_s: float) -> None:
        frame = self._frames.get(reply.first_sequence)
        if reply.client_id != self.client_id or frame is None:
            return
        frame.attempts_open -= 1
        frame.in_flight = False
        self._retry_s = min(self._retry_s, now_s + self.BACKOFF_S[0])

    def _on_expired(self, reply: codec.Expired) -> None:
        """The session is gone. What certainly did not apply goes into a new one; the rest is unknown for good."""
        if reply.client_id != self.client_id:
            return
        frames, self._frames = list(self._frames.values()), {}
        self.client_id, self._registering_s, self._next_sequence = None, None, 0
        again: list[Call] = []
        for frame in frames:
            # Only this attempt is known to have changed nothing. An earlier frame may have applied before the session
            # expired, its answer lost, and then a later one behind it.
            if frame.first_sequence == reply.first_sequence:
                frame.attempts_open -= 1
            calls = [call for call in frame.calls if call[1] is not None]
            if frame.attempts_open <= 0:
                again.extend(calls)
            else:
                error = OutcomeUnknown("the session expired before the answer came; read the state to find out")
                self.failures.extend((future, error) for _, future, _ in calls)
        self._queue.extendleft(reversed(again))
        self._queue_deadline_s = min([self._queue_deadline_s, *(call[2] for call in again)])

    # --- Time ---

    def advance(self, now_s: float) -> None:
        """Send what may leave, end what is too late."""
        if self.idle and self.leader is not None:
            return
        if now_s >= self._queue_deadline_s:
            self._expire_queue(now_s)
        for frame in self._frames.values():
            if now_s >= frame.deadline_s:
                self._expire_frame(frame, now_s)
        if self._queries or self._query_frames:
            self._expire_queries(now_s)
        for request_id, (future, node_id, deadline_s) in list(self._admin.items()):
            if now_s >= deadline_s:
                del self._admin[request_id]
                self.failures.append((future, NodeSilent(f"node {node_id} did not answer in time")))
        for request_id, (future, node_id, link_by_s, _, _) in list(self._early.items()):
            if now_s >= link_by_s:
                del self._early[request_id]
                self.failures.append((future, NodeSilent(f"node {node_id} is not reachable")))
        if now_s >= self._retry_s:
            self._retry_s = math.inf
        oldest = next(iter(self._frames.values()), None)
        if oldest is not None and oldest.in_flight and now_s >= oldest.sent_s + self.RESEND_S:
            for frame in self._frames.values():
                frame.in_flight = False
            self._hello_s = now_s
            self._hello(now_s)
        if self._registering_s is not None and now_s >= self._registering_s + self.RESEND_S:
            self._registering_s = None
        for request_id, query in list(self._query_frames.items()):
            if now_s >= query.sent_s + self.RESEND_S:
                self._requeue_query(request_id)
        if self.leader is None and now_s >= self._hello_s:
            self._hello(now_s)
        self._pump(now_s)

    def deadline_s(self) -> float:
        """Return when `advance` must be called at the latest, whatever happens."""
        if self.idle and self.leader is not None:
            return math.inf
        times = [self._queue_deadline_s, self._retry_s]
        for frame in self._frames.values():
            times.append(min(frame.deadline_s, frame.sent_s + self.RESEND_S) if frame.in_flight else frame.deadline_s)
        if self._queries:
            times.append(min(query.deadline_s for query in self._queries))
            times.append(self._query_retry_s)
        for query in self._query_frames.values():
            times.append(min(query.sent_s + self.RESEND_S, query.calls[0].deadline_s))
        times.extend(deadline_s for _, _, deadline_s in self._admin.values())
        times.extend(link_by_s for _, _, link_by_s, _, _ in self._early.values())
        if self._registering_s is not None:
            times.append(self._registering_s + self.RESEND_S)
        if self.leader is None:
            times.append(self._hello_s)
        return min(times)

    def _hello(self, now_s: float) -> None:
        self._hello_s = now_s + self.HELLO_S
        for node_id in self.nodes:
            self._send(node_id, HELLO)

    def _refused_error(self, reason: str) -> Unavailable:
        where = "no leader is known" if self.leader is None else f"node {self.leader} led in term {self.term}"
        if reason == "busy":
            return Busy(
                f"the leader's queue stayed full until the deadline ({where}); not applied: send less, or again later"
            )
        return Unavailable(f"no leader took the command in time ({where}); it is not applied and may be sent again")

    def _expire_queue(self, now_s: float) -> None:
        late = [call for call in self._queue if call[2] <= now_s]
        self._queue = deque(call for call in self._queue if call[2] > now_s)
        self._queue_deadline_s = min((call[2] for call in self._queue), default=math.inf)
        error = self._refused_error(self._last_refusal if self._refusals else "")
        self.failures.extend((future, error) for _, future, _ in late if future is not None)

    def _expire_frame(self, frame: Frame, now_s: float) -> None:
        unknown = frame.attempts_open > 0
        for position, (_, future, deadline_s) in enumerate(frame.calls):
            if deadline_s > now_s:
                continue
            later = None
            if unknown:
                later = self._make_future()
                where = f"node {frame.sent_to}, term {self.term}"
                error: ActorRaftError = OutcomeUnknown(
                    f"sent to {where}, and no answer came in time; it may or may not apply, once"
                )
                error.later = later  # type: ignore[attr-defined]
            else:
                error = self._refused_error(frame.reason)
            self.failures.append((future, error))
            frame.calls[position] = (NOOP, later, math.inf)
        frame.deadline_s = min(map(_deadline_of, frame.calls))

    # --- Sending ---

    def _pump(self, now_s: float) -> None:
        if self._queries and now_s >= self._query_retry_s:
            self._pump_queries(now_s)
        leader = self.leader
        if leader is None or now_s < self._retry_s < math.inf:
            return
        if self.client_id is None:
            if (
                self._queue
                and self._registering_s is None
                and self._send(leader, codec.encode(codec.Register(self._nonce)))
            ):
                self._registering_s = now_s
            return
        for frame in self._frames.values():
            if not frame.in_flight and not self._send_frame(frame, leader, now_s):
                return
        while self._queue and len(self._frames) < self._frames_max:
            frame = self._next_frame()
            self._frames[frame.first_sequence] = frame
            if not self._send_frame(frame, leader, now_s):
                return

    def _next_frame(self) -> Frame:
        """Take what waits, up to the bounds of a frame."""
        queue = self._queue
        if len(queue) <= self._frame_calls_max and sum(map(len, map(_encoded_of, queue))) <= self._frame_bytes_max:
            calls, self._queue = list(queue), deque()
        else:
            calls, size = [], 0
            while queue and len(calls) < self._frame_calls_max:
                size += len(queue[0][0])
                if calls and size > self._frame_bytes_max:
                    break
                calls.append(queue.popleft())
        if not self._queue:
            self._queue_deadline_s = math.inf
        frame = Frame(self._next_sequence, calls)
        self._next_sequence += len(calls)
        return frame

    def _send_frame(self, frame: Frame, leader: int, now_s: float) -> bool:
        assert self.client_id is not None
        lowest = next(iter(self._frames))
        body = codec.join_body(list(map(_encoded_of, frame.calls)))
        data = codec.encode(codec.Commands(self.client_id, frame.first_sequence, lowest, len(frame.calls), body))
        if not self._send(leader, data):
            self._retry_s = now_s + self._backoff_s()
            self._refusals += 1
            return False
        frame.attempts_open += 1
        frame.in_flight, frame.sent_to, frame.sent_s = True, leader, now_s
        return True

    # --- Reads ---

    def _requeue_query(self, request_id: int) -> None:
        frame = self._query_frames.pop(request_id, None)
        if frame is not None:
            self._queries.extendleft(reversed(frame.calls))

    def _expire_queries(self, now_s: float) -> None:
        """Reads change nothing, so a late one is simply unavailable."""
        error = None
        for request_id, frame in list(self._query_frames.items()):
            if any(call.deadline_s <= now_s for call in frame.calls):
                self._requeue_query(request_id)
        for call in [call for call in self._queries if call.deadline_s <= now_s]:
            error = error or Unavailable("no node could serve the read in time")
            self.failures.append((call.future, error))
            self._queries.remove(call)

    def _target(self, to: str | int) -> int | None:
        if to == "leader":
            return self.leader
        if to == "any":
            nodes = sorted(self.nodes)
            self._round_robin += 1
            return nodes[self._round_robin % len(nodes)] if nodes else None
        return to if isinstance(to, int) and to in self.nodes else None

    def _pump_queries(self, now_s: float) -> None:
        """Send what waits, one frame for each kind of read; what has no receiver now waits on."""
        waiting, self._queries = self._queries, deque()
        groups: dict[tuple[str, str | int], list[QueryCall]] = {}
        for call in waiting:
            groups.setdefault((call.consistency, call.to), []).append(call)
        for (consistency, to), calls in groups.items():
            node_id = self._target(to) if len(self._query_frames) < self._frames_max else None
            if node_id is None:
                self._queries.extend(calls)
                self._query_retry_s = now_s + self.HELLO_S  # sooner, when a leader, a link or an answer comes
                continue
            calls, rest = calls[: self._frame_calls_max], calls[self._frame_calls_max :]
            self._queries.extend(rest)
            request_id = self._request_id()
            body = codec.join_body([call.encoded for call in calls])
            query = codec.Query(request_id, consistency, to != "leader", len(calls), body)
            if self._send(node_id, codec.encode(query)):
                self._query_frames[request_id] = QueryFrame(calls, node_id, now_s)
            else:
                self._queries.extend(calls)
                self._query_retry_s = now_s + self._backoff_s()

    # --- The end ---

    def close(self) -> None:
        """End everything that is outstanding, truthfully, and say goodbye."""
        never = Unavailable("the client was closed before the command was sent; it is not applied")
        self.failures.extend((future, never) for _, future, _ in self._queue)
        for frame in self._frames.values():
            unknown = OutcomeUnknown("the client was closed before the answer came; it may or may not apply, once")
            error: ActorRaftError = unknown if frame.attempts_open > 0 else never
            self.failures.extend((future, error) for _, future, _ in frame.calls if future is not None)
        closed = Unavailable("the client was closed")
        for query in self._query_frames.values():
            self.failures.extend((call.future, closed) for call in query.calls)
        self.failures.extend((call.future, closed) for call in self._queries)
        self.failures.extend((future, closed) for future, _, _ in self._admin.values())
        self.failures.extend((each[0], closed) for each in self._early.values())
        self._queue.clear()
        self._queries.clear()
        self._frames.clear()
        self._query_frames.clear()
        self._admin.clear()
        self._early.clear()
        if self.client_id is not None and self.leader is not None:
            self._send(self.leader, codec.encode(codec.CloseSession(self.client_id)))
