"""What `status()` returns: a row for each member, and a table to print."""

from __future__ import annotations

from dataclasses import asdict, dataclass


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


class Status(list[MemberStatus]):
    """The rows of `status()`; prints as a table."""

    def __str__(self) -> str:
        names = [
            "id",
            "state",
            "term",
            "commit_index",
            "last_applied",
            "lag_entries",
            "pid",
            "alive",
            "error",
            "endpoint",
        ]
        rows = [names, *([str(asdict(row)[name]) for name in names] for row in self)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )
