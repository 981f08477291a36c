"""What is committed, when, and by whom: tables for majorities, joint configurations, and the leader's own disk."""

from __future__ import annotations

import pytest

from actorraft.raft import (
    AppendEntries,
    AppendEntriesResponse,
    Configuration,
    LeaderState,
    RaftServer,
    RequestVoteResponse,
)
from tests.helpers import (
    acknowledge,
    appends_to,
    drain,
    drain_committed,
    entries_of,
    log_of,
    make_leader,
    make_server,
    voters,
)


@pytest.mark.parametrize(
    ("size", "acked", "terms", "expected"),
    [
        # the log's last entry is the leader's own, of term 3; acked: what the followers have
        (1, (), (1, 2), 2),
        (3, (2,), (1, 2), 2),
        (3, (1,), (1, 2), -1),
        (3, (-1, 2), (2, 2), 2),
        (5, (2,), (2, 2), -1),
        (5, (2, 2), (2, 2), 2),
        (5, (2, 1, 1, 1), (2, 2), -1),
        (4, (2, 2), (1, 1), 2),
        (4, (2,), (1, 1), -1),
        (2, (), (1,), -1),
        (2, (1,), (1,), 1),
    ],
)
def test_the_commit_index_of_a_leader(size: int, acked: tuple[int, ...], terms: tuple[int, ...], expected: int) -> None:
    leader = make_leader(size=size, term=2, log=log_of(*terms))

    for peer_id, match_index in enumerate(acked, 1):
        acknowledge(leader, peer_id, match_index=match_index)

    assert leader.commit_index == expected


def test_a_leader_counts_itself_only_for_what_its_disk_has() -> None:
    """§5.3; a leader whose disk hangs commits nothing that a majority of the others has not."""
    leader = make_leader(size=3)
    acknowledge(leader, 1, 2)
    drain(leader)
    leader.propose(b"x")
    writing = leader.ready()
    leader.propose(b"y")

    acknowledge(leader, 1, match_index=2)
    assert leader.commit_index == 0
    acknowledge(leader, 2, match_index=1)
    assert leader.commit_index == 1
    leader.advance(writing)

    assert leader.commit_index == 1
    drain(leader)
    assert leader.commit_index == 2


def test_entries_that_others_committed_are_applied_only_after_the_own_write() -> None:
    leader = make_leader(size=3)
    leader.propose(b"x")

    acknowledge(leader, 1, 2, match_index=1)
    ready = leader.ready()

    assert leader.commit_index == 1
    assert (ready.entries_from, len(ready.entries)) == (1, 1)
    assert [entry.item for entry in ready.committed] == [None, b"x"]


def elected(configuration: Configuration) -> RaftServer:
    server = make_server(configuration=configuration)
    server.campaign(pre_vote=False)
    for peer_id in server.voters - {0}:
        server.step(RequestVoteResponse(peer_id, 0, 1, True))
    assert server.state is LeaderState
    drain(server)
    return server


@pytest.mark.parametrize(
    ("acked", "expected"),
    [((1,), -1), ((1, 2), -1), ((3, 4), -1), ((1, 3), 0), ((2, 4), 0), ((1, 2, 3), 0)],
)
def test_both_majorities_of_a_joint_configuration_are_needed(acked: tuple[int, ...], expected: int) -> None:
    leader = elected(Configuration(frozenset({0, 3, 4}), frozenset({0, 1, 2}), next_node_id=5))

    acknowledge(leader, *acked, match_index=0)

    assert leader.commit_index == expected


def test_each_entry_is_handed_over_once_and_in_order() -> None:
    server = make_server(term=1)
    handed = []
    for commit_index in (0, 0, 2, 1, 4, 4):
        server.step(AppendEntries(1, 0, 1, -1, -1, entries_of(*[1] * 5), commit_index))
        handed += drain_committed(server)

    assert handed == entries_of(*[1] * 5)


def test_a_restart_hands_everything_after_the_snapshot_over_again() -> None:
    """What was applied is volatile, so the machine is rebuilt from the snapshot's state."""
    server = make_server(term=1, log=log_of(1, 1, 1), configuration=voters(0))

    server.campaign()

    assert len(drain_committed(server)) == 4


@pytest.mark.parametrize("commit_along", [False, True], ids=["told at once", "told along"])
def test_a_follower_whose_probe_was_lost_is_asked_again_when_the_new_leader_commits(commit_along: bool) -> None:
    """No heartbeat is needed: no time passes here."""
    leader = make_leader(commit_along=commit_along)

    acknowledge(leader, 1)

    (append,) = appends_to(drain(leader), 2)
    assert (append.prev_index, append.entries, append.commit_index) == (-1, [], 0)
    leader.step(AppendEntriesResponse(2, 0, 1, True, -1, append.round))
    (append,) = appends_to(drain(leader), 2)
    assert (append.prev_index, len(append.entries), append.commit_index) == (-1, 1, 0)


def test_a_follower_that_leaves_probe_late_is_told_what_was_committed_meanwhile() -> None:
    leader = make_leader(commit_along=True)
    acknowledge(leader, 1)
    drain(leader)

    acknowledge(leader, 2)

    (append,) = appends_to(drain(leader), 2)
    assert (append.prev_index, append.commit_index) == (0, 0)
