"""An actor: an object in a process of its own that takes one message after another. How it is run is in loop.py."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol

from actorraft import futures
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

    def tell(self, ref: ActorRef[Any], message: Any) -> None: ...

    def ask(self, ref: ActorRef[Any], message: Any, then: Callable[..., Any]) -> None: ...


inside: Inside | None = None  # of the one actor of this process
own_endpoint = ""  # where that takes messages
own_ref: ActorRef[Any] | None = None  # the same, to be given to others
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

    def receive(self, message: Any, /) -> Any:
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

        Timers end with the process; those of a replicated actor go by log time, and end with the last of its replicas.

        Raises:
            UsageError: this object is no running actor, or `seconds` no number from 0 up.
        """
        return _inside().after(_delay_s(seconds), message)

    def tell(self, ref: ActorRef[Any], message: Any) -> None:
        """Send a message to another actor. A replicated actor's leader sends it, once this turn is committed."""
        _inside().tell(ref, message)

    def ask(self, ref: ActorRef[Any], message: Any, then: Callable[..., Any]) -> None:
        """Send a message to another actor; what it answers comes as a message of its own: `then(self, answer)`.

        If it fails, `on_failure(error, message)` is called instead.

        Args:
            then: a method of this actor's class, as `Counter.on_answer`.

        Raises:
            UsageError: it is none.
        """
        _inside().ask(ref, message, then)


def _inside() -> Inside:
    if inside is None:
        raise UsageError(
            "this actor is not running: only inside its own process can it send, stop itself or set a timer"
        )
    return inside


def name_of_method(actor: Actor, then: Callable[..., Any]) -> str:
    """Return the name of a method of an actor's class. Raises UsageError if it is none."""
    name = getattr(then, "__name__", "")
    found = getattr(type(actor), name, None) if isinstance(name, str) else None
    if found is None or getattr(then, "__func__", then) is not found:
        raise UsageError(f"then is a method of {type(actor).__name__}, as {type(actor).__name__}.{name}, not {then!r}")
    return str(name)


def tell_as_effect(ref: ActorRef[Any], message: Any) -> bool:
    """Whether this is the turn of a replicated actor, which must not send; then its leader does (effects.py)."""
    if not futures.must_not_wait():
        return False
    _inside().tell(ref, message)
    return True


def _delay_s(seconds: Any) -> float:
    try:
        delay_s = math.nan if isinstance(seconds, bool | str | bytes) else float(seconds)
    except (TypeError, ValueError, OverflowError):
        delay_s = math.nan
    if not 0 <= delay_s < math.inf:
        raise UsageError(f"a timer is set for 0 seconds or more, not {seconds!r}")
    return delay_s
