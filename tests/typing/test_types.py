"""Users get types: calls through commands, futures and proxies are checked by mypy and pyright alike; so are all examples."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actorraft import Client, ReplicatedStateMachine, connect, connect_async
from tests.docs.blocks import BLOCKS

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
USERS = HERE / "machines.py"
TOOLS = Path(sys.prefix) / "node_modules" / ".bin"  # where `make tools` puts what comes from npm


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Put the blocks of README.md and the docs into one folder, with examples/ beside them."""
    folder = tmp_path_factory.mktemp("examples")
    named = [block.name for block in BLOCKS if block.name]
    assert len(named) == len(set(named)), "files of the docs have names of their own, over all pages"
    for number, block in enumerate(BLOCKS):
        (folder / (block.name or f"block_{number}.py")).write_text(f"# {block.place}\n{block.code}")
    return folder


def wrong_lines() -> set[int]:
    lines = USERS.read_text().splitlines()
    return {number for number, line in enumerate(lines, start=1) if line.endswith("# wrong")}


@pytest.fixture(scope="module")
def mypy_says(examples: Path) -> list[str]:
    """Return what mypy says of a user's files and of all examples, line by line.

    Once, and with a cache of its own: two that share one, at the same time or with other options, fail or undo it.
    """
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary",
         "--cache-dir", str(ROOT / ".cache" / "mypy-of-users"), str(USERS), *map(str, sorted(examples.glob("*.py")))],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return (done.stdout + done.stderr).splitlines()


def pyright(path: Path, root: Path = ROOT) -> list[dict[str, Any]]:
    """Return the errors that pyright finds in a user's files, in a project of theirs."""
    program = shutil.which("pyright", path=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("pyright is not installed: make tools")
    done = subprocess.run(
        [program, "--outputjson", "--pythonpath", sys.executable, str(path)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    report = json.loads(done.stdout)
    return [each for each in report["generalDiagnostics"] if each["severity"] == "error"]


@pytest.mark.long
@pytest.mark.timeout(400)
def test_mypy_refuses_what_is_wrong_in_a_users_file_and_nothing_else(mypy_says: list[str]) -> None:
    said = [line for line in mypy_says if line.startswith("tests/typing/machines.py:")]
    assert {int(line.split(":")[1]) for line in said if ": error: " in line} == wrong_lines(), said


@pytest.mark.long
def test_pyright_refuses_what_is_wrong_in_a_users_file_and_nothing_else() -> None:
    errors = pyright(USERS)
    assert {each["range"]["start"]["line"] + 1 for each in errors} == wrong_lines(), errors


@pytest.mark.long
@pytest.mark.timeout(400)
def test_mypy_accepts_every_example_of_the_docs(mypy_says: list[str]) -> None:
    assert [line for line in mypy_says if not line.startswith("tests/typing/machines.py:")] == []


@pytest.mark.long
def test_pyright_accepts_every_example_of_the_docs(examples: Path) -> None:
    assert pyright(examples, root=examples) == []


def test_what_a_coroutine_awaits_has_the_parameters_of_what_blocks() -> None:
    for blocks, awaits in (
        (ReplicatedStateMachine.spawn, ReplicatedStateMachine.spawn_async),
        (connect, connect_async),
        (Client.query, Client.query_async),
    ):
        assert inspect.signature(blocks) == inspect.signature(awaits)
