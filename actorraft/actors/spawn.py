"""Start an actor, or find one by its name.

    ref = spawn(Counter)
    ref = ActorOptions(name="c").spawn(Counter)

Above one replica an actor is not one process but a cluster, which is none of this room's business: whoever knows
clusters registers how that is done (`replicate_by`).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, ParamSpec, Protocol, TypeVar

from actorraft.actors import wire
from actorraft.actors.actor import HOOKS, Actor
from actorraft.actors.coroutines import is_asynchronous
from actorraft.actors.loop import Manner, run_actor
from actorraft.actors.pool import PoolRef, Route, check_route
from actorraft.actors.post import given
from actorraft.actors.records import MAILBOX_BYTES_MAX, MAILBOX_MAX, Record, machine_here
from actorraft.actors.ref import ActorRef
from actorraft.actors.supervision import Supervision
from actorraft.actors.system import system
from actorraft.errors import UsageError

P = ParamSpec("P")
A = TypeVar("A", bound=Actor)


class Replication(Protocol):
    """How actors with several replicas are started and found."""

    def spawn(
        self, options: ActorOptions, cls: type[Actor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ActorRef: ...

    def ref(self, name: str, record: Record) -> ActorRef: ...


_replication: Replication | None = None


def replicate_by(replication: Replication) -> None:
    """Say how actors with several replicas are started and found."""
    global _replication
    _replication = replication


@dataclass(frozen=True, kw_only=True)
class ActorOptions:
    """How an actor is started.

    Attributes:
        name: to find it by, with `actor_ref`; letters, digits, - and _. None: one is made.
        mailbox_max: how many messages one sender may have with it that it has not taken.
        mailbox_bytes_max: how many bytes of them.
        supervision: what happens when its process (one of its replicas) dies unasked; None: it stays down. Actors that
            are given one and the same Supervision object are a group for its strategy.
        concurrency: how many messages an actor with coroutines takes at once, while others are being awaited.
        pool: above 1, so many actors behind one ref (see actorraft.actors.pool).
        route: how that chooses: "round_robin", "least_loaded", or a callable that gives a message's key.
        public: whether any process of this user on this machine may find it by its name.
        replicas: above 1, it runs on so many nodes, kept equal by Raft: see actorraft.cluster.replicated_actor.
    """

    name: str | None = None
    mailbox_max: int = MAILBOX_MAX
    mailbox_bytes_max: int = MAILBOX_BYTES_MAX
    supervision: Supervision | None = field(default_factory=Supervision)
    concurrency: int = 1
    pool: int = 1
    route: Route = "round_robin"
    public: bool = False
    replicas: int = 1

    def __post_init__(self) -> None:
        for name in ("mailbox_max", "mailbox_bytes_max", "concurrency", "pool", "replicas"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
                raise UsageError(f"{name} is a whole number, at least 1, not {number!r}")
            object.__setattr__(self, name, int(number))  # an actor's process need not have numpy, say
        if self.supervision is not None and not isinstance(self.supervision, Supervision):
            raise UsageError(f"supervision is a Supervision or None, not {self.supervision!r}")
        if type(self.public).__name__ not in ("bool", "bool_"):  # NumPy's too, which is not imported for that
            raise UsageError(f"public is True or False, not {self.public!r}")
        object.__setattr__(self, "public", bool(self.public))
        check_route(self.route)
        if self.public and self.name is None:
            raise UsageError("a public actor is found by its name: give it one")
        if self.pool > 1 and (self.public or self.replicas > 1):
            raise UsageError("a pool is neither public nor replicated: make its workers one by one, or share its ref")

    def spawn(self, cls: Callable[P, A], /, *args: P.args, **kwargs: P.kwargs) -> ActorRef[A]:
        """Start an actor in a process, or one for each replica; return its address once it takes messages.

        Raises:
            UsageError: it cannot be started so: no Actor class, cannot be pickled, the name is taken.
            StartError: its constructor or `on_start` raised, or the process did not come up; with its last words.
        """
        actor_class = check_actor_class(cls)
        if self.pool > 1:
            return self._spawn_pool(actor_class, args, kwargs)
        if self.replicas > 1:
            if _replication is None:
                raise UsageError("replicas above 1 need clusters: take ActorOptions from actorraft itself")
            return _replication.spawn(self, actor_class, args, kwargs)
        code, writer = wire.pack((actor_class, args, kwargs, self._manner(actor_class)))
        address = system().spawn(
            run_actor,
            code,
            kind=actor_class.__name__,
            name=self.name,
            mailbox=(self.mailbox_max, self.mailbox_bytes_max),
            supervision=self.supervision,
            to_all=self.public,
        )
        given[address.endpoint] = writer
        return ActorRef(*address, machine_here())

    def _spawn_pool(self, cls: type[Actor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> PoolRef:
        """Start the workers side by side."""
        one = [
            replace(self, pool=1, name=f"{self.name}-{number}" if self.name is not None else None)
            for number in range(self.pool)
        ]
        with ThreadPoolExecutor(self.pool) as starting:
            started = [starting.submit(options.spawn, cls, *args, **kwargs) for options in one]
        failed = [each.exception() for each in started if each.exception() is not None]
        workers = tuple(each.result() for each in started if each.exception() is None)
        for error in failed:
            for worker in workers:
                worker.kill()
            assert error is not None
            raise error
        return PoolRef(workers, self.route)

    def _manner(self, cls: type[Actor]) -> Manner:
        if self.concurrency > 1 and not is_asynchronous(cls):
            raise UsageError(f"concurrency above 1 is for actors with coroutines, and {cls.__name__} has no async def")
        return Manner(self.concurrency, self.supervision.on_error if self.supervision is not None else "go on")


def check_actor_class(cls: object) -> type[Actor]:
    """Return `cls`. Raises UsageError if it is no class of actors."""
    if not (isinstance(cls, type) and issubclass(cls, Actor)):
        raise UsageError(f"spawn takes a class that derives from Actor, not {cls!r}")
    for name in sorted(HOOKS):
        function = inspect.getattr_static(cls, name, None)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise UsageError(
                f"{cls.__qualname__}.{name} is a generator: its body would never run; return a list instead"
            )
    if inspect.isabstract(cls):
        lacks = ", ".join(sorted(vars(cls)["__abstractmethods__"]))
        raise UsageError(
            f"{cls.__qualname__} is abstract (it has no {lacks} of its own): spawn a class that can be made"
        )
    return cls


def spawn(cls: Callable[P, A], /, *args: P.args, **kwargs: P.kwargs) -> ActorRef[A]:
    """Start an actor in a process of its own; return its address once it takes messages. See ActorOptions.spawn."""
    return ActorOptions().spawn(cls, *args, **kwargs)


def actor_ref(name: str, *, through: str | os.PathLike[str] | None = None) -> ActorRef:
    """Return the address of a named actor, started by this process, an actor of it, or whoever started this one.

    Args:
        through: a client's folder of a cluster: then a public actor on the machine of one of its nodes, if that was
            started with `--actors`, and the client's role is admin. Asks the nodes, and waits for that up to 5 s.

    Raises:
        UsageError: there is none of that name; or the folder, or its key, is not for that.
        Unavailable: no node that answered knows one, and some did not answer.
    """
    if through is not None:
        from actorraft.actors.reach import remote_ref

        return remote_ref(name, through)
    record = system().find(name)
    if record.replicas and _replication is not None:
        return _replication.ref(name, record)
    return ActorRef(name, record.endpoint, record.mailbox_max, record.mailbox_bytes_max, machine_here())
