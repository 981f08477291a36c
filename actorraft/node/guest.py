"""What a machine's class offers beside commands and queries may raise: the error that names class and place.

And what its code may import: whether that can be found.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from actorraft.errors import ActorRaftError
from actorraft.pickling import exceptions


class HookFailed(ActorRaftError):
    """Something that a machine's class offers raised, or gave what it may not; the text names class and place."""


def failed(machine: Any, place: str, error: BaseException) -> HookFailed:
    """Make the error that says which place of a machine raised what."""
    return HookFailed(f"{exceptions.name(type(machine))}.{place} raised {exceptions.summary(error)}")


def can_be_found(module: str) -> bool:
    """Whether an import may succeed by now; asks no more than the parent packages' code."""
    if module in sys.modules:
        return True
    importlib.invalidate_caches()
    try:
        return importlib.util.find_spec(module) is not None
    except BaseException:  # its parent package is user code
        return False
