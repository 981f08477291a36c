"""What a node has done with committed entries, in a small mapped file: it outlives the process, however that ends.

The log says what is to be applied, a snapshot what was applied at some time. Neither says which entry was *being*
applied when a process died, nor how far it had come by then; both decide what may be done about an entry that cannot be
applied (holding.py). So the machine's thread keeps two numbers here, one store to memory for each entry: the kernel
writes them back, also after a SIGKILL. A loss of power may leave older ones than there were; the file names the boot
under which it was written, and under another one nothing is taken for certain but what was synced on purpose.

Shape:     WORDS int64, native byte order; an index is -1 for none.
Invariant: `APPLIED` never falls. `HELD` is set, synced, before this node tells anybody that it holds there.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Callable, MutableSequence
from pathlib import Path
from typing import Final, cast
from zlib import crc32

from actorraft.loggers import guarded_logger
from actorraft.storage.boot import boot_id
from actorraft.storage.files import FILE_MODE

logger = guarded_logger("actorraft")

MARKS_FILE: Final = "marks"
DEATHS_MAX: Final = 2  # in one entry; then it is not tried again by itself

MAGIC: Final = 0x41524D31
WORDS: Final = 12
(
    _MAGIC,
    _BOOT,
    APPLIED,  # the highest entry that was applied, in any run
    RUNNING,  # the one that is being applied
    UNKNOWN,  # up to here entries may have been applied without a mark that says so
    HELD,  # the entry at which this node has told that it holds; until it is released it must not apply it
    HELD_POSITION,  # and the command in it
    ROUND,  # of what it tells; grows with each change of mind
    DIED,  # the entry that was being applied when the process died
    DEATHS,  # how often it did, in a row
    RUN,  # which run of the cluster it was started in last
    COMMITTED,  # the highest entry that was handed to the machine's thread, applied or not
) = range(WORDS)
_EMPTY: Final = (MAGIC, 0, -1, -1, -1, -1, -1, 0, -1, 0, 0, -1)
_FORMAT: Final = struct.Struct(f"{WORDS}q")


class Marks:
    """The numbers of one node. `words` is written by the machine's thread, and by the loop where it holds.

    Args:
        words: all of them.
        sync: returns once they are on the disk.
    """

    def __init__(self, words: MutableSequence[int] | None = None, sync: Callable[[], object] = lambda: None) -> None:
        self.words: MutableSequence[int] = list(_EMPTY) if words is None else words
        self.sync = sync

    def begin(self, last_index: int, *, certain: bool = True, run: int = 0) -> None:
        """Begin a new life of the node's process.

        Args:
            last_index: of the log.
            certain: the marks are what they were when the last process ended.
            run: of the cluster; one that was begun anew may try an entry again in which processes died before.
        """
        words = self.words
        running, words[RUNNING] = words[RUNNING], -1
        if running >= 0 and certain:
            words[APPLIED] = max(words[APPLIED], running - 1)
            words[DEATHS] = words[DEATHS] + 1 if words[DIED] == running else 1
            words[DIED] = running
            logger.warning("the process of this node ended while it applied the entry at index %d", running)
        if not certain and words[HELD] < 0:
            words[UNKNOWN] = max(words[UNKNOWN], last_index)
        self.first_try = words[RUN] != run
        words[RUN] = run

    first_try = True  # this run of the cluster has not tried yet what is here

    @property
    def poison(self) -> int:
        """The entry in which processes died too often for another try; -1: none."""
        words = self.words
        return words[DIED] if words[DEATHS] >= DEATHS_MAX else -1

    def passed(self, last_index: int) -> None:
        """Note that everything up to there is applied, and nothing is being applied."""
        words = self.words
        words[RUNNING] = -1
        if last_index > words[APPLIED]:
            words[APPLIED] = last_index
        if 0 <= words[DIED] <= last_index:
            words[DIED], words[DEATHS] = -1, 0

    def may_have_applied(self, index: int) -> bool:
        """Whether this node may have applied that entry, in this life or an earlier one, and answered for it."""
        return index <= max(self.words[APPLIED], self.words[UNKNOWN])


class MarksFile:
    """The marks of a node's folder, mapped. Raises OSError."""

    def __init__(self, folder: Path, *, is_new: bool) -> None:
        path = folder / MARKS_FILE
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            found = _decode(os.pread(self._fd, _FORMAT.size, 0))
            # Written, not only made longer: a page that the disk has no room for would end the process at a store.
            os.pwrite(self._fd, (_FORMAT.pack(*(found or _EMPTY))).ljust(mmap.PAGESIZE, b"\0"), 0)
            self._map = mmap.mmap(self._fd, mmap.PAGESIZE)
        except BaseException:
            os.close(self._fd)
            raise
        boot = crc32(boot_id().encode())
        self.certain = is_new or (found is not None and found[_BOOT] == boot)
        self._words = memoryview(self._map).cast("B")[: _FORMAT.size].cast("q")
        self._words[_BOOT] = boot
        self.marks = Marks(cast(MutableSequence[int], self._words), self._sync)

    def _sync(self) -> None:
        self._map.flush()

    def close(self) -> None:
        """Let go; what was written stays. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._words[RUNNING] = -1  # what a command under way did is given up on purpose
            self.marks.words = list(self._words)  # a thread of the machine that is still at work hurts nobody
            with contextlib.suppress(BufferError):  # it is in the middle of a look: the end of the process unmaps it
                self._words.release()
                self._map.close()
            os.close(fd)


def read_marks(folder: Path) -> Marks | None:
    """Return a copy of what a folder's marks say; None if there are none. Raises OSError."""
    try:
        found = _decode((folder / MARKS_FILE).read_bytes())
    except FileNotFoundError:
        return None
    return None if found is None else Marks(list(found))


def _decode(data: bytes) -> tuple[int, ...] | None:
    if len(data) < _FORMAT.size:
        return None
    found = _FORMAT.unpack_from(data)
    return found if found[0] == MAGIC else None
