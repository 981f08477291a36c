"""What an entry of the log is, in words: whose commands it holds, and how an operator names it.

Nothing is unpickled: names and constants are read from a pickle's instructions, which runs nothing of it. Arguments
may be anybody's secret, so they are told only when asked for.
"""

from __future__ import annotations

import os
import pickletools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from actorraft import codec
from actorraft.errors import ActorRaftError, CorruptionError, UsageError
from actorraft.raft.messages import Configuration, LogEntry
from actorraft.storage.directory import CLUSTER_FILE, NODE_FILE, NodeInfo, cannot_be_used, unseal
from actorraft.storage.disk import LOG_FOLDER
from actorraft.storage.marks import RUNNING, read_marks
from actorraft.storage.records import entry_checksum
from actorraft.storage.wal import LogReader

# As actorraft/pickling/formats.py has them.
_CALL, _OBJECT, _DEFINITION, _FLAT, _ARRAYS = 1, 2, 3, 4, 10
_BY_VALUE_BYTES: Final = 3
ARGUMENTS_CHARS_MAX: Final = 2_000


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An entry, for a person.

    Attributes:
        client: the session whose commands they are: the index of the entry that opened it; None: a leader's own entry.
        method: what it calls; several are counted.
        checksum: eight hexadecimal digits; `skip` wants them.
        arguments: of each command, where they were asked for.
        nodes: in whose logs it is; empty where only one was looked at.
    """

    index: int
    term: int
    client: int | None
    method: str
    size_bytes: int
    checksum: str
    arguments: tuple[str, ...] = ()
    nodes: tuple[int, ...] = ()

    @property
    def words(self) -> str:
        """The same in a sentence's part."""
        of_client = "" if self.client is None else f" of client {self.client}"
        return f"the entry at index {self.index} (term {self.term}, {self.method}{of_client}, checksum {self.checksum})"


def describe(index: int, entry: LogEntry, *, arguments: bool = False) -> Shown:
    """Say what an entry is."""
    client, method, size, told = None, "", 0, []
    item = entry.item
    if item is None:
        method = "(no-op)"
    elif isinstance(item, Configuration):
        method = "(membership)"
    elif not isinstance(item, bytes):
        method = f"({type(item).__name__})"
    else:
        size = len(item)
        try:
            request = codec.decode_request(codec.unstamp(item)[1])
        except codec.MalformedFrame:
            method = "(no frame of this version)"
        else:
            if isinstance(request, codec.Commands):
                client = request.client_id
                commands = _commands(request)
                method = _counted([_name(command) for command in commands])
                told = [_arguments(command) for command in commands] if arguments else []
            else:
                client = getattr(request, "client_id", None)
                method = f"({type(request).__name__.lower()})"
    return Shown(
        index=index,
        term=entry.term,
        client=client,
        method=method,
        size_bytes=size,
        checksum=f"{entry_checksum(index, entry):08x}",
        arguments=tuple(told),
    )


def show(path: str | os.PathLike[str], first: int, last: int | None, *, arguments: bool = False) -> list[Shown]:
    """Say what the entries from `first` to `last` are, both included, in a node's log or in those of a cluster.

    Logs may be read while their nodes run; what was not committed then may be replaced.

    Raises:
        UsageError: there is nothing of a cluster or node, or no such entry.
        CorruptionError: a log is damaged.
    """
    found: dict[tuple[int, str], tuple[Shown, list[int]]] = {}
    held: list[str] = []
    for folder, info in node_folders(path):
        at, entries = read_log(folder, info)
        held.append(f"{folder.name} holds [{at}, {at + len(entries)})")
        for index, entry in enumerate(entries, at):
            if index >= first and (last is None or index <= last):
                shown = describe(index, entry, arguments=arguments)
                _, nodes = found.setdefault((index, shown.checksum), (shown, []))
                if info.node_id is not None:
                    nodes.append(info.node_id)
    if not found:
        what = f"index {first}" if first == last else f"from index {first} to {'the end' if last is None else last}"
        raise UsageError(f"there is no entry {what}: {', '.join(held) or 'no node has a log here'}")
    return [
        Shown(**{**_fields(shown), "nodes": tuple(nodes)})
        for _, (shown, nodes) in sorted(found.items(), key=lambda one: one[0][0])
    ]


def node_folders(path: str | os.PathLike[str]) -> Iterator[tuple[Path, NodeInfo]]:
    """Yield the folders of nodes that have a log, of a cluster's folder or the one given. Raises UsageError."""
    folder = Path(path).absolute()
    if (folder / CLUSTER_FILE).exists():
        candidates = sorted(folder.glob("node-*"), key=lambda one: (len(one.name), one.name))
    elif (folder / NODE_FILE).exists():
        candidates = [folder]
    else:
        raise UsageError(f"{folder} is neither a cluster's folder ({CLUSTER_FILE}) nor a node's ({NODE_FILE})")
    for candidate in candidates:
        content = unseal(candidate / NODE_FILE)
        info = NodeInfo(**content) if content is not None else None
        if info is not None and info.started:
            yield candidate, info


def read_log(folder: Path, info: NodeInfo) -> tuple[int, list[LogEntry]]:
    """Return the index of the first entry that a node's log holds, and all of them. Raises CorruptionError."""
    reader = LogReader(folder / LOG_FOLDER, bytes.fromhex(info.storage_id))
    with cannot_be_used(folder):
        try:
            image = reader.read().image
        except CorruptionError:
            if not reader.scan.segments or not reader.scan.image.complete:
                raise
            image = reader.scan.image  # being written just now, or damaged behind: `verify` says which
    return image.first_index, image.held()


def running_entry(folder: Path) -> Shown | None:
    """Return the entry that a node was applying when its process ended; None if it was not, or that cannot be told."""
    try:
        marks, content = read_marks(folder), unseal(folder / NODE_FILE)
        index = -1 if marks is None else marks.words[RUNNING]
        if index < 0 or content is None:
            return None
        first, entries = read_log(folder, NodeInfo(**content))
    except (ActorRaftError, OSError):
        return None
    return describe(index, entries[index - first]) if first <= index < first + len(entries) else None


def _fields(shown: Shown) -> dict[str, Any]:
    return {name: getattr(shown, name) for name in shown.__dataclass_fields__}


def _commands(frame: codec.Commands) -> list[Any]:
    try:
        return codec.decode_body(frame.body)
    except codec.MalformedFrame:
        return []


def _counted(names: list[str]) -> str:
    counts = Counter(names)
    return ", ".join(name if count == 1 else f"{name} ×{count}" for name, count in counts.items()) or "(malformed)"


def _name(command: Any) -> str:
    """Return the method that a command calls, or what kind of object it is."""
    if isinstance(command, list):
        return str(command[0]) if command else "(malformed)"
    if command is None:
        return "(given up)"
    if not isinstance(command, msgspec.msgpack.Ext):
        return "(malformed)"
    if command.code == _FLAT:
        try:
            module, qualname, _ = msgspec.msgpack.decode(command.data)
            return f"{module}:{qualname}"
        except (ValueError, TypeError):
            return "(malformed)"
    if command.code == _DEFINITION:
        return "(definition)"
    if command.code == _ARRAYS:
        return _beside_arrays(command.data)[0]
    constants, classes = _pickled(command.data)
    if command.code == _CALL:
        return next((str(one) for one in constants if isinstance(one, str)), "(malformed)")
    return next((one for one in classes if not one.startswith(("actorraft.", "builtins:"))), "(code by value)")


def _arguments(command: Any) -> str:
    if isinstance(command, list):
        text = ", ".join(map(repr, command[1:]))
    elif isinstance(command, msgspec.msgpack.Ext) and command.code == _FLAT:
        try:
            text = ", ".join(f"{name}={value!r}" for name, value in msgspec.msgpack.decode(command.data)[2].items())
        except (ValueError, TypeError, AttributeError):
            text = ""
    elif isinstance(command, msgspec.msgpack.Ext) and command.code == _ARRAYS:
        text = _beside_arrays(command.data)[1]
    elif isinstance(command, msgspec.msgpack.Ext) and command.code in (_CALL, _OBJECT):
        constants, _ = _pickled(command.data)
        text = "in a pickle: " + ", ".join(map(repr, constants[command.code == _CALL :]))
    else:
        text = ""
    return text[:ARGUMENTS_CHARS_MAX]


def _beside_arrays(data: Any) -> tuple[str, str]:
    """Return the method of a call with arrays, and its arguments but for what is in the arrays."""
    try:
        head = data[4 : 4 + int.from_bytes(data[:4], "little")].rstrip(b"\xc0")
        (method, args, kwargs), arrays = msgspec.msgpack.decode(
            head, type=tuple[tuple[str, list[Any], dict[str, Any]], Any]
        )
        return method, f"{args} {kwargs} with arrays of {[info[:2] for info in arrays]}"
    except (ValueError, TypeError):
        return "(malformed)", ""


def _pickled(data: Any) -> tuple[list[Any], list[str]]:
    """Return the constants in a pickle, and the classes and functions that it names, in order; nothing is run."""
    data = bytes(data)
    constants: list[Any] = []
    classes: list[str] = []
    try:
        for operation, argument, _ in pickletools.genops(data if data[:1] != b"\0" else data[_BY_VALUE_BYTES:]):
            if operation.name == "STACK_GLOBAL" and len(constants) >= 2:
                classes.append(f"{constants[-2]}:{constants[-1]}")
                del constants[-2:]
            elif operation.name == "GLOBAL":
                classes.append(str(argument).replace(" ", ":"))
            elif isinstance(argument, str | bytes | int | float) and operation.name not in _NO_CONSTANTS:
                constants.append(argument)
    except Exception:
        pass  # bytes that are no pickle: what was read so far is all there is to say
    return constants, classes


_NO_CONSTANTS: Final = frozenset(
    (
        "PROTO",
        "FRAME",
        "BINGET",
        "LONG_BINGET",
        "GET",
        "BINPUT",
        "LONG_BINPUT",
        "PUT",
        "MEMOIZE",
        "EXT1",
        "EXT2",
        "EXT4",
    )
)
