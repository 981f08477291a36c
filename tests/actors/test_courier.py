"""The thread that sends what a replicated actor owes: nothing that it meets keeps back what is owed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from actorraft.actors.effects import Effect, Outbox
from actorraft.cluster import courier as module
from actorraft.cluster import replicated_actor
from actorraft.cluster.courier import Courier

ERRORS = [OSError("no more files"), RuntimeError("can't start new thread"), MemoryError(), SystemExit(1)]


class Receiver:
    """Takes what it is asked, after it has raised what it is to raise."""

    mailbox_max = mailbox_bytes_max = 1000

    def __init__(self, name: str) -> None:
        self.name, self.endpoint = name, f"ipc:///nowhere/{name}.1"
        self.fails: list[BaseException] = []  # to be raised by the next ones
        self.taken: list[int] = []

    def __deepcopy__(self, memo: Any) -> Receiver:
        return self

    def ask(self, effect: Effect, timeout: float | None) -> Future[Any]:
        if self.fails:
            raise self.fails.pop()
        self.taken.append(effect.number)
        return done((True, None))


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def cancelled() -> Future[Any]:
    future: Future[Any] = Future()
    future.cancel()
    return future


class Owing:
    """An actor that owes two receivers messages, and its courier."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.a, self.b = Receiver("a"), Receiver("b")
        self.outbox = Outbox()
        self.outbox.begin(1)
        for receiver in (self.a, self.a, self.b, self.b):
            self.outbox.add(receiver, "hello", None)  # type: ignore[arg-type]
        self.settles: list[Callable[[], Future[Any]]] = []  # what becomes of the next ones, instead
        monkeypatch.setattr(replicated_actor, "link_to", lambda ref: self)
        monkeypatch.setattr(module, "SETTLE_S", 0.0)
        monkeypatch.setattr(module, "IDLE_S", 0.001)
        monkeypatch.setattr(module, "AGAIN_S", 0.001)
        ref = Receiver("owing")
        machine = SimpleNamespace(outbox=self.outbox, ref=ref, stopped=False)
        self.courier = Courier(lambda: machine)  # type: ignore[arg-type, return-value]

    def send(self, settle: tuple[int, Any], timeout: float | None, *, bounded: bool) -> Future[Any]:
        if self.settles:
            return self.settles.pop()()
        for key, _ in settle[1]:
            self.outbox.take_out(key)
        return done(None)

    def lead(self) -> None:
        self.courier._leads = self.courier._began = True

    def rounds(self) -> None:
        """As many as it takes, and then some."""
        for _ in range(20):
            self.courier._round()


@pytest.fixture
def owing(monkeypatch: pytest.MonkeyPatch) -> Owing:
    return Owing(monkeypatch)


def raising(error: BaseException) -> Callable[[], Future[Any]]:
    def settle() -> Future[Any]:
        raise error

    return settle


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_what_could_not_be_sent_for_want_of_something_is_sent_again_and_holds_up_nothing_else(
    owing: Owing, error: BaseException
) -> None:
    owing.a.fails.append(error)
    owing.lead()

    owing.rounds()

    assert [0, 1] == sorted(owing.a.taken)
    assert [2, 3] == owing.b.taken
    assert not len(owing.outbox)


def test_a_message_whose_pickle_raises_what_ctrl_c_raises_fails_and_is_not_tried_for_ever(owing: Owing) -> None:
    owing.a.fails.append(KeyboardInterrupt())
    owing.lead()

    owing.rounds()

    assert [1] == owing.a.taken
    assert not len(owing.outbox)


@pytest.mark.parametrize("settle", [*map(raising, ERRORS), cancelled])
def test_that_something_was_taken_is_settled_though_it_could_not_be_said_at_first(
    owing: Owing, settle: Callable[[], Future[Any]]
) -> None:
    owing.settles.append(settle)
    owing.lead()

    owing.rounds()

    assert not len(owing.outbox)


def test_a_receiver_whose_answer_cannot_be_looked_at_is_asked_again(
    owing: Owing, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [cancelled]
    ask = owing.a.ask
    monkeypatch.setattr(owing.a, "ask", lambda *asked: answers.pop()() if answers else ask(*asked))
    owing.lead()

    owing.rounds()

    assert [0, 1] == sorted(owing.a.taken)
    assert [2, 3] == owing.b.taken
    assert not len(owing.outbox)


def test_a_courier_whose_node_leads_no_longer_waits_though_it_has_something_to_settle(owing: Owing) -> None:
    owing.lead()
    owing.courier._round()
    owing.courier._deliveries.told(("s", 0), (True, None))  # taken, and to be settled a little later
    owing.courier._round()
    owing.courier.lead(False)
    owing.courier._settle_s = time.monotonic() - 1.0

    owing.courier._round()

    assert owing.courier._wait_s() > 0.0, "it would look again and again, for as long as another node leads"


def test_the_thread_outlives_whatever_a_round_meets_and_sends_what_that_left(
    owing: Owing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once before it begins, once with everything taken for sent."""
    joins: list[BaseException] = [OSError("no more files")]
    finds: list[BaseException] = [SystemExit(1), MemoryError()]
    to_send = owing.courier._deliveries.to_send
    went = threading.Event()

    def join(*_: Any) -> None:
        if joins:
            raise joins.pop()

    def find(*asked: Any) -> Any:
        found = to_send(*asked)
        if finds:
            raise finds.pop()
        if not len(owing.outbox):
            went.set()
        return found

    monkeypatch.setattr(module, "join_system", join)
    monkeypatch.setattr(owing.courier._deliveries, "to_send", find)

    owing.courier.lead(True)

    assert went.wait(30), "nobody sends what is owed"
    owing.courier.lead(False)
    assert [0, 1] == sorted(owing.a.taken)
