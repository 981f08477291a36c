"""A command that ends its process: it is named, nodes that die in it again stay down, and one line goes past it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from actorraft import Cluster, ReplicatedStateMachine, StateMachine, command, query
from actorraft.client.status import MemberStatus
from actorraft.errors import ActorRaftError, CommandFailed, StartError
from tests.cluster.helpers import ROOT, agree, eventually, follower_of

pytestmark = pytest.mark.cluster


class Deadly(StateMachine):
    """Commands that end their process in every way there is."""

    def __init__(self, cured: str = "") -> None:
        self.cured, self.n = cured, 0

    @command
    def add(self) -> int:
        self.n += 1
        return self.n

    @command
    def die(self, how: str, secret: str = "") -> int:
        self.n += 1
        if self.cured and Path(self.cured).exists():
            return self.n
        match how:
            case "exit":
                os._exit(3)
            case "clean exit":
                os._exit(0)
            case "segfault":
                ctypes.string_at(0)
            case "out of memory":
                os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does it
            case "abort":
                os.abort()
            case "SIGTERM":
                os.kill(os.getpid(), signal.SIGTERM)
            case "SIGTERM in its thread":
                signal.raise_signal(signal.SIGTERM)
            case "SIGTERM to its parent":
                os.kill(os.getppid(), signal.SIGTERM)
        return self.n

    @command
    def take(self, seconds: float) -> int:
        time.sleep(seconds)
        return self.add()

    @query
    def total(self) -> int:
        return self.n


def spawn(place: Path, nodes: int | None = 3, *, cured: str = "", timeout: float = 60.0) -> Cluster[Deadly]:
    return ReplicatedStateMachine(Deadly, cured).spawn(nodes, data_dir=place / "data", timeout=timeout)


def storage(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "actorraft.storage", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )


def poison(cluster: Cluster[Deadly], how: str) -> None:
    """Submit it, and wait until as many nodes stay down as leave no majority."""
    machine = cluster.proxy(timeout=3.0)
    cluster.proxy().add()
    with contextlib.suppress(ActorRaftError):
        machine.die(how, "a secret of the client's")
    eventually(lambda: len(down(cluster)) >= 2)


def down(cluster: Cluster[Any]) -> list[MemberStatus]:
    """The nodes that stay down; one that has said so may take a moment to end."""
    return [row for row in cluster.status() if "stays down" in (row.error or "") and not row.alive]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGTERM in its thread", "SIGTERM to its parent"])
def test_a_command_that_asks_its_own_node_to_leave_is_not_met_again(how: str) -> None:
    """Also where the data is thrown away at the end: until then its nodes are started again, and go on after it."""
    with ReplicatedStateMachine(Deadly).spawn(3) as cluster:
        events = cluster.events()
        pids = {node.pid for node in cluster.nodes.values()}
        with contextlib.suppress(ActorRaftError):
            cluster.proxy().die(how)
        eventually(lambda: all(node.alive and node.pid not in pids for node in cluster.nodes.values()))
        assert cluster.proxy(timeout=60.0).add() == 2
        agree(cluster)
        assert all(node.alive for node in cluster.nodes.values())
        left = []
        with contextlib.suppress(TimeoutError):
            while (event := events.get(0.0)) is not None:
                left += [event.node_id] * (event.kind == "exit")
        assert sorted(left, key=str) == [0, 1, 2]


@pytest.mark.parametrize("how", ["exit", "clean exit", "segfault", "out of memory", "abort"])
def test_nodes_that_die_in_a_command_again_stay_down_and_one_line_goes_past_it(tmp_path: Path, how: str) -> None:
    data = str(tmp_path / "data")
    with spawn(tmp_path) as cluster:
        poison(cluster, how)
        row = down(cluster)[0]
        assert row.error is not None
        assert "ended 2 times while it applied the entry at index " in row.error
        assert ", die of client " in row.error
        assert "a secret" not in row.error
        pids = {node_id: node.pid for node_id, node in cluster.nodes.items()}
    with pytest.raises(
        StartError, match=r"(?s)stays down.*actorraft\.storage skip .* --index \d+ --checksum \w+"
    ) as told:
        spawn(tmp_path, None)
    assert "die of client" in str(told.value)
    assert pids is not None

    index = str(told.value).partition("the entry at index ")[2].partition(" ")[0]
    shown = storage("show", data, "--index", index, "-o", "json")
    [row_] = json.loads(shown.stdout)
    assert (int(index), "die") == (row_["index"], row_["method"])
    assert {"term", "index", "client", "method", "size", "checksum"} <= row_.keys()
    assert "a secret" not in shown.stdout
    assert "a secret" in storage("show", data, "--index", index, "--arguments", "-o", "json").stdout
    assert 0 == storage("skip", data, "--index", index, "--checksum", row_["checksum"]).returncode

    with spawn(tmp_path, None) as cluster:
        machine = cluster.proxy()
        assert 1 == machine.total()
        assert 2 == machine.add()
        agree(cluster)
        assert all(row.error is None for row in cluster.status())
    with spawn(tmp_path, None) as cluster:
        assert 2 == cluster.proxy().total()


def test_a_client_that_waits_for_a_skipped_command_hears_that_it_was_skipped(tmp_path: Path) -> None:
    with spawn(tmp_path) as cluster:
        machine = cluster.proxy(timeout=120.0)
        call = machine.die.submit("exit")
        eventually(lambda: len(down(cluster)) >= 2)
        for node in cluster.nodes.values():
            node.stop()
        rows = json.loads(storage("show", str(tmp_path / "data"), "-o", "json").stdout)
        # The client has sent it again to each new leader; what it is then is a repetition, and is not run.
        row = next(row for row in rows if row["method"] == "die")
        refused = storage("skip", str(tmp_path / "data"), "--index", str(row["index"]), "--checksum", row["checksum"])
        assert "in use" in refused.stderr
        for folder in sorted((tmp_path / "data").glob("node-*")):
            done = storage("skip", str(folder), "--index", str(row["index"]), "--checksum", row["checksum"])
            assert 0 == done.returncode, done.stderr
        for node in cluster.nodes.values():
            node.restart()
        with pytest.raises(CommandFailed, match="was skipped by an operator"):
            call.result()
        assert 1 == machine.add()
        agree(cluster)


def test_a_node_whose_folder_was_elsewhere_learns_of_the_skip_on_its_links_and_goes_past_it_too(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with spawn(tmp_path) as cluster:
        poison(cluster, "exit")
    row = next(row for row in json.loads(storage("show", str(data), "-o", "json").stdout) if row["method"] == "die")
    for name in ("node-0", "node-2"):
        done = storage("skip", str(data / name), "--index", str(row["index"]), "--checksum", row["checksum"])
        assert 0 == done.returncode, done.stderr

    with spawn(tmp_path, None) as cluster:
        machine = cluster.proxy(timeout=60.0)
        assert 2 == machine.add()
        agree(cluster)
        eventually(lambda: all(row.alive and row.error is None for row in cluster.status()))
        assert (data / "node-1" / "skips.json").exists()
        added = cluster.add_node()
        assert 3 == machine.add()
        agree(cluster, [0, 1, 2, added])
    shown = json.loads(storage("show", str(data), "-o", "json").stdout)
    assert "(skips)" in [row["method"] for row in shown]


def test_once_the_machine_is_mended_the_next_spawn_applies_the_command(tmp_path: Path) -> None:
    cure = tmp_path / "cure"
    with spawn(tmp_path, cured=str(cure)) as cluster:
        poison(cluster, "exit")
    cure.touch()
    with spawn(tmp_path, None, cured=str(cure)) as cluster:
        assert 2 == cluster.proxy().total()
        agree(cluster)


def test_a_node_that_is_killed_from_outside_while_it_is_idle_is_not_poisoned(tmp_path: Path) -> None:
    with spawn(tmp_path) as cluster:
        machine = cluster.proxy()
        machine.add()
        victim = follower_of(cluster)
        for _ in range(3):
            eventually(lambda: {row.id: row.last_applied for row in cluster.status()}[victim] >= 1)
            pid = cluster.nodes[victim].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            eventually(lambda pid=pid: cluster.nodes[victim].pid not in (None, pid))
        eventually(lambda: all(row.alive and row.error is None for row in cluster.status()))
        machine.add()
        agree(cluster)


def test_what_was_applied_and_answered_is_not_skipped(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    with spawn(tmp_path) as cluster:
        cluster.proxy().add()
        for node in cluster.nodes.values():
            node.kill()
    [row] = [row for row in json.loads(storage("show", data, "-o", "json").stdout) if row["method"] == "add"]

    refused = storage("skip", data, "--index", str(row["index"]), "--checksum", row["checksum"])

    assert 1 == refused.returncode
    assert "may have been answered" in refused.stderr
    with spawn(tmp_path, None) as cluster:
        assert 1 == cluster.proxy().total()


@pytest.mark.parametrize(
    ("asked", "code", "says"),
    [
        (["--index", "0"], 0, "(no-op)"),
        (["--from", "1"], 0, "(register)"),
        (["--from", "1", "--to", "20"], 0, "add"),
        ([], 0, "checksum"),
        (["--index", "99"], 1, "there is no entry index 99"),
        (["--from", "1", "--index", "2"], 2, "give one or the other"),
        (["-o", "xml"], 2, "'json'"),
    ],
)
def test_show_says_what_there_is_or_why_not(one_entry: Path, asked: list[str], code: int, says: str) -> None:
    done = storage("show", str(one_entry), *asked)

    assert code == done.returncode
    words = (done.stdout + done.stderr).replace("│", " ").split()  # in a box, lines end where the path has them end
    assert says in " ".join(words)


@pytest.fixture(scope="module")
def one_entry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("one")
    with spawn(place, 1) as cluster:
        cluster.proxy().add()
        cluster.nodes[0].kill()
    return place / "data"
