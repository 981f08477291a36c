"""Train with many workers: a front that sums updates before the log, and a worker's side that loses none.

    front = spawn(ParameterFront, cluster.endpoints)
    with ParameterClient("worker-3", front, examples=1200, compress="bfloat16") as server:
        version, parameters = server.pull()
        server.push(update, base_version=version)

The machine itself is `statemachines.parameter_server`; here are an actor and a client, which a machine may not name.
"""

from __future__ import annotations

from parameter_server.client import ParameterClient
from parameter_server.front import ParameterFront

__all__ = ["ParameterClient", "ParameterFront"]
