"""Schedules that a check of the simulator once called wrong though every server did right: it looked after the batch.

429: entries of the vote's own term, written behind the vote by the same write, made the voter's log look the longer.
10185: an acknowledgement was compared with the log of a leader that had been deposed, and its tail replaced, meanwhile.
"""

from __future__ import annotations

import pytest

from actorraft.simulation.runner import run_seed


@pytest.mark.parametrize("seed", [429, 10_185])
def test_a_sound_schedule_is_called_sound(seed: int) -> None:
    outcome = run_seed(seed)

    assert outcome.violation is None, f"{outcome.invariant}: {outcome.violation}"
