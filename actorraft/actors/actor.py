"""An actor: an object in a process of its own that takes one message after another. How it is run is in loop.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actorraft.errors import UsageError

if TYPE_CHECKING:
    from actorraft.actors.ref import ActorRef


class Actor:
    """Base class of actors. Override `receive`, and `on_start` and `on_stop` if needed.

    Its constructor runs in the actor's own process, with the arguments given to `spawn`.
    """

    ref: ActorRef  # its own address, to give to others; there from before the constructor on

    def on_start(self) -> None:
        """Get ready; called before the first message, and again after each restart."""

    def receive(self, message: Any) -> Any:
        """Take a message; what this returns answers an ask. A Future answers when it is done."""
        raise UsageError(f"{type(self).__name__} takes no messages: it has no receive method")

    def on_stop(self) -> None:
        """Clean up; called when the actor is stopped, not when it is killed or crashes."""
