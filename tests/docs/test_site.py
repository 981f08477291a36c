"""The site is built from docs/ and the docstrings without a warning, and holds every page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it; a warning, such as of a link that leads nowhere, is an error."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-b", "html",
         "-d", str(out / "doctrees"), str(ROOT / "docs"), str(out / "html")],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out / "html"


def test_every_page_is_in_the_site_and_can_be_reached_from_its_first(site: Path) -> None:
    pages = {page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")}
    pages -= {Path("decisions/README.html")}  # for readers of the repository
    menu = (site / "index.html").read_text() + (site / "decisions" / "index.html").read_text().replace(
        'href="0', 'href="decisions/0'
    )

    assert [str(page) for page in sorted(pages) if not (site / page).exists()] == []
    assert [str(page) for page in sorted(pages) if f'href="{page}"' not in menu and page.name != "index.html"] == []


def test_no_cross_reference_of_a_docstring_is_left_unread(site: Path) -> None:
    for page in sorted((site / "reference").glob("*.html")):
        assert not re.search(r"<p>(Args|Returns|Raises|Attributes):", page.read_text()), page.name
