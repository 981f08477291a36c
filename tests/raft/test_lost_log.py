"""A follower that comes back with less log than it had acknowledged: an older copy of its folder, or a store in memory."""

from __future__ import annotations

import pytest

from actorraft.raft import (
    NO_ENTRY,
    AppendEntries,
    AppendEntriesResponse,
    EntryId,
    LostLog,
    RaftConfig,
    RaftLog,
    Reminder,
    RequestVote,
    TimeoutNow,
)
from tests.helpers import Cluster, acknowledge, drain, log_of, make_server, settled_leader, take

HEARTBEAT_TICKS = RaftConfig().heartbeat_ticks


def a_cluster_with_a_lost_log(kept: int, *, told: bool, trailing: int | None = None) -> Cluster:
    """Node 0 leads; node 2 restarts with `kept` of ten entries, and its leader may hear of the broken connection."""
    cluster = Cluster(3)
    cluster.elect(0)
    cluster.propose(0, *[b"%d" % number for number in range(9)])
    cluster.settle()
    cluster.tick(HEARTBEAT_TICKS)
    cluster.crash(2)
    if told:
        cluster[0].peer_disconnected(2)
    if trailing is not None:
        cluster.snapshot(0, trailing)
    disk = cluster.disks[2]
    disk.log = RaftLog(disk.log[:kept])
    cluster.restart(2)
    if told:
        cluster[0].peer_connected(2)
    return cluster


def messages_in(cluster: Cluster, ticks: int) -> int:
    """Deliver everything for so long; return how many messages there were."""
    count = 0
    for _ in range(ticks):
        for server in cluster.servers.values():
            server.tick()
        for node_id in cluster.servers:
            cluster.work(node_id)
        while cluster.messages:
            count += len(cluster.messages)
            assert count < 1_000, f"a storm: {cluster.messages[:4]}"
            cluster.deliver()
    return count


@pytest.mark.parametrize("told", [True, False], ids=["connection seen to break", "connection kept"])
@pytest.mark.parametrize("kept", [0, 1, 5, 9])
@pytest.mark.parametrize("trailing", [None, 2, 0], ids=["log", "short log", "snapshot only"])
def test_it_is_caught_up_at_the_pace_of_heartbeats(kept: int, told: bool, trailing: int | None) -> None:
    cluster = a_cluster_with_a_lost_log(kept, told=told, trailing=trailing)

    assert messages_in(cluster, 3 * HEARTBEAT_TICKS) < 60

    leader = cluster.expect_leader()
    assert (leader.node_id, leader.current_term) == (0, 1)
    assert cluster[2].log.last == leader.log.last
    assert cluster.machines[2] == cluster.machines[0]
    assert leader.progress[2].match_index == leader.log.last_index
    assert (leader.progress[2].owed, cluster[2].owed) == (NO_ENTRY, NO_ENTRY)
    cluster.propose(0, b"more")
    cluster.crash(1)
    cluster.settle()
    assert leader.commit_index == 10


def test_leader_and_follower_say_what_was_lost() -> None:
    leader = settled_leader()
    leader.propose(b"x")
    drain(leader)
    acknowledge(leader, 1, 2)
    leader.tick(HEARTBEAT_TICKS)
    drain(leader)

    leader.step(AppendEntriesResponse(2, 0, 1, False, -1, leader.reads.round, -1, -1, rejected_index=1))

    ready = take(leader)
    assert list(ready.lost_logs) == [LostLog(2, acknowledged_index=1, last_index=-1)]
    reminder = Reminder(0, 2, 1, owed_index=1, owed_term=1)
    assert reminder in ready.messages
    follower = make_server(2, term=1)
    follower.step(reminder)
    follower.step(reminder)
    assert list(take(follower).lost_logs) == [LostLog(2, acknowledged_index=1, last_index=-1)]


def test_a_rejection_that_is_only_late_is_no_loss() -> None:
    """It left in a round before the acknowledgement came."""
    leader = settled_leader()
    asked_round = leader.reads.round
    leader.tick(HEARTBEAT_TICKS)
    drain(leader)
    acknowledge(leader, 2)

    leader.step(AppendEntriesResponse(2, 0, 1, False, -1, asked_round, -1, -1, rejected_index=0))

    assert list(leader.ready().lost_logs) == []
    assert leader.progress[2].match_index == 0


def test_what_was_lost_counts_for_no_commit_any_more() -> None:
    leader = settled_leader(size=5)
    leader.propose(b"x")
    drain(leader)
    acknowledge(leader, 1)
    leader.tick(HEARTBEAT_TICKS)
    drain(leader)
    leader.step(AppendEntriesResponse(1, 0, 1, False, -1, leader.reads.round, -1, -1, rejected_index=1))
    drain(leader)

    acknowledge(leader, 2)

    assert leader.commit_index == 0


def test_until_it_has_them_again_it_votes_for_nobody_who_lacks_them_and_does_not_campaign() -> None:
    cluster = a_cluster_with_a_lost_log(5, told=True)
    follower = make_server(2, term=1, log=log_of(1, 1, 1), config=RaftConfig(pre_vote=False, check_quorum=False))
    follower.step(Reminder(0, 2, 1, owed_index=9, owed_term=1))
    drain(follower)

    follower.tick(100)
    follower.step(TimeoutNow(0, 2, 1))
    assert drain(follower) == []
    for last_index, pre_vote in ((8, True), (8, False), (9, True)):
        follower.step(RequestVote(1, 2, 2, last_index, 1, pre_vote))
    assert [message.vote_granted for message in drain(follower)] == [False, False, True]  # type: ignore[union-attr]
    follower.step(RequestVote(1, 2, 3, 3, 2))
    assert [message.vote_granted for message in drain(follower)] == [True]  # type: ignore[union-attr]
    assert cluster[2].owed == NO_ENTRY


def test_the_leader_reminds_it_with_each_heartbeat() -> None:
    """It may have restarted once more meanwhile."""
    cluster = a_cluster_with_a_lost_log(5, told=True)
    cluster.drop(lambda message: isinstance(message, AppendEntries) and message.dest == 2 and bool(message.entries))
    cluster.tick(HEARTBEAT_TICKS)
    assert cluster[2].owed == EntryId(1, 9)

    cluster.crash(2)
    cluster.restart(2)
    cluster.tick(HEARTBEAT_TICKS)

    assert cluster[2].owed == EntryId(1, 9)
