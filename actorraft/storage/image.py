"""What the records of a log amount to: replay, and the bookkeeping that a running log keeps instead of its entries.

Invariant: batches are replayed in the order of their sequence numbers, over all segments.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from actorraft.errors import CorruptionError
from actorraft.raft.messages import HardState, LogEntry
from actorraft.storage.records import Compact, Entries, Record, Reset, Start


class LogImage:
    """What the records read so far amount to.

    Invariant: `entries[0].index == known_from`; an index in [first_index, known_from) was held in a segment that is
    gone, which is fine as long as a later record forgets it too (see `complete`).
    """

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.first_index = 0
        self.previous_term = -1
        self.known_from = 0
        self.entries: list[LogEntry] = []

    @property
    def next_index(self) -> int:
        """One more than the last index held."""
        return self.known_from + len(self.entries)

    @property
    def complete(self) -> bool:
        """Whether every entry from `first_index` on is known."""
        return self.known_from <= self.first_index

    def apply(self, record: Record) -> None:
        """Take one more record. Raises CorruptionError if it cannot follow what came before."""
        if isinstance(record, Entries):
            self._append(record)
        elif isinstance(record, HardState):
            self.hard_state = record
        elif isinstance(record, Compact):
            self._compact(record)
        elif isinstance(record, Reset):
            self.first_index = self.known_from = record.first_index
            self.previous_term = record.previous_term
            self.entries = []
        else:
            self._check(record)

    def begin(self, start: Start) -> None:
        """Begin with the oldest segment that is left: its first record stands for all before it."""
        self.hard_state, self.first_index, self.previous_term, self.known_from = start

    def held(self) -> list[LogEntry]:
        """Return the entries from `first_index` on."""
        return self.entries[self.first_index - self.known_from :]

    def _append(self, record: Entries) -> None:
        first = record.first_index
        if first > self.next_index or first < 0:
            raise CorruptionError(f"entries follow at index {first}, but the log ends before index {self.next_index}")
        if first < self.known_from:
            self.known_from = first
            self.entries = []
        del self.entries[first - self.known_from :]
        self.entries += record.entries

    def _compact(self, record: Compact) -> None:
        if record.first_index > self.next_index:
            raise CorruptionError(f"compacted up to {record.first_index}, but the log ends before {self.next_index}")
        self.first_index, self.previous_term = record
        if self.first_index > self.known_from:
            del self.entries[: self.first_index - self.known_from]
            self.known_from = self.first_index

    def _check(self, start: Start) -> None:
        mine = Start(self.hard_state, self.first_index, self.previous_term, self.next_index)
        if start != mine:
            raise CorruptionError(f"a segment begins with {start}, but what is before it amounts to {mine}")


class TermRuns:
    """The term at each index, as runs: a log of a million entries and ten terms takes ten pairs.

    Invariant: `_starts` grows; `_terms[i]` is the term from `_starts[i]` up to the next start. Both begin with -1.
    """

    def __init__(self, previous_index: int = -1, previous_term: int = -1) -> None:
        self._starts = [previous_index]
        self._terms = [previous_term]

    def replace(self, first_index: int, entries: Sequence[LogEntry]) -> None:
        """Cut at `first_index` and go on with these."""
        starts, terms = self._starts, self._terms
        while starts[-1] >= first_index:
            starts.pop()
            terms.pop()
        last = terms[-1]
        for index, entry in enumerate(entries, first_index):
            if entry[0] != last:
                last = entry[0]
                starts.append(index)
                terms.append(last)

    def at(self, index: int) -> int:
        """Return the term at `index`, which must be held or be the one before the first."""
        return self._terms[bisect_right(self._starts, index) - 1]

    def forget(self, first_index: int) -> None:
        """Drop what lies below `first_index - 1`."""
        run = bisect_right(self._starts, first_index - 1) - 1
        del self._starts[:run], self._terms[:run]
        self._starts[0] = first_index - 1
