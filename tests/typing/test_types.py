"""Users get types: calls through commands, futures and proxies are checked by mypy and pyright alike."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
USERS = HERE / "machines.py"
TOOLS = Path(sys.prefix) / "node_modules" / ".bin"  # where `make tools` puts what comes from npm


def wrong_lines() -> set[int]:
    lines = USERS.read_text().splitlines()
    return {number for number, line in enumerate(lines, start=1) if line.endswith("# wrong")}


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


def test_pyright_refuses_what_is_wrong_in_a_users_file_and_nothing_else() -> None:
    pyright = shutil.which("pyright", path=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")
    if pyright is None:
        pytest.skip("pyright is not installed: make tools")
    done = subprocess.run(
        [pyright, "--outputjson", "--pythonpath", sys.executable, str(USERS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    report = json.loads(done.stdout)
    errors = [each for each in report["generalDiagnostics"] if each["severity"] == "error"]
    found = {each["range"]["start"]["line"] + 1 for each in errors}
    assert found == wrong_lines(), errors
