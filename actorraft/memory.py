"""How the C library keeps memory that is free, in a process of ours that handles large values."""

from __future__ import annotations

import contextlib
from typing import Final

KEPT_BYTES: Final = 256 << 20  # of freed memory, in each of the C library's arenas at the most
MAPPED_BYTES: Final = 64 << 20  # an allocation from here on has a mapping of its own
STEP_BYTES: Final = 8 << 20  # by which it grows
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


def keep_freed() -> None:
    """Have freed memory used again instead of given back: to get a page anew costs more than to fill it ten times.

    Only glibc has this; elsewhere nothing is changed.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_TOP_PAD, STEP_BYTES)
