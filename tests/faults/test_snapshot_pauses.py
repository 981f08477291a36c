"""A snapshot of a large store holds up neither commits nor the leader's loop for long; of any other machine, it says so."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from benchmarks import pauses
from statemachines.kv import KVStore
from tests.cluster.helpers import Spawn, agree, eventually
from tests.faults.machines import Big

pytestmark = pytest.mark.cluster

PAUSE_MAX_MS = 50.0


def test_commits_go_on_while_a_store_is_captured_and_a_node_comes_back_from_it(tmp_path: Path) -> None:
    with pauses.filled(KVStore, 50_000, 16, 3, "os", tmp_path / "data") as cluster:
        held_up_ms = []
        for _ in range(5):  # what else runs on the machine adds to a pause, and never takes from it
            report = pauses.measured(cluster, 50_000, quiet_s=0.2)
            held_up_ms.append(report.held_up_ms)
            if min(held_up_ms) < PAUSE_MAX_MS and report.during.commits.calls > 3:
                break
        assert 0.0 < min(held_up_ms) < PAUSE_MAX_MS
        assert report.during.commits.calls > 3, "each of them waited for all of the snapshot"
        leader = cluster.wait_for_leader()
        cluster.nodes[leader].restart()
        agree(cluster)
        assert cluster.proxy(timeout=20.0).get("key-000000049999") == b"%016d" % 49_999


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_million_keys_are_captured_without_a_pause_of_50_ms(tmp_path: Path) -> None:
    """The best of five: what else runs on the machine adds to a pause, and never takes from it."""
    longest_ms = []
    with pauses.filled(KVStore, 1_000_000, 16, 3, "fsync", tmp_path / "data") as cluster:
        for _ in range(5):
            during = pauses.measured(cluster, 1_000_000, quiet_s=0.5).during
            longest_ms.append((during.commits.max_ms, during.loop.max_ms))
            if max(longest_ms[-1]) < PAUSE_MAX_MS:
                return
    pytest.fail(f"the longest pauses of commits and loop, in ms: {longest_ms}")


def test_how_long_commands_waited_for_a_snapshot_of_another_machine_is_in_status_and_log(
    raft_cluster: Spawn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="actorraft")
    cluster = raft_cluster(Big, nodes=1)
    cluster.proxy().put("big", 2_000_000)
    cluster.take_snapshot()
    pause_s = cluster.ask_node(0, "status", {}, 30.0).result()["snapshot_pause_s"]
    assert pause_s > 0.0
    eventually(lambda: f"commands waited {pause_s * 1000:.0f} ms for it" in caplog.text)
    assert "1.9 MiB" in caplog.text
