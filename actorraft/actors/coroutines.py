"""Where an actor's coroutines run: one event loop in a thread of its own, beside the thread that has the mailbox.

The mailbox waits in libzmq, an event loop in its selector; two threads that wake each other are simpler than either
taught to wait for the other. All of an asynchronous actor runs here, what is no coroutine included, so that its code
is never in two threads at once.

Threads:    `run` and `start` from any other thread; what they are given runs in the loop's.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from actorraft.loggers import guarded_logger
from actorraft.pickling import exceptions

logger = guarded_logger("actorraft")


def is_asynchronous(cls: type) -> bool:
    """Whether any method of a class is an `async def`."""
    return any(inspect.iscoroutinefunction(value) for each in cls.__mro__ for value in vars(each).values())


async def settle(value: Any) -> Any:
    """Return a value, or what it comes to if it can be awaited."""
    if isinstance(value, Future) and not hasattr(type(value), "__await__"):
        return await asyncio.wrap_future(value)
    return await value if inspect.isawaitable(value) else value


class Coroutines:
    """An event loop that runs until its process ends."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds tasks only weakly
        threading.Thread(target=self._run_forever, name="actorraft-coroutines", daemon=True).start()

    def _run_forever(self) -> None:
        """Run the loop, also after user code has stopped it, or a task of its own has let out what ends a loop."""
        while not self._loop.is_closed():
            try:
                self._loop.run_forever()
            except BaseException as error:
                logger.error("a task of the actor's raised\n%s", exceptions.story(error))

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine that raises nothing, whatever happens in it."""
        self._loop.call_soon_threadsafe(self._begin, work)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the loop's thread, await what it returns if that can be, and return what it comes to."""
        done: Future[Any] = Future()

        async def call() -> None:
            try:
                done.set_result(await settle(function(*args)))
            except BaseException as error:
                done.set_exception(error)

        self.start(call())
        return done.result()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
