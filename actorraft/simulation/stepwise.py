"""A Raft cluster to play with: step by step, every state and message open to inspection.

    sim = RaftSimulation(5)
    sim.nodes[0].become_leader()
    sim.nodes[0].client_append_entry("x=1")
    sim.step_all()
    assert all(n.server.log == sim.nodes[0].server.log for n in sim.nodes)

The nodes are production controls on nets that keep what is sent until somebody takes it. Nothing happens by itself: not
a message moves without `step`, no time passes without `tick`.

Shape:      `messages` is in the order of delivery: node by node, each node's in the order it sent them.
Not here:   random schedules and faults; see world.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from html import escape

from actorraft.node.control import RaftControl
from actorraft.node.driver import MessageEvent, TickEvent
from actorraft.raft.config import RaftConfig
from actorraft.raft.messages import HardState, LogEntry, Message
from actorraft.raft.ready import LeaderState
from actorraft.simulation.invariants import InvariantViolation
from actorraft.storage.memory import MemoryStorage

STEPS_MAX = 10_000  # a step_all() that takes longer does not end at all

Filter = Callable[[Message], bool]


class ManualClock:
    """Time that passes only when `tick` says so; see ports.Clock."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def wall(self) -> float:
        return self.now_s


class RaftSimulation:
    """Nodes 0 to `num_nodes` - 1, all followers of term 0 with empty logs.

    Args:
        num_nodes: how many.
        seed: of election timeouts, the only thing that is left to chance.
        noop: whether a new leader appends an empty entry (§8); the paper's figures do without.
        config: as of any cluster.

    Attributes:
        nodes: the controls; `nodes[i].server` is the core. A restart puts a new one in the place.
        held: messages that `hold` keeps back.
        crashed: ids of the nodes that are down.
    """

    def __init__(self, num_nodes: int, seed: int = 0, noop: bool = True, *, config: RaftConfig | None = None) -> None:
        if num_nodes < 1:
            raise ValueError(f"a simulation has at least one node, not {num_nodes}")
        self.config = config if config is not None else RaftConfig()
        self.noop = noop
        self.clock = ManualClock()
        self.storages = [MemoryStorage() for _ in range(num_nodes)]
        self._rngs = [random.Random(seed * 1_000_003 + node_id) for node_id in range(num_nodes)]
        self.held: list[Message] = []
        self.crashed: set[int] = set()
        self._isolated: set[int] = set()
        self._hold: Filter | None = None
        self._leaders: dict[int, int] = {}  # term -> who was seen leading it
        self._committed: list[LogEntry] = []
        self.nodes = [self._node(node_id) for node_id in range(num_nodes)]

    def _node(self, node_id: int) -> RaftControl:
        from transports.mock import MockNetwork

        peers = [peer_id for peer_id in range(len(self.storages)) if peer_id != node_id]
        return RaftControl(
            MockNetwork(node_id, peers),
            storage=self.storages[node_id],
            clock=self.clock,
            config=self.config,
            rng=self._rngs[node_id],
            noop=self.noop,
            highest_term=lambda: max(node.server.current_term for node in self.nodes),
        )

    # --- Messages ---

    @property
    def messages(self) -> list[Message]:
        """What the next step delivers, or loses."""
        return [message for node in self.nodes for message in node.outgoing]

    def step(self) -> bool:
        """Deliver all messages that are under way now; return whether there were any."""
        messages = self.messages
        for node in self.nodes:
            node.outgoing.clear()
        delivered = False
        for message in messages:
            if self._hold is not None and self._hold(message):
                self.held.append(message)
                continue
            delivered = True
            if not self._is_lost(message):
                self.nodes[message.dest].process_event(MessageEvent(message))
        self._observe()
        return delivered

    def _is_lost(self, message: Message) -> bool:
        down = message.dest in self.crashed or message.dest >= len(self.nodes)
        return down or message.source in self._isolated or message.dest in self._isolated

    def step_all(self) -> None:
        """Step until no message is under way; no time passes. All nodes that are reached then know the commit index."""
        for _ in range(STEPS_MAX):
            if not self.step():
                return
        raise RuntimeError(f"still messages under way after {STEPS_MAX} steps: {self.messages[:3]}")

    def tick(self, n: int = 1) -> None:
        """Let `n` ticks pass at every node that is up. Messages stay where they are."""
        for _ in range(n):
            self.clock.now_s += self.config.tick_s
            for node_id, node in enumerate(self.nodes):
                if node_id not in self.crashed:
                    node.process_event(TickEvent(1))
        self._observe()

    def hold(self, filter: Filter) -> None:  # noqa: A002 (the name is public)
        """From now on, keep back the messages that `filter` is true of; it replaces the filter before it."""
        self._hold = filter

    def release(self) -> None:
        """Hold nothing back any more; what was held is delivered by the next step."""
        self._hold = None
        held, self.held = self.held, []
        for message in held:
            if message.source not in self.crashed:
                self.nodes[message.source].outgoing.append(message)

    def drop(self, filter: Filter) -> int:  # noqa: A002 (the name is public)
        """Lose the messages under way, and those held back, that `filter` is true of; return how many there were."""
        before = len(self.messages) + len(self.held)
        for node in self.nodes:
            node.outgoing[:] = [message for message in node.outgoing if not filter(message)]
        self.held = [message for message in self.held if not filter(message)]
        return before - len(self.messages) - len(self.held)

    # --- Faults ---

    def isolate(self, i: int) -> None:
        """Cut node `i` off: what it sends, and what is sent to it, is lost."""
        self._isolated.add(i)

    def heal(self) -> None:
        """Cut nobody off any more."""
        self._isolated.clear()

    def crash(self, i: int) -> None:
        """Stop node `i` at once: its disk keeps what was stored, its messages under way are lost. It stays visible."""
        self.crashed.add(i)
        self.nodes[i].outgoing.clear()

    def restart(self, i: int) -> None:
        """Start node `i` again, from its disk (a node that runs is crashed first)."""
        self.crash(i)
        self.nodes[i] = self._node(i)
        self.crashed.discard(i)

    def set_disk(self, i: int, log: list[LogEntry], *, term: int, voted_for: int | None = None) -> None:
        """Put a log and a term on node `i`'s disk in the place of what is there, and restart the node from it."""
        self.storages[i] = MemoryStorage()
        self.storages[i].persist(HardState(term, voted_for), 0, log)
        self.restart(i)

    # --- To look at ---

    def _repr_html_(self) -> str:
        """Draw the logs in a notebook: a row a node, a colour a term; what the node knows to be committed is framed."""
        length = max((len(node.server.log) for node in self.nodes), default=0)
        head = "".join(f"<th>{index}</th>" for index in range(length))
        rows = "".join(self._row_html(node_id, length) for node_id in range(len(self.nodes)))
        return f"<table><thead><tr><th>node</th>{head}<th></th></tr></thead><tbody>{rows}</tbody></table>"

    def _row_html(self, node_id: int, length: int) -> str:
        server = self.nodes[node_id].server
        state = "down" if node_id in self.crashed else server.state.name.lower()
        cut = ", cut off" if node_id in self._isolated else ""
        cells = []
        for index in range(length):
            if not server.log.first_index <= index < len(server.log):
                cells.append("<td></td>")
                continue
            entry = server.log[index]
            edge = "2px solid #333" if index <= server.commit_index else "2px solid transparent"
            style = f"background: hsl({entry.term * 67 % 360} 70% 85%); border: {edge}"
            cells.append(f'<td style="{style}" title="term {entry.term}">{escape(str(entry.item))[:20]}</td>')
        return f"<tr><th>{node_id}</th>{''.join(cells)}<td>{state}, term {server.current_term}{cut}</td></tr>"

    # --- Invariants ---

    def _observe(self) -> None:
        """Remember who led which term, for `check_invariants`."""
        for node_id, node in enumerate(self.nodes):
            if node.server.state is LeaderState and node_id not in self.crashed:
                term = node.server.current_term
                if self._leaders.setdefault(term, node_id) != node_id:
                    self._leaders[term] = -1  # two of them

    def check_invariants(self) -> None:
        """Raise InvariantViolation unless all rules of the paper hold now, and held over what was seen before.

        Election safety, log matching, leader completeness, state-machine safety, one vote per term as stored.
        """
        self._observe()
        for term, leader_id in self._leaders.items():
            if leader_id < 0:
                raise InvariantViolation("election safety", f"two nodes led term {term}")
        for one in self.nodes:
            for other in self.nodes[one.node_id + 1 :]:
                self._check_log_matching(one, other)
        for node in self.nodes:
            self._check_committed(node)
        for node_id, node in enumerate(self.nodes):
            if node_id not in self.crashed and node.server.state is LeaderState:
                self._check_leader(node)

    def _check_log_matching(self, one: RaftControl, other: RaftControl) -> None:
        mine, theirs = one.server.log, other.server.log
        first = max(mine.first_index, theirs.first_index)
        for index in range(min(len(mine), len(theirs)) - 1, first - 1, -1):
            if mine[index].term == theirs[index].term:
                if mine[first : index + 1] != theirs[first : index + 1]:
                    raise InvariantViolation(
                        "log matching", f"nodes {one.node_id} and {other.node_id} agree at {index} and differ before it"
                    )
                return

    def _check_committed(self, node: RaftControl) -> None:
        """State-machine safety: all nodes, at all times, commit the same entries."""
        server = node.server
        for index in range(server.log.first_index, server.commit_index + 1):
            if index < len(self._committed) and server.log[index] != self._committed[index]:
                raise InvariantViolation(
                    "state-machine safety",
                    f"node {node.node_id} committed {server.log[index]!r} at {index}, not {self._committed[index]!r}",
                )
            if index == len(self._committed):
                self._committed.append(server.log[index])

    def _check_leader(self, node: RaftControl) -> None:
        """Leader completeness: the newest leader holds all that is committed."""
        server = node.server
        if server.current_term < max(other.server.current_term for other in self.nodes):
            return  # deposed, and does not know it yet
        for index in range(server.log.first_index, len(self._committed)):
            if index >= len(server.log) or server.log[index] != self._committed[index]:
                raise InvariantViolation(
                    "leader completeness", f"node {node.node_id} leads term {server.current_term} without entry {index}"
                )
