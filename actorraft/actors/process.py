"""The parent's side of a process: start it, hear it, watch it, end it.

A child is a fresh interpreter (fork and exec; a forked libzmq context does not survive), in a process group of its own,
so that Ctrl-C in a terminal reaches the parent alone. What it is to do lies in an inherited file without a name, what
it prints goes to a bounded file. Two pipes carry orders and reports, a third carries nothing and ties its life to the
parent's: when this process ends, in whatever way, the kernel ends its children; no exit handler is needed for that.

Why no multiprocessing.Process: it runs the user's `__main__` again, and its exit-time join hangs.
Source:     architecture 17 and 18.
"""

from __future__ import annotations

import contextlib
import logging
import marshal
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import cloudpickle  # type: ignore[import-untyped]

from actorraft.actors import bootstrap
from actorraft.actors.bootstrap import LENGTH, LOADER, wait_for
from actorraft.actors.supervision import RestartLog, Supervision
from actorraft.errors import StartError, UsageError

OUTPUT_BYTES_MAX: Final = 4 << 20
OUTPUT_KEPT_BYTES: Final = 1 << 20
SEND_S: Final = 5.0  # how long an order waits for a child that does not read
LAST_LINES: Final = 20
EXPLAINED: Final = (os.EX_SOFTWARE, os.EX_IOERR)  # exit codes with which a process says that something must be mended
LOOK_S: Final = 1.0  # how often the monitor looks at what gives no signal

_parent_fds: set[int] = set()  # of pipes to children; a fork of this process must not keep children alive


def _close_in_fork() -> None:
    for fd in _parent_fds:
        with contextlib.suppress(OSError):
            os.close(fd)
    _parent_fds.clear()


os.register_at_fork(after_in_child=_close_in_fork)


class ChildRefused(StartError, UsageError):
    """A child did not come up because of how it was asked to: the fault is the caller's to mend."""


class ActorProcess:
    """One child process, from its start to its end.

    Args:
        target: called in the child with a ChildContext, then `args` and `kwargs`; all three travel by cloudpickle.
        name: for messages, and of the file of its output.
        logger: where the child's log records come out.
        run_dir: where its output goes.
        launch_prefix: put in front of the command line (to enter a network namespace, say).
        hash_seed: the child's PYTHONHASHSEED.
        environment: variables added to the child's.
    """

    def __init__(
        self,
        target: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        name: str,
        run_dir: Path,
        logger: logging.Logger,
        launch_prefix: Sequence[str] = (),
        hash_seed: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.logger = logger
        self.reports_fd = self._orders_fd = self._liveness_fd = -1
        self._payload = cloudpickle.dumps((target, tuple(args), dict(kwargs or {})), pickle.HIGHEST_PROTOCOL)
        self._output = Path(run_dir) / f"{name.replace(' ', '-').replace('/', '_')}.out"
        self._output_from = 0  # where this life's output begins
        self._launch_prefix = list(launch_prefix)
        self._environment = dict(environment or {})
        if hash_seed is not None:
            self._environment["PYTHONHASHSEED"] = str(hash_seed)
        self._popen: subprocess.Popen[bytes] | None = None
        self.wanted = True  # whether it is to be started again should it die
        self._owner_pid = os.getpid()
        self._buffer = bytearray()
        self._reports: deque[Any] = deque()
        self._failure: tuple[list[str], str, str] | None = None  # type names, message, traceback
        self._sending = threading.Lock()
        self._reading = threading.Lock()

    # --- Life ---

    def start(self) -> None:
        """Start it now; it comes up meanwhile.

        Raises:
            StartError: the interpreter, or the file of its output, cannot be opened.
            UsageError: called while a child imports the user's module.
        """
        refuse_nested_spawn()
        orders_r, self._orders_fd = os.pipe()
        self.reports_fd, reports_w = os.pipe()
        liveness_r, self._liveness_fd = os.pipe()
        _parent_fds.update((self._orders_fd, self.reports_fd, self._liveness_fd))
        try:
            with self._specification() as specification, open(self._output, "ab") as output:
                self._output_from = output.tell()
                fds = (specification.fileno(), orders_r, reports_w, liveness_r)
                self._popen = subprocess.Popen(
                    [*self._launch_prefix, sys.executable, *_interpreter_flags(), "-P", "-c", LOADER, *map(str, fds)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **self._environment},
                    pass_fds=fds,
                    process_group=0,
                )
        except OSError as error:
            self.close()
            raise StartError(f"{self.name} cannot be started: {error}") from error
        finally:
            for fd in (orders_r, reports_w, liveness_r):
                os.close(fd)
        self._payload = b""
        os.set_blocking(self.reports_fd, False)
        os.set_blocking(self._orders_fd, False)

    def _specification(self) -> BinaryIO:
        """Write all that the child needs to know into a file that only it and we can see."""
        if hasattr(os, "memfd_create"):
            file: BinaryIO = open(os.memfd_create("actorraft", os.MFD_CLOEXEC), "w+b")  # noqa: SIM115
        else:
            file = tempfile.TemporaryFile()  # noqa: SIM115
        header = {
            "path": [os.path.abspath(path) for path in sys.path],
            "argv": list(sys.argv) or [""],
            "cwd": os.getcwd(),
            "name": self.name,
            "log_level": self.logger.getEffectiveLevel(),
        }
        file.write(marshal.dumps(header))
        file.write(self._payload)
        file.flush()
        file.seek(0)
        return file

    @property
    def pid(self) -> int:
        """The process id; it is this process's own until the end was noticed."""
        assert self._popen is not None, f"{self.name} was not started"
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether the process is there; a stopped one is."""
        return self._popen is not None and self._owner_pid == os.getpid() and self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """As subprocess has it: None while it lives, minus the signal's number if one killed it."""
        return self._popen.poll() if self._popen is not None else None

    def wait(self, timeout_s: float) -> int | None:
        """Wait until it is gone; return its code, None if it is still there."""
        if self._popen is None:
            return 0
        if self._popen.poll() is None and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # gone meanwhile
                pidfd = os.pidfd_open(self._popen.pid)
                try:
                    wait_for(pidfd, select.POLLIN, timeout_s)
                finally:
                    os.close(pidfd)
                return self._popen.poll()
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def terminate(self) -> None:
        """Ask it to leave; a paused one is woken for that."""
        self._signal(os.kill, signal.SIGTERM)
        self._signal(os.kill, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, for it and for what it started."""
        self._signal(os.killpg, signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP."""
        self._signal(os.kill, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(os.kill, signal.SIGCONT)

    def _signal(self, send: Callable[[int, int], None], number: int) -> None:
        if self.alive:  # then the id is its own: nobody else gets it before we were told of the end
            with contextlib.suppress(ProcessLookupError):
                send(self.pid, number)

    def close(self) -> None:
        """Let go of the pipes; the process is killed if it still lives. Idempotent."""
        if self._owner_pid != os.getpid():
            return
        self.kill()
        with self._sending, self._reading:
            fds = (self._orders_fd, self._liveness_fd, self.reports_fd)
            self._orders_fd = self._liveness_fd = self.reports_fd = -1
            for fd in fds:
                if fd >= 0:
                    _parent_fds.discard(fd)
                    os.close(fd)
        self.wait(SEND_S)

    # --- What is said ---

    def send(self, order: Any) -> None:
        """Send an order to the child.

        Raises:
            UsageError: it is gone, or does not read for 5 s.
        """
        data = pickle.dumps(order, pickle.HIGHEST_PROTOCOL)
        view = memoryview(LENGTH.pack(len(data)) + data)
        deadline_s = time.monotonic() + SEND_S
        with self._sending:
            while view:
                try:
                    view = view[os.write(self._orders_fd, view) :]
                except BlockingIOError:
                    left_s = deadline_s - time.monotonic()
                    if left_s <= 0 or not wait_for(self._orders_fd, select.POLLOUT, left_s):
                        raise UsageError(f"{self.name} takes no orders: it is paused, or stuck") from None
                except OSError as error:
                    raise UsageError(f"{self.name} is gone and cannot be told anything: {error.strerror}") from error

    def receive(self, timeout_s: float) -> Any:
        """Wait for the child's next report.

        Raises:
            StartError: it raised, died, or said nothing in time; with its reason and its last lines.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            gone = not self.alive  # before the last look at what it said
            self.pump()
            if self._reports:
                return self._reports.popleft()
            if self._failure is not None or gone:
                if self._failure is not None:
                    self.wait(1.0)
                names, _, _ = self._failure or ([], "", "")
                error = ChildRefused if UsageError.__name__ in names else StartError
                raise error(f"{self.name} did not start: {self.last_words()}")
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise StartError(f"{self.name} said nothing within {timeout_s:.1f} s: {self.last_words()}")
            if (fd := self.reports_fd) >= 0:  # else another thread has closed it, and the process is gone
                wait_for(fd, select.POLLIN, min(left_s, 0.2))  # in turns: another thread may read it away

    def pump(self) -> bool:
        """Read what the child has said so far; True if there was something. Log records are emitted at once."""
        got = False
        with self._reading:
            buffer = self._buffer
            with contextlib.suppress(OSError):
                while self.reports_fd >= 0 and (data := os.read(self.reports_fd, 1 << 16)):
                    got = True
                    buffer += data
            start = 0
            while len(buffer) - start >= LENGTH.size:
                (size,) = LENGTH.unpack_from(buffer, start)
                end = start + LENGTH.size + size
                if len(buffer) < end:
                    break
                self._on_said(*pickle.loads(buffer[start + LENGTH.size : end]))
                start = end
            del buffer[:start]
        return got

    def _on_said(self, kind: str, value: Any) -> None:
        if kind == "report":
            self._reports.append(value)
        elif kind == "failed":
            self._failure = value
        elif kind == "log":
            level, name, text = value
            ours = name.partition(".")[0] == "actorraft"
            self.logger.log(level, "%s", text if ours else f"{name}: {text}")

    def take_reports(self) -> list[Any]:
        """Return and forget the reports that were read by `pump`."""
        reports = self._reports
        return [reports.popleft() for _ in range(len(reports))]

    # --- What it wrote ---

    def logs(self, lines: int = 100) -> list[str]:
        """Return the last lines of its standard output and error, those of earlier lives of this name included."""
        return self._lines(0)[-lines:] if lines > 0 else []

    def _lines(self, start: int) -> list[str]:
        try:
            with open(self._output, "rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(start if start <= end else 0, end - (256 << 10)))
                return file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return []

    def bound_output(self) -> None:
        """Keep the file of its output from growing for ever: the older part goes (and a line written meanwhile)."""
        with contextlib.suppress(OSError):
            if self._output.stat().st_size <= OUTPUT_BYTES_MAX:
                return
            with open(self._output, "r+b") as file:
                file.seek(-OUTPUT_KEPT_BYTES, os.SEEK_END)
                kept = file.read().partition(b"\n")[2]
                file.truncate(0)
            with open(self._output, "ab") as file:
                file.write(b"(older lines were removed)\n" + kept)
            self._output_from = 0

    def last_words(self) -> str:
        """Say how it ended, and what it wrote last."""
        how = describe_exit(self.returncode)
        written = "\n".join(self._lines(self._output_from)[-LAST_LINES:])
        if self._failure is not None:
            names, message, traceback = self._failure
            how = f"{names[0]}: {message} ({how})"
            if traceback.strip() not in written:
                how = f"{how}\n{traceback.rstrip()}"
        return f"{how}; its last lines:\n{written}" if written else f"{how}; it wrote nothing"

    def __repr__(self) -> str:
        return f"<ActorProcess {self.name!r} {f'pid {self.pid}' if self.alive else 'down'}>"


def describe_exit(code: int | None) -> str:
    """Say in words what a return code means."""
    if code is None:
        return "it is still running"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _interpreter_flags() -> list[str]:
    """Return the options this interpreter was started with (-O, -X, -W and so on); -P is always given."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [flag for flag in flags if flag != "-P"]


def refuse_nested_spawn() -> None:
    """Refuse a spawn that runs because a child imports the user's module.

    Raises:
        UsageError: naming the module and the fix.
    """
    if not bootstrap.in_child:
        return
    frame: Any = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if frame.f_code.co_name == "<module>" and module not in (None, "__main__"):
            raise UsageError(
                f"spawn() ran while a node process imports the module {module}: each node would start more of them. "
                f'Put the call under `if __name__ == "__main__":` in {module}, or into a function'
            )
        frame = frame.f_back


class Monitor:
    """Watches processes from one thread: passes on what they say, tells of exits, and starts again what may be.

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
        restart: Callable[[ActorProcess], None],
        on_report: Callable[[ActorProcess, Any], None],
        on_exit: Callable[[ActorProcess, str], None],
        on_planned: Callable[[ActorProcess, bool], None] = lambda process, again: None,
    ) -> None:
        self._supervision = supervision
        self._restart = restart
        self._on_report = on_report
        self._on_exit = on_exit
        self._on_planned = on_planned
        self._rules: dict[str, Supervision] = {}  # name -> supervision of its own
        self._watched: dict[ActorProcess, None] = {}
        self._order: dict[str, int] = {}  # name -> its place in the order of first starts
        self._histories: dict[str, RestartLog] = {}
        self._due: list[tuple[float, ActorProcess]] = []
        self._lock = threading.Lock()
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._looked_at_s = 0.0

    def watch(self, process: ActorProcess, supervision: Supervision | None = None) -> None:
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

    def forget(self, process: ActorProcess) -> None:
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
            thread.join(timeout=2.0)  # it may be in a restart, which ends when that process is ended
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
                wait_s = min([LOOK_S, *(at_s - time.monotonic() for at_s, _ in self._due)])
            self._wait(watched, wait_s)
            look = time.monotonic() - self._looked_at_s >= LOOK_S
            if look:
                self._looked_at_s = time.monotonic()
            for process in watched:
                if self._ended.is_set():
                    break
                if look:
                    process.bound_output()
                self._look(process)
            self._start_due()

    def _wait(self, watched: list[ActorProcess], wait_s: float) -> None:
        poll = select.poll()
        poll.register(self._wake_r, select.POLLIN)
        for process in watched:
            if process.reports_fd >= 0:
                poll.register(process.reports_fd, select.POLLIN)
        if any(fd == self._wake_r for fd, _ in poll.poll(max(0.0, wait_s) * 1000)):
            with contextlib.suppress(OSError):
                os.read(self._wake_r, 4096)

    def _look(self, process: ActorProcess) -> None:
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
    def _hung_up(process: ActorProcess) -> bool:
        """Whether the other end of the reports is closed: then the process is about to be gone."""
        fd = process.reports_fd
        return fd >= 0 and wait_for(fd, 0, 0.0)

    def _tell(self, whom: Callable[[ActorProcess, Any], None], process: ActorProcess, what: Any) -> None:
        try:
            whom(process, what)
        except Exception:
            process.logger.exception("being told of %s, its owner raised", process.name)

    def _plan(self, process: ActorProcess, *, crashed: bool) -> None:
        """Decide whether a process that died is started again, when, and who else with it."""
        rule = self._rules.get(process.name, self._supervision)
        if self._ended.is_set():
            return
        if rule is None or not process.wanted:
            self._tell(self._on_planned, process, False)
            return
        history = self._histories.setdefault(process.name, RestartLog(rule))
        now_s = time.monotonic()
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

    def _end_others(self, process: ActorProcess, rule: Supervision) -> list[ActorProcess]:
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
        now_s = time.monotonic()
        with self._lock:
            due = [process for at_s, process in self._due if at_s <= now_s]
            self._due = [(at_s, process) for at_s, process in self._due if at_s > now_s]
        for process in sorted(due, key=lambda one: self._order[one.name]):
            if self._ended.is_set():
                return
            try:
                self._restart(process)
            except Exception as error:
                process.logger.error("the restart of %s failed: %s", process.name, error)
                self._plan(process, crashed=True)
