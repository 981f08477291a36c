"""Time for calls that name none: a test that is about something else does not fail because the machine is busy.

A call without a deadline of its own has 5 s, `status()` has 1 s: enough for a user's prompt, and no more than what a
machine that is twenty times too busy may take for an election. Tests that are about deadlines name them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

DEFAULTS_S = {5.0: 60.0, 1.0: 3.0}  # as the library has them -> as tests do


def be_patient() -> Callable[[], None]:
    """Change the defaults of all that is called with a timeout, in this process; return what puts them back."""
    from actorraft import Client
    from actorraft.actors.pool import PoolRef
    from actorraft.actors.ref import ActorRef
    from actorraft.cluster.replicated_actor import ReplicatedActorRef

    before: list[tuple[Any, Any, Any]] = []
    for owner in (Client, ActorRef, PoolRef, ReplicatedActorRef):
        for function in vars(owner).values():
            named, defaults = getattr(function, "__kwdefaults__", None), getattr(function, "__defaults__", None)
            if named and named.get("timeout") in DEFAULTS_S:
                before.append((function, "__kwdefaults__", named))
                function.__kwdefaults__ = {**named, "timeout": DEFAULTS_S[named["timeout"]]}
            if defaults and 5.0 in defaults:
                before.append((function, "__defaults__", defaults))
                function.__defaults__ = tuple(DEFAULTS_S[5.0] if value == 5.0 else value for value in defaults)

    def put_back() -> None:
        for each in before:
            setattr(*each)

    return put_back
