"""How entries travel: batches, windows, heartbeats, what is written where, and what the leader accepts."""

from __future__ import annotations

import pytest

from actorraft.raft import (
    AppendEntries,
    AppendEntriesResponse,
    EntryId,
    LogEntry,
    ProgressState,
    ProposalRefused,
    RaftConfig,
    RaftLog,
)
from tests.helpers import (
    Cluster,
    acknowledge,
    appends_to,
    drain,
    entries_of,
    expect_quiet,
    expect_ready,
    follower_of,
    log_of,
    make_leader,
    make_server,
    settled_leader,
    take,
    voters,
)

# -- the leader's messages


def test_what_is_proposed_between_two_readies_travels_together() -> None:
    leader = settled_leader()

    for number in range(5):
        leader.propose(b"%d" % number)

    (append,) = appends_to(drain(leader), 1)
    assert [entry.item for entry in append.entries] == [b"0", b"1", b"2", b"3", b"4"]


def test_appends_follow_one_another_without_waiting_for_answers() -> None:
    leader = settled_leader()

    sent = []
    for number in range(3):
        leader.propose(b"%d" % number)
        sent += [(append.prev_index, len(append.entries)) for append in appends_to(drain(leader), 1)]

    assert sent == [(0, 1), (1, 1), (2, 1)]


def test_the_window_in_messages_stops_a_follower_that_does_not_answer() -> None:
    leader = settled_leader(config=RaftConfig(inflight_max=2))

    for number in range(5):
        leader.propose(b"%d" % number)
        drain(leader)
        acknowledge(leader, 2)
        drain(leader)

    assert len(leader.progress[1].inflight) == 2
    acknowledge(leader, 1, match_index=2)
    (append,) = appends_to(drain(leader), 1)
    assert [entry.item for entry in append.entries] == [b"2", b"3", b"4"]


def test_the_window_in_bytes_stops_a_follower_that_does_not_answer() -> None:
    leader = settled_leader(config=RaftConfig(inflight_bytes_max=250))

    for _ in range(5):
        leader.propose(b"x" * 100)
        drain(leader)

    assert leader.progress[1].inflight_bytes == 300  # the last one went over the bound, none after it


def test_an_append_is_bounded_in_bytes_and_a_larger_entry_travels_alone() -> None:
    leader = settled_leader(config=RaftConfig(append_bytes_max=100))

    for size in (60, 40, 1, 500, 99):
        leader.propose(b"x" * size)

    sizes = [[len(entry.item) for entry in append.entries] for append in appends_to(drain(leader), 1)]
    assert sizes == [[60, 40], [1], [500], [99]]


def test_a_heartbeat_finds_out_that_everything_in_flight_was_lost() -> None:
    leader = settled_leader()
    leader.propose(b"x")
    leader.propose(b"y")
    drain(leader)  # lost on its way to 1
    leader.tick(leader.config.heartbeat_ticks)
    (heartbeat,) = appends_to(drain(leader), 1)
    assert (heartbeat.prev_index, heartbeat.entries) == (2, [])
    follower = make_server(1, term=1, log=RaftLog(leader.log[:1]))
    follower.step(heartbeat)

    (answer,) = drain(follower)
    leader.step(answer)

    (again,) = appends_to(drain(leader), 1)
    assert (again.prev_index, [entry.item for entry in again.entries]) == (0, [b"x", b"y"])


def test_a_probe_is_repeated_only_by_heartbeats_and_without_entries() -> None:
    leader = make_leader()
    leader.propose(b"x" * 1000)
    expect_ready(leader, entries_from=1, entries=[leader.log[1]])

    leader.tick(leader.config.heartbeat_ticks)

    assert [(append.prev_index, append.entries) for append in appends_to(drain(leader), 1)] == [(-1, [])]


def test_a_commit_is_told_at_once_and_once() -> None:
    leader = settled_leader()
    leader.propose(b"x")
    drain(leader)

    acknowledge(leader, 1)
    told = drain(leader)
    acknowledge(leader, 2)
    told_later = drain(leader)

    assert [(append.commit_index, append.entries) for append in appends_to(told, 1)] == [(1, [])]
    assert [(append.commit_index, append.entries) for append in appends_to(told, 2)] == [(1, [])]
    assert told_later == []


def test_an_acknowledgement_beyond_the_leaders_log_is_impossible_and_ignored() -> None:
    leader = settled_leader()

    acknowledge(leader, 1, 2, match_index=77)

    assert (leader.commit_index, leader.progress[1].match_index) == (0, 0)


def test_answers_of_strangers_are_ignored() -> None:
    leader = settled_leader()

    acknowledge(leader, 9)
    leader.step(AppendEntriesResponse(9, 0, 1, False, -1))

    assert 9 not in leader.progress
    expect_quiet(leader)


# -- the follower's answers


def test_answers_that_wait_for_the_same_write_are_merged() -> None:
    server = follower_of(1, 1)
    for index in range(3):
        server.step(AppendEntries(1, 0, 1, index - 1, 1 if index else -1, entries_of(1, first=index), -1, 5 + index))

    expect_ready(
        server,
        entries_from=0,
        entries=entries_of(1, 1, 1),
        messages_after_persist=[AppendEntriesResponse(0, 1, 1, True, 2, 7)],
    )


def test_a_rejection_is_never_merged() -> None:
    server = follower_of(1, 1)
    server.step(AppendEntries(1, 0, 1, -1, -1, entries_of(1), -1, 1))
    server.step(AppendEntries(1, 0, 1, 7, 1, [], -1, 2))
    server.step(AppendEntries(1, 0, 1, 0, 1, entries_of(1, first=1), -1, 3))

    assert [message.success for message in drain(server)] == [True, False, True]  # type: ignore[union-attr]


def test_an_append_that_begins_below_a_snapshot_is_taken_from_there_on() -> None:
    log = log_of(2, first_index=5, previous_term=2)
    server = follower_of(1, 2, log=log, snapshot_id=EntryId(2, 4))

    server.step(AppendEntries(1, 0, 2, 2, 1, entries_of(2, 2, 2, 2, first=3), 9))

    assert len(server.log) == 7
    assert drain(server)[-1] == AppendEntriesResponse(0, 1, 2, True, 6)
    assert server.commit_index == 6
    server.step(AppendEntries(1, 0, 2, -1, -1, [], 9))
    assert drain(server)[-1] == AppendEntriesResponse(0, 1, 2, True, 4)


def test_a_committed_entry_is_never_replaced() -> None:
    server = follower_of(1, 2)
    server.step(AppendEntries(1, 0, 2, -1, -1, entries_of(1, 1), 1))

    with pytest.raises(AssertionError, match="is committed"):
        server.step(AppendEntries(1, 0, 2, 0, 1, entries_of(2, first=1), 1))


# -- what is written


def test_entries_are_written_once() -> None:
    server = follower_of(1, 1)
    message = AppendEntries(1, 0, 1, -1, -1, entries_of(1, 1), -1)
    server.step(message)
    assert take(server).entries == entries_of(1, 1)

    server.step(message)

    ready = take(server)
    assert (ready.entries_from, ready.entries) == (-1, [])


def test_replaced_entries_are_not_counted_as_durable() -> None:
    """A write is under way when its entries are replaced: finishing it says nothing about the new ones."""
    server = follower_of(1, 1)
    server.step(AppendEntries(1, 0, 1, -1, -1, entries_of(1, 1, 1), -1))
    ready = server.ready()

    server.step(AppendEntries(2, 0, 2, 0, 1, entries_of(2, 2, first=1), -1))
    server.advance(ready)

    assert server.effects.persisted_index == 0
    again = server.ready()
    assert (again.entries_from, again.entries) == (1, entries_of(2, 2, first=1))
    server.advance(again)
    assert server.effects.persisted_index == 2


def test_what_was_durable_and_is_replaced_is_not_durable_any_more() -> None:
    """Else, once it leads, it would count itself for entries that its disk does not have yet."""
    server = follower_of(1, 1, log=log_of(1, 1, 1, 1))

    server.step(AppendEntries(2, 0, 2, 0, 1, entries_of(2, first=1), -1))
    assert server.effects.persisted_index == 0
    take(server)
    assert server.effects.persisted_index == 1
    server.become_leader_now(3)

    assert (server.log.last_index, server.effects.persisted_index) == (2, 1)


def test_a_ready_must_be_advanced_before_the_next() -> None:
    server = follower_of(1, 1)
    server.step(AppendEntries(1, 0, 1, -1, -1, entries_of(1), -1))
    ready = server.ready()

    with pytest.raises(AssertionError, match="not been advanced"):
        server.ready()
    server.advance(ready)
    with pytest.raises(AssertionError):
        server.advance(ready)


def test_events_may_be_stepped_while_a_write_is_under_way() -> None:
    leader = make_leader(size=1)
    leader.propose(b"x")
    ready = leader.ready()
    leader.propose(b"y")

    leader.advance(ready)

    assert leader.commit_index == 1
    drain(leader)
    assert leader.commit_index == 2


def test_state_changed_is_said_once_for_each_change() -> None:
    server = make_server()
    server.step(AppendEntries(1, 0, 1, -1, -1, [], -1))
    assert take(server).state_changed

    server.step(AppendEntries(1, 0, 1, -1, -1, [], -1))

    assert not take(server).state_changed


# -- bounded memory


def test_uncommitted_bytes_are_bounded_until_they_are_applied() -> None:
    """Committed is not enough: what the executor has not reported back still takes room."""
    leader = settled_leader(config=RaftConfig(uncommitted_bytes_max=100))
    leader.propose(b"x" * 90)
    with pytest.raises(ProposalRefused, match="busy"):
        leader.propose(b"x" * 11)
    leader.propose(b"x" * 10)
    ready = take(leader)
    acknowledge(leader, 1)
    ready = take(leader)
    assert [entry.item for entry in ready.committed] == [b"x" * 90, b"x" * 10]
    with pytest.raises(ProposalRefused, match="busy"):
        leader.propose(b"x")

    leader.applied(1)

    assert (leader.last_applied, leader.unapplied_bytes) == (1, 10)
    leader.propose(b"x" * 90)
    leader.applied(0)
    assert leader.last_applied == 1


def test_a_single_item_above_the_bound_is_taken_when_nothing_else_waits() -> None:
    leader = settled_leader(config=RaftConfig(uncommitted_bytes_max=100))

    assert leader.propose(b"x" * 500) == 1
    with pytest.raises(ProposalRefused, match="busy"):
        leader.propose(b"")


def test_configurations_and_items_of_any_kind() -> None:
    leader = settled_leader()

    assert leader.log[leader.propose("x=1")] == LogEntry(1, "x=1")
    assert leader.log[leader.propose(None)] == LogEntry(1, None)
    with pytest.raises(ValueError, match="change_membership"):
        leader.propose(voters(0, 1))


def test_a_follower_that_never_reads_does_not_stop_the_others() -> None:
    cluster = Cluster(3)
    cluster.elect(0)
    cluster.drop(lambda message: message.dest == 2)
    for number in range(1000):
        cluster.propose(0, b"%d" % number)
        cluster.settle()

    assert cluster[1].commit_index == cluster[0].commit_index == 1000
    assert len(cluster[0].progress[2].inflight) == cluster.config.inflight_max


def test_every_log_ends_equal_over_a_link_that_loses_every_third_message() -> None:
    cluster = Cluster(3)
    cluster.elect(0)
    seen = [0]

    def every_third(message: object) -> bool:
        seen[0] += 1
        return seen[0] % 3 == 0

    cluster.drop(every_third)
    for number in range(50):
        if cluster.leaders():
            cluster.propose(cluster.leaders()[-1], b"%d" % number)
        cluster.tick(2)
    cluster.heal()
    cluster.tick(100)

    assert cluster[0].log == cluster[1].log == cluster[2].log
    assert cluster.machines[0] == cluster.machines[1] == cluster.machines[2]
    assert {progress.state for progress in cluster.expect_leader().progress.values()} == {ProgressState.REPLICATE}


def test_an_answer_that_waits_for_the_write_does_not_outlive_the_entries_it_speaks_of() -> None:
    """Two leaders' messages in one batch: the disk never holds what the older one would be told (simulator, seed 2708)."""
    follower = make_server(0, 3)
    follower.step(AppendEntries(1, 0, 1, -1, -1, [LogEntry(1, "a"), LogEntry(1, "b")], -1))
    follower.step(AppendEntries(2, 0, 2, -1, -1, [LogEntry(2, "c")], -1))

    answers = [message for message in follower.ready().messages_after_persist if message.dest == 1]

    assert answers == []


# -- telling of a commit with the next append


def test_a_leader_that_tells_commits_along_says_nothing_until_the_next_append() -> None:
    leader = settled_leader(commit_along=True)
    leader.propose(b"x")
    drain(leader)

    acknowledge(leader, 1, 2)
    ready = take(leader)
    assert (ready.messages, ready.messages_after_persist, ready.commit_untold) == ([], [], True)
    expect_quiet(leader)

    leader.propose(b"y")
    (append,) = appends_to(drain(leader), 1)
    assert append.commit_index == leader.commit_index == leader.log.last_index - 1


def test_a_new_leader_tells_its_first_commit_at_once_also_along() -> None:
    leader = make_leader(commit_along=True)
    drain(leader)

    acknowledge(leader, 1)

    told = drain(leader)
    assert [(append.dest, append.commit_index) for append in told if isinstance(append, AppendEntries)] == [
        (1, leader.log.last_index),
        (2, leader.log.last_index),
    ]


def test_a_driver_has_followers_told_where_no_append_follows_and_only_once() -> None:
    leader = settled_leader(commit_along=True)
    leader.propose(b"x")
    drain(leader)
    acknowledge(leader, 1, 2)
    drain(leader)

    leader.tell_commit()
    told = drain(leader)
    assert [
        (append.dest, append.entries, append.commit_index) for append in told if isinstance(append, AppendEntries)
    ] == [
        (1, [], leader.commit_index),
        (2, [], leader.commit_index),
    ]
    leader.tell_commit()
    assert drain(leader) == []


def test_what_the_executor_needs_to_go_on_does_not_wait_for_what_it_has_not_applied() -> None:
    """A leader that held at a command refused the very entry that decides it, for ever (simulator, seed 306)."""
    leader = settled_leader(config=RaftConfig(uncommitted_bytes_max=100))
    leader.propose(b"x" * 90)

    with pytest.raises(ProposalRefused, match="busy"):
        leader.propose(b"y" * 20)

    assert leader.log[leader.propose(b"z" * 20, bounded=False)].item == b"z" * 20
