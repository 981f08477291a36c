"""A checker without a bug that it catches is not yet a checker: each planted bug is caught, the sound code never blamed."""

from __future__ import annotations

import pytest

from actorraft.simulation.play import Outcome
from actorraft.simulation.runner import run_seed
from tests.simulation.bugs import BUGS, Bug

SEEDS_MAX = 500
QUICK_SEEDS_MAX = 60
STEPS = 6_000  # shorter than by default: more seeds in the same time
STORIES = [bug for bug in BUGS if bug.story is not None]
SEARCHED = [bug for bug in BUGS if bug.story is None]


def search(seeds: int) -> Outcome | None:
    """Return the first seed's outcome that is a violation."""
    return next(
        (outcome for seed in range(seeds) if (outcome := run_seed(seed, steps=STEPS)).violation is not None), None
    )


def named(bug: Bug) -> str:
    return bug.name


@pytest.mark.parametrize("bug", [bug for bug in SEARCHED if bug.quick], ids=named)
def test_a_planted_bug_is_caught_within_a_few_seeds(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)

    outcome = search(QUICK_SEEDS_MAX)

    assert outcome is not None, f"{bug.name}: not caught in {QUICK_SEEDS_MAX} seeds"
    assert outcome.tail


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", [bug for bug in SEARCHED if not bug.quick], ids=named)
def test_a_planted_bug_is_caught_within_500_seeds(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)

    outcome = search(SEEDS_MAX)

    assert outcome is not None, f"{bug.name}: not caught in {SEEDS_MAX} seeds"


@pytest.mark.parametrize("bug", STORIES, ids=named)
def test_a_planted_bug_is_caught_by_the_story_of_its_circumstances(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bug.story is not None
    bug.story()  # the sound code passes
    bug.plant(monkeypatch)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        bug.story()


def test_there_are_at_least_20_planted_bugs_and_each_has_a_name_of_its_own() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 20
