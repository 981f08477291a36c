"""The examples of docs/core.md are run, and each public function it must describe is there."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "core.md"


def test_the_examples_of_the_core_page_run() -> None:
    result = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)

    assert result.failed == 0
    assert result.attempted > 40


@pytest.mark.parametrize(
    "name",
    [
        "vote_result(", "committed_index(", "simple(", "enter_joint(", "leave_joint(", ".match(", ".append_entries(",
        ".conflict(", ".term_at(", "rejection_hint(", "next_index_after_rejection(", "urgent_delay_ms",
    ],
)  # fmt: skip
def test_the_core_page_shows_each_pure_function(name: str) -> None:
    examples = [line for line in PAGE.read_text().splitlines() if line.startswith(">>> ")]

    assert any(name in line for line in examples)
