"""ReadIndex, leases and reads of followers: what confirms them and what does not."""

from __future__ import annotations

import pytest

from actorraft.raft import (
    AppendEntries,
    AppendEntriesResponse,
    InstallSnapshotResponse,
    LeaderState,
    RaftConfig,
    RaftServer,
    ReadIndex,
    ReadIndexResponse,
    ReadState,
)
from tests.helpers import (
    Cluster,
    acknowledge,
    appends_to,
    drain,
    expect_quiet,
    expect_ready,
    follower_of,
    make_candidate,
    make_leader,
    make_server,
    settled_leader,
    take,
)


def test_one_round_confirms_all_reads_waiting() -> None:
    leader = settled_leader(size=5)
    for token in range(10):
        leader.read_index(token)
    messages = drain(leader)
    assert len(messages) == 4

    acknowledge(leader, 1, 2)

    expect_ready(leader, reads=[ReadState(token, 0) for token in range(10)])


def test_a_read_that_comes_during_a_round_waits_for_one_of_its_own() -> None:
    leader = settled_leader(size=3)
    leader.read_index(1)
    drain(leader)
    leader.read_index(2)
    drain(leader)

    acknowledge(leader, 1, in_round=leader.reads.round - 1)
    assert take(leader).reads == [ReadState(1, 0)]
    acknowledge(leader, 1)

    assert take(leader).reads == [ReadState(2, 0)]


def test_a_later_round_confirms_earlier_reads() -> None:
    leader = settled_leader(size=3)
    leader.read_index(1)
    drain(leader)
    leader.tick(leader.config.heartbeat_ticks)
    drain(leader)

    acknowledge(leader, 2)

    assert take(leader).reads == [ReadState(1, 0)]


def test_a_lost_round_is_repeated_by_the_heartbeat() -> None:
    cluster = Cluster(3)
    cluster.elect(0)
    cluster.drop(lambda message: True)
    cluster[0].read_index(1)
    cluster.settle()
    cluster.heal()
    assert cluster.reads[0] == []

    cluster.tick(cluster.config.heartbeat_ticks)

    assert cluster.reads[0] == [ReadState(1, 0)]


def test_a_rejection_confirms_and_so_does_a_snapshot_answer() -> None:
    """Both say that the follower was in this leader's term when the round reached it."""
    leader = settled_leader(size=5)
    leader.read_index(1)
    drain(leader)
    asked = leader.reads.round

    leader.step(AppendEntriesResponse(1, 0, 1, False, -1, asked, rejected_index=0))
    leader.step(InstallSnapshotResponse(2, 0, 1, 9, 0, round=asked))

    assert take(leader).reads == [ReadState(1, 0)]


def test_learners_confirm_nothing() -> None:
    leader = settled_leader(size=3, learners=frozenset({3, 4}))
    leader.read_index(1)
    drain(leader)

    acknowledge(leader, 3, 4)

    expect_quiet(leader)


def test_the_rounds_of_a_server_grow_from_term_to_term() -> None:
    leader = settled_leader(size=3)
    before = leader.reads.round

    leader.become_leader_now(5)

    assert leader.reads.round > before


def test_a_leader_that_is_a_quorum_by_itself_answers_at_once() -> None:
    leader = settled_leader(size=1)

    leader.read_index(1)

    expect_ready(leader, reads=[ReadState(1, 0)])


@pytest.mark.parametrize("make", [make_server, make_candidate])
def test_without_a_leader_a_read_is_refused(make: object) -> None:
    server = make()  # type: ignore[operator]
    drain(server)

    server.read_index(1)

    expect_ready(server, reads=[ReadState(1, -1)])


def test_a_deposed_leader_refuses_all_reads_that_wait() -> None:
    leader = settled_leader(size=3)
    leader.read_index(1)
    drain(leader)
    leader.step(ReadIndex(1, 0, 1, 70))
    leader.read_index(2)

    leader.step(AppendEntries(2, 0, 3, -1, -1, [], -1))

    ready = take(leader)
    assert set(ready.reads) == {ReadState(1, -1), ReadState(2, -1)}
    assert ReadIndexResponse(0, 1, 3, 70, -1) in ready.messages_after_persist


def test_a_new_leader_that_is_deposed_refuses_what_waited_for_its_first_commit() -> None:
    leader = make_leader()
    leader.read_index(1)

    leader.step(AppendEntriesResponse(1, 0, 9, False, -1))

    assert take(leader).reads == [ReadState(1, -1)]


# -- through followers


def test_a_leader_answers_a_followers_question_after_a_round() -> None:
    leader = settled_leader(size=3)
    leader.step(ReadIndex(1, 0, 1, 70))
    assert all(isinstance(message, AppendEntries) for message in drain(leader))

    acknowledge(leader, 2)

    expect_ready(leader, messages_after_persist=[ReadIndexResponse(0, 1, 1, 70, 0)])


def test_strangers_and_followers_are_not_asked_in_vain() -> None:
    leader, follower = settled_leader(size=3), follower_of(1, 1)

    leader.step(ReadIndex(9, 0, 1, 70))
    follower.step(ReadIndex(2, 0, 1, 70))

    expect_ready(leader, messages_after_persist=[ReadIndexResponse(0, 9, 1, 70, -1)])
    expect_ready(follower, messages_after_persist=[ReadIndexResponse(0, 2, 1, 70, -1)])


def test_an_answer_is_taken_once_and_only_to_an_open_question() -> None:
    server = follower_of(2, 1)
    server.read_index(5)
    drain(server)

    for _ in range(3):
        server.step(ReadIndexResponse(2, 0, 1, 0, 12))
    server.step(ReadIndexResponse(2, 0, 1, 99, 13))

    expect_ready(server, reads=[ReadState(5, 12)])


def test_a_question_of_a_former_life_is_not_taken_for_a_new_one() -> None:
    """Numbers on the wire begin at random: an answer that was under way during a restart has another one."""
    numbers = iter([1000, 2000])
    lives = []
    for _ in range(2):
        server = make_server(0, draw=lambda low, high: next(numbers) if high > 1000 else low)
        server.step(AppendEntries(2, 0, 1, -1, -1, [], -1))
        server.read_index(5)
        lives.append([message.token for message in drain(server) if isinstance(message, ReadIndex)])

    assert lives == [[1000], [2000]]


def test_a_lost_question_is_refused_after_an_election_timeout() -> None:
    server = follower_of(2, 1)
    server.read_index(5)
    drain(server)

    for _ in range(server.config.election_timeout_ticks - 1):
        server.step(AppendEntries(2, 0, 1, -1, -1, [], -1))
        server.tick()
    drain(server)
    server.tick()

    assert server.leader_id == 2
    expect_ready(server, reads=[ReadState(5, -1)])


def test_a_follower_refuses_its_open_questions_when_the_leader_changes() -> None:
    server = follower_of(2, 1)
    server.read_index(5)
    drain(server)

    server.step(AppendEntries(1, 0, 2, -1, -1, [], -1))
    server.step(ReadIndexResponse(2, 0, 2, 0, 12))

    assert take(server).reads == [ReadState(5, -1)]


def test_a_read_through_a_follower_end_to_end() -> None:
    cluster = Cluster(3)
    cluster.elect(0)
    cluster.propose(0, b"x")
    cluster.settle()

    cluster[2].read_index(5)
    cluster.settle()

    assert cluster.reads[2] == [ReadState(5, 1)]
    assert cluster[2].last_applied == 1


# -- leases


def leased_leader() -> RaftServer:
    leader = make_leader(config=RaftConfig(lease_reads=True))
    acknowledge(leader, 1, 2)
    drain(leader)
    return leader


def lease_read(leader: RaftServer) -> bool:
    leader.read_index(1, lease=True)
    served = take(leader).reads == [ReadState(1, leader.commit_index)]
    leader.reads.drain()
    return served


def test_a_lease_read_needs_no_round_while_the_lease_holds() -> None:
    leader = leased_leader()

    assert lease_read(leader)


def test_without_lease_reads_in_the_configuration_a_round_is_asked_for() -> None:
    leader = settled_leader()

    leader.read_index(1, lease=True)

    messages = drain(leader)
    assert {message.lease_ticks for message in appends_to(messages, 1)} == {0}
    assert {message.round for message in appends_to(messages, 1)} == {leader.reads.round}


def test_a_lease_holds_for_nine_tenths_from_when_the_round_was_sent() -> None:
    leader = leased_leader()
    limit = leader.config.election_timeout_ticks * 9 // 10

    served = []
    for _ in range(limit + 2):
        served.append(lease_read(leader))
        leader.tick()
        drain(leader)

    assert served == [True] * limit + [False] * 2


def test_a_late_answer_prolongs_the_lease_only_from_when_its_round_was_sent() -> None:
    leader = leased_leader()
    leader.tick(4)
    drain(leader)
    sent_at, asked = leader.now_ticks, leader.reads.round
    for _ in range(10):
        leader.tick()
        drain(leader)

    acknowledge(leader, 1, in_round=asked)

    assert leader.reads.lease_until_ticks == sent_at + 18


def test_one_answer_of_five_is_no_lease() -> None:
    leader = make_leader(size=5, config=RaftConfig(lease_reads=True))
    acknowledge(leader, 1, 2, in_round=0)
    drain(leader)
    acknowledge(leader, 1)

    assert not lease_read(leader)


def test_a_snapshot_answer_promises_nothing() -> None:
    leader = make_leader(config=RaftConfig(lease_reads=True))
    acknowledge(leader, 1, in_round=0)
    drain(leader)

    leader.step(InstallSnapshotResponse(1, 0, 1, 0, 0, round=leader.reads.round))

    assert not lease_read(leader)


def test_a_gap_in_the_leaders_own_clock_voids_the_lease() -> None:
    leader = leased_leader()

    leader.tick(leader.config.heartbeat_ticks + 1)

    assert not lease_read(leader)


def test_the_lease_ends_before_a_timeout_now_leaves() -> None:
    leader = leased_leader()
    leader.propose(b"x")
    drain(leader)
    leader.transfer_leadership(1)
    assert lease_read(leader)  # the target is not up to date yet, so nobody was told to campaign

    acknowledge(leader, 1)

    assert not lease_read(leader)
    assert leader.reads.lease_until_ticks == -1


def test_the_promises_of_a_quorum_are_counted_not_its_answers() -> None:
    """One follower answers a snapshot chunk and one an append: only the second has promised anything."""
    leader = make_leader(size=5, config=RaftConfig(lease_reads=True))
    acknowledge(leader, 1, 2, in_round=0)
    drain(leader)

    leader.step(InstallSnapshotResponse(1, 0, 1, 0, 0, round=leader.reads.round))
    acknowledge(leader, 2)
    assert not lease_read(leader)
    acknowledge(leader, 1)

    assert lease_read(leader)


def test_a_lease_does_not_outlive_leadership() -> None:
    leader = leased_leader()
    leader.step(AppendEntriesResponse(1, 0, 9, False, -1))
    leader.become_leader_now(10)
    drain(leader)

    assert leader.state is LeaderState
    assert not lease_read(leader)
