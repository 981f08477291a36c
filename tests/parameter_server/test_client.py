"""A worker's side over a front of the test's own: order, refusals, copies, and what compression holds back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from actorraft import ActorDead, CommandFailed, NotYet, Unavailable, UsageError
from parameter_server.client import ParameterClient
from statemachines import updates
from statemachines.parameter_server import (
    Async,
    Mean,
    NotFinite,
    ParameterServer,
    RoundClosed,
    Rule,
    Superseded,
    WrongUpdate,
)
from statemachines.ranges import RANGE_BYTES

SIZE = 100


class Way:
    """A front without a process: a machine of its own, and a word in what becomes of each message."""

    def __init__(self, rule: Rule, workers: Any = ("a", "b")) -> None:
        self.machine = ParameterServer({"w": np.zeros((10, 10))}, rule, workers)
        self.on_push: Callable[[int], str] = lambda step: "answer"
        self.lock = threading.Lock()
        self.sent: list[tuple[str, int]] = []
        self.asked: list[str] = []  # the kinds of all messages

    def ask(self, message: tuple[Any, ...], timeout: float | None = None) -> Future[Any]:
        future: Future[Any] = Future()
        with self.lock:
            kind, *arguments = message
            self.asked.append(kind)
            what = "answer"
            if kind == "push":
                worker, step, base_version, life, _, update = arguments
                self.sent.append((kind, step))
                what = self.on_push(step)
                arguments = [worker, step, base_version, update, life]
            if what == "refuse":
                future.set_exception(UsageError("a front does not know this"))
                return future
            if what == "drop":
                future.set_exception(ActorDead("it never came"))
                return future
            method = {"pull": "pull_vector"}.get(kind, kind)
            try:
                result = getattr(self.machine, method)(*arguments)
            except Exception as error:
                future.set_exception(error)
                return future
            if what == "lose the answer":
                future.set_exception(ActorDead("it died before it could answer"))
            else:
                future.set_result(result)
        return future


@pytest.fixture
def opened() -> Iterator[Callable[..., ParameterClient]]:
    clients: list[ParameterClient] = []

    def open_client(way: Any, **options: Any) -> ParameterClient:
        clients.append(ParameterClient("a", way, **{"timeout": 20.0, **options}))
        return clients[-1]

    yield open_client
    for client in clients:
        client.close()


def ones(value: float = 1.0) -> Any:
    return np.full(SIZE, value, np.float32)


def total(way: Way) -> float:
    vector = np.frombuffer(way.machine.pull_vector()[1], "<f4")
    assert (vector == vector[0]).all()
    return float(vector[0])


def test_pushes_are_numbered_from_the_last_step_that_the_machine_knows(opened: Any) -> None:
    way = Way(Async(0.0))
    first = opened(way)
    assert [first.push(ones(), 0).result(10) for _ in range(3)] == [1, 2, 3]
    again = opened(way)
    assert again.step == 3
    assert again.push({"w": ones().reshape(10, 10)}, 3).result(10) == 4
    version, parameters = again.pull(min_version=4)
    assert (version, parameters["w"].shape, parameters["w"][0, 0]) == (4, (10, 10), 4.0)


def test_a_client_that_was_taken_for_dead_is_told_so_and_changes_nothing(opened: Any) -> None:
    way = Way(Async(0.0))
    first = opened(way, outstanding_max=4)
    first.push(ones(), 0).result(10)
    successor = opened(way)
    late = [first.push(ones(100.0), 0) for _ in range(3)]
    for answer in late:
        with pytest.raises(Superseded):
            answer.result(10)
    assert successor.push(ones(), 1).result(10) == 2
    assert total(way) == 2.0


@pytest.mark.parametrize("fault", ["drop", "lose the answer"])
def test_what_has_no_answer_is_sent_again_in_order_to_the_next_and_counts_once(opened: Any, fault: str) -> None:
    way, other = Way(Async(0.0)), Way(Async(0.0))
    other.machine, other.lock = way.machine, way.lock
    faults = {2: fault, 3: fault, 7: fault}
    way.on_push = lambda step: faults.pop(step, "answer")
    client = opened([way, other], outstanding_max=3)
    answers = [client.push(ones(), 0) for _ in range(10)]
    assert [answer.result(10) for answer in answers] == list(range(1, 11))
    assert way.machine.progress().updates == 10
    assert total(way) == 10.0
    assert other.sent, "the other one was asked"


def test_one_that_is_refused_for_good_ends_and_those_behind_it_are_applied_once_each(opened: Any) -> None:
    way = Way(Async(0.0))
    client = opened(way, outstanding_max=8)
    updates_sent = [ones(), ones(float("nan")), ones(2.0), ones(4.0)]
    with way.lock:  # all of them are under way before the first is answered
        sender = threading.Thread(target=lambda: answers.extend(client.push(each, 0) for each in updates_sent))
        answers: list[Any] = []
        sender.start()
    sender.join(10)
    assert answers[0].result(10) == 1
    with pytest.raises(NotFinite):
        answers[1].result(10)
    answers[2].result(10)
    answers[3].result(10)
    client.flush(10)
    assert total(way) == 7.0
    assert way.machine.progress().updates == 3
    assert opened(way).step == client.step


def test_a_closed_round_is_told_and_the_worker_goes_on_in_the_next(opened: Any) -> None:
    way = Way(Mean(k=1))
    way.machine.push("b", 1, 0, ones())
    client = opened(way)
    with pytest.raises(RoundClosed):
        client.push(ones(), 0).result(10)
    version, _ = client.pull()
    assert client.push(ones(3.0), version).result(10) == 2
    assert total(way) == 4.0


def test_a_push_that_is_too_early_waits_until_the_slowest_has_come(opened: Any) -> None:
    way = Way(Async(0.0, steps_ahead_max=1))
    client = opened(way, outstanding_max=8)
    answers = [client.push(ones(), 0) for _ in range(3)]
    assert answers[0].result(10) == 1
    for step in (1, 2):
        with way.lock:
            way.machine.push("b", step, 0, ones())
    for answer in answers:
        answer.result(10)
    assert total(way) == 5.0


@pytest.mark.parametrize(("compress", "near"), [("bfloat16", 0.01), (0.05, 0.5)])
def test_what_compression_holds_back_comes_later(opened: Any, compress: Any, near: float) -> None:
    way = Way(Async(0.0))
    client = opened(way, compress=compress)
    rng = np.random.default_rng(1)
    wanted = np.zeros(SIZE, np.float32)
    for _ in range(200):
        update = rng.standard_normal(SIZE).astype(np.float32) * np.float32(0.1)
        wanted += update
        client.push(update, 0)
    client.flush(10)
    got = np.frombuffer(way.machine.pull_vector()[1], "<f4")
    assert client._residual is not None
    assert np.allclose(got + client._residual, wanted, atol=1e-3)
    assert np.abs(got - wanted).max() < near


@pytest.mark.parametrize("compress", [None, "bfloat16", 0.05])
def test_an_update_that_is_no_number_is_refused_and_those_after_it_are_not(opened: Any, compress: Any) -> None:
    way = Way(Async(0.0))
    client = opened(way, compress=compress)
    wrong = ones()
    wrong[3] = np.nan
    with pytest.raises(NotFinite):
        client.push(wrong, 0).result(10)
    assert client.push(ones(), 0).result(10) == 1
    assert client.push(ones(), 1).result(10) == 2
    got = np.frombuffer(way.machine.pull_vector()[1], "<f4")
    held_back = 0.0 if compress is None else client._residual
    assert np.allclose(got + held_back, 2.0)


def test_what_is_too_large_to_be_rounded_is_sent_as_it_is(opened: Any) -> None:
    way = Way(Async(0.0))
    client = opened(way, compress="bfloat16")
    most = np.finfo(np.float32).max
    client.push(ones(most), 0).result(10)
    client.push(ones(-most), 1).result(10)
    assert total(way) == 0.0


def test_the_callback_of_a_push_may_push_and_close_and_waits_for_nothing(opened: Any) -> None:
    client = opened(Way(Async(0.0)), outstanding_max=1)
    answers: list[int] = []
    refused: list[BaseException] = []
    ended = threading.Event()

    def go_on(answer: Future[int]) -> None:
        answers.append(answer.result())
        if len(answers) <= 2:
            for _ in range(2):  # one more than may be outstanding
                client.push(ones(), 0).add_done_callback(go_on)
        if len(answers) == 5:
            try:
                client.flush()
            except UsageError as error:
                refused.append(error)
            client.close()
            ended.set()

    client.push(ones(), 0).add_done_callback(go_on)
    assert ended.wait(20.0)
    assert answers == [1, 2, 3, 4, 5]
    assert len(refused) == 1


class Silent(Way):
    """Says nothing where a pull waits; and to nothing, once it is `mute`."""

    mute = False

    def ask(self, message: tuple[Any, ...], timeout: float | None = None) -> Future[Any]:
        return Future() if message[0] == "pull" or self.mute else super().ask(message, timeout)


def test_a_pull_that_waits_in_vain_says_for_what() -> None:
    way = Silent(Async(0.0))
    with ParameterClient("a", way, timeout=0.2) as client:  # type: ignore[arg-type]
        with pytest.raises(NotYet, match="version 5: this is 0"):
            client.pull(5)
        way.mute = True
        with pytest.raises(Unavailable) as caught:
            client.pull(5)
        assert type(caught.value) is Unavailable


def test_a_pull_that_is_told_that_it_came_too_early_asks_nothing_more(opened: Any) -> None:
    way = Way(Async(0.0))
    client = opened(way, timeout=0.1)
    with pytest.raises(NotYet, match="version 5: this is 0"):
        client.pull(5)
    assert way.asked[-1] == "pull"


def test_a_pull_that_waits_in_vain_leaves_no_version_held_for_it(opened: Any) -> None:
    way = Silent(Async(0.0))
    way.machine = ParameterServer({"w": np.zeros(RANGE_BYTES // 4 + 1)}, Async(0.0))
    client = opened(way, timeout=0.1)
    with pytest.raises(NotYet, match="version 5: this is 0"):
        client.pull(5)
    assert not way.machine._fetches._fetches


def test_who_is_no_worker_is_told_so_at_once_and_not_asked_for_again(opened: Any) -> None:
    class Cluster(Way):
        """What the library itself raises in a command comes back as what it said."""

        def ask(self, message: tuple[Any, ...], timeout: float | None = None) -> Future[Any]:
            future = super().ask(message, timeout)
            if isinstance(future.exception(), UsageError):
                refused: Future[Any] = Future()
                refused.set_exception(CommandFailed("UsageError", str(future.exception())))
                return refused
            return future

    with pytest.raises(UsageError, match="a number of examples"):
        opened(Cluster(Async(0.0)), examples=0)


def test_nothing_is_waited_for_once_a_client_is_closed(opened: Any) -> None:
    client = opened(Way(Async(0.0)))
    client.close()
    client.flush()


def test_a_push_whose_client_is_closed_while_it_encodes_is_refused_and_leaves_no_future_behind(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = opened(Way(Async(0.0)))
    encode = client._encode

    def close_and_encode(vector: Any) -> Any:
        client.close()
        return encode(vector)

    monkeypatch.setattr(client, "_encode", close_and_encode)
    with pytest.raises(UsageError, match="closed"):
        client.push(ones(), 0)


def test_an_update_that_cannot_be_encoded_takes_no_place_among_those_without_an_answer(opened: Any) -> None:
    client = opened(Way(Async(0.0)), compress="bfloat16", outstanding_max=1)
    with np.errstate(invalid="raise"), pytest.raises(FloatingPointError):
        client.push(ones(float("inf")), 0)
    assert client._unanswered == 0
    assert client.push(ones(), 0).result(10) == 1


def test_a_client_that_could_never_push_or_pull_is_refused(opened: Any) -> None:
    for options in ({"outstanding_max": 0}, {"behind_max": -1}):
        with pytest.raises(UsageError, match="outstanding_max is 1 or more"):
            opened(Way(Async(0.0)), **options)


def test_wrong_updates_are_refused_before_they_are_numbered(opened: Any) -> None:
    way = Way(Async(0.0))
    client = opened(way)
    for wrong in (np.ones(SIZE), ones()[:-1], {"v": ones()}):
        with pytest.raises(UsageError):
            client.push(wrong, 0)
    with pytest.raises(UsageError):
        ParameterClient("a", way, compress="zip")  # type: ignore[arg-type]
    assert client.push(ones(), 0).result(10) == 1
    assert updates.kind_of(updates.sparse(ones(0.0))) == updates.LARGEST


def test_a_pull_has_what_was_pushed_before_it_but_for_as_many_as_it_may_be_behind(opened: Any) -> None:
    way, held = Way(Async(0.0)), threading.Event()
    way.on_push = lambda step: "answer" if held.is_set() or step == 1 else "drop"
    client = opened(way, behind_max=1)
    client.push(ones(), 0).result(10)
    client.push(ones(), 0)
    assert client.pull_vector()[0] == 1, "one may be under way"
    client.push(ones(), 0)
    pulled: list[int] = []
    puller = threading.Thread(target=lambda: pulled.append(client.pull_vector()[0]))
    puller.start()
    client.push(ones(), 0)  # there is room for pushes while a pull waits
    assert not pulled
    held.set()
    puller.join(20)
    assert pulled[0] >= 3


def test_a_pull_in_the_callback_of_a_push_does_not_wait_for_itself(opened: Any) -> None:
    way, seen = Way(Async(0.0)), []
    client = opened(way)
    done = threading.Event()

    def look(_: Any) -> None:
        seen.append(client.pull_vector()[0])
        done.set()

    first = client.push(ones(), 0)
    first.add_done_callback(look)
    client.push(ones(), 0)
    assert done.wait(10)
    assert seen[0] >= 1


def test_a_push_that_is_no_message_for_a_front_is_refused_and_not_sent_for_ever(
    opened: Callable[..., ParameterClient],
) -> None:
    way = Way(Async(0.0))
    client = opened(way)
    way.on_push = lambda step: "refuse"
    refused = client.push(np.ones(SIZE, np.float32), 0)
    with pytest.raises(WrongUpdate, match="does not know"):
        refused.result(30)
    way.on_push = lambda step: "answer"
    assert client.push(np.ones(SIZE, np.float32), 0).result(30) == 1
