"""The core under thousands of random events: the five properties of Figure 3, reads, and convergence.

Messages are lost, repeated, delayed and reordered; nodes crash before their write, and between write and sending;
links break; clocks differ by 4 %; snapshots, membership changes, transfers and lease reads happen in between. After
every event the invariants are checked; at the end everything heals and must converge.
"""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest

from actorraft.raft import (
    AddLearner,
    AddVoter,
    AppendEntriesResponse,
    InstallSnapshotResponse,
    LeaderState,
    LogEntry,
    Message,
    NotLeader,
    ProposalRefused,
    RaftConfig,
    RaftServer,
    RemoveNode,
    RequestVoteResponse,
)
from tests.helpers import Cluster

STEP_TICKS = 0.5


class World(Cluster):
    """A cluster in which chance decides, and which judges itself."""

    def __init__(self, seed: int, size: int, config: RaftConfig, **options: Any) -> None:
        self.rng = random.Random(seed)
        self.history: dict[int, LogEntry] = {}  # everything ever committed anywhere
        self.leader_of: dict[int, int] = {}  # term -> its leader
        self.votes: dict[tuple[int, int], int] = {}  # (term, voter) -> whom it voted for
        self.commit_index: dict[int, int] = {}
        self.asked: dict[int, tuple[int, int]] = {}  # read token -> (node, committed anywhere when it was asked)
        self.committed_max = -1
        self.arrivals: list[tuple[float, int, Message]] = []
        self.cut: set[tuple[int, int]] = set()
        self.rates: dict[int, float] = {}
        self.phases: dict[int, float] = {}
        self.now = 0.0
        self.sequence = 0
        self.loss = self.rng.choice([0.0, 0.02, 0.1])
        self.repeats = self.rng.choice([0.0, 0.05])
        self.delay = self.rng.choice([0.3, 1.0, 4.0])
        self.answered = 0
        self.lease_answered = 0
        super().__init__(size, config=config, seed=seed, **options)
        self.chunk_items = self.rng.choice([3, 10, 1000])

    def restart(self, node_id: int) -> RaftServer:
        self.rates[node_id] = self.rng.uniform(0.96, 1.04)
        self.phases[node_id] = self.rng.random()
        self.commit_index[node_id] = -1
        return super().restart(node_id)

    # -- judging

    def check(self, node_id: int) -> None:
        server = self.servers[node_id]
        if server.state is LeaderState:
            assert self.leader_of.setdefault(server.current_term, node_id) == node_id, "election safety"
        assert server.commit_index >= self.commit_index[node_id], "commit index fell"
        for index in range(max(self.commit_index[node_id] + 1, server.log.first_index), server.commit_index + 1):
            entry = server.log[index]
            assert self.history.setdefault(index, entry) == entry, f"state machine safety at {index}"
        self.commit_index[node_id] = server.commit_index
        self.committed_max = max(self.committed_max, server.commit_index)
        assert server.log.first_index <= server.snapshot_id.index + 1
        assert server.last_applied <= server.commit_index <= server.log.last_index

    def check_leader_completeness(self) -> None:
        leaders = [server for server in self.servers.values() if server.state is LeaderState]
        if not leaders:
            return
        newest = max(leaders, key=lambda server: server.current_term)
        for index, entry in self.history.items():
            if entry.term < newest.current_term and index >= newest.log.first_index:
                assert newest.log[index] == entry, f"leader completeness at {index}"

    def check_log_matching(self) -> None:
        logs = [server.log for server in self.servers.values()]
        for one in logs:
            for other in logs:
                last = min(one.last_index, other.last_index)
                first = max(one.first_index, other.first_index)
                agree = [index for index in range(first, last + 1) if one[index].term == other[index].term]
                if agree:
                    assert one[first : agree[-1] + 1] == other[first : agree[-1] + 1], "log matching"

    def check_sent(self, node_id: int, message: Message) -> None:
        disk = self.disks[node_id]
        if not getattr(message, "pre_vote", False):
            assert disk.hard_state.term >= message.term, "term before disk"
        match message:
            case RequestVoteResponse(vote_granted=True, pre_vote=False):
                # A later term on the disk says as much: it will not vote in this one again.
                later = disk.hard_state.term > message.term
                assert later or disk.hard_state == (message.term, message.dest), "vote before disk"
                vote = self.votes.setdefault((message.term, node_id), message.dest)
                assert vote == message.dest, "two votes in one term"
            case AppendEntriesResponse(success=True) if disk.hard_state.term == message.term:
                assert disk.log.last_index >= message.match_index, "acknowledged before disk"
            case InstallSnapshotResponse(done=True):
                assert max(disk.log.last_index, disk.snapshot_id.index) >= message.snapshot_index

    # -- effects

    def send(self, node_id: int, messages: Any) -> None:
        before = len(self.messages)
        super().send(node_id, messages)
        sent = self.messages[before:]
        del self.messages[before:]
        for message in sent:
            self.check_sent(node_id, message)
            if (message.source, message.dest) in self.cut or self.rng.random() < self.loss:
                continue
            for _ in range(2 if self.rng.random() < self.repeats else 1):
                delay = self.rng.expovariate(1 / self.delay) if self.rng.random() < 0.9 else self.rng.uniform(0, 40)
                self.sequence += 1
                self.arrivals.append((self.now + delay, self.sequence, message))

    def work(self, node_id: int, *, crash_at: str = "") -> None:
        if not crash_at and self.rng.random() < 0.002:
            crash_at = self.rng.choice(["write", "send"])
        super().work(node_id, crash_at=crash_at)
        if node_id not in self.servers:
            return
        self.check(node_id)
        for read in self.reads[node_id]:
            asked_at, committed = self.asked.pop(read.token)
            assert asked_at == node_id
            if read.index >= 0:
                self.answered += 1
                assert read.index >= committed, f"stale read {read}: {committed} was committed when it was asked"
        self.reads[node_id].clear()

    # -- chance

    def run(self, steps: int) -> None:
        for step in range(steps):
            self.now += STEP_TICKS
            for node_id in list(self.servers):
                self.phases[node_id] += STEP_TICKS * self.rates[node_id]
                ticks = int(self.phases[node_id])
                if ticks:
                    self.phases[node_id] -= ticks
                    self.servers[node_id].tick(ticks)
                    self.work(node_id)
            due = sorted(arrival for arrival in self.arrivals if arrival[0] <= self.now)
            self.arrivals = [arrival for arrival in self.arrivals if arrival[0] > self.now]
            for _, _, message in due:
                if message.dest in self.servers:
                    self.servers[message.dest].step(message)
                    if self.rng.random() < 0.7:
                        self.work(message.dest)
            for node_id in list(self.servers):
                self.work(node_id)
            self.something_happens()
            if step % 20 == 0:
                self.check_leader_completeness()
                self.check_log_matching()

    def something_happens(self) -> None:
        rng = self.rng
        chance = rng.random()
        alive = list(self.servers)
        if chance < 0.25:
            self.client_writes()
        elif chance < 0.40 and alive:
            node_id = rng.choice(alive)
            token = len(self.asked) + self.sequence * 1000
            while token in self.asked:
                token += 1
            self.asked[token] = (node_id, self.committed_max)
            self.servers[node_id].read_index(token, lease=rng.random() < 0.5)
            self.work(node_id)
        elif chance < 0.405 and alive:
            node_id = rng.choice(alive)
            self.crash(node_id)
            self.asked = {token: asked for token, asked in self.asked.items() if asked[0] != node_id}
            for peer_id in self.servers:
                if rng.random() < 0.7:
                    self.servers[peer_id].peer_disconnected(node_id)
        elif chance < 0.42:
            down = [node_id for node_id in self.disks if node_id not in self.servers]
            if down:
                node_id = rng.choice(down)
                self.asked = {token: asked for token, asked in self.asked.items() if asked[0] != node_id}
                self.restart(node_id)
                for peer_id in self.servers:
                    self.servers[peer_id].peer_connected(node_id)
        elif chance < 0.426:
            self.cut_links()
        elif chance < 0.431:
            self.mend()
        elif chance < 0.46 and alive:
            self.snapshot(rng.choice(alive), trailing=rng.choice([0, 3]))
        elif chance < 0.48:
            self.change_members()
        elif chance < 0.485:
            for server in self.servers.values():
                if server.state is LeaderState and rng.random() < 0.5:
                    with contextlib.suppress(ProposalRefused):
                        server.transfer_leadership(rng.choice([None, *server.voters]))
        elif chance < 0.55 and alive:
            server = self.servers[rng.choice(alive)]
            if self.urgent.pop(server.node_id, None) is not None:
                server.urgent()
                self.work(server.node_id)

    def cut_links(self) -> None:
        """Isolate a leader, split the nodes in two, or cut some links one way."""
        rng = self.rng
        leaders = self.leaders()
        links = [(source, dest) for source in self.disks for dest in self.disks if source != dest]
        kind = rng.randrange(3)
        if kind == 0 and leaders:
            alone = {rng.choice(leaders)}
            self.cut = {(source, dest) for source, dest in links if (source in alone) != (dest in alone)}
        elif kind == 1:
            side = {node_id for node_id in self.disks if rng.random() < 0.5}
            self.cut = {(source, dest) for source, dest in links if (source in side) != (dest in side)}
        else:
            self.cut = {link for link in links if rng.random() < 0.3}
        seen = rng.choice([0.0, 0.0, 0.5, 1.0])
        for source, dest in sorted(self.cut):
            if source in self.servers and rng.random() < seen:
                self.servers[source].peer_disconnected(dest)

    def mend(self) -> None:
        self.cut = set()
        for server in self.servers.values():
            for peer_id in self.servers:
                server.peer_connected(peer_id)

    def client_writes(self) -> None:
        for node_id, server in list(self.servers.items()):
            if server.state is LeaderState:
                for _ in range(self.rng.randrange(1, 5)):
                    self.sequence += 1
                    try:
                        server.propose(b"%d" % self.sequence)
                    except ProposalRefused:
                        break
                if self.rng.random() < 0.8:
                    self.work(node_id)

    def change_members(self) -> None:
        rng = self.rng
        for server in list(self.servers.values()):
            if server.state is not LeaderState:
                continue
            changes: list[Any] = []
            next_id = server.configuration.next_node_id
            for _ in range(rng.choice([1, 1, 2, 3])):
                kind = rng.choice([AddVoter, AddLearner, RemoveNode])
                members = sorted(server.configuration.members)
                known = [*members, next_id] if next_id < 12 and kind is not RemoveNode else members
                node_id = rng.choice(known)
                if kind is RemoveNode and len(server.configuration.voters) <= 2:
                    continue
                if kind is AddLearner and node_id in server.configuration.voters and len(server.voters) <= 2:
                    continue
                changes.append(kind(node_id))
                next_id = max(next_id, node_id + 1)
            try:
                server.change_membership(changes)
            except (ProposalRefused, NotLeader):
                continue
            for change in changes:
                if change.node_id not in self.disks:
                    self.add(change.node_id, configuration=type(self.configuration)())

    def converge(self) -> None:
        """Heal everything, start everybody, and wait until all members of the last configuration agree."""
        self.loss = self.repeats = 0.0
        self.delay = 0.3
        for node_id in self.disks:
            if node_id not in self.servers:
                self.restart(node_id)
        self.mend()
        for _ in range(100):
            self.mend()
            self.rng_quiet(60)
            leaders = [server for server in self.servers.values() if server.state is LeaderState]
            if not leaders:
                continue
            leader = max(leaders, key=lambda server: server.current_term)
            if self.config.pre_vote and self.config.check_quorum:
                pass  # removed nodes disturb nobody
            elif not leader.configuration.joint and leader.commit_index == leader.log.last_index:
                for node_id in self.servers.keys() - leader.configuration.members:
                    self.crash(node_id)  # as an operator would
            if leader.commit_index < leader.log.last_index or leader.configuration.joint:
                continue
            members = [self.servers.get(node_id) or self.restart(node_id) for node_id in leader.configuration.members]
            if all(server.commit_index == leader.commit_index for server in members):
                assert len({tuple(self.machines[server.node_id]) for server in members}) == 1, "machines differ"
                return
        raise AssertionError(f"no convergence: {list(self.servers.values())}")

    def rng_quiet(self, steps: int) -> None:
        happens, self.something_happens = self.something_happens, lambda: None  # type: ignore[method-assign]
        chance, self.rng.random = self.rng.random, lambda: 0.5  # type: ignore[method-assign]
        try:
            self.run(steps)
        finally:
            self.something_happens = happens  # type: ignore[method-assign]
            self.rng.random = chance  # type: ignore[method-assign]


def run_world(seed: int, steps: int = 600, **options: Any) -> World:
    rng = random.Random(-seed - 1)
    config = RaftConfig(
        election_timeout_ticks=20,
        heartbeat_ticks=4,
        pre_vote=rng.random() < 0.8,
        check_quorum=rng.random() < 0.8,
        lease_reads=rng.random() < 0.5,
        inflight_max=rng.choice([1, 4, 64]),
        append_bytes_max=rng.choice([1, 20, 1 << 20]),
        uncommitted_bytes_max=rng.choice([50, 1 << 20]),
    )
    world = World(seed, rng.choice([1, 2, 3, 3, 4, 5, 5]), config, **options)
    world.run(steps)
    world.converge()
    world.check_leader_completeness()
    world.check_log_matching()
    return world


@pytest.mark.parametrize("block", range(8))
def test_random_schedules_keep_the_invariants(block: int) -> None:
    """§5, Figure 3: election safety, log matching, leader completeness, state machine safety; linearizable reads."""
    for seed in range(block * 5, block * 5 + 5):
        try:
            run_world(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
