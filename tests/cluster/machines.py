"""Machines that the nodes of these tests import by name."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from pathlib import Path
from typing import Any

from actorraft import StateMachine, command, context, query


class Ledger(StateMachine):
    """Lists of what was appended, by key: a write that is lost or applied twice is seen at once."""

    def __init__(self) -> None:
        self.entries: dict[str, list[Any]] = {}

    @command
    def append(self, key: str, item: Any) -> int:
        """Append; return how many there are now."""
        items = self.entries.setdefault(key, [])
        items.append(item)
        return len(items)

    @command
    def append_slowly(self, key: str, item: Any, seconds: float) -> int:
        """Append after a sleep."""
        time.sleep(seconds)
        return self.append(key, item)

    @command
    def append_after_counting(self, key: str, item: Any, seconds: float) -> int:
        """Append after that much bytecode."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            pass
        return self.append(key, item)

    @command
    def append_and_raise(self, key: str, item: Any) -> None:
        """Append, then fail: what was done stays done."""
        self.append(key, item)
        raise Refused(key, limit=3)

    @command
    def bad_result(self, key: str, item: Any) -> Any:
        """Append, and return what cannot be sent."""
        self.append(key, item)
        return threading.Lock()

    @command
    def state(self) -> dict[str, list[Any]]:
        """Return the state itself."""
        return self.entries

    @command
    def about(self) -> tuple[int, int, int, int, float, float]:
        """What the context says."""
        now = context()
        return now.index, now.position, now.serial, now.term, now.time, now.random.random()

    @query
    def get(self, key: str) -> list[Any]:
        """What was appended to a key."""
        return self.entries.get(key, [])

    @query
    def count(self, key: str) -> int:
        """How many there are."""
        return len(self.entries.get(key, []))

    @query
    def pass_gate(self, folder: str) -> int:
        """Leave word that this node is at the gate; return its pid once that is open to it."""
        Path(folder, f"{os.getpid()}.asked").touch()
        while not Path(folder, f"{os.getpid()}.open").exists():
            time.sleep(0.01)
        return os.getpid()

    @query
    def environment(self, name: str) -> str | None:
        """Something of the node's own process."""
        return os.environ.get(name)


class Refused(Exception):
    """An error of a user's own, with state."""

    def __init__(self, key: str, *, limit: int) -> None:
        super().__init__(f"no more for {key}")
        self.key, self.limit = key, limit


class Applied:
    """A machine with `apply` and `query`."""

    def __init__(self) -> None:
        self.total = 0

    def apply(self, command: int) -> int:
        """Add."""
        self.total += command
        return self.total

    def query(self, request: str) -> Any:
        """Look."""
        return getattr(self, request)


class FailsToStart:
    """Its constructor raises."""

    def __init__(self, why: str) -> None:
        raise RuntimeError(f"no machine today: {why}")


class StartsIn(StateMachine):
    """Its constructor takes its time, or never ends."""

    def __init__(self, seconds: float) -> None:
        time.sleep(seconds)


class HangsOnce(Ledger):
    """Its constructor never ends in the first process that finds a file, and that one takes the file away."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
            time.sleep(600.0)


class EndsTheProcess(StateMachine):
    """Its commands do to their process what no exception can tell."""

    @command
    def leave(self) -> None:
        """Exit at once."""
        os._exit(3)

    @command
    def run_out_of_stack(self) -> None:
        """Raise what is a result, as long as all nodes have the same stack."""
        raise RecursionError("too deep")

    @command
    def break_the_library(self) -> None:
        """Have the library's own part of the node's process stop it at the next entry."""
        from actorraft.node.host import MachineHost, MachineStopped

        def refuse(*_: Any) -> Any:
            raise MachineStopped("no disk is left")

        MachineHost.apply_in_order = refuse  # type: ignore[method-assign]

    @command
    def lose_the_disk(self) -> None:
        """Nothing: it is not reached."""

    @command
    def stay_in_c(self, seconds: int) -> None:
        """Hold the interpreter lock in one long C call."""
        ctypes.PyDLL(None).sleep(seconds)

    @query
    def hello(self) -> str:
        """Say something."""
        return "hello"


class NoSnapshot(Ledger):
    """Its snapshot raises as long as a key says so."""

    def snapshot(self) -> Any:
        """Fail, or not."""
        if self.entries.get("broken"):
            raise RuntimeError("no snapshot today")
        return super().snapshot()

    @command
    def mend(self) -> None:
        """From now on it works."""
        self.entries.pop("broken", None)


class NoRestore(Ledger):
    """Its restore raises."""

    def restore(self, state: Any) -> None:
        """Fail."""
        raise RuntimeError("no restore today")


class Publishes(StateMachine):
    """Publishes what it is told, and has reads of every length and size."""

    def __init__(self) -> None:
        self.n = 0
        self.scanned = 0

    @command
    def emit(self) -> int:
        """Count."""
        self.n += 1
        return self.n

    @command
    def publish(self, padding: str) -> int:
        """Publish a number and what it is told; return the number."""
        self.n += 1
        context().publish("t", [self.n, padding])
        return self.n

    @command
    def large(self, mebibytes: int) -> bytes:
        """Return so much."""
        return b"x" * (mebibytes << 20)

    @query
    def large_read(self, mebibytes: int) -> bytes:
        """Return so much."""
        return b"x" * (mebibytes << 20)

    @query
    def count(self) -> int:
        """Return how often it was told something."""
        return self.n

    @query
    def scan(self, seconds: float) -> int:
        """Take so long."""
        self.scanned += 1
        time.sleep(seconds)
        return self.n

    @query
    def scans(self) -> int:
        """Return how often this node ran `scan`."""
        return self.scanned
