"""Classes of a script reach a node, its state and the caller again, of whatever kind and however it was started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = Path(__file__).parent / "scripts"


def run(script: str, *arguments: str, how: str, hash_seed: str = "random") -> None:
    """Run a script as a user would: `python script.py ...` or `python - ... < script.py`."""
    path = SCRIPTS / script
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed}
    with path.open() as source:
        done = subprocess.run(
            [sys.executable, str(path) if how == "file" else "-", *arguments],
            stdin=source if how == "stdin" else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
            timeout=100,
        )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_every_kind_of_class_goes_there_and_back_and_is_found_again_by_a_second_run(how: str, tmp_path: Path) -> None:
    snapshot = str(tmp_path / "snapshot")
    run("kinds.py", "first", snapshot, how=how, hash_seed="1")
    run("kinds.py", "second", snapshot, how=how, hash_seed="2")
