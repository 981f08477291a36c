"""The machine's thread: who runs the loop when, and that nothing is done after the machine cannot go on."""

from __future__ import annotations

import itertools
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from actorraft import StateMachine, codec, command
from actorraft.machine import CommandContext
from actorraft.node import machine_thread as turns
from actorraft.node.executor import Executor
from actorraft.node.host import MachineHost, MachineStopped
from actorraft.node.machine_thread import MachineThread
from actorraft.node.work import Applied, Apply, Done, SnapshotTaken, Stopped, TakeSnapshot, Work
from actorraft.ports import SnapshotMeta
from actorraft.raft.messages import Configuration, EntryId, LogEntry
from tests.cluster.helpers import eventually
from tests.cluster.machines import EndsTheProcess


class BrokenDisk(MachineHost):
    """Meets an error that no other node has."""

    def apply_in_order(self, commands: Sequence[Any], ctx: CommandContext) -> list[Any]:
        raise MachineStopped("StorageFailed: the disk refused")


def entry(request: object) -> LogEntry:
    return LogEntry(1, codec.stamp(1.0, codec.encode(request)))


def test_only_what_somebody_waits_for_wakes_the_loop() -> None:
    woken = threading.Semaphore(0)
    executor = MachineThread(Executor(MachineHost(EndsTheProcess), session_expiry_s=10.0), woken.release)

    executor.submit(Apply(0, [entry(codec.Register(7))], quiet=True))
    assert not woken.acquire(timeout=0.2)
    executor.submit(Apply(1, [entry(codec.Register(8))]))
    assert woken.acquire(timeout=10.0)

    assert [one.last_index for one in executor.poll() if isinstance(one, Applied)] == [0, 1]


def test_nothing_is_applied_after_a_machine_that_stopped_so_its_own_reason_is_the_one_that_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os._exit", sys.exit)  # of its thread only
    body = codec.join_body([codec.encode(["anything"])])
    works = [
        Apply(0, [entry(codec.Register(7))]),
        Apply(1, [entry(codec.Commands(0, 0, 0, 1, body))]),
        Apply(2, [LogEntry(1, None)]),  # handed over before the loop has heard of it
    ]
    woken = threading.Semaphore(0)
    executor = MachineThread(Executor(BrokenDisk(EndsTheProcess), session_expiry_s=10.0), woken.release)
    for work in works:
        executor.submit(work)
    for _ in works[:2]:
        assert woken.acquire(timeout=10.0)
    assert not woken.acquire(timeout=0.2)
    done = executor.poll()
    assert [type(one).__name__ for one in done] == ["Applied", "Stopped"]
    assert isinstance(done[1], Stopped)
    assert "at index 1: StorageFailed: the disk refused" in done[1].reason


# --- Turns ---

gate = threading.Event()  # what the slow command waits for
ran_in: list[str] = []  # the threads in which commands ran


class Gated(StateMachine):
    """Says where its commands run; one of them takes its time."""

    @command
    def quick(self) -> None:
        """Take no time."""
        ran_in.append(threading.current_thread().name)

    @command
    def slow(self) -> None:
        """Wait, as a command that sleeps or computes would."""
        ran_in.append(threading.current_thread().name)
        assert gate.wait(20.0)

    def snapshot(self) -> str:
        """Take its time, too."""
        assert gate.wait(20.0)
        return "state"

    def restore(self, state: str) -> None:
        """Nothing."""


class Paper:
    """A snapshot writer that keeps nothing."""

    def __init__(self, index: int) -> None:
        self._index = index

    def write(self, data: bytes) -> None:
        pass

    def commit(self) -> SnapshotMeta:
        return SnapshotMeta(EntryId(1, self._index), Configuration(frozenset((0,)), next_node_id=1), 0)

    def abort(self) -> None:
        pass


class Loop:
    """A node's loop that does what it is told, in whatever thread runs it, and a node's first thread around it."""

    def __init__(self) -> None:
        self.orders: queue.SimpleQueue[Callable[[], bool | None]] = queue.SimpleQueue()
        self.turns: list[str] = []  # in which thread each round ran
        self.done: list[Done] = []
        self.failure: BaseException | None = None
        self.executor = MachineThread(Executor(MachineHost(Gated), session_expiry_s=10.0), self._wake)
        self._index = self._sequence = 0
        self.thread = threading.Thread(target=self._run, name="first", daemon=True)
        self.thread.start()
        self.hand_over(self.entry(codec.Register(7)))

    def _run(self) -> None:
        try:
            self.executor.run(self._turn, self._settle)
        except BaseException as error:
            self.failure = error

    def _turn(self, wait_max_s: float) -> bool | None:
        try:
            order = self.orders.get(timeout=min(wait_max_s, 0.002))
        except queue.Empty:
            came: bool | None = False
        else:
            came = order()
        self.turns.append(threading.current_thread().name)
        self._settle()
        return came

    def _settle(self) -> None:
        self.done += self.executor.poll()

    def _wake(self) -> None:
        self.orders.put(lambda: True)

    def entry(self, request: Any, *, quiet: bool = False) -> Apply:
        self._index += 1
        one = entry(request)
        return Apply(self._index - 1, [one], quiet, len(one.item))

    def call(self, name: str, *, quiet: bool = False) -> Apply:
        self._sequence += 1
        body = codec.join_body([codec.encode([name])])
        return self.entry(codec.Commands(0, self._sequence - 1, 0, 1, body), quiet=quiet)

    def hand_over(self, *works: Work) -> None:
        def order() -> bool:
            for work in works:
                self.executor.submit(work)
            return True

        self.orders.put(order)

    def applied(self) -> int:
        return max((one.last_index for one in self.done if isinstance(one, Applied)), default=-1)

    def runs_in(self, name: str) -> bool:
        """Whether rounds run there, now."""
        self.turns.clear()
        eventually(lambda: len(self.turns) >= 3)
        return self.turns[2] == name

    def stop(self) -> None:
        gate.set()
        self.orders.put(lambda: None)
        self.thread.join(20.0)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    monkeypatch.setattr(turns, "CALM_S", (0.05, 0.05))
    gate.clear()
    ran_in.clear()
    made = Loop()
    yield made
    made.stop()


def test_the_machines_thread_runs_the_loop_while_commands_are_quick(loop: Loop) -> None:
    eventually(lambda: loop.runs_in("machine"))
    first, last = loop.call("quick"), loop.call("quick")
    loop.hand_over(first, last)
    eventually(lambda: loop.applied() == last.first_index)
    assert set(ran_in) == {"machine"}
    assert loop.runs_in("machine")


def test_a_command_that_takes_long_has_the_loop_taken_away_until_it_is_calm_again(loop: Loop) -> None:
    eventually(lambda: loop.runs_in("machine"))
    slow, behind = loop.call("slow"), loop.call("quick")
    loop.hand_over(slow)
    eventually(lambda: loop.runs_in("first"))
    loop.hand_over(behind)
    assert loop.runs_in("first")
    assert loop.applied() < slow.first_index

    gate.set()
    eventually(lambda: loop.applied() == behind.first_index)
    eventually(lambda: loop.runs_in("machine"))
    assert ran_in == ["machine", "machine"]  # user code runs in one thread, whoever has the loop


def test_a_machine_that_is_late_again_and_again_waits_longer_for_the_loop(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "CALM_S", (0.01, 0.05))
    thread = loop.executor
    waits = []
    for late_s in (100.0, 100.02, 100.05, 100.1, 100.15, 100.2, 200.0):
        thread._note_late(late_s)
        waits.append(thread._calm_s)
    assert waits == [0.01, 0.02, 0.04, 0.05, 0.05, 0.05, 0.01]


def test_a_command_that_comes_after_a_long_rest_is_watched_too(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "IDLE_LOOKS", 1)
    eventually(lambda: loop.executor._asleep)  # nobody looks at an idle node every 5 ms
    for _ in range(3):
        gate.clear()
        slow = loop.call("slow")
        loop.hand_over(slow)
        eventually(lambda: loop.runs_in("first"))
        gate.set()
        eventually(lambda slow=slow: loop.applied() == slow.first_index)
        eventually(lambda: loop.runs_in("machine"))
        eventually(lambda: loop.executor._asleep)


def test_a_snapshot_is_never_taken_in_the_loop(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LATE_S", 60.0)  # nobody has to find out that it is late
    eventually(lambda: loop.runs_in("machine"))
    loop.hand_over(TakeSnapshot(Paper(0)))
    eventually(lambda: loop.runs_in("first"))
    assert not any(isinstance(one, SnapshotTaken) for one in loop.done)

    gate.set()
    eventually(lambda: any(isinstance(one, SnapshotTaken) for one in loop.done))
    eventually(lambda: loop.runs_in("machine"))


def test_what_nobody_waits_for_is_put_off_while_something_comes_but_not_for_ever(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LATE_S", 60.0)  # one round may take as long as this machine likes
    eventually(lambda: loop.runs_in("machine"))
    seen: list[int] = []

    def hand_over_and_look(*works: Apply) -> Callable[[], bool]:
        def order() -> bool:
            loop._settle()
            seen.append(loop.applied())
            for work in works:
                loop.executor.submit(work)
            return True

        return order

    small = [loop.call("quick", quiet=True) for _ in range(3)]
    settled = loop.applied()
    for order in [hand_over_and_look(work) for work in small] + [hand_over_and_look()]:
        loop.orders.put(order)
    eventually(lambda: len(seen) == 4)
    assert seen == [settled] * 4
    eventually(lambda: loop.applied() == small[-1].first_index)  # nothing came any more

    seen.clear()
    put_off, asked_for = loop.call("quick", quiet=True), loop.call("quick")
    for order in (hand_over_and_look(put_off), hand_over_and_look(asked_for), hand_over_and_look()):
        loop.orders.put(order)
    eventually(lambda: len(seen) == 3)
    assert seen == [small[-1].first_index] * 2 + [asked_for.first_index]

    seen.clear()
    many = [loop.call("quick", quiet=True) for _ in range(turns.PUT_OFF_BYTES_MAX // 16)]
    for order in (hand_over_and_look(*many), hand_over_and_look()):
        loop.orders.put(order)
    eventually(lambda: len(seen) == 2)
    assert seen[1] == many[-1].first_index


def test_pieces_that_are_put_off_are_joined_to_few(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LATE_S", 60.0)
    eventually(lambda: loop.runs_in("machine"))
    eventually(lambda: loop.applied() == 0)
    loop.done.clear()
    quiet = [loop.call("quick", quiet=True) for _ in range(turns.JOINED_MAX + 2)]
    asked_for = loop.call("quick")
    loop.hand_over(*quiet, asked_for)
    eventually(lambda: loop.applied() == asked_for.first_index)
    ends = [one.last_index for one in loop.done if isinstance(one, Applied)]
    assert ends == [quiet[turns.JOINED_MAX - 1].first_index, quiet[-1].first_index, asked_for.first_index]


def test_the_end_of_the_loop_is_the_end_of_run_in_whichever_thread(loop: Loop) -> None:
    eventually(lambda: loop.runs_in("machine"))
    loop.orders.put(lambda: None)
    loop.thread.join(20.0)
    assert not loop.thread.is_alive()
    assert loop.failure is None


def test_what_the_loop_raises_run_raises_in_whichever_thread(loop: Loop) -> None:
    def fail() -> bool:
        raise OSError("the disk is on fire")

    eventually(lambda: loop.runs_in("machine"))
    loop.orders.put(fail)
    loop.thread.join(20.0)
    assert isinstance(loop.failure, OSError)


def test_many_quick_pieces_let_the_loop_turn_in_between(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 reads of 3 ms in one round were a second without a heartbeat, though none of them was late."""
    ticking = itertools.count()
    monkeypatch.setattr(turns, "monotonic", lambda: float(next(ticking)))
    eventually(lambda: loop.runs_in("machine"))
    seen: list[int] = []
    run = loop.executor._executor.run

    def counted(work: Work) -> Done:
        seen.append(len(loop.turns))
        return run(work)

    monkeypatch.setattr(loop.executor._executor, "run", counted)
    many = [loop.call("quick") for _ in range(50)]
    loop.hand_over(*many)
    eventually(lambda: loop.applied() == many[-1].first_index)

    assert len(seen) == len(set(seen)) == 50
