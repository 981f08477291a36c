"""`python -m actorraft.storage verify PATH`: finds what is wrong in a folder, and starts no node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from actorraft.errors import UsageError
from actorraft.raft.messages import HardState, LogEntry
from actorraft.storage.__main__ import app
from actorraft.storage.directory import ClusterDirectory, ClusterInfo
from actorraft.storage.verify import verify
from tests.storage.helpers import open_store, read_tree, take_snapshot, write_history


@pytest.fixture
def node(tmp_path: Path) -> Path:
    store = open_store(tmp_path / "node")
    store.recover()
    write_history(store)
    store.close()
    return tmp_path / "node"


def change(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def texts(path: Path) -> list[str]:
    return [finding.text for finding in verify(path).findings]


def test_a_good_store_has_no_findings_and_is_left_as_it_was(node: Path) -> None:
    before = read_tree(node)
    report = verify(node)
    assert report.ok
    assert report.findings == []
    assert [(one.hard_state, one.first_index, one.next_index) for one in report.nodes] == [(HardState(3, 2), 4, 11)]
    after = read_tree(node)
    assert {name: before[name] for name in before if name != "lock"} == {
        name: after[name] for name in after if name != "lock"
    }


def test_damage_in_log_snapshot_and_description_is_found(node: Path) -> None:
    snapshots = sorted((node / "snapshots").iterdir())
    change(snapshots[0], 30)
    change(sorted((node / "log").glob("*.wal"))[0], -1)
    found = texts(node)
    assert any(snapshots[0].name in text for text in found)
    assert any("batches" in text for text in found)
    assert not verify(node).ok

    change(node / "node.json", 20)
    assert any("node.json is damaged" in text for text in texts(node))


def test_an_unfinished_write_is_a_warning_only(node: Path) -> None:
    newest = sorted((node / "log").glob("*.wal"))[-1]
    newest.write_bytes(newest.read_bytes() + b"\0\0half")
    report = verify(node)
    assert report.ok
    assert [finding.warning for finding in report.findings] == [True]


def test_terms_that_fall_or_pass_the_hard_state_are_found(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.recover()
    store.persist(HardState(1, 0), 0, [LogEntry(1, b"a"), LogEntry(5, b"b"), LogEntry(4, b"c")])
    store.close()
    found = texts(tmp_path)
    assert any("falls from 5 to 4 at log index 2" in text for text in found)
    assert any("hard state is of term 1" in text for text in found)


def test_a_snapshot_that_the_log_needs_and_lacks_is_found(node: Path) -> None:
    for path in (node / "snapshots").iterdir():
        path.unlink()
    assert any("no good snapshot reaches up to it" in text for text in texts(node))


def make_cluster(path: Path, logs: list[list[LogEntry]]) -> Path:
    directory = ClusterDirectory(path, wait_s=0)
    directory.create(ClusterInfo(cluster_id="aa", machine="m", node_ids=tuple(range(len(logs))), hash_seed=1))
    for node_id, entries in enumerate(logs):
        store = open_store(directory.node_path(node_id), node_id=node_id)
        store.recover()
        store.persist(HardState(9, None), 0, entries)
        if entries:
            take_snapshot(store, entries[0].term, 0, b"state")
        store.close()
    directory.close()
    return path


def test_a_cluster_is_checked_node_by_node_and_against_each_other(tmp_path: Path) -> None:
    same = [LogEntry(1, b"a"), LogEntry(2, b"b")]
    good = make_cluster(tmp_path / "good", [same, same[:1], []])
    assert verify(good).ok
    assert len(verify(good).nodes) == 3

    bad = make_cluster(tmp_path / "bad", [same, [LogEntry(1, b"a"), LogEntry(2, b"other")]])
    assert any("term 2 at log index 1 is not the one that another node has" in text for text in texts(bad))

    (bad / "node-0").rename(tmp_path / "away")
    assert any("folder of node 0 is missing" in text for text in texts(bad))


def test_what_is_in_use_or_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither"):
        verify(tmp_path)
    store = open_store(tmp_path / "node")
    with pytest.raises(UsageError, match="in use"):
        verify(tmp_path / "node")
    store.close()


def test_the_command_prints_findings_and_exits_with_one(node: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    good = runner.invoke(app, ["verify", str(node)])
    assert good.exit_code == 0
    assert "[4, 11)" in good.stdout

    change(sorted((node / "log").glob("*.wal"))[-1], -1)
    bad = runner.invoke(app, ["verify", str(node)])
    assert bad.exit_code == 1
    assert "offset" in bad.stdout

    told = runner.invoke(app, ["verify", str(node), "-o", "json"])
    assert told.exit_code == 1
    said = json.loads(told.stdout)
    assert (said["good"], [each["first_index"] for each in said["nodes"]]) == (False, [4])
    assert any("offset" in each["text"] for each in said["findings"])

    assert runner.invoke(app, ["verify", str(tmp_path / "nothing")]).exit_code == 2


def test_the_folder_of_a_served_node_stands_for_the_data_in_it(node: Path, tmp_path: Path) -> None:
    runner, served = CliRunner(), tmp_path / "[/served]"
    served.mkdir(parents=True)
    (served / "node.toml").touch()
    for command in ("verify", "show"):
        refused = runner.invoke(app, [command, str(served)])
        assert (refused.exit_code in (1, 2), "--data-dir" in refused.stderr) == (True, True), refused.output
    node.rename(served / "data")
    assert json.loads(runner.invoke(app, ["verify", str(served), "-o", "json"]).stdout)["good"]
    assert json.loads(runner.invoke(app, ["show", str(served), "-o", "json"]).stdout)[-1]["index"] == 10
