"""Looks at data directories, and brings them back.

python -m actorraft.storage verify PATH
python -m actorraft.storage recover PATH --show
python -m actorraft.storage recover PATH --keep 0,3
python -m actorraft.storage show PATH --index 17
python -m actorraft.storage skip PATH --index 17 --checksum 5d41402a
python -m actorraft.storage upgrade PATH
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated, Any, Literal

from actorraft.errors import ActorRaftError, UsageError
from actorraft.storage.directory import data_folder
from actorraft.storage.recover import Plan, Survivor, look, recover
from actorraft.storage.show import show
from actorraft.storage.skips import skip
from actorraft.storage.upgrade import upgrade
from actorraft.storage.verify import Report, verify

try:
    import typer
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is missing; install it with: pip install 'actorraft[cli]'")

Output = Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="table or json.")]
app = typer.Typer(add_completion=False, no_args_is_help=True, help="Look at what a node keeps on disk.")


@app.callback()
def main() -> None:
    """Look at what a node keeps on disk."""


@app.command(name="verify")
def verify_command(
    path: str = typer.Argument(help="The folder of a cluster, or of one node."), output: Output = "table"
) -> None:
    """Check every checksum and whether all of it fits together; exit with 1 if anything acknowledged is damaged."""
    console = Console(soft_wrap=True)
    try:
        report = verify(data_folder(path))
    except UsageError as error:
        Console(stderr=True, soft_wrap=True).print(str(error), style="red", markup=False, highlight=False)
        raise typer.Exit(2) from None
    if output == "json":
        print(json.dumps(_told(report), indent=2))
        raise typer.Exit(0 if report.ok else 1)
    console.print(_table(report))
    for finding in report.findings:
        word = "[yellow]warning[/]" if finding.warning else "[red]damage[/]"
        console.print(f"{word}: ", end="")
        console.print(
            finding.text if str(finding.path) in finding.text else f"{finding.path}: {finding.text}", markup=False
        )
    console.print("[green]good[/]" if report.ok else "[red]not good[/]")
    raise typer.Exit(0 if report.ok else 1)


@app.command(name="recover")
def recover_command(
    path: str = typer.Argument(help="The folder of a cluster that lost a majority of its nodes."),
    keep: str = typer.Option("", help="Ids of the nodes to go on with, as in 0,3; their folders are there and whole."),
    show: bool = typer.Option(False, "--show", help="Only say what each folder holds, to compare before choosing."),
    force: bool = typer.Option(False, "--force", help="Also if that gives up nodes that are still whole."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be done."),
    output: Output = "table",
) -> None:
    """Make a cluster of the nodes that are left. Exits with 2 if that is refused.

    What the lost nodes alone had acknowledged is gone for good; if the kept ones are a majority, nothing is. What comes
    of it is a new cluster, with a new id: what is left of the old one elsewhere is not heard.
    """
    console, errors = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)
    if show:
        _show_survivors(path, console, errors, output)
        return
    if not keep:
        errors.print("--keep names the nodes to go on with, as in 0,3; --show says what there is", style="red")
        raise typer.Exit(2)
    try:
        kept = [int(part) for part in keep.split(",")]
    except ValueError:
        errors.print(f"--keep takes ids of nodes with commas between, as in 0,3; not {keep}", style="red", markup=False)
        raise typer.Exit(2) from None
    try:
        plan = recover(path, kept, dry_run=True)
        if output == "table":
            _explain(plan, console)
        if dry_run:
            _say_done(plan, output, "nothing was changed", console)
            if plan.danger:
                errors.print(f"would be refused: {plan.danger}", style="red", markup=False)
            raise typer.Exit(2 if plan.danger and not force else 0)
        plan = recover(path, kept, force=force)
    except ActorRaftError as error:
        errors.print(str(error), style="red", markup=False)
        raise typer.Exit(2) from None
    done = f"[green]done[/]: this is cluster {plan.cluster_id} now; spawn(data_dir=...) starts {len(plan.keep)} nodes; "
    _say_done(plan, output, done + "add_node() adds to them", console)


def _say_done(plan: Plan, output: str, words: str, console: Console) -> None:
    if output == "json":
        said = {
            "kept": list(plan.keep),
            "unreadable": plan.unreadable,
            "may_lose": plan.may_lose,
            "danger": plan.danger,
        }
        print(json.dumps({"cluster_id": plan.cluster_id, **said}))
    else:
        console.print(words, highlight=False)


def survivor_row(survivor: Survivor) -> dict[str, Any]:
    """Return what a folder holds, for programs that compare several."""
    return {
        "node_id": survivor.node_id,
        "cluster_id": survivor.cluster_id,
        "term": survivor.last.term,
        "index": survivor.last.index,
        "checksum": survivor.checksum,
        "known_term": survivor.hard_state.term,
    }


def _show_survivors(path: str, console: Console, errors: Console, output: str) -> None:
    try:
        survivors, unreadable = look(path)
    except ActorRaftError as error:
        errors.print(str(error), style="red", markup=False)
        raise typer.Exit(2) from None
    if output == "json":
        print(json.dumps([survivor_row(survivor) for survivor in survivors], indent=2))
    for survivor in survivors if output == "table" else ():
        console.print(survivor.words, markup=False, highlight=False)
    for node_id, reason in unreadable.items():
        (errors if output == "json" else console).print(
            f"node {node_id} cannot be read: {reason}", markup=False, highlight=False
        )


@app.command(name="show")
def show_command(
    path: str = typer.Argument(help="The folder of a cluster, or of one node."),
    index: int | None = typer.Option(None, "--index", help="One entry."),
    first: int | None = typer.Option(None, "--from", help="Entries from this one on."),
    last: int | None = typer.Option(None, "--to", help="Entries up to this one."),
    arguments: bool = typer.Option(False, "--arguments", help="Also what the commands were given."),
    output: Output = "table",
) -> None:
    """Say what entries of the log are. Exits with 1 if there is none, with 2 if it is asked wrongly."""
    errors = Console(stderr=True, soft_wrap=True)
    if index is not None and (first is not None or last is not None):
        errors.print("--index is one entry, --from and --to are several: give one or the other", style="red")
        raise typer.Exit(2)
    begin, end = (index, index) if index is not None else (first or 0, last)
    try:
        shown = show(data_folder(path), begin, end, arguments=arguments)
    except ActorRaftError as error:
        errors.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None
    if output == "json":
        names = ("term", "index", "client", "method", "size", "checksum", "nodes")
        rows = [{**asdict(one), "size": one.size_bytes} for one in shown]
        told = [{name: row[name] for name in (*names, *(("arguments",) if arguments else ()))} for row in rows]
        print(json.dumps(told, indent=2))
        return
    table = Table()
    for name in ("term", "index", "client", "method", "size", "checksum", "nodes"):
        table.add_column(name, no_wrap=name != "method")
    if arguments:
        table.add_column("arguments")
    for one in shown:
        client = "-" if one.client is None else str(one.client)
        row = [str(one.term), str(one.index), client, one.method, str(one.size_bytes), one.checksum]
        row.append(", ".join(map(str, one.nodes)))
        if arguments:
            row.append("\n".join(one.arguments))
        table.add_row(*(Text(cell) for cell in row))
    Console(soft_wrap=True).print(table)


@app.command(name="skip")
def skip_command(
    path: str = typer.Argument(help="The folder of a cluster, or of one node; nothing may run on it."),
    index: int = typer.Option(help="The entry that is to change nothing."),
    checksum: str = typer.Option(help="Its checksum, as `show` prints it."),
    output: Output = "table",
) -> None:
    """Go past an entry that cannot be applied: every node passes it by. Exits with 1 if that is refused.

    Its commands fail with CommandFailed. What may have been answered already is not skipped.
    """
    errors = Console(stderr=True, soft_wrap=True)
    try:
        shown, folders = skip(data_folder(path), index, checksum)
    except ActorRaftError as error:
        errors.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None
    if output == "json":
        print(json.dumps({"index": index, "checksum": checksum, "folders": [str(folder) for folder in folders]}))
        return
    names = ", ".join(folder.name for folder in folders)
    print(f"{shown.words} will be skipped by {names}. Folders that are elsewhere need the same line.")


@app.command(name="upgrade")
def upgrade_command(path: str = typer.Argument(help="The folder of a cluster; nothing may run on it.")) -> None:
    """Take out code by value, so that another minor version of Python opens it. Exits with 2 if that is refused.

    Clients that were connected begin anew. What the state itself is made of cannot be taken out, and is named.
    """
    try:
        done = upgrade(path)
    except ActorRaftError as error:
        Console(stderr=True, soft_wrap=True).print(str(error), style="red", markup=False)
        raise typer.Exit(2) from None
    for what in done.removed:
        print(f"out: {what}")
    said = f"every node begins from a snapshot at index {done.index}" if done.index >= 0 else "nothing was to be done"
    print(f"{said}; this opens under any minor version of Python that ActorRaft runs on")


def _explain(plan: Plan, console: Console) -> None:
    was = plan.configuration
    console.print(f"voters were {sorted(was.voters)}; readable are {list(plan.readable)}", markup=False)
    for node_id, reason in plan.unreadable.items():
        console.print(f"node {node_id} cannot be read: {reason}", markup=False)
    console.print(
        f"kept are {list(plan.keep)}, with the log of node {plan.best.node_id}, which ends at index "
        f"{plan.best.last.index} of term {plan.best.last.term}",
        markup=False,
    )
    if plan.may_lose:
        console.print("[yellow]acknowledged commands may be lost[/]: the kept nodes are no majority of the voters")
    else:
        console.print("nothing acknowledged is lost: the kept nodes are a majority of the voters")


def _told(report: Report) -> dict[str, Any]:
    nodes = [
        {
            "folder": str(node.path),
            "term": node.hard_state.term,
            "voted_for": node.hard_state.voted_for,
            "first_index": node.first_index,
            "next_index": node.next_index,
            "segments": node.segments,
            "snapshots": [{"term": term, "index": index} for term, index in node.snapshots],
        }
        for node in report.nodes
    ]
    findings = [{**asdict(finding), "path": str(finding.path)} for finding in report.findings]
    return {"good": report.ok, "nodes": nodes, "findings": findings}


def _table(report: Report) -> Table:
    table = Table("folder", "term", "voted for", "log", "segments", "snapshots")
    for node in report.nodes:
        term, voted_for = node.hard_state
        table.add_row(
            node.path.name,
            str(term),
            "-" if voted_for is None else str(voted_for),
            f"[{node.first_index}, {node.next_index})".replace("[", r"\["),
            str(node.segments),
            ", ".join(f"{index} (term {snapshot_term})" for snapshot_term, index in node.snapshots) or "-",
        )
    return table


if __name__ == "__main__":
    app()
