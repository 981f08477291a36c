"""A key-value store: SET, GET and DELETE, with compare-and-set, ranges, bulk writes and expiry.

Keys are anything hashable, values anything that can be sent. `set`, `get` and `delete` on keys that never expire are
one dict operation each and one look at an empty table; everything else pays for itself.

Source:     log time: D§6.3 (sessions expire by it, and so do keys here).
Invariant:  every key of `_expires_at` is a key of `_data`; `_due` holds (time, key) for each of them, and may hold
            others that are out of date, at most as many again. Every key that changed while a snapshot is under way
            is in `_kept` as it was, if it was there.
Shape:      time is log time in seconds (`context().time`): every node removes a key at the same place in the log.
            A query sees the store as of the last entry: a key whose time has come is there until the next one.
Not here:   ordering of keys. `range` and `keys` sort what they return; keep keys of one kind if you use them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from actorraft.machine import StateMachine, command, context, query

SNAPSHOT_KEYS_MAX = 1_000  # keys in one chunk of a snapshot: about a millisecond, for which loop and commands wait
SNAPSHOT_CHUNK_BYTES = 1 << 20  # and of bytes and text among their values, which are large before they are many

_Item = tuple[Any, Any, float | None]  # key, value, when it expires


class KVStore(StateMachine):
    """A replicated dictionary. `KVStore()` in a unit test is a plain object: its methods just run."""

    def __init__(self) -> None:
        self._data: dict[Any, Any] = {}
        self._expires_at: dict[Any, float] = {}
        self._due: list[tuple[float, int, Any]] = []  # a heap; the number keeps keys from being compared
        self._due_count = 0
        self._kept: dict[Any, _Item] | None = None  # what changed since the snapshot that is under way began, as it was

    # -- one key

    @command
    def set(self, key: Any, value: Any) -> bool:
        """Put `value` under `key`, for good; returns True."""
        if self._kept is not None:
            self._keep(key)
        if self._expires_at:
            self._expire()
            self._expires_at.pop(key, None)
        self._data[key] = value
        return True

    @query
    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value under `key`, or `default`."""
        return self._data.get(key, default)

    @command
    def delete(self, key: Any) -> bool:
        """Remove `key`; return whether it was there."""
        if self._kept is not None:
            self._keep(key)
        if self._expires_at:
            self._expire()
            self._expires_at.pop(key, None)
        return self._data.pop(key, _MISSING) is not _MISSING

    @command
    def compare_and_set(self, key: Any, expected: Any, value: Any) -> bool:
        """Put `value` under `key` if `expected` is there now (None: also if nothing is); return whether it did."""
        if self._expires_at:
            self._expire()
        if self._data.get(key) != expected:
            return False
        if self._kept is not None:
            self._keep(key)
        self._expires_at.pop(key, None)
        self._data[key] = value
        return True

    @command
    def increment(self, key: Any, amount: int = 1) -> int:
        """Add to the number under `key` (0 if there is none) and return the sum; keeps the key's expiry."""
        if self._expires_at:
            self._expire()
        if self._kept is not None:
            self._keep(key)
        total: int = self._data.get(key, 0) + amount
        self._data[key] = total
        return total

    # -- expiry, by log time

    @command
    def set_for(self, key: Any, value: Any, seconds: float) -> bool:
        """Put `value` under `key` for `seconds` of log time, counted from this command; returns True.

        Raises:
            ValueError: `seconds` is not above 0.
        """
        if seconds <= 0:
            raise ValueError(f"a key lives for more than 0 seconds, not {seconds!r}")
        self._expire()
        if self._kept is not None:
            self._keep(key)
        self._data[key] = value
        self._expires_at[key] = due = context().time + seconds
        self._due_count += 1
        heapq.heappush(self._due, (due, self._due_count, key))
        if len(self._due) > 2 * len(self._expires_at) + 64:
            self._rebuild_due()
        return True

    @query
    def expires_at(self, key: Any) -> float | None:
        """Return the log time at which `key` will be removed; None if it stays, or is not there."""
        return self._expires_at.get(key)

    @property
    def wake_at(self) -> float | None:
        """Return the log time of the next expiry, None if there is none.

        The leader appends a clock entry when it is due, on an idle cluster too.
        """
        return self._due[0][0] if self._expires_at else None

    def on_clock(self) -> None:
        """Remove what is due; called for a clock entry."""
        self._expire()

    def _rebuild_due(self) -> None:
        """Make the heap anew, of nothing but what is still to come."""
        self._due = [(at, number, key) for number, (key, at) in enumerate(self._expires_at.items())]
        heapq.heapify(self._due)
        self._due_count = len(self._due)

    def _expire(self) -> None:
        """Remove every key whose time has come."""
        due = self._due
        if not due:
            return
        now = context().time
        while due and due[0][0] <= now:
            expires_at, _, key = heapq.heappop(due)
            if self._expires_at.get(key) == expires_at:  # not set again since
                if self._kept is not None:
                    self._keep(key)
                del self._expires_at[key]
                del self._data[key]

    # -- many keys

    @command
    def update(self, pairs: Mapping[Any, Any]) -> int:
        """Put every pair of `pairs`, all in one step; return how many there were."""
        if self._kept is not None:
            for key in pairs:
                self._keep(key)
        if self._expires_at:
            self._expire()
            for key in pairs:
                self._expires_at.pop(key, None)
        self._data.update(pairs)
        return len(pairs)

    @command
    def clear(self) -> int:
        """Remove every key; return how many there were."""
        count = len(self._data)
        self._data, self._expires_at = {}, {}  # new ones: a snapshot under way goes on with the old
        self._kept = None
        self._due.clear()
        return count

    @query
    def get_many(self, keys: list[Any]) -> dict[Any, Any]:
        """Return those of `keys` that are there, with their values, as of one moment."""
        data = self._data
        return {key: data[key] for key in keys if key in data}

    @query
    def range(self, start: Any = None, stop: Any = None, limit: int | None = None) -> list[tuple[Any, Any]]:
        """Return (key, value) for keys in [start, stop), in order; None leaves an end open. Looks at every key.

        Raises:
            ValueError: `limit` is below 0.
        """
        if limit is not None and limit < 0:
            raise ValueError(f"limit is 0 or more, not {limit!r}")
        data = self._data
        inside = (key for key in data if (start is None or key >= start) and (stop is None or key < stop))
        keys = sorted(inside) if limit is None else heapq.nsmallest(limit, inside)
        return [(key, data[key]) for key in keys]

    @query
    def keys(self, start: Any = None, stop: Any = None, limit: int | None = None) -> list[Any]:
        """Return the keys in [start, stop), in order."""
        return [key for key, _ in self.range(start, stop, limit)]

    @query
    def contains(self, key: Any) -> bool:
        """Return whether `key` is there."""
        return key in self._data

    @query
    def size(self) -> int:
        """Return how many keys there are."""
        return len(self._data)

    # -- the whole state

    def snapshot(self) -> Iterator[list[_Item]]:
        """Yield the state in chunks; nothing may change meanwhile."""
        items = iter(self._data.items())
        expires_at = self._expires_at
        while chunk := [(key, value, expires_at.get(key)) for key, value in islice(items, SNAPSHOT_KEYS_MAX)]:
            yield chunk

    def snapshot_while_serving(self) -> Iterator[list[_Item]]:
        """Return such chunks of the state as it is now; commands may run between two of them.

        Takes 10 ms and 8 MB for a million keys. One at a time.
        """
        self._kept = {}
        keys = list(self._data)
        keys.reverse()  # taken from the end, so that the list goes away piece by piece
        chunks = self._chunks(keys, self._data, self._expires_at, self._kept)
        next(chunks)  # into its `try`, for it may be given up before anybody draws from it
        return chunks

    def _chunks(
        self, keys: list[Any], data: dict[Any, Any], expires_at: dict[Any, float], kept: dict[Any, _Item]
    ) -> Iterator[list[_Item]]:
        try:
            yield []
            while keys:
                chunk: list[_Item] = []
                room = SNAPSHOT_CHUNK_BYTES
                for key in keys[: -SNAPSHOT_KEYS_MAX - 1 : -1]:
                    item = kept[key] if key in kept else (key, data[key], expires_at.get(key))
                    chunk.append(item)
                    if type(item[1]) is bytes or type(item[1]) is str:
                        room -= len(item[1])
                        if room <= 0:
                            break
                del keys[-len(chunk) :]
                yield chunk
        finally:
            if self._kept is kept:
                self._kept = None

    def _keep(self, key: Any) -> None:
        """Remember an item before it changes; whoever changes items must call this."""
        if self._kept is not None and key in self._data:
            self._kept.setdefault(key, (key, self._data[key], self._expires_at.get(key)))

    def restore(self, state: Iterable[list[_Item]]) -> None:
        """Take over a state that `snapshot` yielded."""
        self._data, self._expires_at, self._kept = {}, {}, None
        for chunk in state:
            for key, value, expires_at in chunk:
                self._data[key] = value
                if expires_at is not None:
                    self._expires_at[key] = expires_at
        self._rebuild_due()


_MISSING = object()
