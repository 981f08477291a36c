"""What happened at a node, kept for whoever asks: `actorraft events` and `top`. Gone with the process.

Each node notes what it knows first-hand: a leader that it leads, a member that its link is down. So a change of leader
is told once, by the new one, and not by everybody who hears of it.

Shape:     an event is [serial, seconds of the wall clock, kind, in words, term]; serials count from 0 in each process.
Threads:   the node's loop.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from actorraft.raft.messages import Configuration
from actorraft.raft.ready import LeaderState
from actorraft.raft.server import RaftServer

EVENTS_MAX: Final = 1_000
WORDS: Final = {  # of what a driver notices -> how it is told: with its value, and without one
    "snapshot": ("took a snapshot up to index {}", ""),
    "difference": ("{}", ""),
    "hold": ("{}", "goes on"),
    "disk": ("takes no writes: {}", "takes writes again"),
    "begun": ("", "counts from now on: it was on probation"),
}


class Journal:
    """The newest events of this process."""

    def __init__(self) -> None:
        self._run = os.urandom(8).hex()
        self._events: deque[list[Any]] = deque(maxlen=EVENTS_MAX)
        self._next = 0
        self._leads = False
        self._configuration: Configuration | None = None
        self.term = 0

    def note(self, kind: str, words: str) -> None:
        """Keep one."""
        self._events.append([self._next, round(time.time(), 3), kind, words, self.term])
        self._next += 1

    def noticed(self, what: str, value: Any) -> None:
        """Keep what a driver noticed, if anybody would want to read it."""
        if what == "lost log":
            self.note(what, value[1])
        elif what in WORDS:
            with_value, without = WORDS[what]
            self.note(what, without if value in (None, "") else with_value.format(value))

    def follow(self, server: RaftServer) -> None:
        """Look at who leads and who the members are; called when that may have changed."""
        self.term = server.current_term
        leads = server.state is LeaderState
        if leads != self._leads:
            self._leads = leads
            self.note("leader", f"leads term {self.term}" if leads else "leads no more")
        configuration = server.configuration
        before, self._configuration = self._configuration, configuration
        if before is None or before is configuration:
            return
        if (before.voters, before.learners, before.joint) != (
            configuration.voters,
            configuration.learners,
            configuration.joint,
        ):
            learners = f", learners {sorted(configuration.learners)}" if configuration.learners else ""
            on_the_way = " (on the way)" if configuration.joint else ""
            self.note("membership", f"voters {sorted(configuration.voters)}{learners}{on_the_way}")

    def since(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return what came after `after` of the process `run`; of another process, or of none, all that is held."""
        after = int(asked.get("after", -1)) if asked.get("run") == self._run else -1
        return {"run": self._run, "events": [event for event in self._events if event[0] > after]}
