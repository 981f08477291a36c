"""A node that is served by itself: when what ended its process twice is tried once more."""

from __future__ import annotations

import pytest

from actorraft import StateMachine, command
from actorraft.node import standalone
from actorraft.storage.marks import RUNNING, Marks


class Bank(StateMachine):
    @command
    def add(self) -> int:
        return 1


class Mended(StateMachine):
    @command
    def add(self) -> int:
        return 2


class Wall:
    now_s = 1_000_000_000.0


@pytest.fixture(autouse=True)
def wall(monkeypatch: pytest.MonkeyPatch) -> type[Wall]:
    monkeypatch.setattr(standalone.time, "time", lambda: Wall.now_s)
    Wall.now_s = 1_000_000_000.0
    return Wall


def started(marks: Marks, machine: type, *, dies: bool) -> bool:
    """Start a node on these marks; return whether it may try, and let it die in entry 7 if it does."""
    marks.begin(7, run=standalone.run_of(machine))
    tries = marks.poison < 0 or marks.first_try
    if tries and dies:
        marks.words[RUNNING] = 7
    return tries


def given_up() -> Marks:
    marks = Marks()
    assert [True, True, False] == [started(marks, Bank, dies=True) for _ in range(3)]
    return marks


def test_one_that_is_started_again_and_again_dies_once_a_minute_at_most(wall: type[Wall]) -> None:
    marks = given_up()
    assert not any(started(marks, Bank, dies=True) for _ in range(5))
    wall.now_s += standalone.TRY_ANEW_S
    assert [True, False, False] == [started(marks, Bank, dies=True) for _ in range(3)]


def test_mended_code_is_tried_at_once(wall: type[Wall]) -> None:
    assert started(given_up(), Mended, dies=False)
