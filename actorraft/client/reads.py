"""The reads of one client: who is asked, when again, and how each ends.

A read is asked of one node, and of another one only when the first has refused it, its link broke, or (for reads that
go to the leader) another node leads. However long the answer takes, it is taken, also from a node that leads no more:
else a read that takes longer than leaders last would never end. A node that says nothing is reminded, less and less
often, for an answer may be lost on the way: the same request under the same number, which a node that is at it already
runs no second time.

Source:     D§6.4.
Threads:    one at a time; times are handed in.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from actorraft import codec
from actorraft.client.failures import Failure
from actorraft.client.leader import HELLO_S, Leadership
from actorraft.errors import Busy, NotYet, Unavailable, UsageError

PARKED_MAX = 1000  # frames that may wait at nodes, until the log or the machine has got where they ask for
REMIND_S = 1.0  # an answer that is later than this may be lost; the next time it is asked for after twice as long
LEAST_WAIT_S = 0.001  # of one whose time is over just now: 0.0 means something else to a node

_Ext = msgspec.msgpack.Ext


class QueryCall(NamedTuple):
    """One read.

    Attributes:
        to: "leader", "any" or a node's id.
        min_index: what the state that serves it must have, beside what `consistency` says.
        held: says whether it must not be sent yet.
        alone: the machine had not yet what it asks for: it waits at the node, in a frame of its own.
        busy: the last node that was asked had no room for it.
    """

    encoded: bytes
    future: Any
    deadline_s: float
    consistency: str
    to: str | int
    min_index: int = -1
    held: Callable[[], bool] | None = None
    alone: bool = False
    busy: bool = False


_encoded_of: Callable[[QueryCall], bytes] = attrgetter("encoded")
_deadline_of: Callable[[QueryCall], float] = attrgetter("deadline_s")
_kind_of: Callable[[QueryCall], Any] = attrgetter("consistency", "to", "min_index", "held", "alone")
_Kind = tuple[str, str | int, int, int]  # consistency, to, min_index, and a number if it goes by itself


@dataclass
class QueryFrame:
    """Reads that travel together."""

    calls: list[QueryCall | None]  # one that has ended is None: its answer is nobody's
    deadline_s: float  # of the first that ends
    node_id: int  # the one to remind
    asked: set[int]  # who may still answer; never empty
    to: str | int
    query: codec.Query  # as it was sent last
    remind_s: float  # when it is sent again
    patience_s: float = REMIND_S  # how long after it was sent
    parks: bool = False  # it may wait there, and keeps no other from being sent
    whole: bool = True  # none of its calls has ended


def _wait_s(ends_s: float, now_s: float) -> float:
    """Return for how long a node may keep a frame whose last call ends then; 0.0 if that never ends."""
    return 0.0 if ends_s == math.inf else max(ends_s - now_s, LEAST_WAIT_S)


class Reads:
    """Reads that wait, and reads that are under way.

    Args:
        send: sends a frame to a node and returns whether it left; never blocks.
        leadership: who leads.
        request_ids: numbers for requests, none used twice.
        failures: takes what ended badly.
        frames_max: frames that may be under way to one node at once, beside those that may wait there.
        frame_calls_max: reads of one frame.
    """

    def __init__(
        self,
        send: Callable[[int, bytes], bool],
        leadership: Leadership,
        request_ids: Iterator[int],
        failures: list[Failure],
        *,
        frames_max: int,
        frame_calls_max: int,
    ) -> None:
        self._send = send
        self._leadership = leadership
        self._request_ids = request_ids
        self._failures = failures
        self._frames_max = frames_max
        self._frame_calls_max = frame_calls_max
        self.answers: list[tuple[list[QueryCall], list[Any]]] = []  # equally long; whoever takes them clears this
        self._waiting: deque[QueryCall] = deque()
        self._waiting_deadline_s = math.inf  # not later than that of any that waits
        self._frames: dict[int, QueryFrame] = {}  # by request id; each has a call that has not ended
        self._retry_s = 0.0  # nothing is sent before
        self._round_robin = 0

    @property
    def outstanding(self) -> bool:
        """Whether a read is."""
        return bool(self._waiting or self._frames)

    def add(self, call: QueryCall) -> None:
        """Queue a read."""
        self._waiting.append(call)
        if call.deadline_s < self._waiting_deadline_s:
            self._waiting_deadline_s = call.deadline_s

    def at_once(self) -> None:
        """What waits has somebody to go to now."""
        self._retry_s = 0.0

    # --- What the network tells ---

    def answered(self, node_id: int, reply: codec.Answers) -> None:
        """Take the answers of one frame; what a node left out is asked again.

        What a node says that led before is as good: it still led after it was asked, or it would have refused.
        """
        frame = self._frames.get(reply.request_id)
        if frame is None:
            return
        calls, values = frame.calls[: len(reply.values)], reply.values
        some_not_yet = _Ext in set(map(type, values)) and codec.NOT_YET in values
        if some_not_yet and node_id != frame.node_id:
            self._give_up(node_id, reply.request_id, frame.remind_s)  # it waits at the new leader
            return
        del self._frames[reply.request_id]
        self._retry_s = 0.0
        if len(values) < len(frame.calls):
            self._again(frame.calls[len(values) :])
        if some_not_yet:
            not_yet = [value == codec.NOT_YET for value in values]
            self._again([call and call._replace(alone=True) for call in itertools.compress(calls, not_yet)])
            calls = [None if waits else call for call, waits in zip(calls, not_yet, strict=False)]
            frame.whole = False
        if frame.whole:
            self.answers.append((calls, values))  # type: ignore[arg-type]  # there is no None
            return
        living = [(call, value) for call, value in zip(calls, values, strict=False) if call is not None]
        if living:
            self.answers.append(([call for call, _ in living], [value for _, value in living]))

    def refused(self, node_id: int, request_id: int, retry_s: float, *, busy: bool) -> None:
        """A node does not serve these now; `busy`: since too many wait there already."""
        frame = self._frames.get(request_id)
        if frame is None:
            return
        if node_id == frame.node_id:
            frame.calls = [call and call._replace(busy=busy) for call in frame.calls]
        if self._give_up(node_id, request_id, retry_s):
            self._retry_s = retry_s

    def forbidden(self, request_id: int, error: UsageError) -> list[Failure]:
        """This client may not ask for these: they end."""
        frame = self._frames.pop(request_id, None)
        return [] if frame is None else [Failure(call.future, error) for call in frame.calls if call is not None]

    def disconnected(self, node_id: int) -> None:
        """A node is gone, and no answer will come from it."""
        for request_id in list(self._frames):
            self._give_up(node_id, request_id, 0.0)

    def another_leads(self, leader: int, now_s: float) -> None:
        """What the old leader was asked the new one is asked too, under the same number: the first answer is taken."""
        for frame in self._frames.values():
            if frame.to == "leader":
                frame.patience_s = REMIND_S
                self._ask_too(frame, leader, now_s)
        self._retry_s = 0.0

    def _ask_too(self, frame: QueryFrame, node_id: int, now_s: float) -> None:
        """Send a frame to one more node, or again to the same; soon, if that cannot be now."""
        ends_s = max(call.deadline_s for call in frame.calls if call is not None)
        frame.query = msgspec.structs.replace(frame.query, wait_s=_wait_s(ends_s, now_s))
        frame.node_id = node_id
        if self._send(node_id, codec.encode(frame.query)):
            frame.asked.add(node_id)
        frame.remind_s = now_s + (frame.patience_s if node_id in frame.asked else HELLO_S)

    def _give_up(self, node_id: int, request_id: int, retry_s: float) -> bool:
        """Expect no answer from a node; return whether none is expected from any, so that the reads wait again."""
        frame = self._frames[request_id]
        if node_id in frame.asked:
            frame.asked.remove(node_id)
            if not frame.asked:
                self._ask_again(request_id)
                return True
            if node_id == frame.node_id:
                frame.remind_s = retry_s
        return False

    def _ask_again(self, request_id: int) -> None:
        frame = self._frames.pop(request_id, None)
        if frame is not None:
            self._again(frame.calls)

    def _again(self, calls: list[QueryCall | None]) -> None:
        again = [call for call in calls if call is not None]
        self._waiting.extendleft(reversed(again))
        self._waiting_deadline_s = min([self._waiting_deadline_s, *map(_deadline_of, again)])

    # --- Time ---

    def expire(self, now_s: float) -> None:
        """End what is too late, and remind who is silent.

        Reads change nothing, so a late one is simply unavailable; the others of its frame go on.
        """
        late: list[QueryCall] = []
        for request_id, frame in list(self._frames.items()):
            if now_s >= frame.deadline_s:
                late.extend(call for call in frame.calls if call is not None and call.deadline_s <= now_s)
                frame.whole = False
                frame.calls = [call if call is not None and call.deadline_s > now_s else None for call in frame.calls]
                living = [call.deadline_s for call in frame.calls if call is not None]
                if living:
                    frame.deadline_s = min(living)
                else:
                    del self._frames[request_id]
        if now_s >= self._waiting_deadline_s:
            late.extend(call for call in self._waiting if call.deadline_s <= now_s)
            self._waiting = deque(call for call in self._waiting if call.deadline_s > now_s)
            self._waiting_deadline_s = min(map(_deadline_of, self._waiting), default=math.inf)
        for frame in self._frames.values():
            if now_s >= frame.remind_s:
                self._remind(frame, now_s)
        if late:
            error = Unavailable(f"no node served the read in time ({self._leadership.where()})")
            not_yet = NotYet("the state did not get in time to where the read asked for it")
            busy = Busy("too many reads waited at the node, up to the deadline: ask fewer at a time, or other nodes")
            self._failures.extend(
                Failure(call.future, not_yet if call.alone else busy if call.busy else error) for call in late
            )

    def _remind(self, frame: QueryFrame, now_s: float) -> None:
        """Send a frame again: to whom it was sent, unless that one will not answer; then to who leads."""
        leader = self._leadership.leader
        if frame.node_id in frame.asked:
            frame.patience_s *= 2
            self._ask_too(frame, frame.node_id, now_s)
        elif leader is not None:
            self._ask_too(frame, leader, now_s)
        else:
            frame.remind_s = now_s + HELLO_S  # sooner, when there is a leader

    def deadline_s(self) -> float:
        """When `expire` or `pump` has something to do."""
        times = [min(frame.deadline_s, frame.remind_s) for frame in self._frames.values()]
        if self._waiting:
            times += (self._waiting_deadline_s, self._retry_s)
        return min(times, default=math.inf)

    def last_deadline_s(self) -> float:
        """When the last of them ends; 0.0 if there is none."""
        times = [call.deadline_s for frame in self._frames.values() for call in frame.calls if call is not None]
        return max([*times, *(call.deadline_s for call in self._waiting)], default=0.0)

    # --- Sending ---

    def pump(self, now_s: float) -> None:
        """Send what waits, one frame for each kind of read; what has no receiver now waits on."""
        if not self._waiting or now_s < self._retry_s:
            return
        waiting, self._waiting = self._waiting, deque()
        self._waiting_deadline_s = math.inf
        at_once = Counter(frame.node_id for frame in self._frames.values() if not frame.parks)
        parked = len(self._frames) - at_once.total()
        groups = self._groups(waiting, now_s)
        for (consistency, to, min_index, number), calls in groups.items():
            parks = number >= 0 or min_index >= 0
            node_id = self._target(to)
            if node_id is None or (parked >= PARKED_MAX if parks else at_once[node_id] >= self._frames_max):
                self._wait_on(calls, now_s + HELLO_S)  # sooner, when a leader, a link or an answer comes
                continue
            calls, rest = calls[: self._frame_calls_max], calls[self._frame_calls_max :]
            if rest:
                self._wait_on(rest, self._retry_s)
            request_id = next(self._request_ids)
            body = codec.join_body([*map(_encoded_of, calls)])
            query = codec.Query(
                request_id,
                consistency,
                to != "leader",
                len(calls),
                body,
                min_index,
                _wait_s(max(map(_deadline_of, calls)), now_s),
                number >= 0,
            )
            if self._send(node_id, codec.encode(query)):
                ends_s = min(map(_deadline_of, calls))
                remind_s = now_s + REMIND_S
                self._frames[request_id] = QueryFrame(
                    [*calls], ends_s, node_id, {node_id}, to, query, remind_s, parks=parks
                )
                parked += parks
                at_once[node_id] += not parks
            else:
                self._wait_on(calls, now_s + self._leadership.backoff_s())

    def _groups(self, waiting: Iterable[QueryCall], now_s: float) -> dict[_Kind, list[QueryCall]]:
        """Sort reads by the frames they go in; those that must not be sent yet wait on."""
        kinds = set(map(_kind_of, waiting))
        if len(kinds) == 1:
            ((consistency, to, min_index, held, by_itself),) = kinds
            if held is None and not by_itself:
                return {(consistency, to, min_index, -1): [*waiting]}
        groups: dict[_Kind, list[QueryCall]] = {}
        for call in waiting:
            if call.held is not None and call.held():
                self._wait_on([call], now_s + HELLO_S)
            else:
                kind = (call.consistency, call.to, call.min_index, len(groups) if call.alone else -1)
                groups.setdefault(kind, []).append(call)
        return groups

    def _wait_on(self, calls: list[QueryCall], retry_s: float) -> None:
        self._waiting.extend(calls)
        self._waiting_deadline_s = min(self._waiting_deadline_s, min(map(_deadline_of, calls)))
        self._retry_s = retry_s

    def _target(self, to: str | int) -> int | None:
        nodes = self._leadership.nodes
        if to == "leader":
            return self._leadership.leader
        if to == "any":
            self._round_robin += 1
            return sorted(nodes)[self._round_robin % len(nodes)] if nodes else None
        return to if isinstance(to, int) and to in nodes else None

    def end(self, error: Unavailable) -> None:
        """End them all."""
        for frame in self._frames.values():
            self._failures.extend(Failure(call.future, error) for call in frame.calls if call is not None)
        self._failures.extend(Failure(call.future, error) for call in self._waiting)
        self._frames.clear()
        self._waiting.clear()
