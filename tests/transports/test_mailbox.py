"""The ZeroMQ mailbox and the client's channel: links, strangers, bounds, and peers that die and come back."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import select
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from actorraft.errors import UsageError
from actorraft.ports import Envelope, Gathered, Kinds, Sent
from tests.leftovers import nothing_new, resources
from transports import hello
from transports import mailbox as mailbox_module
from transports import sockets as sockets_module
from transports.curve import dial_with
from transports.endpoints import check_bind, check_connect, host_and_port, is_loopback
from transports.hello import Introduction
from transports.keys import Guest, KeyPair, Keys, fingerprint
from transports.sockets import BATCH_MAX, JOINED_BYTES_MAX, PART_BYTES_MAX, LinkTimes
from transports.zeromq import ZeroMQClientChannel, ZeroMQMailbox

CLUSTER = b"cluster1"
PAIRS = [KeyPair.generate() for _ in range(4)]
CLIENT = KeyPair.generate()
MEMBERS = {node_id: (pair.public,) for node_id, pair in enumerate(PAIRS)}


class World:
    """Mailboxes and channels over one transport, closed together."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.directory = tempfile.mkdtemp(prefix="mail-")
        self.open: list[Any] = []

    def keys(self, pair: KeyPair) -> Keys | None:
        return Keys(pair, MEMBERS, {CLIENT.public: Guest("client", "admin")}) if self.scheme == "tcp" else None

    def mailbox(self, address: int, **options: Any) -> ZeroMQMailbox:
        endpoints = {"peer_endpoint": "tcp://127.0.0.1:0", "client_endpoint": "tcp://127.0.0.1:0"}
        if self.scheme == "ipc":
            endpoints = {f"{kind}_endpoint": f"ipc://{self.directory}/{address}.{kind}" for kind in ("peer", "client")}
        defaults = {
            "incarnation": os.urandom(8),
            "cluster_id": CLUSTER,
            "keys": self.keys(PAIRS[address]),
            "frame_bytes_max": 100_000,
        }
        mailbox = ZeroMQMailbox(address, **{**defaults, **endpoints, **options})
        self.open.append(mailbox)
        return mailbox

    def channel(self, *mailboxes: ZeroMQMailbox, **options: Any) -> ZeroMQClientChannel:
        channel = ZeroMQClientChannel(**{"keys": self.keys(CLIENT), **options})
        self.open.append(channel)
        channel.set_endpoints({mailbox.address: mailbox.endpoints[1] for mailbox in mailboxes})
        link(channel, *mailboxes)
        return channel

    def pair(self) -> tuple[ZeroMQMailbox, ZeroMQMailbox]:
        """Two mailboxes that are connected both ways."""
        a, b = self.mailbox(0), self.mailbox(1)
        a.set_peers({1: b.endpoints[0]})
        b.set_peers({0: a.endpoints[0]})
        assert link(a, b) == [[Envelope(Kinds.CONNECTED, 1)], [Envelope(Kinds.CONNECTED, 0)]]
        return a, b

    def close(self) -> None:
        for each in self.open:
            each.close()
        for file in Path(self.directory).iterdir():
            file.unlink()
        os.rmdir(self.directory)


@pytest.fixture(scope="module", autouse=True)
def keeper() -> None:
    """Sending without a copy starts pyzmq's own thread, which stays as long as the process."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://keeper")
        other.connect("inproc://keeper")
        one.send(bytes(1 << 20), copy=False)
        other.recv()


@pytest.fixture(params=["ipc", "tcp"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    before = resources()
    world = World(request.param)
    yield world
    world.close()
    assert nothing_new(before), "close left a thread or a descriptor behind"


def elsewhere(world: World) -> dict[str, Any]:
    """Where another process of the same node binds."""
    if world.scheme == "tcp":
        return {}
    return {f"{kind}_endpoint": f"ipc://{world.directory}/elsewhere.{kind}" for kind in ("peer", "client")}


ipc = pytest.mark.parametrize("world", ["ipc"], indirect=True)
tcp = pytest.mark.parametrize("world", ["tcp"], indirect=True)


def link(*boxes: Any, timeout_s: float = 10.0) -> list[list[Envelope]]:
    """Have these introduce themselves to each other until all their links are up; return what happened to each."""
    happened: list[list[Envelope]] = [[] for _ in boxes]
    deadline_s = time.monotonic() + timeout_s
    while not all(each.up for box in boxes for each in box._links.values()):
        assert time.monotonic() < deadline_s, f"not linked: {happened}, {[box.counts for box in boxes]}"
        for box, seen in zip(boxes, happened, strict=True):
            seen += box.wait(0.001)
    return happened


def settle(done: Callable[[], bool], *boxes: Any, timeout_s: float = 10.0) -> None:
    """Have these do what they do until something is so."""
    deadline_s = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline_s, f"it did not happen in time: {[box.counts for box in boxes]}"
        for box in boxes:
            box.wait(0.001)


def take(box: Any, count: int, timeout_s: float = 10.0) -> list[Envelope]:
    """Wait until `count` things have happened."""
    happened: list[Envelope] = []
    deadline_s = time.monotonic() + timeout_s
    while len(happened) < count:
        assert time.monotonic() < deadline_s, f"only {happened} happened"
        happened += box.wait(0.05)
    return happened


def drained(box: Any, done: Callable[[], bool], timeout_s: float = 10.0) -> list[Envelope]:
    """Wait and take until something is so."""
    happened: list[Envelope] = []
    deadline_s = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        happened += box.wait(0.01)
    return happened


# --- Passing frames ---


def test_peers_hear_each_other_in_order(world: World) -> None:
    a, b = world.pair()
    frames = [b"", b"one", bytes(100_000), *(b"%d" % number for number in range(200))]

    assert all(a.send_peer(1, frame) for frame in frames)

    assert take(b, len(frames)) == [Envelope(Kinds.PEER, 0, frame) for frame in frames]


def test_a_client_asks_and_is_answered(world: World) -> None:
    node = world.mailbox(3)
    client = world.channel(node)

    assert client.send(3, b"question")
    [(kind, routing_id, frame)] = take(node, 1)
    assert (kind, frame) == (Kinds.CLIENT, b"question")
    assert node.send_client(routing_id, b"answer")

    assert take(client, 1) == [Envelope(Kinds.FRAME, 3, b"answer")]


def test_nothing_is_missed_when_sends_and_receives_cross(world: World) -> None:
    """A send may take the signal of a message that has come; the message must be found all the same."""
    node = world.mailbox(0)
    client = world.channel(node)
    rounds = 2_000
    counted = []

    def serve() -> None:
        served = 0
        while served < rounds:
            for kind, routing_id, frame in node.wait(5.0):
                assert kind == Kinds.CLIENT
                node.send_client(routing_id, frame)
                served += 1
        counted.append(served)

    server = threading.Thread(target=serve)
    server.start()
    sent = received = 0
    while received < rounds:
        while sent < min(rounds, received + 7):
            sent += client.send(0, b"%d" % sent)
        received += len(take(client, 1))
    server.join(10.0)

    assert counted == [rounds]


@pytest.mark.parametrize(
    "act",
    [
        lambda node, client: node.is_gone(client),
        lambda node, client: node.is_gone(b"nobody"),
        lambda node, client: node.send_client(client, b"an answer"),
        lambda node, client: node.send_client(client, bytes(90_000)),
        lambda node, client: node.send_client(b"nobody", b"an answer"),
        lambda node, client: node._sweep(node._client_door),
        lambda node, client: node.set_peers({}),
        lambda node, client: node.introduce(b"new"),
    ],
    ids=["is it gone", "is another gone", "answer", "large answer", "answer nobody", "sweep", "peers", "introduce"],
)
def test_whatever_a_node_does_before_it_waits_it_hears_what_has_come(world: World, act: Callable[..., object]) -> None:
    node = world.mailbox(0)
    channel = world.channel(node)
    channel.send(0, b"first")
    first = take(node, 1)
    assert channel.send(0, b"second")
    socket_ = node._client_door.socket
    readable, _, _ = select.select([socket_.getsockopt(zmq.FD)], [], [], 10.0)
    assert readable, "it has come, and its signal waits"
    time.sleep(0.005)  # libzmq looks at signals at most once a millisecond while it sends
    act(node, first[0].sender)
    assert [envelope.frame for envelope in take(node, 1)] == [b"second"]


UNHURRIED = LinkTimes(heartbeat_ms=20_000, timeout_ms=60_000)  # no link ends because this process gets no turn


class Talk:
    """A node, a peer of it and two clients, who say numbered things to each other; and what was not heard yet."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.random = world, random.Random(seed)
        self.node, self.peer = (world.mailbox(number, times=UNHURRIED) for number in (0, 1))
        self.node.set_peers({1: self.peer.endpoints[0]})
        self.peer.set_peers({0: self.node.endpoints[0]})
        link(self.node, self.peer)
        self.channels: list[ZeroMQClientChannel] = []
        self.senders: dict[int, bytes] = {}  # routing id of each channel, by its number, once it is known
        self.unheard: set[tuple[Any, Any, bytes]] = set()  # (from, to, frame): left on a link that is still there
        self.number = 0
        for _ in range(2):
            self.come()

    def frame(self, who: Any) -> bytes:
        self.number += 1
        size = self.random.choice((0, 0, 0, JOINED_BYTES_MAX, PART_BYTES_MAX + 1))
        return struct.pack("<ii", who, self.number) + bytes(size)

    def come(self) -> None:
        """A client comes, and says something, by which the node knows it."""
        number = len(self.channels)
        self.channels.append(channel := self.world.channel(times=UNHURRIED))
        channel.set_endpoints({0: self.node.endpoints[1]})
        deadline_s = time.monotonic() + 10.0
        while not channel._links[0].up or number not in self.senders:
            assert time.monotonic() < deadline_s, "a client is not heard"
            if channel._links[0].up and not any(each[0] == number for each in self.unheard):
                self.ask(number)
            self.hear_node(0.001)
            self.hear_client(number, 0.001)

    def go(self) -> None:
        number = self.random.choice(self.there)
        self.channels[number].close()
        self.unheard = {each for each in self.unheard if number not in each[:2]}
        self.come()

    @property
    def there(self) -> list[int]:
        return [number for number, channel in enumerate(self.channels) if not channel._closed]

    def ask(self, number: int) -> None:
        frame = self.frame(number)
        if self.channels[number].send(0, frame):
            self.unheard.add((number, "node", frame))

    def answer(self, number: int) -> None:
        frame = self.frame(number)
        if self.node.send_client(self.senders[number], frame):
            self.unheard.add(("node", number, frame))

    def hear_node(self, wait_s: float) -> None:
        for kind, sender, frame in self.node.wait(wait_s):
            if kind == Kinds.CLIENT:
                number = struct.unpack_from("<ii", frame)[0]
                self.senders[number] = sender
                self.unheard.discard((number, "node", frame))
            elif kind == Kinds.PEER:
                self.unheard.discard(("peer", "node", frame))

    def hear_client(self, number: int, wait_s: float) -> None:
        for kind, _, frame in self.channels[number].wait(wait_s):
            if kind == Kinds.FRAME:
                self.unheard.discard(("node", number, frame))

    def hear_peer(self, wait_s: float) -> None:
        for kind, _, frame in self.peer.wait(wait_s):
            if kind == Kinds.PEER:
                self.unheard.discard(("node", "peer", frame))

    def tell(self, mailbox: ZeroMQMailbox, to: int, whence: str, where: str) -> None:
        frame = self.frame(-1)
        if mailbox.send_peer(to, frame):
            self.unheard.add((whence, where, frame))

    def step(self) -> None:
        node, one = self.node, self.random.choice(self.there)
        act = self.random.choice(
            [
                lambda: self.ask(one),
                lambda: self.ask(one),
                lambda: self.answer(one),
                lambda: self.tell(node, 1, "node", "peer"),
                lambda: self.tell(self.peer, 0, "peer", "node"),
                lambda: node.is_gone(self.senders[one]),
                lambda: node.is_gone(self.random.choice([*self.senders.values()])),  # perhaps it is, and long since
                lambda: node._sweep(self.random.choice([node._client_door, node._peer_door])),
                lambda: node.set_peers({1: self.peer.endpoints[0]}),
                lambda: node.introduce(b"new"),
                lambda: node._keys and node.set_keys(MEMBERS, {CLIENT.public: Guest("client", "admin")}),
                lambda: self.channels[one].set_endpoints({0: node.endpoints[1]}),
                lambda: self.hear_node(0.0),
                lambda: self.hear_client(one, 0.0),
                lambda: self.hear_peer(0.0),
                lambda: time.sleep(0.002),  # libzmq looks at signals at most once a millisecond while it sends
                lambda: self.random.random() < 0.1 and self.go(),
            ]
        )
        act()


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_done_between_two_waits_all_that_has_left_is_heard(
    world: World, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets_module, "CALM_S", 1e6)  # nothing that was missed is found by looking after the links
    talk = Talk(world, seed)
    for _ in range(200):
        talk.step()
    deadline_s = time.monotonic() + 10.0
    while talk.unheard:  # now nobody says anything any more, which could make up for a signal that was lost
        assert time.monotonic() < deadline_s, {each[:2] for each in talk.unheard}
        talk.hear_node(0.001)
        talk.hear_peer(0.001)
        for number in talk.there:
            talk.hear_client(number, 0.001)


@pytest.mark.parametrize("how", ["dropped", "moved"])
def test_who_has_a_link_taken_away_is_told_that_it_has_ended(world: World, how: str) -> None:
    node, other = world.mailbox(0), world.mailbox(0, **elsewhere(world))
    channel = world.channel(node)
    channel.send(0, b"asked")
    take(node, 1)
    channel.set_endpoints({} if how == "dropped" else {0: other.endpoints[1]})
    assert channel.wait(0.0)[:1] == [Envelope(Kinds.DISCONNECTED, 0)], "no answer comes on what was there"
    assert [] == channel.wait(0.0), "once"
    if how == "moved":
        happened = link(other, channel)[1]
        assert [envelope.kind for envelope in happened] == [Kinds.CONNECTED]


@tcp
def test_a_node_with_another_key_is_told_to_have_gone_and_come(world: World) -> None:
    node = world.mailbox(0)
    channel = world.channel(node)
    channel.set_keys({0: (*MEMBERS[0], KeyPair.generate().public)})
    happened = link(node, channel)[1]
    assert [envelope.kind for envelope in happened] == [Kinds.DISCONNECTED, Kinds.CONNECTED]


@tcp
def test_what_is_no_key_ends_neither_a_node_nor_a_client_that_is_told_of_it(world: World) -> None:
    node = world.mailbox(0)
    channel = world.channel(node)
    no_key = "~" * 40  # any 40 characters, as an older leader took them into the log
    node.set_keys(MEMBERS | {7: (no_key,)}, {CLIENT.public: Guest("client", "admin"), no_key: Guest("odd", "admin")})
    channel.set_keys(MEMBERS | {7: (no_key,)})
    assert channel.send(0, b"heard all the same")
    assert [(Kinds.CLIENT, b"heard all the same")] == [(kind, frame) for kind, _, frame in take(node, 1)]


def test_a_node_that_says_as_it_is_met_that_it_has_moved_is_not_up_at_its_old_place(world: World) -> None:
    a, b, moved = world.mailbox(0), world.mailbox(1), world.mailbox(1, **elsewhere(world))
    b.set_peers({0: a.endpoints[0]})

    def judge(said: Introduction) -> str:
        a.set_peers({1: moved.endpoints[0]})
        return ""

    a.judge = judge
    a.set_peers({1: b.endpoints[0]})
    asked_s = time.monotonic() + 10.0
    happened: list[Envelope] = []
    while a._links[1].endpoint != moved.endpoints[0]:
        assert time.monotonic() < asked_s
        happened += a.wait(0.001)
        b.wait(0.001)
    assert [] == [envelope for envelope in happened if envelope.kind == Kinds.CONNECTED]
    assert Sent.GONE is a.send_peer(1, b"to nobody")
    moved.set_peers({0: a.endpoints[0]})
    assert Kinds.CONNECTED in [envelope.kind for envelope in link(a, moved)[0]]


def test_a_peer_of_whom_nothing_can_be_made_is_refused_and_the_others_are_heard(world: World) -> None:
    a, b = world.mailbox(0), world.mailbox(1)

    def judge(said: Introduction) -> str:
        raise UsageError("an address that is none")

    a.judge = judge
    client = world.channel(a)
    a.set_peers({1: b.endpoints[0]})
    b.set_peers({0: a.endpoints[0]})
    settle(lambda: 0 in b.refusals, a, b)
    assert "an address that is none" in b.refusals[0]
    client.send(0, b"heard")
    assert [envelope.frame for envelope in take(a, 1)] == [b"heard"]


def test_a_batch_is_bounded_and_the_rest_is_not_forgotten(world: World) -> None:
    a, b = world.pair()
    count = BATCH_MAX + 100
    for number in range(count):
        assert a.send_peer(1, b"%d" % number)

    first = b.wait(5.0)
    rest = take(b, count - len(first))

    assert len(first) <= BATCH_MAX
    assert [envelope.frame for envelope in first + rest] == [b"%d" % number for number in range(count)]


def test_wait_returns_empty_handed_when_its_time_is_up(world: World) -> None:
    assert world.mailbox(0).wait(0.0) == []


def test_wake_from_another_thread_ends_a_wait_and_many_are_one(world: World) -> None:
    mailbox = world.mailbox(0)
    mailbox.wait(0.0)
    thread = threading.Thread(target=lambda: [mailbox.wake() for _ in range(100)])
    thread.start()

    happened = take(mailbox, 1)
    thread.join()

    assert happened == [Envelope(Kinds.WAKE, None)]
    mailbox.close()
    mailbox.wake()  # nobody to wake, and no error


# --- Peers that die, come back, or were never there ---


def test_sending_to_nobody_is_false_and_immediate(world: World) -> None:
    mailbox = world.mailbox(0)
    endpoint = f"ipc://{world.directory}/nobody" if world.scheme == "ipc" else "tcp://127.0.0.1:1"
    mailbox.set_peers({1: endpoint})

    for _ in range(1000):
        assert not mailbox.send_peer(1, b"x")
        assert not mailbox.send_peer(2, b"x")
        assert not mailbox.send_client(b"nobody", b"x")


def test_a_peer_that_dies_is_noticed_and_one_that_comes_back_gets_nothing_of_old(world: World) -> None:
    a, b = world.pair()
    b.close()

    assert take(a, 1) == [Envelope(Kinds.DISCONNECTED, 1)]
    assert not any(a.send_peer(1, b"old") for _ in range(50))
    b = world.mailbox(1, **dict(zip(("peer_endpoint", "client_endpoint"), b.endpoints, strict=True)))
    b.set_peers({0: a.endpoints[0]})
    assert link(a, b) == [[Envelope(Kinds.CONNECTED, 1)], [Envelope(Kinds.CONNECTED, 0)]]
    assert a.send_peer(1, b"new")
    assert b.send_peer(0, b"here")

    assert take(b, 1) == [Envelope(Kinds.PEER, 0, b"new")]
    assert take(a, 1) == [Envelope(Kinds.PEER, 1, b"here")]


def test_a_client_sees_its_node_die_and_come_back(world: World) -> None:
    node = world.mailbox(0)
    client = world.channel(node)
    node.close()

    assert take(client, 1) == [Envelope(Kinds.DISCONNECTED, 0)]
    assert not client.send(0, b"lost")
    node = world.mailbox(0, **dict(zip(("peer_endpoint", "client_endpoint"), node.endpoints, strict=True)))
    assert link(client, node) == [[Envelope(Kinds.CONNECTED, 0, b"admin")], []]
    assert client.send(0, b"found")

    assert take(node, 1)[0].frame == b"found"


@pytest.mark.parametrize("size", [0, 1, JOINED_BYTES_MAX, JOINED_BYTES_MAX + 1, 60_000])
def test_a_frame_arrives_as_it_was_in_one_part_with_its_head_or_in_two(world: World, size: int) -> None:
    a, b = world.pair()
    client = world.channel(a)
    frame = bytes(range(256)) * (size // 256) + bytes(size % 256)

    assert b.send_peer(0, frame)
    assert take(a, 1) == [Envelope(Kinds.PEER, 1, frame)]
    assert client.send(0, frame)
    [(kind, _, arrived)] = take(a, 1)
    assert (kind, arrived) == (Kinds.CLIENT, frame)


def test_an_answer_to_a_client_that_is_gone_is_dropped(world: World) -> None:
    node = world.mailbox(0)
    client = world.channel(node)
    client.send(0, b"question")
    [(_, routing_id, _)] = take(node, 1)
    client.close()

    drained(node, lambda: not node.send_client(routing_id, b"answer"))

    assert node.counts["answers not sent: gone"] > 0


def test_a_peer_that_reads_nothing_holds_nobody_up(world: World) -> None:
    a, b = world.pair()
    sent = 0
    while a.send_peer(1, bytes(10_000)):
        sent += 1
        assert sent < 20_000, "there is no bound"

    assert a.counts["not sent: full"] == 1
    drained(b, lambda: a.send_peer(1, b"again"))  # and it goes on once it is read


def test_peers_that_are_no_longer_named_are_neither_sent_to_nor_heard(world: World) -> None:
    a, b = world.pair()

    b.set_peers({})

    assert not b.send_peer(0, b"x")
    assert a.send_peer(1, b"x")
    drained(b, lambda: b.counts.total() > 0 and any("no peer" in what for what in b.counts))
    assert b.wait(0.0) == []


def test_a_link_that_stays_is_left_alone(world: World) -> None:
    a, b = world.pair()
    c = world.mailbox(2)

    a.set_peers({1: b.endpoints[0], 2: c.endpoints[0]})

    assert a.send_peer(1, b"at once")
    assert take(b, 1)[0].frame == b"at once"
    assert link(a, c)[0] == [Envelope(Kinds.CONNECTED, 2)]


# --- Strangers and garbage ---


@contextlib.contextmanager
def stranger(endpoint: str, keys: Keys | None = None, server: str = "") -> Iterator[zmq.Socket[bytes]]:
    """Who speaks ZeroMQ, and nothing of ours."""
    context = zmq.Context()
    try:
        dealer = context.socket(zmq.DEALER)
        if keys is not None and endpoint.startswith("tcp"):
            dial_with(dealer, keys, server)
        dealer.connect(endpoint)
        yield dealer
    finally:
        context.destroy(linger=0)


@pytest.mark.parametrize("door", [0, 1], ids=["peers", "clients"])
def test_what_is_not_ours_is_counted_logged_once_and_dropped(
    world: World, caplog: pytest.LogCaptureFixture, door: int
) -> None:
    """Also from who holds a key that is allowed."""
    a, b = world.pair()
    tag = next(iter(a._peer_door.callers))
    introduction = Introduction(1, CLUSTER, bytes(8))
    forged: list[list[bytes]] = [
        [b""],
        [b"one part"],
        [b"three", b"parts", b"here"],
        [b"x"] * 1000,
        [b"", b"frame"],
        [tag + b"with the tag of another connection"],
        [tag, b"likewise"],
        [hello.MAGIC + b"\x01"],
        [hello.say(hello.HELLO, bytes(8), b"short")],
        [hello.say(hello.HELLO, bytes(8), hello.encode(introduction)[:-1] + b"\xff")],
        [hello.say(hello.HELLO, bytes(8), hello.encode(introduction._replace(versions=(77, 78))))],
        [hello.say(hello.HELLO, bytes(8), hello.encode(introduction._replace(cluster_id=b"cluster2")))],
        [hello.say(hello.HELLO, tag, hello.encode(introduction))],
    ]
    keys = world.keys((PAIRS[1], CLIENT)[door])
    with stranger(a.endpoints[door], keys, PAIRS[0].public) as dealer, caplog.at_level(logging.WARNING):
        if door == 1:
            forged.pop()  # a client may draw whichever tag: it is told from other doors' and other connections' tags
        before = a.counts.total()
        for message in forged * 3:
            dealer.send_multipart(message)
        assert drained(a, lambda: a.counts.total() >= before + 3 * len(forged)) == []
    assert b.send_peer(0, b"from a friend")
    assert take(a, 1) == [Envelope(Kinds.PEER, 1, b"from a friend")]
    assert len(caplog.records) == len([what for what in a.counts if "not sent" not in what])


@tcp
def test_nobody_gets_in_without_a_key_that_is_allowed_and_refusals_name_the_key(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    node = world.mailbox(0)
    unknown = KeyPair.generate()
    refused = "a connection with a key that is not allowed"  # beside it, who has none is counted, whenever he gives up

    for endpoint in node.endpoints:
        for keys in (None, Keys(unknown)):
            with stranger(endpoint, keys, PAIRS[0].public) as dealer:
                dealer.send(hello.say(hello.HELLO, bytes(8), hello.encode(Introduction(1, CLUSTER, bytes(8)))))
                before = node.counts[refused]
                assert drained(node, lambda: keys is None or node.counts[refused] > before) == []  # noqa: B023

    assert node.wait(0.1) == []
    assert not node._peer_door.callers
    assert not node._client_door.callers
    assert fingerprint(unknown.public) in caplog.text
    assert unknown.public not in caplog.text


@tcp
def test_a_client_key_does_not_open_the_peers_door_nor_a_member_key_the_clients(world: World) -> None:
    node = world.mailbox(0)

    for endpoint, pair in zip(node.endpoints, (CLIENT, PAIRS[1]), strict=True):
        with stranger(endpoint, Keys(pair), PAIRS[0].public) as dealer:
            dealer.send(b"x")
            before = node.counts["a connection with a key that is not allowed"]
            drained(node, lambda: node.counts["a connection with a key that is not allowed"] > before)  # noqa: B023


@tcp
def test_a_right_key_with_another_nodes_id_is_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    a, b = world.mailbox(0), world.mailbox(1, keys=world.keys(PAIRS[2]))
    a.set_peers({1: b.endpoints[0], 2: b.endpoints[0]})

    b.set_peers({0: a.endpoints[0]})
    for _ in range(200):
        assert a.wait(0.001) == []
        assert b.wait(0.001) == []

    assert a.counts["an introduction of a peer"] > 0
    assert f"key {fingerprint(PAIRS[2].public)} is not node 1's" in caplog.text
    assert not b.send_peer(0, b"coup")


def bind(socket: zmq.Socket[bytes], endpoint: str, timeout_s: float = 5.0) -> None:
    """Bind once whoever had the port before has let go of it."""
    until_s = time.monotonic() + timeout_s
    while True:
        try:
            socket.bind(endpoint)
        except zmq.ZMQError:
            assert time.monotonic() < until_s, f"{endpoint} does not come free"
            time.sleep(0.005)
        else:
            return


@tcp
def test_a_server_that_stands_in_a_dead_nodes_place_is_sent_nothing_and_believed_nothing(world: World) -> None:
    """Neither a plain one that took the port, nor one with a key of its own, nor one that lets everybody in."""
    a, b = world.pair()
    client = world.channel(b)
    peers_at, clients_at = b.endpoints
    b.close()
    take(a, 1)
    take(client, 1)
    heard: list[bytes] = []
    context = zmq.Context()
    try:
        for curve in (False, True):
            impostors = []
            for endpoint in (peers_at, clients_at):
                router = context.socket(zmq.ROUTER)
                router.linger = 0
                if curve:
                    router.curve_server = 1
                    router.curve_secretkey = KeyPair.generate().secret.encode()
                impostors.append(router)
                bind(router, endpoint)
            until_s = time.monotonic() + 0.5
            while time.monotonic() < until_s:
                assert a.wait(0.001) == []
                assert client.wait(0.001) == []
                assert not a.send_peer(1, b"secret")
                assert not client.send(1, b"secret")
                heard += [part for router in impostors if router.poll(0) for part in router.recv_multipart()]
            for router in impostors:
                router.close()
    finally:
        context.destroy(linger=0)
    assert heard == []


def test_a_frame_of_an_earlier_connection_counts_nothing(world: World) -> None:
    """libzmq reconnects by itself, and may send on the new connection what was queued for the old one."""
    a, b = world.pair()
    old = b._links[0].tag
    with stranger(a.endpoints[0], world.keys(PAIRS[1]), PAIRS[0].public) as dealer:
        dealer.send(old + b"queued")
        drained(a, lambda: a.counts["a message on a connection whose other end has not introduced itself"] == 1)
        assert dealer.recv() == hello.say(hello.AGAIN, old)
        dealer.send(hello.say(hello.HELLO, bytes(8), hello.encode(Introduction(1, CLUSTER, bytes(8)))))
        drained(a, lambda: dealer.poll(0) != 0)
        dealer.recv()
        dealer.send(old + b"queued")
        dealer.send(bytes(8) + b"counts")

        assert take(a, 1) == [Envelope(Kinds.PEER, 1, b"counts")]


def test_a_node_that_has_forgotten_who_somebody_is_asks_again(world: World) -> None:
    a, b = world.pair()
    client = world.channel(a)
    a._peer_door.forget(b._links[0].tag)
    a._client_door.forget(client._links[0].tag)

    assert b.send_peer(0, b"lost")
    assert client.send(0, b"lost")
    settle(lambda: len(a._peer_door.callers) == len(a._client_door.callers) == 1, a, b, client)
    link(a, b, client)

    assert b.send_peer(0, b"found")
    assert client.send(0, b"found")
    assert sorted(envelope.frame for envelope in take(a, 2)) == [b"found", b"found"]


def test_introductions_say_what_the_owners_want_and_both_ends_may_refuse(world: World) -> None:
    a, b = world.mailbox(0, storage_id="folder a"), world.mailbox(1, storage_id="folder b")
    asked: list[Introduction] = []
    a.introduce(b"a's words")
    b.introduce(b"b's words")
    a.judge = lambda said: asked.append(said) or ("" if len(asked) > 3 else "not yet")  # type: ignore[func-returns-value]
    a.set_peers({1: b.endpoints[0]})
    b.set_peers({0: a.endpoints[0]})

    happened = link(a, b)

    assert happened == [[Envelope(Kinds.CONNECTED, 1, b"b's words")], [Envelope(Kinds.CONNECTED, 0, b"a's words")]]
    assert {(said.node_id, said.storage_id, said.payload) for said in asked} == {(1, "folder b", b"b's words")}
    assert b.introductions[0].storage_id == "folder a"


def test_two_ends_speak_the_newest_version_of_the_wire_that_both_know(world: World) -> None:
    a, b = world.mailbox(0), world.mailbox(1)
    a.introduction = a.introduction._replace(versions=(3, 5))
    b.introduction = b.introduction._replace(versions=(2, 4))
    a.set_peers({1: b.endpoints[0]})
    b.set_peers({0: a.endpoints[0]})

    link(a, b)

    assert (a.versions, b.versions) == ({1: 4}, {0: 4})


def test_nodes_without_a_version_in_common_say_so(world: World, caplog: pytest.LogCaptureFixture) -> None:
    a, b = world.mailbox(0), world.mailbox(1)
    a.introduction = a.introduction._replace(versions=(5, 6))
    b.introduction = b.introduction._replace(versions=(3, 4))
    a.set_peers({1: b.endpoints[0]})
    for _ in range(100):
        assert [*a.wait(0.001), *b.wait(0.001)] == []

    assert "it speaks (5, 6) of the wire, and node 1 (3, 4)" in caplog.text
    assert "a refusal by a node: node 1" in caplog.text


@tcp
def test_keys_may_change_while_it_runs(world: World) -> None:
    a, b = world.pair()
    client = world.channel(a)
    client.send(0, b"question")
    [(_, routing_id, _)] = take(a, 1)
    assert a.role(routing_id) == "admin"

    a.set_keys(MEMBERS, {CLIENT.public: Guest("client", "read")})  # the role is another: it has to come anew
    client.send(0, b"unheard")
    settle(lambda: bool(a._client_door.callers), a, client)
    link(a, client)
    client.send(0, b"question")
    [(_, routing_id, _)] = take(a, 1)
    assert a.role(routing_id) == "read"
    a.set_keys({0: MEMBERS[0]}, {})  # neither may speak any more
    before = a.counts.total()
    client.send(0, b"unheard")
    b.send_peer(0, b"unheard")
    assert drained(a, lambda: a.counts.total() >= before + 2) == []


def test_a_peer_that_moves_to_a_new_key_is_reached_with_either() -> None:
    world = World("tcp")
    try:
        new = KeyPair.generate()
        a = world.mailbox(0, keys=Keys(PAIRS[0], {1: (PAIRS[1].public, new.public)}))
        b = world.mailbox(1, keys=Keys(new, MEMBERS))
        a.set_peers({1: b.endpoints[0]})
        b.set_peers({0: a.endpoints[0]})

        link(a, b)

        assert a.send_peer(1, b"x")
        assert b.send_peer(0, b"y")
        assert take(b, 1)[0].frame == b"x"
        assert take(a, 1)[0].frame == b"y"
    finally:
        world.close()


@pytest.mark.parametrize("size", [PART_BYTES_MAX, PART_BYTES_MAX + 1, 3 * PART_BYTES_MAX + 7, 5_000_000])
def test_a_large_frame_arrives_as_it_was_both_ways(world: World, size: int) -> None:
    a, b = world.mailbox(0, frame_bytes_max=6_000_000), world.mailbox(1, frame_bytes_max=6_000_000)
    a.set_peers({1: b.endpoints[0]})
    b.set_peers({0: a.endpoints[0]})
    link(a, b)
    client = world.channel(a)
    frame = os.urandom(size)

    assert a.send_peer(1, frame)
    assert client.send(0, frame)
    [(_, routing_id, arrived)] = take(a, 1)
    assert arrived == frame
    assert a.send_client(routing_id, frame)

    assert take(client, 1)[0].frame == frame
    assert take(b, 1)[0].frame == frame


@pytest.mark.parametrize("size", [100_000, 1_000_000])
def test_parts_beside_a_frame_reach_several_peers_as_they_are_and_over_tcp_as_one_with_it(
    world: World, size: int
) -> None:
    options = {"frame_bytes_max": 3_000_000, "gathers": True, "lends": True}
    a, b, c = (world.mailbox(number, **options) for number in range(3))
    a.set_peers({1: b.endpoints[0], 2: c.endpoints[0]})
    b.set_peers({0: a.endpoints[0]})
    c.set_peers({0: a.endpoints[0]})
    link(a, b, c)
    large = os.urandom(size)

    assert a.send_peer(1, b"head", [large, b"middle", large, b"end"])
    assert a.send_peer(2, b"HEAD", [large, b"middle", large, b"end"])
    assert a.send_peer(1, b"small")

    for peer, head in ((b, b"head"), (c, b"HEAD")):
        frame = take(peer, 2 if peer is b else 1)[0].frame
        beside = frame.beside if isinstance(frame, Gathered) else ()
        assert b"".join((frame, *beside)) == b"".join((head, large, b"middle", large, b"end"))
        assert len(beside) == (4 if world.scheme == "ipc" else 0)


def test_a_large_frame_that_is_lent_outlasts_what_comes_after_it(world: World) -> None:
    a, b = world.mailbox(0, frame_bytes_max=3_000_000), world.mailbox(1, frame_bytes_max=3_000_000, lends=True)
    a.set_peers({1: b.endpoints[0]})
    b.set_peers({0: a.endpoints[0]})
    link(a, b)
    frames = [os.urandom(20_000 + number) for number in range(200)]

    assert all(a.send_peer(1, frame) for frame in frames)
    lent = [envelope.frame for envelope in take(b, len(frames))]

    assert lent == frames
    assert {type(frame) for frame in lent} == {memoryview}


def test_a_frame_over_the_limit_of_its_receiver_is_refused_by_name_and_costs_no_link(world: World) -> None:
    a, b = world.pair()
    client = world.channel(a, message_bytes_max=200_000)
    client.send(0, b"question")
    [(_, routing_id, _)] = take(a, 1)

    assert a.send_peer(1, bytes(a._links[1].takes_bytes + 1)) is Sent.TOO_LARGE
    assert a.send_client(routing_id, bytes(200_001)) is Sent.TOO_LARGE
    assert not client.send(0, bytes(1 << 20))  # ten times what this node takes
    assert a.send_peer(1, b"small")
    assert a.send_client(routing_id, bytes(200_000))
    assert client.send(0, b"small")

    assert take(b, 1) == [Envelope(Kinds.PEER, 0, b"small")]
    assert take(client, 1) == [Envelope(Kinds.FRAME, 0, bytes(200_000))]
    assert take(a, 1)[0].frame == b"small"


def test_a_frame_over_the_limit_from_who_keeps_none_is_never_taken_in(world: World) -> None:
    node = world.mailbox(0)
    client = world.channel(node)
    client._links[0].takes_bytes = 1 << 30

    client.send(0, bytes(1 << 20))
    until_s = time.monotonic() + 0.5
    while time.monotonic() < until_s:
        client.wait(0.001)
        assert node.wait(0.001) == []


@tcp
def test_a_message_that_never_ends_costs_a_node_no_memory(world: World) -> None:
    """A stranger has to prove a key before anything of him is kept."""
    node = world.mailbox(0)
    before = resident_bytes()
    null = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
    curve = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
    ready = b"\x04\x26\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0"
    part = b"\x03" + struct.pack(">Q", 1 << 20) + bytes(1 << 20)
    command = b"\x06" + struct.pack(">Q", 1 << 30) + bytes(1 << 20)
    for endpoint in node.endpoints:
        host, port = host_and_port(endpoint)
        for greeting, data in ((null + ready, part), (curve, part), (curve, command)):
            sent = 0
            with socket.create_connection((host, port)) as one, contextlib.suppress(OSError):
                one.settimeout(0.2)
                one.sendall(greeting)
                while sent < 100:
                    node.wait(0.0)
                    one.sendall(data)
                    sent += 1
            assert sent < 100, "it took everything"
    assert resident_bytes() - before < 20 << 20


def resident_bytes() -> int:
    """The memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_clients_that_are_gone_are_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox_module, "CALLERS_MIN", 3)
    node = world.mailbox(0)
    node._client_door.callers_max = 3
    stays = world.channel(node)
    for _ in range(10):
        world.channel(node).close()

    assert len(node._client_door.callers) <= 6
    assert stays.send(0, b"still here")
    assert take(node, 1)[0].frame == b"still here"
    assert stays.wait(0.0) == []


# --- Where sockets may be ---


def test_a_live_ipc_socket_is_not_stolen_and_a_dead_one_may_be_taken_over(tmp_path: Path) -> None:
    world = World("ipc")
    try:
        first = world.mailbox(0)
        with pytest.raises(UsageError, match="in use"):
            world.mailbox(0)
        path = Path(first.endpoints[0].removeprefix("ipc://"))
        first.close()
        path.touch()  # as a process that was killed leaves it
        world.mailbox(0)
    finally:
        world.close()


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("ipc://" + "/d" * 54, "has 108 bytes"),
        ("ipc://relative", "not an absolute path"),
        ("ipc://@abstract", "not an absolute path"),
        ("ipc:///no/such/directory/socket", "No such file"),
        ("ipc:///dev/null/socket", "Not a directory|not a directory"),
        ("tcp://*:5555", "not on the loopback"),
        ("tcp://0.0.0.0:5555", "not on the loopback"),
        ("tcp://[::]:5555", "not on the loopback"),
        ("tcp://192.0.2.1:5555", "not on the loopback"),
        ("tcp://127.0.0.1", "looks like"),
        ("tcp://127.0.0.1:port", "looks like"),
        ("inproc://x", "looks like"),
        ("nothing", "looks like"),
    ],
)
def test_an_endpoint_that_must_not_be_used_is_refused_with_the_reason(endpoint: str, reason: str) -> None:
    for check in (check_bind, check_connect):
        with pytest.raises(UsageError, match=reason):
            check(endpoint)


def test_a_directory_that_others_can_enter_is_refused_at_bind_and_at_connect(tmp_path: Path) -> None:
    directory = Path(tempfile.mkdtemp(prefix="mode-"))
    endpoint = f"ipc://{directory}/socket"
    try:
        for mode in (0o701, 0o710, 0o755, 0o777):
            directory.chmod(mode)
            for check in (check_bind, check_connect):
                with pytest.raises(UsageError, match=f"mode {mode:04o}"):
                    check(endpoint)
        directory.chmod(0o700)
        assert check_bind(endpoint) == endpoint
    finally:
        directory.rmdir()


def test_a_directory_of_somebody_else_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)

    with pytest.raises(UsageError, match="belongs to user"):
        check_connect(f"ipc://{Path(tempfile.gettempdir())}/socket")


def test_a_link_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    link = Path(tempfile.mkdtemp(prefix="link-")) / "to"
    link.symlink_to(link.parent)

    with pytest.raises(UsageError, match="is not a directory"):
        check_bind(f"ipc://{link}/socket")
    link.unlink()
    link.parent.rmdir()


def test_tcp_without_keys_is_refused_before_any_socket_exists() -> None:
    before = resources()

    for endpoint in ("tcp://127.0.0.1:0", "tcp://192.0.2.1:0", "tcp://[::1]:0", "tcp://*:0"):
        with pytest.raises(UsageError, match="keys"):
            World("ipc").mailbox(0, peer_endpoint=endpoint)
    with pytest.raises(UsageError, match="without keys"):
        World("ipc").mailbox(0, peer_endpoint="tcp://192.0.2.1:0", plaintext_on_loopback=True)
    assert nothing_new(before)
    channel = ZeroMQClientChannel()
    with pytest.raises(UsageError, match="keys"):
        channel.set_endpoints({0: "tcp://127.0.0.1:1"})
    channel.close()


def test_a_link_whose_directory_has_gone_does_not_keep_others_from_coming(tmp_path: Path) -> None:
    gone, there = Path(tempfile.mkdtemp(prefix="link-")), Path(tempfile.mkdtemp(prefix="link-"))
    channel = ZeroMQClientChannel()
    try:
        channel.set_endpoints({0: f"ipc://{gone}/socket"})
        gone.rmdir()
        channel.set_endpoints({0: f"ipc://{gone}/socket", 1: f"ipc://{there}/socket"})
        with pytest.raises(UsageError, match="cannot be used"):
            channel.set_endpoints({0: f"ipc://{gone}/another"})
    finally:
        channel.close()
        there.rmdir()


@tcp
def test_a_client_whose_role_changes_hears_of_it_though_it_says_nothing(world: World) -> None:
    node = world.mailbox(0)
    client = world.channel(node)
    node.set_keys(MEMBERS, {CLIENT.public: Guest("client", "read")})
    happened: list[Envelope] = []

    def heard() -> bool:
        happened.extend(client.wait(0.001))
        return Envelope(Kinds.CONNECTED, 0, b"read") in happened

    settle(heard, node)
    assert [envelope.kind for envelope in happened] == [Kinds.DISCONNECTED, Kinds.CONNECTED]
    assert not [name for name in node.counts if "has not introduced itself" in name], "it had to ask first"


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_a_node_listens_and_is_reached_by_number_old_or_new_and_by_name(host: str) -> None:
    world = World("tcp")
    try:
        a, b = (
            world.mailbox(node_id, peer_endpoint=f"tcp://{host}:0", client_endpoint=f"tcp://{host}:0")
            for node_id in (0, 1)
        )
        at = [f"tcp://{host}:{host_and_port(each.endpoints[0])[1]}" for each in (a, b)]
        a.set_peers({1: at[1]})
        b.set_peers({0: at[0]})

        link(a, b)

        assert a.send_peer(1, b"x")
        assert take(b, 1) == [Envelope(Kinds.PEER, 0, b"x")]
    finally:
        world.close()


def test_the_override_says_what_it_is_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    check_bind("tcp://192.0.2.1:5555", plaintext_off_loopback=True)

    assert "plain text" in caplog.text


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.1.2.3", True), ("::1", True), ("localhost", True), ("host", False)]
)
def test_what_counts_as_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_fifty_mailboxes_leave_nothing_behind() -> None:
    world = World("ipc")
    world.mailbox(0)
    world.close()
    before = resources()

    for _ in range(10):
        world = World("ipc")
        world.pair()
        world.channel(*world.open[:2])
        world.close()

    assert nothing_new(before)


def test_a_link_that_was_refused_is_dialled_again_and_let_in_once_its_key_is_known() -> None:
    """libzmq gives up for good after a refusal; a member that has just joined is not known everywhere at once."""
    pairs = {0: KeyPair.generate(), 1: KeyPair.generate()}
    known = {node_id: (pair.public,) for node_id, pair in pairs.items()}

    def make(node_id: int, members: dict[int, tuple[str, ...]]) -> ZeroMQMailbox:
        return ZeroMQMailbox(
            node_id,
            incarnation=bytes(8),
            cluster_id=bytes(8),
            peer_endpoint="tcp://127.0.0.1:0",
            client_endpoint=None,
            frame_bytes_max=1 << 20,
            keys=Keys(pairs[node_id], members),
        )

    old, new = make(0, {0: known[0]}), make(1, known)
    try:
        new.set_peers({0: old.endpoints[0]})
        until_s = time.monotonic() + 20.0
        while not new.counts["a handshake that failed"]:
            old.wait(0.01)
            new.wait(0.01)
            assert time.monotonic() < until_s
        old.set_keys(known)
        old.set_peers({1: new.endpoints[0]})
        while not new._links[0].up:
            old.wait(0.01)
            new.wait(0.01)
            assert time.monotonic() < until_s, "it never came back"
    finally:
        old.close()
        new.close()
