"""Data of another minor version of Python: what of it opens, what is refused and named, and what `upgrade` takes out."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

import actorraft
from actorraft import Cluster, ReplicatedStateMachine, UsageError, codec
from actorraft.errors import StorageFailed
from actorraft.pickling.encoder import Encoder
from actorraft.ports import SnapshotMeta
from actorraft.raft.messages import LogEntry
from actorraft.storage.by_value import UNDER_WAY, code_of_entries
from actorraft.storage.directory import ClusterDirectory, this_python
from actorraft.storage.portable import check_portable
from actorraft.storage.snapshots import DiskSnapshotWriter
from actorraft.storage.upgrade import upgrade
from statemachines.kv import KVStore
from tests.cluster.helpers import follower_of

NOTEBOOK = "notebook_of_another_python"
ROOT = Path(actorraft.__file__).parent.parent


@pytest.fixture
def notebook() -> Iterator[Any]:
    """A module that no node can import."""
    module: Any = types.ModuleType(NOTEBOOK)
    sys.modules[NOTEBOOK] = module
    exec("class Item:\n    def __init__(self, n):\n        self.n = n\n", vars(module))
    yield module
    sys.modules.pop(NOTEBOOK, None)


def spawn(data: Path, nodes: int | None = None) -> Cluster[KVStore]:
    return ReplicatedStateMachine(KVStore).spawn(nodes, data_dir=data)


def python_of(data: Path, becomes: str | None = None) -> str:
    """Return which Python the folder says it is of; say that it is of another one."""
    directory = ClusterDirectory(data)
    assert directory.info is not None
    before = directory.info.python
    if becomes is not None:
        directory.update(replace(directory.info, python=becomes))
    directory.close()
    return before


def python_of_running(data: Path) -> str:
    return str(msgspec.json.decode((data / "cluster.json").read_bytes().rpartition(b"\ncrc32")[0])["python"])


@pytest.mark.cluster
def test_data_without_code_opens_under_another_python_and_such_with_it_is_refused_until_it_is_taken_out(
    tmp_path: Path, notebook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    with spawn(data, 3) as cluster:
        cluster.proxy(timeout=30.0).set("plain", 1)
        with pytest.raises(UsageError, match="in use by process"):
            upgrade(data)
    python_of(data, "3.10")
    with spawn(data) as cluster:  # nothing in it is of 3.10 alone
        assert python_of_running(data) == this_python()
        store = cluster.proxy(timeout=30.0)
        assert store.get("plain") == 1
        store.set("item", notebook.Item(5))
        cluster.export_snapshot(tmp_path / "exported")
        assert check_portable(tmp_path / "exported", "statemachines.kv:KVStore").python == this_python()
        store.set("more", 2)
    python_of(data, "3.10")
    with pytest.raises(
        UsageError, match=rf"made by Python 3\.10 .* holds the definition of {NOTEBOOK}:Item, which no other minor"
    ):
        spawn(data)
    with pytest.raises(UsageError, match=f"an object of {NOTEBOOK}:Item"):
        upgrade(data)
    python_of(data, this_python())
    with spawn(data) as cluster:
        cluster.wait_for_leader()
        cluster.nodes[follower_of(cluster)].kill()  # it is behind the others from here on
        cluster.proxy(timeout=30.0).set("item", 7)
    python_of(data, "3.10")

    commit = DiskSnapshotWriter.commit

    def fails(writer: DiskSnapshotWriter) -> SnapshotMeta:
        if "node-1" in str(writer._path):
            raise StorageFailed("the disk is gone")
        return commit(writer)

    with monkeypatch.context() as patch:
        patch.setattr(DiskSnapshotWriter, "commit", fails)
        with pytest.raises(StorageFailed):
            upgrade(data)
    assert python_of(data) == f"3.10 {UNDER_WAY}"
    with pytest.raises(UsageError, match=r"interrupted: python -m actorraft\.storage upgrade .* once more"):
        spawn(data)
    [line] = re.findall(r"^python (.* DATA_DIR)$", (ROOT / "docs" / "upgrades.md").read_text(), re.M)
    words = [sys.executable, *line.replace("DATA_DIR", str(data)).split()]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "every node begins from a snapshot at index" in done.stdout
    assert python_of(data) == "3.10"
    assert upgrade(data).removed == ()
    with spawn(data) as cluster:
        store = cluster.proxy(timeout=30.0)
        assert [store.get(key) for key in ("plain", "item", "more")] == [1, 7, 2]
        assert cluster.nodes.keys() == {0, 1, 2}
        store.set("item", notebook.Item(6))
        assert store.get("item").n == 6


@pytest.mark.cluster
def test_commands_behind_the_snapshot_and_functions_in_the_state_cannot_be_taken_out(
    tmp_path: Path, notebook: Any
) -> None:
    data = tmp_path / "data"
    cluster = spawn(data, 1)
    cluster.proxy(timeout=30.0).set("item", notebook.Item(5))
    cluster.take_snapshot()
    cluster.proxy(timeout=30.0).set("item", 7)
    cluster.nodes[0].kill()
    cluster.close()
    with pytest.raises(UsageError, match=rf"goes on behind the snapshot .* start it once under Python {this_python()}"):
        upgrade(data)
    with spawn(data) as cluster:
        assert cluster.proxy(timeout=30.0).get("item") == 7
        cluster.proxy(timeout=30.0).set("f", lambda value: value + 1)
    with pytest.raises(UsageError, match=r"holds the function .*<lambda>, by value"):
        upgrade(data)


def test_a_closure_and_a_definition_in_a_log_are_named(notebook: Any) -> None:
    definitions: list[bytes] = []
    encoder = Encoder(definitions.append)
    commands = [encoder.encode_command(lambda state: 5), encoder.encode_command(notebook.Item(1))]
    body = codec.join_body([*commands, *definitions])
    frame = codec.encode(codec.Commands(client_id=1, first_sequence=0, lowest_unanswered=0, count=3, body=body))
    found = list(code_of_entries(4, [LogEntry(1, None), LogEntry(1, codec.stamp(0.0, frame))], "node-2"))
    assert {one.where for one in found} == {"the log of node-2 at index 5"}
    assert "<lambda>" in found[0].what
    assert found[-1].what == f"the definition of {NOTEBOOK}:Item"


FIRST = """
from actorraft import ReplicatedStateMachine
from statemachines.kv import KVStore
class Item: n = 5
if __name__ == "__main__":
    with ReplicatedStateMachine(KVStore).spawn({nodes}, data_dir="data") as cluster:
        store = cluster.proxy(timeout=60.0)
        {act}
"""


@pytest.mark.cluster
@pytest.mark.slow  # makes an environment for each Python; make slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("minor", [12, 13])
def test_what_one_python_wrote_another_one_opens_after_upgrade_and_the_first_one_again(
    tmp_path: Path, minor: int
) -> None:
    found = shutil.which(f"python3.{minor}")
    versions = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3.{minor}"))
    other = str(versions[-1]) if versions else found
    if sys.version_info[:2] == (3, minor) or other is None:
        pytest.skip(f"there is no other Python 3.{minor} here")
    home = tmp_path / "environment"
    subprocess.run([other, "-m", "venv", str(home)], check=True)
    newer = str(home / "bin" / "python")
    needs = ["pyzmq", "cloudpickle", "msgspec", "typer", "rich"]
    subprocess.run([newer, "-m", "pip", "install", "-q", *needs], check=True)

    def run(python: str, act: str, nodes: int | None = None) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "script.py"
        script.write_text(FIRST.format(act=act, nodes=nodes))
        words = [python, "-W", "ignore", str(script)]
        env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        return subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=env)

    assert run(sys.executable, 'store.set("x", Item()), store.set("y", 1)', 3).returncode == 0
    refused = run(newer, "pass")
    assert "the definition of __main__:Item, which no other minor" in refused.stderr
    assert run(sys.executable, 'store.set("x", 7)').returncode == 0
    subprocess.run([sys.executable, "-m", "actorraft.storage", "upgrade", "data"], check=True, cwd=tmp_path)
    for python in (newer, sys.executable):
        done = run(python, 'print(store.get("x"), store.get("y"))')
        assert done.stdout.strip() == "7 1", done.stderr
