"""What 0.1.0 called its modules is found, with a warning that says where it is now."""

from __future__ import annotations

import importlib
import sys

import pytest

from actorraft.moved import MOVED, places_of


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_warns_and_gives_what_is_in_its_place(old: str) -> None:
    sys.modules.pop(old, None)
    places = places_of(old)
    with pytest.warns(DeprecationWarning, match=f"{old} is {' and '.join(places)} now"):
        found = importlib.import_module(old)
    for place in places:
        own = [name for name in vars(importlib.import_module(place)) if not name.startswith("__")]
        assert all(name in vars(found) for name in own)
    first = vars(importlib.import_module(places[0]))
    assert all(vars(found)[name] is value for name, value in first.items() if not name.startswith("__"))


def test_a_name_that_never_was_is_still_an_import_error() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("actorraft.nonsense")


@pytest.mark.parametrize(
    ("room", "name"),
    [
        ("client", "Client"),
        ("cluster", "Cluster"),
        ("node", "NodeSpec"),
        ("pickling", "Encoder"),
    ],
)
def test_a_room_s_own_names_are_at_its_door(room: str, name: str) -> None:
    assert getattr(importlib.import_module(f"actorraft.{room}"), name).__name__ == name
