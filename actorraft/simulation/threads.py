"""The machine's thread and the loop's (node/machine_thread.py) under a seeded schedule: who runs next is drawn.

The code under test is the real one, in real threads; but only one of them runs at a time, and at each of its lines, and
at each thing that may block, the seed decides who goes on. Time is virtual: it goes by when a piece of work says that
it takes some, or when everybody waits. So a hand-over that goes wrong once in a million, at a place between two lines,
is found by the same seed every time.

Invariant:  each piece of work is done once, in order, by one thread at a time; the loop has one thread at a time, and
            never waits for the machine; what is done is looked at; everything ends.
"""

from __future__ import annotations

import math
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any

from actorraft.node import capture, machine_thread
from actorraft.node.machine_thread import MachineThread
from actorraft.node.work import Applied, Apply, Done, SnapshotTaken, TakeSnapshot, Work
from actorraft.ports import SnapshotMeta
from actorraft.raft.messages import Configuration, EntryId, LogEntry
from actorraft.simulation.invariants import InvariantViolation

MODULES: tuple[ModuleType, ...] = (machine_thread, capture)
LATE_S = 0.002  # the most that a timer is
LOOP_LATE_S = 0.04  # the loop sees what is due within this, whatever the machine does
SWITCH = 0.15  # how likely another thread goes on at a line
STEPS_MAX = 60_000


class _Ended(BaseException):
    """The run is over; unwinds a thread."""


class _Thread:
    """One thread of the code under test."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.baton = threading.Semaphore(0)  # has it: may run
        self.ready: Callable[[], bool] | None = None  # what it waits for; None: nothing
        self.until_s: float | None = None  # and how long
        self.ended = False


class Schedule:
    """Who runs, and when it is. Stands for the modules `threading`, `queue` and `time` in the code under test."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.now_s = 1.0
        self.steps = 0
        self.failure: InvariantViolation | None = None
        self._main = _Thread("loop")
        self._threads = [self._main]
        self._current = self._main

    # --- Who goes on ---

    def fail(self, invariant: str, detail: str) -> None:
        """Note the first violation; every thread ends at its next step."""
        if self.failure is None:
            self.failure = InvariantViolation(invariant, detail)

    def step(self) -> None:
        """Perhaps let somebody else go on."""
        if self.failure is not None:
            raise _Ended
        self.steps += 1
        if self.steps > STEPS_MAX:
            self.fail("threads end", f"still at it after {STEPS_MAX} steps, at {self.now_s:.3f} s")
            raise _Ended
        if self.rng.random() < SWITCH:
            self._give_on()

    def wait(self, ready: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until something is so; False if it is not within the time."""
        me = self._current
        until_s = None if timeout_s is None else self.now_s + timeout_s
        while not ready():
            if until_s is not None and self.now_s >= until_s:
                return False
            me.ready, me.until_s = ready, until_s
            self._give_on()
            me.ready = me.until_s = None
        return True

    def spend(self, seconds: float) -> None:
        """Take time; others run meanwhile."""
        self.wait(lambda: False, seconds)

    def _give_on(self) -> None:
        me = self._current
        able = self._able()
        while not able:
            times = [one.until_s for one in self._threads if not one.ended and one.until_s is not None]
            if not times or self.failure is not None:
                self.fail("threads end", f"everybody waits for ever: {[t.name for t in self._threads if not t.ended]}")
                able = [one for one in self._threads if not one.ended]
                break
            # Timers are late by a little, so that several of them go off together.
            self.now_s = max(self.now_s, min(times) + (LATE_S * self.rng.random() if self.rng.random() < 0.5 else 0.0))
            able = self._able()
        chosen = able[int(self.rng.random() * len(able))]
        if chosen is not me:
            self._current = chosen
            chosen.baton.release()
            if me.ended:
                return
            me.baton.acquire()
        if self.failure is not None and not me.ended:
            raise _Ended

    def _able(self) -> list[_Thread]:
        now_s = self.now_s
        return [
            one
            for one in self._threads
            if not one.ended
            and (one.ready is None or one.ready() or (one.until_s is not None and one.until_s <= now_s))
        ]

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        """Step at each line of the code under test."""
        if frame.f_code.co_filename not in _FILES:
            return None
        if event == "line":
            self.step()
        return self.trace

    def finish(self) -> None:
        """Let every other thread come to its end."""
        self.failure = self.failure or InvariantViolation("", "")
        main = self._main
        for one in self._threads:
            if one is not main and not one.ended:
                self._current = one
                one.baton.release()
                main.baton.acquire()

    # --- threading, queue, time ---

    def make_thread(self, target: Callable[[], None], name: str, daemon: bool) -> Any:
        """As threading.Thread."""
        thread = _Thread(name)

        def run() -> None:
            thread.baton.acquire()
            sys.settrace(self.trace)
            try:
                target()
            except _Ended:
                pass
            finally:
                sys.settrace(None)
                thread.ended = True
                ending = self.failure is not None
                if ending:
                    self._current = self._main
                    self._main.baton.release()
                else:
                    self._give_on()

        real = threading.Thread(target=run, name=name, daemon=daemon)

        def start() -> None:
            self._threads.append(thread)
            real.start()

        return SimpleNamespace(start=start, join=lambda: self.wait(lambda: thread.ended), name=name)

    def make_lock(self) -> Any:
        """As threading.Lock."""
        return _Lock(self)

    def make_semaphore(self, value: int) -> Any:
        """As threading.Semaphore."""
        return _Semaphore(self, value)

    def make_queue(self) -> Any:
        """As queue.SimpleQueue."""
        return _Queue(self)

    def monotonic(self) -> float:
        """As time.monotonic."""
        return self.now_s


class _Lock:
    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._held = False

    def __enter__(self) -> None:
        self._schedule.wait(lambda: not self._held)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False


class _Semaphore:
    def __init__(self, schedule: Schedule, value: int) -> None:
        self._schedule = schedule
        self._value = value

    def acquire(self, blocking: bool = True) -> bool:
        if not self._schedule.wait(lambda: self._value > 0, None if blocking else 0.0):
            return False
        self._value -= 1
        return True

    def release(self) -> None:
        self._value += 1


class _Queue:
    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._items: deque[Any] = deque()

    def put(self, item: Any) -> None:
        self._items.append(item)
        self._schedule.step()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if not self._schedule.wait(lambda: bool(self._items), timeout if block else 0.0):
            raise queue.Empty
        return self._items.popleft()

    def empty(self) -> bool:
        return not self._items


_FILES = frozenset(module.__file__ for module in MODULES)


@contextmanager
def scheduled(schedule: Schedule) -> Iterator[None]:
    """Let the code under test run by a schedule."""

    def leave(code: int) -> None:
        if schedule.failure is None:
            schedule.fail("no error", f"the process leaves with code {code}")
        raise _Ended

    stands = {
        "threading": SimpleNamespace(
            Thread=schedule.make_thread, Lock=schedule.make_lock, Semaphore=schedule.make_semaphore
        ),
        "queue": SimpleNamespace(SimpleQueue=schedule.make_queue, Empty=queue.Empty),
        "time": SimpleNamespace(monotonic=schedule.monotonic, perf_counter=schedule.monotonic),
        "monotonic": schedule.monotonic,
        "os": SimpleNamespace(_exit=leave),
        "last_words": lambda _, code: code,
        "JOINED_MAX": 3,
        "CALM_S": (0.01, 0.01),  # the loop changes hands often
        "logger": SimpleNamespace(critical=lambda *_, **__: None),
    }
    before = [(module, name, getattr(module, name)) for module in MODULES for name in stands if hasattr(module, name)]
    for module, name, _ in before:
        setattr(module, name, stands[name])
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


# --- A node's loop and machine, as far as the two threads are concerned ---


class _Machine:
    """An executor whose pieces take what the seed says. It notes what is done, and that nobody else is at it."""

    def __init__(self, schedule: Schedule, costs: dict[int, float]) -> None:
        self.schedule = schedule
        self.costs = costs
        self.applied = -1
        self.hold = None  # it never holds at a command
        self.snapshots = 0
        self._busy = ""
        self.host = SimpleNamespace(before_object=None, serves_while_copied=True)

    def run(self, work: Work) -> Done:
        """Do a piece of work, by itself."""
        self._enter(type(work).__name__)
        if type(work) is Apply:
            for index in range(work.first_index, work.first_index + len(work.entries)):
                if index != self.applied + 1:
                    self.schedule.fail("order", f"{index} is applied after {self.applied}")
                self.schedule.spend(self.costs.get(index, 0.000_05))
                self.applied = index
            self._busy = ""
            return Applied(self.applied, [], 0.0, None, [])
        self.schedule.spend(0.3)  # a snapshot while everything waits
        self._busy = ""
        return self._taken()

    def _taken(self) -> SnapshotTaken:
        return SnapshotTaken(SnapshotMeta(EntryId(1, self.applied), Configuration(), 0))

    def _enter(self, what: str) -> None:
        if self._busy:
            self.schedule.fail("one at a time", f"{what} begins while {self._busy} is under way")
        self._busy = what

    def pieces(self) -> Iterator[bytes]:
        """Yield a snapshot's pieces: each is of the machine's thread alone."""
        for _ in range(3):
            self._enter("a snapshot's piece")
            self.schedule.spend(0.000_2)
            self._busy = ""
            yield b"piece"

    def write_snapshot(self, writer: Any, fill: Callable[[Callable[[bytes], Any]], None]) -> SnapshotTaken:
        """Write what comes, at the disk's pace."""
        written: list[bytes] = []

        def write(piece: bytes) -> None:
            self.schedule.spend(0.003)
            written.append(piece)

        fill(write)
        if len(written) != 3:
            self.schedule.fail("snapshots", f"{len(written)} of 3 pieces were written")
        self.snapshots += 1
        return self._taken()


class _Loop:
    """A node's loop: takes what is due, hands it over, looks at what was done."""

    def __init__(self, schedule: Schedule, plan: list[tuple[float, Work]]) -> None:
        self.schedule = schedule
        self.plan = deque(plan)
        self.woken = False
        self.handed_index = self.seen_index = -1  # of entries; pieces of them may be done as one
        self.snapshots = 0  # handed over and not seen yet
        self.thread: MachineThread
        self._busy = False

    def wake(self) -> None:
        """Something is done."""
        self.woken = True

    def turn(self, wait_s: float) -> bool | None:
        """One round."""
        schedule = self.schedule
        if self._busy:
            schedule.fail("one loop", "two threads run the loop")
        self._busy = True
        within_s = min(wait_s, self.plan[0][0] - schedule.now_s if self.plan else math.inf)
        schedule.wait(lambda: self.woken, None if within_s == math.inf else max(0.0, within_s))
        came = self.woken
        self.woken = False
        while self.plan and self.plan[0][0] <= schedule.now_s:
            due_s, work = self.plan.popleft()
            if schedule.now_s > due_s + LOOP_LATE_S:
                schedule.fail("the loop runs", f"what was due at {due_s:.3f} s is seen at {schedule.now_s:.3f} s")
            if type(work) is Apply:
                self.handed_index = work.first_index + len(work.entries) - 1
            else:
                self.snapshots += 1
            self.thread.submit(work)
            came = True
        self._look()
        self._busy = False
        return None if self._is_over() else came

    def _look(self) -> None:
        for done in self.thread.poll():
            if type(done) is Applied:
                self.seen_index = done.last_index
            else:
                self.snapshots -= 1

    def _is_over(self) -> bool:
        return not self.plan and self.seen_index == self.handed_index and not self.snapshots

    def settle(self) -> None:
        """Look at what was done."""
        if self._busy:
            self.schedule.fail("one loop", "two threads run the loop")
        self._busy = True
        for _ in range(5):
            self.schedule.step()
        self._look()
        self.woken |= self._is_over()  # nothing is left to wait for
        self._busy = False


def explore(seed: int) -> InvariantViolation | None:
    """Run one schedule; return what it broke."""
    rng = Random(seed)
    schedule = Schedule(rng)
    costs: dict[int, float] = {}
    plan: list[tuple[float, Work]] = []
    at_s, index, snapshots = schedule.now_s, 0, 0
    for _ in range(rng.randrange(5, 60)):
        at_s += rng.choice((0.0, 0.002, 0.005, 0.005, 0.02, 1.2)) * rng.random()
        if rng.random() < 0.08:
            plan.append((at_s, TakeSnapshot(None)))  # type: ignore[arg-type]  # the machine here looks at no writer
            snapshots += 1
            continue
        count = rng.choice((1, 1, 3))
        if rng.random() < 0.3:
            costs[index] = rng.choice((0.004, 0.006, 0.011, 0.012, 0.02, 0.05, 0.4))
        entries = [LogEntry(1, b"x" * rng.choice((1, 1, 3000))) for _ in range(count)]
        size = sum(len(entry.item) for entry in entries)
        plan.append((at_s, Apply(index, entries, rng.random() < 0.5, size)))
        index += count
    plan.append((at_s, Apply(index, [LogEntry(1, b"last")])))  # somebody waits for it
    index += 1
    loop, machine = _Loop(schedule, plan), _Machine(schedule, costs)
    with scheduled(schedule):
        loop.thread = MachineThread(machine, loop.wake)  # type: ignore[arg-type]
        sys.settrace(schedule.trace)
        try:
            loop.thread.run(loop.turn, loop.settle)
        except _Ended:
            pass
        finally:
            sys.settrace(None)
        broken = schedule.failure
        schedule.finish()
    if broken is None and machine.applied != index - 1:
        broken = InvariantViolation("order", f"applied up to {machine.applied} of {index - 1}")
    if broken is None and machine.snapshots != snapshots:
        broken = InvariantViolation("snapshots", f"{machine.snapshots} of {snapshots} were written")
    return broken
