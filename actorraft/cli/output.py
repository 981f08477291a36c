"""What every subcommand prints, and how it ends: a table for people, JSON for programs, the reason on standard error.

Exit codes: 0 done; 1 refused, or not found out; 2 used wrongly.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from actorraft.errors import ActorRaftError, UsageError

REFUSED: Final = 1
USED_WRONGLY: Final = 2


class Format(StrEnum):
    """How results are printed."""

    table = "table"
    json = "json"


Output = Annotated[Format, typer.Option("--output", "-o", help="A table for people, or JSON for programs.")]


def print_rows(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], output: Format, *, empty: str = "none"
) -> None:
    """Print rows: their `columns` as a table, or all that they hold as JSON."""
    if output is Format.json:
        print_json(list(rows))
        return
    if not rows:
        Console().print(empty, highlight=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    Console().print(table, highlight=False, markup=False)


def print_json(value: Any) -> None:
    """Print a value as JSON; what JSON has no type for as its repr."""
    print(as_json(value, indent=2 if isinstance(value, list) else None))


def as_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON, whatever it is: a machine answers what it likes, and a program is to read it."""
    try:
        text = json.dumps(value, default=_repr, ensure_ascii=False, allow_nan=False, indent=indent)
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # half a character, or one that is not in the terminal's alphabet
        text = json.dumps(value, default=_repr, indent=indent)
    except (ValueError, TypeError, RecursionError):  # a number that is none, a key of another kind, a ring
        text = json.dumps(_repr(value))
    return text


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:  # a guest's own, or it is too large or too deep to be written down
        return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"


def say(text: str) -> None:
    """Print a line for people."""
    Console(soft_wrap=True).print(text, highlight=False, markup=False)


def unread() -> None:
    """Print no more: whoever read it is gone, or its disk is full; and the interpreter's end would fail."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(reason: str, code: int = REFUSED) -> typer.Exit:
    """Say on standard error why it did not work; `raise` what this returns."""
    Console(stderr=True, soft_wrap=True).print(f"actorraft: {reason}", style="red", highlight=False, markup=False)
    return typer.Exit(code)


def warn(what: str) -> None:
    """Say on standard error what may be wrong, and go on."""
    Console(stderr=True, soft_wrap=True).print(f"warning: {what}", style="yellow", highlight=False, markup=False)


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """End a subcommand by its exit code when the library refuses."""
    try:
        yield
    except UsageError as error:
        raise fail(str(error), USED_WRONGLY) from None
    except ActorRaftError as error:
        raise fail(str(error).replace("status()", "actorraft status")) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise fail(f"{where}{error.strerror or error}") from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(map(str, value)) or "-"
    return str(value)
