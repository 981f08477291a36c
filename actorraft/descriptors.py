"""Descriptors: as many as the system gives, and some that only the store and the node's own links may use.

Every connection of a stranger takes one. At the limit the system refuses the next, whoever asks; and a store that can
open no segment looks like a broken disk. So the limit in force stays a little below the one that cannot be passed, and
who must not be refused goes above it for the moment of opening. Strangers meet the lower one.

Threads:    any.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from actorraft.steady import monotonic

RESERVED: Final = 64  # above the limit in force; fewer where there are few
LIMIT_MAX: Final = 1 << 16  # no node needs more
PATIENCE_S: Final = 10.0  # how long a lack of descriptors is waited out: strangers are closed after a second or so
_lock = threading.Lock()


def raise_limit() -> None:
    """Let this process have as many as it can, less those that are reserved."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = LIMIT_MAX if hard == resource.RLIM_INFINITY else min(hard, LIMIT_MAX)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most - min(RESERVED, most // 4), hard))


@contextlib.contextmanager
def reserved() -> Iterator[None]:
    """What is opened in here may use those that are reserved."""
    with _lock:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        above = soft + RESERVED if hard == resource.RLIM_INFINITY else min(hard, soft + RESERVED)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (above, hard))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_file(path: Path, flags: int, mode: int = 0o600) -> int:
    """`os.open`, for who must not be refused: a lack of descriptors says nothing of the disk, and is waited out.

    Raises:
        OSError: the system refused for another reason; or there was none for PATIENCE_S, and it says so.
    """
    until_s = None
    while True:
        try:
            return os.open(path, flags | os.O_CLOEXEC, mode)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        try:
            with reserved():
                return os.open(path, flags | os.O_CLOEXEC, mode)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            now_s = monotonic()
            until_s = until_s or now_s + PATIENCE_S
            if now_s >= until_s:
                raise OSError(
                    error.errno, "no descriptor is left, and the disk is not asked (ulimit -n)", str(path)
                ) from error
        time.sleep(0.01)
