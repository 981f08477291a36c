"""What is known of each actor, as a file beside its socket: written by its owner, read by anybody who has its address.

Refs travel; a process that holds one may be neither the actor's parent nor its child. From the record it learns whether
the actor lives, is being started again, or is gone, how it ended, and which process a kill must hit.

Shape:      `<run dir>/<name>.json`; written whole and renamed into place, so that a reader sees one state or another.
            A process is (pid, start time): the system gives a pid again, but not with the same start time.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from actorraft.actors.guardian import stat_fields

STARTING: Final = "starting"
UP: Final = "up"
RESTARTING: Final = "restarting"
DEAD: Final = "dead"

MAILBOX_MAX: Final = 10_000
MAILBOX_BYTES_MAX: Final = 256 << 20


class Exit(NamedTuple):
    """How a process of an actor ended.

    Attributes:
        name: the actor's.
        code: its exit code; None if a signal ended it.
        signal: the signal's name; None if it ended by itself.
        reason: in words, with the last lines of its standard error.
        restarting: whether it is started again.
    """

    name: str
    code: int | None
    signal: str | None
    reason: str
    restarting: bool


class Process(NamedTuple):
    """A process that cannot be taken for another."""

    pid: int
    started: str


class Address(NamedTuple):
    """Where an actor takes messages; `mailbox_max`: how many untaken ones a sender may have with it; and of bytes."""

    name: str
    endpoint: str
    mailbox_max: int
    mailbox_bytes_max: int


class Record(NamedTuple):
    """What is known of an actor.

    Attributes:
        owner: the process that started it, and would start it again.
        exits: how often its process has ended.
        replicas: of a replicated actor: (node id, where it takes clients).
        queries: likewise: the names of methods that only read.
        parent: the endpoint of the actor that its owner is; "" if that is none.
    """

    endpoint: str
    mailbox_max: int
    owner: Process
    process: Process | None
    state: str
    exits: int = 0
    last_exit: Exit | None = None
    replicas: tuple[tuple[int, str], ...] = ()
    mailbox_bytes_max: int = MAILBOX_BYTES_MAX
    parent: str = ""
    queries: tuple[str, ...] = ()

    @property
    def dead(self) -> bool:
        """Whether it is gone and nobody will start it again."""
        return self.state == DEAD or (not is_running(self.owner) and not self._may_come_back())

    def _may_come_back(self) -> bool:
        """Whether its parent is being started again: in `on_start` that may start this one again."""
        if not self.parent:
            return False
        parent = read_record(record_file(self.parent), self.parent)
        return parent is not None and not parent.dead and (parent.state != UP or parent.process == self.owner)

    @property
    def alive(self) -> bool:
        """Whether its process is there."""
        return self.state == UP and self.process is not None and is_running(self.process)

    @property
    def due(self) -> bool:
        """Whether it is to be reached now; else it is being started, or its parent is about to start it again."""
        return self.state == UP and (self.alive or is_running(self.owner))


class Standing(NamedTuple):
    """What a node on another machine tells of an actor there.

    Attributes:
        endpoint: its mailbox, on that machine; "": there is no such actor.
        dead, alive, due, exits, last_exit, mailbox_max, mailbox_bytes_max: as of a Record.
        up: whether frames of who is told reach it now.
        refused: why the node does not let it be reached; "" if it does.
    """

    endpoint: str = ""
    mailbox_max: int = MAILBOX_MAX
    mailbox_bytes_max: int = MAILBOX_BYTES_MAX
    dead: bool = False
    alive: bool = False
    due: bool = True
    exits: int = 0
    last_exit: Exit | None = None
    up: bool = False
    refused: str = ""


def machine_here() -> str:
    """Return what this machine is called."""
    return os.uname().nodename


def make_exit(name: str, code: int | None, reason: str, *, restarting: bool) -> Exit:
    """Say how a process ended; `code` as subprocess has it."""
    killed_by = None
    if code is not None and code < 0:
        try:
            killed_by = signal.Signals(-code).name
        except ValueError:
            killed_by = f"signal {-code}"
    return Exit(name, code if killed_by is None else None, killed_by, reason, restarting)


def identify(pid: int) -> Process:
    """Return a process's identity; an empty start time where the system does not tell it."""
    with contextlib.suppress(OSError, IndexError):
        return Process(pid, stat_fields(f"/proc/{pid}/stat")[19])
    return Process(pid, "")


def is_running(process: Process) -> bool:
    """Whether a process is there."""
    if process.started:
        return identify(process.pid) == process
    try:
        os.kill(process.pid, 0)
    except OSError:
        return False
    return True


def send_signal(process: Process, number: int) -> None:
    """Signal a process, if it is still that one."""
    if not hasattr(os, "pidfd_open"):
        if is_running(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        return
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(process.pid)  # whatever happens to the number now, this stays that process
        try:
            if is_running(process):
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


def record_file(endpoint: str) -> Path:
    """Return where the record of the actor with this endpoint is: ipc://DIR/NAME.ID -> DIR/NAME.json."""
    return Path(endpoint.removeprefix("ipc://").rpartition(".")[0] + ".json")


def down_file(endpoint: str) -> Path:
    """Return the file whose presence says that the actor's end is wanted: DIR/NAME.ID.down."""
    return Path(endpoint.removeprefix("ipc://") + ".down")


def again_file(endpoint: str) -> Path:
    """Return the file whose presence says that the actor's end is wanted, and then its start: DIR/NAME.ID.again."""
    return Path(endpoint.removeprefix("ipc://") + ".again")


def read_record(file: Path, endpoint: str | None = None) -> Record | None:
    """Read a record; None if there is none, or it is another actor's of the same name."""
    try:
        record = msgspec.json.decode(file.read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None
    return record if endpoint in (None, record.endpoint) else None


def write_record(record: Record) -> None:
    """Write a record in the place of what was there."""
    file = record_file(record.endpoint)
    fresh = file.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(record))
    fresh.replace(file)
