"""All nodes of a closed cluster begin from one state: the newest snapshot of any of them, put into every folder.

Nodes take snapshots at indexes of their own. Where other code is to compute anew what follows, that has to begin at
one index everywhere, or replicas part. What a snapshot holds is committed, so whoever has an older one may have it too:
its folder then is as if it had taken that snapshot itself, and a crash midway leaves nothing that must be undone.

Source:     docs/decisions/0031.
Not here:   the entry of the log that says from which index on which code rules (node/rules.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from actorraft.ports import SnapshotMeta
from actorraft.raft.messages import NO_ENTRY, HardState
from actorraft.storage.directory import ClusterDirectory
from actorraft.storage.disk import SNAPSHOT_FOLDER, DiskStorage
from actorraft.storage.snapshots import BlockReader, SnapshotFile, read_footer, snapshot_paths

COPY_BYTES: Final = 1 << 20


def level(directory: ClusterDirectory, durability: str) -> int:
    """Give every node of a closed cluster the newest snapshot; return the index of the first entry after it.

    Args:
        durability: how the nodes write.

    Raises:
        CorruptionError, StorageFailed, UsageError: a folder cannot be used.
    """
    assert directory.info is not None, "a new cluster has nothing to level"
    held = {node_id: _newest(directory.node_path(node_id), known) for node_id, known in directory.storage_ids().items()}
    newest = max(filter(None, held.values()), key=lambda one: one.meta.snapshot_id.index, default=None)
    if newest is None:
        return 0  # all begin from nothing
    for node_id, own in held.items():
        if own is None or own.meta.snapshot_id.index < newest.meta.snapshot_id.index:
            storage = DiskStorage(directory.node_path(node_id), durability=durability, create=False)
            try:
                _put(storage, newest)
            finally:
                storage.close()
    return newest.meta.snapshot_id.index + 1


def _newest(folder: Path, storage_id: str) -> SnapshotFile | None:
    paths = snapshot_paths(folder / SNAPSHOT_FOLDER) if (folder / SNAPSHOT_FOLDER).is_dir() else []
    return read_footer(paths[-1], bytes.fromhex(storage_id)) if paths else None


def _put(storage: DiskStorage, snapshot: SnapshotFile) -> None:
    recovered = storage.recover()
    snapshot_id = snapshot.meta.snapshot_id
    writer = storage.begin_snapshot(snapshot_id, snapshot.meta.configuration)
    with BlockReader(snapshot, guard=lambda error: error) as reader:
        while data := reader.read(COPY_BYTES):
            writer.write(data)
    meta: SnapshotMeta = writer.commit()
    position = snapshot_id.index - recovered.first_index
    known = recovered.entries[position].term if 0 <= position < len(recovered.entries) else NO_ENTRY.term
    if known == snapshot_id.term:
        storage.compact(snapshot_id.index + 1)
    else:
        storage.reset_log(meta)  # it ends before, or was never committed there
        if recovered.hard_state.term < snapshot_id.term:
            storage.persist(HardState(snapshot_id.term, None), snapshot_id.index + 1, [])
