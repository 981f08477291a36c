"""A mailbox for clients that dials, too: what stands between clients and sockets that these do not reach.

It opens one door, with keys, and keeps links on which frames come back as they do on a client's channel. Who passes a
frame from one side to the other, and which, is its owner's business.

Threads:    one thread owns it; only `wake` may be called from others.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import zmq

from actorraft.ports import Envelope, Kinds, Sent
from transports.hello import ANY_CLUSTER, NOBODY, Introduction
from transports.keys import Keys
from transports.mailbox import ZeroMQMailbox
from transports.sockets import Link, LinkTimes

UNREAD_MAX: Final = 16  # frames that libzmq holds of a link that is not read


class ZeroMQRelay(ZeroMQMailbox):
    """A door for clients, and links; kinds are CLIENT at the one and FRAME, CONNECTED, DISCONNECTED at the others.

    Whoever comes by the door knows the key of this node, so it asks for no cluster.

    Args:
        endpoint: where clients come in.
        keys: this node's own, and its clients'.
        frame_bytes_max: bound of a frame, either way.
        times: heartbeats and reconnects of all links.
    """

    def __init__(self, endpoint: str, keys: Keys, *, frame_bytes_max: int, times: LinkTimes) -> None:
        self._held: set[Any] = set()  # links that are not read now
        super().__init__(
            NOBODY,
            incarnation=os.urandom(8),
            cluster_id=ANY_CLUSTER,
            peer_endpoint=None,
            client_endpoint=endpoint,
            frame_bytes_max=frame_bytes_max,
            keys=keys,
            times=times,
        )

    def socket(self, kind: int, message_bytes_max: int) -> zmq.Socket[bytes]:
        """Make a socket with our options; one that dials takes little that nobody has read."""
        socket = super().socket(kind, message_bytes_max)
        if kind == zmq.DEALER:
            socket.rcvhwm = UNREAD_MAX
        return socket

    def set_endpoints(self, endpoints: Mapping[Any, str]) -> None:
        """Keep a link to each of these, and to no other: whatever names one -> endpoint. Of those that end no word."""
        self._set_links(endpoints)

    def send(self, link_id: Any, frame: bytes) -> Sent:
        """Send on a link, never blocking."""
        link = self._links.get(link_id)
        if link is not None and link.drain is not None:
            self._again[link.drain] = None  # a send may take the signal that a message has come
        return self._send_link(link_id, frame)

    def hold(self, link_id: Any) -> None:
        """Read a link no more, so that its other end meets a full queue. What it left there at its end is lost."""
        link = self._links.get(link_id)
        if link is not None and link.dealer is not None and link_id not in self._held:
            self._held.add(link_id)
            self._unwatch(link.dealer)

    def release(self, link_id: Any) -> None:
        """Read a link again, if it is held."""
        if link_id in self._held:
            self._held.discard(link_id)
            link = self._links[link_id]
            assert link.dealer is not None
            assert link.drain is not None
            self.watch(link.dealer, link.drain)

    def _drain_dealer(self, link: Link, happened: list[Envelope], signalled: bool) -> None:
        if link.id not in self._held:
            super()._drain_dealer(link, happened, signalled)

    def _hang_up(self, link: Link) -> None:
        self.release(link.id)
        super()._hang_up(link)

    def _judge(self, link: Link, said: Introduction) -> str:
        return ""

    def _on_frame(self, link: Link, frame: bytes, happened: list[Envelope]) -> None:
        happened.append(Envelope(Kinds.FRAME, link.id, frame))
