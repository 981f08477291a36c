"""Looks at data directories, and brings them back.

python -m actorraft.storage verify PATH
python -m actorraft.storage recover PATH --keep 0,3
"""

from __future__ import annotations

import sys

from actorraft.errors import ActorRaftError, UsageError
from actorraft.storage.recover import Plan, recover
from actorraft.storage.verify import Report, verify

try:
    import typer
    from rich.console import Console
    from rich.table import Table
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is missing; install it with: pip install 'actorraft[cli]'")

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Look at what a node keeps on disk.")


@app.callback()
def main() -> None:
    """Look at what a node keeps on disk."""


@app.command(name="verify")
def verify_command(path: str = typer.Argument(help="The folder of a cluster, or of one node.")) -> None:
    """Check every checksum and whether all of it fits together; exit with 1 if anything acknowledged is damaged."""
    console = Console(soft_wrap=True)
    try:
        report = verify(path)
    except UsageError as error:
        Console(stderr=True, soft_wrap=True).print(f"[red]{error}[/]", highlight=False)
        raise typer.Exit(2) from None
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
    keep: str = typer.Option(help="Ids of the nodes to go on with, as in 0,3; their folders must be there and whole."),
    force: bool = typer.Option(False, "--force", help="Also if that gives up nodes that are still whole."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be done."),
) -> None:
    """Make a cluster of the nodes that are left. Exits with 2 if that is refused.

    What the lost nodes alone had acknowledged is gone for good; if the kept ones are a majority, nothing is.
    """
    console, errors = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)
    try:
        kept = [int(part) for part in keep.split(",")]
    except ValueError:
        errors.print(f"--keep takes ids of nodes with commas between, as in 0,3; not {keep}", style="red", markup=False)
        raise typer.Exit(2) from None
    try:
        plan = recover(path, kept, dry_run=True)
        _explain(plan, console)
        if dry_run:
            console.print("nothing was changed")
            if plan.danger:
                errors.print(f"would be refused: {plan.danger}", style="red", markup=False)
            raise typer.Exit(2 if plan.danger and not force else 0)
        recover(path, kept, force=force)
    except ActorRaftError as error:
        errors.print(str(error), style="red", markup=False)
        raise typer.Exit(2) from None
    console.print(f"[green]done[/]: spawn(data_dir=...) starts {len(plan.keep)} nodes; add_node() adds to them")


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
