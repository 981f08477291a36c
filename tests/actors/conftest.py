"""Fixtures of the tests of actors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from actorraft.actors.actor import Actor
from actorraft.actors.ref import ActorRef
from actorraft.actors.spawn import ActorOptions


@pytest.fixture
def start() -> Iterator[Callable[..., ActorRef]]:
    """Start actors that are killed at the end of the test."""
    started: list[ActorRef] = []

    def start_one(cls: type[Actor], *args: Any, **options: Any) -> ActorRef:
        started.append(ActorOptions(**options).spawn(cls, *args))
        return started[-1]

    yield start_one
    for ref in started:
        ref.kill()
