"""One thread that watches processes: it passes on what they say, tells of their exits, and starts again what may be.

Source:     the supervisors of OTP; the rule itself is in supervision.py.
Threads:    every method from any thread; what is told is told in the monitor's own. Each restart has one of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from actorraft.actors.bootstrap import wait_for
from actorraft.actors.process import SEND_S, ActorProcess
from actorraft.actors.supervision import RestartLog, Supervision
from actorraft.steady import monotonic

EXPLAINED: Final = (os.EX_SOFTWARE, os.EX_IOERR)  # exit codes with which a process says that something must be mended
LOOK_S: Final = 1.0  # how often the monitor looks at what gives no signal

P = TypeVar("P", bound=ActorProcess)


class Monitor(Generic[P]):
    """Watches processes from one thread.

    Args:
        supervision: for processes that are watched without one of their own; None: they are not started again.
        restart: starts a process again, given the dead one, and watches the new one.
        on_report, on_exit: told of reports, and of exits with the reason.
        on_planned: told, after an exit, whether the process will be started again.
    """

    def __init__(
        self,
        *,
        supervision: Supervision | None,
        restart: Callable[[P], None],
        on_report: Callable[[P, Any], None],
        on_exit: Callable[[P, str], None],
        on_planned: Callable[[P, bool], None] = lambda process, again: None,
    ) -> None:
        self._supervision = supervision
        self._restart = restart
        self._on_report = on_report
        self._on_exit = on_exit
        self._on_planned = on_planned
        self._rules: dict[str, Supervision] = {}  # name -> supervision of its own
        self._watched: dict[P, None] = {}
        self._order: dict[str, int] = {}  # name -> its place in the order of first starts
        self._histories: dict[str, RestartLog] = {}
        self._due: list[tuple[float, P]] = []
        self._lock = threading.Lock()
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._looked_at_s = 0.0

    def watch(self, process: P, supervision: Supervision | None = None) -> None:
        """Watch a process that is up. Those given one and the same supervision are a group for its strategy."""
        with self._lock:
            self._watched[process] = None
            if supervision is not None:
                self._rules[process.name] = supervision
            self._order.setdefault(process.name, len(self._order))
            if self._thread is None and not self._ended.is_set():
                self._thread = threading.Thread(target=self._run, name="actorraft-monitor", daemon=True)
                self._thread.start()
        self._wake()

    def forget(self, process: P) -> None:
        """Stop watching: what happens to it now is asked for."""
        with self._lock:
            self._watched.pop(process, None)
            self._due = [(at_s, one) for at_s, one in self._due if one.name != process.name]
        self._wake()

    def pardon(self, name: str) -> None:
        """Forget how often a process of this name died: somebody has looked after it."""
        with self._lock:
            self._histories.pop(name, None)

    def close(self) -> None:
        """Stop watching anything; start nothing any more. Idempotent."""
        with self._lock:
            if self._ended.is_set():
                return
            self._ended.set()
            thread = self._thread
        self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=2.0)
        if thread is None or not thread.is_alive():
            self._close_pipe()

    def _close_pipe(self) -> None:
        with self._lock:
            for fd in {self._wake_r, self._wake_w} - {-1}:
                os.close(fd)
            self._wake_r = self._wake_w = -1

    def _wake(self) -> None:
        with self._lock, contextlib.suppress(OSError):  # closed, or so full of wakes that one more is none
            if self._wake_w >= 0:
                os.write(self._wake_w, b".")

    def _run(self) -> None:
        while not self._ended.is_set():
            with self._lock:
                watched = list(self._watched)
                wait_s = min([LOOK_S, *(at_s - monotonic() for at_s, _ in self._due)])
            self._wait(watched, wait_s)
            look = monotonic() - self._looked_at_s >= LOOK_S
            if look:
                self._looked_at_s = monotonic()
            for process in watched:
                if self._ended.is_set():
                    break
                if look:
                    process.bound_output()
                self._look(process)
            self._start_due()

    def _wait(self, watched: list[P], wait_s: float) -> None:
        poll = select.poll()
        poll.register(self._wake_r, select.POLLIN)
        for process in watched:
            if process.reports_fd >= 0:
                poll.register(process.reports_fd, select.POLLIN)
        if any(fd == self._wake_r for fd, _ in poll.poll(max(0.0, wait_s) * 1000)):
            with contextlib.suppress(OSError):
                os.read(self._wake_r, 4096)

    def _look(self, process: P) -> None:
        with self._lock:
            if process not in self._watched:
                return
        if self._hung_up(process):
            process.wait(0.05)
        ended = not process.alive  # before the last look at what it said
        process.pump()
        for report in process.take_reports():
            self._tell(self._on_report, process, report)
        if not ended:
            return
        with self._lock:
            if self._watched.pop(process, False) is False:
                return
        reason = process.last_words()
        level = logging.ERROR if process.wanted else logging.INFO
        process.logger.log(level, "%s is gone: %s", process.name, reason)
        self._tell(self._on_exit, process, reason)
        self._plan(process, crashed=process.returncode != 0)

    @staticmethod
    def _hung_up(process: P) -> bool:
        """Whether the other end of the reports is closed: then the process is about to be gone."""
        fd = process.reports_fd
        return fd >= 0 and wait_for(fd, 0, 0.0)

    def _tell(self, whom: Callable[[P, Any], None], process: P, what: Any) -> None:
        try:
            whom(process, what)
        except Exception:
            process.logger.exception("being told of %s, its owner raised", process.name)

    def _plan(self, process: P, *, crashed: bool) -> None:
        """Decide whether a process that died is started again, when, and who else with it."""
        rule = self._rules.get(process.name, self._supervision)
        if self._ended.is_set():
            return
        if process.again and process.wanted:
            process.again = False
            self.pardon(process.name)
            self._tell(self._on_planned, process, True)
            with self._lock:
                self._due.append((monotonic(), process))
            return
        if rule is None or not process.wanted:
            self._tell(self._on_planned, process, False)
            return
        history = self._histories.setdefault(process.name, RestartLog(rule))
        now_s = monotonic()
        delay_s = history.next_delay_s(now_s, crashed=crashed, explained=process.returncode in EXPLAINED)
        if delay_s is None:
            if crashed and rule.restart != "temporary":
                process.logger.error("%s died too often and stays down until it is restarted by hand", process.name)
            self._tell(self._on_planned, process, False)
            return
        process.logger.warning("%s is started again in %.1f s", process.name, delay_s)
        self._tell(self._on_planned, process, True)
        others = self._end_others(process, rule)
        with self._lock:
            self._due += [(now_s + delay_s, one) for one in (process, *others)]

    def _end_others(self, process: P, rule: Supervision) -> list[P]:
        """End those whom this death concerns too; they are started again with it, in the order of their first start."""
        if rule.strategy == "one_for_one":
            return []
        with self._lock:
            others = [
                one
                for one in self._watched
                if self._rules.get(one.name, self._supervision) is rule
                and (rule.strategy == "one_for_all" or self._order[one.name] > self._order[process.name])
            ]
            for one in others:
                del self._watched[one]
        for one in others:
            one.kill()
        for one in others:
            one.wait(SEND_S)
            self._tell(self._on_exit, one, f"ended because {process.name} died ({rule.strategy})")
            self._tell(self._on_planned, one, True)
        return others

    def _start_due(self) -> None:
        now_s = monotonic()
        with self._lock:
            due = [process for at_s, process in self._due if at_s <= now_s]
            self._due = [(at_s, process) for at_s, process in self._due if at_s > now_s]
        groups: dict[object, list[P]] = {}  # those of one strategy are started one after another, others side by side
        for process in sorted(due, key=lambda one: self._order[one.name]):
            rule = self._rules.get(process.name, self._supervision)
            alone = rule is None or rule.strategy == "one_for_one"
            groups.setdefault(process if alone else id(rule), []).append(process)
        for group in groups.values():
            thread = threading.Thread(target=self._start_again, args=(group,), name="actorraft-restart", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads are to be had; or the interpreter ends, and with it all of this
                with self._lock:
                    self._due += [(now_s + LOOK_S, process) for process in group]

    def _start_again(self, group: list[P]) -> None:
        """In a thread of its own: one that hangs while it starts holds up nobody else's restart."""
        for process in group:
            if self._ended.is_set():
                return
            try:
                self._restart(process)
            except Exception as error:
                process.logger.error("the restart of %s failed: %s", process.name, error)
                self._plan(process, crashed=True)
        self._wake()
