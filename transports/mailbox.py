"""A node's mailbox and a client's channel over ZeroMQ.

A node has one ROUTER for peers and one for clients, and a DEALER for each peer. It sends to a peer by its DEALER and
hears it by its ROUTER, so there is never a ROUTER facing a ROUTER. A client has one DEALER for each node.

Who speaks is proven on every connection. On tcp the gate lets in members' keys at one door and clients' at the other
(curve.py); the hello of a peer must name the node whose key has been proven; and from then on a frame counts if it
begins with the tag of that connection and comes by that connection. The routing id, which a client may choose, proves
nothing by itself; nor does the tag, but nobody else has seen it.

Wire:       hello.py and sockets.py.
Threads:    one thread owns a mailbox; only `wake` may be called from others.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import zmq

from actorraft.errors import UsageError
from actorraft.ports import Envelope, Kinds, Sent
from transports import hello
from transports.curve import CLIENTS, PEERS, Gate, listen_with, owners
from transports.endpoints import check_bind, is_loopback, join
from transports.hello import NOBODY, TAG_BYTES, Introduction
from transports.keys import Guest, Keys, fingerprint
from transports.resolver import look_up_to_bind
from transports.sockets import (
    _NOW,
    _NOW_MORE,
    _POLLIN,
    BATCH_BYTES_MAX,
    BATCH_MAX,
    BORROWED_BYTES,
    BROKEN_OFF,
    ENCRYPTED_BYTES_MAX,
    PART_BYTES_MAX,
    Drain,
    Link,
    LinkTimes,
    Sockets,
    gather,
    has,
    join_parts,
    send_parts,
    take_all,
)

LARGE_BYTES: Final = 64 << 10  # an answer of that size is counted until libzmq has written it out
LARGE_BYTES_MAX: Final = 64 << 20  # of such answers waiting for one client
HEAD_ROOM_BYTES: Final = 4 << 20  # what a peer's frame holds beside what the configuration bounds
CALLERS_MIN: Final = 4096  # so many connections are remembered before those that are gone are looked for


class _Caller(NamedTuple):
    """Who is at the other end of a connection that somebody made to this process, since its hello."""

    sender: Any  # node id of a peer, routing id of a client
    routing_id: bytes
    key: str  # proven; "" on ipc
    role: str
    said: Introduction


class _Door:
    """A ROUTER, and who has introduced himself there."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        read: Callable[[_Door, list[Envelope], bool], None],
        kind: int,
        frame_bytes_max: int,
        encrypted: bool,
    ) -> None:
        self.socket = socket
        self.drain: Drain = partial(read, self)
        self.kind = kind
        self.frame_bytes_max = frame_bytes_max
        self.encrypted = encrypted
        self.whole = False  # whether a frame comes in one part, so that further ones are what lies beside it
        self.callers: dict[bytes, _Caller] = {}  # tag -> who
        self.tags: dict[bytes, bytes] = {}  # routing id -> tag
        self.callers_max = CALLERS_MIN

    def admit(self, tag: bytes, caller: _Caller) -> None:
        """Remember who it is; what the same connection, or another life of the same node, said before is over."""
        self.forget(self.tags.get(caller.routing_id, b""))
        if self.kind == Kinds.PEER:
            for old, one in list(self.callers.items()):
                if one.sender == caller.sender:
                    self.forget(old)
        self.callers[tag] = caller
        self.tags[caller.routing_id] = tag

    def forget(self, tag: bytes) -> None:
        """Take nothing any more that begins with this tag."""
        caller = self.callers.pop(tag, None)
        if caller is not None:
            del self.tags[caller.routing_id]


class ZeroMQMailbox(Sockets):
    """A node's mailbox.

    Args:
        address: this node's id.
        incarnation: 8 random bytes, new for each life of the process.
        cluster_id: 8 bytes; nobody of another cluster is heard.
        peer_endpoint, client_endpoint: where to bind; tcp port 0 lets the system choose. None: there are none.
        frame_bytes_max: bound of a client's frame, and so of a log entry.
        keys: this node's own, its peers' and its clients'; needed on tcp.
        storage_id: of this node's folder, for its peers to compare.
        append_bytes_max: bound of what a peer's message holds, if that is more than one client's frame.
        hwm: messages queued for one peer or client; then they are dropped.
        times: heartbeats and reconnects of all links.
        plaintext_on_loopback: allow tcp without keys, where every user of this machine can read and forge what passes.
        gathers: what comes in several parts over ipc is a frame and what lies beside it; else all of it is one frame.
        lends: a large frame comes as a view of where it lies, not as bytes.

    Attributes:
        judge: asked about each peer that introduces itself, at either end; returns why it is refused, or nothing.

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
        frame_bytes_max: int,
        keys: Keys | None = None,
        storage_id: str = "",
        append_bytes_max: int = 0,
        hwm: int = 1000,
        times: LinkTimes = LinkTimes(),  # noqa: B008  # frozen
        plaintext_on_loopback: bool = False,
        gathers: bool = False,
        lends: bool = False,
    ) -> None:
        for endpoint in filter(None, (peer_endpoint, client_endpoint)):
            check_bind(endpoint, keys=keys is not None, plaintext_on_loopback=plaintext_on_loopback)
        peer_bytes_max = max(frame_bytes_max, append_bytes_max) + frame_bytes_max + HEAD_ROOM_BYTES
        super().__init__(
            introduction=Introduction(address, cluster_id, incarnation, storage_id, receive_bytes_max=peer_bytes_max),
            keys=keys,
            hwm=hwm,
            times=times,
            plaintext=plaintext_on_loopback,
        )
        self.address = address
        self._gathers = gathers
        self._lends = lends
        self._shared: list[tuple[bytes, zmq.Frame]] = []  # what the last large message to a peer was made of
        self.judge: Callable[[Introduction], str] = lambda said: ""
        self._owners: dict[str, int] = {}
        self._peers: frozenset[int] = frozenset()
        self._large: dict[bytes, deque[tuple[zmq.MessageTracker, int]]] = {}  # client -> large answers on their way
        if keys is not None:
            self._owners = owners(keys.members)
            self._gate = Gate(self._context, self._allowed, self.drop)  # before any socket that listens
            self.watch(self._gate.socket, lambda happened, signalled: self._answer_gate())
        try:
            self._peer_door, peers_at = self._open(Kinds.PEER, peer_endpoint, peer_bytes_max)
            self._client_door, clients_at = self._open(Kinds.CLIENT, client_endpoint, frame_bytes_max + (64 << 10))
        except BaseException:
            self.close()
            raise
        self.endpoints = (peers_at, clients_at)
        for door in (self._peer_door, self._client_door):
            self.watch(door.socket, door.drain)

    def _open(self, kind: int, endpoint: str | None, frame_bytes_max: int) -> tuple[_Door, str]:
        encrypted = self._keys is not None and endpoint is not None and endpoint.startswith("tcp:")
        socket = self.socket(zmq.ROUTER, ENCRYPTED_BYTES_MAX if encrypted else frame_bytes_max + (64 << 10))
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        door = _Door(socket, self._drain, kind, frame_bytes_max, encrypted)
        if endpoint is None:
            return door, ""
        door.whole = self._gathers and not endpoint.startswith("tcp:")
        if encrypted:
            assert self._keys is not None
            listen_with(socket, self._keys, PEERS if kind == Kinds.PEER else CLIENTS)
            monitor = self.monitor(socket, int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL) | BROKEN_OFF)
            self.watch(monitor, lambda happened, signalled: self._drain_refusals(monitor))
        at = endpoint
        if endpoint.startswith("tcp:"):
            host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
            name = host.removeprefix("[").removesuffix("]")
            host = look_up_to_bind(name)
            if not encrypted and not is_loopback(host):
                raise UsageError(f"{name} is {host}, which is not on the loopback: tcp needs keys there")
            if ":" in host:
                socket.setsockopt(zmq.IPV6, 1)
            at = join(host, "*" if port == "0" else port)  # libzmq's own wildcard
        try:
            socket.bind(at)
        except zmq.ZMQError as error:
            raise UsageError(f"cannot bind {endpoint}: {_why_not_bound(error)}") from error
        return door, socket.getsockopt_string(zmq.LAST_ENDPOINT)

    @property
    def incarnation(self) -> bytes:
        """A random number of this life of the process."""
        return self.introduction.incarnation

    # --- Who may speak ---

    def set_keys(self, members: Mapping[int, tuple[str, ...]], clients: Mapping[str, Guest] | None = None) -> None:
        """Believe these keys from now on; whoever is there with another one is heard no more.

        Args:
            members: node id -> public keys, the preferred one first.
            clients: public key -> who that is; None: as before.

        Raises:
            UsageError: this mailbox has no key of its own.
        """
        if self._keys is None:
            raise UsageError("a mailbox without a key of its own believes none")
        self._keys = self._keys.trusting(members, clients)
        self._owners = owners(self._keys.members)
        for door in (self._peer_door, self._client_door):
            for tag, caller in list(door.callers.items()):
                if door.encrypted and not self._still(door, caller):
                    door.forget(tag)
                    # A client sends nothing that its role, as it knows it, does not allow. Who has none any more hears
                    # that from whoever it spoke to, or with its next word.
                    if door.kind == Kinds.CLIENT and caller.key in self._keys.clients:
                        self._say(door, caller.routing_id, hello.AGAIN, tag)
        self._set_links({link.id: link.endpoint for link in self._links.values()})

    def _still(self, door: _Door, caller: _Caller) -> bool:
        assert self._keys is not None
        if door.kind == Kinds.PEER:
            return self._owners.get(caller.key) == caller.said.node_id
        guest = self._keys.clients.get(caller.key)
        return guest is not None and guest.role == caller.role

    def _allowed(self, domain: bytes) -> Container[str]:
        assert self._keys is not None
        return self._owners if domain == PEERS else self._keys.clients if domain == CLIENTS else ()

    def _drain_refusals(self, monitor: zmq.Socket[bytes]) -> None:
        """Count who gave up, or spoke another protocol, before the gate was asked."""
        with contextlib.suppress(zmq.Again):
            while True:
                monitor.recv_multipart(_NOW)
                self.drop("a connection that has proven no key")

    def _answer_gate(self) -> None:
        self._gate.answer()

    def set_peers(self, peers: Mapping[int, str]) -> None:
        """Send to these, and hear only these, from now on: node id -> peer endpoint."""
        self._set_links(peers)
        self._peers = frozenset(peers)

    def _judge(self, link: Link, said: Introduction) -> str:
        if said.node_id != link.id:
            return f"it says that it is node {said.node_id}"
        return self._wrong_with(said)

    def _wrong_with(self, said: Introduction) -> str:
        ours = self.introduction.cluster_id
        if said.cluster_id != ours:
            return f"it belongs to cluster {said.cluster_id.hex()}, and node {self.address} to {ours.hex()}"
        return self.judge(said)

    # --- Hearing ---

    def _drain(self, door: _Door, happened: list[Envelope], signalled: bool) -> None:
        """Read a ROUTER until it is empty: [routing id, tag + frame], or [routing id, tag, frame in parts]."""
        socket, callers, kind = door.socket, door.callers, door.kind
        # Asking is cheaper than being refused, and one message at a time is the rule on a quiet day.
        if not (signalled or has(socket, _POLLIN)):
            return
        receive = socket.recv
        parts_max = 2 + door.frame_bytes_max // PART_BYTES_MAX
        bytes_max = door.frame_bytes_max + TAG_BYTES
        peers = self._peers if kind == Kinds.PEER else None
        size = 0
        try:
            for taken in range(BATCH_MAX):
                if 0 < taken < 3 and not has(socket, _POLLIN):
                    return
                routing_id = receive(_NOW)
                part = receive(_NOW, False)
                view = part.buffer
                head = bytes(view[:TAG_BYTES])  # nothing is copied before its head was found good
                caller = callers.get(head)
                if caller is None or caller.routing_id != routing_id:
                    self._on_stranger(door, routing_id, head, take_all(socket, part, parts_max))
                    continue
                if peers is not None and caller.sender not in peers:
                    take_all(socket, part, 0)
                    self.drop("a message of a node that is no peer", f"node {caller.sender}")
                    continue
                if not part.more and len(view) <= bytes_max:
                    frame = bytes(view[TAG_BYTES:])
                    happened.append(Envelope(kind, caller.sender, frame))
                    size += len(frame)
                    if size > BATCH_BYTES_MAX:
                        break
                    continue
                parts = take_all(socket, part, parts_max)
                if len(parts) > parts_max or sum(map(len, parts)) > bytes_max:
                    self.drop("a message that is too large or has too many parts", f"from {caller.said.node_id}")
                    continue
                if len(parts) > 2 and door.whole and len(head) == len(parts[0]):
                    happened.append(Envelope(kind, caller.sender, gather(parts[1:])))
                    size += sum(map(len, parts))
                elif self._lends and len(parts) == 2 and len(head) == len(parts[0]):
                    happened.append(Envelope(kind, caller.sender, parts[1].buffer))
                    size += len(parts[1])
                else:
                    frame = join_parts(parts, TAG_BYTES)
                    happened.append(Envelope(kind, caller.sender, frame))
                    size += len(frame)
                if size > BATCH_BYTES_MAX:
                    break
        except zmq.Again:
            return
        self._again[door.drain] = None

    def _on_stranger(self, door: _Door, routing_id: bytes, head: bytes, parts: list[zmq.Frame]) -> None:
        """A message without the tag of its connection: somebody introduces himself, or it counts nothing."""
        if head == hello.MAGIC and len(parts) == 1:
            self._on_hello(door, routing_id, parts[0])
        elif len(head) < TAG_BYTES or len(parts) > 2 + door.frame_bytes_max // PART_BYTES_MAX:
            self.drop("a message of a form that is not ours")
        else:
            self.drop("a message on a connection whose other end has not introduced itself")
            self._say(door, routing_id, hello.AGAIN, head)

    def _on_hello(self, door: _Door, routing_id: bytes, part: zmq.Frame) -> None:
        try:
            word, tag, body = hello.hear(part.bytes)
            if word != hello.HELLO:
                return
            said = hello.decode(body)
        except ValueError as error:
            self.drop("an introduction that cannot be read", str(error))
            return
        key = _proven(part) if door.encrypted else ""
        role, wrong = "admin", ""
        if hello.agree(self.introduction.versions, said.versions) is None:
            wrong = f"it speaks {said.versions} of the wire, and node {self.address} {self.introduction.versions}"
        elif tag in door.callers and door.callers[tag].routing_id != routing_id:
            wrong = "its tag is another's"
        elif door.kind == Kinds.PEER:
            if door.encrypted and self._owners.get(key) != said.node_id:
                wrong = f"key {fingerprint(key)} is not node {said.node_id}'s"
            else:
                try:
                    wrong = self._wrong_with(said)  # whose owner may believe what is said from here on
                except ValueError as error:  # as on a link that this end has dialled
                    wrong = f"what it says of itself cannot be used: {error}"
        else:
            ours = self.introduction.cluster_id
            if said.cluster_id not in (hello.ANY_CLUSTER, ours):
                wrong = f"it looks for cluster {said.cluster_id.hex()}, and this is {ours.hex()}"
            if door.encrypted:
                assert self._keys is not None
                guest = self._keys.clients.get(key)
                if guest is None:
                    wrong = f"key {fingerprint(key)} is no client's"
                else:
                    role = guest.role
        if wrong:
            who = f"node {said.node_id}" if said.node_id != NOBODY else "a client"
            self.drop(f"an introduction of a {'peer' if door.kind == Kinds.PEER else 'client'}", f"{who}: {wrong}")
            self._say(door, routing_id, hello.REFUSED, tag, wrong.encode())
            return
        sender = said.node_id if door.kind == Kinds.PEER else routing_id
        door.admit(tag, _Caller(sender, routing_id, key, role, said))
        if len(door.callers) > door.callers_max:
            self._sweep(door)
        introduction = self.introduction._replace(receive_bytes_max=door.frame_bytes_max)
        if door.kind == Kinds.CLIENT:  # what peers say to each other is nothing to it
            introduction = introduction._replace(payload=role.encode())
        self._say(door, routing_id, hello.WELCOME, tag, hello.encode(introduction))

    def _say(self, door: _Door, routing_id: bytes, word: int, tag: bytes, body: bytes = b"") -> bool:
        """Say a word; False if there is no such connection."""
        self._again[door.drain] = None  # a send may take the signal that a message has come
        try:
            door.socket.send_multipart([routing_id, hello.say(word, tag, body)], _NOW)
        except zmq.Again:
            return True
        except zmq.ZMQError:
            return False
        return True

    def _sweep(self, door: _Door) -> None:
        """Forget those whose connection is gone, of which libzmq tells nobody."""
        for tag, caller in list(door.callers.items()):
            if not self._say(door, caller.routing_id, hello.KEEP, tag):
                door.forget(tag)
        door.callers_max = max(CALLERS_MIN, 2 * len(door.callers))

    def _on_frame(self, link: Link, frame: bytes, happened: list[Envelope]) -> None:
        self.drop("a message of a form that is not ours", f"from node {link.id}")

    # --- Sending ---

    def send_peer(self, peer_id: int, frame: bytes, beside: Sequence[bytes] = ()) -> Sent:
        """Send to a peer, never blocking.

        Args:
            beside: what goes behind the frame; over ipc each in a part of its own, which other peers may share.
        """
        if not beside:
            if self._shared:
                self._shared = []
            return self._send_link(peer_id, frame)
        link = self._links.get(peer_id)
        if link is None or not link.whole:
            return self._send_link(peer_id, b"".join((frame, *beside)))
        shared = self._shared = [(data, self._part_of(data)) for data in beside]
        return self._send_link(peer_id, frame, [part for _, part in shared])

    def _part_of(self, data: bytes) -> zmq.Frame:
        """Return the part that another peer was just sent, or a new one; a large one borrows the bytes themselves."""
        for known, part in self._shared:
            if known is data:
                return part
        return zmq.Frame(data, copy=len(data) < BORROWED_BYTES)

    def is_gone(self, client: bytes) -> bool:
        """Return whether a client's connection has ended, of which libzmq tells nobody who does not send."""
        door = self._client_door
        tag = door.tags.get(client)
        if tag is None or self._say(door, client, hello.KEEP, tag):
            return tag is None
        door.forget(tag)
        return True

    def role(self, client: bytes) -> str:
        """Return what a client's key allows; of one that is gone, as little as any."""
        door = self._client_door
        if not door.encrypted:
            return "admin"  # where nobody proves anything, nobody is less
        caller = door.callers.get(door.tags.get(client, b""))
        return "read" if caller is None else caller.role

    def key(self, client: bytes) -> str:
        """Return the public key that a client has proven; "" where no keys are needed, or it is gone."""
        caller = self._client_door.callers.get(self._client_door.tags.get(client, b""))
        return "" if caller is None else caller.key

    def try_send_client(self, client: bytes, frame: bytes, beside: Sequence[bytes] = ()) -> bool | None:
        """Answer a client, never blocking; False if its queue is full now, None if it can never have it.

        Args:
            beside: what a channel that gathers gets behind the frame, as one with it; not copied.
        """
        sent = self.send_client(client, frame, beside)
        return None if sent is Sent.GONE or sent is Sent.TOO_LARGE else sent is Sent.LEFT

    def send_client(self, client: bytes, frame: bytes, beside: Sequence[bytes] = ()) -> Sent:
        """Answer a client, never blocking."""
        door = self._client_door
        self._again[door.drain] = None  # a send may take the signal that a message has come
        send = door.socket.send
        size = len(frame)
        if beside:
            if door.encrypted:  # there a large frame is in several parts itself
                frame, beside = b"".join((frame, *beside)), ()
            size += sum(map(len, beside))
        large = size >= LARGE_BYTES
        if large:
            caller = door.callers.get(door.tags.get(client, b""))
            if caller is not None and size > caller.said.receive_bytes_max:
                takes = f"{size} bytes for a client that takes {caller.said.receive_bytes_max}"
                self.drop("an answer that is too large, unsent", takes)
                return Sent.TOO_LARGE
            if not self._has_room(client, size):
                self.counts["answers not sent: full"] += 1
                return Sent.FULL
        try:
            send(client, _NOW_MORE)
            if beside:
                send(frame, _NOW_MORE)
                for part in beside:
                    out = send(part, _NOW if part is beside[-1] else _NOW_MORE, False, True)
                    assert out is not None
                    self._large[client].append((out, len(part)))
            elif large:
                tracker = send_parts(door.socket, frame, not door.encrypted, track=True)
                assert tracker is not None
                self._large[client].append((tracker, size))
            else:
                send(frame, _NOW)
        except zmq.Again:
            self.counts["answers not sent: full"] += 1
            return Sent.FULL
        except zmq.ZMQError:
            self.counts["answers not sent: gone"] += 1
            return Sent.GONE
        return Sent.LEFT

    def _has_room(self, client: bytes, size: int) -> bool:
        """Whether a large answer may wait for a client: ZeroMQ bounds messages, and these would be gigabytes."""
        for one, waiting in list(self._large.items()):
            while waiting and waiting[0][0].done:
                waiting.popleft()
            if not waiting:
                del self._large[one]
        waiting = self._large.setdefault(client, deque())
        return not waiting or sum(bytes_ for _, bytes_ in waiting) + size <= LARGE_BYTES_MAX


def _why_not_bound(error: zmq.ZMQError) -> str:
    """Say what is wrong with an address, and what to do."""
    match error.errno:
        case errno.EADDRINUSE:
            return "another process listens there, perhaps this node already: end it, or listen at another port"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address: listen at one that it has; what others dial is advertised"
        case errno.EACCES:
            return "this user may not: ports below 1024 are root's"
    return str(error)


def _proven(part: zmq.Frame) -> str:
    """Return the key that the gate has let in on the connection of this part."""
    with contextlib.suppress(KeyError, zmq.ZMQError):
        user = part.get("User-Id")
        if isinstance(user, str):
            return user
    return ""


class ZeroMQClientChannel(Sockets):
    """A client's links: one DEALER for each node.

    Args:
        keys: the client's own, and the nodes'; needed on tcp.
        cluster_id: which cluster is meant; without one, whichever answers.
        message_bytes_max: bound of what a node may send.
        gathers: what comes in several parts over ipc is a frame and what lies beside it; else all of it is one frame.
    """

    def __init__(
        self,
        *,
        keys: Keys | None = None,
        cluster_id: bytes = b"",
        message_bytes_max: int = 64 << 20,
        hwm: int = 1000,
        times: LinkTimes = LinkTimes(),  # noqa: B008  # frozen
        plaintext_on_loopback: bool = False,
        gathers: bool = False,
    ) -> None:
        super().__init__(
            introduction=Introduction(
                NOBODY, cluster_id or hello.ANY_CLUSTER, os.urandom(8), receive_bytes_max=message_bytes_max
            ),
            keys=keys,
            hwm=hwm,
            times=times,
            plaintext=plaintext_on_loopback,
        )
        self._gathers = gathers

    def set_endpoints(self, endpoints: Mapping[Any, str]) -> None:
        """Talk to these from now on: node id (or whatever else names it) -> client endpoint."""
        self._link(endpoints)

    def set_keys(self, members: Mapping[Any, tuple[str, ...]]) -> None:
        """Believe these nodes' keys from now on: node id, or whatever names it -> public keys, the preferred first."""
        if self._keys is None:
            raise UsageError("a channel without a key of its own believes none")
        self._keys = self._keys.trusting(members)
        self._link({link.id: link.endpoint for link in self._links.values()})

    def _link(self, endpoints: Mapping[Any, str]) -> None:
        # Whatever was asked on a link that ends here is answered to nobody, though the node may lead on.
        self._unsaid += [Envelope(Kinds.DISCONNECTED, link_id) for link_id in self._set_links(endpoints)]

    def _judge(self, link: Link, said: Introduction) -> str:
        if self.introduction.cluster_id not in (hello.ANY_CLUSTER, said.cluster_id):
            return f"it belongs to cluster {said.cluster_id.hex()}, not {self.introduction.cluster_id.hex()}"
        return ""

    def _on_frame(self, link: Link, frame: bytes, happened: list[Envelope]) -> None:
        happened.append(Envelope(Kinds.FRAME, link.id, frame))

    def send(self, node_id: Any, frame: bytes, beside: Sequence[zmq.Frame] = ()) -> bool:
        """Send to a node, never blocking; False if it did not leave.

        Args:
            beside: what the other end gets behind the frame, as one with it; made by `part`.
        """
        link = self._links.get(node_id)
        if link is not None and link.drain is not None:
            self._again[link.drain] = None  # a send may take the signal that a message has come
        return self._send_link(node_id, frame, beside) is Sent.LEFT

    @staticmethod
    def part(buffer: Any) -> zmq.Frame:
        """Return a copy of a buffer, to be sent without a further one; from any thread."""
        return zmq.Frame(buffer, copy=True)
