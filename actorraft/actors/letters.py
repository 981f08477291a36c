"""Dead letters: what this process sent to actors and no actor took, counted, kept for a while, and said in the log.

Whoever asked is told anyway; after a tell there is nobody to tell, and so a place to look. A message that was on an
actor's hands when it died is among them: it may have been taken, or half of it.

Threads:    every function from any.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from actorraft.actors.wire import ASK, TELL, loads
from actorraft.loggers import guarded_logger
from actorraft.steady import monotonic

logger = guarded_logger("actorraft")

KEPT_MAX: Final = 1000  # letters
CONTENT_BYTES_MAX: Final = 4096  # of a message that is kept with its letter
SAY_EVERY_S: Final = 10.0


class DeadLetter(NamedTuple):
    """A message that no actor took.

    Attributes:
        actor: the name of whom it was for.
        kind: "tell" or "ask".
        reason: why it was not taken.
        message: as it was sent; None if it was too large to be kept, or cannot be read here.
    """

    actor: str
    kind: str
    reason: str
    message: Any


class DeadLetters(list[DeadLetter]):
    """The last dead letters of this process, the newest one at the end; `total`: how many there have been."""

    total: int = 0


class _Ring:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: deque[tuple[str, int, str, bytes | None]] = deque(maxlen=KEPT_MAX)
        self.total = 0
        self.unsaid = 0
        self.said_at_s = float("-inf")

    def add(self, actor: str, messages: Iterable[tuple[int, int, Any]], reason: str) -> None:
        """Keep messages (kind, number, pickle) that `actor` will not take."""
        with self.lock:
            for kind, _, data in messages:
                if kind in (TELL, ASK):
                    self.kept.append((actor, kind, reason, data if len(data) <= CONTENT_BYTES_MAX else None))
                    self.total += 1
                    self.unsaid += 1
            if not self.unsaid or monotonic() - self.said_at_s < SAY_EVERY_S:
                return
            unsaid, self.unsaid, self.said_at_s = self.unsaid, 0, monotonic()
        logger.warning(
            "%d message%s not taken by an actor; the last one was for %s, which %s (see actorraft.dead_letters())",
            unsaid,
            " was" if unsaid == 1 else "s were",
            actor,
            reason,
        )


ring = _Ring()
os.register_at_fork(after_in_child=lambda: setattr(ring, "lock", threading.Lock()))


def dead_letters() -> DeadLetters:
    """Return what this process has sent to actors and no actor took: the last 1,000 of them, and how many in all."""
    with ring.lock:
        kept, total = list(ring.kept), ring.total
    letters = DeadLetters(
        DeadLetter(actor, "tell" if kind == TELL else "ask", reason, _read(data)) for actor, kind, reason, data in kept
    )
    letters.total = total
    return letters


def _read(data: bytes | None) -> Any:
    try:
        return None if data is None else loads(data)
    except BaseException:
        return None
