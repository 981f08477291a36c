"""What a node did, in numbers, for whoever measures it: added to once a write, a message or a leader, never a command.

Shape:     `as_dict()` is plain data, part of a node's status. Counts only grow, and begin at 0 with the process; times
           are seconds of the node's monotonic clock, -1.0 if it did not happen.
Threads:   the node's loop.
"""

from __future__ import annotations

from typing import Any


class Metrics:
    """The numbers of one node."""

    def __init__(self) -> None:
        self.writes = 0  # of the log; with durability="fsync" each ends in one fdatasync
        self.entries_written = 0
        self.appends_sent = 0  # AppendEntries with entries in it, over all followers
        self.entries_sent = 0
        self.leader_lost_s = -1.0  # when this node last ceased to know a leader, and when it came to know one
        self.leader_found_s = -1.0
        self._leader_id: int | None = None

    def wrote(self, entries: int) -> None:
        """Count one write."""
        self.writes += 1
        self.entries_written += entries

    def sent(self, entries: int) -> None:
        """Count one AppendEntries that has entries."""
        self.appends_sent += 1
        self.entries_sent += entries

    def leader_is(self, leader_id: int | None, now_s: float) -> None:
        """Note whom this node holds for the leader."""
        if leader_id == self._leader_id:
            return
        self._leader_id = leader_id
        if leader_id is None:
            self.leader_lost_s = now_s
        else:
            self.leader_found_s = now_s

    def as_dict(self) -> dict[str, Any]:
        """Return all of it."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}
