"""The benchmark of actors shows what was measured, and names what is not installed."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from benchmarks import actors
from benchmarks.others import actor_systems


def test_a_framework_that_is_not_installed_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pykka", None)
    monkeypatch.setattr(sys, "argv", ["actor_systems", "pykka", "0.1"])
    with pytest.raises(SystemExit) as left:
        actor_systems.main()
    assert left.value.code == 3
    assert "pykka is not installed (pykka): pip install pykka" in capsys.readouterr().err


def test_rows_of_several_frameworks_are_one_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    def measure(system: str, seconds: float) -> list[dict[str, Any]]:
        rows = [{"what": "tells", "value": 1234.5, "unit": "/s"}, {"what": "spawn", "value": 2.0, "unit": "ms"}]
        return [{"benchmark": "actors", "system": system, **row} for row in rows[: 1 + (system == "actorraft")]]

    monkeypatch.setattr(actors, "measure", measure)
    actors.main(compare="xoscar", seconds=0.1, json=tmp_path / "rows.json")
    shown = capsys.readouterr().out
    assert "1,234.5" in shown
    assert "–" in shown
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 3
