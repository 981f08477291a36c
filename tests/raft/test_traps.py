"""Where Raft systems went wrong before: one test, at least, for each trap in the algorithm; docs/traps.md has them all."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

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
    MemberChange,
    Message,
    ProposalRefused,
    RaftConfig,
    RaftLog,
    ReadState,
    RemoveNode,
    RequestVote,
    RequestVoteResponse,
    VoteResult,
    append_entries,
    committed_index,
    vote_result,
)
from actorraft.raft.membership import enter_joint
from tests.helpers import (
    Cluster,
    acknowledge,
    appends_to,
    drain,
    drain_committed,
    entries_of,
    expect_quiet,
    follower_of,
    log_of,
    make_candidate,
    make_leader,
    make_server,
    settled_leader,
    take,
    vote_requests,
    voters,
)
from tests.raft.test_random_schedules import run_world

# -- 1: entries of older terms


def test_trap_1_figure_8_an_entry_of_an_older_term_is_not_committed_by_counting() -> None:
    """§5.4.2, Figure 8: (c) the term-2 entry is on a majority, yet (d) may still overwrite it."""
    cluster = Cluster(5, noop=False, config=RaftConfig(pre_vote=False, check_quorum=False))
    for node_id, terms in {0: (1, 2), 1: (1, 2), 2: (1,), 3: (1,), 4: (1, 3)}.items():
        cluster.disks[node_id].log = log_of(*terms)
        cluster.disks[node_id].hard_state = HardState(3)
        cluster.crash(node_id)
        cluster.restart(node_id)
    cluster[0].become_leader_now(4)
    cluster.drop(lambda message: message.dest in (3, 4) and isinstance(message, AppendEntries))
    cluster.settle()
    assert [cluster[node_id].log.last_index for node_id in range(3)] == [1, 1, 1]

    assert cluster[0].commit_index == -1  # (c): on a majority, not committed
    cluster.heal()
    cluster.isolate(0)
    cluster[4].campaign(pre_vote=False)
    cluster[4].campaign(pre_vote=False)
    cluster.settle()

    assert cluster[4].state is LeaderState  # (d)
    cluster.propose(4, b"own")
    cluster.settle()
    assert cluster[1].log[1].term == 3
    assert cluster[4].commit_index == 2


def test_trap_1_both_commit_once_an_own_term_entry_does() -> None:
    """§5.4.2, Figure 8 (e): an own-term entry commits the older ones with it."""
    leader = make_leader(size=5, term=2, log=log_of(1, 2), noop=False)
    acknowledge(leader, 1, 2, match_index=1)
    assert leader.commit_index == -1

    leader.propose(b"own")
    drain(leader)
    acknowledge(leader, 1, 2, match_index=2)

    assert leader.commit_index == 2


# -- 2: term and vote before the reply


@pytest.mark.parametrize("crash_at", ["write", "send", ""])
@pytest.mark.parametrize("second_asks_first", [False, True])
def test_trap_2_a_crash_at_any_write_point_never_gives_two_votes(crash_at: str, second_asks_first: bool) -> None:
    """§5.2: restart, second candidate in the same term: never two grants."""
    cluster = Cluster(3)
    first, second = RequestVote(1, 0, 1, -1, -1), RequestVote(2, 0, 1, -1, -1)
    if second_asks_first:
        first, second = second, first
    cluster[0].step(first)
    cluster.work(0, crash_at=crash_at)
    if crash_at:
        cluster.restart(0)

    for _ in range(2):
        cluster[0].step(second)
        cluster.work(0)
        cluster[0].step(first)
        cluster.work(0)

    granted = {message.dest for message in cluster.messages if getattr(message, "vote_granted", False)}
    assert len(granted) == 1
    assert cluster.disks[0].hard_state.voted_for in granted


# -- 3: late appends


def test_trap_3_a_late_append_whose_entries_match_never_shortens_the_log() -> None:
    """§5.3: every way to repeat a part of what was sent, in any order, leaves the log as it is."""
    sent = entries_of(1, 1, 1, 1)
    for first, stop in itertools.combinations(range(5), 2):
        server = make_server(term=1)
        server.step(AppendEntries(1, 0, 1, -1, -1, sent, -1))
        plain = list(sent)

        server.step(AppendEntries(1, 0, 1, first - 1, 1 if first else -1, sent[first:stop], -1))
        assert append_entries(plain, first - 1, 1 if first else -1, sent[first:stop])

        assert server.log == sent
        assert plain == sent


def test_trap_3_a_conflict_truncates_from_the_conflict_only() -> None:
    """§5.3: what agrees stays, and is not written again."""
    server = make_server(term=2, log=log_of(1, 1, 1, 1))

    server.step(AppendEntries(1, 0, 2, -1, -1, [*entries_of(1, 1), LogEntry(2, b"new")], -1))

    ready = take(server)
    assert (ready.entries_from, ready.entries) == (2, [LogEntry(2, b"new")])
    assert [entry.term for entry in server.log] == [1, 1, 2]


# -- 4: the follower's commit index


def test_trap_4_a_heartbeat_does_not_commit_entries_that_it_did_not_verify() -> None:
    """Figure 2: a leader's commit index beyond what the message verified commits only up to there."""
    server = make_server(term=2, log=log_of(1, 1, 1))  # entries 1 and 2 may be another leader's

    server.step(AppendEntries(1, 0, 2, 0, 1, [], 2))

    assert server.commit_index == 0


def test_trap_4_a_heartbeat_that_does_not_match_commits_nothing() -> None:
    """Figure 2: a refused message verifies nothing."""
    server = make_server(term=2, log=log_of(1, 1))

    server.step(AppendEntries(1, 0, 2, 5, 2, [], 5))

    assert server.commit_index == -1


def test_trap_4_nothing_is_committed_while_a_snapshot_is_coming_in() -> None:
    """§7: not before the last chunk; heartbeats in between verify nothing new."""
    server = make_server(term=2, log=log_of(1, 1))

    server.step(InstallSnapshot(1, 0, 2, 9, 2, voters(0, 1, 2), 0, b"part", False))
    server.step(AppendEntries(1, 0, 2, -1, -1, [], 9))

    assert (server.commit_index, server.log) == (-1, log_of(1, 1))


# -- 5: acknowledgements


def test_trap_5_late_and_repeated_acknowledgements_never_lower_match_index() -> None:
    """§5.3: within a term, match_index only grows."""
    leader = make_leader(size=5)
    leader.propose(b"x")
    leader.propose(b"y")
    drain(leader)

    for match_index in (2, 0, 1, 2, -1):
        acknowledge(leader, 1, match_index=match_index)
        assert leader.progress[1].match_index == 2
    assert leader.commit_index == -1  # one follower is no quorum, however often it answers


def test_trap_5_an_acknowledgement_of_another_term_counts_for_nothing() -> None:
    """§5.1: the log it speaks of may have been replaced since."""
    leader = make_leader(term=4, log=log_of(4))

    leader.step(AppendEntriesResponse(1, 0, 4, True, 1))
    leader.step(AppendEntriesResponse(2, 0, 4, True, 1))

    assert [leader.progress[peer_id].match_index for peer_id in (1, 2)] == [-1, -1]


def test_trap_5_an_acknowledgement_never_exceeds_what_the_message_verified() -> None:
    """§5.3: a longer log of the follower is not the leader's."""
    server = make_server(term=2, log=log_of(1, 1, 1, 1))

    server.step(AppendEntries(1, 0, 2, 0, 1, [], -1))

    assert drain(server) == [AppendEntriesResponse(0, 1, 2, True, 0)]


def test_trap_5_a_late_rejection_does_not_move_next_index_behind_match_index() -> None:
    """§5.3: rejections are late, too."""
    leader = settled_leader()
    leader.propose(b"x")
    drain(leader)
    acknowledge(leader, 1)

    leader.step(AppendEntriesResponse(1, 0, 1, False, -1, hint_index=-1, hint_term=-1, rejected_index=0))

    assert (leader.progress[1].match_index, leader.progress[1].next_index) == (1, 2)


# -- 6: votes


def test_trap_6_votes_are_counted_per_voter_not_per_message() -> None:
    """§5.2: a repeated answer is one vote."""
    server = make_candidate(size=5)

    for _ in range(4):
        server.step(RequestVoteResponse(1, 0, 1, True))

    assert server.state is CandidateState


def test_trap_6_learners_and_strangers_do_not_count() -> None:
    """D§4.2.1: only voters of the configuration elect and commit."""
    configuration = Configuration(voters=frozenset({0, 1, 2}), learners=frozenset({3, 4}), next_node_id=5)
    server = make_candidate(configuration=configuration)
    for peer_id in (3, 4, 77):
        server.step(RequestVoteResponse(peer_id, 0, 1, True))
    assert server.state is CandidateState
    server.step(RequestVoteResponse(1, 0, 1, True))
    drain(server)

    for peer_id in (3, 4, 77):
        acknowledge(server, peer_id)

    assert (server.state, server.commit_index) == (LeaderState, -1)


# -- 7: membership


def test_trap_7_the_first_story_of_2015_a_change_before_the_own_term_noop_is_refused() -> None:
    """Two leaders each add a node without having committed anything in their own term: neither may begin."""
    cluster = Cluster(4)
    cluster.elect(0)
    cluster.isolate(0)
    cluster[0].change_membership([AddLearner(4)])  # uncommitted: only node 0 has it
    cluster[1].campaign(pre_vote=False)
    for server in (cluster[2], cluster[3]):
        server.tick(server.config.election_timeout_ticks)
    cluster.drop(lambda message: isinstance(message, AppendEntriesResponse))
    cluster[1].campaign(pre_vote=False)
    cluster.settle()
    assert cluster[1].state is LeaderState

    with pytest.raises(ProposalRefused, match="own term"):
        cluster[1].change_membership([RemoveNode(3)])


def test_trap_7_the_second_story_an_uncommitted_change_of_an_old_leader_is_rolled_back() -> None:
    """The new leader's no-op replaces the old leader's configuration entry, and the old configuration is back."""
    cluster = Cluster(4)
    cluster.elect(0)
    before = cluster[0].configuration
    cluster.isolate(0)
    cluster[0].change_membership([RemoveNode(3)])
    cluster.work(0)
    assert cluster[0].configuration != before
    for server in (cluster[1], cluster[2], cluster[3]):
        server.tick(server.config.election_timeout_ticks)
    cluster.settle()
    cluster.tick(cluster.config.election_timeout_ticks)

    cluster.heal()
    cluster.tick(2 * cluster.config.election_timeout_ticks)

    assert {server.configuration for server in cluster.servers.values()} == {before}


def test_trap_7_the_third_story_majorities_of_consecutive_configurations_overlap() -> None:
    """One voter at a time, or jointly: every quorum of the old configuration meets every quorum of the new one."""
    for old, new in itertools.product(subsets(range(4)), repeat=2):
        if not old or not new:
            continue
        configuration = Configuration(voters=old)
        changes: list[MemberChange] = [
            *(AddVoter(node_id) for node_id in new - old),
            *(RemoveNode(node_id) for node_id in old - new),
        ]
        if len(old ^ new) <= 1:
            steps = [(old, frozenset[int]()), (new, frozenset[int]())]
        else:
            joint = enter_joint(configuration, changes)
            steps = [(old, frozenset()), (joint.voters, joint.voters_outgoing), (new, frozenset())]
        for (one, one_outgoing), (other, other_outgoing) in itertools.pairwise(steps):
            everyone = one | one_outgoing | other | other_outgoing
            for quorum in subsets(sorted(everyone)):
                rest = dict.fromkeys(everyone - quorum, True)
                if vote_result(one, dict.fromkeys(quorum, True), one_outgoing) is VoteResult.WON:
                    assert vote_result(other, rest, other_outgoing) is not VoteResult.WON


def test_trap_7_a_change_during_another_change_is_refused() -> None:
    """D§4.1: one at a time, until it is committed; the joint phase and the catching up included."""
    leader = settled_leader(size=3)
    leader.change_membership([AddVoter(3)])

    for _ in range(3):
        with pytest.raises(ProposalRefused, match="under way"):
            leader.change_membership([RemoveNode(1)])
        drain(leader)
        acknowledge(leader, 1, 2)  # commits the learner; node 3 has not caught up
    joint = settled_leader(size=3)
    joint.change_membership([RemoveNode(1), RemoveNode(2)])
    with pytest.raises(ProposalRefused, match="under way"):
        joint.change_membership([AddLearner(9)])


@pytest.mark.parametrize("with_snapshot", [False, True])
def test_trap_7_restart_or_snapshot_in_mid_change_keeps_the_joint_configuration(with_snapshot: bool) -> None:
    """§6: the configuration at the snapshot, and those after it in the log, survive; the change is finished later."""
    cluster = Cluster(3)
    cluster.elect(0)
    cluster.drop(lambda message: leaves_joint_phase(message) or (message.dest == 2 and hasattr(message, "entries")))
    cluster[0].change_membership([RemoveNode(1), RemoveNode(2)])
    cluster.settle()
    cluster.tick(cluster.config.heartbeat_ticks)
    joint = cluster[1].configuration
    assert joint.joint
    assert cluster[1].commit_index == 1
    if with_snapshot:
        cluster.snapshot(1)
        assert cluster.disks[1].log.first_index == 2

    cluster.messages.clear()
    for node_id in (0, 1):
        cluster.crash(node_id)
        cluster.restart(node_id)

    assert cluster[1].configuration == joint
    cluster.heal()
    cluster.tick(10 * cluster.config.election_timeout_ticks)
    assert cluster[0].configuration == voters(0)._replace(next_node_id=3)
    assert cluster[0].state is LeaderState
    assert cluster[0].commit_index == cluster[0].log.last_index


# -- 8: nodes that time out


@pytest.mark.parametrize("story", ["removed", "rejoining", "deaf"])
def test_trap_8_a_node_that_times_out_a_hundred_times_moves_neither_leader_nor_term(story: str) -> None:
    """D§9.6, D§4.2.3: a removed node, one that was cut off, one that sends but does not receive."""
    cluster = Cluster(4)
    leader = cluster.elect(0)
    if story == "removed":
        cluster.drop(lambda message: message.dest == 3 and isinstance(message, AppendEntries))
        leader.change_membership([RemoveNode(3)])
        cluster.settle()
    elif story == "rejoining":
        cluster.isolate(3)
    else:
        cluster.drop(lambda message: message.dest == 3)

    for _ in range(100):
        timeout = cluster[3].election_timeout
        cluster[3].tick(timeout)
        cluster.tick(2)
    cluster.heal()
    cluster.tick(20)

    assert [cluster[node_id].current_term for node_id in range(4)] == [1, 1, 1, 1]
    assert cluster.leaders() == [0]


# -- 9: reads


def test_trap_9_a_new_leader_answers_a_read_only_after_an_own_term_commit() -> None:
    """§8: it may not know yet what is committed."""
    leader = make_leader(term=1, log=log_of(1))
    leader.read_index(5)
    asked = leader.reads.round
    acknowledge(leader, 1, 2, match_index=0, in_round=asked + 9)
    assert take(leader).reads == []

    acknowledge(leader, 1, match_index=1, in_round=asked)
    drain(leader)
    acknowledge(leader, 1, in_round=leader.reads.round)

    assert take(leader).reads == [ReadState(5, 1)]


def test_trap_9_an_isolated_old_leader_never_answers() -> None:
    """D§6.4: no quorum, no answer; it is refused when the leader steps down."""
    cluster = Cluster(3)
    cluster.elect(0)
    cluster.isolate(0)
    cluster[0].read_index(5)
    cluster.settle()
    assert cluster.reads[0] == []

    cluster.tick(3 * cluster.config.election_timeout_ticks)

    assert cluster.reads[0] == [ReadState(5, -1)]


def test_trap_9_an_ack_of_an_earlier_round_confirms_no_later_read() -> None:
    """D§6.4: duplicated or late answers of the round before, however many, do not count."""
    leader = settled_leader(size=3)
    earlier = leader.reads.round
    leader.read_index(5)
    drain(leader)

    for _ in range(3):
        acknowledge(leader, 1, 2, in_round=earlier)
    expect_quiet(leader)
    acknowledge(leader, 1, in_round=earlier + 1)

    assert take(leader).reads == [ReadState(5, 0)]


def test_trap_9_an_ack_of_the_first_try_does_not_confirm_the_retry_of_a_read() -> None:
    """The bug found in 2025: a read that is asked again needs a round that began after it was asked again."""
    leader = settled_leader(size=3)
    leader.read_index(5)
    drain(leader)
    first_round = leader.reads.round
    leader.become_follower(leader.current_term, None)
    assert take(leader).reads == [ReadState(5, -1)]
    leader.become_leader_now(2)
    drain(leader)
    acknowledge(leader, 1, 2)
    drain(leader)

    leader.read_index(5)
    drain(leader)
    acknowledge(leader, 1, 2, in_round=first_round)
    expect_quiet(leader)

    assert leader.reads.round > first_round


def test_trap_9_a_leader_that_loses_all_links_serves_no_stale_lease_read() -> None:
    """D§6.4.1: followers that see the link break at once still wait for the lease that they acknowledged."""
    cluster = Cluster(3, config=RaftConfig(lease_reads=True))
    cluster.elect(0)
    cluster.tick(cluster.config.heartbeat_ticks)
    cluster[0].read_index(1, lease=True)
    cluster.work(0)
    assert cluster.reads[0] == [ReadState(1, 0)]  # the lease holds
    cluster.isolate(0)
    for node_id in (1, 2):
        cluster[node_id].peer_disconnected(0)
        assert cluster[node_id].urgent_delay_ms is None
    new_leader_seen = lease_served = 0

    for tick in range(6 * cluster.config.election_timeout_ticks):
        cluster.tick()
        others = [node_id for node_id in cluster.leaders() if node_id != 0]
        if others:
            new_leader_seen = new_leader_seen or tick
            cluster.propose(others[0], b"new")
            cluster.settle()
        cluster.reads[0].clear()
        cluster[0].read_index(100 + tick, lease=True)
        cluster.work(0)
        if cluster.reads[0] and cluster.reads[0][0].index >= 0:
            lease_served = tick
            assert cluster.reads[0][0].index >= max(server.commit_index for server in cluster.servers.values())

    assert 0 < lease_served < new_leader_seen


def test_trap_9_a_follower_that_restarts_still_keeps_its_promise() -> None:
    """D§6.4.1: it may have acknowledged a lease just before; a node without a term cannot have."""
    config = RaftConfig(lease_reads=True)
    restarted, fresh = make_server(term=3, config=config), make_server(config=config)

    for server in (restarted, fresh):
        server.step(RequestVote(1, 0, 4, 9, 3))

    assert (restarted.voted_for, fresh.voted_for) == (None, 1)
    restarted.tick(config.election_timeout_ticks + 1)
    restarted.step(RequestVote(1, 0, 4, 9, 3))
    assert restarted.voted_for == 1


def test_trap_9_after_a_timeout_now_no_lease_is_used_in_that_term() -> None:
    """D§6.4.1: the target's votes are given in spite of leases, even when they come late."""
    leader = make_leader(config=RaftConfig(lease_reads=True))
    acknowledge(leader, 1, 2)
    drain(leader)
    leader.read_index(1, lease=True)
    assert take(leader).reads == [ReadState(1, 0)]

    leader.transfer_leadership(1)
    leader.tick(4)
    for _ in range(2 * leader.config.election_timeout_ticks):
        drain(leader)
        acknowledge(leader, 1, 2)
        leader.tick()
    drain(leader)
    acknowledge(leader, 1, 2)
    drain(leader)

    assert (leader.state, leader.transfer_target) == (LeaderState, None)
    leader.read_index(2, lease=True)
    ready = take(leader)
    assert ready.reads == []
    assert {message.lease_ticks for message in appends_to(ready.messages, 1)} == {0}


# -- 10: snapshots


def test_trap_10_a_snapshot_over_a_conflicting_entry_removes_it_and_all_after_it() -> None:
    """§7: the entry at its last index has another term."""
    server = make_server(term=3, log=log_of(1, 1, 1, 1, 1))

    server.step(InstallSnapshot(1, 0, 3, 2, 2, voters(0, 1, 2), 0, b"s", True))

    assert (server.log.first_index, len(server.log), server.log.previous_term) == (3, 3, 2)
    assert server.effects.persisted_index == 2


def test_trap_10_an_older_snapshot_is_ignored() -> None:
    """§7: what is committed here already is not taken back."""
    server = follower_of(1, 2, log=RaftLog(first_index=8, previous_term=2), snapshot_id=EntryId(2, 7))

    server.step(InstallSnapshot(1, 0, 2, 5, 1, voters(0), 0, b"old", True))

    ready = take(server)
    assert (ready.install, ready.snapshot_chunks) == (None, ())
    assert ready.messages_after_persist == [InstallSnapshotResponse(0, 1, 2, 5, 3, True)]
    assert (server.commit_index, server.configuration) == (7, voters(0, 1, 2))


def test_trap_10_a_matching_longer_suffix_is_kept() -> None:
    """§7, step 6."""
    server = make_server(term=2, log=log_of(1, 1, 2, 2))

    server.step(InstallSnapshot(1, 0, 2, 2, 2, voters(0, 1, 2), 0, b"s", True))

    assert server.log == log_of(1, 1, 2, 2)
    assert take(server).install is None


def test_trap_10_membership_rides_in_the_snapshot() -> None:
    """§7: the latest configuration as of the last included index is part of it."""
    cluster = Cluster(3)
    cluster.elect(0)
    cluster[0].change_membership([AddLearner(3)])
    cluster.settle()
    cluster.snapshot(0)
    joined = cluster.add(3, Configuration())

    cluster.tick(2 * cluster.config.heartbeat_ticks)

    assert joined.configuration == cluster[0].configuration
    assert cluster.disks[3].configuration == cluster[0].configuration
    assert cluster.machines[3] == cluster.machines[0]


@pytest.mark.parametrize("crash_at", ["write", "send"])
@pytest.mark.parametrize("after_deliveries", range(12))
def test_trap_10_a_crash_at_every_step_of_a_snapshot_is_survived(crash_at: str, after_deliveries: int) -> None:
    """§7: chunks that arrived are forgotten or kept as a whole; the follower ends where the leader is."""
    cluster = Cluster(3)
    cluster.chunk_items = 2
    cluster.elect(0)
    cluster.drop(lambda message: message.dest == 2)
    cluster.propose(0, *[b"%d" % number for number in range(8)])
    cluster.settle()
    cluster.snapshot(0)
    cluster.heal()
    cluster[0].tick(cluster.config.heartbeat_ticks)
    for _ in range(after_deliveries):
        cluster.deliver()
    for message in list(cluster.messages):
        if message.dest == 2:
            cluster[2].step(message)
    if cluster[2].has_ready():
        cluster.work(2, crash_at=crash_at)
        cluster.messages.clear()
        cluster.restart(2)

    cluster.tick(4 * cluster.config.heartbeat_ticks)

    assert cluster.machines[2] == cluster.machines[0]
    assert cluster[2].commit_index == cluster[0].commit_index


def test_trap_10_a_crash_between_snapshot_and_log_leaves_no_contradiction() -> None:
    """§7: the snapshot is on disk, the log that it contradicts still is, too."""
    for log in (log_of(1, 1, 1, 1, 1), log_of(1), RaftLog()):
        server = make_server(term=3, log=log, snapshot_id=EntryId(2, 2))

        assert (server.log.first_index, len(server.log), server.log.previous_term) == (3, 3, 2)


# -- 11: quorums


@pytest.mark.parametrize("size", range(8))
def test_trap_11_quorum_arithmetic_equals_brute_force(size: int) -> None:
    """Every vote of every subset of 0 to 7 voters."""
    ids = frozenset(range(size))
    for granted in subsets(range(size)):
        votes = {voter: voter in granted for voter in ids}
        won = 2 * len(granted) > size or not size
        assert vote_result(ids, votes) is (VoteResult.WON if won else VoteResult.LOST)
        index = committed_index(dict.fromkeys(granted, 5), ids)
        assert index == (5 if won and size else -1)


@pytest.mark.parametrize("shared", range(8))
def test_trap_11_joint_quorum_arithmetic_equals_brute_force(shared: int) -> None:
    """Two sets of 0 to 7 voters that share so many: every subset of both. Only numbers matter, so ids are in order."""
    for only_old, only_new in itertools.product(range(8 - shared), repeat=2):
        everyone = range(only_old + shared + only_new)
        old, new = frozenset(everyone[: only_old + shared]), frozenset(everyone[only_old:])
        for granted in subsets(everyone):
            won = all(2 * len(granted & side) > len(side) for side in (old, new) if side)
            votes = {voter: voter in granted for voter in everyone}
            assert vote_result(new, votes, old) is (VoteResult.WON if won else VoteResult.LOST)
            index = committed_index(dict.fromkeys(granted, 5), new, old)
            assert index == (5 if won and everyone else -1)


# -- 12: replicas


@pytest.mark.parametrize("seed", range(4))
def test_trap_12_replicas_with_skewed_clocks_restarts_and_snapshots_end_equal(seed: int) -> None:
    """The core's part: the same entries, in the same order, once, on every machine."""
    world = run_world(700 + seed)

    leader = max(world.servers.values(), key=lambda server: (server.state is LeaderState, server.current_term))
    machines = {tuple(world.machines[node_id]) for node_id in leader.configuration.members}
    assert len(machines) == 1


# -- 13: a wiped disk


def test_trap_13_a_node_without_its_disk_is_refused_under_its_old_id() -> None:
    """The configuration knows the storage id of each member; ids of removed nodes are not given again."""
    leader = settled_leader(size=1)
    leader.change_membership([AddLearner(1, "disk-a")])
    drain(leader)

    with pytest.raises(ProposalRefused, match="storage id"):
        leader.change_membership([AddVoter(1, "disk-b")])
    leader.change_membership([RemoveNode(1)])
    drain(leader)
    with pytest.raises(ProposalRefused, match="used before"):
        leader.change_membership([AddLearner(1, "disk-b")])
    assert (leader.configuration.next_node_id, leader.configuration.storage_ids) == (2, ())


# -- 14: sizes


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_trap_14_even_sized_clusters_a_cluster_of_one_and_of_two_elect_and_commit(size: int) -> None:
    """§5.2: majorities of 1, 2, 3 and 4."""
    cluster = Cluster(size)

    cluster.tick(cluster.config.election_timeout_ticks)
    leader = cluster.expect_leader()
    cluster.propose(leader.node_id, b"x")
    cluster.settle()

    assert [server.commit_index for server in cluster.servers.values()] == [1] * size
    cluster.drop(lambda message: True)
    cluster.propose(leader.node_id, b"y")
    cluster.settle()
    assert leader.commit_index == (2 if size == 1 else 1)


def test_trap_14_a_cluster_of_one_commits_in_one_step() -> None:
    """One campaign, one write, and everything is committed."""
    server = make_server(size=1)

    server.campaign()
    server.propose(b"x")
    take(server)

    assert (server.state, server.commit_index) == (LeaderState, 1)
    assert drain_committed(server) == [LogEntry(1, None), LogEntry(1, b"x")]


def test_trap_14_a_leader_outside_its_own_configuration_does_not_count_itself() -> None:
    """§6: while it manages a cluster without itself, it is not included in majorities."""
    leader = settled_leader(size=3)
    leader.change_membership([RemoveNode(0)])
    drain(leader)

    acknowledge(leader, 1)

    assert (leader.state, leader.commit_index) == (LeaderState, 0)
    assert vote_requests(drain(leader)) == []
    acknowledge(leader, 2)
    assert leader.state is FollowerState


# -- helpers


def subsets(items: Iterable[int]) -> list[frozenset[int]]:
    every = list(items)
    return [frozenset(chosen) for size in range(len(every) + 1) for chosen in itertools.combinations(every, size)]


def leaves_joint_phase(message: Message) -> bool:
    """Whether a message carries the second step of a joint change."""
    if not isinstance(message, AppendEntries):
        return False
    return any(isinstance(entry.item, Configuration) and not entry.item.joint for entry in message.entries)
