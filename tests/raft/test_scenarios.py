"""Every scenario goes as it is written down; see scenario.py for how to read and to rewrite them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.raft.scenario import COMMAND, Scenario

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=[path.stem for path in SCENARIOS])
def test_a_scenario_goes_as_it_is_written(path: Path, request: pytest.FixtureRequest) -> None:
    written = path.read_text(encoding="utf-8")

    happened = Scenario().run(written)

    if request.config.getoption("--rewrite-scenarios"):
        path.write_text(happened, encoding="utf-8")
    else:
        assert written.splitlines() == happened.splitlines()


def test_what_differs_is_seen_and_prose_is_kept() -> None:
    text = "Prose.\n> cluster 1\n> campaign 0\n    0 is something else\n\nMore prose.\n"

    happened = Scenario().run(text)

    assert happened.startswith(
        "Prose.\n> cluster 1\n> campaign 0\n    0 is leader of term 1\n    0 stores term 1, vote 0"
    )
    assert happened.endswith("\n\nMore prose.\n")
    assert Scenario().run(happened) == happened


def test_there_are_scenarios_of_each_part_of_the_protocol() -> None:
    assert {path.stem for path in SCENARIOS} >= {
        "elections", "pre_vote", "replication", "conflict", "snapshots", "joint_changes", "reads", "transfer",
    }  # fmt: skip
    assert all(COMMAND in path.read_text(encoding="utf-8") for path in SCENARIOS)
