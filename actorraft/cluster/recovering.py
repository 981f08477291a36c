"""The way back when a majority of machines is lost for good: one machine's data becomes a cluster of its own.

It gets a new cluster id. Should somebody do the same on a second machine, or should a lost one turn up, there are two
clusters with two names, and neither hears the other's nodes or clients. The others join anew, with tokens.

The seeds of the machine and of hashes stay what they were: the log is replayed, and must give the same results.

Invariant:  the log comes first, the folder's description last; a crash in between is mended by doing it once more.
Source:     docs/operations.md; storage/recover.py, which does the same for the folders of one machine.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from actorraft.errors import UsageError
from actorraft.node.folder import NodeFolder, read_folder, write_folder
from actorraft.node.standalone import seed_of
from actorraft.raft import roster
from actorraft.raft.messages import Configuration, HardState, LogEntry
from actorraft.storage.directory import NODE_FILE, ClusterInfo, NodeDirectory, NodeInfo, unseal
from actorraft.storage.disk import DiskStorage
from actorraft.storage.files import Files
from actorraft.storage.recover import TERM_GAP, Survivor, read_survivor


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one machine has, to be compared with what the others have before one is chosen."""

    folder: NodeFolder
    data: Path
    survivor: Survivor


def look(path: Path, data_dir: Path | None) -> Found:
    """Read a node's folder and data, changing nothing.

    Raises:
        UsageError: there is none, or a node runs there.
        CorruptionError: it is damaged.
    """
    folder = read_folder(path, environment={})
    data = (data_dir or Path(folder.node.data_dir or path / "data")).absolute()
    node = NodeInfo(**(unseal(data / NODE_FILE) or {"storage_id": ""}))
    if node.node_id != folder.node.id:
        raise UsageError(f"{data} holds no data of node {folder.node.id}")
    info = ClusterInfo(
        cluster_id=node.cluster_id or "",
        machine=folder.cluster.machine,
        node_ids=(folder.node.id,),
        founder_ids=tuple(sorted(folder.members)),
        storage_ids=tuple(sorted((node_id, each.storage_id) for node_id, each in folder.members.items())),
        hash_seed=0,
    )
    return Found(folder=folder, data=data, survivor=read_survivor(data, folder.node.id, info))


def go_on_alone(path: Path, found: Found) -> str:
    """Make a cluster of this one node; return the new cluster's id."""
    folder, own = found.folder, found.folder.node.id
    was = found.survivor.configuration
    cluster_id = os.urandom(8).hex()
    seed = str(seed_of(folder))
    settings = {**dict(was.settings), "seed": json.dumps(seed)}
    configuration = Configuration(
        voters=frozenset({own}),
        next_node_id=max(was.next_node_id, own + 1),
        storage_ids=((own, found.survivor.storage_id),),
        roster=(roster.member_of(was, own),),
        clients=was.clients,
        settings=tuple(sorted(settings.items())),
    )
    store = DiskStorage(found.data, create=False, wait_s=0, accept_loss=True)
    try:
        recovered = store.recover()
        index = recovered.first_index + len(recovered.entries)
        term = found.survivor.hard_state.term + TERM_GAP
        store.persist(HardState(term, own), index, [LogEntry(term, configuration)])
    finally:
        store.close()
    directory = NodeDirectory(found.data, create=False)
    try:
        directory.store(replace(directory.info, cluster_id=cluster_id))
    finally:
        directory.close()
    Files().unlink(found.data / "addresses.json")
    members = {node_id: member for node_id, member in folder.members.items() if node_id == own}
    cluster = msgspec.structs.replace(folder.cluster, id=cluster_id, seed=seed)
    write_folder(path, msgspec.structs.replace(folder, cluster=cluster, members=members), first_start=False)
    return cluster_id
