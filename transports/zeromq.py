"""ZeroMQ mailboxes: one ROUTER for peers and one for clients, a DEALER for sending to each peer.

A node sends to a peer by its DEALER and hears it by its ROUTER, so there is never a ROUTER facing a ROUTER. Every send is
without waiting: what does not leave at once is dropped, and Raft sends again by itself. A peer's link is watched by a
socket monitor, which sees a SIGKILL after about a millisecond.

Every message begins with a head that tells protocol version and cluster, and on tcp a secret token; it is compared in
constant time before anything else is looked at. Whoever a peer says it is stands in its routing id (node id and a random
incarnation). What is wrong is counted, logged once and dropped.

Source:     architecture, "ZeroMQ, settled"; security.md.
Threads:    one thread owns a mailbox; only `wake` may be called from others.
"""

from __future__ import annotations

import hmac
import logging
import math
import os
import stat
import struct
from collections import Counter
from pathlib import Path
from typing import Any, Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from actorraft.actors.mailbox import CLIENT, CONNECTED, DISCONNECTED, NODE, PEER, WAKE, Envelope
from actorraft.errors import UsageError

logger = logging.getLogger("actorraft")

PROTOCOL_VERSION: Final = b"\x01"
IPC_PATH_BYTES_MAX: Final = 107
DRAIN_MAX: Final = 256  # messages taken from one socket in one wait
_ROUTING_ID = struct.Struct("<cI")


def set_options(socket: zmq.Socket[bytes], *, message_bytes_max: int, hwm: int) -> None:
    """Set what every socket of ours has: bounds, no lingering, and links that notice when they are dead."""
    socket.linger = 0
    socket.sndhwm = hwm
    socket.rcvhwm = hwm
    socket.maxmsgsize = message_bytes_max
    socket.setsockopt(zmq.HEARTBEAT_IVL, 200)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 600)
    socket.setsockopt(zmq.HEARTBEAT_TTL, 600)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 1000)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, 1000)
    socket.setsockopt(zmq.RECONNECT_IVL, 5)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)


def check_endpoint(endpoint: str) -> None:
    """Refuse an endpoint that others could reach or that cannot be bound.

    Raises:
        UsageError: not ipc or loopback tcp; an ipc path that is too long, or in a directory that others can enter.
    """
    scheme, _, address = endpoint.partition("://")
    if scheme == "ipc":
        if len(os.fsencode(address)) > IPC_PATH_BYTES_MAX:
            raise UsageError(f"the socket path {address} is over {IPC_PATH_BYTES_MAX} bytes; use a shorter TMPDIR")
        directory = Path(address).parent
        try:
            status = directory.stat()
        except OSError as error:
            raise UsageError(f"the socket directory {directory} cannot be used: {error.strerror}") from error
        if status.st_uid not in (os.geteuid(), 0) or stat.S_IMODE(status.st_mode) & 0o077:
            raise UsageError(
                f"the socket directory {directory} is open to other users; it must be yours, with mode 0700"
            )
    elif scheme == "tcp":
        host = address.rpartition(":")[0].strip("[]")
        if not (host.startswith("127.") or host in ("::1", "localhost")):
            raise UsageError(
                f"{endpoint} can be reached from other machines, and there are no keys; use a loopback address"
            )
    else:
        raise UsageError(f"an endpoint begins with ipc:// or tcp://, not {endpoint!r}")


class _Poll:
    """Sockets to wait for, an eventfd to be woken by, and monitors of outgoing links."""

    def __init__(self, message_bytes_max: int, hwm: int) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self.counts: Counter[str] = Counter()
        self._message_bytes_max = message_bytes_max
        self._hwm = hwm
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._woken = False
        self._poller = zmq.Poller()
        self._poller.register(self._wake_fd, zmq.POLLIN)
        self._links: dict[int, tuple[str, zmq.Socket[bytes], zmq.Socket[bytes]]] = {}  # id -> endpoint, DEALER, monitor
        self._monitored: dict[Any, int] = {}
        self._head = b""
        self.closed = False

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self.context.socket(kind)
        set_options(socket, message_bytes_max=self._message_bytes_max, hwm=self._hwm)
        return socket

    def wake(self) -> None:
        """Make `wait` return; from any thread. Many wakes in a row cost one."""
        if not self._woken:
            self._woken = True
            try:
                os.eventfd_write(self._wake_fd, 1)
            except OSError:
                if not self.closed:
                    raise

    def poll(self, timeout_s: float, envelopes: list[Envelope]) -> list[Any]:
        """Wait; note links that changed and a wake; return the sockets that have messages."""
        ready = []
        for socket, _ in self._poller.poll(math.ceil(timeout_s * 1000)):
            if socket == self._wake_fd:
                self._woken = False
                os.eventfd_read(self._wake_fd)
                envelopes.append(Envelope(WAKE, None, b""))
            elif socket in self._monitored:
                self._on_monitor(socket, envelopes)
            else:
                ready.append(socket)
        return ready

    def _on_monitor(self, monitor: zmq.Socket[bytes], envelopes: list[Envelope]) -> None:
        link_id = self._monitored[monitor]
        while monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            event = recv_monitor_message(monitor, zmq.NOBLOCK)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                envelopes.append(Envelope(CONNECTED, link_id, b""))
            elif event == zmq.EVENT_DISCONNECTED:
                envelopes.append(Envelope(DISCONNECTED, link_id, b""))

    def set_links(self, endpoints: dict[int, str], routing_id: bytes | None, *, receive: bool) -> None:
        """Connect a DEALER to each endpoint, and drop those that are no longer named."""
        for link_id, (endpoint, dealer, monitor) in list(self._links.items()):
            if endpoints.get(link_id) != endpoint:
                del self._links[link_id]
                self._poller.unregister(monitor)
                del self._monitored[monitor]
                if receive:
                    self._poller.unregister(dealer)
                dealer.disable_monitor()
                dealer.close(linger=0)
        for link_id, endpoint in endpoints.items():
            if link_id in self._links:
                continue
            check_endpoint(endpoint)
            dealer = self.socket(zmq.DEALER)
            dealer.setsockopt(zmq.IMMEDIATE, 1)  # else what is queued for a dead peer is replayed to its next life
            if routing_id is not None:
                dealer.setsockopt(zmq.ROUTING_ID, routing_id)
            monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
            dealer.connect(endpoint)
            self._links[link_id] = (endpoint, dealer, monitor)
            self._monitored[monitor] = link_id
            self._poller.register(monitor, zmq.POLLIN)
            if receive:
                self._poller.register(dealer, zmq.POLLIN)

    def send_link(self, link_id: int, frame: bytes) -> bool:
        link = self._links.get(link_id)
        if link is None:
            return False
        try:
            link[1].send_multipart((self._head, frame), zmq.NOBLOCK)
        except zmq.Again:
            self.counts["not sent"] += 1
            return False
        return True

    def drop(self, what: str) -> None:
        """Count a message that is none of ours; say so once."""
        self.counts[what] += 1
        if self.counts[what] == 1:
            logger.warning("dropped a message: %s (further ones are only counted)", what)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        for _, dealer, _ in self._links.values():
            dealer.disable_monitor()
            dealer.close(linger=0)
        self._links.clear()
        self.context.destroy(linger=0)
        os.close(self._wake_fd)


class ZeroMQMailbox(_Poll):
    """A node's mailbox.

    Args:
        address: this node's id.
        incarnation: random bytes, new for each life of the process.
        cluster_id: 8 bytes; messages of other clusters are dropped.
        peer_endpoint, client_endpoint: where to bind; tcp port 0 lets the system choose.
        token: 32 secret bytes that every message on tcp begins with; None on ipc.
        frame_bytes_max: bound of a client's frame.

    Raises:
        UsageError: an endpoint cannot be bound, or could be reached by others.
    """

    def __init__(
        self,
        address: int,
        *,
        incarnation: bytes,
        cluster_id: bytes,
        peer_endpoint: str,
        client_endpoint: str,
        token: bytes | None,
        frame_bytes_max: int,
        hwm: int = 1000,
    ) -> None:
        super().__init__(2 * frame_bytes_max + (4 << 20), hwm)
        self.address = address
        self._routing_id = _ROUTING_ID.pack(b"n", address) + incarnation
        self._client_head = PROTOCOL_VERSION + (token or b"")
        self._head = PROTOCOL_VERSION + cluster_id + (token or b"")
        self._peers: set[int] = set()
        self._peer_router = self.socket(zmq.ROUTER)
        self._client_router = self.socket(zmq.ROUTER)
        self._client_router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._client_router.sndhwm = 10 * hwm
        try:
            self.endpoints = (
                self._bind(self._peer_router, peer_endpoint),
                self._bind(self._client_router, client_endpoint),
            )
        except BaseException:
            self.close()
            raise
        self._poller.register(self._peer_router, zmq.POLLIN)
        self._poller.register(self._client_router, zmq.POLLIN)

    def _bind(self, socket: zmq.Socket[bytes], endpoint: str) -> str:
        check_endpoint(endpoint)
        if endpoint.startswith("tcp://") and len(self._client_head) != 33:
            raise UsageError(
                f"a node does not bind {endpoint} without a token of 32 bytes: any local user could reach it"
            )
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise UsageError(f"cannot bind {endpoint}: {error}") from error
        return socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def set_peers(self, peers: dict[int, str]) -> None:
        """Send to these from now on: node id -> peer endpoint."""
        self._peers = set(peers)
        self.set_links(peers, self._routing_id, receive=False)

    def wait(self, timeout_s: float) -> list[Envelope]:
        """Wait until there is something, `timeout_s` at the longest; return all that is there, up to a bound."""
        envelopes: list[Envelope] = []
        for socket in self.poll(timeout_s, envelopes):
            if socket is self._peer_router:
                self._drain_peers(envelopes)
            else:
                self._drain_clients(envelopes)
        return envelopes

    def _drain_peers(self, envelopes: list[Envelope]) -> None:
        receive, head = self._peer_router.recv_multipart, self._head
        try:
            for _ in range(DRAIN_MAX):
                parts = receive(zmq.NOBLOCK)
                if len(parts) != 3 or not hmac.compare_digest(parts[1], head):
                    self.drop("a stranger's, or of another cluster or version")
                    continue
                routing_id = parts[0]
                if len(routing_id) < _ROUTING_ID.size or routing_id[:1] != b"n":
                    self.drop("from a peer without a name")
                    continue
                peer_id = _ROUTING_ID.unpack_from(routing_id)[1]
                if peer_id not in self._peers:
                    self.drop(f"from node {peer_id}, which is no peer")
                    continue
                envelopes.append(Envelope(PEER, peer_id, parts[2]))
        except zmq.Again:
            return

    def _drain_clients(self, envelopes: list[Envelope]) -> None:
        receive, head = self._client_router.recv_multipart, self._client_head
        try:
            for _ in range(DRAIN_MAX):
                parts = receive(zmq.NOBLOCK)
                if len(parts) != 3 or not hmac.compare_digest(parts[1], head):
                    self.drop("from a client without the cluster's token, or of another version")
                    continue
                envelopes.append(Envelope(CLIENT, parts[0], parts[2]))
        except zmq.Again:
            return

    def send_peer(self, peer_id: int, frame: bytes) -> bool:
        """Send to a peer; False if it did not leave."""
        return self.send_link(peer_id, frame)

    def send_client(self, client: bytes, frame: bytes) -> bool:
        """Answer a client; False if it is gone or does not read."""
        try:
            self._client_router.send_multipart((client, frame), zmq.NOBLOCK)
        except zmq.ZMQError:
            self.counts["answers not sent"] += 1
            return False
        return True


class ZeroMQClientChannel(_Poll):
    """A client's links: one DEALER for each node."""

    def __init__(self, *, token: bytes | None, message_bytes_max: int = 64 << 20, hwm: int = 1000) -> None:
        super().__init__(message_bytes_max, hwm)
        self._head = PROTOCOL_VERSION + (token or b"")

    def set_endpoints(self, endpoints: dict[int, str]) -> None:
        """Talk to these from now on: node id -> client endpoint."""
        self.set_links(endpoints, None, receive=True)

    def wait(self, timeout_s: float) -> list[Envelope]:
        """Wait until there is something, `timeout_s` at the longest; return all that is there, up to a bound."""
        envelopes: list[Envelope] = []
        ready = self.poll(timeout_s, envelopes)
        if ready:
            for link_id, (_, dealer, _) in self._links.items():
                if dealer in ready:
                    self._drain(link_id, dealer, envelopes)
        return envelopes

    def _drain(self, link_id: int, dealer: zmq.Socket[bytes], envelopes: list[Envelope]) -> None:
        try:
            for _ in range(DRAIN_MAX):
                parts = dealer.recv_multipart(zmq.NOBLOCK)
                if len(parts) != 1:
                    self.drop("of a form that no node sends")
                    continue
                envelopes.append(Envelope(NODE, link_id, parts[0]))
        except zmq.Again:
            return

    def send(self, node_id: int, frame: bytes) -> bool:
        """Send to a node; False if it did not leave."""
        return self.send_link(node_id, frame)
