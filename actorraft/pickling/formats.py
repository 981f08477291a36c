"""What the bytes of commands and results mean, and the mark that code by value carries.

Shape:      a command: array [method, argument, ...]; or Ext(1) pickle of (method, args, kwargs), Ext(2) pickle of a
            command object, Ext(3) definition, Ext(4) a flat command object: [module, qualified name, attributes].
            Ext(10) (method, args, kwargs) with arrays in them (beside.py).
            A result: a scalar, or Ext(2) pickle, Ext(5) error, Ext(6) lost, Ext(10) a value with arrays in it.
            An error is msgpack: (kind, type's name, message, traceback, pickle of the exception's parts or None).
            A pickle that holds code has three bytes before it: BY_VALUE, major, minor of the Python that made it.
"""

from __future__ import annotations

import sys
from typing import Final

from actorraft import codec
from actorraft.errors import UsageError

CALL: Final = 1
OBJECT: Final = 2
DEFINITION: Final = 3
FLAT: Final = 4
ERROR: Final = 5
LOST: Final = 6
ARRAYS: Final = codec.ARRAYS  # 7 to 9 are codec.py's too

RAISED, NOT_KNOWN, NOT_USABLE = range(3)  # in an error: the user's code raised it; UnknownType; UsageError

MOVED: Final = {"actorraft.byvalue": "actorraft.pickling.byvalue"}  # modules that pickles of 0.1.0 name, where they are
BY_VALUE: Final = 0  # the first byte of a pickle that holds code; those that hold none begin with 0x80
_PYTHON = sys.version_info[:2]


def joined(code: int, data: bytes) -> bytes:
    """Encode an Ext, moving its data once; an encoder's buffer moves it as it grows."""
    return b"".join((b"\xc9", len(data).to_bytes(4, "big"), bytes((code,)), data))


def mark_by_value(data: bytes) -> bytes:
    """Say in front of a pickle that holds code which Python made it."""
    return bytes((BY_VALUE, *_PYTHON)) + data


def check_python(major: int, minor: int, what: str) -> None:
    """Refuse code of another Python: its byte code would crash this interpreter.

    Raises:
        UsageError: the versions differ; it names both.
    """
    if (major, minor) != _PYTHON:
        raise UsageError(
            f"{what} holds code from Python {major}.{minor}, and this is Python {_PYTHON[0]}.{_PYTHON[1]}: "
            "run both with the same minor version, or put the classes into a module that both can import"
        )
