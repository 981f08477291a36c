"""Commits a second and their latency: `python -m benchmarks.throughput`.

A cluster is started for each number of nodes and each durability; a client in a process of its own keeps exactly
`concurrency` commands outstanding for some seconds, after a warm-up. A commit counts when its future has its result.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import screen
from benchmarks.deployment import System
from benchmarks.harness import GeneratorFailed, Measured, run_window
from benchmarks.loadgen import LoadSpec
from benchmarks.systems import usable_systems

READS = ("linearizable", "lease", "stale")
COMMANDS = ("kv", "method", "object")
NAMES = {
    "system": "system",
    "nodes": "nodes",
    "durability": "durability",
    "operation": "operation",
    "commands": "commands as",
    "clients": "processes",
    "payload_bytes": "bytes",
    "concurrency": "outstanding",
}  # what tells rows apart, and how it is called in a table
SHARED = ("commands_per_entry", "entries_per_message", "entries_per_fsync")


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    nodes: list[int]
    concurrency: list[int]
    payload: list[int]
    durability: list[str]
    reads: list[str]
    commands: list[str]
    clients: list[int]
    seconds: float
    warmup_s: float
    rounds: int

    def windows(self, durability: str, commands: str) -> Iterator[tuple[str, int, int, int]]:
        """Yield (operation, clients, payload, concurrency) of each window on one deployment.

        Reads do not touch the disk and do not depend on the command's shape, so they run on the first of each only.
        """
        first = durability == self.durability[0] and commands == "kv"
        for operation in ["set", *(self.reads if first else [])]:
            for clients in self.clients:
                for payload in self.payload:
                    for concurrency in self.concurrency:
                        yield operation, clients, payload, concurrency

    def window_count(self, systems: list[System]) -> int:
        """Return how many windows there are in all."""
        return self.rounds * sum(
            len(list(self.windows(*kind))) for each in systems for _, kind in self.deployments(each)
        )

    def deployments(self, each: System) -> Iterator[tuple[int, tuple[str, str]]]:
        """Yield (nodes, (durability, commands)) for one system: other systems know key-value commands only."""
        for nodes in self.nodes:
            for durability in self.durability if each.name == "actorraft" else each.durabilities:
                for commands in self.commands if each.name == "actorraft" else ["kv"]:
                    yield nodes, (durability, commands)


Key = tuple[
    str, int, str, str, str, int, int, int
]  # system, nodes, durability, commands, operation, clients, payload, concurrency


def run(plan: Plan, systems: list[System]) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure everything, the systems in turn in each round.

    Returns:
        One row a combination, medians over the rounds; and what failed: the rest of a run is worth more than none.
    """
    seen: dict[Key, list[Measured]] = {}
    failures: list[str] = []
    window_s = plan.seconds + plan.warmup_s
    with screen.bar(plan.window_count(systems) * window_s) as bar:
        try:
            for number in range(plan.rounds):
                for each in systems if number % 2 == 0 else reversed(systems):
                    for nodes, kind in plan.deployments(each):
                        try:
                            _run_deployment(plan, each, nodes, *kind, bar, seen)
                        except (GeneratorFailed, TimeoutError) as error:
                            failures.append(f"{each.name}, {nodes} nodes, {kind[0]}: {error}")
        except KeyboardInterrupt:
            screen.console.print("stopped; what was measured so far:")
    return [_row(key, measured, plan) for key, measured in seen.items()], failures


def _run_deployment(
    plan: Plan,
    each: System,
    nodes: int,
    durability: str,
    commands: str,
    bar: screen.Bar,
    seen: dict[Key, list[Measured]],
) -> None:
    bar.say(f"{each.name}: starting {nodes} nodes, {durability}")
    deployment = each.deploy(nodes, durability, commands)
    try:
        for operation, clients, payload, concurrency in plan.windows(durability, commands):
            if not deployment.serves(operation):
                bar.advance(plan.seconds + plan.warmup_s)
                continue
            label = f"{each.name}, {nodes} nodes, {durability}, {operation} as {commands}, {payload} B, "
            label += f"{clients} clients, {concurrency} outstanding"
            bar.say(label)
            spec = LoadSpec(
                endpoints=deployment.endpoints(),
                concurrency=concurrency,
                payload_bytes=payload,
                warmup_s=plan.warmup_s,
                seconds=plan.seconds,
                operation=operation,
                commands=commands,
            )
            measured = run_window(deployment, spec, clients)
            bar.advance(plan.seconds + plan.warmup_s)
            bar.note(f"{label}: {measured.per_s:,.0f}/s, p50 {measured.p50_ms:.2f} ms, {measured.errors} errors")
            key = (each.name, nodes, durability, commands, operation, clients, payload, concurrency)
            seen.setdefault(key, []).append(measured)
    finally:
        deployment.close()


def _row(key: Key, measured: list[Measured], plan: Plan) -> dict[str, Any]:
    system_name, nodes, durability, commands, operation, clients, payload, concurrency = key
    per_s = round(statistics.median(each.per_s for each in measured), 1)
    middle = min(measured, key=lambda each: abs(each.per_s - per_s))
    return {
        "benchmark": "throughput",
        "system": system_name,
        "nodes": nodes,
        "concurrency": concurrency,
        "payload_bytes": payload,
        "durability": durability,
        "operation": operation if operation == "set" else f"{operation} read",
        "commands": commands,
        "clients": clients,
        "commits_per_s": per_s if operation == "set" else 0.0,
        "reads_per_s": 0.0 if operation == "set" else per_s,
        "p50_ms": screen.number_or_none(statistics.median(each.p50_ms for each in measured)),
        "p99_ms": screen.number_or_none(statistics.median(each.p99_ms for each in measured)),
        "errors": sum(each.errors for each in measured),
        "elections": sum(each.elections for each in measured),
        "error_names": sorted({name for each in measured for name in each.error_names}),
        "seconds": plan.seconds,
        "rounds": len(measured),
        "cpu_s_per_100k": middle.cpu_s_per_100k,
        "cpu_s_per_100k_by_process": middle.cpu_by_process,
        **_shared(middle, operation),
    }


def _shared(measured: Measured, operation: str) -> dict[str, float | None]:
    """Return how much one entry, one message to a follower and one fsync of the leader are shared by; reads have none.

    An entry is a frame of one client: the commands that it had when its last send was under way.
    """
    work = measured.work if operation == "set" else {}
    commands = measured.count
    pairs = {
        "commands_per_entry": (commands, work.get("entries_written", 0)),
        "entries_per_message": (work.get("entries_sent", 0), work.get("appends_sent", 0)),
        "entries_per_fsync": (work.get("entries_written", 0), work.get("writes", 0)),
    }
    return {name: round(of / by, 2) if by else None for name, (of, by) in pairs.items()}


def _rate(row: dict[str, Any]) -> float:
    return float(row["commits_per_s"] or row["reads_per_s"])


def ratios(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return, for each window that two systems ran, how many times the other's rate ActorRaft's durable one is."""
    same = ("nodes", "concurrency", "payload_bytes", "operation", "clients")
    ours = {
        tuple(row[name] for name in same): row
        for row in reversed(rows)  # the first durability asked for is the one that is compared
        if row["system"] == "actorraft" and row["commands"] == "kv"
    }
    lines = []
    for row in rows:
        mine = ours.get(tuple(row[name] for name in same))
        if row["system"] == "actorraft" or mine is None or not _rate(row):
            continue
        lines.append(
            [
                row["system"],
                row["durability"],
                row["operation"],
                str(row["nodes"]),
                str(row["concurrency"]),
                f"{_rate(mine) / _rate(row):.1f}",
                f"{(mine['p50_ms'] or math.nan) / (row['p50_ms'] or math.nan):.2f}",
            ]
        )
    return lines


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rates, what they cost, and the ratios if there is anything to compare.

    What is the same in all rows is in the title.
    """
    varying = [name for name in NAMES if len({row[name] for row in rows}) > 1]
    same = " · ".join(f"{NAMES[name]}: {rows[0][name]}" for name in NAMES if rows and name not in varying)
    heads = [NAMES[name] for name in varying]
    rates, costs = [], []
    for row in rows:
        head = [str(row[name]) for name in varying]
        errors = f"{row['errors']} {' '.join(row['error_names'])}".strip()
        if row["elections"]:
            errors += f", {row['elections']} elections"
        rates.append([*head, screen.figure(_rate(row), 0), screen.figure(row["p50_ms"]), screen.figure(row["p99_ms"])])
        rates[-1].append(errors)
        cpu = [screen.figure(row["cpu_s_per_100k"].get(role) or None) for role in ("clients", "leader", "followers")]
        costs.append([*head, *cpu, *(screen.figure(row[name], 1) for name in SHARED)])
    screen.table(f"Throughput · {same}", [*heads, "per second", "p50 ms", "p99 ms", "errors"], rates)
    columns = [*heads, "clients", "leader", "followers", "/entry", "/message", "/fsync"]
    screen.table("CPU seconds per 100,000; commands per entry, entries per message and per fsync", columns, costs)
    compared = ratios(rows)
    if compared:
        columns = ["against", "its durability", "operation", "nodes", "outstanding", "rate, times", "p50, times"]
        screen.table("ActorRaft against the others, medians of the same run", columns, compared)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw rate and latency over the number outstanding, a line for each system and setting."""
    varying = [name for name in NAMES if name != "concurrency" and len({row[name] for row in rows}) > 1]
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = ", ".join(f"{row[name]} {NAMES[name]}" for name in varying) or row["system"]
        lines.setdefault(name, []).append(row)
    with screen.picture(path, 2) as (rates, latencies):
        for name, line in lines.items():
            line.sort(key=lambda row: int(row["concurrency"]))
            outstanding = [row["concurrency"] for row in line]
            rates.plot(outstanding, [_rate(row) for row in line], marker="o", label=name)
            latencies.plot(outstanding, [row["p50_ms"] for row in line], marker="o", label=name)
        for axes, label in ((rates, "per second"), (latencies, "p50 latency, ms")):
            axes.set(xscale="log", yscale="log", xlabel="commands outstanding", ylabel=label)
        rates.legend(fontsize="small")


def main(
    nodes: Annotated[str, typer.Option(help="Cluster sizes.")] = "3,5",
    concurrency: Annotated[str, typer.Option(help="Commands outstanding, over all clients.")] = "1,64,1000",
    payload: Annotated[str, typer.Option(help="Bytes of a value; keys have 16.")] = "128",
    seconds: Annotated[float, typer.Option(min=0.1, help="Measured for so long, each row.")] = 5.0,
    warmup: Annotated[float, typer.Option(min=0.0, help="Seconds before, not measured.")] = 1.0,
    durability: Annotated[str, typer.Option(help="fsync, os, or both.")] = "fsync,os",
    reads: Annotated[
        str, typer.Option(help="Read rows too: linearizable, lease (turns them on in the nodes), stale.")
    ] = "linearizable",
    commands: Annotated[str, typer.Option(help="kv, method (a user's @command), object (pickled commands).")] = "kv",
    clients: Annotated[str, typer.Option(help="Client processes that share what is outstanding.")] = "1",
    compare: Annotated[str, typer.Option(help="Others in the same run: pysyncobj, etcd, zookeeper, redis.")] = "none",
    rounds: Annotated[int, typer.Option(min=0, help="Times over; medians are shown. 0: 3 to compare, else 1.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the rows there.")] = None,
    plot_: Annotated[Path | None, typer.Option("--plot", help="Draw a picture there (PNG).")] = None,
) -> None:
    """Measure commits a second and their latency, as a client in a process of its own sees them."""
    others = screen.names(compare, "--compare", ("pysyncobj", "etcd", "zookeeper", "redis"))
    plan = Plan(
        nodes=screen.numbers(nodes, "--nodes"),
        concurrency=screen.numbers(concurrency, "--concurrency"),
        payload=screen.numbers(payload, "--payload", least=0),
        durability=screen.names(durability, "--durability", ("fsync", "os")) or ["fsync"],
        reads=screen.names(reads, "--reads", READS),
        commands=screen.names(commands, "--commands", COMMANDS) or ["kv"],
        clients=screen.numbers(clients, "--clients"),
        seconds=seconds,
        warmup_s=warmup,
        rounds=rounds or (3 if others else 1),
    )
    screen.heading("Throughput")
    rows, failures = run(plan, usable_systems(others, screen.warn, lease_reads="lease" in plan.reads))
    show(rows)
    screen.finish(rows, failures, json, plot_, plot)


if __name__ == "__main__":
    typer.run(main)
