"""A snapshot that is taken while commands go on.

A large state takes seconds to pickle, and nothing could be applied meanwhile. So a machine may offer chunks that are of
the moment when it was asked, whatever commands do later (`snapshot_while_serving`). The machine's thread draws one
of them between two pieces of work and pickles it, for only that thread may look at the state; a thread of its own puts
the bytes on the disk, whose syncs take longer than a command may wait.

Source:     docs/decisions/0014.
Threads:    `step` and `finish` belong to the machine's thread; `tell` is called by the writing one.
Invariant:  at most PIECES_MAX pieces wait for the disk.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from actorraft.node.executor import Executor
from actorraft.node.work import SnapshotFailed, SnapshotTaken, Stopped, held_up
from actorraft.ports import SnapshotWriter

PIECES_MAX: Final = 8


class Capture:
    """One such snapshot, from the moment it is of to its last byte on the disk.

    Args:
        executor: its state is what is taken.
        writer: where it goes.
        tell: told how it ended, once.

    Raises:
        RuntimeError: there is no thread to be had; nothing was written.
    """

    def __init__(
        self,
        executor: Executor,
        writer: SnapshotWriter,
        tell: Callable[[SnapshotTaken | SnapshotFailed | Stopped], None],
    ) -> None:
        self.drawn = False  # everything was handed to the disk, or the snapshot has failed
        self._held_up_s = 0.0  # the longest time that this kept commands waiting
        self._waiting: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(PIECES_MAX)
        self._failed = False
        began_s = time.perf_counter()
        self._pieces = executor.pieces()
        self._draw()  # the first of them settles what the snapshot is of
        self._note(began_s)

        def write() -> None:
            done = executor.write_snapshot(writer, self._hand_on)
            self._failed = True  # nobody takes any more, if any are left
            self._room.release()
            tell(held_up(done, self._held_up_s))

        self._thread = threading.Thread(target=write, name="snapshot", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._pieces.close()
            raise

    def step(self) -> bool:
        """Draw one piece, if the disk keeps up. Never blocks on it; False if nothing was done."""
        if self.drawn or not self._room.acquire(blocking=False):
            return False
        began_s = time.perf_counter()
        self._draw()
        self._note(began_s)
        return True

    def finish(self) -> None:
        """Draw all that is left, at the disk's pace, and wait until it is written."""
        began_s = time.perf_counter()
        while not self.drawn:
            self._room.acquire()
            self._draw()
        self._note(began_s)
        self._thread.join()

    def _draw(self) -> None:
        piece: bytes | Exception | None
        try:
            piece = None if self._failed else next(self._pieces, None)
        except Exception as error:  # user code
            piece = error
        if not isinstance(piece, bytes):
            self.drawn = True
            self._pieces.close()
        self._waiting.put(piece)

    def _hand_on(self, write: Callable[[bytes], Any]) -> None:
        """Write what is drawn, as it comes. Raises what drawing it raised."""
        while (piece := self._waiting.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            write(piece)
            self._room.release()

    def _note(self, began_s: float) -> None:
        self._held_up_s = max(self._held_up_s, time.perf_counter() - began_s)
