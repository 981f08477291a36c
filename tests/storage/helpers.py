"""Stores that can be damaged: what is on disk as a dictionary, a history to write, and files that fail on command."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actorraft.errors import CorruptionError, StorageFailed, UsageError
from actorraft.ports import Recovered
from actorraft.raft.messages import Configuration, EntryId, HardState, LogEntry
from actorraft.storage.disk import DiskStorage
from actorraft.storage.files import Files

REFUSALS = (CorruptionError, StorageFailed, UsageError)
CONFIGURATION = Configuration(voters=frozenset({0, 1, 2}), next_node_id=3)
SECTOR_BYTES = 64  # smaller than a real one, so that small stores have many


class FastFiles(Files):
    """Syncs nothing and preallocates nothing, for tests that look at what is written and not at when."""

    def sync(self, fd: int) -> None:
        pass

    def sync_data(self, fd: int) -> None:
        pass

    def sync_directory(self, path: Path) -> None:
        pass

    def preallocate(self, fd: int, offset: int, length: int) -> None:
        raise OSError("no room")


def open_store(path: Path, files: Files | None = None, **options: Any) -> DiskStorage:
    """Open without waiting for locks, and with small segments."""
    return DiskStorage(path, files=files or FastFiles(), wait_s=0, **{"segment_bytes": 512, **options})


def take_snapshot(store: DiskStorage, term: int, index: int, content: bytes) -> None:
    writer = store.begin_snapshot(EntryId(term, index), CONFIGURATION)
    writer.write(content)
    writer.commit()


def held(store: DiskStorage) -> tuple[Recovered, bytes]:
    """Return all that a store recovers, the content of its newest snapshot included."""
    recovered = store.recover()
    if recovered.snapshot is None:
        return recovered, b""
    with store.open_snapshot() as file:
        return recovered, file.read()


def held_at(path: Path, **options: Any) -> tuple[Recovered, bytes]:
    """Open, recover, close."""
    store = open_store(path, **options)
    try:
        return held(store)
    finally:
        store.close()


def outcome(path: Path, **options: Any) -> tuple[Recovered, bytes] | Exception:
    """What a store recovers, or the error with which it refuses; any other error is a failure of the test."""
    try:
        return held_at(path, **options)
    except REFUSALS as error:
        return error


def read_tree(path: Path) -> dict[str, bytes]:
    """Return every file below a folder by its relative name."""
    return {str(one.relative_to(path)): one.read_bytes() for one in sorted(path.rglob("*")) if one.is_file()}


def write_tree(path: Path, tree: dict[str, bytes]) -> None:
    """Make a folder hold these files and no others; what is right already is not touched."""
    present = read_tree(path)
    for name in present.keys() - tree.keys():
        (path / name).unlink()
    for name, content in tree.items():
        if name.endswith("/"):
            (path / name).mkdir(parents=True, exist_ok=True)
        elif present.get(name) != content:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)


def write_history(store: DiskStorage) -> None:
    """A short life with everything in it: three segments, a truncation, snapshots, compaction."""
    store.persist(HardState(1, 0), 0, [LogEntry(1, b"a" * 60), LogEntry(1, CONFIGURATION)])
    store.persist(HardState(2, 1), 1, [LogEntry(2, b"b" * 90), LogEntry(2, None)])
    take_snapshot(store, 1, 0, b"old" * 20)
    for number in range(6):
        store.persist(None, 3 + number, [LogEntry(2, b"%d" % number * 50)])
    take_snapshot(store, 2, 4, b"new" * 50)
    store.compact(4)
    store.persist(HardState(3, None), -1, [])
    store.persist(HardState(3, 2), 9, [LogEntry(3, b"end"), LogEntry(3, b"of it")])


class Crash(BaseException):
    """The process is killed here."""


class CrashingFiles(FastFiles):
    """Kills the process at the n-th change it makes: before it, or within it if it is a write.

    Args:
        crash_at: number of the change, from 0; -1: never.
        torn: of a write that is cut short, keep only this share.
    """

    def __init__(self, crash_at: int = -1, torn: float = 0.0) -> None:
        self.crash_at = crash_at
        self.torn = torn
        self.changes = 0
        self.dead = False

    def _change(self) -> None:
        if self.dead:
            raise Crash
        self.changes += 1
        if self.changes - 1 == self.crash_at:
            self.dead = True
            raise Crash

    def create(self, path: Path) -> int:
        self._change()
        return super().create(path)

    def write(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
        try:
            self._change()
        except Crash:
            whole = b"".join(parts)
            super().write(fd, [whole[: int(len(whole) * self.torn)]], offset)
            raise
        super().write(fd, parts, offset)

    def sync(self, fd: int) -> None:
        self._change()

    def sync_data(self, fd: int) -> None:
        self._change()

    def sync_directory(self, path: Path) -> None:
        self._change()

    def truncate(self, fd: int, length: int) -> None:
        self._change()
        super().truncate(fd, length)

    def rename(self, old: Path, new: Path) -> None:
        self._change()
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._change()
        super().unlink(path)


class PowerFiles(Files):
    """Remembers what has been synced, so that a loss of power can be played: `after_power_loss`.

    Of what was written and not synced each sector may or may not be there; of each name that was changed and not
    synced, the old or the new.
    """

    def __init__(self) -> None:
        self.paths: dict[int, Path] = {}
        self.synced: dict[int, bytes] = {}  # inode -> content
        self.names: dict[Path, dict[str, int]] = {}  # folder -> names -> inode, as synced
        self.kept_open: list[int] = []  # so that no inode is used twice
        self.on_change: Callable[[], None] = lambda: None

    def _remember(self, fd: int) -> None:
        self.kept_open.append(os.dup(fd))

    def create(self, path: Path) -> int:
        self.on_change()
        fd = super().create(path)
        self._remember(fd)
        return fd

    def write(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
        super().write(fd, parts, offset)
        self.on_change()

    def preallocate(self, fd: int, offset: int, length: int) -> None:
        super().preallocate(fd, offset, min(length, 8192))

    def sync(self, fd: int) -> None:
        self.on_change()
        if self.syncing:
            status = os.fstat(fd)
            self.synced[status.st_ino] = os.pread(fd, status.st_size, 0)

    sync_data = sync

    def sync_directory(self, path: Path) -> None:
        self.on_change()
        if self.syncing:
            self.names[path] = {one.name: one.stat().st_ino for one in path.iterdir()}

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        self.on_change()

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.on_change()

    def after_power_loss(self, folder: Path, rng: random.Random) -> dict[str, bytes]:
        """Return what might be on the disk if the power failed now."""
        tree: dict[str, bytes] = {}
        self._survivors(folder, folder, rng, tree)
        return tree

    def _survivors(self, root: Path, folder: Path, rng: random.Random, tree: dict[str, bytes]) -> None:
        synced = self.names.get(folder, {})
        present = {one.name: one for one in folder.iterdir()} if folder.is_dir() else {}
        by_inode = {one.stat().st_ino: one for one in present.values()}
        for name in sorted(synced.keys() | present.keys()):
            old, new = synced.get(name), present[name].stat().st_ino if name in present else None
            inode = old if rng.random() < 0.5 else new
            if inode is None:
                continue
            path = by_inode.get(inode)
            if path is not None and path.is_dir():
                tree[f"{path.relative_to(root)}/"] = b""
                self._survivors(root, path, rng, tree)
            else:
                live = path.read_bytes() if path is not None else self._orphan(inode)
                tree[str((folder / name).relative_to(root))] = mixed(self.synced.get(inode, b""), live, rng)

    def _orphan(self, inode: int) -> bytes:
        for fd in self.kept_open:
            status = os.fstat(fd)
            if status.st_ino == inode:
                return os.pread(fd, status.st_size, 0)
        raise AssertionError("a synced file that was never created")

    def release(self) -> None:
        for fd in self.kept_open:
            os.close(fd)
        self.kept_open.clear()


def mixed(synced: bytes, live: bytes, rng: random.Random) -> bytes:
    """Return the synced content with some of the live sectors in it."""
    if synced == live:
        return live
    size = rng.choice((len(synced), len(live)))
    result = bytearray(synced[:size].ljust(size, b"\0"))
    share = rng.choice((0.0, 0.5, 1.0))
    for start in range(0, size, SECTOR_BYTES):
        if rng.random() < share:
            piece = live[start : start + SECTOR_BYTES]
            result[start : start + len(piece)] = piece
    return bytes(result[:size])
