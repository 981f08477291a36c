"""Which code a log or a snapshot holds by value: the one thing in them that another minor Python cannot read.

A class or function that no node can import travels as byte code, and the byte code of one minor version crashes
another. Everything else in a data directory means the same to each of them, so a directory without such code opens
under any; of one that has it, what there is says which definition it is.

Nothing is unpickled: names are read from a pickle's instructions, which runs nothing of it.

Shape:      the formats are those of pickling/formats.py, pickling/byvalue.py, node/executor.py and
            node/machine_state.py.
Not here:   taking them out (upgrade.py).
"""

from __future__ import annotations

import io
import itertools
import pickletools
import struct
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import msgspec

from actorraft import codec
from actorraft.errors import UsageError
from actorraft.raft.messages import LogEntry
from actorraft.storage.directory import ClusterDirectory, DirectoryLock, this_python
from actorraft.storage.disk import SNAPSHOT_FOLDER
from actorraft.storage.show import node_folders, read_log
from actorraft.storage.snapshots import BlockReader, check_content, read_footer, snapshot_paths

Name = tuple[str, str]

UNDER_WAY: Final = "(an upgrade was interrupted)"  # behind the version in cluster.json

_CALL, _OBJECT, _DEFINITION = 1, 2, 3  # as formats.py has them
_PIECE: Final = struct.Struct("<I")
_HEAD: Final = struct.Struct("<4sI")
_MAGICS: Final = (b"ARM1", b"ARM2")
_MODULES: Final = ("actorraft.pickling.byvalue", "actorraft.byvalue")  # the second in 0.1.0
_BUILDERS: Final = ("begin_class", "begin_enum", "begin_function")
_NAMED: Final = ("resolve", "revive")
_TEXTS: Final = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_GETS: Final = ("BINGET", "LONG_BINGET")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.decode


class Found(NamedTuple):
    """Code by value, and where it is."""

    what: str
    where: str

    @property
    def words(self) -> str:
        """The same in a sentence's part."""
        return f"{self.where} holds {self.what}"


def refuse_code(directory: ClusterDirectory, python: str) -> None:
    """Refuse a closed cluster of another Python if anything in it is that Python's alone.

    Raises:
        UsageError: it holds code by value; it names the definition, and the ways out.
        CorruptionError: a log or snapshot is damaged.
    """
    version = python.removesuffix(UNDER_WAY).strip()
    upgrade = f"python -m actorraft.storage upgrade {directory.path}"
    if python.endswith(UNDER_WAY):
        raise UsageError(f"{directory.path} is in the middle of an upgrade that was interrupted: {upgrade} once more")
    if version == this_python():
        return
    found = next(code_of_cluster(directory.path), None)
    if found is not None:
        raise UsageError(
            f"{directory.path} was made by Python {version} and this is Python {this_python()}: {found.words}, which "
            f"no other minor version can read. Close it under Python {version}, and take such code out with {upgrade}; "
            f"or go on with Python {version}"
        )


def code_of_cluster(path: Path) -> Iterator[Found]:
    """Yield what code by value the nodes of a closed cluster hold, in logs and newest snapshots.

    Raises:
        UsageError: a node runs, or a snapshot is of a newer format.
        CorruptionError: a log or snapshot is damaged.
    """
    with ExitStack() as locks:
        for folder, info in node_folders(path):
            locks.callback(DirectoryLock(folder).close)  # which a node that is just ending still has
            snapshots = snapshot_paths(folder / SNAPSHOT_FOLDER)
            if snapshots:
                newest = read_footer(snapshots[-1], bytes.fromhex(info.storage_id))
                check_content(newest)
                with io.BufferedReader(BlockReader(newest, guard=lambda error: error)) as file:
                    where = f"the snapshot at index {newest.meta.snapshot_id.index} of {folder.name}"
                    yield from code_of_snapshot(file, where)
            yield from code_of_entries(*read_log(folder, info), folder.name)


# --- Logs -------------------------------------------------------------------------------------------------------------


def code_of_entries(first_index: int, entries: Sequence[LogEntry], node: str) -> Iterator[Found]:
    """Yield what code by value the commands in a log hold."""
    for index, entry in enumerate(entries, first_index):
        if type(entry.item) is bytes:
            for what in _code_of_item(entry.item):
                yield Found(what, f"the log of {node} at index {index}")


def _code_of_item(item: bytes) -> Iterator[str]:
    try:
        request = codec.decode_request(codec.unstamp(item)[1])
        commands = codec.decode_body(request.body) if isinstance(request, codec.Commands) else []
    except codec.MalformedFrame:
        return  # no node does anything with it
    for command in commands:
        if not isinstance(command, msgspec.msgpack.Ext):
            continue
        if command.code == _DEFINITION:
            for name in _defined(bytes(command.data)):
                yield _definition(name)
        elif command.code in (_CALL, _OBJECT):
            yield from _code_of_pickle(bytes(command.data))


# --- Snapshots --------------------------------------------------------------------------------------------------------


class Content:
    """Where in a snapshot's content the machine's definitions are.

    Args:
        file: at the content's beginning.

    Raises:
        UsageError: it is of a newer format.
    """

    def __init__(self, file: BinaryIO) -> None:
        begin = file.tell()
        state = _decode(file.read(_PIECE.unpack(file.read(_PIECE.size))[0]))
        if len(state) > 6 and state[6] is not None:  # 0.1.0 had the history of watches in there
            while size := _PIECE.unpack(file.read(_PIECE.size))[0]:
                file.read(size)
        self.machine_at = file.tell() - begin
        self.magic, size = _HEAD.unpack(file.read(_HEAD.size))
        if self.magic not in _MAGICS:
            raise UsageError("the snapshot was written by another version of ActorRaft: use that one")
        self.head: list[Any] = _decode(file.read(size))
        self.chunks_at = file.tell() - begin
        payloads, named = self.head[3][:2]
        self.defined: set[Name] = {name for payload in payloads for name in _defined(payload)}
        self.defined |= {(module, qualname) for module, qualname, _ in named}

    def head_without_definitions(self) -> bytes:
        """Return the machine's head as it is if nobody has defined anything; which names had failed stays."""
        _, _, failed, *holders = self.head[3]
        head = _encode([*self.head[:3], [[], [], failed, *([] for _ in holders)], *self.head[4:]])
        return _HEAD.pack(self.magic, len(head)) + head


def code_of_snapshot(file: BinaryIO, where: str) -> Iterator[Found]:
    """Yield what code by value the content of a snapshot holds: definitions, and whatever the state is made of."""
    content = Content(file)
    for name in _outermost(sorted(content.defined)):
        yield Found(_definition(name), where)
    yield from code_of_state(content, file, where)


def code_of_state(content: Content, file: BinaryIO, where: str) -> Iterator[Found]:
    """Yield what the state holds of code by value, objects of defined classes included; `file` is behind the head."""
    changed = content.head[5] if len(content.head) > 5 else b""
    for what in _code_of_pickle(changed, content.defined) if changed else ():
        yield Found(what, f"the state in {where}")
    while file.read(1) == b"\x01":
        for what in _code_of_pickle(file, content.defined):
            yield Found(what, f"the state in {where}")


# --- Pickles ----------------------------------------------------------------------------------------------------------


def _defined(payload: bytes) -> list[Name]:
    """Return what a definition defines, without what is inside of that."""
    try:
        names = [(str(module), str(qualname)) for module, qualname, *_ in _decode(payload)[2]]
    except (ValueError, TypeError, IndexError):  # it failed on every node
        return []
    return _outermost(names)


def _outermost(names: Collection[Name]) -> list[Name]:
    return [name for name in names if "." not in name[1] or (name[0], name[1].partition(".")[0]) not in names]


def _definition(name: Name) -> str:
    return f"the definition of {name[0]}:{name[1]}"


def _code_of_pickle(pickle: bytes | BinaryIO, defined: Collection[Name] = ()) -> Iterator[str]:
    """Yield what a pickle holds of code by value; what it has in a file is read to its end."""
    marked = isinstance(pickle, bytes) and pickle[:1] == b"\0"  # and the Python that made it
    words = _words(pickle[3:] if isinstance(pickle, bytes) and marked else pickle)
    said = False
    for word in words:
        if not isinstance(word, tuple):
            continue
        module, qualname = word
        if module in _MODULES and qualname in _NAMED:
            name = [text for text in itertools.islice(words, 2) if isinstance(text, str)]
            yield _definition((name[0], name[1])) if len(name) == 2 else "a definition"
        elif module in _MODULES and qualname in _BUILDERS:
            yield _name_of_built(words, qualname)
        elif (module, qualname) in defined or (module, qualname.partition(".")[0]) in defined:
            yield f"an object of {module}:{qualname}, which is defined by value"
        else:
            continue
        said = True
    if marked and not said:
        yield "code by value"


def _name_of_built(words: Iterator[str | Name], builder: str) -> str:
    """Say what is built: by its name in the cluster, if it has one, else by that which the code has itself."""
    last: deque[str] = deque(maxlen=3)
    for word in words:
        if word == (_MODULES[0], "Ref") or word == (_MODULES[1], "Ref"):
            name = [text for text in itertools.islice(words, 2) if isinstance(text, str)]
            return _definition((name[0], name[1])) if len(name) == 2 else "a definition"
        if not isinstance(word, str):
            continue
        if builder != "begin_function":
            return f"the class {word}, by value"
        last.append(word)  # a code object has its file, name and qualified name one after the other
        if len(last) == 3 and (last[0].endswith((".py", ">")) and last[2].endswith(last[1])):
            return f"the function {last[2]}, by value"
    return "a function by value"


def _words(pickle: bytes | BinaryIO) -> Iterator[str | Name]:
    """Yield the texts of a pickle, and as pairs the classes and functions that it names, in order."""
    memo: dict[int, str | None] = {}
    texts: deque[str] = deque(maxlen=2)
    top: str | None = None
    waiting: list[str] = []  # two texts may turn out to be a name
    source: Any = pickle if isinstance(pickle, bytes) else _Untold(pickle)
    for operation, argument, _ in pickletools.genops(source):
        name = operation.name
        if name == "MEMOIZE":
            memo[len(memo)] = top
            continue
        if name == "FRAME":
            continue
        if name == "STACK_GLOBAL":
            yield from waiting[:-2]
            waiting.clear()
            top = None
            yield texts[0], texts[1]
            continue
        top = None
        if name in _TEXTS:
            top = str(argument)
        elif name in _GETS:
            top = memo.get(int(argument or 0))
        if top is not None:
            texts.append(top)
            waiting.append(top)
            if len(waiting) > 2:
                yield waiting.pop(0)
        elif waiting:
            yield from waiting
            waiting.clear()


class _Untold:
    """A file that is not asked where it is with every instruction."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.readline = file.read, file.readline
