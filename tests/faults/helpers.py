"""What tests of faults share."""

from __future__ import annotations

import itertools
import time
from typing import Any

from actorraft import Cluster
from tests.cluster.helpers import eventually


def is_down(cluster: Cluster[Any], node_id: int) -> None:
    """Wait until a node's process is gone."""
    eventually(lambda: not cluster.nodes[node_id].alive, what=f"node {node_id} stops")


def error_of(cluster: Cluster[Any], node_id: int) -> str:
    """What the status says is wrong with a node."""
    row = next(row for row in cluster.status() if row.id == node_id)
    return row.error or ""


def append_until(cluster: Cluster[Any], key: str, stop: Any, first: int = 0, size: int = 0) -> list[Any]:
    """Append numbered items until `stop()` is true; return those that were acknowledged."""
    proxy = cluster.proxy(timeout=20.0)
    acknowledged: list[Any] = []
    deadline_s = time.monotonic() + 120.0
    for number in itertools.count(first):
        item = f"{number:06d}".ljust(size, ".")
        proxy.append(key, item)
        acknowledged.append(item)
        if stop():
            return acknowledged
        assert time.monotonic() < deadline_s, "it never stopped"
    raise AssertionError
