"""The deployment guide, typed on machines: every line of its shell blocks runs, in order, and does what it says."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from actorraft import connect
from statemachines.kv import KVStore
from tests.machines.conftest import _namespaces, net  # noqa: F401
from tests.machines.hosts import REPOSITORY, Host, Hosts, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
PAGE = REPOSITORY / "docs" / "deployment.md"


def blocks() -> list[tuple[list[str], list[str]]]:
    """Return (on which hosts, lines) of each shell block."""
    found = []
    for text in re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S):
        where, *lines = text.strip().splitlines()
        found.append((where.removeprefix("# ").split(", "), lines))
    return found


def localized(line: str, host: Host | None, hosts: list[Host]) -> str:
    """Put addresses in the place of names, and a directory of its own in the place of each host's disk."""
    if host is not None:
        line = re.sub(r"/(etc|root|var/lib)/", rf"{host.directory}/\1/", line)
    line = re.sub(r"\bhost(\d):/", lambda one: f"{hosts[int(one[1])].directory}/", line)
    return re.sub(r"\bhost(\d)\b", lambda one: hosts[int(one[1])].address, line)


def test_every_command_of_the_deployment_guide_runs_in_order(net: Hosts, tmp_path: Path) -> None:  # noqa: F811
    machines, here = net.all[1:], net.all[0].directory
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, script in (
        ("actorraft", f'exec {sys.executable} -m actorraft "$@"\n'),
        ("scp", 'for last; do :; done; mkdir -p "$(dirname "$last")"; exec cp "$@"\n'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{script}")
        (tools / name).chmod(stat.S_IRWXU)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    exported = ""
    printed: dict[str, str] = {}
    for where, lines in blocks():
        for line in lines:
            if where == ["here"]:
                if line.startswith("export "):
                    exported = line
                words = ["sh", "-c", f"{exported or ':'}; {localized(line, None, machines)}"]
                done = subprocess.run(
                    words, cwd=here, env=environment, capture_output=True, text=True, timeout=150, check=False
                )
                assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
                printed[line] = done.stdout
                continue
            for name in where:
                host = machines[int(name.removeprefix("host"))]
                words = localized(line, host, machines).split()
                assert words[:2] == ["actorraft", "serve"]
                (host.directory / "var" / "lib").mkdir(parents=True, exist_ok=True)
                net.nodes[int(name.removeprefix("host"))] = host
                host.serve_line(words[2:])
            for name in where:
                host = machines[int(name.removeprefix("host"))]
                eventually(lambda host=host: host.serves_s, 40.0, f"{line} on {name}: {host.said()}")
            with connect(here / "bank" / "client", KVStore, timeout=30.0) as client:
                net.settled(client)
                last = machines.index(host)
                voters = lambda: client.status()  # noqa: E731
                eventually(lambda last=last, voters=voters: last in {row.id for row in voters()}, 40.0)
    assert printed["actorraft query get '\"ann\"'"].strip() == "10"
    assert "reports" in printed["actorraft clients list"]
    assert len(printed["actorraft keys rotate"].splitlines()) == 3


def test_the_page_names_every_command_that_asks_a_cluster() -> None:
    text = PAGE.read_text()
    for command in ("init", "serve", "status", "exec", "query", "clients", "token create", "members", "transfer",
                    "snapshot", "keys rotate", "verify", "show", "recover"):  # fmt: skip
        assert f"actorraft {command}" in text, command
