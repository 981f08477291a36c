"""What `spawn` refuses, and that a refusal says why and leaves nothing behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from actorraft import RaftConfig, ReplicatedStateMachine, StartError, UsageError
from tests.cluster.helpers import ROOT, Spawn, is_gone, running
from tests.cluster.machines import EndsTheProcess, FailsToStart, Ledger, StartsIn

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A refused spawn leaves no thread, no process and no file."""
    temporary = tmp_path_factory.mktemp("t")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    threads, before = threading.active_count(), set(children.read_text().split())  # some are other tests'
    yield
    assert list(temporary.iterdir()) == []
    assert threading.active_count() <= threads
    assert [pid for pid in set(children.read_text().split()) - before if not is_gone(int(pid))] == []


# --- Arguments ---


@pytest.mark.parametrize("nodes", ["5", True, 2.0, [3]])
def test_nodes_that_are_no_whole_number_are_a_type_error(nodes: Any) -> None:
    with pytest.raises(TypeError, match="nodes is a whole number"):
        ReplicatedStateMachine(Ledger).spawn(nodes)


@pytest.mark.parametrize("nodes", [0, -1])
def test_fewer_nodes_than_one_are_a_value_error(nodes: int) -> None:
    with pytest.raises(ValueError, match="at least 1 node"):
        ReplicatedStateMachine(Ledger).spawn(nodes)


def test_options_that_there_are_not_are_named() -> None:
    with pytest.raises(UsageError, match='"ipc" or "tcp", not \'udp\''):
        ReplicatedStateMachine(Ledger).spawn(1, transport="udp")
    with pytest.raises(UsageError, match='"os" or "fsync", not \'never\''):
        ReplicatedStateMachine(Ledger).spawn(1, durability="never")
    with pytest.raises(ValueError, match=r"election_timeout_ticks \(3\) must be above heartbeat_ticks"):
        RaftConfig(election_timeout_ticks=3, heartbeat_ticks=3)


# --- Machines ---


def test_an_instance_is_no_machine() -> None:
    with pytest.raises(UsageError, match="give the class, not an instance"):
        ReplicatedStateMachine(Ledger())  # type: ignore[arg-type]


def test_arguments_that_cannot_be_pickled_are_refused_at_once() -> None:
    with pytest.raises(UsageError, match="lock"):
        ReplicatedStateMachine(dict, key=threading.Lock())


def test_a_class_that_cannot_be_pickled_is_refused_at_once() -> None:
    lock = threading.Lock()

    class Locked(Ledger):
        held = lock

    with pytest.raises(UsageError, match="lock"):
        ReplicatedStateMachine(Locked)


def test_a_constructor_that_raises_says_so_with_its_own_traceback() -> None:
    with pytest.raises(StartError, match="RuntimeError: no machine today: monday") as caught:
        ReplicatedStateMachine(FailsToStart, "monday").spawn(3)
    assert "machines.py" in str(caught.value)


def test_a_constructor_that_wants_other_arguments_says_so() -> None:
    with pytest.raises((StartError, TypeError, UsageError), match="currency"):
        ReplicatedStateMachine(Ledger, currency="EUR").spawn(1)  # type: ignore[call-arg]


def test_a_constructor_that_does_not_end_is_given_up_in_time() -> None:
    with pytest.raises(StartError, match="said nothing within"):
        ReplicatedStateMachine(StartsIn, 600.0).spawn(1, timeout=2.0)


def test_a_slow_constructor_is_waited_for(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(ReplicatedStateMachine(StartsIn, 1.0), nodes=1)
    assert cluster.query(lambda machine: True)


# --- The data directory ---


def test_a_file_in_the_way_of_the_data_dir_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(UsageError, match="file"):
            ReplicatedStateMachine(Ledger).spawn(1, data_dir=path)


def test_a_data_dir_that_cannot_be_written_is_named() -> None:
    with pytest.raises(UsageError, match="/proc/actorraft"):
        ReplicatedStateMachine(Ledger).spawn(1, data_dir="/proc/actorraft")


def test_a_directory_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    tmp_path.chmod(0o755)
    with pytest.raises(UsageError, match=str(tmp_path)):
        ReplicatedStateMachine(Ledger).spawn(1, data_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_a_data_dir_that_this_process_has_in_use_is_refused_at_once(tmp_path: Path, raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=1, data_dir=tmp_path / "data")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    begun_s = time.monotonic()
    for path in (tmp_path / "data", tmp_path / "link"):
        with pytest.raises(UsageError, match=r"in use by process \d+, which is this one"):
            ReplicatedStateMachine(Ledger).spawn(1, data_dir=path)
    assert time.monotonic() - begun_s < 5.0
    cluster.close()
    raft_cluster(Ledger, nodes=1, data_dir=tmp_path / "link")


@pytest.mark.slow  # a lock is waited for, its holder may be about to end
def test_a_data_dir_that_another_process_has_in_use_is_refused(tmp_path: Path, raft_cluster: Spawn) -> None:
    raft_cluster(Ledger, nodes=1, data_dir=tmp_path / "data").proxy().append("k", 1)
    script = (
        "from actorraft import ReplicatedStateMachine\n"
        "from tests.cluster.machines import Ledger\n"
        f"ReplicatedStateMachine(Ledger).spawn(data_dir={str(tmp_path / 'data')!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "UsageError" in done.stderr
    assert "in use" in done.stderr


def test_what_a_data_dir_holds_is_there_for_the_first_read_a_stale_one_too(tmp_path: Path, raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3, data_dir=tmp_path / "data")
    for number in range(100):
        cluster.proxy().append("k", number)
    for _ in range(3):
        cluster.close()
        cluster = raft_cluster(Ledger, data_dir=tmp_path / "data")
        assert cluster.proxy(consistency="stale").count("k") == 100


def test_a_data_dir_serves_only_the_machine_and_the_number_of_nodes_it_was_made_for(
    tmp_path: Path, raft_cluster: Spawn
) -> None:
    data = tmp_path / "data"
    raft_cluster(Ledger, nodes=3, data_dir=data).close()
    with pytest.raises(UsageError, match=r"Ledger.*EndsTheProcess|EndsTheProcess.*Ledger"):
        ReplicatedStateMachine(EndsTheProcess).spawn(data_dir=data)
    with pytest.raises(UsageError, match="3 nodes, not 5"):
        ReplicatedStateMachine(Ledger).spawn(5, data_dir=data)
    folder = next(path for path in sorted(data.iterdir()) if path.is_dir())
    shutil.move(folder, tmp_path / "moved")
    with pytest.raises(UsageError, match=r"node-0.*what node 0 had acknowledged is gone"):
        ReplicatedStateMachine(Ledger).spawn(data_dir=data)
    shutil.move(tmp_path / "moved", folder)
    assert len(raft_cluster(Ledger, data_dir=data).nodes) == 3


def test_a_temporary_directory_whose_path_is_long_is_no_obstacle(tmp_path: Path) -> None:
    long = tmp_path / ("deep" * 20) / ("deeper" * 10)
    long.mkdir(parents=True)
    script = (
        f"import tempfile; tempfile.tempdir = {str(long)!r}\n"
        "from actorraft import ReplicatedStateMachine\n"
        "with ReplicatedStateMachine(dict).spawn(1) as cluster: print(cluster.execute(len))\n"
    )
    with running("-c", script) as child:
        assert child.finish()[:2] == (0, "0\n")
        assert (child.processes(), child.left_files(), list(long.iterdir())) == ([], [], [])


def test_tcp_is_for_who_has_keys(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3, transport="tcp")
    assert cluster.proxy().append("k", 1) == 1
    with cluster.client() as other:
        assert other.proxy().append("k", 2) == 2
    assert all(endpoint.startswith("tcp://127.0.0.1:") for endpoint in cluster.endpoints.values())
