"""Modules of 0.1.0 by the names they had there: importing one warns, and gives what is in its place.

None of these names was promised; but whoever imported one finds out from a warning, not from a traceback.
To be removed in 0.4.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Final

MOVED: Final[dict[str, str | tuple[str, ...]]] = {
    "actorraft.canonical": "actorraft.pickling.canonical",
    "actorraft.capture": "actorraft.node.capture",
    "actorraft.checks": "actorraft.node.digests",
    "actorraft.chunks": "actorraft.node.snapshotting",
    "actorraft.clock": "actorraft.node.clock",
    "actorraft.control": ("actorraft.node.control", "actorraft.node.driver"),
    "actorraft.definitions": "actorraft.pickling.definitions",
    "actorraft.events": "actorraft.client.events",
    "actorraft.executor": ("actorraft.node.executor", "actorraft.node.work"),
    "actorraft.host": "actorraft.node.host",
    "actorraft.logtime": "actorraft.node.logtime",
    "actorraft.metrics": "actorraft.node.metrics",
    "actorraft.names": "actorraft.pickling.names",
    "actorraft.nodes": "actorraft.cluster.nodes",
    "actorraft.place": "actorraft.cluster.place",
    "actorraft.proxy": "actorraft.client.proxy",
    "actorraft.replicated": "actorraft.cluster.replicated_actor",
    "actorraft.results": "actorraft.pickling.results",
    "actorraft.session": "actorraft.client.session",
    "actorraft.sessions": "actorraft.node.session_table",
    "actorraft.status": "actorraft.client.status",
    "actorraft.turns": "actorraft.node.machine_thread",
    "actorraft.actors.mailbox": "actorraft.ports",
}


def places_of(old: str) -> tuple[str, ...]:
    """Return the modules in which what was in `old` is now, the first going before the others."""
    places = MOVED[old]
    return (places,) if isinstance(places, str) else places


class _OldNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Asked last, for what no other finder knows."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        places = places_of(module.__name__)
        warnings.warn(f"{module.__name__} is {' and '.join(places)} now", DeprecationWarning, stacklevel=2)
        for place in reversed(places):
            found = vars(importlib.import_module(place))
            vars(module).update({name: value for name, value in found.items() if not name.startswith("__")})


def install() -> None:
    """Let the old names be found. Idempotent."""
    if not any(isinstance(finder, _OldNames) for finder in sys.meta_path):
        sys.meta_path.append(_OldNames())
