"""For unit tests of machines: a context without a cluster.

with actorraft.testing.context(time=10.0) as context:
    bank.deposit("ann", 5)
assert context.events == [...]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from actorraft.machine import CommandContext, active


@contextmanager
def context(
    *,
    index: int = 0,
    position: int = 0,
    serial: int = 1,
    term: int = 1,
    time: float = 0.0,
    seed: int = 0,
    machine_version: int = 0,
) -> Iterator[CommandContext]:
    """Let `actorraft.context()` work inside the block, with these values.

    Its attributes may be set in the block; published events are in its `events`, as (index, topic, event).
    """
    made = CommandContext(seed)
    made.begin_entry(index, term, time)
    made.position, made.serial, made.machine_version = position, serial, machine_version
    before, active.context = active.context, made
    try:
        yield made
    finally:
        active.context = before
