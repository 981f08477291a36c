"""A net in memory: what is sent lies in a list until somebody takes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from actorraft.raft.messages import Message
from transports import RaftNet


class MockNetwork(RaftNet):
    """Sends into `outgoing`, for a simulation or a test to deliver, hold back or lose.

    Args:
        address: this node's id.
        peers: the others: ids, or a mapping from ids.
    """

    def __init__(self, address: int, peers: Mapping[int, Any] | Iterable[int] = ()) -> None:
        super().__init__(address, peers if isinstance(peers, Mapping) else dict.fromkeys(peers))
        self.outgoing: list[Message] = []

    def send(self, msg: Message) -> None:
        """Append to `outgoing`."""
        self.outgoing.append(msg)
