"""Updates of a vector of float32 as bytes: whole, rounded to bfloat16, or the largest entries only.

One that is larger than an entry of the log should be goes ahead in ranges (ranges.py); what is pushed then says so.

A command whose arguments are all scalars, bytes among them, travels without a pickle, and what the machine reads is a
view of the bytes that came. bfloat16 is the upper half of a float32, taken by bits: numpy's float16 takes a hundred
times as long where numbers are small.

Shape:      two little-endian uint32, the kind and the number of entries that follow; then, WHOLE: float32 each;
            ROUNDED: the upper 16 bits of each; LARGEST: the positions, rising, as uint32, then a float32 for each.
            RANGED: of an update of so many bytes, the last range, behind its sender, as int64, and the
            checksum of the ranges before it, as uint32.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Vector = NDArray[numpy.float32]

WHOLE, ROUNDED, LARGEST, RANGED = range(4)
_HEAD: Final = struct.Struct("<II")
_RANGED: Final = struct.Struct("<IIqI")


def whole(vector: Vector) -> bytes:
    """Return the encoding of all of it, as it is."""
    return _HEAD.pack(WHOLE, vector.size) + vector.tobytes()


def rounded(vector: Vector) -> bytes:
    """Return the encoding of all of it, each number rounded to the nearest bfloat16 (to even, if two are as near)."""
    import numpy as np

    bits = vector.view(np.uint32)
    upper = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return _HEAD.pack(ROUNDED, vector.size) + upper.astype(np.uint16).tobytes()


def largest(vector: Vector, count: int) -> bytes:
    """Return the encoding of the `count` entries that are largest in size; of all, where that is no longer."""
    import numpy as np

    count = max(0, count)
    if 2 * count >= vector.size:  # which is no longer
        return whole(vector)
    places = np.argpartition(np.abs(vector), vector.size - 1 - count)[vector.size - count :]
    return _at(vector, np.sort(places))


def sparse(vector: Vector) -> bytes:
    """Return the encoding of what is not zero; of all of it, where that is shorter."""
    import numpy as np

    places = np.flatnonzero(vector)
    return _at(vector, places) if 2 * places.size < vector.size else whole(vector)


def _at(vector: Vector, places: Any) -> bytes:
    return b"".join((_HEAD.pack(LARGEST, places.size), places.astype("<u4").tobytes(), vector[places].tobytes()))


def kind_of(data: Any) -> int:
    """Return how an update is encoded: WHOLE, ROUNDED or LARGEST."""
    return int(_HEAD.unpack_from(data)[0])


def bytes_max(size: int) -> int:
    """Return how many bytes an update of so many numbers has at the most, as it is made here."""
    return _HEAD.size + 4 * size


def ranged(sender: int, size: int, crc: int, last: bytes) -> bytes:
    """Return what to push for an update of `size` bytes whose ranges, but for the last, have gone ahead.

    Args:
        crc: their checksum (ranges.py).
    """
    return _RANGED.pack(RANGED, size, sender, crc) + last


def read_ranged(data: Any) -> tuple[int, int, int, memoryview] | None:
    """Return (sender, size, checksum, last range), or None: this is all of an update."""
    if len(data) < _RANGED.size or kind_of(data) != RANGED:
        return None
    _, size, sender, crc = _RANGED.unpack_from(data)
    return sender, size, crc, memoryview(data)[_RANGED.size :]


def read(data: Any, size: int) -> Vector:
    """Return what was encoded, as a vector of `size` numbers; read-only where it is a view of `data`.

    Raises:
        ValueError: these bytes are no update of so many numbers.
    """
    import numpy as np

    if len(data) < _HEAD.size:
        raise ValueError("an update as bytes begins with its kind and its count")
    kind, count = _HEAD.unpack_from(data)
    width = {WHOLE: 4, ROUNDED: 2, LARGEST: 8}.get(kind)
    if width is None:
        raise ValueError(f"updates of kind {kind} are not known here")
    if len(data) != _HEAD.size + width * count:
        raise ValueError(f"an update of kind {kind} with {count} entries has {len(data)} bytes")
    if count != size if kind != LARGEST else count > size:
        raise ValueError(f"an update of {count} entries, for a vector of {size}")
    if kind == WHOLE:
        return np.frombuffer(data, "<f4", count, _HEAD.size)
    if kind == ROUNDED:
        return (np.frombuffer(data, "<u2", count, _HEAD.size).astype(np.uint32) << np.uint32(16)).view(np.float32)
    vector = np.zeros(size, np.float32)
    places = np.frombuffer(data, "<u4", count, _HEAD.size)
    if count and (int(places[-1]) >= size or not bool((places[1:] > places[:-1]).all())):
        raise ValueError(f"the positions of an update rise, and are below {size}")
    vector[places] = np.frombuffer(data, "<f4", count, _HEAD.size + 4 * count)
    return vector
