"""What a machine's class offers beside commands and queries may raise: the error that names class and place."""

from __future__ import annotations

from typing import Any

from actorraft.errors import ActorRaftError
from actorraft.pickling import exceptions


class HookFailed(ActorRaftError):
    """Something that a machine's class offers raised, or gave what it may not; the text names class and place."""


def failed(machine: Any, place: str, error: BaseException) -> HookFailed:
    """Make the error that says which place of a machine raised what."""
    return HookFailed(f"{exceptions.name(type(machine))}.{place} raised {exceptions.summary(error)}")
