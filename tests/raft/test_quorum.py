"""The arithmetic of one majority and of two, by table; the model is in tests/properties."""

from __future__ import annotations

import pytest

from actorraft.raft import VoteResult, committed_index, vote_result

WON, LOST, PENDING = VoteResult.WON, VoteResult.LOST, VoteResult.PENDING


@pytest.mark.parametrize(
    ("voters", "votes", "outgoing", "expected"),
    [
        ({}, {}, {}, WON),
        ({1}, {}, {}, PENDING),
        ({1}, {1: False}, {}, LOST),
        ({1}, {1: True}, {}, WON),
        ({1, 2}, {1: True}, {}, PENDING),
        ({1, 2}, {1: True, 2: False}, {}, LOST),
        ({1, 2, 3}, {1: True, 2: True}, {}, WON),
        ({1, 2, 3}, {1: False, 2: False}, {}, LOST),
        ({1, 2, 3}, {1: True, 2: False}, {}, PENDING),
        ({1, 2, 3}, {8: True, 9: True, 1: True}, {}, PENDING),
        ({1, 2, 3}, {1: True, 2: True}, {3, 4, 5}, PENDING),
        ({1, 2, 3}, {1: True, 2: True, 4: False, 5: False}, {3, 4, 5}, LOST),
        ({1, 2, 3}, {1: True, 2: True, 4: True, 5: True}, {3, 4, 5}, WON),
        ({}, {4: True}, {4}, WON),
    ],
)
def test_vote_result(voters: set[int], votes: dict[int, bool], outgoing: set[int], expected: VoteResult) -> None:
    assert vote_result(frozenset(voters), votes, frozenset(outgoing)) is expected


@pytest.mark.parametrize(
    ("match_index", "voters", "outgoing", "expected"),
    [
        ({}, {}, {}, -1),
        ({}, {1}, {}, -1),
        ({1: 12}, {1}, {}, 12),
        ({1: 12}, {1, 2}, {}, -1),
        ({1: 12, 2: 5}, {1, 2}, {}, 5),
        ({1: 12, 2: 5}, {1, 2, 3}, {}, 5),
        ({1: 12, 2: 5, 3: 6}, {1, 2, 3}, {}, 6),
        ({1: 1, 2: 2, 3: 3, 4: 4}, {1, 2, 3, 4}, {}, 2),
        ({1: 1, 2: 2, 3: 3, 9: 99}, {1, 2, 3}, {}, 2),
        ({1: 9, 2: 8, 3: 7, 4: 1}, {1, 2, 3}, {3, 4}, 1),
        ({1: 9, 2: 8, 3: 7}, {}, {1, 2, 3}, 8),
    ],
)
def test_committed_index(match_index: dict[int, int], voters: set[int], outgoing: set[int], expected: int) -> None:
    assert committed_index(match_index, frozenset(voters), frozenset(outgoing)) == expected
