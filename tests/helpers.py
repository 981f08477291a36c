"""An in-memory cluster of core servers, with verbs, for tests that read like stories.

    cluster = Cluster(3)
    cluster.elect(0)
    cluster.propose(0, b"x")
    cluster.settle()

Nothing happens by itself: messages lie in `cluster.messages` until they are delivered, time passes when
`tick` says so. Each node has a disk that survives `crash`, and a machine that is the list of items applied.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from actorraft.raft import (
    NO_ENTRY,
    AppendEntries,
    AppendEntriesResponse,
    Configuration,
    EntryId,
    HardState,
    InstallSnapshot,
    LeaderState,
    LogEntry,
    Message,
    RaftConfig,
    RaftLog,
    RaftServer,
    ReadState,
    Ready,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from actorraft.raft.ready import NOT_URGENT


def lowest(low: int, high: int) -> int:
    """Draw without chance: the shortest election timeout, token numbers from 0."""
    return low


def staggered(node_id: int) -> Callable[[int, int], int]:
    """Draw without chance, for each node another number: the lowest id times out first."""
    return lambda low, high: min(low + 3 * node_id, high - 1)


def voters(*node_ids: int) -> Configuration:
    """A configuration of voters alone."""
    return Configuration(voters=frozenset(node_ids), next_node_id=max(node_ids, default=-1) + 1)


def log_of(*terms: int, first_index: int = 0, previous_term: int = -1) -> RaftLog:
    """A log whose entries have these terms, and items that name them."""
    return RaftLog(entries_of(*terms, first=first_index), first_index=first_index, previous_term=previous_term)


def entries_of(*terms: int, first: int = 0) -> list[LogEntry]:
    """Entries of these terms, whose items name index and term."""
    return [LogEntry(term, b"%d@%d" % (index, term)) for index, term in enumerate(terms, first)]


def make_server(
    node_id: int = 0,
    size: int = 3,
    *,
    term: int = 0,
    voted_for: int | None = None,
    log: RaftLog | None = None,
    configuration: Configuration | None = None,
    config: RaftConfig | None = None,
    **options: Any,
) -> RaftServer:
    """One server among `size` voters, with the shortest election timeout."""
    return RaftServer(
        node_id,
        configuration=configuration if configuration is not None else voters(*range(size)),
        config=config,
        draw=options.pop("draw", lowest),
        log=log,
        hard_state=HardState(term, voted_for),
        **options,
    )


def take(server: RaftServer) -> Ready:
    """Take the next Ready and say that it is durable."""
    ready = server.ready()
    server.advance(ready)
    return ready


def drain_committed(server: RaftServer) -> list[LogEntry]:
    """Do all that is ready, durably, and return the committed entries."""
    committed: list[LogEntry] = []
    while server.has_ready():
        ready = server.ready()
        server.advance(ready)
        committed += ready.committed
        if ready.committed:
            server.applied(ready.committed_from + len(ready.committed) - 1)
    return committed


def expect_ready(server: RaftServer, **expected: Any) -> Ready:
    """Take the next Ready and compare it, whole: what is not named must be empty."""
    ready = take(server)
    blank = Ready([], None, -1, [], (), None, [], ready.committed_from, [], [], False)
    assert blank._replace(**expected) == ready
    return ready


def expect_quiet(server: RaftServer) -> None:
    """Expect that there is nothing to do."""
    assert not server.has_ready(), f"ready: {server.ready()}"


def drain(server: RaftServer) -> list[Message]:
    """Do all that is ready, durably, and return the messages in the order in which they leave."""
    messages: list[Message] = []
    while server.has_ready():
        ready = take(server)
        messages += ready.messages
        messages += ready.messages_after_persist
        if ready.committed:
            server.applied(ready.committed_from + len(ready.committed) - 1)
    return messages


def make_candidate(node_id: int = 0, size: int = 3, **options: Any) -> RaftServer:
    """A server that has just asked for votes in the term after `term`."""
    server = make_server(node_id, size, **options)
    server.campaign(pre_vote=False)
    drain(server)
    return server


def make_leader(node_id: int = 0, size: int = 3, **options: Any) -> RaftServer:
    """A server that was just elected by everybody in the term after `term`; its first messages are drained."""
    server = make_candidate(node_id, size, **options)
    for peer_id in sorted(server.voters - {node_id}):
        if server.state is not LeaderState:
            server.step(RequestVoteResponse(peer_id, node_id, server.current_term, True))
    assert server.state is LeaderState
    drain(server)
    return server


def acknowledge(
    server: RaftServer, *peer_ids: int, match_index: int | None = None, in_round: int | None = None
) -> None:
    """Let peers acknowledge the leader's log up to `match_index` (all of it by default), in its newest round."""
    for peer_id in peer_ids:
        match = server.log.last_index if match_index is None else match_index
        answered = server.reads.round if in_round is None else in_round
        server.step(AppendEntriesResponse(peer_id, server.node_id, server.current_term, True, match, answered))


def follower_of(leader_id: int, term: int, **options: Any) -> RaftServer:
    """A follower that has just heard its leader."""
    server = make_server(0, term=term, **options)
    last = server.log.last
    server.step(AppendEntries(leader_id, 0, term, last.index, last.term, [], -1))
    drain(server)
    return server


def settled_leader(size: int = 3, learners: frozenset[int] = frozenset(), **options: Any) -> RaftServer:
    """A leader whose no-op is stored everywhere, committed, and told."""
    members = frozenset(range(size))
    configuration = Configuration(members, learners=learners, next_node_id=size + len(learners))
    leader = make_leader(configuration=configuration, **options)
    acknowledge(leader, *leader.progress)
    drain(leader)
    acknowledge(leader, *leader.progress)
    drain(leader)
    return leader


def catch_up(leader: RaftServer, *node_ids: int) -> None:
    """Let learners acknowledge everything until the change that waits for them is entered."""
    drain(leader)
    acknowledge(leader, *[peer_id for peer_id in leader.progress if peer_id in leader.voters])
    drain(leader)
    acknowledge(leader, *node_ids)


def committed_follower(length: int) -> RaftServer:
    """A follower with so many entries of term 1, all committed and applied."""
    server = make_server(term=1)
    server.step(AppendEntries(1, 0, 1, -1, -1, entries_of(*[1] * length), length - 1))
    drain(server)
    return server


def leader_with_snapshot() -> RaftServer:
    """A leader of term 2 whose log begins behind a snapshot at index 3."""
    return make_leader(term=1, log=RaftLog(first_index=4, previous_term=1), snapshot_id=EntryId(1, 3))


def appends_to(messages: Iterable[Message], dest: int) -> list[AppendEntries]:
    """The AppendEntries among `messages` that go to `dest`."""
    return [message for message in messages if isinstance(message, AppendEntries) and message.dest == dest]


def vote_requests(messages: Iterable[Message]) -> list[RequestVote]:
    """The vote requests among `messages`."""
    return [message for message in messages if isinstance(message, RequestVote)]


def timeout_nows(messages: Iterable[Message]) -> list[TimeoutNow]:
    """The TimeoutNow among `messages`."""
    return [message for message in messages if isinstance(message, TimeoutNow)]


# -- a whole cluster


@dataclass
class Disk:
    """What survives a crash of one node."""

    hard_state: HardState = field(default_factory=HardState)
    log: RaftLog = field(default_factory=RaftLog)
    snapshot_id: EntryId = NO_ENTRY
    configuration: Configuration = field(default_factory=Configuration)
    machine: list[Any] = field(default_factory=list)  # the snapshot's content

    def persist(self, ready: Ready) -> None:
        """Write what `ready` asks for, as one durable write."""
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        if ready.entries_from >= 0:
            assert self.log.first_index <= ready.entries_from <= len(self.log), "the write would leave a hole"
            kept = self.log[self.log.first_index : ready.entries_from]
            self.log = RaftLog(
                [*kept, *ready.entries], first_index=self.log.first_index, previous_term=self.log.previous_term
            )


class Cluster:
    """Core servers, their disks and machines, and the messages between them."""

    def __init__(
        self,
        size: int = 3,
        *,
        config: RaftConfig | None = None,
        configuration: Configuration | None = None,
        seed: int | None = None,
        noop: bool = True,
        server_type: type[RaftServer] = RaftServer,
    ) -> None:
        self.config = RaftConfig() if config is None else config
        self.configuration = voters(*range(size)) if configuration is None else configuration
        self.draw = None if seed is None else random.Random(seed).randrange
        self.noop = noop
        self.server_type = server_type
        self.servers: dict[int, RaftServer] = {}
        self.disks: dict[int, Disk] = {}
        self.machines: dict[int, list[Any]] = {}
        self.receiving: dict[int, list[Any]] = {}  # chunks of a snapshot that is coming in
        self.reads: dict[int, list[ReadState]] = {}
        self.urgent: dict[int, int] = {}  # node -> after how many milliseconds it wants to be called
        self.messages: list[Message] = []
        self.dropping: list[Callable[[Message], bool]] = []
        self.chunk_items = 1_000_000  # items of a machine in one snapshot chunk
        for node_id in range(size):
            self.add(node_id)

    # -- nodes

    def add(self, node_id: int, configuration: Configuration | None = None) -> RaftServer:
        """Start a new node with an empty disk."""
        self.disks[node_id] = Disk(configuration=self.configuration if configuration is None else configuration)
        return self.restart(node_id)

    def crash(self, node_id: int) -> None:
        """Lose everything of a node but its disk."""
        del self.servers[node_id]

    def restart(self, node_id: int) -> RaftServer:
        """Start a node from its disk."""
        disk = self.disks[node_id]
        log = RaftLog(disk.log, first_index=disk.log.first_index, previous_term=disk.log.previous_term)
        server = self.server_type(
            node_id,
            configuration=disk.configuration,
            config=self.config,
            draw=staggered(node_id) if self.draw is None else self.draw,
            log=log,
            hard_state=disk.hard_state,
            snapshot_id=disk.snapshot_id,
            noop=self.noop,
        )
        self.servers[node_id] = server
        self.machines[node_id] = list(disk.machine)
        self.receiving[node_id] = []
        self.reads[node_id] = []
        self.urgent.pop(node_id, None)
        return server

    def __getitem__(self, node_id: int) -> RaftServer:
        return self.servers[node_id]

    # -- effects

    def work(self, node_id: int, *, crash_at: str = "") -> None:
        """Carry out what one server asks for, in the driver's order; `crash_at` "write" or "send" crashes it there."""
        server = self.servers[node_id]
        while server.has_ready():
            ready = server.ready()
            self.send(node_id, ready.messages)
            if crash_at == "write":
                self.crash(node_id)
                return
            self.take_snapshot_in(node_id, ready)
            self.disks[node_id].persist(ready)
            server.advance(ready)
            if crash_at == "send":
                self.crash(node_id)
                return
            self.send(node_id, ready.messages_after_persist)
            self.apply(node_id, ready)
            self.reads[node_id] += ready.reads
            if ready.urgent_delay_ms == NOT_URGENT:
                self.urgent.pop(node_id, None)
            elif ready.urgent_delay_ms is not None:
                self.urgent[node_id] = ready.urgent_delay_ms

    def send(self, node_id: int, messages: Iterable[Message]) -> None:
        """Put messages on the network; a snapshot chunk gets its content here."""
        for message in messages:
            if isinstance(message, InstallSnapshot):
                disk = self.disks[node_id]
                if disk.snapshot_id != (message.snapshot_term, message.snapshot_index):
                    continue
                chunk = disk.machine[message.offset : message.offset + self.chunk_items]
                done = message.offset + len(chunk) >= len(disk.machine)
                message = message._replace(data=chunk, done=done)  # type: ignore[arg-type]  # items stand for bytes
            self.messages.append(message)

    def take_snapshot_in(self, node_id: int, ready: Ready) -> None:
        """Write received chunks aside and, with the last one, put the snapshot in place."""
        for chunk in ready.snapshot_chunks:
            if chunk.offset == 0:
                self.receiving[node_id] = []
            assert len(self.receiving[node_id]) == chunk.offset, "a hole in the snapshot"
            self.receiving[node_id] += chunk.data
        if ready.install is not None:
            disk = self.disks[node_id]
            disk.snapshot_id, disk.machine = ready.install, self.receiving[node_id]
            disk.configuration = ready.snapshot_chunks[-1].configuration
            disk.log.reset(ready.install)
            self.machines[node_id] = list(disk.machine)
            self.servers[node_id].applied(ready.install.index)

    def apply(self, node_id: int, ready: Ready) -> None:
        """Apply committed entries."""
        if ready.committed:
            assert len(self.machines[node_id]) == ready.committed_from, "entries are applied in order, once"
            self.machines[node_id] += ready.committed
            self.servers[node_id].applied(len(self.machines[node_id]) - 1)

    def snapshot(self, node_id: int, trailing: int = 0) -> None:
        """Take a snapshot of a node's machine and cut its log."""
        server, disk = self.servers[node_id], self.disks[node_id]
        index = server.last_applied
        if index < 0 or index <= server.snapshot_id.index:
            return
        snapshot_id = EntryId(server.log.term_at(index), index)
        disk.snapshot_id, disk.machine = snapshot_id, list(self.machines[node_id])
        disk.configuration = server.configuration_at(index)
        first = server.snapshot_taken(snapshot_id, disk.configuration, trailing)
        disk.log.compact(first)

    # -- the network

    def drop(self, matches: Callable[[Message], bool]) -> None:
        """Lose messages that match, now and until `heal`."""
        self.dropping.append(matches)

    def isolate(self, *node_ids: int) -> None:
        """Cut all links between these nodes and the others."""
        self.drop(lambda message: (message.source in node_ids) != (message.dest in node_ids))

    def heal(self) -> None:
        """Mend everything; what was lost stays lost."""
        self.dropping.clear()

    def deliver(self, messages: Iterable[Message] | None = None) -> None:
        """Deliver messages (all that are under way by default), then let everybody work."""
        arriving = list(self.messages if messages is None else messages)
        for message in arriving:
            if message in self.messages:
                self.messages.remove(message)
            lost = any(matches(message) for matches in self.dropping)
            if not lost and message.dest in self.servers:
                self.servers[message.dest].step(message)
        for node_id in list(self.servers):
            self.work(node_id)

    def settle(self, rounds_max: int = 500) -> None:
        """Deliver until nothing is under way; no time passes."""
        for node_id in list(self.servers):
            self.work(node_id)
        for _ in range(rounds_max):
            if not self.messages:
                return
            self.deliver()
        raise AssertionError(f"still not quiet: {self.messages[:5]}")

    # -- stories

    def tick(self, ticks: int = 1) -> None:
        """Let time pass everywhere, one tick at a time, delivering everything after each."""
        for _ in range(ticks):
            for server in list(self.servers.values()):
                server.tick()
            self.settle()

    def elect(self, node_id: int) -> RaftServer:
        """Make a node the leader by an election."""
        self.servers[node_id].campaign(pre_vote=False)
        self.settle()
        assert self.servers[node_id].state is LeaderState, f"{self.servers[node_id]} was not elected"
        return self.servers[node_id]

    def propose(self, node_id: int, *items: Any) -> int:
        """Propose items at a leader; return the last one's index."""
        return [self.servers[node_id].propose(item) for item in items][-1]

    def leaders(self) -> list[int]:
        """Everyone who takes itself for a leader."""
        return [node_id for node_id, server in self.servers.items() if server.state is LeaderState]

    def expect_leader(self) -> RaftServer:
        """Return the one leader that everybody else follows."""
        assert len(self.leaders()) == 1, f"leaders: {self.leaders()}"
        leader = self.servers[self.leaders()[0]]
        others = {
            server.leader_id for server in self.servers.values() if server.node_id in leader.configuration.members
        }
        assert others == {leader.node_id}, f"followed: {others}, leads: {leader.node_id}"
        return leader
