"""Virtual time: what happens when, in one order that only the seed decides.

Why not threads or asyncio: an event queue of our own is the only scheduler whose every choice comes from the seed.

Shape:      time is in integer microseconds from 0; what is to happen at one instant happens in the order it was put in.
Invariant:  nothing here reads a clock, iterates over a set of strings, or draws from a generator of its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Timeline:
    """The only clock and the only queue of a world."""

    def __init__(self) -> None:
        self.now_us = 0
        self.events = 0  # what nodes, clients and the nemesis took in so far; runs are measured in them
        self._queue: list[tuple[int, int, Callable[[Any], None], Any]] = []
        self._scheduled = 0
        self._instant_ns = 0

    def at(self, at_us: int, action: Callable[[Any], None], argument: Any) -> None:
        """Let something happen at an instant."""
        self._scheduled += 1
        heapq.heappush(self._queue, (at_us, self._scheduled, action, argument))

    def after(self, delay_us: int, action: Callable[[Any], None], argument: Any) -> None:
        """Let something happen later."""
        self.at(self.now_us + delay_us, action, argument)

    def instant(self) -> int:
        """Return nanoseconds that grow with every call: the clock of histories."""
        self._instant_ns = max(self._instant_ns + 1, self.now_us * 1000)
        return self._instant_ns

    def run(self, *, events: int | None = None, until_us: int = 0) -> None:
        """Run until so many events have happened, or until an instant."""
        queue, pop = self._queue, heapq.heappop
        while (self.events < events) if events is not None else (self.now_us < until_us):
            self.now_us, _, action, argument = pop(queue)
            action(argument)
