"""The folders of a cluster and of a node: who may use them, and what is said to whoever may not."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actorraft.errors import CorruptionError, UsageError
from actorraft.storage.directory import ClusterDirectory, ClusterInfo, DirectoryLock, NodeDirectory
from tests.storage.helpers import open_store

LOCK_HOLDER = """
import sys
from pathlib import Path
from actorraft.storage.directory import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


NOBODY = 65534


def info(**changes: Any) -> ClusterInfo:
    values: dict[str, Any] = {
        "cluster_id": "00112233445566aa",
        "machine": "bank:Bank",
        "node_ids": (0, 1, 2),
        "hash_seed": 42,
        "name": "bank",
    }
    return ClusterInfo(**{**values, **changes})


def made(path: Path, **changes: Any) -> Path:
    """Make a cluster's folder with its nodes' folders, and close it."""
    directory = ClusterDirectory(path, wait_s=0)
    directory.create(info(**changes))
    directory.close()
    return path


def refusal(path: Path, machine: str = "bank:Bank") -> str:
    """Return with what a cluster's folder is refused."""
    with pytest.raises(UsageError) as caught:
        opened = ClusterDirectory(path, wait_s=0)
        try:
            opened.check(machine)
        finally:
            opened.close()
    return str(caught.value)


def test_a_new_folder_has_no_description_and_an_old_one_has_what_was_written(tmp_path: Path) -> None:
    directory = ClusterDirectory(tmp_path / "new", wait_s=0)
    assert directory.info is None
    directory.create(info())
    directory.close()

    again = ClusterDirectory(tmp_path / "new", wait_s=0)
    held = again.check("bank:Bank")
    assert held == info(storage_ids=held.storage_ids)
    assert [node_id for node_id, _ in held.storage_ids] == [0, 1, 2]
    assert [again.node_path(node_id).is_dir() for node_id in (0, 1, 2, 3)] == [True, True, True, False]
    again.update(info(node_ids=(0, 1, 2, 3)))
    again.close()
    assert ClusterDirectory(tmp_path / "new", wait_s=0).check("bank:Bank").node_ids == (0, 1, 2, 3)
    assert (tmp_path / "new" / "node-3").is_dir()


def test_only_this_user_can_enter_and_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made(Path("relative"))
    directory = ClusterDirectory("relative", wait_s=0)
    assert directory.path == tmp_path / "relative"
    assert directory.node_path(0).is_absolute()
    for path in (directory.path, directory.node_path(0)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory.path / "cluster.json").stat().st_mode) == 0o600
    directory.close()


def test_a_folder_that_others_could_enter_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    made(tmp_path / "open")
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o700


def test_a_folder_in_use_is_refused_naming_the_process(tmp_path: Path) -> None:
    held = ClusterDirectory(tmp_path, wait_s=0)
    assert f"in use by process {os.getpid()}" in refusal(tmp_path)
    held.close()
    ClusterDirectory(tmp_path, wait_s=0).close()


def test_a_lock_is_waited_for_and_ends_with_its_holder(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", LOCK_HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"locked\n"
    with pytest.raises(UsageError, match=f"in use by process {holder.pid}"):
        DirectoryLock(tmp_path, wait_s=0)
    holder.kill()
    DirectoryLock(tmp_path, wait_s=30).close()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()


def test_another_machine_class_is_refused_naming_both(tmp_path: Path) -> None:
    text = refusal(made(tmp_path / "c"), machine="shop:Shop")
    assert "bank:Bank" in text
    assert "shop:Shop" in text


def test_a_missing_node_folder_is_refused_naming_the_node(tmp_path: Path) -> None:
    made(tmp_path / "c")
    (tmp_path / "c" / "node-1" / "node.json").unlink()
    text = refusal(tmp_path / "c")
    assert "node-1" in text
    assert "gone" in text


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "thesis.tex" in refusal(tmp_path)


def test_a_create_that_was_cut_short_is_taken_up_again(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "node-0").mkdir()
    (tmp_path / "c" / "cluster.json.tmp").write_bytes(b"{")
    (tmp_path / "c" / "node-0" / "node.json").write_bytes(b"{")
    made(tmp_path / "c")
    open_store(tmp_path / "c" / "node-0", node_id=0, create=False).close()


def test_storage_ids_are_known_before_the_nodes_start(tmp_path: Path) -> None:
    directory = ClusterDirectory(tmp_path, wait_s=0)
    directory.create(info())
    for node_id, storage_id in directory.storage_ids().items():
        store = open_store(directory.node_path(node_id), node_id=node_id, create=False)
        assert store.storage_id == storage_id
        store.close()
    directory.update(info(node_ids=(1, 2, 3)))
    assert sorted(directory.storage_ids()) == [1, 2, 3]
    directory.close()


def test_a_fork_does_not_go_on_holding_its_parents_locks(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from actorraft.storage.directory import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]), wait_s=0)
wait, go = os.pipe()
up, forked = os.pipe()
if os.fork() == 0:
    os.close(go)
    os.write(forked, b".")  # it runs, so what a fork lets go of is let go of
    os.read(wait, 1)
    os._exit(0)
os.read(up, 1)
lock.close()
DirectoryLock(Path(sys.argv[1])).close()  # the fork lets go in its own time, and would else keep it for ever
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])


def test_a_folder_that_cannot_be_made_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refusal(tmp_path / "file" / "below")
    assert "File exists" in refusal(tmp_path / "file")
    assert "cannot be used" in refusal(Path("/proc/actorraft"))


def test_a_missing_description_beside_nodes_data_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    open_store(tmp_path / "node-0").close()
    (tmp_path / "cluster.json").unlink()
    with pytest.raises(CorruptionError, match=r"cluster\.json is missing"):
        ClusterDirectory(tmp_path, wait_s=0)


@pytest.fixture
def of_a_user(tmp_path: Path) -> Iterator[Path]:
    """A folder of somebody who is not root, who may write anywhere; meanwhile this process is that somebody."""
    if os.geteuid() != 0:
        yield tmp_path
        return
    os.seteuid(NOBODY)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    finally:
        os.seteuid(0)


def test_a_folder_that_cannot_be_written_is_refused(of_a_user: Path) -> None:
    (of_a_user / "c").mkdir(mode=0o700)
    (of_a_user / "c").chmod(0o500)
    assert "cannot be used" in refusal(of_a_user / "c" / "below")


def test_a_damaged_description_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    file = tmp_path / "cluster.json"
    for place in range(len(file.read_bytes())):
        good = file.read_bytes()
        file.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        with pytest.raises(CorruptionError, match=r"cluster\.json is damaged"):
            ClusterDirectory(tmp_path, wait_s=0)
        file.write_bytes(good)
    file.write_bytes(b"")
    with pytest.raises(CorruptionError):
        ClusterDirectory(tmp_path, wait_s=0)


def test_each_node_folder_has_a_storage_id_of_its_own(tmp_path: Path) -> None:
    ids = []
    for name in ("a", "b"):
        store = open_store(tmp_path / name)
        ids.append(store.storage_id)
        store.close()
        again = open_store(tmp_path / name)
        assert again.storage_id == ids[-1]
        again.close()
    assert ids[0] != ids[1]
    assert all(len(one) == 32 for one in ids)


def test_a_node_folder_is_refused_to_another_node_and_another_cluster(tmp_path: Path) -> None:
    open_store(tmp_path, node_id=1, cluster_id="ab").close()
    with pytest.raises(UsageError, match="folder of node 1, not of node 2"):
        open_store(tmp_path, node_id=2, cluster_id="ab")
    with pytest.raises(UsageError, match="belongs to cluster ab, not to cd"):
        open_store(tmp_path, node_id=1, cluster_id="cd")
    open_store(tmp_path, node_id=1, cluster_id="ab").close()


def test_a_wiped_node_folder_is_not_made_anew_where_it_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="missing"):
        open_store(tmp_path / "gone", create=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="gone"):
        open_store(tmp_path / "empty", create=False)


def test_a_store_in_use_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(UsageError, match="in use"):
        open_store(tmp_path)
    store.close()
    open_store(tmp_path).close()


def test_a_refused_folder_is_not_left_locked(tmp_path: Path) -> None:
    open_store(tmp_path, node_id=1).close()
    with pytest.raises(UsageError):
        NodeDirectory(tmp_path, node_id=2, wait_s=0)
    NodeDirectory(tmp_path, node_id=1, wait_s=0).close()
