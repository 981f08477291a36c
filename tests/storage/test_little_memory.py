"""Out of memory while a store is opened says nothing of what is on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from actorraft.errors import StorageFailed
from actorraft.raft.messages import HardState, LogEntry
from actorraft.storage import disk, records
from actorraft.storage.disk import DiskStorage
from actorraft.storage.image import LogImage


def out_of_memory(*_: object, **__: object) -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (records, "decode_records"),
        (records, "decode_batch"),
        (records, "decode_segment_header"),
        (LogImage, "apply"),
        (disk.SnapshotStore, "recover"),
    ],
)
def test_out_of_memory_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: object, name: str
) -> None:
    store = DiskStorage(tmp_path / "node")
    store.recover()
    store.persist(HardState(1, None), 0, [LogEntry(1, b"x" * 100)])
    store.close()

    with monkeypatch.context() as patched:
        patched.setattr(where, name, out_of_memory)
        short = DiskStorage(tmp_path / "node", create=False)
        with pytest.raises(StorageFailed, match=r"not enough memory .* Nothing says that it is damaged"):
            short.recover()
        short.close()

    again = DiskStorage(tmp_path / "node", create=False)
    assert 1 == len(again.recover().entries)
    again.close()
