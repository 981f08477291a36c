"""Updates that are larger than an entry: what is sent, in which order, and what becomes of one whose range is lost."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from actorraft import ActorDead, UsageError
from parameter_server import sending
from parameter_server.front import _Bench
from statemachines import ranges, updates
from statemachines.parameter_server import UPLOADS_MAX, Async, ParameterServer, WrongUpdate

SIZE = 100


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "RANGE_BYTES", 64)
    monkeypatch.setattr(sending, "ENTRY_BYTES_MAX", 100)


class Server:
    """A machine behind something like a proxy: each command at once; `lose` drops some on the way."""

    def __init__(self) -> None:
        self.machine = ParameterServer({"w": np.zeros(SIZE)}, Async(0.0), ["a", "b"])
        self.calls: list[str] = []
        self.lose: Callable[[str, int], bool] = lambda name, number: False
        self.entry_bytes_max = 1000

    def __getattr__(self, name: str) -> Any:
        return Command(self, name)


class Command:
    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name = server, name

    def submit(self, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.server.calls.append(self.name)
        if any(isinstance(each, bytes) and len(each) > self.server.entry_bytes_max for each in args):
            raise UsageError("over the limit")
        if self.server.lose(self.name, len(self.server.calls)):
            return future
        try:
            future.set_result(getattr(self.server.machine, self.name)(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def ones(size: int = SIZE) -> Any:
    return np.ones(size, np.float32)


@pytest.mark.parametrize("encode", [lambda some: some, updates.whole])
def test_a_large_update_goes_ahead_in_ranges_and_its_push_commits_it(encode: Any) -> None:
    server = Server()
    push: Any = lambda update: server.push.submit("a", 1, 0, update)  # noqa: E731
    assert sending.Sender(server).send(encode(ones()), push).result() == 1
    assert server.calls == ["put_range"] * 6 + ["push"]
    assert server.machine.pull()[1]["w"].tolist() == [1.0] * SIZE
    small = sending.Sender(server).send(
        updates.largest(ones(), 5), lambda update: server.push.submit("a", 2, 0, update)
    )
    assert small.result() == 2
    assert server.calls[7:] == ["push"]


def test_a_front_sends_all_of_it_again_when_a_range_was_lost_and_it_counts_once() -> None:
    server = Server()
    server.lose = lambda name, number: name == "put_range" and number in (2, 9)
    bench = _Bench(server, server, SIZE, 256, 2)
    try:
        asked = [bench.push(worker, 1, 0, None, 1.0, updates.whole(ones())) for worker in "ab"]
        assert sorted(each.result(10) for each in asked) in ([1, 1], [1, 2])
    finally:
        bench.stop()
    assert server.machine.pull()[1]["w"].tolist() == [2.0] * SIZE
    assert server.machine.progress().updates == 2


def test_what_the_cluster_does_not_take_is_refused_by_name_and_the_front_goes_on() -> None:
    server = Server()
    bench = _Bench(server, server, SIZE, 256, 2)
    try:
        server.entry_bytes_max = 10
        with pytest.raises(WrongUpdate, match="over the limit"):
            bench.push("a", 1, 0, None, 1.0, updates.whole(ones())).result(10)
        server.entry_bytes_max = 1000
        assert bench.push("a", 1, 0, None, 1.0, updates.whole(ones())).result(10) == 1
    finally:
        bench.stop()


def test_an_update_between_the_clusters_limit_and_ours_goes_in_ranges_and_the_next_ones_at_once() -> None:
    server = Server()
    server.entry_bytes_max = 90  # and an update of 20 numbers has 88 bytes: more than one range
    sender = sending.Sender(server)
    server.machine = ParameterServer({"w": np.zeros(20)}, Async(0.0), ["a"])
    for step in (1, 2):
        push: Any = lambda update, step=step: server.push.submit("a", step, 0, update)  # noqa: E731
        assert sender.send(updates.whole(ones(20)), push).result() == step
    assert server.calls == ["push"] * 2
    server.calls.clear()
    server.entry_bytes_max = 87
    for step in (3, 4):
        push = lambda update, step=step: server.push.submit("a", step, 0, update)  # noqa: E731
        assert sender.send(updates.whole(ones(20)), push).result() == step
    assert server.calls == ["push", "put_range", "push", "put_range", "push"]
    assert server.machine.pull()[1]["w"].tolist() == [4.0] * 20


class Mailbox:
    """A front's: it has what was sent until the test lets it take something."""

    def __init__(self, bench: _Bench) -> None:
        self.bench = bench
        self.sent: deque[tuple[Callable[[], Future[Any]], Future[Any]]] = deque()
        self.most = 0
        self.dead = False

    def ask(self, name: str, *args: Any) -> Future[Any]:
        if self.dead:
            raise ActorDead("the front is gone")
        future: Future[Any] = Future()
        self.sent.append((lambda: getattr(self.bench, name)(*args), future))
        self.most = max(self.most, len(self.sent))
        return future

    def take(self) -> None:
        does, future = self.sent.popleft()
        try:
            future.set_result(does().result(10))
        except Exception as error:
            future.set_exception(error)

    def lose(self) -> None:
        """The front is killed, with what it had, and comes back with nothing."""
        lost, self.sent = self.sent, deque()
        for _, future in lost:
            future.set_exception(ActorDead("the front is gone"))


@pytest.fixture
def at_front(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Mailbox, sending.FrontSender]]:
    monkeypatch.setattr(sending, "MESSAGE_BYTES_MAX", 200)
    server = Server()
    bench = _Bench(server, server, SIZE, 256, 2)
    mailbox = Mailbox(bench)
    yield server, mailbox, sending.FrontSender(lambda *put: mailbox.ask("put_range", *put))
    bench.stop()


def pushed(mailbox: Mailbox, sender: sending.FrontSender, step: int, update: bytes) -> Future[int]:
    return sender.send(update, lambda update: mailbox.ask("push", "a", step, 0, None, 1.0, update))


def test_what_no_message_holds_goes_to_a_front_a_few_ranges_at_a_time_and_later_steps_wait_behind_it(
    at_front: tuple[Server, Mailbox, sending.FrontSender],
) -> None:
    server, mailbox, sender = at_front
    sizes = (5, SIZE, 5, SIZE)
    answers = [
        pushed(mailbox, sender, step, updates.whole(ones()) if size == SIZE else updates.largest(ones(), size))
        for step, size in enumerate(sizes, 1)
    ]
    assert len(mailbox.sent) == 2, "the first step, and the first range of the second, which makes room for the others"
    while mailbox.sent:
        mailbox.take()
    assert [answer.result(10) for answer in answers] == [1, 2, 3, 4]
    assert mailbox.most == sending.ASKED_MAX
    assert server.machine.pull()[1]["w"].sum() == sum(sizes)
    assert not mailbox.bench._ranges._values


def test_a_front_killed_amid_ranges_has_what_waits_sent_again_in_order_and_each_counts_once(
    at_front: tuple[Server, Mailbox, sending.FrontSender],
) -> None:
    server, mailbox, sender = at_front
    answers = [pushed(mailbox, sender, step, updates.whole(ones())) for step in (1, 2)]
    for _ in range(3):
        mailbox.take()
    mailbox.lose()
    for answer in answers:
        with pytest.raises(ActorDead):
            answer.result(10)
    mailbox.dead = True
    with pytest.raises(ActorDead):
        pushed(mailbox, sender, 1, updates.whole(ones())).result(10)
    mailbox.dead = False
    answers = [pushed(mailbox, sender, step, updates.whole(ones())) for step in (1, 2)]
    while mailbox.sent:
        mailbox.take()
    assert [answer.result(10) for answer in answers] == [1, 2]
    assert server.machine.pull()[1]["w"].tolist() == [2.0] * SIZE


def test_a_front_holds_ranges_of_so_many_workers_and_refuses_more_before_they_are_sent(
    at_front: tuple[Server, Mailbox, sending.FrontSender],
) -> None:
    _, mailbox, _ = at_front
    senders = [sending.FrontSender(lambda *put: mailbox.ask("put_range", *put)) for _ in range(UPLOADS_MAX + 1)]
    answers = [pushed(mailbox, each, 1, updates.whole(ones())) for each in senders]
    for _ in senders:
        mailbox.take()
    with pytest.raises(ranges.NoRoomForRanges):
        answers[-1].result(10)
    assert not any(answer.done() for answer in answers[:-1])


def test_parameters_that_no_answer_holds_come_in_ranges_of_one_version_while_they_change() -> None:
    server = Server()
    asked: list[int] = []

    def ask(fetcher: int, number: int, min_version: int) -> Future[Any]:
        asked.append(number)
        server.machine.push("a", len(asked), 0, ones())  # at every turn
        return server.pull_range.submit(fetcher, number, min_version)  # type: ignore[no-any-return]

    version, data = sending.Fetch(ask, 0).future.result(10)
    assert (version, np.frombuffer(data, "<f4").tolist()) == (1, [1.0] * SIZE)
    assert sorted(asked) == [0, 1, 2, 3, 4, 5, 6], "each once"


def test_ranges_of_another_version_end_a_fetch_instead_of_being_mixed_in() -> None:
    server = Server()

    def ask(fetcher: int, number: int, min_version: int) -> Future[Any]:
        if number == 2:  # its first range came again
            server.machine.push("a", 1, 0, ones())
            server.machine.pull_range(fetcher, 0)
        return server.pull_range.submit(fetcher, number, min_version)  # type: ignore[no-any-return]

    with pytest.raises(ranges.RangeMissing, match="version 1 came for a range of version 0"):
        sending.Fetch(ask, 0).future.result(10)


def test_no_more_ranges_than_said_are_asked_for_at_once_and_one_lost_ends_the_fetch() -> None:
    asked: list[Future[Any]] = []

    def ask(fetcher: int, number: int, min_version: int) -> Future[Any]:
        asked.append(Future())
        return asked[-1]

    fetch = sending.Fetch(ask, 0)
    asked[0].set_result((1, 640, bytes(64)))
    assert len(asked) == 1 + sending.ASKED_MAX
    asked[3].set_result((1, 640, bytes(64)))
    assert len(asked) == 2 + sending.ASKED_MAX
    asked[1].set_exception(TimeoutError("nobody answered"))
    for late in (asked[2], asked[4]):
        late.set_result((1, 640, bytes(64)))
    assert len(asked) == 2 + sending.ASKED_MAX
    with pytest.raises(TimeoutError, match="nobody answered"):
        fetch.future.result(10)


def test_a_front_hands_out_ranges_of_one_version_and_a_copy_that_was_right_when_it_was_asked_for() -> None:
    server = Server()
    fetched: list[Any] = []

    def read(fetcher: int, number: int, min_version: int) -> Future[Any]:
        if number == 0:  # the answer of a push comes before each copy does
            bench.push("a", len(fetched) + 1, 0, None, 1.0, updates.largest(ones(), 5)).result(10)
            fetched.append(min_version)
        return server.pull_range.submit(fetcher, number, min_version)  # type: ignore[no-any-return]

    class Reader:
        class pull_range:
            @staticmethod
            def submit(*args: Any) -> Future[Any]:
                answer: Future[Any] = Future()
                threading.Thread(target=lambda: answer.set_result(read(*args).result(10))).start()
                return answer

    bench = _Bench(server, Reader, SIZE, 256, 2)
    try:
        for _ in range(2):
            version, data = sending.Fetch(bench.pull_range, 0).future.result(10)
            there = np.frombuffer(data, "<f4")
            assert (there.sum(), len(fetched)) == (5 * version, version), "one copy a pull, though it changes meanwhile"
        missing = bench.pull_range(99, 3, 0)
        with pytest.raises(ranges.RangeMissing):
            missing.result(10)
    finally:
        bench.stop()
