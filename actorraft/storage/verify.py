"""Checks what is on disk without starting a node: every CRC, and that what the records say fits together.

Over one node: the log replays, terms never fall and never pass the hard state's, snapshots are whole and reach up to
the log. Over a cluster's folder also: log matching (Raft §5.3), two entries of one index and term are the same on
every node.

Changes nothing but the lock's file. What is in use is refused.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from actorraft.errors import ActorRaftError, CorruptionError, UsageError
from actorraft.raft.messages import EntryId, HardState, LogEntry
from actorraft.storage.checksum import crc32
from actorraft.storage.directory import CLUSTER_FILE, NODE_FILE, DirectoryLock, NodeInfo, cannot_be_used, unseal
from actorraft.storage.disk import LOG_FOLDER, SNAPSHOT_FOLDER
from actorraft.storage.image import LogImage
from actorraft.storage.records import encode_entries
from actorraft.storage.snapshots import SnapshotFile, check_content, read_footer, snapshot_paths
from actorraft.storage.wal import EMPTY_SEGMENT_BYTES, LogReader, Scan


@dataclass(frozen=True)
class Finding:
    """Something wrong, and where. A `warning` costs nothing that was acknowledged."""

    path: Path
    text: str
    warning: bool = False


@dataclass(frozen=True)
class NodeSummary:
    """What a node's folder holds, as far as it can be read."""

    path: Path
    hard_state: HardState
    first_index: int
    next_index: int
    segments: int
    snapshots: tuple[EntryId, ...]


@dataclass(frozen=True)
class Report:
    """What `verify` found."""

    findings: list[Finding]
    nodes: list[NodeSummary]

    @property
    def ok(self) -> bool:
        """Whether nothing that was acknowledged is damaged or missing."""
        return all(finding.warning for finding in self.findings)


def verify(path: str | os.PathLike[str]) -> Report:
    """Check the folder of a cluster, or of one node.

    Raises:
        UsageError: it is neither, is in use, or cannot be read.
    """
    folder = Path(path).absolute()
    report = Report([], [])
    if (folder / CLUSTER_FILE).exists():
        _verify_cluster(folder, report)
    elif (folder / NODE_FILE).exists() or (folder / LOG_FOLDER).is_dir():
        _verify_node(folder, report, {})
    else:
        raise UsageError(f"{folder} is neither a cluster's folder ({CLUSTER_FILE}) nor a node's ({NODE_FILE})")
    return report


def _verify_cluster(folder: Path, report: Report) -> None:
    lock = DirectoryLock(folder, wait_s=0)
    try:
        nodes = {one.name: one for one in folder.glob("node-*") if one.is_dir()}
        try:
            content = unseal(folder / CLUSTER_FILE) or {}
            for node_id in content["node_ids"]:
                if f"node-{node_id}" not in nodes:
                    report.findings.append(Finding(folder, f"the folder of node {node_id} is missing"))
        except CorruptionError as error:
            report.findings.append(Finding(folder / CLUSTER_FILE, str(error)))
        seen: dict[EntryId, tuple[int, int]] = {}
        for name in sorted(nodes, key=lambda one: (len(one), one)):
            _verify_node(nodes[name], report, seen)
    finally:
        lock.close()


def _never_started(folder: Path) -> bool:
    """Whether a node's folder was made and holds nothing yet, or no more than an unfinished start leaves behind."""
    content = unseal(folder / NODE_FILE)
    if content is not None and NodeInfo(**content).started:
        return False
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp"]
    return all(path.parent == folder or path.stat().st_size <= EMPTY_SEGMENT_BYTES for path in files)


def _verify_node(folder: Path, report: Report, seen: dict[EntryId, tuple[int, int]]) -> None:
    lock = DirectoryLock(folder, wait_s=0)
    try:
        with cannot_be_used(folder):
            if _never_started(folder):
                return
            content = unseal(folder / NODE_FILE)
            if content is None:
                raise CorruptionError(f"{folder / NODE_FILE} is missing beside a node's data")
            storage_id = bytes.fromhex(NodeInfo(**content).storage_id)
            snapshots = _verify_snapshots(folder / SNAPSHOT_FOLDER, storage_id, report)
            _verify_log(folder, storage_id, snapshots, report, seen)
    except CorruptionError as error:
        report.findings.append(Finding(folder, str(error)))
    finally:
        lock.close()


def _verify_snapshots(folder: Path, storage_id: bytes, report: Report) -> list[SnapshotFile]:
    good = []
    for path in snapshot_paths(folder):
        try:
            snapshot = read_footer(path, storage_id)
            check_content(snapshot)
            good.append(snapshot)
        except ActorRaftError as error:
            report.findings.append(Finding(path, str(error)))
    return good


def _verify_log(
    folder: Path,
    storage_id: bytes,
    snapshots: list[SnapshotFile],
    report: Report,
    seen: dict[EntryId, tuple[int, int]],
) -> None:
    reader = LogReader(folder / LOG_FOLDER, storage_id)
    try:
        reader.read()
    except CorruptionError as error:
        report.findings.append(Finding(folder / LOG_FOLDER, str(error)))
    scan = reader.scan
    image = scan.image
    report.nodes.append(
        NodeSummary(
            folder,
            image.hard_state,
            image.first_index,
            image.next_index,
            len(scan.segments),
            tuple(one.meta.snapshot_id for one in snapshots),
        )
    )
    if image.complete:
        report.findings.extend(_tail_warnings(scan))
        report.findings.extend(Finding(folder, text) for text in _log_problems(image, snapshots))
        _match_logs(folder, image, report, seen)


def _tail_warnings(scan: Scan) -> list[Finding]:
    if not scan.torn_bytes:
        return []
    text = (
        f"{scan.torn_bytes} bytes of an unfinished, unacknowledged write at offset {scan.stop}; the next start drops it"
    )
    return [Finding(scan.segments[-1].path, text, warning=True)]


def _log_problems(image: LogImage, snapshots: list[SnapshotFile]) -> list[str]:
    problems = []
    term = image.previous_term
    for index, entry in enumerate(image.held(), image.first_index):
        if entry.term < term:
            problems.append(f"the term falls from {term} to {entry.term} at log index {index}")
        term = entry.term
    if term > image.hard_state.term:
        problems.append(f"the log has an entry of term {term}, the hard state is of term {image.hard_state.term}")
    newest = snapshots[-1].meta.snapshot_id.index if snapshots else -1
    if newest < image.first_index - 1:
        problems.append(f"the log begins at index {image.first_index}, and no good snapshot reaches up to it")
    return problems


def _match_logs(folder: Path, image: LogImage, report: Report, seen: dict[EntryId, tuple[int, int]]) -> None:
    for index, entry in enumerate(image.held(), image.first_index):
        mine = _fingerprint(entry)
        if seen.setdefault(EntryId(entry.term, index), mine) != mine:
            text = f"the entry of term {entry.term} at log index {index} is not the one that another node has"
            report.findings.append(Finding(folder, text))
            return


def _fingerprint(entry: LogEntry) -> tuple[int, int]:
    data = b"".join(encode_entries(0, [entry]))
    return crc32(data), len(data)
