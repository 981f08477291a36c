"""What a test leaves behind in its own process: descriptors and threads that were not there before."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from typing import NamedTuple


class Resources(NamedTuple):
    """Descriptors, by what they are, and threads."""

    opened: Counter[str]
    threads: set[threading.Thread]


def resources() -> Resources:
    """Return what this process has now."""
    opened: list[str] = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the list itself
            opened.append(os.readlink(f"/proc/self/fd/{fd}"))
    return Resources(Counter(opened), set(threading.enumerate()))


def nothing_new(before: Resources) -> bool:
    """Whether all that is there was there before. What tests of other files have left may end meanwhile."""
    now = resources()
    return not now.opened - before.opened and not now.threads - before.threads
