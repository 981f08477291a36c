"""Where Raft systems went wrong before: traps 10 to 14. The first nine are in test_traps.py."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest

from actorraft.raft import (
    AddLearner,
    AddVoter,
    Configuration,
    EntryId,
    FollowerState,
    InstallSnapshot,
    InstallSnapshotResponse,
    LeaderState,
    LogEntry,
    ProposalRefused,
    RaftLog,
    RemoveNode,
    VoteResult,
    committed_index,
    vote_result,
)
from tests.helpers import (
    Cluster,
    acknowledge,
    drain,
    drain_committed,
    follower_of,
    log_of,
    make_server,
    settled_leader,
    take,
    vote_requests,
    voters,
)
from tests.raft.test_random_schedules import run_world

# -- 10: snapshots


def test_trap_10_a_snapshot_over_a_conflicting_entry_removes_it_and_all_after_it() -> None:
    """§7: the entry at its last index has another term."""
    server = make_server(term=3, log=log_of(1, 1, 1, 1, 1))

    server.step(InstallSnapshot(1, 0, 3, 2, 2, voters(0, 1, 2), 0, b"s", True))

    assert (server.log.first_index, len(server.log), server.log.previous_term) == (3, 3, 2)
    assert server.persisted_index == 2


def test_trap_10_an_older_snapshot_is_ignored() -> None:
    """§7: what is committed here already is not taken back."""
    server = follower_of(1, 2, log=RaftLog(first_index=8, previous_term=2), snapshot_id=EntryId(2, 7))

    server.step(InstallSnapshot(1, 0, 2, 5, 1, voters(0), 0, b"old", True))

    ready = take(server)
    assert (ready.install, ready.snapshot_chunks) == (None, [])
    assert ready.messages_after_persist == [InstallSnapshotResponse(0, 1, 2, 5, 3, True)]
    assert (server.commit_index, server.configuration) == (7, voters(0, 1, 2))


def test_trap_10_a_matching_longer_suffix_is_kept() -> None:
    """§7, step 6."""
    server = make_server(term=2, log=log_of(1, 1, 2, 2))

    server.step(InstallSnapshot(1, 0, 2, 2, 2, voters(0, 1, 2), 0, b"s", True))

    assert server.log == log_of(1, 1, 2, 2)
    assert take(server).install is None


def test_trap_10_membership_rides_in_the_snapshot() -> None:
    """§7: the latest configuration as of the last included index is part of it."""
    cluster = Cluster(3)
    cluster.elect(0)
    cluster[0].change_membership([AddLearner(3)])
    cluster.settle()
    cluster.snapshot(0)
    joined = cluster.add(3, Configuration())

    cluster.tick(2 * cluster.config.heartbeat_ticks)

    assert joined.configuration == cluster[0].configuration
    assert cluster.disks[3].configuration == cluster[0].configuration
    assert cluster.machines[3] == cluster.machines[0]


@pytest.mark.parametrize("crash_at", ["write", "send"])
@pytest.mark.parametrize("after_deliveries", range(12))
def test_trap_10_a_crash_at_every_step_of_a_snapshot_is_survived(crash_at: str, after_deliveries: int) -> None:
    """§7: chunks that arrived are forgotten or kept as a whole; the follower ends where the leader is."""
    cluster = Cluster(3)
    cluster.chunk_items = 2
    cluster.elect(0)
    cluster.drop(lambda message: message.dest == 2)
    cluster.propose(0, *[b"%d" % number for number in range(8)])
    cluster.settle()
    cluster.snapshot(0)
    cluster.heal()
    cluster[0].tick(cluster.config.heartbeat_ticks)
    for _ in range(after_deliveries):
        cluster.deliver()
    for message in list(cluster.messages):
        if message.dest == 2:
            cluster[2].step(message)
    if cluster[2].has_ready():
        cluster.work(2, crash_at=crash_at)
        cluster.messages.clear()
        cluster.restart(2)

    cluster.tick(4 * cluster.config.heartbeat_ticks)

    assert cluster.machines[2] == cluster.machines[0]
    assert cluster[2].commit_index == cluster[0].commit_index


def test_trap_10_a_crash_between_snapshot_and_log_leaves_no_contradiction() -> None:
    """§7: the snapshot is on disk, the log that it contradicts still is, too."""
    for log in (log_of(1, 1, 1, 1, 1), log_of(1), RaftLog()):
        server = make_server(term=3, log=log, snapshot_id=EntryId(2, 2))

        assert (server.log.first_index, len(server.log), server.log.previous_term) == (3, 3, 2)


# -- 11: quorums


@pytest.mark.parametrize("size", range(8))
def test_trap_11_quorum_arithmetic_equals_brute_force(size: int) -> None:
    """Every vote of every subset of 0 to 7 voters."""
    ids = frozenset(range(size))
    for granted in subsets(range(size)):
        votes = {voter: voter in granted for voter in ids}
        won = 2 * len(granted) > size or not size
        assert vote_result(ids, votes) is (VoteResult.WON if won else VoteResult.LOST)
        index = committed_index(dict.fromkeys(granted, 5), ids)
        assert index == (5 if won and size else -1)


@pytest.mark.parametrize("shared", range(8))
def test_trap_11_joint_quorum_arithmetic_equals_brute_force(shared: int) -> None:
    """Two sets of 0 to 7 voters that share so many: every subset of both. Only numbers matter, so ids are in order."""
    for only_old, only_new in itertools.product(range(8 - shared), repeat=2):
        everyone = range(only_old + shared + only_new)
        old, new = frozenset(everyone[: only_old + shared]), frozenset(everyone[only_old:])
        for granted in subsets(everyone):
            won = all(2 * len(granted & side) > len(side) for side in (old, new) if side)
            votes = {voter: voter in granted for voter in everyone}
            assert vote_result(new, votes, old) is (VoteResult.WON if won else VoteResult.LOST)
            index = committed_index(dict.fromkeys(granted, 5), new, old)
            assert index == (5 if won and everyone else -1)


# -- 12: replicas


@pytest.mark.parametrize("seed", range(4))
def test_trap_12_replicas_with_skewed_clocks_restarts_and_snapshots_end_equal(seed: int) -> None:
    """The core's part: the same entries, in the same order, once, on every machine."""
    world = run_world(700 + seed)

    leader = max(world.servers.values(), key=lambda server: (server.state is LeaderState, server.current_term))
    machines = {tuple(world.machines[node_id]) for node_id in leader.configuration.members}
    assert len(machines) == 1


# -- 13: a wiped disk


def test_trap_13_a_node_without_its_disk_is_refused_under_its_old_id() -> None:
    """The configuration knows the storage id of each member; ids of removed nodes are not given again."""
    leader = settled_leader(size=1)
    leader.change_membership([AddLearner(1, "disk-a")])
    drain(leader)

    with pytest.raises(ProposalRefused, match="storage id"):
        leader.change_membership([AddVoter(1, "disk-b")])
    leader.change_membership([RemoveNode(1)])
    drain(leader)
    with pytest.raises(ProposalRefused, match="used before"):
        leader.change_membership([AddLearner(1, "disk-b")])
    assert (leader.configuration.next_node_id, leader.configuration.storage_ids) == (2, ())


# -- 14: sizes


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_trap_14_even_sized_clusters_a_cluster_of_one_and_of_two_elect_and_commit(size: int) -> None:
    """§5.2: majorities of 1, 2, 3 and 4."""
    cluster = Cluster(size)

    cluster.tick(cluster.config.election_timeout_ticks)
    leader = cluster.expect_leader()
    cluster.propose(leader.node_id, b"x")
    cluster.settle()

    assert [server.commit_index for server in cluster.servers.values()] == [1] * size
    cluster.drop(lambda message: True)
    cluster.propose(leader.node_id, b"y")
    cluster.settle()
    assert leader.commit_index == (2 if size == 1 else 1)


def test_trap_14_a_cluster_of_one_commits_in_one_step() -> None:
    """One campaign, one write, and everything is committed."""
    server = make_server(size=1)

    server.campaign()
    server.propose(b"x")
    take(server)

    assert (server.state, server.commit_index) == (LeaderState, 1)
    assert drain_committed(server) == [LogEntry(1, None), LogEntry(1, b"x")]


def test_trap_14_a_leader_outside_its_own_configuration_does_not_count_itself() -> None:
    """§6: while it manages a cluster without itself, it is not included in majorities."""
    leader = settled_leader(size=3)
    leader.change_membership([RemoveNode(0)])
    drain(leader)

    acknowledge(leader, 1)

    assert (leader.state, leader.commit_index) == (LeaderState, 0)
    assert vote_requests(drain(leader)) == []
    acknowledge(leader, 2)
    assert leader.state is FollowerState


# -- helpers


def subsets(items: Iterable[int]) -> list[frozenset[int]]:
    every = list(items)
    return [frozenset(chosen) for size in range(len(every) + 1) for chosen in itertools.combinations(every, size)]
