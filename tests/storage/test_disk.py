"""What only the store on disk does: refuse after an error of the disk, tell boots apart, keep its segments few."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from actorraft.errors import CorruptionError, StorageFailed, UsageError
from actorraft.raft.messages import EntryId, HardState, LogEntry
from actorraft.storage import boot
from tests.storage.helpers import CONFIGURATION, FastFiles, held_at, open_store, take_snapshot


class FailingFiles(FastFiles):
    """Fails one kind of call once `failing` is set, as a disk does that is full or broken."""

    def __init__(self, method: str, number: int = errno.EIO) -> None:
        self.method = method
        self.number = number
        self.failing = False

    def _maybe_fail(self, method: str) -> None:
        if self.failing and method == self.method:
            raise OSError(self.number, os.strerror(self.number))

    def write(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
        if self.failing and self.method == "write":
            super().write(fd, [b"".join(parts)[:10]], offset)
        self._maybe_fail("write")
        super().write(fd, parts, offset)

    def sync_data(self, fd: int) -> None:
        self._maybe_fail("sync_data")

    def sync(self, fd: int) -> None:
        self._maybe_fail("sync")

    def rename(self, old: Path, new: Path) -> None:
        self._maybe_fail("rename")
        super().rename(old, new)


@pytest.mark.parametrize(
    ("method", "number"), [("write", errno.ENOSPC), ("write", errno.EIO), ("sync_data", errno.EIO), ("sync", errno.EIO)]
)
def test_after_an_error_of_the_disk_everything_is_refused_and_what_was_acknowledged_stays(
    tmp_path: Path, method: str, number: int
) -> None:
    files = FailingFiles(method, number)
    store = open_store(tmp_path, files=files)
    store.recover()
    store.persist(HardState(1, 0), 0, [LogEntry(1, b"kept" * 100)])
    files.failing = True
    with pytest.raises(StorageFailed, match=os.strerror(number)):
        store.persist(None, 1, [LogEntry(1, b"lost" * 100)])  # in another segment
    files.failing = False

    for call in (
        lambda: store.persist(HardState(2, 0), -1, []),
        lambda: store.recover(),
        lambda: store.compact(0),
        lambda: store.begin_snapshot(EntryId(1, 0), CONFIGURATION),
        lambda: store.open_snapshot(),
        lambda: store.read_snapshot(EntryId(1, 0), 0, 1),
    ):
        with pytest.raises(StorageFailed):
            call()
    store.close()
    recovered, _ = held_at(tmp_path)
    assert recovered.hard_state == HardState(1, 0)
    assert recovered.entries[:1] == [LogEntry(1, b"kept" * 100)]


@pytest.mark.parametrize("method", ["write", "sync", "rename"])
def test_a_snapshot_that_the_disk_refuses_stops_the_store_too(tmp_path: Path, method: str) -> None:
    files = FailingFiles(method)
    store = open_store(tmp_path, files=files)
    store.recover()
    store.persist(None, 0, [LogEntry(1, b"a")])
    files.failing = True
    with pytest.raises(StorageFailed):
        take_snapshot(store, 1, 0, b"x" * 100_000)
    with pytest.raises(StorageFailed):
        store.persist(None, 1, [LogEntry(1, b"b")])
    store.close()
    assert held_at(tmp_path)[0].entries == [LogEntry(1, b"a")]


def test_a_short_write_is_finished_and_a_file_too_large_is_an_error_of_the_disk(tmp_path: Path) -> None:
    store = open_store(tmp_path, segment_bytes=1 << 20)
    store.recover()
    store.persist(None, 0, [LogEntry(1, b"kept")])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(StorageFailed):
            store.persist(None, 1, [LogEntry(1, b"x" * 20_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        store.close()
    assert held_at(tmp_path)[0].entries == [LogEntry(1, b"kept")]


def test_a_closed_store_refuses_every_call(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.recover()
    store.close()
    with pytest.raises(StorageFailed, match="closed"):
        store.persist(None, 0, [LogEntry(1, b"a")])


def test_an_item_that_cannot_be_stored_is_the_callers_mistake_and_changes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.recover()
    with pytest.raises(UsageError, match="plain data"):
        store.persist(HardState(1, 0), 0, [LogEntry(1, b"a"), LogEntry(1, object())])
    store.persist(None, 0, [LogEntry(1, b"b")])
    store.close()
    assert held_at(tmp_path)[0].entries == [LogEntry(1, b"b")]


@pytest.mark.parametrize("wrong", [{"durability": "maybe"}, {"segment_bytes": 10}])
def test_wrong_options_are_usage_errors(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        open_store(tmp_path, **wrong)


# ---- durability="os" ----


def write_unsynced(path: Path, monkeypatch: pytest.MonkeyPatch, *, close: bool) -> None:
    """Write under one boot of the machine; end by closing the store, or as a killed process does."""
    monkeypatch.setattr(boot, "boot_id", lambda: "first")
    store = open_store(path, durability="os", sync_on_close=close)
    store.recover()
    store.persist(HardState(1, 0), 0, [LogEntry(1, b"a")])
    store.close()


def test_unsynced_data_is_accepted_under_the_same_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_unsynced(tmp_path, monkeypatch, close=False)
    assert held_at(tmp_path, durability="os")[0].entries == [LogEntry(1, b"a")]
    assert held_at(tmp_path, durability="fsync")[0].entries == [LogEntry(1, b"a")]


def test_unsynced_data_is_refused_under_another_boot_until_loss_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_unsynced(tmp_path, monkeypatch, close=False)
    monkeypatch.setattr(boot, "boot_id", lambda: "second")
    for durability in ("os", "fsync"):
        with pytest.raises(CorruptionError, match=r"acknowledged data may be missing.*accept_loss=True"):
            open_store(tmp_path, durability=durability)

    assert held_at(tmp_path, durability="os", accept_loss=True)[0].entries == [LogEntry(1, b"a")]
    assert held_at(tmp_path, durability="os")[0].entries == [LogEntry(1, b"a")]


def test_a_boot_that_cannot_be_told_equals_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_unsynced(tmp_path, monkeypatch, close=False)
    monkeypatch.setattr(boot, "boot_id", lambda: "")
    with pytest.raises(CorruptionError):
        open_store(tmp_path)
    held_at(tmp_path, durability="os", accept_loss=True, sync_on_close=False)
    with pytest.raises(CorruptionError):
        open_store(tmp_path)


def test_a_closed_store_was_synced_and_is_accepted_under_another_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_unsynced(tmp_path, monkeypatch, close=True)
    monkeypatch.setattr(boot, "boot_id", lambda: "second")
    assert held_at(tmp_path, durability="os")[0].entries == [LogEntry(1, b"a")]


def test_a_store_that_goes_on_with_fsync_no_longer_depends_on_the_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_unsynced(tmp_path, monkeypatch, close=False)
    held_at(tmp_path, durability="fsync")
    monkeypatch.setattr(boot, "boot_id", lambda: "second")
    assert held_at(tmp_path)[0].entries == [LogEntry(1, b"a")]


def test_this_machine_knows_its_boot() -> None:
    assert boot.boot_id() == boot.boot_id() != ""


# ---- segments ----


def test_segments_that_hold_nothing_any_more_are_removed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.recover()
    for index in range(40):
        store.persist(HardState(1, 0), index, [LogEntry(1, b"x" * 200)])
    segments = len(list((tmp_path / "log").glob("*.wal")))
    assert segments > 10
    take_snapshot(store, 1, 38, b"all")
    store.compact(38)
    assert len(list((tmp_path / "log").glob("*.wal"))) <= 2
    store.close()
    recovered, _ = held_at(tmp_path)
    assert (recovered.first_index, recovered.hard_state) == (38, HardState(1, 0))
    assert len(recovered.entries) == 2


def test_a_truncation_that_reaches_into_old_segments_lets_them_go(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.recover()
    for index in range(20):
        store.persist(None, index, [LogEntry(1, b"x" * 200)])
    store.persist(None, 2, [LogEntry(2, b"y" * 200)])
    take_snapshot(store, 2, 2, b"all")
    store.compact(3)
    assert len(list((tmp_path / "log").glob("*.wal"))) <= 2
    store.close()
    recovered, _ = held_at(tmp_path)
    assert (recovered.first_index, recovered.previous_term, recovered.entries) == (3, 2, [])


def test_reset_removes_every_old_segment(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.recover()
    for index in range(20):
        store.persist(None, index, [LogEntry(1, b"x" * 200)])
    writer = store.begin_snapshot(EntryId(3, 5), CONFIGURATION)
    store.reset_log(writer.commit())
    assert len(list((tmp_path / "log").glob("*.wal"))) == 1
    store.close()


def test_two_snapshots_are_kept_and_leftovers_removed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.recover()
    store.persist(None, 0, [LogEntry(1, b"x") for _ in range(5)])
    for index in range(5):
        take_snapshot(store, 1, index, b"%d" % index)
    store.begin_snapshot(EntryId(1, 4), CONFIGURATION).write(b"half")
    store.close()
    held_at(tmp_path)
    assert [one.name[:20] for one in sorted((tmp_path / "snapshots").iterdir())] == [
        f"{index:020d}" for index in (3, 4)
    ]


def test_a_missing_snapshot_that_the_log_needs_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.recover()
    store.persist(None, 0, [LogEntry(1, b"x") for _ in range(5)])
    take_snapshot(store, 1, 3, b"needed")
    store.compact(4)
    store.close()
    next((tmp_path / "snapshots").iterdir()).unlink()
    with pytest.raises(CorruptionError, match="log begins at index 4"):
        held_at(tmp_path)


def test_a_damaged_newest_snapshot_can_be_moved_away_if_the_log_reaches_back(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.recover()
    store.persist(None, 0, [LogEntry(1, b"x") for _ in range(5)])
    take_snapshot(store, 1, 1, b"older")
    take_snapshot(store, 1, 3, b"newer")
    store.compact(1)
    store.close()
    newest = sorted((tmp_path / "snapshots").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(CorruptionError, match="Move the file away"):
        held_at(tmp_path)
    newest.unlink()
    assert held_at(tmp_path)[1] == b"older"


def test_a_snapshot_damaged_while_it_is_open_is_never_handed_out(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.recover()
    store.persist(None, 0, [LogEntry(1, b"x")])
    take_snapshot(store, 1, 0, b"x" * 200_000)
    path = next((tmp_path / "snapshots").iterdir())
    file = store.open_snapshot()
    assert file.read(10) == b"x" * 10
    with open(path, "r+b") as raw:
        raw.seek(150_000)
        raw.write(b"y")
    with pytest.raises(CorruptionError, match="offset"):
        file.read()
    assert store.read_snapshot(EntryId(1, 0), 0, 100_000) == (b"x" * 100_000, False)
    with pytest.raises(CorruptionError):
        store.read_snapshot(EntryId(1, 0), 100_000, 100_000)
    file.close()
    store.close()


def test_a_store_whose_description_is_missing_beside_data_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.recover()
    store.persist(HardState(1, 0), -1, [])
    store.close()
    (tmp_path / "node.json").unlink()
    with pytest.raises(CorruptionError, match=r"node\.json is missing, or out of date"):
        open_store(tmp_path)


@pytest.mark.parametrize("lost", ["log", "snapshots"])
def test_a_store_of_which_a_folder_is_missing_is_refused(tmp_path: Path, lost: str) -> None:
    open_store(tmp_path).close()
    shutil.rmtree(tmp_path / lost)
    with pytest.raises(CorruptionError, match=f"{lost} is missing"):
        held_at(tmp_path)


def test_a_lost_mark_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(tmp_path)
    store.recover()
    store.persist(HardState(1, 0), -1, [])
    store.close()
    (tmp_path / "log" / "mark").unlink()
    with caplog.at_level(logging.WARNING, "actorraft.storage"):
        assert held_at(tmp_path)[0].hard_state == HardState(1, 0)
    assert "mark is missing" in caplog.text
    assert (tmp_path / "log" / "mark").stat().st_size == 24
