"""The README and the examples run as printed: what a reader copies must work."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import BLOCKS, PAGES, ROOT, Block

PATIENT = ROOT / "tests" / "docs" / "patient"


def run(command: list[str], cwd: Path = ROOT) -> str:
    """Run it as a reader would, who has more time (patient/sitecustomize.py); return what it printed."""
    environment = {**os.environ, "PYTHONPATH": f"{PATIENT}:{ROOT}", "ACTORRAFT_PATIENT": command[-1]}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.cluster
@pytest.mark.parametrize("block", [pytest.param(each, id=each.place) for each in BLOCKS if each.runs])
def test_a_block_of_the_docs_runs_as_printed(block: Block, tmp_path: Path) -> None:
    file = block.write(tmp_path)
    how = ["-m", "pytest", "-q", "-p", "no:cacheprovider"] if block.is_test else ["-W", "error::ResourceWarning"]
    run([sys.executable, *how, file.name], tmp_path)


def test_a_blocks_calls_that_name_no_timeout_have_a_minute(tmp_path: Path) -> None:
    (tmp_path / "block.py").write_text(
        "from inspect import signature\n"
        "from actorraft import ActorRef, Client\n"
        "for call in (Client.submit, Client.execute, Client.query, Client.proxy, ActorRef.ask, ActorRef.proxy):\n"
        "    assert signature(call).parameters['timeout'].default == 60.0, call\n"
    )
    run([sys.executable, "block.py"], tmp_path)


def test_no_example_takes_it_that_a_leader_is_known_at_this_moment() -> None:
    """`leader()` is None between two leaders, which a busy machine has at any time."""
    pages = [*PAGES, *sorted((ROOT / "examples").rglob("*.py")), *sorted((ROOT / "examples").rglob("*.ipynb"))]
    assert [page.name for page in pages if re.search(r"nodes\[[\w.]*\.leader\(\)\]", page.read_text())] == []


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if re.search(r"^>>> ", page.read_text(), flags=re.M)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_what_a_page_types_at_the_prompt_prints_what_it_says(page: Path) -> None:
    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS)

    assert tried > 0
    assert failed == 0


@pytest.mark.cluster
@pytest.mark.parametrize("example", ["bank", "command_objects", "custom_machine"])
def test_an_example_runs_unguarded_as_a_script(example: str) -> None:
    run([sys.executable, f"examples/{example}.py"])


@pytest.mark.cluster
def test_the_demo_loses_nothing() -> None:
    said = run([sys.executable, "-m", "examples.demo", "--kills", "5", "--nodes", "3"])
    assert "acknowledged and lost" in said
    assert "closed: no process, no socket left" in said


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_in_the_docs_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    broken = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert broken == []


def test_the_readme_names_two_commands_that_the_makefile_has() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M)


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
