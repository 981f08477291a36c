"""The nemesis in short: the sound system passes, and each planted bug is found."""

from __future__ import annotations

import os
import subprocess

import pytest

from actorraft.simulation.linearizability import Operation, read_history
from tests.nemesis import namespaces
from tests.nemesis.faults import ALL
from tests.nemesis.judge import lost_writes
from tests.nemesis.machine import Registers
from tests.nemesis.planted import AcknowledgesBeforeCommit, ForgetsSessions, ReadsWithoutAQuorum
from tests.nemesis.run import Options, Report, run


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_sound_cluster_survives_all_faults(tmp_path, seed):
    history = tmp_path / "history.jsonl"

    report = run(Options(seconds=15, faults=set(ALL), seed=seed, history=history))

    assert report.complaints == []
    assert report.judgement.statuses["ok"] > 500
    assert len(report.faults.done) >= 10
    assert sum(1 for _ in read_history(history)) == report.judgement.linearizable.operations


def torment(machine: type[Registers], faults: set[str], seed: int) -> Report:
    """Run a planted machine until it is found out, three times at most."""
    for attempt in range(3):
        report = run(
            Options(
                seconds=8, faults=faults, nodes=3, seed=seed + attempt, machine=machine, durability="os", rate=200.0
            )
        )
        if report.complaints:
            break
    return report


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("machine", "faults"),
    [
        (AcknowledgesBeforeCommit, {"partition", "kill"}),
        (ReadsWithoutAQuorum, {"partition", "pause"}),
        (ForgetsSessions, {"kill", "pause"}),
    ],
    ids=["acknowledges before the commit", "reads without a quorum", "forgets sessions"],
)
def test_a_planted_bug_is_found(machine, faults, seed):
    report = torment(machine, faults, seed)

    assert report.judgement.linearizable.violations


@pytest.mark.skipif(namespaces.why_not() is not None, reason="no network namespaces here")
def test_the_namespaces_of_a_run_that_was_killed_are_removed_by_the_next() -> None:
    over = subprocess.Popen(["true"])
    over.wait()
    left, ours = [f"nem{over.pid}{end}" for end in ("r", "n12", "p")], f"nem{os.getpid()}n251"
    for name in (*left, ours):
        subprocess.run(["ip", "netns", "add", name], check=True)
    namespaces.remove_abandoned()
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    subprocess.run(["ip", "netns", "del", ours], check=True)
    assert [name for name in (*left, ours) if name in listed] == [ours]


def test_an_append_that_is_missing_at_the_end_is_a_lost_write():
    kept = Operation("1", "append", "a", "x;", status="ok", call_ns=1, return_ns=2)
    missing = Operation("1", "append", "a", "y;", status="ok", call_ns=3, return_ns=4)
    unknown = Operation("2", "append", "a", "z;", status="unknown", call_ns=5)
    last = Operation("last", "get", "a", result="x;", status="ok", call_ns=9, return_ns=10)

    assert lost_writes([kept, missing, unknown], [last]) == [missing]


def test_a_put_is_lost_if_the_last_value_was_written_before_it_began():
    first = Operation("1", "put", "r", "x;", status="ok", call_ns=1, return_ns=2)
    beside = Operation("2", "put", "r", "y;", status="ok", call_ns=1, return_ns=5)
    later = Operation("1", "put", "r", "z;", status="ok", call_ns=3, return_ns=4)
    failed = Operation("1", "cas", "r", "w;", "no", False, status="ok", call_ns=6, return_ns=7)
    last = Operation("last", "get", "r", result="x;", status="ok", call_ns=9, return_ns=10)

    assert lost_writes([first, beside, later, failed], [last]) == [later]


def test_a_put_is_lost_if_nothing_is_there_and_nobody_deleted():
    put = Operation("1", "put", "r", "x;", status="ok", call_ns=1, return_ns=2)
    last = Operation("last", "get", "r", result=None, status="ok", call_ns=9, return_ns=10)

    assert lost_writes([put], [last]) == [put]
    assert lost_writes([put, Operation("2", "delete", "r", call_ns=3)], [last]) == []
