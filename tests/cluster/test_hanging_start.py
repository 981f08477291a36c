"""A node whose start hangs holds up nobody: not close, not a partition, not what is done to other nodes or to itself."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from actorraft import Cluster, ReplicatedStateMachine, StartError
from tests.cluster.helpers import Spawn, agree, eventually, follower_of, is_gone
from tests.cluster.machines import HangsOnce, StartsIn

pytestmark = pytest.mark.cluster

PROMPT_S = 20.0  # of the 30 s that a start may take


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


class Hanging:
    """A cluster whose node `victim` is being started and never comes up."""

    def __init__(self, raft_cluster: Spawn, pool: ThreadPoolExecutor, file: Path, how: str) -> None:
        self.cluster: Cluster[HangsOnce] = raft_cluster(ReplicatedStateMachine(HangsOnce, file), nodes=3)
        self.victim = follower_of(self.cluster)
        self.start: Future[Any] | None = None
        dead = self.cluster.nodes[self.victim].pid or 0
        if how == "restart":
            self.cluster.nodes[self.victim].kill()
        file.touch()
        match how:
            case "restart":
                self.start = pool.submit(self.cluster.nodes[self.victim].restart)
            case "add_node":
                self.start = pool.submit(self.cluster.add_node)
                self.victim = 3
            case "supervision":
                os.kill(dead, signal.SIGKILL)
        eventually(lambda: not file.exists(), what="it hangs")

    def others(self) -> set[int]:
        return set(self.cluster.nodes) - {self.victim}


def promptly(act: Callable[[], Any]) -> Any:
    begun_s = time.monotonic()
    result = act()
    assert time.monotonic() - begun_s < PROMPT_S
    return result


@pytest.mark.parametrize("how", ["restart", "add_node", "supervision"])
def test_close_does_not_wait_for_a_start_and_leaves_nothing(
    pool: ThreadPoolExecutor, raft_cluster: Spawn, tmp_path: Path, how: str
) -> None:
    before = set(threading.enumerate())  # actors of other tests may have a monitor of their own
    hanging = Hanging(raft_cluster, pool, tmp_path / "hang", how)
    cluster = hanging.cluster
    pids = [node.pid for node in cluster.nodes.values()]
    threads = {thread.name for thread in set(threading.enumerate()) - before}

    promptly(cluster.close)

    assert all(pid is not None and is_gone(pid) for pid in pids)
    assert not cluster._processes.place.run_dir.exists()
    assert "actorraft-monitor" in threads
    assert "actorraft-monitor" not in {thread.name for thread in set(threading.enumerate()) - before}
    if hanging.start is not None:
        with pytest.raises(StartError):
            hanging.start.result(PROMPT_S)


def test_other_nodes_are_killed_restarted_and_cut_off_meanwhile(
    pool: ThreadPoolExecutor, raft_cluster: Spawn, tmp_path: Path
) -> None:
    hanging = Hanging(raft_cluster, pool, tmp_path / "hang", "restart")
    cluster, others = hanging.cluster, hanging.others()
    follower = next(iter(others - {cluster.wait_for_leader()}))
    cluster.proxy().append("k", 1)

    promptly(lambda: cluster.partition(others))
    promptly(cluster.heal)
    promptly(cluster.nodes[follower].kill)
    promptly(cluster.nodes[follower].restart)

    assert cluster.proxy(timeout=60.0).append("k", 2) == 2
    assert hanging.start is not None
    assert not hanging.start.done()


def test_a_node_that_hangs_can_be_killed_and_started_again(
    pool: ThreadPoolExecutor, raft_cluster: Spawn, tmp_path: Path
) -> None:
    hanging = Hanging(raft_cluster, pool, tmp_path / "hang", "restart")
    node = hanging.cluster.nodes[hanging.victim]

    promptly(node.kill)

    assert hanging.start is not None
    with pytest.raises(StartError, match="SIGKILL"):
        hanging.start.result(PROMPT_S)
    assert not node.alive
    node.restart()
    agree(hanging.cluster)


def test_a_restart_by_hand_takes_over_from_one_by_supervision_that_hangs(
    pool: ThreadPoolExecutor, raft_cluster: Spawn, tmp_path: Path
) -> None:
    hanging = Hanging(raft_cluster, pool, tmp_path / "hang", "supervision")
    node = hanging.cluster.nodes[hanging.victim]

    promptly(node.restart)

    pid = node.pid
    agree(hanging.cluster)
    os.kill(pid or 0, signal.SIGKILL)
    eventually(lambda: node.pid not in (None, pid), what="supervision goes on looking after it")
    agree(hanging.cluster)


def test_one_that_is_killed_while_supervision_starts_it_stays_down(
    pool: ThreadPoolExecutor, raft_cluster: Spawn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hanging = Hanging(raft_cluster, pool, tmp_path / "hang", "supervision")
    cluster, node = hanging.cluster, hanging.cluster.nodes[hanging.victim]

    promptly(node.kill)

    other = cluster.nodes[follower_of(cluster) if follower_of(cluster) != node.id else cluster.wait_for_leader()]
    dead = other.pid
    os.kill(dead or 0, signal.SIGKILL)
    eventually(lambda: other.pid not in (None, dead), what="the monitor is at work again")
    assert not node.alive
    assert "the restart of" not in caplog.text


def test_a_node_that_does_not_come_up_when_it_is_added_leaves_no_trace(
    pool: ThreadPoolExecutor, raft_cluster: Spawn, tmp_path: Path
) -> None:
    hanging = Hanging(raft_cluster, pool, tmp_path / "hang", "add_node")
    cluster = hanging.cluster

    promptly(cluster.nodes[3].kill)

    assert hanging.start is not None
    with pytest.raises(StartError):
        hanging.start.result(PROMPT_S)
    assert list(cluster.nodes) == [0, 1, 2]
    assert cluster.add_node() == 3
    assert cluster.proxy(timeout=60.0).append("k", 1) == 1
    agree(cluster)


def test_a_spawn_that_is_cancelled_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def cancel() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ReplicatedStateMachine(StartsIn, 600.0).spawn_async(3), 0.5)

    promptly(lambda: asyncio.run(cancel()))

    assert list(tmp_path.iterdir()) == []
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    assert [pid for pid in children if not is_gone(int(pid))] == []
