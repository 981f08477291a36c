"""The table that makes a repeated command apply once."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from actorraft.codec import Commands
from actorraft.node.session_table import Admission, Sessions


def frame(first: int, count: int = 1, *, client_id: int = 5, lowest: int = 0) -> Commands:
    return Commands(client_id, first, lowest, count, b"")


def opened() -> Sessions:
    sessions = Sessions(expiry_s=10.0)
    sessions.open(5, 0.0)
    return sessions


def apply(sessions: Sessions, one: Commands, results: list[Any]) -> None:
    session = sessions.admit(one, 0.0).session
    assert session is not None
    sessions.record(session, one, results, 7)


def test_the_next_frame_is_run() -> None:
    sessions = opened()
    apply(sessions, frame(0, 2), ["a", "b"])

    assert sessions.admit(frame(2), 0.0).session is not None


def test_a_repeated_frame_is_answered_from_memory() -> None:
    sessions = opened()
    apply(sessions, frame(0, 2), ["a", "b"])

    assert ["a", "b"] == sessions.admit(frame(0, 2), 0.0).repeated


def test_a_frame_that_would_leave_a_gap_changes_nothing_and_says_where_to_resume() -> None:
    """Frame 1 refused, frame 2 taken, frame 1 retried: nothing is lost, nothing twice (trap 15a)."""
    sessions = opened()

    assert 0 == sessions.admit(frame(1), 0.0).resume_from
    apply(sessions, frame(0), ["first"])
    apply(sessions, frame(1), ["second"])
    assert ["second"] == sessions.admit(frame(1), 0.0).repeated


def test_results_that_the_client_has_are_forgotten() -> None:
    sessions = opened()
    apply(sessions, frame(0), ["a"])
    apply(sessions, frame(1), ["b"])

    sessions.admit(frame(2, lowest=1), 0.0)

    assert sessions.admit(frame(0, lowest=1), 0.0) == Admission()
    assert ["b"] == sessions.admit(frame(1, lowest=1), 0.0).repeated


def test_an_unknown_session_is_refused() -> None:
    assert opened().admit(frame(0, client_id=6), 0.0).expired


def test_a_silent_session_expires_by_log_time_and_an_active_one_does_not() -> None:
    sessions = opened()
    sessions.open(6, 0.0)
    sessions.admit(frame(0, client_id=6), 9.0)

    sessions.expire(11.0)

    assert sessions.admit(frame(0, client_id=5), 11.0).expired
    assert sessions.admit(frame(0, client_id=6), 11.0).session is not None


steps = st.lists(
    st.tuples(st.sampled_from(["open", "use", "close", "restore", "wait"]), st.integers(0, 12)), max_size=60
)


@given(steps)
def test_who_is_silent_for_long_expires_whatever_was_looked_at_before(taken: list[tuple[str, int]]) -> None:
    sessions, active_s, now_s, opened_so_far = Sessions(expiry_s=10.0), dict[int, float](), 0.0, 0
    for what, number in taken:
        some = [*active_s][number % len(active_s)] if active_s else None
        if what == "wait":
            now_s += number
        elif what == "open":
            opened_so_far += 1
            sessions.open(opened_so_far, now_s)
            active_s[opened_so_far] = now_s
        elif what == "restore":
            state, sessions = sessions.state(), Sessions(expiry_s=10.0)
            sessions.restore(state)
        elif some is not None and what == "close":
            sessions.close(some)
            del active_s[some]
        elif some is not None:
            sessions.admit(frame(0, client_id=some), now_s)
            active_s[some] = now_s
        silent = [one for one, at_s in active_s.items() if at_s + 10.0 < now_s]
        assert sorted(sessions.expire(now_s)) == silent
        for one in silent:
            del active_s[one]


def test_the_table_survives_a_snapshot() -> None:
    sessions = opened()
    apply(sessions, frame(0, 2), ["a", 2])
    other = Sessions(expiry_s=10.0)

    other.restore(sessions.state())

    assert ["a", 2] == other.admit(frame(0, 2), 0.0).repeated
    assert other.admit(frame(2), 0.0).session is not None
    assert sessions.state() == other.state()
