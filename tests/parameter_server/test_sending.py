"""Updates that are larger than an entry: what is sent, in which order, and what becomes of one whose range is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from actorraft import UsageError
from parameter_server import sending
from parameter_server.front import _Bench
from statemachines import ranges, updates
from statemachines.parameter_server import Async, ParameterServer, WrongUpdate

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
