"""A digest of any value that depends on what it is, never on how it came about.

Pickle bytes will not do: they depend on which strings are the same object, on the order of sets (so on PYTHONHASHSEED)
and on the history of dicts of attributes. This walk takes sets in the order of their members' digests, attributes in
the order of their names, and everything else as it stands: the order of a dict's items is part of the state.

Invariant:  equal state, equal digest, in every process, whether commands or a snapshot built it.
Shape:      runs of plain scalars are taken a thousand at a time in C; that makes it cheap where states are large.
"""

from __future__ import annotations

import copyreg
import enum
import types
from collections.abc import Iterable
from hashlib import blake2b
from itertools import islice
from typing import Any

import msgspec

from actorraft.names import name_of

SCALARS = frozenset((str, bytes, bool, int, float, type(None)))
CHUNK = 1000
DIGEST_BYTES = 16

_NEW = getattr(copyreg, "__newobj__")  # noqa: B009 (unknown to type checkers)
_encode = msgspec.msgpack.Encoder().encode


def digest(value: Any) -> bytes:
    """Return 16 bytes that are equal for equal values."""
    walk = Walk()
    walk.value(value)
    return walk.result()


class Walk:
    """One walk over a value. Subclasses say what a class or a function is; here it is its name."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=DIGEST_BYTES)
        self._path: dict[int, int] = {}  # containers we are inside of, so that cycles end

    def result(self) -> bytes:
        """Return the digest of all that was walked."""
        return self._hash.digest()

    def value(self, value: Any) -> None:
        """Take in one value of any kind."""
        kind = type(value)
        if kind in SCALARS:
            self._scalar(value)
        elif isinstance(value, type):
            self.code(value)
        elif id(value) in self._path:
            self._mark("cycle", len(self._path) - self._path[id(value)])
        else:
            self._path[id(value)] = len(self._path)
            try:
                self._composite(kind, value)
            finally:
                del self._path[id(value)]

    def code(self, code: Any) -> None:
        """Take in a class or a function."""
        self._mark("code", *name_of(code))

    def _mark(self, *what: Any) -> None:
        self._hash.update(_encode(what))

    def _scalar(self, value: Any) -> None:
        try:
            self._hash.update(_encode(value))
        except (OverflowError, UnicodeEncodeError):  # an int of more than 64 bits, a lone surrogate
            self._mark("scalar", type(value).__name__, repr(value))

    def _composite(self, kind: type, value: Any) -> None:
        if kind is list or kind is tuple:
            self._mark(kind.__name__, len(value))
            self._sequence(value)
        elif kind is dict:
            self._mark("dict", len(value))
            self._sequence(value.keys())
            self._sequence(value.values())
        elif isinstance(value, set | frozenset):
            self._mark("set", *name_of(kind), len(value))
            self.unordered(value)
            if kind is not set and kind is not frozenset:
                self.attributes(getattr(value, "__dict__", {}))
        elif isinstance(value, enum.Enum):
            self._mark("enum", str(value.name))
            self.value(kind)
        elif isinstance(value, types.FunctionType):
            self.code(value)
        elif isinstance(value, types.ModuleType):
            self._mark("module", value.__name__)
        else:
            self._object(kind, value)

    def _sequence(self, values: Iterable[Any]) -> None:
        source = iter(values)
        while chunk := list(islice(source, CHUNK)):
            if SCALARS.issuperset(map(type, chunk)):
                try:
                    self._hash.update(_encode(chunk))
                    continue
                except (OverflowError, UnicodeEncodeError):
                    pass
            self._mark("mixed", len(chunk))
            for value in chunk:
                self.value(value)

    def unordered(self, values: Iterable[Any]) -> None:
        """Take in values whose order means nothing."""
        outer, digests = self._hash, []
        for value in values:
            self._hash = blake2b(digest_size=DIGEST_BYTES)
            self.value(value)
            digests.append(self._hash.digest())
        self._hash = outer
        self._hash.update(b"".join(sorted(digests)))

    def attributes(self, attributes: dict[str, Any]) -> None:
        """Take in attributes, by name: their order is the history of an object, not its state."""
        names = sorted(attributes, key=str)
        self._mark("attributes", *map(str, names))
        self._sequence([attributes[name] for name in names])

    def _object(self, kind: type, value: Any) -> None:
        """Take in an instance as pickle would see it: how it is made, its state, its items."""
        self.value(kind)
        try:
            reduced = copyreg.dispatch_table[kind](value) if kind in copyreg.dispatch_table else value.__reduce_ex__(4)
        except Exception:
            return  # what cannot be pickled is no state; its type says all there is to say
        if isinstance(reduced, str):
            self._mark("global", reduced)
            return
        function, arguments, *rest = reduced
        if function is _NEW:
            self._sequence(arguments[1:])
        else:
            self.value(function)
            self._sequence(arguments)
        if rest and rest[0] is not None:
            self._any_state(rest[0])
        for items in rest[1:3]:
            self._mark("items")
            self._sequence(items or ())

    def _any_state(self, state: Any) -> None:
        if type(state) is dict and all(type(key) is str for key in state):
            self.attributes(state)
        elif type(state) is tuple and len(state) == 2 and type(state[1]) is dict:
            self._mark("slots")
            self._any_state(state[0])
            self._any_state(state[1])
        else:
            self.value(state)
