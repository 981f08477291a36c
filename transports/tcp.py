"""A RaftNet over plain TCP sockets, with threads: for reading, teaching, and comparing with.

Each node listens; it has one outgoing queue and one sender thread for each peer, and one reader thread for each
connection that somebody made to it. Connections carry messages one way only, so nobody has to agree on who connects to
whom: a node sends on those that it made and hears on those that were made to it.

Wire:       a connection begins with [token, 32 bytes][protocol version, 1 byte][node id, 4 bytes]; then frames, each
            with its length (4 bytes, checked before anything is allocated) ahead of it. Wrong beginnings and lengths
            close the connection; a frame that does not decode is dropped.
Threads:    `send`, `receive` and `stop` from any thread.
Not here:   encryption; addresses off the loopback are refused unless plaintext_off_loopback says otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import queue
import select
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any, Final

from actorraft import codec
from actorraft.errors import UsageError
from actorraft.loggers import guarded_logger
from actorraft.raft.messages import Message
from transports import RaftNet
from transports.endpoints import check_bind, check_connect, host_and_port

logger = guarded_logger("actorraft.transports")

PROTOCOL_VERSION: Final = 1
TOKEN_BYTES: Final = 32
OUTGOING_MAX: Final = 1000  # messages waiting for one peer; further ones are dropped
CONNECT_TIMEOUT_S: Final = 1.0
SEND_TIMEOUT_S: Final = 2.0  # a peer that reads nothing for so long is taken for dead
HELLO_TIMEOUT_S: Final = 2.0
RETRY_S: Final = (0.005, 0.1)  # first wait, longest wait
CONNECTIONS_MAX: Final = 256  # made to one node at the same time

_HELLO = struct.Struct(f"<{TOKEN_BYTES}sBI")
_LENGTH = struct.Struct("<I")


class TCPRaftNet(RaftNet):
    """A RaftNet over plain TCP sockets.

    Args:
        address: this node's id.
        peers: node id -> endpoint ("tcp://127.0.0.1:5555", "127.0.0.1:5555" or ("127.0.0.1", 5555)); the node's own
            entry says where it listens, and must be there unless `endpoint` says so. With port 0, `endpoint` holds
            the real one after `start`.
        endpoint: where this node listens.
        token: 32 secret bytes that all nodes share. Without one, a number made from `peers` keeps clusters apart, but
            no attacker out: for tests and teaching.
        message_bytes_max: a longer message is neither sent nor received.
        plaintext_off_loopback: allow addresses where others can read and forge.
    """

    def __init__(
        self,
        address: int,
        peers: Mapping[int, Any],
        *,
        endpoint: Any = None,
        token: bytes | None = None,
        message_bytes_max: int = 16 << 20,
        plaintext_off_loopback: bool = False,
    ) -> None:
        super().__init__(address, peers)
        if endpoint is None:
            endpoint = dict(peers).get(address)
        if endpoint is None:
            raise UsageError(f"where does node {address} listen? peers has no entry for it, and no endpoint is given")
        if token is not None and len(token) != TOKEN_BYTES:
            raise UsageError(f"a token has {TOKEN_BYTES} bytes, not {len(token)}")
        self.endpoint = _as_endpoint(endpoint)
        self.peers = {peer_id: _as_endpoint(each) for peer_id, each in self.peers.items()}
        check_bind(self.endpoint, plaintext_on_loopback=True, plaintext_off_loopback=plaintext_off_loopback)
        for each in self.peers.values():
            check_connect(each, plaintext_on_loopback=True, plaintext_off_loopback=plaintext_off_loopback)
        members = sorted(self.peers | {address: self.endpoint})
        self._token = token if token is not None else hashlib.sha256(repr(members).encode()).digest()
        self._message_bytes_max = message_bytes_max
        self._outgoing: dict[int, queue.Queue[Message | None]] = {
            peer_id: queue.Queue(OUTGOING_MAX) for peer_id in self.peers
        }
        self._threads: list[threading.Thread] = []
        self._sockets: set[socket.socket] = set()  # all that are open, so that `stop` can end who waits in them
        self._lock = threading.Lock()  # of `_threads` and `_sockets`

    def start(self) -> None:
        """Listen, and start the threads. Idempotent.

        Raises:
            UsageError: the address cannot be bound.
        """
        if self._threads or self._ended.is_set():
            return
        host, port = host_and_port(self.endpoint)
        try:
            listener = socket.create_server((host, port), family=_family(host), backlog=64)
        except OSError as error:
            raise UsageError(f"cannot bind {self.endpoint}: {error.strerror}") from error
        self.endpoint = f"tcp://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        self._sockets.add(listener)
        self._spawn("accept", self._accept, listener)
        for peer_id in self.peers:
            self._spawn(f"send-{peer_id}", self._send_to, peer_id)

    def stop(self) -> None:
        """Close every socket and end every thread. Idempotent."""
        super().stop()
        with self._lock:
            sockets, threads = list(self._sockets), list(self._threads)
        for each in sockets:
            with contextlib.suppress(OSError):  # not connected (yet, or any more)
                each.shutdown(socket.SHUT_RDWR)
        for waiting in self._outgoing.values():
            with contextlib.suppress(queue.Full):  # then its thread is not asleep
                waiting.put_nowait(None)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def send(self, msg: Message) -> None:
        """Put into the peer's queue, never blocking; dropped if that is full. A message to itself arrives at once."""
        if msg.dest == self.address:
            self.deliver(msg)
            return
        waiting = self._outgoing.get(msg.dest)
        if waiting is None:
            self.dropped["no such peer"] += 1
            return
        try:
            waiting.put_nowait(msg)
        except queue.Full:
            self.dropped["outgoing queue full"] += 1

    # --- Sending: one thread for each peer ---

    def _send_to(self, peer_id: int) -> None:
        host, port = host_and_port(self.peers[peer_id])
        met, retry_s = False, RETRY_S[0]
        while not self._ended.is_set():
            try:
                connection = socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S)
            except OSError:
                if met:  # what waits for a dead peer is not for its next life; one that was never there may come yet
                    self._forget_outgoing(peer_id)
                self._ended.wait(retry_s)
                retry_s = min(2 * retry_s, RETRY_S[1])
                continue
            met, retry_s = True, RETRY_S[0]
            with self._tracked(connection), contextlib.suppress(OSError):
                self._feed(connection, self._outgoing[peer_id])

    def _forget_outgoing(self, peer_id: int) -> None:
        waiting = self._outgoing[peer_id]
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.get_nowait()
                self.dropped["no link"] += 1

    def _feed(self, connection: socket.socket, waiting: queue.Queue[Message | None]) -> None:
        connection.settimeout(SEND_TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(_HELLO.pack(self._token, PROTOCOL_VERSION, self.address))
        while not self._ended.is_set():
            try:
                message = waiting.get(timeout=0.1)
            except queue.Empty:
                if _is_closed(connection):
                    return
                continue
            if message is None:
                return
            if _is_closed(connection):
                self.dropped["no link"] += 1
                return
            frame = codec.encode_message(message)
            if len(frame) > self._message_bytes_max:
                self.dropped["too large"] += 1
                continue
            connection.sendall(_LENGTH.pack(len(frame)) + frame)

    # --- Hearing: one thread for each connection that was made to us ---

    def _accept(self, listener: socket.socket) -> None:
        with self._tracked(listener):
            listener.settimeout(0.2)  # where a shutdown does not wake who waits in accept
            while not self._ended.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                except OSError:
                    self._ended.wait(0.01)  # out of descriptors, perhaps; not a reason to end
                    continue
                if len(self._sockets) > CONNECTIONS_MAX:
                    self.dropped["too many connections"] += 1
                    connection.close()
                else:
                    self._spawn("hear", self._hear, connection)

    def _hear(self, connection: socket.socket) -> None:
        with self._tracked(connection), contextlib.suppress(OSError, _Closed):
            connection.settimeout(HELLO_TIMEOUT_S)
            token, version, sender = _HELLO.unpack(_read(connection, _HELLO.size))
            if not hmac.compare_digest(token, self._token):
                self._drop("a connection without the cluster's token")
                return
            if version != PROTOCOL_VERSION or sender not in self.peers:
                self._drop(f"a connection of node {sender}, version {version}, which is no peer")
                return
            connection.settimeout(None)
            while not self._ended.is_set():
                (size,) = _LENGTH.unpack(_read(connection, _LENGTH.size))
                if size > self._message_bytes_max:
                    self._drop(f"a connection that announced a message of {size} bytes")
                    return
                self._on_frame(sender, _read(connection, size))

    def _on_frame(self, sender: int, frame: bytes) -> None:
        try:
            message = codec.decode_message(frame)
        except ValueError:
            self._drop("malformed")
            return
        if message.source != sender or message.dest != self.address:
            self._drop("misaddressed")
            return
        self.deliver(message)

    def _drop(self, what: str) -> None:
        self.dropped[what] += 1
        if self.dropped[what] == 1:
            logger.warning("node %d: dropped: %s (further ones are only counted)", self.address, what)

    # --- Threads and sockets ---

    def _spawn(self, name: str, target: Any, argument: Any) -> None:
        thread = threading.Thread(target=target, args=(argument,), name=f"tcp-{self.address}-{name}", daemon=True)
        with self._lock:
            self._threads = [each for each in self._threads if each.is_alive()]
            self._threads.append(thread)
            thread.start()

    @contextlib.contextmanager
    def _tracked(self, connection: socket.socket) -> Any:
        """Keep a socket where `stop` finds it, and close it at the end."""
        with self._lock:
            self._sockets.add(connection)
            if self._ended.is_set():
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(connection)
            connection.close()


class _Closed(Exception):
    """The other side has closed the connection."""


def _read(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), 1 << 20))
        if not part:
            raise _Closed
        data += part
    return bytes(data)


def _is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed: it never sends anything, so there is nothing to read until then."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _as_endpoint(given: Any) -> str:
    if isinstance(given, tuple | list) and len(given) == 2:
        host, port = given
        return f"tcp://{f'[{host}]' if ':' in str(host) else host}:{port}"
    text = str(given)
    if "://" not in text:
        text = f"tcp://{text}"
    if not text.startswith("tcp://"):
        raise UsageError(f"this net is for tcp, not {given!r}")
    host_and_port(text)
    return text


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
