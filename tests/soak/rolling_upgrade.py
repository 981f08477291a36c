"""python -m tests.soak.rolling_upgrade: five nodes go from an old library and an old class to the new ones, under load.

The old library is taken from this repository's history and installed in an environment of its own: the earliest whose
nodes and clients talk to those of today; its snapshots and messages are one format older. The new class has another
rule, one more field and one more command. One by one
the nodes are stopped and started again; the first goes back once, which is possible until the newer version takes effect.
Afterwards the replicas are equal, every acknowledged line is there once, at the place that was acknowledged and in the
order of real time; and a node with the old class is refused.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import typer

from actorraft import Client, StateMachine, command, connect, query
from actorraft.errors import ActorRaftError, Busy, OutcomeUnknown, Unavailable
from benchmarks.others.processes import free_ports

REPOSITORY: Final = Path(__file__).parents[2]
OLD: Final = "778becb"  # the earliest whose nodes and clients talk to those of today
STEP_S: Final = 60.0

V1: Final = """
from actorraft import StateMachine, command, query

class Book(StateMachine):
    machine_version = 1

    def __init__(self):
        self.lines = []

    @command
    def write(self, line):
        self.lines.append(line)
        return len(self.lines) - 1

    @query
    def read(self):
        return self.lines
"""
V2: Final = """
from actorraft import StateMachine, command, context, query

class Book(StateMachine):
    machine_version = 2

    def __init__(self):
        self.lines, self.marks = [], {}

    @command
    def write(self, line):
        self.lines.append(line.upper() if context().machine_version >= 2 else line)
        return len(self.lines) - 1

    @command
    def mark(self, name, place):
        self.marks[name] = place
        return len(self.marks)

    @query
    def read(self):
        return self.lines

    @query
    def all(self):
        return self.lines, self.marks

    def migrate(self, from_version):
        self.marks["migrated from"] = from_version
"""


class Book(StateMachine):
    """What the client of both knows."""

    @command
    def write(self, line: str) -> int:
        raise NotImplementedError

    @command
    def mark(self, name: str, place: int) -> int:
        raise NotImplementedError

    @query
    def read(self) -> list[str]:
        raise NotImplementedError

    @query
    def all(self) -> tuple[list[str], dict[str, int]]:
        raise NotImplementedError


@dataclass
class Report:
    """What came of it."""

    old: str = ""  # the hash of the old library's commit
    acknowledged: int = 0
    unknown: int = 0
    longest_wait_s: float = 0.0
    went_back: bool = False  # before the version took effect
    refused: str = ""  # what a node with the old class says afterwards
    problems: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.problems and self.went_back and bool(self.refused) and self.acknowledged > 0


def python_of(tree: Path, home: Path) -> str:
    """Make an environment with that library and this one's dependencies; return its interpreter."""
    venv.create(home, with_pip=False, symlinks=True)
    site = next(home.glob("lib/python*/site-packages"))
    for name in ("actorraft", "transports", "statemachines"):
        shutil.copytree(tree / name, site / name)
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return str(home / "bin" / "python")


def old_library(place: Path) -> tuple[str, str]:
    """Return the interpreter of the old library, and the hash of its commit."""
    git = ["git", "-C", str(REPOSITORY)]
    commit = subprocess.run([*git, "rev-parse", OLD], check=True, capture_output=True, text=True).stdout.strip()
    tree = place / "old"
    tree.mkdir()
    archive = subprocess.run([*git, "archive", commit], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
    return python_of(tree, place / "old environment"), commit


def why_not() -> str | None:
    """Say why there is no old library here; None if there is one."""
    found = subprocess.run(
        ["git", "-C", str(REPOSITORY), "cat-file", "-e", f"{OLD}^{{commit}}"], check=False, capture_output=True
    )
    return None if found.returncode == 0 else f"the history of this checkout does not hold {OLD}"


class Nodes:
    """The nodes of a cluster on this machine, each a process of the command line."""

    def __init__(self, place: Path, python: str, count: int) -> None:
        self.place, self.ids = place, range(count)
        for version, source in ((1, V1), (2, V2)):
            (place / f"class {version}").mkdir()
            (place / f"class {version}" / "book.py").write_text(source)
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self.run(
            python,
            1,
            "init",
            "books",
            "--machine",
            "book:Book",
            "--nodes",
            ",".join(f"127.0.0.1:{port}" for port in free_ports(count)),
        )

    def run(self, python: str, version: int, *line: str) -> None:
        """Have a line of the command line run to its end."""
        done = subprocess.run(
            [python, "-m", "actorraft", *line],
            check=False, cwd=self.place, env=self._environment(version), capture_output=True, text=True, timeout=STEP_S,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"

    def _environment(self, version: int) -> dict[str, str]:
        rest = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return {**rest, "PYTHONPATH": str(self.place / f"class {version}"), "PYTHONDONTWRITEBYTECODE": "1"}

    def start(self, node_id: int, python: str, version: int) -> None:
        """Start a node with that library and that class."""
        with self.said(node_id).open("a") as said:
            self._processes[node_id] = subprocess.Popen(
                [python, "-m", "actorraft", "serve", f"books/node-{node_id}"],
                cwd=self.place, env=self._environment(version), stdout=said, stderr=said, text=True,
            )  # fmt: skip

    def stop(self, node_id: int) -> None:
        """Ask a node to leave, and wait until it has."""
        process = self._processes[node_id]
        process.send_signal(signal.SIGTERM)
        process.wait(STEP_S)

    def said(self, node_id: int) -> Path:
        """Where its output is."""
        return self.place / f"node-{node_id}.out"

    def alive(self, node_id: int) -> bool:
        """Whether its process runs."""
        return self._processes[node_id].poll() is None

    def connect(self) -> Client[Book]:
        """Return a client of them."""
        return connect(str(self.place / "books" / "client"), Book, timeout=STEP_S)

    def close(self) -> None:
        """End what still runs."""
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()


class Writers:
    """Clients that write lines, one after the other, until told to stop."""

    def __init__(self, nodes: Nodes, count: int) -> None:
        self.done: list[tuple[float, float, str, int]] = []  # (begun, ended, line, place) of what was acknowledged
        self.unknown: list[str] = []
        self.problems: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(nodes, number)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _write(self, nodes: Nodes, name: int) -> None:
        with nodes.connect() as client:
            book, number = client.proxy(timeout=STEP_S), 0
            while not self._stop.is_set():
                number += 1
                line, begun_s = f"line-{name}-{number}", time.monotonic()
                try:
                    place = book.write(line)
                    self.done.append((begun_s, time.monotonic(), line, place))
                except OutcomeUnknown:
                    self.unknown.append(line)
                except (Unavailable, Busy):
                    pass
                except BaseException as error:
                    self.problems.append(f"a client saw {type(error).__name__}: {error}")
                    return

    def wait_for_more(self, count: int = 20) -> None:
        """Wait until so many more are acknowledged."""
        begin = len(self.done)
        until(lambda: len(self.done) >= begin + count or bool(self.problems), "commands")

    def stop(self) -> None:
        """End them all."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * STEP_S)


def until(ask: Callable[[], Any], what: str) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: it is not in STEP_S.
    """
    deadline_s = time.monotonic() + STEP_S
    while True:
        with contextlib.suppress(ActorRaftError):
            if ask():
                return
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited for {what} in vain")
        time.sleep(0.05)


@contextlib.contextmanager
def cluster(place: Path, count: int) -> Iterator[tuple[Nodes, str, str]]:
    """Found a cluster of old nodes; yields the nodes, the old interpreter and the hash of its library."""
    python, commit = old_library(place)
    nodes = Nodes(place, python, count)
    try:
        for node_id in nodes.ids:
            nodes.start(node_id, python, 1)
        yield nodes, python, commit
    finally:
        nodes.close()


def run(*, nodes: int = 5, writers: int = 4, lines: int = 100, say: Callable[[str], None] = lambda _: None) -> Report:
    """Upgrade a cluster; `lines` are written between two steps."""
    with tempfile.TemporaryDirectory() as place, cluster(Path(place), nodes) as (all_nodes, old, commit):
        report = Report(old=commit)
        say(f"old library: {commit}")
        new = python_of(REPOSITORY, Path(place) / "new environment")
        with all_nodes.connect() as client:
            until(lambda: client.proxy(timeout=5.0).write("first") >= 0, "the first line")
            load = Writers(all_nodes, writers)
            try:
                _upgrade(all_nodes, client, load, old, new, lines, report, say)
            finally:
                load.stop()
            _judge(all_nodes, client, load, report)
            _go_back(all_nodes, new, report)
            say(f"back: {report.refused}")
    return report


def _upgrade(
    nodes: Nodes, client: Client[Book], load: Writers, old: str, new: str, lines: int, report: Report, say: Any
) -> None:
    def serves(node_id: int) -> Any:
        return lambda: load.problems or client.proxy(timeout=5.0, to=node_id, consistency="linearizable").read()

    def restart(node_id: int, python: str, version: int) -> None:
        nodes.stop(node_id)
        nodes.start(node_id, python, version)
        until(serves(node_id), f"node {node_id}")
        load.wait_for_more(lines)

    load.wait_for_more(lines)
    restart(0, new, 2)
    restart(0, old, 1)
    report.went_back = True
    for node_id in nodes.ids:
        restart(node_id, new, 2)
        say(f"node {node_id} is new; {len(load.done)} lines are acknowledged")
    until(lambda: client.proxy(timeout=5.0).all()[1].get("migrated from") == 1, "the new version")
    client.proxy(timeout=STEP_S).mark("upgraded", len(load.done))
    load.wait_for_more(lines)


def _judge(nodes: Nodes, client: Client[Book], load: Writers, report: Report) -> None:
    """Each acknowledged line is there once, at its place; places are in the order of real time; replicas are equal."""
    report.acknowledged, report.unknown = len(load.done), len(load.unknown)
    report.longest_wait_s = max(ended - begun for begun, ended, _, _ in load.done)
    report.problems += load.problems
    lines, marks = client.proxy(timeout=STEP_S).all()
    for node_id in nodes.ids:
        until(lambda node_id=node_id: client.proxy(to=node_id).all() == (lines, marks), f"node {node_id} to be equal")  # type: ignore[misc]
    plain = [line.lower() for line in lines]
    if len(set(plain)) != len(plain):
        report.problems.append("a line is there twice")
    report.problems += [f"{line} is not at {at}" for _, _, line, at in load.done if plain[at] != line]
    switched = next((at for at, line in enumerate(lines) if line.isupper()), len(lines))
    if not all(line.isupper() for line in lines[switched:]):
        report.problems.append("the new rule did not begin at one place")
    newest = -1  # the highest place of what had ended
    ended = sorted(load.done, key=lambda one: one[1])
    position = 0
    for begun_s, _, line, at in sorted(load.done):
        while ended[position][1] < begun_s:
            newest = max(newest, ended[position][3])
            position += 1
        if at < newest:
            report.problems.append(f"{line} is before what had ended when it began")


def _go_back(nodes: Nodes, new: str, report: Report) -> None:
    """A node with the old class is refused, and says so."""
    nodes.stop(0)
    before = nodes.said(0).stat().st_size
    nodes.start(0, new, 1)
    until(lambda: "start it with the newer code" in nodes.said(0).read_text()[before:].lower(), "the refusal")
    told = nodes.said(0).read_text()[before:]
    report.refused = next(line for line in told.splitlines() if "start it with the newer code" in line.lower())


def main(nodes: int = 5, writers: int = 4, lines: int = 500) -> None:
    """Upgrade a cluster under load."""
    report = run(nodes=nodes, writers=writers, lines=lines, say=lambda text: print(text, flush=True))
    print(
        f"{report.acknowledged} lines acknowledged, {report.unknown} unknown; longest wait {report.longest_wait_s:.2f} s"
    )
    for problem in report.problems[:20]:
        print(problem)
    sys.exit(0 if report.sound else 1)


if __name__ == "__main__":
    typer.run(main)
