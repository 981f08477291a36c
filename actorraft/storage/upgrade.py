"""Takes code by value out of a closed cluster, so that it opens under another minor version of Python.

The newest snapshot of any node goes to every node, without definitions, and the log up to there is cut: what stands in
it was applied. What the state itself is made of cannot be taken out, so a state that holds a function, or an object of
a class that nobody can import, is refused by name; so is a log with commands behind that snapshot, which a clean end
leaves none of.

Nothing acknowledged is lost: a snapshot holds only what is committed, and there is no command behind it.

Invariant:  all nodes, or none: cluster.json says that it is under way, and until it was done to its end nothing starts
            here. Doing it once more mends it.
Source:     docs/decisions/0040.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import BinaryIO, Final

from actorraft.errors import UsageError
from actorraft.ports import Recovered
from actorraft.storage.by_value import UNDER_WAY, Content, code_of_cluster, code_of_state
from actorraft.storage.directory import ClusterDirectory
from actorraft.storage.disk import DiskStorage
from actorraft.storage.recover import open_cluster

COPY_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Upgraded:
    """What `upgrade` did.

    Attributes:
        removed: what code by value there was, in words; empty: nothing was to be done, and nothing was.
        index: up to which all nodes begin from a snapshot without it.
    """

    removed: tuple[str, ...]
    index: int


def upgrade(path: str | os.PathLike[str]) -> Upgraded:
    """Take code by value out of the closed cluster in `path`. See the head of this file.

    Raises:
        UsageError: it is no cluster's folder, is in use, lacks a node, or holds code that cannot be taken out.
        CorruptionError, StorageFailed: a folder is damaged, or the disk refused.
    """
    directory = open_cluster(path)
    try:
        assert directory.info is not None
        info = directory.check(directory.info.machine)
        under_way = info.python.endswith(UNDER_WAY)
        python = info.python.removesuffix(UNDER_WAY).strip()
        removed = tuple(dict.fromkeys(found.what for found in code_of_cluster(directory.path)))
        if not (removed or under_way):
            return Upgraded(removed=(), index=-1)
        with ExitStack() as stack:
            stores = _open_stores(directory, stack)
            index = _rewrite(directory, stores, python)
        directory.update(replace(info, python=python))
        return Upgraded(removed=removed, index=index)
    finally:
        directory.close()


def _open_stores(directory: ClusterDirectory, stack: ExitStack) -> dict[str, tuple[DiskStorage, Recovered]]:
    stores = {}
    for node_id, storage_id in directory.storage_ids().items():
        folder = directory.node_path(node_id)
        store = DiskStorage(folder, create=False, node_id=node_id, storage_id=storage_id, wait_s=0)
        stack.callback(store.close)
        stores[folder.name] = (store, store.recover())
    return stores


def _rewrite(directory: ClusterDirectory, stores: dict[str, tuple[DiskStorage, Recovered]], python: str) -> int:
    """Put the newest snapshot, without definitions, into every store; return its index."""
    info = directory.info
    assert info is not None
    held = [(recovered.snapshot, store) for store, recovered in stores.values() if recovered.snapshot is not None]
    if not held:
        raise UsageError(f"{directory.path} has no snapshot: {_close_first(python)}")
    snapshot, best = max(held, key=lambda one: one[0].snapshot_id.index)
    at = snapshot.snapshot_id.index
    for name, (_, recovered) in stores.items():
        for entry in list(recovered.entries)[max(at + 1 - recovered.first_index, 0) :]:
            if type(entry.item) is bytes:  # a command, which may be of a class that is defined before it
                raise UsageError(f"the log of {name} goes on behind the snapshot at {at}: {_close_first(python)}")
    with best.open_snapshot() as file:
        content = Content(file)
        for found in code_of_state(content, file, f"the snapshot at index {at}"):
            raise UsageError(
                f"{found.words}, and a state cannot be taken out of itself: start it under Python {python}, have its "
                "commands put objects of importable classes in their place, and close it"
            )
        writers = []
        for store, _ in stores.values():
            writer = store.begin_snapshot(snapshot.snapshot_id, snapshot.configuration)
            for data in _without_definitions(content, file):
                writer.write(data)
            writers.append(writer)
    directory.update(replace(info, python=f"{python} {UNDER_WAY}"))
    for (store, recovered), writer in zip(stores.values(), writers, strict=True):
        meta = writer.commit()
        position = at - recovered.first_index
        entries = recovered.entries
        if 0 <= position < len(entries) and entries[position].term == snapshot.snapshot_id.term:
            store.compact(at + 1)  # what is behind it stays
        elif at >= recovered.first_index:
            store.reset_log(meta)
    return at


def _without_definitions(content: Content, file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    left = content.machine_at
    while left and (data := file.read(min(left, COPY_BYTES))):
        left -= len(data)
        yield data
    yield content.head_without_definitions()
    file.seek(content.chunks_at)
    yield from iter(lambda: file.read(COPY_BYTES), b"")


def _close_first(python: str) -> str:
    return f"start it once under Python {python} and close it, which leaves a snapshot at the log's end"
