"""What the load is applied to, beside the key-value store: a user's own class, and command objects on a plain dict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actorraft import StateMachine, command, query


class Register(StateMachine):
    """A user's own machine: one command, one query."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    @command
    def put(self, key: str, value: bytes) -> bool:
        """Keep `value`."""
        self.values[key] = value
        return True

    @query
    def look(self, key: str) -> bytes | None:
        """Return what is kept."""
        return self.values.get(key)


@dataclass(frozen=True)
class Put:
    """A pickled command object for a machine that is a plain dict."""

    key: str
    value: bytes

    def apply(self, state: dict[str, Any]) -> bool:
        """Keep the value."""
        state[self.key] = self.value
        return True
