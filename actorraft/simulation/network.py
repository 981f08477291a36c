"""A network in virtual time: it delays, drops, repeats, reorders and cuts, and says when a connection breaks.

Without faults a link is like a TCP connection: in order, nothing lost, some hundred microseconds. Faults are the ways
in which real links are worse. Links between a client and a node are connections too: they lose and delay, but never
repeat a frame.

Shape:      a link is (source, dest); a cut has a direction, so one-way cuts are cuts without their counterpart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from actorraft.simulation.timeline import Timeline


class SimNetwork:
    """Says when, how often, and whether a message arrives."""

    def __init__(self, timeline: Timeline, rng: Random) -> None:
        self.timeline = timeline
        self.rng = rng
        self.delay_us = (100, 600)
        self.drop = 0.0  # probabilities
        self.duplicate = 0.0
        self.reorder = 0.0  # a message that is held back for up to `late_us` while others pass it
        self.late_us = 60_000
        self.cut: set[tuple[int, int]] = set()
        self.full: set[int] = set()  # who does not read: what is sent there is dropped
        self.counts: Counter[str] = Counter()
        self._last: dict[tuple[int, int], int] = {}  # link -> arrival of the last message that kept its place

    def carry(
        self,
        source: int,
        dest: int,
        action: Callable[[Any], None],
        argument: Any,
        *,
        later_us: int = 0,
        peers: bool = True,
    ) -> bool:
        """Let what is sent in `later_us` arrive: `action(argument)` happens then, as often; False if it never does."""
        arrivals = self.arrivals(source, dest, self.timeline.now_us + later_us, peers=peers)
        for at_us in arrivals:
            self.timeline.at(at_us, action, argument)
        return bool(arrivals)

    def arrivals(self, source: int, dest: int, now_us: int, *, peers: bool = True) -> tuple[int, ...]:
        """Return the instants (microseconds) at which a message sent now arrives; none if it is lost."""
        link = (source, dest)
        if link in self.cut:
            self.counts["cut off"] += 1
            return ()
        random = self.rng.random
        if self.drop and random() < self.drop:
            self.counts["dropped"] += 1
            return ()
        low, high = self.delay_us
        at = now_us + low + int(random() * (high - low))
        if self.reorder and peers and random() < self.reorder:
            self.counts["reordered"] += 1
            return (at + int(random() * self.late_us),)
        last = self._last.get(link, 0)
        if at <= last:
            at = last + 1
        self._last[link] = at
        if self.duplicate and peers and random() < self.duplicate:
            self.counts["duplicated"] += 1
            return at, at + int(random() ** 4 * self.late_us)  # mostly soon after
        return (at,)

    def cut_link(self, source: int, dest: int) -> None:
        """Let nothing through in one direction."""
        self.cut.add((source, dest))

    def cut_between(self, one: Iterable[int], other: Iterable[int]) -> None:
        """Let nothing through between two sets of nodes."""
        others = list(other)
        for source in one:
            for dest in others:
                if source != dest:
                    self.cut.add((source, dest))
                    self.cut.add((dest, source))

    def heal(self) -> None:
        """Mend all links and behave."""
        self.cut.clear()
        self.full.clear()
        self.drop = self.duplicate = self.reorder = 0.0
        self.delay_us = (100, 600)
