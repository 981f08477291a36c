"""What runs in a node's process: the driver of the core, the machine and its thread, sessions, snapshots."""

from __future__ import annotations

import importlib
from typing import Any, Final

# Loaded when first used.
_HOMES: Final = {"NodeSpec": "actorraft.node.spec", "run_node": "actorraft.node.process"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
