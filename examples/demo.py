"""Kill the leader again and again in the middle of the load, and lose nothing: `make demo`.

Five OS processes elect a leader and replicate the class below. Clients write all the time. The leader is killed with
SIGKILL, the others go on, the dead node comes back and catches up, twenty times over. At the end every write that was
acknowledged is there, none is there twice, and every replica has applied the same commands in the same order.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from zlib import crc32

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from actorraft import (
    ActorRaftError,
    Client,
    Cluster,
    OutcomeUnknown,
    RaftConfig,
    ReplicatedStateMachine,
    StateMachine,
    command,
    query,
)
from benchmarks.systems import wait_until_level

OUTSTANDING = 64  # futures that each client keeps
CLIENTS = 2
BACK_S = 30.0  # a node that was started again must be level by then


class Ledger(StateMachine):
    """Counts how often each write was applied, and chains them, so that order shows too."""

    def __init__(self) -> None:
        self.counts: dict[int, bytearray] = {}
        self.chain = 0

    @command
    def record(self, client: int, number: int) -> int:
        """Count one write."""
        counts = self.counts.setdefault(client, bytearray())
        if number >= len(counts):
            counts.extend(bytes(number + 1 - len(counts)))
        counts[number] += 1
        self.chain = crc32(b"%d %d" % (client, number), self.chain)
        return counts[number]

    @query
    def audit(self) -> tuple[dict[int, bytes], int]:
        """Return everything."""
        return {client: bytes(counts) for client, counts in self.counts.items()}, self.chain


class Writer(threading.Thread):
    """A client that writes all the time and remembers what it was told."""

    def __init__(self, client: Client[Ledger], number: int) -> None:
        super().__init__(name=f"writer-{number}")
        self.client, self.number = client, number
        self.acknowledged: set[int] = set()
        self.unknown: set[int] = set()
        self.refused = 0
        self.answered_twice = 0
        self.last_answer_s = 0.0
        self.stopping = threading.Event()

    def run(self) -> None:
        """Keep OUTSTANDING futures under way until told to stop; then wait for them all."""
        record = self.client.proxy(timeout=30.0).record
        outstanding: deque[tuple[int, Future[int]]] = deque()
        number = 0
        while not self.stopping.is_set():
            while len(outstanding) < OUTSTANDING:
                outstanding.append((number, record.submit(self.number, number)))
                number += 1
            self.take(*outstanding.popleft())
        for each, future in outstanding:
            self.take(each, future)

    def take(self, number: int, future: Future[int]) -> None:
        """Wait for one answer and note which it was."""
        try:
            times = future.result()
        except OutcomeUnknown:
            self.unknown.add(number)
        except ActorRaftError:
            self.refused += 1  # certainly not applied
        else:
            self.acknowledged.add(number)
            self.answered_twice += times != 1
            self.last_answer_s = time.monotonic()


class Story:
    """The demonstration, told as it goes."""

    def __init__(self, console: Console, cluster: Cluster[Ledger], rng: random.Random) -> None:
        self.console, self.cluster, self.rng = console, cluster, rng
        self.silences_ms: list[float] = []

    def kill_the_leader(self, writers: list[Writer], number: int) -> None:
        """Kill it, wait for the next acknowledged write, bring it back, wait until it is level."""
        cluster = self.cluster
        time.sleep(self.rng.uniform(0.1, 0.4))
        leader = cluster.wait_for_leader()
        killed_s = time.monotonic()
        cluster.nodes[leader].kill()
        dead_s = time.monotonic()
        while not any(writer.last_answer_s > dead_s for writer in writers):
            if time.monotonic() > killed_s + BACK_S:
                raise SystemExit(f"no write was acknowledged in the {BACK_S} s after node {leader} was killed")
            time.sleep(0.001)
        silence_ms = (min(w.last_answer_s for w in writers if w.last_answer_s > dead_s) - killed_s) * 1e3
        self.silences_ms.append(silence_ms)
        next_leader = cluster.wait_for_leader()
        started_s = time.monotonic()
        cluster.nodes[leader].restart()
        wait_until_level(cluster, BACK_S)
        back_ms = (time.monotonic() - started_s) * 1e3
        self.console.print(
            f"{number:3}. SIGKILL to leader {leader}: node {next_leader} leads, "
            f"next write after [bold]{silence_ms:.0f} ms[/bold]; {leader} is back after {back_ms:.0f} ms",
            highlight=False,
        )

    def judge(self, writers: list[Writer]) -> bool:
        """Compare what the clients were told with what every replica holds; print it; return whether all is well."""
        audits = {}
        for node_id in self.cluster.nodes:
            audits[node_id] = self.cluster.proxy(to=node_id, timeout=30.0).audit()
        acknowledged = sum(len(writer.acknowledged) for writer in writers)
        counts, _ = next(iter(audits.values()))
        lost = twice = 0
        for writer in writers:
            applied = counts.get(writer.number, b"")
            lost += sum(number >= len(applied) or applied[number] == 0 for number in writer.acknowledged)
            twice += sum(times > 1 for times in applied) + writer.answered_twice
        equal = len({(tuple(sorted(counts.items())), chain) for counts, chain in audits.values()}) == 1
        facts: list[tuple[str, str, bool]] = [
            ("writes acknowledged", f"{acknowledged:,}", acknowledged > 0),
            ("acknowledged and lost", str(lost), lost == 0),
            ("applied twice", str(twice), twice == 0),
            ("of unknown outcome", str(sum(len(writer.unknown) for writer in writers)), True),
            ("refused", str(sum(writer.refused for writer in writers)), True),
            (f"state and order equal on all {len(audits)} replicas", "yes" if equal else "NO", equal),
            ("silence, median", f"{statistics.median(self.silences_ms):.0f} ms", True),
            ("silence, longest", f"{max(self.silences_ms):.0f} ms", True),
        ]
        table = Table(title="What became of it", title_justify="left", show_header=False)
        for name, value, good in facts:
            table.add_row(name, f"[{'green' if good else 'bold red'}]{value}[/]")
        self.console.print(table)
        return all(good for _, _, good in facts)


def left_behind(pids: list[int], endpoints: list[str]) -> list[str]:
    """Return what a closed cluster left: processes that still run, sockets that still exist."""
    left = [f"process {pid}" for pid in pids if Path(f"/proc/{pid}").exists() and not _is_zombie(pid)]
    paths = [endpoint.removeprefix("ipc://") for endpoint in endpoints if endpoint.startswith("ipc://")]
    return left + [path for path in paths if os.path.lexists(path)]


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def main(argv: list[str] | None = None) -> int:
    """Play it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how often the leader is killed (default: 20)")
    parser.add_argument("--nodes", type=int, default=5, help="how many processes (default: 5)")
    parser.add_argument("--seed", type=int, default=None, help="of the moments of the kills")
    options = parser.parse_args(argv)
    console = Console()
    began_s = time.monotonic()
    often = RaftConfig(snapshot_after_bytes=2 << 20)  # so that nodes come back from snapshots too, in so short a run
    cluster = ReplicatedStateMachine(Ledger).spawn(options.nodes, config=often)
    with cluster:
        console.print(f"{cluster!r}: up and led after {time.monotonic() - began_s:.2f} s", highlight=False)
        clients = [cluster.client() for _ in range(CLIENTS)]
        writers = [Writer(client, number) for number, client in enumerate(clients)]
        story = Story(console, cluster, random.Random(options.seed))
        columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        for writer in writers:
            writer.start()
        try:
            with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
                task = progress.add_task("killing leaders under load", total=options.kills)
                for number in range(1, options.kills + 1):
                    story.kill_the_leader(writers, number)
                    progress.advance(task)
        finally:
            for writer in writers:
                writer.stopping.set()
            for writer in writers:
                writer.join()
        wait_until_level(cluster, BACK_S)
        well = story.judge(writers)
        for client in clients:
            client.close()
        pids = [node.pid for node in cluster.nodes.values() if node.pid is not None]
        endpoints = list(cluster.endpoints.values())
    left = left_behind(pids, endpoints)
    console.print("closed: no process, no socket left" if not left else f"[bold red]left behind: {left}[/]")
    return 0 if well and not left else 1


if __name__ == "__main__":
    sys.exit(main())
