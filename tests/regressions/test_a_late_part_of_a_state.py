"""Seed 10950: a node asked for the leader's state, went on without it, and a late part took it back behind its log."""

from __future__ import annotations

from actorraft.simulation.runner import run_seed


def test_a_part_of_a_state_that_comes_too_late_changes_nothing() -> None:
    outcome = run_seed(10_950, steps=7_000)

    assert outcome.violation is None, f"{outcome.invariant}: {outcome.violation}"
