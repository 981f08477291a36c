"""The child's side of a process: arm the liveness pipe, take the orders, run, and report how it went.

The parent starts a bare interpreter with `LOADER`, which reads one plain header from the inherited pipe, makes sys.path,
working directory and argv those of the parent, and only then comes here. User code is loaded after that, so it is found
where the parent found it; the parent's `__main__` is never run again.

Liveness:   the parent holds the only write end of a pipe that carries nothing. On Linux the kernel itself kills this process
            when that end closes (O_ASYNC with SIGKILL for a signal): also while it is stopped or inside a long C call.
Source:     architecture 17 and 18.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import pickle
import select
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

LENGTH = struct.Struct("<I")
REPORT_LOG_BYTES_MAX = 4000  # under PIPE_BUF: a log record is written whole or not at all

loading_user_code = False  # in a child, until its target says that all of the user's modules are loaded

# argv: the descriptors of orders, reports and liveness. The header is plain data from the process that started this one.
LOADER = (
    "import os,pickle,struct,sys;"
    "o,r,l=map(int,sys.argv[1:4]);"
    "n,=struct.unpack('<I',os.read(o,4));"
    "b=b'';\n"
    "while len(b)<n: b+=os.read(o,n-len(b))\n"
    "h=pickle.loads(b);sys.path[:]=h['path'];sys.argv[:]=h['argv'];os.chdir(h['cwd'])\n"
    "from actorraft.actors.bootstrap import main\n"
    "main(o,r,l,h)"
)


class ChildContext:
    """What a target is given: its line to the parent."""

    def __init__(self, orders_fd: int, reports_fd: int, name: str) -> None:
        self.name = name
        self.stop_requested = False
        self._orders_fd = orders_fd
        self._reports_fd = reports_fd
        self._lock = threading.RLock()
        self._on_stop: list[Callable[[], Any]] = []

    def report(self, value: Any) -> None:
        """Tell the parent something; waits for the parent to read for at most 5 s."""
        self._write(pickle.dumps(("report", value)), wait_s=5.0)

    def receive(self, timeout_s: float | None) -> Any:
        """Return the next thing the parent sent; None if it is gone, or nothing came in time."""
        if timeout_s is not None and not select.select([self._orders_fd], [], [], timeout_s)[0]:
            return None
        data = read_frame(self._orders_fd)
        return None if data is None else pickle.loads(data)

    def loaded(self) -> None:
        """Say that the user's code is loaded: from here on, a spawn is meant."""
        global loading_user_code
        loading_user_code = False

    def on_stop(self, callback: Callable[[], Any]) -> None:
        """Have `callback` called when the parent asks this process to leave (in a signal handler: be brief)."""
        self._on_stop.append(callback)
        if self.stop_requested:
            callback()

    def _stop(self, *_: object) -> None:
        self.stop_requested = True
        for callback in self._on_stop:
            callback()

    def _write(self, data: bytes, *, wait_s: float) -> None:
        frame = LENGTH.pack(len(data)) + data
        with self._lock:
            view = memoryview(frame)
            while view:
                try:
                    view = view[os.write(self._reports_fd, view) :]
                except BlockingIOError:
                    if len(view) == len(frame) and wait_s == 0.0:
                        return
                    if not select.select([], [self._reports_fd], [], max(wait_s, 1.0))[1]:
                        return
                except OSError:
                    return  # the parent is gone; the liveness pipe says so too


class ReportHandler(logging.Handler):
    """Passes log records on to the parent; a record that does not fit into the pipe is lost, never waited for."""

    def __init__(self, context: ChildContext) -> None:
        super().__init__()
        self._context = context

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):
            text = self.format(record)
            data = pickle.dumps(("log", (record.levelno, text[: REPORT_LOG_BYTES_MAX // 4])))
            self._context._write(data, wait_s=0.0)


def read_frame(fd: int) -> bytes | None:
    """Read one length-prefixed frame; None when the other side is gone."""
    head = _read_exactly(fd, LENGTH.size)
    return None if head is None else _read_exactly(fd, LENGTH.unpack(head)[0])


def _read_exactly(fd: int, size: int) -> bytes | None:
    buffer = io.BytesIO()
    while buffer.tell() < size:
        data = os.read(fd, size - buffer.tell())
        if not data:
            return None
        buffer.write(data)
    return buffer.getvalue()


def arm_liveness(fd: int) -> None:
    """Die with the parent, whatever this process is doing then."""
    os.set_blocking(fd, False)
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    else:
        os.set_blocking(fd, True)
        threading.Thread(target=lambda: (os.read(fd, 1), os._exit(1)), name="liveness", daemon=True).start()
        return
    with contextlib.suppress(BlockingIOError):
        if os.read(fd, 1) == b"":
            os._exit(1)  # it was gone before the signal was armed


def main(orders_fd: int, reports_fd: int, liveness_fd: int, header: dict[str, Any]) -> None:
    """Run the target that the parent sends; the whole life of a child process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    arm_liveness(liveness_fd)
    for fd in (orders_fd, reports_fd, liveness_fd):
        os.set_inheritable(fd, False)
    os.set_blocking(reports_fd, False)
    context = ChildContext(orders_fd, reports_fd, header["name"])
    signal.signal(signal.SIGTERM, context._stop)
    handler = ReportHandler(context)
    logging.getLogger().addHandler(handler)
    logging.getLogger("actorraft").setLevel(header["log_level"])
    global loading_user_code
    loading_user_code = True
    try:
        payload = read_frame(orders_fd)
        if payload is None:
            return
        import cloudpickle

        target, args, kwargs = cloudpickle.loads(payload)
        target(context, *args, **kwargs)
        code = 0
    except BaseException as error:
        traceback.print_exc()
        context._write(pickle.dumps(("failed", (type(error).__name__, str(error), traceback.format_exc()))), wait_s=5.0)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing of the user's may keep a process that was told to leave
