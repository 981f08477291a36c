"""Supervision: when a process that died is started again, and when that is given up.

Source:     the supervisors of OTP: restart intensity within a period.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from actorraft.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """How processes that die are started again.

    Attributes:
        restart: "permanent" (always), "transient" (only after a crash), "temporary" (never).
        strategy: whom else a death concerns: nobody, all, or those that were started after it.
        max_restarts: within `period_s` seconds; one more, and the process stays down.
        on_error: what follows an exception that an actor lets out: "go on" (it keeps its state and takes the next
            message), or "restart" (it ends, and starts again fresh). Either way who asked gets the exception.
        backoff_s: the wait before the first restart in a row, and the longest.

    Raises:
        UsageError: one of them is none of these.
    """

    restart: Literal["permanent", "transient", "temporary"] = "permanent"
    strategy: Literal["one_for_one", "one_for_all", "rest_for_one"] = "one_for_one"
    max_restarts: int = 5
    period_s: float = 30.0
    backoff_s: tuple[float, float] = (0.1, 5.0)
    on_error: Literal["go on", "restart"] = "go on"

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise UsageError(f"{name} is one of {', '.join(map(repr, words))}, not {getattr(self, name)!r}")
        most: Any = self.max_restarts  # whatever a caller without a type checker gave
        if isinstance(most, bool) or not isinstance(most, Integral) or most < 0:
            raise UsageError(f"max_restarts is a whole number, 0 or more, not {most!r}")
        if not _is_number(self.period_s) or not self.period_s > 0:
            raise UsageError(f"period_s is a number of seconds above 0, not {self.period_s!r}")
        pair: Any = self.backoff_s
        if type(pair) not in (tuple, list) or len(pair) != 2 or not all(map(_is_number, pair)):
            raise UsageError(f"backoff_s is two numbers of seconds, (first, longest), not {pair!r}")
        if not 0 <= pair[0] <= pair[1] < math.inf:
            raise UsageError(f"backoff_s is (first, longest), 0 or more seconds and not falling, not {pair!r}")


_WORDS = {
    "restart": ("permanent", "transient", "temporary"),
    "strategy": ("one_for_one", "one_for_all", "rest_for_one"),
    "on_error": ("go on", "restart"),
}


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


class RestartLog:
    """The restarts of one process, for deciding on the next."""

    def __init__(self, supervision: Supervision) -> None:
        self._supervision = supervision
        self._times: deque[float] = deque()
        self._explained = 0

    def next_delay_s(self, now_s: float, *, crashed: bool, explained: bool = False) -> float | None:
        """Return how long to wait before starting it again; None: it stays down.

        Args:
            explained: it ended itself, saying what must be mended. Such ends are counted without regard to the period,
                or a fault that shows only after a while would restart it for ever.
        """
        rule = self._supervision
        self._explained += explained
        if self._explained > rule.max_restarts:
            return None
        if rule.restart == "temporary" or (rule.restart == "transient" and not crashed):
            return None
        while self._times and self._times[0] < now_s - rule.period_s:
            self._times.popleft()
        if len(self._times) >= rule.max_restarts:
            return None
        first_s, longest_s = rule.backoff_s
        delay_s = min(longest_s, first_s * 2.0 ** min(len(self._times), 1000))  # of 2.0 ** 1024 there is none
        self._times.append(now_s)
        return delay_s
