"""ResultFuture: a `concurrent.futures.Future` that costs little, can be awaited, and cannot be cancelled.

A stock future makes a condition, a lock and two lists for itself. Here one lock serves all, and what only few futures
need (a waiter, a callback) is made when it is asked for. What is done is said for a whole frame of commands at once.

Threads:    every method from any thread; callbacks run in the thread that resolves.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from concurrent.futures._base import FINISHED, RUNNING
from typing import Any, TypeVar

T = TypeVar("T")

_condition = threading.Condition()


class _LazyList:
    """A list that is made at its first use, and an attribute of its own from then on."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> list[Any]:
        made: list[Any] = []
        instance.__dict__[self._name] = made
        return made


class ResultFuture(Future[T]):
    """The outcome of a call that is under way.

    `result(timeout)` waits; giving up waiting does not give up the call. `await` works in asyncio.
    `cancel` is always False: what was sent may be applied.
    """

    # The parts of a stock future's state, shared until they differ.
    _condition = _condition
    _state = RUNNING
    _result: Any = None
    _exception: BaseException | None = None
    _waiters = _LazyList()  # of concurrent.futures.wait and as_completed
    _done_callbacks = _LazyList()
    _sleepers = _LazyList()  # locks of threads in `result` and `exception`

    def __init__(self) -> None:
        pass  # everything is in the class until it is needed

    def result(self, timeout: float | None = None) -> T:
        """Return the result, or raise what the call ended with; TimeoutError if `timeout` seconds pass first."""
        if self._state != FINISHED:
            self._sleep(timeout)
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]  # no cycle through the traceback
        return self._result  # type: ignore[no-any-return]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the call ended with, None if with a result; TimeoutError if `timeout` seconds pass first."""
        if self._state != FINISHED:
            self._sleep(timeout)
        return self._exception

    def _sleep(self, timeout: float | None) -> None:
        sleeper = threading.Lock()
        sleeper.acquire()
        with _condition:
            if self._state == FINISHED:
                return
            self._sleepers.append(sleeper)
        if not sleeper.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            raise TimeoutError(f"no result within {timeout} s; the call goes on")

    def set_result(self, result: T) -> None:
        """End with a result. For the library's use."""
        with _condition:
            self._end(result, None)
        self._tell()

    def set_exception(self, exception: BaseException | None) -> None:
        """End with an exception. For the library's use."""
        with _condition:
            self._end(None, exception)
        self._tell()

    def _end(self, result: Any, exception: BaseException | None) -> None:
        if self._state == FINISHED:
            return  # the first outcome is the one that was promised
        self._result, self._exception, self._state = result, exception, FINISHED

    def _tell(self) -> None:
        """Wake whoever waits, after the end was said under the lock."""
        state = self.__dict__
        for sleeper in state.pop("_sleepers", ()):
            sleeper.release()
        for waiter in state.get("_waiters", ()):
            if self._exception is None:
                waiter.add_result(self)
            else:
                waiter.add_exception(self)
        if "_done_callbacks" in state:
            self._invoke_callbacks()  # type: ignore[attr-defined]

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()


def resolve_many(pairs: Iterable[tuple[ResultFuture[Any], Any]]) -> None:
    """End many futures with results: the lock is taken once, and only those that somebody waits for cost more."""
    told: list[ResultFuture[Any]] = []
    with _condition:
        for future, value in pairs:
            if future._state == FINISHED:
                continue
            state = future.__dict__
            if state:
                told.append(future)
            future._result = value
            future._state = FINISHED
    for future in told:
        future._tell()
