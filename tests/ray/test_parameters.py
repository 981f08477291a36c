"""The parameter server's benchmark beside an actor of Ray's, in its shortest form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.served import REPOSITORY


@pytest.mark.cluster
@pytest.mark.slow  # Ray takes its time to come and go; make slow
@pytest.mark.timeout(400)
def test_the_row_of_a_ray_actor_stands_beside_ours(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    rows_file = tmp_path / "rows.json"
    options = ["--ways", "async", "--sizes", "650", "--compare", "ray", "--seconds", "3", "--json", str(rows_file)]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.parameter_server", *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=350, check=False)
    assert done.returncode == 0, done.stderr
    ours, rays = json.loads(rows_file.read_text())
    assert (ours["way"], rays["way"]) == ("async", "ray")
    assert set(ours) == set(rays)
    assert 0 < ours["acknowledged"] <= ours["applied"]
    assert rays["acknowledged"] > 0
    assert rays["log_bytes_per_update"] == 0, "it is in memory only"
