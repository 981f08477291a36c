"""Locks: one holder at a time, tokens that grow, leases that end by log time."""

from __future__ import annotations

import pytest

from actorraft.testing import context
from statemachines.lock import LockService


def test_a_lock_has_one_holder_until_it_is_released() -> None:
    locks = LockService()
    with context(time=0.0):
        assert locks.acquire("disk", "ann", 10.0) == 1
        assert locks.acquire("disk", "bob", 10.0) is None
        assert locks.release("disk", "bob") is False
        assert locks.release("disk", "ann") is True
        assert locks.acquire("disk", "bob", 10.0) == 2


def test_renewing_keeps_the_token_and_moves_the_end() -> None:
    locks = LockService()
    with context(time=0.0):
        first = locks.acquire("disk", "ann", 10.0)
    with context(time=8.0):
        assert locks.acquire("disk", "ann", 10.0) == first
    holder = locks.holder("disk")
    assert holder is not None
    assert holder.expires_at == 18.0
    assert locks.wake_at == 18.0


def test_a_lease_ends_by_log_time_and_the_next_token_is_greater() -> None:
    locks = LockService()
    with context(time=0.0):
        assert locks.acquire("disk", "ann", 5.0) == 1
        assert locks.acquire("tape", "ann", 50.0) == 2
    with context(time=5.0):
        locks.on_clock()
    assert locks.holder("disk") is None
    assert locks.holder("tape") is not None
    with context(time=5.0):
        assert locks.release("disk", "ann") is False
        assert locks.acquire("disk", "bob", 5.0) == 3


def test_a_lease_of_no_time_is_refused() -> None:
    with context(), pytest.raises(ValueError, match="more than 0 seconds"):
        LockService().acquire("disk", "ann", 0)
