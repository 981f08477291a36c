"""The parameter server on real processes: nothing acknowledged is lost, nothing counts twice, replicas are bit-equal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actorraft import Cluster, NotYet, ReplicatedStateMachine
from statemachines import parameter_server as ps
from statemachines import updates
from statemachines.parameter_server import Async, FedBuff, Mean, ParameterServer, Rule
from tests.cluster.helpers import Spawn, agree, eventually, follower_of

pytestmark = pytest.mark.cluster

SIZE = 1000


def ones(value: float = 1.0) -> bytes:
    return updates.whole(np.full(SIZE, value, np.float32))


def start(raft_cluster: Spawn, rule: Rule, workers: Any = ("a", "b"), **options: Any) -> Cluster[ParameterServer]:
    return raft_cluster(ReplicatedStateMachine(ParameterServer, {"w": np.zeros(SIZE)}, rule, workers), 3, **options)


def test_updates_survive_the_death_of_the_leader_and_refusals_arrive_as_themselves(raft_cluster: Spawn) -> None:
    cluster = start(raft_cluster, Async(0.0))
    server = cluster.proxy(timeout=30.0)
    for step in range(1, 21):
        assert server.push("a", step, step - 1, ones()) == step
        if step in (5, 12):
            leader = cluster.wait_for_leader()
            cluster.nodes[leader].kill()
            cluster.nodes[leader].restart()
    with pytest.raises(ps.StepAhead) as caught:
        server.push("a", 22, 0, ones())
    assert (caught.value.worker, caught.value.step) == ("a", 22)
    with pytest.raises(ps.AlreadyApplied) as again:
        server.push_sum([("a", 20, 0), ("b", 1, 0)], ones(2.0))
    assert again.value.members == [("a", 20, 20)]
    version, arrays = server.pull()
    assert version == 20
    assert arrays["w"].tolist() == [20.0] * SIZE
    agree(cluster)


@pytest.mark.parametrize("rule", [Mean(momentum=0.9), FedBuff(3, 0.5), Async(0.5, momentum=0.9)], ids=str)
def test_a_replica_with_fewer_features_of_its_processor_has_the_same_bits(
    raft_cluster: Spawn, rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = start(raft_cluster, rule)
    server = cluster.proxy(timeout=30.0)
    other = follower_of(cluster)
    cluster.nodes[other].stop()
    monkeypatch.setenv("NPY_DISABLE_CPU_FEATURES", "X86_V3 X86_V4 AVX512_ICL AVX512_SPR")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    cluster.nodes[other].restart()
    pid = eventually(lambda: cluster.nodes[other].pid, what="a process")
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    if b"NPY_DISABLE_CPU_FEATURES" not in environment:
        raise AssertionError("the replica runs as the others do")
    rng = np.random.default_rng(3)
    version = 0
    for step in range(1, 21):
        for worker in ("a", "b"):
            update = updates.whole(rng.standard_normal(SIZE).astype(np.float32))
            server.push(worker, step, version, update)
        version = server.progress().version
    assert version
    agree(cluster)


def test_a_snapshot_in_the_middle_of_a_round_and_all_nodes_killed_at_once(raft_cluster: Spawn, tmp_path: Path) -> None:
    cluster = start(raft_cluster, Mean(momentum=0.5), data_dir=tmp_path / "data", durability="fsync")
    server = cluster.proxy(timeout=60.0)
    server.push("a", 1, 0, ones(1.0))
    cluster.take_snapshot()
    server.push("b", 1, 0, ones(3.0))
    server.push("a", 2, 1, ones(1.0))
    for node in cluster.nodes.values():
        os.kill(node.pid, 9)
    for node in cluster.nodes.values():
        node.restart()
    assert eventually(lambda: server.progress().updates) == 3
    assert server.push("a", 2, 1, ones(1.0)) == 2, "answered as it was"
    server.push("b", 2, 1, ones(1.0))
    version, arrays = server.pull()
    assert (version, arrays["w"].tolist()) == (2, [2.0 + (1.0 + 1.0)] * SIZE)
    agree(cluster)


def test_a_round_closes_by_log_time_without_anybody_asking(raft_cluster: Spawn) -> None:
    cluster = start(raft_cluster, Mean(round_s=0.2))
    server = cluster.proxy(timeout=30.0)
    server.push("a", 1, 0, ones(5.0))
    assert eventually(lambda: server.progress().version) == 1
    assert server.pull()[1]["w"].tolist() == [5.0] * SIZE


@pytest.mark.parametrize("where", [{}, {"to": "any"}, {"consistency": "stale", "to": "any"}])
def test_reads_of_a_version_to_come_wait_for_it_and_hold_up_no_other(raft_cluster: Spawn, where: Any) -> None:
    cluster = start(raft_cluster, Async(0.0))
    server = cluster.proxy(timeout=30.0)
    waiting: Any = cluster.proxy(timeout=30.0, **where)
    answers = [waiting.pull.submit(None, 2) for _ in range(30)]
    assert waiting.pull()[0] == 0, "one that need not wait does not"
    server.push("a", 1, 0, ones())
    assert not any(answer.done() for answer in answers)
    server.push("a", 2, 0, ones())
    assert [answer.result()[0] for answer in answers] == [2] * 30
    with pytest.raises(NotYet, match="in time"):
        cluster.proxy(timeout=3.0).pull(None, 9)
