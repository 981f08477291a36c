"""A served node under another Python than its peers. The other one is this one, under an assumed name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.served import REPOSITORY, Served, eventually

ASSUMED = """
import actorraft.storage.directory
actorraft.storage.directory.this_python = lambda: "3.99"
"""


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_served_node_under_another_python_stores_and_votes_only_and_goes_on_under_that_of_its_peers(
    tmp_path: Path,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(ASSUMED)
    other = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}

    def row(served: Served) -> dict[str, Any]:
        return served.status().get(2, {})

    def holds(served: Served) -> bool:
        there = row(served)
        return words in (there.get("error") or "") and there["last_applied"] == -1

    words = "and this node runs 3.99: it stores and votes only"
    with Served(tmp_path) as served:
        served.start(0, 1)
        served.settled()
        served.start(2, environment=other)
        eventually(lambda: holds(served), what=served.said)

        served.kill(0)  # what it stores counts
        served.run("exec", "set", '"a"', "1", "--timeout", "40")
        eventually(lambda: holds(served), what=served.said)

        served.kill(2)
        served.start(2)
        eventually(lambda: row(served).get("last_applied", -1) > 0 and not row(served).get("error"), what=served.said)
