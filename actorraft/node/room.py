"""The disk's watermark: below it a node takes no writes from clients, while there is room for what frees the disk.

What is kept back is for a snapshot, for cutting the log behind it, and for a hand-over: all three write first. Above
the mark by a tenth, writes are taken again.

Threads:    the node's loop.
Not here:   what is done about it (process.py), and the first write that does not fit after all (storage/disk.py).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from actorraft.ports import Clock

LOOK_S: Final = 1.0
TREND_S: Final = 60.0  # over so long it is measured how fast the disk fills
TREND_LEAST_S: Final = 5.0
PART_MAX: Final = 10  # a tenth of a small disk is enough
SNAPSHOT_PART_MAX: Final = 4  # and a quarter for a snapshot


class DiskRoom:
    """How much room a node's disk has.

    Args:
        reserve_bytes: what is kept back besides the size of a snapshot; 0: nothing, and writes are never refused.
        snapshot_bytes: of the newest snapshot.

    Attributes:
        low: why clients' writes are refused, in words; "" if they are taken.
    """

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        *,
        reserve_bytes: int,
        snapshot_bytes: Callable[[], int],
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._reserve_bytes = reserve_bytes
        self._snapshot_bytes = snapshot_bytes
        self._looks: deque[tuple[float, int]] = deque()  # (when, free bytes), over the last TREND_S
        self._mark_bytes = 0
        self.low = ""
        self.look()

    def look(self) -> bool:
        """Look once a second; return whether it has become low, or has room again."""
        now_s = self._clock.monotonic()
        if self._looks and now_s < self._looks[-1][0] + LOOK_S:
            return False
        try:
            disk = os.statvfs(self._directory)
        except OSError:
            return False  # whatever is wrong, the next write says it
        free = disk.f_bavail * disk.f_frsize
        total = disk.f_blocks * disk.f_frsize
        self._looks.append((now_s, free))
        while self._looks[0][0] < now_s - TREND_S:
            self._looks.popleft()
        snapshot = min(self._snapshot_bytes(), total // SNAPSHOT_PART_MAX)
        self._mark_bytes = min(self._reserve_bytes, total // PART_MAX) + snapshot if self._reserve_bytes else 0
        before = self.low
        if free < self._mark_bytes:
            self.low = (
                f"its disk has {free >> 20} MiB left, and {self._mark_bytes >> 20} MiB are kept for a snapshot and for "
                f"cutting the log: make room under {self._directory}"
            )
        elif free > self._mark_bytes * 1.1:
            self.low = ""
        return bool(before) != bool(self.low)

    def full_in_s(self) -> float | None:
        """Return in how many seconds writes will be refused, at the pace of the last minute; None: it does not fill."""
        (began_s, had), (now_s, has) = self._looks[0], self._looks[-1]
        if now_s - began_s < TREND_LEAST_S or has >= had:
            return None
        return max(0.0, round((has - self._mark_bytes) * (now_s - began_s) / (had - has), 1))

    def report(self) -> dict[str, Any]:
        """Return it as plain data, for the status."""
        if not self._looks:
            return {}
        return {
            "free_bytes": self._looks[-1][1],
            "reserve_bytes": self._mark_bytes,
            "full_in_s": self.full_in_s(),
            "refuses_writes": bool(self.low),
        }
