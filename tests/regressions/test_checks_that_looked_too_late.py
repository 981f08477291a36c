"""Schedules that a check of the simulator once called wrong though every server did right; mostly it looked too late.

429: entries of the vote's own term, written behind the vote by the same write, made the voter's log look the longer.
10185: an acknowledgement was compared with the log of a leader that had been deposed, and its tail replaced, meanwhile.
2000147, 2000157: a leader that did not yet know of its successor got an acknowledgement of entries that the successor had
replaced on the follower's disk since (in the second it had stood still, and found a batch of old acknowledgements).
8566: a removed node deposed the leader again and again, with PreVote and CheckQuorum off, and calls failed by that (§6).
"""

from __future__ import annotations

import pytest

from actorraft.simulation.runner import run_seed


@pytest.mark.parametrize(
    ("seed", "steps"),
    [
        (429, 6_000),
        (10_185, 6_000),
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in [(2_000_147, 12_000), (2_000_157, 12_000), (8_566, 16_000)]
        ),
    ],
)
def test_a_sound_schedule_is_called_sound(seed: int, steps: int) -> None:
    outcome = run_seed(seed, steps=steps)

    assert outcome.violation is None, f"{outcome.invariant}: {outcome.violation}"
