"""However it ends (close, Ctrl-C, an error, SIGKILL of the parent), no process, thread, socket or file is left."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from actorraft import OutcomeUnknown, ReplicatedStateMachine, Unavailable, UsageError
from tests.cluster.helpers import SCRIPTS, Spawn, eventually, is_gone, running
from tests.cluster.machines import EndsTheProcess, Ledger

pytestmark = pytest.mark.cluster

PROMPT_S = 15.0  # of the 30 s that a start may take, and the 60 s of a call that is stuck


# --- close ---


def test_close_leaves_no_process_and_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cluster = ReplicatedStateMachine(Ledger).spawn(3)
    pids = [node.pid for node in cluster.nodes.values()]
    run_dir = cluster._processes.place.run_dir
    assert run_dir.exists()
    cluster.close()
    cluster.close()
    assert all(pid is not None and is_gone(pid) for pid in pids)
    assert not run_dir.exists()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="closed"):
        cluster.proxy().append("k", 1)
    with pytest.raises(UsageError, match="closed"):
        cluster.nodes[0].restart()
    assert "closed" in repr(cluster)
    assert cluster.nodes[0].pid is None


def test_close_ends_nodes_that_are_paused_or_stuck(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(EndsTheProcess, nodes=3)
    pids = [node.pid or 0 for node in cluster.nodes.values()]
    cluster.proxy(timeout=None).stay_in_c.submit(60)
    eventually(lambda: any(row.error for row in cluster.status()), what="a node is stuck")
    cluster.nodes[0].pause()
    begun_s = time.monotonic()
    cluster.close()
    assert time.monotonic() - begun_s < PROMPT_S
    assert all(is_gone(pid) for pid in pids)


def test_close_ends_calls_that_are_outstanding(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    ledger = cluster.proxy(timeout=None)
    ledger.append("k", 0)
    for node in cluster.nodes.values():
        node.pause()
    futures = [ledger.append.submit("k", number) for number in range(1, 1000)]
    asked = ledger.count.submit("k")
    cluster.close()
    assert isinstance(asked.exception(timeout=5), Unavailable)
    assert {type(future.exception(timeout=5)) for future in futures} <= {OutcomeUnknown, Unavailable}


def test_an_exception_in_the_with_block_closes_the_cluster_and_goes_on() -> None:
    pids = []
    with pytest.raises(ZeroDivisionError), ReplicatedStateMachine(Ledger).spawn(1) as cluster:
        pids.append(cluster.nodes[0].pid or 0)
        _ = 1 // 0
    assert is_gone(pids[0])


def test_closing_a_client_closes_only_itself(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=1)
    with cluster.client() as other:
        assert other.proxy().append("k", 1) == 1
    with pytest.raises(UsageError, match="closed"):
        other.execute(len)
    assert cluster.proxy().append("k", 2) == 2


def test_ctrl_c_while_close_waits_ends_the_processes_at_once(raft_cluster: Spawn) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    cluster = raft_cluster(EndsTheProcess, nodes=1)
    pid = cluster.nodes[0].pid or 0
    cluster.proxy(timeout=None).stay_in_c.submit(60)
    eventually(lambda: cluster.status()[0].error, what="the node is stuck")
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            cluster.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert is_gone(pid)
    assert not cluster._processes.place.run_dir.exists()


def test_close_while_a_node_is_being_started_again(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    os.kill(cluster.nodes[0].pid or 0, signal.SIGKILL)
    begun_s = time.monotonic()
    cluster.close()
    assert time.monotonic() - begun_s < PROMPT_S


def test_clusters_one_after_another_leave_no_descriptor_thread_or_process(raft_cluster: Spawn) -> None:
    def open_and_close(nodes: int) -> tuple[int, int, int]:
        cluster = raft_cluster(dict, nodes=nodes)
        cluster.execute(lambda state: state.update(a=1))
        cluster.close()
        children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
        return len(os.listdir("/proc/self/fd")), threading.active_count(), len(children)

    open_and_close(3)
    before = open_and_close(1)
    after = [open_and_close(nodes) for nodes in (1, 1, 1, 1, 1, 3)]
    assert after == [before] * 6


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_fifty_clusters_leave_no_descriptor_thread_or_process(raft_cluster: Spawn) -> None:
    before = None
    for turn in range(50):
        cluster = raft_cluster(dict, nodes=3 if turn % 5 == 0 else 1, transport="tcp" if turn % 7 == 0 else "ipc")
        assert cluster.execute(len) == 0
        cluster.close()
        now = len(os.listdir("/proc/self/fd")), threading.active_count()
        if turn == 1:
            before = now
    assert now == before


# --- Forgotten ---


LEAKED = """
import gc, sys, warnings
from actorraft import ReplicatedStateMachine
def leak():
    cluster = ReplicatedStateMachine(dict).spawn(1)
    cluster.execute(lambda state: state.update(a=1))
    {keep}
leak()
gc.collect()
print("end")
"""


@pytest.mark.parametrize("keep", ["pass", "sys.kept = cluster"])
def test_a_leaked_cluster_warns_and_is_gone_with_the_interpreter(keep: str) -> None:
    with running("-W", "always::ResourceWarning", "-c", LEAKED.format(keep=keep)) as script:
        code, said, errors = script.finish()
        assert (code, said) == (0, "end\n")
        assert "ResourceWarning: unclosed <Cluster" in errors
        assert "Traceback" not in errors
        assert (script.processes(), script.left_files()) == ([], [])


def test_pytest_ends_when_a_test_leaks_a_cluster_and_names_it(tmp_path: Path) -> None:
    (tmp_path / "test_leak.py").write_text(
        "from actorraft import ReplicatedStateMachine\n"
        "def test_leak():\n    global kept\n    kept = ReplicatedStateMachine(dict).spawn(1)\n"
        "def test_after(): pass\n"
    )
    with running("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path), cwd=tmp_path) as script:
        code, said, _ = script.finish()
        assert code == 1
        assert 'the test left open: <Cluster "dict" 1 nodes' in said
        assert "2 passed, 1 error" in said
        assert script.processes() == []


def test_open_futures_do_not_keep_the_interpreter() -> None:
    program = (
        "from actorraft import ReplicatedStateMachine\n"
        "cluster = ReplicatedStateMachine(dict).spawn(3)\n"
        "for node in cluster.nodes.values(): node.pause()\n"
        "future = cluster.submit(len, timeout=None)\n"
        "print('end')\n"
    )
    with running("-c", program) as script:
        code, said, errors = script.finish(within_s=30)
        assert (code, said) == (0, "end\n"), errors
        assert (script.processes(), script.left_files()) == ([], [])


# --- Forks ---


def test_a_fork_of_the_parent_neither_closes_the_cluster_nor_keeps_it_alive() -> None:
    program = (
        "import os, sys, time\n"
        "from actorraft import ReplicatedStateMachine\n"
        "cluster = ReplicatedStateMachine(dict).spawn(3)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    cluster.close()\n"
        "    sys.exit(0)\n"  # with its exit handlers
        "os.waitpid(child, 0)\n"
        "assert cluster.execute(len) == 0\n"
        "if os.fork() == 0:\n"
        "    time.sleep(30)\n"
        "    os._exit(0)\n"
        "print('ready', flush=True)\n"
        "time.sleep(30)\n"
    )
    with running("-c", program) as script:
        assert script.line() == "ready"
        script.process.kill()
        eventually(lambda: len(script.processes()) == 1, within_s=2.0, what="the nodes die, the fork sleeps on")


# --- The parent is killed ---


@pytest.mark.parametrize("what", ["idle", "paused", "in C", "load", "starting"])
def test_no_process_is_left_two_seconds_after_the_parent_was_killed(what: str) -> None:
    with running(str(SCRIPTS / "parent.py"), what) as script:
        script.line()
        script.process.kill()
        eventually(lambda: not script.processes(), within_s=2.0, what="every node is gone")


# --- Ctrl-C ---


@pytest.mark.parametrize(
    ("phase", "transport"),
    [
        ("spawn", "ipc"),
        ("spawn_async", "ipc"),
        ("load", "ipc"),
        ("load", "tcp"),
        ("call", "ipc"),
        ("with", "ipc"),
        ("nodes paused", "ipc"),
        ("close", "ipc"),
    ],
)
def test_ctrl_c_stops_it_cleanly(phase: str, transport: str) -> None:
    last = {"spawn": "imported", "spawn_async": "imported", "nodes paused": "paused", "close": "closing"}.get(
        phase, "spawned"
    )
    with running(str(SCRIPTS / "ctrl_c.py"), phase, transport) as script:
        while script.line() != last:
            pass
        if phase.startswith("spawn"):
            eventually(lambda: len(script.processes()) == 3)
        begun_s = time.monotonic()
        script.process.send_signal(signal.SIGINT)
        code, _, errors = script.finish(within_s=20)
        assert time.monotonic() - begun_s < PROMPT_S
        assert code in (-signal.SIGINT, 1)
        assert errors.count("Traceback") == (2 if phase == "spawn_async" else 1), errors  # asyncio shows both sides
        assert errors.rstrip().endswith("KeyboardInterrupt"), errors
        assert (script.processes(), script.left_files()) == ([], [])


def test_a_group_of_processes_that_gets_ctrl_c_keeps_its_nodes_for_the_handler() -> None:
    """A terminal sends SIGINT to the whole group: only the parent takes it, and may go on."""
    program = (
        "import os, signal\n"
        "from actorraft import ReplicatedStateMachine\n"
        "with ReplicatedStateMachine(dict).spawn(3) as cluster:\n"
        "    try:\n"
        "        os.killpg(0, signal.SIGINT)\n"
        "        signal.pause()\n"
        "    except KeyboardInterrupt:\n"
        "        print(cluster.execute(len), sum(node.alive for node in cluster.nodes.values()))\n"
    )
    with running("-c", f"import os; os.setpgid(0, 0)\n{program}") as script:
        code, said, errors = script.finish()
        assert (code, said) == (0, "0 3\n"), errors
