"""The log of one node: a sequence of entries addressed by absolute index, cut off below by compaction.

A late or repeated message must never shorten the log, so entries are compared one by
one and the log is cut only where an entry really differs (Figure 2, AppendEntries 3 and 4).

Source:     Raft §5.3 (log matching), §7 (compaction).
Invariant:  entries are contiguous from `first_index`; terms never fall along the log.
Shape:      indexes are 0-based and absolute, -1 is before the first entry; ranges are half-open, `[first, stop)`.
Not here:   what is durable or committed; see server.py.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from operator import attrgetter
from typing import Any, overload

from actorraft.raft.errors import Compacted
from actorraft.raft.messages import EntryId, LogEntry

ITEM_BYTES_DEFAULT = 64  # what an item that is not bytes (a configuration, a no-op, a test's string) counts for

_term_of = attrgetter("term")


def item_bytes(item: object) -> int:
    """Return what `item` counts for in every bound on bytes."""
    return len(item) if isinstance(item, bytes) else ITEM_BYTES_DEFAULT


class RaftLog(Sequence[LogEntry]):
    """Entries by absolute index.

    `len(log)` is the last index + 1, also after compaction. Asking for a compacted entry
    raises `Compacted`. Iteration and `==` cover what is held. As in any sequence, a
    negative index counts from the end.
    """

    __slots__ = ("_entries", "first_index", "last_index", "previous_term")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, entries: Iterable[LogEntry] = (), *, first_index: int = 0, previous_term: int = -1) -> None:
        """Hold `entries` from `first_index` on.

        Args:
            entries: contiguous; the first one has index `first_index`.
            first_index: what lies below it is compacted.
            previous_term: term of the entry at first_index - 1; -1 if first_index is 0.
        """
        self._entries = list(entries)
        # Plain attributes, as they are looked at for every message; only this class changes them.
        self.first_index = first_index  # of the first entry held, or that the next one will have
        self.last_index = first_index + len(self._entries) - 1  # of the last entry; -1 if there never was one
        self.previous_term = previous_term  # of the entry at first_index - 1; -1 if there is none

    # -- the sequence

    def __len__(self) -> int:
        return self.last_index + 1

    @overload
    def __getitem__(self, index: int) -> LogEntry: ...
    @overload
    def __getitem__(self, index: slice) -> list[LogEntry]: ...
    def __getitem__(self, index: int | slice) -> LogEntry | list[LogEntry]:
        if isinstance(index, slice):
            return self._slice(index)
        length = self.last_index + 1
        if index < 0:
            index += length
        if not 0 <= index < length:
            raise IndexError(f"log index {index} is out of range; the log ends at {length - 1}")
        if index < self.first_index:
            raise Compacted(index, self.first_index)
        return self._entries[index - self.first_index]

    def _slice(self, index: slice) -> list[LogEntry]:
        start, stop, step = index.indices(len(self))
        first = self.first_index
        if step != 1:
            held = range(start, stop if index.stop is not None or step > 0 else max(stop, first - 1), step)
            return [self[position] for position in held if position >= first or index.start is not None]
        if index.start is None:
            start = max(start, first)
        if start >= stop:
            return []
        if start < first:
            raise Compacted(start, first)
        return self._entries[start - first : stop - first]

    def __iter__(self) -> Iterator[LogEntry]:
        return iter(self._entries)

    def __reversed__(self) -> Iterator[LogEntry]:
        yield from reversed(self._entries)

    def __contains__(self, entry: object) -> bool:
        return entry in self._entries

    def __eq__(self, other: object) -> bool:
        if isinstance(other, RaftLog):
            return self.first_index == other.first_index and self._entries == other._entries
        if isinstance(other, list):
            return self._entries == other
        return NotImplemented

    def __repr__(self) -> str:
        return f"RaftLog({self._entries!r}, first_index={self.first_index}, previous_term={self.previous_term})"

    # -- what it holds

    @property
    def last(self) -> EntryId:
        """Identity of the last entry; `NO_ENTRY` if there never was one (§5.4.1)."""
        if self._entries:
            return EntryId(self._entries[-1].term, self.last_index)
        return EntryId(self.previous_term, self.first_index - 1)

    def term_at(self, index: int) -> int:
        """Return the term of the entry at `index`; -1 for index -1.

        Also known for `first_index - 1`, the last compacted entry.

        Raises:
            Compacted: the index lies below that.
            IndexError: the index lies beyond the log.
        """
        position = index - self.first_index
        if position >= 0:
            if position >= len(self._entries):
                raise IndexError(f"log index {index} is out of range; the log ends at {self.last_index}")
            return self._entries[position].term
        if position == -1:
            return self.previous_term
        if index == -1:
            return -1
        raise Compacted(index, self.first_index)

    def match(self, index: int, term: int) -> bool:
        """Return whether this log is known to hold the entry (`index`, `term`) (§5.3); -1 is in every log."""
        if index == -1:
            return True
        position = index - self.first_index
        if position >= 0:
            return position < len(self._entries) and self._entries[position].term == term
        return position == -1 and self.previous_term == term

    def slice(self, first: int, stop: int, bytes_max: int) -> tuple[list[LogEntry], int]:
        """Return entries of `[first, stop)` within `bytes_max`, and their bytes; at least one entry if there is one.

        Raises:
            Compacted: `first` is compacted.
        """
        if first < self.first_index:
            raise Compacted(first, self.first_index)
        start = first - self.first_index
        total = 0
        entries = self._entries[start : max(stop - self.first_index, start)]
        for position, entry in enumerate(entries):
            item = entry.item
            size = len(item) if isinstance(item, bytes) else ITEM_BYTES_DEFAULT
            if total + size > bytes_max and position:
                return entries[:position], total
            total += size
        return entries, total

    def between(self, first: int, stop: int) -> list[LogEntry]:
        """Return the entries of `[first, stop)`, all of which must be held."""
        return self._entries[first - self.first_index : stop - self.first_index]

    # -- what changes it

    def append(self, entry: LogEntry) -> int:
        """Add `entry` at the end and return its index."""
        self._entries.append(entry)
        self.last_index += 1
        return self.last_index

    def append_entries(self, prev_index: int, prev_term: int, entries: Sequence[LogEntry]) -> bool:
        """Append `entries` after the entry (`prev_index`, `prev_term`); return whether the log holds that entry (§5.3).

        Idempotent: entries that are there already change nothing, and an entry that differs
        is removed with all that follow it. A prefix of `entries` that is compacted here was
        committed, so it agrees, and is passed over.
        """
        passed = self.first_index - 1 - prev_index
        if passed > 0 and prev_index >= -1:
            if passed > len(entries):
                return True
            prev_index, prev_term, entries = self.first_index - 1, entries[passed - 1].term, entries[passed:]
        if prev_index < -1 or not self.match(prev_index, prev_term):
            return False
        self.merge(prev_index + 1, entries)
        return True

    def conflict(self, first: int, entries: Sequence[LogEntry]) -> int | None:
        """Return the first index at which this log lacks or contradicts `entries`; None if it holds them all.

        Args:
            first: index of `entries[0]`; at least `first_index`, at most the last index + 1.
        """
        start = first - self.first_index
        held = self._entries
        assert 0 <= start <= len(held), f"entries at {first} leave a hole after {self.last_index}"
        common = min(len(entries), len(held) - start)
        for offset in range(common):
            if held[start + offset].term != entries[offset].term:
                return first + offset
        return first + common if common < len(entries) else None

    def merge(self, first: int, entries: Sequence[LogEntry]) -> int | None:
        """Make this log hold `entries` at `first`, cutting it at the first contradiction; return where it changed."""
        changed = self.conflict(first, entries)
        if changed is not None:
            self._entries[changed - self.first_index :] = entries[changed - first :]
            self.last_index = first + len(entries) - 1
        return changed

    def find_by_term(self, index: int, term: int) -> EntryId:
        """Return the last entry at or below `index` whose term is at most `term`.

        Both sides skip a whole conflicting term at once with this (§5.3, the optimisation at
        its end). Terms never fall along the log, so it is a binary search. An entry that may
        lie further down than this log knows comes back with term -1.
        """
        first = self.first_index
        index = min(index, self.last_index)
        if index < first - 1:
            return EntryId(-1, index)
        found = bisect_right(self._entries, term, 0, index - first + 1, key=_term_of)
        if found:
            return EntryId(self._entries[found - 1].term, first + found - 1)
        if self.previous_term <= term:
            return EntryId(self.previous_term, first - 1)
        return EntryId(-1, first - 2)

    def compact(self, first_index: int) -> None:
        """Forget entries below `first_index`; keeps the term of the last one forgotten (§7)."""
        assert first_index <= len(self), f"compacting to {first_index}, beyond the last index {self.last_index}"
        if first_index <= self.first_index:
            return
        self.previous_term = self.term_at(first_index - 1)
        del self._entries[: first_index - self.first_index]
        self.first_index = first_index

    def count_within(self, bytes_max: int, last_index: int) -> int:
        """Return how many entries up to and with `last_index` are held and together have at most `bytes_max` bytes."""
        count = 0
        for entry in reversed(self._entries[: max(0, last_index + 1 - self.first_index)]):
            bytes_max -= item_bytes(entry.item)
            if bytes_max < 0:
                break
            count += 1
        return count

    def reset(self, snapshot_id: EntryId) -> None:
        """Forget everything; the next entry comes after `snapshot_id` (§7)."""
        self._entries = []
        self.first_index = snapshot_id.index + 1
        self.last_index = snapshot_id.index
        self.previous_term = snapshot_id.term


def append_entries(
    log: MutableSequence[Any] | RaftLog, prev_index: int, prev_term: int, entries: Sequence[Any]
) -> bool:
    """Append entries to any list of entries with a `term`; return True if it worked, False otherwise.

    Implements the log matching properties of §5.3: the log never gets a hole, the entry
    before the new ones must agree, and a conflicting entry goes together with all that
    follow it. Calling it again with the same or fewer entries changes nothing.

    Args:
        log: a list (or a `RaftLog`), changed in place.
        prev_index: index of the entry just before `entries`; -1 for none.
        prev_term: its term; ignored for -1.
    """
    if isinstance(log, RaftLog):
        return log.append_entries(prev_index, prev_term, entries)
    if not -1 <= prev_index < len(log):
        return False
    if prev_index >= 0 and log[prev_index].term != prev_term:
        return False
    for index, entry in enumerate(entries, prev_index + 1):
        if index >= len(log) or log[index].term != entry.term:
            log[index:] = entries[index - prev_index - 1 :]
            break
    return True
