"""Several actors of one class behind one ref, which sends each message to one of them.

The sender chooses, so nothing stands between it and the worker: the order of one sender's messages is kept only as far
as they go to the same worker, which a route by key sees to.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from numbers import Number
from typing import Any, Final

from actorraft import futures
from actorraft.actors import actor
from actorraft.actors.records import Exit
from actorraft.actors.ref import ActorRef
from actorraft.actors.wire import Inquiry
from actorraft.errors import UsageError
from actorraft.futures import ResultFuture

Route = str | Callable[[Any], Any]
ROUTES: Final = ("round_robin", "least_loaded")


class PoolRef(ActorRef[Any]):
    """The address of a pool; made by `ActorOptions(pool=n).spawn`.

    Attributes:
        workers: the refs of its actors.
        route: "round_robin"; "least_loaded" (whoever has taken most of what this process sent it); or a callable that
            gives a message's key: messages of one key go to one worker.
    """

    __slots__ = ("_turns", "route", "workers")

    def __init__(self, workers: tuple[ActorRef[Any], ...], route: Route) -> None:
        first = workers[0]
        super().__init__(first.name, first.endpoint, first.mailbox_max, first.mailbox_bytes_max)
        self.workers = workers
        self.route = route
        self._turns = itertools.count()

    def worker_for(self, message: Any) -> ActorRef[Any]:
        """Return who is to have this message."""
        if type(message) is Inquiry:  # it has no key, and all know the same
            return self.workers[0]
        if callable(self.route):
            key = self.route(message)
            if isinstance(key, Number):  # equal ones look different, as 1 and numpy's
                key = hash(key)
            return self.workers[zlib.crc32(repr(key).encode()) % len(self.workers)]
        turn = next(self._turns) % len(self.workers)
        if self.route == "round_robin":
            return self.workers[turn]
        return min((*self.workers[turn:], *self.workers[:turn]), key=lambda worker: worker.debt)

    def tell(self, message: Any) -> None:
        """As ActorRef.tell, to one of them."""
        if futures.no_waiting_in and actor.tell_as_effect(self, message):
            return
        self.worker_for(message).tell(message)

    def ask(self, message: Any, timeout: float | None = 5.0) -> ResultFuture[Any]:
        """As ActorRef.ask, of one of them."""
        return self.worker_for(message).ask(message, timeout)

    def stop(self) -> None:
        """As ActorRef.stop, for all of them."""
        for worker in self.workers:
            worker.stop()

    def kill(self) -> None:
        """As ActorRef.kill, for all of them."""
        for worker in self.workers:
            worker.kill()

    def restart(self) -> None:
        """As ActorRef.restart, one after the other."""
        for worker in self.workers:
            worker.restart()

    def watch(self, callback: Callable[[Exit], Any]) -> None:
        """As ActorRef.watch; the Exit names the worker."""
        for worker in self.workers:
            worker.watch(callback)

    def logs(self, lines: int = 100) -> list[str]:
        """Return the last lines of each worker's output, one worker after another."""
        return [line for worker in self.workers for line in worker.logs(lines)]

    def is_alive(self) -> bool:
        """Whether any of them is."""
        return any(worker.is_alive() for worker in self.workers)

    @property
    def pid(self) -> int | None:
        """Return None: it has several processes; `workers` have one each."""
        return None

    @property
    def debt(self) -> int:
        """As ActorRef.debt, of all of them."""
        return sum(worker.debt for worker in self.workers)

    def counts(self, *, timeout: float | None = 5.0) -> dict[str, int]:
        """As ActorRef.counts, of all of them together."""
        asked = [worker.ask(Inquiry("counts"), timeout) for worker in self.workers]
        told = [each.result() for each in asked]
        return {name: sum(each[name] for each in told) for name in told[0]}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.workers, self.route)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PoolRef) and self.workers == other.workers

    def __hash__(self) -> int:
        return hash(self.workers)

    def __repr__(self) -> str:
        return f"<PoolRef of {len(self.workers)} like {self.name!r}>"


def check_route(route: Route) -> None:
    """Raise UsageError if this is no way to choose among workers."""
    if not callable(route) and route not in ROUTES:
        raise UsageError(
            f"route is one of {', '.join(ROUTES)}, or a callable that gives a message's key, not {route!r}"
        )
