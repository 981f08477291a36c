"""A node that dies unasked is started again, with its last words in log and status; one that says why, not for ever."""

from __future__ import annotations

import contextlib
import logging
import os
import signal

import pytest

from actorraft import ActorRaftError, Supervision
from actorraft.actors.supervision import RestartLog
from actorraft.node.machine_thread import EXIT_MACHINE
from tests.cluster.helpers import Spawn, agree, eventually, follower_of
from tests.cluster.machines import EndsTheProcess, Ledger
from tests.faults.helpers import error_of


def messages(caplog: pytest.LogCaptureFixture, node_id: int) -> str:
    """All that the cluster's log says of a node."""
    return "\n".join(one.message for one in caplog.records if one.name == f"actorraft.node.{node_id}")


@pytest.mark.cluster
def test_a_node_that_is_killed_from_outside_is_started_again_and_the_log_says_what_happened(
    raft_cluster: Spawn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="actorraft")
    cluster = raft_cluster(
        Ledger, nodes=3, supervision=Supervision(backoff_s=(5.0, 5.0))
    )  # longer than a look at a dead node takes
    victim = follower_of(cluster)
    pid = cluster.nodes[victim].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: "killed by SIGKILL" in error_of(cluster, victim))
    eventually(lambda: cluster.nodes[victim].alive and not error_of(cluster, victim))
    assert cluster.nodes[victim].pid != pid
    assert f"node {victim} is gone: killed by SIGKILL" in messages(caplog, victim)
    assert f"node {victim} is started again in 5.0 s" in messages(caplog, victim)
    agree(cluster)


@pytest.mark.cluster
def test_a_machine_that_cannot_go_on_stops_its_node_with_the_reason_and_is_given_up_in_the_end(
    raft_cluster: Spawn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="actorraft")
    cluster = raft_cluster(EndsTheProcess, nodes=1, supervision=Supervision(max_restarts=2, backoff_s=(0.01, 0.02)))
    cluster.proxy().break_the_library()
    with contextlib.suppress(ActorRaftError):
        cluster.proxy(timeout=0.5).lose_the_disk()
    eventually(lambda: "stays down" in caplog.text, what="it is given up")
    assert "no disk is left" in messages(caplog, 0)
    assert f"exit code {EXIT_MACHINE}" in messages(caplog, 0)
    assert "lose_the_disk" in error_of(cluster, 0)  # what it died of twice is named, and not tried a third time
    assert messages(caplog, 0).count("is started again") == 2


def test_ends_with_a_reason_are_counted_without_regard_to_the_period() -> None:
    rule = Supervision(max_restarts=3, period_s=10.0, backoff_s=(1.0, 4.0))
    crashes, reasons = RestartLog(rule), RestartLog(rule)
    at = [100.0 * number for number in range(5)]
    assert [crashes.next_delay_s(now, crashed=True) for now in at] == [1.0] * 5
    assert [reasons.next_delay_s(now, crashed=True, explained=True) for now in at] == [1.0, 1.0, 1.0, None, None]
