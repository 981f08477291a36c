"""The parent's side of a process: start it, hear it, watch it, end it.

A child is a fresh interpreter (fork and exec; a forked libzmq context does not survive), in a process group of its own, so
that Ctrl-C in a terminal reaches the parent alone. What it prints goes to a bounded file. Two pipes carry orders and
reports, a third carries nothing and ties its life to the parent's.

Why no multiprocessing.Process: it runs the user's `__main__` again, and its exit-time join hangs.
Source:     architecture 17 and 18.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle

from actorraft.actors import bootstrap
from actorraft.actors.bootstrap import LENGTH, LOADER
from actorraft.actors.supervision import RestartLog, Supervision
from actorraft.errors import StartError, UsageError

OUTPUT_BYTES_MAX = 4 << 20

_liveness_fds: set[int] = set()  # write ends; a fork of this process must not keep children alive


def _close_in_fork() -> None:
    for fd in _liveness_fds:
        with contextlib.suppress(OSError):
            os.close(fd)
    _liveness_fds.clear()


os.register_at_fork(after_in_child=_close_in_fork)


class ActorProcess:
    """One child process.

    Args:
        target: called in the child with a ChildContext, then `args` and `kwargs`; all three travel by cloudpickle.
        name: for messages, and of the file of its output.
        logger: where the child's log records come out.
        run_dir: where its output goes.
        launch_prefix: put in front of the command line (to enter a network namespace, say).
        hash_seed: the child's PYTHONHASHSEED.
    """

    def __init__(
        self,
        target: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        name: str,
        run_dir: Path,
        logger: logging.Logger,
        launch_prefix: Sequence[str] = (),
        hash_seed: int | None = None,
    ) -> None:
        self.name = name
        self._payload = cloudpickle.dumps((target, tuple(args), kwargs or {}))
        self.logger = logger
        self._output = run_dir / f"{name.replace(' ', '-')}.out"
        self._launch_prefix = list(launch_prefix)
        self._hash_seed = hash_seed
        self._popen: subprocess.Popen[bytes] | None = None
        self._orders_fd = self._liveness_fd = self.reports_fd = -1
        self._buffer = b""
        self._reports: deque[tuple[str, Any]] = deque()
        self._lock = threading.Lock()

    # --- Life ---

    def start(self) -> None:
        """Start it now; it comes up meanwhile."""
        orders_r, self._orders_fd = os.pipe()
        self.reports_fd, reports_w = os.pipe()
        liveness_r, self._liveness_fd = os.pipe()
        _liveness_fds.add(self._liveness_fd)
        fds = (orders_r, reports_w, liveness_r)
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        command = [*self._launch_prefix, sys.executable, *flags, "-P", "-c", LOADER, *map(str, fds)]
        environment = dict(os.environ)
        if self._hash_seed is not None:
            environment["PYTHONHASHSEED"] = str(self._hash_seed)
        try:
            with open(self._output, "ab") as output:
                self._popen = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    pass_fds=fds,
                    process_group=0,
                )
        finally:
            for fd in fds:
                os.close(fd)
        os.set_blocking(self.reports_fd, False)
        header = {
            "path": [os.path.abspath(path) for path in sys.path],
            "argv": list(sys.argv) or [""],
            "cwd": os.getcwd(),
            "name": self.name,
            "log_level": logging.getLogger("actorraft").getEffectiveLevel(),
        }
        self._write(pickle.dumps(header))
        self._write(self._payload)

    @property
    def pid(self) -> int:
        assert self._popen is not None, "not started"
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether the process is there; a stopped one is."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """As subprocess has it: None while it lives, minus the signal's number if one killed it."""
        return self._popen.poll() if self._popen is not None else None

    def wait(self, timeout_s: float) -> int | None:
        """Wait until it is gone; return its code, None if it is still there."""
        if self._popen is None:
            return 0
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def _signal(self, number: int) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to leave; a paused one is woken for that."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL."""
        self._signal(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Let go of the pipes; the process dies if it still lives. Idempotent."""
        with self._lock:
            for fd in (self._orders_fd, self._liveness_fd, self.reports_fd):
                if fd >= 0:
                    _liveness_fds.discard(fd)
                    os.close(fd)
            self._orders_fd = self._liveness_fd = self.reports_fd = -1
        if self._popen is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(2.0)

    # --- What is said ---

    def send(self, order: Any) -> None:
        """Send an order to the child. Raises UsageError if it is gone."""
        self._write(pickle.dumps(order))

    def _write(self, data: bytes) -> None:
        with self._lock:
            view = memoryview(LENGTH.pack(len(data)) + data)
            try:
                while view:
                    view = view[os.write(self._orders_fd, view) :]
            except OSError as error:
                raise UsageError(f"{self.name} is gone and cannot be told anything: {error.strerror}") from error

    def receive(self, timeout_s: float) -> Any:
        """Wait for the child's next report.

        Raises:
            StartError: it raised, died, or said nothing in time; with its reason and its last lines.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            self.pump()
            if self._reports:
                kind, value = self._reports.popleft()
                if kind == "report":
                    return value
                error, message, text = value
                raise StartError(f"{self.name} did not start: {error}: {message}\n{text}".rstrip())
            if not self.alive and not self.pump():
                raise StartError(f"{self.name} did not start: {self.last_words()}")
            wait_s = deadline_s - time.monotonic()
            if wait_s <= 0:
                raise StartError(f"{self.name} said nothing within {timeout_s:.1f} s: {self.last_words()}")
            select.select([self.reports_fd], [], [], min(wait_s, 0.5))

    def pump(self) -> bool:
        """Read what the child has said so far; True if there was something. Log records are emitted at once."""
        got = False
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(self.reports_fd, 1 << 16):
                got = True
                self._buffer += data
        while len(self._buffer) >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._buffer)
            if len(self._buffer) < LENGTH.size + size:
                break
            kind, value = pickle.loads(self._buffer[LENGTH.size : LENGTH.size + size])
            self._buffer = self._buffer[LENGTH.size + size :]
            if kind == "log":
                self.logger.log(value[0], "%s", value[1])
            else:
                self._reports.append((kind, value))
        return got

    def take_reports(self) -> list[tuple[str, Any]]:
        """Return and forget the reports that were read by `pump`: ("report", value) or ("failed", ...)."""
        reports = list(self._reports)
        self._reports.clear()
        return reports

    # --- What it wrote ---

    def logs(self, lines: int = 100) -> list[str]:
        """Return the last lines of its standard output and error."""
        try:
            with open(self._output, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - (64 << 10)))
                return file.read().decode("utf-8", "replace").splitlines()[-lines:]
        except OSError:
            return []

    def bound_output(self) -> None:
        """Keep the file of its output from growing for ever: the older part goes."""
        with contextlib.suppress(OSError):
            if self._output.stat().st_size > OUTPUT_BYTES_MAX:
                tail = "\n".join(self.logs(200))
                os.truncate(self._output, 0)
                with open(self._output, "a") as file:
                    file.write(f"(older lines were removed)\n{tail}\n")

    def last_words(self) -> str:
        """Say how it ended, and what it wrote last."""
        code = self.returncode
        if code is None:
            how = "it is still running"
        elif code < 0:
            how = f"killed by {signal.Signals(-code).name}"
        else:
            how = f"exit code {code}"
        lines = "\n".join(self.logs(10))
        return f"{how}; its last lines:\n{lines}" if lines else f"{how}; it wrote nothing"


class Monitor:
    """Watches processes from one thread: passes on what they say, tells of exits, and starts again what may be.

    Args:
        supervision: None: nothing is started again.
        restart: starts a process again, given the dead one.
        on_report, on_exit: told of reports, and of exits with the reason.
    """

    def __init__(
        self,
        *,
        supervision: Supervision | None,
        restart: Callable[[ActorProcess], None],
        on_report: Callable[[ActorProcess, Any], None],
        on_exit: Callable[[ActorProcess, str], None],
    ) -> None:
        self._supervision = supervision
        self._restart = restart
        self._on_report = on_report
        self._on_exit = on_exit
        self._watched: dict[ActorProcess, None] = {}
        self._histories: dict[str, RestartLog] = {}
        self._due: list[tuple[float, ActorProcess]] = []
        self._lock = threading.Lock()
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        self._closed = False
        self._thread: threading.Thread | None = None

    def watch(self, process: ActorProcess) -> None:
        """Watch a process that is up."""
        with self._lock:
            self._watched[process] = None
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="actorraft-monitor", daemon=True)
                self._thread.start()
        self._wake()

    def forget(self, process: ActorProcess) -> None:
        """Stop watching: what happens to it now is asked for."""
        with self._lock:
            self._watched.pop(process, None)
            self._due = [(at_s, one) for at_s, one in self._due if one.name != process.name]
        self._wake()

    def close(self) -> None:
        """Stop watching anything. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)
        os.close(self._wake_w)
        os.close(self._wake_r)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._wake_w, b".")

    def _run(self) -> None:
        while not self._closed:
            with self._lock:
                watched = list(self._watched)
                wait_s = min([1.0, *(at_s - time.monotonic() for at_s, _ in self._due)])
            fds = [process.reports_fd for process in watched if process.reports_fd >= 0]
            try:
                select.select([self._wake_r, *fds], [], [], max(0.0, wait_s))
            except (OSError, ValueError):
                continue  # a process was closed meanwhile
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_r, 4096)
            for process in watched:
                if self._closed:
                    return
                self._look(process)
            self._start_due()

    def _look(self, process: ActorProcess) -> None:
        with self._lock:
            if process not in self._watched:
                return
        process.pump()
        process.bound_output()
        for kind, value in process.take_reports():
            if kind == "report":
                self._on_report(process, value)
        if process.alive:
            return
        with self._lock:
            if self._watched.pop(process, False) is False:
                return
        reason = process.last_words()
        process.logger.error("%s is gone: %s", process.name, reason)
        self._on_exit(process, reason)
        self._plan(process, crashed=process.returncode != 0)

    def _plan(self, process: ActorProcess, *, crashed: bool) -> None:
        if self._supervision is None:
            return
        history = self._histories.setdefault(process.name, RestartLog(self._supervision))
        delay_s = history.next_delay_s(time.monotonic(), crashed=crashed)
        if delay_s is None:
            process.logger.error("%s died too often and stays down; restart it once the reason is mended", process.name)
            return
        process.logger.warning("%s is started again in %.1f s", process.name, delay_s)
        with self._lock:
            self._due.append((time.monotonic() + delay_s, process))

    def _start_due(self) -> None:
        now_s = time.monotonic()
        with self._lock:
            due = [process for at_s, process in self._due if at_s <= now_s]
            self._due = [(at_s, process) for at_s, process in self._due if at_s > now_s]
        for process in due:
            if self._closed:
                return
            try:
                self._restart(process)
            except Exception as error:
                process.logger.error("the restart failed: %s", error)
                self._plan(process, crashed=True)


def refuse_nested_spawn() -> None:
    """Refuse a spawn that runs because a child imports the user's module.

    Raises:
        UsageError: naming the module and the fix.
    """
    if not bootstrap.loading_user_code:
        return
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") not in (None, "__main__"):
            module = frame.f_globals["__name__"]
            raise UsageError(
                f"spawn() ran while a node process imports the module {module}, and each node would start another "
                f'cluster: put it under `if __name__ == "__main__":`, or into a function'
            )
        frame = frame.f_back
