"""A node that comes with an empty disk: by story, and by random schedules in which disks are lost again and again."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from actorraft.raft import (
    AppendEntries,
    AppendEntriesResponse,
    EntryId,
    FollowerState,
    HardState,
    LeaderState,
    LogEntry,
    Message,
    NotLeader,
    Probation,
    ProposalRefused,
    RaftConfig,
    RaftLog,
    RaftServer,
    RequestVote,
    Standing,
    TimeoutNow,
)
from actorraft.raft.probation import NO_SEED
from tests.helpers import NO_ENTRY, Disk, make_leader, voters

pytestmark = pytest.mark.long


class World:
    """Servers whose disks can be lost; whatever any of them commits goes into one ledger."""

    def __init__(self, size: int, seed: int = 0, *, marked: bool = False, founded_with: EntryId = NO_SEED) -> None:
        self.random = random.Random(seed)
        self.size = size
        self.founded_with = founded_with  # the last entry of a state that all begin with
        self.disks = {node_id: self.new_disk() for node_id in range(size)}
        self.servers: dict[int, RaftServer] = {}
        self.messages: list[Message] = []
        self.ledger: dict[int, Any] = {}
        self.down: set[int] = set()  # crashed, or stopped for a while
        self.cut: set[frozenset[int]] = set()  # pairs that do not hear each other
        for node_id in range(size):
            self.start(node_id, Probation(marked=True, seed=founded_with) if marked else None)

    def new_disk(self) -> Disk:
        term, index = self.founded_with
        log = RaftLog(first_index=index + 1, previous_term=term if index >= 0 else -1)
        return Disk(HardState(term, None), log, self.founded_with if index >= 0 else NO_ENTRY)

    def start(self, node_id: int, probation: Probation | None) -> None:
        disk = self.disks[node_id]
        self.down.discard(node_id)
        self.messages = [message for message in self.messages if node_id not in (message.dest, message.source)]
        self.servers[node_id] = RaftServer(
            node_id,
            configuration=voters(*range(self.size)),
            config=RaftConfig(append_bytes_max=1, inflight_max=2),  # what is fed comes in many pieces
            draw=self.random.randrange,
            log=RaftLog(list(disk.log), first_index=disk.log.first_index, previous_term=disk.log.previous_term),
            hard_state=disk.hard_state,
            snapshot_id=disk.snapshot_id,
            probation=probation,
        )
        self.drain(node_id)

    def lose(self, node_id: int, *, marked: bool = False) -> None:
        """Its folder is emptied, and it is started again under its old id."""
        self.disks[node_id] = self.new_disk()
        self.start(node_id, Probation(marked=marked, seed=self.founded_with))

    def drain(self, node_id: int) -> None:
        server = self.servers[node_id]
        while server.has_ready():
            ready = server.ready()
            self.messages += ready.messages
            self.disks[node_id].persist(ready)
            server.advance(ready)
            self.messages += ready.messages_after_persist
            for index, entry in enumerate(ready.committed, ready.committed_from):
                assert self.ledger.setdefault(index, entry) == entry, f"entry {index} was acknowledged, and is another"
            if ready.committed:
                server.applied(ready.committed_from + len(ready.committed) - 1)

    def act(self, node_id: int, what: Callable[[RaftServer], object]) -> None:
        if node_id not in self.down:
            what(self.servers[node_id])
            self.drain(node_id)

    def deliver(self, message: Message) -> None:
        if message.source not in self.down and frozenset((message.source, message.dest)) not in self.cut:
            self.act(message.dest, lambda server: server.step(message))

    def settle(self, rounds: int = 2_000) -> None:
        """Let time pass and everything arrive."""
        for _ in range(rounds):
            messages, self.messages = self.messages, []
            for message in messages:
                self.deliver(message)
            for node_id in range(self.size):
                self.act(node_id, lambda server: server.tick(1))

    @property
    def leader(self) -> RaftServer | None:
        leading = [
            server
            for node_id, server in self.servers.items()
            if node_id not in self.down and server.state is LeaderState
        ]
        return max(leading, key=lambda server: server.current_term, default=None)

    def write(self, item: str) -> int:
        """Have it acknowledged; return its index."""
        assert self.leader is not None
        leader = self.leader
        index = leader.propose(item)
        self.drain(leader.node_id)
        self.settle(20)
        assert self.ledger[index].item == item
        return index


def settled(size: int) -> World:
    world = World(size)
    world.settle(200)
    return world


# -- first starts


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_marked_nodes_begin_as_soon_as_they_are_a_majority(size: int) -> None:
    world = World(size, marked=True)
    late = set(range(size // 2 + 1, size))
    world.down = set(late)
    world.settle(400)
    assert world.leader is not None
    world.write("x")
    for node_id in sorted(late):
        world.start(node_id, Probation(marked=True))
    world.settle(400)
    assert all(server.probation is None for server in world.servers.values())
    assert all(server.commit_index == max(world.ledger) for server in world.servers.values())


@pytest.mark.parametrize(("size", "up"), [(3, 2), (4, 2), (5, 3)])
def test_nodes_without_a_mark_wait_for_a_majority_of_the_others(size: int, up: int) -> None:
    world = World(size)
    for node_id in range(size):
        world.lose(node_id)
    world.down = set(range(up, size))
    world.settle(400)
    assert world.leader is None
    for node_id in range(up, size):
        world.start(node_id, Probation())
    world.settle(400)
    assert world.leader is not None


# -- lost disks


@pytest.mark.parametrize("marked", [False, True])
def test_an_emptied_node_does_not_help_to_lose_what_it_had_acknowledged(marked: bool) -> None:
    world = settled(3)
    world.down = {2}
    leader = world.leader
    if leader is None or leader.node_id == 2:
        world.settle(400)
        leader = world.leader
    assert leader is not None
    other = 1 - leader.node_id
    world.write("acknowledged by two of three")
    world.down = {leader.node_id}
    world.lose(other, marked=marked)
    world.start(2, None)
    world.settle(1_000)
    assert world.leader is None, "unavailable, never a lost write"
    world.start(leader.node_id, None)
    world.settle(400)
    assert world.leader is not None
    assert world.servers[other].probation is None
    assert world.servers[other].commit_index == max(world.ledger)


def test_one_that_was_fed_in_part_is_still_on_probation_after_a_crash() -> None:
    world = settled(3)
    world.write("x")
    assert world.leader is not None
    lost = (world.leader.node_id + 1) % 3
    world.lose(lost)
    assert world.servers[lost].probation is not None
    world.start(lost, Probation(resumed=True))
    world.down = {world.leader.node_id}
    world.settle(600)
    assert world.leader is None


def test_it_neither_votes_nor_campaigns_and_says_that_it_does_not_count() -> None:
    world = World(3)
    world.lose(0)
    server = world.servers[0]
    world.messages.clear()
    server.step(RequestVote(1, 0, 1, 5, 1))
    server.step(RequestVote(2, 0, 2, 5, 1, pre_vote=True))
    server.step(TimeoutNow(1, 0, 1))
    server.tick(1_000)
    world.drain(0)
    votes = [message for message in world.messages if hasattr(message, "vote_granted")]
    assert [message.vote_granted for message in votes] == [False, False]
    assert server.state is FollowerState
    assert not [message for message in world.messages if isinstance(message, RequestVote)]


def test_a_leader_takes_back_what_it_believed_of_a_node_that_lost_its_disk() -> None:
    leader = make_leader()
    index = leader.propose("x")
    leader.step(AppendEntriesResponse(1, 0, leader.current_term, True, index))
    assert leader.commit_index <= index
    world = settled(3)
    assert world.leader is not None
    leader = world.leader
    lost, other = sorted({0, 1, 2} - {leader.node_id})
    world.lose(lost)
    world.down = {other}
    with pytest.raises(KeyError):
        world.write("held by one disk only")
    assert not leader.progress[lost].counts


def test_a_deposed_leader_does_not_end_it() -> None:
    """The node voted for another leader, on the disk that it lost; the old one does not know of that."""
    world = World(3)
    world.lose(0)
    server = world.servers[0]
    server.step(Standing(1, 0, 1, True))
    server.step(Standing(2, 0, 5, True))
    assert server.probation is not None

    server.step(AppendEntries(1, 0, 1, -1, -1, [LogEntry(1, None)], 0))
    assert server.probation is not None
    server.step(AppendEntries(2, 0, 5, 0, 1, [LogEntry(5, None)], 0))
    assert server.probation is not None, "committed, but not in this leader's term"
    server.step(AppendEntries(2, 0, 5, 1, 5, [], 1))
    assert server.probation is None


# -- any schedule


def play(size: int, seed: int, steps: int = 60, *, founded_with: EntryId = NO_SEED) -> World:
    """Let nodes go down and come back, and disks be lost, between writes to whoever leads."""
    world = World(size, seed, marked=founded_with is not NO_SEED, founded_with=founded_with)
    draw = world.random
    world.settle(100)
    for _ in range(steps):
        happens = draw.random()
        node_id = draw.randrange(size)
        if happens < 0.35:
            leader = world.leader
            if leader is not None:
                with contextlib.suppress(NotLeader, ProposalRefused):
                    world.act(leader.node_id, lambda server: server.propose(f"{draw.random()}"))
        elif happens < 0.50:
            world.down.add(node_id)
        elif happens < 0.62 and world.down:
            world.down.discard(draw.choice(sorted(world.down)))
        elif happens < 0.72:
            pairs = [frozenset((a, b)) for a in range(size) for b in range(a)]
            world.cut = set(draw.sample(pairs, draw.randrange(len(pairs)))) if draw.random() < 0.7 else set()
        elif happens < 0.80 and world.down:
            back = draw.choice(sorted(world.down))
            resumed = world.servers[back].probation is not None
            world.start(back, Probation(resumed=True, seed=founded_with) if resumed else None)
        elif happens < 0.92:
            lost = {each for each, server in world.servers.items() if server.probation is not None} | {node_id}
            if len(lost) <= (size - 1) // 2 + 1:
                world.lose(node_id)
        if draw.random() < 0.2:
            draw.shuffle(world.messages)
            del world.messages[: draw.randrange(4)]
        world.settle(draw.choice([1, 2, 5, 5, 60]))
    return world


@pytest.mark.parametrize("seed", range(120))
def test_whatever_was_acknowledged_stays_whatever_disks_are_lost(seed: int) -> None:
    world = play(3 if seed % 2 else 5, seed)
    if not any(server.probation for server in world.servers.values()):
        world.cut = set()
        for node_id in sorted(world.down):
            world.start(node_id, None)
        world.settle(600)
        assert world.leader is not None


def test_founders_that_begin_with_another_cluster_s_state_find_each_other_empty() -> None:
    world = World(3, marked=True, founded_with=EntryId(7, 40))
    world.down = {2}
    world.settle(200)
    assert world.leader is not None, "two of three, as with any first start"
    assert world.write("x") > 40
    world.down = set()
    world.settle(200)
    assert not any(server.probation for server in world.servers.values())


def test_a_founder_whose_folder_and_seed_were_put_back_from_a_copy_is_no_first_start() -> None:
    world = World(3, marked=True, founded_with=EntryId(7, 40))
    world.settle(200)
    assert world.leader is not None
    leader = world.leader.node_id
    lost, lagging = (leader + 1) % 3, (leader + 2) % 3
    world.down = {lagging}
    world.write("x")
    world.lose(lost, marked=True)
    world.down = {leader}  # only it has the write now
    world.settle(600)
    assert world.leader is None, "one that has begun, and one that lost what it acknowledged"
    assert world.servers[lost].probation is not None


@pytest.mark.parametrize("seed", range(40))
def test_whatever_was_acknowledged_by_a_cluster_that_began_with_a_backup_stays(seed: int) -> None:
    play(3 if seed % 2 else 5, seed, founded_with=EntryId(3, 9))


def _votes_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = RaftServer.handle_request_vote

    def forgetful(self: RaftServer, message: RequestVote) -> None:
        known, self.probation = self.probation, None
        handle(self, message)
        self.probation = known

    monkeypatch.setattr(RaftServer, "handle_request_vote", forgetful)


def _counts_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    hear = RaftServer.hear_follower
    monkeypatch.setattr(RaftServer, "hear_follower", lambda self, message: hear(self, message._replace(counts=True)))


def _a_deposed_leader_feeds_it() -> None:
    """Node 2 helped to depose node 0, and has forgotten it with its disk."""
    world = World(3)
    for server in world.servers.values():
        server.election_timeout = 1_000
    world.act(0, lambda server: server.campaign(pre_vote=False))
    world.settle(2)
    world.cut = {frozenset((0, 1)), frozenset((0, 2))}
    world.act(1, lambda server: server.campaign(pre_vote=False))
    world.settle(4)
    assert [world.servers[each].state for each in (0, 1)] == [LeaderState, LeaderState]
    world.act(1, lambda server: server.propose("acknowledged"))
    world.settle(2)
    world.lose(2)
    world.cut = {frozenset((1, 0)), frozenset((1, 2))}
    world.act(0, lambda server: server.propose("never to be"))
    world.settle(8)


def test_a_deposed_leader_commits_nothing_with_its_help() -> None:
    _a_deposed_leader_feeds_it()


def test_that_story_finds_a_leader_that_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _counts_anyway(monkeypatch)
    with pytest.raises(AssertionError, match="acknowledged, and is another"):
        _a_deposed_leader_feeds_it()


def _ends_at_any_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RaftServer, "check_probation", lambda self, _: self.end_probation())


@pytest.mark.parametrize("plant", [_votes_anyway, _ends_at_any_commit])
def test_the_schedules_find_what_is_planted(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for seed in range(300):
        try:
            play(3 if seed % 2 else 5, seed)
        except AssertionError:
            return
    pytest.fail("300 schedules did not find it")
