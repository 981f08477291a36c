"""One run: a world, its clients and its nemesis; then everything is mended, and all is judged.

First clients write and read while the faults of the seed's profile happen. Then everything is mended, the clients serve
once more, and within a bound all calls must have ended and all members be equal. Every event is judged by
invariants.py, the clients' history by linearizability.py, the ledger of the machine by `judge`.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from actorraft.simulation import replayed
from actorraft.simulation.faults import Nemesis
from actorraft.simulation.guest import Guest
from actorraft.simulation.invariants import InvariantViolation
from actorraft.simulation.linearizability import check_history
from actorraft.simulation.machine import SimHost
from actorraft.simulation.node import SimNode
from actorraft.simulation.profile import Profile
from actorraft.simulation.trace import Trace
from actorraft.simulation.workload import GUESTS_ONLY, Call, Export, Operator, SimClient
from actorraft.simulation.world import World

STEPS = 16_000  # events of the first part: 1,000 seeds take about 3 minutes on 2 cores
OCCUPIED_S = 150.0  # so long machines may go on with what takes long, or hold: tries are up to a minute apart
CONVERGE_S = 20.0  # within this after the mending everybody must be equal


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


class Play:
    """One run.

    Args:
        seed: of everything.
        num_nodes: voters at the beginning.
        steps: events before everything is mended.
        profile: what the seed would choose: faults, timing, load.
        trace_all: keep every event's line, not only the last ones.
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
        self.faults: Counter[str] = Counter()
        self.world = World(seed, num_nodes=num_nodes, profile=profile, trace_all=trace_all, crashed=self._crashed)
        self.timeline, self.profile = self.world.timeline, self.world.profile
        self.mending = False
        self.undecided = 0
        self.next_command_id = 0
        self.last_values: dict[str, list[str | None]] = {}
        self.calls: list[Call] = []
        self.clients = [SimClient(self, number) for number in range(self.profile.clients)]
        self.world.hearers.extend(self.clients)
        self.operator = Operator(self.world)
        self.nemesis = Nemesis(self)

    def _crashed(self, node: SimNode) -> None:
        self.faults["crash"] += 1
        self.nemesis.crashed(node)

    def run(self) -> Outcome:
        """Run to the end, or to the first violation."""
        violation = invariant = None
        try:
            self._play()
        except InvariantViolation as error:
            violation, invariant = error.detail, error.invariant
            cause = error.__cause__
            if cause is not None:
                self.world.note(-1, Trace.where(cause))
        step = self.timeline.events
        operations = [call.operation for call in self.calls]
        return Outcome(
            self.seed,
            self.timeline.events,
            self.timeline.now_us * 1e-6,
            self.world.elections,
            len(self.world.checker.committed),
            len(operations),
            sum(call.was_unknown for call in self.calls),
            self._faults(),
            violation,
            invariant,
            step,
            tuple(self.world.trace.tail()) if violation is not None else (),
            self.undecided,
        )

    def _faults(self) -> dict[str, int]:
        faults = Counter(self.faults)
        faults.update({f"message {name}": count for name, count in self.world.network.counts.items()})
        for node in self.world.nodes.values():
            faults["disk stall"] += node.disk.counts["stalls"]
            faults["disk failure"] += node.disk.counts["failures"]
            faults["torn write"] += node.disk.counts["torn"]
        faults.update({f"operator {verb}": count for verb, count in self.operator.done.items()})
        return dict(faults)

    def _play(self) -> None:
        for node in list(self.world.nodes.values()):
            self.world.boot(node)
        for client in self.clients:
            self._issue_later(client)
        self.nemesis.begin()
        self.timeline.run(events=self.steps)
        self._mend()
        self._run_until_quiet()
        self.judge()

    def _issue_later(self, client: SimClient) -> None:
        rng = client.rng
        self.timeline.after(int(rng.expovariate(1 / self.profile.think_us)) + 1, self._issue, client)

    def _issue(self, client: SimClient) -> None:
        if self.mending:
            return
        if client.waiting < 8:
            client.issue()
        self._issue_later(client)

    def _mend(self) -> None:
        """End all faults; every client begins a last call that must succeed."""
        self.mending = True
        self.world.note(-1, "everything is mended")
        self.nemesis.mend()
        self.mended_us = self.timeline.now_us
        self.occupied_until_us = self.mended_us + int(OCCUPIED_S * 1e6)
        self._call_soon()

    def _call_soon(self) -> None:
        """Let the last calls begin after an election or two, and the end of a write that stalled."""
        self.must_succeed: list[Call] = []
        self.all_called = False
        self.operator.export = None
        self.timeline.after(2_100_000, self._last_calls, None)

    def _last_calls(self, _: object) -> None:
        if any(node.occupied for node in self.world.nodes.values()) and self.timeline.now_us < self.occupied_until_us:
            self.mended_us = self.timeline.now_us  # not yet: what takes long was begun before
            self.timeline.after(500_000, self._last_calls, None)
            return
        leader = self.world.leader()
        if leader is not None and leader.server is not None:
            self.nemesis.retire_strangers(leader.server.configuration.members)
        if self.profile.guest:
            self.must_succeed.append(self.clients[0].ask("sicken", "", 10.0, ""))  # all hooks work again
        for client in self.clients:
            first = len(self.calls)
            client.issue()
            self.must_succeed.extend(self.calls[first:])
        self.timeline.after(4_000_000, self._very_last_calls, None)

    def _very_last_calls(self, _: object) -> None:
        """When nobody else needs the machine any more: a read that takes long, and a copy of the state."""
        self.all_called = True
        if self.profile.guest:
            self.must_succeed.append(self.clients[-1].ask("crawl", "k1", 10.0))
        self._export(None)

    def _export(self, _: object) -> None:
        """Have a copy of the state made; again, if that failed because the leader or its snapshot was not there."""
        leader = self.world.leader()
        export = self.operator.export
        if export is not None and (export.done or not export.failed):
            return
        if leader is not None:
            self.operator.export = Export(self, leader.node_id)
            self.operator.export.begin()
        self.timeline.after(500_000, self._export, None)

    def _run_until_quiet(self) -> None:
        """Go on until everybody is equal and every call has ended."""
        check_us = self.mended_us + 2_200_000
        longer_us = 0
        while True:
            self.timeline.run(until_us=check_us)
            unfinished = self._unfinished()
            late = self.timeline.now_us > self.mended_us + int(CONVERGE_S * 1e6) + longer_us
            if unfinished is None or late:
                if self._end_removed():
                    longer_us += int(CONVERGE_S * 1e6)
                    self._call_soon()  # any call until now may have failed, and none from now on
                elif unfinished is None:
                    return
                else:
                    raise InvariantViolation(
                        "convergence", f"{CONVERGE_S:.0f} s after everything was mended, {unfinished}"
                    )
            check_us += 50_000

    def _end_removed(self) -> bool:
        """Have the operator end removed nodes that were never told; return whether there were any.

        They campaign for ever (§6), and where both defences are off nobody may lead for long, and any call may fail.
        """
        if self.profile.config.pre_vote or self.profile.config.check_quorum:
            return False
        newest = max((node.server for node in self.world.nodes.values() if node.server), key=lambda s: s.commit_index)
        removed = any(
            node.up and node.node_id not in newest.configuration.members for node in self.world.nodes.values()
        )
        self.nemesis.retire_strangers(newest.configuration.members)
        return removed

    def _unfinished(self) -> str | None:
        """Say what is not as it must be in the end; None if nothing is left to happen."""
        waiting = [call.operation for call in self.calls if call.outcome is None]
        if waiting or not self.all_called:
            return f"{len(waiting)} calls have not ended, the first is {waiting[0] if waiting else None}"
        export = self.operator.export
        if export is None or not export.done:
            return f"no copy of the state was made: {export.failed if export is not None else 'not asked for'}"
        if not all(client.session.idle for client in self.clients):
            return "a client still asks about calls that ended unknown"
        leader = self.world.leader()
        if leader is None or leader.server is None:
            return "nobody leads"
        server = leader.server
        if server.configuration.joint or not server.committed_in_own_term:
            return f"node {leader.node_id} leads, but its configuration is still joint or its term not committed"
        for node_id in sorted(server.configuration.members):
            node = self.world.nodes[node_id]
            if node.server is None:
                return f"node {node_id} is down"
            if node.server.last_applied != server.log.last_index or node.server.leader_id != leader.node_id:
                return f"node {node_id} has applied {node.server.last_applied} of {server.log.last_index}"
        return self._unwatched(leader) if self.profile.guest else None

    def _unwatched(self, leader: SimNode) -> str | None:
        """Say which timer has not fired, or which watch has not seen everything."""
        machine, executor = leader.machine, leader.executor
        assert isinstance(machine, Guest)
        assert executor is not None
        if machine.timers:
            return f"the timers {machine.timers} have not fired by log time {executor.log_time_s}"
        for client in self.clients:
            if client.topic:
                published = [(index, event) for index, _, event in executor.published.since(0, client.topic)]
                seen = client.seen
                due = published if client.from_start else published[len(published) - len(seen) :]
                if seen != due:
                    at = next((i for i, (one, other) in enumerate(zip(seen, due, strict=False)) if one != other), -1)
                    return (
                        f"client {client.number}, who watches {client.topic!r}, saw {len(seen)} events of {len(due)}; "
                        f"at {at} they differ: {seen[at : at + 2]} and {due[at : at + 2]}"
                    )
        return None

    # --- The end ---

    def judge(self) -> None:
        """Judge what can only be judged at the end: outcomes, the ledger, the history, the digests."""
        leader = self.world.leader()
        assert leader is not None
        assert leader.server is not None
        members = [self.world.nodes[node_id] for node_id in sorted(leader.server.configuration.members)]
        machines = [node.machine for node in members if node.machine is not None]
        if len({machine.fingerprint() for machine in machines}) != 1:
            raise InvariantViolation("equal digests", f"members {[n.node_id for n in members]} differ after the end")
        for node, machine in zip(members, machines, strict=True):
            if machine.complaints:
                raise InvariantViolation("serials and log time", f"node {node.node_id}: {machine.complaints[0]}")
            self._judge_log_time(machine)
        self._judge_ledger(machines[0].applied)
        self._judge_export()
        for node in members:
            assert node.executor is not None
            replayed.judge(node.node_id, node.executor, self.world.checker.committed, self.profile, self.world.rng)
        self._judge_service()
        verdict = check_history(call.operation for call in self.calls if call.operation.op not in GUESTS_ONLY)
        if verdict.violations:
            raise InvariantViolation("linearizability", str(verdict.violations[0]))
        self.undecided = len(verdict.undecided)

    def _judge_service(self) -> None:
        """Once everything is mended, every call succeeds."""
        for call in self.must_succeed:
            # One that was silent for too long may have expired.
            expired = call.outcome == "unknown" and self.profile.config.session_expiry_s < CONVERGE_S
            if call.outcome != "ok" and not expired:
                raise InvariantViolation("service", f"after the mending a call failed: {call.operation}")

    def _judge_log_time(self, machine: SimHost | Guest) -> None:
        """Log time may run with the leaders' monotonic clocks, never with their wall clocks."""
        leaps_s = sum(node.clock.ahead_s for node in self.world.nodes.values())
        most_s = self.timeline.now_us * 1e-6 * 1.1 + leaps_s + 1.0
        if machine.last_time - machine.first_time > most_s:
            raise InvariantViolation(
                "log time", f"{machine.last_time - machine.first_time:.1f} s of log time in at most {most_s:.1f} s"
            )

    def _judge_export(self) -> None:
        """A copy of the state holds all that was acknowledged before it was asked for."""
        export = self.operator.export
        assert export is not None
        if export.snapshot_index < export.committed - 1:
            raise InvariantViolation(
                "export",
                f"a copy asked for when {export.committed - 1} was committed ends at {export.snapshot_index}",
            )
        machine = replayed.opened(export.data, self.profile).machine
        for call in export.acknowledged:
            holds = call.operation.op in ("hunger", "misspell") and type(call.result) is not int
            if call.command_id >= 0 and call.command_id not in machine.applied and not holds:
                raise InvariantViolation("export", f"the copy lacks what was acknowledged before: {call.operation}")

    def _judge_ledger(self, applied: dict[int, int]) -> None:
        for call in self.calls:
            if call.command_id < 0:
                continue
            times = applied.get(call.command_id, 0)
            if call.operation.op in ("hunger", "misspell") and type(call.result) is not int:
                if times > (call.outcome != "ok"):
                    raise InvariantViolation("holding", f"an error, and applied {times} times: {call.operation}")
                continue
            if times > 1 or (times == 0 and call.outcome == "ok") or (times and call.outcome == "fail"):
                raise InvariantViolation(
                    "exactly once", f"a command that ended {call.outcome!r} was applied {times} times: {call.operation}"
                )
