"""The seeded world: virtual time, nodes, clients, faults; the same seed gives the same run, event by event.

A run has two parts. First clients write and read while the faults of the seed's profile happen. Then everything is
mended, the clients serve once more, and within a bound all calls must have ended and all members be equal. Every event
is judged by invariants.py, the clients' history by linearizability.py, the ledger of the machine by `judge`.

Why not threads or asyncio: an event queue of our own is the only scheduler whose every choice comes from the seed.

Shape:      time is in integer microseconds from 0; events at one instant happen in the order they were scheduled.
Invariant:  nothing here reads a clock, iterates over a set of strings, or draws from a generator of its own.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from actorraft.node.driver import ConnectEvent, DisconnectEvent
from actorraft.raft.config import RaftConfig
from actorraft.raft.messages import Configuration
from actorraft.raft.ready import LeaderState
from actorraft.simulation.faults import Nemesis, Profile
from actorraft.simulation.invariants import Checker, InvariantViolation
from actorraft.simulation.linearizability import check_history
from actorraft.simulation.machine import SimHost
from actorraft.simulation.network import SimNetwork
from actorraft.simulation.node import SimNode
from actorraft.simulation.trace import Trace
from actorraft.simulation.workload import Call, Operator, SimClient

STEPS = 16_000  # events of the first part: 1,000 seeds take about 3 minutes on 2 cores
CONVERGE_S = 20.0  # within this after the mending everybody must be equal
TICK_S = 0.01


class Outcome(NamedTuple):
    """What a run was like; `violation` is None if all was well."""

    seed: int
    events: int
    simulated_s: float
    elections: int
    commits: int
    operations: int
    unknown: int
    faults: dict[str, int]
    violation: str | None
    invariant: str | None
    step: int
    tail: tuple[str, ...]
    undecided: int  # keys whose history has too many possible orders to judge


class World:
    """One run.

    Args:
        seed: of everything.
        num_nodes: voters at the beginning.
        steps: events before everything is mended.
        profile: what the seed would choose: faults, timing, load.
    """

    def __init__(
        self,
        seed: int,
        *,
        num_nodes: int = 5,
        steps: int = STEPS,
        profile: Profile | None = None,
        trace_all: bool = False,
    ) -> None:
        self.seed = seed
        self.steps = steps
        self.rng = random.Random(seed)
        self.profile = profile if profile is not None else Profile.draw(random.Random(self.rng.getrandbits(64)))
        self.config: RaftConfig = self.profile.config
        self.now_us = 0
        self.events = 0
        self.trace = Trace(keep_all=trace_all)
        self._queue: list[tuple[int, int, Callable[[Any], None], Any]] = []
        self._scheduled = 0
        self._instant_ns = 0
        self._told: dict[tuple[int, int], int] = {}  # (observer, node) -> when it learned of its connection last
        self.mending = False
        self.faults: Counter[str] = Counter()
        self.elections = 0
        self.undecided = 0
        self.network = SimNetwork(random.Random(self.rng.getrandbits(64)))
        self.configuration = Configuration(voters=frozenset(range(num_nodes)), next_node_id=num_nodes)
        self.nodes: dict[int, SimNode] = {}
        self.checker = Checker(self.nodes, self._elected)
        for node_id in range(num_nodes):
            self.add_node(node_id)
        self.next_command_id = 0
        self.last_values: dict[str, list[str | None]] = {}
        self.calls: list[Call] = []
        self.clients = [SimClient(self, number) for number in range(self.profile.clients)]
        self.operator = Operator(self)
        self.nemesis = Nemesis(self)

    # --- Time ---

    def at(self, at_us: int, action: Callable[[Any], None], argument: Any) -> None:
        """Let something happen at an instant."""
        self._scheduled += 1
        heapq.heappush(self._queue, (at_us, self._scheduled, action, argument))

    def after(self, delay_us: int, action: Callable[[Any], None], argument: Any) -> None:
        """Let something happen later."""
        self.at(self.now_us + delay_us, action, argument)

    def instant(self) -> int:
        """Return nanoseconds that grow with every call: the clock of histories."""
        self._instant_ns = max(self._instant_ns + 1, self.now_us * 1000)
        return self._instant_ns

    def _run(self, *, events: int | None = None, until_us: int | None = None) -> None:
        """Run until so many events have happened, or until an instant."""
        queue, pop = self._queue, heapq.heappop
        while (self.events < events) if events is not None else (self.now_us < (until_us or 0)):
            self.now_us, _, action, argument = pop(queue)
            action(argument)

    # --- Nodes ---

    def add_node(self, node_id: int) -> SimNode:
        """Bring a node into being; it is not started."""
        node = self.nodes[node_id] = SimNode(self, node_id)
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
        except InvariantViolation:
            raise
        except Exception as error:
            raise InvariantViolation("no error", f"node {node.node_id} at its start: {error!r}") from error
        self._tell_connections(node, up=True)

    def crashed(self, node: SimNode) -> None:
        """A node's process is gone: peers and clients see their connections break."""
        self.faults["crash"] += 1
        self._tell_connections(node, up=False)
        self.nemesis.crashed(node)

    def _tell_connections(self, node: SimNode, *, up: bool) -> None:
        for other in self.nodes.values():
            if other is not node and other.up and (other.node_id, node.node_id) not in self.network.cut:
                self._tell(other.node_id, node.node_id, self.connection, (other, other.start, node.node_id, up))
        for client in self.clients:
            self._tell(client.address, node.node_id, client.connection, (node.node_id, up))

    def _tell(self, observer: int, node_id: int, action: Callable[[Any], None], what: Any) -> None:
        """Let an observer learn of a connection, in the order of what happened to it."""
        at_us = self.now_us + 100 + int(self.rng.random() * 2000)
        at_us = self._told[observer, node_id] = max(at_us, self._told.get((observer, node_id), 0) + 1)
        self.at(at_us, action, what)

    def connection(self, what: tuple[SimNode, int, int, bool]) -> None:
        """A node's transport reports a connection to a peer that broke or came up."""
        node, start, peer_id, up = what
        if node.start == start:
            node.post(ConnectEvent(peer_id) if up else DisconnectEvent(peer_id))

    def leader(self) -> SimNode | None:
        """Return the leader of the highest term, as nodes see themselves."""
        leaders = [n for n in self.nodes.values() if n.server is not None and n.server.state is LeaderState]
        return max(leaders, key=lambda n: n.server.current_term if n.server else -1, default=None)

    def note(self, node_id: int, text: str) -> None:
        """Write into the trace what is not an event of a node's own."""
        self.trace.append((self.now_us, node_id, text))

    def _elected(self, node_id: int, text: str) -> None:
        self.elections += 1
        self.note(node_id, text)

    # --- A run ---

    def run(self) -> Outcome:
        """Run to the end, or to the first violation."""
        violation = invariant = None
        try:
            self._play()
        except InvariantViolation as error:
            violation, invariant = error.detail, error.invariant
            cause = error.__cause__
            if cause is not None:
                self.note(-1, Trace.where(cause))
        step = self.events
        operations = [call.operation for call in self.calls]
        return Outcome(
            self.seed,
            self.events,
            self.now_us * 1e-6,
            self.elections,
            len(self.checker.committed),
            len(operations),
            sum(call.was_unknown for call in self.calls),
            self._faults(),
            violation,
            invariant,
            step,
            tuple(self.trace.tail()) if violation is not None else (),
            self.undecided,
        )

    def _faults(self) -> dict[str, int]:
        faults = Counter(self.faults)
        faults.update({f"message {name}": count for name, count in self.network.counts.items()})
        for node in self.nodes.values():
            faults["disk stall"] += node.disk.counts["stalls"]
            faults["disk failure"] += node.disk.counts["failures"]
            faults["torn write"] += node.disk.counts["torn"]
        faults.update({f"operator {verb}": count for verb, count in self.operator.done.items()})
        return dict(faults)

    def _play(self) -> None:
        for node in list(self.nodes.values()):
            self.boot(node)
        for client in self.clients:
            self._issue_later(client)
        self.nemesis.begin()
        self._run(events=self.steps)
        self._mend()
        self._run_until_quiet()
        self.judge()

    def _issue_later(self, client: SimClient) -> None:
        rng = client.rng
        self.after(int(rng.expovariate(1 / self.profile.think_us)) + 1, self._issue, client)

    def _issue(self, client: SimClient) -> None:
        if self.mending:
            return
        if client.waiting < 8:
            client.issue()
        self._issue_later(client)

    def _mend(self) -> None:
        """End all faults; every client begins a last call that must succeed."""
        self.mending = True
        self.note(-1, "everything is mended")
        self.nemesis.mend()
        self.must_succeed: list[Call] = []
        self.mended_us = self.now_us
        self.after(2_100_000, self._last_calls, None)  # an election or two, and the end of a write that stalled

    def _last_calls(self, _: object) -> None:
        leader = self.leader()
        if leader is not None and leader.server is not None:
            self.nemesis.retire_strangers(leader.server.configuration.members)
        for client in self.clients:
            first = len(self.calls)
            client.issue()
            self.must_succeed.extend(self.calls[first:])

    def _run_until_quiet(self) -> None:
        """Go on until everybody is equal and every call has ended."""
        bound_us = self.mended_us + int(CONVERGE_S * 1e6)
        check_us = self.mended_us + 2_200_000
        while True:
            self._run(until_us=check_us)
            unfinished = self._unfinished()
            if unfinished is None:
                return
            if self.now_us > bound_us:
                raise InvariantViolation("convergence", f"{CONVERGE_S:.0f} s after everything was mended, {unfinished}")
            check_us += 50_000

    def _unfinished(self) -> str | None:
        """Say what is not as it must be in the end; None if nothing is left to happen."""
        waiting = [call.operation for call in self.calls if call.outcome is None]
        if waiting or not self.must_succeed:
            return f"{len(waiting)} calls have not ended, the first is {waiting[0] if waiting else None}"
        if not all(client.session.idle for client in self.clients):
            return "a client still asks about calls that ended unknown"
        leader = self.leader()
        if leader is None or leader.server is None:
            return "nobody leads"
        server = leader.server
        if server.configuration.joint or not server.committed_in_own_term:
            return f"node {leader.node_id} leads, but its configuration is still joint or its term not committed"
        for node_id in sorted(server.configuration.members):
            node = self.nodes[node_id]
            if node.server is None:
                return f"node {node_id} is down"
            if node.server.last_applied != server.log.last_index or node.server.leader_id != leader.node_id:
                return f"node {node_id} has applied {node.server.last_applied} of {server.log.last_index}"
        return None

    # --- The end ---

    def judge(self) -> None:
        """Judge what can only be judged at the end: outcomes, the ledger, the history, the digests."""
        leader = self.leader()
        assert leader is not None
        assert leader.server is not None
        members = [self.nodes[node_id] for node_id in sorted(leader.server.configuration.members)]
        machines = [node.machine for node in members if node.machine is not None]
        digests = {machine.digest() for machine in machines}
        if len(digests) != 1:
            raise InvariantViolation("equal digests", f"members {[n.node_id for n in members]} differ after the end")
        for node, machine in zip(members, machines, strict=True):
            if machine.complaints:
                raise InvariantViolation("serials and log time", f"node {node.node_id}: {machine.complaints[0]}")
            self._judge_log_time(machine)
        self._judge_ledger(machines[0].applied)
        self._judge_service(leader.server.configuration.members)
        verdict = check_history(call.operation for call in self.calls)
        if verdict.violations:
            raise InvariantViolation("linearizability", str(verdict.violations[0]))
        self.undecided = len(verdict.undecided)

    def _judge_service(self, members: frozenset[int]) -> None:
        """Once everything is mended, every call succeeds."""
        # A removed node that was never told campaigns for ever (§6). Where both defences are off, it may fail any call.
        removed = any(node.up for node_id, node in self.nodes.items() if node_id not in members)
        if removed and not (self.config.pre_vote or self.config.check_quorum):
            return
        for call in self.must_succeed:
            expired = call.outcome == "unknown" and self.config.session_expiry_s < CONVERGE_S  # silent for too long
            if call.outcome != "ok" and not expired:
                raise InvariantViolation("service", f"after the mending a call failed: {call.operation}")

    def _judge_log_time(self, machine: SimHost) -> None:
        """Log time may run with the leaders' monotonic clocks, never with their wall clocks."""
        leaps_s = sum(node.clock.ahead_s for node in self.nodes.values())
        most_s = self.now_us * 1e-6 * 1.1 + leaps_s + 1.0
        if machine.last_time - machine.first_time > most_s:
            raise InvariantViolation(
                "log time", f"{machine.last_time - machine.first_time:.1f} s of log time in at most {most_s:.1f} s"
            )

    def _judge_ledger(self, applied: dict[int, int]) -> None:
        for call in self.calls:
            if call.command_id < 0:
                continue
            times = applied.get(call.command_id, 0)
            if times > 1 or (times == 0 and call.outcome == "ok") or (times and call.outcome == "fail"):
                raise InvariantViolation(
                    "exactly once", f"a command that ended {call.outcome!r} was applied {times} times: {call.operation}"
                )
