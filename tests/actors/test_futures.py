"""ResultFuture: everything that a concurrent.futures.Future promises, and what it adds."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, as_completed, wait
from concurrent.futures import TimeoutError as FuturesTimeoutError
from typing import Any

import pytest

from actorraft import OutcomeUnknown, UsageError, futures
from actorraft.futures import LATE_S, ResultFuture, resolve_many
from actorraft.steady import monotonic

End = Callable[["ResultFuture[Any]"], None]
RESULT: End = lambda future: future.set_result(7)  # noqa: E731
FAILURE: End = lambda future: future.set_exception(KeyError("k"))  # noqa: E731


def soon(action: Callable[[], Any]) -> threading.Thread:
    """Do something in another thread, as soon as it gets its turn."""
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def test_a_future_is_running_until_it_has_ended_and_cannot_be_cancelled() -> None:
    future: ResultFuture[int] = ResultFuture()

    assert (future.running(), future.done(), future.cancelled(), future.cancel()) == (True, False, False, False)
    future.set_result(7)
    assert (future.running(), future.done(), future.cancelled(), future.cancel()) == (False, True, False, False)
    assert future.result() == 7
    assert future.exception() is None
    assert "finished" in repr(future)


def test_an_exception_is_raised_by_result_and_returned_by_exception() -> None:
    future: ResultFuture[int] = ResultFuture()
    error = KeyError("k")
    future.set_exception(error)

    with pytest.raises(KeyError):
        future.result()
    assert future.exception() is error


def test_the_first_outcome_stays() -> None:
    future: ResultFuture[int] = ResultFuture()

    future.set_result(1)
    future.set_result(2)
    future.set_exception(KeyError())
    resolve_many([(future, 3)], [(future, KeyError())])

    assert future.result() == 1


@pytest.mark.parametrize("timeout", [None, 20.0, 1e300])
def test_result_and_exception_wait_in_any_number_of_threads(timeout: float | None) -> None:
    future: ResultFuture[int] = ResultFuture()
    heard: list[Any] = []
    threads = [soon(lambda: heard.append(future.result(timeout))) for _ in range(4)]
    threads += [soon(lambda: heard.append(future.exception(timeout)))]

    future.set_result(7)

    for thread in threads:
        thread.join(20.0)
    assert sorted(map(str, heard)) == ["7", "7", "7", "7", "None"]


@pytest.mark.parametrize("timeout", [0, 0.01, -1])
def test_giving_up_waiting_does_not_give_up_the_call(timeout: float) -> None:
    future: ResultFuture[int] = ResultFuture()

    with pytest.raises(FuturesTimeoutError):
        future.result(timeout)
    with pytest.raises(TimeoutError):
        future.exception(timeout)
    future.set_result(7)

    assert future.result(timeout) == 7


@pytest.mark.parametrize("end", [RESULT, FAILURE])
def test_callbacks_are_called_once_in_order_and_late_ones_at_once(end: End) -> None:
    future: ResultFuture[int] = ResultFuture()
    called: list[Any] = []
    future.add_done_callback(lambda f: called.append(("first", f is future, f.done())))
    future.add_done_callback(lambda f: called.append("second"))

    end(future)
    end(future)
    future.add_done_callback(lambda f: called.append("late"))

    assert called == [("first", True, True), "second", "late"]


def test_a_callback_that_raises_is_logged_and_the_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    future: ResultFuture[int] = ResultFuture()
    called: list[Any] = []
    future.add_done_callback(lambda f: 1 // 0)
    future.add_done_callback(called.append)

    future.set_result(7)

    assert called == [future]
    assert "ZeroDivisionError" in caplog.text


def test_a_callback_may_add_a_callback_and_use_other_futures() -> None:
    one: ResultFuture[int] = ResultFuture()
    two: ResultFuture[int] = ResultFuture()
    called: list[Any] = []
    one.add_done_callback(lambda f: (f.add_done_callback(called.append), two.set_result(f.result() + 1)))

    one.set_result(1)

    assert called == [one]
    assert two.result() == 2


@pytest.mark.parametrize("end", [RESULT, FAILURE])
def test_wait_and_as_completed_see_it(end: End) -> None:
    early, late, never = futures = [ResultFuture[Any]() for _ in range(3)]
    end(early)
    thread = soon(lambda: end(late))

    assert wait(futures, return_when=FIRST_COMPLETED).done >= {early}
    assert {*as_completed([early, late], timeout=20.0)} == {early, late}
    thread.join()
    assert wait(futures, timeout=0).not_done == {never}
    with pytest.raises(TimeoutError):
        list(as_completed(futures, timeout=0))


def test_wait_for_the_first_exception() -> None:
    one, two = ResultFuture[Any](), ResultFuture[Any]()
    thread = soon(lambda: FAILURE(one))

    done, not_done = wait([one, two], timeout=20.0, return_when=FIRST_EXCEPTION)

    thread.join()
    assert (done, not_done) == ({one}, {two})


def test_many_are_resolved_together_whoever_waits_for_them() -> None:
    futures = [ResultFuture[Any]() for _ in range(1000)]
    called: list[Any] = []
    heard: list[Any] = []
    futures[3].add_done_callback(called.append)
    threads = [soon(lambda: heard.append(futures[5].result(20.0))), soon(lambda: heard.append(wait(futures, 20.0)))]

    error = KeyError("k")
    resolve_many(zip(futures[:999], range(999), strict=True), [(futures[999], error)])

    for thread in threads:
        thread.join(20.0)
    assert [future.result() for future in futures[:999]] == list(range(999))
    assert futures[999].exception() is error
    assert called == [futures[3]]
    assert len(heard) == 2


@pytest.mark.parametrize("before", [True, False])
def test_it_can_be_awaited(before: bool) -> None:
    async def main() -> None:
        good, bad = ResultFuture[Any](), ResultFuture[Any]()
        if before:
            RESULT(good), FAILURE(bad)
        else:
            asyncio.get_running_loop().call_soon(lambda: (RESULT(good), FAILURE(bad)))
        assert await good == 7
        with pytest.raises(KeyError):
            await bad
        assert await asyncio.wrap_future(good) == 7

    asyncio.run(main())


def test_a_thousand_tasks_are_woken_from_another_thread() -> None:
    async def main() -> list[Any]:
        futures = [ResultFuture[Any]() for _ in range(1000)]

        async def one(future: ResultFuture[Any]) -> Any:
            return await future

        tasks = [asyncio.create_task(one(future)) for future in futures]
        await asyncio.sleep(0)
        thread = soon(lambda: resolve_many(zip(futures, range(1000), strict=True)))
        try:
            return await asyncio.gather(*tasks)
        finally:
            thread.join()

    assert asyncio.run(main()) == list(range(1000))


def test_a_cancelled_task_ends_the_wait_and_not_the_call() -> None:
    async def main() -> None:
        future = ResultFuture[Any]()

        async def one() -> Any:
            return await future

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one(), 0.001)
        assert not future.done()
        future.set_result(7)
        assert await future == 7

    asyncio.run(main())


def test_a_future_whose_loop_is_closed_ends_all_the_same() -> None:
    future = ResultFuture[Any]()

    async def main() -> None:
        task = asyncio.ensure_future(asyncio.shield(_await(future)))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(main())
    future.set_result(7)

    assert future.result() == 7


async def _await(future: ResultFuture[Any]) -> Any:
    return await future


def test_a_fork_while_another_thread_resolves_inherits_nothing_of_that() -> None:
    holding, done = threading.Event(), threading.Event()
    held: ResultFuture[int] = ResultFuture()
    held.add_done_callback(lambda _: (holding.set(), done.wait(20.0)))
    thread = soon(lambda: held.set_result(1))
    holding.wait(20.0)

    fork = os.fork()
    if fork == 0:
        future: ResultFuture[int] = ResultFuture()
        future.set_result(7)
        os._exit(0 if future.result(0) == 7 else 1)
    done.set()
    thread.join()

    assert os.waitpid(fork, 0)[1] == 0


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException()])
def test_whatever_a_callback_raises_the_thread_that_resolves_goes_on(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    future, other = ResultFuture[int](), ResultFuture[int]()
    called: list[Any] = []

    def raises(_: Any) -> None:
        raise error

    for callback in (raises, called.append):
        future.add_done_callback(callback)
    other.add_done_callback(called.append)

    resolve_many([(future, 1), (other, 2)])

    assert called == [future, other]
    assert "raised" in caplog.text


def test_a_callback_that_raises_what_cannot_be_shown_is_logged_by_its_name(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(Exception):
        @property
        def __notes__(self) -> Any:
            raise SystemExit(4)

    def raises(_: Any) -> None:
        raise Odd

    future = ResultFuture[int]()
    future.add_done_callback(raises)
    future.set_result(1)

    assert "Odd" in caplog.text


def test_a_future_is_not_sent_to_another_process() -> None:
    for dump in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="send its result"):
            dump(ResultFuture[int]())


def test_a_call_whose_time_is_over_ends_for_who_waits_even_if_nobody_ends_it() -> None:
    future = ResultFuture[int]()
    future.deadline_s = monotonic() - LATE_S

    with pytest.raises(OutcomeUnknown, match="held up"):
        future.result()
    with pytest.raises(TimeoutError):
        future.exception(0.0)
    future.set_result(7)

    assert future.result() == 7


def test_a_signal_handler_waits_while_its_thread_is_in_the_middle_of_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever line the main thread is at, a future that the handler waits for is ended by another thread."""
    future = ResultFuture[int]()
    seen = 0

    def handler(*_: Any) -> None:
        inner = ResultFuture[int]()
        thread = soon(lambda: resolve_many([(inner, 1)]))
        assert inner.result(20.0) == 1
        thread.join()

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal seen
        if event == "line" and frame.f_code.co_filename == futures.__file__:
            seen += 1
            sys.settrace(None)
            handler()
            sys.settrace(trace)
        return trace

    sys.settrace(trace)
    try:
        future.add_done_callback(lambda _: None)
        with pytest.raises(TimeoutError):
            future.result(0.0)
        wait([future], timeout=0)
        repr(future)
        future.set_result(3)
        future.result()
        future.add_done_callback(lambda _: None)
    finally:
        sys.settrace(None)
    assert seen > 30


def test_a_future_that_ends_while_wait_or_as_completed_begin_is_told_once() -> None:
    """At each line of the future's own code that `wait` runs, another thread ends it: nobody waits for ever."""
    for ways, both in (
        (lambda f, g: wait([f, g], timeout=20.0).not_done, True),
        (lambda f, g: {f, g} - set(as_completed([f, g], timeout=20.0)), True),
        (lambda f, g: {f} - wait([f, g], timeout=20.0, return_when=FIRST_COMPLETED).done, False),
    ):
        for stop_at in range(1, 40):
            one, other = ResultFuture[int](), ResultFuture[int]()
            lines = 0

            def trace(frame: Any, event: str, _: Any, one: Any = one, stop_at: int = stop_at) -> Any:
                nonlocal lines
                if event == "line" and frame.f_code.co_filename == futures.__file__:
                    lines += 1
                    if lines == stop_at:
                        sys.settrace(None)
                        soon(lambda: one.set_result(1)).join()
                return trace

            ends = [(other, 2), (one, 1)] if both else [(one, 1)]  # the first to complete is `one`, or that is a race
            thread = threading.Timer(0.002, resolve_many, [ends])
            thread.start()
            sys.settrace(trace)
            try:
                left = ways(one, other)
            finally:
                sys.settrace(None)
                thread.join()
            assert not left


@pytest.mark.parametrize("name", ["trio"])
def test_another_event_loop_is_told_what_to_do(name: str) -> None:
    future = ResultFuture[int]()

    with pytest.raises(UsageError, match=name):
        future.__await__().send(None)


@pytest.mark.parametrize("error", [SystemExit(), KeyboardInterrupt(), ValueError("another kind of loop")])
def test_an_event_loop_that_raises_when_it_is_woken_keeps_nothing_from_others(error: BaseException) -> None:
    class Loop(asyncio.SelectorEventLoop):
        def call_soon_threadsafe(self, *_: Any, **__: Any) -> Any:
            raise error

    awaited, other = ResultFuture[int](), ResultFuture[int]()
    told: list[int] = []
    other.add_done_callback(lambda future: told.append(future.result()))

    async def wait() -> int:
        return await awaited

    loop = Loop()
    task = loop.create_task(wait())
    loop.call_soon(loop.stop)
    loop.run_forever()  # until it waits
    resolve_many([(awaited, 1), (other, 2)])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()

    assert told == [2]
    assert awaited.result() == 1
