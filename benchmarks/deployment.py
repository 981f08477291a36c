"""What the harness asks of a system, ours or another's: start nodes, say how to load them, break one, mend it, go away.

Not here:   which systems there are (systems.py).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.loadgen import LoadSpec

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("ACTORRAFT_BENCH_DIR", ROOT / ".cache" / "benchmarks"))
MEND_S = 60.0  # until a mended node has caught up


class Unusable(Exception):
    """A system cannot be measured here; the message says why and what to do."""


class Deployment(Protocol):
    """Some running nodes of one system."""

    def generator(self, spec: LoadSpec) -> list[str]:
        """Return the command that starts a load generator."""

    def endpoints(self) -> dict[str, str]:
        """Return what a LoadSpec takes."""

    def serves(self, operation: str) -> bool:
        """Whether that operation is offered: "set", or a read's consistency."""

    def pids(self) -> dict[str, list[int]]:
        """Return role ("leader", "followers") -> processes."""

    def work(self) -> dict[str, int]:
        """Return what the leader has done so far: writes, entries_written, appends_sent, entries_sent. {}: unknown."""

    def term(self) -> int:
        """Return the term that the cluster is in."""

    def phases(self, at_s: float) -> tuple[float, float]:
        """Return when the first survivor missed the leader broken at `at_s`, and when there was the next one.

        Seconds of CLOCK_MONOTONIC; nan where that is not known. To be asked before `mend`.
        """

    def fault(self, kind: str) -> float:
        """Break the leader; return when, in seconds of CLOCK_MONOTONIC."""

    def mend(self) -> None:
        """Undo the fault; return once the node has caught up."""

    def close(self) -> None:
        """End every process and remove the data."""


class System(Protocol):
    """A system that can be deployed. `durabilities` and `faults` are what it offers; elections run at one of them."""

    name: str
    durabilities: Sequence[str]
    faults: Sequence[str]
    election_durability: str

    def deploy(self, nodes: int, durability: str, commands: str) -> Deployment:
        """Start `nodes` nodes and wait until they lead. Raises Unusable."""


def fresh_directory(name: str) -> Path:
    """Make a directory for one deployment's data, on the disk that the benchmark is about (not in /tmp)."""
    CACHE.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=CACHE))
