"""Each public name has a docstring that says what it returns and raises, and stands in the reference of the site."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import actorraft
import parameter_server
import statemachines
import transports

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = "\n".join(page.read_text() for page in sorted((ROOT / "docs" / "reference").glob("*.md")))
# What of transports is a user's, by module; the rest of it belongs to nodes and clients.
TRANSPORTS = {
    "transports": ("RaftNet",),
    "transports.zeromq": ("ZeroMQRaftNet",),
    "transports.tcp": ("TCPRaftNet",),
    "transports.mock": ("MockNetwork",),
}


def modules_of(package: ModuleType) -> list[ModuleType]:
    return [
        importlib.import_module(f"{package.__name__}.{each.name}") for each in pkgutil.iter_modules(package.__path__)
    ]


def public_names() -> Iterator[tuple[str, Any]]:
    """Yield (as it stands in the reference, object)."""
    for name in actorraft.__all__:
        if name != "__version__":
            yield f"actorraft.{name}", getattr(actorraft, name)
    for module, names in TRANSPORTS.items():
        for name in names:
            yield f"{module}.{name}", getattr(importlib.import_module(module), name)
    for module in modules_of(statemachines):
        for name, value in vars(module).items():
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value):
                yield f"{module.__name__}.{name}", value
    for name in parameter_server.__all__:
        yield f"parameter_server.{name}", getattr(parameter_server, name)


NAMES = dict(public_names())


def function_of(member: Any) -> Any:
    """The function behind a method, property, command or query; None if there is none."""
    for attribute in ("fget", "function", "__func__", "__wrapped__"):
        member = getattr(member, attribute, None) or member
    return member if inspect.isfunction(member) else None


def functions() -> Iterator[tuple[str, Any, bool]]:
    """Yield (name, function, whether a caller may do something with what it returns) of all that a user calls."""
    for name, value in NAMES.items():
        if inspect.isfunction(value):
            yield name, value
        for key, member in vars(value).items() if inspect.isclass(value) else ():
            function = function_of(member)
            if not key.startswith("_") and function is not None:
                yield f"{name}.{key}", function


def raises_itself(function: Any) -> bool:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(tree))


FUNCTIONS = dict(functions())


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_stands_in_the_reference(name: str) -> None:
    assert re.search(rf"^\.\. auto(class|function|exception|data):: {re.escape(name)}$", REFERENCE, flags=re.M), name


@pytest.mark.parametrize("name", [*NAMES, *FUNCTIONS])
def test_what_is_public_says_what_it_is(name: str) -> None:
    value = FUNCTIONS.get(name, NAMES.get(name))
    said = value.__doc__ if inspect.isfunction(value) else inspect.getdoc(value)
    assert said
    assert said.strip().splitlines()[0].rstrip().endswith((".", ":"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_says_what_it_returns_and_raises(name: str) -> None:
    function = FUNCTIONS[name]
    said = function.__doc__ or ""
    if function.__annotations__.get("return") not in (None, "None"):
        assert re.search(r"\b[Rr]eturns?\b|\bYields?\b", said), "what does it return?"
    if raises_itself(function):
        assert re.search(r"\b[Rr]aises?:?\b|Error\b", said), "what does it raise, and when?"


@pytest.mark.parametrize(
    "name",
    ["submit", "execute", "query", "query_async", "proxy", "transfer_leadership", "take_snapshot", "digest", "watch",
     "export_snapshot", "wait_for_leader"],
)  # fmt: skip
def test_what_may_end_in_an_outcome_says_in_which(name: str) -> None:
    assert re.search(r"\b[Rr]aises?\b", inspect.getdoc(getattr(actorraft.Client, name)) or "")


def test_no_docstring_points_at_a_document_that_users_do_not_have() -> None:
    sources = [file for package in ("actorraft", "transports", "statemachines", "parameter_server", "benchmarks", "examples")
               for file in sorted((ROOT / package).rglob("*.py"))]  # fmt: skip
    elsewhere = re.compile(
        r"contract section|the contract\b|\barchitecture \d|\b\w+/?(rules|contract|house|style|security)\.md|\brules\.md"
        r"|\bR\d{1,2}\b|\bissue #?\d|\bmission page"
    )
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in sources
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if elsewhere.search(line)
    ]
    assert found == []


def test_a_page_that_a_docstring_names_is_there() -> None:
    for package in (actorraft, transports, statemachines, parameter_server):
        for file in Path(package.__path__[0]).rglob("*.py"):
            for page in re.findall(r"\bdocs/[\w/-]+\.md\b", file.read_text()):
                assert (ROOT / page).exists(), f"{file.name} names {page}"
            for number in re.findall(r"docs/decisions/(\d{4})", file.read_text()):
                assert list((ROOT / "docs" / "decisions").glob(f"{number}-*.md")), (
                    f"{file.name} names decision {number}"
                )
