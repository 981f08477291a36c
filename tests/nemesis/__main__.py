"""python -m tests.nemesis: faults, clients, a verdict. Exits with 1 if the cluster broke a promise."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.nemesis.clients import outcomes
from tests.nemesis.faults import ALL
from tests.nemesis.run import Options, Report, run

SHOWN_MAX = 5


def main(
    seconds: Annotated[float, typer.Option(help="How long faults are made.")] = 60.0,
    faults: Annotated[str, typer.Option(help="Which, with commas between.")] = ",".join(ALL),
    nodes: Annotated[int, typer.Option(help="Nodes of the cluster.", min=1)] = 5,
    clients: Annotated[int, typer.Option(help="Client processes, one operation in flight each.", min=1)] = 6,
    rate: Annotated[float, typer.Option(help="Operations a second of one client, at most.")] = 100.0,
    seed: Annotated[int, typer.Option(help="Of all that is random here; the moments are the machine's.")] = 0,
    durability: Annotated[str, typer.Option(help='"fsync" or "os".')] = "fsync",
    history: Annotated[Path | None, typer.Option(help="Write every operation there, a JSON object a line.")] = None,
    namespaces: Annotated[bool, typer.Option(help="Cut packets between network namespaces, where possible.")] = True,
    serve: Annotated[bool, typer.Option("--serve", help="Nodes without a parent, each on a host of its own.")] = False,
    verbose: Annotated[bool, typer.Option(help="Log faults and what nodes say.")] = False,
) -> None:
    """Torment a cluster of real processes while clients work on it, and judge what the clients saw."""
    kinds = {kind for kind in faults.split(",") if kind}
    if strange := kinds - set(ALL):
        raise typer.BadParameter(f"no such fault: {', '.join(sorted(strange))}; there are {', '.join(ALL)}")
    if durability not in ("fsync", "os"):
        raise typer.BadParameter('durability is "fsync" or "os"')
    logging.basicConfig(
        level=logging.INFO if verbose else logging.CRITICAL + 1, format="%(asctime)s %(name)s %(message)s"
    )
    options = Options(
        seconds=seconds,
        faults=kinds,
        nodes=nodes,
        clients=clients,
        rate=rate,
        seed=seed,
        durability=durability,
        history=history,
        namespaces=namespaces,
        serve=serve,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is mounted, and namespaces, are let go of
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        report = run(options, lambda text, share: bar.update(task, description=text[:70], completed=share))
    console = Console(width=None if sys.stdout.isatty() else 110)
    show(report, console)
    if report.complaints:
        console.print(f"again: python -m tests.nemesis {shlex.join(sys.argv[1:])}", highlight=False)
        raise typer.Exit(1)


def show(report: Report, console: Console) -> None:
    """Print what happened and the verdict."""
    console.print(_faults_table(report))
    console.print(_operations_table(report))
    judgement = report.judgement
    verdict = judgement.linearizable
    facts = Table(show_header=False, box=None)
    kinds = report.faults.counts()
    hit = sum(kinds.get(kind, Counter())["on the leader"] for kind in ("kill", "pause"))
    rows = {
        "leader kills and pauses": f"{hit}",
        "partitions": report.network,
        "acknowledged writes lost": f"{len(judgement.lost)}",
        "linearizability": f"{len(verdict.violations)} violations, {len(verdict.undecided)} undecided, "
        f"{verdict.operations} operations on {verdict.keys} keys",
        "unknown outcomes": f"{judgement.statuses['unknown']} ({judgement.unknown_share:.2%})",
        "replicas": _equality(report),
    }
    for name, value in rows.items():
        facts.add_row(name, value)
    console.print(facts)
    for problem in report.faults.problems[: 4 * SHOWN_MAX]:
        console.print(f"a fault did not go as meant: {problem}", highlight=False, markup=False)
    for complaint in report.complaints[:SHOWN_MAX]:
        console.print(complaint, highlight=False, markup=False)
    count = len(report.complaints)
    console.print(f"VIOLATED: {count} complaints" if count else "PASSED", style="bold red" if count else "bold green")


def _faults_table(report: Report) -> Table:
    table = Table(title=f"faults in {report.options.seconds:.0f} s, seed {report.options.seed}")
    for column in ("fault", "made", "on the leader", "note"):
        table.add_column(column, justify="left" if column in ("fault", "note") else "right")
    for kind, counts in report.faults.counts().items():
        table.add_row(kind, str(counts["made"]), str(counts["on the leader"]), "")
    for kind, why in report.skipped.items():
        table.add_row(kind, "0", "0", f"skipped: {why}")
    return table


def _operations_table(report: Report) -> Table:
    table = Table(title=f"operations of {report.options.clients} clients in {report.seconds:.0f} s")
    for column in ("operation", "ok", "fail", "unknown", "p50 ms", "p99 ms", "max ms"):
        table.add_column(column, justify="left" if column == "operation" else "right")
    for op, counts in sorted(outcomes(report.operations).items()):
        times = sorted(
            (one.return_ns - one.call_ns) / 1e6
            for one in report.operations
            if one.op == op and one.return_ns is not None
        )
        shown = (
            [f"{times[min(len(times) - 1, int(share * len(times)))]:.1f}" for share in (0.5, 0.99, 1.0)]
            if times
            else []
        )
        table.add_row(op, *(str(counts[status]) for status in ("ok", "fail", "unknown")), *shown)
    return table


def _equality(report: Report) -> str:
    judgement = report.judgement
    if judgement.equal_after_s is None:
        return f"DIFFER: {judgement.replicas}"
    one = next(iter(judgement.replicas.values()))
    return f"{len(judgement.replicas)} equal at index {one.last_applied}, digest {one.digest[:16]}"


if __name__ == "__main__":
    typer.run(main)
