"""The child's side of a process: take the orders, run, and report how it went.

The parent starts a bare interpreter with `LOADER`, which reads one plain header from an inherited file, makes sys.path
and argv those of the parent (the working directory it has from it), divides into child and guardian (guardian.py), and
only then comes here. User code is loaded after that, so it is found where the parent found it; the parent's `__main__`
is never run again.

Source:     docs/decisions/0013.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import pickle
import select
import signal
import struct
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final

from actorraft.steady import monotonic

LENGTH: Final = struct.Struct("<I")
BACKLOG_BYTES_MAX: Final = 4 << 20  # log records that the parent has not read; further ones are dropped
LOG_TEXT_MAX: Final = 32_000  # characters of one log record
FAREWELL_S: Final = 2.0  # how long a process that ends waits for its parent to read

in_child = False  # whether this process was started by ActorProcess


@contextlib.contextmanager
def as_in_child() -> Iterator[None]:
    """Import user code as a child does, in a process that no parent has started."""
    global in_child
    before, in_child = in_child, True
    try:
        yield
    finally:
        in_child = before


# argv: the descriptors of the specification, orders, reports, liveness and end. The header is plain data (marshal).
LOADER: Final = (
    "import marshal,sys;"
    "s,o,r,l,e=map(int,sys.argv[1:6]);"
    "f=open(s,'rb');h=marshal.load(f);sys.path[:]=h['path'];sys.argv[:]=h['argv'];"
    "from actorraft.actors.guardian import divide;"
    "divide(l,e,(s,o,r));"
    "from actorraft.actors.bootstrap import main;"
    "main(f,o,r,h)"
)


class Reports:
    """Frames to the parent, sent without ever holding up who reports: what the pipe does not take now waits here."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._frames: deque[memoryview] = deque()
        self._bytes = 0
        self._sending = threading.Lock()  # never waited for, so that a signal handler may report too
        self._flusher: threading.Thread | None = None
        self.dropped = 0

    def put(self, data: bytes, *, droppable: bool = False) -> None:
        """Add a frame and send what the pipe takes."""
        if droppable and self._bytes > BACKLOG_BYTES_MAX:
            self.dropped += 1
            return
        self._bytes += len(data)
        self._frames.append(memoryview(LENGTH.pack(len(data)) + data))
        if not self._send() and self._flusher is None:
            self._flusher = threading.Thread(target=self._flush, name="reports", daemon=True)
            try:
                self._flusher.start()
            except RuntimeError:  # user code has all the threads that there are: the next frame tries again
                self._flusher = None

    def flush(self, wait_s: float) -> None:
        """Wait until everything is sent, `wait_s` at the longest."""
        deadline_s = monotonic() + wait_s
        while True:
            self._send()
            left_s = deadline_s - monotonic()
            if not self._frames or left_s <= 0:
                return
            wait_for(self._fd, select.POLLOUT, min(left_s, 0.05))

    def _send(self) -> bool:
        """Send what the pipe takes; False if something is left. Whoever finds another sending leaves it to that one."""
        while self._frames and self._sending.acquire(blocking=False):
            try:
                while self._frames:
                    frame = self._frames[0]
                    sent = os.write(self._fd, frame)
                    if sent == len(frame):
                        self._frames.popleft()
                    else:
                        self._frames[0] = frame[sent:]
                    self._bytes -= sent
            except BlockingIOError:
                return False
            except OSError:  # the parent is gone; the liveness pipe says so too
                self._frames.clear()
            finally:
                self._sending.release()
        return True

    def _flush(self) -> None:
        while True:
            wait_for(self._fd, select.POLLOUT, None)
            self._send()
            if not self._frames:
                self._flusher = None
                if not self._frames:  # else a frame came after the look and before the line above
                    return


class ChildContext:
    """What a target is given: its line to the parent."""

    def __init__(self, name: str, orders_fd: int, reports: Reports) -> None:
        self.name = name
        self.stop_requested = False
        self._orders_fd = orders_fd
        self._reports = reports
        self._on_stop: list[Callable[[], Any]] = []

    def report(self, value: Any) -> None:
        """Tell the parent something. Never blocks."""
        self._reports.put(pickle.dumps(("report", value), pickle.HIGHEST_PROTOCOL))

    def receive(self, timeout_s: float | None) -> Any:
        """Return the next thing the parent sent; None if it is gone, or nothing came in time. One thread at a time."""
        if timeout_s is not None and not wait_for(self._orders_fd, select.POLLIN, timeout_s):
            return None
        data = read_frame(self._orders_fd)
        return None if data is None else pickle.loads(data)

    def loaded(self) -> None:
        """Say that the user's code is loaded: what is in the reports so far goes out before the work begins."""
        self._reports.flush(FAREWELL_S)

    def on_stop(self, callback: Callable[[], Any]) -> None:
        """Have `callback` called when the parent asks this process to leave (in a signal handler: be brief)."""
        self._on_stop.append(callback)
        if self.stop_requested:
            callback()

    def ask_to_stop(self, *_: object) -> None:
        """The parent asks this process to leave."""
        self.stop_requested = True
        for callback in self._on_stop:
            callback()


class ReportHandler(logging.Handler):
    """Passes log records on to the parent. Where the parent does not read, records are dropped, never waited for."""

    def __init__(self, reports: Reports) -> None:
        super().__init__()
        self._reports = reports

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record as text."""
        with contextlib.suppress(Exception):
            text = self.format(record)[:LOG_TEXT_MAX]
            self._reports.put(pickle.dumps(("log", (record.levelno, record.name, text))), droppable=True)


def wait_for(fd: int, event: int, timeout_s: float | None) -> bool:
    """Wait until a descriptor is ready (or broken); False if `timeout_s` passed."""
    poll = select.poll()  # not select: that cannot take descriptors over 1,023
    poll.register(fd, event)
    return bool(poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000))


def read_frame(fd: int) -> bytes | None:
    """Read one length-prefixed frame; None when the other side is gone."""
    head = _read_exactly(fd, LENGTH.size)
    return None if head is None else _read_exactly(fd, LENGTH.unpack(head)[0])


def _read_exactly(fd: int, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = os.read(fd, size - len(data))
        if not part:
            return None
        data += part
    return bytes(data)


def main(specification: BinaryIO, orders_fd: int, reports_fd: int, header: dict[str, Any]) -> None:
    """Run the target that the parent sends; the whole life of a child process."""
    global in_child
    in_child = True
    own = vars(sys.modules["__main__"])  # LOADER's names are those that a script may give its own functions
    for name in [name for name in own if not name.startswith("__")]:
        del own[name]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    for fd in (specification.fileno(), orders_fd, reports_fd):
        os.set_inheritable(fd, False)
    os.set_blocking(reports_fd, False)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # so that a SIGKILL loses no line
    faulthandler.enable()
    reports = Reports(reports_fd)
    context = ChildContext(header["name"], orders_fd, reports)
    signal.signal(signal.SIGTERM, context.ask_to_stop)
    os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals, after_in_child=_hear_signals)
    logging.getLogger().addHandler(ReportHandler(reports))
    logging.getLogger("actorraft").setLevel(header["log_level"])
    code = 1
    try:
        with specification:
            payload = specification.read()
        target, args, kwargs = pickle.loads(payload)
        del payload
        target(context, *args, **kwargs)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if code:
            _tell_failure(reports, error)
    except BaseException as error:
        _tell_failure(reports, error)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    reports.flush(FAREWELL_S)
    os._exit(code)  # nothing of the user's may keep a process that was told to leave


_masks = threading.local()  # of the thread that forks, as it was before


def _hold_signals() -> None:
    """Keep a SIGTERM for a fork until it ends it: one that comes earlier would be taken by our handler, or by none."""
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, ())  # known before a handler that is due may raise
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _let_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _hear_signals() -> None:
    """In a fork of a child: SIGTERM ends it, as who forked it (multiprocessing, say) counts on."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _let_signals()


def _tell_failure(reports: Reports, error: BaseException) -> None:
    """Write the traceback where the process's own words go, and tell the parent."""
    try:
        text = traceback.format_exc()
        message = str(error)
    except BaseException:  # the user's exception does something odd when it is shown
        text, message = f"{type(error).__qualname__}\n", "(its message cannot be shown)"
    print(text, file=sys.stderr, flush=True)
    kinds = [each.__name__ for each in type(error).__mro__]
    reports.put(pickle.dumps(("failed", (kinds, message, text))))
