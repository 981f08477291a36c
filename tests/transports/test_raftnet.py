"""One contract for every RaftNet: mock, ZeroMQ over ipc and tcp, plain TCP."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actorraft.errors import UsageError
from actorraft.raft.messages import AppendEntries, LogEntry, Message, RequestVote, TimeoutNow
from benchmarks.others.processes import free_ports
from tests.leftovers import nothing_new, resources
from transports import RaftNet
from transports.mock import MockNetwork
from transports.tcp import TCPRaftNet
from transports.zeromq import ZeroMQRaftNet


def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """Wait for something that another thread does."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.001)
    return value


class World:
    """Nets that can reach each other, however their kind does it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.directory = tempfile.mkdtemp(prefix="net-")
        if kind == "zeromq-ipc":
            self.peers = {node_id: f"ipc://{self.directory}/{node_id}" for node_id in range(3)}
        else:
            self.peers = {node_id: f"tcp://127.0.0.1:{port}" for node_id, port in enumerate(free_ports(3))}
        self.nets: list[RaftNet] = []

    def net(self, node_id: int) -> RaftNet:
        """A net that is not started yet."""
        net: RaftNet
        if self.kind == "mock":
            net = MockNetwork(node_id, self.peers)
        elif self.kind == "tcp":
            net = TCPRaftNet(node_id, self.peers)
        else:
            net = ZeroMQRaftNet(node_id, self.peers)
        self.nets.append(net)
        return net

    def start(self, node_id: int) -> RaftNet:
        net = self.net(node_id)
        net.start()
        return net

    def carry(self) -> None:
        """A mock network moves only when it is told to."""
        for net in self.nets:
            if isinstance(net, MockNetwork):
                taken, net.outgoing = net.outgoing, []
                for message in taken:
                    for other in self.nets:
                        if other.address == message.dest:
                            other.deliver(message)

    def close(self) -> None:
        for net in self.nets:
            net.stop()
        for file in Path(self.directory).iterdir():
            file.unlink()
        os.rmdir(self.directory)


KINDS = ["mock", "zeromq-ipc", "zeromq-tcp", "tcp"]
REAL = KINDS[1:]


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    before = resources()
    world = World(request.param)
    yield world
    world.close()
    assert nothing_new(before), "stop left a thread or a descriptor behind"


real_only = pytest.mark.parametrize("world", REAL, indirect=True)


def vote(source: int, dest: int, term: int) -> RequestVote:
    """A message that is known by its term."""
    return RequestVote(source, dest, term, -1, -1)


def receive(world: World, net: RaftNet) -> Message:
    """Receive, and never hang a test."""
    world.carry()
    return until(lambda: net.receive(blocking=False))  # type: ignore[no-any-return]


def test_what_is_sent_arrives_as_it_was(world: World) -> None:
    a, b = world.start(0), world.start(1)
    message = AppendEntries(
        0, 1, 3, 7, 2, [LogEntry(3, b"\0" * 1000), LogEntry(3, "x=1"), LogEntry(3, None)], 6, round=9
    )

    a.send(message)

    assert receive(world, b) == message


def test_messages_between_two_nodes_keep_their_order(world: World) -> None:
    a, b = world.start(0), world.start(1)

    for term in range(500):
        a.send(vote(0, 1, term))

    assert [receive(world, b).term for _ in range(500)] == list(range(500))


def test_nodes_hear_what_is_for_them_and_nothing_else(world: World) -> None:
    nets = [world.start(node_id) for node_id in range(3)]

    for source in range(3):
        for dest in range(3):
            if source != dest:
                nets[source].send(vote(source, dest, 10 * source + dest))

    for dest, net in enumerate(nets):
        heard = {receive(world, net).term for _ in range(2)}
        assert heard == {10 * source + dest for source in range(3) if source != dest}
        assert net.receive(blocking=False) is None


def test_receive_gives_none_when_nothing_waits(world: World) -> None:
    assert world.start(0).receive(blocking=False) is None


def test_a_blocked_receive_is_given_what_arrives(world: World) -> None:
    a, b = world.start(0), world.start(1)
    heard: list[Any] = []
    thread = threading.Thread(target=lambda: heard.append(b.receive()))
    thread.start()

    a.send(vote(0, 1, 5))
    world.carry()

    thread.join(10.0)
    assert heard == [vote(0, 1, 5)]


def test_stop_ends_every_receive_and_may_come_twice(world: World) -> None:
    net = world.start(0)
    heard: list[Any] = []
    threads = [threading.Thread(target=lambda: heard.append(net.receive())) for _ in range(3)]
    for thread in threads:
        thread.start()

    net.stop()
    net.stop()

    for thread in threads:
        thread.join(10.0)
    assert heard == [None, None, None]
    assert net.receive() is None
    net.send(vote(0, 1, 1))  # into the void


def test_start_may_come_twice_and_a_net_is_a_context(world: World) -> None:
    with world.net(0) as net:
        net.start()
        assert net.address == 0
        assert set(net.peers) == {1, 2}


def test_a_net_that_never_started_can_be_stopped(world: World) -> None:
    world.net(0).stop()


@real_only
def test_send_never_blocks_not_even_to_peers_that_are_dead_or_unknown(world: World) -> None:
    net = world.start(0)
    large = AppendEntries(0, 1, 1, -1, -1, [LogEntry(1, bytes(100_000))], -1)
    done = threading.Event()

    def send_many() -> None:
        for _ in range(3_000):
            net.send(large)
            net.send(TimeoutNow(0, 77, 1))
        done.set()

    threading.Thread(target=send_many, daemon=True).start()

    assert done.wait(20.0)
    until(lambda: net.dropped.total() > 3_000)


@real_only
def test_a_peer_that_comes_back_is_heard_and_gets_nothing_of_old(world: World) -> None:
    a, b = world.start(0), world.start(1)
    a.send(vote(0, 1, 1))
    b.send(vote(1, 0, 1))
    assert receive(world, b).term == 1
    assert receive(world, a).term == 1
    b.stop()
    lost = a.dropped.total()
    until(lambda: a.send(vote(0, 1, 2)) or a.dropped.total() > lost)  # until it is noticed that b is gone

    b = world.start(1)

    def answered() -> bool:
        a.send(vote(0, 1, 3))
        return b.receive(blocking=False) == vote(0, 1, 3)

    until(answered)
    b.send(vote(1, 0, 4))
    assert until(lambda: a.receive(blocking=False)) == vote(1, 0, 4)


@real_only
def test_an_address_in_use_is_refused(world: World) -> None:
    world.start(0)

    with pytest.raises(UsageError, match=r"in use|cannot bind"):
        world.start(0)


@pytest.mark.parametrize("kind", [TCPRaftNet, ZeroMQRaftNet])
def test_a_node_must_know_where_it_listens(kind: type[RaftNet]) -> None:
    with pytest.raises(UsageError, match="where does node 0 listen"):
        kind(0, {1: "tcp://127.0.0.1:1"})
    kind(0, {1: "tcp://127.0.0.1:1"}, endpoint="tcp://127.0.0.1:2").stop()  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [TCPRaftNet, ZeroMQRaftNet])
@pytest.mark.parametrize("endpoint", ["tcp://0.0.0.0:5555", "tcp://192.0.2.1:5555", "tcp://example.com:80"])
def test_addresses_off_the_loopback_are_refused_before_any_socket_exists(kind: type[RaftNet], endpoint: str) -> None:
    before = resources()

    with pytest.raises(UsageError, match="not on the loopback"):
        kind(0, {0: endpoint}).start()

    assert nothing_new(before)


@pytest.mark.parametrize("given", ["127.0.0.1:7001", ("127.0.0.1", 7001), "tcp://127.0.0.1:7001"])
def test_tcp_takes_endpoints_in_three_forms(given: Any) -> None:
    assert TCPRaftNet(0, {0: given}).endpoint == "tcp://127.0.0.1:7001"


@pytest.mark.parametrize("given", ["ipc:///tmp/x", "nonsense", "127.0.0.1:99999", 7])
def test_tcp_refuses_what_is_no_tcp_endpoint(given: Any) -> None:
    with pytest.raises(UsageError):
        TCPRaftNet(0, {0: given})


# --- Strangers ---


@pytest.mark.parametrize("world", ["tcp"], indirect=True)
@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n....", "token"),
        (None, "is no peer"),
    ],
)
def test_strangers_on_tcp_are_counted_and_dropped(world: World, hello: bytes | None, reason: str) -> None:
    a, b = world.start(0), world.start(1)
    assert isinstance(a, TCPRaftNet)
    host, port = "127.0.0.1", int(a.endpoint.rpartition(":")[2])
    if hello is None:
        hello = a._token + bytes([1, 99, 0, 0, 0])

    with socket.create_connection((host, port)) as stranger:
        stranger.sendall(hello)
        stranger.settimeout(10.0)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b""  # it is shown the door

    until(lambda: any(reason in what for what in a.dropped))
    b.send(vote(1, 0, 1))
    assert receive(world, a).term == 1


@pytest.mark.parametrize("world", ["tcp"], indirect=True)
@pytest.mark.parametrize(
    ("after_hello", "reason"),
    [
        (b"\xff\xff\xff\xff", "announced a message of 4294967295 bytes"),
        (b"\x03\0\0\0\xff\xff\xff", "malformed"),
        (b"\0\0\0\0", "malformed"),
    ],
)
def test_garbage_on_tcp_is_counted_and_dropped(world: World, after_hello: bytes, reason: str) -> None:
    a, b = world.start(0), world.start(1)
    assert isinstance(a, TCPRaftNet)

    with socket.create_connection(("127.0.0.1", int(a.endpoint.rpartition(":")[2]))) as stranger:
        stranger.sendall(a._token + bytes([1, 1, 0, 0, 0]) + after_hello)
        until(lambda: any(reason in what for what in a.dropped))

    b.send(vote(1, 0, 1))
    assert receive(world, a).term == 1


@pytest.mark.parametrize("world", ["tcp"], indirect=True)
def test_a_peer_that_lies_about_its_id_is_not_heard(world: World) -> None:
    a, b = world.start(0), world.start(1)

    b.send(vote(2, 0, 1))  # says it is from node 2
    b.send(vote(1, 0, 2))

    assert receive(world, a).term == 2
    assert a.dropped["misaddressed"] == 1


@pytest.mark.parametrize("world", ["tcp"], indirect=True)
def test_a_connection_that_says_nothing_keeps_nobody_out(world: World) -> None:
    a, b = world.start(0), world.start(1)
    assert isinstance(a, TCPRaftNet)

    with socket.create_connection(("127.0.0.1", int(a.endpoint.rpartition(":")[2]))):
        b.send(vote(1, 0, 1))
        assert receive(world, a).term == 1
