"""A clean end leaves nothing to replay: whatever code the next start runs, what was acknowledged is not computed anew."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import actorraft
from actorraft import ReplicatedStateMachine, StateMachine, command
from actorraft.storage.disk import DiskStorage
from benchmarks.others.processes import free_ports
from statemachines.kv import KVStore
from tests.cluster.helpers import eventually, follower_of
from tests.cluster.machines import Ledger

pytestmark = pytest.mark.cluster


class HasNoSnapshot(StateMachine):
    """A machine whose state cannot be had."""

    def __init__(self) -> None:
        self.count = 0

    @command
    def add(self) -> int:
        self.count += 1
        return self.count

    def snapshot(self) -> int:
        raise ValueError("not today")

    def restore(self, state: int) -> None:
        self.count = state


def left(folder: Path) -> tuple[int, int]:
    """Return of a node's folder (the index of its snapshot, how many commands the log has behind that)."""
    store = DiskStorage(folder, create=False)
    try:
        recovered = store.recover()
    finally:
        store.close()
    index = recovered.snapshot.snapshot_id.index if recovered.snapshot is not None else -1
    behind = list(recovered.entries)[index + 1 - recovered.first_index :]
    return index, sum(type(entry.item) is bytes for entry in behind)


def all_left(data: Path) -> dict[int, tuple[int, int]]:
    return {int(folder.name.rpartition("-")[2]): left(folder) for folder in sorted(data.glob("node-*"))}


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_close_leaves_a_snapshot_at_one_index_on_every_node(tmp_path: Path, transport: str) -> None:
    with ReplicatedStateMachine(Ledger).spawn(3, data_dir=tmp_path / "data", transport=transport) as cluster:
        ledger = cluster.proxy()
        behind = cluster.nodes[follower_of(cluster)]
        behind.pause()
        for number in range(50):
            ledger.append("k", number)
        behind.resume()
        ledger.append("k", 50)
    found = all_left(tmp_path / "data")
    assert {commands for _, commands in found.values()} == {0}
    assert len({index for index, _ in found.values()}) == 1


def test_a_partition_does_not_keep_nodes_from_their_common_end(tmp_path: Path) -> None:
    with ReplicatedStateMachine(Ledger).spawn(3, data_dir=tmp_path / "data") as cluster:
        leader = cluster.wait_for_leader()
        cluster.partition({leader, follower_of(cluster)})
        cluster.proxy().append("k", 1)
    assert {commands for _, commands in all_left(tmp_path / "data").values()} == {0}


def test_nothing_is_written_if_nothing_was_applied_since_the_last(tmp_path: Path) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.snapshot") if path.is_file()}

    with ReplicatedStateMachine(Ledger).spawn(3, data_dir=tmp_path / "data") as cluster:
        cluster.proxy().append("k", 1)
    before = files()
    assert before
    with ReplicatedStateMachine(Ledger).spawn(data_dir=tmp_path / "data"):
        pass
    assert files() == before


def test_the_stop_of_the_last_quorum_leaves_nothing_to_replay_and_a_restart_goes_on(tmp_path: Path) -> None:
    with ReplicatedStateMachine(Ledger).spawn(3, data_dir=tmp_path / "data") as cluster:
        ledger = cluster.proxy(timeout=30.0)
        for number in range(20):
            ledger.append("k", number)
        first, second, third = sorted(cluster.nodes, key=lambda node_id: node_id == cluster.leader())
        cluster.nodes[first].stop()
        for number in range(20):
            ledger.append("k", number)
        cluster.nodes[second].stop()
        cluster.nodes[third].kill()  # it has nothing more to do
        found = all_left(tmp_path / "data")
        assert found[second][1] == found[third][1] == 0
        assert found[second][0] == found[third][0] > found[first][0]
        for node in cluster.nodes.values():
            node.restart()
        assert ledger.append("k", 40) == 41


def test_nodes_that_were_left_by_a_quorum_take_commands_again_when_it_is_back(tmp_path: Path) -> None:
    with ReplicatedStateMachine(Ledger).spawn(3, data_dir=tmp_path / "data") as cluster:
        ledger = cluster.proxy(timeout=30.0)
        ledger.append("k", 0)
        cluster.nodes[0].stop()
        cluster.nodes[1].stop()
        cluster.nodes[1].restart()
        assert ledger.append("k", 1) == 2
        cluster.remove_node(0)
        cluster.remove_node(1)
        assert ledger.append("k", 2) == 3


def test_a_node_that_is_stopped_leaves_its_own_snapshot(tmp_path: Path) -> None:
    with ReplicatedStateMachine(Ledger).spawn(3, data_dir=tmp_path / "data") as cluster:
        for number in range(20):
            cluster.proxy().append("k", number)
        node_id = follower_of(cluster)
        cluster.nodes[node_id].stop()
        assert cluster.nodes[node_id].exit_code == 0
        index, commands = left(tmp_path / "data" / f"node-{node_id}")
        assert index > 0
        assert commands <= 1  # that the last one is committed it may not have heard


def test_a_snapshot_that_fails_delays_no_end_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ReplicatedStateMachine(HasNoSnapshot).spawn(3, data_dir=tmp_path / "data") as cluster:
        assert cluster.proxy().add() == 1
        begun_s = time.monotonic()
        with caplog.at_level(logging.WARNING, logger="actorraft"):
            cluster.close(timeout=60.0)
    assert time.monotonic() - begun_s < 30.0
    assert sum("no clean end of node" in record.message for record in caplog.records) == 3
    with ReplicatedStateMachine(HasNoSnapshot).spawn(data_dir=tmp_path / "data") as cluster:
        assert cluster.proxy().add() == 2


def test_what_is_not_done_in_time_is_skipped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cluster = ReplicatedStateMachine(Ledger).spawn(3, data_dir=tmp_path / "data")
    cluster.proxy().append("k", 1)
    with caplog.at_level(logging.WARNING, logger="actorraft"):
        cluster.close(timeout=0.0)
    assert any("no clean end" in record.message for record in caplog.records)
    with ReplicatedStateMachine(Ledger).spawn(data_dir=tmp_path / "data") as cluster:
        assert cluster.proxy().append("k", 2) == 2


def test_a_closed_cluster_of_which_a_majority_is_down_says_that_its_end_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ReplicatedStateMachine(Ledger).spawn(3, data_dir=tmp_path / "data") as cluster:
        cluster.proxy().append("k", 1)
        cluster.nodes[0].kill()
        cluster.nodes[1].kill()
        begun_s = time.monotonic()
        with caplog.at_level(logging.WARNING, logger="actorraft"):
            cluster.close(timeout=60.0)
    assert time.monotonic() - begun_s < 30.0
    assert any("no majority" in record.message for record in caplog.records)


def run(folder: Path, script: str) -> str:
    """Run a program that imports what is in `folder`; return what it printed."""
    root = str(Path(actorraft.__file__).parent.parent)
    head = f"import sys; sys.dont_write_bytecode = True; sys.path[:0] = [{root!r}, {str(folder)!r}]\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(script)], capture_output=True, text=True, timeout=90, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SHOP = """
from actorraft import StateMachine, command
class Shop(StateMachine):
    def __init__(self): self.sales = 0
    @command
    def buy(self, n): self.sales += n{}; return self.sales
"""


def test_an_ordinary_deploy_changes_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    opened = f"""
        from actorraft import ReplicatedStateMachine, RaftConfig
        from shop import Shop
        with ReplicatedStateMachine(Shop).spawn(3, data_dir={str(tmp_path / "data")!r}) as cluster:
    """
    (tmp_path / "shop.py").write_text(SHOP.format(""))
    assert run(tmp_path, opened + "        print([cluster.proxy().buy(1) for _ in range(5)])") == "[1, 2, 3, 4, 5]\n"
    (tmp_path / "shop.py").write_text(SHOP.format(" * 10"))
    again = run(
        tmp_path,
        opened
        + """
            print([cluster.query(lambda shop: shop.sales, to=node_id) for node_id in cluster.nodes])
            print(cluster.proxy().buy(1))
        """,
    )
    assert again == "[5, 5, 5]\n15\n"


def write_to_the_end(client: actorraft.Client[KVStore]) -> None:
    proxy = client.proxy(timeout=1.0)
    with contextlib.suppress(actorraft.ActorRaftError):
        while True:
            proxy.set("k", "on")


@pytest.mark.parametrize("busy", [False, True])
def test_serve_leaves_its_own_snapshot_when_it_is_asked_to_leave(tmp_path: Path, busy: bool) -> None:
    words = [sys.executable, "-m", "actorraft"]
    init = [
        "init",
        str(tmp_path / "bank"),
        "--machine",
        "statemachines.kv:KVStore",
        "--nodes",
        f"127.0.0.1:{free_ports(1)[0]}",
    ]
    subprocess.run([*words, *init], check=True, capture_output=True)
    node = subprocess.Popen([*words, "serve", str(tmp_path / "bank" / "node-0")], stdout=subprocess.PIPE, text=True)
    try:
        assert node.stdout is not None
        assert "serves" in node.stdout.readline()
        with actorraft.connect(str(tmp_path / "bank" / "client"), KVStore) as client:
            eventually(lambda: client.leader() is not None, what="it leads")
            for number in range(10):
                client.proxy(timeout=30.0).set("k", number)
            if busy:
                writer = threading.Thread(target=write_to_the_end, args=(client,), daemon=True)
                writer.start()
                eventually(lambda: client.proxy(timeout=30.0).get("k") == "on", what="it is written to")
                node.send_signal(signal.SIGTERM)
                assert node.wait(30) == 0
        if not busy:  # a client's goodbye is on its way, perhaps
            node.send_signal(signal.SIGTERM)
            assert node.wait(30) == 0
    finally:
        node.kill()
        node.communicate()
    index, commands = left(tmp_path / "bank" / "node-0" / "data")
    assert index > 0
    assert commands == 0
