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

import inspect
import pickle
import sys
import traceback
from typing import Any, Final, NamedTuple

import cloudpickle  # type: ignore[import-untyped]

from actorraft.errors import CommandFailed, RemoteTraceback, UsageError
from actorraft.pickling.names import module_is_importable

TELL: Final = 0
ASK: Final = 1
STOP: Final = 2
READ: Final = 3  # the sender has read the last answers

LAST: Final = -1  # the number of what is no answer, but says that no more will come
FRAME_BYTES_MAX: Final = 64 << 20

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
    if name.startswith("_") or not inspect.isfunction(function) or name in ("receive", "on_start", "on_stop"):
        raise AttributeError(f"{cls.__name__} has no method {name!r} that others may call")
    return function


def dump_error(error: BaseException) -> bytes:
    """Make bytes of an exception, with its traceback as text; of one that cannot be rebuilt, a CommandFailed."""
    text = "".join(traceback.format_exception(error))
    try:
        data = dumps((error, text))
        loads(data)
    except Exception:
        try:
            message = str(error)
        except Exception:
            message = "(its message cannot be shown)"
        data = dumps((CommandFailed(type(error).__name__, message, text), text))
    return data


def load_error(data: bytes) -> BaseException:
    """The other way round; the remote traceback is the cause."""
    error, text = loads(data)
    assert isinstance(error, BaseException)
    error.__cause__ = RemoteTraceback(text)
    return error
