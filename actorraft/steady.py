"""The steady clock of this process, by which deadlines are kept.

Tests freeze clocks: they put something else into the place of `time.monotonic`, in that module and in every one that
imported it by name. A deadline that is kept by such a clock never comes, and whoever waits for it waits for ever. So
the system is asked directly, through an object of our own that nobody looks for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

monotonic: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_MONOTONIC)  # seconds; never goes back


class Patience:
    """With work that others do: it is over when none was done for a while, or when all has taken too long.

    Args:
        idle_s: how long nothing may be done.
        most_s: how long all may take.
        now_s: when it begins.
    """

    def __init__(self, idle_s: float, most_s: float, now_s: float) -> None:
        self._idle_s = idle_s
        self._done_s = now_s  # when something was done last
        self._until_s = now_s + most_s
        self._least: int | None = None

    def is_over(self, left: int, now_s: float) -> bool:
        """Take note of how much is left to do; return whether to wait for it no longer."""
        if self._least is None or left < self._least:
            self._least, self._done_s = left, now_s
        return not left or now_s >= min(self._done_s + self._idle_s, self._until_s)
