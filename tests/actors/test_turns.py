"""What becomes of a message that raises, that awaits, that stops its actor; and of the messages an actor sets itself."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import actorraft
from actorraft.actors.actor import Actor
from actorraft.actors.coroutines import Coroutines
from actorraft.actors.ref import ActorRef
from actorraft.actors.spawn import ActorOptions
from actorraft.actors.supervision import Supervision
from actorraft.actors.system import system
from actorraft.errors import ActorDead, CommandFailed, UsageError
from tests.actors.helpers import take_time_to_leave, until

pytestmark = pytest.mark.cluster

Start = Callable[..., ActorRef]


class Doer(Actor):
    """Does what the message says, and keeps what failed."""

    def on_start(self) -> None:
        self.failed: list[Any] = []

    def receive(self, message: Any) -> Any:
        return message(self)

    def on_failure(self, error: BaseException, message: Any) -> None:
        self.failed.append((type(error).__name__, message))


class Waiter(Actor):
    """Does what the message says and awaits it."""

    async def on_start(self) -> None:
        await asyncio.sleep(0)
        self.log: list[Any] = ["started"]

    async def receive(self, message: Any) -> Any:
        return await message(self)

    async def on_failure(self, error: BaseException, message: Any) -> None:
        await asyncio.sleep(0)
        self.log.append(type(error).__name__)

    def plain(self) -> list[Any]:
        return self.log


async def log(actor: Any) -> Any:
    return actor.log


# --- What it raises ---


@pytest.mark.parametrize("kind", [KeyError, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration])
def test_whatever_a_tell_raises_the_actor_lives_with_its_state_and_is_told(start: Start, kind: type) -> None:
    ref = start(Doer)
    pid = ref.pid

    def fail(actor: Any) -> None:
        raise kind("it")

    ref.tell(fail)

    ((name, message),) = ref.ask(lambda actor: actor.failed).result(20.0)
    assert name == kind.__name__
    with pytest.raises(kind):
        message(None)
    assert ref.pid == pid
    assert ref.counts()["failures"] == 1


def test_what_a_tell_raises_is_in_the_log_under_the_actors_name(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    ref = start(Doer, name="logged")

    with caplog.at_level(logging.INFO, "actorraft"):
        ref.tell(lambda actor: {}["no such key"])
        until(lambda: any("no such key" in record.getMessage() for record in caplog.records))

    (record,) = [each for each in caplog.records if "no such key" in each.getMessage()]
    assert record.name == "actorraft.actor.logged"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, StopIteration])
def test_what_ends_an_interpreter_reaches_who_asked_as_what_it_said(start: Start, kind: type) -> None:
    ref = start(Doer)

    def fail(actor: Any) -> None:
        raise kind("it")

    with pytest.raises(CommandFailed, match=f"{kind.__name__}: it"):
        ref.ask(fail).result(20.0)
    assert ref.ask(lambda actor: actor.failed).result(20.0) == []


class Unshowable(Exception):
    def __str__(self) -> str:
        raise SystemExit("shown")


def test_an_exception_that_raises_when_it_is_shown_harms_neither_side(start: Start) -> None:
    ref = start(Doer)

    def fail(actor: Any) -> None:
        raise Unshowable

    ref.tell(fail)
    with pytest.raises(CommandFailed, match="Unshowable"):
        ref.ask(fail).result(20.0)
    assert ref.ask(lambda actor: len(actor.failed)).result(20.0) == 1


def test_an_on_failure_that_raises_ends_nothing(start: Start) -> None:
    class Clumsy(Doer):
        def on_failure(self, error: BaseException, message: Any) -> None:
            raise SystemExit(3)

    ref = start(Clumsy)
    ref.tell(lambda actor: 1 // 0)

    assert ref.ask(lambda actor: "here").result(20.0) == "here"


def test_after_an_ask_too_an_actor_that_is_to_crash_starts_again_and_who_asked_knows(start: Start) -> None:
    ref = start(Doer, supervision=Supervision(on_error="restart", backoff_s=(0.01, 0.01)))
    pid = ref.pid

    with pytest.raises(ZeroDivisionError):
        ref.ask(lambda actor: 1 // 0).result(20.0)

    until(lambda: ref.pid not in (pid, None))
    assert ref.ask(lambda actor: "back", timeout=20.0).result() == "back"


def test_a_call_of_what_is_no_method_restarts_nothing(start: Start) -> None:
    ref = start(Doer, supervision=Supervision(on_error="restart"))
    pid = ref.pid

    with pytest.raises(AttributeError):
        ref.proxy().nothing()

    assert ref.ask(lambda actor: 1).result(20.0) == 1
    assert ref.pid == pid


class Liar:
    @property
    def __class__(self) -> type:  # type: ignore[override]
        raise RuntimeError("it is nothing that anybody may know")


def test_an_answer_that_raises_when_it_is_asked_what_it_is_ends_nothing(start: Start) -> None:
    ref = start(Doer)
    pid = ref.pid

    with pytest.raises(UsageError, match="Liar"):
        ref.ask(lambda actor: Liar()).result(20.0)

    assert ref.ask(lambda actor: 1).result(20.0) == 1
    assert ref.pid == pid


# --- What it awaits ---


def test_coroutines_are_awaited_and_their_results_answer(start: Start) -> None:
    ref = start(Waiter)

    async def double(actor: Any) -> int:
        await asyncio.sleep(0.001)
        return 42

    assert ref.ask(double).result(20.0) == 42
    assert ref.ask(log).result(20.0) == ["started"]
    assert ref.proxy().plain() == ["started"]


def test_a_coroutine_that_raises_after_a_tell_is_told_of_and_after_an_ask_answers(start: Start) -> None:
    ref = start(Waiter)

    async def fail(actor: Any) -> None:
        await asyncio.sleep(0)
        raise KeyError("it")

    async def leave(actor: Any) -> None:
        sys.exit(3)

    ref.tell(fail)
    ref.tell(leave)
    with pytest.raises(KeyError):
        ref.ask(fail).result(20.0)

    assert ref.ask(log).result(20.0) == ["started", "KeyError", "SystemExit"]


def test_messages_of_an_asynchronous_actor_are_taken_one_after_another_unless_it_says_otherwise(start: Start) -> None:
    async def enter_and_leave(actor: Any) -> int:
        actor.inside = getattr(actor, "inside", 0) + 1
        most = actor.inside
        for _ in range(20):
            await asyncio.sleep(0.002)
            most = max(most, actor.inside)
        actor.inside -= 1
        return most

    alone, together = start(Waiter), start(Waiter, concurrency=3)

    assert max(ask.result(20.0) for ask in [alone.ask(enter_and_leave) for _ in range(6)]) == 1
    assert max(ask.result(20.0) for ask in [together.ask(enter_and_leave) for _ in range(9)]) == 3


def test_stop_waits_for_what_is_being_awaited(start: Start) -> None:
    ref = start(Waiter, concurrency=4)

    async def slow(actor: Any) -> str:
        await asyncio.sleep(0.2)
        return "done"

    answers = [ref.ask(slow) for _ in range(3)]
    ref.stop()

    assert [answer.result(20.0) for answer in answers] == ["done"] * 3
    until(lambda: not ref.is_alive())


def test_a_plain_actor_may_return_what_can_be_awaited(start: Start) -> None:
    async def slow() -> str:
        await asyncio.sleep(0.01)
        return "done"

    assert start(Doer).ask(lambda actor: slow()).result(20.0) == "done"


def test_a_coroutine_may_come_to_a_future(start: Start) -> None:
    ref = start(Waiter)

    async def forward(actor: Any) -> Future[str]:
        future: Future[str] = Future()
        future.set_result("done")
        return future

    assert ref.ask(forward).result(20.0) == "done"


def test_hooks_of_a_plain_actor_may_return_what_can_be_awaited(start: Start) -> None:
    def wrapped(function: Any) -> Any:
        return lambda *args: function(*args)

    class Wrapped(Doer):
        @wrapped
        async def on_start(self) -> None:
            await asyncio.sleep(0)
            self.failed = []

        @wrapped
        async def on_failure(self, error: BaseException, message: Any) -> None:
            await asyncio.sleep(0)
            self.failed.append(type(error).__name__)

    ref = start(Wrapped)
    ref.tell(lambda actor: 1 // 0)

    assert ref.ask(lambda actor: actor.failed).result(20.0) == ["ZeroDivisionError"]


def cancel_before_it_begins(actor: Any) -> bool:
    """Begin work in an event loop, and cancel its task at once; return whether it is done all the same."""
    coroutines, done = Coroutines(), threading.Event()

    async def work() -> None:
        done.set()

    async def begin_and_cancel_all() -> int:
        coroutines._begin(asyncio.get_running_loop(), work)
        return sum(task.cancel() for task in asyncio.all_tasks() - {asyncio.current_task()})

    return coroutines.run(begin_and_cancel_all) == 1 and done.wait(60.0)


def test_a_message_whose_task_was_cancelled_before_it_began_is_taken_all_the_same(start: Start) -> None:
    assert start(Doer).ask(cancel_before_it_begins, timeout=None).result(60.0)


def test_concurrency_is_for_actors_with_coroutines() -> None:
    with pytest.raises(UsageError, match="async def"):
        ActorOptions(concurrency=2).spawn(Doer)
    with pytest.raises(UsageError, match="concurrency"):
        ActorOptions(concurrency=0)
    with pytest.raises(UsageError, match="on_error"):
        Supervision(on_error="explode")  # type: ignore[arg-type]


def test_an_actor_with_coroutines_is_not_replicated() -> None:
    with pytest.raises(UsageError, match="async def"):
        actorraft.ActorOptions(replicas=3).spawn(Waiter)


# --- What it does to itself ---


def test_an_actor_stops_itself_after_the_message_whose_turn_it_is(start: Start) -> None:
    ref = start(Doer)

    def leave(actor: Any) -> str:
        actor.stop()
        return "last"

    assert ref.ask(leave).result(20.0) == "last"
    until(lambda: not ref.is_alive())
    with pytest.raises(ActorDead):
        ref.ask(lambda actor: 1, timeout=None).result(20.0)


def test_an_actor_that_stops_itself_by_its_ref_takes_what_came_before(start: Start) -> None:
    ref = start(Doer)
    answers = [ref.ask(lambda actor: actor.ref.stop()), *(ref.ask(lambda actor: 1) for _ in range(3))]

    assert answers[0].result(20.0) is None
    until(lambda: not ref.is_alive())


def done() -> Future[str]:
    future: Future[str] = Future()
    future.set_result("done")
    return future


class Keeper(Doer):
    """Answers later; at the latest when it is stopped."""

    def on_start(self) -> None:
        take_time_to_leave()
        self.promised: list[Future[str]] = []

    def promise(self) -> Any:
        """Return a future of what is said at the end."""
        self.promised.append(Future())
        return self.promised[-1]

    def on_stop(self) -> None:
        for future in self.promised:
            future.set_result("closed")


def test_what_has_ended_as_an_actor_stops_and_what_it_ends_itself_then_is_answered(start: Start) -> None:
    ref = start(Keeper)
    promised = [ref.proxy(timeout=20.0).promise.submit() for _ in range(3)]
    answers = [ref.ask(lambda actor: done(), timeout=20.0) for _ in range(20)]
    ref.stop()

    assert {answer.result(20.0) for answer in answers} == {"done"}
    assert [answer.result(20.0) for answer in promised] == ["closed"] * 3


@pytest.mark.parametrize("hook", ["receive", "on_stop", "crash"])
def test_what_an_actor_tells_others_last_of_all_arrives(start: Start, hook: str) -> None:
    class Leaver(Doer):
        def __init__(self, other: ActorRef) -> None:
            self.other = other
            take_time_to_leave()

        def receive(self, message: Any) -> Any:
            if hook != "on_stop":
                self.say()
            if hook == "crash":
                raise ValueError("it ends here")
            self.stop()

        def on_stop(self) -> None:
            if hook == "on_stop":
                self.say()

        def say(self) -> None:
            """Tell the other one, over a link that is not there yet."""
            for _ in range(20):
                self.other.tell(lambda actor: actor.failed.append("told"))

    others = [start(Doer) for _ in range(5)]
    once = Supervision(restart="temporary", on_error="restart")
    leavers = [start(Leaver, other, supervision=once) for other in others]
    for leaver in leavers:
        leaver.tell("go")

    until(lambda: not any(leaver.is_alive() for leaver in leavers))
    asked = [other.ask(lambda actor: len(actor.failed), timeout=20.0) for other in others]
    assert [answer.result(20.0) for answer in asked] == [20] * 5


def test_what_an_actor_tells_itself_as_it_ends_is_not_waited_for(start: Start, tmp_path: Path) -> None:
    class Leaver(Doer):
        def on_stop(self) -> None:
            self.ref.tell("again")
            (tmp_path / "owed").write_text(f"{self.ref.debt} {system().post.owes()}")

    ref = start(Leaver)
    ref.stop()
    until(lambda: not ref.is_alive())

    assert (tmp_path / "owed").read_text() == "1 0"


def test_a_constructor_may_begin_with_new(start: Start) -> None:
    class Made(Doer):
        def __new__(cls, given: int) -> Any:
            made = super().__new__(cls)
            made.made_of = given
            return made

        def __init__(self, given: int) -> None:
            self.given = given

    assert start(Made, 5).ask(lambda actor: (actor.made_of, actor.given)).result(20.0) == (5, 5)


def test_a_timer_brings_its_message_when_it_is_time_and_a_cancelled_one_does_not(start: Start) -> None:
    class Alarm(Actor):
        def on_start(self) -> None:
            self.rung: list[Any] = []
            self.began_s = time.monotonic()
            self.after(0.1, "late")
            self.after(0.05, "early")
            self.cancelled = self.after(0.07, "never")
            assert self.cancelled.cancel()

        def receive(self, message: Any) -> Any:
            if message == "?":
                return self.rung
            early_s = time.monotonic() - self.began_s
            self.rung.append((message, early_s >= {"late": 0.1, "early": 0.05}[message], self.sender == self.ref))
            return None

    ref = start(Alarm)

    until(lambda: len(ref.ask("?").result(20.0)) >= 2)
    assert ref.ask("?").result(20.0) == [("early", True, True), ("late", True, True)]


def test_a_timer_set_by_a_coroutine_comes_too(start: Start) -> None:
    ref = start(Waiter)

    async def note(actor: Any) -> None:
        actor.log.append("rung")

    async def set_it(actor: Any) -> None:
        actor.after(0.01, note)

    ref.ask(set_it).result(20.0)

    until(lambda: ref.ask(log).result(20.0) == ["started", "rung"])


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_timer_for_no_time_is_refused(start: Start, seconds: float) -> None:
    with pytest.raises(UsageError, match="timer"):
        start(Doer).ask(lambda actor: actor.after(seconds, 1)).result(20.0)


def test_outside_its_process_an_actor_can_neither_stop_nor_set_timers() -> None:
    with pytest.raises(UsageError, match="not running"):
        Doer().stop()
    with pytest.raises(UsageError, match="not running"):
        Doer().after(1, "x")
    assert Doer().sender is None


def fork_and(do: Callable[[], Any]) -> Callable[[Any], tuple[int, str]]:
    """Have an actor fork, and its child do something; say how that ended, and which process answers."""

    def turn(actor: Any) -> Any:
        pid = os.fork()
        if pid == 0:
            return do()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), os.getpid()

    return turn


@pytest.mark.parametrize(
    ("do", "code"), [(lambda: None, 0), (lambda: sys.exit(4), 4), (lambda: 1 / 0, 1), (lambda: os._exit(5), 5)]
)
def test_a_fork_of_an_actor_ends_with_its_turn_and_is_no_second_actor(
    start: Callable[..., ActorRef], do: Callable[[], Any], code: int
) -> None:
    ref = start(Doer)
    assert ref.ask(fork_and(do), timeout=20.0).result() == (code, ref.pid)
    assert ref.ask(lambda actor: os.getpid(), timeout=20.0).result() == ref.pid


class Taker(Actor):
    """Takes what it gets."""

    def receive(self, message: Any) -> Any:
        return message


def test_a_signal_handler_may_send_and_wait_for_an_answer_in_the_middle_of_a_send(
    start: Callable[..., ActorRef],
) -> None:
    ref = start(Taker)
    handled: list[Any] = []
    waits: list[int] = []

    def handler(*_: Any) -> None:
        if not waits:
            waits.append(1)
            ref.tell(2)
            handled.append(ref.ask(3, timeout=None).result(20.0))  # while what it interrupted may hold a lock
            waits.clear()

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    sent = 0
    try:
        while len(handled) < 100:
            ref.tell(1)
            sent += 1
            if sent % 2000 == 0:
                ref.ask(1, timeout=None).result()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    ref.ask(1, timeout=None).result()
    assert ref.counts()["messages"] == sent + 2 * len(handled) + sent // 2000 + 1


class Ticker(Actor):
    """A timer that sets itself again at once, for ever."""

    def on_start(self) -> None:
        self.ticks = 0
        self.after(0.0, "tick")

    def receive(self, message: Any) -> Any:
        if message == "tick":
            self.ticks += 1
            self.after(0.0, "tick")
        return self.ticks


def test_a_timer_that_sets_itself_again_at_once_keeps_no_message_waiting(start: Start) -> None:
    ref = start(Ticker)
    first = ref.ask("how many", timeout=None).result(20.0)
    assert until(lambda: ref.ask("how many", timeout=None).result(20.0) > first + 10)
    ref.stop()
    until(lambda: not ref.is_alive())


def test_user_code_that_ends_the_event_loop_ends_no_actor(start: Start) -> None:
    ref = start(Waiter)

    async def stop_loop(actor: Any) -> str:
        asyncio.get_running_loop().stop()
        return "stopped"

    async def exit_in_a_task(actor: Any) -> str:
        async def leave() -> None:
            sys.exit(3)

        actor.task = asyncio.create_task(leave())
        return "left"

    for act, answer in ((stop_loop, "stopped"), (exit_in_a_task, "left"), (stop_loop, "stopped")):
        assert ref.ask(act, timeout=None).result(20.0) == answer
    assert ref.ask(log, timeout=None).result(20.0) == ["started"]


def test_a_watcher_that_exits_ends_nothing(start: Start) -> None:
    ref, other = start(Doer), start(Taker)
    told: list[Any] = []
    ref.watch(lambda exit_: sys.exit(1))
    ref.watch(told.append)
    ref.kill()
    assert until(lambda: told)
    assert other.ask(1, timeout=None).result(20.0) == 1
