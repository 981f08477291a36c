"""Backups of a cluster that serves: one that is asked for, those on a schedule, and clusters that begin with one."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from actorraft import UsageError, connect
from actorraft.cli.app import app
from actorraft.cluster.founding import found
from actorraft.node.backups import Backups, Schedule
from actorraft.node.folder import SEED_FILE, read_folder
from actorraft.node.standalone import plan
from actorraft.raft.errors import ProposalRefused
from actorraft.raft.messages import EntryId
from actorraft.storage.portable import PortableInfo, read_portable, write_portable
from statemachines.kv import KVStore
from tests.cli.served import Served, actorraft, eventually


def backup_of(path: Path, **settings: object) -> Path:
    said = {name: json.dumps(value) for name, value in settings.items()}
    return write_portable(
        path, PortableInfo(machine="statemachines.kv:KVStore", term=3, index=9, settings=said), [b"x"]
    )


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_a_cluster_begins_with_the_backup_of_another_one(tmp_path: Path) -> None:
    file = tmp_path / "bank.backup"
    with Served(tmp_path / "one", 1) as one:
        one.start()
        one.settled()
        with connect(one.client, KVStore, timeout=30.0) as client:
            client.proxy(timeout=30.0).set("k", 7)
        told = json.loads(one.run("backup", str(file), "-o", "json").stdout)
        assert told["bytes"] == file.stat().st_size
        again = one.run("backup", str(file), check=False)
        assert (again.returncode, "--force" in again.stderr) == (1, True)
    with Served(tmp_path / "two", 1, machine=None, found=("--from-backup", str(file))) as two:
        two.start()
        two.settled()
        with connect(two.client, KVStore, timeout=30.0) as client:
            store = client.proxy(timeout=30.0)
            assert store.get("k") == 7
            store.set("new", 1)


@pytest.mark.cluster
@pytest.mark.slow  # six nodes, under load; make slow
@pytest.mark.timeout(300)
def test_a_backup_under_load_holds_all_that_was_acknowledged_before_and_another_cluster_begins_with_it(
    tmp_path: Path,
) -> None:
    file = tmp_path / "bank.backup"
    with Served(tmp_path / "one") as one:
        one.start()
        one.settled()
        stop, acknowledged = threading.Event(), [0]
        with connect(one.client, KVStore, timeout=30.0) as client:
            store = client.proxy(timeout=30.0)

            def write() -> None:
                number = 0
                while not stop.is_set():
                    number += 1
                    store.set(f"k{number}", number)
                    acknowledged[0] = number

            writer = threading.Thread(target=write)
            writer.start()
            eventually(lambda: acknowledged[0] >= 50)
            before = acknowledged[0]
            told = json.loads(one.run("backup", str(file), "-o", "json").stdout)
            after = acknowledged[0]
            stop.set()
            writer.join(60)
        assert told["index"] >= before
        assert told["bytes"] == file.stat().st_size
        again = one.run("backup", str(file), check=False)
        assert (again.returncode, "--force" in again.stderr) == (1, True)
        assert one.run("backup", str(file), "--force").returncode == 0
    with Served(tmp_path / "two", machine=None, found=("--from-backup", str(file))) as two:
        assert read_folder(two.folder(0)).cluster.machine == "statemachines.kv:KVStore"
        two.start(0, 1)  # two of three begin, as with any first start
        two.settled()
        with connect(two.client, KVStore, timeout=30.0) as client:
            store = client.proxy(timeout=30.0)
            assert [store.get(f"k{number}") for number in range(1, before + 1)] == list(range(1, before + 1))
            held = [number for number in range(before + 1, after + 1) if store.get(f"k{number}") == number]
            assert held == list(range(before + 1, before + 1 + len(held))), (
                "one index: no write without those before it"
            )
            store.set("new", 1)
        two.start(2)
        leader = two.settled()
        assert two.stop(leader) == 0
        two.start(leader)
        two.settled()
        assert two.run("query", "get", '"new"').stdout.strip() == "1"


@pytest.mark.cluster
@pytest.mark.slow  # waits for schedules; make slow
@pytest.mark.timeout(300)
def test_a_schedule_writes_backups_of_what_is_committed_and_says_so(tmp_path: Path) -> None:
    directory = tmp_path / "backups"

    def whole() -> set[int]:
        return {read_portable(path)[0].index for path in directory.glob("*.backup")}

    with Served(tmp_path, 1) as served:
        served.start(more=("--backup-every", "1s", "--backup-dir", str(directory), "--backup-keep", "1000"))
        served.settled()
        served.run("exec", "set", '"x"', "1")
        least = served.status()[0]["last_applied"]
        eventually(lambda: max(whole(), default=-1) >= least, what=served.said)
        # A node that is slow to answer says nothing at all.
        eventually(lambda: served.status()[0]["backup"].get("index", -1) >= least, what=served.said)
        directory.rename(tmp_path / "away")
        directory.write_text("no directory")
        served.run("exec", "set", '"x"', "2")
        eventually(lambda: served.status()[0]["backup"].get("error"), what=served.said)
        assert len(list((tmp_path / "away").iterdir())) >= 1, "one that failed removes nothing"


CLUSTER_ID = "0123abcd" + 24 * "0"


class Node:
    """A node with a snapshot, whose loop does at once what it is asked to."""

    node_id = 4

    def __init__(self) -> None:
        self.content = [b"abc", b"def"]
        self.index = 7
        self.requests = self.snapshots = self.chunks = self.server = self
        self.configuration = SimpleNamespace(settings=(("name", '"the bank"'), ("machine", '"bank:Bank"')))

    def want_snapshot(self, tell: Callable[[str, int | None], object]) -> None:
        tell("", self.index)

    @property
    def snapshot_id(self) -> EntryId:
        return EntryId(2, self.index)

    def read(self, snapshot_id: EntryId, offset: int) -> list[Any]:
        part = offset // 3
        return [*snapshot_id, self.content[part], part == len(self.content) - 1]

    def ask(self, do: Callable[[Callable[[Any], object]], object], _: float) -> Any:
        said: list[Any] = []
        do(said.append)
        return said[0]


def test_what_a_schedule_wrote_is_read_back_and_only_the_newest_stay(tmp_path: Path) -> None:
    node = Node()
    backups = Backups(Schedule(every_s=3600.0, directory=tmp_path / "b", keep=2), node, CLUSTER_ID, node.ask)  # type: ignore[arg-type]
    first = backups.write()
    assert re.fullmatch(r"the_bank-0123abcd-node-4-7-\d{8}T\d{6}Z\.backup", first.name)
    assert first.read_bytes().split(b"\n", 1)[1][:-4] == b"abcdef"
    assert backups.write() == first, "nothing is new: it was read again"
    os.utime(first, (1.0, 1.0))
    first.write_bytes(first.read_bytes()[:-5] + b"y1234")
    renamed = first.rename(first.with_name("the_bank-0123abcd-node-4-7-20200101T000000Z.backup"))
    second = backups.write()
    assert second.name != renamed.name, "what is damaged is written anew"
    node.index = 9
    third = backups.write()
    other = tmp_path / "b" / "the_bank-0123abcd-node-5-7-20200101T000000Z.backup"
    other.write_bytes(b"another node's")
    assert backups.report()["index"] == 9
    assert {path.name for path in (tmp_path / "b").iterdir()} == {second.name, third.name, other.name}


def test_a_backup_that_fails_is_told_and_removes_nothing(tmp_path: Path) -> None:
    node = Node()
    backups = Backups(Schedule(every_s=3600.0, directory=tmp_path / "b", keep=1), node, CLUSTER_ID, node.ask)  # type: ignore[arg-type]
    first = backups.write()
    node.want_snapshot = lambda tell: tell("the snapshot failed: no room", None)  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="no room"):
        backups.write()
    assert backups.report()["error"] == "the snapshot failed: no room"
    assert backups.report()["index"] == 7
    assert list((tmp_path / "b").iterdir()) == [first]


def test_a_cluster_that_began_with_a_backup_takes_none_of_the_old_ones_files_for_its_own(tmp_path: Path) -> None:
    schedule = Schedule(every_s=3600.0, directory=tmp_path / "b", keep=1)
    old, new = Node(), Node()
    new.content = [b"xyz", b"uvw"]  # another history up to the same index, under the same name
    before = Backups(schedule, old, CLUSTER_ID, old.ask).write()  # type: ignore[arg-type]
    after = Backups(schedule, new, CLUSTER_ID[::-1], new.ask).write()  # type: ignore[arg-type]
    assert after.read_bytes().split(b"\n", 1)[1][:-4] == b"xyzuvw"
    assert set((tmp_path / "b").iterdir()) == {before, after}


def test_a_snapshot_that_is_gone_when_it_is_to_be_read_is_a_backup_that_failed(tmp_path: Path) -> None:
    node = Node()

    def gone(*_: Any) -> Any:
        raise ProposalRefused("there is no snapshot now")

    node.read = gone  # type: ignore[method-assign]
    backups = Backups(Schedule(every_s=3600.0, directory=tmp_path / "b"), node, CLUSTER_ID, node.ask)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="newer snapshots"):
        backups.write()
    assert backups.report()["error"] == "newer snapshots came in between each time"


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--backup-every", "1h"), "go together"),
        (("--backup-dir", "/x"), "go together"),
        (("--backup-every", "often", "--backup-dir", "/x"), "as in 90s, 30m, 1h or 1d"),
        (("--backup-every", "0s", "--backup-dir", "/x"), "at least a second"),
        (("--backup-every", "1h", "--backup-dir", "/x", "--backup-keep", "0"), "keep"),
    ],
)
def test_a_schedule_that_cannot_be_is_used_wrongly(words: tuple[str, ...], why: str, tmp_path: Path) -> None:
    found(tmp_path / "c", "statemachines.kv:KVStore", ["127.0.0.1:7000"])
    done = actorraft("serve", str(tmp_path / "c" / "node-0"), *words, check=False)
    assert (done.returncode, why in done.stderr) == (2, True), done.stderr


def test_a_backup_brings_the_machine_its_arguments_and_what_decides_the_state(tmp_path: Path) -> None:
    file = backup_of(tmp_path / "b", machine="statemachines.kv:KVStore", args=[], kwargs={}, session_expiry_s=7.0)
    found(tmp_path / "c", "", ["127.0.0.1:7000", "127.0.0.1:7010"], backup=file)
    for node_id in range(2):
        folder = read_folder(tmp_path / "c" / f"node-{node_id}")
        assert folder.config().session_expiry_s == 7.0
        assert folder.cluster.backup
        spec = plan(tmp_path / "c" / f"node-{node_id}", folder)
        assert spec.from_snapshot == tmp_path / "c" / f"node-{node_id}" / SEED_FILE
        assert spec.probation is not None
        assert spec.probation.seed == (3, 9)


def test_a_backup_of_another_machine_or_a_damaged_one_founds_nothing(tmp_path: Path) -> None:
    file = backup_of(tmp_path / "b", args=[1])
    for machine, args, why in (("bank:Bank", None, "is the state of machine"), ("", [2], "is the state of args")):
        with pytest.raises(UsageError, match=why):
            found(tmp_path / "c", machine, ["127.0.0.1:7000"], args=args, backup=file)
    file.write_bytes(file.read_bytes()[:-5] + b"y1234")
    words = ["init", str(tmp_path / "c"), "--nodes", "127.0.0.1:7000", "--from-backup", str(file)]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, "damaged" in done.stderr) == (1, True)
    assert not (tmp_path / "c").exists()


def test_a_founder_without_its_copy_of_the_backup_or_with_another_one_does_not_begin(tmp_path: Path) -> None:
    file = backup_of(tmp_path / "b")
    found(tmp_path / "c", "", ["127.0.0.1:7000"], backup=file)
    folder = tmp_path / "c" / "node-0"
    (folder / SEED_FILE).unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        plan(folder, read_folder(folder))
    backup_of(folder / SEED_FILE, args=[1])
    with pytest.raises(UsageError, match="is not the backup that this cluster was founded from"):
        plan(folder, read_folder(folder))


def test_a_schedule_is_at_least_a_second_and_a_file() -> None:
    with pytest.raises(UsageError, match="at least one backup"):
        Schedule(every_s=1.0, directory=Path("/x"), keep=0)
