"""What the core refuses, each with what its caller can do about it.

A broken invariant is an assertion, not one of these.
"""

from __future__ import annotations

from typing import Any


class RaftError(Exception):
    """Base of what the core refuses."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(vars(self).values())


class NotLeader(RaftError):
    """This node cannot accept proposals now; ask `leader_id`, if it is known."""

    def __init__(self, leader_id: int | None) -> None:
        super().__init__(f"not the leader; the leader is {'unknown' if leader_id is None else leader_id}")
        self.leader_id = leader_id


class ProposalRefused(RaftError):
    """The leader refuses a proposal for now (a bound is reached, a change or a transfer is under way)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Compacted(RaftError, IndexError):
    """The entry asked for is no longer in the log: a snapshot covers it."""

    def __init__(self, index: int, first_index: int) -> None:
        super().__init__(f"log index {index} is compacted; the log holds entries from {first_index} on")
        self.index = index
        self.first_index = first_index
