"""What a node's mailbox and a client's channel have in common: one wait for everything, and links that are watched.

A link is one DEALER that this process dials. It is up once the other end has been heard: on tcp its key is proven by
CURVE, and on every connection both ends introduce themselves before any frame counts (hello.py). Every send is without
waiting: what does not leave at once is dropped, and its owner sends again by itself. Each link is watched by a socket
monitor, which sees a SIGKILL after about a millisecond.

Why poll on descriptors: zmq_poll over a dozen sockets costs 11 µs from Python, poll(2) on their descriptors 1 µs. A
descriptor is readable only until the signals behind it are taken, and a send takes signals too; so a socket is always
read until it says that it is empty, and one that was sent on, or not emptied, is looked at again before the next wait.

Wire:       tag + frame in one part; [tag, frame] if the frame is too large to be copied for that; on tcp such a frame
            is cut into parts of PART_BYTES_MAX. What listens sends frames bare. libzmq takes nothing longer than a part
            from who has proven no key, so a stranger costs that much and no more.
Source:     docs/decisions; libzmq's manual, zmq_setsockopt and zmq_socket_monitor.
Threads:    one thread owns the sockets; only `wake` may be called from others.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import select
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import zmq

from actorraft.descriptors import reserved
from actorraft.errors import UsageError
from actorraft.loggers import guarded_logger
from actorraft.ports import Envelope, Gathered, Kinds, Sent
from actorraft.steady import monotonic
from transports import hello
from transports.curve import dial_with
from transports.endpoints import check_connect, host_and_port, join, split
from transports.keys import Keys, fingerprint
from transports.resolver import Resolver, is_number

logger = guarded_logger("actorraft.transports")

BATCH_MAX: Final = 512  # messages taken from one socket in one wait
BATCH_BYTES_MAX: Final = 64 << 20
JOINED_BYTES_MAX: Final = 8 << 10  # of a frame that travels in one part with its tag: a part costs 1.5 us at each end
BORROWED_BYTES: Final = 256 << 10  # a part from here on is not copied: below, to be told when it is out costs more
PART_BYTES_MAX: Final = 64 << 10  # of a larger frame on tcp; also what a stranger can have a node hold for him
ENCRYPTED_BYTES_MAX: Final = PART_BYTES_MAX + 1024  # of a part, with what CURVE adds
RECONNECT_MIN_MS: Final = 5
CONNECT_MS: Final = 1000  # for a connection, and for its handshake; more where links are slow
GREET_S: Final = (0.02, 1.0)  # first and longest wait before a hello that was not answered, or refused, is said again
LOOK_S: Final = 0.02  # how often links that are not up are looked after
CALM_S: Final = 1.0  # and the others
BROKEN_OFF_MAX: Final = 3  # a node that dies breaks one off, or two; who has not the right key breaks off all
SAYS_NOTHING: Final = "nothing; it takes connections, so its process is there, and is paused, hangs or is too busy"
KEYS_DO_NOT_FIT: Final = (
    "this process's key is not allowed there, or whoever answers has not the key of that node (a member that was "
    "removed is let in no more, nor a client that was revoked; if keys were rotated while this one was away, fetch "
    "client.toml anew, or put that member's public_key, as client.toml has it elsewhere, into node.toml)"
)
ASK_S: Final = 0.5  # how often the name of a host that cannot be reached is asked for again

# Plain numbers: pyzmq's own are enums, and each operation on one costs as much as a send.
_NOW: Final = int(zmq.NOBLOCK)
_NOW_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS: Final = zmq.EVENTS  # not as an int, which pyzmq would turn into this each time
_POLLIN: Final = int(zmq.POLLIN)
_POLLOUT: Final = int(zmq.POLLOUT)

_EVENT = struct.Struct("=hi")
_WAKE = (1).to_bytes(8, sys.byteorder)  # what an eventfd takes; a pipe takes anything
REFUSED: Final = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
BROKEN_OFF: Final = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
_EVENTS_WATCHED: Final = int(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED) | REFUSED | BROKEN_OFF
_inproc_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True)
class LinkTimes:
    """How soon a link that carries nothing is found dead, and how long is waited between two tries to mend it."""

    heartbeat_ms: int = 200
    timeout_ms: int = 600
    reconnect_max_ms: int = 100


def set_options(socket: zmq.Socket[bytes], *, message_bytes_max: int, hwm: int, times: LinkTimes) -> None:
    """Set what every socket of ours has: bounds, no lingering, and links that notice when they are dead."""
    socket.linger = 0
    socket.sndhwm = hwm
    socket.rcvhwm = hwm
    socket.maxmsgsize = message_bytes_max
    socket.setsockopt(zmq.HEARTBEAT_IVL, times.heartbeat_ms)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, times.timeout_ms)
    socket.setsockopt(zmq.HEARTBEAT_TTL, times.timeout_ms)
    socket.setsockopt(zmq.HANDSHAKE_IVL, max(CONNECT_MS, times.timeout_ms))
    socket.setsockopt(zmq.CONNECT_TIMEOUT, max(CONNECT_MS, times.timeout_ms))
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MIN_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, times.reconnect_max_ms)


Drain = Callable[[list[Envelope], bool], None]  # told whether its descriptor has just said that something is there


def has(socket: zmq.Socket[bytes], event: int) -> bool:
    """Whether a socket is ready; also makes libzmq look at what has come in meanwhile."""
    events: Any = socket.getsockopt(_EVENTS)
    return bool(events & event)


def take_all(socket: zmq.Socket[bytes], part: zmq.Frame, parts_max: int) -> list[zmq.Frame]:
    """Take the parts of a message behind its first; of one with too many, one more than `parts_max` comes back."""
    receive = socket.recv
    parts = [part]
    while part.more:
        part = receive(_NOW, False)
        if len(parts) <= parts_max:  # somebody may send a million parts; one too many is enough to know
            parts.append(part)
    return parts


def join_parts(parts: list[zmq.Frame], skip_bytes: int) -> bytes:
    """Return what a message holds behind its first bytes."""
    if len(parts) == 1:
        return bytes(parts[0].buffer[skip_bytes:])
    if len(parts) == 2 and len(parts[0]) == skip_bytes:
        return bytes(parts[1].buffer)
    return b"".join([parts[0].buffer[skip_bytes:], *(part.buffer for part in parts[1:])])


def gather(parts: list[zmq.Frame]) -> Gathered:
    """Return the first part as a frame, with the others beside it, where they lie."""
    frame = Gathered(parts[0].buffer)
    frame.beside = [part.buffer for part in parts[1:]]
    return frame


class Link:
    """One DEALER and its monitor, and how far it is: dialled, connected, up (both ends have introduced themselves).

    Attributes:
        keys: the public keys that prove the other end, the preferred one first; none on ipc.
        tag: of the connection that is there now; b"" before the first.
        takes_bytes: the other end takes no longer frame.
    """

    def __init__(self, link_id: Any, endpoint: str, keys: tuple[str, ...]) -> None:
        self.id = link_id
        self.endpoint = endpoint
        self.keys = keys
        scheme, self.host, self.port = split(endpoint)[0], "", 0
        if scheme == "tcp":
            self.host, self.port = host_and_port(endpoint)
        self.named = bool(self.host) and not is_number(self.host)
        self.dealer: zmq.Socket[bytes] | None = None
        self.monitor: zmq.Socket[bytes] | None = None
        self.drain: Drain | None = None  # reads the DEALER
        self.connected = False  # as the monitor last said
        self.up = False
        self.tag = b""
        self.takes_bytes = 0
        self.tries = 0  # how often it was dialled: which address and key are tried next
        self.addresses: tuple[str, ...] = ()  # what the name was when it was dialled
        self.dialled_s = 0.0  # when that was
        self.ask_s = 0.0  # when to ask for the name again
        self.keyless = False  # it was not dialled, since nobody knows its key
        self.refused = False  # it was told so, and libzmq does not connect again by itself
        self.broken_off = 0  # handshakes one after another that the other end did not finish
        self.greet_s = 0.0  # when to say hello again
        self.greet_wait_s = GREET_S[0]

    @property
    def whole(self) -> bool:
        """Whether a large frame travels in one part."""
        return not self.host


class Sockets:
    """One wait for everything, and links that are watched."""

    def __init__(
        self, *, introduction: hello.Introduction, keys: Keys | None, hwm: int, times: LinkTimes, plaintext: bool
    ) -> None:
        self.counts: Counter[str] = Counter()  # what was dropped, by reason
        self.introduction = introduction
        self.introductions: dict[Any, hello.Introduction] = {}  # link id -> what its other end last said
        self.versions: dict[Any, int] = {}  # link id -> version of the wire that both ends speak
        self.refusals: dict[Any, str] = {}  # link id -> why its other end does not let this process in
        self._keys = keys
        self._hwm = hwm
        self._times = times
        self._plaintext = plaintext
        self._gathers = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._links: dict[Any, Link] = {}
        self._monitored: set[zmq.Socket[bytes]] = set()
        self._drains: dict[int, Drain] = {}  # descriptor -> reads its socket empty
        self._again: dict[Drain, None] = {}  # may hold more, without a signal
        self._unsaid: list[Envelope] = []  # happened between two waits
        self._poll = select.poll()
        self._look_s = math.inf  # when to look after the links
        self._resolver = Resolver(self._resolved)
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
        if self._unsaid:
            happened, self._unsaid = self._unsaid, happened
        now_s = monotonic()
        if now_s >= self._look_s:
            self._look_after_links(now_s, happened)
        if self._again:
            again, self._again = self._again, {}
            for drain in again:
                drain(happened, False)
        if happened or self._again:
            timeout_s = 0.0
        elif timeout_s > self._look_s - now_s:
            timeout_s = max(0.0, self._look_s - now_s)
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

    def watch(self, socket: zmq.Socket[bytes], drain: Drain) -> None:
        """Have `drain` called whenever something may have come for a socket."""
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

    def drop(self, what: str, detail: str = "") -> None:
        """Count what is dropped; say so once for each reason, with the details of the first."""
        self.counts[what] += 1
        if self.counts[what] == 1:
            logger.warning("dropped %s%s (further ones are only counted)", what, detail and f": {detail}")

    # --- Links ---

    def unresolved(self) -> dict[str, str]:
        """As Channel.unresolved."""
        return self._resolver.unanswered()

    def socket(self, kind: int, message_bytes_max: int) -> zmq.Socket[bytes]:
        """Make a socket with our options."""
        socket = self._context.socket(kind)
        set_options(socket, message_bytes_max=message_bytes_max, hwm=self._hwm, times=self._times)
        return socket

    def monitor(self, socket: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
        """Return a socket that is told what happens to the connections of another."""
        monitor = self._context.socket(zmq.PAIR)
        monitor.linger = 0
        monitor.rcvhwm = 0  # no event may be lost: the last one says whether there is a link
        address = f"inproc://monitor-{next(_inproc_numbers)}"
        socket.monitor(address, events)
        self._monitored.add(socket)
        monitor.connect(address)
        return monitor

    def introduce(self, payload: bytes) -> None:
        """Say this of this end on every connection from now on."""
        if len(payload) > hello.PAYLOAD_BYTES_MAX:
            raise UsageError(f"an introduction of {len(payload)} bytes is over {hello.PAYLOAD_BYTES_MAX}")
        self.introduction = self.introduction._replace(payload=payload)

    def _set_links(self, endpoints: Mapping[Any, str]) -> list[Any]:
        """Keep a link to each of these, and drop those that are no longer named.

        Returns:
            Whose link was up and has ended by that, whether there will be another one or not.
        """
        ended: list[Any] = []
        for link_id, endpoint in endpoints.items():
            known = self._links.get(link_id)
            if known is not None and known.endpoint == endpoint:
                continue  # its directory may be gone, and it with that: whoever has the link will hear
            check_connect(endpoint, keys=self._keys is not None, plaintext_on_loopback=self._plaintext)
        for link in list(self._links.values()):
            if endpoints.get(link.id) != link.endpoint or self._proofs(link.id, link.endpoint) != link.keys:
                self.refusals.pop(link.id, None)
                if link.up:
                    ended.append(link.id)
                self._hang_up(link)
                del self._links[link.id]
        for link_id, endpoint in endpoints.items():
            if link_id not in self._links:
                self._links[link_id] = link = Link(link_id, endpoint, self._proofs(link_id, endpoint))
                self._dial(link)
        return ended

    def _proofs(self, link_id: Any, endpoint: str) -> tuple[str, ...]:
        """Return the keys of which the other end has to prove one; none: it needs none, or nobody knows them yet."""
        if self._keys is None or not endpoint.startswith("tcp:"):
            return ()
        return self._keys.members.get(link_id, ())

    def _dial(self, link: Link) -> None:
        """Connect a new DEALER, by number, whatever the endpoint says; later, if number or key is not known yet."""
        now_s = link.dialled_s = monotonic()
        self._look_s = min(self._look_s, now_s + LOOK_S)
        if self._keys is not None and link.host and not link.keys:
            if link.keyless:  # as it was at the try before: news of a member and of its key are not always one
                self.drop("a link to a node whose key is not known", f"node {link.id} at {link.endpoint}")
            link.keyless = True
            return
        endpoint = link.endpoint
        if link.named:
            link.addresses = self._resolver.addresses.get(link.host, ())
            if not link.addresses:
                if why := self._resolver.failures.get(link.host):
                    self.drop("a link to a host whose name has no address", f"{link.host}: {why}")
                link.ask_s = now_s + ASK_S
                self._resolver.ask(link.host)
                return
            endpoint = join(link.addresses[link.tries % len(link.addresses)], link.port)
        try:
            with reserved():
                dealer = self.socket(zmq.DEALER, self._link_bytes_max(link))
                try:
                    monitor = self.monitor(dealer, _EVENTS_WATCHED)
                except zmq.ZMQError:
                    self._monitored.discard(dealer)
                    dealer.close(linger=0)
                    raise
        except zmq.ZMQError as error:  # no descriptors: not a reason to end, they may come free
            self.drop("a link that cannot be opened", str(error))
            return
        dealer.setsockopt(zmq.IMMEDIATE, 1)  # else what is queued for a dead peer is replayed to its next life
        if link.host and ":" in host_and_port(endpoint)[0]:
            dealer.setsockopt(zmq.IPV6, 1)
        if self._keys is not None and link.keys:
            dial_with(dealer, self._keys, link.keys[link.tries % len(link.keys)])
        link.tries += 1
        link.refused = False
        link.dealer, link.monitor = dealer, monitor
        link.drain = partial(self._drain_dealer, link)
        self.watch(monitor, lambda happened, _: self._drain_monitor(link, happened))
        self.watch(dealer, link.drain)
        dealer.connect(endpoint)

    def _link_bytes_max(self, link: Link) -> int:
        return ENCRYPTED_BYTES_MAX if link.keys else self.introduction.receive_bytes_max + (64 << 10)

    def _hang_up(self, link: Link) -> None:
        link.connected = link.up = False
        if link.dealer is None or link.monitor is None:
            return
        self._unwatch(link.monitor)
        self._unwatch(link.dealer)
        self._monitored.discard(link.dealer)
        link.dealer.disable_monitor()
        link.dealer.close(linger=0)
        link.monitor.close(linger=0)
        link.dealer = link.monitor = link.drain = None

    def _resolved(self) -> None:
        self._look_s = 0.0
        self.wake()

    def _look_after_links(self, now_s: float, happened: list[Envelope]) -> None:
        """Do what no descriptor says is due: hellos to repeat, names that are known now, other addresses to try."""
        self._look_s = math.inf
        for link in self._links.values():
            if link.up and link.drain is not None:
                # A send may have taken the signal of a word that has come; on a peer's link nobody waits for one.
                self._again[link.drain] = None
                wait_s = CALM_S
            elif link.connected:
                if now_s >= link.greet_s:
                    self._greet(link)
                wait_s = LOOK_S
            elif link.named or len(link.keys) > 1 or link.dealer is None or link.refused:
                self._try_elsewhere(link, now_s)
                wait_s = ASK_S if link.dealer is not None or link.addresses else LOOK_S
            else:
                continue  # libzmq connects again by itself, and the monitor says so
            self._look_s = min(self._look_s, now_s + wait_s)

    def _try_elsewhere(self, link: Link, now_s: float) -> None:
        """A link that is not there: ask for its name again, and dial what was not dialled last."""
        if link.named and now_s >= link.ask_s:
            link.ask_s = now_s + ASK_S
            self._resolver.ask(link.host)
        known = self._resolver.addresses.get(link.host, ())
        long_since = now_s - link.dialled_s >= CONNECT_MS / 1000
        elsewhere = link.dealer is None or link.refused or len(known) > 1 or len(link.keys) > 1
        if known != link.addresses or (long_since and elsewhere):
            self._hang_up(link)
            self._dial(link)

    # --- Introductions ---

    def _greet(self, link: Link) -> None:
        """Say who this is, on a connection that is there; nothing counts before it is answered."""
        assert link.dealer is not None
        assert link.drain is not None
        link.tag = os.urandom(hello.TAG_BYTES)
        link.greet_s = monotonic() + link.greet_wait_s
        link.greet_wait_s = min(2 * link.greet_wait_s, GREET_S[1])
        self._look_s = min(self._look_s, link.greet_s)
        try:
            link.dealer.send(hello.say(hello.HELLO, link.tag, hello.encode(self.introduction)), _NOW)
        except zmq.Again:
            link.greet_s = monotonic() + LOOK_S
        self._again[link.drain] = None

    def _on_word(self, link: Link, data: bytes, happened: list[Envelope]) -> None:
        try:
            word, tag, body = hello.hear(data)
            if word == hello.KEEP or tag != link.tag:
                return  # what belongs to an earlier connection says nothing of this one
            if word == hello.WELCOME and not link.up:
                self._on_welcome(link, hello.decode(body), happened)
            elif word == hello.REFUSED:
                why = self.refusals[link.id] = body[:500].decode(errors="replace")
                self.drop("a refusal by a node", f"node {link.id} at {link.endpoint}: {why}")
            elif word == hello.AGAIN and link.up:
                self._set_down(link, happened)
                self._greet(link)
        except ValueError as error:
            self.drop("a word that cannot be read", f"from node {link.id}: {error}")

    def _on_welcome(self, link: Link, said: hello.Introduction, happened: list[Envelope]) -> None:
        version = hello.agree(self.introduction.versions, said.versions)
        if version is None:
            wrong = f"it speaks {said.versions} of the wire, and this process {self.introduction.versions}"
        else:
            wrong = self._judge(link, said)
            if link.dealer is None:
                return  # its owner has learned from that where else the node is
        if wrong:
            self.drop("a node that is not the one that was dialled", f"node {link.id} at {link.endpoint}: {wrong}")
            return
        assert version is not None
        link.up = True
        link.takes_bytes = said.receive_bytes_max
        link.greet_wait_s = GREET_S[0]
        self.introductions[link.id] = said
        self.refusals.pop(link.id, None)
        self.versions[link.id] = version
        happened.append(Envelope(Kinds.CONNECTED, link.id, said.payload))

    def _judge(self, link: Link, said: hello.Introduction) -> str:
        """Return why the other end is not whom this process wants; nothing if it is."""
        raise NotImplementedError

    def _set_down(self, link: Link, happened: list[Envelope]) -> None:
        if link.up:
            link.up = False
            happened.append(Envelope(Kinds.DISCONNECTED, link.id))

    def _drain_monitor(self, link: Link, happened: list[Envelope]) -> None:
        try:
            while link.monitor is not None:
                event, number = _EVENT.unpack(link.monitor.recv_multipart(_NOW)[0])
                if event & BROKEN_OFF and number == errno.EAGAIN:  # the other end let the time for it go by
                    self.refusals[link.id] = SAYS_NOTHING
                    continue
                if event & (REFUSED | BROKEN_OFF):
                    link.refused = link.refused or bool(event & REFUSED)  # a key that is new may be known there soon
                    self._look_s = min(self._look_s, monotonic() + LOOK_S)
                    link.broken_off += 1
                    if event & REFUSED or link.broken_off >= BROKEN_OFF_MAX:
                        key = f", whose key is {fingerprint(link.keys[0])}" if link.keys else ""
                        where = f"with node {link.id} at {link.endpoint}{key}: {KEYS_DO_NOT_FIT}"
                        self.drop("a handshake that failed", where)
                        self.refusals[link.id] = KEYS_DO_NOT_FIT
                    continue
                connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
                if not connected and link.up and link.drain is not None:
                    link.drain(happened, False)  # what came before the end is told before the end
                self._set_down(link, happened)
                link.connected = connected
                if connected:
                    link.broken_off = 0
                    link.greet_wait_s = GREET_S[0]
                    self._greet(link)
                self._look_s = min(self._look_s, monotonic() + LOOK_S)
        except zmq.Again:
            return

    # --- Passing frames ---

    def _drain_dealer(self, link: Link, happened: list[Envelope], signalled: bool) -> None:
        dealer = link.dealer
        if dealer is None or not (signalled or has(dealer, _POLLIN)):
            return
        size = 0
        try:
            for taken in range(BATCH_MAX):
                if 0 < taken < 3 and not has(dealer, _POLLIN):
                    return
                part = dealer.recv(_NOW, False)
                if part.more:
                    parts_max = 1 + self.introduction.receive_bytes_max // PART_BYTES_MAX
                    parts = take_all(dealer, part, parts_max)
                    frame = gather(parts) if self._gathers and link.whole else join_parts(parts, 0)
                else:
                    frame = part.bytes
                if frame.startswith(hello.MAGIC):
                    self._on_word(link, frame, happened)
                    if link.dealer is not dealer:
                        return
                elif not link.up:
                    self.drop("an answer of a node that has not introduced itself", f"node {link.id}")
                else:
                    self._on_frame(link, frame, happened)
                    size += len(frame) if not part.more else sum(map(len, parts))
                    if size > BATCH_BYTES_MAX:
                        break
        except zmq.Again:
            return
        assert link.drain is not None
        self._again[link.drain] = None

    def _on_frame(self, link: Link, frame: bytes, happened: list[Envelope]) -> None:
        """Take a frame that came back on a link."""
        raise NotImplementedError

    def _send_link(self, link_id: Any, frame: bytes, beside: Sequence[zmq.Frame] = ()) -> Sent:
        link = self._links.get(link_id)
        if link is None or not link.up:
            self.counts["not sent: no link"] += 1
            return Sent.GONE
        if beside and not link.whole:
            frame, beside = b"".join((frame, *(part.buffer for part in beside))), ()
        size = len(frame)
        joined = size <= JOINED_BYTES_MAX and not beside
        if beside:
            size += sum(map(len, beside))
        if size > link.takes_bytes:
            said = f"{size} bytes; node {link_id} takes {link.takes_bytes}"
            self.drop("a frame that is too large, unsent", said)
            return Sent.TOO_LARGE
        dealer = link.dealer
        assert dealer is not None
        first, flags = (link.tag + frame, _NOW) if joined else (link.tag, _NOW_MORE)
        try:
            dealer.send(first, flags)
        except zmq.Again:
            # libzmq may not have looked whether there is room again; being asked for its events makes it look.
            if not has(dealer, _POLLOUT):
                self.counts["not sent: full"] += 1
                return Sent.FULL
            try:
                dealer.send(first, flags)
            except zmq.Again:
                self.counts["not sent: full"] += 1
                return Sent.FULL
        if joined:
            return Sent.LEFT
        try:
            if beside:
                dealer.send(frame, _NOW_MORE)
                for part in beside[:-1]:
                    dealer.send(part, _NOW_MORE, False)
                dealer.send(beside[-1], _NOW, False)
            else:
                send_parts(dealer, frame, link.whole)
        except zmq.Again:  # the link broke between the parts; libzmq has dropped the first
            self.counts["not sent: no link"] += 1
            return Sent.GONE
        return Sent.LEFT

    def close(self, linger_s: float = 0.0) -> None:
        """Close every socket; what was not sent within `linger_s` is lost. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._resolver.close()
        for link in list(self._links.values()):
            self._hang_up(link)
        self._links.clear()
        for socket in self._monitored:  # whoever only closes it leaves its monitor's descriptor open
            socket.disable_monitor()
        self._context.destroy(linger=round(linger_s * 1000))
        self._drains.clear()
        self._again.clear()
        os.close(self._wake_r)
        if self._wake_w != self._wake_r:
            os.close(self._wake_w)


def send_parts(socket: zmq.Socket[bytes], frame: bytes, whole: bool, track: bool = False) -> zmq.MessageTracker | None:
    """Send a frame as the last part of a message, or as its last parts.

    Args:
        whole: in one part, however large it is.
        track: do not copy it, and return what says when libzmq has written it out.

    Raises:
        zmq.Again: the link is gone.
    """
    copy = not track
    if whole or len(frame) <= PART_BYTES_MAX:
        return socket.send(frame, _NOW, copy and len(frame) < BORROWED_BYTES, track)
    tracker = None
    parts = memoryview(frame)
    last = (len(frame) - 1) // PART_BYTES_MAX * PART_BYTES_MAX
    for start in range(0, last, PART_BYTES_MAX):
        tracker = socket.send(parts[start : start + PART_BYTES_MAX], _NOW_MORE, copy, track)
    socket.send(parts[last:], _NOW)
    return tracker
