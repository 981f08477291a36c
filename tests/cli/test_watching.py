"""`events` and `top`: a leader's death as an operator sees it, in lines and on a screen of 80 by 24."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from actorraft.cli.app import app
from actorraft.cli.watching import Happened, Look, _median_ms, picture
from actorraft.client.status import MemberStatus
from actorraft.cluster.founding import found
from actorraft.node.journal import EVENTS_MAX, Journal
from benchmarks.others.processes import free_ports
from tests.cli.served import REPOSITORY, Served, eventually


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("watched")) as made:
        made.start()
        yield made


class Watcher:
    """A subcommand that goes on, and the lines that it prints."""

    def __init__(self, served: Served, *words: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "actorraft", *words],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "ACTORRAFT_CLIENT": str(served.client)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def interrupt(self) -> tuple[int, str]:
        """Press Ctrl-C; return the exit code and what stands on standard error."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(60)
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        self.process.stderr.close()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code, said


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_the_story_of_a_leader_s_death_is_in_the_events(served: Served) -> None:
    leader = served.settled()
    lines, words = Watcher(served, "events", "-o", "json"), Watcher(served, "events", "--recent")
    eventually(lambda: any("leads term" in line for line in words.lines), what=lambda: str(words.lines))
    told: list[dict[str, Any]] = []

    def seen(kind: str, node_id: int | None = None, detail: str = "") -> list[dict[str, Any]]:
        told[:] = [json.loads(line) for line in lines.lines]
        return [
            one for one in told if one["kind"] == kind and node_id in (None, one["node_id"]) and detail in one["detail"]
        ]

    served.run("snapshot")
    eventually(lambda: seen("snapshot"), what=lambda: str(told))
    served.kill(leader)
    lost = f"node {leader} is not reached any more"
    eventually(
        lambda: seen("down", leader) and seen("leader", None, "leads term") and seen("link", None, lost),
        what=lambda: str(told),
    )
    assert {node["node_id"] for node in seen("leader", None, "leads term")} <= {0, 1, 2} - {leader}
    served.start(leader)
    eventually(lambda: seen("up", leader) and seen("start", leader), what=lambda: str(told))
    assert all(sorted(one) == ["detail", "kind", "node_id", "term", "time_s"] for one in told)
    assert lines.interrupt() == (0, "")
    assert words.interrupt() == (0, "")


class Terminal:
    """A pseudo-terminal of 80 by 24, and what a subcommand draws on it."""

    def __init__(self, served: Served, *words: str) -> None:
        self.ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "actorraft", *words],
            cwd=REPOSITORY,
            env={**environment, "PYTHONPATH": str(REPOSITORY), "ACTORRAFT_CLIENT": str(served.client), "TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        self.drawn = ""

    def read(self) -> str:
        while select.select([self.ours], [], [], 0.05)[0]:
            self.drawn += os.read(self.ours, 65536).decode(errors="replace")
        return self.drawn

    def screen(self) -> list[str]:
        """What the last picture shows, line by line."""
        last = re.split(r"\x1b\[H", self.read())[-1]
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", last).replace("\r", "").split("\n")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(20)
        os.close(self.ours)
        os.close(self.theirs)


@pytest.mark.cluster
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_top_fits_80_by_24_through_a_leader_s_death_and_gives_the_terminal_back(served: Served, number: int) -> None:
    leader = served.settled()
    terminal = Terminal(served, "top", "--every", "0.3")
    try:
        # As it stands on the screen: on a busy machine another one may lead by now.
        leader = int(
            eventually(lambda: re.search(r"leader (\d), term", "\n".join(terminal.screen())), what=terminal.read)[1]
        )
        served.kill(leader)

        def replaced() -> bool:
            lines = terminal.screen()
            shown = "\n".join(lines)
            down = any(re.match(rf"\s*{leader}\s+down", line) for line in lines)
            return (
                down and any(f"leader {n}, term" in shown for n in {0, 1, 2} - {leader}) and "does not answer" in shown
            )

        eventually(replaced, what=terminal.read)
        lines = terminal.screen()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80
        assert "\x1b[?1049h" in terminal.drawn, "on a screen of its own"
        terminal.process.send_signal(number)
        assert terminal.process.wait(60) == 0
        rest = terminal.read()
        assert rest.rindex("\x1b[?1049l") > rest.rindex("\x1b[?1049h"), "the old screen is back"
        assert rest.rindex("\x1b[?25h") > rest.rindex("\x1b[?25l"), "and the cursor"
        assert termios.tcgetattr(terminal.theirs) == terminal.before
        assert "Traceback" not in rest
    finally:
        terminal.close()
        if served.processes[leader].poll() is not None:
            served.start(leader)


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_top_without_a_terminal_prints_pictures_and_lines_of_json(served: Served) -> None:
    served.settled()
    plain = served.run("top", "--count", "2", "--every", "0.2").stdout
    assert plain.count("actorraft top") == 2
    assert "\x1b" not in plain
    lines = served.run("top", "--count", "2", "--every", "0.2", "-o", "json").stdout.splitlines()
    assert [len(json.loads(line)["members"]) for line in lines] == [3, 3]
    row = json.loads(lines[1])["members"][0]
    assert {
        "id",
        "state",
        "term",
        "lag_entries",
        "writes_per_s",
        "commit_ms",
        "elections",
        "slow",
        "disk",
    } <= row.keys()


@pytest.mark.parametrize("command", ["events", "top"])
def test_without_a_cluster_it_says_why_and_ends(command: str, tmp_path: Path) -> None:
    found(tmp_path / "c", "statemachines.kv:KVStore", [f"127.0.0.1:{port}" for port in free_ports(3)])
    done = CliRunner().invoke(app, [command], env={"ACTORRAFT_CLIENT": str(tmp_path / "c" / "client")})
    assert (done.exit_code, "no member answers" in done.stderr) == (1, True)
    assert CliRunner().invoke(app, [command], env={"ACTORRAFT_CLIENT": None}).exit_code == 2


def test_what_is_told_of_a_time_is_the_median_to_its_bucket() -> None:
    was = {"commit": [[0.001, 0.01], [5, 5], 0, 1.0]}
    is_ = {"commit": [[0.001, 0.01], [6, 9], 1, 1.0]}
    assert _median_ms(was, is_, "commit") == 10.0
    assert _median_ms(was, was, "commit") is None
    assert _median_ms(is_, was, "commit") is None, "the process is another one"


def test_a_picture_is_no_higher_than_the_screen_whatever_there_is_to_say() -> None:
    from rich.console import Console

    rows = [MemberStatus(n, "follower", 3, 10, 10, 0, alive=n != 2, error="x" * 300) for n in range(7)]
    slow = {"slow": [{"index": 1, "method": "m" * 100, "took_ms": 800.0}] * 20}
    seen = Look(time.monotonic(), rows, dict.fromkeys(range(7), slow))
    happened = [Happened(0.0, 1, "leader", "leads term 3" * 20, 3)] * 100
    console = Console(width=80, height=24, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(picture(seen, seen, happened, 24))
    console.file.close()
    lines = console.export_text().rstrip("\n").split("\n")
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert "NO LEADER" in lines[0]


def test_a_journal_tells_each_process_s_events_once_and_forgets_the_oldest() -> None:
    journal = Journal()
    journal.noticed("disk", "its disk is full")
    journal.noticed("restored", 7)
    first = journal.since({})
    assert [event[2:4] for event in first["events"]] == [["disk", "takes no writes: its disk is full"]]
    assert journal.since({"run": first["run"], "after": 0})["events"] == []
    journal.noticed("disk", "")
    assert [event[3] for event in journal.since({"run": first["run"], "after": 0})["events"]] == ["takes writes again"]
    assert len(journal.since({"run": "another process's", "after": 99})["events"]) == 2
    for number in range(EVENTS_MAX + 5):
        journal.noticed("snapshot", number)
    assert len(journal.since({})["events"]) == EVENTS_MAX
