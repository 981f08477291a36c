"""Machines that the nodes of these tests import by name; with this module comes the breaking of their disks."""

from __future__ import annotations

import random
from typing import Any

from actorraft import StateMachine, command, query
from tests.cluster.machines import Ledger
from tests.faults import disks

disks.listen()


class Notes(Ledger):
    """A ledger whose node's disk can be broken."""


class Dice(StateMachine):
    """A machine that is not deterministic, though what it returns is."""

    def __init__(self) -> None:
        self.rolls: list[float] = []
        self.count = 0

    @command
    def add(self, number: int) -> int:
        """Behave."""
        self.count += number
        return self.count

    @command
    def roll(self) -> None:
        """Read what differs from process to process."""
        self.rolls.append(random.random())

    @command
    def tell(self) -> float:
        """Keep nothing, but return what differs from process to process."""
        return random.random()


class Big(StateMachine):
    """Its state is as large as it is told."""

    def __init__(self) -> None:
        self.items: dict[str, Any] = {}

    @command
    def put(self, key: str, size_bytes: int) -> None:
        """Keep that much."""
        self.items[key] = b"x" * size_bytes

    @query
    def get(self, key: str) -> Any:
        """Return it."""
        return self.items.get(key)
