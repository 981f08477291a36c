"""Values larger than one entry of the log: they come in ranges, and the command that brings the last one commits them.

A machine that takes such values has a `Ranges` in its state. Each sender has one value under way at a time; its first
range makes room for all of it, or is refused, so that no two senders who each have half of theirs wait for each other.
Ranges may be sent without waiting for answers: the log keeps their order, and where one is missing, or is of a value
that the same sender began before and gave up, the last says so by a checksum of those before it.

Shape:      a value of `size` bytes is cut every RANGE_BYTES; ranges count from 0, and the last one, which may be
            shorter, comes with the command that commits the value.
Invariant:  at most `values_max` values of at most `bytes_max` bytes are held. What is refused has changed nothing.

The other way round, `Fetches` hands out a large value in ranges: each fetch has the value as it was when it began,
whatever becomes of the state meanwhile. It is no part of the state: each node has its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from zlib import crc32

RANGE_BYTES: Final = 1 << 20
IDLE_S: Final = 30.0  # of log time without another range: after that a value under way may make room
FETCH_IDLE: Final = 16  # times as many ranges asked for as there are fetches, and none by this one; likewise
FETCHERS_MAX: Final = 1000


class RangeRefused(Exception):
    """A range is not kept, or a value is not whole; its sender sends the value again, from its first range."""


class RangeMissing(RangeRefused):
    """An earlier range of this value is not there."""


class NoRoomForRanges(RangeRefused):
    """Others' values are under way; send this one later."""


class WrongRange(RangeRefused):
    """It is no range of such a value."""


@dataclass
class _Value:
    """One that is under way. `changed_s`: log time of its last range; `crc`: of all of them, chained."""

    size: int
    changed_s: float
    crc: int = 0
    ranges: list[bytes] = field(default_factory=list)


class Ranges:
    """What has come of values that are not whole.

    Args:
        values_max: how many may be under way.
        bytes_max: of one value.
    """

    def __init__(self, values_max: int, bytes_max: int) -> None:
        self._values_max = values_max
        self._bytes_max = bytes_max
        self._values: dict[int, _Value] = {}  # by sender

    def put(self, sender: int, number: int, size: int, data: bytes, now_s: float) -> None:
        """Keep a range; the first one begins the sender's value anew.

        Raises:
            RangeRefused: it is not kept; which of its subclasses says why.
        """
        if type(sender) is not int or type(number) is not int or type(size) is not int or type(data) is not bytes:
            raise WrongRange("a range is a sender, a number, a size, all ints, and bytes")
        if not (0 <= number and (number + 1) * RANGE_BYTES < size <= self._bytes_max and len(data) == RANGE_BYTES):
            raise WrongRange(
                f"range {number} of {size} bytes has {len(data)}: all but the last have {RANGE_BYTES}, and a value has "
                f"at most {self._bytes_max}"
            )
        value = self._values.get(sender)
        if number == 0:
            others = {other: each for other, each in self._values.items() if other != sender}
            if len(others) >= self._values_max:
                others = {other: each for other, each in others.items() if each.changed_s + IDLE_S > now_s}
            if len(others) >= self._values_max:
                raise NoRoomForRanges(f"{len(others)} values are under way; send this one later")
            self._values = others
            value = self._values[sender] = _Value(size, now_s)
        elif value is None or value.size != size or len(value.ranges) != number:
            raise RangeMissing(f"range {number} of sender {sender}: what is before it is not there")
        value.ranges.append(data)
        value.crc = crc32(data, value.crc)
        value.changed_s = now_s

    def whole(self, sender: int, size: int, crc: int, last: bytes | memoryview) -> bytes:
        """Return a value, of which `last` is the last range. It stays until it is forgotten.

        Args:
            crc: the checksum of those before it.

        Raises:
            RangeMissing: there are ranges missing, or some are another value's.
            WrongRange: the last one has not the length that is left.
        """
        value = self._values.get(sender)
        ranges = value.ranges if value is not None and value.size == size else []
        if len(ranges) != (size - 1) // RANGE_BYTES:
            raise RangeMissing(f"sender {sender}: {len(ranges)} ranges of {size} bytes are there")
        if ranges and value is not None and value.crc != crc:
            raise RangeMissing(f"sender {sender}: what is there of {size} bytes is not all of this value")
        if len(last) != size - len(ranges) * RANGE_BYTES:
            raise WrongRange(f"the last range of {size} bytes has {len(last)}")
        return b"".join((*ranges, last))

    def forget(self, sender: int) -> None:
        """A value is committed, and need not be held."""
        self._values.pop(sender, None)

    # --- As a part of its machine's state ---

    def state(self) -> tuple[list[tuple[Any, ...]], list[bytes]]:
        """Return what is small, and the ranges: as they are now, whatever comes later."""
        values = self._values.items()
        small = [(sender, each.size, each.changed_s, each.crc, len(each.ranges)) for sender, each in values]
        return small, [data for _, each in values for data in each.ranges]

    def restore(self, small: Iterable[tuple[Any, ...]], ranges: Iterator[bytes]) -> None:
        """Take up what `state` gave."""
        self._values = {
            sender: _Value(size, changed_s, crc, [next(ranges) for _ in range(count)])
            for sender, size, changed_s, crc, count in small
        }

    def digest(self) -> int:
        """Return what is equal on equal replicas."""
        return crc32(repr(self.state()[0]).encode())


@dataclass
class _Fetch:
    """One that is under way. `left`: ranges that were not handed out yet; `asked`: when one was asked for last."""

    version: int
    data: memoryview
    left: dict[int, None]
    asked: int


class Fetches:
    """Values that are handed out in ranges, each as it was when its first range was asked for.

    Args:
        versions_max: how many versions are held for who fetches them; each may be fetched by many.
    """

    def __init__(self, versions_max: int) -> None:
        self._versions_max = versions_max
        self._fetches: dict[int, _Fetch] = {}  # by fetcher
        self._asked = 0  # how often a range was asked for: here is no clock

    def get(self, fetcher: int, number: int, version: int, data: memoryview) -> tuple[int, int, bytes]:
        """Return the version that this fetch is of, its size in bytes, and a range of it; the first one begins.

        Args:
            fetcher: a number of the fetch's own.
            number: of the range, from 0.
            version: that there is now.
            data: that version; bytes which nobody changes.

        Raises:
            RangeMissing: this fetch is not known, or ended; begin anew.
            NoRoomForRanges: others fetch other versions; try again later.
            WrongRange: there is no such range.
        """
        if type(fetcher) is not int or type(number) is not int:
            raise WrongRange("a fetch and a range of it are ints")
        self._asked += 1
        if number == 0:
            self._make_room(fetcher, version)
            count = -(-len(data) // RANGE_BYTES)
            self._fetches[fetcher] = _Fetch(version, data, dict.fromkeys(range(count)), self._asked)
        fetch = self._fetches.get(fetcher)
        if fetch is None:
            raise RangeMissing(f"fetch {fetcher} is not known here, or has ended")
        start = number * RANGE_BYTES
        if not 0 <= start < len(fetch.data):
            raise WrongRange(f"there is no range {number} of {len(fetch.data)} bytes")
        fetch.asked = self._asked
        fetch.left.pop(number, None)
        if not fetch.left:
            del self._fetches[fetcher]
        return fetch.version, len(fetch.data), bytes(fetch.data[start : start + RANGE_BYTES])

    def _make_room(self, fetcher: int, version: int) -> None:
        self._fetches.pop(fetcher, None)
        if self._is_full(version):
            since = self._asked - FETCH_IDLE * len(self._fetches)
            self._fetches = {key: each for key, each in self._fetches.items() if each.asked > since}
            if self._is_full(version):
                raise NoRoomForRanges(f"{len(self._fetches)} fetches are under way; try again later")

    def _is_full(self, version: int) -> bool:
        versions = {each.version for each in self._fetches.values()}
        return len(versions | {version}) > self._versions_max or len(self._fetches) >= FETCHERS_MAX

    def __reduce__(self) -> tuple[Any, ...]:
        return Fetches, (self._versions_max,)


def cut(data: bytes) -> list[bytes]:
    """Return the ranges of a value, the last one last."""
    return [data[start : start + RANGE_BYTES] for start in range(0, len(data), RANGE_BYTES)]


def checksum(ranges: Iterable[bytes | memoryview]) -> int:
    """Return what tells the ranges before a value's last one from those of another value."""
    crc = 0
    for data in ranges:
        crc = crc32(data, crc)
    return crc
