"""What large batches and snapshots leave behind: no copy in the system's memory, nor one in this process's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from actorraft.raft.messages import EntryId, LogEntry
from actorraft.storage.files import Files
from actorraft.storage.snapshots import BLOCK_BYTES
from actorraft.storage.wal import JOINED_BYTES_MAX, Wal
from tests.storage.helpers import CONFIGURATION, FastFiles, held_at, open_store


class Watching(Files):
    """The system's files, and the order of what is asked of them."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def sync_data(self, fd: int) -> None:
        self.asked.append("sync")
        super().sync_data(fd)

    def forget(self, fd: int, offset: int, length: int) -> None:
        self.asked.append(f"forget {length >= JOINED_BYTES_MAX}")
        super().forget(fd, offset, length)


@pytest.mark.parametrize(("size", "asked"), [(100, ["sync"]), (1 << 20, ["sync", "forget True"])])
def test_what_was_synced_is_let_go_of_if_it_is_large_and_is_read_again(
    tmp_path: Path, size: int, asked: list[str]
) -> None:
    files = Watching()
    wal = Wal(tmp_path, b"0123456789abcdef", files)
    wal.create()
    for number in range(3):
        files.asked.clear()
        wal.persist(None, number, [LogEntry(1, bytes([number]) * size)])
        assert files.asked == asked, "after it is synced: before, there is nothing that could go"
    wal.close()
    again = Wal(tmp_path, b"0123456789abcdef", Files())
    assert [entry.item[:1] for entry in again.recover()] == [b"\0", b"\1", b"\2"]
    again.close()


class Seeing(FastFiles):
    """Files that remember of which objects the parts of a write are views."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def write(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
        self.seen += [part.obj if isinstance(part, memoryview) else part for part in parts]
        super().write(fd, parts, offset)


def test_a_snapshot_is_written_from_where_its_pieces_lie_and_read_as_it_was(tmp_path: Path) -> None:
    files = Seeing()
    store = open_store(tmp_path, files)
    store.recover()
    store.persist(None, 0, [LogEntry(1, b"x")] * 3)
    sizes = [
        1,
        BLOCK_BYTES - 2,
        1,
        0,
        BLOCK_BYTES,
        5,
        BLOCK_BYTES - 5,
        3 * BLOCK_BYTES + 7,
        7,
        1 << 20,
        BLOCK_BYTES - 13,
    ]
    pieces = [os.urandom(size) for size in sizes]

    writer = store.begin_snapshot(EntryId(1, 2), CONFIGURATION)
    for piece in pieces:
        assert writer.write(piece) == len(piece)
    writer.commit()
    store.close()

    assert held_at(tmp_path)[1] == b"".join(pieces)
    assert all(any(each is piece for each in files.seen) for piece in pieces if len(piece) > 2 * BLOCK_BYTES)
