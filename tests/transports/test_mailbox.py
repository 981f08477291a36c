"""The ZeroMQ mailbox and the client's channel: links, strangers, bounds, and peers that die and come back."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from actorraft.errors import UsageError
from actorraft.ports import Envelope, Kinds
from transports.endpoints import check_bind, check_connect, is_loopback
from transports.zeromq import BATCH_MAX, JOINED_BYTES_MAX, PROTOCOL_VERSION, ZeroMQClientChannel, ZeroMQMailbox

CLUSTER = b"cluster1"
TOKEN = bytes(range(32))


def resources() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


class World:
    """Mailboxes and channels over one transport, closed together."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.token = TOKEN if scheme == "tcp" else None
        self.directory = tempfile.mkdtemp(prefix="mail-")
        self.open: list[Any] = []

    def mailbox(self, address: int, **options: Any) -> ZeroMQMailbox:
        endpoints = {"peer_endpoint": "tcp://127.0.0.1:0", "client_endpoint": "tcp://127.0.0.1:0"}
        if self.scheme == "ipc":
            endpoints = {f"{kind}_endpoint": f"ipc://{self.directory}/{address}.{kind}" for kind in ("peer", "client")}
        defaults = {
            "incarnation": os.urandom(8),
            "cluster_id": CLUSTER,
            "token": self.token,
            "frame_bytes_max": 100_000,
        }
        mailbox = ZeroMQMailbox(address, **{**defaults, **endpoints, **options})
        self.open.append(mailbox)
        return mailbox

    def channel(self, *mailboxes: ZeroMQMailbox, **options: Any) -> ZeroMQClientChannel:
        channel = ZeroMQClientChannel(**{"token": self.token, **options})
        self.open.append(channel)
        channel.set_endpoints({mailbox.address: mailbox.endpoints[1] for mailbox in mailboxes})
        take(channel, len(mailboxes))  # connected
        return channel

    def pair(self) -> tuple[ZeroMQMailbox, ZeroMQMailbox]:
        """Two mailboxes that are connected both ways."""
        a, b = self.mailbox(0), self.mailbox(1)
        a.set_peers({1: b.endpoints[0]})
        b.set_peers({0: a.endpoints[0]})
        assert take(a, 1) == [Envelope(Kinds.CONNECTED, 1)]
        assert take(b, 1) == [Envelope(Kinds.CONNECTED, 0)]
        return a, b

    def close(self) -> None:
        for each in self.open:
            each.close()
        for file in Path(self.directory).iterdir():
            file.unlink()
        os.rmdir(self.directory)


@pytest.fixture(params=["ipc", "tcp"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    before = resources()
    world = World(request.param)
    yield world
    world.close()
    assert resources() == before, "close left a thread or a descriptor behind"


ipc = pytest.mark.parametrize("world", ["ipc"], indirect=True)
tcp = pytest.mark.parametrize("world", ["tcp"], indirect=True)


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
    assert take(a, 1) == [Envelope(Kinds.CONNECTED, 1)]
    assert take(b, 1) == [Envelope(Kinds.CONNECTED, 0)]
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
    assert take(client, 1) == [Envelope(Kinds.CONNECTED, 0)]
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
    assert take(a, 1) == [Envelope(Kinds.CONNECTED, 2)]


# --- Strangers and garbage ---


def test_what_is_not_ours_is_counted_logged_once_and_dropped(world: World, caplog: pytest.LogCaptureFixture) -> None:
    a, b = world.pair()
    context = zmq.Context()
    good_head = b._head
    forged = [
        [b""],
        [b"one part"],
        [b"three", b"parts", b"here"],
        [b"x"] * 1000,
        [b"", b"frame"],
        [(world.token or b"") + b"\xff" + good_head[-20:], b"of another version"],
        [(world.token or b"") + PROTOCOL_VERSION, b"without a sender"],
        [good_head[:-20] + b"cluster2" + good_head[-12:], b"of another cluster"],
        [good_head[:-12] + b"\x09\0\0\0" + good_head[-8:], b"from nobody we know"],
    ]
    try:
        for endpoint, messages in zip(
            a.endpoints, (forged, [each for each in forged if each[0] != a._guard]), strict=True
        ):
            with context.socket(zmq.DEALER) as stranger, caplog.at_level(logging.WARNING):
                stranger.linger = 1000
                stranger.connect(endpoint)
                expected = a.counts.total() + 3 * len(messages)
                for message in messages * 3:
                    stranger.send_multipart(message)
                assert drained(a, lambda: a.counts.total() >= expected) == []  # noqa: B023
        assert b.send_peer(0, b"from a friend")
        assert take(a, 1) == [Envelope(Kinds.PEER, 1, b"from a friend")]
    finally:
        context.destroy(linger=0)
    assert len(caplog.records) == len([what for what in a.counts if "not sent" not in what])


@tcp
def test_on_tcp_nobody_gets_in_without_the_token(world: World) -> None:
    node = world.mailbox(0)
    stranger = world.channel(node, token=bytes(32))

    stranger.send(0, b"let me in")

    assert drained(node, lambda: node.counts.total() > 0) == []


def test_a_frame_over_the_limit_is_never_sent_since_it_would_cost_the_link(world: World) -> None:
    a, b = world.pair()

    assert not a.send_peer(1, bytes(a._message_bytes_max + 1))
    assert a.send_peer(1, b"small")

    assert take(b, 1) == [Envelope(Kinds.PEER, 0, b"small")]


def test_a_message_over_the_limit_is_never_taken_in(world: World) -> None:
    node = world.mailbox(0)
    client = world.channel(node, message_bytes_max=10 << 20)

    assert client.send(0, bytes(1 << 20))  # ten times the limit of this node

    assert take(client, 2) == [Envelope(Kinds.DISCONNECTED, 0), Envelope(Kinds.CONNECTED, 0)]
    assert node.wait(0.0) == []


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


def test_tcp_without_a_token_is_refused_before_any_socket_exists() -> None:
    before = resources()

    with pytest.raises(UsageError, match="needs a token"):
        World("ipc").mailbox(0, peer_endpoint="tcp://127.0.0.1:0")
    with pytest.raises(UsageError, match="32 bytes"):
        ZeroMQClientChannel(token=b"short")
    assert resources() == before


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

    assert resources() == before
