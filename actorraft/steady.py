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
