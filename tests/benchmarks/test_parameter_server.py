"""The parameter server's benchmark in its shortest form: its rows, its picture, and that nothing acknowledged is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.helpers import run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
WITHIN_S = 240.0  # a dozen processes that import NumPy and scikit-learn, on a machine that may be busy


def test_two_ways_give_rows_and_a_picture(tmp_path: Path) -> None:
    rows_file, picture = tmp_path / "rows.json", tmp_path / "rows.png"
    options = ["--ways", "plain,bfloat16", "--sizes", "650", "--seconds", "3", "--workers", "2"]
    run(
        "-m",
        "benchmarks.parameter_server",
        *options,
        "--json",
        str(rows_file),
        "--plot",
        str(picture),
        within_s=WITHIN_S,
    )
    rows = json.loads(rows_file.read_text())
    assert [row["way"] for row in rows] == ["plain", "bfloat16"]
    names = {"benchmark", "way", "size", "straggler", "kill", "updates_per_s", "updates_to_target", "seconds_to_target"}
    names |= {"final_accuracy", "log_bytes_per_update", "longest_gap_ms", "acknowledged", "applied", "terms"}
    for row in rows:
        assert set(row) == names
        assert 0 < row["acknowledged"] <= row["applied"]
        assert row["terms"] >= 1, "the leader was killed"
    assert picture.stat().st_size > 1000
