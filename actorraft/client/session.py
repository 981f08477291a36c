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
One idea:   what becomes of each command. Reads, watches, requests and who leads are parts with files of their own.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

import msgspec

from actorraft import codec
from actorraft.client.failures import Failure
from actorraft.client.leader import BACKOFF_S, Leadership
from actorraft.client.reads import QueryCall, Reads
from actorraft.client.requests import NOT_LEADER, Requests, Watches
from actorraft.errors import ActorRaftError, Busy, OutcomeUnknown, Unavailable, UsageError

NOOP: Final = b"\xc0"  # msgpack nil
FRAME_BYTES_MAX: Final = 1 << 20  # of one frame's commands, unless the cluster takes less
TRACES_MAX: Final = 12  # traced commands that a frame tells of: they must fit into its head, and cost the leader spans
NONE_TRACED: Final[Mapping[Any, str]] = {}

# One command: (its encoding, whoever waits for it, when that ends in seconds). A plain tuple: one is made per command.
Call = tuple[bytes, Any, float]
_Ext = msgspec.msgpack.Ext
_encoded_of: Callable[[Call], bytes] = itemgetter(0)
_deadline_of: Callable[[Call], float] = itemgetter(2)


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


class ClientSession:
    """One client's session with the cluster: its commands; who leads, reads and requests are parts of it.

    Whoever drives it takes `results`, `answers`, `failures`, `published` and `admin_replies`, and clears them.

    Args:
        send: sends a frame to a node and returns whether it left; never blocks.
        nonce: a random number that tells this client's registration from all others.
        make_future: makes what `OutcomeUnknown.resolve` waits for.
        definitions: says what a session must have been told before what is queued now, encoded and in order.
        frames_max: frames that may be under way at once.
        frame_bytes_max: bytes of one frame's commands.
        frame_calls_max: commands of one frame.
        traceparents: what a command is traced as, by whoever waits for it; read as its frame is made.
    """

    RESEND_S = 1.0  # an answer to commands that is later than this was probably lost

    def __init__(
        self,
        send: Callable[[int, bytes], bool],
        *,
        nonce: int,
        make_future: Callable[[], Any],
        definitions: Callable[[], Sequence[bytes]] = tuple,
        frames_max: int = 4,
        frame_bytes_max: int = FRAME_BYTES_MAX,
        frame_calls_max: int = 4096,
        traceparents: Mapping[Any, str] = NONE_TRACED,
    ) -> None:
        self._send = send
        self._traceparents = traceparents
        self._nonce = nonce
        self._make_future = make_future
        self._definitions = definitions
        self._frames_max = frames_max
        self._frame_bytes_max = frame_bytes_max
        self._frame_calls_max = frame_calls_max
        request_ids = itertools.count(1)
        self.failures: list[Failure] = []
        # Answered frames: a value for each call, and the index of an entry that has them applied; -1: not known.
        self.results: list[tuple[list[Call], list[Any], int]] = []
        self.frame_bytes_max = 0  # of the cluster, 0: nobody has said yet
        self.leadership = Leadership(send)
        self._reads = Reads(
            send, self.leadership, request_ids, self.failures, frames_max=frames_max, frame_calls_max=frame_calls_max
        )
        self._requests = Requests(send, request_ids, self.failures)
        self._watches = Watches(send)
        self.answers = self._reads.answers
        self.admin_replies = self._requests.replies
        self.published = self._watches.published
        self.client_id: int | None = None  # None: not registered (any more)
        self._queue: deque[Call] = deque()  # not in a frame yet
        self._queue_deadline_s = math.inf  # not later than that of any call in the queue
        self._frames: dict[int, Frame] = {}  # unanswered, by first sequence, in order
        self._next_sequence = 0  # above all that are in frames
        self._registering_s: float | None = None  # when the registration was sent; None: it is not under way
        self._retry_s = math.inf  # nothing is sent before; inf: nothing was refused
        self._last_refusal = ""  # its reason

    # --- Who leads ---

    @property
    def nodes(self) -> set[int]:
        """Nodes that there is a link to now."""
        return self.leadership.nodes

    @property
    def leader(self) -> int | None:
        """The leader, None if none is known."""
        return self.leadership.leader

    @property
    def term(self) -> int:
        """Of the last leader that was named."""
        return self.leadership.term

    # --- What the user asks for ---

    @property
    def idle(self) -> bool:
        """Whether nothing is outstanding."""
        return not (self._queue or self._frames or self._reads.outstanding or self._requests.outstanding)

    @property
    def has_news(self) -> bool:
        """Whether there is something for who asked."""
        return bool(self.results or self.answers or self.failures or self.published or self.admin_replies)

    def submit(self, calls: Sequence[Call]) -> None:
        """Queue commands, in order."""
        self._queue.extend(calls)
        self._queue_deadline_s = min(self._queue_deadline_s, min(map(_deadline_of, calls), default=math.inf))

    def query(self, call: QueryCall) -> None:
        """Queue a read."""
        self._reads.add(call)

    def watch(self, watch_id: int, topic: str, from_index: int | None) -> None:
        """Ask for what the machine publishes; it goes to `published`, in order, across changes of leader."""
        self._watches.add(watch_id, topic, from_index, self.leader)

    def unwatch(self, watch_id: int) -> None:
        """Nobody reads it any more."""
        self._watches.remove(watch_id)

    def admin(
        self, node_id: int, verb: str, arguments: dict[str, Any], future: Any, deadline_s: float, link_by_s: float = 0.0
    ) -> None:
        """Ask one node for something rare; what it says goes to `admin_replies`, that there is none to `failures`.

        A node that was never connected is waited for until `link_by_s`: its link may be coming up.
        """
        self._requests.ask(node_id, verb, arguments, future, deadline_s, link_by_s)

    # --- What the network tells ---

    def connected(self, node_id: int, now_s: float) -> None:
        """A node can be reached."""
        self.leadership.connected(node_id)
        self._reads.at_once()
        self._requests.connected(node_id)

    def disconnected(self, node_id: int, now_s: float) -> None:
        """A node is gone: what was sent there may or may not have arrived."""
        self.leadership.disconnected(node_id, now_s)
        self._reads.disconnected(node_id)
        self._requests.disconnected(node_id)

    def receive(self, node_id: int, reply: codec.Reply, now_s: float) -> None:
        """Take what a node sent."""
        match reply:
            case codec.Results():
                self._on_results(reply)
            case codec.Answers():
                self._reads.answered(node_id, reply)
            case codec.LeaderIs():
                self.leadership.heard.add(node_id)
                if reply.frame_bytes_max and reply.frame_bytes_max != self.frame_bytes_max:
                    self._learn_frame_bytes_max(reply.frame_bytes_max)
                if self.leadership.named(reply.term, reply.leader_id, now_s):
                    self._follow(now_s)
            case codec.Refused():
                self._on_refused(node_id, reply, now_s)
            case codec.QueryRefused() if reply.forbidden:
                self.failures.extend(self._reads.forbidden(reply.request_id, UsageError(reply.reason)))
            case codec.QueryRefused():
                if reply.reason == NOT_LEADER:
                    self._denied(node_id, reply.leader_id, now_s)
                else:
                    self.leadership.refusals += 1
                retry_s = now_s + self.leadership.backoff_s()
                self._reads.refused(node_id, reply.request_id, retry_s, busy=reply.reason == "busy")
            case codec.Registered():
                if reply.nonce == self._nonce and self.client_id is None:
                    self.client_id, self._registering_s = reply.client_id, None
            case codec.Resume():
                self._on_resume(node_id, reply, now_s)
            case codec.Expired():
                self._on_expired(reply)
            case codec.Published():
                self._watches.on_published(reply)
            case codec.AdminReply():
                self._requests.replied(reply)
                if reply.error == NOT_LEADER:
                    self._denied(node_id, None, now_s)

    def _learn_frame_bytes_max(self, size_bytes: int) -> None:
        """Make no frame that the cluster would not take."""
        self.frame_bytes_max = size_bytes
        self._frame_bytes_max = min(FRAME_BYTES_MAX, size_bytes // 2)

    def _denied(self, node_id: int, hint: int | None, now_s: float) -> None:
        if self.leadership.denied(node_id, hint, now_s) and self.leader is not None:
            self._watches.another_leads(self.leader)  # what was refused goes there when its time comes

    def _follow(self, now_s: float) -> None:
        """To a new leader: everything unanswered, in order, at once."""
        assert self.leader is not None
        self._watches.another_leads(self.leader)
        self._registering_s = None
        self._retry_s = math.inf
        for frame in self._frames.values():
            frame.in_flight = False
        self._reads.another_leads(self.leader, now_s)
        self._pump(now_s)

    def _on_results(self, reply: codec.Results) -> None:
        if reply.client_id != self.client_id:
            return
        frame = self._frames.pop(reply.first_sequence, None)
        if frame is None:
            return  # a second answer to a frame that was sent twice
        self.leadership.refusals = 0
        if len(reply.values) != len(frame.calls):
            error = OutcomeUnknown(f"a node answered {len(frame.calls)} commands with {len(reply.values)} results")
            self.failures.extend(Failure(future, error) for _, future, _ in frame.calls)
            return
        if _Ext in set(map(type, reply.values)) and codec.GIVEN_UP in reply.values:
            self._on_given_up(frame, reply.values)
        self.results.append((frame.calls, reply.values, reply.index))

    def _on_given_up(self, frame: Frame, values: list[Any]) -> None:
        """A no-op came first: those commands are definitely never applied, and whoever still asks is told so."""
        for position, value in enumerate(values):
            if value == codec.GIVEN_UP:
                future = frame.calls[position][1]
                frame.calls[position] = (NOOP, None, math.inf)
                if future is not None:
                    never = Unavailable("the command was given up; it was never applied and never will be")
                    self.failures.append(Failure(future, never))

    def _on_refused(self, node_id: int, reply: codec.Refused, now_s: float) -> None:
        if reply.first_sequence < 0:  # the registration
            if reply.client_id == self._nonce:
                self._registering_s, self._last_refusal = None, reply.reason
                if reply.forbidden:
                    self._fail_queue(UsageError(reply.reason))
        elif reply.client_id == self.client_id:
            frame = self._frames.get(reply.first_sequence)
            if frame is None:
                return
            frame.attempts_open -= 1
            frame.reason = self._last_refusal = reply.reason
            if frame.sent_to == node_id:
                frame.in_flight = False
            if reply.forbidden:
                self._fail_frame(frame, UsageError(f"{reply.reason}; none of what was sent with it is applied"))
            elif reply.reason == "too large":
                self._fail_frame(
                    frame, UsageError("the cluster refuses a frame of this size; see RaftConfig.frame_bytes_max")
                )
        if reply.reason == NOT_LEADER:
            self._denied(node_id, reply.leader_id, now_s)
        else:
            self.leadership.refusals += 1
        self._retry_s = min(self._retry_s, now_s + self.leadership.backoff_s())

    def _fail_queue(self, error: ActorRaftError) -> None:
        """End what is in no frame yet."""
        self.failures.extend(Failure(future, error) for _, future, _ in self._queue if future is not None)
        self._queue.clear()
        self._queue_deadline_s = math.inf

    def _fail_frame(self, frame: Frame, error: ActorRaftError) -> None:
        """End a frame's commands for a reason of their own; no-ops keep their sequences."""
        for position, (_, future, _) in enumerate(frame.calls):
            if future is not None:
                self.failures.append(Failure(future, error))
            frame.calls[position] = (NOOP, None, math.inf)
        frame.deadline_s = math.inf

    def _on_resume(self, node_id: int, reply: codec.Resume, now_s: float) -> None:
        frame = self._frames.get(reply.first_sequence)
        if reply.client_id != self.client_id or frame is None:
            return
        if node_id == frame.sent_to and reply.next_sequence < next(iter(self._frames)):
            # What was answered is not there: the cluster is an older one, whose disks somebody has put back. (From
            # another node it is late: it came to that entry before what another leader has committed since.)
            self._on_expired(codec.Expired(reply.client_id, reply.first_sequence))
            return
        frame.attempts_open -= 1
        if node_id == frame.sent_to:
            frame.in_flight = False
        self._retry_s = min(self._retry_s, now_s + BACKOFF_S[0])

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
                self.failures.extend(Failure(future, error) for _, future, _ in calls)
        # What the old session alone had defined went with it.
        again[:0] = [(definition, None, math.inf) for definition in self._definitions()]
        self._queue.extendleft(reversed(again))
        self._queue_deadline_s = min([self._queue_deadline_s, *(call[2] for call in again)])

    # --- Time ---

    def advance(self, now_s: float) -> None:
        """Send what may leave, end what is too late."""
        leadership, reads, requests = self.leadership, self._reads, self._requests
        reading, asking = reads.outstanding, requests.outstanding
        if self._watches.watched:
            self._watches.tell(leadership.leader)
        if not (self._queue or self._frames or reading or asking) and leadership.leader is not None:
            return
        if now_s >= self._queue_deadline_s:
            self._expire_queue(now_s)
        for frame in self._frames.values():
            if now_s >= frame.deadline_s:
                self._expire_frame(frame, now_s)
        if reading:
            reads.expire(now_s)
        if asking:
            requests.expire(now_s)
        if now_s >= self._retry_s:
            self._retry_s = math.inf
        oldest = next(iter(self._frames.values()), None)
        if oldest is not None and oldest.in_flight and now_s >= oldest.sent_s + self.RESEND_S:
            for frame in self._frames.values():
                frame.in_flight = False
            leadership.ask(now_s)
        if self._registering_s is not None and now_s >= self._registering_s + self.RESEND_S:
            self._registering_s = None
        leadership.advance(now_s)
        self._pump(now_s)

    def deadline_s(self) -> float:
        """Return when `advance` must be called at the latest, whatever happens."""
        leadership, reads, requests = self.leadership, self._reads, self._requests
        reading, asking = reads.outstanding, requests.outstanding
        if not (self._queue or self._frames or reading or asking) and leadership.leader is not None:
            return math.inf
        due_s = min(self._queue_deadline_s, self._retry_s)
        if leadership.leader is None:
            due_s = min(due_s, leadership.deadline_s())
        if reading:
            due_s = min(due_s, reads.deadline_s())
        if asking:
            due_s = min(due_s, requests.deadline_s())
        for frame in self._frames.values():
            if frame.deadline_s < due_s:
                due_s = frame.deadline_s
            if frame.in_flight and frame.sent_s + self.RESEND_S < due_s:
                due_s = frame.sent_s + self.RESEND_S
        if self._registering_s is not None:
            due_s = min(due_s, self._registering_s + self.RESEND_S)
        return due_s

    def last_deadline_s(self, endless_s: float) -> float:
        """Return when the last of what is outstanding ends; what has no deadline counts as `endless_s`."""
        times = [deadline_s for _, future, deadline_s in self._queue if future is not None]
        times += [call[2] for frame in self._frames.values() for call in frame.calls if call[1] is not None]
        times += [self._reads.last_deadline_s(), self._requests.last_deadline_s()]
        return max(endless_s if math.isinf(each) else each for each in times)

    def _refused_error(self, reason: str) -> Unavailable:
        where = self.leadership.where()
        if reason == "busy":
            return Busy(
                f"the leader's queue stayed full until the deadline ({where}); not applied: send less, or again later"
            )
        if reason.startswith(codec.NO_ROOM):
            return Unavailable(f"the leader takes no writes, {reason.partition(': ')[2]} ({where}); not applied")
        return Unavailable(f"no leader took the command in time ({where}); it is not applied and may be sent again")

    def _expire_queue(self, now_s: float) -> None:
        late = [call for call in self._queue if call[2] <= now_s]
        self._queue = deque(call for call in self._queue if call[2] > now_s)
        self._queue_deadline_s = min((call[2] for call in self._queue), default=math.inf)
        error = self._refused_error(self._last_refusal if self.leadership.refusals else "")
        self.failures.extend(Failure(future, error) for _, future, _ in late if future is not None)

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
            else:
                error = self._refused_error(frame.reason)
            self.failures.append(Failure(future, error, later))
            frame.calls[position] = (NOOP, later, math.inf)
        frame.deadline_s = min(map(_deadline_of, frame.calls))

    # --- Sending ---

    def _pump(self, now_s: float) -> None:
        self._reads.pump(now_s)
        leader = self.leadership.leader
        if leader is None or now_s < self._retry_s < math.inf:
            return
        if self.client_id is None:
            if self._queue and self._registering_s is None:
                if self._send(leader, codec.encode(codec.Register(self._nonce))):
                    self._registering_s = now_s
                else:
                    self._retry_s = now_s + self.leadership.backoff_s()
                    self.leadership.refusals += 1
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
        values = list(map(_encoded_of, frame.calls))
        traces = self._traces_of(frame) if self._traceparents else []
        data = codec.encode_commands(self.client_id, frame.first_sequence, lowest, values, traces)
        if not self._send(leader, data):
            self._retry_s = now_s + self.leadership.backoff_s()
            self.leadership.refusals += 1
            return False
        frame.attempts_open += 1
        frame.in_flight, frame.sent_to, frame.sent_s = True, leader, now_s
        return True

    def _traces_of(self, frame: Frame) -> list[str]:
        traced = map(self._traceparents.get, (call[1] for call in frame.calls))
        return list(itertools.islice(filter(None, traced), TRACES_MAX))

    # --- The end ---

    def close(self, why: str = "the client was closed") -> None:
        """End everything that is outstanding, truthfully, and say goodbye."""
        never = Unavailable(f"{why} before the command was sent; it is not applied")
        self.failures.extend(Failure(future, never) for _, future, _ in self._queue)
        for frame in self._frames.values():
            unknown = OutcomeUnknown(f"{why} before the answer came; it may or may not apply, once")
            error: ActorRaftError = unknown if frame.attempts_open > 0 else never
            self.failures.extend(Failure(future, error) for _, future, _ in frame.calls if future is not None)
        self._queue.clear()
        self._frames.clear()
        self._reads.end(Unavailable(why))
        self._requests.end(Unavailable(why))
        if self.client_id is not None and self.leader is not None:
            self._send(self.leader, codec.encode(codec.CloseSession(self.client_id)))
