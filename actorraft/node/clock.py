"""The machine's clocks, behind the port that the simulator replaces."""

from __future__ import annotations

import time


class SystemClock:
    """The real one; see ports.Clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()
