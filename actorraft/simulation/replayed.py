"""The same log applied again, with and without a restore on the way: whoever went through crashes must be no different.

Invariant:  after the same entries the same state, sessions, serial, log time and events, whatever came between.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, cast

from actorraft.node.executor import Executor
from actorraft.node.host import MachineHost
from actorraft.node.work import Apply, Restore, SnapshotTaken, Stopped, TakeSnapshot
from actorraft.ports import SnapshotMeta
from actorraft.raft.messages import Configuration, EntryId, LogEntry
from actorraft.simulation.guest import Guest, Mood
from actorraft.simulation.invariants import InvariantViolation
from actorraft.simulation.machine import SimHost
from actorraft.simulation.profile import Profile
from actorraft.simulation.versions import NEWEST, Installed, VersionedHost


class Replica:
    """An executor with nobody around it."""

    def __init__(self, profile: Profile, make_host: Callable[[], Any] | None = None) -> None:
        host: Any = (
            make_host() if make_host is not None else MachineHost(lambda: Guest(Mood())) if profile.guest else SimHost()
        )
        code = None
        if profile.versions:
            host, code = VersionedHost(Installed(NEWEST)), Installed(NEWEST).code
        self.executor = Executor(host, session_expiry_s=profile.config.session_expiry_s, code=code)

    @property
    def machine(self) -> Any:
        """The machine itself."""
        return machine_of(self.executor)


class _Writer:
    """A snapshot in memory."""

    def __init__(self) -> None:
        self.file = io.BytesIO()
        self.write = self.file.write

    def commit(self) -> SnapshotMeta:
        return SnapshotMeta(EntryId(-1, -1), Configuration(), self.file.tell())

    def abort(self) -> None:
        pass


def machine_of(executor: Executor) -> Any:
    """Return the machine that an executor runs."""
    return getattr(executor.host, "machine", executor.host)


def opened(snapshot: bytes, profile: Profile, make_host: Callable[[], Any] | None = None) -> Replica:
    """Return a replica that goes on from a snapshot."""
    replica = Replica(profile, make_host)
    head = io.BytesIO(snapshot)
    index = _last_index(snapshot)
    done = replica.executor.run(Restore(index, lambda: head))
    if replica.executor.last_applied != index:
        raise InvariantViolation("restore", f"a snapshot at {index} cannot be restored: {done}")
    return replica


def _last_index(snapshot: bytes) -> int:
    import msgspec

    size = int.from_bytes(snapshot[:4], "little")
    return int(msgspec.msgpack.decode(snapshot[4 : 4 + size])[0])


def judge(
    node_id: int,
    executor: Executor,
    committed: Sequence[LogEntry],
    profile: Profile,
    rng: Random,
    *,
    make_host: Callable[[], Any] | None = None,
) -> None:
    """Compare a node with one that applied the log in one go, and with one that was restored on the way.

    Args:
        make_host: makes the host of a user's machine; None: it is one of our own, as the profile says.
    """
    straight = Replica(profile, make_host)
    restored = Replica(profile, make_host)
    cut = rng.randrange(len(committed))
    straight.executor.run(Apply(0, committed))
    restored.executor.run(Apply(0, committed[:cut]))
    writer = _Writer()
    others = [("one that applied the log in one go", straight)]
    if cut and type(restored.executor.run(TakeSnapshot(writer))) is SnapshotTaken:
        restored = opened(writer.file.getvalue(), profile, make_host)
    done = restored.executor.run(Apply(cut, committed[cut:]))
    # What it held at, or had the memory for, may be decided further on in the log than it could look.
    if restored.executor.hold is None and type(done) is not Stopped:
        others.append((f"one restored at {cut}", restored))
    for name, other in others:
        difference = _difference(executor, other.executor)
        if difference:
            raise InvariantViolation("replay", f"node {node_id} differs from {name}: {difference}")


def _difference(one: Executor, other: Executor) -> str:
    for name, mine, theirs in zip(_NAMES, _state(one), _state(other), strict=True):
        if mine != theirs and isinstance(mine, dict):
            return ", ".join(sorted(part for part in mine.keys() | theirs.keys() if mine.get(part) != theirs.get(part)))
        if mine != theirs:
            return f"{name}: {mine!r:.300} and {theirs!r:.300}"
    return ""


# What explains the others comes first.
_NAMES = ("last applied", "log time", "serial", "state", "events", "results that sessions remember")


def _state(executor: Executor) -> tuple[Any, ...]:
    return (
        executor.last_applied,
        executor.log_time_s,
        executor.serial,
        _fingerprint(executor),
        [tuple(event) for piece in executor.published.pieces() for event in piece],
        executor.sessions.state(),
    )


def _fingerprint(executor: Executor) -> Any:
    machine = machine_of(executor)
    return machine.fingerprint() if isinstance(machine, Guest | SimHost) else cast(Any, executor.host).parts()
