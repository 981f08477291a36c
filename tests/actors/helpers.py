"""What the tests of actors share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actorraft.actors import loop, system
from actorraft.actors.actor import Actor


class Echo(Actor):
    """Says what it is told; here, where its process has little to import."""

    def receive(self, message: Any) -> Any:
        """Return the message."""
        return message


class Noting(Actor):
    """Takes its time with each message, and writes it to a file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def receive(self, message: str) -> None:
        """Write the message."""
        time.sleep(0.001)
        with self.path.open("a") as file:
            file.write(f"{message}\n")


def take_time_to_leave() -> None:
    """In the process of an actor, or of a script: have it wait at its end as long as a slow machine may need."""
    vars(loop).update(FAREWELL_S=60.0, FAREWELL_MAX_S=60.0)
    vars(system).update(DRAIN_S=60.0, DRAIN_MAX_S=60.0)


def parent_of(pid: int) -> int:
    """Return the parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Wait for something that another process does."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.005)
    return value
