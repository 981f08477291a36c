"""Entries that an operator has had skipped, as a node's folder has them.

A command that ends its process, or that holds a node for good, stands in the way of all that is behind it. The entry
itself is never rewritten: a log is what was agreed. What is added is one line, beside the log, that this entry changes
nothing. It is a decision about replicated state, so every node must have it before any goes past the entry: from here
it is told on every link, rides in snapshots, and goes through the log as soon as there is a leader (node/skipping.py).

Not here:   what a node does at such an entry (executor.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from actorraft.errors import UsageError
from actorraft.storage.directory import CLUSTER_FILE, DirectoryLock, cannot_be_used, seal, unseal
from actorraft.storage.disk import SNAPSHOT_FOLDER
from actorraft.storage.files import Files
from actorraft.storage.marks import APPLIED, COMMITTED, RUNNING, read_marks
from actorraft.storage.records import entry_checksum
from actorraft.storage.show import Shown, describe, node_folders, read_log
from actorraft.storage.snapshots import snapshot_paths

SKIPS_FILE: Final = "skips.json"


def read_skips(folder: Path) -> dict[int, int]:
    """Return index -> checksum of what a node skips. Raises CorruptionError, UsageError."""
    content = unseal(folder / SKIPS_FILE)
    return {} if content is None else {int(index): int(crc, 16) for index, crc in content["skips"].items()}


def store_skips(folder: Path, skips: Mapping[int, int]) -> None:
    """Replace what a node skips; durable on return. Raises OSError."""
    content = {"skips": {str(index): f"{crc:08x}" for index, crc in sorted(skips.items())}}
    Files().replace(folder / SKIPS_FILE, seal(content))


def skip(path: str | os.PathLike[str], index: int, checksum: str) -> tuple[Shown, list[Path]]:
    """Have the nodes whose folders are at hand skip an entry; return it, and the folders that were written to.

    Args:
        path: the folder of a cluster, or of one node; nobody may be running on it.
        checksum: as `show` says it.

    Raises:
        UsageError: the entry is another one, or is not known to be committed; or it may have been applied and answered.
        CorruptionError: a log is damaged.
    """
    folder = Path(path).absolute()
    with contextlib.ExitStack() as locks:
        if (folder / CLUSTER_FILE).exists():
            locks.callback(DirectoryLock(folder, wait_s=0).close)
        folders = list(node_folders(folder))
        for node, _ in folders:
            locks.callback(DirectoryLock(node, wait_s=0).close)
        found: Shown | None = None
        committed, crc = False, 0
        for node, info in folders:
            first, entries = read_log(node, info)
            _refuse_applied(node, index)
            marks = read_marks(node)
            committed |= marks is not None and marks.words[COMMITTED] >= index
            if first <= index < first + len(entries):
                entry = entries[index - first]
                shown = describe(index, entry)
                if shown.checksum == checksum.lower().removeprefix("0x"):
                    found, crc = shown, entry_checksum(index, entry)
                elif marks is not None and marks.words[COMMITTED] >= index:
                    raise UsageError(f"{node.name} has committed another one: {shown.words}, not {checksum}")
        if found is None:
            raise UsageError(
                f"no entry at index {index} has the checksum {checksum}: see python -m actorraft.storage show {folder} "
                f"--index {index}"
            )
        if not committed:
            raise UsageError(f"{found.words} is not committed, as far as {folder} shows: it may never be applied")
        with cannot_be_used(folder):
            for node, _ in folders:
                store_skips(node, {**read_skips(node), index: crc})
        return found, [node for node, _ in folders]


def _refuse_applied(node: Path, index: int) -> None:
    """Refuse what may have been answered: an outcome that somebody knows of stands."""
    newest = max((int(path.name.partition("-")[0]) for path in snapshot_paths(node / SNAPSHOT_FOLDER)), default=-1)
    marks = read_marks(node)
    applied = -1 if marks is None else max(marks.words[APPLIED], marks.words[RUNNING] - 1)
    if newest >= index or applied >= index:
        what = f"a snapshot of the state at index {newest}" if newest >= index else f"applied up to index {applied}"
        raise UsageError(
            f"{node}: this node has {what}, so what the entry at index {index} gave may have been answered, and "
            "stands. Replace the nodes that cannot apply it: remove_node(), add_node()"
        )
