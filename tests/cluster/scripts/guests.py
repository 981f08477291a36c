"""User code that raises wherever it runs, in a script of its own, from a place that the argument names.

guests.py WHERE    WHERE: main, thread, fork, signal. Prints "done".
"""

import os
import signal
import sys
import threading
from typing import Any, NoReturn

from actorraft import (
    CommandFailed,
    ReplicatedStateMachine,
    ResultLost,
    StateMachine,
    UnknownType,
    UsageError,
    command,
    context,
    query,
)
from actorraft.simulation.guest import ODD


class Throws:
    """Raises when it is unpickled, or pickled, or run."""

    def __init__(self, kind: int, when: str) -> None:
        self.kind, self.when = kind, when

    def __reduce__(self) -> Any:
        if self.when == "pickled":
            ODD[self.kind]()
        return (throw, (self.kind,)) if self.when == "unpickled" else (Throws, (self.kind, self.when))

    def apply(self, guest: Any) -> NoReturn:
        guest.count += 1
        throw(self.kind)


def throw(kind: int) -> NoReturn:
    ODD[kind]()


class Guest(StateMachine):
    """Raises where it is asked to."""

    wake_at: Any = None

    def __init__(self) -> None:
        self.count = 0

    @command
    def add(self) -> int:
        self.count += 1
        return self.count

    @command
    def fail(self, kind: int) -> None:
        self.count += 1
        throw(kind)

    @command
    def give(self, kind: int, when: str) -> Throws:
        self.count += 1
        context().publish("gifts", Throws(kind, when))
        return Throws(kind, when)

    @command
    def dig(self, depth: int) -> int:
        return self.dig(depth + 1) + 1

    @command
    def misspell(self) -> None:
        import surely_no_such_module  # type: ignore[import-not-found]  # noqa: F401

    @command
    def wake_oddly(self) -> None:
        self.wake_at = "soon"

    @query
    def ask(self, kind: int) -> None:
        throw(kind)

    @query
    def counted(self) -> int:
        return self.count


def ends(call: Any, *kinds: type[BaseException]) -> None:
    """Check that a call ends in one of these, or in an Exception if none is named."""
    expected = kinds or (Exception,)
    try:
        value = call()
    except expected:
        return
    raise AssertionError(f"it returned {value!r}")


def exercise(cluster: Any) -> None:
    guest = cluster.proxy(timeout=30.0)
    for kind in range(len(ODD)):
        ends(lambda kind=kind: guest.fail(kind))
        ends(lambda kind=kind: guest.ask(kind))
        ends(lambda kind=kind: cluster.execute(Throws(kind, "run"), timeout=30.0))
        ends(lambda kind=kind: guest.give(kind, "pickled"), ResultLost)
        ends(lambda kind=kind: guest.give(kind, "unpickled"), ResultLost)
        ends(lambda kind=kind: cluster.execute(Throws(kind, "unpickled"), timeout=30.0))
        ends(lambda kind=kind: cluster.execute(Throws(kind, "pickled"), timeout=30.0), UsageError, KeyboardInterrupt)
    ends(lambda: guest.dig(0), RecursionError)
    ends(guest.misspell, ImportError, UnknownType, CommandFailed)
    guest.wake_oddly()
    future = guest.add.submit()
    future.add_done_callback(lambda _: sys.exit(5))
    assert future.result(30.0) == guest.counted() == 4 * len(ODD) + 1
    assert all(row.alive for row in cluster.status()), cluster.status()


def elsewhere(where: str, cluster: Any) -> None:
    if where == "main":
        exercise(cluster)
    elif where == "thread":
        failed: list[BaseException] = []

        def run() -> None:
            try:
                exercise(cluster)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert not failed, failed
    elif where == "fork":
        child = os.fork()
        if child == 0:
            try:
                exercise(cluster)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    else:
        signal.signal(signal.SIGUSR1, lambda *_: exercise(cluster))
        signal.raise_signal(signal.SIGUSR1)


def main(where: str) -> None:
    with ReplicatedStateMachine(Guest).spawn(3 if where == "main" else 1, supervision=None) as cluster:
        elsewhere(where, cluster)
    print("done")


main(sys.argv[1])
