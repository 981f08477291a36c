"""Handing leadership over on purpose (D§3.10)."""

from __future__ import annotations

import pytest

from actorraft.raft import FollowerState, LeaderState, NotLeader, ProposalRefused, TimeoutNow
from tests.helpers import Cluster, acknowledge, drain, follower_of, settled_leader, timeout_nows


def test_a_transfer_takes_one_exchange_and_no_timeout() -> None:
    cluster = Cluster(5)
    cluster.elect(0)
    cluster.propose(0, b"x")

    cluster[0].transfer_leadership(3)
    cluster.settle()

    leader = cluster.expect_leader()
    assert (leader.node_id, leader.current_term, leader.commit_index) == (3, 2, 2)
    assert cluster[0].state is FollowerState


def test_without_a_target_the_voter_that_has_most_is_chosen() -> None:
    leader = settled_leader(size=4, learners=frozenset({4}))
    leader.propose(b"x")
    drain(leader)
    acknowledge(leader, 4)
    acknowledge(leader, 2)

    leader.transfer_leadership()

    assert leader.transfer_target == 2
    assert timeout_nows(drain(leader)) == [TimeoutNow(0, 2, 1)]


@pytest.mark.parametrize("target", [0, 3, 9])
def test_leadership_goes_only_to_another_voter(target: int) -> None:
    leader = settled_leader(size=3, learners=frozenset({3}))

    with pytest.raises(ProposalRefused, match="another voter"):
        leader.transfer_leadership(target)

    assert leader.transfer_target is None


def test_a_leader_alone_has_nobody_to_hand_over_to() -> None:
    with pytest.raises(ProposalRefused):
        settled_leader(size=1).transfer_leadership()


def test_only_a_leader_hands_over() -> None:
    with pytest.raises(NotLeader):
        follower_of(2, 1).transfer_leadership(0)


def test_asking_twice_is_once_and_another_target_is_refused() -> None:
    leader = settled_leader(size=3)
    leader.transfer_leadership(1)
    leader.transfer_leadership(1)
    leader.transfer_leadership()

    with pytest.raises(ProposalRefused, match="node 1"):
        leader.transfer_leadership(2)

    assert len(timeout_nows(drain(leader))) == 1


def test_after_a_failed_transfer_the_leader_takes_commands_and_another_transfer() -> None:
    cluster = Cluster(3)
    cluster.elect(0)
    cluster.drop(lambda message: isinstance(message, TimeoutNow))
    cluster[0].transfer_leadership(1)
    cluster.settle()
    with pytest.raises(ProposalRefused, match="handed over"):
        cluster.propose(0, b"x")

    cluster.tick(cluster.config.election_timeout_ticks)
    cluster.propose(0, b"x")
    cluster.heal()
    cluster[0].transfer_leadership(2)
    cluster.settle()

    assert cluster.expect_leader().node_id == 2


def test_a_late_timeout_now_still_elects_and_loses_nothing() -> None:
    cluster = Cluster(3)
    cluster.elect(0)
    cluster[0].transfer_leadership(1)
    cluster.work(0)
    (late,) = timeout_nows(cluster.messages)
    cluster.messages.remove(late)
    cluster.tick(cluster.config.election_timeout_ticks)
    cluster.propose(0, b"x")
    cluster.settle()

    cluster.deliver([late])
    cluster.settle()

    assert cluster.expect_leader().node_id == 1
    assert cluster[1].log[1].item == b"x"


def test_a_timeout_now_of_an_older_term_is_stale() -> None:
    server = follower_of(1, 5)

    server.step(TimeoutNow(2, 0, 4))

    assert (server.state, server.current_term) == (FollowerState, 5)


def test_a_leader_ignores_a_timeout_now() -> None:
    leader = settled_leader()

    leader.step(TimeoutNow(1, 0, 1))

    assert (leader.state, leader.current_term) == (LeaderState, 1)


@pytest.mark.parametrize("lost_twice", [False, True], ids=["in replicate", "in probe"])
def test_a_target_whose_last_appends_were_lost_is_asked_at_once(lost_twice: bool) -> None:
    """No heartbeat is needed: no time passes here."""
    cluster = Cluster(3)
    cluster.elect(0)
    cluster.isolate(2)
    cluster.propose(0, b"x")
    cluster.settle()
    if lost_twice:
        cluster[0].progress[2].become_probe()
        cluster.propose(0, b"y")
        cluster.settle()
    cluster.heal()

    cluster[0].transfer_leadership(2)
    cluster.settle()

    assert cluster.expect_leader().node_id == 2
