"""One test per sentence of the paper that a server must obey, in the paper's order; the section is in the docstring.

§5.1 to §5.4 (terms, elections, replication, commitment), what must be durable (Figure 2), §6 (membership), §7
(compaction), §8 (clients), and then the dissertation's: transfer, changes, CheckQuorum, pre-vote, reads.
"§" is the extended Raft paper, "D§" the dissertation.
"""

from __future__ import annotations

import pytest

from actorraft.raft import (
    NO_ENTRY,
    AddLearner,
    AddVoter,
    AppendEntries,
    AppendEntriesResponse,
    CandidateState,
    Configuration,
    EntryId,
    FollowerState,
    HardState,
    InstallSnapshot,
    InstallSnapshotResponse,
    LeaderState,
    LogEntry,
    NotLeader,
    ProposalRefused,
    RaftConfig,
    RaftLog,
    RaftServer,
    ReadIndex,
    ReadIndexResponse,
    ReadState,
    RemoveNode,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from tests.helpers import (
    Cluster,
    acknowledge,
    appends_to,
    catch_up,
    committed_follower,
    drain,
    drain_committed,
    entries_of,
    expect_quiet,
    expect_ready,
    follower_of,
    leader_with_snapshot,
    log_of,
    lowest,
    make_candidate,
    make_leader,
    make_server,
    settled_leader,
    take,
    timeout_nows,
    vote_requests,
    voters,
)

PLAIN = RaftConfig(pre_vote=False, check_quorum=False)  # the paper's algorithm without the dissertation's additions


# -- §5.1 Raft basics: terms


def test_a_server_begins_as_a_follower() -> None:
    """§5.2: When servers start up, they begin as followers."""
    server = make_server()

    assert server.state is FollowerState
    assert server.leader_id is None
    expect_quiet(server)


@pytest.mark.parametrize("role", ["follower", "candidate", "leader"])
def test_any_server_adopts_a_larger_term(role: str) -> None:
    """§5.1: If one server's current term is smaller than the other's, it updates its term to the larger value."""
    server = {"follower": make_server, "candidate": make_candidate, "leader": make_leader}[role](config=PLAIN)

    server.step(AppendEntries(1, 0, 9, -1, -1, [], -1))

    assert server.current_term == 9
    assert take(server).hard_state == HardState(9, None)


@pytest.mark.parametrize("role", ["candidate", "leader"])
def test_a_candidate_or_leader_that_finds_its_term_out_of_date_becomes_a_follower(role: str) -> None:
    """§5.1: A candidate or leader that discovers that its term is out of date reverts to follower state."""
    server = {"candidate": make_candidate, "leader": make_leader}[role]()

    server.step(AppendEntriesResponse(1, 0, 9, False, -1))

    assert server.state is FollowerState
    assert (server.current_term, server.voted_for, server.leader_id) == (9, None, None)
    expect_ready(server, hard_state=HardState(9, None), state_changed=True)


def test_a_request_with_a_stale_term_is_refused() -> None:
    """§5.1: If a server receives a request with a stale term number, it rejects the request."""
    server = make_server(term=5)

    server.step(AppendEntries(1, 0, 4, -1, -1, entries_of(4), 0))
    server.step(RequestVote(2, 0, 4, 9, 4))
    server.step(InstallSnapshot(1, 0, 4, 7, 4, voters(0, 1, 2), 0, b"x", True))
    server.step(ReadIndex(2, 0, 4, 77))

    assert (server.log.last, server.commit_index, server.voted_for) == (NO_ENTRY, -1, None)
    expect_ready(
        server,
        messages_after_persist=[
            AppendEntriesResponse(0, 1, 5, False, -1),
            RequestVoteResponse(0, 2, 5, False),
            InstallSnapshotResponse(0, 1, 5, 7, 0),
            ReadIndexResponse(0, 2, 5, 77, -1),
        ],
    )


def test_a_response_with_a_stale_term_is_dropped() -> None:
    """§5.1: terms let servers detect obsolete information."""
    leader = make_leader(term=4)

    leader.step(AppendEntriesResponse(1, 0, 4, True, 0))
    leader.step(RequestVoteResponse(1, 0, 4, True))
    leader.step(InstallSnapshotResponse(1, 0, 4, 0, 0, True))
    leader.step(ReadIndexResponse(1, 0, 4, 1, 5))
    leader.step(TimeoutNow(1, 0, 4))

    assert (leader.progress[1].match_index, leader.commit_index) == (-1, -1)
    expect_quiet(leader)


def test_terms_are_stored_and_grow_monotonically() -> None:
    """§5.1: Each server stores a current term number, which increases monotonically over time."""
    server = make_server(term=3)

    for term in (5, 4, 7, 1):
        server.step(RequestVote(1, 0, term, -1, -1))

    assert server.current_term == 7


# -- §5.2 Leader election


def test_a_follower_stays_one_as_long_as_it_hears_its_leader() -> None:
    """§5.2: A server remains in follower state as long as it receives valid RPCs from a leader or candidate."""
    server = make_server(term=1)

    for _ in range(100):
        server.tick(server.config.election_timeout_ticks - 1)
        server.step(AppendEntries(1, 0, 1, -1, -1, [], -1))

    assert (server.state, server.current_term) == (FollowerState, 1)
    assert vote_requests(drain(server)) == []


def test_a_leader_sends_heartbeats_to_all_followers() -> None:
    """§5.2: Leaders send periodic heartbeats (AppendEntries that carry no log entries) to all followers."""
    leader = make_leader()
    acknowledge(leader, 1, 2)
    drain(leader)

    leader.tick(leader.config.heartbeat_ticks - 1)
    expect_quiet(leader)
    leader.tick()

    asked = leader.reads.round
    expect_ready(
        leader,
        messages=[
            AppendEntries(0, 1, 1, 0, 1, [], 0, asked),
            AppendEntries(0, 2, 1, 0, 1, [], 0, asked),
        ],
    )


def test_a_follower_that_hears_nothing_for_the_election_timeout_begins_an_election() -> None:
    """§5.2: If a follower receives no communication over the election timeout, it assumes there is no viable leader."""
    server = make_server(config=PLAIN, term=2)

    server.tick(server.election_timeout - 1)
    expect_quiet(server)
    server.tick()

    assert (server.state, server.current_term) == (CandidateState, 3)


def test_a_candidate_increments_its_term_votes_for_itself_and_asks_all_others() -> None:
    """§5.2: To begin an election, a follower increments its current term and transitions to candidate state."""
    server = make_server(config=PLAIN, term=2, log=log_of(1, 2, 2))

    server.campaign()

    assert (server.state, server.current_term, server.voted_for) == (CandidateState, 3, 0)
    expect_ready(
        server,
        hard_state=HardState(3, 0),
        messages_after_persist=[RequestVote(0, 1, 3, 2, 2), RequestVote(0, 2, 3, 2, 2)],
        state_changed=True,
    )


@pytest.mark.parametrize(("size", "needed"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3)])
def test_a_candidate_wins_with_the_votes_of_a_majority_of_the_full_cluster(size: int, needed: int) -> None:
    """§5.2: A candidate wins an election if it receives votes from a majority of the servers in the full cluster."""
    server = make_candidate(size=size)

    for peer_id in range(1, needed + 1):
        assert server.state is CandidateState
        server.step(RequestVoteResponse(peer_id, 0, 1, True))

    assert server.state is LeaderState


def test_a_candidate_does_not_win_while_a_majority_refuses() -> None:
    """§5.2: the majority rule."""
    server = make_candidate(size=5)

    for peer_id, granted in ((1, True), (2, False), (3, False), (4, False)):
        server.step(RequestVoteResponse(peer_id, 0, 1, granted))

    assert server.state is CandidateState


@pytest.mark.parametrize("voted_for", [None, 1, 2])
def test_each_server_votes_for_at_most_one_candidate_in_a_term_first_come_first_served(voted_for: int | None) -> None:
    """§5.2: Each server will vote for at most one candidate in a given term, on a first-come-first-served basis."""
    server = make_server(term=1, voted_for=voted_for)

    server.step(RequestVote(1, 0, 1, -1, -1))

    granted = voted_for in (None, 1)
    assert server.voted_for == (1 if granted else 2)
    expect_ready(
        server,
        hard_state=HardState(1, 1) if voted_for is None else None,
        messages_after_persist=[RequestVoteResponse(0, 1, 1, granted)],
    )


def test_a_vote_asked_for_twice_is_given_twice_to_the_same_candidate() -> None:
    """§5.5: Raft RPCs are idempotent."""
    server = make_server(term=1)

    for _ in range(2):
        server.step(RequestVote(1, 0, 2, -1, -1))

    assert [message.vote_granted for message in drain(server)] == [True, True]  # type: ignore[union-attr]


def test_a_new_leader_sends_to_everyone_at_once_to_establish_its_authority() -> None:
    """§5.2: Once a candidate wins, it becomes leader and sends heartbeats to all servers to prevent new elections."""
    server = make_candidate(size=3)

    server.step(RequestVoteResponse(1, 0, 1, True))

    noop = LogEntry(1, None)
    assert (server.state, server.leader_id) == (LeaderState, 0)
    expect_ready(
        server,
        messages=[AppendEntries(0, peer_id, 1, -1, -1, [noop], -1, 1) for peer_id in (1, 2)],
        entries_from=0,
        entries=[noop],
        state_changed=True,
    )


def test_a_candidate_that_hears_a_leader_of_its_term_returns_to_follower_state() -> None:
    """§5.2: If the leader's term is at least as large as the candidate's, the candidate recognizes the leader."""
    server = make_candidate(term=1)

    server.step(AppendEntries(2, 0, 2, -1, -1, [], -1))

    assert (server.state, server.leader_id, server.current_term, server.voted_for) == (FollowerState, 2, 2, 0)
    expect_ready(server, messages_after_persist=[AppendEntriesResponse(0, 2, 2, True, -1)], state_changed=True)


def test_a_candidate_rejects_a_leader_of_an_older_term_and_continues() -> None:
    """§5.2: If the term in the RPC is smaller, then the candidate rejects the RPC and continues in candidate state."""
    server = make_candidate(term=5)

    server.step(AppendEntries(2, 0, 5, -1, -1, [], -1))

    assert (server.state, server.current_term, server.leader_id) == (CandidateState, 6, None)
    expect_ready(server, messages_after_persist=[AppendEntriesResponse(0, 2, 6, False, -1)])


def test_a_candidate_that_neither_wins_nor_loses_starts_a_new_election_in_a_new_term() -> None:
    """§5.2: When this happens, each candidate will time out and start a new election by incrementing its term."""
    server = make_candidate(config=PLAIN)

    server.tick(server.election_timeout)

    assert (server.state, server.current_term, server.votes) == (CandidateState, 2, {0: True})
    assert [message.term for message in vote_requests(drain(server))] == [2, 2]


def test_election_timeouts_are_drawn_from_a_fixed_interval_anew_for_each_election() -> None:
    """§5.2: election timeouts are chosen randomly from a fixed interval, [n, 2n) ticks here."""
    drawn: list[tuple[int, int]] = []

    def draw(low: int, high: int) -> int:
        drawn.append((low, high))
        return low + len(drawn) % (high - low)

    server = make_server(config=PLAIN, draw=draw)
    drawn.clear()
    timeouts = set()
    for _ in range(5):
        server.tick(server.election_timeout)
        timeouts.add(server.election_timeout)

    assert drawn == [(20, 40)] * 5
    assert len(timeouts) == 5


def test_a_refused_vote_does_not_reset_the_election_timer() -> None:
    """§5.2: only a leader's RPC, or granting a vote, resets the timer (Figure 2, followers)."""
    server = make_server(log=log_of(1, 1), term=1)
    server.tick(15)

    server.step(RequestVote(1, 0, 2, 0, 1))

    assert server.election_elapsed == 15


def test_a_granted_vote_resets_the_election_timer() -> None:
    """Figure 2, followers: ... or granting vote to candidate."""
    server = make_server(term=1)
    server.tick(15)

    server.step(RequestVote(1, 0, 2, -1, -1))

    assert server.election_elapsed == 0


def test_a_stale_leader_does_not_reset_the_election_timer() -> None:
    """Figure 2, followers: AppendEntries RPC from *current* leader."""
    server = make_server(term=5)
    server.tick(15)

    server.step(AppendEntries(1, 0, 4, -1, -1, [], -1))
    server.step(InstallSnapshot(1, 0, 4, 7, 4, voters(0, 1, 2), 0))

    assert server.election_elapsed == 15


# -- §5.3 Log replication


def test_a_leader_appends_a_command_and_sends_it_to_all_others() -> None:
    """§5.3: The leader appends the command to its log, then issues AppendEntries RPCs in parallel to the others."""
    leader = make_leader()
    acknowledge(leader, 1, 2)
    drain(leader)

    assert leader.propose(b"x") == 1

    entry = LogEntry(1, b"x")
    assert leader.log[1] == entry
    expect_ready(
        leader,
        messages=[AppendEntries(0, peer_id, 1, 0, 1, [entry], 0, 1) for peer_id in (1, 2)],
        entries_from=1,
        entries=[entry],
    )


@pytest.mark.parametrize("role", ["follower", "candidate"])
def test_only_a_leader_takes_a_command(role: str) -> None:
    """§5.1: if a client contacts a follower, the follower redirects it to the leader."""
    server = {"follower": lambda: follower_of(2, 1), "candidate": make_candidate}[role]()

    with pytest.raises(NotLeader) as refused:
        server.propose(b"x")

    assert refused.value.leader_id == (2 if role == "follower" else None)
    expect_quiet(server)


def test_a_leader_retries_until_every_follower_has_stored_every_entry() -> None:
    """§5.3: If followers crash or run slowly, or packets are lost, the leader retries AppendEntries indefinitely."""
    cluster = Cluster(3)
    cluster.elect(0)
    cluster.drop(lambda message: message.dest == 2)
    cluster.propose(0, b"x", b"y")
    cluster.settle()
    cluster.tick(10)
    assert cluster[2].log.last_index == 0

    cluster.heal()
    cluster.tick(2 * cluster.config.heartbeat_ticks)

    assert cluster[2].log == cluster[0].log


def test_an_entry_is_committed_once_a_majority_stores_it() -> None:
    """§5.3: A log entry is committed once the leader that created it has replicated it on a majority of the servers."""
    leader = make_leader(size=5)
    leader.propose(b"x")
    drain(leader)

    acknowledge(leader, 1)
    assert leader.commit_index == -1
    acknowledge(leader, 2)

    assert leader.commit_index == 1
    assert drain_committed(leader) == [LogEntry(1, None), LogEntry(1, b"x")]


def test_committing_commits_all_preceding_entries_too() -> None:
    """§5.3: This also commits all preceding entries, including entries created by previous leaders."""
    leader = make_leader(term=3, log=log_of(1, 2, 3))

    acknowledge(leader, 1)

    assert leader.commit_index == 3
    assert [entry.term for entry in drain_committed(leader)] == [1, 2, 3, 4]


def test_the_leader_tells_the_commit_index_in_later_append_entries() -> None:
    """§5.3: The leader keeps track of the highest index it knows to be committed, and includes it in future RPCs."""
    leader = make_leader()
    acknowledge(leader, 1)

    messages = drain(leader)

    assert [(message.commit_index, message.entries) for message in appends_to(messages, 1)] == [(0, [])]


def test_a_follower_applies_committed_entries_in_log_order() -> None:
    """§5.3: Once a follower learns that a log entry is committed, it applies the entry (in log order)."""
    server = make_server(term=1)
    entries = entries_of(1, 1, 1)

    server.step(AppendEntries(1, 0, 1, -1, -1, entries, 1))
    first = drain_committed(server)
    server.step(AppendEntries(1, 0, 1, 2, 1, [], 2))
    second = drain_committed(server)

    assert (first, second) == (entries[:2], entries[2:])
    assert server.last_applied == 2


def test_a_follower_refuses_entries_where_its_log_does_not_match() -> None:
    """§5.3: If the follower does not find an entry with the same index and term, then it refuses the new entries."""
    server = make_server(term=3, log=log_of(1, 1))

    server.step(AppendEntries(1, 0, 3, 1, 2, entries_of(3, first=2), 5))
    server.step(AppendEntries(1, 0, 3, 4, 2, entries_of(3, first=5), 5))

    assert server.log == log_of(1, 1)
    assert server.commit_index == -1
    expect_ready(
        server,
        messages_after_persist=[
            AppendEntriesResponse(0, 1, 3, False, -1, hint_index=1, hint_term=1, rejected_index=1),
            AppendEntriesResponse(0, 1, 3, False, -1, hint_index=1, hint_term=1, rejected_index=4),
        ],
        state_changed=True,
    )


@pytest.mark.parametrize(
    ("held", "prev_index", "sent", "expected"),
    [
        ((), -1, (1,), (1,)),
        ((1,), 0, (1, 1), (1, 1, 1)),
        ((1, 1, 1), 0, (1,), (1, 1, 1)),
        ((1, 1, 1), 0, (2,), (1, 2)),
        ((1, 1, 2), -1, (1, 1, 3, 3), (1, 1, 3, 3)),
        ((1, 2, 2, 2), 1, (), (1, 2, 2, 2)),
    ],
)
def test_a_follower_keeps_what_agrees_and_replaces_from_the_first_conflict(
    held: tuple[int, ...], prev_index: int, sent: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """Figure 2: If an existing entry conflicts with a new one, delete the existing entry and all that follow it."""
    server = make_server(term=3, log=log_of(*held))
    prev_term = held[prev_index] if prev_index >= 0 else -1

    server.step(AppendEntries(1, 0, 3, prev_index, prev_term, entries_of(*sent, first=prev_index + 1), -1))

    assert server.log == log_of(*expected)
    assert [message.success for message in drain(server)] == [True]  # type: ignore[union-attr]


def test_a_leader_never_overwrites_or_deletes_entries_of_its_own_log() -> None:
    """§5.3: A leader never overwrites or deletes entries in its own log (Leader Append-Only, Figure 3)."""
    leader = make_leader(term=1, log=log_of(1, 1))
    before = list(leader.log)

    leader.step(AppendEntriesResponse(1, 0, 2, False, -1, hint_index=0, hint_term=1, rejected_index=1))
    leader.step(AppendEntries(1, 0, 1, -1, -1, entries_of(1), -1))

    assert list(leader.log) == before


def test_a_new_leader_begins_with_next_index_after_its_last_entry() -> None:
    """§5.3: When a leader first comes to power, it initializes all nextIndex values to just after its last entry."""
    leader = make_leader(term=2, log=log_of(1, 2), noop=False)

    assert [(peer.next_index, peer.match_index) for peer in leader.progress.values()] == [(2, -1), (2, -1)]


def test_a_leader_goes_back_after_a_rejection_until_the_logs_match() -> None:
    """§5.3: After a rejection, the leader decrements nextIndex and retries; eventually it reaches a matching point."""
    leader = make_leader(term=4, log=log_of(1, 1, 4, 4))
    drain(leader)

    leader.step(AppendEntriesResponse(1, 0, 5, False, -1, 0, hint_index=2, hint_term=2, rejected_index=3))

    (retry,) = appends_to(drain(leader), 1)
    assert (retry.prev_index, retry.prev_term) == (1, 1)
    assert [entry.term for entry in retry.entries] == [4, 4, 5]
    leader.step(AppendEntriesResponse(1, 0, 5, True, 4))
    assert leader.progress[1].match_index == 4


def test_one_rejection_skips_a_whole_conflicting_term() -> None:
    """§5.3: one AppendEntries RPC will be required for each term with conflicting entries."""
    cluster = figure_7_cluster({1: (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3)})  # follower (f) of Figure 7

    rejections = count_rejections(cluster, node_id=1)

    assert cluster[1].log == cluster[0].log
    assert rejections == 1


@pytest.mark.parametrize(
    "held",
    [
        pytest.param((1, 1, 1, 4, 4, 5, 5, 6, 6), id="a"),
        pytest.param((1, 1, 1, 4), id="b"),
        pytest.param((1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6), id="c"),
        pytest.param((1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7), id="d"),
        pytest.param((1, 1, 1, 4, 4, 4, 4), id="e"),
        pytest.param((1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3), id="f"),
    ],
)
def test_the_leader_of_figure_7_brings_each_follower_into_line(held: tuple[int, ...]) -> None:
    """§5.3, Figure 7: the leader handles inconsistencies by forcing the followers' logs to duplicate its own."""
    cluster = figure_7_cluster({1: held})

    cluster.settle()

    assert cluster[1].log == cluster[0].log
    assert [entry.term for entry in cluster[1].log] == [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 8]


def test_append_entries_is_idempotent() -> None:
    """§5.5: if a follower receives an AppendEntries request that includes entries already present, it ignores those."""
    server = make_server(term=1)
    message = AppendEntries(1, 0, 1, -1, -1, entries_of(1, 1), 1)
    server.step(message)
    drain(server)

    server.step(message)

    assert server.log == log_of(1, 1)
    expect_ready(server, messages_after_persist=[AppendEntriesResponse(0, 1, 1, True, 1)])


# -- §5.4 Safety


@pytest.mark.parametrize(
    ("last_term", "last_index", "granted"),
    [(1, 5, False), (2, 0, False), (2, 1, True), (2, 2, True), (3, 0, True), (3, 9, True)],
)
def test_a_voter_denies_its_vote_if_its_own_log_is_more_up_to_date(
    last_term: int, last_index: int, granted: bool
) -> None:
    """§5.4.1: later term first, then longer log, is more up-to-date."""
    server = make_server(term=3, log=log_of(1, 2))

    server.step(RequestVote(1, 0, 4, last_index, last_term))

    assert server.voted_for == (1 if granted else None)
    expect_ready(
        server,
        hard_state=HardState(4, 1 if granted else None),
        messages_after_persist=[RequestVoteResponse(0, 1, 4, granted)],
        state_changed=True,
    )


def test_a_vote_request_says_how_up_to_date_the_candidate_is() -> None:
    """§5.4.1: the RPC includes information about the candidate's log."""
    server = make_server(term=3, log=log_of(1, 2, 3, 3))

    server.campaign(pre_vote=False)

    assert {(message.last_log_index, message.last_log_term) for message in vote_requests(drain(server))} == {(3, 3)}


def test_an_entry_of_an_older_term_is_not_committed_by_counting_replicas() -> None:
    """§5.4.2: Raft never commits log entries from previous terms by counting replicas."""
    leader = make_leader(term=2, log=log_of(1, 2))

    acknowledge(leader, 1, 2, match_index=1)
    assert leader.commit_index == -1
    acknowledge(leader, 1, match_index=2)

    assert leader.commit_index == 2


def test_a_leader_without_a_noop_waits_for_an_entry_of_its_own() -> None:
    """§5.4.2, Figure 8: only log entries from the leader's current term are committed by counting replicas."""
    leader = make_leader(term=2, log=log_of(1, 2), noop=False)
    acknowledge(leader, 1, 2)
    assert leader.commit_index == -1

    leader.propose(b"own")
    drain(leader)
    acknowledge(leader, 1)

    assert leader.commit_index == 2


def test_a_follower_commits_only_what_the_message_verified() -> None:
    """Figure 2: set commitIndex = min(leaderCommit, index of last new entry)."""
    server = make_server(term=2, log=log_of(1, 1, 1, 1))

    server.step(AppendEntries(1, 0, 2, 0, 1, entries_of(1, first=1), 3))

    assert server.commit_index == 1


def test_the_commit_index_never_falls() -> None:
    """Figure 2: commitIndex ... increases monotonically."""
    server = make_server(term=1)
    server.step(AppendEntries(1, 0, 1, -1, -1, entries_of(1, 1, 1), 2))

    server.step(AppendEntries(1, 0, 1, -1, -1, entries_of(1), 0))

    assert server.commit_index == 2


# -- §5.5 and Figure 2: what must be durable


def test_a_vote_leaves_only_after_term_and_vote_are_durable() -> None:
    """Figure 2: persistent state is updated on stable storage before responding to RPCs."""
    server = make_server()

    server.step(RequestVote(1, 0, 1, -1, -1))
    ready = server.ready()

    assert ready.hard_state == HardState(1, 1)
    assert ready.messages == []
    assert ready.messages_after_persist == [RequestVoteResponse(0, 1, 1, True)]


def test_an_acknowledgement_leaves_only_after_its_entries_are_durable() -> None:
    """Figure 2: the log is persistent state."""
    server = make_server(term=1)

    server.step(AppendEntries(1, 0, 1, -1, -1, entries_of(1, 1), -1))
    ready = server.ready()

    assert (ready.entries_from, ready.entries) == (0, entries_of(1, 1))
    assert ready.messages == []
    assert ready.messages_after_persist == [AppendEntriesResponse(0, 1, 1, True, 1)]


def test_a_candidate_asks_only_after_its_own_vote_is_durable() -> None:
    """Figure 2: votedFor is persistent state."""
    server = make_server()

    server.campaign(pre_vote=False)
    ready = server.ready()

    assert (ready.hard_state, ready.messages) == (HardState(1, 0), [])
    assert len(vote_requests(ready.messages_after_persist)) == 2


def test_a_leader_sends_entries_beside_its_own_write_but_counts_itself_after_it() -> None:
    """D§10.2.1: the leader may write its log in parallel with replicating; it counts itself once it is durable."""
    leader = make_leader()
    acknowledge(leader, 1, 2)
    drain(leader)
    leader.propose(b"x")
    ready = leader.ready()
    assert len(ready.messages) == 2

    leader.step(AppendEntriesResponse(1, 0, 1, True, 1))
    assert leader.commit_index == 0
    leader.advance(ready)

    assert leader.commit_index == 1


def test_a_leader_of_a_term_that_is_not_durable_holds_its_messages_back() -> None:
    """Figure 2: a server that leads by its own vote alone must not speak before the vote is durable."""
    configuration = Configuration(voters=frozenset({0}), learners=frozenset({1}), next_node_id=2)
    server = make_server(configuration=configuration)

    server.campaign()
    ready = server.ready()

    assert (server.state, ready.messages) == (LeaderState, [])
    assert len(appends_to(ready.messages_after_persist, 1)) == 1


def test_a_restarted_server_keeps_term_vote_and_log() -> None:
    """§5.5: servers that crash restart with the state of their stable storage."""
    server = make_server(term=7, voted_for=2, log=log_of(1, 7))

    server.step(RequestVote(1, 0, 7, 5, 7))

    assert (server.current_term, server.voted_for, server.log) == (7, 2, log_of(1, 7))
    assert server.commit_index == -1
    expect_ready(server, messages_after_persist=[RequestVoteResponse(0, 1, 7, False)])


# -- §6 Cluster membership changes


def test_a_configuration_takes_effect_as_soon_as_it_is_in_the_log() -> None:
    """§6: a server always uses the latest configuration in its log, regardless of whether the entry is committed."""
    server = make_server(term=1)
    bigger = voters(0, 1, 2, 3)

    server.step(AppendEntries(1, 0, 1, -1, -1, [LogEntry(1, bigger)], -1))

    assert server.configuration == bigger
    assert server.commit_index == -1


def test_a_configuration_that_is_overwritten_is_rolled_back() -> None:
    """D§4.1: a server falls back to the previous configuration when the entry is removed."""
    server = make_server(term=1)
    server.step(AppendEntries(1, 0, 1, -1, -1, [LogEntry(1, voters(0, 1, 2, 3))], -1))

    server.step(AppendEntries(2, 0, 2, -1, -1, [LogEntry(2, b"other")], -1))

    assert server.configuration == voters(0, 1, 2)


def test_a_joint_change_needs_both_majorities_to_commit() -> None:
    """§6: Agreement (for elections and entry commitment) requires separate majorities from the old and new sets."""
    leader = settled_leader(size=3, learners=frozenset({3, 4}))
    index = leader.change_membership([RemoveNode(1), RemoveNode(2), AddVoter(3), AddVoter(4)])
    drain(leader)
    assert leader.configuration.joint

    acknowledge(leader, 1, 2, match_index=index)
    assert leader.commit_index == index - 1
    acknowledge(leader, 3, match_index=index)

    assert leader.commit_index >= index


def test_a_candidate_in_a_joint_configuration_needs_both_majorities() -> None:
    """§6: elections need separate majorities as well."""
    joint = Configuration(voters=frozenset({0, 3, 4}), voters_outgoing=frozenset({0, 1, 2}), next_node_id=5)
    server = make_candidate(configuration=joint)

    server.step(RequestVoteResponse(1, 0, 1, True))
    server.step(RequestVoteResponse(2, 0, 1, True))
    assert server.state is CandidateState
    server.step(RequestVoteResponse(4, 0, 1, True))

    assert server.state is LeaderState


def test_log_entries_go_to_all_servers_of_both_configurations() -> None:
    """§6: Log entries are replicated to all servers in both configurations."""
    joint = Configuration(voters=frozenset({0, 3}), voters_outgoing=frozenset({0, 1, 2}), next_node_id=4)
    leader = make_leader(configuration=joint)
    acknowledge(leader, 1, 2, match_index=0)
    drain(leader)

    leader.propose(b"x")

    assert {message.dest for message in drain(leader)} == {1, 2}  # node 3 has a probe under way
    acknowledge(leader, 3, match_index=0)
    assert len(appends_to(drain(leader), 3)) == 1


def test_the_leader_leaves_the_joint_phase_once_it_is_committed() -> None:
    """§6: Once C_old,new has been committed, it is safe for the leader to create a log entry describing C_new."""
    leader = settled_leader(size=3)
    index = leader.change_membership([RemoveNode(1), RemoveNode(2)])
    drain(leader)
    assert leader.configuration == Configuration(frozenset({0}), frozenset({0, 1, 2}), next_node_id=3)

    acknowledge(leader, 1, match_index=index)

    assert leader.configuration == voters(0)._replace(next_node_id=3)
    assert leader.log[index + 1].item == leader.configuration


def test_new_servers_receive_the_log_before_they_vote() -> None:
    """§6: new servers join as non-voting members (the leader replicates to them, but they do not count)."""
    leader = settled_leader(size=1)

    leader.change_membership([AddVoter(1)])
    drain(leader)

    assert (set(leader.configuration.voters), set(leader.configuration.learners)) == ({0}, {1})
    catch_up(leader, 1)
    assert leader.configuration.voters == {0, 1}


def test_a_removed_leader_manages_the_cluster_until_its_removal_is_committed_then_steps_down() -> None:
    """§6: the leader steps down once it has committed C_new; while it manages, it does not count itself."""
    leader = settled_leader(size=3)
    index = leader.change_membership([RemoveNode(0)])
    drain(leader)

    acknowledge(leader, 1, match_index=index)
    assert (leader.state, leader.commit_index) == (LeaderState, index - 1)
    acknowledge(leader, 2, match_index=index)

    assert (leader.state, leader.commit_index) == (FollowerState, index)
    messages = drain(leader)
    assert {message.commit_index for message in messages if isinstance(message, AppendEntries)} == {index}
    assert len(timeout_nows(messages)) == 1


def test_servers_disregard_vote_requests_while_they_believe_a_current_leader_exists() -> None:
    """§6: a RequestVote within the minimum election timeout of hearing from a leader is ignored."""
    server = follower_of(1, 1)

    server.tick(server.config.election_timeout_ticks - 1)
    server.step(RequestVote(2, 0, 9, 99, 8))
    assert (server.current_term, server.voted_for) == (1, None)
    expect_quiet(server)
    server.tick()
    server.step(RequestVote(2, 0, 9, 99, 8))

    assert (server.current_term, server.voted_for) == (9, 2)


def test_a_server_votes_for_a_candidate_that_is_not_in_its_configuration() -> None:
    """D§4.1: a server accepts RequestVote from a candidate outside its configuration; it may be behind."""
    server = make_server()

    server.step(RequestVote(7, 0, 1, -1, -1))

    assert server.voted_for == 7


def test_a_server_accepts_entries_from_a_leader_that_is_not_in_its_configuration() -> None:
    """D§4.1: otherwise a new server, whose configuration is empty, could never be brought up to date."""
    server = make_server(9, configuration=Configuration())

    server.step(AppendEntries(0, 9, 3, -1, -1, [LogEntry(1, voters(0, 1, 2))], 0))

    assert (server.leader_id, server.commit_index, server.configuration) == (0, 0, voters(0, 1, 2))


def test_a_server_that_is_no_voter_never_campaigns() -> None:
    """D§4.2.1: non-voting members do not start elections."""
    configuration = Configuration(voters=frozenset({1, 2}), learners=frozenset({0}), next_node_id=3)
    server = make_server(configuration=configuration)

    server.tick(1000)
    server.campaign()
    server.step(TimeoutNow(1, 0, 0))

    assert (server.state, server.current_term) == (FollowerState, 0)
    expect_quiet(server)


def test_a_server_outside_its_latest_configuration_campaigns_until_that_is_committed() -> None:
    """D§4.2.2: it still starts elections, as it may be needed until C_new is committed; it does not count itself."""
    log = RaftLog([LogEntry(1, b"x"), LogEntry(1, voters(1, 2))])
    server = make_server(term=1, log=log, config=PLAIN)

    server.tick(server.election_timeout)
    assert server.state is CandidateState
    server.step(RequestVoteResponse(1, 0, 2, True))
    assert server.state is CandidateState
    server.step(RequestVoteResponse(2, 0, 2, True))

    assert server.state is LeaderState


# -- §7 Log compaction


def test_a_snapshot_replaces_the_log_up_to_its_last_included_entry() -> None:
    """§7: With a complete snapshot, a server may delete all log entries up through the last included index."""
    server = committed_follower(4)

    first = server.snapshot_taken(EntryId(1, 2), server.configuration, trailing=0)

    assert first == 3
    assert (server.log.first_index, len(server.log), server.log.previous_term) == (3, 4, 1)


def test_the_consistency_check_works_for_the_first_entry_after_a_snapshot() -> None:
    """§7: last included index and term are preserved to support the consistency check for the first entry following."""
    server = committed_follower(3)
    server.snapshot_taken(EntryId(1, 2), server.configuration, trailing=0)

    server.step(AppendEntries(1, 0, 1, 2, 1, entries_of(1, first=3), 2))

    assert [message.success for message in drain(server)] == [True]  # type: ignore[union-attr]
    assert server.log.last_index == 3


def test_a_leader_sends_its_snapshot_to_a_follower_that_needs_discarded_entries() -> None:
    """§7: the leader must occasionally send snapshots to followers that lag behind."""
    leader = leader_with_snapshot()

    leader.step(AppendEntriesResponse(1, 0, 2, False, -1, 1, hint_index=-1, hint_term=-1, rejected_index=3))

    (chunk,) = [message for message in drain(leader) if isinstance(message, InstallSnapshot)]
    assert chunk == InstallSnapshot(0, 1, 2, 3, 1, voters(0, 1, 2), 0, b"", False, 1)


def test_a_follower_discards_its_whole_log_for_a_snapshot_with_new_information() -> None:
    """§7: the follower discards its entire log; it is all superseded by the snapshot."""
    server = make_server(term=2, log=log_of(1, 1, 1))
    configuration = voters(0, 1, 2, 3)

    server.step(InstallSnapshot(1, 0, 2, 9, 2, configuration, 0, b"state", True))

    assert (len(server.log), server.log.first_index, server.commit_index) == (10, 10, 9)
    assert server.configuration == configuration
    ready = server.ready()
    assert [chunk.data for chunk in ready.snapshot_chunks] == [b"state"]
    assert ready.install == EntryId(2, 9)
    assert ready.messages_after_persist == [InstallSnapshotResponse(0, 1, 2, 9, 5, True)]
    assert (ready.committed, ready.entries) == ([], [])


def test_a_follower_keeps_entries_that_follow_a_snapshot_of_a_prefix_of_its_log() -> None:
    """§7: If the snapshot describes a prefix of its log, the entries following it are valid and retained."""
    server = make_server(term=1, log=log_of(1, 1, 1, 1))

    server.step(InstallSnapshot(1, 0, 1, 1, 1, voters(0, 1, 2), 0, b"state", True))

    assert server.log == log_of(1, 1, 1, 1)
    assert server.commit_index == 1
    ready = server.ready()
    assert (ready.install, ready.snapshot_chunks) == (None, ())
    assert ready.messages_after_persist == [InstallSnapshotResponse(0, 1, 1, 1, 5, True)]


def test_a_snapshot_chunk_counts_as_hearing_the_leader() -> None:
    """§7: since the leader sends chunks in order, each one is a sign of life and resets the election timer."""
    server = make_server(term=1)
    server.tick(15)

    server.step(InstallSnapshot(1, 0, 1, 9, 1, voters(0, 1, 2), 0, b"part", False))

    assert (server.election_elapsed, server.leader_id) == (0, 1)


# -- §8 Client interaction


def test_a_leader_commits_a_blank_entry_at_the_start_of_its_term() -> None:
    """§8: Raft has each leader commit a blank no-op entry into the log at the start of its term."""
    leader = make_leader(term=4, log=log_of(4))

    assert leader.log[1] == LogEntry(5, None)


def test_a_leader_checks_that_it_has_not_been_deposed_before_a_read() -> None:
    """§8: the leader exchanges heartbeat messages with a majority before responding to read-only requests."""
    leader = settled_leader(size=5)

    leader.read_index(7)
    asked = leader.reads.round + 1
    assert {message.round for message in drain(leader)} == {asked}  # type: ignore[union-attr]
    acknowledge(leader, 1, in_round=asked)
    expect_quiet(leader)
    acknowledge(leader, 2, in_round=asked)

    expect_ready(leader, reads=[ReadState(7, leader.commit_index)])


def test_a_leader_without_a_commit_of_its_own_term_answers_no_read() -> None:
    """§8: a leader must have the latest information on which entries are committed."""
    leader = make_leader(term=1, log=log_of(1))
    leader.read_index(7)
    drain(leader)

    acknowledge(leader, 1, 2, match_index=0, in_round=99)
    assert leader.ready().reads == []


# -- D§3.10 Leadership transfer


def test_a_transfer_brings_the_target_up_to_date_then_tells_it_to_time_out() -> None:
    """D§3.10: the prior leader stops accepting requests, updates the target's log, and sends TimeoutNow."""
    leader = settled_leader(size=3)
    leader.propose(b"x")
    drain(leader)

    leader.transfer_leadership(1)
    with pytest.raises(ProposalRefused):
        leader.propose(b"y")
    assert timeout_nows(drain(leader)) == []
    acknowledge(leader, 1)

    assert timeout_nows(drain(leader)) == [TimeoutNow(0, 1, 1)]


def test_the_target_of_a_transfer_starts_an_election_at_once() -> None:
    """D§3.10: the target increments its term and becomes a candidate, as if its election timer had elapsed."""
    server = follower_of(1, 4)

    server.step(TimeoutNow(1, 0, 4))

    assert (server.state, server.current_term) == (CandidateState, 5)
    assert all(message.transfer and not message.pre_vote for message in vote_requests(drain(server)))


def test_votes_for_a_transfer_are_given_while_the_old_leader_is_heard() -> None:
    """D§4.2.3: the check of a current leader is bypassed for an election that the leader itself asked for."""
    server = follower_of(1, 4)

    server.step(RequestVote(2, 0, 5, -1, -1, transfer=True))

    assert (server.current_term, server.voted_for) == (5, 2)


def test_a_transfer_that_fails_is_given_up_after_an_election_timeout() -> None:
    """D§3.10: if leadership transfer does not complete after about an election timeout, the leader resumes."""
    leader = settled_leader(size=3)
    leader.transfer_leadership(1)

    for _ in range(leader.config.election_timeout_ticks):
        acknowledge(leader, 2)
        leader.tick()

    assert leader.transfer_target is None
    leader.propose(b"y")


# -- D§4.2.1, D§6.2, D§6.4, D§9.6


def test_a_change_is_refused_before_the_leader_has_committed_in_its_term() -> None:
    """D§4.1, corrected in 2015: no change of membership before an entry of the leader's term is committed."""
    leader = make_leader()

    with pytest.raises(ProposalRefused):
        leader.change_membership([RemoveNode(2)])


def test_a_change_is_refused_while_another_is_uncommitted() -> None:
    """D§4.1: once a server has begun a change, it must not begin another until the first is committed."""
    leader = settled_leader(size=3)
    leader.change_membership([AddLearner(3)])

    with pytest.raises(ProposalRefused):
        leader.change_membership([RemoveNode(2)])


def test_a_leader_that_hears_no_quorum_for_an_election_timeout_steps_down() -> None:
    """D§6.2: a leader steps down if an election timeout elapses without heartbeats to a majority succeeding."""
    leader = settled_leader(size=3)

    leader.tick(leader.config.election_timeout_ticks)
    assert leader.state is LeaderState  # it was heard in this interval
    leader.tick(leader.config.election_timeout_ticks)

    assert (leader.state, leader.current_term, leader.leader_id) == (FollowerState, 1, None)


def test_a_pre_candidate_raises_its_term_only_with_a_majority_behind_it() -> None:
    """D§9.6: a candidate only increments its term if a majority would be willing to grant it their votes."""
    server = make_server(size=5, term=3, voted_for=2)
    server.tick(server.election_timeout)
    assert (server.state, server.current_term, server.voted_for) == (FollowerState, 3, 2)
    assert {(message.term, message.pre_vote) for message in vote_requests(drain(server))} == {(4, True)}

    server.step(RequestVoteResponse(1, 0, 4, True, pre_vote=True))
    assert server.current_term == 3
    server.step(RequestVoteResponse(2, 0, 4, True, pre_vote=True))

    assert (server.state, server.current_term, server.voted_for) == (CandidateState, 4, 0)


def test_a_pre_vote_is_refused_while_a_leader_is_heard_or_the_log_is_behind() -> None:
    """D§9.6: granted if the log is up to date and no leader was heard for an election timeout."""
    hearing, ahead = follower_of(1, 1), make_server(term=1, log=log_of(1))

    hearing.step(RequestVote(2, 0, 2, 9, 1, pre_vote=True))
    ahead.step(RequestVote(2, 0, 2, -1, -1, pre_vote=True))

    for server in (hearing, ahead):
        expect_ready(server, messages_after_persist=[RequestVoteResponse(0, 2, 1, False, True)])
        assert (server.current_term, server.voted_for) == (1, None)


def test_granting_a_pre_vote_changes_nothing() -> None:
    """D§9.6: a pre-vote is a question, not a vote."""
    server = make_server(term=1)
    server.tick(15)

    for source in (1, 2):
        server.step(RequestVote(source, 0, 2, -1, -1, pre_vote=True))

    assert (server.current_term, server.voted_for, server.election_elapsed) == (1, None, 15)
    expect_ready(server, messages_after_persist=[RequestVoteResponse(0, source, 2, True, True) for source in (1, 2)])


def test_a_read_index_is_the_commit_index_at_the_time_of_the_question() -> None:
    """D§6.4: the leader saves its current commit index in a local variable readIndex."""
    leader = settled_leader(size=3)
    leader.read_index(7)
    drain(leader)
    asked_at = leader.commit_index

    leader.propose(b"x")
    drain(leader)
    acknowledge(leader, 1)

    assert leader.commit_index == asked_at + 1
    assert leader.ready().reads == [ReadState(7, asked_at)]


def test_a_follower_serves_a_read_at_an_index_that_the_leader_confirms() -> None:
    """D§6.4: the follower asks the leader for a current readIndex, then waits for its state machine to catch up."""
    server = follower_of(2, 1)

    server.read_index(70)
    expect_ready(server, messages_after_persist=[ReadIndex(0, 2, 1, 0)])
    server.step(ReadIndexResponse(2, 0, 1, 0, 12))

    expect_ready(server, reads=[ReadState(70, 12)])


# -- helpers


def figure_7_cluster(followers: dict[int, tuple[int, ...]]) -> Cluster:
    """The leader of Figure 7, just elected for term 8, and some of its followers."""
    cluster = Cluster(0, configuration=voters(0, *followers))
    for node_id, terms in {0: (1, 1, 1, 4, 4, 5, 5, 6, 6, 6), **followers}.items():
        server = RaftServer(
            node_id,
            configuration=cluster.configuration,
            draw=lowest,
            log=log_of(*terms),
            hard_state=HardState(7),
        )
        cluster.add(node_id)
        cluster.disks[node_id].log = log_of(*terms)
        cluster.servers[node_id] = server
    cluster[0].become_leader_now(8)
    return cluster


def count_rejections(cluster: Cluster, node_id: int) -> int:
    rejections = 0
    cluster.deliver([])
    while cluster.messages:
        rejections += sum(
            isinstance(message, AppendEntriesResponse) and not message.success and message.source == node_id
            for message in cluster.messages
        )
        cluster.deliver()
    return rejections
