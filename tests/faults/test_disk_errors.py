"""A disk that refuses: the node stops at once and says why; what was acknowledged is there once the disk is mended."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actorraft import (
    ActorRaftError,
    OutcomeUnknown,
    RaftConfig,
    ReplicatedStateMachine,
    StartError,
    Supervision,
    Unavailable,
)
from actorraft.node.process import EXIT_DISK
from tests.cluster.helpers import Spawn, agree, eventually, follower_of
from tests.faults.disks import Disks
from tests.faults.helpers import append_until, error_of, is_down
from tests.faults.machines import Big, Notes

pytestmark = pytest.mark.cluster

QUICK = Supervision(max_restarts=2, backoff_s=(0.05, 0.1))

FAILURES = [
    ("sync_data log EIO", "Input/output error", "leader"),
    ("write log EROFS", "Read-only file system", "leader"),
    ("write log ENOSPC", "No space left on device", "follower"),
    ("sync_data log EIO", "Input/output error", "follower"),
]


def given_up(node_id: int, caplog: pytest.LogCaptureFixture) -> bool:
    """Whether supervision has said that it will not start a node again."""
    name = f"actorraft.node.{node_id}"
    return any("stays down" in record.message for record in caplog.records if record.name == name)


@pytest.mark.parametrize(("order", "words", "role"), FAILURES)
def test_a_node_whose_disk_refuses_stops_and_says_why_and_comes_back_once_it_is_mended(
    raft_cluster: Spawn,
    tmp_path: Path,
    disks: Disks,
    caplog: pytest.LogCaptureFixture,
    order: str,
    words: str,
    role: str,
) -> None:
    caplog.set_level(logging.INFO, logger="actorraft")
    cluster = raft_cluster(Notes, nodes=3, data_dir=tmp_path / "data", supervision=QUICK)
    acknowledged = append_until(cluster, "k", iter([False] * 20 + [True]).__next__)
    broken = cluster.wait_for_leader() if role == "leader" else follower_of(cluster)

    disks.break_(broken, order)
    process = cluster._processes.living(broken)
    acknowledged += append_until(cluster, "k", lambda: not process.alive, first=len(acknowledged))
    assert process.returncode == EXIT_DISK
    acknowledged += append_until(cluster, "k", lambda: given_up(broken, caplog), first=len(acknowledged))
    is_down(cluster, broken)
    assert words in error_of(cluster, broken)
    records = [record for record in caplog.records if record.name == f"actorraft.node.{broken}"]
    assert any(words in record.message and f"exit code {EXIT_DISK}" in record.message for record in records)
    assert cluster.wait_for_leader() != broken

    disks.mend(broken)
    cluster.nodes[broken].restart()
    assert cluster.proxy(to=broken, timeout=20.0).get("k") == acknowledged
    agree(cluster)
    assert error_of(cluster, broken) == ""


@pytest.mark.parametrize("order", ["sync_data log EIO", "write log ENOSPC"])
def test_nothing_is_acknowledged_after_a_failed_write_or_sync(
    raft_cluster: Spawn, tmp_path: Path, disks: Disks, order: str
) -> None:
    cluster = raft_cluster(Notes, nodes=1, data_dir=tmp_path / "data", supervision=None)
    acknowledged = append_until(cluster, "k", iter([False] * 10 + [True]).__next__)

    disks.break_(0, order)
    futures = [cluster.proxy(timeout=1.0).append.submit("k", f"doubtful {number}") for number in range(20)]
    for future in futures:
        with pytest.raises((OutcomeUnknown, Unavailable)):
            future.result()
    is_down(cluster, 0)

    disks.mend(0)
    cluster.nodes[0].restart()
    held = cluster.proxy(timeout=20.0).get("k")
    assert held[: len(acknowledged)] == acknowledged
    rest = held[len(acknowledged) :]
    assert rest == sorted(set(rest), key=lambda item: int(item.split()[1]))


def test_a_node_whose_disk_fails_while_a_snapshot_is_synced_stops_and_the_log_is_whole(
    raft_cluster: Spawn, tmp_path: Path, disks: Disks
) -> None:
    cluster = raft_cluster(Notes, nodes=3, data_dir=tmp_path / "data", supervision=None)
    acknowledged = append_until(cluster, "k", iter([False] * 10 + [True]).__next__)
    broken = follower_of(cluster)

    disks.break_(broken, "sync snapshots EIO")
    cluster.take_snapshot(timeout=20.0)
    is_down(cluster, broken)
    assert cluster.nodes[broken].exit_code == EXIT_DISK
    assert "Input/output error" in eventually(lambda: error_of(cluster, broken))

    disks.mend(broken)
    cluster.nodes[broken].restart()
    assert cluster.proxy(to=broken).get("k") == acknowledged
    assert not list((tmp_path / "data" / f"node-{broken}" / "snapshots").glob("*.tmp"))


def test_a_snapshot_without_room_is_given_up_and_the_node_serves_on(
    raft_cluster: Spawn, tmp_path: Path, disks: Disks, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = raft_cluster(
        Notes, nodes=1, data_dir=tmp_path / "data", config=RaftConfig(snapshot_after_entries=50, trailing_entries=0)
    )
    pid = cluster.nodes[0].pid
    disks.break_(0, "write snapshots ENOSPC")
    acknowledged = append_until(cluster, "k", iter([False] * 300 + [True]).__next__)
    with pytest.raises(ActorRaftError, match="no room for a snapshot"):
        cluster.take_snapshot()

    failures = [record for record in caplog.records if "snapshot failed" in record.message]
    assert 2 <= len(failures) <= 8, "it is tried again now and then, not after every command"
    assert not list((tmp_path / "data" / "node-0" / "snapshots").iterdir())
    disks.mend(0)
    taken = cluster.take_snapshot()
    assert taken[0] >= len(acknowledged)
    assert cluster.proxy().get("k") == acknowledged
    assert cluster.nodes[0].pid == pid


def test_a_full_disk_stops_its_node_and_room_brings_it_back(
    small_disk: Callable[[Path, int], None], raft_cluster: Spawn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    small_disk(data / "node-1", 64)
    cluster = raft_cluster(Big, nodes=3, data_dir=data, supervision=QUICK)
    filler = data / "node-1" / "filler"
    fill(filler)
    proxy = cluster.proxy(timeout=20.0)
    count = 0
    while not given_up(1, caplog):
        proxy.put(f"k{count}", 1)
        cluster.execute(Payload(200_000), timeout=20.0)
        count += 1
        assert count < 2000
    is_down(cluster, 1)
    assert "No space left on device" in error_of(cluster, 1)
    proxy.put("last", 7)

    filler.unlink()
    cluster.nodes[1].restart()
    assert cluster.proxy(to=1, timeout=20.0).get("last") == b"x" * 7
    agree(cluster)


def test_a_snapshot_that_does_not_fit_on_a_small_disk_leaves_the_log_serving(
    small_disk: Callable[[Path, int], None], raft_cluster: Spawn, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    small_disk(data / "node-0", 24)
    cluster = raft_cluster(Big, nodes=1, data_dir=data)
    cluster.proxy().put("big", 12_000_000)
    with pytest.raises(ActorRaftError, match="No space left on device"):
        cluster.take_snapshot()
    cluster.proxy().put("small", 3)
    cluster.nodes[0].restart()
    assert len(cluster.proxy(timeout=20.0).get("big")) == 12_000_000
    assert cluster.proxy().get("small") == b"xxx"


class Payload:
    """A command that is as large as it says, and does nothing."""

    def __init__(self, size_bytes: int) -> None:
        self.content = os.urandom(size_bytes)

    def apply(self, state: Any) -> None:
        """Do nothing."""


def fill(path: Path) -> None:
    """Leave no room on a disk."""
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


def test_an_error_at_the_start_is_told_without_a_traceback(tmp_path: Path, disks: Disks) -> None:
    machine = ReplicatedStateMachine(Notes)
    with machine.spawn(1, data_dir=tmp_path / "data") as cluster:
        cluster.proxy().append("k", 1)
    disks.break_(0, "write log EIO")
    with pytest.raises(StartError, match=r"node 0 did not start: the disk under .* refused") as caught:
        machine.spawn(data_dir=tmp_path / "data")
    assert "Traceback" not in str(caught.value)
    disks.mend(0)
    with machine.spawn(data_dir=tmp_path / "data") as cluster:
        assert cluster.proxy().get("k") == [1]
