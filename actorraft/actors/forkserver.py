"""A process that actors' processes are forked from: it has loaded once what each of them would load.

A fresh interpreter that imports what an actor needs takes 0.3 s of a core; a fork of one that has done so, a few
milliseconds. The server is started with the first actor. It loads nothing of the user's: a child does that after the
fork, as a fresh interpreter would, so no library of the user's is ever forked.

Invariant:  what is forked has one thread and no ZeroMQ context. A server that has more threads (those of a hook of the
            site, say) leaves instead, and fresh interpreters are started as if there were none.
            A child cannot tell the server from its parent: what it has from its parent by fork and exec (ids, limits,
            signals, environment, the interpreter's options) a server has from the time of its own start, so it serves
            only as long as these are still the same (`surroundings.inherited`); then another takes its place. The
            rest (working directory, sys.path, argv, output) comes with each request.
Liveness:   the server ends with its parent, as children do. What it has forked is tied to the parent by pipes of its
            own (guardian.py), and not to the server: that may end at any time.
Differs:    not without Linux: elsewhere a fork without exec is not safe with the system's own libraries.
Source:     docs/decisions/0044; multiprocessing's forkserver, which runs `__main__` again.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import marshal
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from actorraft.actors.bootstrap import main, wait_for
from actorraft.actors.guardian import arm_early, divide, has_ended
from actorraft.actors.process import fds_of_parent, nameless_file, output_file, paths, read_lines
from actorraft.actors.surroundings import environment, inherited, interpreter, interpreter_flags
from actorraft.errors import StartError
from actorraft.loggers import guarded_logger

logger = guarded_logger("actorraft")

FORK_S: Final = 20.0  # what a server gets to fork a child, its own start included
END_S: Final = 5.0  # what is killed gets to be gone
LOADER: Final = (
    "import marshal,sys;"
    "f=open(int(sys.argv[1]),'rb');sys.path[:]=marshal.load(f);f.close();"
    "from actorraft.actors.forkserver import serve;"
    "serve(*map(int,sys.argv[2:4]))"
)
FORKED: Final = struct.Struct("<i")  # the answer: which process it is; with its pidfd, and the pipe that lets it begin


class Forked:
    """A process that is no child of this one, but is known and ended as surely: what Popen is to children."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._pidfd = pidfd

    def kill(self) -> None:
        """SIGKILL; nothing happens if it is gone."""
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def __del__(self) -> None:
        if self._pidfd >= 0:  # nobody has waited for it to the end
            os.close(self._pidfd)

    def wait(self, timeout: float) -> None:
        """Wait until it is gone, and let go of it.

        Raises:
            subprocess.TimeoutExpired: it is still there.
        """
        if not wait_for(self._pidfd, select.POLLIN, timeout):
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        with contextlib.suppress(ChildProcessError):  # of somebody else; ours, if we were given orphans
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        pidfd, self._pidfd = self._pidfd, -1
        os.close(pidfd)


class ForkServer:
    """The parent's side: starts the server when a child is wanted, and asks it for one.

    Args:
        run_dir: where what it writes goes.

    Threads:    any.
    """

    def __init__(self, run_dir: Path) -> None:
        self._output = output_file(run_dir, "forkserver")
        self._server: Forked | None = None
        self._channel = self._liveness = -1
        self._like: object = None  # what it has inherited
        self._unfit: object = None  # with what it could not fork at all
        self._proven = False  # whether it has forked anything
        self._asking = threading.RLock()
        self._busy = False  # a signal handler may ask while its thread does

    def fork(self, fds: Sequence[int]) -> Forked | None:
        """Have a guardian and its child forked; None if that is not possible here and now, and nothing has begun.

        Args:
            fds: those of the specification, orders, reports, liveness and end, the output, and the working directory.
        """
        with self._asking:
            like = inherited()  # as it is now that it is our turn
            if like is None or like == self._unfit or self._busy:
                return None
            self._busy = True
            try:
                return self._fork(like, fds)
            finally:
                self._busy = False

    def _fork(self, like: object, fds: Sequence[int]) -> Forked | None:
        for _ in range(2):  # again, if somebody has ended a server that was fit
            try:
                if self._server is None or self._like != like:
                    self.close()
                    self._start()
                    self._like = like if inherited() == like else None  # else it was changed while that started
                forked = self._ask(fds)
                self._proven = True
                return forked
            except (OSError, EOFError) as error:
                proven = self._proven
                self.close()
                if not proven:
                    self._unfit = like
                    logger.info(
                        "actors are started as fresh interpreters, for none can be forked: %s", self._why(error)
                    )
                    return None
            except BaseException:  # the answer that comes now would be taken for the next one's
                self.close()
                raise
        return None

    def _why(self, error: Exception) -> str:
        return (read_lines(self._output) or [repr(error)])[-1]

    def _start(self) -> None:
        liveness_r, self._liveness = os.pipe()
        fds_of_parent.add(self._liveness)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._channel = ours.detach()
            fds_of_parent.add(self._channel)
            with nameless_file(marshal.dumps(paths())) as path, open(self._output, "ab") as output, theirs:
                given = (path.fileno(), theirs.fileno(), liveness_r)
                popen = subprocess.Popen(
                    [interpreter(), *interpreter_flags(), "-c", LOADER, *map(str, given)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment({}),
                    pass_fds=given,
                    process_group=0,
                )
                try:
                    self._server = Forked(popen.pid, os.pidfd_open(popen.pid))
                except OSError:  # a sandbox may forbid it
                    popen.kill()
                    popen.wait()
                    raise
                popen.returncode = 0  # from here on it is known by what cannot become another's
                arm_early(liveness_r, popen.pid)
        finally:
            os.close(liveness_r)
        self._proven = False

    def _ask(self, fds: Sequence[int]) -> Forked:
        """Send a request and wait for the answer.

        Raises:
            OSError: nothing was forked.
            EOFError: likewise: the server has left.
            StartError: what was forked has been ended.
        """
        assert self._server is not None
        channel = socket.socket(fileno=self._channel)
        try:
            channel.sendmsg([b"fork"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))], _NO_SIGNAL)
            if not wait_for(self._channel, select.POLLIN, FORK_S):
                self._server.kill()  # then it has answered, or does not any more, and the child has not begun
                wait_for(self._channel, select.POLLIN, END_S)
            channel.setblocking(False)
            answer, held, _, _ = socket.recv_fds(channel, FORKED.size, 2, socket.MSG_CMSG_CLOEXEC)
            if not answer:
                raise EOFError("the server has left")
        finally:
            channel.detach()
        (pid,) = FORKED.unpack(answer)
        forked = Forked(pid, held[0] if held else -1)
        if len(held) < 2:  # what was forked leaves, as it is never told to go on
            raise StartError("too few file descriptors are left: close some, or raise the limit (ulimit -n)")
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended already, and its pipes say so
                os.write(held[1], b"g")
        finally:
            os.close(held[1])
        return forked

    def close(self) -> None:
        """End the server; what it has forked goes on. Idempotent."""
        with self._asking:
            server, self._server = self._server, None
            fds = (self._channel, self._liveness)
            self._channel = self._liveness = -1
            for fd in fds:
                if fd >= 0:
                    fds_of_parent.discard(fd)
                    os.close(fd)
            if server is not None:
                with contextlib.suppress(PermissionError):  # to another user it has become; the pipe has ended it then
                    server.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(END_S)


_NO_SIGNAL: Final = getattr(socket, "MSG_NOSIGNAL", 0)


# --- The server's side ---


def serve(channel_fd: int, parent_fd: int) -> NoReturn:
    """Fork children until the parent is gone; the whole life of the server."""
    import ctypes  # noqa: F401  # what each guardian needs

    import actorraft.actors.loop  # noqa: F401
    import transports.zeromq  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what it forks is others' to wait for
    os.chdir("/")  # each child is told where to be; nothing is kept busy meanwhile
    channel = socket.socket(fileno=channel_fd)
    gc.collect()
    gc.freeze()  # what is never looked at stays shared
    while True:
        asked, fds, _, _ = socket.recv_fds(channel, 16, 16)
        if not asked:
            os._exit(0)
        if len(os.listdir("/proc/self/task")) > 1:
            os.write(2, b"what this Python loads at its start has begun a thread\n")
            os._exit(1)  # at once: leaving otherwise would wait for that thread
        _fork(channel, parent_fd, fds)
        for fd in fds:
            os.close(fd)


def _fork(channel: socket.socket, parent_fd: int, fds: list[int]) -> None:
    liveness_fd = fds[3]
    os.set_blocking(liveness_fd, False)
    go_r, go_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go_w)
        os.close(parent_fd)
        channel.close()
        os.setpgid(0, 0)
        if not os.read(go_r, 1):
            os._exit(1)  # nobody knows of this process
        os.close(go_r)
        _begin(*fds)
    try:
        pidfd = os.pidfd_open(pid)
        arm_early(liveness_fd, pid)
        if has_ended(liveness_fd):
            os.kill(pid, signal.SIGKILL)
        rights = array.array("i", [pidfd, go_w])  # the word to go on is the parent's: the server may end at any time
        channel.sendmsg([FORKED.pack(pid)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        os.close(pidfd)
    finally:
        os.close(go_r)
        os.close(go_w)


def _begin(
    specification_fd: int, orders_fd: int, reports_fd: int, liveness_fd: int, end_fd: int, output_fd: int, cwd_fd: int
) -> NoReturn:
    """Be what a fresh interpreter would be now, and go on as that does (bootstrap.LOADER)."""
    for fd in (1, 2):
        os.dup2(output_fd, fd)
    try:
        os.fchdir(cwd_fd)
        os.close(output_fd)
        os.close(cwd_fd)
        specification = open(specification_fd, "rb")  # noqa: SIM115
        header: dict[str, Any] = marshal.load(specification)
        sys.path[:], sys.argv[:] = header["path"], header["argv"]
        importlib.invalidate_caches()
        divide(liveness_fd, end_fd, (specification_fd, orders_fd, reports_fd))
        main(specification, orders_fd, reports_fd, header)
    except BaseException:
        traceback.print_exc()  # its last words, as those of a fresh interpreter
    finally:
        os._exit(1)
