"""What a machine's class offers beside commands and queries may raise: the error that names class and place.

And what its code may import, whether that can be found; what it leaves set in its thread or for signals, which our own
code would run into; and what becomes of a process that it forks: one that comes back from user code would be the same
node once more, on the same log and sockets. It ends there.
"""

from __future__ import annotations

import _thread
import contextlib
import importlib.util
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

from actorraft.errors import ActorRaftError, UsageError
from actorraft.loggers import guarded_logger
from actorraft.pickling import exceptions

logger = guarded_logger("actorraft")


class HookFailed(ActorRaftError):
    """Something that a machine's class offers raised, or gave what it may not; the text names class and place.

    Names of attributes and what keys say of themselves are in it: it is made such that a frame can hold it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.encode("utf-8", "backslashreplace").decode())


def failed(machine: Any, place: str, error: BaseException) -> HookFailed:
    """Make the error that says which place of a machine raised what."""
    return HookFailed(f"{exceptions.name(type(machine))}.{place} raised {exceptions.summary(error)}")


def can_be_found(module: str) -> bool:
    """Whether an import may succeed by now; asks no more than the parent packages' code."""
    if module in sys.modules:
        return True
    importlib.invalidate_caches()
    try:
        return importlib.util.find_spec(module) is not None
    except BaseException:  # its parent package is user code
        return False


trace_of, profile_of, limit_of = sys.gettrace, sys.getprofile, sys.getrecursionlimit  # of this thread


def put_back(trace: Any, profile: Any, limit: int) -> None:
    """Have a thread's trace function, profile function and recursion limit be these again.

    A limit that a command sets holds for its entry, then, however entries come together on a node.

    Raises:
        BaseException: what such a function raised; the interpreter takes it out when it does. Once more, then.
    """
    if trace_of() is not trace:
        sys.settrace(trace)
    if profile_of() is not profile:
        sys.setprofile(profile)
    if limit_of() != limit:
        sys.setrecursionlimit(limit)


def check_threads() -> None:
    """See that a thread is one of the system's: a node has several, and those of gevent or eventlet would never run.

    Raises:
        UsageError: user code has put something else in their place.
    """
    if not isinstance(_thread.start_new_thread, types.BuiltinFunctionType):
        raise UsageError(
            "the machine's module replaces the threads of its process (as gevent's and eventlet's monkey patching do), "
            "and a node's would never run: patch in the program that calls the cluster, in no module that nodes import"
        )


OURS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE)  # a node leaves, or does not, by what it does at these


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Load user code: what it sets for signals is kept, but for a node's own, and ends nothing when it raises.

    A module may be a program as well, which sets what a program of its own needs.
    """
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            found = signal.getsignal(number)
            if found == handler or threading.current_thread() is not threading.main_thread():
                continue
            if number in OURS:
                logger.warning("the machine's module sets a handler for %s, which a node needs itself", number.name)
                signal.signal(number, handler)
            elif callable(found):
                signal.signal(number, _quietly(found))


def _quietly(handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException as error:  # it would be raised in the middle of the node's loop
            logger.error("a handler for %s raised %s", signal.Signals(number).name, exceptions.summary(error))

    return handle


EXIT_FORKED: Final = 70  # EX_SOFTWARE


class Fork:
    """Whether this process is one that user code of a node has forked.

    Attributes:
        came: it is; looked at wherever user code comes back.
    """

    came = False

    def watch(self) -> None:
        """From now on know of forks; for a node's process, once."""
        os.register_at_fork(after_in_child=self._note)

    def _note(self) -> None:
        self.came = True

    def end_if_it_came(self) -> None:
        """End this process if it is one, and touch nothing that is its parent's."""
        if not self.came:
            return
        os.write(2, b"actorraft: a process that the machine has forked came back from its code; it ends here\n")
        os._exit(EXIT_FORKED)


fork = Fork()
