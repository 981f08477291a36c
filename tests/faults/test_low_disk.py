"""A disk that is nearly full: writes are refused by name while there is room for what frees it, and all else goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actorraft import RaftConfig, ReplicatedStateMachine
from actorraft.node.exposition import expose
from actorraft.node.room import DiskRoom
from tests.cluster.helpers import Spawn, agree, eventually, refused
from tests.faults.machines import Big

MIB = 1 << 20


class Disk:
    """What the system says of a disk, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, total_mib: int, free_mib: float) -> None:
        self.total_mib, self.free_mib, self.now_s = total_mib, free_mib, 0.0
        monkeypatch.setattr(os, "statvfs", self._said)

    def _said(self, _: Any) -> Any:
        return SimpleNamespace(f_frsize=MIB, f_bavail=self.free_mib, f_blocks=self.total_mib)

    def monotonic(self) -> float:
        return self.now_s

    def room(self, snapshot_mib: int = 0, reserve_mib: int = 64) -> DiskRoom:
        return DiskRoom(
            Path("/data"),
            self,  # type: ignore[arg-type]
            reserve_bytes=reserve_mib * MIB,
            snapshot_bytes=lambda: snapshot_mib * MIB,
        )

    def later(self, seconds: float, free_mib: float) -> None:
        self.now_s += seconds
        self.free_mib = free_mib


def test_it_is_low_below_the_reserve_and_a_snapshot_and_no_more_once_there_is_a_tenth_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = Disk(monkeypatch, 10_000, 200)
    room = disk.room(snapshot_mib=100)
    assert not room.low
    assert room.report()["reserve_bytes"] == 164 * MIB
    disk.later(1.0, 163)
    assert room.look()
    assert "163 MiB left" in room.low
    disk.later(0.5, 500)
    assert not room.look(), "once a second is enough"
    disk.later(0.5, 170)
    assert not room.look(), "it does not flap"
    disk.later(1.0, 200)
    assert room.look()
    assert not room.low


def test_a_small_disk_keeps_a_tenth_and_at_most_a_quarter_for_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, 100, 90)
    assert disk.room(snapshot_mib=80).report()["reserve_bytes"] == 35 * MIB
    assert disk.room(snapshot_mib=80, reserve_mib=0).report()["reserve_bytes"] == 0


def test_the_time_to_full_is_told_at_the_pace_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, 10_000, 1_064)
    room = disk.room()
    for second in range(1, 11):
        disk.later(1.0, 1_064 - 10 * second)
        room.look()
    assert room.full_in_s() == 90.0
    for _ in range(61):
        disk.later(1.0, 962)
        room.look()
    assert room.full_in_s() is None


@pytest.mark.cluster
@pytest.mark.timeout(200)
def test_writes_are_refused_by_name_reads_and_snapshots_go_on_and_room_brings_writes_back(
    small_disk: Callable[[Path, int], None], raft_cluster: Spawn, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for node_id in range(3):
        small_disk(data / f"node-{node_id}", 64)
    cluster = raft_cluster(Big, nodes=3, data_dir=data, supervision=None, config=RaftConfig(trailing_entries=0))
    events = cluster.events()
    cluster.proxy(timeout=20.0).put("x", 5)
    pids = [cluster.nodes[node_id].pid for node_id in range(3)]
    for node_id in range(3):
        leave(data / f"node-{node_id}" / "filler", 4 * MIB)

    def rows() -> list[Any]:
        return [row for row in cluster.status() if row.disk.get("refuses_writes")]

    eventually(lambda: len(rows()) == 3 and all("takes no writes" in (row.error or "") for row in rows()))
    assert all(row.disk["free_bytes"] < row.disk["reserve_bytes"] for row in rows())
    refused(lambda timeout: cluster.proxy(timeout=timeout).put("y", 1), r"takes no writes, its disk has \d+ MiB left")
    assert cluster.proxy(timeout=20.0).get("x") == b"xxxxx"
    assert sorted(cluster.take_snapshot()) == [0, 1, 2]
    leader = cluster.wait_for_leader()
    assert cluster.transfer_leadership() != leader
    leader = cluster.wait_for_leader()
    cluster.nodes[leader].kill()
    cluster.nodes[leader].restart()
    assert cluster.proxy(timeout=20.0).get("x") == b"xxxxx"
    kinds = [events.get(timeout=20.0) for _ in range(3)]
    while sum(event.kind == "disk" for event in kinds) < 3:
        kinds.append(events.get(timeout=20.0))

    for node_id in range(3):
        (data / f"node-{node_id}" / "filler").unlink()
    cluster.proxy(timeout=30.0).put("y", 2)
    agree(cluster)
    assert [cluster.nodes[node_id].pid for node_id in range(3) if node_id != leader] == [
        pid for node_id, pid in enumerate(pids) if node_id != leader
    ], "nobody had to stop"


@pytest.mark.cluster
@pytest.mark.timeout(200)
def test_a_leader_whose_disk_alone_is_low_lets_another_lead(
    small_disk: Callable[[Path, int], None], raft_cluster: Spawn, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for node_id in range(3):
        small_disk(data / f"node-{node_id}", 64)
    cluster = raft_cluster(Big, nodes=3, data_dir=data, supervision=None)
    cluster.proxy(timeout=20.0).put("x", 5)
    leader = cluster.wait_for_leader()
    leave(data / f"node-{leader}" / "filler", 4 * MIB)
    eventually(lambda: cluster.leader() not in (None, leader))
    cluster.proxy(timeout=20.0).put("y", 1)
    assert cluster.proxy(timeout=20.0).get("y") == b"x"


@pytest.mark.cluster
def test_metrics_say_how_much_room_there_is_and_when_the_last_backup_was() -> None:
    with ReplicatedStateMachine(Big).spawn(1) as cluster:
        said = cluster.ask_node(0, "status", {}, 20.0).result()
    assert said["disk"]["free_bytes"] > 0
    said["disk"] |= {"full_in_s": 90.0, "refuses_writes": True}
    said["backup"] = {"index": 3, "time_s": 1000.0, "bytes": 10, "error": "no"}
    text = expose(said).decode()
    for line in (
        "actorraft_disk_full_in_seconds 90.0",
        "actorraft_disk_refuses_writes 1.0",
        "actorraft_backup_last_success_timestamp_seconds 1000.0",
        "actorraft_backup_failed 1.0",
    ):
        assert line in text


def leave(path: Path, left_bytes: int) -> None:
    """Fill a disk but for so much."""
    disk = os.statvfs(path.parent)
    with open(path, "wb", buffering=0) as file:
        for _ in range((disk.f_bavail * disk.f_frsize - left_bytes) // 65536):
            file.write(b"\0" * 65536)
