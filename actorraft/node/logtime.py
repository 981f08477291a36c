"""Time in a cluster: ticks for the core, and log time for machines.

Log time starts at the first leader's wall clock and advances by leaders' monotonic clocks only, so no wall clock that
jumps can move it; it is clamped when it is applied (executor.py), so it never falls. While nobody leads, it stands.

Not here:   clocks; they are handed in.
"""

from __future__ import annotations

from actorraft import codec
from actorraft.ports import Clock
from actorraft.raft.server import RaftServer


class LogTime:
    """What a leader stamps entries with.

    Attributes:
        applied_s: log time as of the last entry applied; whoever applies says it.
        restoring: a snapshot is here whose log time is not known yet, for its state is not either.
    """

    def __init__(self, server: RaftServer, clock: Clock, *, restoring: bool = False) -> None:
        self.applied_s = 0.0
        self.restoring = restoring
        self._server = server
        self._clock = clock
        self._lead_since: tuple[int, float, float] | None = None  # term, log time then, monotonic time then

    def now_s(self) -> float:
        """Return log time now, at a leader."""
        now_s, term = self._clock.monotonic(), self._server.current_term
        if self._lead_since is None or self._lead_since[0] != term:
            last_s = max(self.applied_s, self._last_stamp_s())
            begins_s = last_s if last_s > 0 else self._clock.wall()
            if self.restoring:
                return begins_s  # as good as can be said; the term's time goes on from what the snapshot says
            self._lead_since = (term, begins_s, now_s)
        _, log_time_s, since_s = self._lead_since
        return log_time_s + (now_s - since_s)

    def _last_stamp_s(self) -> float:
        """Return the newest stamp that is in the log and perhaps not applied yet."""
        log = self._server.log
        # Below first_index is a snapshot, perhaps installed and not restored yet; its time comes as `applied_s`.
        for index in range(len(log) - 1, max(self._server.last_applied, log.first_index - 1), -1):
            item = log[index].item
            if type(item) is bytes and len(item) >= codec.STAMP_BYTES:
                return codec.unstamp(item)[0]
        return 0.0


class Ticks:
    """Turns a monotonic clock into whole ticks."""

    def __init__(self, clock: Clock, tick_s: float) -> None:
        self._clock = clock
        self._tick_s = tick_s
        self._next_s = clock.monotonic() + tick_s

    def wait_s(self, due_s: float | None) -> float:
        """Return how long to wait at most, from now."""
        until_s = self._next_s if due_s is None else min(self._next_s, due_s)
        return max(0.0, until_s - self._clock.monotonic())

    def take(self) -> int:
        """Return the ticks that have elapsed since the last call."""
        late_s = self._clock.monotonic() - self._next_s
        if late_s < 0:
            return 0
        ticks = 1 + int(late_s / self._tick_s)
        self._next_s += ticks * self._tick_s
        return ticks
