"""Replicate a Python class over Raft, each node an actor in an OS process of its own.

    cluster = ReplicatedStateMachine(Bank).spawn(5)
    cluster.proxy().deposit("ann", 10)

Every public name is loaded when it is first used: `import actorraft` stays cheap, and the layers below
(`transports`, which imports the ports here) can be imported first without a cycle.

Shape:      `_HOMES` maps a module to the public names it defines; the imports under TYPE_CHECKING say the same to
            type checkers, and a test keeps the two equal.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from actorraft import moved as _moved

if TYPE_CHECKING:
    from actorraft.actors.actor import Actor as Actor
    from actorraft.actors.letters import dead_letters as dead_letters
    from actorraft.actors.ref import ActorRef as ActorRef
    from actorraft.actors.spawn import spawn as spawn
    from actorraft.actors.supervision import Supervision as Supervision
    from actorraft.client.client import Client as Client
    from actorraft.client.connect import connect as connect
    from actorraft.client.connect import connect_async as connect_async
    from actorraft.client.status import MemberStatus as MemberStatus
    from actorraft.cluster.cluster import Cluster as Cluster
    from actorraft.cluster.on_ray import Ray as Ray
    from actorraft.cluster.replicated_actor import ActorOptions as ActorOptions
    from actorraft.cluster.replicated_actor import actor_ref as actor_ref
    from actorraft.cluster.spawn import ReplicatedStateMachine as ReplicatedStateMachine
    from actorraft.errors import ActorDead as ActorDead
    from actorraft.errors import ActorRaftError as ActorRaftError
    from actorraft.errors import Busy as Busy
    from actorraft.errors import CommandFailed as CommandFailed
    from actorraft.errors import CorruptionError as CorruptionError
    from actorraft.errors import MailboxFull as MailboxFull
    from actorraft.errors import NotYet as NotYet
    from actorraft.errors import OutcomeUnknown as OutcomeUnknown
    from actorraft.errors import RemoteTraceback as RemoteTraceback
    from actorraft.errors import ResultLost as ResultLost
    from actorraft.errors import StartError as StartError
    from actorraft.errors import StorageFailed as StorageFailed
    from actorraft.errors import Unavailable as Unavailable
    from actorraft.errors import UnknownType as UnknownType
    from actorraft.errors import UsageError as UsageError
    from actorraft.futures import ResultFuture as ResultFuture
    from actorraft.machine import CommandObjects as CommandObjects
    from actorraft.machine import Replace as Replace
    from actorraft.machine import StateMachine as StateMachine
    from actorraft.machine import command as command
    from actorraft.machine import context as context
    from actorraft.machine import query as query
    from actorraft.node.control import RaftControl as RaftControl
    from actorraft.node.driver import MessageEvent as MessageEvent
    from actorraft.raft.config import RaftConfig as RaftConfig

__version__ = "0.2.0"

_HOMES: dict[str, tuple[str, ...]] = {
    "actorraft.actors.actor": ("Actor",),
    "actorraft.actors.letters": ("dead_letters",),
    "actorraft.actors.ref": ("ActorRef",),
    "actorraft.actors.spawn": ("spawn",),
    "actorraft.actors.supervision": ("Supervision",),
    "actorraft.client.client": ("Client",),
    "actorraft.client.connect": ("connect", "connect_async"),
    "actorraft.cluster.cluster": ("Cluster",),
    "actorraft.cluster.spawn": ("ReplicatedStateMachine",),
    "actorraft.node.control": ("RaftControl",),
    "actorraft.node.driver": ("MessageEvent",),
    "actorraft.errors": (
        "ActorDead",
        "ActorRaftError",
        "Busy",
        "CommandFailed",
        "CorruptionError",
        "MailboxFull",
        "NotYet",
        "OutcomeUnknown",
        "RemoteTraceback",
        "ResultLost",
        "StartError",
        "StorageFailed",
        "Unavailable",
        "UnknownType",
        "UsageError",
    ),
    "actorraft.futures": ("ResultFuture",),
    "actorraft.machine": ("CommandObjects", "Replace", "StateMachine", "command", "context", "query"),
    "actorraft.raft.config": ("RaftConfig",),
    "actorraft.cluster.on_ray": ("Ray",),
    "actorraft.cluster.replicated_actor": ("ActorOptions", "actor_ref"),
    "actorraft.client.status": ("MemberStatus",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604 (the names are those of _HOMES)


def __getattr__(name: str) -> Any:
    """Load a public name from its home on first use, and keep it (PEP 562)."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_moved.install()
