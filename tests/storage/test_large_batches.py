"""What large batches leave behind: no copy of the log in the system's memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from actorraft.raft.messages import LogEntry
from actorraft.storage.files import Files
from actorraft.storage.wal import JOINED_BYTES_MAX, Wal


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
