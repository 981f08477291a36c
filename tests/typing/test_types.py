"""Users get types: calls through commands, futures and proxies are checked by mypy and pyright alike."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
USERS = HERE / "machines.py"


def wrong_lines() -> set[int]:
    lines = USERS.read_text().splitlines()
    return {number for number, line in enumerate(lines, start=1) if line.endswith("# wrong")}


@pytest.mark.slow
def test_mypy_refuses_what_is_wrong_in_a_users_file_and_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary", str(USERS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = {int(number) for number in re.findall(r"machines\.py:(\d+): error", done.stdout)}
    assert found == wrong_lines(), done.stdout + done.stderr


@pytest.mark.slow
def test_pyright_refuses_what_is_wrong_in_a_users_file_and_nothing_else() -> None:
    pytest.importorskip("pyright")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(USERS)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        report = json.loads(done.stdout)
    except (json.JSONDecodeError, subprocess.TimeoutExpired):
        pytest.skip("pyright cannot run here (it needs node.js, which it fetches when it is first run)")
    errors = [each for each in report["generalDiagnostics"] if each["severity"] == "error"]
    found = {each["range"]["start"]["line"] + 1 for each in errors}
    assert found == wrong_lines(), errors
