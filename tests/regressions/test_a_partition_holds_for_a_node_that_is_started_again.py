"""A node that was started again in a partition was told where its peers are, and not that it is cut off from them."""

from __future__ import annotations

import os
import signal
import time

import pytest

from actorraft import Supervision
from tests.cluster.helpers import Spawn, agree, eventually, follower_of
from tests.cluster.machines import Ledger


@pytest.mark.cluster
@pytest.mark.parametrize("how", ["restart", "supervision"])
def test_a_node_that_is_started_again_stays_on_its_side(raft_cluster: Spawn, how: str) -> None:
    cluster = raft_cluster(Ledger, nodes=3, supervision=Supervision(backoff_s=(0.0, 0.0)))
    proxy = cluster.proxy(timeout=20.0)
    proxy.append("k", 0)
    alone = follower_of(cluster)
    cluster.partition({alone}, set(cluster.nodes) - {alone})
    if how == "restart":
        cluster.nodes[alone].restart()
    else:
        pid = cluster.nodes[alone].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: cluster.nodes[alone].pid not in (None, pid))
        eventually(lambda: cluster.status()[alone].error is None, what="it answers")

    knew = cluster.status()[alone].commit_index  # from its own disk
    count, until_s = 1, time.monotonic() + 1.0  # tens of heartbeats and reconnections, each of which would tell it
    while time.monotonic() < until_s or count < 50:
        count = proxy.append("k", count)
    row = cluster.status()[alone]
    assert row.state != "leader"
    assert row.commit_index == knew  # no leader has told it anything since it was started
    assert row.commit_index < cluster.status()[cluster.wait_for_leader()].commit_index - 40
    assert len(cluster.proxy(to=alone, consistency="stale", timeout=5.0).get("k")) <= 1

    cluster.heal()
    agree(cluster)
    assert len(cluster.proxy(to=alone, timeout=20.0).get("k")) == count
