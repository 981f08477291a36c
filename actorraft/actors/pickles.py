"""Messages between actors as bytes: pickles, made in the sender's thread and read by the receiver alone.

A message of plain scalars goes by the C pickler. Anything else goes by cloudpickle, which sends by value what the other
process cannot import (classes and functions of `__main__`, a notebook, a module that is not on sys.path), and gives one
class back as itself however often it travels.

Security:   a pickle is a program. These are read only from mailboxes in a directory that nobody else can enter.
"""

from __future__ import annotations

import pickle
import sys
from typing import Any, Final

import cloudpickle  # type: ignore[import-untyped]

from actorraft.errors import UsageError
from actorraft.pickling.names import module_is_importable

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
