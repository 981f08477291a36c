"""How long it takes to be back: `python -m benchmarks.recovery`.

A cluster is filled, all its processes end, and it is started again: from its log, then from a snapshot. Then an empty
node joins. Beside it: bytes on disk for each byte that was committed, and memory of each node while commits go on.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import measure, screen
from benchmarks.systems import fresh_directory, wait_until_level

OUTSTANDING = 2_000
PARTS = 10  # memory is looked at so often
CATCH_UP_S = 600.0


def fill(cluster: Any, first: int, count: int, keys: int, payload: int) -> None:
    """Commit `count` commands on `keys` keys."""
    put = cluster.proxy(timeout=60.0).set.submit
    value = b"v" * payload
    outstanding: deque[Future[bool]] = deque()
    for number in range(first, first + count):
        outstanding.append(put(f"key-{number % keys:012d}", value))
        if len(outstanding) >= OUTSTANDING:
            outstanding.popleft().result()
    for future in outstanding:
        future.result()


def resident_mib(cluster: Any) -> list[float]:
    """Return the memory of each node."""
    pids = [node.pid for _, node in sorted(cluster.nodes.items()) if node.pid is not None]
    return [round(measure.resident_bytes(pid) / (1 << 20), 1) for pid in pids]


class Run:
    """One data directory, and the rows found on it."""

    def __init__(self, nodes: int, entries: int, payload: int, config: Any, bar: screen.Bar) -> None:
        from actorraft import ReplicatedStateMachine
        from statemachines.kv import KVStore

        self.machine = ReplicatedStateMachine(KVStore)
        self.nodes, self.entries, self.payload, self.config, self.bar = nodes, entries, payload, config, bar
        self.directory = fresh_directory("recovery")
        self.rows: list[dict[str, Any]] = []

    def note(self, what: str, value: float, unit: str, **more: Any) -> None:
        """Keep one figure."""
        row = {"benchmark": "recovery", "what": what, "value": round(value, 3), "unit": unit, "nodes": self.nodes}
        self.rows.append({**row, "commands": self.entries, "payload_bytes": self.payload, **more})
        self.bar.note(f"{what}: {value:.3f} {unit}")
        self.bar.advance(1)

    def start(self) -> Any:
        """Start the cluster on its directory."""
        return self.machine.spawn(self.nodes, data_dir=self.directory / "data", config=self.config, timeout=CATCH_UP_S)

    def restart(self, what: str) -> None:
        """Measure from `spawn` to the first commit."""
        start = time.perf_counter()
        with self.start() as cluster:
            cluster.proxy(timeout=CATCH_UP_S).set("after", 1)
            self.note(what, time.perf_counter() - start, "s")
            wait_until_level(cluster, CATCH_UP_S)

    def fill(self) -> None:
        """Commit everything, watching the memory."""
        self.bar.say(f"committing {self.entries:,} commands")
        memory = []
        with self.start() as cluster:
            part = max(1, self.entries // PARTS)
            start = time.perf_counter()
            for first in range(0, self.entries, part):
                fill(cluster, first, min(part, self.entries - first), self.entries, self.payload)
                memory.append(resident_mib(cluster))
            self.note("commits while filling", self.entries / (time.perf_counter() - start), "a second")
            wait_until_level(cluster, CATCH_UP_S)
            committed = self.entries * (self.payload + 16)
            disk = measure.disk_bytes(self.directory / "data")
            self.note("bytes on the disk of a node for each byte committed", disk / self.nodes / committed, "times")
            self.note("memory of the largest node", max(memory[-1]), "MiB", memory_mib=memory)

    def snapshot(self) -> None:
        """Compact on every node."""
        with self.start() as cluster:
            wait_until_level(cluster, CATCH_UP_S)
            start = time.perf_counter()
            taken = cluster.take_snapshot(timeout=CATCH_UP_S)
            assert len(taken) == self.nodes, f"only {sorted(taken)} took a snapshot"
            self.note("snapshot, on every node at once", time.perf_counter() - start, "s")

    def join(self) -> None:
        """Let an empty node join and catch up."""
        with self.start() as cluster:
            wait_until_level(cluster, CATCH_UP_S)
            start = time.perf_counter()
            cluster.add_node()
            wait_until_level(cluster, CATCH_UP_S)
            self.note("an empty node joins and is level", time.perf_counter() - start, "s")


def main(
    nodes: Annotated[int, typer.Option(min=1, help="Cluster size.")] = 3,
    commands: Annotated[int, typer.Option(min=1, help="Commands committed, each on a key of its own.")] = 200_000,
    payload: Annotated[int, typer.Option(min=0, help="Bytes of a value; keys have 16.")] = 128,
    json: Annotated[Path | None, typer.Option(help="Write the rows there.")] = None,
) -> None:
    """Measure restarts from log and snapshot, catching up, memory, and bytes on disk."""
    from actorraft import RaftConfig

    screen.heading("Recovery")
    never = RaftConfig(
        snapshot_after_bytes=1 << 60, snapshot_after_entries=1 << 60
    )  # the log is kept whole until asked
    with screen.bar(7) as bar:
        run = Run(nodes, commands, payload, never, bar)
        try:
            run.fill()
            bar.say("starting from the log")
            run.restart("all processes start again, from the log")
            bar.say("taking a snapshot")
            run.snapshot()
            run.restart("all processes start again, from a snapshot")
            bar.say("an empty node joins")
            run.join()
        finally:
            shutil.rmtree(run.directory, ignore_errors=True)
    lines = [[row["what"], screen.figure(row["value"]), row["unit"]] for row in run.rows]
    screen.table(f"Recovery: {nodes} nodes, {commands:,} commands of {payload} B", ["what", "", ""], lines)
    screen.finish(run.rows, json=json)


if __name__ == "__main__":
    typer.run(main)
