"""A parent that is killed: opens a cluster, does to its nodes what it is told, and says their process ids."""

import sys
import threading
import time
from typing import Any

from actorraft import Cluster, ReplicatedStateMachine
from tests.cluster.machines import EndsTheProcess, Ledger

what = sys.argv[1]
if what == "starting":
    threading.Thread(target=ReplicatedStateMachine(Ledger).spawn, args=(3,), daemon=True).start()
    print("starting", flush=True)
    time.sleep(60)
data_dir = sys.argv[2] if len(sys.argv) > 2 else None
machine: Any = EndsTheProcess if what == "in C" else Ledger
cluster: Cluster[Any] = ReplicatedStateMachine(machine).spawn(3, data_dir=data_dir)
if what == "paused":
    for node_id in (0, 1):
        cluster.nodes[node_id].pause()
elif what == "in C":
    cluster.proxy().stay_in_c.submit(60)
elif what == "load":
    acknowledged = 0
    futures = [cluster.proxy().append.submit("k", number) for number in range(200)]
    for future in futures:
        future.result()
    print("acknowledged 200", flush=True)
    for number in range(200, 1_000_000):
        cluster.proxy().append("k", number)
print("ready", flush=True)
time.sleep(60)
