"""An actor of Thespian's, in a module of its own: its process imports it by name."""

from __future__ import annotations

from typing import Any

from thespian.actors import Actor


class Echo(Actor):  # type: ignore[misc]
    """Answers what it is told with it, and 0 not at all."""

    def receiveMessage(self, message: Any, sender: Any) -> None:  # noqa: N802  # Thespian's name
        """Take a message."""
        if isinstance(message, bytes):
            self.send(sender, message)
        elif hasattr(message, "dtype"):
            self.send(sender, len(message))
