"""RaftLog against a model that is a plain list with nothing compacted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actorraft.raft import LogEntry, RaftLog, append_entries

Terms = list[int]


@st.composite
def terms(draw: st.DrawFn, size_max: int = 10) -> Terms:
    """Terms as they can stand in a log: they never fall."""
    return sorted(draw(st.lists(st.integers(1, 4), max_size=size_max)))


def entries(held: Terms, first: int = 0) -> list[LogEntry]:
    return [LogEntry(term, f"{index}@{term}") for index, term in enumerate(held, first)]


def reference(log: list[LogEntry], prev_index: int, prev_term: int, sent: list[LogEntry]) -> bool:
    """What §5.3 says, word by word."""
    if prev_index >= len(log) or (prev_index >= 0 and log[prev_index].term != prev_term):
        return False
    for offset, entry in enumerate(sent):
        index = prev_index + 1 + offset
        if index < len(log) and log[index].term != entry.term:
            del log[index:]
        if index == len(log):
            log.append(entry)
    return True


@given(terms(), terms(), st.integers(-1, 12), st.data())
def test_append_entries_equals_the_paper_on_list_and_log(
    held: Terms, sent: Terms, prev_index: int, data: st.DataObject
) -> None:
    prev_term = data.draw(st.sampled_from([-1, 1, 2, 3, 4, *held[prev_index : prev_index + 1]]))
    log, plain, model = RaftLog(entries(held)), entries(held), entries(held)
    new = entries(sent, prev_index + 1)

    worked = reference(model, prev_index, prev_term, new)

    assert append_entries(plain, prev_index, prev_term, new) is worked
    assert append_entries(log, prev_index, prev_term, new) is worked
    assert plain == model
    assert log == model
    assert len(log) == len(model)


@given(terms(), st.data())
def test_a_compacted_log_answers_as_the_whole_one_where_it_can(held: Terms, data: st.DataObject) -> None:
    whole, cut = RaftLog(entries(held)), RaftLog(entries(held))
    first = data.draw(st.integers(0, len(held)))
    cut.compact(first)

    assert (len(cut), cut.last) == (len(whole), whole.last)
    for index in range(first, len(held)):
        assert cut[index] == whole[index]
    for index in range(max(first - 1, 0), len(held)):
        assert cut.term_at(index) == whole.term_at(index)
        for term in range(1, 5):
            assert cut.match(index, term) == whole.match(index, term)
            found, known = whole.find_by_term(index, term), cut.find_by_term(index, term)
            assert known == found if found.index >= first - 1 else known.index < first - 1


@given(terms(), terms(), st.data())
def test_appending_a_prefix_or_a_repetition_changes_nothing(held: Terms, more: Terms, data: st.DataObject) -> None:
    log = RaftLog(entries(held))
    first = data.draw(st.integers(0, len(held)))
    stop = data.draw(st.integers(first, len(held)))
    before = list(log)

    assert log.append_entries(first - 1, held[first - 1] if first else -1, before[first:stop])

    assert log == before
    assert log.conflict(first, before[first:stop]) is None


@given(terms(), st.integers(-1, 12), st.integers(0, 5))
def test_find_by_term_equals_a_walk_down_the_log(held: Terms, index: int, term: int) -> None:
    log = RaftLog(entries(held))

    walked = min(index, len(held) - 1)
    while walked >= 0 and held[walked] > term:
        walked -= 1

    assert log.find_by_term(index, term) == (held[walked] if walked >= 0 else -1, walked)


@given(terms(), st.integers(0, 500), st.data())
def test_slice_is_the_longest_prefix_within_its_bytes(held: Terms, bytes_max: int, data: st.DataObject) -> None:
    log = RaftLog([LogEntry(term, b"x" * data.draw(st.integers(0, 200))) for term in held])
    first = data.draw(st.integers(0, len(held)))

    found, size = log.slice(first, len(held), bytes_max)

    sizes = [len(entry.item) for entry in log[first:]]
    fitting = [count for count in range(len(sizes) + 1) if sum(sizes[:count]) <= bytes_max]
    expected = max(max(fitting), min(1, len(sizes)))
    assert found == log[first : first + expected]
    assert size == sum(sizes[:expected])
