"""Backups of a cluster that serves: one that is asked for, those on a schedule, and clusters that begin with one."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from actorraft import UsageError, connect
from actorraft.cluster.founding import found
from actorraft.node.backups import Schedule
from actorraft.node.folder import SEED_FILE, read_folder
from actorraft.node.standalone import plan
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
        two.settled()
        for node_id in range(3):
            assert two.stop(node_id) == 0
        two.start()
        two.settled()
        assert two.run("query", "get", '"new"').stdout.strip() == "1"


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_a_schedule_writes_backups_checks_them_and_keeps_the_newest(tmp_path: Path) -> None:
    directory = tmp_path / "backups"
    with Served(tmp_path, 1) as served:
        served.start(more=("--backup-every", "1s", "--backup-dir", str(directory), "--backup-keep", "2"))
        served.settled()
        seen: set[str] = set()
        number = 0
        served.run("exec", "set", '"x"', "0")

        def files() -> set[str]:
            return {path.name for path in directory.glob("*.backup")} if directory.exists() else set()

        while len(seen) < 3:
            number += 1
            served.run("exec", "set", '"x"', str(number))
            before = frozenset(seen)
            seen |= eventually(lambda before=before: files() - before)
        eventually(lambda: len(files()) == 2)
        newest = max(directory.glob("*.backup"), key=lambda path: path.stat().st_mtime)
        info, _ = read_portable(newest)
        assert info.machine == "statemachines.kv:KVStore"
        assert f"-node-0-{info.index}-" in newest.name

        def told(what: str) -> object:
            return served.status()[0]["backup"].get(what)  # nothing at all from a node that is slow to answer

        eventually(lambda: told("index") == info.index, what=served.said)
        assert not told("error")
        data = bytearray(newest.read_bytes())
        data[-6] ^= 1
        newest.write_bytes(data)
        eventually(lambda: any(f"-node-0-{info.index}-" in name for name in files() - {newest.name}), what=served.said)
        assert "is damaged" in served.said()
        directory.rename(tmp_path / "away")
        directory.write_text("no directory")
        served.run("exec", "set", '"x"', "0")
        eventually(lambda: told("error"), what=served.said)


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
    done = actorraft("init", str(tmp_path / "c"), "--nodes", "127.0.0.1:7000", "--from-backup", str(file), check=False)
    assert (done.returncode, "damaged" in done.stderr) == (1, True)
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
