"""The directory of one run: sockets, output, keys. Its maker removes it; if that was killed, who makes the next one.

Invariant:  a directory that holds a file `run` is of a run that goes on as long as somebody holds a lock on that file.
            The lock is there before the name is, so a directory that is being made is never taken for a left one;
            forks of the maker hold it too. Only directories with such a file, a name like ours, in the directory for
            temporary files, of this user and entered by no one else, are ever removed; links are not followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import threading
from pathlib import Path
from typing import Final

from actorraft.errors import UsageError

RUN_FILE: Final = "run"
VARIABLE: Final = "ACTORRAFT_RUN_DIR"  # where runs have their directories, if not among temporary files
PREFIX: Final = "actorraft-"
RANDOM_BYTES: Final = 8  # that mkdtemp adds to a prefix
SOCKET_BYTES_MAX: Final = 103  # of the path of a Unix socket, on the system that allows least


class RunDir:
    """A fresh directory for one run, entered by this user only.

    Args:
        prefix: of its name; begins with PREFIX.
        place: where it is made; None: where the variable ACTORRAFT_RUN_DIR says, else the directory for temporary
            files, or /tmp if sockets there would have paths that are too long, or no text.
        names_bytes_max: of the longest name that a socket in it will have.

    Raises:
        UsageError: the variable names no directory, or one whose path no socket can have; or nothing can be made
            where it is to be.
    """

    def __init__(self, prefix: str = PREFIX, place: str | None = None, *, names_bytes_max: int = 20) -> None:
        if place is None:
            place = os.environ.get(VARIABLE) or _temporary()
            name_bytes = len(prefix) + RANDOM_BYTES + names_bytes_max + 2  # and two slashes
            why_not = _why_no_sockets(place, SOCKET_BYTES_MAX - name_bytes)
            if VARIABLE in os.environ and (why_not or not os.path.isdir(place)):
                raise UsageError(f"{VARIABLE}={place}: sockets are made there, and it {why_not or 'is no directory'}")
            if why_not:
                place = "/tmp"
        self._pid = os.getpid()
        self._closing = threading.Lock()  # a start that is given up is closed by two threads
        sweep(Path(place))
        self._fd = -1
        try:
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))  # mode 0700
        except OSError as error:
            raise UsageError(_no_place(place, error)) from error
        try:
            aside = self.path / f"{RUN_FILE}.new"
            self._fd = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.write(self._fd, b"%d\n" % self._pid)  # a disk that is full may take names, and no byte
        except OSError as error:
            self.remove()
            raise UsageError(_no_place(place, error)) from error
        with contextlib.suppress(OSError):  # a file system without locks: then nobody else sees it as left either
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            aside.rename(self.path / RUN_FILE)

    def remove(self) -> None:
        """Remove it and what is in it. Idempotent; does nothing in a fork."""
        if self._pid == os.getpid():
            shutil.rmtree(self.path, ignore_errors=True)
            with self._closing:
                fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)


def _why_no_sockets(place: str, bytes_max: int) -> str:
    if len(os.fsencode(place)) > bytes_max:
        return f"has over {bytes_max} bytes"
    try:
        place.encode()
    except UnicodeEncodeError:
        return "is no UTF-8"
    return ""


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except OSError as error:  # it has tried to write to each of several
        raise UsageError(_no_place("no directory for temporary files", error)) from error


def _no_place(place: str, error: OSError) -> str:
    return (
        f"{place}: {error.strerror or error}. Sockets, output, and data without a data_dir, go there: make room, or "
        f"name another directory in the environment variable {VARIABLE}"
    )


def sweep(place: Path) -> list[Path]:
    """Remove what runs that were killed left in `place`; return what was removed."""
    removed: list[Path] = []
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and _is_left(entry):
                shutil.rmtree(entry.path, ignore_errors=True)
                removed.append(Path(entry.path))
    return removed


def _is_left(entry: os.DirEntry[str]) -> bool:
    try:
        status = entry.stat(follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != 0o700:
            return False
        fd = os.open(os.path.join(entry.path, RUN_FILE), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False  # somebody runs there
    else:
        return True
    finally:
        os.close(fd)
