"""Nodes that die are started again, or stay down, as asked; and the parent can say of each how it is and why."""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

import pytest

from actorraft import Cluster, Supervision
from tests.cluster.helpers import Spawn, agree, eventually, follower_of
from tests.cluster.machines import EndsTheProcess, Ledger

pytestmark = pytest.mark.cluster

AT_ONCE = Supervision(backoff_s=(0.0, 0.0), max_restarts=1000)


def kill_from_outside(cluster: Cluster[Any], node_id: int) -> int:
    pid = cluster.nodes[node_id].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def test_a_node_that_dies_unasked_is_started_again_and_one_that_was_killed_on_purpose_is_not(
    raft_cluster: Spawn,
) -> None:
    cluster = raft_cluster(Ledger, nodes=5)
    cluster.nodes[0].kill()
    cluster.nodes[1].stop()
    dead = kill_from_outside(cluster, 2)
    eventually(lambda: cluster.nodes[2].pid not in (None, dead), what="it is started again")
    assert cluster.proxy(timeout=60.0).append("k", 1) == 1
    assert [cluster.nodes[node_id].alive for node_id in (0, 1, 2)] == [False, False, True]
    cluster.nodes[0].restart()
    cluster.nodes[1].restart()
    agree(cluster)


def test_a_leader_that_dies_again_and_again_is_started_again_and_again(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3, supervision=AT_ONCE)
    for turn in range(4):
        kill_from_outside(cluster, cluster.wait_for_leader())
        assert cluster.proxy(timeout=60.0).append("k", turn) == turn + 1
        eventually(lambda: all(node.alive for node in cluster.nodes.values()), what="all are up")
    agree(cluster)


def test_one_that_dies_too_often_stays_down_until_it_is_restarted(
    raft_cluster: Spawn, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = raft_cluster(Ledger, nodes=3, supervision=Supervision(max_restarts=1, backoff_s=(0.0, 0.0)))
    victim = follower_of(cluster)
    dead = kill_from_outside(cluster, victim)
    eventually(lambda: cluster.nodes[victim].pid not in (None, dead))
    eventually(lambda: cluster.status()[victim].error is None)
    kill_from_outside(cluster, victim)
    eventually(lambda: "died too often and stays down" in caplog.text)
    assert not cluster.nodes[victim].alive
    cluster.nodes[victim].restart()
    assert cluster.nodes[victim].alive


def test_without_supervision_a_dead_node_stays_down(raft_cluster: Spawn, caplog: pytest.LogCaptureFixture) -> None:
    cluster = raft_cluster(Ledger, nodes=3, supervision=None)
    victim = follower_of(cluster)
    kill_from_outside(cluster, victim)
    eventually(lambda: "is gone: killed by SIGKILL" in caplog.text)
    assert cluster.proxy().append("k", 1) == 1
    assert not cluster.nodes[victim].alive


def test_a_command_that_ends_every_node_is_given_up_by_supervision(
    raft_cluster: Spawn, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = raft_cluster(EndsTheProcess, nodes=1, supervision=Supervision(max_restarts=2, backoff_s=(0.0, 0.0)))
    cluster.proxy(timeout=None).leave.submit()
    eventually(lambda: "so it stays down" in caplog.text)
    assert "exit code 3" in caplog.text
    said = str(cluster.status()[0].error)  # what it died of twice is named, and not tried a third time
    assert "ended 2 times" in said
    assert "leave of client" in said


def test_the_parent_knows_how_each_node_is(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3, name="books")
    cluster.proxy().append("k", 1)
    states = ["follower", "follower", "leader"]
    eventually(lambda: sorted(row.state for row in cluster.status() if row.lag_entries == 0) == states)
    rows = cluster.status()
    assert [row.id for row in rows] == [0, 1, 2]
    assert [row.pid for row in rows] == [node.pid for node in cluster.nodes.values()]
    assert {row.term for row in rows} == {cluster.status()[0].term}
    assert [row.endpoint for row in rows] == list(cluster.endpoints.values())
    assert str(rows).splitlines()[0].split()[:3] == ["id", "state", "term"]
    leader = cluster.wait_for_leader()
    assert repr(cluster) == f'<Cluster "books" 3 nodes, leader {leader}, term {rows[0].term}, ipc>'
    victim = follower_of(cluster)
    cluster.nodes[victim].kill()
    row = cluster.status()[victim]
    assert (row.alive, row.pid, row.state) == (False, None, "unknown")
    assert row.error == f"node {victim} is down, killed by SIGKILL"
    paused = next(node_id for node_id in cluster.nodes if node_id not in (leader, victim))
    cluster.nodes[paused].pause()
    row = cluster.status(timeout=0.3)[paused]
    assert (row.alive, row.pid) == (True, cluster.nodes[paused].pid)
    assert "did not answer in time" in str(row.error)
    with pytest.raises(KeyError, match="no node 7"):
        cluster.nodes[7]


def test_what_a_node_prints_and_logs_reaches_the_parent(raft_cluster: Spawn, caplog: pytest.LogCaptureFixture) -> None:
    cluster = raft_cluster(dict, nodes=3)

    def talk(state: dict[str, int]) -> None:
        print("printed by a command")
        logging.getLogger("mine").warning("logged by a command")

    cluster.execute(talk)
    eventually(
        lambda: (
            {record.name for record in caplog.records if "logged by a command" in record.message}
            == {f"actorraft.node.{node_id}" for node_id in cluster.nodes}
        ),
        what="log records of every node",
    )
    for node in cluster.nodes.values():
        eventually(lambda node=node: "printed by a command" in node.logs(), what="its output")  # type: ignore[misc]
