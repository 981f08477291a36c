"""Where an actor's coroutines run: one event loop in a thread of its own, beside the thread that has the mailbox.

The mailbox waits in libzmq, an event loop in its selector; two threads that wake each other are simpler than either
taught to wait for the other. All of an asynchronous actor runs here, what is no coroutine included, so that its code
is never in two threads at once.

Threads:    `run`, `call` and `start` from the actor's main thread; what they are given runs in the loop's.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from types import GeneratorType
from typing import Any

from actorraft.loggers import guarded_logger
from actorraft.pickling import exceptions

logger = guarded_logger("actorraft")


def is_asynchronous(cls: type) -> bool:
    """Whether any method of a class is an `async def`."""
    return any(inspect.iscoroutinefunction(value) for each in cls.__mro__ for value in vars(each).values())


def is_future(value: Any) -> bool:
    """Whether a value is a Future, whatever it says of its class: to ask for that may raise."""
    return issubclass(type(value), Future)


# What a class is made of, though its metaclass answers for it.
_mro_of, _dict_of = type.__dict__["__mro__"].__get__, type.__dict__["__dict__"].__get__


def is_awaitable(value: Any) -> bool:
    """Whether a value can be awaited, likewise."""
    kind = type(value)
    said = (_dict_of(each) for each in _mro_of(kind))
    how = next((each["__await__"] for each in said if "__await__" in each), None)
    return how is not None or (kind is GeneratorType and inspect.isawaitable(value))


async def settle(value: Any) -> Any:
    """Return a value, or what it comes to if it can be awaited; a coroutine may come to a future."""
    while True:
        if is_awaitable(value):
            value = await value
        elif is_future(value):
            value = await asyncio.wrap_future(value)
        else:
            return value


class Coroutines:
    """An event loop that runs from its first use until its process ends."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds tasks only weakly

    def _run_forever(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the loop, also after user code has stopped it, or a task of its own has let out what ends a loop."""
        while not loop.is_closed():
            try:
                loop.run_forever()
            except BaseException as error:
                logger.error("a task of the actor's raised\n%s", exceptions.story(error))

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run the coroutine that `work` makes, which raises nothing, whatever happens in it."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(
                target=self._run_forever, args=(self._loop,), name="actorraft-coroutines", daemon=True
            ).start()
        self._loop.call_soon_threadsafe(self._begin, self._loop, work)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the loop's thread, await what it returns if that can be, and return what it comes to."""
        done: Future[Any] = Future()

        async def call() -> None:
            try:
                done.set_result(await settle(function(*args)))
            except BaseException as error:
                done.set_exception(error)

        self.start(call)
        return done.result()

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function in this thread; what it returns is awaited in the loop's, if that can be."""
        value = function(*args)
        if is_awaitable(value) and not is_future(value):  # an answer that is on its way is not waited for
            self.run(lambda: value)

    def _begin(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = loop.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(task, loop, work))

    def _ended(
        self, task: asyncio.Task[None], loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        self._tasks.discard(task)
        if task.cancelled():  # by user code that cancels all there are, before it began: nobody was told of its end
            self._begin(loop, work)
