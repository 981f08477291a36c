"""How long a snapshot holds up everybody else: `python -m benchmarks.pauses`.

A cluster holds so many keys. One client writes a single command after the other, and another asks the leader's loop how
it is, again and again; then every node takes a snapshot at once. What counts is the longest time without an answer: of
a commit (loop, disk and machine must all be free) and of the loop alone (which sends heartbeats, and serves everybody).
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from actorraft import RaftConfig, ReplicatedStateMachine
from actorraft.cluster.cluster import Cluster
from benchmarks import measure, screen
from benchmarks.deployment import fresh_directory
from statemachines.kv import KVStore

CHUNK = 2_000  # keys in one command while filling
QUIET_S = 3.0  # measured before, for comparison
LOOK_EVERY_S = 0.001
PATIENCE_S = 120.0


class Times(NamedTuple):
    """Milliseconds that a call took: the median, and the longest."""

    p50_ms: float
    max_ms: float
    calls: int


class Phase(NamedTuple):
    """What was seen while the cluster was quiet, or took snapshots."""

    commits: Times  # of a client with one command outstanding
    loop: Times  # of questions to the leader's loop
    memory_mib: float  # the most that the leader held


class Report(NamedTuple):
    """One measurement."""

    keys: int
    quiet: Phase
    during: Phase
    snapshot_s: float  # until every node had one
    held_up_ms: float  # the longest time that the leader applied nothing for it, as it says itself


class Repeated:
    """Calls something again and again in a thread of its own, and keeps how long each call took."""

    def __init__(self, call: Callable[[], object], every_s: float = 0.0) -> None:
        self.took: list[tuple[float, float]] = []  # (when it began, seconds)
        self._call = call
        self._every_s = every_s
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._every_s):
                start = time.perf_counter()
                self._call()
                self.took.append((start, time.perf_counter() - start))
        except BaseException as error:
            self._error = error

    def between(self, start: float, stop: float) -> Times:
        """Sum up the calls that were under way at `start` or began until `stop`; a call belongs to one phase."""
        times = [seconds * 1e3 for began, seconds in self.took if start <= began + seconds and began <= stop]
        return Times(measure.percentile(times, 0.5), max(times, default=0.0), len(times))

    def end(self) -> None:
        """Stop, and raise what it raised."""
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error


@contextlib.contextmanager
def filled(
    machine: Any, keys: int, payload: int, nodes: int, durability: str, directory: Path
) -> Iterator[Cluster[Any]]:
    """A cluster that holds `keys` keys and has taken no snapshot yet."""
    never = RaftConfig(snapshot_after_bytes=1 << 60, snapshot_after_entries=1 << 60)
    with ReplicatedStateMachine(machine).spawn(
        nodes,
        data_dir=directory,
        durability=durability,  # type: ignore[arg-type]  # spawn refuses what it is not
        config=never,
        timeout=PATIENCE_S,
    ) as cluster:
        proxy = cluster.proxy(timeout=PATIENCE_S)
        for first in range(0, keys, CHUNK):
            pairs = {
                f"key-{number:012d}": b"%0*d" % (payload, number) for number in range(first, min(first + CHUNK, keys))
            }
            proxy.update(pairs)
        yield cluster


def measured(cluster: Cluster[Any], keys: int, quiet_s: float = QUIET_S) -> Report:
    """Have every node take a snapshot while one client writes and another asks the leader's loop."""
    leader = cluster.wait_for_leader()
    pid = cluster.nodes[leader].pid
    assert pid is not None
    with cluster.client() as writer, cluster.client() as looker:
        numbers = iter(range(1 << 60))
        put = writer.proxy(timeout=PATIENCE_S).set
        watched = [
            Repeated(lambda: put("light", next(numbers))),
            Repeated(lambda: looker.ask_node(leader, "status", {}, PATIENCE_S).result(), LOOK_EVERY_S),
        ]
        memory: list[tuple[float, int]] = []
        watched.append(Repeated(lambda: memory.append((time.perf_counter(), measure.resident_bytes(pid))), 0.01))
        began = time.perf_counter()
        time.sleep(quiet_s)
        taking = time.perf_counter()
        taken = cluster.take_snapshot(timeout=PATIENCE_S)
        done = time.perf_counter()
        time.sleep(0.2)  # what was under way then
        held_up_s = looker.ask_node(leader, "status", {}, PATIENCE_S).result()["snapshot_pause_s"]
        for one in watched:
            one.end()
    assert len(taken) == len(cluster.nodes), f"only {sorted(taken)} took a snapshot"

    def phase(start: float, stop: float) -> Phase:
        most = max((held for at, held in memory if start <= at <= stop), default=0)
        return Phase(watched[0].between(start, stop), watched[1].between(start, stop), round(most / (1 << 20), 1))

    return Report(keys, phase(began, taking), phase(taking, done), done - taking, held_up_s * 1e3)


def main(
    keys: Annotated[int, typer.Option(min=1, help="Keys in the store.")] = 1_000_000,
    payload: Annotated[int, typer.Option(min=1, help="Bytes of a value; keys have 16.")] = 16,
    nodes: Annotated[int, typer.Option(min=1, help="Cluster size.")] = 3,
    durability: Annotated[str, typer.Option(help='"fsync" or "os".')] = "fsync",
    rounds: Annotated[int, typer.Option(min=1, help="Snapshots, one after the other.")] = 3,
    json: Annotated[Path | None, typer.Option(help="Write the rows there.")] = None,
) -> None:
    """Measure how long a snapshot holds up commits and the leader's loop."""
    screen.heading("Pauses of a snapshot")
    directory = fresh_directory("pauses")
    rows: list[dict[str, Any]] = []
    lines: list[list[str]] = []
    try:
        with screen.bar(rounds + 1) as bar:
            bar.say(f"writing {keys:,} keys")
            with filled(KVStore, keys, payload, nodes, durability, directory / "data") as cluster:
                bar.advance(1)
                for number in range(1, rounds + 1):
                    bar.say(f"snapshot {number} of {rounds}")
                    report = measured(cluster, keys)
                    bar.advance(1)
                    name = f"snapshot, {report.snapshot_s:.2f} s"
                    for what, seen, own_ms in (("quiet", report.quiet, 0.0), (name, report.during, report.held_up_ms)):
                        (usual, longest, _), (loop_usual, loop_longest, _), held = seen
                        cells = [usual, longest, own_ms, loop_usual, loop_longest, held]
                        lines.append([what, *(screen.figure(cell) for cell in cells)])
                        bar.note(" ".join(lines[-1]))
                    row = {"benchmark": "pauses", "keys": keys, "payload_bytes": payload, "nodes": nodes}
                    rows.append({**row, "durability": durability, **report._asdict()})
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    columns = ["", "commit p50 ms", "longest", "of it the leader's own", "loop p50 ms", "longest", "leader MiB"]
    screen.table(f"{keys:,} keys of {payload} B, {nodes} nodes, {durability}", columns, lines)
    screen.finish(rows, json=json)


if __name__ == "__main__":
    typer.run(main)
