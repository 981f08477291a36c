"""The numbers that a node says of its work."""

from __future__ import annotations

from actorraft.node.metrics import Metrics
from actorraft.simulation import RaftSimulation


def test_writes_and_messages_are_counted_with_the_entries_in_them() -> None:
    sim = RaftSimulation(3)
    sim.nodes[0].become_leader()
    for item in ("x=1", "x=2", "x=3"):
        sim.nodes[0].client_append_entry(item)
    sim.step_all()
    leader, *followers = (node.metrics for node in sim.nodes)
    entries = len(sim.nodes[0].server.log)
    assert [entries] * 3 == [leader.entries_written, *(follower.entries_written for follower in followers)]
    assert 2 * entries == leader.entries_sent
    assert 0 < leader.appends_sent <= leader.entries_sent
    assert [(0, 0)] * 2 == [(follower.appends_sent, follower.entries_sent) for follower in followers]
    assert leader.as_dict() == sim.nodes[0].status()["metrics"]


def test_the_times_are_of_the_last_loss_of_a_leader_and_of_the_last_that_was_found() -> None:
    metrics = Metrics()
    metrics.leader_is(None, 1.0)  # it never knew one
    assert (-1.0, -1.0) == (metrics.leader_lost_s, metrics.leader_found_s)
    metrics.leader_is(2, 3.0)
    metrics.leader_is(2, 4.0)  # a new term, the same leader
    metrics.leader_is(None, 5.0)
    metrics.leader_is(0, 6.0)
    assert (5.0, 6.0) == (metrics.leader_lost_s, metrics.leader_found_s)
