"""A leader's view of one follower: its states, its window, and where it looks after a rejection."""

from __future__ import annotations

import pytest

from actorraft.raft import Configuration, EntryId, Progress, ProgressState, RaftLog
from actorraft.raft.progress import next_index_after_rejection, rejection_hint
from tests.helpers import log_of


def replicating(next_index: int = 10, match_index: int = 5, **bounds: int) -> Progress:
    progress = Progress(6, **({"inflight_max": 3, "inflight_bytes_max": 100} | bounds))
    progress.match_index = match_index
    progress.become_replicate()
    for index in range(match_index + 1, next_index):
        progress.sent(index, 10)
    return progress


def test_a_new_follower_is_probed_with_one_append_at_a_time() -> None:
    progress = Progress(6, inflight_max=3, inflight_bytes_max=100)
    assert (progress.state, progress.match_index, progress.probe_sent) == (ProgressState.PROBE, -1, False)

    progress.sent(9, 10)

    assert (progress.next_index, progress.probe_sent, len(progress.inflight)) == (6, True, 0)


def test_in_replicate_the_next_append_follows_on_at_once() -> None:
    progress = replicating(next_index=6)

    progress.sent(8, 10)

    assert (progress.next_index, list(progress.inflight), progress.inflight_bytes) == (9, [(8, 10)], 10)


def test_the_window_is_bounded_in_messages_and_in_bytes() -> None:
    progress = replicating(next_index=6)
    for index in range(6, 9):
        assert progress.window_open
        progress.sent(index, 1)
    openings = [progress.window_open]

    progress.acknowledge(6, 0)
    openings.append(progress.window_open)
    progress.sent(9, 100)
    openings.append(progress.window_open)
    progress.acknowledge(9, 0)
    openings.append(progress.window_open)

    assert openings == [False, True, False, True]
    assert progress.inflight_bytes == 0


@pytest.mark.parametrize(
    ("match_index", "news", "match_then", "next_then", "inflight_then"),
    [(5, False, 5, 8, 2), (3, False, 5, 8, 2), (6, True, 6, 8, 1), (7, True, 7, 8, 0), (9, True, 9, 10, 0)],
)
def test_an_acknowledgement_raises_match_and_frees_the_window(
    match_index: int, news: bool, match_then: int, next_then: int, inflight_then: int
) -> None:
    progress = replicating(next_index=8)

    assert progress.acknowledge(match_index, 0) is news

    assert (progress.match_index, progress.next_index, len(progress.inflight)) == (match_then, next_then, inflight_then)


@pytest.mark.parametrize(
    ("rejected_index", "hint", "taken", "next_then"),
    [(5, 1, False, 10), (3, 1, False, 10), (6, 7, True, 6), (9, 1, True, 6), (10, 1, False, 10)],
)
def test_a_rejection_in_replicate_goes_back_to_what_is_known_to_match(
    rejected_index: int, hint: int, taken: bool, next_then: int
) -> None:
    progress = replicating(next_index=10)

    assert progress.reject(rejected_index, hint) is taken

    assert progress.state is (ProgressState.PROBE if taken else ProgressState.REPLICATE)
    assert (progress.next_index, progress.match_index) == (next_then, 5)


@pytest.mark.parametrize(
    ("rejected_index", "hint", "taken", "next_then"),
    [(9, 4, True, 4), (9, 12, True, 9), (9, 0, True, 3), (8, 4, False, 10), (10, 4, False, 10)],
)
def test_a_rejection_in_probe_counts_only_if_it_answers_the_probe(
    rejected_index: int, hint: int, taken: bool, next_then: int
) -> None:
    progress = Progress(10, inflight_max=3, inflight_bytes_max=100)
    progress.match_index = 2
    progress.sent(10, 10)

    assert progress.reject(rejected_index, hint) is taken

    assert (progress.next_index, progress.probe_sent) == (next_then, not taken)


def test_a_rejection_while_a_snapshot_is_sent_means_nothing() -> None:
    progress = replicating()
    progress.become_snapshot(EntryId(1, 20), Configuration())

    assert not progress.reject(7, 3)
    assert (progress.state, progress.chunk_due, progress.snapshot_offset) == (ProgressState.SNAPSHOT, True, 0)
    progress.acknowledge(20, 0)
    progress.become_replicate()
    assert progress.next_index == 21


def test_going_back_to_probe_forgets_the_window() -> None:
    progress = replicating(next_index=8)

    progress.become_probe()

    assert (progress.next_index, progress.inflight_bytes, len(progress.inflight)) == (6, 0, 0)
    assert (progress.probe_sent, progress.commit_sent) == (False, -1)
    assert "probe match=5 next=6" in repr(progress)


@pytest.mark.parametrize(
    ("leader", "follower", "next_then"),
    [
        # both sides skip whole terms; the leader's last entry is what was rejected (§5.3)
        ((1, 1, 1, 4, 4, 5), (1, 1, 1, 2, 2, 2, 3, 3), 3),
        ((1, 3, 3, 3, 5), (1, 1, 1, 1, 1), 1),
        ((1, 1, 1, 1, 1), (1, 1), 2),
        ((2, 2, 2), (), 0),
        ((1, 3, 5, 5), (1, 3, 4, 4), 2),
    ],
)
def test_one_rejection_finds_the_place_where_the_logs_may_agree(
    leader: tuple[int, ...], follower: tuple[int, ...], next_then: int
) -> None:
    leader_log, follower_log = log_of(*leader), log_of(*follower)
    rejected_index = len(leader) - 1

    hint = rejection_hint(follower_log, rejected_index, leader[-1])

    assert next_index_after_rejection(leader_log, hint, rejected_index) == next_then


def test_a_hint_below_the_leaders_log_asks_for_the_snapshot() -> None:
    leader_log = log_of(3, 3, first_index=10, previous_term=2)

    assert next_index_after_rejection(leader_log, rejection_hint(RaftLog(), 11, 3), 11) < leader_log.first_index
