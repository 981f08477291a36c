"""docs/actors.md promises nothing that no test backs, and the examples of actors do what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_traps import names_of_tests

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "actors.md").read_text()


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))

    assert len(named) > 20
    assert named - names_of_tests() == set()


def test_every_promise_of_a_list_names_a_test() -> None:
    promises = re.findall(r"^- .*(?:\n  .*)*", PAGE, flags=re.MULTILINE)

    assert len(promises) > 15
    assert [promise for promise in promises if "`test_" not in promise] == []


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("example", "says"),
    [
        ("pipeline", "10 different words; 'the' came 6 times"),
        ("async_actor", "20 messages at once"),
        ("transfers", "there are still 2000"),
        ("job_queue", "30 jobs are done, though 5 workers were killed"),
    ],
)
def test_an_example_of_actors_does_what_it_says(example: str, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{example}"], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
