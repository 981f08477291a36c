"""The machine's clocks, behind the port that the simulator replaces."""

from __future__ import annotations

import time


class SystemClock:
    """The real one; see ports.Clock."""

    monotonic = staticmethod(time.monotonic)  # read many times a turn
    wall = staticmethod(time.time)
