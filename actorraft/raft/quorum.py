"""Quorum arithmetic for one majority and for two (joint consensus).

A quorum is any set of voters that overlaps every other: here a majority of the voters,
or, while membership changes, a majority of both voter sets.

Source:     Raft §5.2 (votes), §5.3 (commit rule), §6 (joint consensus).
Invariant:  one more vote or a higher acknowledgement never turns WON back or lowers the committed index.
Shape:      match_index maps node_id -> highest acknowledged index (-1 if unheard); votes maps node_id -> granted.
Not here:   the current-term rule of §5.4.2, which needs the log; see replication.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from enum import Enum


class VoteResult(Enum):
    """How an election stands."""

    WON = "won"
    LOST = "lost"
    PENDING = "pending"


def vote_result(voters: Set[int], votes: Mapping[int, bool], outgoing: Set[int] = frozenset()) -> VoteResult:
    """Return how an election stands (§5.2; §6 when `outgoing` is not empty).

    Args:
        voters: who counts. An empty set puts no condition.
        votes: answers so far; who is no voter is ignored, who is missing has not answered.
        outgoing: the other voter set of a joint change; both must be won.
    """
    results = (_one_set(voters, votes), _one_set(outgoing, votes))
    if VoteResult.LOST in results:
        return VoteResult.LOST
    return VoteResult.PENDING if VoteResult.PENDING in results else VoteResult.WON


def _one_set(voters: Set[int], votes: Mapping[int, bool]) -> VoteResult:
    if not voters:
        return VoteResult.WON
    granted = sum(1 for voter in voters if votes.get(voter))
    missing = sum(1 for voter in voters if voter not in votes)
    majority = len(voters) // 2 + 1
    if granted >= majority:
        return VoteResult.WON
    return VoteResult.PENDING if granted + missing >= majority else VoteResult.LOST


def committed_index(match_index: Mapping[int, int], voters: Set[int], outgoing: Set[int] = frozenset()) -> int:
    """Return the highest index that a quorum has acknowledged (§5.3; §6 when `outgoing` is not empty).

    Args:
        match_index: node_id -> index, 0-based; a missing voter counts as -1.
        voters: who counts; learners are ignored. An empty set puts no condition.
        outgoing: the other voter set of a joint change; both must have acknowledged.

    Returns:
        An index, -1 if no entry is on a quorum, or if there are no voters at all.
    """
    if not outgoing:
        return _one_majority(match_index, voters) if voters else -1
    if not voters:
        return _one_majority(match_index, outgoing)
    return min(_one_majority(match_index, voters), _one_majority(match_index, outgoing))


def _one_majority(match_index: Mapping[int, int], voters: Set[int]) -> int:
    acked = sorted([match_index.get(voter, -1) for voter in voters])
    return acked[(len(acked) - 1) // 2]
