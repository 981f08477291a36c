"""What one client asks of single nodes for its administrator, and what it watches.

Threads:    one at a time; times are handed in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from actorraft import codec
from actorraft.client.failures import Failure
from actorraft.errors import ActorRaftError, Unavailable
from actorraft.roles import MAY_NOT

# On the wire: why a node cannot now what it may in a moment.
NOT_LEADER = "not leader"
NOTHING_COMMITTED = "nothing is committed here yet"


class NodeSilent(Unavailable):
    """One node that was asked for something did not answer; another one, or the same a little later, may."""


class NodeRefused(Unavailable):
    """A node's own answer to an administrator that it cannot."""


class NodeForbids(NodeRefused):
    """The same, because of the role of this client's key: asked again, it would say no again."""


class NodeDoesNotLead(NodeRefused):
    """The same, because only a leader can."""


class NodeHasNothing(NodeRefused):
    """The same, because it has just started and learned of no commit yet."""


_REFUSALS = {NOT_LEADER: NodeDoesNotLead, NOTHING_COMMITTED: NodeHasNothing}


class Asked(NamedTuple):
    """A request that is under way."""

    future: Any
    node_id: int
    deadline_s: float


class Early(NamedTuple):
    """A request to a node that was never linked yet: it is sent when the link comes up."""

    asked: Asked
    link_by_s: float  # when that must be
    frame: bytes


class Requests:
    """An administrator's requests, each to one node."""

    def __init__(self, send: Callable[[int, bytes], bool], request_ids: Iterator[int], failures: list[Failure]) -> None:
        self._send = send
        self._request_ids = request_ids
        self._failures = failures
        self.replies: list[tuple[Any, Any]] = []  # (future, what the node said); whoever takes them clears this
        self._nodes: set[int] = set()  # linked now
        self._met: set[int] = set()  # linked once
        self._asked: dict[int, Asked] = {}  # by request id
        self._early: dict[int, Early] = {}  # by request id

    @property
    def outstanding(self) -> bool:
        """Whether something is."""
        return bool(self._asked or self._early)

    def ask(
        self, node_id: int, verb: str, arguments: dict[str, Any], future: Any, deadline_s: float, link_by_s: float
    ) -> None:
        """Ask one node; a node that was never linked is waited for until `link_by_s`."""
        request_id = next(self._request_ids)
        frame = codec.encode(codec.Admin(request_id, verb, arguments))
        asked = Asked(future, node_id, deadline_s)
        if node_id in self._nodes and self._send(node_id, frame):
            self._asked[request_id] = asked
        elif node_id not in self._met:
            self._early[request_id] = Early(asked, link_by_s, frame)
        else:
            self._failures.append(Failure(future, NodeSilent(f"node {node_id} is not reachable")))

    def connected(self, node_id: int) -> None:
        """A node can be reached: it is asked what waited for that."""
        self._nodes.add(node_id)
        self._met.add(node_id)
        for request_id, early in list(self._early.items()):
            if early.asked.node_id == node_id and self._send(node_id, early.frame):
                del self._early[request_id]
                self._asked[request_id] = early.asked

    def disconnected(self, node_id: int) -> None:
        """A node is gone, and will not answer."""
        self._nodes.discard(node_id)
        for request_id, asked in list(self._asked.items()):
            if asked.node_id == node_id:
                del self._asked[request_id]
                self._failures.append(Failure(asked.future, NodeSilent(f"node {node_id} is gone")))

    def replied(self, reply: codec.AdminReply) -> None:
        """A node answers."""
        asked = self._asked.pop(reply.request_id, None)
        if asked is None:
            return
        if not reply.error:
            self.replies.append((asked.future, reply.value))
            return
        refusal = NodeForbids if reply.error.startswith(MAY_NOT) else _REFUSALS.get(reply.error, NodeRefused)
        self._failures.append(Failure(asked.future, refusal(reply.error)))

    def expire(self, now_s: float) -> None:
        """End what is too late."""
        for request_id, asked in list(self._asked.items()):
            if now_s >= asked.deadline_s:
                del self._asked[request_id]
                self._failures.append(Failure(asked.future, NodeSilent(f"node {asked.node_id} did not answer in time")))
        for request_id, early in list(self._early.items()):
            if now_s >= early.link_by_s:
                del self._early[request_id]
                asked = early.asked
                self._failures.append(Failure(asked.future, NodeSilent(f"node {asked.node_id} is not reachable")))

    def deadline_s(self) -> float:
        """When `expire` has something to do."""
        times = [asked.deadline_s for asked in self._asked.values()]
        times.extend(early.link_by_s for early in self._early.values())
        return min(times, default=math.inf)

    def last_deadline_s(self) -> float:
        """When the last of them ends; 0.0 if there is none."""
        times = [asked.deadline_s for asked in self._asked.values()]
        return max([*times, *(early.asked.deadline_s for early in self._early.values())], default=0.0)

    def end(self, error: ActorRaftError) -> None:
        """End them all."""
        self._failures.extend(Failure(asked.future, error) for asked in self._asked.values())
        self._failures.extend(Failure(early.asked.future, error) for early in self._early.values())
        self._asked.clear()
        self._early.clear()


@dataclass
class Watch:
    """One watch: what it asks for, and how far it came."""

    topic: str
    next_index: int | None  # None: from now on, and nobody has said yet where that is
    asked: int | None = None  # the leader that was asked; None: nobody, yet
    number: int = -1  # under which it was


class Watches:
    """What is watched, asked of each leader in turn from where the last one came to.

    Each asking has a number of its own. A node that leads once more still has what it was asked when it led before: it
    has sent on that all the time, and nobody took it, so what comes next on that would leave a gap.
    """

    def __init__(self, send: Callable[[int, bytes], bool]) -> None:
        self._send = send
        self.published: list[codec.Published] = []  # in order, none twice; whoever takes them clears this
        self._watches: dict[int, Watch] = {}  # by the client's own number
        self._askings: dict[int, int] = {}  # number of an asking -> the client's own; of those that count
        self._numbers = itertools.count()

    def add(self, watch_id: int, topic: str, from_index: int | None, leader: int | None) -> None:
        """Watch a topic."""
        self._watches[watch_id] = Watch(topic, from_index)
        self.tell(leader)

    def remove(self, watch_id: int) -> None:
        """Nobody reads it any more."""
        watch = self._watches.pop(watch_id, None)
        if watch is not None:
            self._call_off(watch)

    def another_leads(self, leader: int) -> None:
        """Ask the new leader for everything."""
        for watch in self._watches.values():
            self._call_off(watch)
        self.tell(leader)

    def _call_off(self, watch: Watch) -> None:
        """Take nothing more of what was asked; whether who was asked hears of that does not matter."""
        if watch.asked is not None:
            del self._askings[watch.number]
            self._send(watch.asked, codec.encode(codec.Unwatch(watch.number)))
            watch.asked = None

    def tell(self, leader: int | None) -> None:
        """Ask the leader for what it was not asked for yet."""
        if leader is None:
            return
        for watch_id, watch in self._watches.items():
            if watch.asked is None:
                number = next(self._numbers)
                if self._send(leader, codec.encode(codec.Watch(number, watch.topic, watch.next_index))):
                    watch.asked, watch.number = leader, number
                    self._askings[number] = watch_id

    @property
    def watched(self) -> bool:
        """Whether something is."""
        return bool(self._watches)

    @property
    def untold(self) -> bool:
        """Whether the leader is to be asked for something: its queue was full."""
        return any(watch.asked is None for watch in self._watches.values())

    def on_published(self, reply: codec.Published) -> None:
        """Take what a node sends. One that led before goes on sending, but may have missed what this one did not."""
        watch_id = self._askings.get(reply.watch_id)
        if watch_id is None:
            return
        watch = self._watches[watch_id]
        if reply.error:
            del self._watches[watch_id], self._askings[reply.watch_id]
        elif watch.next_index is not None and reply.index < watch.next_index:
            return  # said before, by the leader before this one
        else:
            watch.next_index = reply.index + 1
        if reply.values or reply.error:
            self.published.append(codec.Published(watch_id, reply.index, reply.values, reply.error))
