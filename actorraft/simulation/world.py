"""The seeded world: virtual time, a network, nodes that come and go, and a checker that sees every event.

The same seed gives the same run, event by event.

Not here:   who uses it and what goes wrong in it (play.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Protocol

from actorraft.node.driver import ConnectEvent, DisconnectEvent, NodeStopped
from actorraft.raft.messages import Configuration
from actorraft.raft.ready import LeaderState
from actorraft.simulation.invariants import Checker, InvariantViolation
from actorraft.simulation.network import SimNetwork
from actorraft.simulation.node import SimNode
from actorraft.simulation.profile import Profile
from actorraft.simulation.timeline import Timeline
from actorraft.simulation.trace import Trace, said
from actorraft.simulation.versions import Heard


class Hearer(Protocol):
    """Whoever else has connections to nodes: a client."""

    address: int

    def connection(self, what: tuple[int, bool]) -> None:
        """A node's connection broke or came up."""


class World:
    """Nodes on a network, in virtual time.

    Args:
        seed: of everything.
        num_nodes: voters at the beginning.
        profile: what the seed would choose: faults, timing, load.
        crashed: told of each node whose process is gone.
        make_host: makes the host of each node's machine; None: a machine of our own, as the profile says.
    """

    def __init__(
        self,
        seed: int,
        *,
        num_nodes: int,
        profile: Profile | None,
        trace_all: bool,
        crashed: Callable[[SimNode], None],
        make_host: Callable[[], Any] | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.profile = profile if profile is not None else Profile.draw(random.Random(self.rng.getrandbits(64)))
        self.timeline = Timeline()
        self.trace = Trace(keep_all=trace_all)
        self.network = SimNetwork(self.timeline, random.Random(self.rng.getrandbits(64)))
        self.configuration = Configuration(voters=frozenset(range(num_nodes)), next_node_id=num_nodes)
        self.nodes: dict[int, SimNode] = {}
        self.hearers: list[Hearer] = []
        self.elections = 0
        self.checker = Checker(self.nodes, self._elected)
        self._crashed = crashed
        self._make_host = make_host
        self._told: dict[tuple[int, int], int] = {}  # (observer, node) -> when it learned of its connection last
        for node_id in range(num_nodes):
            self.add_node(node_id)

    def add_node(self, node_id: int) -> SimNode:
        """Bring a node into being; it is not started."""
        founding = self.configuration if node_id in self.configuration.members else Configuration()
        node = self.nodes[node_id] = SimNode(
            node_id,
            founding,
            timeline=self.timeline,
            network=self.network,
            checker=self.checker,
            trace=self.trace,
            profile=self.profile,
            rng=random.Random(self.rng.getrandbits(64)),
            nodes=self.nodes,
            crashed=self._on_crash,
            make_host=self._make_host,
        )
        if self.profile.drift:
            node.clock.rate = 1 + (self.rng.random() - 0.5) * 2 * self.profile.drift
        return node

    def boot(self, node: SimNode) -> None:
        """Start a node's process, and tell those who can reach it."""
        if node.up:
            return
        self.note(node.node_id, "starts")
        try:
            node.boot()
        except NodeStopped as stop:
            node.refused(stop)
            return
        except (InvariantViolation, KeyboardInterrupt):
            raise
        except BaseException as error:  # whatever user code raises
            raise InvariantViolation("no error", f"node {node.node_id} at its start: {said(error)}") from error
        self._tell_connections(node, up=True)

    def _on_crash(self, node: SimNode) -> None:
        """A node's process is gone: peers and clients see their connections break."""
        self._tell_connections(node, up=False)
        self._crashed(node)

    def _tell_connections(self, node: SimNode, *, up: bool) -> None:
        for other in self.nodes.values():
            if other is not node and other.up and (other.node_id, node.node_id) not in self.network.cut:
                self._tell(other.node_id, node.node_id, self.connection, (other, other.start, node.node_id, up))
        for hearer in self.hearers:
            self._tell(hearer.address, node.node_id, hearer.connection, (node.node_id, up))

    def _tell(self, observer: int, node_id: int, action: Callable[[Any], None], what: Any) -> None:
        """Let an observer learn of a connection, in the order of what happened to it."""
        at_us = self.timeline.now_us + 100 + int(self.rng.random() * 2000)
        at_us = self._told[observer, node_id] = max(at_us, self._told.get((observer, node_id), 0) + 1)
        self.timeline.at(at_us, action, what)

    def connection(self, what: tuple[SimNode, int, int, bool]) -> None:
        """A node's transport reports a connection to a peer that broke or came up."""
        node, start, peer_id, up = what
        if node.start == start:
            peer = self.nodes[peer_id]
            if up and self.profile.versions and node.driver is not None and peer.up:
                node.post(Heard(node.driver.rules.hear, peer_id, peer.runs.greeting))
            node.post(ConnectEvent(peer_id) if up else DisconnectEvent(peer_id))

    def leader(self) -> SimNode | None:
        """Return the leader of the highest term, as nodes see themselves."""
        leaders = [n for n in self.nodes.values() if n.server is not None and n.server.state is LeaderState]
        return max(leaders, key=lambda n: n.server.current_term if n.server else -1, default=None)

    def note(self, node_id: int, text: str) -> None:
        """Write into the trace what is not an event of a node's own."""
        self.trace.append((self.timeline.now_us, node_id, text))

    def _elected(self, node_id: int, text: str) -> None:
        self.elections += 1
        self.note(node_id, text)
