"""All socket code: ZeroMQ, plain TCP, and nets in memory; and the RaftNet that they have in common.

A RaftNet carries Raft's messages, as values, between the nodes of a cluster. It may lose, repeat and reorder; it never
alters, and never blocks a sender. It is what the Raft layer needs when it runs by itself (tests, teaching); a cluster's
nodes use the mailbox of transports/zeromq.py, which works in batches of frames.

Shape:      `peers` maps a node id to an endpoint, with or without the node's own. A subclass gives `send` and feeds
            `deliver`.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from actorraft.raft.messages import Message

INBOX_MAX: Final = 100_000  # messages nobody has received yet; further ones are dropped, as by a network


class RaftNet:
    """One node's net: `send(msg)` goes to `msg.dest`, `receive()` gives what came for this node.

    Args:
        address: this node's id.
        peers: node id -> endpoint; the node's own entry, if it is there, says where it listens.
    """

    def __init__(self, address: int, peers: Mapping[int, Any]) -> None:
        self.address = address
        self.peers: dict[int, Any] = {
            peer_id: endpoint for peer_id, endpoint in dict(peers).items() if peer_id != address
        }
        self.dropped: Counter[str] = Counter()  # reason -> how many messages
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._ended = threading.Event()  # after `stop`: `receive` gives None for ever

    def send(self, msg: Message) -> None:
        """Send to `msg.dest`, never blocking; lost if it cannot be sent now. Raises nothing for that."""
        raise NotImplementedError

    def receive(self, blocking: bool = True) -> Message | None:
        """Return the next message; None where nothing waits and `blocking` is False, and after `stop`."""
        try:
            message = self._inbox.get(block=blocking and not self._ended.is_set())
        except queue.Empty:
            return None
        if message is None:
            self._inbox.put(None)  # for the others that wait
        return message

    def deliver(self, msg: Message) -> None:
        """Put a message in, as if it had arrived."""
        if self._inbox.qsize() >= INBOX_MAX:
            self.dropped["inbox full"] += 1
        elif not self._ended.is_set():
            self._inbox.put(msg)

    def start(self) -> None:
        """Open what has to be open. Idempotent."""

    def stop(self) -> None:
        """Close everything, and end every `receive` that waits. Idempotent."""
        if not self._ended.is_set():
            self._ended.set()
            self._inbox.put(None)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
