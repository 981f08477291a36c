"""`python -m actorraft.simulation --seeds 1000`: search for a schedule that breaks Raft.

Needs typer and rich (`pip install actorraft[cli]`). Exits 1 if any seed broke an invariant.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from actorraft.errors import UsageError
from actorraft.simulation.cluster import run_machine
from actorraft.simulation.commands import Draw, drawing_of
from actorraft.simulation.play import STEPS, Outcome
from actorraft.simulation.profile import mixing_versions
from actorraft.simulation.runner import Summary, be_quiet, replay_command, run_seeds, trace_seed

app = typer.Typer(add_completion=False)
console = Console(soft_wrap=True, highlight=False)

SHOWN_MAX = 10  # failures that are printed in full


def print_failure(outcome: Outcome, num_nodes: int, steps: int) -> None:
    """Print the one line that names and replays a failure."""
    command = replay_command(outcome, num_nodes=num_nodes, steps=steps)
    console.print(
        f"seed {outcome.seed}, step {outcome.step}: {outcome.invariant}: {outcome.violation} | {command}",
        style="bold red",
        markup=False,
    )


def print_summary(summary: Summary, wall_s: float, workers: int) -> None:
    """Print what the seeds were like together."""
    table = Table(
        title=f"{summary.seeds} seeds, {len(summary.violations)} of them broke an invariant", title_justify="left"
    )
    table.add_column("what")
    table.add_column("how much", justify="right")
    rows = [
        ("events", f"{summary.events:,}"),
        ("events per second", f"{summary.events / wall_s:,.0f} (on {workers} core{'s' if workers > 1 else ''})"),
        ("simulated time", f"{summary.simulated_s / 3600:.2f} h, {summary.simulated_s / wall_s:.0f} times real time"),
        ("wall time", f"{wall_s:.1f} s"),
        ("elections won", f"{summary.elections:,}"),
        ("entries committed", f"{summary.commits:,}"),
        (
            "client operations",
            f"{summary.operations:,}, {summary.unknown:,} ended unknown, and most were found out later",
        ),
    ]
    if summary.undecided:
        rows.append(("keys with a history too tangled to judge", f"{summary.undecided:,}"))
    for row in rows:
        table.add_row(*row)
    table.add_section()
    for name, count in sorted(summary.faults.items()):
        if count:
            table.add_row(name, f"{count:,}")
    console.print(table)


def run_one(seed: int, nodes: int, steps: int, trace: Path | None) -> Summary:
    """Run one seed; write its trace, if asked to; show the last events if it fails."""
    summary = Summary()
    outcome, lines = trace_seed(seed, num_nodes=nodes, steps=steps)
    if trace is not None:
        with trace.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
            last = outcome.violation if outcome.violation is not None else "all is well"
            file.write(f"seed {seed}, {outcome.events} events: {last}\n")
        console.print(f"the trace is in {trace}", markup=False)
    summary.add(outcome)
    if outcome.violation is not None:
        for line in outcome.tail:
            console.print(line, markup=False)
    return summary


def named(name: str, what: str) -> Any:
    """Return what `module:name` names; modules in the working directory are found.

    Raises:
        typer.BadParameter: there is none.
    """
    module, colon, qualified = name.partition(":")
    if not colon:
        raise typer.BadParameter(f"{what} is module:name, not {name!r}")
    sys.path.insert(0, os.getcwd())
    try:
        return functools.reduce(getattr, qualified.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise typer.BadParameter(f"{what} {name}: {error}") from error
    finally:
        sys.path.pop(0)


def run_machines(machine: Any, draw: Draw, seeds: range, nodes: int, commands: int, kwargs: dict[str, Any]) -> bool:
    """Run a user's machine through seeds; show what failed, and what they were like; return whether all is well."""
    be_quiet()
    faults: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    failed: list[int] = []
    simulated_s = 0.0
    name = getattr(machine, "__qualname__", str(machine))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for seed in progress.track(seeds, description="seeds"):
            outcome = run_machine(machine, draw, seed=seed, nodes=nodes, commands=commands, kwargs=kwargs)
            faults.update(outcome.faults)
            ended.update(outcome.ended)
            simulated_s += outcome.simulated_s
            if outcome.violation is not None:
                failed.append(seed)
                if len(failed) <= SHOWN_MAX:
                    console.print(f"seed {seed}: {outcome.violation}", style="bold red", markup=False)
                    if len(seeds) == 1:
                        for note in outcome.notes:
                            console.print(note, markup=False)
    table = Table(title=f"{name}: {len(seeds)} seeds, {len(failed)} of them broke a promise", title_justify="left")
    table.add_column("what")
    table.add_column("how much", justify="right")
    table.add_row("simulated time", f"{simulated_s:.0f} s")
    for how, count in sorted(ended.items(), key=lambda one: -one[1]):
        table.add_row(f"commands that {'returned' if how == 'returned' else f'ended with {how}'}", f"{count:,}")
    table.add_section()
    for kind, count in sorted(faults.items()):
        table.add_row(kind, f"{count:,}")
    console.print(table)
    if failed:
        console.print(f"look at one: add --seed {failed[0]}", markup=False)
    return not failed


def run_many(seeds: Sequence[int], nodes: int, steps: int, workers: int) -> Summary:
    """Run seeds over the cores, with a bar where somebody can see it move."""
    summary = Summary()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    outcomes = run_seeds(seeds, num_nodes=nodes, steps=steps, workers=workers)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("seeds", total=len(seeds))
        for outcome in outcomes:
            summary.add(outcome)
            progress.advance(task)
            if outcome.violation is not None and len(summary.violations) <= SHOWN_MAX:
                print_failure(outcome, nodes, steps)
    return summary


@app.command()
def main(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds to run.")] = 1000,
    first: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Run just this one, and show its last events if it fails.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, max=9, help="Voters at the beginning. [default: 5]")] = None,
    steps: Annotated[int, typer.Option(min=100, help="Events before everything is mended.")] = STEPS,
    versions: Annotated[
        bool, typer.Option("--versions", help="Only seeds in which nodes are started again with other code.")
    ] = False,
    trace: Annotated[Path | None, typer.Option(help="With --seed: write every event to this file.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    machine: Annotated[str, typer.Option(help="A machine of yours, module:Class, in place of the simulator's.")] = "",
    kwargs: Annotated[str, typer.Option(help="With --machine: arguments of its constructor, as JSON.")] = "{}",
    commands: Annotated[
        str,
        typer.Option(
            help="With --machine: module:function that takes a random.Random and returns a command; "
            "else calls of its @command methods are drawn by their annotations."
        ),
    ] = "",
    calls: Annotated[int, typer.Option(min=1, help="With --machine: commands for each seed.")] = 200,
) -> None:
    """Run a cluster in a seeded world of faults, many times over; every event is checked against the paper.

    With --machine it is a class of yours that is replicated, on three nodes unless --nodes says otherwise, and in the
    end all replicas must be equal.
    """
    if machine:
        try:
            theirs = named(machine, "--machine")
            draw = named(commands, "--commands") if commands else drawing_of(theirs)
            which = range(first, first + seeds) if seed is None else range(seed, seed + 1)
            well = run_machines(theirs, draw, which, nodes or 3, calls, json.loads(kwargs))
        except (UsageError, ValueError) as error:
            raise typer.BadParameter(str(error)) from error
        raise typer.Exit(0 if well else 1)
    nodes = nodes or 5
    now_s = Progress().get_time  # its clock; nothing in this package has one
    started_s = now_s()
    if seed is not None:
        workers = 1
        summary = run_one(seed, nodes, steps, trace)
        for outcome in summary.violations:
            print_failure(outcome, nodes, steps)
    else:
        workers = min(workers, seeds)
        chosen = mixing_versions(first, seeds) if versions else range(first, first + seeds)
        summary = run_many(chosen, nodes, steps, workers)
    print_summary(summary, now_s() - started_s, workers)
    if summary.violations:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
