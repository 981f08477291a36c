"""Snapshots: cutting the log, sending chunks that are acknowledged, and what a follower does with them."""

from __future__ import annotations

from actorraft.raft import (
    AddLearner,
    AppendEntries,
    AppendEntriesResponse,
    Configuration,
    EntryId,
    InstallSnapshot,
    InstallSnapshotResponse,
    Message,
    ProgressState,
    RaftLog,
    RaftServer,
)
from tests.helpers import (
    Cluster,
    acknowledge,
    appends_to,
    committed_follower,
    drain,
    entries_of,
    expect_quiet,
    expect_ready,
    leader_with_snapshot,
    make_server,
    settled_leader,
    take,
    voters,
)


def chunks(messages: list[Message]) -> list[InstallSnapshot]:
    return [message for message in messages if isinstance(message, InstallSnapshot)]


def sending_leader() -> RaftServer:
    """A leader that has just sent follower 1 the first chunk of its snapshot at (1, 3)."""
    leader = leader_with_snapshot()
    leader.step(AppendEntriesResponse(1, 0, 2, False, -1, 1, hint_index=-1, hint_term=-1, rejected_index=3))
    assert [chunk.offset for chunk in chunks(drain(leader))] == [0]
    return leader


def chunk(
    offset: int, data: bytes, *, done: bool = False, source: int = 1, term: int = 2, index: int = 9
) -> InstallSnapshot:
    return InstallSnapshot(source, 0, term, index, 2, voters(0, 1, 2), offset, data, done)


# -- cutting the log


def test_trailing_entries_are_kept_for_followers_that_are_a_little_late() -> None:
    server = committed_follower(10)

    assert server.snapshot_taken(EntryId(1, 7), server.configuration, trailing=3) == 5

    assert (server.log.first_index, server.snapshot_id) == (5, EntryId(1, 7))
    assert server.snapshot_taken(EntryId(1, 8), server.configuration, trailing=100) == 5


def test_an_older_snapshot_of_its_own_changes_nothing() -> None:
    """One that was being taken while a newer one was installed."""
    server = committed_follower(10)
    server.snapshot_taken(EntryId(1, 7), server.configuration, trailing=0)

    assert server.snapshot_taken(EntryId(1, 4), server.configuration, trailing=0) == 8

    assert server.snapshot_id == EntryId(1, 7)


def test_the_configuration_at_an_index_is_the_last_one_at_or_below_it() -> None:
    leader = settled_leader(size=1)
    for node_id in (1, 2):
        leader.change_membership([AddLearner(node_id)])
        drain(leader)

    assert [len(leader.configuration_at(index).learners) for index in range(3)] == [0, 1, 2]
    leader.snapshot_taken(EntryId(1, 1), leader.configuration_at(1), trailing=0)
    assert [len(leader.configuration_at(index).learners) for index in (1, 2)] == [1, 2]
    assert len(leader.configuration.learners) == 2


def test_a_restart_from_a_snapshot_begins_applied_up_to_there() -> None:
    server = make_server(
        term=3, log=RaftLog(entries_of(2, first=6), first_index=6, previous_term=2), snapshot_id=EntryId(2, 5)
    )

    assert (server.commit_index, server.last_applied, len(server.log)) == (5, 5, 7)
    expect_quiet(server)


def test_trailing_entries_below_the_snapshot_are_not_applied_again() -> None:
    log = RaftLog(entries_of(1, 1, 2, first=4), first_index=4, previous_term=1)
    server = make_server(term=2, log=log, snapshot_id=EntryId(1, 5))

    server.step(AppendEntries(1, 0, 2, 6, 2, [], 6))

    ready = take(server)
    assert (ready.committed_from, ready.committed) == (6, entries_of(2, first=6))


# -- at the leader


def test_chunks_follow_each_other_as_they_are_acknowledged() -> None:
    leader = sending_leader()

    leader.step(InstallSnapshotResponse(1, 0, 2, 3, 1000))
    assert [chunk.offset for chunk in chunks(drain(leader))] == [1000]
    leader.step(InstallSnapshotResponse(1, 0, 2, 3, 1700))
    assert [chunk.offset for chunk in chunks(drain(leader))] == [1700]
    leader.step(InstallSnapshotResponse(1, 0, 2, 3, 1700, True))

    assert leader.progress[1].state is ProgressState.REPLICATE
    (append,) = appends_to(drain(leader), 1)
    assert (append.prev_index, append.prev_term, append.entries) == (3, 1, leader.log[4:])


def test_a_repeated_acknowledgement_sends_nothing_twice() -> None:
    leader = sending_leader()
    leader.step(InstallSnapshotResponse(1, 0, 2, 3, 1000))
    drain(leader)

    leader.step(InstallSnapshotResponse(1, 0, 2, 3, 1000))

    expect_quiet(leader)


def test_a_lost_chunk_is_sent_again_when_the_follower_answers_a_later_heartbeat() -> None:
    leader = sending_leader()
    acknowledge(leader, 1, match_index=-1)
    expect_quiet(leader)  # that answer may be older than the chunk

    leader.tick(leader.config.heartbeat_ticks)
    heartbeats = appends_to(drain(leader), 1)
    assert [(append.prev_index, append.entries) for append in heartbeats] == [(-1, [])]
    acknowledge(leader, 1, match_index=-1)

    assert [chunk.offset for chunk in chunks(drain(leader))] == [0]


def test_nothing_is_repeated_to_a_follower_that_does_not_answer() -> None:
    leader = sending_leader()

    for _ in range(100):
        leader.tick()
        acknowledge(leader, 2)
        assert chunks(drain(leader)) == []


def test_a_follower_that_restarted_gets_the_snapshot_from_its_start() -> None:
    leader = sending_leader()
    leader.step(InstallSnapshotResponse(1, 0, 2, 3, 1000))
    drain(leader)

    leader.step(InstallSnapshotResponse(1, 0, 2, 3, 0))

    assert [chunk.offset for chunk in chunks(drain(leader))] == [0]


def test_a_newer_snapshot_takes_over_when_the_old_one_is_gone() -> None:
    """The driver sends nothing for a snapshot that it no longer has; the next heartbeat finds out."""
    leader = sending_leader()
    acknowledge(leader, 2)
    drain(leader)
    leader.snapshot_taken(EntryId(2, 4), leader.configuration, trailing=0)
    leader.tick(leader.config.heartbeat_ticks)
    drain(leader)

    acknowledge(leader, 1, match_index=-1)

    assert [(chunk.snapshot_index, chunk.offset) for chunk in chunks(drain(leader))] == [(4, 0)]


def test_a_late_answer_about_another_snapshot_means_nothing() -> None:
    leader = sending_leader()

    leader.step(InstallSnapshotResponse(1, 0, 2, 2, 500, True))

    assert leader.progress[1].state is ProgressState.SNAPSHOT
    expect_quiet(leader)


def test_a_follower_that_turns_out_to_have_the_entries_gets_appends_again() -> None:
    leader = sending_leader()

    acknowledge(leader, 1, match_index=3)

    assert leader.progress[1].state is ProgressState.REPLICATE


def test_others_get_their_appends_meanwhile() -> None:
    cluster = Cluster(3)
    cluster.chunk_items = 1
    cluster.elect(0)
    cluster.drop(lambda message: message.dest == 2)
    cluster.propose(0, *[b"%d" % number for number in range(50)])
    cluster.settle()
    cluster.snapshot(0)
    cluster.heal()
    cluster[0].tick(cluster.config.heartbeat_ticks)
    committed = []
    for number in range(60):
        cluster.propose(0, b"more %d" % number)
        cluster.deliver()
        cluster.deliver()
        committed.append(cluster[1].commit_index)

    cluster.settle()
    assert committed[-1] - committed[0] >= 57
    assert cluster.machines[2] == cluster.machines[0]


def test_the_configuration_that_is_sent_is_that_of_the_snapshot() -> None:
    leader = sending_leader()
    acknowledge(leader, 2)
    drain(leader)
    leader.change_membership([AddLearner(3)])

    leader.step(InstallSnapshotResponse(1, 0, 2, 3, 1000))

    assert [chunk.configuration for chunk in chunks(drain(leader))] == [voters(0, 1, 2)]


# -- at the follower


def test_chunks_are_answered_with_how_far_it_got() -> None:
    server = make_server(term=2)

    server.step(chunk(0, b"abc"))
    expect_ready(
        server,
        snapshot_chunks=(chunk(0, b"abc"),),
        messages_after_persist=[InstallSnapshotResponse(0, 1, 2, 9, 3)],
        state_changed=True,
    )
    server.step(chunk(3, b"de", done=True))

    expect_ready(
        server,
        snapshot_chunks=(chunk(3, b"de", done=True),),
        install=EntryId(2, 9),
        messages_after_persist=[InstallSnapshotResponse(0, 1, 2, 9, 5, True)],
    )
    assert (server.commit_index, server.last_applied) == (9, -1)
    server.applied(9)
    assert server.last_applied == 9


def test_a_repeated_or_early_chunk_is_answered_and_not_written() -> None:
    server = make_server(term=2)
    server.step(chunk(0, b"abc"))
    drain(server)

    for offset in (0, 7):
        server.step(chunk(offset, b"xyz"))
        expect_ready(server, messages_after_persist=[InstallSnapshotResponse(0, 1, 2, 9, 3)])


def test_chunks_of_two_leaders_are_never_mixed() -> None:
    """The same snapshot may be other bytes elsewhere."""
    server = make_server(term=2)
    server.step(chunk(0, b"abc"))
    drain(server)

    server.step(chunk(3, b"de", done=True, source=2, term=3))
    ready = take(server)
    assert (ready.snapshot_chunks, ready.install) == ((), None)
    assert ready.messages_after_persist == [InstallSnapshotResponse(0, 2, 3, 9, 0)]
    server.step(chunk(0, b"other", done=True, source=2, term=3))

    ready = take(server)
    assert [part.data for part in ready.snapshot_chunks] == [b"other"]
    assert ready.install == EntryId(2, 9)


def test_appends_after_an_installed_snapshot_go_on_from_it() -> None:
    server = make_server(term=2)
    server.step(chunk(0, b"abc", done=True))
    server.step(AppendEntries(1, 0, 2, 9, 2, entries_of(2, first=10), 10))

    ready = take(server)

    assert ready.install == EntryId(2, 9)
    assert (ready.entries_from, ready.entries) == (10, entries_of(2, first=10))
    assert (ready.committed_from, ready.committed) == (10, entries_of(2, first=10))


def test_uncommitted_configurations_go_with_the_log_that_a_snapshot_replaces() -> None:
    server = make_server(term=2)
    server.step(AppendEntries(1, 0, 2, -1, -1, [entries_of(1)[0]._replace(item=voters(0, 7))], -1))
    assert server.configuration == voters(0, 7)

    server.step(chunk(0, b"abc", done=True))

    assert server.configurations == [(9, voters(0, 1, 2))]
    assert server.configuration == voters(0, 1, 2)


def test_uncommitted_configurations_beyond_the_snapshot_go_too() -> None:
    server = make_server(term=2)
    entries = [*entries_of(*[1] * 12), entries_of(1)[0]._replace(item=voters(0, 7))]
    server.step(AppendEntries(1, 0, 2, -1, -1, entries, -1))

    server.step(chunk(0, b"abc", done=True))

    assert server.configurations == [(9, voters(0, 1, 2))]
    assert server.configuration == voters(0, 1, 2)


def test_a_node_that_joins_is_brought_up_by_a_snapshot_and_appends() -> None:
    cluster = Cluster(3)
    cluster.chunk_items = 4
    cluster.elect(0)
    cluster.propose(0, *[b"%d" % number for number in range(20)])
    cluster.settle()
    cluster.snapshot(0)
    cluster.propose(0, b"after")
    cluster.settle()

    cluster.add(3, Configuration())
    cluster[0].change_membership([AddLearner(3)])
    cluster.settle()

    assert cluster.machines[3] == cluster.machines[0]
    assert cluster[3].log.first_index == 21
