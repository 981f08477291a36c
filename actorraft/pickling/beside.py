"""Arrays as they are, beside the small values that they come with: no pickle, and no copy where they arrive.

A call or a result that holds NumPy arrays, and otherwise plain data only, goes as one head that says what it is, and
then the bytes of each array. Where it arrives an array is a view of the bytes that came: read-only, unless the one
that was sent is a result that its caller may write to. Whoever keeps a small array of a large message keeps a copy of
it, so that it does not hold on to all the others.

Shape:      four bytes, the length of the head, little-endian; the head, a msgpack array [value, arrays], where arrays
            is a list of [dtype, shape, offset, writable], and each array in the value is an Ext of its position; then,
            at a multiple of 16 bytes, the bytes of each in C order. Offsets count from the end of the head.
Invariant:  what does not decode raises UsageError, on every node alike.
Not here:   arrays of objects, records, subclasses, and what stands between other values than plain data: pickles.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from typing import Any, Final

import msgspec

from actorraft.errors import UsageError
from actorraft.pickling.canonical import SCALARS

LOOK_MAX: Final = 64  # values of a container that are looked at to find whether there is an array among them
VALUES_MAX: Final = 10_000  # beside the arrays; more of them go in a pickle, which C walks through
DEPTH_MAX: Final = 16
ALIGNED_BYTES: Final = 16
_ARRAY, _TUPLE = 0, 1  # codes of an Ext in a head
_PAD: Final = b"\xc0"
_HEAD: Final = struct.Struct("<I")
_DTYPE: Final = re.compile(r"\|b1|[<|][iu]1|<[iu][248]|<f[248]|<c8|<c16")
_Ext = msgspec.msgpack.Ext
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class _NotPlain(Exception):
    """There is something in it that only a pickle takes."""


def holds_array(values: Any, depth: int = 2) -> bool:
    """Whether there is an array among these values, as far as a quick look shows; False means a pickle."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and _holds(values, numpy.ndarray, depth)


def _holds(values: Any, ndarray: type, depth: int) -> bool:
    for number, value in enumerate(values):
        if number == LOOK_MAX:
            return False
        kind = type(value)
        if kind is ndarray:
            return True
        is_container = kind is dict or kind is list or kind is tuple
        if depth and is_container and _holds(value.values() if kind is dict else value, ndarray, depth - 1):
            return True
    return False


def dumps(value: Any) -> bytes | None:
    """Encode a value with arrays in it; None: it is not only arrays and plain data, and goes in a pickle."""
    import numpy

    arrays: list[Any] = []
    try:
        plain = _Plain(arrays, numpy.ndarray).value(value, DEPTH_MAX)
        infos: list[Any] = []
        parts: list[Any] = []
        offset = 0
        for array in arrays:
            data = numpy.asarray(array, order="C")
            infos.append((data.dtype.str, data.shape, offset, bool(array.flags.writeable)))
            pad = -data.nbytes % ALIGNED_BYTES
            parts += (data.reshape(-1).view(numpy.uint8).data if data.nbytes else b"", bytes(pad))
            offset += data.nbytes + pad
        head = _encode((plain, infos))
    except (_NotPlain, OverflowError, UnicodeEncodeError):
        return None
    head += _PAD * (-(len(head) + _HEAD.size) % ALIGNED_BYTES)  # so that the arrays begin at a multiple
    return b"".join((_HEAD.pack(len(head)), head, *parts))


class _Plain:
    """Takes plain data as msgpack has it, arrays out of it, and tuples by their name."""

    def __init__(self, arrays: list[Any], ndarray: type) -> None:
        self._arrays = arrays
        self._ndarray = ndarray
        self._left = VALUES_MAX

    def value(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in SCALARS:
            return value
        self._left -= 1
        if depth == 0 or self._left < 0:
            raise _NotPlain
        if kind is self._ndarray:
            if not _DTYPE.fullmatch(value.dtype.str):
                raise _NotPlain
            self._arrays.append(value)
            return _Ext(_ARRAY, (len(self._arrays) - 1).to_bytes(4, "little"))
        if kind is dict and all(type(key) is str for key in value):
            self._left -= len(value)
            return {key: self.value(each, depth - 1) for key, each in value.items()}
        if kind is list or kind is tuple:
            self._left -= len(value)
            items = [self.value(each, depth - 1) for each in value]
            return items if kind is list else _Ext(_TUPLE, _encode(items))
        raise _NotPlain


def loads(data: Any, *, writable: bool = False) -> Any:
    """Return what was encoded; its arrays are views of `data`.

    Args:
        data: the bytes.
        writable: those that were writable are so again, in memory of their own.

    Raises:
        UsageError: these bytes are no such value.
    """
    try:
        return _Loaded(data, writable).load()
    except (ValueError, TypeError, IndexError, struct.error, RecursionError, OverflowError) as error:
        raise UsageError(f"a value with arrays cannot be read: {error}") from error


class _Loaded:
    def __init__(self, data: Any, writable: bool) -> None:
        self._data = data
        self._writable = writable
        (length,) = _HEAD.unpack_from(data)
        self._base = _HEAD.size + length
        head = data[_HEAD.size : self._base].rstrip(_PAD)  # which a head never ends with: its last value is a bool
        self._value, self._infos = _decode(head)
        self._arrays: dict[int, Any] = {}

    def load(self) -> Any:
        return self._with_arrays(self._value, DEPTH_MAX + 1)

    def _with_arrays(self, value: Any, depth: int) -> Any:
        if depth == 0:
            raise ValueError("it is too deeply nested")
        kind = type(value)
        if kind is list:
            return [self._with_arrays(each, depth - 1) for each in value]
        if kind is dict:
            return {key: self._with_arrays(each, depth - 1) for key, each in value.items()}
        if kind is not _Ext:
            return value
        if value.code == _TUPLE:
            return tuple(self._with_arrays(each, depth - 1) for each in _decode(value.data))
        if value.code != _ARRAY:
            raise ValueError(f"there is an extension {value.code} in it")
        return self._array(int.from_bytes(value.data, "little"))

    def _array(self, position: int) -> Any:
        if position not in self._arrays:
            self._arrays[position] = self._view(*self._infos[position])
        return self._arrays[position]

    def _view(self, dtype: str, shape: list[int], offset: int, was_writable: bool) -> Any:
        import numpy

        if type(dtype) is not str or not _DTYPE.fullmatch(dtype):
            raise ValueError(f"arrays of {dtype!r} do not go this way")
        if any(type(each) is not int or each < 0 for each in (*shape, offset)):
            raise ValueError(f"no shape: {shape!r}")
        count, start = math.prod(shape), self._base + offset
        view = numpy.frombuffer(self._data, dtype, count, start) if count else numpy.empty(0, dtype)
        view = view.reshape(shape)
        if self._writable and was_writable:
            return view.copy()
        if 2 * view.nbytes < len(self._data):
            # Who keeps it does not keep the rest of the message; nor can it be made writable, which it could not after
            # a restore either.
            view = numpy.frombuffer(view.tobytes(), dtype).reshape(shape) if count else view
        view.flags.writeable = False
        return view
