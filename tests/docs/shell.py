"""The shell blocks of a page, typed on machines: which lines, and with what in the place of names and disks.

A block's first line is a comment that says on which hosts the others are typed; "here" is the operator's own.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

from tests.machines.hosts import REPOSITORY, Host


def blocks(page: str) -> list[tuple[list[str], list[str]]]:
    """Return (on which hosts, lines) of each shell block."""
    found = []
    for text in re.findall(r"^```sh\n(.*?)^```", page, flags=re.M | re.S):
        where, *lines = text.strip().splitlines()
        found.append((where.removeprefix("# ").split(", "), lines))
    return found


def localized(line: str, host: Host | None, hosts: list[Host]) -> str:
    """Put addresses in the place of names, and a directory of its own in the place of each host's disk."""
    if host is not None:
        line = re.sub(r"/(etc|root|var/lib)/", rf"{host.directory}/\1/", line)
    line = re.sub(r"\bhost(\d):/", lambda one: f"{hosts[int(one[1])].directory}/", line)
    return re.sub(r"\bhost(\d)\b", lambda one: hosts[int(one[1])].address, line)


def with_tools(tmp_path: Path) -> dict[str, str]:
    """Return an environment whose `actorraft` is this one, and whose `scp` copies between the hosts' directories."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, script in (
        ("actorraft", f'exec {sys.executable} -m actorraft "$@"\n'),
        ("scp", 'for last; do :; done; mkdir -p "$(dirname "$last")"; exec cp "$@"\n'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{script}")
        (tools / name).chmod(stat.S_IRWXU)
    return {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}


def typed(line: str, where: Path, environment: dict[str, str]) -> str:
    """Have a shell run the line there, and succeed; return what it printed."""
    done = subprocess.run(
        ["sh", "-c", line], cwd=where, env=environment, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, f"{line}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout
