"""Named locks with leases and fencing tokens, for processes that must not do the same thing at once.

A lease ends by log time, so a holder that dies lets go without help. A lease alone keeps nobody from acting late (a
process may sleep past its lease); the fencing token does: it grows with every grant, so what is protected can refuse
a token smaller than one it has seen.

Source:     fencing tokens: Gray and Cheriton's leases (1989) with Chubby's sequencers; log time: docs/decisions.
Invariant:  at most one holder of a name at any place in the log; tokens strictly increase over all names.
"""

from __future__ import annotations

from typing import NamedTuple

from actorraft.machine import StateMachine, command, context, query


class Lease(NamedTuple):
    """Who holds a lock, under which token, until which log time."""

    owner: str
    token: int
    expires_at: float


class LockService(StateMachine):
    """Locks by name. `owner` is any name that tells one holder from another."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}
        self._last_token = 0

    @command
    def acquire(self, name: str, owner: str, seconds: float) -> int | None:
        """Take the lock for `seconds`, or renew it; return the fencing token, None if another holds it.

        Renewing keeps the token: it is still the same grant.

        Raises:
            ValueError: `seconds` is not above 0.
        """
        if seconds <= 0:
            raise ValueError(f"a lease lasts for more than 0 seconds, not {seconds!r}")
        self._expire()
        held = self._leases.get(name)
        if held is not None and held.owner != owner:
            return None
        if held is None:
            self._last_token += 1
        token = self._last_token if held is None else held.token
        self._leases[name] = Lease(owner, token, context().time + seconds)
        return token

    @command
    def release(self, name: str, owner: str) -> bool:
        """Let go; return whether `owner` held it until now."""
        self._expire()
        held = self._leases.get(name)
        if held is None or held.owner != owner:
            return False
        del self._leases[name]
        return True

    @query
    def holder(self, name: str) -> Lease | None:
        """Return who holds the lock, as of the last entry."""
        return self._leases.get(name)

    @property
    def wake_at(self) -> float | None:
        """Return the log time of the next expiry, None if there is none."""
        return min((lease.expires_at for lease in self._leases.values()), default=None)

    def on_clock(self) -> None:
        """Let leases end whose time has come; called for a clock entry."""
        self._expire()

    def _expire(self) -> None:
        now = context().time
        for name in [name for name, lease in self._leases.items() if lease.expires_at <= now]:
            del self._leases[name]
