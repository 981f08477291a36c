"""RaftSimulation: a cluster that does nothing by itself."""

from __future__ import annotations

from typing import Any

import pytest

from actorraft.raft import AppendEntries, LeaderState, LogEntry, RequestVote
from actorraft.raft.config import RaftConfig
from actorraft.raft.messages import HardState
from actorraft.raft.ready import FollowerState
from actorraft.simulation import InvariantViolation, RaftSimulation


def test_the_example_of_the_mission_page_runs_as_printed() -> None:
    sim = RaftSimulation(5)
    sim.nodes[0].become_leader()
    sim.nodes[0].client_append_entry("x=1")
    sim.step_all()

    assert all(n.server.log == sim.nodes[0].server.log for n in sim.nodes)
    assert list(sim.nodes[3].server.log) == [LogEntry(1, None), LogEntry(1, "x=1")]


def test_commit_indexes_are_equal_everywhere_when_it_is_quiet() -> None:
    sim = RaftSimulation(3, noop=False)
    sim.nodes[1].become_leader()
    future = sim.nodes[1].client_append_entry("a")
    sim.step_all()

    assert [node.server.commit_index for node in sim.nodes] == [0, 0, 0]
    assert future.result(0) == 0
    assert [list(node.server.log) for node in sim.nodes] == [[LogEntry(1, "a")]] * 3


def test_nothing_moves_without_a_step_and_no_time_passes_without_a_tick() -> None:
    sim = RaftSimulation(3)

    assert not sim.step()
    sim.tick(2 * RaftConfig().election_timeout_ticks)
    assert sim.messages
    assert all(isinstance(message, RequestVote) for message in sim.messages)
    assert not any(node.is_leader() for node in sim.nodes)


def test_time_and_steps_elect_a_leader_and_the_seed_decides_which() -> None:
    def elected(seed: int) -> int:
        sim = RaftSimulation(3, seed)
        while not any(node.is_leader() for node in sim.nodes):
            sim.tick()
            sim.step_all()
        sim.check_invariants()
        return next(i for i, node in enumerate(sim.nodes) if node.is_leader())

    assert [elected(7), elected(7)] == [elected(7)] * 2
    assert {elected(seed) for seed in range(20)} == {0, 1, 2}


def test_messages_can_be_held_back_and_released() -> None:
    sim = RaftSimulation(3, noop=False)
    sim.nodes[0].become_leader()
    sim.hold(lambda message: isinstance(message, AppendEntries) and message.dest == 2)
    sim.nodes[0].client_append_entry("a")
    sim.step_all()
    assert [len(node.server.log) for node in sim.nodes] == [1, 1, 0]
    assert sim.held

    sim.release()
    sim.step_all()
    assert [len(node.server.log) for node in sim.nodes] == [1, 1, 1]
    assert not sim.held


def test_messages_can_be_dropped_and_time_makes_up_for_it() -> None:
    sim = RaftSimulation(3, noop=False)
    sim.nodes[0].become_leader()
    sim.nodes[0].client_append_entry("a")
    assert sim.drop(lambda message: message.dest == 2) > 0
    sim.step_all()
    assert len(sim.nodes[2].server.log) == 0

    for _ in range(3):
        sim.tick(RaftConfig().heartbeat_ticks)
        sim.step_all()
    assert len(sim.nodes[2].server.log) == 1


def test_an_isolated_leader_commits_nothing_and_follows_after_the_heal() -> None:
    sim = RaftSimulation(5)
    sim.nodes[0].become_leader()
    sim.step_all()
    sim.isolate(0)
    sim.nodes[0].client_append_entry("lost")
    sim.step_all()
    sim.nodes[1].become_leader()
    sim.nodes[1].client_append_entry("kept")
    sim.step_all()
    assert sim.nodes[0].server.log[1].item == "lost"
    assert sim.nodes[0].server.commit_index == 0

    sim.heal()
    sim.tick(RaftConfig().heartbeat_ticks)
    sim.step_all()
    assert [list(node.server.log) for node in sim.nodes] == [list(sim.nodes[1].server.log)] * 5
    assert "lost" not in [entry.item for entry in sim.nodes[0].server.log]
    sim.check_invariants()


def test_a_node_that_crashed_comes_back_with_what_its_disk_holds() -> None:
    sim = RaftSimulation(3)
    sim.nodes[0].become_leader()
    sim.nodes[0].client_append_entry("a")
    sim.step_all()
    sim.crash(2)
    sim.nodes[0].client_append_entry("b")
    sim.step_all()
    assert [entry.item for entry in sim.nodes[2].server.log] == [None, "a"]

    sim.restart(2)
    assert sim.nodes[2].server.state is FollowerState
    assert [entry.item for entry in sim.nodes[2].server.log] == [None, "a"]
    for _ in range(3):
        sim.tick(RaftConfig().heartbeat_ticks)
        sim.step_all()
    assert [entry.item for entry in sim.nodes[2].server.log] == [None, "a", "b"]
    sim.check_invariants()


def test_become_leader_takes_a_term_above_every_nodes() -> None:
    sim = RaftSimulation(3)
    sim.set_disk(2, [], term=9)
    sim.nodes[0].become_leader()

    assert sim.nodes[0].server.state is LeaderState
    assert sim.nodes[0].server.current_term == 10


def test_two_leaders_of_one_term_are_reported() -> None:
    sim = RaftSimulation(3)
    sim.nodes[0].server.become_leader_now(1)
    sim.nodes[1].server.become_leader_now(1)

    with pytest.raises(InvariantViolation, match="election safety: two nodes led term 1"):
        sim.check_invariants()


def test_logs_that_agree_at_an_index_and_differ_before_it_are_reported() -> None:
    sim = RaftSimulation(3)
    sim.set_disk(0, [LogEntry(1, "a"), LogEntry(2, "b")], term=2)
    sim.set_disk(1, [LogEntry(1, "x"), LogEntry(2, "b")], term=2)

    with pytest.raises(InvariantViolation, match="log matching: nodes 0 and 1 agree at 1 and differ before it"):
        sim.check_invariants()


def test_different_entries_committed_at_one_index_are_reported() -> None:
    sim = RaftSimulation(3)
    for node_id, item in ((0, "a"), (1, "b")):
        sim.set_disk(node_id, [LogEntry(1 + node_id, item)], term=2)
        sim.nodes[node_id].server.commit_index = 0

    with pytest.raises(InvariantViolation, match="state-machine safety"):
        sim.check_invariants()


def test_a_leader_without_a_committed_entry_is_reported() -> None:
    sim = RaftSimulation(3, noop=False)
    sim.nodes[0].become_leader()
    sim.nodes[0].client_append_entry("a")
    sim.step_all()
    sim.check_invariants()
    sim.storages[2].persist(HardState(1), 0, [])
    sim.restart(2)
    sim.nodes[2].become_leader()

    with pytest.raises(InvariantViolation, match="leader completeness: node 2 leads term 2 without entry 0"):
        sim.check_invariants()


def test_a_simulation_has_at_least_one_node() -> None:
    with pytest.raises(ValueError, match="at least one node"):
        RaftSimulation(0)


def test_a_node_that_comes_back_with_an_older_log_is_named_and_caught_up_and_nobody_floods_the_net() -> None:
    sim = RaftSimulation(3)
    noticed: list[tuple[str, Any]] = []
    sim.nodes[0].observer.noticed = lambda what, value: noticed.append((what, value))  # type: ignore[method-assign]
    sim.nodes[0].become_leader()
    for number in range(5):
        sim.nodes[0].client_append_entry(f"x={number}")
    sim.step_all()
    sim.tick(sim.config.heartbeat_ticks)
    sim.step_all()

    sim.set_disk(2, list(sim.nodes[0].server.log[:2]), term=1)
    sim.tick(2 * sim.config.heartbeat_ticks)
    sim.step_all()

    assert sim.nodes[2].server.log == sim.nodes[0].server.log
    assert "node 2 came back without entries 2 to 5" in sim.nodes[2].status()["error"]
    assert [(what, node_id) for what, (node_id, _) in noticed] == [("lost log", 2)]
    assert [node.status()["error"] for node in sim.nodes[:2]] == [None, None]
    assert sim.nodes[0].is_leader()
