"""How long it takes to be back: `python -m benchmarks.recovery`.

A cluster is given a log of so many entries of one command each, every one on a key of its own, and is started from it;
an empty node joins it and catches up from the log; every node takes a snapshot, and the same is done from that. Then
another cluster, at its default settings, commits a long stream on few keys, while memory and disk are watched: both
must stay flat.

The log is written straight to the nodes' stores, as frames of one command: a client packs hundreds into one entry.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from benchmarks import measure, screen
from benchmarks.deployment import fresh_directory
from benchmarks.systems import wait_until_level

OUTSTANDING = 2_000
PARTS = 10  # memory is looked at so often
STREAM_KEYS = 10_000
CATCH_UP_S = 600.0
STAGES = ("log", "snapshot", "stream")


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


def single_commands(first_index: int, term: int, count: int, payload: int) -> Iterator[Any]:
    """Yield log entries: a session is opened by the one at `first_index`; then each has one command, on a new key."""
    from actorraft import codec
    from actorraft.raft.messages import LogEntry

    now_s = time.time()
    encode = msgspec.msgpack.encode
    value = b"v" * payload
    yield LogEntry(term, codec.stamp(now_s, codec.encode(codec.Register(first_index))))
    for number in range(count):
        body = codec.join_body([encode(["set", f"key-{number:012d}", value])])
        frame = codec.encode(codec.Commands(first_index, number, number, 1, body))
        yield LogEntry(term, codec.stamp(now_s, frame))


def write_log(node: Path, entries: int, payload: int) -> None:
    """Append so many entries to the store of a node that is down."""
    from actorraft.storage.disk import DiskStorage

    store = DiskStorage(node, create=False)
    try:
        held = store.recover()
        index = held.first_index + len(held.entries)
        more = single_commands(index, held.entries[-1].term, entries, payload)
        while batch := list(islice(more, 2_000)):
            store.persist(None, index, batch)
            index += len(batch)
    finally:
        store.close()


def node_pids(cluster: Any) -> list[int]:
    """Return the processes, by node id."""
    return [node.pid for _, node in sorted(cluster.nodes.items()) if node.pid is not None]


def resident_mib(cluster: Any) -> list[float]:
    """Return the memory of each node."""
    return [round(measure.resident_bytes(pid) / (1 << 20), 1) for pid in node_pids(cluster)]


class Run:
    """One data directory, and the rows found on it."""

    def __init__(self, nodes: int, payload: int, config: Any, bar: screen.Bar, rows: list[dict[str, Any]]) -> None:
        from actorraft import ReplicatedStateMachine
        from statemachines.kv import KVStore

        self.machine = ReplicatedStateMachine(KVStore)
        self.nodes, self.payload, self.config, self.bar, self.rows = nodes, payload, config, bar, rows
        self.directory = fresh_directory("recovery")

    def note(self, what: str, value: float, unit: str, **more: Any) -> None:
        """Keep one figure."""
        row = {"benchmark": "recovery", "what": what, "value": round(value, 3), "unit": unit, "nodes": self.nodes}
        self.rows.append({**row, "payload_bytes": self.payload, **more})
        self.bar.note(f"{what}: {value:.3f} {unit}")
        self.bar.advance(1)

    def start(self) -> Any:
        """Start the cluster on its directory."""
        return self.machine.spawn(self.nodes, data_dir=self.directory / "data", config=self.config, timeout=CATCH_UP_S)

    def disk_bytes(self) -> float:
        """Return what a node's folder takes on the disk, the mean of all."""
        return measure.disk_bytes(self.directory / "data") / self.nodes

    def restart(self, what: str) -> None:
        """Measure from `spawn` to the first commit."""
        self.bar.say(what)
        start = time.perf_counter()
        with self.start() as cluster:
            cluster.proxy(timeout=CATCH_UP_S).set("after", 1)
            self.note(what, time.perf_counter() - start, "s", memory_mib=resident_mib(cluster))
            wait_until_level(cluster, CATCH_UP_S)

    def prepare(self, entries: int) -> None:
        """Give every node the same log of so many entries."""
        self.bar.say(f"writing logs of {entries:,} entries")
        with self.start() as cluster:
            cluster.proxy().set("before", 1)
            wait_until_level(cluster)
        for number in range(self.nodes):
            write_log(self.directory / "data" / f"node-{number}", entries, self.payload)
        self.note("disk per byte of keys and values, in the log", self.disk_bytes() / self.bytes_of(entries), "times")

    def bytes_of(self, commands: int) -> int:
        """Return the bytes of so many keys and values."""
        return commands * (self.payload + 16)

    def snapshot(self, keys: int) -> None:
        """Compact on every node."""
        self.bar.say("taking a snapshot")
        with self.start() as cluster:
            cluster.proxy(timeout=CATCH_UP_S).set("after", 2)
            wait_until_level(cluster, CATCH_UP_S)
            start = time.perf_counter()
            taken = cluster.take_snapshot(timeout=CATCH_UP_S)
            assert len(taken) == self.nodes, f"only {sorted(taken)} took a snapshot"
            self.note("a snapshot, on every node at once", time.perf_counter() - start, "s")
        self.note("disk per byte of keys and values, in the snapshot", self.disk_bytes() / self.bytes_of(keys), "times")

    def join(self, what: str) -> None:
        """Let an empty node join and catch up; then take it out again."""
        self.bar.say(what)
        with self.start() as cluster:
            cluster.proxy(timeout=CATCH_UP_S).set("after", 3)
            wait_until_level(cluster, CATCH_UP_S)
            start = time.perf_counter()
            added = cluster.add_node(timeout=CATCH_UP_S)
            wait_until_level(cluster, CATCH_UP_S)
            self.note(what, time.perf_counter() - start, "s", memory_mib=resident_mib(cluster))
            cluster.remove_node(added, timeout=CATCH_UP_S)

    def stream(self, commits: int) -> None:
        """Commit a long stream on few keys; memory and disk must not grow with it."""
        memory: list[list[float]] = []
        disk: list[float] = []
        with self.start() as cluster:
            part = max(1, commits // PARTS)
            start = time.perf_counter()
            for first in range(0, commits, part):
                self.bar.say(f"{first:,} of {commits:,} commits")
                fill(cluster, first, min(part, commits - first), STREAM_KEYS, self.payload)
                memory.append(resident_mib(cluster))
                disk.append(round(self.disk_bytes() / (1 << 20), 1))
            elapsed = time.perf_counter() - start
            written = sum(measure.written_bytes(pid) for pid in node_pids(cluster)) / self.nodes
        name = f"{commits:,} commits"
        self.note(f"{name}: rate", commits / elapsed, "a second")
        half = [max(nodes) for nodes in memory[: PARTS // 2]]
        self.note(f"{name}: memory of the largest node, first half", max(half), "MiB", memory_mib=memory)
        self.note(f"{name}: the same, second half", max(max(nodes) for nodes in memory[PARTS // 2 :]), "MiB")
        self.note(f"{name}: disk of a node, at most", max(disk), "MiB", disk_mib=disk)
        self.note(f"{name}: written to disk per byte committed", written / self.bytes_of(commits), "times")


def main(
    nodes: Annotated[int, typer.Option(min=1, help="Cluster size.")] = 3,
    entries: Annotated[
        int, typer.Option(min=1, help="Entries of the log that is started from, each one command on a key of its own.")
    ] = 1_000_000,
    commits: Annotated[
        int, typer.Option(min=PARTS, help="Commits of the long stream; 10000000 for a soak.")
    ] = 1_000_000,
    payload: Annotated[int, typer.Option(min=0, help="Bytes of a value; keys have 16.")] = 128,
    stages: Annotated[str, typer.Option(help="What to do: log, snapshot, stream.")] = ",".join(STAGES),
    json: Annotated[Path | None, typer.Option(help="Write the rows there.")] = None,
) -> None:
    """Measure restarts from log and snapshot, catching up, memory, and bytes on disk."""
    from actorraft import RaftConfig

    asked = screen.names(stages, "--stages", STAGES)
    screen.heading("Recovery")
    rows: list[dict[str, Any]] = []
    # The log is kept whole until a snapshot is asked for; at the defaults one is taken every 100,000 entries.
    never = RaftConfig(snapshot_after_bytes=1 << 60, snapshot_after_entries=1 << 60)
    with screen.bar(12) as bar:
        if {"log", "snapshot"} & set(asked):
            run = Run(nodes, payload, never, bar, rows)
            try:
                run.prepare(entries)
                if "log" in asked:
                    run.restart(f"all processes start again, from a log of {entries:,} entries")
                    run.join("an empty node joins and is level, from that log")
                if "snapshot" in asked:
                    run.snapshot(entries)
                    run.restart(f"all processes start again, from a snapshot of {entries:,} keys")
                    run.join("an empty node joins and is level, from that snapshot")
            finally:
                shutil.rmtree(run.directory, ignore_errors=True)
        if "stream" in asked:
            run = Run(nodes, payload, RaftConfig(), bar, rows)
            try:
                run.stream(commits)
            finally:
                shutil.rmtree(run.directory, ignore_errors=True)
    lines = [[row["what"], screen.figure(row["value"]), row["unit"]] for row in rows]
    screen.table(f"Recovery: {nodes} nodes, values of {payload} B", ["what", "", ""], lines)
    screen.finish(rows, json=json)


if __name__ == "__main__":
    typer.run(main)
