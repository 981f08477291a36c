"""The README and the examples run as printed: what a reader copies must work."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks() -> list[tuple[str, str]]:
    """Return (page and line, code) of every python block that runs by itself; one that is not meant to says `python no-run`.

    Blocks typed at the prompt build on one another: their page is run as a whole, below.
    """
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```python\n(.*?)^```", text, flags=re.M | re.S):
            if match.group(1).lstrip().startswith(">>> "):
                continue
            line = text.count("\n", 0, match.start()) + 2
            found.append((f"{page.relative_to(ROOT)}:{line}", match.group(1)))
    return found


def run(command: list[str], script: str | None = None) -> str:
    """Run it as a reader would, from the root; return what it printed."""
    done = subprocess.run(command, input=script, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.cluster
@pytest.mark.parametrize(("place", "code"), [pytest.param(place, code, id=place) for place, code in blocks()])
def test_a_block_of_the_docs_runs_as_printed(place: str, code: str) -> None:
    run([sys.executable, "-W", "error::ResourceWarning", "-"], code)


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
