"""ResultFuture: a `concurrent.futures.Future` that costs little, can be awaited, and cannot be cancelled.

A stock future makes a condition, a lock and two lists for itself. Here one lock serves all, and what only few futures
need (a sleeping thread, a callback, an awaiting task) is made when it is asked for. What is done is said for a whole
frame of commands at once: the lock is taken once, and each event loop is woken once.

Invariant:  the first outcome stays; `_watched` is true from the moment that anything must be told of the end.
Threads:    every method from any thread; callbacks run in the thread that resolves, and must not wait for results.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures._base import FINISHED, RUNNING
from typing import Any, TypeVar

logger = logging.getLogger("actorraft")

T = TypeVar("T")

_lock = threading.RLock()  # every future's; also what concurrent.futures.wait takes, once for each future
_condition = threading.Condition(_lock)
os.register_at_fork(after_in_child=_lock._at_fork_reinit)  # type: ignore[attr-defined]  # another thread may hold it


class _Lazy:
    """A list that is made at its first use, and is an attribute of its own from then on."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, future: Any, owner: type) -> list[Any]:
        if future is None:
            return []
        with _lock:
            made: list[Any] = future.__dict__.setdefault(self._name, [])
            future._watched = True
            return made


class ResultFuture(Future[T]):
    """The outcome of a call that is under way.

    `result(timeout)` waits; giving up waiting does not give up the call. `await` works in asyncio. `cancel` is always
    False: what was sent may be applied.
    """

    # A stock future's state, shared by all until they differ.
    _condition = _condition
    _state = RUNNING
    _result: Any = None
    _exception: BaseException | None = None
    _watched = False  # whether somebody must be told of the end
    _waiters = _Lazy()  # of concurrent.futures.wait and as_completed
    _done_callbacks = _Lazy()
    _sleepers = _Lazy()  # locks of threads in `result` and `exception`
    _tasks = _Lazy()  # (loop, asyncio future) of tasks that await

    __init__ = object.__init__  # nothing to do until something is needed; and no Python call for that

    # --- Waiting ---

    def done(self) -> bool:
        """Whether it has ended. The stock one takes the lock for that, which is a fifth of what a client does."""
        return self._state is FINISHED

    def running(self) -> bool:
        """Whether it is under way."""
        return self._state is not FINISHED

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
        with _lock:
            if self._state == FINISHED:
                return
            self._sleepers.append(sleeper)
        if timeout is None or timeout > threading.TIMEOUT_MAX:
            sleeper.acquire()
        elif not sleeper.acquire(timeout=max(0.0, timeout)):
            with _lock:
                if self._state != FINISHED:
                    self._sleepers.remove(sleeper)
                    raise TimeoutError(f"no result within {timeout} s; the call goes on")

    def __await__(self) -> Generator[Any, None, T]:
        if self._state != FINISHED:
            loop = asyncio.get_running_loop()
            woken = loop.create_future()
            with _lock:
                if self._state != FINISHED:
                    self._tasks.append((loop, woken))
                else:
                    woken.set_result(None)
            yield from woken  # cancelling the task ends this wait, not the call
        return self.result()

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Have `fn(self)` called when the call has ended; at once if it has."""
        with _lock:
            if self._state != FINISHED:
                self._done_callbacks.append(fn)
                return
        _call(fn, self)

    # --- The end: for the library's use ---

    def set_result(self, result: T) -> None:
        """End with a result, unless it has ended."""
        resolve_many(((self, result),))

    def set_exception(self, exception: BaseException | None) -> None:
        """End with an exception, unless it has ended."""
        assert exception is not None
        resolve_many((), ((self, exception),))

    def set_running_or_notify_cancel(self) -> bool:
        """Say that it runs: it always did, and cannot be cancelled."""
        return True


def resolve_many(
    results: Iterable[tuple[ResultFuture[Any], Any]],
    failures: Sequence[tuple[ResultFuture[Any], BaseException]] = (),
) -> None:
    """End many futures: the lock is taken once, and only those that somebody waits for cost more.

    Args:
        results: (future, its result); a future that has ended already stays as it is.
        failures: (future, what it ends with).
    """
    told: list[ResultFuture[Any]] = []
    finished = FINISHED
    with _lock:
        for future, value in results:
            if future._state is finished:
                continue
            future._result = value
            future._state = finished
            if future._watched:
                told.append(future)
        for future, error in failures:
            if future._state is finished:
                continue
            future._exception = error
            future._state = finished
            if future._watched:
                told.append(future)
        if told:
            _tell_waiters(told)
    if told:
        _tell(told)


def _tell_waiters(futures: list[ResultFuture[Any]]) -> None:
    """Tell concurrent.futures.wait and as_completed, which want it under the lock."""
    for future in futures:
        for waiter in future.__dict__.get("_waiters", ()):
            if future._exception is None:
                waiter.add_result(future)
            else:
                waiter.add_exception(future)


def _tell(futures: list[ResultFuture[Any]]) -> None:
    """Wake whoever sleeps or awaits, then call back. Nobody adds to these lists once a future has ended."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for future in futures:
        state = future.__dict__
        for sleeper in state.pop("_sleepers", ()):
            sleeper.release()
        for loop, woken in state.pop("_tasks", ()):
            loops.setdefault(loop, []).append(woken)
    for loop, several in loops.items():
        try:
            loop.call_soon_threadsafe(_wake, several)
        except RuntimeError:
            continue  # the loop is closed: nobody awaits there any more
    for future in futures:
        for callback in future.__dict__.pop("_done_callbacks", ()):
            _call(callback, future)


def _wake(several: list[asyncio.Future[None]]) -> None:
    for woken in several:
        if not woken.done():  # its task may have been cancelled
            woken.set_result(None)


def _call(callback: Callable[[Any], object], future: ResultFuture[Any]) -> None:
    try:
        callback(future)
    except Exception:
        logger.exception("a callback of %r raised", future)
