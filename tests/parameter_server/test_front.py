"""A front's windows: whatever becomes of each of them, a worker's steps are applied in order, once, and answered."""

from __future__ import annotations

import queue
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actorraft import UsageError
from actorraft.errors import OutcomeUnknown, Unavailable
from parameter_server import ParameterFront
from parameter_server.front import _Bench
from statemachines import updates
from statemachines.parameter_server import Async, ParameterServer

SIZE = 3
UPDATE = updates.whole(np.ones(SIZE, np.float32))
GOES, APPLIED_UNTOLD, LOST = range(3)  # what becomes of a command


class Server:
    """A machine behind something like a proxy: a command waits until the test says what becomes of it."""

    def __init__(self) -> None:
        self.machine = ParameterServer({"w": np.zeros(SIZE)}, Async(0.0), ["a", "b", "c"])
        self.waiting: queue.SimpleQueue[tuple[str, tuple[Any, ...], Future[Any]]] = queue.SimpleQueue()

    def __getattr__(self, name: str) -> Any:
        return Command(self, name)

    def go_on(self, fate: int) -> bool:
        """Let the next command meet its fate; false if none comes for some time."""
        try:
            name, args, future = self.waiting.get(timeout=0.05)
        except queue.Empty:
            return False
        if fate == LOST:
            future.set_exception(Unavailable("not sent"))
            return True
        try:
            answer = getattr(self.machine, name)(*args)
        except Exception as error:
            future.set_exception(error)
            return True
        if fate == GOES:
            future.set_result(answer)
        else:
            future.set_exception(OutcomeUnknown("the leader is gone"))
        return True


class Command:
    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name = server, name

    def submit(self, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.server.waiting.put((self.name, args, future))
        return future


@given(
    workers=st.lists(st.sampled_from("abc"), min_size=1, max_size=12),
    before=st.sets(st.sampled_from("abc")),
    fates=st.lists(st.sampled_from([GOES, GOES, APPLIED_UNTOLD, LOST]), max_size=20),
    window_max=st.integers(1, 4),
    outstanding_max=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_a_window_that_is_refused_or_lost_does_not_have_the_steps_after_it_refused(
    workers: list[str], before: set[str], fates: list[int], window_max: int, outstanding_max: int
) -> None:
    server = Server()
    bench = _Bench(server, server, SIZE, window_max, outstanding_max)
    steps = dict.fromkeys("abc", 0)
    for worker in before:  # by another way, which the front does not know of
        server.machine.push(worker, 1, 0, UPDATE)
    try:
        asked = []
        for worker in workers:
            steps[worker] += 1
            asked.append(bench.push(worker, steps[worker], 0, None, 1.0, UPDATE))
        while not all(each.done() for each in asked):
            if server.go_on(fates[0] if fates else GOES):
                fates = fates[1:]
        for each in asked:
            each.result()
    finally:
        bench.stop()
    applied = {worker: max(count, int(worker in before)) for worker, count in steps.items()}
    assert server.machine.progress().steps == applied
    assert server.machine.pull()[1]["w"].tolist() == [float(sum(applied.values()))] * SIZE


@pytest.mark.parametrize(
    "message",
    [
        ("push", ["a"], 1, 0, None, 1.0, UPDATE),
        ("push", "a", "1", 0, None, 1.0, UPDATE),
        ("push", "a", 1, None, None, 1.0, UPDATE),
        ("push", "a", 1, 0, [], 1.0, UPDATE),
        ("push", "a", 1, 0, None, "1", UPDATE),
        ("push", "a", 1, 0, None, 1.0),
        ("pull", "7"),
        ("pull_range", {}, 0, 0),
        ("pull_range", 1, 0, None),
        "push",
        None,
    ],
)
def test_a_message_that_is_none_is_refused_where_it_comes_and_ends_nothing(message: Any) -> None:
    server = Server()
    front = ParameterFront({})
    front._bench = _Bench(server, server, SIZE, 256, 2)
    try:
        with pytest.raises(UsageError, match="does not know"):
            front.receive(message)
        pushed = front.receive(("push", "a", 1, 0, None, 1.0, UPDATE))
        assert server.go_on(GOES)
        assert pushed.result(10) == 1
    finally:
        front._bench.stop()


def test_a_front_says_how_far_the_training_is() -> None:
    server = Server()
    front = ParameterFront({})
    front._reader = server
    asked = front.receive(("progress",))
    assert server.go_on(GOES)
    assert asked.result(10) == server.machine.progress()
