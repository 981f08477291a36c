"""The folders that data lives in: the one of a cluster and, inside it, one for each node.

    DATA_DIR/cluster.json      what the cluster is: id, machine, Python, hash seed, node ids
    DATA_DIR/lock              held by whoever runs the cluster
    DATA_DIR/node-0/node.json  the node's storage id, and how it was last written
    DATA_DIR/node-0/lock       held by the node
    DATA_DIR/node-0/log/       wal.py
    DATA_DIR/node-0/snapshots/ snapshots.py

A lock is a flock on a file of its own, so the kernel lets go of it however its holder dies. A storage id is drawn
when a node's folder is made: a folder that was lost and made again has another, and the cluster refuses it under the
old node id. Sockets are never in here.

Shape:     the two JSON files end in a line with the CRC of what is before it; any changed byte is a CorruptionError.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import sys
import time
import weakref
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

from actorraft.errors import CorruptionError, UsageError
from actorraft.steady import monotonic
from actorraft.storage.files import DIRECTORY_MODE, FILE_MODE, Files

FORMAT_VERSION = 1
LOCK_WAIT_S = 5.0
CLUSTER_FILE = "cluster.json"
NODE_FILE = "node.json"
LOCK_FILE = "lock"


def this_python() -> str:
    """Return the minor version of this interpreter, as "3.12"."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True, kw_only=True)
class ClusterInfo:
    """What a cluster's folder says of it."""

    cluster_id: str  # 16 hexadecimal digits
    machine: str  # the machine class, as module:qualified name
    node_ids: tuple[int, ...]  # the members now
    founder_ids: tuple[int, ...] = ()  # the voters it began with, which stand in no log entry
    storage_ids: tuple[tuple[int, str], ...] = ()  # (node id, storage id): which folder each node had from the first
    hash_seed: int  # PYTHONHASHSEED of every node, so that sets iterate alike
    name: str = ""
    python: str = this_python()  # that opened it last
    seed: str = ""  # of the machine's dice, likewise hexadecimal; "": the id, which a recovered cluster has anew
    becomes: str = ""  # the id that a recovery is about to give it; "": none is under way

    @property
    def machine_seed(self) -> int:
        """The seed of everything that looks random in the machine: the log is replayed with it, whatever the id is."""
        return int(self.seed or self.cluster_id, 16)


@dataclass(frozen=True, kw_only=True)
class NodeInfo:
    """What a node's folder says of it."""

    storage_id: str  # 32 hexadecimal digits
    node_id: int | None = None
    cluster_id: str | None = None
    durability: str = "fsync"
    boot_id: str = ""  # with "os": the boot of the machine under which it is being written; "" when all of it is synced
    started: bool = False  # whether there is a log; from then on a missing one is damage


_locks: weakref.WeakSet[DirectoryLock] = weakref.WeakSet()


def _leave_locks_to_the_parent() -> None:
    """Close a fork's copies, or it would go on holding what its parent has let go of."""
    for lock in list(_locks):
        lock.close()


os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


class DirectoryLock:
    """Exclusive use of a folder for as long as this is open.

    Raises:
        UsageError: another process has it for `wait_s` seconds, or this one has it already.
    """

    def __init__(self, directory: Path, *, wait_s: float = LOCK_WAIT_S) -> None:
        self.path = directory / LOCK_FILE
        self._held = False
        with cannot_be_used(directory):
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        _locks.add(self)
        deadline = monotonic() + wait_s
        try:
            while not self._taken():
                if self._held_here():  # waiting for oneself is no use
                    raise UsageError(
                        f"{directory} is in use by process {os.getpid()}, which is this one: close the cluster that it "
                        "belongs to first, or reach it by cluster.client() or connect(cluster.endpoints)"
                    )
                if monotonic() >= deadline:
                    raise UsageError(f"{directory} is in use by process {self._holder()}; close that one first")
                time.sleep(0.02)
            self._held = True
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, str(os.getpid()).encode(), 0)
        except OSError as error:
            self.close()
            raise UsageError(f"{directory} cannot be locked: {error}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go. Idempotent."""
        fd, self._fd = self._fd, -1
        self._held = False
        if fd >= 0:
            os.close(fd)

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        return True

    def _held_here(self) -> bool:
        for lock in list(_locks):
            with contextlib.suppress(OSError):  # closed meanwhile
                if lock._held and os.path.samestat(os.fstat(self._fd), os.fstat(lock._fd)):  # noqa: SLF001 (another of the same class)
                    return True
        return False

    def _holder(self) -> str:
        return os.pread(self._fd, 20, 0).decode("ascii", "replace") or "unknown"


class ClusterDirectory:
    """The folder of a cluster, locked. `info` is None until `create`, or what an earlier run left.

    Raises:
        UsageError: it is in use, cannot be written, or holds something else.
        CorruptionError: its description is damaged.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, wait_s: float = LOCK_WAIT_S, files: Files | None = None
    ) -> None:
        _refuse_strangers(Path(path).absolute())
        self.path = prepare_directory(path)
        self._files = files or Files()
        self._lock = DirectoryLock(self.path, wait_s=wait_s)
        try:
            self.info = self._load()
        except BaseException:
            self._lock.close()
            raise

    def create(self, info: ClusterInfo) -> None:
        """Make the nodes' folders, and then say that the cluster exists: a crash before that leaves none."""
        assert self.info is None, f"{self.path} holds a cluster already"
        self.update(info)

    def check(self, machine: str, formerly: str | None = None) -> ClusterInfo:
        """Return `info`, if that machine can go on with what is here; whether this Python can, by_value.py says.

        Args:
            formerly: what the machine was called when this was made; `info` then has its name of today.

        Raises:
            UsageError: it is another machine's, is being recovered, or lacks a node's folder.
        """
        info = self.info
        assert info is not None, f"{self.path} holds no cluster"
        if info.machine not in (machine, formerly):
            raise UsageError(
                f"{self.path} was made for the machine {info.machine}, not for {machine}; if it is the same one under "
                f"another name, say so once: spawn(..., formerly={info.machine!r})"
            )
        if info.becomes:
            raise UsageError(
                f"{self.path} is in the middle of a recovery that was interrupted: run that once more "
                f"(python -m actorraft.storage recover {self.path} --keep ...), then spawn"
            )
        info = replace(info, machine=machine)
        for node_id in info.node_ids:
            node = self.node_path(node_id)
            if not (node / NODE_FILE).exists():
                others = ",".join(str(one) for one in info.node_ids if one != node_id)
                raise UsageError(
                    f"{self.path} lacks {node.name}/{NODE_FILE}: what node {node_id} had acknowledged is gone. "
                    f"Put the folder back; or go on without it: python -m actorraft.storage recover {self.path} "
                    f"--keep {others}, then spawn, then add_node()"
                )
        return info

    def update(self, info: ClusterInfo) -> None:
        """Replace the description, as after a change of membership. Folders of nodes that are new are made."""
        known = dict(self.info.storage_ids) if self.info else {}
        with cannot_be_used(self.path):
            for node_id in info.node_ids:
                if node_id not in known:
                    known[node_id] = self._make_node(node_id, info.cluster_id)
            storage_ids = tuple((node_id, known[node_id]) for node_id in info.node_ids)
            info = replace(info, storage_ids=storage_ids)
            self._files.sync_directory(self.path)
            self._files.replace(self.path / CLUSTER_FILE, seal(asdict(info)))
            self._files.sync_directory(self.path.parent)
        self.info = info

    def storage_ids(self) -> dict[int, str]:
        """Return the storage id that each node's folder was made with."""
        assert self.info is not None, f"{self.path} holds no cluster"
        return dict(self.info.storage_ids)

    def node_path(self, node_id: int) -> Path:
        """Return where that node's data is."""
        return self.path / f"node-{node_id}"

    def close(self) -> None:
        """Let go of the lock. Idempotent."""
        self._lock.close()

    def _make_node(self, node_id: int, cluster_id: str) -> str:
        folder = self.node_path(node_id)
        self._files.make_directory(folder)
        info = NodeInfo(storage_id=draw_storage_id(), node_id=node_id, cluster_id=cluster_id)
        self._files.replace(folder / NODE_FILE, seal(asdict(info)))
        return info.storage_id

    def _load(self) -> ClusterInfo | None:
        content = unseal(self.path / CLUSTER_FILE)
        if content is None:
            if any(self.path.glob("node-*/log")):
                raise CorruptionError(
                    f"{self.path / CLUSTER_FILE} is missing beside the nodes' data. Put back a copy of it"
                )
            strangers = [one.name for one in self.path.iterdir() if not self._ours(one)]
            if strangers:
                raise UsageError(
                    f"{self.path} holds no cluster, and is not empty ({strangers[0]}): choose another folder"
                )
            return None
        ids = {name: tuple(content[name]) for name in ("node_ids", "founder_ids")}
        storage_ids = tuple((node_id, storage_id) for node_id, storage_id in content["storage_ids"])
        return ClusterInfo(**{**content, **ids, "storage_ids": storage_ids})

    def _ours(self, path: Path) -> bool:
        """Whether an unfinished `create` may have left this."""
        if path.name in (LOCK_FILE, CLUSTER_FILE + ".tmp"):
            return True
        if not path.name.startswith("node-") or not path.is_dir():
            return False
        return all(one.name.startswith(NODE_FILE) for one in path.iterdir())


class NodeDirectory:
    """The folder of one node, locked. `info.storage_id` is drawn when it is made.

    Args:
        node_id, cluster_id, storage_id: refused if the folder says otherwise; None: not checked.

    Raises:
        UsageError: it is in use, cannot be written, belongs to another node; or `create` is False and it is not there.
        CorruptionError: its description is damaged, or missing beside data.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        node_id: int | None = None,
        cluster_id: str | None = None,
        storage_id: str | None = None,
        create: bool = True,
        wait_s: float = LOCK_WAIT_S,
        files: Files | None = None,
    ) -> None:
        if not create and not Path(path).is_dir():
            raise UsageError(f"{path} is missing: {_gone(node_id)}")
        self.path = prepare_directory(path)
        self._files = files or Files()
        self._lock = DirectoryLock(self.path, wait_s=wait_s)
        try:
            self.info = self._load(node_id, cluster_id, create)
            if storage_id not in (None, self.info.storage_id):
                raise UsageError(
                    f"{self.path} is not the folder that node {node_id} had: its storage id is "
                    f"{self.info.storage_id}, and was {storage_id}; {_gone(node_id)}"
                )
        except BaseException:
            self._lock.close()
            raise

    def store(self, info: NodeInfo) -> None:
        """Replace the description; durable on return. Raises OSError."""
        self._files.replace(self.path / NODE_FILE, seal(asdict(info)))
        self.info = info

    def close(self) -> None:
        """Let go of the lock. Idempotent."""
        self._lock.close()

    def _load(self, node_id: int | None, cluster_id: str | None, create: bool) -> NodeInfo:
        content = unseal(self.path / NODE_FILE)
        if content is None:
            if not create:
                raise UsageError(f"{self.path} holds no node's data: {_gone(node_id)}")
            return NodeInfo(storage_id=draw_storage_id(), node_id=node_id, cluster_id=cluster_id)
        info = NodeInfo(**content)
        if None not in (node_id, info.node_id) and node_id != info.node_id:
            raise UsageError(f"{self.path} is the folder of node {info.node_id}, not of node {node_id}")
        if None not in (cluster_id, info.cluster_id) and cluster_id != info.cluster_id:
            raise UsageError(f"{self.path} belongs to cluster {info.cluster_id}, not to {cluster_id}")
        return info


def draw_storage_id() -> str:
    """Return a new random storage id."""
    return os.urandom(16).hex()


def _gone(node_id: int | None) -> str:
    """Say what an empty folder means, and how its node comes back."""
    node = "" if node_id is None else str(node_id)
    return (
        "what that node had acknowledged is gone, so it must not come back under its old id. "
        f"Put the folder back; or remove_node({node}), then add_node()"
    )


def _refuse_strangers(directory: Path) -> None:
    """Refuse a folder that holds other things, before its mode is changed and a lock is left in it."""
    with cannot_be_used(directory):
        names = sorted(os.listdir(directory)) if directory.is_dir() else []
    if CLUSTER_FILE in names:
        return
    strangers = [name for name in names if name not in (LOCK_FILE, CLUSTER_FILE + ".tmp") and name[:5] != "node-"]
    if strangers:
        raise UsageError(f"{directory} holds no cluster, and is not empty ({strangers[0]}): choose another folder")


def data_folder(path: str | os.PathLike[str]) -> Path:
    """Return where the data is: in the directory itself, or below the folder of a node that is served.

    Raises:
        UsageError: it is such a folder, and its data is elsewhere.
    """
    folder = Path(path).absolute()
    with cannot_be_used(folder):
        if not (folder / "node.toml").is_file():
            return folder
    if not (folder / "data").is_dir():
        raise UsageError(f"{folder} says how a node is served; name the directory of its data, as in serve --data-dir")
    return folder / "data"


def prepare_directory(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a folder only this user can enter, made if it is not there. Raises UsageError."""
    directory = Path(path).absolute()
    with cannot_be_used(directory):
        directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        status = directory.stat()
        if os.geteuid() != status.st_uid:  # root could, and would leave files there that its owner cannot read
            raise UsageError(
                f"{directory} belongs to another user (uid {status.st_uid}) than this process runs as "
                f"(uid {os.geteuid()}): run as that user, or give it away with chown"
            )
        if stat.S_IMODE(status.st_mode) != DIRECTORY_MODE:
            directory.chmod(DIRECTORY_MODE)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return directory


@contextlib.contextmanager
def cannot_be_used(directory: Path) -> Any:
    """Turn an OSError into a UsageError that names the folder and the reason."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{directory} cannot be used: {error.strerror or error}") from error


def seal(content: dict[str, Any]) -> bytes:
    """Return JSON that people can read, and a line with its CRC."""
    text = json.dumps({"format": FORMAT_VERSION, **content}, indent=2).encode()
    return text + b"\ncrc32 %08x\n" % crc32(text)


def unseal(path: Path) -> dict[str, Any] | None:
    """Undo `seal`; None if there is no such file. Raises CorruptionError, UsageError."""
    with cannot_be_used(path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
    text = data[: -len(b"\ncrc32 01234567\n")]
    if data != text + b"\ncrc32 %08x\n" % crc32(text):
        raise CorruptionError(f"{path} is damaged: its checksum is wrong. Put back a copy of it")
    content: dict[str, Any] = json.loads(text)
    if content.pop("format") != FORMAT_VERSION:
        raise UsageError(f"{path} was written by another version of ActorRaft; this one reads format {FORMAT_VERSION}")
    return content
