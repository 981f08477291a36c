"""Garbage, strangers and greedy clients at the doors of a live cluster: counted, logged once, harmless."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import zmq

from actorraft import Cluster, RaftConfig, codec
from actorraft.raft.messages import AppendEntries
from tests.cluster.helpers import Spawn, agree, eventually
from tests.cluster.machines import Ledger
from transports import hello
from transports.curve import dial_with
from transports.hello import Introduction
from transports.keys import KeyPair, Keys

pytestmark = pytest.mark.cluster

SMALL = RaftConfig(frame_bytes_max=64 << 10)
GREETING = b"\xff" + bytes(8) + b"\x7f"  # how ZMTP begins
RAW = [
    b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    b"\x00" * 200,
    b"\xff" * 200,
    GREETING + b"\x09" * 60,
    GREETING + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32) + b"\x04\xff" * 40,
    GREETING + b"\x03\x00" + b"PLAIN".ljust(20, b"\0") + bytes(32),
    *(random.Random(seed).randbytes(300) for seed in range(10)),
]


def doors(cluster: Cluster[Any], node_id: int) -> tuple[str, str]:
    """Where a node's peers and clients reach it."""
    return cluster._processes.bound[node_id]


def throw(endpoint: str, data: bytes) -> None:
    """Send bytes to a socket as they are, and leave."""
    kind, address = endpoint.split("://")
    family = socket.AF_UNIX if kind == "ipc" else socket.AF_INET
    with socket.socket(family) as stranger:
        if kind == "ipc":
            stranger.connect(address)
        else:
            host, port = address.rsplit(":", 1)
            stranger.connect((host, int(port)))
        stranger.settimeout(0.2)
        with contextlib.suppress(OSError):
            stranger.sendall(data)
            stranger.recv(64)
            stranger.sendall(data)


@contextlib.contextmanager
def dealer(endpoint: str, cluster: Cluster[Any], pair: KeyPair | None = None) -> Iterator[zmq.Socket[bytes]]:
    """A stranger who speaks ZeroMQ; over tcp with a key."""
    context = zmq.Context()
    try:
        stranger = context.socket(zmq.DEALER)
        stranger.linger = 1000
        keys = cluster._processes.keys
        if keys is not None:
            node_id = next(node_id for node_id, at in cluster._processes.bound.items() if endpoint in at)
            dial_with(stranger, Keys(pair or KeyPair.generate()), keys.members()[node_id][0])
        stranger.connect(endpoint)
        yield stranger
    finally:
        context.destroy(linger=1000)


def pairs(cluster: Cluster[Any], node_id: int) -> tuple[KeyPair | None, KeyPair | None]:
    """The keys of a node and of this cluster's owner, as if they were stolen."""
    keys = cluster._processes.keys
    return (None, None) if keys is None else (keys.of_node(node_id).own, keys.of_client().own)


def dropped(cluster: Cluster[Any], node_id: int) -> dict[str, int]:
    """What a node says it has dropped."""
    said: dict[str, int] = cluster.ask_node(node_id, "status", {}, 30.0).result()["dropped"]
    return {what: count for what, count in said.items() if "sent" not in what}


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_bytes_that_are_no_protocol_harm_nobody(raft_cluster: Spawn, transport: str) -> None:
    cluster = raft_cluster(Ledger, nodes=3, transport=transport)
    proxy = cluster.proxy(timeout=20.0)
    pids = {node_id: cluster.nodes[node_id].pid for node_id in cluster.nodes}
    leader, term = cluster.wait_for_leader(), max(row.term for row in cluster.status())
    silent = []
    for number, data in enumerate(RAW):
        for door in doors(cluster, leader):
            throw(door, data)
        assert proxy.append("k", number) == number + 1
    for door in doors(cluster, leader):
        if transport == "ipc":  # who connects and says nothing
            silent.append(socket.socket(socket.AF_UNIX))
            silent[-1].connect(door.removeprefix("ipc://"))
    assert proxy.append("k", "last") == len(RAW) + 1
    for one in silent:
        one.close()
    assert {node_id: cluster.nodes[node_id].pid for node_id in cluster.nodes} == pids
    assert max(row.term for row in cluster.status()) == term
    assert sum(dropped(cluster, leader).values()) > 0
    agree(cluster)


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_messages_of_strangers_are_counted_and_logged_once_a_reason(
    raft_cluster: Spawn, caplog: pytest.LogCaptureFixture, transport: str
) -> None:
    cluster = raft_cluster(Ledger, nodes=3, transport=transport, config=SMALL)
    leader = cluster.wait_for_leader()
    other = next(node_id for node_id in cluster.nodes if node_id != leader)
    cluster_id = bytes.fromhex(cluster._processes.place.info.cluster_id)
    peer_pair, client_pair = pairs(cluster, other)
    me = Introduction(other, cluster_id, bytes(8))
    tag = b"peer tag"
    coup = codec.encode_message(AppendEntries(other, leader, 10**6, -1, -1, [], -1))
    forged = codec.encode_message(AppendEntries(99, leader, 10**6, -1, -1, [], -1))
    peer_door, client_door = doors(cluster, leader)

    def hello_of(said: Introduction, tag: bytes) -> bytes:
        return hello.say(hello.HELLO, tag, hello.encode(said))

    cluster.nodes[other].pause()  # else it says hello again, and the stranger with its key is heard no more
    with dealer(peer_door, cluster, peer_pair) as stranger:
        for _ in range(5):
            stranger.send(hello_of(me._replace(versions=(70, 71)), tag))
            stranger.send(hello_of(me._replace(cluster_id=bytes(8)), tag))
            stranger.send(hello_of(me, tag)[:-1])
            stranger.send_multipart([b"", coup])
            stranger.send_multipart([coup])
            stranger.send_multipart([b"no hello", coup])
        stranger.send(hello_of(me, tag))
        for _ in range(5):
            stranger.send_multipart([tag, coup, coup, coup])
            stranger.send_multipart([tag, b"garbage"])
            stranger.send_multipart([tag, b""])
            stranger.send_multipart([tag, forged])
    cluster.nodes[other].resume()
    with dealer(client_door, cluster, client_pair) as stranger:
        asks = [
            b"garbage",
            b"\x91" * 10_000,
            codec.encode(codec.Commands(5, 0, 0, 10**9, b"x")),
            codec.encode(codec.Check(0, 0, b"", b"")),
            codec.encode(codec.Commands(5, 0, 0, 1, bytes(66_000))),
        ]
        stranger.send_multipart([tag, codec.encode(codec.Register(1))])
        stranger.send(hello_of(Introduction(hello.NOBODY, cluster_id, bytes(8)), tag))
        for _ in range(5):
            for ask in asks:
                stranger.send_multipart([tag, ask])
    for door in (peer_door, client_door):
        for _ in range(5):
            # With a key that nobody knows: once that is refused there is nowhere to send to.
            with dealer(door, cluster) as stranger, contextlib.suppress(zmq.Again):
                stranger.send(hello_of(me, tag), zmq.NOBLOCK)
                stranger.send_multipart([tag, bytes(6 << 20)], zmq.NOBLOCK)  # larger than anything may be
    counted = eventually(lambda: counts if len(counts := dropped(cluster, leader)) >= 7 else None)
    eventually(lambda: all(count >= 5 for count in dropped(cluster, leader).values()), what=f"all of {counted}")

    proxy = cluster.proxy(timeout=20.0)
    assert proxy.append("k", 1) == 1
    assert cluster.leader() == leader
    assert max(row.term for row in cluster.status()) < 10**6
    said = [record.message for record in caplog.records if record.name == f"actorraft.node.{leader}"]
    assert sum("further ones are only counted" in message for message in said) == len(dropped(cluster, leader))


@pytest.mark.parametrize(("asks", "size_bytes"), [(5_000, 60_000), (1_000, 1_000_000)], ids=["small", "large"])
def test_a_client_that_never_reads_its_answers_harms_nobody(raft_cluster: Spawn, asks: int, size_bytes: int) -> None:
    """1,000 answers of less than 64 KiB, or 64 MiB of larger ones, are held for it, and no more."""
    cluster = raft_cluster(Ledger, nodes=3)
    proxy = cluster.proxy(timeout=20.0)
    proxy.append("k", "x" * size_bytes)
    leader = cluster.wait_for_leader()
    before = resident_bytes(cluster, leader)
    body = msgspec.msgpack.encode([["get", "k"]])
    with dealer(doors(cluster, leader)[1], cluster) as stranger:
        stranger.rcvhwm = 1
        stranger.send(hello.say(hello.HELLO, b"some tag", hello.encode(Introduction(hello.NOBODY, bytes(8), bytes(8)))))
        for number in range(asks):
            ask = codec.encode(codec.Query(number, "linearizable", False, 1, body))
            with contextlib.suppress(zmq.Again):
                stranger.send_multipart([b"some tag", ask], zmq.NOBLOCK)
            if number % (asks // 5) == 0:
                assert proxy.count("k") == 1
        assert proxy.append("k", "y") == 2
        said = eventually(
            lambda: cluster.ask_node(leader, "status", {}, 30.0).result()["dropped"].get("answers not sent: full", 0),
            what="answers are dropped",
        )
        assert said > 0
        assert resident_bytes(cluster, leader) - before < (64 << 20) + (100 << 20)
    assert proxy.append("k", "z") == 3


def resident_bytes(cluster: Cluster[Any], node_id: int) -> int:
    """The memory of a node's process."""
    with open(f"/proc/{cluster.nodes[node_id].pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
