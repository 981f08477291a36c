"""`python -m tests.longest`: the longest files, classes and functions. A signal to look for a second idea, no bound.

For each of the first few: lines, and for a class also its methods and the fields that its `__init__` makes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SHOWN = 5
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("actorraft", "transports", "statemachines", "parameter_server")

Row = tuple[int, str]


def measure() -> tuple[list[Row], list[Row], list[Row]]:
    """Return (lines, what it is) of files, classes and functions, the longest first."""
    files: list[Row] = []
    classes: list[Row] = []
    functions: list[Row] = []
    for file in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        text, name = file.read_text(), str(file.relative_to(ROOT))
        files.append((text.count("\n"), name))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                methods = sum(isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) for each in node.body)
                classes.append(
                    (_lines(node), f"{name} {node.name}: {methods} methods, {len(set(_fields(node)))} fields")
                )
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append((_lines(node), f"{name} {node.name}"))
    return sorted(files, reverse=True), sorted(classes, reverse=True), sorted(functions, reverse=True)


def _lines(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _fields(node: ast.ClassDef) -> Iterator[str]:
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            for each in ast.walk(method):
                if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store):
                    yield each.attr


def main() -> None:
    """Print them."""
    for title, rows in zip(("files", "classes", "functions"), measure(), strict=True):
        print(f"longest {title}")
        for lines, what in rows[:SHOWN]:
            print(f"  {lines:5}  {what}")


if __name__ == "__main__":
    main()
