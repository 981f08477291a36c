"""The few things the store asks of the operating system, in one place so that tests can stand in for it.

Every method raises OSError and nothing else; the store turns that into StorageFailed.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from actorraft.descriptors import open_file

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600


class Files:
    """Files and directories as the store uses them."""

    syncing = True

    def unsynced(self) -> Self:
        """Return one whose syncs do nothing: what is written survives the death of processes, not of the machine."""
        other = copy.copy(self)
        other.syncing = False
        return other

    def create(self, path: Path) -> int:
        """Open for reading and writing, empty; the name is durable only after `sync_directory`."""
        return open_file(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, FILE_MODE)

    def open(self, path: Path) -> int:
        """Open for reading and writing what is there."""
        return open_file(path, os.O_RDWR)

    def write(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
        """Write all of `parts` at `offset`, in one system call unless the kernel takes less."""
        written = os.pwritev(fd, parts, offset)
        length = sum(map(len, parts))
        if written < length:
            rest = memoryview(b"".join(parts))
            while written < length:
                written += os.pwrite(fd, rest[written:], offset + written)

    def sync_data(self, fd: int) -> None:
        """Return once the data, and the size if it grew, are on the disk."""
        if self.syncing:
            _fdatasync(fd)

    def forget(self, fd: int, offset: int, length: int) -> None:
        """Let go of the system's copy of what was synced: nobody reads it until the next start.

        The next write then goes into pages that are in use already; new ones cost several times as much on a virtual
        machine, whose host has to find each of them first.
        """
        if self.syncing and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

    def sync(self, fd: int) -> None:
        """Return once the data and everything about the file are on the disk."""
        if self.syncing:
            _fsync(fd)

    def sync_directory(self, path: Path) -> None:
        """Return once the names in this directory are on the disk."""
        if self.syncing:
            fd = open_file(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def preallocate(self, fd: int, offset: int, length: int) -> None:
        """Make room for `length` zero bytes, so that a commit into them does not change the size of the file."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, offset, length)

    def truncate(self, fd: int, length: int) -> None:
        """Cut the file to `length`."""
        os.ftruncate(fd, length)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file its final name, atomically."""
        os.rename(old, new)

    def unlink(self, path: Path) -> None:
        """Remove a file; nothing if it is gone."""
        path.unlink(missing_ok=True)

    def make_directory(self, path: Path) -> None:
        """Make one directory for this user alone, if it is not there."""
        path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)

    def close(self, fd: int) -> None:
        """Close; says nothing about durability."""
        os.close(fd)

    def replace(self, path: Path, content: bytes) -> None:
        """Put a small file in the place of `path`, whole or not at all, durable on return."""
        aside = path.with_name(path.name + ".tmp")
        fd = self.create(aside)
        try:
            self.write(fd, [content], 0)
            self.sync(fd)
        except OSError as error:
            error.filename = error.filename or str(path)  # a descriptor has no name
            raise
        finally:
            self.close(fd)
        self.rename(aside, path)
        self.sync_directory(path.parent)


def _fsync(fd: int) -> None:
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync alone leaves the data in the drive's cache there
    else:
        os.fsync(fd)


_fdatasync = getattr(os, "fdatasync", _fsync)
