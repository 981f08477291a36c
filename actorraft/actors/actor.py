"""An actor: an object in a process of its own that takes one message after another. How it is run is in loop.py."""

from __future__ import annotations

from collections.abc import Awaitable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol

from actorraft.errors import UsageError

if TYPE_CHECKING:
    from actorraft.actors.ref import ActorRef

HOOKS: Final = frozenset({"receive", "on_start", "on_stop", "on_failure"})  # are called by the library alone


class Timer(Protocol):
    """A message that an actor has set for itself."""

    def cancel(self) -> bool:
        """See to it that the message does not come; False if it has come already, or was cancelled before."""


class Inside(Protocol):
    """What an actor can have done by whatever runs it."""

    def stop(self) -> None: ...

    def after(self, seconds: float, message: Any) -> Timer: ...


inside: Inside | None = None  # of the one actor of this process
own_endpoint = ""  # where that takes messages
turn: ContextVar[tuple[ActorRef[Any] | None] | None] = ContextVar("turn", default=None)  # (sender,) in a message's turn


class _Sender:
    """`self.sender`; an actor that keeps something of its own under that name may."""

    def __get__(self, actor: Actor | None, owner: type) -> ActorRef[Any] | None:
        now = turn.get()
        return now[0] if now is not None else None


class Actor:
    """Base class of actors. Override `receive`; the other hooks if needed. Each hook may be an `async def`.

    Its constructor runs in the actor's own process, with the arguments given to `spawn`. An actor with any `async def`
    method runs wholly in one event loop; others run in their process's main thread.
    """

    ref: ActorRef[Any]  # its own address, to give to others; there from before the constructor on
    sender = _Sender()  # the actor that sent the message whose turn it is; None if whoever sent it is no actor

    def on_start(self) -> Awaitable[None] | None:
        """Get ready; called before the first message, and again after each restart. What it returns is not used.

        What it raises is the StartError of whoever spawned it.
        """

    def receive(self, message: Any) -> Any:
        """Take a message; what this returns answers an ask. A Future answers when it is done.

        What it raises is raised by the future of an ask; after a tell it goes to the log and to `on_failure`.

        Raises:
            UsageError: here: an actor without a `receive` takes no messages.
        """
        raise UsageError(f"{type(self).__name__} takes no messages: it has no receive method")

    def on_stop(self) -> Awaitable[None] | None:
        """Clean up; called when it is stopped, not when it is killed or crashes. What it returns is not used."""

    def on_failure(self, error: BaseException, message: Any) -> Awaitable[None] | None:
        """Make good what a message has broken that nobody waits for: a tell, or a timer's. It is in the log already.

        Args:
            error: what `receive`, or the method that was called, raised.
            message: None if it could not be read.

        Returns:
            Nothing that is used.
        """

    def stop(self) -> None:
        """End once the message whose turn it is has had it; `on_stop` is called, and it stays down.

        Raises:
            UsageError: this object is no running actor.
        """
        _inside().stop()

    def after(self, seconds: float, message: Any) -> Timer:
        """Have a message come in so many seconds, to itself and from itself; return the timer, which `cancel()` ends.

        Timers end with the process.

        Raises:
            UsageError: this object is no running actor.
        """
        return _inside().after(seconds, message)


def _inside() -> Inside:
    if inside is None:
        raise UsageError("this actor is not running: only inside its own process can it stop itself or set a timer")
    return inside
