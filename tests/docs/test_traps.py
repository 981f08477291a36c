"""docs/traps.md and docs/simulator.md name tests and planted bugs that exist, and leave none of the list out."""

from __future__ import annotations

import re
from pathlib import Path

from tests.simulation.bugs import BUGS

ROOT = Path(__file__).resolve().parents[2]
TRAPS = (ROOT / "docs" / "traps.md").read_text()


def names_of_tests() -> set[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    return {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), flags=re.M)}


def test_every_trap_has_a_test_named_for_it_and_every_such_test_is_listed() -> None:
    listed = set(re.findall(r"`(test_\w+)`", TRAPS))
    there = names_of_tests()

    assert listed - there == set()
    assert {name for name in there if name.startswith("test_trap_")} - listed == set()
    for number in range(1, 15):
        row = next(line for line in TRAPS.splitlines() if line.startswith(f"| {number} |"))
        assert f"`test_trap_{number}_" in row
    for number in range(15, 24):
        row = next(line for line in TRAPS.splitlines() if line.startswith(f"| {number} |"))
        assert re.search(r"`test_\w+`", row)


def test_the_table_of_planted_bugs_names_what_the_tests_plant() -> None:
    page = (ROOT / "docs" / "simulator.md").read_text()
    rows = [line for line in page.splitlines() if re.match(r"\| \d+ \|", line)]
    names = {bug.name for bug in BUGS}

    assert len(rows) == 20
    for row in rows:
        planted = re.findall(r'"([^"]+)"', row)
        assert planted, row
        assert set(planted) <= names, row
