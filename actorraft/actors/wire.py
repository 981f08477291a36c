"""What actors say to each other, as bytes.

Wire:       to an actor, a msgpack array of [kind, number, pickle]; from it, [messages taken from this sender so far,
            array of [number, ok, pickle]]. The count is the sender's credit: nobody holds more than `mailbox_max`.
            A message is taken when the actor is done with it.
Pickles:    made in the sender's thread and read by the receiver alone. A message of plain scalars goes by the C
            pickler. Anything else goes by cloudpickle, which sends by value what the other process cannot import
            (classes and functions of `__main__`, a notebook, a module that is not on sys.path), and gives one class
            back as itself however often it travels.
Security:   a pickle is a program. These are read only from mailboxes in a directory that nobody else can enter.
"""

from __future__ import annotations

import contextlib
import inspect
import pickle
import sys
from typing import Any, Final, NamedTuple, TypeGuard

import cloudpickle  # type: ignore[import-untyped]

from actorraft.actors.actor import HOOKS, Actor
from actorraft.errors import CommandFailed, RemoteTraceback, UsageError
from actorraft.pickling import exceptions
from actorraft.pickling.names import module_is_importable

TELL: Final = 0
ASK: Final = 1
STOP: Final = 2
READ: Final = 3  # the sender has read the last answers
HELLO: Final = 4  # first over a link, and not counted: the address of a sender that is an actor itself

LAST: Final = -1  # the number of what is no answer, but says that no more will come
FRAME_BYTES_MAX: Final = 64 << 20

_ENDS_OTHERS: Final = (StopIteration, StopAsyncIteration)  # mean something else to who raises them anew
_SCALARS: Final = frozenset({str, bytes, int, float, bool, type(None)})
_known: set[str] = set()  # modules that were looked at

loads = pickle.loads


def dumps(value: Any) -> bytes:
    """Make bytes of a message.

    Raises:
        UsageError: it cannot be sent; the message says why.
    """
    kind = type(value)
    if kind in _SCALARS or (kind in (tuple, list) and _SCALARS.issuperset(map(type, value))):
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    send_by_value_if_needed(kind)
    try:
        return cloudpickle.dumps(value, pickle.HIGHEST_PROTOCOL)  # type: ignore[no-any-return]
    except Exception as error:
        raise UsageError(f"a message of type {kind.__qualname__} cannot be sent: {error}") from error


def send_by_value_if_needed(code: Any) -> None:
    """Have a class's or function's module sent by value from now on, if another interpreter cannot import it."""
    name = getattr(code, "__module__", None)
    if name is None or name in _known:
        return
    _known.add(name)
    module = sys.modules.get(name)
    if module is not None and name != "__main__" and not module_is_importable(name):
        cloudpickle.register_pickle_by_value(module)


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


def dump_error(error: BaseException) -> bytes:
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
