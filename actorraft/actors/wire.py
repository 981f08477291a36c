"""What actors say to each other, as bytes.

Wire:       to an actor, a msgpack array of [kind, number, pickle]; from it, [messages taken from this sender so far,
            array of [number, ok, pickle]]. The count is the sender's credit: nobody holds more than `mailbox_max`.
            A message or an answer with large buffers is a frame of its own: its head, and these behind it (Bulk), or
            where they lie in memory that both ends have (shared.py); what was taken is then said in the frame after it.
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
from functools import partial
from typing import Any, Final, NamedTuple, TypeGuard

import msgspec

from actorraft.actors.actor import HOOKS, Actor
from actorraft.actors.shared import Lane, Place
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
SHARED: Final = 7  # of the memory that both ends have, and not counted

LAST: Final = -1  # the number of what is no answer, but says that no more will come
DEFINITION: Final = -2  # the number of what is no answer, but a definition for those that follow
TOLD: Final = -3  # the number of what is no answer, but comes from a node: how the actor stands (records.Standing)
SHARING: Final = -4  # likewise, of the memory that both ends have
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
_BESIDE: Final = -1  # where buffers lie that are not in shared memory
_decode_head = msgspec.msgpack.Decoder(tuple[int, int, bytes, list[int], list[bool], int]).decode


class Bulk:
    """A pickle whose large buffers travel beside it, as parts of the message that are not copied again.

    Attributes:
        data: the pickle; empty: the one buffer is a `bytes` object itself.
        buffers: what belongs to it.
        read_only: of each, whether who gets it may not write to it either.
        place: where the buffers lie in memory that the other end has too, instead of in `buffers`.
        done: where they came to lie in such memory: says that they are not needed there any more.
    """

    __slots__ = ("_size", "_sizes", "buffers", "data", "done", "place", "read_only")

    def __init__(self, data: bytes, buffers: list[Any], read_only: list[bool]) -> None:
        self.data, self.buffers, self.read_only = data, buffers, read_only
        self._sizes = [len(each) for each in buffers]
        self._size = len(data) + sum(self._sizes)
        self.place: Place | None = None
        self.done: Callable[[], None] | None = None

    def __len__(self) -> int:
        return self._size

    def head(self, kind: int, number: int) -> bytes:
        """Return what goes ahead of the buffers."""
        at = self.place.start if self.place is not None else _BESIDE
        head = _encode((kind, number, self.data, self._sizes, self.read_only, at))
        return _HEAD.pack(BULK, len(head)) + head

    def own(self, copy: Callable[[Any], Any], lane: Lane) -> None:
        """Take what is in the buffers as it is now, whatever becomes of it later: to shared memory, if it can be."""
        self.place = lane.put(self.buffers, self._size - len(self.data))
        self.buffers = [] if self.place is not None else [copy(each) for each in self.buffers]

    def leave_place(self, copy: Callable[[Any], Any]) -> None:
        """Have the buffers beside it: whoever gets it has not that memory."""
        if self.place is not None:
            self.buffers = [copy(each) for each in self.place.views(self._sizes)]
            self.give_up()

    def give_up(self) -> None:
        """Let go of where it lies: it is not sent."""
        if self.place is not None:
            self.place.let_go()
            self.place = None

    def value(self) -> Any:
        """Read it, where it lies, if nobody else has that; what was read-only is so here."""
        try:
            if not self.data:
                return bytes(self.buffers[0])
            own = _own if self.done is None else _copy
            buffers = [own(view, fixed) for view, fixed in zip(self.buffers, self.read_only, strict=True)]
        finally:
            self.let_go()
        return _definitions.loads(self.data, buffers)

    def let_go(self) -> None:
        """Say that it has been read, or never will be."""
        if self.done is not None:
            done, self.done = self.done, None
            self.buffers = []
            done()


def _own(view: memoryview, fixed: bool) -> memoryview | bytearray:
    return view.toreadonly() if fixed else bytearray(view) if view.readonly else view


def _copy(view: memoryview, fixed: bool) -> bytes | bytearray:
    return bytes(view) if fixed else bytearray(view)


def read_bulk(frame: bytes | memoryview, lane: Lane | None = None) -> tuple[int, int, Bulk]:
    """Read a frame that begins with BULK: (kind, number, what it holds).

    Args:
        lane: of the link that it came by.

    Raises:
        msgspec.DecodeError: it is none.
    """
    if len(frame) < _HEAD.size:
        raise msgspec.DecodeError("a frame that is cut short")
    _, size = _HEAD.unpack_from(frame)
    view = memoryview(frame)
    start = _HEAD.size + size
    kind, number, data, sizes, read_only, at = _decode_head(view[_HEAD.size : start])
    if at != _BESIDE:
        return kind, number, _read_shared(data, sizes, read_only, at, lane)
    beside = frame.beside if isinstance(frame, Gathered) else ()
    wrong = [len(each) for each in beside] != sizes if beside else start + sum(sizes) != len(frame)
    if wrong or min(sizes, default=0) < 0 or len(sizes) != len(read_only):
        raise msgspec.DecodeError("its buffers have other sizes than it says")
    buffers = list(beside)
    for each in () if beside else sizes:
        buffers.append(view[start : start + each])
        start += each
    return kind, number, Bulk(data, buffers, read_only)


def _read_shared(data: bytes, sizes: list[int], read_only: list[bool], at: int, lane: Lane | None) -> Bulk:
    if lane is None or not sizes or min(sizes) < 0 or len(sizes) != len(read_only):
        raise msgspec.DecodeError("buffers in memory that is not shared")
    try:
        bulk = Bulk(data, lane.read(at, sizes), read_only)
    except ValueError as error:
        raise msgspec.DecodeError(str(error)) from error
    bulk.done = partial(lane.copied, at)
    return bulk


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
