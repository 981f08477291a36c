"""The address of an actor, to send to.

    ref.tell(1)
    ref.ask(2).result()

A ref can be pickled and sent in a message, to any process of the same user on this machine; it survives a restart of
its actor, since the restarted one listens at the same place. Over machines: reach.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, cast

from actorraft import futures
from actorraft.actors import actor
from actorraft.actors.post import Box, Post
from actorraft.actors.process import last_lines, output_file, read_lines
from actorraft.actors.records import (
    MAILBOX_BYTES_MAX,
    MAILBOX_MAX,
    Address,
    Exit,
    machine_here,
    read_record,
    record_file,
)
from actorraft.actors.system import system
from actorraft.actors.wire import ASK, STOP, TELL, Call, Inquiry
from actorraft.errors import ActorDead, UsageError
from actorraft.futures import ResultFuture

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from actorraft.actors.actor import Actor
    from actorraft.cluster.cluster import Cluster

    A_co = TypeVar("A_co", bound=Actor, covariant=True, default=Any)
else:
    from typing import TypeVar

    A_co = TypeVar("A_co", covariant=True)


class ActorRef(Generic[A_co]):
    """The address of an actor; made by `spawn` and `actor_ref`.

    Attributes:
        name: the actor's; unique in its tree of processes.
        endpoint: where its mailbox is.
        mailbox_max, mailbox_bytes_max: how many messages, and bytes of them, a sender may have with it that it has
            not taken.
        machine: the name of the host that it is on, for words; "" if it was not said.
    """

    __slots__ = ("_box", "endpoint", "machine", "mailbox_bytes_max", "mailbox_max", "name")

    def __init__(
        self,
        name: str,
        endpoint: str,
        mailbox_max: int = MAILBOX_MAX,
        mailbox_bytes_max: int = MAILBOX_BYTES_MAX,
        machine: str = "",
    ) -> None:
        self.name = name
        self.endpoint = endpoint
        self.mailbox_max = mailbox_max
        self.mailbox_bytes_max = mailbox_bytes_max
        self.machine = machine
        self._box: tuple[Post, Box] | None = None

    def tell(self, message: Any) -> None:
        """Send a message and expect no answer. At most once; in order per sender.

        Raises:
            MailboxFull: the actor has not taken the last `mailbox_max` messages from this process.
            ActorDead: it is gone for good. (One that dies later may still not get the message.)
            UsageError: the message cannot be sent at all; or the ref has travelled to a machine that is not its own.
        """
        if futures.no_waiting_in and actor.tell_as_effect(self, message):
            return
        self._send(TELL, message)

    def ask(self, message: Any, timeout: float | None = 5.0) -> ResultFuture[Any]:
        """Send a message; return a future of the answer.

        The future ends with what `receive` returned or raised; with ActorDead if the actor is gone, dies first or
        cannot be reached in time; with OutcomeUnknown if it was asked and did not answer in time.

        Args:
            timeout: seconds; None waits as long as the actor lives.

        Raises:
            MailboxFull: as `tell`.
            UsageError: as `tell`; or `timeout` is no number of seconds; or an actor asks itself in the turn of a
                message, and would wait for its own end.
        """
        timeout = futures.check_timeout(timeout)
        if self.endpoint == actor.own_endpoint and actor.turn.get() is not None:
            raise UsageError(f"{self.name} asks itself: it could answer only after it has the answer")
        if futures.no_waiting_in:
            check_asking()
        future: ResultFuture[Any] = ResultFuture()
        self._send(ASK, message, timeout, future)
        return future

    def stop(self) -> None:
        """Have the actor end after the messages that were sent before. Returns at once; it stays down."""
        try:
            self._send(STOP, None)
        except ActorDead:
            return

    def kill(self) -> None:
        """End the actor's process at once (SIGKILL). It stays down."""
        system().kill(self.name, self.endpoint)

    def restart(self) -> None:
        """End the actor's process after the message it is at, and start it afresh, whatever its supervision says.

        `on_stop` is called; a process that does not end within 5 s is killed. Returns once the new one takes messages
        (an actor's own restart comes after its turn). What was sent before and not taken is lost.

        Raises:
            ActorDead: it is gone.
            StartError: the new one did not come up in time.
        """
        system().restart(self.name, self.endpoint)

    def logs(self, lines: int = 100) -> list[str]:
        """Return the last lines of what its process, and earlier ones of this name, wrote to standard output and error.

        What it logs comes out in its parent, under `actorraft.actor.<name>`.
        """
        run_dir = record_file(self.endpoint).parent
        return last_lines(read_lines(output_file(run_dir, f"actor {self.name}")), lines)

    def watch(self, callback: Callable[[Exit], Any]) -> None:
        """Have `callback` called with an Exit each time the actor's process ends; at once if it is gone.

        It runs in another thread, and must not wait for answers there.

        Raises:
            UsageError: `callback` cannot be called.
        """
        if not callable(callback):
            raise UsageError(f"watch takes what can be called with an Exit, not {callback!r}")
        post, box = self._post_and_box()
        post.watch(box, callback)

    @property
    def debt(self) -> int:
        """Return how many messages of this process's the actor has not taken, as far as is known here."""
        return self._box[1].debt if self._box is not None else 0

    def is_alive(self) -> bool:
        """Return whether the actor's process is there and takes messages; False while it is being started again."""
        record = read_record(record_file(self.endpoint), self.endpoint)
        return record is not None and record.alive

    @property
    def pid(self) -> int | None:
        """Return the id of the actor's process; None while there is none."""
        record = read_record(record_file(self.endpoint), self.endpoint)
        return record.process.pid if record is not None and record.alive and record.process is not None else None

    def proxy(self, *, timeout: float | None = 5.0) -> A_co:
        """Return an object with the actor's public methods; type checkers see the actor itself.

        `m(...)` blocks, `m.submit(...)` gives a future, `m.tell(...)` expects no answer, `await m.aio(...)` is for
        asyncio. Each ends as `ask` does.
        """
        return cast("A_co", ActorProxy(self, timeout))

    @property
    def cluster(self) -> Cluster[Any]:
        """Return the replicas of an actor with `replicas` above 1, for who spawned it.

        Raises:
            UsageError: this actor is one process, without replicas.
        """
        raise UsageError(f"{self.name} is one process and has no replicas: ActorOptions(replicas=3).spawn(...) has")

    def counts(self, *, timeout: float | None = 5.0) -> dict[str, int]:
        """Ask the actor's process how many messages it has begun to take ("messages"), and how many raised.

        Returns:
            name -> how many.

        Raises:
            ActorDead, OutcomeUnknown: it did not answer; as `ask`.
        """
        told: dict[str, int] = self.ask(Inquiry("counts"), timeout).result()
        return told

    def _send(
        self, kind: int, message: Any, timeout: float | None = None, future: ResultFuture[Any] | None = None
    ) -> None:
        cached = self._box
        if cached is None or cached[0].closed or cached[1].dead is not None or cached[0].pid != os.getpid():
            cached = self._post_and_box()
        post, box = cached
        post.send(box, kind, box.writer.message(message), timeout, future)

    def _post_and_box(self) -> tuple[Post, Box]:
        post = system().post
        box = post.box(Address(self.name, self.endpoint, self.mailbox_max, self.mailbox_bytes_max))
        if box.dead is not None and self.machine not in ("", machine_here()):
            raise UsageError(
                f"{self.name} is on the machine {self.machine}, and this is {machine_here()}, where that ref does not "
                f"lead to it: a public actor is found by actor_ref({self.name!r}, through=a client's folder)"
            )
        self._box = (post, box)
        return self._box

    def __reduce__(self) -> tuple[Any, ...]:
        said = (self.name, self.endpoint, self.mailbox_max, self.mailbox_bytes_max)
        return type(self), (*said, self.machine) if self.machine else said

    def __eq__(self, other: object) -> bool:
        return self.endpoint == other.endpoint if isinstance(other, ActorRef) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.endpoint)

    def __repr__(self) -> str:
        return f"<ActorRef {self.name!r}>"


def check_asking() -> None:
    """Raise UsageError in the turn of a replicated actor's message: each replica would ask."""
    if futures.must_not_wait():
        raise UsageError(
            "a replicated actor asks by self.ask(ref, message, then=Class.method): there is no future of the answer, "
            "since it comes as a message of its own"
        )


class ActorProxy:
    """An actor's methods, called by message."""

    def __init__(self, ref: ActorRef, timeout: float | None) -> None:
        self._ref = ref
        self._timeout = timeout

    def __getattr__(self, name: str) -> ProxyMethod:
        if name.startswith("_"):
            raise AttributeError(name)
        return ProxyMethod(self._ref, name, self._timeout)

    def __dir__(self) -> list[str]:
        names: list[str] = self._ref.ask(Inquiry("methods"), self._timeout).result()
        return names

    def __repr__(self) -> str:
        return f"<proxy of {self._ref!r}>"


class ProxyMethod:
    """One method of an actor: call it, or choose how by `submit`, `tell` or `aio`."""

    def __init__(self, ref: ActorRef, name: str, timeout: float | None) -> None:
        self._ref = ref
        self._name = name
        self._timeout = timeout

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call, and wait for the result."""
        return self.submit(*args, **kwargs).result()

    def submit(self, *args: Any, **kwargs: Any) -> ResultFuture[Any]:
        """Call, and return a future of the result."""
        return self._ref.ask(Call(self._name, args, kwargs), self._timeout)

    def tell(self, *args: Any, **kwargs: Any) -> None:
        """Call, and expect no result."""
        self._ref.tell(Call(self._name, args, kwargs))

    async def aio(self, *args: Any, **kwargs: Any) -> Any:
        """Call, and await the result."""
        return await self.submit(*args, **kwargs)
