"""Values that come in ranges: in order, whole or not at all, and never more of them than their bound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachines import ranges
from statemachines.ranges import IDLE_S, NoRoomForRanges, RangeMissing, Ranges, WrongRange


@pytest.fixture(autouse=True, scope="module")
def short_ranges() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "RANGE_BYTES", 4)
        yield


def fill(some: Ranges, sender: int, value: bytes, now_s: float = 0.0) -> bytes:
    """Put all but the last range; return that."""
    *parts, last = ranges.cut(value)
    for number, part in enumerate(parts):
        some.put(sender, number, len(value), part, now_s)
    return last


def whole(some: Ranges, sender: int, value: bytes) -> bytes:
    """Ask for a value whose ranges have gone ahead."""
    *parts, last = ranges.cut(value)
    return some.whole(sender, len(value), ranges.checksum(parts), last)


def test_a_value_is_whole_when_its_last_range_comes_and_stays_until_it_is_forgotten() -> None:
    some = Ranges(2, 100)
    value = bytes(range(30))
    last = fill(some, 7, value)
    crc = ranges.checksum(ranges.cut(value)[:-1])
    assert some.whole(7, 30, crc, last) == value == some.whole(7, 30, crc, memoryview(last))
    some.forget(7)
    with pytest.raises(RangeMissing):
        some.whole(7, 30, crc, last)
    assert some.whole(7, 3, 0, b"abc") == b"abc", "of one range there is nothing to wait for"


def test_a_range_that_comes_without_those_before_it_is_refused_and_the_first_begins_anew() -> None:
    some = Ranges(2, 100)
    for number in (0, 1):
        some.put(7, number, 20, b"abcd", 0.0)
    for number, size in ((1, 20), (3, 20), (2, 21)):
        with pytest.raises(RangeMissing):
            some.put(7, number, size, b"efgh", 0.0)
    with pytest.raises(RangeMissing):
        some.whole(7, 20, ranges.checksum([b"abcd"] * 2), b"abcd")
    fill(some, 7, b"another value")
    assert whole(some, 7, b"another value") == b"another value"


def test_ranges_of_a_value_that_was_given_up_are_not_taken_for_another_ones() -> None:
    some = Ranges(2, 100)
    some.put(7, 0, 10, b"aaaa", 0.0)  # all that came of "aaaaaaaaaa",
    some.put(7, 1, 10, b"bbbb", 0.0)  # and of "bbbbbbbbbb" all but this was lost
    with pytest.raises(RangeMissing, match="not all of this value"):
        whole(some, 7, b"bbbbbbbbbb")
    fill(some, 7, b"bbbbbbbbbb")
    assert whole(some, 7, b"bbbbbbbbbb") == b"bbbbbbbbbb"


@pytest.mark.parametrize(
    ("number", "size", "data"),
    [(0, 101, b"abcd"), (0, 4, b"abcd"), (1, 8, b"abcd"), (-1, 20, b"abcd"), (0, 20, b"abc"), (0, 20, b"abcde"),
     (0, 20, "abcd"), (0.0, 20, b"abcd"), (True, 20, b"abcd")],
)  # fmt: skip
def test_what_is_no_range_of_a_value_is_refused(number: Any, size: Any, data: Any) -> None:
    some = Ranges(2, 100)
    with pytest.raises(WrongRange):
        some.put(7, number, size, data, 0.0)
    assert some.state() == ([], [])


def test_senders_beyond_the_bound_wait_and_one_who_died_makes_room_in_the_end() -> None:
    some = Ranges(2, 100)
    fill(some, 1, b"of the one who died")
    fill(some, 2, b"of the second", 5.0)
    before = some.state()
    with pytest.raises(NoRoomForRanges):
        some.put(3, 0, 20, b"abcd", 10.0)
    assert some.state() == before
    some.put(2, 0, 20, b"abcd", 10.0)  # one who has room begins anew in it
    fill(some, 2, b"of the second", IDLE_S)
    some.put(3, 0, 20, b"abcd", IDLE_S)
    with pytest.raises(RangeMissing):
        some.put(1, 1, 19, b"abcd", IDLE_S)
    assert whole(some, 2, b"of the second") == b"of the second"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 24), st.floats(0, 99)), max_size=60))
def test_whatever_comes_it_stays_within_its_bound_and_a_restored_one_goes_on_alike(calls: list[Any]) -> None:
    some = Ranges(3, 20)
    for sender, number, size, now_s in calls:
        small, there = some.state()
        other = Ranges(3, 20)
        other.restore(small, iter(there))
        said = []
        for each in (some, other):
            try:
                said.append(each.put(sender, number, size, bytes([sender] * 4), now_s))
            except ranges.RangeRefused as error:
                said.append((type(error), str(error)))
        assert said[0] == said[1]
        assert some.state() == other.state()
        assert some.digest() == other.digest()
        assert len(some.state()[0]) <= 3
        assert sum(map(len, some.state()[1])) < 3 * 20
