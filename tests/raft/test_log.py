"""RaftLog as a sequence by absolute index, and `append_entries` on any list."""

from __future__ import annotations

from typing import Any

import pytest

from actorraft.raft import NO_ENTRY, Compacted, EntryId, LogEntry, RaftLog, append_entries
from tests.helpers import entries_of, log_of


def compacted_log() -> RaftLog:
    """Entries 3, 4 and 5 of terms 2, 2 and 3; what lies below is compacted and ended in term 1."""
    return log_of(2, 2, 3, first_index=3, previous_term=1)


# -- a sequence


def test_an_empty_log_ends_before_the_first_entry() -> None:
    log = RaftLog()

    assert (len(log), log.first_index, log.last_index, log.last, list(log)) == (0, 0, -1, NO_ENTRY, [])
    assert not log


def test_len_is_the_last_index_plus_one_also_after_compaction() -> None:
    log = compacted_log()

    assert (len(log), log.first_index, log.last_index, log.last) == (6, 3, 5, EntryId(3, 5))


def test_entries_are_found_by_absolute_index_and_from_the_end() -> None:
    log = compacted_log()

    assert [log[3].term, log[5].term, log[-1].term, log[-3].term] == [2, 3, 3, 2]
    for index in (6, 99, -7):
        with pytest.raises(IndexError, match="out of range"):
            log[index]


@pytest.mark.parametrize("index", [0, 2, -4, -6])
def test_a_compacted_index_raises_compacted(index: int) -> None:
    log = compacted_log()

    with pytest.raises(Compacted) as raised:
        log[index]

    assert raised.value.first_index == 3
    assert raised.value.index in (0, 2)


def test_slices_are_by_absolute_index_and_what_is_left_out_means_what_is_held() -> None:
    log = compacted_log()
    held = entries_of(2, 2, 3, first=3)

    assert log[:] == held
    assert log[4:] == held[1:]
    assert log[3:5] == held[:2]
    assert log[-1:] == held[2:]
    assert log[5:3] == []
    assert log[::-1] == held[::-1]
    assert log[::2] == [held[1]]  # absolute: 4
    with pytest.raises(Compacted):
        log[1:5]


def test_iteration_and_equality_cover_what_is_held() -> None:
    log = compacted_log()

    assert list(log) == entries_of(2, 2, 3, first=3)
    assert list(reversed(log)) == list(log)[::-1]
    assert log == compacted_log()
    assert log == list(log)
    assert log != log_of(2, 2, 3)
    assert log != 5
    assert log[4] in log
    assert eval(repr(log), {"RaftLog": RaftLog, "LogEntry": LogEntry}) == log


# -- questions


def test_term_at_knows_the_last_compacted_entry_too() -> None:
    log = compacted_log()

    assert [log.term_at(index) for index in (-1, 2, 3, 5)] == [-1, 1, 2, 3]
    with pytest.raises(Compacted):
        log.term_at(1)
    with pytest.raises(IndexError):
        log.term_at(6)


@pytest.mark.parametrize(
    ("index", "term", "matches"),
    [(-1, 7, True), (1, 1, False), (2, 1, True), (2, 2, False), (4, 2, True), (4, 3, False), (6, 3, False)],
)
def test_match_is_whether_the_log_is_known_to_hold_an_entry(index: int, term: int, matches: bool) -> None:
    assert compacted_log().match(index, term) is matches


@pytest.mark.parametrize(
    ("first", "terms", "expected"),
    [
        (3, (), None),
        (3, (2,), None),
        (3, (2, 2, 3), None),
        (3, (2, 2, 3, 3), 6),
        (3, (2, 4), 4),
        (5, (4, 4), 5),
        (6, (4,), 6),
        (6, (), None),
    ],
)
def test_conflict_is_the_first_index_that_is_missing_or_differs(
    first: int, terms: tuple[int, ...], expected: int | None
) -> None:
    assert compacted_log().conflict(first, entries_of(*terms, first=first)) == expected


def test_conflict_refuses_to_leave_a_hole() -> None:
    with pytest.raises(AssertionError, match="hole"):
        compacted_log().conflict(7, entries_of(3))


@pytest.mark.parametrize(
    ("index", "term", "expected"),
    [
        (5, 3, EntryId(3, 5)),
        (5, 2, EntryId(2, 4)),
        (9, 9, EntryId(3, 5)),
        (4, 1, EntryId(1, 2)),
        (5, 0, EntryId(-1, 1)),
        (1, 1, EntryId(-1, 1)),
        (-1, 0, EntryId(-1, -1)),
    ],
)
def test_find_by_term_skips_entries_of_later_terms(index: int, term: int, expected: EntryId) -> None:
    assert compacted_log().find_by_term(index, term) == expected


def test_slice_is_bounded_in_bytes_but_never_empty() -> None:
    log = RaftLog([LogEntry(1, b"x" * size) for size in (10, 10, 100, 1)] + [LogEntry(1, "no bytes")])

    assert log.slice(0, 5, 20) == (log[0:2], 20)
    assert log.slice(0, 5, 19) == (log[0:1], 10)
    assert log.slice(2, 5, 5) == (log[2:3], 100)
    assert log.slice(3, 5, 1000) == (log[3:5], 65)
    assert log.slice(5, 5, 9) == ([], 0)
    log.compact(2)
    with pytest.raises(Compacted):
        log.slice(1, 3, 9)


# -- changes


def test_append_returns_the_index() -> None:
    log = compacted_log()

    assert log.append(LogEntry(4, b"x")) == 6
    assert log.last == EntryId(4, 6)


def test_append_entries_passes_over_a_compacted_prefix() -> None:
    log = compacted_log()

    assert log.append_entries(-1, -1, entries_of(1, 1))  # all compacted
    assert log.append_entries(-1, -1, entries_of(1, 1, 1))
    assert log.append_entries(0, 1, entries_of(1, 1, 2, 2, 3, 3, first=1))
    assert list(log) == entries_of(2, 2, 3, 3, first=3)
    assert not log.append_entries(0, 1, entries_of(1, 9, 2, first=1))  # contradicts what was committed
    assert not log.append_entries(-2, 0, [])


def test_compact_keeps_the_term_below() -> None:
    log = log_of(1, 1, 2, 3)

    log.compact(3)
    log.compact(1)

    assert (log.first_index, log.previous_term, list(log)) == (3, 2, entries_of(3, first=3))
    log.compact(4)
    assert (log.first_index, log.previous_term, list(log), len(log)) == (4, 3, [], 4)
    with pytest.raises(AssertionError):
        log.compact(9)


def test_reset_leaves_nothing_but_the_snapshot_point() -> None:
    log = log_of(1, 1, 2)

    log.reset(EntryId(7, 40))

    assert (len(log), log.first_index, log.last, list(log)) == (41, 41, EntryId(7, 40), [])
    assert log.append(LogEntry(8, b"x")) == 41


# -- on a list or a log alike

APPENDS: list[tuple[tuple[int, ...], int, int, tuple[int, ...], bool, tuple[int, ...]]] = [
    # held, prev_index, prev_term, sent, worked, then
    ((), -1, -1, (), True, ()),
    ((), -1, -1, (1,), True, (1,)),
    ((), 0, 1, (1,), False, ()),
    ((1,), 0, 1, (1, 2), True, (1, 1, 2)),
    ((1,), 0, 2, (1,), False, (1,)),
    ((1,), 1, 1, (1,), False, (1,)),
    ((1, 1, 1), -1, -1, (1,), True, (1, 1, 1)),
    ((1, 1, 1), -1, -1, (), True, (1, 1, 1)),
    ((1, 1, 1), 0, 1, (2,), True, (1, 2)),
    ((1, 2, 2), 1, 2, (2, 3), True, (1, 2, 2, 3)),
    ((1, 2, 2), 1, 2, (3,), True, (1, 2, 3)),
    ((1, 2, 2), -2, -1, (3,), False, (1, 2, 2)),
]


@pytest.mark.parametrize("kind", [list, RaftLog])
@pytest.mark.parametrize(("held", "prev_index", "prev_term", "sent", "worked", "then"), APPENDS)
def test_append_entries_keeps_the_log_matching_property(
    kind: Any,
    held: tuple[int, ...],
    prev_index: int,
    prev_term: int,
    sent: tuple[int, ...],
    worked: bool,
    then: tuple[int, ...],
) -> None:
    log = kind(entries_of(*held))
    entries = entries_of(*sent, first=prev_index + 1)

    assert append_entries(log, prev_index, prev_term, entries) is worked
    assert list(log) == entries_of(*then)
    assert append_entries(log, prev_index, prev_term, entries) is worked
    assert list(log) == entries_of(*then)
