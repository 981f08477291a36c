"""Every error a user can meet, and what to do about each.

ActorRaftError
├── UsageError (also a ValueError)   the call itself is wrong; nothing was sent
├── Unavailable                      no leader took it in time; certainly not applied
│   ├── Busy                         the same, the last refusal came from a bounded queue
│   └── NotYet                       raised by a machine's query: the state has not got there in time
├── OutcomeUnknown (a TimeoutError)  sent, no answer: it may or may not apply, never twice; ask `resolve()`
├── CommandFailed                    committed; the command raised what cannot be rebuilt here
├── ResultLost                       committed and applied; the result cannot be sent back
├── UnknownType                      the receiver has no class of that name
├── StartError                       a process did not come up; says why, with its last words
├── MailboxFull, ActorDead           the actor has not taken what was sent / is gone
└── CorruptionError                  what is on disk cannot be trusted; names file and offset
"""

from __future__ import annotations

import linecache
import os
import re
import sys
from typing import Any


class ActorRaftError(Exception):
    """Base of every error of this library."""


class UsageError(ActorRaftError, ValueError):
    """The call itself is wrong (cannot be pickled, too large, wrong arguments, closed client); nothing was sent."""


class Unavailable(ActorRaftError):
    """No leader took the command in time; it is certainly not applied, now or later. It is safe to send it again."""


class Busy(Unavailable):
    """As Unavailable, the last refusal coming from a bounded queue. Send less, or send it again later."""


class NotYet(Unavailable):
    """Raised by a machine's query: the state does not have yet what is asked for.

    A read of a cluster's waits at the node until it has, and ends with this at its deadline.
    """


class OutcomeUnknown(ActorRaftError, TimeoutError):
    """The command was sent and no answer came. It may or may not apply, never more than once."""

    _later: Any = None  # a future that ends when it is known

    def known_by(self, later: Any) -> None:
        """Say what ends when it is known: a future. For the library's use."""
        self._later = later

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args  # in another process nobody knows

    def resolve(self, timeout: float | None = 5.0) -> Any:
        """Find out what became of it: return its first result (or raise what the command raised).

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            Unavailable: it was definitely never applied, and never will be.
            OutcomeUnknown: still unknown after `timeout`.
        """
        if self._later is None:
            raise OutcomeUnknown("this client is closed, or its session has expired; read the state to find out")
        try:
            return self._later.result(timeout)
        except TimeoutError as error:
            if self._later.done():
                raise
            raise OutcomeUnknown("still no answer; ask again later") from error


class CommandFailed(ActorRaftError):
    """The command was committed and raised, on every node alike, an exception that cannot be rebuilt here."""

    def __init__(self, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(f"{type_name}: {message}")
        self.type_name = type_name
        self.message = message
        self.traceback = traceback

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.type_name, self.message, self.traceback)


class RemoteTraceback(ActorRaftError):
    """The cause of an exception that was raised in another process: its traceback there, as text.

    The text is equal on every node, so it holds no source lines; they are looked up here, where it is shown.
    """

    def __str__(self) -> str:
        return "\n" + _FRAME.sub(_with_source, str(self.args[0])) if self.args else ""


_FRAME = re.compile(r'^(.*)  File "(.+)", line (\d+), in .+$', re.MULTILINE)


def _with_source(frame: re.Match[str]) -> str:
    """Return a line of a traceback that names a frame, and the line of source below it if it is to be found here."""
    margin, file, number = frame.groups()
    places = [file, *(os.path.join(path, file) for path in sys.path if not os.path.isabs(file))]
    found = (linecache.getline(place, int(number)).strip() for place in places)
    line = next((each for each in found if each), "")
    return f"{frame[0]}\n{margin}    {line}" if line else frame[0]


class ResultLost(ActorRaftError):
    """The command was committed and applied, but its result cannot be sent back."""


class UnknownType(ActorRaftError):
    """The receiver has no class or function of that name."""


class StartError(ActorRaftError):
    """A process did not come up."""


class MailboxFull(ActorRaftError):
    """The actor has not taken what was sent before; wait, or send less."""


class ActorDead(ActorRaftError):
    """The actor is gone; nobody will answer."""


class CorruptionError(ActorRaftError):
    """What is on disk cannot be trusted. The message names the file, the offset and the way out."""


class StorageFailed(ActorRaftError):
    """The disk refused a write or a sync. The node stops: after this nothing it holds in memory may be acknowledged."""


class NoRoom(StorageFailed):
    """There was no room for a snapshot. What was written of it is removed; log and older snapshots are as they were."""
