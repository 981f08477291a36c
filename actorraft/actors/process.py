"""The parent's side of a process: start it, hear it, watch it, end it.

A child is a fresh interpreter (fork and exec; a forked libzmq context does not survive), or the fork of one that has
only done its imports (forkserver.py), in a process group of its own, so that Ctrl-C in a terminal reaches the parent
alone. What it is to do lies in an inherited file without a name, what it prints goes to a bounded file. Two pipes carry
orders and reports, a third carries nothing and ties its life to the parent's: when this process ends, in whatever way,
the kernel ends its children; no exit handler is needed for that.

Between the two stands the child's guardian (guardian.py), which ends with it what it started, and says on a fourth pipe
who it is and how it ended. So nothing here depends on being told of children's ends by the system: a program may ignore
SIGCHLD, or wait for every child there is.

Why no multiprocessing.Process: it runs the user's `__main__` again, and its exit-time join hangs.
Source:     docs/decisions/0013.
"""

from __future__ import annotations

import contextlib
import inspect
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
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import cloudpickle  # type: ignore[import-untyped]

from actorraft.actors import bootstrap
from actorraft.actors.bootstrap import LENGTH, LOADER, wait_for
from actorraft.actors.guardian import BORN, ENDED, arm_early, stat_fields
from actorraft.actors.surroundings import environment, explained, interpreter, interpreter_flags
from actorraft.errors import StartError, UsageError
from actorraft.steady import monotonic

if TYPE_CHECKING:
    from actorraft.actors.forkserver import Forked, ForkServer

OUTPUT_BYTES_MAX: Final = 4 << 20
OUTPUT_KEPT_BYTES: Final = 1 << 20
SEND_S: Final = 5.0  # how long an order waits for a child that does not read
LAST_LINES: Final = 20
MEANT_MAX: Final = 8  # directories that a relative path stands for, after changes of the working directory
BORN_S: Final = 5.0  # how long a fresh interpreter may take to say which process the child is
REAP_S: Final = 1.0  # what a guardian that has said its last word takes to be gone

fds_of_parent: set[int] = set()  # of pipes and sockets to children; a fork of this process must not keep children alive


def _close_in_fork() -> None:
    for fd in fds_of_parent:
        with contextlib.suppress(OSError):
            os.close(fd)
    fds_of_parent.clear()


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
        forks: what forks it, if that can be; None: it is a fresh interpreter.
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
        forks: ForkServer | None = None,
    ) -> None:
        self.name = name
        self.logger = logger
        self.reports_fd = self._orders_fd = self._liveness_fd = self._end_fd = -1
        self._payload = cloudpickle.dumps((target, tuple(args), dict(kwargs or {})), pickle.HIGHEST_PROTOCOL)
        self._output = output_file(Path(run_dir), name)
        self._output_from = 0  # where this life's output begins
        self._launch_prefix = list(launch_prefix)
        self._environment = dict(environment or {})
        if hash_seed is not None:
            self._environment["PYTHONHASHSEED"] = str(hash_seed)
        self._forks = None if self._launch_prefix or self._environment else forks
        self._popen: subprocess.Popen[bytes] | Forked | None = None  # the guardian
        self._said = b""  # by the guardian
        self._pid = 0  # the child's; 0: not known yet
        self._pidfd = -1  # the child, whatever becomes of its number
        self._code: int | None = None  # as subprocess has it
        self.wanted = True  # whether it is to be started again should it die
        self.again = False  # whether it was ended in order to be started again at once
        self._owner_pid = os.getpid()
        self._closed = False
        self._buffer = bytearray()
        self._reports: deque[Any] = deque()
        self._failure: tuple[list[str], str, str] | None = None  # type names, message, traceback
        self._starting = threading.RLock()  # one that is closed meanwhile is ended all the same; a signal may close it
        self._sending = threading.Lock()
        self._unsent = b""  # the rest of an order of which a part has left
        self._reading = threading.Lock()
        self._hearing = threading.Lock()  # of what the guardian said

    # --- Life ---

    def start(self) -> None:
        """Start it now; it comes up meanwhile.

        Raises:
            StartError: the interpreter, or the file of its output, cannot be opened; or it was closed meanwhile.
            UsageError: called while a child imports the user's module.
        """
        refuse_nested_spawn()
        theirs: list[int] = []
        try:
            with self._starting, explained():
                if self._closed:
                    raise StartError(f"{self.name} was ended before it was started")
                self._start(theirs)
        except OSError as error:
            self.close()
            raise StartError(f"{self.name} cannot be started: {error}") from error
        except BaseException:
            self.close()
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self._payload = b""

    def _start(self, theirs: list[int]) -> None:
        """Start it; the descriptors that are the child's are put into `theirs`, to be closed here."""

        def pipe(ours: int) -> tuple[int, int]:
            fds = os.pipe()
            theirs.append(fds[1 - ours])
            fds_of_parent.add(fds[ours])
            os.set_blocking(fds[ours], False)
            return fds

        orders_r, self._orders_fd = pipe(1)
        self.reports_fd, reports_w = pipe(0)
        liveness_r, self._liveness_fd = pipe(1)
        self._end_fd, end_w = pipe(0)
        with self._specification() as specification, open(self._output, "ab") as output:
            self._output_from = output.tell()
            fds = (specification.fileno(), orders_r, reports_w, liveness_r, end_w)
            self._popen = self._forked(fds, output) or self._fresh(fds, output)

    def _forked(self, fds: Sequence[int], output: BinaryIO) -> Forked | None:
        if self._forks is None:
            return None
        try:
            cwd = os.open(".", os.O_PATH)
        except OSError:
            return None
        try:
            return self._forks.fork((*fds, output.fileno(), cwd))
        finally:
            os.close(cwd)

    def _fresh(self, fds: Sequence[int], output: BinaryIO) -> subprocess.Popen[bytes]:
        popen = subprocess.Popen(
            [*self._launch_prefix, interpreter(), *interpreter_flags(), "-c", LOADER, *map(str, fds)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(self._environment),
            pass_fds=fds,
            process_group=0,
        )
        arm_early(fds[3], popen.pid)
        return popen

    def _specification(self) -> BinaryIO:
        """Write all that the child needs to know into a file that only it and we can see."""
        header = {
            "path": paths(),
            "argv": list(getattr(sys, "argv", ())) or [""],  # an embedded interpreter may have none
            "name": self.name,
            "log_level": self.logger.getEffectiveLevel(),
        }
        return nameless_file(marshal.dumps(header) + self._payload)

    @property
    def pid(self) -> int:
        """The process id; it is this process's own until the end was noticed."""
        assert self._popen is not None, f"{self.name} was not started"
        self._hear(BORN_S)
        return self._pid or self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether the process is there; a stopped one is."""
        return self._popen is not None and self._owner_pid == os.getpid() and self._ended() is None

    @property
    def returncode(self) -> int | None:
        """As subprocess has it: None while it lives, minus the signal's number if one killed it."""
        return self._ended() if self._popen is not None else None

    def wait(self, timeout_s: float) -> int | None:
        """Wait until it, and what it started, is gone; return its code, None if it is still there."""
        if self._popen is None:
            return 0
        deadline_s = monotonic() + timeout_s
        while self._ended() is None:
            left_s, fd = deadline_s - monotonic(), self._end_fd
            if left_s <= 0 or fd < 0:
                return None
            wait_for(fd, select.POLLIN, min(left_s, 0.2))  # in turns: another thread may read it away
        return self._code

    def terminate(self) -> None:
        """Ask it to leave; a paused one is woken for that."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, for it and for what it started."""
        try:
            self._signal(signal.SIGKILL)
        except PermissionError:  # to another user this process has become: what is armed with the pipe still may
            with self._sending:
                self._close_liveness()

    def _close_liveness(self) -> None:
        fd, self._liveness_fd = self._liveness_fd, -1
        if fd >= 0:
            fds_of_parent.discard(fd)
            os.close(fd)

    def pause(self) -> None:
        """SIGSTOP; return once it stands still, or after a second: on a busy machine its threads go on for a while."""
        self._signal(signal.SIGSTOP)
        for _ in range(1000):
            if not self._goes_on():
                return
            time.sleep(0.001)

    def _goes_on(self) -> bool:
        """Return whether any of its threads is neither stopped nor gone."""
        for each in Path(f"/proc/{self._pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):
                if stat_fields(str(each))[0] not in "TtZX":
                    return True
        return False

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if not self.alive:
            return
        self._hear(BORN_S)
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, number)
            elif self._pid:  # known by number alone; its guardian has not waited for it yet
                os.kill(self._pid, number)
            elif number == signal.SIGKILL:  # it has not come as far as dividing
                self._kill_guardian()

    def _kill_guardian(self) -> None:
        """The child dies with it, and what that started is left to itself: for one that does not do its work."""
        assert self._popen is not None
        if self._ended() is None:
            self._popen.kill()

    def _hear(self, timeout_s: float) -> None:
        """Wait until it is known which process the child is, or that there is none any more."""
        deadline_s = monotonic() + timeout_s
        while not self._pid and self._ended() is None:
            left_s, fd = deadline_s - monotonic(), self._end_fd
            if left_s <= 0 or fd < 0:
                return
            wait_for(fd, select.POLLIN, min(left_s, 0.2))

    def _ended(self) -> int | None:
        """Read what the guardian has said; return with what the child ended, None while it lives."""
        if self._code is not None or self._end_fd < 0:
            return self._code
        with self._hearing:
            gone = False
            if self._end_fd >= 0 and self._code is None:
                with contextlib.suppress(BlockingIOError):
                    while data := os.read(self._end_fd, 64):
                        self._said += data
                    gone = True
                self._understand(gone)
        return self._code

    def _understand(self, gone: bool) -> None:
        assert self._popen is not None
        gone |= len(self._said) >= BORN.size + ENDED.size
        if not self._pid and len(self._said) >= BORN.size:
            guardian, self._pid = BORN.unpack_from(self._said)
            if not gone and hasattr(os, "pidfd_open"):
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    pidfd = os.pidfd_open(self._pid)
                    if _parent_of(self._pid) == guardian:
                        self._pidfd = pidfd
                    else:
                        os.close(pidfd)
        if not gone:
            return
        if len(self._said) >= BORN.size + ENDED.size:
            (self._code,) = ENDED.unpack_from(self._said, BORN.size)
        else:  # the guardian was killed, and its child with it
            self._code = -signal.SIGKILL
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(REAP_S)  # whoever else may have waited for it
        self._popen.returncode = self._code

    def close(self) -> None:
        """Let go of the pipes; the process is killed if it still lives. Idempotent."""
        if self._owner_pid != os.getpid():
            return
        with self._starting:
            self._closed = True
        self.kill()
        if self._popen is not None and self.wait(SEND_S) is None:
            self._kill_guardian()
            self.wait(SEND_S)
        with self._sending, self._reading, self._hearing:
            self._close_liveness()
            fds = (self._orders_fd, self.reports_fd, self._end_fd)
            self._orders_fd = self.reports_fd = self._end_fd = -1
            for fd in fds:
                if fd >= 0:
                    fds_of_parent.discard(fd)
                    os.close(fd)

    # --- What is said ---

    def send(self, order: Any, patience_s: float | None = None) -> None:
        """Send an order to the child.

        Raises:
            UsageError: it is gone, or does not read for so long (None: 5 s).
        """
        data = pickle.dumps(order, pickle.HIGHEST_PROTOCOL)
        patience_s = SEND_S if patience_s is None else patience_s
        deadline_s = monotonic() + patience_s
        if not self._sending.acquire(timeout=patience_s):  # another order waits
            raise UsageError(f"{self.name} takes no orders: it is paused, or stuck")
        try:
            before, self._unsent = self._unsent, b""
            frames = before + LENGTH.pack(len(data)) + data
            view = memoryview(frames)
            while view:
                try:
                    view = view[os.write(self._orders_fd, view) :]
                except BlockingIOError:
                    left_s = deadline_s - monotonic()
                    if left_s <= 0 or not wait_for(self._orders_fd, select.POLLOUT, left_s):
                        written = len(frames) - len(view)  # an order that has left in part is followed by its rest
                        self._unsent = frames[written:] if written > len(before) else before[written:]
                        raise UsageError(f"{self.name} takes no orders: it is paused, or stuck") from None
                except OSError as error:
                    raise UsageError(f"{self.name} is gone and cannot be told anything: {error.strerror}") from error
        finally:
            self._sending.release()

    def receive(self, timeout_s: float) -> Any:
        """Wait for the child's next report.

        Raises:
            StartError: it raised, died, or said nothing in time; with its reason and its last lines.
        """
        deadline_s = monotonic() + timeout_s
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
            left_s = deadline_s - monotonic()
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
        """Return the last lines of its standard output and error, those of earlier lives of this name included.

        Raises:
            UsageError: `lines` is no whole number.
        """
        return last_lines(self._lines(0), lines)

    def _lines(self, start: int) -> list[str]:
        return read_lines(self._output, start)

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
        lines, nothing = self._lines(self._output_from), "; it wrote nothing"
        if self._failure is not None:
            names, message, traceback = self._failure
            how, nothing = f"{names[0]}: {message} ({how})\n{traceback.rstrip()}", ""
            lines = "\n".join(lines).replace(traceback.strip(), "").splitlines()  # it wrote that, too
        written = "\n".join(lines[-LAST_LINES:])
        return f"{how}; its last lines:\n{written}" if written.strip() else f"{how}{nothing}"

    def __repr__(self) -> str:
        return f"<ActorProcess {self.name!r} {f'pid {self.pid}' if self.alive else 'down'}>"


def output_file(run_dir: Path, name: str) -> Path:
    """Return where the output of the process of this name goes."""
    return run_dir / f"{name.replace(' ', '-').replace('/', '_')}.out"


def last_lines(lines: list[str], wanted: Any) -> list[str]:
    """Return the last `wanted` of these lines; none for 0 or less.

    Raises:
        UsageError: that is no whole number.
    """
    if isinstance(wanted, bool) or not isinstance(wanted, Integral):
        raise UsageError(f"lines is how many of the last ones are wanted, a whole number, not {wanted!r}")
    count = int(wanted)
    return lines[-count:] if count > 0 else []


def read_lines(file: Path, start: int = 0) -> list[str]:
    """Return the last 256 KB of a file's lines, from the byte `start` on; none if there is no such file."""
    try:
        with open(file, "rb") as output:
            end = output.seek(0, os.SEEK_END)
            output.seek(max(start if start <= end else 0, end - (256 << 10)))
            return output.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def nameless_file(data: bytes) -> BinaryIO:
    """Return a file with `data` that only its holders can see, to be read from its beginning."""
    if hasattr(os, "memfd_create"):
        file: BinaryIO = open(os.memfd_create("actorraft", os.MFD_CLOEXEC), "w+b")  # noqa: SIM115
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(data)
    file.flush()
    file.seek(0)
    return file


def paths() -> list[str]:
    """Return where this process looks for modules, said so that it means the same in another directory.

    A program may change its directory after it was asked first, and a process that is started again is to find what the
    others have: so a relative path stands for all that it has meant, the last few at least, what it means now first.
    """
    found: list[str] = []
    for path in sys.path:
        if isinstance(path, str):  # the interpreter passes by all else
            meant = _meant.setdefault(path, [])
            now = _absolute(path)
            meant[:] = [now, *(each for each in meant if each != now)][:MEANT_MAX]
            found += meant
    return found


_meant: dict[str, list[str]] = {}  # a path -> where it led, the last first


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError:  # the working directory is gone; the child is in it too
        return path


def _parent_of(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(stat_fields(f"/proc/{pid}/stat")[1])
    return -1


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


def refuse_nested_spawn() -> None:
    """Refuse a spawn that runs because a child imports the user's module.

    Raises:
        UsageError: naming the module and the fix.
    """
    if not bootstrap.in_child:
        return
    frame = inspect.currentframe()
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if frame.f_code.co_name == "<module>" and module not in (None, "__main__"):
            raise UsageError(
                f"spawn() ran while a node process imports the module {module}: each node would start more of them. "
                f'Put the call under `if __name__ == "__main__":` in {module}, or into a function. A web application '
                "spawns nothing: make the cluster outside of its workers, and connect() in each worker's lifespan"
            )
        frame = frame.f_back
