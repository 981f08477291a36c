"""One test per sentence that a server must obey: what is durable, membership, compaction, clients, reads.

Continues test_paper.py, which has §5.1 to §5.4. "§" is the extended Raft paper, "D§" the dissertation.
"""

from __future__ import annotations

import pytest

from actorraft.raft import (
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
    ProposalRefused,
    RaftConfig,
    RaftLog,
    ReadIndex,
    ReadIndexResponse,
    ReadState,
    RemoveNode,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from tests.helpers import (
    acknowledge,
    appends_to,
    catch_up,
    committed_follower,
    drain,
    entries_of,
    expect_quiet,
    expect_ready,
    follower_of,
    leader_with_snapshot,
    log_of,
    make_candidate,
    make_leader,
    make_server,
    settled_leader,
    timeout_nows,
    vote_requests,
    voters,
)

PLAIN = RaftConfig(pre_vote=False, check_quorum=False)  # the paper's algorithm without the dissertation's additions


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
    assert (ready.install, ready.snapshot_chunks) == (None, [])
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
