"""What a benchmark shows: options in, a bar while it runs, a table at the end."""

from __future__ import annotations

import json as jsonlib
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks import measure
from benchmarks.deployment import CACHE

console = Console(soft_wrap=False)
if not console.is_terminal:
    console = Console(width=130)


def numbers(text: str, option: str, least: int = 1) -> list[int]:
    """Read "1,64,1000".

    Raises:
        typer.BadParameter: that is no list of whole numbers, or one is below `least`.
    """
    try:
        values = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise typer.BadParameter(f"{option} takes whole numbers with commas between, as 1,64, not {text!r}") from None
    if not values or min(values) < least:
        raise typer.BadParameter(f"{option} takes whole numbers of at least {least}, not {text!r}")
    return values


def names(text: str, option: str, allowed: Sequence[str]) -> list[str]:
    """Read "fsync,os"; an empty text or "none" is none.

    Raises:
        typer.BadParameter: one is not among those allowed.
    """
    values = [part.strip() for part in text.split(",") if part.strip() and part.strip() != "none"]
    for value in values:
        if value not in allowed:
            raise typer.BadParameter(f"{option} takes {', '.join(allowed)}, not {value!r}")
    return values


class Bar:
    """A bar over seconds of measuring; on no terminal, a line a row instead."""

    def __init__(self, progress: Progress, total_s: float) -> None:
        self.progress = progress
        self.task = progress.add_task("starting", total=total_s)

    def say(self, text: str) -> None:
        """Say what runs now."""
        self.progress.update(self.task, description=text)

    def advance(self, seconds: float) -> None:
        """So much of the work is done."""
        self.progress.advance(self.task, seconds)

    def note(self, text: str) -> None:
        """Say what was found; only where there is no bar to see."""
        if not console.is_terminal:
            console.print(text, highlight=False)


@contextmanager
def bar(total_s: float) -> Iterator[Bar]:
    """Show a bar while the block runs."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, total_s)


def heading(title: str) -> None:
    """Say what is run on what: figures mean nothing without it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    floor = measure.fdatasync_ms(CACHE)
    console.print(
        f"[bold]{title}[/bold] · Python {platform.python_version()}, {measure.built()} · {measure.cores()} cores · "
        f"data on {measure.filesystem(CACHE)}, where an append with fdatasync takes {floor:.3f} ms (median)",
        highlight=False,
    )


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; columns after the words are numbers, to the right."""
    shown = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        words = all(not row[number][:1].isdigit() for row in rows)
        shown.add_column(column, justify="left" if words else "right", no_wrap=words)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)


def figure(value: float | None, digits: int = 2) -> str:
    """Return a number for a table: thousands apart, a dash for none."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.{digits}f}"


def number_or_none(value: float, digits: int = 3) -> float | None:
    """Return a number as JSON has it: rounded; nothing measured is null."""
    return None if math.isnan(value) else round(value, digits)


@contextmanager
def picture(path: Path, panels: int) -> Iterator[Sequence[Any]]:
    """Let the block draw on so many panels side by side; the picture is written after it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(1, panels, figsize=(6.5 * panels, 5.5), layout="constrained", squeeze=False)
    yield axes[0]
    for each in axes[0]:
        each.grid(visible=True, which="both", alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=120)
    pyplot.close(drawn)


def finish(
    rows: list[dict[str, Any]],
    failures: Sequence[str] = (),
    json: Path | None = None,
    plot: Path | None = None,
    draw: Callable[[list[dict[str, Any]], Path], None] | None = None,
) -> None:
    """Write what was asked for, say what failed, and end with 1 if anything did."""
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(jsonlib.dumps(rows, indent=1, allow_nan=False) + "\n")
        console.print(f"written: {json}", highlight=False)
    if plot is not None and draw is not None:
        draw(rows, plot)
        console.print(f"written: {plot}", highlight=False)
    for failure in failures:
        console.print(f"[red]failed: {escape(failure)}[/red]", highlight=False)
    if failures:
        raise typer.Exit(1)


def warn(text: str) -> None:
    """Say what is not as it was asked for."""
    console.print(f"[yellow]{text}[/yellow]", highlight=False)
