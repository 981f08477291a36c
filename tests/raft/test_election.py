"""Elections beyond the paper's sentences: pre-vote, CheckQuorum, lost connections, leases that bind voters."""

from __future__ import annotations

import pytest

from actorraft.raft import (
    AppendEntries,
    AppendEntriesResponse,
    CandidateState,
    FollowerState,
    HardState,
    LeaderState,
    RaftConfig,
    RaftServer,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from actorraft.raft.election import URGENT_RETRY_MS, URGENT_TRIES_MAX
from actorraft.raft.ready import NOT_URGENT
from tests.helpers import (
    Cluster,
    acknowledge,
    drain,
    expect_quiet,
    expect_ready,
    follower_of,
    log_of,
    make_candidate,
    make_leader,
    make_server,
    settled_leader,
    take,
    vote_requests,
)


def pre_candidate(size: int = 3, **options: object) -> RaftServer:
    """A server that has just asked for pre-votes."""
    server = make_server(size=size, **options)  # type: ignore[arg-type]
    server.campaign()
    drain(server)
    assert server.pre_candidate
    return server


# -- pre-vote (D§9.6)


def test_a_pre_candidate_stays_a_follower_that_knows_no_leader() -> None:
    server = follower_of(1, 3)

    server.tick(server.election_timeout)

    assert (server.state, server.current_term, server.leader_id) == (FollowerState, 3, None)
    expect_ready(
        server,
        messages_after_persist=[RequestVote(0, peer_id, 4, -1, -1, pre_vote=True) for peer_id in (1, 2)],
        state_changed=True,
    )


def test_a_pre_candidate_that_hears_its_leader_gives_up() -> None:
    server = pre_candidate(term=3)

    server.step(AppendEntries(1, 0, 3, -1, -1, [], -1))
    server.step(RequestVoteResponse(2, 0, 4, True, pre_vote=True))

    assert (server.state, server.current_term, server.leader_id) == (FollowerState, 3, 1)


def test_a_refused_pre_vote_of_a_later_term_teaches_the_term() -> None:
    """Else a node that is ahead in term, and behind in its log, would block elections for ever."""
    server = pre_candidate(term=3)

    server.step(RequestVoteResponse(1, 0, 7, False, pre_vote=True))

    assert (server.current_term, server.pre_candidate) == (7, False)


def test_a_pre_vote_of_an_older_term_is_refused_with_the_current_one() -> None:
    server = make_server(term=7)

    server.step(RequestVote(1, 0, 5, 9, 4, pre_vote=True))

    expect_ready(server, messages_after_persist=[RequestVoteResponse(0, 1, 7, False, True)])


@pytest.mark.parametrize(("voted_for", "granted"), [(None, True), (1, True), (2, False)])
def test_a_pre_vote_for_the_present_term_is_granted_only_if_the_vote_is_free(
    voted_for: int | None, granted: bool
) -> None:
    server = make_server(term=5, voted_for=voted_for)

    server.step(RequestVote(1, 0, 5, 9, 4, pre_vote=True))

    expect_ready(server, messages_after_persist=[RequestVoteResponse(0, 1, 5, granted, True)])


def test_a_leader_refuses_pre_votes_and_keeps_leading() -> None:
    leader = settled_leader()

    leader.step(RequestVote(2, 0, 2, 99, 1, pre_vote=True))

    assert leader.state is LeaderState
    expect_ready(leader, messages_after_persist=[RequestVoteResponse(0, 2, 1, False, True)])


def test_a_pre_vote_that_was_refused_may_be_granted_when_asked_for_again() -> None:
    server = pre_candidate(size=3, term=3)

    server.step(RequestVoteResponse(1, 0, 3, False, pre_vote=True))
    assert server.pre_candidate
    server.step(RequestVoteResponse(1, 0, 4, True, pre_vote=True))

    assert server.state is CandidateState


def test_late_pre_votes_do_not_elect() -> None:
    server = make_candidate(size=5, term=3)  # asks for votes in term 4

    for peer_id in (1, 2, 3):
        server.step(RequestVoteResponse(peer_id, 0, 4, True, pre_vote=True))
        server.step(RequestVoteResponse(peer_id, 0, 5, True, pre_vote=True))

    assert server.state is CandidateState


def test_pre_votes_for_the_term_that_it_is_in_by_now_do_not_count() -> None:
    server = pre_candidate(size=3, term=4)  # asks for term 5; an answer to its question for term 4 is late

    server.step(RequestVoteResponse(1, 0, 4, True, pre_vote=True))

    assert (server.pre_candidate, server.current_term) == (True, 4)


def test_late_votes_do_not_count_as_pre_votes() -> None:
    server = pre_candidate(size=5, term=3)

    for peer_id in (1, 2, 3):
        server.step(RequestVoteResponse(peer_id, 0, 3, True))

    assert (server.state, server.current_term) == (FollowerState, 3)


def test_a_cluster_with_a_node_ahead_in_term_and_behind_in_log_elects() -> None:
    cluster = Cluster(3)
    cluster.elect(0)
    cluster.propose(0, b"x")
    cluster.isolate(2)
    cluster.settle()
    for _ in range(5):
        cluster[2].campaign(pre_vote=False)
    cluster.settle()
    cluster.crash(0)

    cluster.heal()
    cluster.tick(6 * cluster.config.election_timeout_ticks)

    assert cluster.leaders() == [1]
    assert cluster[2].current_term == cluster[1].current_term > 5


def test_a_node_stuck_in_a_later_term_is_led_again() -> None:
    """Its answers make the leader step down once, and all go on in the later term (no pre-vote: it was a candidate)."""
    cluster = Cluster(3)
    cluster.elect(0)
    cluster.isolate(2)
    cluster[2].campaign(pre_vote=False)
    cluster.settle()
    cluster.heal()

    cluster.tick(6 * cluster.config.election_timeout_ticks)

    leader = cluster.expect_leader()
    assert leader.current_term >= 2


# -- CheckQuorum (D§6.2)


def test_a_leader_that_is_answered_leads_on() -> None:
    leader = settled_leader(size=5)

    for _ in range(10 * leader.config.election_timeout_ticks):
        leader.tick()
        acknowledge(leader, 1, 2)
        drain(leader)

    assert leader.state is LeaderState


def test_a_rejection_or_a_snapshot_answer_is_a_sign_of_life_too() -> None:
    leader = settled_leader(size=3)

    for _ in range(10 * leader.config.election_timeout_ticks):
        leader.tick()
        leader.step(AppendEntriesResponse(1, 0, 1, False, -1, rejected_index=0))

    assert leader.state is LeaderState


def test_a_leader_that_slept_looks_twice_before_it_steps_down() -> None:
    """After a pause all ticks come at once, before the answers that wait in the mailbox."""
    leader = settled_leader(size=3)

    leader.tick(1000)
    assert leader.state is LeaderState
    leader.tick(1000)

    assert leader.state is FollowerState


def test_a_follower_that_slept_does_not_take_its_own_silence_for_its_leaders() -> None:
    """After a pause all ticks come at once, before the heartbeats that wait in the mailbox."""
    follower = follower_of(1, term=1)

    follower.tick(1000, asleep=True)
    assert drain(follower) == []
    for _ in range(2 * follower.config.election_timeout_ticks):  # but a dead leader is still found out
        follower.tick(1, asleep=True)

    assert any(isinstance(message, RequestVote) for message in drain(follower))


def test_without_check_quorum_a_leader_leads_until_it_hears_of_another() -> None:
    leader = make_leader(config=RaftConfig(check_quorum=False))

    leader.tick(1000)
    leader.tick(1000)

    assert leader.state is LeaderState


def test_without_check_quorum_a_later_term_is_taken_from_anyone() -> None:
    server = make_server(config=RaftConfig(check_quorum=False), term=1)
    server.step(AppendEntries(1, 0, 1, -1, -1, [], -1))

    server.step(RequestVote(2, 0, 9, 99, 8))

    assert server.voted_for == 2


# -- roles leave nothing behind


def test_a_deposed_leader_forgets_all_that_only_a_leader_has() -> None:
    leader = settled_leader(size=3)
    leader.propose(b"x")
    leader.transfer_leadership(1)

    leader.step(AppendEntriesResponse(1, 0, 5, False, -1))

    assert (leader.progress, leader.transfer_target, leader.unapplied_bytes) == ({}, None, 0)
    assert (leader.election_elapsed, leader.votes, leader.pending_change) == (0, {}, None)
    drain(leader)
    leader.tick(leader.config.heartbeat_ticks)
    expect_quiet(leader)


def test_a_deposed_leader_waits_a_whole_election_timeout() -> None:
    leader = settled_leader(size=3)
    leader.tick(15)

    leader.step(AppendEntriesResponse(1, 0, 5, False, -1))

    assert leader.election_elapsed == 0


def test_a_leader_elected_again_starts_its_followers_afresh() -> None:
    leader = settled_leader(size=3)
    leader.step(AppendEntriesResponse(1, 0, 5, False, -1))

    leader.become_leader_now(6)

    assert {progress.match_index for progress in leader.progress.values()} == {-1}
    assert {progress.next_index for progress in leader.progress.values()} == {1}


def test_become_leader_now_leads_the_given_term_at_once() -> None:
    for server in (make_server(term=3), make_candidate(term=3), make_leader(term=3)):
        drain(server)
        server.become_leader_now(9)

        assert (server.state, server.current_term, server.voted_for) == (LeaderState, 9, 0)
        ready = take(server)
        assert ready.hard_state == HardState(9, 0)
        assert ready.messages == []
        assert {message.term for message in ready.messages_after_persist} == {9}
        with pytest.raises(AssertionError):
            server.become_leader_now(9)


def test_messages_for_somebody_else_are_dropped() -> None:
    server = make_server(0)

    server.step(RequestVote(1, 2, 5, -1, -1))

    assert server.current_term == 0
    expect_quiet(server)


def test_two_leaders_in_one_term_are_a_broken_invariant() -> None:
    with pytest.raises(AssertionError, match="both lead"):
        make_leader().step(AppendEntries(1, 0, 1, -1, -1, [], -1))
    follower = follower_of(1, 1)
    with pytest.raises(AssertionError, match="both lead"):
        follower.step(AppendEntries(2, 0, 1, -1, -1, [], -1))


# -- a lost connection to the leader (architecture, "Time, elections, reads")


def test_a_lost_leader_is_succeeded_at_once_by_rank() -> None:
    """Followers ask after rank x 4 ms, the rank being that of their id among the other voters."""
    delays = {}
    for node_id in (0, 1, 3, 4):
        server = make_server(node_id, 5, term=1)
        server.step(AppendEntries(2, node_id, 1, -1, -1, [], -1))

        server.peer_disconnected(2)

        delays[node_id] = server.urgent_delay_ms

    assert delays == {0: 0, 1: 4, 3: 8, 4: 12}


def test_urgent_asks_for_pre_votes_and_again_while_the_link_is_down() -> None:
    server = follower_of(1, 1)
    server.peer_disconnected(1)
    assert server.urgent_delay_ms == 0

    for _ in range(3):
        server.urgent()
        requests = vote_requests(drain(server))
        assert [(message.pre_vote, message.term) for message in requests] == [(True, 2), (True, 2)]
        assert server.urgent_delay_ms == URGENT_RETRY_MS

    assert server.current_term == 1


def test_urgent_tries_are_bounded() -> None:
    server = follower_of(1, 1)
    server.peer_disconnected(1)

    tries = 0
    while server.urgent_delay_ms is not None:
        server.urgent()
        tries += 1

    assert tries == URGENT_TRIES_MAX + 1


def test_who_lost_the_leader_grants_the_pre_votes_of_others_at_once() -> None:
    server = follower_of(1, 1)
    server.step(RequestVote(2, 0, 2, -1, -1, pre_vote=True))
    server.peer_disconnected(1)
    server.step(RequestVote(2, 0, 2, -1, -1, pre_vote=True))
    server.step(RequestVote(2, 0, 2, -1, -1))

    assert [message.vote_granted for message in drain(server)] == [False, True, True]  # type: ignore[union-attr]
    assert server.urgent_delay_ms is None


def test_a_connection_that_comes_back_calls_it_off() -> None:
    server = follower_of(1, 1)
    server.peer_disconnected(1)

    server.peer_connected(1)

    assert server.urgent_delay_ms is None
    expect_ready(server, urgent_delay_ms=NOT_URGENT)
    server.urgent()  # the driver's timer may still go off
    expect_quiet(server)


def test_what_the_lost_leader_sent_before_it_died_changes_nothing() -> None:
    server = follower_of(1, 1)
    server.peer_disconnected(1)

    server.step(AppendEntries(1, 0, 1, -1, -1, [], -1))

    assert not server.hears_leader()
    server.urgent()
    assert server.pre_candidate


def test_a_lost_leader_that_is_heard_a_heartbeat_later_is_heard() -> None:
    """The transport may have lost only the way there, or may never say that the way is back."""
    server = follower_of(1, 1)
    server.peer_disconnected(1)
    server.tick(server.config.heartbeat_ticks)

    server.step(AppendEntries(1, 0, 1, -1, -1, [], -1))

    assert (server.hears_leader(), server.urgent_delay_ms) == (True, None)


def test_a_new_leader_calls_it_off() -> None:
    server = follower_of(1, 1)
    server.peer_disconnected(1)
    server.urgent()

    server.step(AppendEntries(2, 0, 2, -1, -1, [], -1))

    assert (server.urgent_delay_ms, server.leader_id) == (None, 2)


def test_another_lost_peer_changes_nothing() -> None:
    server = follower_of(1, 1)

    server.peer_disconnected(2)

    assert server.urgent_delay_ms is None
    assert server.hears_leader()


def test_a_split_vote_is_repeated_after_a_short_random_time() -> None:
    """Only once everybody who can be reached has answered: on a slow network nobody is hurried."""
    drawn: list[tuple[int, int]] = []

    def draw(low: int, high: int) -> int:
        drawn.append((low, high))
        return low

    server = make_server(0, 4, term=1, draw=draw)
    server.step(AppendEntries(3, 0, 1, -1, -1, [], -1))
    server.peer_disconnected(3)
    server.urgent()
    for peer_id in (1, 2):
        server.step(RequestVoteResponse(peer_id, 0, 2, True, pre_vote=True))
    assert server.state is CandidateState
    delays = [server.urgent_delay_ms]

    for peer_id, granted in ((1, True), (2, False)):
        server.step(RequestVoteResponse(peer_id, 0, 2, granted))
        delays.append(server.urgent_delay_ms)

    assert delays == [None, None, 5]
    assert drawn[-1] == (5, 26)
    server.urgent()
    assert server.pre_candidate
    assert server.current_term == 2


def test_the_leaders_death_is_mended_without_a_tick() -> None:
    """Disconnect events, urgent calls and messages alone elect and commit."""
    cluster = Cluster(5)
    cluster.elect(4)
    cluster.propose(4, b"x")
    cluster.settle()
    cluster.crash(4)
    for server in cluster.servers.values():
        server.peer_disconnected(4)

    first = min(cluster.servers.values(), key=lambda server: (server.urgent_delay_ms or 0, server.node_id))
    first.urgent()
    cluster.settle()

    leader = cluster.expect_leader()
    assert (leader.node_id, leader.current_term, leader.commit_index) == (0, 2, 2)
    assert [server.urgent_delay_ms for server in cluster.servers.values()] == [None] * 4


def test_a_follower_that_alone_lost_the_leader_disturbs_nobody() -> None:
    cluster = Cluster(3)
    cluster.elect(0)
    cluster.drop(lambda message: {message.source, message.dest} == {0, 2})
    cluster[2].peer_disconnected(0)

    while cluster[2].urgent_delay_ms is not None:
        cluster[2].urgent()
        cluster.settle()
        cluster.tick()

    assert [server.current_term for server in cluster.servers.values()] == [1, 1, 1]
    assert cluster.leaders() == [0]


def test_followers_far_apart_leave_each_other_the_time_of_a_question() -> None:
    cluster = Cluster(3, config=RaftConfig.wan())
    cluster.elect(0)

    for follower in (1, 2):
        cluster[follower].peer_disconnected(0)

    first, second = cluster[1].urgent_delay_ms, cluster[2].urgent_delay_ms
    assert first == 0
    assert second is not None
    assert second >= 50, "one way, where a round trip takes 100 ms"
    cluster[2].become_follower(2, None)
    assert cluster[2].urgent_delay_ms is not None
    assert cluster[2].urgent_delay_ms >= 65


def test_a_learner_does_not_hurry() -> None:
    cluster = Cluster(3)
    cluster.elect(0)
    learner = cluster.add(3)
    learner.step(AppendEntries(0, 3, 1, -1, -1, [], -1))

    learner.peer_disconnected(0)

    assert learner.urgent_delay_ms is None


def test_a_leader_that_loses_a_follower_stops_feeding_it_until_it_is_back() -> None:
    leader = settled_leader(size=3)
    leader.peer_disconnected(1)
    leader.propose(b"x")
    assert {message.dest for message in drain(leader)} == {2}

    leader.peer_connected(1)

    (append,) = [message for message in drain(leader) if message.dest == 1]
    assert isinstance(append, AppendEntries)
    assert [entry.item for entry in append.entries] == [b"x"]


# -- leases bind voters (D§6.4.1)


def leased_follower() -> RaftServer:
    """A follower that has just acknowledged a lease."""
    server = make_server(config=RaftConfig(lease_reads=True))
    server.step(AppendEntries(1, 0, 1, -1, -1, [], -1, 1, server.config.election_timeout_ticks))
    drain(server)
    return server


def test_who_acknowledged_a_lease_neither_asks_nor_grants_even_when_disconnected() -> None:
    server = leased_follower()

    server.peer_disconnected(1)
    server.urgent()
    server.campaign()
    server.campaign(pre_vote=False)
    server.step(RequestVote(2, 0, 2, 9, 9, pre_vote=True))
    server.step(RequestVote(2, 0, 2, 9, 9))

    assert (server.current_term, server.voted_for, server.state) == (1, None, FollowerState)
    expect_ready(server, messages_after_persist=[RequestVoteResponse(0, 2, 1, False, True)])


def test_the_promise_lasts_for_the_whole_lease_and_ends_after_it() -> None:
    server = leased_follower()
    server.peer_disconnected(1)

    server.tick(server.config.election_timeout_ticks)
    server.step(RequestVote(2, 0, 2, 9, 9))
    assert server.voted_for is None
    server.tick()
    server.step(RequestVote(2, 0, 2, 9, 9))

    assert server.voted_for == 2


def test_a_vote_in_a_later_term_that_it_learned_otherwise_is_bound_too() -> None:
    server = leased_follower()
    server.step(AppendEntriesResponse(2, 0, 4, False, -1))
    assert server.current_term == 4

    server.step(RequestVote(2, 0, 4, 9, 9))

    assert server.voted_for is None


def test_a_transfer_is_voted_for_in_spite_of_a_lease() -> None:
    target, voter = leased_follower(), leased_follower()

    target.step(TimeoutNow(1, 0, 1))
    voter.step(RequestVote(2, 0, 2, 9, 9, transfer=True))

    assert target.state is CandidateState
    assert voter.voted_for == 2


def test_the_log_decides_also_in_a_transfer() -> None:
    voter = make_server(term=1, log=log_of(1))

    voter.step(RequestVote(2, 0, 2, -1, -1, transfer=True))

    assert voter.voted_for is None


def test_a_node_whose_code_is_too_old_votes_and_does_not_campaign() -> None:
    server = make_server()
    server.too_old = True
    server.tick(10 * server.config.election_timeout_ticks)
    assert server.state is FollowerState
    expect_quiet(server)

    server.step(RequestVote(1, 0, 5, 3, 4))
    [answer] = take(server).messages_after_persist
    assert answer == RequestVoteResponse(0, 1, 5, True)
