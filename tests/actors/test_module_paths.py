"""Where a child looks for modules, after its parent changed its working directory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from actorraft.actors.process import MEANT_MAX, paths


def test_a_relative_path_means_the_present_directory_first_and_then_the_last_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / str(number) for number in range(MEANT_MAX + 2)]
    monkeypatch.setattr(sys, "path", ["", "/elsewhere"])
    for place in places:
        place.mkdir()
        monkeypatch.chdir(place)
        paths()
    monkeypatch.chdir(places[-3])

    wanted = [places[-3], places[-1], places[-2], *reversed(places[-MEANT_MAX:-3])]
    assert paths() == [*map(str, wanted), "/elsewhere"]
