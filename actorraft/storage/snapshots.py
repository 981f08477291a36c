"""Snapshots on disk: written aside, synced, renamed; the two newest are kept.

A file is a magic, the content, and a footer that says what the content is, how long, and the CRC of every block
of it. The footer comes last because only then is the size known, and so a file is written in one pass; content lies in
one piece, so that a chunk for a follower is one read. No byte of it is handed out before its block's CRC is checked.

Threads:   a writer is used by one thread at a time, not necessarily the loop's; the rest is safe from both.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import struct
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from actorraft.descriptors import open_file
from actorraft.errors import CorruptionError, NoRoom, UsageError
from actorraft.loggers import guarded_logger
from actorraft.ports import SnapshotMeta
from actorraft.raft.messages import Configuration, EntryId
from actorraft.storage.checksum import crc32
from actorraft.storage.files import Files
from actorraft.storage.records import decode_configuration, encode_configuration

logger = guarded_logger(__name__)

MAGIC = b"ARaftSnp\x01\0\0\0\0\0\0\0"
BLOCK_BYTES = 1 << 16
SYNC_EVERY_BYTES = 8 << 20  # so that the sync at the end does not hold up the log's for long
KEEP = 2
SUFFIX = ".snapshot"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_TRAILER = struct.Struct("<II")  # CRC of the footer, its length: the last bytes of the file
_WAY_OUT = (
    "Move the file away: the node then starts from the snapshot before it, if the log still reaches back to that. "
    "Otherwise remove the node from its cluster and add a new one"
)


class _Footer(msgspec.Struct, array_like=True, frozen=True):
    storage_id: bytes
    term: int
    index: int
    configuration: bytes
    size_bytes: int
    checksums: bytes  # a little-endian uint32 for each block


class SnapshotFile(NamedTuple):
    """A snapshot that is held: what it is, where, and the CRCs of its blocks."""

    meta: SnapshotMeta
    path: Path
    checksums: array[int]


def damaged(path: Path, offset: int, what: str) -> CorruptionError:
    """Return an error that names the place and the way out."""
    return CorruptionError(f"{path}, offset {offset}: {what}. {_WAY_OUT}.")


def snapshot_name(snapshot_id: EntryId) -> str:
    """Return the file's name; names sort as snapshots do."""
    return f"{snapshot_id.index:020d}-{snapshot_id.term:020d}{SUFFIX}"


def snapshot_paths(directory: Path) -> list[Path]:
    """Return the files of all snapshots, oldest first."""
    return sorted(path for path in directory.iterdir() if path.suffix == SUFFIX)


def read_footer(path: Path, storage_id: bytes) -> SnapshotFile:
    """Return what the file says of itself, checked; the content is not. Raises CorruptionError, OSError."""
    size = path.stat().st_size
    with open(open_file(path, os.O_RDONLY), "rb") as file:
        magic = file.read(len(MAGIC))
        file.seek(max(0, size - _TRAILER.size))
        trailer = file.read(_TRAILER.size)
        if magic != MAGIC or len(trailer) < _TRAILER.size:
            raise damaged(path, 0, "it is no snapshot, or of another version")
        crc, length = _TRAILER.unpack(trailer)
        start = size - _TRAILER.size - length
        if start < len(MAGIC):
            raise damaged(path, size - _TRAILER.size, "the snapshot's end is damaged or cut off")
        file.seek(start)
        data = file.read(length)
    if crc32(data) != crc:
        raise damaged(path, start, "the snapshot's footer is damaged or cut off")
    try:
        footer = msgspec.msgpack.decode(data, type=_Footer)
        configuration = decode_configuration(footer.configuration)
        checksums = _from_little_endian(footer.checksums)
    except ValueError as error:
        raise damaged(path, start, f"the snapshot's footer makes no sense: {error}") from None
    meta = SnapshotMeta(EntryId(footer.term, footer.index), configuration, footer.size_bytes)
    if footer.storage_id != storage_id:
        raise damaged(path, start, f"the snapshot belongs to another store ({footer.storage_id.hex()})")
    if path.name != snapshot_name(meta.snapshot_id):
        raise damaged(path, start, f"the file was renamed: it is the snapshot at {meta.snapshot_id}")
    blocks = -(-meta.size_bytes // BLOCK_BYTES)
    if start != len(MAGIC) + meta.size_bytes or len(checksums) != blocks:
        raise damaged(path, start, f"its content is not {meta.size_bytes} bytes")
    return SnapshotFile(meta, path, checksums)


def check_content(snapshot: SnapshotFile) -> None:
    """Check the CRC of every block. Raises CorruptionError, OSError."""
    with BlockReader(snapshot, guard=lambda error: error) as reader:
        for block in range(len(snapshot.checksums)):
            reader.block(block)


class BlockReader(io.RawIOBase):
    """The content of a snapshot, every block checked before a byte of it is handed out.

    Args:
        guard: turns an OSError into what is raised.
    """

    def __init__(self, snapshot: SnapshotFile, guard: Callable[[OSError], Exception]) -> None:
        self._snapshot = snapshot
        self._guard = guard
        self._offset = 0
        self._cached = (-1, b"")
        self._fd = -1
        try:
            self._fd = open_file(snapshot.path, os.O_RDONLY)
        except OSError as error:
            raise guard(error) from error

    def block(self, number: int) -> bytes:
        """Return a block, checked."""
        if self._cached[0] == number:
            return self._cached[1]
        snapshot = self._snapshot
        start = number * BLOCK_BYTES
        size = min(BLOCK_BYTES, snapshot.meta.size_bytes - start)
        try:
            data = os.pread(self._fd, size, len(MAGIC) + start)
        except OSError as error:
            raise self._guard(error) from error
        if len(data) != size or crc32(data) != snapshot.checksums[number]:
            raise damaged(snapshot.path, len(MAGIC) + start, "the snapshot is damaged here")
        self._cached = (number, data)
        return data

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Return up to `size_bytes` from `offset`, less only at the end."""
        stop = min(offset + size_bytes, self._snapshot.meta.size_bytes)
        if stop <= offset:
            return b""
        first, last = offset // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
        data = b"".join([self.block(number) for number in range(first, last + 1)])
        start = offset - first * BLOCK_BYTES
        return data[start : start + stop - offset]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self._snapshot.meta.size_bytes}[whence]
        self._offset = max(0, base + offset)
        return self._offset

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read_at(self._offset, min(len(view), BLOCK_BYTES))
        view[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed and self._fd >= 0:
            os.close(self._fd)
        super().close()


class DiskSnapshotWriter:
    """A snapshot being written aside. See ports.SnapshotWriter.

    Raises:
        NoRoom: it does not fit. It lies aside, so nothing depends on it: it is removed, and the store serves on.
        StorageFailed: the disk refused anything else; then the store refuses everything.
    """

    def __init__(self, store: SnapshotStore, snapshot_id: EntryId, configuration: Configuration, path: Path) -> None:
        self._store = store
        self._snapshot_id = snapshot_id
        self._configuration = configuration
        self._path = path
        self._pending = bytearray()  # less than a block
        self._checksums = array("I")
        self._size_bytes = 0  # written to the file, whole blocks but for the last
        self._synced_bytes = 0
        self._fd = -1
        with self._may_not_fit():
            self._fd = store.files.create(path)
            store.files.write(self._fd, [MAGIC], 0)

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Append; may block."""
        if self._fd < 0:
            raise UsageError("this snapshot is committed or aborted already")
        with self._store.guarded(), self._may_not_fit():
            view = rest = memoryview(data).cast("B")
            first = bytearray()
            if self._pending:
                room = BLOCK_BYTES - len(self._pending)
                self._pending += view[:room]
                if len(view) < room:
                    return len(view)
                first, self._pending, rest = self._pending, first, view[room:]
            whole = len(rest) - len(rest) % BLOCK_BYTES
            self._write_out(first, rest[:whole])
            self._pending += rest[whole:]
            return len(view)

    def commit(self) -> SnapshotMeta:
        """Make it durable (file, rename, directory) and the newest. Blocks on the disk."""
        if self._fd < 0:
            raise UsageError("this snapshot is committed or aborted already")
        with self._store.guarded():
            with self._may_not_fit():
                self._finish()
            self._close()
            meta = SnapshotMeta(self._snapshot_id, self._configuration, self._size_bytes)
            self._store.take(self._path, meta, self._checksums)
            return meta

    def _finish(self) -> None:
        """Write what is left and the footer, and sync."""
        self._write_out(self._pending)
        self._pending = bytearray()
        footer = msgspec.msgpack.encode(
            _Footer(
                self._store.storage_id,
                self._snapshot_id.term,
                self._snapshot_id.index,
                encode_configuration(self._configuration),
                self._size_bytes,
                _to_little_endian(self._checksums),
            )
        )
        files = self._store.files
        files.write(self._fd, [footer, _TRAILER.pack(crc32(footer), len(footer))], len(MAGIC) + self._size_bytes)
        files.sync(self._fd)

    @contextlib.contextmanager
    def _may_not_fit(self) -> Iterator[None]:
        """Throw the file away, and say so, if there is no room for it."""
        try:
            yield
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self.abort()
            raise NoRoom(f"{self._path.parent} has no room for a snapshot: {error.strerror or error}") from error

    def abort(self) -> None:
        """Throw it away. Idempotent; nothing after a commit."""
        if self._fd >= 0:
            with self._store.guarded():
                self._close()
                self._store.files.unlink(self._path)

    def _write_out(self, *parts: bytes | bytearray | memoryview) -> None:
        """Write parts that are whole blocks each; the last one of a snapshot need not be."""
        views = [memoryview(part) for part in parts if part]
        if not views:
            return
        for view in views:
            for start in range(0, len(view), BLOCK_BYTES):
                self._checksums.append(crc32(view[start : start + BLOCK_BYTES]))
        files = self._store.files
        files.write(self._fd, views, len(MAGIC) + self._size_bytes)
        self._size_bytes += sum(map(len, views))
        if self._size_bytes - self._synced_bytes >= SYNC_EVERY_BYTES:
            files.sync_data(self._fd)
            self._synced_bytes = self._size_bytes

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        self._store.files.close(fd)


class SnapshotStore:
    """The snapshots of one node.

    Args:
        guarded: a context manager that turns OSError into StorageFailed and remembers it.
    """

    def __init__(self, directory: Path, storage_id: bytes, files: Files, guarded: Callable[[], Any]) -> None:
        self.directory = directory
        self.storage_id = storage_id
        self.files = files
        self.guarded = guarded
        self._lock = threading.Lock()
        self._held: list[SnapshotFile] = []  # oldest first; at most KEEP
        self._written = 0
        self._reader: tuple[EntryId, BlockReader] | None = None  # the one being sent to a follower

    def recover(self) -> SnapshotMeta | None:
        """Remove leftovers and check the newest snapshot, all of it. Raises CorruptionError, OSError."""
        for path in self.directory.glob("*.tmp"):
            self.files.unlink(path)
        paths = snapshot_paths(self.directory)
        for path in paths[:-KEEP]:
            self.files.unlink(path)
        self._held = []
        for path in paths[-KEEP:-1]:
            try:
                self._held.append(read_footer(path, self.storage_id))
            except CorruptionError as error:  # nothing depends on it
                logger.warning("an older snapshot is passed over: %s", error)
        if not paths:
            return None
        newest = read_footer(paths[-1], self.storage_id)
        check_content(newest)
        self._held.append(newest)
        return newest.meta

    def make_durable(self) -> None:
        """Sync what an earlier run may have left unsynced."""
        for snapshot in self._held:
            fd = self.files.open(snapshot.path)
            try:
                self.files.sync(fd)
            finally:
                self.files.close(fd)
        self.files.sync_directory(self.directory)

    def newest(self) -> SnapshotFile | None:
        """Return the newest snapshot that is committed."""
        with self._lock:
            return self._held[-1] if self._held else None

    def begin(self, snapshot_id: EntryId, configuration: Configuration) -> DiskSnapshotWriter:
        """Start writing one aside. Raises OSError."""
        with self._lock:
            self._written += 1
            path = self.directory / f"{self._written}.tmp"
        return DiskSnapshotWriter(self, snapshot_id, configuration, path)

    def take(self, aside: Path, meta: SnapshotMeta, checksums: array[int]) -> None:
        """Give a complete, synced file its name, and forget all but the newest. Raises OSError."""
        path = self.directory / snapshot_name(meta.snapshot_id)
        self.files.rename(aside, path)
        self.files.sync_directory(self.directory)
        with self._lock:
            held = [one for one in self._held if one.meta.snapshot_id != meta.snapshot_id]
            held.append(SnapshotFile(meta, path, checksums))
            held.sort(key=lambda one: (one.meta.snapshot_id.index, one.meta.snapshot_id.term))
            self._held = held[-KEEP:]
            for old in held[:-KEEP]:
                self.files.unlink(old.path)
            self._drop_reader()

    def open(self, guard: Callable[[OSError], Exception]) -> BinaryIO:
        """Open the newest snapshot's content."""
        newest = self.newest()
        if newest is None:
            raise UsageError(f"{self.directory} holds no snapshot")
        return io.BufferedReader(BlockReader(newest, guard), BLOCK_BYTES)

    def read(
        self, snapshot_id: EntryId, offset: int, size_bytes: int, guard: Callable[[OSError], Exception]
    ) -> tuple[bytes, bool] | None:
        """As Storage.read_snapshot."""
        with self._lock:
            held = next((one for one in self._held if one.meta.snapshot_id == snapshot_id), None)
            if held is None:
                return None
            if self._reader is None or self._reader[0] != snapshot_id:
                self._drop_reader()
                self._reader = (snapshot_id, BlockReader(held, guard))
            data = self._reader[1].read_at(offset, size_bytes)
            return data, offset + len(data) >= held.meta.size_bytes

    def close(self) -> None:
        """Let go of files. Idempotent."""
        with self._lock:
            self._drop_reader()

    def _drop_reader(self) -> None:
        if self._reader is not None:
            self._reader[1].close()
            self._reader = None


def _to_little_endian(values: array[int]) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def _from_little_endian(data: bytes) -> array[int]:
    if len(data) % 4:
        raise ValueError("checksums cut off")
    return array("I", struct.unpack(f"<{len(data) // 4}I", data))
