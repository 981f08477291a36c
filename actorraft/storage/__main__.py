"""Looks at a data directory: `python -m actorraft.storage verify PATH`."""

from __future__ import annotations

import sys

from actorraft.errors import UsageError
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
