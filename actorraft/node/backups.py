"""Backups on a schedule: a node writes a portable copy of its state to a directory, and keeps the newest ones.

Each is of no less than what this node's leader knew to be committed when it was begun (without a leader: of what is
here). It is read back and its checksum compared before an older one goes; a backup that failed removes nothing. Where
nothing was written since the last one, that one is read again instead.

Shape:      CLUSTER-node-ID-INDEX-YYYYMMDDTHHMMSSZ.backup, for `actorraft init --from-backup`; CLUSTER is its name and
            the first eight digits of its id, for what is founded from a backup has that name and those indexes again.
Threads:    one of its own, which asks the node's loop for the state, chunk by chunk; `report` may be called from any.
Not here:   the file's format (storage/portable.py); backups that are asked for (client/administration.py).
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from actorraft.errors import CorruptionError, UsageError
from actorraft.loggers import guarded_logger
from actorraft.node.driver import Driver
from actorraft.raft.errors import ProposalRefused
from actorraft.raft.messages import EntryId
from actorraft.steady import monotonic
from actorraft.storage.portable import PortableInfo, read_portable, write_portable

logger = guarded_logger("actorraft.backup")

SUFFIX: Final = ".backup"
ID_DIGITS: Final = 8  # of the cluster's id, in a file's name
ANSWER_S: Final = 600.0  # a snapshot of a large state takes its time
TRIES: Final = 3  # newer snapshots may come in between
SOON_S: Final = 10.0  # the first one after a start, at the latest
AGAIN_S: Final = 60.0  # one that failed is tried again, at the latest

# Have the loop do something that answers through its argument; None: it did not in time.
AskLoop = Callable[[Callable[[Callable[[Any], object]], object], float], Any]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When and where backups are written.

    Attributes:
        every_s: seconds from the beginning of one to that of the next.
        keep: how many, of this node, stay.
    """

    every_s: float
    directory: Path
    keep: int = 24

    def __post_init__(self) -> None:
        if not self.every_s >= 1.0:
            raise UsageError(f"backups are at least a second apart, not {self.every_s:g} s")
        if self.keep < 1:
            raise UsageError(f"at least one backup is kept, not {self.keep}")


class Backups:
    """Writes backups until `close`.

    Args:
        driver: the node's; touched in its loop alone.
        cluster_id: in hexadecimal digits.
        ask_loop: has the loop do something; raises what that raised.
    """

    def __init__(self, schedule: Schedule, driver: Driver, cluster_id: str, ask_loop: AskLoop) -> None:
        self._schedule = schedule
        self._driver = driver
        self._cluster_id = cluster_id
        self._ask_loop = ask_loop
        self._stop = threading.Event()
        self._last: dict[str, Any] = {"index": -1, "time_s": None, "bytes": 0, "error": None}

    def start(self) -> None:
        """Keep to the schedule from now on."""
        threading.Thread(target=self._run, name="backups", daemon=True).start()

    def report(self) -> dict[str, Any]:
        """Return what the last good one was (`time_s` by the wall clock), and what is wrong since, if anything."""
        return dict(self._last)

    def close(self) -> None:
        """Write no more; one that is under way leaves nothing behind."""
        self._stop.set()

    def _run(self) -> None:
        wait_s = min(self._schedule.every_s, SOON_S)
        while not self._stop.wait(wait_s):
            began_s = monotonic()
            try:
                self.write()
                wait_s = max(0.0, began_s + self._schedule.every_s - monotonic())
            except Exception as error:  # whatever it is: the next one is tried all the same
                logger.error("no backup was written, and none was removed: %s", error)
                wait_s = min(self._schedule.every_s, AGAIN_S)

    def write(self) -> Path:
        """Write one now, and remove the oldest; return it, or the one that is of the same index.

        Raises:
            UsageError: nothing is committed here yet, or the node could not take a snapshot.
            Exception: it was not written for another reason. Nothing is removed.
        """
        try:
            path, index = self._write()
            self._last = {"index": index, "time_s": time.time(), "bytes": path.stat().st_size, "error": None}
            self._remove_old(path)
        except Exception as error:
            self._last = {**self._last, "error": str(error) or type(error).__name__}
            raise
        return path

    def _write(self) -> tuple[Path, int]:
        """Return the backup of what is committed now, and up to which index that is."""
        want = self._driver.requests.want_snapshot
        error, covered = self._ask(lambda put: want(lambda *said: put(said)), "take a snapshot")
        if error:
            raise UsageError(error)
        settings = self._ask(lambda put: put(dict(self._driver.server.configuration.settings)), "say what it is")
        known = {name: json.loads(value) for name, value in settings.items()}
        name = f"{_file_name(known.get('name', 'cluster'))}-{self._cluster_id[:ID_DIGITS]}"
        stem = f"{name}-node-{self._driver.node_id}"
        directory = self._schedule.directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(TRIES):
            said = self._read(lambda: self._driver.server.snapshot_id, 0)
            if not said or said[1] < covered:
                continue  # a leader's was installed meanwhile
            term, index, data, done = said
            for same in sorted(directory.glob(f"{stem}-{index}-*{SUFFIX}")):
                try:
                    read_portable(same)
                except CorruptionError as error:  # it was good when it was written: the disk under it is not
                    logger.error("%s; another one is written beside it", error)
                else:
                    return same, index
            info = PortableInfo(machine=known.get("machine", ""), term=term, index=index, settings=settings)
            path = directory / f"{stem}-{index}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}{SUFFIX}"
            try:
                write_portable(path, info, self._chunks(EntryId(term, index), data, done))
            except _Superseded:
                continue
            written, _ = read_portable(path)
            if written != info:
                raise UsageError(f"{path} was read back and says {written}, not {info}")
            logger.info("wrote %s, and read it back", path)
            return path, index
        raise UsageError("newer snapshots came in between each time")

    def _ask(self, do: Callable[[Callable[[Any], object]], object], what: str) -> Any:
        said = self._ask_loop(do, ANSWER_S)
        if said is None:
            raise UsageError(f"the node did not {what} within {ANSWER_S:g} s")
        return said

    def _read(self, which: Callable[[], EntryId], offset: int) -> Any:
        """Return what SnapshotChunks.read does of a snapshot that the loop names; nothing if it is not there."""

        def read(put: Callable[[Any], object]) -> None:
            try:
                put(self._driver.snapshots.chunks.read(which(), offset))
            except ProposalRefused:
                put(())

        return self._ask(read, "read its snapshot")

    def _chunks(self, snapshot_id: EntryId, data: bytes, done: bool) -> Iterator[bytes]:
        offset = 0
        while True:
            yield data
            offset += len(data)
            if done:
                return
            if self._stop.is_set() or not (said := self._read(lambda: snapshot_id, offset)):
                raise _Superseded
            _, _, data, done = said

    def _remove_old(self, newest: Path) -> None:
        stem = newest.name.removesuffix(SUFFIX).rsplit("-", 2)[0]
        pattern = re.compile(rf"{re.escape(stem)}-\d+-\d{{8}}T\d{{6}}Z{re.escape(SUFFIX)}")
        own = [path for path in self._schedule.directory.iterdir() if pattern.fullmatch(path.name)]
        own.sort(key=lambda path: (path.stat().st_mtime, path.name))
        for path in own[: -self._schedule.keep]:
            if path != newest:
                path.unlink(missing_ok=True)


class _Superseded(Exception):
    """The snapshot that was being copied is gone."""


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]", "_", text)
