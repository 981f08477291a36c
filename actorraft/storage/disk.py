"""The store on disk: log, snapshots and folder of one node as one `Storage`.

What it promises: what `persist` returned for is there after a crash of the process, and with `durability="fsync"`
after a loss of power; or `recover` refuses and says where. Never silently less. After any error of the disk the store
refuses everything: what was written since is in doubt, and a second sync may succeed without having written it.

`durability="os"` leaves the syncing to the kernel. Then the folder names the boot of the machine under which it is
written; under another one it is refused, since acknowledged data may be missing. `close` syncs everything, and takes
the name away.

Threads:   the node's loop; snapshot writers may be used from one other thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO

from actorraft.errors import CorruptionError, StorageFailed, UsageError
from actorraft.ports import Recovered, SnapshotMeta
from actorraft.raft.messages import Configuration, EntryId, HardState, LogEntry
from actorraft.storage import boot
from actorraft.storage.directory import LOCK_WAIT_S, NODE_FILE, NodeDirectory
from actorraft.storage.files import Files
from actorraft.storage.marks import Marks, MarksFile
from actorraft.storage.snapshots import DiskSnapshotWriter, SnapshotStore
from actorraft.storage.wal import EMPTY_SEGMENT_BYTES, SEGMENT_BYTES, WAY_OUT, Wal, segment_paths

LOG_FOLDER = "log"
SNAPSHOT_FOLDER = "snapshots"
DURABILITIES = ("fsync", "os")
SEGMENT_BYTES_MIN = 512


class DiskStorage:
    """Implements ports.Storage in a folder of its own, which it locks.

    Args:
        path: the node's folder; made if `create` and not there.
        durability: "fsync", or "os" (see the head of this file).
        segment_bytes: a segment of the log is closed when the next write would make it larger.
        accept_loss: go on with what can be read, where acknowledged data is damaged or missing. The node may then break
            promises that it made (votes, acknowledged entries), which can cost the whole cluster what it acknowledged.
        sync_on_close: with "os", whether `close` syncs; False suits a folder that is removed next.
        node_id, cluster_id: what the folder must say of itself; written into a new one.
        storage_id: the id that the folder must have; None: any.
        wait_s: how long to wait for a lock that another process holds.
        run: number of the cluster's run that this is for; see marks.py.

    Raises:
        UsageError: the folder is in use, cannot be written, is another node's, or is missing.
        CorruptionError: its description is damaged; or written with "os" under another boot of the machine.
        StorageFailed: the disk refused.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: str = "fsync",
        segment_bytes: int = SEGMENT_BYTES,
        accept_loss: bool = False,
        sync_on_close: bool = True,
        create: bool = True,
        node_id: int | None = None,
        cluster_id: str | None = None,
        storage_id: str | None = None,
        wait_s: float = LOCK_WAIT_S,
        files: Files | None = None,
        run: int = 0,
    ) -> None:
        if durability not in DURABILITIES:
            raise UsageError(f'durability is "fsync" or "os", not {durability!r}')
        if segment_bytes < SEGMENT_BYTES_MIN:
            raise UsageError(f"segment_bytes is at least {SEGMENT_BYTES_MIN}, not {segment_bytes}")
        self.durability = durability
        self._accept_loss = accept_loss
        self._sync_on_close = sync_on_close
        self._refusal: str | None = None
        self._run = run
        self._files = files = files or Files()
        self._directory = NodeDirectory(
            path,
            node_id=node_id,
            cluster_id=cluster_id,
            storage_id=storage_id,
            create=create,
            wait_s=wait_s,
            files=files,
        )
        self.path = self._directory.path
        try:
            self._check_boot()
            own_id = bytes.fromhex(self._directory.info.storage_id)
            if durability == "os":
                files = files.unsynced()
            self._wal = Wal(self.path / LOG_FOLDER, own_id, files, segment_bytes=segment_bytes)
            self._snapshots = SnapshotStore(self.path / SNAPSHOT_FOLDER, own_id, files, self._guarded)
            is_new = not self._directory.info.started
            if is_new:
                self._create()
            with self._guarded():
                self._marks = MarksFile(self.path, is_new=is_new)
        except BaseException:
            self._directory.close()
            raise

    @property
    def storage_id(self) -> str:
        """The random id of this folder, 32 hexadecimal digits."""
        return self._directory.info.storage_id

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever persisted here. To be asked after `recover`."""
        wal = self._wal
        return wal.next_index == 0 and wal.hard_state == HardState() and self._snapshots.newest() is None

    @property
    def marks(self) -> Marks:
        """What was done with committed entries. To be asked after `recover`."""
        return self._marks.marks

    # ---- ports.Storage ----

    def recover(self) -> Recovered:
        """As ports.Storage.recover."""
        try:
            return self._recover()
        except MemoryError as error:
            raise StorageFailed(
                f"there is not enough memory to read what is in {self.path}. Nothing says that it is damaged: free "
                "some, or raise the limit of this process, and start it again"
            ) from error

    def _recover(self) -> Recovered:
        with self._guarded():
            for folder in (self._wal.directory, self._snapshots.directory):
                if not folder.is_dir():
                    raise CorruptionError(f"{folder} is missing. {WAY_OUT}.")
            snapshot = self._snapshots.recover()
            snapshot_id = None if snapshot is None else snapshot.snapshot_id
            entries = self._reconcile(snapshot, self._wal.recover(snapshot_id, accept_loss=self._accept_loss))
            self._snapshots.make_durable()
            self._store_info()
            wal = self._wal
            self.marks.begin(wal.next_index - 1, certain=self._marks.certain, run=self._run)
            return Recovered(wal.hard_state, snapshot, wal.first_index, wal.previous_term, entries)

    def persist(self, hard_state: HardState | None, first_index: int, entries: Sequence[LogEntry]) -> None:
        """As ports.Storage.persist. Raises UsageError, with nothing changed, for an item that cannot be stored."""
        if self._refusal is not None:
            raise StorageFailed(self._refusal)
        try:
            self._wal.persist(hard_state, first_index, entries)
        except OSError as error:
            raise self._fail(error) from error

    def begin_snapshot(self, snapshot_id: EntryId, configuration: Configuration) -> DiskSnapshotWriter:
        """As ports.Storage.begin_snapshot."""
        with self._guarded():
            return self._snapshots.begin(snapshot_id, configuration)

    def open_snapshot(self) -> BinaryIO:
        """As ports.Storage.open_snapshot; UsageError if there is none. Reads raise CorruptionError, StorageFailed."""
        with self._guarded():
            return self._snapshots.open(self._fail)

    def read_snapshot(self, snapshot_id: EntryId, offset: int, size_bytes: int) -> tuple[bytes, bool] | None:
        """As ports.Storage.read_snapshot. Raises CorruptionError, StorageFailed."""
        with self._guarded():
            return self._snapshots.read(snapshot_id, offset, size_bytes, self._fail)

    def compact(self, first_index: int) -> None:
        """As ports.Storage.compact."""
        newest = self._snapshots.newest()
        last = -1 if newest is None else newest.meta.snapshot_id.index
        assert first_index <= max(last + 1, self._wal.first_index), (
            f"compacting to {first_index}, but the newest snapshot ends at {last}"
        )
        with self._guarded():
            self._wal.compact(first_index)

    def reset_log(self, snapshot: SnapshotMeta) -> None:
        """As ports.Storage.reset_log."""
        with self._guarded():
            self._wal.reset(snapshot.snapshot_id.index + 1, snapshot.snapshot_id.term)

    def close(self) -> None:
        """As ports.Storage.close."""
        refusal, self._refusal = self._refusal, f"the store at {self.path} is closed"
        try:
            self._marks.close()
            self._wal.close()
            self._snapshots.close()
            if refusal is None and self.durability == "os" and self._sync_on_close:
                self._sync_everything()
        finally:
            self._directory.close()

    # ---- helpers ----

    def _create(self) -> None:
        """Make an empty store; the node's description comes last, so a crash before leaves nothing that counts."""
        log, snapshots = self._wal.directory, self._snapshots.directory
        files = self._files
        with self._guarded():
            for folder in (log, snapshots):
                files.make_directory(folder)
            leftovers = [*segment_paths(log), *snapshots.iterdir()]
            if len(leftovers) > 1 or any(path.stat().st_size > EMPTY_SEGMENT_BYTES for path in leftovers):
                raise CorruptionError(
                    f"{self.path / NODE_FILE} is missing, or out of date, beside a node's data. Put back a copy of it"
                )
            for path in leftovers:
                files.unlink(path)
            self._wal.create()
            self._wal.close()
            files.sync_directory(self.path)
            files.sync_directory(self.path.parent)
            self._store_info()

    def _reconcile(self, snapshot: SnapshotMeta | None, entries: list[LogEntry]) -> list[LogEntry]:
        """Finish what a crash between the commit of a snapshot and `reset_log` left undone."""
        wal = self._wal
        term, index = (-1, -1) if snapshot is None else snapshot.snapshot_id
        if index < wal.first_index - 1:
            raise CorruptionError(
                f"{self._snapshots.directory}: the log begins at index {wal.first_index}, "
                f"and no snapshot reaches up to it (the newest ends at {index}). {WAY_OUT}."
            )
        if index < wal.next_index and wal.term_at(index) == term:
            return entries
        wal.reset(index + 1, term)
        return []

    def _check_boot(self) -> None:
        info = self._directory.info
        if info.durability != "os" or not info.boot_id or self._accept_loss:
            return
        if info.boot_id != boot.boot_id():
            raise CorruptionError(
                f'{self.path} was written with durability="os" and not closed, and the machine was started anew since: '
                "acknowledged data may be missing. To go on with what is there, open the store with accept_loss=True"
            )

    def _store_info(self) -> None:
        """Say how the store is written from now on, before anything is acknowledged that way."""
        boot_id = (boot.boot_id() or "unknown") if self.durability == "os" else ""
        info = replace(self._directory.info, durability=self.durability, boot_id=boot_id, started=True)
        if info != self._directory.info:
            self._directory.store(info)

    def _sync_everything(self) -> None:
        files = self._files
        for folder in (self._wal.directory, self._snapshots.directory):
            for path in folder.iterdir():
                fd = files.open(path)
                try:
                    files.sync(fd)
                finally:
                    files.close(fd)
            files.sync_directory(folder)
        self._directory.store(replace(self._directory.info, boot_id=""))

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        if self._refusal is not None:
            raise StorageFailed(self._refusal)
        try:
            yield
        except OSError as error:
            raise self._fail(error) from error

    def _fail(self, error: OSError) -> StorageFailed:
        self._refusal = (
            f"the disk under {self.path} refused: {error}. The node must stop; acknowledged data is as it was"
        )
        return StorageFailed(self._refusal)
