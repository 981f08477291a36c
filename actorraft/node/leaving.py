"""A clean end: what a node does before it goes, so that nothing is left to replay.

The next start may run other code, and what was acknowledged must not be computed anew by it. So a node that leaves
takes a snapshot first, if anything was applied since the last one. Where all of them leave together, their parent has
them first agree on one index: none takes commands any more, the leader says at which index its log is committed as a
whole, and each takes its snapshot once it has come that far. A failure, a full disk or a machine that is busy delays
nobody beyond a patience that is counted in seconds: the log is all there, and the end is only not a clean one.

Source:     docs/decisions/0027.
Threads:    the node's loop.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, Final

from actorraft.node.driver import Driver
from actorraft.ports import Clock
from actorraft.raft.errors import RaftError
from actorraft.raft.ready import LeaderState

HAND_OVER_S: Final = 2.0  # how long a node that is asked to leave waits for another to lead
WORD_S: Final = 0.1  # how long the parent's word may come after the signal that goes with it
WITH_PARENT_S: Final = 1.5  # ... and for its snapshot, before its parent loses patience
ALONE_S: Final = 10.0  # the same with nobody who waits


class Leaving:
    """How one node ends.

    Args:
        report: tells its parent.
        keeps_data: whether there will be another start after one that was asked for.
        hands_over: hand leadership over first, and let those hear who wait for an answer.
    """

    def __init__(
        self, driver: Driver, clock: Clock, report: Callable[[Any], object], *, keeps_data: bool, hands_over: bool
    ) -> None:
        self._driver = driver
        self._clock = clock
        self._report = report
        self._keeps_data = keeps_data
        self._hands_over = hands_over
        self._hand_over_until_s = self._word_until_s = math.inf
        self._snapshot_since_s = math.inf
        self.asked = False  # by its parent; a signal alone may be anybody's, a command's too
        self._told_end = False  # that it leads, and where the log ends; or nobody wants to know
        self._snapshot_at: int | None = None  # where the parent wants one
        self._begun = False

    # --- All nodes together: the parent says how far it has come ---

    def end(self) -> None:
        """Take no more commands: the log must come to its end."""
        self._driver.requests.closing = True
        self._told_end = False

    def go_on(self) -> None:
        """Take commands again: another node has come back."""
        self._driver.requests.closing = False
        self._snapshot_at, self._begun = None, False

    def snapshot_at(self, index: int) -> None:
        """Take a snapshot once that much is applied, and say so."""
        self._snapshot_at, self._begun = index, False

    def follow(self) -> None:
        """Look how far it is; called after each round of the loop, while no commands are taken."""
        driver, server = self._driver, self._driver.server
        at_end = server.commit_index == len(server.log) - 1 and server.committed_in_own_term
        if not self._told_end and server.state is LeaderState and at_end:
            self._told_end = True
            self._report(("end", server.commit_index))
        snapshots = driver.snapshots
        there = self._snapshot_at is not None and snapshots.handed_index >= self._snapshot_at
        if there and self._is_clean():
            self._snapshot_at = None
            self._report(("ended", snapshots.why_not if snapshots.to_replay else ""))

    def _is_clean(self) -> bool:
        """Whether there is a snapshot of all that was applied, or there will be none now; begins one if need be."""
        snapshots = self._driver.snapshots
        if snapshots.running:
            return False
        if self._begun or not snapshots.to_replay:
            return True
        self._begun = True
        snapshots.begin()
        self._driver.process_events(())
        return not snapshots.running

    # --- One node ---

    def may_leave(self) -> bool:
        """Do what is to be done before the end, and say whether it is done."""
        if self._hands_over and not self._handed_over():
            return False
        if not self._keeps_data:
            # Nobody asked: it is started again, and what had it leave may be a command, to be replayed then.
            if self.asked:
                return True
            if not self._nobody_asks():
                return False
        now_s = self._clock.monotonic()
        if self._snapshot_since_s == math.inf:
            self._snapshot_since_s = now_s
            self._begun = False
        # Its parent waits, if that has asked; and the parent's word may come after the signal.
        patience_s = WITH_PARENT_S if self.asked and not self._hands_over else ALONE_S
        return self._is_clean() or now_s >= self._snapshot_since_s + patience_s

    def _nobody_asks(self) -> bool:
        """Whether the parent's word would have come by now."""
        now_s = self._clock.monotonic()
        self._word_until_s = min(self._word_until_s, now_s + WORD_S)
        return now_s >= self._word_until_s

    def _handed_over(self) -> bool:
        """Hand leadership over first, so that nobody has to find out; and let those hear who wait for an answer."""
        server, now_s = self._driver.server, self._clock.monotonic()
        if self._hand_over_until_s == math.inf:
            self._hand_over_until_s = now_s + HAND_OVER_S
            if server.state is LeaderState and len(server.voters) > 1:
                with contextlib.suppress(RaftError):  # it is under way, or nobody is there to take over
                    server.transfer_leadership()
                self._driver.process_events(())
            elif server.state is LeaderState:  # alone: what it took from here on would come behind its last snapshot
                self._driver.requests.closing = self._told_end = True
        stays = (server.state is LeaderState and len(server.voters) > 1) or self._driver.requests.waiting
        return not stays or now_s >= self._hand_over_until_s
