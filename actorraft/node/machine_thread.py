"""Who runs a node's loop: the machine's own thread while commands are quick, another one beside it when they are not.

User code runs in one thread, always the same, and may take its time. The loop may not: it owes its peers heartbeats.
Two threads, one for each, cost two hand-overs for every batch of commands: a fifth of the time that a single command
takes. So the machine's thread runs the loop as well, and between two rounds of it applies what was just committed.
When a piece of that is under way for longer than LATE_S, the node's first thread takes the loop over, and the
machine's thread goes on as an executor beside it. Once nothing has been late for a while (CALM_S), it gets the loop
back. What is long by its nature, a snapshot or a restore, is not begun before the loop is in other hands. And what
nobody waits for, as on a follower, is put off for a round in which nothing came, and joined with what comes behind it:
the machine has better to do just after an answer.

This is the leader/followers pattern for two threads, one of which may not run user code.

Threads:    `run` belongs to the node's first thread, `submit` and `poll` to whoever runs the loop. Everything that the
            loop owns (sockets, disk, core) changes hands between two rounds of it, never within one.
Invariant:  `_here`: the loop is the machine's thread's. It turns true only while nothing is handed over and unfinished;
            false under `_lock` while a piece of work is under way, or by the machine's thread itself. Then `_open` is
            None.
Source:     docs/decisions/0014 and 0019.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from actorraft.loggers import guarded_logger
from actorraft.node.capture import Capture
from actorraft.node.executor import Executor
from actorraft.node.work import Applied, Apply, Done, Restore, Stopped, TakeSnapshot, TryAgain, Work
from actorraft.raft.messages import LogEntry
from actorraft.steady import monotonic

logger = guarded_logger("actorraft")

EXIT_MACHINE: Final = 70  # EX_SOFTWARE: the machine cannot go on as the others do
LATE_S: Final = 0.01  # a piece of work that takes longer has the loop taken away from its thread
# Without such a piece, until the loop comes back, the first time and at most: twice as long each time that one is late
# again soon after. A busy machine makes a quick command late now and then, which says nothing of the next ones.
CALM_S: Final = (0.05, 1.0)
# The longest that work which nobody waits for is put off while nothing else happens: longer than a command takes from
# append to append (about 1 ms), or it would begin just when the next append needs the loop.
PUT_OFF_S: Final = 0.004
PUT_OFF_BYTES_MAX: Final = 4096  # of entries; more is not put off
JOINED_MAX: Final = 16  # entries that are put off; as many are one piece of work: what a piece costs is then shared
IDLE_LOOKS: Final = 20  # at which nothing was under way; then the watch sleeps until something is
DISK_WAIT_S: Final = 0.002  # until a snapshot whose disk is behind is looked at again
LONG: Final = (TakeSnapshot, Restore, TryAgain)  # never done in the loop


class MachineThread:
    """Runs the executor in a thread of its own, and the node's loop too while that is quick. An ExecutorPort.

    Args:
        executor: the machine; nobody else calls it.
        wake: makes the loop's wait return; from any thread.
    """

    def __init__(self, executor: Executor, wake: Callable[[], object]) -> None:
        self._executor = executor
        self._wake = wake
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()  # None: the loop is yours
        self._done: deque[Done] = deque()
        self._capture: Capture | None = None  # a snapshot that is taken between pieces of work
        self._handed = self._finished = 0  # pieces of work
        self._pressing = False  # something is handed over that may not be put off
        self._put_off_bytes = 0
        self._open: list[LogEntry] | None = None  # of the last piece that was put off; None: it may be under way
        self._here = False  # the loop is the machine's thread's
        self._piece = 0  # number of the one under way in the loop; 0: none
        self._begun = 0  # number of the last one begun there
        self._late_s = -math.inf  # when the last one that was late was found so
        self._calm_s = 0.0  # how long after that the loop may come back
        self._lock = threading.Lock()
        self._asleep = False  # the watch is, until something is put into its bell
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopped = False  # the machine is, for good: what was handed over after that must not be applied
        self._ended = False
        self._failure: BaseException | None = None  # what ended the loop in the machine's thread
        executor.host.before_object = self._finish_capture  # which knows nothing of what it must keep
        threading.Thread(target=self._run_machine, name="machine", daemon=True).start()

    # --- The port ---

    def submit(self, work: Work) -> None:
        joined, self._open = self._open, None
        if type(work) is Apply and work.quiet:
            self._put_off_bytes += work.size_bytes
            self._pressing |= self._put_off_bytes > PUT_OFF_BYTES_MAX
            if joined is not None and not self._pressing and len(joined) + len(work.entries) <= JOINED_MAX:
                joined += work.entries
                self._open = joined
                return
            if self._here:
                self._open = list(work.entries)
                work = work._replace(entries=self._open)
        else:
            self._pressing = True
        self._handed += 1
        self._work.put(work)

    def poll(self) -> list[Done]:
        done = self._done
        return [done.popleft() for _ in range(len(done))] if done else []

    # --- The node's first thread ---

    def run(self, turn: Callable[[float], bool | None], settle: Callable[[], None]) -> None:
        """Run the loop to its end, in whichever thread has it; return in this one. Raises what the loop raises.

        Args:
            turn: one round of the loop, which waits so many seconds at the most; returns whether anything came, or None
                after the last one.
            settle: look at what the executor did.
        """
        self._turn, self._settle = turn, settle
        while turn(math.inf) is not None:
            if self._is_calm():
                self._here = True
                self._work.put(None)
                self._watch()
                if self._failure is not None:
                    raise self._failure
                if self._ended:
                    return

    def _is_calm(self) -> bool:
        rests = self._finished == self._handed and self._capture is None
        return rests and monotonic() >= self._late_s + self._calm_s

    def _watch(self) -> None:
        """Return when the loop has ended, or is this thread's again because the machine would keep it waiting."""
        seen = idle = 0
        while self._here and not self._ended:
            try:
                self._bell.get(timeout=LATE_S)
                continue
            except queue.Empty:
                pass
            if self._begun != seen:
                seen, idle = self._begun, 0
            elif self._piece:
                with self._lock:
                    if self._piece == seen:
                        self._here = False
                        self._note_late(monotonic())
            elif (idle := idle + 1) > IDLE_LOOKS:
                self._sleep()
                idle = 0

    def _note_late(self, now_s: float) -> None:
        first_s, longest_s = CALM_S
        again = now_s < self._late_s + self._calm_s + longest_s
        self._late_s, self._calm_s = now_s, min(2 * self._calm_s, longest_s) if again else first_s

    def _sleep(self) -> None:
        """Wait for the next piece of work, however long that takes: a node at rest wakes nobody."""
        self._asleep = True
        if not self._piece and not self._ended:  # looked at after the line above; `_do_in_loop` does it the other way
            self._bell.get()
        self._asleep = False

    # --- The machine's thread ---

    def _run_machine(self) -> None:
        try:
            while not self._ended and not self._stopped:
                work = self._next()
                if work is None:
                    work = self._run_loop()
                if work is not None:
                    self._do(work)
        except BaseException as error:  # ours, not the user's: a node without its executor must not go on
            logger.critical("the executor failed", exc_info=True)
            os._exit(last_words(f"the executor failed: {type(error).__name__}: {error}", EXIT_MACHINE))

    def _next(self) -> Work | None:
        """Wait for work; meanwhile, and once before each piece of it, go on with the snapshot under way."""
        while (capture := self._capture) is not None:
            drew = capture.step()
            if capture.drawn:
                self._capture = None
            with contextlib.suppress(queue.Empty):
                return self._work.get(timeout=0.0 if drew else DISK_WAIT_S)
        return self._work.get()

    def _do(self, work: Work) -> None:
        """Do a piece of work beside the loop."""
        if type(work) in LONG:
            self._finish_capture()
        serves = self._executor.hold is None and self._executor.host.serves_while_copied
        if type(work) is TakeSnapshot and serves:
            with contextlib.suppress(RuntimeError):  # user code has all the threads that there are: commands wait, then
                self._capture = Capture(self._executor, work.writer, self._tell)
                self._finished += 1
                return
        self._did(work, self._executor.run(work))

    def _finish_capture(self) -> None:
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.finish()

    def _tell(self, done: Done) -> None:
        """Have the loop look at what was done; from any thread."""
        self._done.append(done)
        self._wake()

    def _did(self, work: Work, done: Done) -> None:
        """A piece of work is finished: have the loop look at it, at once unless nobody waits for it."""
        self._stopped = type(done) is Stopped
        self._done.append(done)
        if (
            self._stopped
            or not (type(work) is Apply and work.quiet)
            or (type(done) is Applied and done.hold is not None)
        ):
            if self._here:
                self._settle()
            else:
                self._wake()
        self._finished += 1  # last: from here on the loop may be handed to this thread

    def _run_loop(self) -> Work | None:
        """Run the loop, and the machine in it, until it ends or is in other hands.

        Returns:
            A piece of work that may only be done beside it, if that is why.
        """
        try:
            while self._here:
                came = self._turn(math.inf if self._work.empty() else 0.0 if self._pressing else PUT_OFF_S)
                if came is None:
                    self._end(None)
                    return None
                if came and not self._pressing:
                    continue
                self._pressing, self._put_off_bytes = False, 0
                until_s = monotonic() + LATE_S
                while self._here and not self._work.empty():  # type: ignore[redundant-expr]  # another thread's doing
                    work, self._open = self._work.get(), None
                    if work is None:
                        continue  # it was taken away and given back, and nothing of that was seen here
                    if type(work) in LONG:
                        self._here = False
                        self._bell.put(None)
                        return work
                    self._do_in_loop(work)
                    if monotonic() >= until_s and not self._work.empty():
                        self._pressing = True  # quick pieces, but many: the loop turns in between
                        break
        except BaseException as error:
            self._end(error)
        return None

    def _do_in_loop(self, work: Work) -> None:
        """Do a piece of work between two rounds of the loop, which may be taken away meanwhile."""
        self._piece = self._begun = self._begun + 1
        if self._asleep:
            self._asleep = False
            self._bell.put(None)
        done = self._executor.run(work)
        with self._lock:
            self._piece = 0
        self._did(work, done)

    def _end(self, failure: BaseException | None) -> None:
        self._failure, self._ended = failure, True
        self._bell.put(None)


def last_words(reason: str, code: int) -> int:
    """Say why this process stops, where its operator looks; return the exit code."""
    print(f"actorraft: this node stops: {reason}", file=sys.stderr, flush=True)
    return code
