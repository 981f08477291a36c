"""The gate: who may open a connection to this process over tcp, decided by the key that the other side has proven.

libzmq asks whoever answers at inproc://zeromq.zap.01 in the same context; without an answerer it lets everybody in who
knows the server's public key. So the gate is bound before any socket that listens, each listening socket names a
domain, and ZAP_ENFORCE_DOMAIN refuses whatever the gate has not answered. The answer's User-Id is the key itself: the
mailbox takes from it who speaks, and never from what a frame claims.

Source:     ZAP (RFC 27 of ZeroMQ); libzmq's manual, zmq_curve.
Threads:    the mailbox's own: the lists may change between two waits without a lock.
Not here:   which node or client a key is (mailbox.py); encryption (libzmq, libsodium).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any, Final

import zmq
from zmq.utils import z85

from transports.keys import Keys, fingerprint

PEERS: Final = b"peers"
CLIENTS: Final = b"clients"
_ADDRESS: Final = "inproc://zeromq.zap.01"
_REQUEST_PARTS: Final = 9  # [envelope, "", version, request id, domain, address, identity, mechanism, public key]


def listen_with(socket: zmq.Socket[bytes], keys: Keys, domain: bytes) -> None:
    """Have a socket that is about to be bound take proven connections of this domain only."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret.encode())
    socket.setsockopt(zmq.ZAP_DOMAIN, domain)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def dial_with(socket: zmq.Socket[bytes], keys: Keys, server: str) -> None:
    """Have a socket that is about to connect speak only to who proves the key `server`."""
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.own.public.encode())
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret.encode())
    socket.setsockopt(zmq.CURVE_SERVERKEY, server.encode())


class Gate:
    """Answers libzmq's question for each connection; nobody is let in whom no list names.

    Args:
        context: of the sockets that listen.
        allowed: domain -> the public keys that may connect; looked at for each connection, so it may change.
        drop: told of each refusal: a reason, of which there are few, and its details.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        allowed: Callable[[bytes], Container[str]],
        drop: Callable[[str, str], Any],
    ) -> None:
        self._allowed = allowed
        self._drop = drop
        self.socket = context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind(_ADDRESS)

    def answer(self) -> None:
        """Answer all that wait; never blocks."""
        while True:
            try:
                request = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            user = self._judge(request)
            verdict = (b"200", b"OK", user) if user else (b"400", b"no", b"")
            self.socket.send_multipart(
                [request[0], b"", b"1.0", request[3] if len(request) > 3 else b"", *verdict, b""]
            )

    def _judge(self, request: list[bytes]) -> bytes:
        """Return the proven key, as text; nothing if it is refused."""
        if len(request) != _REQUEST_PARTS or request[7] != b"CURVE" or len(request[8]) != 32:
            self._drop("a connection without a key", f"from {_address(request)}")
            return b""
        user = z85.encode(request[8])
        public = user.decode()
        if public not in self._allowed(request[4]):
            self._drop(
                "a connection with a key that is not allowed",
                f"key {fingerprint(public)} at the door for {request[4].decode(errors='replace')}, "
                f"from {_address(request)}",
            )
            return b""
        return user


def _address(request: list[bytes]) -> str:
    return request[5].decode(errors="replace") if len(request) > 5 else "an unknown address"


def owners(members: Mapping[int, tuple[str, ...]]) -> dict[str, int]:
    """Return public key -> node id."""
    return {public: node_id for node_id, publics in members.items() for public in publics}
