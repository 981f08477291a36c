"""How a call ends badly: what a session hands out, for whoever holds the futures."""

from __future__ import annotations

from typing import Any, NamedTuple

from actorraft.errors import ActorRaftError


class Failure(NamedTuple):
    """The end of one call.

    Attributes:
        future: what waits for it; None: nobody does.
        error: what it ends with.
        later: of a call whose outcome is unknown, what ends when it is known; else None.
    """

    future: Any
    error: ActorRaftError
    later: Any = None
