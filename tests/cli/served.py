"""A cluster on the loopback as an operator makes one: folders by `init`, a process of `actorraft serve` for each node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.others.processes import free_ports

REPOSITORY: Final = Path(__file__).parents[2]


def actorraft(
    *words: str, client: Path | None = None, check: bool = True, timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "ACTORRAFT_CLIENT"}
    if client is not None:
        environment["ACTORRAFT_CLIENT"] = str(client)
    done = subprocess.run(
        [sys.executable, "-m", "actorraft", *words],
        cwd=REPOSITORY,
        env={**environment, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert not check or done.returncode == 0, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
    return done


def eventually(holds: Callable[[], Any], within_s: float = 60.0, what: str | Callable[[], Any] = "") -> Any:
    """Wait until something holds, and return it."""
    until_s = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < until_s, (what() if callable(what) else what) or f"not within {within_s} s"
        time.sleep(0.05)
    return found


class Served:
    """Folders, and the processes that serve them."""

    def __init__(
        self,
        directory: Path,
        nodes: int = 3,
        *,
        machine: str | None = "statemachines.kv:KVStore",
        found: tuple[str, ...] = (),
    ) -> None:
        self.directory = directory / "cluster"
        self.ports = free_ports(nodes)
        self.processes: dict[int, subprocess.Popen[str]] = {}  # of each node, the last one
        self._started: list[subprocess.Popen[str]] = []
        self.lines: dict[int, list[str]] = {}
        places = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        named = ("--machine", machine) if machine else ()
        actorraft("init", str(self.directory), *named, "--nodes", places, "--durability", "os", *found)

    @property
    def client(self) -> Path:
        return self.directory / "client"

    def folder(self, node_id: int) -> Path:
        return self.directory / f"node-{node_id}"

    def start(self, *node_ids: int, more: tuple[str, ...] = (), environment: dict[str, str] | None = None) -> None:
        """Serve these nodes, or all, and wait until each says that it serves."""
        for node_id in node_ids or range(len(self.ports)):
            self.serve(node_id, str(self.folder(node_id)), *more, environment=environment)
        for node_id in node_ids or range(len(self.ports)):
            eventually(
                lambda node_id=node_id: any(" serves at " in line for line in self.lines[node_id]),
                what=lambda node_id=node_id: f"node {node_id} does not serve: {self.lines[node_id]}",
            )

    def serve(self, node_id: int, *words: str, environment: dict[str, str] | None = None) -> None:
        """Start a process of `actorraft serve`; its output is kept as this node's."""
        lines = self.lines[node_id] = []
        process = self.processes[node_id] = subprocess.Popen(
            [sys.executable, "-m", "actorraft", "serve", *words],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._started.append(process)
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()

    def run(self, *words: str, check: bool = True, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run the command line as this cluster's client."""
        return actorraft(*words, client=self.client, check=check, timeout_s=timeout_s)

    def status(self) -> dict[int, dict[str, Any]]:
        said = self.run("status", "--timeout", "3", "-o", "json", check=False).stdout
        return {row["id"]: row for row in json.loads(said or "[]")}

    def settled(self) -> int:
        """Wait until every member that runs is ready; return the leader."""

        def ready() -> list[int]:
            rows = self.status()
            running = [node_id for node_id, process in self.processes.items() if process.poll() is None]
            if not all(
                node_id in rows and rows[node_id]["alive"] and not rows[node_id]["not_ready"] for node_id in running
            ):
                return []
            return [node_id for node_id in running if rows[node_id]["state"] == "leader"][:1]

        return int(eventually(ready, what=lambda: f"{self.status()}\n{self.said()}")[0] or 0)

    def kill(self, node_id: int) -> None:
        self.processes[node_id].kill()
        self.processes[node_id].wait(20)

    def stop(self, node_id: int) -> int:
        """Ask a node to leave; return its exit code."""
        self.processes[node_id].send_signal(signal.SIGTERM)
        return self.processes[node_id].wait(60)

    def said(self) -> str:
        return "\n".join(f"--- node {node_id}\n" + "\n".join(lines) for node_id, lines in self.lines.items())

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait(20)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *failed: object) -> None:
        self.close()
        if failed[0] is not None:
            print(self.said())


def _read(process: subprocess.Popen[str], lines: list[str]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.append(line.rstrip())
