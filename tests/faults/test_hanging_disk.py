"""A disk that takes no writes for a while: its node gives way, and follows once the disk goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actorraft import RaftConfig
from tests.cluster.helpers import Spawn, agree, eventually
from tests.cluster.machines import Ledger
from tests.nemesis import disks

TIMEOUTS = 10


@pytest.fixture
def images(tmp_path: Path) -> Iterator[dict[int, disks.Image]]:
    """A disk of its own for each of three nodes."""
    if reason := disks.why_not():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        made = {}
        for node_id in range(3):
            folder = tmp_path / "data" / f"node-{node_id}"
            folder.mkdir(parents=True)
            made[node_id] = disks.Image(tmp_path / f"disk-{node_id}", folder, megabytes=192)
            stack.callback(made[node_id].close)
        yield made


@pytest.mark.cluster
def test_trap_15_a_leader_whose_disk_hangs_for_ten_election_timeouts_gives_way_and_follows_later(
    images: dict[int, disks.Image], raft_cluster: Spawn, tmp_path: Path
) -> None:
    config = RaftConfig.local()
    cluster = raft_cluster(Ledger, nodes=3, data_dir=tmp_path / "data", config=config)
    proxy = cluster.proxy(timeout=20.0)
    for number in range(20):
        proxy.append("k", number)
    leader = cluster.wait_for_leader()
    images[leader].freeze()
    try:
        until_s = time.monotonic() + TIMEOUTS * config.election_timeout_ticks * config.tick_s
        number = 20
        while time.monotonic() < until_s:
            assert proxy.append("k", number) == number + 1
            assert proxy.count("k") == number + 1
            number += 1
        assert cluster.leader() != leader
    finally:
        images[leader].thaw()
    eventually(lambda: {row.id: row.state for row in cluster.status()}[leader] == "follower", what="it follows")
    agree(cluster)
    assert cluster.proxy(to=leader, timeout=20.0).get("k") == list(range(number))
