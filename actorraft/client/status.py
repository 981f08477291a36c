"""What `status()` returns: a row for each member, and a table to print; and tables for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any


@dataclass(frozen=True)
class MemberStatus:
    """One row of `status()`. A member that does not answer has `alive` False or an `error`, never an exception."""

    id: int
    state: str = "unknown"
    term: int = -1
    commit_index: int = -1
    last_applied: int = -1
    lag_entries: int = -1  # behind the highest commit index seen
    endpoint: str = ""
    pid: int | None = None
    alive: bool = False
    error: str | None = None
    address: str = ""  # where other nodes reach it
    version: str = ""  # of the library
    machine_version: int = 0
    links: Mapping[int, float | None] = field(default_factory=dict)  # peer -> None: up; else seconds since it went down
    uptime_s: float = 0.0
    match_index: Mapping[int, int] = field(default_factory=dict)  # at the leader: peer -> the last entry it has
    not_ready: str = ""  # why it should not be sent to yet; "": it should
    not_ready_s: float | None = None  # for how long; None: it is ready
    dropped: Mapping[str, int] = field(default_factory=dict)  # what was not taken, and why: frames, by reason
    slow: Sequence[Mapping[str, Any]] = ()  # the last slow entries: index, method, took_ms
    # free_bytes; reserve_bytes, below which it refuses_writes; full_in_s: seconds until then, None: it does not fill.
    disk: Mapping[str, Any] = field(default_factory=dict)
    # Where it writes backups on a schedule, the last good one (index, time_s, bytes), and the error since, if any.
    backup: Mapping[str, Any] = field(default_factory=dict)


SHOWN = ("id", "state", "term", "commit_index", "last_applied", "lag_entries", "pid", "alive", "error", "endpoint")


class Status(list[MemberStatus]):
    """The rows of `status()`; prints as a table."""

    def _cells(self) -> list[list[str]]:
        return [[str(getattr(row, name)) for name in SHOWN] for row in self]

    def _repr_html_(self) -> str:
        """Show it as a table in a notebook."""
        return html_table(SHOWN, self._cells())

    def __str__(self) -> str:
        rows = [list(SHOWN), *self._cells()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(SHOWN))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )


def html_table(names: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> str:
    """Return a table for notebooks; what is in it is shown as it is."""
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
