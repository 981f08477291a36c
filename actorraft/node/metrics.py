"""What a node did, in numbers, for whoever measures it: added to once a write, a message or a batch, never a command.

Shape:     `as_dict()` is plain data, part of a node's status. Counts only grow, and begin at 0 with the process; times
           are seconds of the node's monotonic clock, -1.0 if it did not happen. A histogram is [upper bounds in
           seconds, how many were up to each and above the one before it, how many were above all, their sum].
Threads:   the node's loop.
Not here:  names and units for Prometheus (exposition.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

BOUNDS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
UNDER_WAY_MAX: Final = 10_000  # appended batches whose commit is timed; more are not


class Histogram:
    """How often something took how long.

    Attributes:
        observe: notes one, in seconds. It only keeps the number, since a loop has better to do; `fold` counts them.
    """

    __slots__ = ("_noted", "counts", "observe", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0
        self._noted: list[float] = []
        self.observe: Callable[[float], None] = self._noted.append

    def fold(self) -> None:
        """Count what was noted: once a tick."""
        counts, noted = self.counts, self._noted
        for seconds in noted:
            counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += sum(noted)
        noted.clear()

    def as_list(self) -> list[Any]:
        """Return it as plain data."""
        self.fold()
        return [list(BOUNDS_S), self.counts[:-1], self.counts[-1], self.sum_s]


class Metrics:
    """The numbers of one node."""

    def __init__(self) -> None:
        self.writes = 0  # of the log; with durability="fsync" each ends in one fdatasync
        self.entries_written = 0
        self.appends_sent = 0  # AppendEntries with entries in it, over all followers
        self.entries_sent = 0
        self.leader_changes = 0  # seen by this node: it came to know another leader
        self.leader_lost_s = -1.0  # when this node last ceased to know a leader, and when it came to know one
        self.leader_found_s = -1.0
        self._leader_id: int | None = None
        self._last_leader_id: int | None = None
        self._under_way: deque[tuple[int, float]] = deque()  # (last index of a write at the leader, when it began)
        self.commands: Counter[str] = Counter()  # frames of commands, by what became of them here
        self.reads: Counter[str] = Counter()  # frames of reads, likewise
        self.sync = Histogram()  # one write of the log, with its sync
        self.commit = Histogram()  # at the leader, from the write of entries until they are committed
        self.apply = Histogram()  # from handing committed entries over until they are applied

    def wrote(self, entries: int, took_s: float) -> None:
        """Count one write."""
        self.writes += 1
        self.entries_written += entries
        self.sync.observe(took_s)

    def appended(self, last_index: int, now_s: float) -> None:
        """Note that this leader writes entries up to here."""
        if len(self._under_way) < UNDER_WAY_MAX:
            self._under_way.append((last_index, now_s))

    def committed(self, index: int, now_s: float) -> None:
        """Time what is committed now."""
        under_way = self._under_way
        while under_way and under_way[0][0] <= index:
            self.commit.observe(now_s - under_way.popleft()[1])

    def sent(self, entries: int) -> None:
        """Count one AppendEntries that has entries."""
        self.appends_sent += 1
        self.entries_sent += entries

    def leader_is(self, leader_id: int | None, now_s: float) -> None:
        """Note whom this node holds for the leader."""
        if leader_id == self._leader_id:
            return
        self._leader_id = leader_id
        self._under_way.clear()
        if leader_id is None:
            self.leader_lost_s = now_s
        else:
            self.leader_found_s = now_s
            self.leader_changes += leader_id != self._last_leader_id
            self._last_leader_id = leader_id

    def tick(self) -> None:
        """Count what was timed since the last tick."""
        for one in (self.sync, self.commit, self.apply):
            one.fold()

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        plain: dict[type, Callable[[Any], Any]] = {Histogram: Histogram.as_list, Counter: dict}
        return {
            name: plain[type(value)](value) if type(value) in plain else value
            for name, value in vars(self).items()
            if not name.startswith("_")
        }
