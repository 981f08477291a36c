"""What actors say to each other, as bytes.

Wire:       to an actor, a msgpack array of [kind, number, pickle]; from it, [messages taken from this sender so far,
            array of [number, ok, pickle]]. The count is the sender's credit: nobody holds more than `mailbox_max`.
            A message or an answer with large buffers is a frame of its own: its head, and these behind it (Bulk); what
            was taken is then said in the frame after it.
            A message is taken when the actor is done with it.
            Over machines a node stands between (docs/decisions/0045): it takes OPEN, says TOLD, and passes on all else
            as it came.
Pickles:    made in the sender's thread and read by the receiver alone, as commands are: classes and functions that the
            other process can import go by name; others (of `__main__`, a notebook, a module that is not on sys.path)
            are defined once on each link, ahead of what needs them, and named from then on. What a process has of its
            own under such a name stays what it is there.
Security:   a pickle is a program. These are read only from mailboxes in a directory that nobody else can enter.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import pickle
import struct
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeGuard

import msgspec

from actorraft.actors.actor import HOOKS, Actor
from actorraft.errors import CommandFailed, RemoteTraceback
from actorraft.machine import Method
from actorraft.pickling import exceptions
from actorraft.pickling.definitions import Definitions
from actorraft.pickling.encoder import BESIDE_BYTES, Encoder
from actorraft.pickling.formats import BY_VALUE
from actorraft.ports import Gathered

TELL: Final = 0
ASK: Final = 1
STOP: Final = 2
READ: Final = 3  # the sender has read the last answers
HELLO: Final = 4  # first over a link, and not counted: (the address of a sender that is an actor itself, definitions)
DEFINE: Final = 5  # a definition, counted like a message
OPEN: Final = 6  # to a node, and not counted: which actor of its machine all that follows is for (Opening)

LAST: Final = -1  # the number of what is no answer, but says that no more will come
DEFINITION: Final = -2  # the number of what is no answer, but a definition for those that follow
TOLD: Final = -3  # the number of what is no answer, but comes from a node: how the actor stands (records.Standing)
BULK: Final = 0xC1  # the first byte of a frame with one message and its buffers; msgpack never begins so
FRAME_BYTES_MAX: Final = 64 << 20
MESSAGE_BYTES_MAX: Final = FRAME_BYTES_MAX - 1024  # of a message or an answer, with room for what is around it
BATCH_MAX: Final = 500  # messages or answers in one frame

_TRIM_THRESHOLD: Final = -1  # of glibc's mallopt
_MMAP_THRESHOLD: Final = -3
SCALAR_PROTOCOL: Final = 4  # of pickles that name no class, by which they are known; all others have a later one
_ENDS_OTHERS: Final = (StopIteration, StopAsyncIteration)  # mean something else to who raises them anew
SCALARS: Final = frozenset({str, bytes, int, float, bool, type(None)})

_definitions = Definitions(own_first=True)  # what others have defined here
_owners = itertools.count(1)
_building = threading.Lock()  # held by who builds classes, so not by who only names them
os.register_at_fork(after_in_child=lambda: globals().__setitem__("_building", threading.Lock()))
_loads, _dumps = pickle.loads, pickle.dumps
_decode = msgspec.msgpack.decode
_encode = msgspec.msgpack.Encoder().encode
_HEAD: Final = struct.Struct("<BI")
_decode_head = msgspec.msgpack.Decoder(tuple[int, int, bytes, list[int], list[bool]]).decode


class Bulk:
    """A pickle whose large buffers travel beside it, as parts of the message that are not copied again.

    Attributes:
        data: the pickle; empty: the one buffer is a `bytes` object itself.
        buffers: what belongs to it.
        read_only: of each, whether who gets it may not write to it either.
    """

    __slots__ = ("_size", "buffers", "data", "read_only")

    def __init__(self, data: bytes, buffers: list[Any], read_only: list[bool]) -> None:
        self.data, self.buffers, self.read_only = data, buffers, read_only
        self._size = len(data) + sum(map(len, buffers))

    def __len__(self) -> int:
        return self._size

    def head(self, kind: int, number: int) -> bytes:
        """Return what goes ahead of the buffers."""
        head = _encode((kind, number, self.data, [len(each) for each in self.buffers], self.read_only))
        return _HEAD.pack(BULK, len(head)) + head

    def own(self) -> None:
        """Take what is in the buffers as it is now, whatever becomes of it later."""
        self.buffers = [bytes(each) for each in self.buffers]

    def value(self) -> Any:
        """Read it, where it lies, if nobody else has that; what was read-only is so here."""
        if not self.data:
            return bytes(self.buffers[0])
        buffers = [_own(view, fixed) for view, fixed in zip(self.buffers, self.read_only, strict=True)]
        return _definitions.loads(self.data, buffers)


def _own(view: memoryview, fixed: bool) -> memoryview | bytearray:
    return view.toreadonly() if fixed else bytearray(view) if view.readonly else view


def read_bulk(frame: bytes | memoryview) -> tuple[int, int, Bulk]:
    """Read a frame that begins with BULK: (kind, number, what it holds).

    Raises:
        msgspec.DecodeError: it is none.
    """
    if len(frame) < _HEAD.size:
        raise msgspec.DecodeError("a frame that is cut short")
    _, size = _HEAD.unpack_from(frame)
    view = memoryview(frame)
    start = _HEAD.size + size
    kind, number, data, sizes, read_only = _decode_head(view[_HEAD.size : start])
    beside = frame.beside if isinstance(frame, Gathered) else ()
    wrong = [len(each) for each in beside] != sizes if beside else start + sum(sizes) != len(frame)
    if wrong or min(sizes, default=0) < 0 or len(sizes) != len(read_only):
        raise msgspec.DecodeError("its buffers have other sizes than it says")
    buffers = list(beside)
    for each in () if beside else sizes:
        buffers.append(view[start : start + each])
        start += each
    return kind, number, Bulk(data, buffers, read_only)


def keep_memory() -> None:
    """Have this process keep the memory of a large message for the next: else each has its pages mapped anew.

    Glibc's malloc takes that advice; nothing happens where there is another one.
    """
    with contextlib.suppress(Exception):
        import ctypes

        advise = ctypes.CDLL(None).mallopt
        advise(_TRIM_THRESHOLD, 2 * FRAME_BYTES_MAX)
        advise(_MMAP_THRESHOLD, FRAME_BYTES_MAX) or advise(_MMAP_THRESHOLD, 32 << 20)  # older ones take no more


class Writer:
    """Makes bytes of what goes over one link.

    Attributes:
        on_definition: called with what is to go ahead of the bytes that are being made; see `define`.
    """

    __slots__ = ("_encoder", "on_definition")

    def __init__(self, on_definition: Callable[[bytes], Any]) -> None:
        self.on_definition = on_definition
        self._encoder: Encoder | None = None  # many links carry nothing but scalars

    def message(self, value: Any) -> bytes | Bulk:
        """Make bytes of a message; what is large in it stays where it is."""
        kind = type(value)
        if kind in SCALARS:
            if kind is bytes and len(value) >= BESIDE_BYTES:
                return Bulk(b"", [value], [True])
            return _dumps(value, SCALAR_PROTOCOL)
        buffers: list[memoryview] = []
        data = self.dumps(value, buffers)
        return data if not buffers else Bulk(data, buffers, [each.readonly for each in buffers])

    def dumps(self, value: Any, beside: list[memoryview] | None = None) -> bytes:
        """Make bytes of a message, or of an answer.

        Raises:
            UsageError: it cannot be sent; the message says why.
        """
        kind = type(value)
        if kind in SCALARS or (kind in (tuple, list) and SCALARS.issuperset(map(type, value))):
            return pickle.dumps(value, SCALAR_PROTOCOL)
        if self._encoder is None:
            self._encoder = Encoder(lambda data: self.on_definition(data))
        return self._encoder.dumps(value, beside)


def new_owner() -> int:
    """Return a number for a link, to say whose definitions are whose."""
    return next(_owners)


def define(data: bytes, owner: int, *, base: bool = False) -> None:
    """Take up a definition that came over a link; what this process has itself under that name stays.

    Raises:
        BaseException: whatever building the class raised.
    """
    with _building:
        _definitions.define(_decode(data).data, owner, base=base)


def forget(owner: int) -> None:
    """Let go of what only this link has defined."""
    with _building:
        _definitions.end_session(owner)


def loads(data: bytes | Bulk) -> Any:
    """Read a message or an answer.

    Raises:
        BaseException: whatever reading it raised.
    """
    if type(data) is Bulk:
        return data.value()
    assert type(data) is bytes
    if data[1] == SCALAR_PROTOCOL:
        return _loads(data)
    if data[0] == BY_VALUE:
        with _building:
            return _definitions.loads(data)
    return _definitions.loads(data)


def pack(value: Any) -> tuple[bytes, Writer]:
    """Make bytes of what a process begins with, with all the definitions that it needs.

    Returns:
        The bytes, and a writer for the link to that process, which knows what is defined there.
    """
    ahead: list[bytes] = []
    writer = Writer(ahead.append)
    return _encode((ahead, writer.dumps(value))), writer


def unpack(data: bytes) -> Any:
    """The other way round, in that process."""
    ahead, body = _decode(data)
    for each in ahead:
        define(each, 0, base=True)
    return loads(body)


class Opening(NamedTuple):
    """What OPEN says, in msgpack.

    Attributes:
        name: the actor's.
        endpoint: its mailbox, on the node's machine; "": whoever has the name now, and only how it stands is asked.
        sender: of who asks, the same on each of its connections.
    """

    name: str
    endpoint: str
    sender: bytes


class NoSuchMethod(AttributeError):
    """A call of what is no method, or is not for others: the caller's mistake."""


class Inquiry(NamedTuple):
    """A message that asks what runs the actor: about its "methods" or its "counts"."""

    about: str


class Call(NamedTuple):
    """A message that is a method call, made by a proxy."""

    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on(self, actor: object) -> Any:
        """Make the call."""
        return check_callable(type(actor), self.method).__get__(actor)(*self.args, **self.kwargs)


def check_callable(cls: type, name: str) -> Any:
    """Return the function behind a method that others may call.

    Raises:
        AttributeError: there is none of that name.
    """
    function = inspect.getattr_static(cls, name, None)
    if isinstance(function, Method):  # marked as a command or a query
        function = function.function
    if name.startswith("_") or not inspect.isfunction(function) or name in HOOKS or vars(Actor).get(name) is function:
        raise NoSuchMethod(f"{cls.__name__} has no method {name!r} that others may call")
    return function


def callable_methods(cls: type) -> list[str]:
    """Return the names of the methods that others may call."""
    names = []
    for name in dir(cls):
        with contextlib.suppress(NoSuchMethod):
            check_callable(cls, name)
            names.append(name)
    return names


def dump_error(error: BaseException, dumps: Callable[[Any], bytes]) -> bytes:
    """Make bytes of an exception: what it says, its traceback as text, and its parts if it can be raised elsewhere.

    Never raises, whatever the exception does.
    """
    body = None
    if _can_be_raised(error) and exceptions.can_be_shown(error):
        with contextlib.suppress(BaseException):
            body = dumps(exceptions.take_apart(error))
    told = exceptions.type_name(error), exceptions.message(error), exceptions.story(error)
    return pickle.dumps((*told, body), pickle.HIGHEST_PROTOCOL)


def load_error(data: bytes) -> BaseException:
    """The other way round; the remote traceback is the cause. One that cannot be rebuilt is a CommandFailed."""
    type_name, message, text, body = pickle.loads(data)
    error: Any = None
    if body is not None:
        with contextlib.suppress(BaseException):
            error = exceptions.put_together(loads(body))
    if not _can_be_raised(error):
        error = CommandFailed(type_name, message, text)
    exceptions.set_cause(error, RemoteTraceback(text))
    return error  # type: ignore[no-any-return]


def _can_be_raised(error: Any) -> TypeGuard[Exception]:
    return issubclass(type(error), Exception) and not issubclass(type(error), _ENDS_OTHERS)
