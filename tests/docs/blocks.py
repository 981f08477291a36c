"""The examples of README.md and docs/: each python block is a program that runs, and that type checkers accept.

A block whose first line is `# bank.py` is a file of that name, there for the blocks that follow on its page, which are
what runs it; one called `# test_....py` is for pytest. One that is not meant to run says `python no-run`; blocks typed at the prompt build on one
another, and their page is run as a whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """One program of a page."""

    place: str  # page and line
    code: str
    name: str  # of its file; "" if it has none
    files: tuple[tuple[str, str], ...]  # (name, code) of those that its page has before it

    @property
    def is_test(self) -> bool:
        """Whether it is for pytest."""
        return self.name.startswith("test_")

    @property
    def runs(self) -> bool:
        """Whether it is run by itself."""
        return not self.name or self.is_test

    def write(self, directory: Path) -> Path:
        """Put it into a directory, with what it needs; return its file."""
        for name, code in self.files:
            (directory / name).write_text(code)
        file = directory / (self.name or "block.py")
        file.write_text(self.code)
        return file


def blocks_of(page: Path) -> list[Block]:
    """Return the python blocks of a page that run by themselves."""
    text = page.read_text()
    found: list[Block] = []
    files: tuple[tuple[str, str], ...] = ()
    for match in re.finditer(r"^```python\n(.*?)^```", text, flags=re.M | re.S):
        code = match[1]
        if code.lstrip().startswith(">>> "):
            continue
        line = text.count("\n", 0, match.start()) + 2
        named = re.match(r"# (\w+\.py)\b", code)
        found.append(Block(f"{page.relative_to(ROOT)}:{line}", code, named[1] if named else "", files))
        if named:
            files = (*files, (named[1], code))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
