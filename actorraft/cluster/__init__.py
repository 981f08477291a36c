"""What runs in the process that owns a cluster: its nodes' processes, where their data is, and a client of them."""

from __future__ import annotations

import importlib
from typing import Any, Final

# Loaded when first used.
_HOMES: Final = {
    "Cluster": "actorraft.cluster.cluster",
    "ReplicatedStateMachine": "actorraft.cluster.spawn",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
