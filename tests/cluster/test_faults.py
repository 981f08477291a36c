"""Under load, processes are killed, paused and cut off: nothing acknowledged is lost, nothing is applied twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from actorraft import Cluster, RaftConfig, ReplicatedStateMachine, UsageError
from tests.cluster.helpers import SCRIPTS, Spawn, agree, eventually, follower_of, running
from tests.cluster.load import Load
from tests.cluster.machines import EndsTheProcess, Ledger

pytestmark = pytest.mark.cluster


def kill_leaders(raft_cluster: Spawn, *, nodes: int, kills: int, config: RaftConfig | None = None) -> None:
    cluster = raft_cluster(Ledger, nodes=nodes, config=config)
    with Load(cluster) as load:
        for _ in range(kills):
            before = load.done()
            eventually(lambda before=before: load.done() > before, what="writes go on")  # type: ignore[misc]
            leader = cluster.wait_for_leader()
            cluster.nodes[leader].kill()
            before = load.done()
            eventually(lambda before=before: load.done() > before, what="writes go on without it")  # type: ignore[misc]
            cluster.nodes[leader].restart()
    assert load.audit() > 0
    agree(cluster)


def test_the_leader_is_killed_under_load_and_nothing_is_lost(raft_cluster: Spawn) -> None:
    kill_leaders(raft_cluster, nodes=3, kills=4)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_leader_is_killed_twenty_times_under_load_and_nothing_is_lost(raft_cluster: Spawn) -> None:
    kill_leaders(raft_cluster, nodes=5, kills=20)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_leaders_are_killed_while_snapshots_are_taken_all_the_time(raft_cluster: Spawn) -> None:
    config = RaftConfig(snapshot_after_entries=20, trailing_entries=2, snapshot_chunk_bytes=1_000)
    kill_leaders(raft_cluster, nodes=3, kills=10, config=config)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_any_minority_is_killed_at_any_time(raft_cluster: Spawn, rng: random.Random) -> None:
    cluster = raft_cluster(Ledger, nodes=5)
    with Load(cluster) as load:
        for _ in range(6):
            victims = rng.sample(list(cluster.nodes), rng.choice([1, 2]))
            for node_id in victims:
                cluster.nodes[node_id].kill()
            before = load.done()
            eventually(lambda before=before: load.done() > before, what=f"writes without {victims}")  # type: ignore[misc]
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda node_id: cluster.nodes[node_id].restart(), victims))
    assert load.audit() > 0
    agree(cluster)


@pytest.mark.parametrize("how", ["one after another", "side by side"])
def test_all_nodes_are_killed_at_once_and_started_again(raft_cluster: Spawn, how: str) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    with Load(cluster, processes=0) as load:
        eventually(lambda: load.done() > 100)
        for node in cluster.nodes.values():
            os.kill(node.pid or 0, signal.SIGSTOP)
        for node in cluster.nodes.values():
            node.kill()
        if how == "side by side":
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda node: node.restart(), cluster.nodes.values()))
        else:
            for node in cluster.nodes.values():
                node.restart()
        before = load.done()
        eventually(lambda: load.done() > before, what="writes go on")
    assert load.audit() > 100
    agree(cluster)


@pytest.mark.slow
def test_a_leader_that_was_paused_for_five_seconds_changes_nothing(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    with Load(cluster, processes=0) as load:
        eventually(lambda: load.done() > 0)
        leader = cluster.wait_for_leader()
        cluster.nodes[leader].pause()
        resumed = threading.Timer(5.0, cluster.nodes[leader].resume)
        resumed.start()
        before = load.done()
        eventually(lambda: load.done() > before, what="another leads")
        resumed.join()
        eventually(lambda: {row.id: row.state for row in cluster.status()}[leader] == "follower")
    assert load.audit() > 0
    agree(cluster)


def test_a_leader_that_is_paused_is_not_waited_for_once_another_leads(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    leader = cluster.wait_for_leader()
    cluster.nodes[leader].pause()
    begun_s = time.monotonic()
    assert cluster._ask_leader("status", {}, 30.0)["id"] != leader
    assert time.monotonic() - begun_s < 15.0
    other = next(node_id for node_id in cluster.nodes if node_id not in (leader, cluster.wait_for_leader()))
    assert cluster.transfer_leadership(other) == other


def test_right_after_spawn_every_node_can_be_asked(raft_cluster: Spawn) -> None:
    for _ in range(3):
        cluster = raft_cluster(Ledger, nodes=3)
        assert sorted(cluster.take_snapshot()) == [0, 1, 2]  # the first of all calls: most links are not up yet
        assert [row.error for row in cluster.status()] == [None] * 3
        with cluster.client() as late:
            assert sorted(late.take_snapshot()) == [0, 1, 2]
        cluster.close()


def test_a_partition_of_the_leader_loses_nothing_and_is_caught_up_after_the_heal(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=5)
    with Load(cluster, processes=0) as load:
        for _ in range(2):
            minority = {cluster.wait_for_leader(), follower_of(cluster)}
            majority = set(cluster.nodes) - minority
            assert cluster.partition(minority, majority) == [majority, minority]
            before = load.done()
            eventually(lambda before=before: load.done() > before, what="the majority")  # type: ignore[misc]
            cluster.heal()
    assert load.audit() > 0
    agree(cluster)


# --- Data directories ---


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_a_cluster_comes_back_after_close_and_after_the_death_of_everything(tmp_path: Path, durability: str) -> None:
    data = tmp_path / "data"
    with ReplicatedStateMachine(Ledger).spawn(3, data_dir=data, durability=durability) as cluster:
        for number in range(100):
            cluster.proxy().append("before", number)
        first = agree(cluster)
    with ReplicatedStateMachine(Ledger).spawn(data_dir=data, durability=durability) as cluster:
        assert cluster.proxy().get("before") == list(range(100))
        assert agree(cluster) == first
    with running(str(SCRIPTS / "parent.py"), "load", str(data)) as script:
        assert script.line() == "acknowledged 200"
        script.process.kill()
        with ReplicatedStateMachine(Ledger).spawn(data_dir=data, durability=durability) as cluster:
            kept = cluster.proxy().get("k")
            assert kept == list(range(len(kept)))
            assert len(kept) >= 200
            assert cluster.proxy().count("before") == 100
            agree(cluster)


def test_a_client_goes_on_after_every_node_was_replaced_under_it(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    ledger = cluster.proxy(timeout=60.0)
    for turn in range(2):
        for node_id in cluster.nodes:
            cluster.nodes[node_id].restart()
            assert ledger.append("k", (turn, node_id)) == turn * 3 + node_id + 1
    agree(cluster)


def test_a_snapshot_is_what_a_node_restarts_from_and_what_one_far_behind_is_given(raft_cluster: Spawn) -> None:
    config = RaftConfig(snapshot_after_entries=50, trailing_entries=5)
    cluster = raft_cluster(Ledger, nodes=3, config=config)
    ledger = cluster.proxy()
    behind = follower_of(cluster)
    cluster.nodes[behind].kill()
    for number in range(300):
        ledger.append("k", number)
    assert min(cluster.take_snapshot().values()) > 250
    cluster.nodes[behind].restart()
    agree(cluster)
    for node_id in cluster.nodes:
        cluster.nodes[node_id].restart()
    assert ledger.get("k") == list(range(300))
    agree(cluster)


def test_an_exported_snapshot_begins_another_cluster(raft_cluster: Spawn, tmp_path: Path) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    for number in range(100):
        cluster.proxy().append("k", number)
    cluster.export_snapshot(tmp_path / "copy")
    cluster.proxy().append("k", "later")
    other = raft_cluster(Ledger, nodes=1, from_snapshot=tmp_path / "copy")
    assert other.proxy().get("k") == list(range(100))
    assert other.add_node() == 1
    assert other.proxy().append("k", "elsewhere") == 101
    agree(other)
    with pytest.raises(UsageError):
        raft_cluster(dict, nodes=1, from_snapshot=tmp_path / "copy")
    with pytest.raises(UsageError):
        raft_cluster(Ledger, nodes=1, from_snapshot=tmp_path / "nowhere")


def test_a_partition_says_what_became_of_nodes_that_it_does_not_name(
    raft_cluster: Spawn, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = raft_cluster(Ledger, nodes=3)

    assert cluster.partition({0, 1}) == [{0, 1}, {2}]
    assert "partition" not in caplog.text
    assert cluster.partition({2}) == [{2}, {0}, {1}]
    assert "partition({2}): [0, 1] are in no group, so each of them is alone" in caplog.text

    cluster.heal()
    agree(cluster)


# --- Bounds ---


def resident_bytes(cluster: Cluster[Ledger], node_id: int) -> int:
    status = Path(f"/proc/{cluster.nodes[node_id].pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_follower_that_never_reads_neither_stops_the_others_nor_fills_their_memory(raft_cluster: Spawn) -> None:
    config = RaftConfig(snapshot_after_bytes=4 << 20, trailing_entries=10)
    cluster = raft_cluster(dict, nodes=3, config=config)
    cluster.execute(len)
    paused, leader = follower_of(cluster), cluster.wait_for_leader()
    cluster.nodes[paused].pause()
    before = resident_bytes(cluster, leader)
    block = b"x" * (1 << 19)
    for _ in range(400):
        cluster.execute(Put("k", block), timeout=60.0)
    assert resident_bytes(cluster, leader) - before < 100 << 20
    cluster.nodes[paused].resume()
    agree(cluster)


class Put:
    """A command object."""

    def __init__(self, key: str, value: bytes) -> None:
        self.key, self.value = key, value

    def apply(self, state: dict[str, bytes]) -> None:
        """Put."""
        state[self.key] = self.value


# --- Slow commands ---


def test_a_command_that_holds_the_interpreter_lock_does_not_stop_the_cluster(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(EndsTheProcess, nodes=3)
    before = cluster.status()[0].term
    cluster.proxy(timeout=60.0).stay_in_c(1)
    assert cluster.proxy(timeout=60.0).hello() == "hello"
    assert max(row.term for row in cluster.status(timeout=10)) <= before + 2
    agree(cluster)


@pytest.mark.parametrize("how", ["append_slowly", "append_after_counting"])
def test_a_slow_command_causes_no_election(raft_cluster: Spawn, how: str) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    ledger = cluster.proxy(timeout=60.0)
    ledger.append("k", 0)
    for turn in range(1, 4):  # a machine that stands still may cause one now and then; a command would each time
        before = {(row.id, row.state, row.term) for row in cluster.status(timeout=10)}
        assert getattr(ledger, how)("k", 1, 2.0) == turn + 1
        if {(row.id, row.state, row.term) for row in cluster.status(timeout=10)} == before:
            return
    raise AssertionError("each of the commands caused one")


def test_a_node_whose_folder_was_put_back_to_an_older_copy_is_named_and_caught_up(
    raft_cluster: Spawn, tmp_path: Path
) -> None:
    """Leader and follower exchanged 10,000 messages a second for ever, and the follower was never brought up to date."""
    data = tmp_path / "data"
    cluster = raft_cluster(Ledger, nodes=3, data_dir=data)
    ledger = cluster.proxy()
    ledger.append("k", 0)
    leader = cluster.wait_for_leader()
    victim = follower_of(cluster)
    (folder,) = [path for path in data.iterdir() if path.is_dir() and path.name.strip("node-_") == str(victim)]
    cluster.nodes[victim].stop()
    shutil.copytree(folder, tmp_path / "older")
    cluster.nodes[victim].restart()
    for number in range(1, 20):
        ledger.append("k", number)
    agree(cluster)

    events = cluster.events()
    cluster.nodes[victim].stop()
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "older", folder)
    cluster.nodes[victim].restart()

    agree(cluster)
    lost = next(event for event in events if event.kind == "lost log")
    assert lost.node_id == victim
    assert f"node {victim} came back without entries" in (cluster.status()[victim].error or "")
    other = next(node_id for node_id in cluster.nodes if node_id not in (leader, victim))
    cluster.nodes[other].stop()
    ledger.append("k", 99)
