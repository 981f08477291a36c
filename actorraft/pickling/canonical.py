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
from collections.abc import Callable, Collection, Iterable
from hashlib import blake2b
from itertools import islice
from typing import Any

import msgspec

from actorraft.pickling.names import name_of

SCALARS = frozenset((str, bytes, bool, int, float, type(None)))
CHUNK = 1000
DIGEST_BYTES = 16
COMPOSITE_BYTES = 256
MEMBER_BYTES = 64
DEPTH_MAX = 80  # each takes up to nine frames, and all of them have to fit into what the interpreter allows
REPR_BITS_MAX = 2000  # of an int; the interpreter refuses the digits of one that is much larger

_NEW = getattr(copyreg, "__newobj__")  # noqa: B009 (unknown to type checkers)
_encode = msgspec.msgpack.Encoder().encode
_SIZED = frozenset((str, bytes))


def digest(value: Any) -> bytes:
    """Return 16 bytes that are equal for equal values."""
    walk = Walk()
    walk.value(value)
    return walk.result()


class Walk:
    """One walk over a value. Subclasses say what a class or a function is; here it is its name.

    Attributes:
        depth_max: how far inside one another containers are looked into; of what is deeper only the type counts.
    """

    depth_max: float = DEPTH_MAX

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
        elif len(self._path) >= self.depth_max:
            self._mark("deeper", *name_of(kind))
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
            shown = hex(value) if type(value) is int and value.bit_length() > REPR_BITS_MAX else repr(value)
            self._mark("scalar", type(value).__name__, shown)

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


class _Enough(Exception):
    """As much was taken in as was asked for."""


class Sample(Walk):
    """A walk over the first part of a value, bounded in time and memory however large the value is.

    Equal values give equal samples: what counts is how long the encoded form of a value is, and a set counts as a whole
    or not at all, for its order means nothing.

    Args:
        bytes_max: of the encoded form; an object counts COMPOSITE_BYTES more, a member of a set MEMBER_BYTES, which is
            about what they cost.
    """

    def __init__(self, bytes_max: int) -> None:
        super().__init__()
        self._left = bytes_max

    def take(self, values: Iterable[Any]) -> None:
        """Take in values, as far as it goes."""
        try:
            for value in values:
                self.value(value)
        except _Enough:
            pass

    def _spend(self, size_bytes: int) -> None:
        self._left -= size_bytes
        if self._left < 0:
            raise _Enough

    def _composite(self, kind: type, value: Any) -> None:
        self._spend(COMPOSITE_BYTES)
        if kind is dict:
            self._mark("dict", len(value))
            self._both_ends(len(value), value.items(), self._items)
        elif kind is list:
            self._mark("list", len(value))
            self._both_ends(len(value), value, self._sequence)
        else:
            super()._composite(kind, value)

    def _both_ends(self, count: int, values: Any, take: Callable[[Iterable[Any]], None]) -> None:
        """Take the newest values first: in what has grown large, that is where something happens."""
        if count > 2 * CHUNK:
            take(islice(reversed(values), CHUNK))
            count -= CHUNK
        take(islice(values, count))

    def _items(self, items: Iterable[tuple[Any, Any]]) -> None:
        source = iter(items)
        while chunk := list(islice(source, CHUNK)):
            self._sequence([key for key, _ in chunk])
            self._sequence([value for _, value in chunk])

    def _scalar(self, value: Any) -> None:
        kind = type(value)
        if (kind is str or kind is bytes) and len(value) > self._left:
            self._mark("cut", len(value))
            super()._scalar(value[: self._left])
            raise _Enough
        super()._scalar(value)
        self._spend(8 + (len(value) if kind is str or kind is bytes else 0))

    def _sequence(self, values: Iterable[Any]) -> None:
        source = iter(values)
        while chunk := list(islice(source, CHUNK)):
            size_bytes = 8 * len(chunk) + sum([len(value) for value in chunk if type(value) in _SIZED])
            if size_bytes <= self._left and SCALARS.issuperset(map(type, chunk)):
                super()._sequence(chunk)
                self._spend(size_bytes)
                continue
            for value in chunk:
                self.value(value)

    def unordered(self, values: Iterable[Any]) -> None:
        """Take in all of these values, or none."""
        values = values if isinstance(values, Collection) else list(values)
        self._spend(MEMBER_BYTES * len(values))
        outer = self._hash
        try:
            super().unordered(values)
        except _Enough:
            self._hash = outer
            raise
