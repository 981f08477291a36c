"""The page of settings names every field, with its default and its unit."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from actorraft import RaftConfig
from actorraft.raft.config import BOUNDS, COUNT_MAX, DECIDING

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "settings.md").read_text()
ROWS = {
    match[1]: (match[2].strip(), match[3].strip(), match[4].strip(), match[5])
    for match in re.finditer(r"^\| `(\w+)` \|([^|]*)\|([^|]*)\|([^|]*)\|(.*)\|$", PAGE, flags=re.M)
}


@pytest.mark.parametrize("field", [field.name for field in fields(RaftConfig)])
def test_each_field_stands_there_with_its_default_and_bounds(field: str) -> None:
    unit, default, bounds, text = ROWS[field]
    least, most = BOUNDS.get(field, (1, COUNT_MAX))
    flag = type(getattr(RaftConfig(), field)) is bool
    assert bounds == ("" if flag else f"from {least}" if most == COUNT_MAX else f"{least} to {most}")
    assert default == str(getattr(RaftConfig(), field))
    assert bool(unit) == (not flag)
    assert ("**cluster**" in text) == (field in DECIDING)


def test_no_field_stands_there_that_is_not_one() -> None:
    assert ROWS.keys() == {field.name for field in fields(RaftConfig)}
