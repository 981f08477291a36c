"""The mailbox port: how a process receives from peers and clients, and answers, without ever blocking on one of them.

One `wait` covers everything that can happen, and gives back all that has happened, so that its user works in batches.
What moves is frames of bytes; what is in them is not known here.

Shape:      an Envelope is (kind, sender, frame). PEER: a frame from the node `sender`. CLIENT: a frame from the client
            with the routing id `sender`. NODE: on a client's channel, a frame from the node `sender`.
            CONNECTED, DISCONNECTED: the link to the node `sender`. WAKE: somebody called `wake`.
Not here:   sockets (transports/zeromq.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol


class Kinds:
    """What an envelope can be."""

    PEER: Final = 1
    CLIENT: Final = 2
    DISCONNECTED: Final = 3
    CONNECTED: Final = 4
    WAKE: Final = 5
    FRAME: Final = 6


class Envelope(NamedTuple):
    """One thing that happened; `frame` is empty for all but PEER, CLIENT and FRAME."""

    kind: int
    sender: Any
    frame: bytes = b""


class Mailbox(Protocol):
    """The mailbox of a process that has peers and clients. Used by one thread, but for `wake`."""

    @property
    def endpoints(self) -> tuple[str, str]:
        """Where peers and clients reach it, as bound."""

    def set_peers(self, peers: Mapping[int, str]) -> None:
        """Say who the peers are: node id -> endpoint. Links to others are closed; a link that stays is left alone."""

    def wait(self, timeout_s: float) -> list[Envelope]:
        """Wait until something happens, or `timeout_s` passes; return what happened, in order per sender. Bounded."""

    def send_peer(self, peer_id: int, frame: bytes) -> bool:
        """Send to a peer, never blocking; False if it was dropped (no link, full queue). What left may be lost too."""

    def send_client(self, client: Any, frame: bytes) -> bool:
        """Answer a client, never blocking; False if it was dropped (it is gone, or does not read)."""

    def wake(self) -> None:
        """Make `wait` return. From any thread; several calls may count as one."""

    def close(self) -> None:
        """Close every socket; what was not sent yet is lost. Idempotent."""


class Channel(Protocol):
    """The client's side: links to the nodes of a cluster. Used by one thread, but for `wake`."""

    def set_endpoints(self, endpoints: Mapping[int, str]) -> None:
        """Say where the nodes are: node id -> endpoint."""

    def wait(self, timeout_s: float) -> list[Envelope]:
        """As Mailbox.wait; kinds are FRAME, CONNECTED, DISCONNECTED and WAKE."""

    def send(self, node_id: int, frame: bytes) -> bool:
        """Send to a node, never blocking; False if it certainly did not leave."""

    def wake(self) -> None:
        """Make `wait` return. From any thread; several calls may count as one."""

    def close(self) -> None:
        """Close every socket. Idempotent."""
