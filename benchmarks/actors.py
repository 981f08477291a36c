"""How fast actors are, beside other frameworks of actors in the same run.

    python -m benchmarks.actors
    python -m benchmarks.actors --compare thespian,xoscar,ray,pykka --json actors.json

Each framework runs in a process of its own, one after another, each with the same ladder: ask and tell, 64 and 1,000
outstanding, arrays of 1 KB to 10 MB, a pipeline of three actors, and the start of 100 (others/actor_systems.py). One
that is not installed is named, with what to install.
"""

from __future__ import annotations

import json as jsonlib
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from benchmarks.deployment import ROOT
from benchmarks.screen import console, names

OTHERS = ("thespian", "xoscar", "ray", "pykka")
PATIENCE_S = 300.0


def measure(system: str, seconds: float) -> list[dict[str, Any]]:
    """Return one framework's rows; what it could not do is missing, and said."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.others.actor_systems", system, str(seconds)]
    with console.status(f"{system} …"):
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_S)
            out, err, code = done.stdout, done.stderr, done.returncode
        except subprocess.TimeoutExpired as late:
            out, err, code = (late.stdout or b"").decode(), f"it took more than {PATIENCE_S:.0f} s", 1
    rows = [jsonlib.loads(line) for line in out.splitlines() if line.startswith('{"what"')]
    if code != 0:
        last = (err.strip().splitlines() or ["no word"])[-1]
        console.print(f"{system}: {last if code == 3 else f'ended after {len(rows)} figures: {last}'}", markup=False)
    return [{"benchmark": "actors", "system": system, **row} for row in rows]


def show(rows: list[dict[str, Any]], systems: list[str]) -> None:
    """Print a table with a column for each framework."""
    table = Table(title="Actors, 200-byte messages")
    table.add_column("what")
    table.add_column("unit")
    for system in systems:
        table.add_column(system, justify="right")
    found = {(row["what"], row["system"]): row for row in rows}
    for what in dict.fromkeys(row["what"] for row in rows):
        cells = [found.get((what, system)) for system in systems]
        unit = next(cell["unit"] for cell in cells if cell is not None)
        table.add_row(what, unit, *("–" if cell is None else f"{cell['value']:,.1f}" for cell in cells))
    console.print(table)


def main(
    compare: Annotated[str, typer.Option(help=f"also measure these: {','.join(OTHERS)}")] = "",
    seconds: Annotated[float, typer.Option(help="for each figure", min=0.1)] = 1.0,
    json: Annotated[Path | None, typer.Option(help="write the rows to this file")] = None,
) -> None:
    """Measure actors."""
    systems = ["actorraft", *names(compare, "--compare", OTHERS)]
    rows = [row for system in systems for row in measure(system, seconds)]
    show(rows, systems)
    if json is not None:
        json.write_text(jsonlib.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
