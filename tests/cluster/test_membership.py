"""Nodes join and leave while commands flow; the cluster comes back with whom it had."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from actorraft import RaftConfig, ReplicatedStateMachine, UsageError, connect
from tests.cluster.helpers import Spawn, agree, eventually, follower_of
from tests.cluster.load import Load
from tests.cluster.machines import Ledger

pytestmark = pytest.mark.cluster


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def test_nodes_join_and_leave_under_load_the_leader_too(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    with Load(cluster, processes=0) as load:
        assert cluster.add_node() == 3
        assert cluster.add_node() == 4
        assert list(cluster.nodes) == [0, 1, 2, 3, 4]
        leader = cluster.wait_for_leader()
        pid = cluster.nodes[leader].pid
        cluster.remove_node(leader)
        assert leader not in cluster.nodes
        assert pid not in [node.pid for node in cluster.nodes.values()]
        before = load.done()
        eventually(lambda: load.done() > before, what="writes go on")
    assert load.audit() > 0
    assert len(cluster.status()) == 4
    eventually(lambda: sorted(row.state for row in cluster.status()) == [*["follower"] * 3, "leader"])
    agree(cluster)


def test_the_new_nodes_carry_the_cluster_when_the_old_ones_are_gone(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    ledger = cluster.proxy(timeout=60.0)
    ledger.append("k", 0)
    for turn in range(3):
        assert cluster.add_node() == 3 + turn
        cluster.remove_node(turn)
        assert ledger.append("k", turn + 1) == turn + 2
    assert list(cluster.nodes) == [3, 4, 5]
    with cluster.client() as late:
        assert late.proxy().get("k") == [0, 1, 2, 3]
    agree(cluster)


def test_a_dead_node_is_removed_and_its_id_is_never_given_again(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    dead = follower_of(cluster)
    cluster.nodes[dead].kill()
    cluster.remove_node(dead)
    assert dead not in cluster.nodes
    assert dead not in cluster.endpoints
    assert cluster.add_node() == 3
    assert cluster.proxy(timeout=60.0).append("k", 1) == 1
    agree(cluster)


def test_one_node_becomes_three_and_one_again(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=1)
    ledger = cluster.proxy(timeout=60.0)
    ledger.append("k", 0)
    assert [cluster.add_node(), cluster.add_node()] == [1, 2]
    agree(cluster)
    cluster.remove_node(0)
    cluster.remove_node(1)
    assert ledger.append("k", 1) == 2
    with pytest.raises(UsageError, match="last node"):
        cluster.remove_node(2)
    with pytest.raises(UsageError, match="no node 9"):
        cluster.remove_node(9)


def test_a_changed_cluster_comes_back_from_its_data_dir_with_whom_it_had(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with ReplicatedStateMachine(Ledger).spawn(3, data_dir=data) as cluster:
        cluster.proxy().append("k", 0)
        cluster.add_node()
        cluster.remove_node(0)
        cluster.proxy(timeout=60.0).append("k", 1)
    with ReplicatedStateMachine(Ledger).spawn(data_dir=data) as cluster:
        assert list(cluster.nodes) == [1, 2, 3]
        assert cluster.proxy(timeout=60.0).get("k") == [0, 1]
        assert cluster.add_node() == 4
        agree(cluster)
    with (
        pytest.raises(UsageError, match="4 nodes, not 3"),
        ReplicatedStateMachine(Ledger).spawn(3, data_dir=data),
    ):
        pass


def test_a_node_that_joins_far_behind_is_given_a_snapshot(raft_cluster: Spawn) -> None:
    config = RaftConfig(snapshot_after_entries=50, trailing_entries=5, snapshot_chunk_bytes=2_000)
    cluster = raft_cluster(Ledger, nodes=1, config=config)
    ledger = cluster.proxy(timeout=60.0)
    for number in range(200):
        ledger.append("k", "x" * 200 + str(number))
    joined = cluster.add_node()
    agree(cluster)
    cluster.nodes[joined].restart()
    assert cluster.proxy(to=joined, timeout=60.0).count("k") == 200
    agree(cluster)


def test_a_restart_in_the_middle_of_a_change_ends_with_everybody_agreed(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    with Load(cluster, processes=0) as load:
        victim = follower_of(cluster)
        cluster.nodes[victim].kill()
        joined = cluster.add_node()
        cluster.nodes[victim].restart()
        cluster.nodes[joined].restart()
        cluster.nodes[cluster.wait_for_leader()].restart()
        before = load.done()
        eventually(lambda: load.done() > before, what="writes go on")
    assert load.audit() > 0
    agree(cluster)


def test_a_node_is_added_though_the_leader_is_killed_while_it_catches_up(
    pool: ThreadPoolExecutor, raft_cluster: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    set_endpoints = cluster._set_endpoints

    def pause_it_first() -> None:  # so that it stays a learner
        cluster.nodes[max(cluster.nodes)].pause()
        set_endpoints()

    monkeypatch.setattr(cluster, "_set_endpoints", pause_it_first)
    with Load(cluster, processes=0) as load:
        for joined in (3, 4):
            adding = pool.submit(cluster.add_node)
            eventually(lambda joined=joined: joined in cluster._ask_leader("status", {}, 60.0)["learners"])  # type: ignore[misc]
            leader = cluster.wait_for_leader()
            os.kill(cluster.nodes[leader].pid or 0, signal.SIGKILL)
            eventually(lambda leader=leader: cluster.leader() not in (None, leader), what="another leads")  # type: ignore[misc]
            cluster.nodes[joined].resume()
            assert adding.result(60.0) == joined
            eventually(lambda: all(node.alive for node in cluster.nodes.values()), what="all are up")
    assert load.audit() > 0
    assert sorted(cluster._ask_leader("status", {}, 60.0)["voters"]) == [0, 1, 2, 3, 4]
    agree(cluster)


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_client_follows_the_lead_to_a_node_that_joined_after_it_came(raft_cluster: Spawn, transport: str) -> None:
    cluster = raft_cluster(Ledger, nodes=1, transport=transport)
    with cluster.client() as early, connect(cluster.endpoints, Ledger) as elsewhere:
        early.proxy().append("k", 0)
        joined = cluster.add_node()
        cluster.transfer_leadership(joined)
        assert early.proxy(timeout=60.0).append("k", 1) == 2
        assert elsewhere.proxy(timeout=60.0).append("k", 2) == 3
        cluster.remove_node(0)
        assert early.proxy(timeout=60.0).append("k", 3) == 4
        assert early.endpoints[joined] == cluster.endpoints[joined]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nodes_join_and_leave_while_leaders_are_killed_at_any_moment(
    pool: ThreadPoolExecutor, raft_cluster: Spawn, rng: random.Random
) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    with Load(cluster, processes=0) as load:
        for turn in range(8):
            joins = turn % 2 == 0
            change = pool.submit(cluster.add_node if joins else partial(cluster.remove_node, max(cluster.nodes)))
            time.sleep(rng.random() * 0.6)
            leader = cluster.wait_for_leader()
            os.kill(cluster.nodes[leader].pid or 0, signal.SIGKILL)
            change.result(90.0)
            assert len(cluster.nodes) == 3 + joins
            eventually(lambda: all(node.alive for node in cluster.nodes.values()), what="all are up")
            before = load.done()
            eventually(lambda before=before: load.done() > before, what="writes go on")  # type: ignore[misc]
    assert load.audit() > 0
    agree(cluster)


def test_a_learner_has_all_and_votes_once_it_is_promoted(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    cluster.proxy().append("k", 1)
    learner = cluster.add_node(voter=False)
    leader = cluster.wait_for_leader()
    assert cluster.ask_node(leader, "status", {}, 30.0).result()["learners"] == [learner]
    cluster.promote(learner)
    said = cluster.ask_node(cluster.wait_for_leader(), "status", {}, 30.0).result()
    assert (said["voters"], said["learners"]) == ([0, 1, 2, learner], [])
    with pytest.raises(UsageError, match="there is no node 99"):
        cluster.promote(99)
    agree(cluster)
