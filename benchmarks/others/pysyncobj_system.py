"""PySyncObj from PyPI, in an environment of its own, in its best settings.

Its period of flushing is 2 ms, in place of 100 ms; with and without its batches; in memory, and with its journal, which
it never syncs: nothing it acknowledges survives a loss of power. It has no remote client, so the load is inside the
leader's process, where it is fastest, or inside a follower's, as for most of its users; elections are seen from a
member without a vote, which is as near as it comes to a client.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.deployment import CACHE, MEND_S, Unusable, fresh_directory
from benchmarks.loadgen import LoadSpec
from benchmarks.others.processes import Opaque, Processes, free_ports, wait_until

VERSION = "0.3.17"
FLUSH_S = 0.002
CLIENT = "memory, from a client"
ON_A_FOLLOWER = "on a follower"
SETTINGS: dict[str, dict[str, Any]] = {
    "memory": {},
    "memory, unbatched": {"appendEntriesUseBatch": False},
    "journal (no fsync)": {"journalFile": True},
    "journal (no fsync), unbatched": {"journalFile": True, "appendEntriesUseBatch": False},
    f"memory, {ON_A_FOLLOWER}": {},
    f"journal (no fsync), {ON_A_FOLLOWER}": {"journalFile": True},
    CLIENT: {},
}


def interpreter() -> Path:
    """Return the interpreter of PySyncObj's environment, made once.

    Raises:
        Unusable: it cannot be installed.
    """
    home = CACHE / f"pysyncobj-{VERSION}"
    python = home / "bin" / "python"
    if (home / "ready").exists():
        return python
    venv.create(home, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", f"pysyncobj=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise Unusable(f"PySyncObj {VERSION} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    (home / "ready").touch()
    return python


class PySyncObjSystem:
    """PySyncObj, in six settings; the election is seen from its client."""

    name = "pysyncobj"
    durabilities: Sequence[str] = tuple(setting for setting in SETTINGS if setting != CLIENT)
    faults: Sequence[str] = ("crash", "freeze")
    election_durability = CLIENT

    def __init__(self) -> None:
        self.python = interpreter()

    def deploy(self, nodes: int, durability: str, commands: str) -> PySyncObjDeployment:
        """Start `nodes` nodes."""
        return PySyncObjDeployment(self.python, nodes, durability)


class PySyncObjDeployment(Opaque):
    """Some nodes, and one member without a vote that is the client."""

    def __init__(self, python: Path, nodes: int, durability: str) -> None:
        self.directory = fresh_directory("pysyncobj")
        self.processes = Processes(self.directory)
        self.nodes = nodes
        self.durability = durability
        self.addresses = [f"127.0.0.1:{port}" for port in free_ports(nodes)]
        self.broken: tuple[str, int] | None = None
        try:
            for number in range(nodes):
                self.processes.start(number, self._command(python, number))
            if durability == CLIENT:
                self.processes.start(nodes, self._command(python, nodes))
            wait_until(lambda: self.leader() is not None, "PySyncObj's election")
            wait_until(lambda: self._status(self._asked())["ready"], "PySyncObj's start")
        except BaseException:
            self.close()
            raise

    def _command(self, python: Path, number: int) -> list[str]:
        conf: dict[str, Any] = {"autoTickPeriod": FLUSH_S, "appendEntriesPeriod": FLUSH_S, "connectionRetryTime": 0.1}
        conf |= {"commandsQueueSize": 1_000_000, "logCompactionMinEntries": 100_000, **SETTINGS[self.durability]}
        if conf.get("journalFile"):
            conf["journalFile"] = str(self.directory / f"journal-{number}")
        own = self.addresses[number] if number < self.nodes else None
        partners = [address for address in self.addresses if address != own]
        options = {"address": own, "partners": partners, "socket": str(self._socket(number)), "conf": conf}
        return [str(python), "-m", "benchmarks.others.pysyncobj_node", json.dumps(options)]

    def _socket(self, number: int) -> Path:
        return self.directory / f"{number}.sock"

    def _status(self, number: int, line: str = "status") -> dict[str, Any]:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(2.0)
                connection.connect(str(self._socket(number)))
                connection.sendall(b"s" + line.encode() + b"\n")
                with connection.makefile() as lines:
                    answer: dict[str, Any] = json.loads(lines.readline() or "{}")
        except OSError:
            answer = {}
        return {"leader": None, "last_applied": -1, "commit_index": -1, "ready": False, "term": 0, **answer}

    def _asked(self) -> int:
        return self.nodes if self.durability == CLIENT else 0

    def leader(self) -> int | None:
        """Return the number of the leader that all who answer agree on."""
        broken = self.broken[1] if self.broken else None
        said = {self._status(number)["leader"] for number in self.processes.running if number != broken}
        return self.addresses.index(said.pop()) if len(said) == 1 and None not in said else None

    def term(self) -> int:
        """Return the highest term that a node knows."""
        return max(int(self._status(number)["term"]) for number in self.processes.running)

    def endpoints(self) -> dict[str, str]:
        """Return nothing: the load is inside a node."""
        return {}

    def serves(self, operation: str) -> bool:
        """Return whether it can: it reads its own memory, whatever that holds, which is no read to compare."""
        return operation == "set"

    def generator(self, spec: LoadSpec) -> list[str]:
        """Have the leader, a follower, or the client, make the load."""
        leader = self._leader_now()
        number = leader
        if self.durability == CLIENT:
            number = self.nodes
        elif self.durability.endswith(ON_A_FOLLOWER):
            number = (leader + 1) % self.nodes
        return [sys.executable, "-m", "benchmarks.others.relay", str(self._socket(number)), spec.to_json()]

    def _leader_now(self) -> int:
        wait_until(lambda: self.leader() is not None, "PySyncObj's election")
        leader = self.leader()
        assert leader is not None
        return leader

    def pids(self) -> dict[str, list[int]]:
        """Return the processes by role."""
        leader = self._leader_now()
        followers = [self.processes.pid(number) for number in range(self.nodes) if number != leader]
        return {"leader": [self.processes.pid(leader)], "followers": followers}

    def fault(self, kind: str) -> float:
        """Break the leader."""
        leader = self._leader_now()
        self.broken = (kind, leader)
        at = time.monotonic()
        if kind == "crash":
            self.processes.kill(leader)
        else:
            self.processes.signal(leader, signal.SIGSTOP)
        return at

    def mend(self) -> None:
        """Bring it back and wait until it is level."""
        assert self.broken is not None
        kind, number = self.broken
        if kind == "crash":
            self._socket(number).unlink(missing_ok=True)
            self.processes.start(number)
        else:
            self.processes.signal(number, signal.SIGCONT)
        target = max(self._status(each)["commit_index"] for each in range(self.nodes) if each != number)
        self.broken = None
        wait_until(
            lambda: self.leader() is not None and self._status(number)["last_applied"] >= target, "catching up", MEND_S
        )

    def close(self) -> None:
        """Kill everything and remove the data."""
        self.processes.close()
        shutil.rmtree(self.directory, ignore_errors=True)
