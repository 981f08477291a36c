"""The process between a child and its parent, which ends with the child whatever the child has started.

What user code starts (a program, a fork, a daemon that took a session of its own) would outlive a child that leaves, is
killed, or dies with its parent. Who is to end it must be its ancestor and outlive the child. So the process that the
parent starts divides at once, before it has loaded anything: the copy becomes the child, the original stays behind as
its guardian. Orphans below it are given to it by the kernel (PR_SET_CHILD_SUBREAPER, which needs no rights), so that
nothing gets out of its reach by forking twice. It sleeps in one system call until the child has ended, ends all that
is left, says how the child ended, and goes.

Liveness:   the parent holds the only write end of a pipe that carries nothing. When it ends, in whatever way, the
            kernel signals the guardian (O_ASYNC), and by a second description of that pipe kills the child at once,
            also while that is stopped or inside a long C call; another pipe has the child die should the guardian. The
            parent arms the first before the child has run a line. PR_SET_PDEATHSIG was rejected: it follows a thread.
Differs:    without Linux there are no such signals and no such adoption: threads read the pipes, and an orphan is not
            found.
Not here:   a process group or a session is not enough, since setsid leaves both; control groups and process id
            namespaces would do, but are not everybody's to make.
Source:     docs/decisions/0026; prctl(2), fcntl(2) F_SETSIG.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any, Final, NoReturn

BORN: Final = struct.Struct("<ii")  # the guardian's first word: its own process id, and the child's
ENDED: Final = struct.Struct("<i")  # and its last: the child's exit code, minus the signal's number if one killed it
PR_SET_CHILD_SUBREAPER: Final = 36
AGAIN_S: Final = (0.001, 0.1)  # until what was killed is looked for again, at first and at the longest

_LINUX: Final = hasattr(fcntl, "F_SETSIG")


def arm(fd: int, pid: int, number: int) -> None:
    """Have the kernel signal `pid` when the last write end of the pipe `fd` is closed, whatever that does then."""
    fcntl.fcntl(fd, fcntl.F_SETOWN, pid)
    fcntl.fcntl(fd, fcntl.F_SETSIG, number)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)


def arm_early(fd: int, pid: int) -> None:
    """As the parent: from the very start of a process on, have it killed when we end. A no-op without Linux."""
    if _LINUX:
        with contextlib.suppress(OSError):  # it has ended already
            arm(fd, pid, signal.SIGKILL)


def divide(liveness_fd: int, end_fd: int, others: Sequence[int]) -> None:
    """Divide into a child, in which this returns, and its guardian, in which it never does.

    Args:
        liveness_fd: the end for reading of the pipe whose other end the parent holds.
        end_fd: where the guardian says how the child ended.
        others: descriptors that are the child's alone.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a parent that ignores it has handed that down
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGIO})  # and so has one that blocks these
    guardian = _Guardian()
    if _LINUX:
        signal.signal(signal.SIGIO, guardian.on_parent_gone)
        arm(liveness_fd, os.getpid(), signal.SIGIO)
        if has_ended(liveness_fd):  # before that was armed
            os._exit(1)
    bond_r, bond_w = os.pipe()
    mine = os.getpid()
    child = os.fork()
    if child:
        guardian.child = child
        for fd in (bond_r, *others):
            os.close(fd)
        if _LINUX and has_ended(liveness_fd):  # while nobody was there to be killed
            guardian.on_parent_gone()
        guardian.run(liveness_fd, end_fd)
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    os.setpgid(0, 0)
    os.close(bond_w)
    os.close(end_fd)
    _die_with(bond_r)
    if _LINUX and os.path.exists(own := f"/proc/self/fd/{liveness_fd}"):
        again = os.open(
            own, os.O_RDONLY | os.O_NONBLOCK
        )  # a description of its own: the other one signals the guardian
        os.close(liveness_fd)
        _die_with(again)
    else:
        os.set_inheritable(liveness_fd, False)
    if os.getppid() != mine:
        os._exit(1)


def has_ended(fd: int) -> bool:
    """Return whether the other side of a pipe that carries nothing is gone."""
    try:
        os.read(fd, 1)
    except BlockingIOError:
        return False
    return True


def _die_with(fd: int) -> None:
    """Be killed when the other side of a pipe is gone."""
    if _LINUX:
        arm(fd, os.getpid(), signal.SIGKILL)
        if has_ended(fd):
            os._exit(1)
    else:
        threading.Thread(target=_die_at_end, args=(fd,), name="liveness", daemon=True).start()


def _die_at_end(fd: int) -> None:
    os.read(fd, 1)
    os._exit(1)


class _Guardian:
    """What the original does from the division on."""

    def __init__(self) -> None:
        self.child: int | None = None  # None: not there yet, or waited for: its number may be another's by now

    def run(self, liveness_fd: int, end_fd: int) -> NoReturn:
        """Wait for the child's end; then end all that it started, say how it ended, and go."""
        try:
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.SIG_IGN)  # they reach the child too, if they are meant for it
            signal.signal(signal.SIGTERM, lambda *_: self._signal(signal.SIGTERM))
            os.write(end_fd, BORN.pack(os.getpid(), self.child))
            if _LINUX:
                _adopt_orphans()
            else:
                threading.Thread(target=self._wait_for_parent, args=(liveness_fd,), daemon=True).start()
            code = self._wait()
            _end_all()
            os.write(end_fd, ENDED.pack(code))
        finally:
            os._exit(0)

    def on_parent_gone(self, *_: Any) -> None:
        """The parent has ended: so must the child."""
        self._signal(signal.SIGKILL)

    def _wait_for_parent(self, liveness_fd: int) -> None:
        os.read(liveness_fd, 1)
        self.on_parent_gone()

    def _signal(self, number: int) -> None:
        if self.child is not None:
            with contextlib.suppress(OSError):
                os.kill(self.child, number)

    def _wait(self) -> int:
        """Wait for the child, and meanwhile for orphans that end."""
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == self.child:
                self.child = None
                return os.waitstatus_to_exitcode(status)


def _end_all() -> None:
    """Kill what is left, level by level: what a dead one leaves is given to this process."""
    again_s = AGAIN_S[0]
    while True:
        killed = False
        for pid in _children():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                killed = True
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                again_s = AGAIN_S[0]
        except ChildProcessError:
            return
        if not killed:
            return  # another user's by now (sudo): out of our hands
        time.sleep(again_s)
        again_s = min(AGAIN_S[1], 2 * again_s)


def _adopt_orphans() -> None:
    """Be given the orphans below this process; and be found by nobody who looks for the child by its environment."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with contextlib.suppress(OSError, IndexError, ValueError):
        start, end = map(int, stat_fields("/proc/self/stat")[47:49])
        if 0 < start < end:
            ctypes.memset(start, 0, end - start)


def stat_fields(path: str) -> list[str]:
    """Return what stands in a process's or thread's `stat` behind its name, which may be any bytes.

    Raises:
        OSError: it is gone.
    """
    with open(path, "rb") as file:
        return file.read().rpartition(b")")[2].decode().split()


def _children() -> list[int]:
    """Return the ids of this process's children, ended ones included."""
    mine = os.getpid()
    with contextlib.suppress(OSError), open(f"/proc/{mine}/task/{mine}/children", "rb") as file:
        return [int(pid) for pid in file.read().split()]
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                if int(stat_fields(f"/proc/{int(name)}/stat")[1]) == mine:
                    found.append(int(name))
    return found
