"""Names of hosts, resolved beside the loop: libzmq would do it in its I/O thread, and one name server that does not
answer would then hold up every link of the process.

Each question has a thread of its own, since a name that is not answered blocks its thread for many seconds and must not
hold up another name; there is at most one question a name at a time, so there are never more threads than names.

Threads:    `ask` and `close` from the owner's, `unanswered` from any; `ready` is called in a resolver's thread.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import Any

from actorraft.errors import UsageError
from transports.endpoints import is_loopback


def is_number(host: str) -> bool:
    """Whether `host` is an address already."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def look_up(host: str) -> tuple[str, ...]:
    """Return the addresses of a name, in the system's order of preference. Blocks.

    Raises:
        OSError: it has none, or nobody answers.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def look_up_to_bind(host: str) -> str:
    """Return the address at which to listen for a name of this machine. Blocks; a number is returned as it is.

    Raises:
        UsageError: it has none.
    """
    if is_number(host) or host == "*":
        return host
    try:
        return look_up(host)[0]
    except OSError as error:
        raise UsageError(f"{host} cannot be resolved: {error.strerror or error}") from error


class Resolver:
    """Asks for names, each in a thread of its own.

    Args:
        ready: called after each answer, in the thread that has it.
    """

    def __init__(self, ready: Callable[[], Any]) -> None:
        self._ready = ready
        self._asked: set[str] = set()  # questions on their way
        self._lock = threading.Lock()
        self._closed = False
        self.addresses: dict[str, tuple[str, ...]] = {}  # the last answer for each name; one that failed changes none
        self.failures: dict[str, str] = {}  # why the last question failed, if it did

    def ask(self, host: str) -> None:
        """Ask for a name, unless it is being asked for."""
        with self._lock:
            if self._closed or host in self._asked:
                return
            self._asked.add(host)
        thread = threading.Thread(target=self._run, args=(host,), name=f"resolve {host}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter ends, or there are no more threads: asked again later
            self._asked.discard(host)

    def _run(self, host: str) -> None:
        try:
            found = look_up(host)
            if host == "localhost":
                found = tuple(address for address in found if is_loopback(address))
            why = "" if found else "it is no address of the loopback"
        except (OSError, UnicodeError) as error:
            found, why = (), getattr(error, "strerror", None) or str(error)
        with self._lock:
            if why:
                self.failures[host] = why
            else:
                self.addresses[host] = found
                self.failures.pop(host, None)
            self._asked.discard(host)
            closed = self._closed
        if not closed:
            with contextlib.suppress(OSError):  # its owner has just closed
                self._ready()

    def unanswered(self) -> dict[str, str]:
        """Return the names that nobody has ever answered, and why as far as that is known. From any thread."""
        with self._lock:
            names = (self._asked | self.failures.keys()) - self.addresses.keys()
            return {name: self.failures.get(name, "no name server has answered yet") for name in sorted(names)}

    def close(self) -> None:
        """Let whoever still asks find nobody to tell. Idempotent; waits for nothing."""
        with self._lock:
            self._closed = True
