"""A checker without a bug that it catches is not yet a checker: each planted bug is caught, the sound code never blamed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any

import pytest

from actorraft.simulation.invariants import InvariantViolation
from actorraft.simulation.play import Outcome
from actorraft.simulation.profile import profile_of
from actorraft.simulation.runner import run_seed
from actorraft.simulation.threads import explore
from tests.simulation import bugs_of_guests, bugs_of_versions  # noqa: F401  (add to BUGS)
from tests.simulation.bugs import BUGS, Bug, Way

pytestmark = pytest.mark.long

SEEDS_MAX = 2_000  # few of them have what some bugs need
QUICK_SEEDS_MAX = 120
STEPS = 6_000  # shorter than by default: more seeds in the same time
STORIES = [bug for bug in BUGS if bug.story is not None]
SEARCHED = [bug for bug in BUGS if bug.story is None]


def search(bug: Bug, seeds: int) -> Outcome | InvariantViolation | None:
    """Return what the first seed breaks that breaks anything."""
    if bug.way is Way.THREADS:
        return next((broken for seed in range(seeds) if (broken := explore(seed)) is not None), None)
    for seed in range(seeds):
        if has_what_it_needs(bug.way, seed):
            outcome = run_seed(seed, steps=STEPS)
            if outcome.violation is not None:
                return outcome
    return None


def has_what_it_needs(way: Way, seed: int) -> bool:
    """Whether a seed can show a bug; looked up in what it has chosen, which takes no time."""
    profile = profile_of(seed)
    if way in (Way.GUESTS, Way.HOLDS):
        return profile.guest if way is Way.GUESTS else profile.holds
    if way is Way.VERSIONS:
        return profile.versions
    if way is Way.NO_MEMORY:
        return profile.guest and "out of memory" in profile.kinds
    return way is not Way.OLD_DISKS or "old disk" in profile.kinds


def named(bug: Bug) -> str:
    return bug.name


@pytest.mark.parametrize("bug", [bug for bug in SEARCHED if bug.quick], ids=named)
def test_a_planted_bug_is_caught_within_a_few_seeds(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)

    outcome = search(bug, QUICK_SEEDS_MAX)

    assert outcome is not None, f"{bug.name}: not caught in {QUICK_SEEDS_MAX} seeds"
    assert isinstance(outcome, InvariantViolation) or outcome.tail


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", [bug for bug in SEARCHED if not bug.quick], ids=named)
def test_a_planted_bug_is_caught_within_2000_seeds(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)

    outcome = search(bug, SEEDS_MAX)

    assert outcome is not None, f"{bug.name}: not caught in {SEEDS_MAX} seeds"


@pytest.mark.parametrize("bug", STORIES, ids=named)
def test_a_planted_bug_is_caught_by_the_story_of_its_circumstances(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bug.story is not None
    bug.story()  # the sound code passes
    bug.plant(monkeypatch)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        bug.story()


def taken_by(function: Callable[..., Any]) -> tuple[int, float, set[str]]:
    """How many arguments by position a function must and can have, and the names of the others."""
    parameters = inspect.signature(function).parameters.values()
    placed = [each for each in parameters if each.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    must = sum(each.default is Parameter.empty for each in placed)
    can = float("inf") if any(each.kind is Parameter.VAR_POSITIONAL for each in parameters) else len(placed)
    return must, can, {each.name for each in parameters if each.kind is Parameter.KEYWORD_ONLY}


def test_what_is_planted_takes_what_the_code_in_its_place_took() -> None:
    """Else what is caught is a TypeError, and not the bug."""
    unfit = []
    for bug in BUGS:
        with pytest.MonkeyPatch.context() as patch:
            bug.plant(patch)
            for owner, name, sound in patch._setattr:
                planted = inspect.getattr_static(owner, name)
                if inspect.isfunction(sound) and inspect.isfunction(planted):
                    (must, can, named), (musts, cans, names) = taken_by(sound), taken_by(planted)
                    if musts > must or cans < can or not named <= names:
                        unfit.append(f"{bug.name}: {name}")
    assert unfit == []


def test_sound_threads_break_nothing() -> None:
    assert [seed for seed in range(150) if explore(seed) is not None] == []


def test_there_are_at_least_80_planted_bugs_and_each_has_a_name_of_its_own() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 80
