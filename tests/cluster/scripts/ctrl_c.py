"""Tells when it is in a phase, then gets Ctrl-C in it."""

import asyncio
import sys
import time

from actorraft import ReplicatedStateMachine
from tests.cluster.machines import Ledger, StartsIn

phase, transport = sys.argv[1:]
print("imported", flush=True)
if phase == "spawn":
    ReplicatedStateMachine(StartsIn, 60.0).spawn(3)
elif phase == "spawn_async":
    asyncio.run(ReplicatedStateMachine(StartsIn, 60.0).spawn_async(3))
cluster = ReplicatedStateMachine(Ledger).spawn(3, transport=transport)
print("spawned", flush=True)
ledger = cluster.proxy()
if phase == "load":
    while True:
        for future in [ledger.append.submit("k", number) for number in range(100)]:
            future.result()
elif phase == "call":
    ledger.append_slowly("k", 1, 60.0)
elif phase == "with":
    with cluster:
        time.sleep(60.0)
elif phase == "nodes paused":
    for node in cluster.nodes.values():
        node.pause()
    print("paused", flush=True)
    ledger.append("k", 1)
elif phase == "close":
    print("closing", flush=True)
    cluster.close()
    print("closed", flush=True)
    time.sleep(60.0)
