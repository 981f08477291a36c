"""Where a node keeps its log, hard state and snapshots: on disk (disk.py) or in memory (memory.py), under one contract.

records.py    the format of the log; pure functions over bytes
image.py      what records amount to
wal.py        the log's files: append, recovery, compaction
snapshots.py  snapshot files
directory.py  the folders of a cluster and of a node: locks, ids, who made them
disk.py       all of it as one Storage
recover.py    the way back from a lost majority: python -m actorraft.storage recover PATH --keep 0,3
marks.py      what was done with committed entries, for the next life of a node
show.py       what an entry is: python -m actorraft.storage show PATH --index N
skips.py      entries to pass by: python -m actorraft.storage skip PATH --index N --checksum C
by_value.py   which code a log or snapshot holds by value, which only the Python that made it can read
upgrade.py    takes it out: python -m actorraft.storage upgrade PATH
verify.py     checks a folder without starting a node: python -m actorraft.storage verify PATH
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actorraft.storage.disk import DiskStorage
    from actorraft.storage.memory import MemoryStorage

__all__ = ["DiskStorage", "MemoryStorage"]


def __getattr__(name: str) -> Any:
    """Load on first use: a node in memory needs no disk code, a node on disk no verifier."""
    if name == "DiskStorage":
        from actorraft.storage.disk import DiskStorage

        return DiskStorage
    if name == "MemoryStorage":
        from actorraft.storage.memory import MemoryStorage

        return MemoryStorage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
