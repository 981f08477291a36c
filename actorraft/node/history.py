"""What a machine published, kept for those who watch from an earlier entry on; a part of the replicated state.

Bounded in events and in bytes, and cut by whole entries: whoever asks from an entry on gets all of it or is told that
it is no longer there, never a part of an entry. Of one entry that is over a bound by itself nothing is kept.

Invariant:  the same on every node after the same entries.
Shape:      `pieces()` are lists of (index, topic, event), a few hundred each, so that no snapshot encodes all at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import Any, Final

import msgspec

PUBLISHED_MAX: Final = 10_000
PUBLISHED_BYTES_MAX: Final = 16 << 20  # of events as they travel
PIECE_EVENTS: Final = 500

Event = tuple[int, str, Any]  # (index, topic, what was published)

_encode = msgspec.msgpack.Encoder().encode


class History:
    """The newest events.

    Attributes:
        first_index: every event that was published at this index or after it is held.
    """

    def __init__(self, events_max: int = PUBLISHED_MAX, bytes_max: int = PUBLISHED_BYTES_MAX) -> None:
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._entries: deque[tuple[list[Event], int]] = deque()  # the events of one entry, and their bytes
        self.clear()

    def clear(self) -> None:
        """Be as before the first entry."""
        self._entries.clear()
        self._events = self._bytes = 0
        self.first_index = 0

    def extend(self, events: Sequence[Event]) -> None:
        """Add what entries published, in order."""
        for index, entry in groupby(events, key=lambda event: event[0]):
            held = list(entry)
            size = sum(len(_encode(event)) for event in held)
            self._entries.append((held, size))
            self._events += len(held)
            self._bytes += size
            while self._events > self._events_max or self._bytes > self._bytes_max:
                oldest, size = self._entries.popleft()
                self._events -= len(oldest)
                self._bytes -= size
                self.first_index = oldest[0][0] + 1
            assert self.first_index <= index + 1, "what is cut is never newer than what is added"

    def since(self, index: int, topic: str) -> list[Event]:
        """Return what was published to a topic at `index` and after it, as far as it is held."""
        return [event for held, _ in self._entries if held[0][0] >= index for event in held if event[1] == topic]

    def __len__(self) -> int:
        return self._events

    def pieces(self) -> Iterator[list[Event]]:
        """Yield all of it, a piece at a time: as it is now, whatever is added meanwhile."""
        events = (event for held, _ in list(self._entries) for event in held)
        return iter(lambda: list(islice(events, PIECE_EVENTS)), [])

    def restore(self, events: Sequence[Event], first_index: int | None) -> None:
        """Take the place of what is held. `first_index` None: of a snapshot that did not say it (0.1.0)."""
        self.clear()
        if first_index is None:
            first_index = events[0][0] + 1 if len(events) >= self._events_max else 0
        self.first_index = first_index
        self.extend([event for event in events if event[0] >= first_index])
