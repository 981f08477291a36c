"""The way back from a lost majority: makes a cluster of the nodes that are left.

A cluster that has lost the folders of a majority has no way to elect a leader, and must not have one: what the lost
nodes acknowledged together is perhaps nowhere else. This is the decision of a person to go on with what is there.

What it does: of the nodes to keep it picks the one whose log is the most up-to-date, and appends to that log an entry
of a new term with a configuration of just the kept nodes; then the cluster's folder names them as its members.

Why an entry, and not the folder's description: a configuration in the log overrides whatever a node was told at its
start, rules from the moment it is appended (Raft §6), reaches the other kept nodes as any entry does, and is one atomic
write. Why only in one log: in another it could take another index, and one (term, index) must be one entry for ever.
The others still have the old configuration until they receive it; they cannot elect one of themselves meanwhile, for
either they are no majority of it, or they need the vote of the picked node, whose log is more up-to-date (§5.4.1).
Why a new cluster id: done in two places with two halves of the folders, it must not make two clusters of one name. The
links, folders and clients of the old id are refused by the new one; the machine's seeds stay: the log is replayed.
Why a term so far ahead: the lost nodes may have been in later terms than any that is seen here; should one of
their folders turn up, no term of theirs is used a second time.

What it may lose: an entry acknowledged by a majority is on every majority; so if the kept nodes are one, nothing is
lost. Else what only the others had is gone, though it was acknowledged.

Invariant:  the new id is noted before anything is done and is everybody's at the end; a crash in between is mended by
            doing it once more, and until then nothing starts here.
Source:     Raft §5.4.1, §6; etcd's --force-new-cluster, Consul's peers.json.
Not here:   nodes that run. Every folder that is touched is locked, so a cluster in use is refused.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from actorraft.errors import ActorRaftError, CorruptionError, UsageError
from actorraft.raft.messages import Configuration, EntryId, HardState, LogEntry
from actorraft.storage.boot import boot_id
from actorraft.storage.directory import (
    CLUSTER_FILE,
    NODE_FILE,
    ClusterDirectory,
    ClusterInfo,
    DirectoryLock,
    NodeDirectory,
    NodeInfo,
    cannot_be_used,
    unseal,
)
from actorraft.storage.disk import LOG_FOLDER, SNAPSHOT_FOLDER, DiskStorage
from actorraft.storage.records import entry_checksum
from actorraft.storage.snapshots import check_content, read_footer, snapshot_paths
from actorraft.storage.wal import LogReader

TERM_GAP = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Survivor:
    """What a node's folder holds, as read without changing it.

    Attributes:
        cluster_id: hexadecimal.
        checksum: of the last entry, eight hexadecimal digits; "" where only a snapshot reaches so far. Two logs that
            end in one term, at one index, and with another checksum, are of two clusters.
        unsynced: written with durability="os" when the machine stopped: the end of its log may be missing.
    """

    node_id: int
    cluster_id: str
    storage_id: str
    hard_state: HardState
    last: EntryId
    checksum: str
    configuration: Configuration
    unsynced: bool

    @property
    def words(self) -> str:
        """The same in a sentence, to be compared across machines before one is chosen."""
        end = f"(term {self.last.term}, index {self.last.index}, checksum {self.checksum or 'of a snapshot'})"
        log = "its log is empty" if self.last.index < 0 else f"its log ends with {end}"
        return f"node {self.node_id} of cluster {self.cluster_id}: {log}; it has known term {self.hard_state.term}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `recover` does, or did.

    Attributes:
        keep: the members from now on.
        best: whose log is the most up-to-date; all the others get it.
        configuration: as it was, in the newest log that can be read.
        readable: nodes whose folders are whole, kept or not.
        unreadable: node id -> what is wrong with its folder.
        may_lose: acknowledged entries may be lost: the kept nodes are no majority, or were not synced.
        danger: why this is refused unless forced; empty if it is not.
        term: of the entry that says so.
        cluster_id: the new one, hexadecimal.
    """

    keep: tuple[int, ...]
    best: Survivor
    configuration: Configuration
    readable: tuple[int, ...]
    unreadable: dict[int, str]
    may_lose: bool
    danger: str
    term: int
    cluster_id: str


def recover(path: str | os.PathLike[str], keep: Collection[int], *, force: bool = False, dry_run: bool = False) -> Plan:
    """Make the cluster in `path` one of the nodes `keep` alone. See the head of this file.

    Args:
        path: the cluster's folder, with the nodes' folders that are left.
        keep: ids of nodes whose folders are there and whole.
        force: go on although other nodes could make a majority, with what only they acknowledged.
        dry_run: change nothing; return what would be done.

    Raises:
        UsageError: it is no cluster's folder, is in use, a node to keep is not there, or it is refused without `force`.
        CorruptionError: a node to keep is damaged.
    """
    directory = open_cluster(path)
    try:
        assert directory.info is not None
        plan = _plan(directory, directory.info, frozenset(keep))
        if dry_run:
            return plan
        if plan.danger and not force:
            raise UsageError(plan.danger)
        _carry_out(directory, directory.info, plan)
        return plan
    finally:
        directory.close()


def look(path: str | os.PathLike[str]) -> tuple[list[Survivor], dict[int, str]]:
    """Say what the nodes' folders of a cluster hold, changing nothing; and node id -> why one cannot be read.

    Raises:
        UsageError: it is no cluster's folder, or is in use.
    """
    directory = open_cluster(path)
    try:
        assert directory.info is not None
        survivors, unreadable = _read_all(directory, directory.info)
        return list(survivors.values()), unreadable
    finally:
        directory.close()


def open_cluster(path: str | os.PathLike[str]) -> ClusterDirectory:
    """Open the folder of a cluster that nobody runs. Raises UsageError: it is none, or is in use; CorruptionError."""
    folder = Path(path).absolute()
    if not (folder / CLUSTER_FILE).is_file():
        raise UsageError(f"{folder} is no cluster's folder: it has no {CLUSTER_FILE}")
    return ClusterDirectory(folder, wait_s=0)


def _plan(directory: ClusterDirectory, info: ClusterInfo, keep: frozenset[int]) -> Plan:
    strangers = sorted(keep - set(info.node_ids))
    if strangers or not keep:
        raise UsageError(f"nodes to keep are some of {list(info.node_ids)}, not {strangers or 'none'}")
    survivors, unreadable = _read_all(directory, info, keep)
    newest = max(survivors.values(), key=lambda one: one.last)
    best = max((survivors[node_id] for node_id in keep), key=lambda one: (one.last, -one.node_id))
    configuration = newest.configuration
    unsynced = sorted(node_id for node_id in keep if survivors[node_id].unsynced)
    may_lose = bool(unsynced) or not _is_majority(keep, configuration)
    return Plan(
        keep=tuple(sorted(keep)),
        best=best,
        configuration=configuration,
        readable=tuple(sorted(survivors)),
        unreadable=unreadable,
        may_lose=may_lose,
        danger=_danger(keep, survivors, newest, best, unsynced) if may_lose else "",
        term=max(one.hard_state.term for one in survivors.values()) + TERM_GAP,
        cluster_id=info.becomes or os.urandom(8).hex(),
    )


def _danger(
    keep: frozenset[int], survivors: dict[int, Survivor], newest: Survivor, best: Survivor, unsynced: list[int]
) -> str:
    """Say why going on with these nodes alone is not to be done lightly."""
    was, others = newest.configuration, sorted(survivors.keys() - keep)
    if unsynced:
        return (
            f'nodes {unsynced} were written with durability="os", and the machine was started anew since: the end of '
            "what they had acknowledged may be missing; to go on with what is there, force it"
        )
    if _is_majority(frozenset(survivors), was):
        return (
            f"nodes {sorted(survivors)} are whole, and a majority of the voters {sorted(was.voters)}: keep them, "
            f"and nothing is lost. Without {others} whatever only they acknowledged is gone; to do it all the "
            "same, force it"
        )
    if newest.last > best.last:
        return (
            f"node {newest.node_id} is whole and has a newer log (it ends at index {newest.last.index}, that of node "
            f"{best.node_id} at {best.last.index}): keep it too; to do without, force it"
        )
    return ""


def _is_majority(node_ids: frozenset[int], configuration: Configuration) -> bool:
    sets = [voters for voters in (configuration.voters, configuration.voters_outgoing) if voters]
    return bool(sets) and all(2 * len(node_ids & voters) > len(voters) for voters in sets)


# ---- reading ------------------------------------------------------------------------------------------------------


def _read_all(
    directory: ClusterDirectory, info: ClusterInfo, needed: frozenset[int] = frozenset()
) -> tuple[dict[int, Survivor], dict[int, str]]:
    """Read all folders; of those that are not needed it is enough to say what is wrong."""
    survivors: dict[int, Survivor] = {}
    unreadable: dict[int, str] = {}
    for node_id in info.node_ids:
        try:
            survivors[node_id] = read_survivor(directory.node_path(node_id), node_id, info)
        except ActorRaftError as error:
            if node_id in needed:
                raise
            unreadable[node_id] = str(error)
    return survivors, unreadable


def read_survivor(folder: Path, node_id: int, info: ClusterInfo) -> Survivor:
    """Read a node's folder whole, changing nothing. Raises UsageError, CorruptionError."""
    if not (folder / NODE_FILE).exists():
        raise UsageError(f"{folder} is missing, or holds no node's data")
    with _locked(folder), cannot_be_used(folder):
        node = NodeInfo(**(unseal(folder / NODE_FILE) or {}))
        known = dict(info.storage_ids).get(node_id, node.storage_id)
        if node.cluster_id not in (info.cluster_id, info.becomes):
            raise UsageError(f"{folder} belongs to cluster {node.cluster_id}, and this is {info.cluster_id}")
        if (node.node_id, node.storage_id) != (node_id, known):
            raise UsageError(f"{folder} is not the folder that node {node_id} of this cluster had")
        if not node.started:
            raise UsageError(f"{folder} was never written to")
        storage_id = bytes.fromhex(node.storage_id)
        scan = LogReader(folder / LOG_FOLDER, storage_id).read()
        last, configuration = _newest_snapshot(folder / SNAPSHOT_FOLDER, storage_id)
        image = scan.image
        if configuration is None:
            founders = tuple(pair for pair in info.storage_ids if pair[0] in info.founder_ids)
            is_founder = node_id in info.founder_ids
            configuration = Configuration(
                voters=frozenset(info.founder_ids if is_founder else ()),
                next_node_id=max(info.founder_ids, default=-1) + 1,
                storage_ids=founders if is_founder else (),
            )
        if last.index < image.first_index - 1:
            raise CorruptionError(f"{folder}: the log begins at {image.first_index}, and no snapshot reaches up to it")
        entries, checksum = image.held(), ""
        if entries and image.next_index - 1 >= last.index:
            last = EntryId(entries[-1].term, image.next_index - 1)
            checksum = f"{entry_checksum(last.index, entries[-1]):08x}"
        for entry in entries:
            if isinstance(entry.item, Configuration):
                configuration = entry.item
        return Survivor(
            node_id=node_id,
            cluster_id=node.cluster_id or "",
            storage_id=node.storage_id,
            hard_state=image.hard_state,
            last=last,
            checksum=checksum,
            configuration=configuration,
            unsynced=node.durability == "os" and node.boot_id not in ("", boot_id()),
        )


def _newest_snapshot(folder: Path, storage_id: bytes) -> tuple[EntryId, Configuration | None]:
    paths = snapshot_paths(folder)
    if not paths:
        return EntryId(-1, -1), None
    snapshot = read_footer(paths[-1], storage_id)
    check_content(snapshot)
    return snapshot.meta.snapshot_id, snapshot.meta.configuration


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = DirectoryLock(folder, wait_s=0)
    try:
        yield
    finally:
        lock.close()


# ---- writing ------------------------------------------------------------------------------------------------------


def _carry_out(directory: ClusterDirectory, info: ClusterInfo, plan: Plan) -> None:
    """The log, then the nodes' folders, the cluster's last: a crash in between leaves what can be recovered again."""
    directory.update(replace(info, becomes=plan.cluster_id))
    known = dict(info.storage_ids)
    configuration = Configuration(
        voters=frozenset(plan.keep),
        next_node_id=max(plan.configuration.next_node_id, *(node_id + 1 for node_id in info.node_ids)),
        storage_ids=tuple((node_id, known[node_id]) for node_id in plan.keep),
    )
    for node_id in plan.keep:
        # Every log was read whole before, so the only loss to accept is that of what was never synced.
        store = DiskStorage(directory.node_path(node_id), create=False, wait_s=0, accept_loss=True)
        try:
            recovered = store.recover()
            if node_id == plan.best.node_id:
                index = recovered.first_index + len(recovered.entries)
                # The vote for itself makes sure that nobody else makes an entry of this term.
                vote = HardState(plan.term, node_id)
                store.persist(vote, index, [LogEntry(plan.term, configuration)])
        finally:
            store.close()
        node = NodeDirectory(directory.node_path(node_id), create=False, wait_s=0)
        try:
            node.store(replace(node.info, cluster_id=plan.cluster_id))
        finally:
            node.close()
    seed = info.seed or info.cluster_id
    directory.update(replace(info, node_ids=plan.keep, cluster_id=plan.cluster_id, seed=seed, becomes=""))
