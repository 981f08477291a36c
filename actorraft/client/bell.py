"""What wakes those who wait for something to change, without a lock.

A signal handler runs in the middle of whatever its thread was doing, in the middle of waiting too. If that held a lock
which the I/O thread needs, a call made by the handler could never be answered; so nothing that a caller and the I/O
thread share has one. What is relied on instead: adding to a list, and taking from it, are each one step.

Threads:    any.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

from actorraft.futures import running_loop
from actorraft.steady import monotonic


class Bell:
    """Waits for a condition that another thread makes true, and rings after."""

    def __init__(self) -> None:
        self._sleepers: list[Callable[[], object]] = []  # each wakes one who waits, and is called once

    def ring(self) -> None:
        """Have everybody who waits look again."""
        for _ in range(len(self._sleepers)):  # not those who wait again meanwhile
            try:
                wake = self._sleepers.pop(0)
            except IndexError:
                return
            wake()

    def wait_for(self, condition: Callable[[], object], timeout: float | None) -> bool:
        """Wait until `condition()` is true; return False if it is not after `timeout` seconds (None: for ever)."""
        deadline_s = None if timeout is None else monotonic() + timeout
        while not condition():
            gate = threading.Lock()
            gate.acquire()
            self._sleepers.append(gate.release)
            if condition():  # it became true before we were in the list
                self._forget(gate.release)
                return True
            if deadline_s is None:
                gate.acquire()
            elif not gate.acquire(timeout=min(max(0.0, deadline_s - monotonic()), threading.TIMEOUT_MAX)):
                self._forget(gate.release)
                return bool(condition())
        return True

    async def wait_for_async(self, condition: Callable[[], object]) -> None:
        """The same in asyncio, for ever; whoever is tired of it cancels it."""
        loop = running_loop("iterate with `async for`", "next, iter(stream)")
        while not condition():
            woken = loop.create_future()

            def wake(woken: asyncio.Future[None] = woken) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                    loop.call_soon_threadsafe(_end, woken)

            self._sleepers.append(wake)
            try:
                if not condition():
                    await woken
            finally:
                self._forget(wake)

    def _forget(self, wake: Callable[[], object]) -> None:
        with contextlib.suppress(ValueError):  # it has been called
            self._sleepers.remove(wake)


def _end(woken: asyncio.Future[None]) -> None:
    if not woken.done():  # its task may have been cancelled
        woken.set_result(None)
