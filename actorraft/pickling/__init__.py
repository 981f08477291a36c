"""What travels between client and node: commands, results and errors as bytes, and code that a node cannot import."""

from __future__ import annotations

import importlib
from typing import Any, Final

# Loaded when first used.
_HOMES: Final = {
    "Encoder": "actorraft.pickling.encoder",
    "encode_factory": "actorraft.pickling.encoder",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
