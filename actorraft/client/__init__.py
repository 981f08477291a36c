"""What runs in the process of whoever calls a cluster: submit, query, watch, administer; one I/O thread behind."""

from __future__ import annotations

import importlib
from typing import Any, Final

# Loaded when first used.
_HOMES: Final = {"Client": "actorraft.client.client"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
