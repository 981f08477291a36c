"""Quorum arithmetic against brute force over every subset, for 0 to 7 voters and joint pairs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorraft.raft import VoteResult, committed_index, vote_result

node_ids = st.frozensets(st.integers(0, 9), max_size=7)


def subsets(items: Iterable[int]) -> list[frozenset[int]]:
    every = sorted(items)
    return [frozenset(chosen) for size in range(len(every) + 1) for chosen in itertools.combinations(every, size)]


def is_quorum(acked: frozenset[int], voters: frozenset[int], outgoing: frozenset[int]) -> bool:
    return all(2 * len(acked & side) > len(side) for side in (voters, outgoing) if side)


def brute_vote_result(voters: frozenset[int], votes: dict[int, bool], outgoing: frozenset[int]) -> VoteResult:
    """Won if those who granted are a quorum; lost if not even everybody who has not answered could make one."""
    granted = frozenset(voter for voter, vote in votes.items() if vote)
    silent = (voters | outgoing) - votes.keys()
    if is_quorum(granted, voters, outgoing):
        return VoteResult.WON
    if any(is_quorum(granted | more, voters, outgoing) for more in subsets(silent)):
        return VoteResult.PENDING
    return VoteResult.LOST


@pytest.mark.parametrize("size", range(8))
def test_every_vote_of_up_to_seven_voters(size: int) -> None:
    voters = frozenset(range(size))
    for answers in itertools.product((True, False, None), repeat=size):
        votes = {voter: answer for voter, answer in enumerate(answers) if answer is not None}
        assert vote_result(voters, votes) is brute_vote_result(voters, votes, frozenset())


@given(node_ids, node_ids, st.dictionaries(st.integers(0, 9), st.booleans()))
def test_joint_votes(voters: frozenset[int], outgoing: frozenset[int], votes: dict[int, bool]) -> None:
    assert vote_result(voters, votes, outgoing) is brute_vote_result(voters, votes, outgoing)


@given(node_ids, node_ids, st.dictionaries(st.integers(0, 9), st.integers(-1, 9)))
def test_the_committed_index_is_the_highest_on_a_quorum(
    voters: frozenset[int], outgoing: frozenset[int], match_index: dict[int, int]
) -> None:
    on_quorum = [
        index
        for index in range(10)
        if is_quorum(frozenset(node for node, match in match_index.items() if match >= index), voters, outgoing)
    ]

    expected = max(on_quorum, default=-1) if voters or outgoing else -1
    assert committed_index(match_index, voters, outgoing) == expected


@given(node_ids, node_ids, st.dictionaries(st.integers(0, 9), st.integers(-1, 9)), st.integers(0, 9))
def test_one_more_acknowledgement_never_lowers_the_committed_index(
    voters: frozenset[int], outgoing: frozenset[int], match_index: dict[int, int], node_id: int
) -> None:
    raised = match_index | {node_id: match_index.get(node_id, -1) + 1}

    assert committed_index(raised, voters, outgoing) >= committed_index(match_index, voters, outgoing)


@given(node_ids, node_ids)
def test_any_two_quorums_overlap(voters: frozenset[int], outgoing: frozenset[int]) -> None:
    everyone = voters | outgoing
    if not everyone:
        return
    for chosen in subsets(everyone):
        if is_quorum(chosen, voters, outgoing):
            assert not is_quorum(everyone - chosen, voters, outgoing)
