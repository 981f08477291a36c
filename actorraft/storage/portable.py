"""A copy of a cluster's state in one file, to be carried elsewhere: `export_snapshot`, `spawn(from_snapshot=...)`,
`actorraft backup` and `init --from-backup`.

One line of JSON that says what it is, the content of a snapshot, and a CRC over both. A new cluster that starts from
it goes on at the same index and term, so nothing that the state remembers (sessions, serials) is ever given out twice.

Source:     Raft §7; the content is what executor.py writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from actorraft.errors import CorruptionError, UsageError
from actorraft.ports import Storage
from actorraft.raft.messages import Configuration, EntryId, HardState
from actorraft.storage.by_value import code_of_snapshot
from actorraft.storage.checksum import crc32
from actorraft.storage.directory import this_python
from actorraft.storage.files import FILE_MODE

FORMAT = 1
CHUNK_BYTES = 1 << 20
_CRC_BYTES = 4
_HEADER_BYTES_MAX = 1 << 16


@dataclass(frozen=True, kw_only=True)
class PortableInfo:
    """What the first line says."""

    machine: str  # module:qualified name; "" if the exporter did not know it
    term: int
    index: int
    settings: dict[str, str] = field(default_factory=dict)  # what decides the state, as JSON by name; {}: not known
    python: str = this_python()
    actorraft_snapshot: int = FORMAT


def write_portable(path: str | os.PathLike[str], info: PortableInfo, chunks: Iterable[bytes]) -> Path:
    """Write the file aside, sync it, and rename it: there is a whole one, or none. Only this user can read it.

    Raises:
        UsageError: it cannot be written there.
    """
    target = _target(path)
    # A name that nobody can have planted a link under, in a directory that others may write to.
    aside = target.with_name(f".{target.name[:200]}.{os.urandom(8).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(aside, flags, FILE_MODE), "wb") as file:
            crc = 0
            for data in (json.dumps(asdict(info)).encode() + b"\n", *chunks):
                crc = crc32(data, crc)
                file.write(data)
            file.write(crc.to_bytes(_CRC_BYTES, "little"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise UsageError(f"the snapshot cannot be written to {target}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # renamed, or never made
            aside.unlink()
    return target


def _target(path: Any) -> Path:
    """Return where a file is to be written. Raises UsageError if none can be."""
    try:
        name = os.fsdecode(os.fsencode(path))
    except (TypeError, UnicodeEncodeError):
        raise UsageError(f"a path is a name that a file can have, not {path!r}") from None
    if "\0" in name:
        raise UsageError(f"a path has no NUL character in it: {name!r}")
    try:
        target = Path(name).absolute()
    except OSError:
        raise UsageError(f"{name!r} is relative, and the working directory of this process is gone") from None
    with contextlib.suppress(OSError):  # it is not there, or writing says why not
        mode = os.lstat(target).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):  # a device would be replaced by the file
            raise UsageError(f"the snapshot cannot be written to {target}: what is there is no file")
    return target


def read_portable(path: str | os.PathLike[str]) -> tuple[PortableInfo, int]:
    """Read the file once, whole; return what it is, and its CRC, which stands for it.

    Raises:
        UsageError: it is not there, or is of another kind.
        CorruptionError: it is damaged.
    """
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):  # to open one waits for whoever writes
            raise UsageError(f"{path} cannot be read: it is a pipe, and no file")
        with open(path, "rb") as file:
            info = _read_info(file, path)
            for _ in _content(file, path):
                pass
            file.seek(-_CRC_BYTES, os.SEEK_END)
            return info, int.from_bytes(file.read(), "little")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error


def check_portable(path: str | os.PathLike[str], machine: str, formerly: str | None = None) -> PortableInfo:
    """Read the file once, whole; return what it is.

    Raises:
        UsageError: it is not there, is of another kind or machine; or it holds code by value of another Python.
        CorruptionError: it is damaged.
    """
    info, _ = read_portable(path)
    if info.machine not in ("", machine, formerly):
        raise UsageError(
            f"{path} holds the state of the machine {info.machine}, not of {machine}; if it is the same one under "
            f"another name: spawn(..., formerly={info.machine!r})"
        )
    if info.python != this_python():
        with open(path, "rb") as file:
            _read_info(file, path)
            for found in code_of_snapshot(file, "it"):
                raise UsageError(
                    f"{path} was written by Python {info.python} and this is Python {this_python()}: {found.words}, "
                    "which no other minor version can read"
                )
    return info


def seed(storage: Storage, path: str | os.PathLike[str], configuration: Configuration) -> None:
    """Make an empty store begin with the state in the file. The store is to be opened anew afterwards."""
    recovered = storage.recover()
    if recovered.entries or recovered.hard_state != HardState():
        return  # it began before
    with open(path, "rb") as file:
        info = _read_info(file, path)
        if recovered.snapshot is None:  # else it was interrupted before the last step
            writer = storage.begin_snapshot(EntryId(info.term, info.index), configuration)
            for data in _content(file, path):
                writer.write(data)
            storage.reset_log(writer.commit())
    storage.persist(HardState(info.term, None), info.index + 1, [])


def _read_info(file: BinaryIO, path: str | os.PathLike[str]) -> PortableInfo:
    line = file.readline(_HEADER_BYTES_MAX)
    try:
        said = json.loads(line)
        if said["actorraft_snapshot"] != FORMAT:
            raise UsageError(f"{path} was written by another version of ActorRaft; this one reads format {FORMAT}")
        return PortableInfo(**said)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no snapshot that export_snapshot wrote") from error


def _content(file: BinaryIO, path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Give the content in chunks; the CRC is checked at its end."""
    begin = file.tell()
    left = os.fstat(file.fileno()).st_size - begin - _CRC_BYTES
    file.seek(0)
    crc = crc32(file.read(begin))
    while left > 0:
        data = file.read(min(left, CHUNK_BYTES))
        left -= len(data)
        crc = crc32(data, crc)
        yield data
    if left < 0 or crc.to_bytes(_CRC_BYTES, "little") != file.read(_CRC_BYTES):
        raise CorruptionError(f"{path} is damaged: its checksum is wrong. Export the state again")
