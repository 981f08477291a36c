"""Names of actors that any process of the same user on this machine may find.

A tree of processes knows its actors by the records in its own directory, which others do not know of. So a public one
is also named in a directory that is the same for all of a user's processes, whatever their environment says: one file
for each name, which holds the endpoint. Whether that actor lives, its own record says.

Security:   the directory is entered by its owner alone (0700, no link), or it is not used at all; it is what makes an
            endpoint read there worth the trust that a pickle needs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from actorraft.actors.records import Record, read_record, record_file
from actorraft.errors import UsageError


def _directory() -> Path:
    path = Path(f"/tmp/actorraft-names-{os.geteuid()}")
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700:
        raise UsageError(f"{path} is not a directory that only this user can enter: public names are not safe there")
    return path


@contextlib.contextmanager
def _locked() -> Iterator[Path]:
    directory = _directory()
    fd = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield directory
    finally:
        os.close(fd)


def publish(name: str, endpoint: str) -> None:
    """Have others find an actor by its name.

    Raises:
        UsageError: another one that lives has it.
    """
    with _locked() as directory:
        found = _read(directory / name)
        if found is not None and not found.dead and found.endpoint != endpoint:
            raise UsageError(f"there is a public actor named {name!r} already: actor_ref({name!r}) finds it")
        fresh = directory / f".{name}.new"
        fresh.write_text(endpoint, "utf-8")
        fresh.replace(directory / name)


def withdraw(name: str, endpoint: str) -> None:
    """Let go of a public name, unless it is another's by now."""
    with contextlib.suppress(OSError, UsageError), _locked() as directory:
        file = directory / name
        if file.read_text("utf-8") == endpoint:
            file.unlink()


def find(name: str) -> Record | None:
    """Return what is known of the public actor of this name; None if there is none that lives."""
    if "/" in name or name.startswith("."):
        return None
    found = _read(_directory() / name)
    return found if found is not None and not found.dead else None


def _read(file: Path) -> Record | None:
    try:
        endpoint = file.read_text("utf-8")
    except OSError:
        return None
    return read_record(record_file(endpoint), endpoint)
