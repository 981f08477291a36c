"""What a slow or dead follower costs the others: no more memory than the configuration says."""

from __future__ import annotations

import pytest

from actorraft import Cluster, RaftConfig
from actorraft.raft.log import RaftLog
from actorraft.raft.messages import LogEntry
from tests.cluster.helpers import Spawn, agree, follower_of
from tests.faults.machines import Big
from tests.faults.test_disk_errors import Payload
from tests.faults.test_strangers import resident_bytes

MIB = 1 << 20
TIGHT = RaftConfig(
    snapshot_after_bytes=4 * MIB, trailing_bytes_max=2 * MIB, inflight_bytes_max=2 * MIB, uncommitted_bytes_max=8 * MIB
)
BOUND = 4 * (4 + 2 + 2 + 8) * MIB  # the sum of these, and what copies and the allocator make of it


def load(cluster: Cluster[Big], megabytes: int) -> None:
    """Write that much, in commands of 100 KB, twenty at a time."""
    waiting = []
    for _ in range(10 * megabytes):
        waiting.append(cluster.submit(Payload(100_000), timeout=30.0))
        if len(waiting) >= 20:
            waiting.pop(0).result()
    for future in waiting:
        future.result()


@pytest.mark.cluster
@pytest.mark.parametrize("how", ["pause", "kill"])
def test_a_follower_that_takes_nothing_does_not_grow_the_leader(raft_cluster: Spawn, how: str) -> None:
    cluster = raft_cluster(Big, nodes=3, config=TIGHT)
    load(cluster, 10)
    stuck = follower_of(cluster)
    others = [node_id for node_id in cluster.nodes if node_id != stuck]  # either of them may lead, on a busy machine
    before = {node_id: resident_bytes(cluster, node_id) for node_id in others}

    getattr(cluster.nodes[stuck], how)()
    load(cluster, 200)

    grown = max(resident_bytes(cluster, node_id) - before[node_id] for node_id in others)
    assert grown < BOUND, f"{grown / MIB:.0f} MiB more after 200 MB"
    if how == "pause":
        cluster.nodes[stuck].resume()
    else:
        cluster.nodes[stuck].restart()
    agree(cluster)


def test_what_is_kept_behind_a_snapshot_is_bounded_in_bytes() -> None:
    log = RaftLog([LogEntry(1, b"x" * 100) for _ in range(10)])
    assert log.count_within(1000, 9) == 10
    assert log.count_within(999, 9) == 9
    assert log.count_within(250, 5) == 2
    assert log.count_within(50, 9) == 0
    log.compact(4)
    assert log.count_within(1000, 9) == 6
    assert log.count_within(1000, 2) == 0
