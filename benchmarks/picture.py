"""The README's picture, commits and failover beside others: `python -m benchmarks.picture`.

It draws rows as `--json` of throughput and of election writes them; those of the run that the README names are in
docs/figures.json.
"""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import screen

DOCS = Path(__file__).resolve().parent.parent / "docs"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw commits a second by the number outstanding, and from the death of a leader to the next commit."""
    commits = [row for row in rows if row["benchmark"] == "throughput" and row["operation"] == "set"]
    elections = [row for row in rows if row["benchmark"] == "election"]
    systems = list(dict.fromkeys(row["label"] for row in commits))
    outstanding = sorted({row["concurrency"] for row in commits})
    with screen.picture(path, 2) as (rates, failover):
        width = 0.8 / len(systems)
        for number, system in enumerate(systems):
            rate = {row["concurrency"]: row["commits_per_s"] for row in commits if row["label"] == system}
            places = [place + (number - (len(systems) - 1) / 2) * width for place in range(len(outstanding))]
            bars = rates.bar(places, [rate[each] for each in outstanding], width, label=system)
            rates.bar_label(bars, [f"{rate[each]:,.0f}" for each in outstanding], fontsize=7, rotation=90, padding=2)
        rates.set(yscale="log", ylabel="commits a second", xlabel="commands outstanding", ylim=(100, 1_000_000))
        rates.set_xticks(range(len(outstanding)), [f"{each:,}" for each in outstanding])
        rates.legend(fontsize="small", loc="upper left")
        names = [row["label"] for row in elections]
        bars = failover.barh(names, [row["p50_ms"] for row in elections])
        said = [f" {row['p50_ms']:,.0f} ms (longest {row['max_ms']:,.0f})" for row in elections]
        failover.bar_label(bars, said, fontsize=8)
        failover.set(xscale="log", xlim=(1, 30_000), xlabel="from SIGKILL of the leader to the next commit, ms")
        failover.invert_yaxis()


def main(
    rows: Annotated[Path, typer.Argument(help="Rows as --json has them, and labels.")] = DOCS / "figures.json",
    out: Annotated[Path, typer.Option(help="Where the picture goes.")] = DOCS / "figures.png",
) -> None:
    """Draw the picture of the README."""
    screen.finish(jsonlib.loads(rows.read_text()), (), None, out, draw)


if __name__ == "__main__":
    typer.run(main)
