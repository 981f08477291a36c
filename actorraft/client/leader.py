"""Who leads, as far as one client knows: which nodes it reaches, whom it follows, and when it asks again.

Source:     docs/clients.md: no user of a client ever meets NotLeader.
Invariant:  `leader` is a node that there is a link to, or None; `term` never decreases.
Threads:    one at a time; times are handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from actorraft import codec

HELLO: Final = codec.encode(codec.Hello())
HELLO_S: Final = 0.05  # how often nodes are asked for a leader while none is known
BACKOFF_S: Final = (0.002, 0.1)  # before what was refused goes again: the first wait, and the longest


class Leadership:
    """What a session knows of its cluster's leader.

    Args:
        send: sends a frame to a node and returns whether it left; never blocks.
    """

    def __init__(self, send: Callable[[int, bytes], bool]) -> None:
        self._send = send
        self.nodes: set[int] = set()  # linked now
        self.heard: set[int] = set()  # linked now, and has said something since
        self.leader: int | None = None  # in `nodes`
        self.stranger: int | None = None  # a leader that was named, and that there was no link to
        self.refusals_of_links: Mapping[int, str] = {}  # node that lets this client in no link -> why; the channel's
        self.unresolved: Callable[[], Mapping[str, str]] = dict  # host whose name has no address -> why; the channel's
        self.term = 0  # of the last leader that was named
        self.refusals = 0  # in a row
        self._hello_s = 0.0  # when the nodes are asked next, while there is no leader

    def connected(self, node_id: int) -> None:
        """A node can be reached: ask who leads."""
        self.nodes.add(node_id)
        self._send(node_id, HELLO)

    def disconnected(self, node_id: int, now_s: float) -> None:
        """A node is gone; if it led, the others are asked now."""
        self.nodes.discard(node_id)
        self.heard.discard(node_id)
        if node_id == self.leader:
            self.lose(now_s)

    def named(self, term: int, leader_id: int | None, now_s: float) -> bool:
        """Somebody says who leads; return whether that is a leader to turn to now."""
        if leader_id is None or term < self.term:
            return False
        self.term = term
        if leader_id not in self.nodes:  # who says so may not have noticed its death yet; or it joined lately
            self.stranger = leader_id
            if self.leader is not None:
                self.lose(now_s + HELLO_S)
            return False
        if leader_id == self.leader:
            return False
        self.leader = leader_id
        return True

    def lose(self, hello_s: float) -> None:
        """Nobody leads any more; the nodes are asked at `hello_s`."""
        self.leader = None
        self._hello_s = hello_s

    def denied(self, node_id: int, hint: int | None, now_s: float) -> bool:
        """A node says that it does not lead, and perhaps who does; return whether that is who leads from now on."""
        self.refusals += 1
        if node_id != self.leader:
            return False
        if hint in self.nodes and hint != node_id and self.refusals < 3:
            self.leader = hint
            return True
        self.lose(now_s + self.backoff_s())
        return False

    def backoff_s(self) -> float:
        """How long to wait after so many refusals."""
        low, high = BACKOFF_S
        return min(high, low * 2.0 ** min(self.refusals, 10))

    def ask(self, now_s: float) -> None:
        """Ask every node, now."""
        self._hello_s = now_s + HELLO_S
        for node_id in self.nodes:
            self._send(node_id, HELLO)

    def advance(self, now_s: float) -> None:
        """Ask again if it is time."""
        if self.leader is None and now_s >= self._hello_s:
            self.ask(now_s)

    def deadline_s(self) -> float:
        """When `advance` has something to do."""
        return self._hello_s if self.leader is None else math.inf

    def where(self) -> str:
        """Say what is known, for an error's text."""
        if self.leader is not None:
            return f"node {self.leader} led in term {self.term}"
        refusals = dict(self.refusals_of_links)  # the I/O thread may add to it
        who = {node: f"node {node}" if node >= 0 else "who answers there" for node in refusals}
        told = [f"{who[node]} says: {why}" for node, why in refusals.items()]
        told += [f"the name {host} cannot be resolved: {why}" for host, why in self.unresolved().items()]
        if told:
            return "; ".join(("no leader is known" if self.nodes else "no node can be reached", *told))
        if not self.nodes:
            return "no node can be reached: none runs there, or, over tcp, the keys are another cluster's"
        if not self.heard:
            return f"no leader is known, and {_silent(self.nodes)}"
        return "no leader is known"


def _silent(nodes: set[int]) -> str:
    """Say what is likely wrong with nodes that take a connection and never say a word."""
    names = ", ".join(map(str, sorted(nodes)))
    return (
        f"{'node' if len(nodes) == 1 else 'nodes'} {names} can be reached and answered nothing: another version of "
        "ActorRaft runs there, or they are too busy to answer"
    )
