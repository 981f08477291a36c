"""What systemd is told: that the node serves, that its loop turns, that it leaves. Nothing where nobody listens.

Source:     sd_notify(3): datagrams of NAME=VALUE to the socket named in the environment.
Threads:    the node's loop, which no user's command holds up; so the watchdog bites exactly when the loop is stuck.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

PART = 3  # the watchdog is fed so many times in the time that it waits


class ServiceManager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._path = environment.get("NOTIFY_SOCKET", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog_s = int(environment.get("WATCHDOG_USEC", "0")) / 1e6 if mine and self._path else 0.0
        self._every_s = watchdog_s / PART
        self._next_s = 0.0

    def tell(self, said: str) -> None:
        """Send one message."""
        if not self._path:
            return
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        with (
            contextlib.suppress(OSError),  # a manager that is gone is no reason to stop
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sending,
        ):
            sending.sendto(said.encode(), address)

    def feed(self, now_s: float) -> None:
        """Say that the loop turns, as often as the watchdog wants to hear it."""
        if self._every_s and now_s >= self._next_s:
            self._next_s = now_s + self._every_s
            self.tell("WATCHDOG=1")
