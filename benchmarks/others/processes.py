"""Starting and breaking processes of systems that are not ours: free ports, quiet output, SIGKILL, SIGSTOP."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.deployment import ROOT, Unusable

START_S = 30.0


def needed_program(name: str, packages: str) -> str:
    """Return the path of a program.

    Raises:
        Unusable: it is not installed; which of Debian's packages have it.
    """
    path = shutil.which(name)
    if path is None:
        raise Unusable(f"{name} is not in the PATH; on Debian: apt-get install {packages}")
    return path


def needed_module(name: str) -> None:
    """See to it that a module is there.

    Raises:
        Unusable: it is not installed; how to.
    """
    if importlib.util.find_spec(name) is None:
        raise Unusable(f"Python's {name} is not installed: pip install 'actorraft[rivals]'")


def free_ports(count: int) -> list[int]:
    """Return ports on loopback whose next one is free too; none that the system gives to whoever dials out."""
    found_ports: list[int] = []
    while len(found_ports) < count:
        port = 2 * random.SystemRandom().randrange(5_000, 16_000)
        with socket.socket() as one, socket.socket() as other, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 1))
            if port not in found_ports:
                found_ports.append(port)
    return found_ports


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = START_S) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: naming what was waited for.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {timeout_s:.0f} s")
        time.sleep(0.02)


class Opaque:
    """What is not seen of the others from outside."""

    def work(self) -> dict[str, int]:
        """Nothing."""
        return {}

    def phases(self, at_s: float) -> tuple[float, float]:
        """Neither."""
        return math.nan, math.nan


class Whole:
    """A deployment that is loaded and not broken: its `faults` are none."""

    def fault(self, kind: str) -> float:
        """Refuse."""
        raise ValueError(f"no fault {kind!r}; there are none")

    def mend(self) -> None:
        """Nothing was broken."""


class Processes:
    """The processes of one deployment, by number; each can be killed, stopped, and started again as it was."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.commands: dict[int, list[str]] = {}
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, number: int, command: list[str] | None = None) -> None:
        """Start a process, or start it again."""
        self.commands[number] = command or self.commands[number]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "ETCD_UNSUPPORTED_ARCH": os.uname().machine}
        with (self.directory / f"output-{number}").open("ab") as output:
            self.running[number] = subprocess.Popen(
                self.commands[number], stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment, cwd=ROOT
            )

    def pid(self, number: int) -> int:
        """Return the process id."""
        return self.running[number].pid

    def kill(self, number: int) -> None:
        """SIGKILL; returns when it is gone."""
        process = self.running[number]
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()

    def signal(self, number: int, which: signal.Signals) -> None:
        """Send a signal."""
        self.running[number].send_signal(which)

    def close(self) -> None:
        """Kill them all."""
        for number in list(self.running):
            if self.running[number].poll() is None:
                self.kill(number)
