"""ZeroMQ mailboxes: one ROUTER for peers and one for clients, a DEALER for sending to each peer.

A node sends to a peer by its DEALER and hears it by its ROUTER, so there is never a ROUTER facing a ROUTER. Every send
is without waiting: what does not leave at once is dropped, and Raft sends again by itself. A peer's link is watched by
a socket monitor, which sees a SIGKILL after about a millisecond.

Why poll on descriptors: zmq_poll over a dozen sockets costs 11 µs from Python, poll(2) on their descriptors 1 µs. A
descriptor is readable only until the signals behind it are taken, and a send takes signals too; so a socket is always
read until it says that it is empty, and one that was sent on, or not emptied, is looked at again before the next wait.

Wire:       head + frame in one part; [head, frame] if the frame is too large to be copied for that. head = token (tcp
            only, 32 bytes), protocol version, and on peer links cluster id, node id and incarnation. The token is
            compared in constant time before anything else is looked at. Routing ids are the ROUTER's own, new for each
            connection, so nobody can take over another's and none comes back.
Source:     docs/decisions; libzmq's manual, zmq_setsockopt and zmq_socket_monitor.
Threads:    one thread owns a mailbox; only `wake` may be called from others.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import logging
import math
import os
import select
import struct
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import zmq

from actorraft import codec
from actorraft.errors import UsageError
from actorraft.ports import Envelope, Kinds
from actorraft.raft.messages import Message
from transports import RaftNet
from transports.endpoints import TOKEN_BYTES, check_bind, check_connect, check_token, split

logger = logging.getLogger("actorraft.transports")

PROTOCOL_VERSION: Final = b"\x02"
BATCH_MAX: Final = 512  # messages taken from one socket in one wait
BATCH_BYTES_MAX: Final = 64 << 20
JOINED_BYTES_MAX: Final = 8 << 10  # of a frame that travels in one part with its head: a part costs 1.5 us at each end
OUTGOING_MAX: Final = 10_000  # messages that a RaftNet's thread has not taken yet
LARGE_BYTES: Final = 64 << 10  # an answer of that size is counted until libzmq has written it out
LARGE_BYTES_MAX: Final = 64 << 20  # of such answers waiting for one client
EARLY_MAX: Final = 1000  # messages for a peer that was never there yet
HEARTBEAT_MS: Final = 200
HEARTBEAT_TIMEOUT_MS: Final = 600
RECONNECT_MS: Final = (5, 100)  # first wait, longest wait
CONNECT_TIMEOUT_MS: Final = 1000

# Plain numbers: pyzmq's own are enums, and each operation on one costs as much as a send.
_NOW: Final = int(zmq.NOBLOCK)
_NOW_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_POLLOUT: Final = int(zmq.POLLOUT)

_PEER_HEAD = struct.Struct("<8sI8s")  # cluster id, node id, incarnation
_EVENT = struct.Struct("=hi")
_WAKE = (1).to_bytes(8, sys.byteorder)  # what an eventfd takes; a pipe takes anything
_inproc_numbers = itertools.count()


def set_options(socket: zmq.Socket[bytes], *, message_bytes_max: int, hwm: int) -> None:
    """Set what every socket of ours has: bounds, no lingering, and links that notice when they are dead."""
    socket.linger = 0
    socket.sndhwm = hwm
    socket.rcvhwm = hwm
    socket.maxmsgsize = message_bytes_max
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HANDSHAKE_IVL, CONNECT_TIMEOUT_MS)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS[0])
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS[1])


Drain = Callable[[list[Envelope], bool], None]  # told whether its descriptor has just said that something is there


def _has(socket: zmq.Socket[bytes], event: int) -> bool:
    """Whether a socket is ready; also makes libzmq look at what has come in meanwhile."""
    events = socket.getsockopt(_EVENTS)
    assert isinstance(events, int)
    return bool(events & event)


class _Link:
    """One DEALER and its monitor; `connected` as the monitor last said."""

    def __init__(self, link_id: Any, endpoint: str, dealer: zmq.Socket[bytes], monitor: zmq.Socket[bytes]) -> None:
        self.id = link_id
        self.endpoint = endpoint
        self.dealer = dealer
        self.monitor = monitor
        self.connected = False
        self.drain: Drain | None = None  # reads the DEALER, if anything comes back on it


class _Sockets:
    """What a mailbox and a client's channel have in common: one wait for everything, and links that are watched."""

    def __init__(self, *, message_bytes_max: int, hwm: int, head: bytes, plaintext_off_loopback: bool) -> None:
        self.counts: Counter[str] = Counter()  # what was dropped, by reason
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._message_bytes_max = message_bytes_max
        self._hwm = hwm
        self._head = head
        self._plaintext = plaintext_off_loopback
        self._links: dict[Any, _Link] = {}
        self._drains: dict[int, Drain] = {}  # descriptor -> reads its socket empty
        self._again: dict[Drain, None] = {}  # may hold more, without a signal
        self._poll = select.poll()
        self._lock = threading.RLock()  # of `wake` against `close`; a signal handler may wake in the middle of a wake
        self._woken = False
        self._closed = False
        if hasattr(os, "eventfd"):
            self._wake_r = self._wake_w = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._wake_r, self._wake_w = os.pipe()
            os.set_blocking(self._wake_r, False)
            os.set_blocking(self._wake_w, False)
        self._poll.register(self._wake_r, select.POLLIN)

    # --- Waiting ---

    def wait(self, timeout_s: float) -> list[Envelope]:
        """Wait until something happens, or `timeout_s` passes; return what happened: at times nothing."""
        happened: list[Envelope] = []
        if self._again:
            again, self._again = self._again, {}
            for drain in again:
                drain(happened, False)
            if happened or self._again:
                timeout_s = 0.0
        for fd, _ in self._poll.poll(math.ceil(timeout_s * 1000)):
            if fd == self._wake_r:
                os.read(fd, 4096)
                self._woken = False  # after the read: a wake from now on is one more; work queued before is seen now
                happened.append(Envelope(Kinds.WAKE, None))
            else:
                drain_or_none = self._drains.get(fd)
                if drain_or_none is not None:
                    drain_or_none(happened, True)
        return happened

    def wake(self) -> None:
        """Make `wait` return; from any thread. Many wakes in a row cost one."""
        if self._woken:
            return
        with self._lock:
            if not self._closed:
                self._woken = True
                os.write(self._wake_w, _WAKE)

    def _watch(self, socket: zmq.Socket[bytes], drain: Drain) -> None:
        fd = socket.getsockopt(zmq.FD)
        assert isinstance(fd, int)
        self._drains[fd] = drain
        self._poll.register(fd, select.POLLIN)
        self._again[drain] = None

    def _unwatch(self, socket: zmq.Socket[bytes]) -> None:
        fd = socket.getsockopt(zmq.FD)
        assert isinstance(fd, int)
        drain = self._drains.pop(fd)
        self._again.pop(drain, None)
        self._poll.unregister(fd)

    # --- Reading ---

    def _take(self, socket: zmq.Socket[bytes], parts_max: int) -> list[zmq.Frame]:
        """Take the parts of a message up to its end; of one with too many, one more than `parts_max` comes back."""
        receive = socket.recv
        part = receive(_NOW, False)
        parts = [part]
        while part.more:
            part = receive(_NOW, False)
            if len(parts) <= parts_max:  # a stranger may send a million parts; one too many is enough to know
                parts.append(part)
        return parts

    def _drain_router(self, socket: zmq.Socket[bytes], head_bytes: int, accept: Callable[[bytes, bytes], Any],
                      kind: int, drain: Drain, happened: list[Envelope], signalled: bool) -> None:  # fmt: skip
        """Read a ROUTER until it is empty: [routing id, head + frame], or [routing id, head, frame].

        `accept` is given the routing id and the head, and returns whom a message is from; None: it is dropped.
        """
        receive = socket.recv
        size = 0
        try:
            for taken in range(BATCH_MAX):
                # Asking is cheaper than being refused, and one message at a time is the rule on a quiet day.
                if taken < 3 and not (signalled and not taken) and not _has(socket, _POLLIN):
                    return
                routing_id = receive(_NOW)
                parts = self._take(socket, 2)
                if len(parts) == 1:
                    whole = parts[0].buffer  # nothing is copied before its head was found good
                    head, rest = bytes(whole[:head_bytes]), whole[head_bytes:]
                elif len(parts) == 2:
                    head, rest = parts[0].bytes, parts[1].buffer
                else:
                    self.drop("a message of a form that is not ours")
                    continue
                sender = accept(routing_id, head)
                if sender is not None:
                    frame = bytes(rest)
                    happened.append(Envelope(kind, sender, frame))
                    size += len(frame)
                    if size > BATCH_BYTES_MAX:
                        break
        except zmq.Again:
            return
        self._again[drain] = None

    def drop(self, what: str) -> None:
        """Count a message that is dropped; say so once for each reason."""
        self.counts[what] += 1
        if self.counts[what] == 1:
            logger.warning("dropped %s (further ones are only counted)", what)

    # --- Links ---

    def _socket(self, kind: int, message_bytes_max: int | None = None) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        set_options(socket, message_bytes_max=message_bytes_max or self._message_bytes_max, hwm=self._hwm)
        return socket

    def _set_links(self, endpoints: Mapping[Any, str], token: bytes | None, *, receive: bool) -> None:
        """Connect a DEALER to each endpoint, and drop those that are no longer named."""
        for endpoint in endpoints.values():
            check_token(token, endpoint)
            check_connect(endpoint, plaintext_off_loopback=self._plaintext)
        for link in list(self._links.values()):
            if endpoints.get(link.id) != link.endpoint:
                self._disconnect(link)
        for link_id, endpoint in endpoints.items():
            if link_id not in self._links:
                self._links[link_id] = self._connect(link_id, endpoint, receive=receive)

    def _connect(self, link_id: Any, endpoint: str, *, receive: bool) -> _Link:
        dealer = self._socket(zmq.DEALER)
        dealer.setsockopt(zmq.IMMEDIATE, 1)  # else what is queued for a dead peer is replayed to its next life
        monitor = self._context.socket(zmq.PAIR)
        monitor.linger = 0
        monitor.rcvhwm = 0  # no event may be lost: the last one says whether there is a link
        address = f"inproc://monitor-{next(_inproc_numbers)}"
        dealer.monitor(address, zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        monitor.connect(address)
        link = _Link(link_id, endpoint, dealer, monitor)
        self._watch(monitor, lambda happened, _: self._drain_monitor(link, happened))
        if receive:
            link.drain = partial(self._drain_dealer, link)
            self._watch(dealer, link.drain)
        dealer.connect(endpoint)
        return link

    def _disconnect(self, link: _Link) -> None:
        del self._links[link.id]
        self._unwatch(link.monitor)
        if link.dealer.getsockopt(zmq.FD) in self._drains:
            self._unwatch(link.dealer)
        link.dealer.disable_monitor()
        link.dealer.close(linger=0)
        link.monitor.close(linger=0)

    def _drain_dealer(self, link: _Link, happened: list[Envelope], signalled: bool) -> None:
        dealer = link.dealer
        size = 0
        try:
            for taken in range(BATCH_MAX):
                if taken < 3 and not (signalled and not taken) and not _has(dealer, _POLLIN):
                    return
                parts = self._take(dealer, 1)
                if len(parts) != 1:
                    self.drop("a message of a form that is not ours")
                    continue
                frame = parts[0].bytes
                happened.append(Envelope(Kinds.FRAME, link.id, frame))
                size += len(frame)
                if size > BATCH_BYTES_MAX:
                    break
        except zmq.Again:
            return
        assert link.drain is not None
        self._again[link.drain] = None

    def _drain_monitor(self, link: _Link, happened: list[Envelope]) -> None:
        try:
            while True:
                event, _ = _EVENT.unpack(link.monitor.recv_multipart(_NOW)[0])
                connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
                if connected != link.connected:
                    if not connected and link.drain is not None:
                        link.drain(happened, False)  # what came before the end is told before the end
                    link.connected = connected
                    happened.append(Envelope(Kinds.CONNECTED if connected else Kinds.DISCONNECTED, link.id))
        except zmq.Again:
            return

    def _send_link(self, link_id: Any, frame: bytes) -> bool:
        link = self._links.get(link_id)
        if link is None or not link.connected:
            self.counts["not sent: no link"] += 1
            return False
        if len(frame) > self._message_bytes_max:
            self.drop(f"a frame over {self._message_bytes_max} bytes, unsent: the receiver would close the link")
            return False
        dealer = link.dealer
        joined = len(frame) <= JOINED_BYTES_MAX
        first, flags = (self._head + frame, _NOW) if joined else (self._head, _NOW_MORE)
        try:
            dealer.send(first, flags)
        except zmq.Again:
            # libzmq may not have looked whether there is room again; being asked for its events makes it look.
            if not _has(dealer, _POLLOUT):
                self.counts["not sent: full"] += 1
                return False
            try:
                dealer.send(first, flags)
            except zmq.Again:
                self.counts["not sent: full"] += 1
                return False
        if joined:
            return True
        try:
            dealer.send(frame, _NOW)
        except zmq.Again:  # the link broke between the two parts; libzmq has dropped the first
            self.counts["not sent: no link"] += 1
            return False
        return True

    def close(self, linger_s: float = 0.0) -> None:
        """Close every socket; what was not sent within `linger_s` is lost. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for link in list(self._links.values()):
            self._disconnect(link)
        self._drains.clear()
        self._again.clear()
        self._context.destroy(linger=round(linger_s * 1000))
        os.close(self._wake_r)
        if self._wake_w != self._wake_r:
            os.close(self._wake_w)


class ZeroMQMailbox(_Sockets):
    """A node's mailbox.

    Args:
        address: this node's id.
        incarnation: 8 random bytes, new for each life of the process.
        cluster_id: 8 bytes; messages of other clusters are dropped.
        peer_endpoint, client_endpoint: where to bind; tcp port 0 lets the system choose. None: there are none.
        token: 32 secret bytes that every message on tcp begins with; None on ipc.
        frame_bytes_max: bound of a client's frame, and so of a log entry.
        hwm: messages queued for one peer or client; then they are dropped.
        plaintext_off_loopback: allow tcp addresses that others can read and forge.

    Raises:
        UsageError: an endpoint cannot be bound, or could be reached by others.
    """

    def __init__(
        self,
        address: int,
        *,
        incarnation: bytes,
        cluster_id: bytes,
        peer_endpoint: str | None,
        client_endpoint: str | None,
        token: bytes | None,
        frame_bytes_max: int,
        hwm: int = 1000,
        plaintext_off_loopback: bool = False,
    ) -> None:
        for endpoint in filter(None, (peer_endpoint, client_endpoint)):
            check_token(token, endpoint)
            check_bind(endpoint, plaintext_off_loopback=plaintext_off_loopback)
        super().__init__(
            message_bytes_max=2 * frame_bytes_max + (4 << 20),  # an entry that big travels with others' heads around it
            hwm=hwm,
            head=(token or b"") + PROTOCOL_VERSION + _PEER_HEAD.pack(cluster_id, address, incarnation),
            plaintext_off_loopback=plaintext_off_loopback,
        )
        self.address = address
        self._token = token
        self._cluster_id = cluster_id
        self._guard = (token or b"") + PROTOCOL_VERSION
        self._heads: dict[bytes, int] = {}  # heads that were found good -> node id
        self._peers: frozenset[int] = frozenset()
        self._large: dict[bytes, deque[tuple[zmq.MessageTracker, int]]] = {}  # client -> large answers on their way
        self._peer_router = self._socket(zmq.ROUTER)
        self._client_router = self._socket(zmq.ROUTER, frame_bytes_max + (64 << 10))
        self._client_router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        try:
            self.endpoints = (
                self._bind(self._peer_router, peer_endpoint),
                self._bind(self._client_router, client_endpoint),
            )
        except BaseException:
            self.close()
            raise
        self._watch(self._peer_router, self._drain_peers)
        self._watch(self._client_router, self._drain_clients)
        self._client_drain = self._drain_clients

    def _bind(self, socket: zmq.Socket[bytes], endpoint: str | None) -> str:
        if endpoint is None:
            return ""
        try:
            # libzmq's own wildcard; a port of 0 means the same to everybody else.
            socket.bind(endpoint[:-2] + ":*" if endpoint.startswith("tcp://") and endpoint.endswith(":0") else endpoint)
        except zmq.ZMQError as error:
            raise UsageError(f"cannot bind {endpoint}: {error}") from error
        return socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def set_peers(self, peers: Mapping[int, str]) -> None:
        """Send to these, and hear only these, from now on: node id -> peer endpoint."""
        self._peers = frozenset(peers)
        self._heads.clear()
        self._set_links(peers, self._token, receive=False)

    def _drain_peers(self, happened: list[Envelope], signalled: bool) -> None:
        self._drain_router(self._peer_router, len(self._guard) + _PEER_HEAD.size, self._accept_peer, Kinds.PEER,
                           self._drain_peers, happened, signalled)  # fmt: skip

    def _accept_peer(self, routing_id: bytes, head: bytes) -> int | None:
        guard = self._guard
        if not hmac.compare_digest(head[: len(guard)], guard):
            self.drop("a peer's message without the cluster's token, or of another protocol version")
            return None
        peer_id = self._heads.get(head)
        if peer_id is None:
            peer_id = self._introduce(head[len(guard) :])
            if peer_id is None:
                return None
            if len(self._heads) > 1000:  # each life of each peer has one; strangers have none
                self._heads.clear()
            self._heads[head] = peer_id
        return peer_id

    def _introduce(self, head: bytes) -> int | None:
        """Return whose head this is; None if it is none of ours."""
        if len(head) != _PEER_HEAD.size:
            self.drop("a peer's message with a malformed head")
            return None
        cluster_id, peer_id, _ = _PEER_HEAD.unpack(head)
        if cluster_id != self._cluster_id:
            self.drop("a message from another cluster")
            return None
        if peer_id not in self._peers:
            self.drop(f"a message from node {peer_id}, which is no peer")
            return None
        return int(peer_id)

    def _drain_clients(self, happened: list[Envelope], signalled: bool) -> None:
        self._drain_router(self._client_router, len(self._guard), self._accept_client, Kinds.CLIENT,
                           self._drain_clients, happened, signalled)  # fmt: skip

    def _accept_client(self, routing_id: bytes, head: bytes) -> bytes | None:
        if not hmac.compare_digest(head, self._guard):
            self.drop("a client's message without the cluster's token, or of another protocol version")
            return None
        return routing_id

    def send_peer(self, peer_id: int, frame: bytes) -> bool:
        """Send to a peer, never blocking; False if it did not leave."""
        return self._send_link(peer_id, frame)

    def send_client(self, client: bytes, frame: bytes) -> bool:
        """Answer a client, never blocking; False if it is gone or does not read."""
        return self.try_send_client(client, frame) is True

    def try_send_client(self, client: bytes, frame: bytes) -> bool | None:
        """Answer a client, never blocking; False if its queue is full now, None if it is gone."""
        self._again[self._client_drain] = None  # a send may take the signal that a message has come
        send = self._client_router.send
        large = len(frame) >= LARGE_BYTES
        if large and not self._has_room(client, len(frame)):
            self.counts["answers not sent: full"] += 1
            return False
        try:
            send(client, _NOW_MORE)
            if large:
                self._large[client].append((send(frame, _NOW, copy=False, track=True), len(frame)))
            else:
                send(frame, _NOW)
        except zmq.Again:
            self.counts["answers not sent: full"] += 1
            return False
        except zmq.ZMQError:
            self.counts["answers not sent: gone"] += 1
            return None
        return True

    def _has_room(self, client: bytes, size: int) -> bool:
        """Whether a large answer may wait for a client: ZeroMQ bounds messages, and these would be gigabytes."""
        for one, waiting in list(self._large.items()):
            while waiting and waiting[0][0].done:
                waiting.popleft()
            if not waiting:
                del self._large[one]
        waiting = self._large.setdefault(client, deque())
        return not waiting or sum(bytes_ for _, bytes_ in waiting) + size <= LARGE_BYTES_MAX


class ZeroMQClientChannel(_Sockets):
    """A client's links: one DEALER for each node.

    Args:
        token: the cluster's, on tcp.
        message_bytes_max: bound of what a node may send.
    """

    def __init__(
        self,
        *,
        token: bytes | None,
        message_bytes_max: int = 64 << 20,
        hwm: int = 1000,
        plaintext_off_loopback: bool = False,
    ) -> None:
        if token is not None and len(token) != TOKEN_BYTES:
            raise UsageError(f"a token has {TOKEN_BYTES} bytes, not {len(token)}")
        super().__init__(
            message_bytes_max=message_bytes_max,
            hwm=hwm,
            head=(token or b"") + PROTOCOL_VERSION,
            plaintext_off_loopback=plaintext_off_loopback,
        )
        self._token = token

    def set_endpoints(self, endpoints: Mapping[Any, str]) -> None:
        """Talk to these from now on: node id (or whatever else names it) -> client endpoint."""
        self._set_links(endpoints, self._token, receive=True)

    def send(self, node_id: Any, frame: bytes) -> bool:
        """Send to a node, never blocking; False if it did not leave."""
        link = self._links.get(node_id)
        if link is not None and link.drain is not None:
            self._again[link.drain] = None  # a send may take the signal that a message has come
        return self._send_link(node_id, frame)


class ZeroMQRaftNet(RaftNet):
    """A RaftNet over ZeroMQ: a mailbox of its own, in a thread of its own.

    Args:
        address: this node's id.
        peers: node id -> endpoint (tcp://127.0.0.1:5555, or ipc:// in a directory of mode 0700); the node's own entry
            says where it listens, and must be there unless `endpoint` says so.
        endpoint: where this node listens.
        token: 32 secret bytes that all nodes share. Without one, tcp is guarded only by a number made from `peers`,
            which keeps clusters apart but no attacker out: for tests and teaching.
    """

    def __init__(
        self,
        address: int,
        peers: Mapping[int, str],
        *,
        endpoint: str | None = None,
        token: bytes | None = None,
        message_bytes_max: int = 16 << 20,
        plaintext_off_loopback: bool = False,
    ) -> None:
        super().__init__(address, peers)
        self._endpoint = endpoint or dict(peers).get(address)
        if self._endpoint is None:
            raise UsageError(f"where does node {address} listen? peers has no entry for it, and no endpoint is given")
        members = sorted({**self.peers, address: self._endpoint}.items())
        name = hashlib.sha256(repr(members).encode()).digest()
        if token is None and any(split(each)[0] == "tcp" for _, each in members):
            token = name
            logger.warning("node %d: tcp without a token: any local user can send it messages", address)
        self._token = token
        self._cluster_id = name[:8]
        self._message_bytes_max = message_bytes_max
        self._plaintext = plaintext_off_loopback
        self._outgoing: deque[Message] = deque()
        self._early: dict[int, list[Message]] = {peer_id: [] for peer_id in self.peers}  # for who was never there yet
        self._mailbox: ZeroMQMailbox | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Bind, connect, and start the thread. Idempotent."""
        if self._mailbox is not None or self._ended.is_set():
            return
        assert self._endpoint is not None
        mailbox = ZeroMQMailbox(
            self.address,
            incarnation=os.urandom(8),
            cluster_id=self._cluster_id,
            peer_endpoint=self._endpoint,
            client_endpoint=None,
            token=self._token,
            frame_bytes_max=self._message_bytes_max,
            plaintext_off_loopback=self._plaintext,
        )
        try:
            mailbox.set_peers(self.peers)
        except BaseException:
            mailbox.close()
            raise
        self._mailbox = mailbox
        self._thread = threading.Thread(target=self._run, args=(mailbox,), name=f"raftnet-{self.address}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the sockets and end the thread. Idempotent."""
        super().stop()
        if self._mailbox is not None and self._thread is not None:
            self._mailbox.wake()
            if self._thread is not threading.current_thread():
                self._thread.join()

    def send(self, msg: Message) -> None:
        """Send to `msg.dest`, never blocking; a message to itself arrives at once."""
        if msg.dest == self.address:
            self.deliver(msg)
        elif len(self._outgoing) >= OUTGOING_MAX:
            self.dropped["outgoing queue full"] += 1
        else:
            self._outgoing.append(msg)
            if self._mailbox is not None:
                self._mailbox.wake()

    def _run(self, mailbox: ZeroMQMailbox) -> None:
        while not self._ended.is_set():
            while self._outgoing:
                message = self._outgoing.popleft()
                early = self._early.get(message.dest)
                if early is None:
                    self._send_now(mailbox, message)
                elif len(early) < EARLY_MAX:
                    early.append(message)
                else:
                    self.dropped["not sent"] += 1
            for kind, sender, frame in mailbox.wait(1.0):
                if kind == Kinds.PEER:
                    self._on_frame(sender, frame)
                elif kind == Kinds.CONNECTED:
                    for message in self._early.pop(sender, ()):
                        self._send_now(mailbox, message)
        mailbox.close()

    def _send_now(self, mailbox: ZeroMQMailbox, message: Message) -> None:
        if not mailbox.send_peer(message.dest, codec.encode_message(message)):
            self.dropped["not sent"] += 1

    def _on_frame(self, sender: int, frame: bytes) -> None:
        try:
            message: Any = codec.decode_message(frame)
        except ValueError:
            self.dropped["malformed"] += 1
            return
        if message.source != sender or message.dest != self.address:
            self.dropped["misaddressed"] += 1
            return
        self.deliver(message)
