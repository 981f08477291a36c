"""What the tests put into the way of a block's interpreter: calls that name no timeout have a minute, not 5 s.

A block is what a reader runs at a prompt; here it runs on a machine that may be twenty times too busy, on which a
leader's death alone can take seconds. Its text stays as printed. Only the block's own process is patient
(ACTORRAFT_PATIENT has its file): those of its nodes need no client.
"""

import os
import sys

PATIENT_S = 60.0


def be_patient() -> None:
    """Change the defaults of all that is called with a timeout."""
    from actorraft import Client
    from actorraft.actors.pool import PoolRef
    from actorraft.actors.ref import ActorRef
    from actorraft.cluster.replicated_actor import ReplicatedActorRef

    for owner in (Client, ActorRef, PoolRef, ReplicatedActorRef):
        for function in vars(owner).values():
            defaults = getattr(function, "__kwdefaults__", None) or {}
            if defaults.get("timeout") == 5.0:
                defaults["timeout"] = PATIENT_S
            if 5.0 in (getattr(function, "__defaults__", None) or ()):
                function.__defaults__ = tuple(PATIENT_S if value == 5.0 else value for value in function.__defaults__)


if sys.orig_argv[-1] == os.environ.get("ACTORRAFT_PATIENT"):
    be_patient()
