"""What each room of the house may use from elsewhere, and what the control path must never open.

Who may import whom among our own rooms is said once, by the layers in pyproject.toml; here it is seen to that no room
is left out there, and what a room may use of other packages and must not use of the standard library, so that a new
dependency is a decision and not an accident.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import actorraft

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("actorraft", "transports", "statemachines", "parameter_server")

# room -> (what it may use of others' packages, what of the standard library it may not)
CLOCKS_AND_DEVICES = {
    "time", "random", "os", "socket", "threading", "secrets", "select", "selectors", "signal", "subprocess",
    "multiprocessing", "asyncio", "datetime", "concurrent", "queue", "pathlib", "io", "tempfile", "uuid", "pickle",
}  # fmt: skip
SOCKETS = {"socket", "select", "selectors", "ssl", "asyncio"}
RULES: dict[str, tuple[set[str], set[str]]] = {
    "actorraft.raft": (set(), CLOCKS_AND_DEVICES),
    "actorraft.storage": ({"msgspec", "rich", "typer", "isal", "zlib_ng"}, SOCKETS | {"pickle", "random"}),
    # a child waits for its parent's pipe, and runs its actor's coroutines
    "actorraft.actors": ({"cloudpickle", "msgspec"}, SOCKETS - {"select", "asyncio"}),
    "actorraft.simulation": ({"msgspec", "rich", "typer"}, SOCKETS | {"time"}),
    "transports": ({"zmq"}, {"pickle"}),
    "parameter_server": ({"numpy"}, SOCKETS | {"pickle", "random"}),
    "statemachines": ({"numpy"}, CLOCKS_AND_DEVICES - {"io", "pickle"}),
}
# module -> what it may use although its room may not
EXCEPTIONS = {
    "actorraft.actors.forkserver": {"socket"},  # a nameless pair of Unix sockets: nothing else hands descriptors over
}
MACHINES_MAY_NAME = ("statemachines", "actorraft.machine", "actorraft.errors", "actorraft.determinism")
CONTROL_PATH = ("actorraft.raft", "actorraft.storage", "actorraft.codec", "actorraft.node.control", "actorraft.node.driver",
                "actorraft.node.gateway", "actorraft.node.requests", "actorraft.node.snapshotting", "actorraft.node.session_table",
                "actorraft.client.session", "actorraft.client.reads", "actorraft.client.requests", "actorraft.client.leader", "actorraft.roles",
                "transports")  # fmt: skip
COMPOSITION_ROOTS = {
    "actorraft.client.connect",
    "actorraft.cluster.processes",
    "actorraft.node.process",
    "actorraft.cluster.founding",
    "actorraft.cluster.joining",
    "actorraft.node.members",
    "actorraft.node.gateway",
    "actorraft.node.key_change",
    "actorraft.node.standalone",
    "actorraft.cli",
}  # and actorraft.actors: they name a transport
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"}


def modules(package: str) -> Iterator[tuple[str, Path]]:
    """Yield (dotted name, file) of a package's or module's files."""
    path = ROOT.joinpath(*package.split("."))
    if path.with_suffix(".py").is_file():
        yield package, path.with_suffix(".py")
    for file in sorted(path.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


@functools.cache
def imports(file: Path, *, type_checking: bool = False) -> tuple[tuple[int, str], ...]:
    """Return (line, dotted name) of every import, late ones too; a name from one of our packages with its module."""

    def visit(node: ast.AST) -> Iterator[tuple[int, str]]:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and not type_checking:
            for other in node.orelse:
                yield from visit(other)
            return
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node.lineno, inner if _is_module(inner) else node.module
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.expr):  # no expression holds an import
                yield from visit(child)

    return tuple(visit(parsed(file)))


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@functools.cache
def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def _inside(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


@pytest.mark.parametrize("part", RULES)
def test_a_room_uses_only_what_it_may_of_others(part: str) -> None:
    others, not_these = RULES[part]
    wrong: list[str] = []
    for module, file in modules(part):
        for line, name in imports(file):
            top = name.partition(".")[0]
            if top in PACKAGES or top in EXCEPTIONS.get(module, ()):
                continue
            allowed = top not in not_these if top in sys.stdlib_module_names else top in others
            if not allowed:
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports {name}")
    assert wrong == []


def test_machines_know_the_machine_s_side_only() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for _, file in modules("statemachines")
        for line, name in imports(file)
        if name.partition(".")[0] in PACKAGES and not any(_inside(name, each) for each in MACHINES_MAY_NAME)
    ]
    assert wrong == []


def test_no_room_is_left_out_of_the_layers() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    ruled = {room for floor in layers for room in floor.split(" | ")}
    rooms = {package for package in PACKAGES if package != "actorraft"}
    for one in (ROOT / "actorraft").iterdir():
        if one.name != "__init__.py" and (one.suffix == ".py" or (one / "__init__.py").is_file()):
            rooms.add(f"actorraft.{one.stem}")
    assert ruled == rooms


@pytest.mark.parametrize("part", CONTROL_PATH)
def test_the_control_path_never_imports_pickle(part: str) -> None:
    wrong = [
        f"{file}:{line} {name}"
        for _, file in modules(part)
        for line, name in imports(file)
        if name.split(".")[0] in PICKLES
    ]
    assert wrong == []


def test_nothing_receives_pickles_from_a_socket() -> None:
    wrong = [
        str(file)
        for package in PACKAGES
        for _, file in modules(package)
        if re.search(r"\b(recv|send)_pyobj\b", file.read_text())
    ]
    assert wrong == []


def test_the_library_never_imports_what_stands_above_it() -> None:
    above = ("tests", "benchmarks", "examples", "docs")
    wrong = []
    for package in PACKAGES:
        for name, file in modules(package):
            for line, imported in imports(file, type_checking=True):
                if any(_inside(imported, each) for each in above) or (
                    package == "actorraft" and _inside(imported, "statemachines")
                ):
                    wrong.append(f"{name}:{line} imports {imported}")
    assert wrong == []


def test_only_composition_roots_name_a_transport_and_only_late() -> None:
    wrong = []
    for name, file in modules("actorraft"):
        root = any(_inside(name, part) for part in (*COMPOSITION_ROOTS, "actorraft.actors", "actorraft.simulation"))
        at_the_top = {node.lineno for node in parsed(file).body if isinstance(node, ast.Import | ast.ImportFrom)}
        for line, imported in imports(file):
            late = line not in at_the_top or _inside(imported, "transports.mock")
            if _inside(imported, "transports") and not (root and late):
                wrong.append(f"{name}:{line} imports {imported}")
    assert wrong == []


def test_deadlines_are_kept_by_the_clock_that_no_test_freezes() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for package in PACKAGES
        for name, file in modules(package)
        if name != "actorraft.node.clock"  # read in a node's process alone, and taken before user code is there
        for node in ast.walk(parsed(file))
        if (isinstance(node, ast.Attribute) and ast.unparse(node) == "time.monotonic")
        or (isinstance(node, ast.ImportFrom) and node.module == "time" and "monotonic" in {a.name for a in node.names})
    ]
    assert wrong == []  # actorraft.steady has it


def test_every_module_begins_by_saying_what_it_is() -> None:
    bare = [
        str(file.relative_to(ROOT))
        for package in (*PACKAGES, "benchmarks", "examples")
        for _, file in modules(package)
        if not ast.get_docstring(parsed(file))
    ]
    assert bare == []


# --- The public names -----------------------------------------------------------------------------------------------


def test_type_checkers_and_the_lazy_table_say_the_same() -> None:
    tree = ast.parse((ROOT / "actorraft" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (alias.asname, node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == set(actorraft._HOME.items())


@pytest.mark.parametrize("name", sorted(actorraft._HOME))
def test_a_public_name_is_where_the_table_says(name: str) -> None:
    assert getattr(importlib.import_module(actorraft._HOME[name]), name) is getattr(actorraft, name)
    assert name in dir(actorraft)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"actorraft.*no attribute 'rafft'"):
        getattr(actorraft, "rafft")  # noqa: B009


@pytest.mark.parametrize(
    "first", ["transports.zeromq", "transports.mock", "statemachines.kv", "actorraft.raft", "actorraft"]
)
def test_any_package_may_be_imported_first(first: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {first}"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_the_package_loads_no_socket_library() -> None:
    code = "import sys, actorraft; print(sorted({'zmq', 'msgspec', 'cloudpickle'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


# --- Packaging ------------------------------------------------------------------------------------------------------


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "actorraft.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", actorraft.__version__)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_marked_as_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
