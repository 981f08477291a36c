"""ResultFuture: a `concurrent.futures.Future` that costs little, can be awaited, and cannot be cancelled.

A stock future makes a condition, a lock and two lists for itself, and whoever waits or resolves holds that lock for a
moment. A signal handler may run in that moment, in the thread that holds it, and may make a call itself: the thread
that should answer would wait for the lock, and the handler for the answer, for ever. So there is no lock here at all.
Whoever waits first puts itself into a list and then looks whether the future has ended; whoever ends it first says so
and then looks into the lists. One of the two sees the other, and taking something out of a list is one step, so
nobody is told twice. What only few futures need is made when it is asked for.

Invariant:  the first outcome stays; `_watched` is true from the moment that anything must be told of the end.
Threads:    every method from any thread, but one future is ended by one thread at a time. Callbacks run in the thread
            that ends it, and must not wait for results.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import numbers
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures._base import FINISHED, RUNNING
from typing import Any, NoReturn, TypeVar

from actorraft.errors import ActorRaftError, OutcomeUnknown, UsageError
from actorraft.loggers import guarded_logger
from actorraft.steady import monotonic

logger = guarded_logger("actorraft")

T = TypeVar("T")

LATE_S = 1.0  # how long after its deadline a call is ended by whoever waits for it, if its I/O thread has not

no_waiting_in = 0  # the thread in which a replicated actor takes a message; 0: none does


class WrongArguments(UsageError, TypeError):
    """An argument is of the wrong kind, or does not fit the method's signature; nothing was sent."""


def check_timeout(timeout: Any, name: str = "timeout") -> float | None:
    """Return a number of seconds, None for ever.

    Raises:
        WrongArguments: it is no number.
        UsageError: it is below 0, or not a number in the sense of nan.
    """
    if timeout is None or (type(timeout) is float and 0.0 <= timeout < math.inf):
        return timeout
    if isinstance(timeout, bool) or not isinstance(timeout, numbers.Real):
        raise WrongArguments(f"{name} is a number of seconds, or None for ever, not {timeout!r}")
    try:
        seconds = float(timeout)
    except OverflowError:  # a whole number that no float holds
        number: Any = timeout
        seconds = math.inf if number > 0 else -math.inf
    if not seconds >= 0.0:
        raise UsageError(f"{name} is 0 or more seconds, or None for ever, not {timeout!r}")
    return None if math.isinf(seconds) else seconds


def must_not_wait() -> bool:
    """Whether this thread takes a message of a replicated actor: each replica would wait for something else there."""
    return no_waiting_in != 0 and no_waiting_in == threading.get_ident()


def _check_waiting() -> None:
    if must_not_wait():
        raise UsageError(
            "a replicated actor waits for nothing in the turn of a message: have the answer come as a message, by "
            "self.ask(ref, message, then=Class.method)"
        )


class _Lazy:
    """A list that is made at its first use, and is an attribute of its own from then on."""

    def __init__(self, make: Callable[[Any], list[Any]]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, future: Any, owner: type) -> list[Any]:
        if future is None:
            return []
        future._watched = True
        made: list[Any] = future.__dict__.setdefault(self._name, self._make(future))
        return made


class _Waiters(list[Any]):
    """Those of `concurrent.futures.wait` and `as_completed`: one that was told RUNNING is told of the end, once."""

    def __init__(self, future: Any) -> None:
        super().__init__()
        self._future = future

    def append(self, waiter: Any) -> None:
        super().append(waiter)
        if self._future._ended and "_said_running" in self._future.__dict__:
            _tell_waiters(self._future)

    def remove(self, waiter: Any) -> None:
        with contextlib.suppress(ValueError):  # it was told
            super().remove(waiter)


class _State:
    """What `concurrent.futures.wait` and `as_completed` see as `_state`.

    They read it under a lock that does not exist here, and count on it not to change before they are in `_waiters`. So
    once it was RUNNING for one of them it stays so, and the future has ended for them when their waiter was told.
    """

    def __get__(self, future: Any, owner: type) -> str:
        if future is None or "_said_running" in future.__dict__:
            return RUNNING
        if future._ended:
            return FINISHED
        future._said_running = True
        return RUNNING

    def __set__(self, future: Any, value: str) -> None:
        raise AttributeError("a ResultFuture's state is its own")


class _NoLock:
    """In the place of a stock future's condition."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        return


class ResultFuture(Future[T]):
    """The outcome of a call that is under way.

    `result(timeout)` waits; giving up waiting does not give up the call. `await` works in asyncio. `cancel` is always
    False: what was sent may be applied.

    Attributes:
        index: of the log entry in which a command was applied, once it has; None else. A query with it as `min_index`
            sees the command's effect, whoever serves it.
    """

    index: int | None = None

    _ended = False
    _result: Any = None
    _exception: BaseException | None = None
    _watched = False  # whether somebody must be told of the end
    deadline_s: float | None = None  # by the steady clock: when whoever ends it has to have done so
    overdue: type[ActorRaftError] = OutcomeUnknown  # what a call is that nobody has ended by then
    _condition: Any = _NoLock()
    _state: Any = _State()
    _waiters = _Lazy(_Waiters)  # of concurrent.futures.wait and as_completed
    _done_callbacks = _Lazy(lambda _: [])
    _sleepers = _Lazy(lambda _: [])  # locks of threads in `result` and `exception`
    _tasks = _Lazy(lambda _: [])  # (loop, asyncio future) of tasks that await

    __init__ = object.__init__  # nothing to do until something is needed; and no Python call for that

    # --- Waiting ---

    def done(self) -> bool:
        """Return whether it has ended."""
        return self._ended

    def running(self) -> bool:
        """Return whether it is under way."""
        return not self._ended

    def cancelled(self) -> bool:
        """Return False: see `cancel`."""
        return False

    def cancel(self) -> bool:
        """Return False: what was sent may be applied, so it cannot be taken back."""
        return False

    def result(self, timeout: float | None = None) -> T:
        """Return the result, or raise what the call ended with; TimeoutError if `timeout` seconds pass first."""
        if not self._ended:
            self._sleep(timeout)
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]  # no cycle through the traceback
        return self._result  # type: ignore[no-any-return]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the call ended with, None if with a result; TimeoutError if `timeout` seconds pass first."""
        if not self._ended:
            self._sleep(timeout)
        return self._exception

    def _sleep(self, timeout: float | None) -> None:
        if no_waiting_in:
            _check_waiting()
        given: Any = timeout
        if given is not None and (not isinstance(given, numbers.Real) or given != given):
            raise UsageError(f"timeout is a number of seconds, or None for ever, not {timeout!r}")
        sleeper = threading.Lock()
        sleeper.acquire()
        self._sleepers.append(sleeper)
        if self.done():  # before it could know of us
            return
        patience_s = timeout
        if self.deadline_s is not None:
            late_s = self.deadline_s + LATE_S - monotonic()
            patience_s = late_s if timeout is None else min(timeout, late_s)
        if patience_s is None or patience_s > threading.TIMEOUT_MAX:
            sleeper.acquire()
        elif not sleeper.acquire(timeout=float(max(0.0, patience_s))):
            try:
                self._sleepers.remove(sleeper)
            except ValueError:
                return  # it has ended just now
            if patience_s is not timeout:
                raise self.overdue(
                    "the time of this call is over and the thread that should have ended it has not: it is held up, by "
                    "a callback that waits for something perhaps"
                )
            raise TimeoutError(f"no result within {timeout} s; the call goes on")

    def __await__(self) -> Generator[Any, None, T]:
        if not self._ended:
            _check_waiting()
            loop = running_loop("await a ResultFuture", "future.result")
            woken = loop.create_future()
            self._tasks.append((loop, woken))
            if self.done():  # before it could know of us
                _wake([woken])
            yield from woken  # cancelling the task ends this wait, not the call
        return self.result()

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Have `fn(self)` called when the call has ended; at once if it has."""
        self._done_callbacks.append(fn)
        if self._ended:
            _call_back(self, Exception)  # in the user's own thread, where Ctrl-C is the user's too

    # --- The end: for the library's use ---

    def set_result(self, result: T) -> None:
        """End with a result, unless it has ended."""
        resolve_many(((self, result),))

    def set_exception(self, exception: BaseException | None) -> None:
        """End with an exception, unless it has ended."""
        assert exception is not None
        resolve_many((), ((self, exception),))

    def set_running_or_notify_cancel(self) -> bool:
        """Return True: it runs from the start, and cannot be cancelled."""
        return True

    # --- What it is ---

    def __reduce_ex__(self, _: Any) -> NoReturn:
        raise TypeError("a future belongs to the process that made the call; send its result()")

    def __repr__(self) -> str:
        if not self._ended:
            return f"<ResultFuture at {id(self):#x} under way>"
        kind = type(self._result if self._exception is None else self._exception).__qualname__
        return f"<ResultFuture at {id(self):#x} finished, {'returned' if self._exception is None else 'raised'} {kind}>"


def running_loop(what: str, instead: str) -> asyncio.AbstractEventLoop:
    """Return asyncio's loop that runs in this thread.

    Args:
        what: is to be done in it, in words.
        instead: what blocks, and does the same in a thread.

    Raises:
        UsageError: there is none: another library's runs here, trio's perhaps.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(
            f"only asyncio (and what replaces its loop, as uvloop does) can {what}; under trio: "
            f"await trio.to_thread.run_sync({instead})"
        ) from None


def resolve_many(
    results: Iterable[tuple[ResultFuture[Any], Any]],
    failures: Sequence[tuple[ResultFuture[Any], BaseException]] = (),
    index: int | None = None,
) -> None:
    """End many futures: those that nobody waits for cost two assignments each, and each event loop is woken once.

    Args:
        results: (future, its result); a future that has ended already stays as it is.
        failures: (future, what it ends with).
        index: of the log entry in which they were applied.
    """
    told: list[ResultFuture[Any]] = []
    for future, value in results:
        if future._ended:
            continue
        future._result = value
        future.index = index
        future._ended = True
        if future._watched:
            told.append(future)
    for future, error in failures:
        if future._ended:
            continue
        future._exception = error
        future.index = index
        future._ended = True
        if future._watched:
            told.append(future)
    if told:
        _tell(told)


def end_untold(futures: Iterable[ResultFuture[Any]], error: BaseException) -> None:
    """End futures in a process that was forked: who waited for them is in the other one, and is told there."""
    for future in futures:
        if not future._ended:
            for name in ("_sleepers", "_tasks", "_waiters", "_done_callbacks"):
                future.__dict__.pop(name, None)
            future._exception = error
            future._ended = True


def _tell(futures: list[ResultFuture[Any]]) -> None:
    """Wake whoever sleeps or awaits, all of them, before anything that might be held up; then call back."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for future in futures:
        state = future.__dict__
        if (sleepers := state.get("_sleepers")) is not None:
            while sleepers:
                try:
                    sleeper = sleepers.pop(0)
                except IndexError:
                    break
                sleeper.release()
        if (tasks := state.get("_tasks")) is not None:
            for loop, woken in _taken(tasks):
                loops.setdefault(loop, []).append(woken)
    for loop, several in loops.items():
        try:
            loop.call_soon_threadsafe(_wake, several)
        except RuntimeError:
            continue  # the loop is closed: nobody awaits there any more
        except BaseException as error:  # a loop of the user's own
            log_raised("the event loop in which a call is awaited", error)
    for future in futures:
        state = future.__dict__
        if "_waiters" in state:
            _tell_waiters(future)
        if "_done_callbacks" in state:
            _call_back(future)


def _taken(waiting: list[Any]) -> Iterable[Any]:
    """Take out one after the other, so that each is somebody's only once."""
    while waiting:
        try:
            yield waiting.pop(0)
        except IndexError:
            return


def _tell_waiters(future: ResultFuture[Any]) -> None:
    waiters = future.__dict__.get("_waiters")
    for waiter in _taken(waiters) if waiters is not None else ():
        if future._exception is None:
            waiter.add_result(future)
        else:
            waiter.add_exception(future)


def _call_back(future: ResultFuture[Any], kept: type[BaseException] = BaseException) -> None:
    """Call what waits for the end. It is the user's: nothing that it raises ends a thread of ours."""
    callbacks = future.__dict__.get("_done_callbacks")
    for callback in _taken(callbacks) if callbacks is not None else ():
        try:
            callback(future)
        except kept as error:
            log_raised(f"a callback of {future!r}", error)


def log_raised(what: str, error: BaseException) -> None:
    """Write down that code of the user's raised, even if what it raised cannot be written down."""
    try:
        logger.error("%s raised", what, exc_info=error)
    except BaseException:
        logger.error("%s raised a %s, and that raises when it is to be shown", what, type(error).__qualname__)


def _wake(several: list[asyncio.Future[None]]) -> None:
    for woken in several:
        if not woken.done():  # its task may have been cancelled
            woken.set_result(None)
