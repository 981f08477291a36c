"""Raft over each real net: three nodes elect a leader, commit, and go on after a connection or a node is lost."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actorraft.node.control import RaftControl
from transports.tcp import TCPRaftNet
from transports.zeromq import ZeroMQRaftNet

pytestmark = pytest.mark.cluster

Nodes = list[RaftControl]


def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Wait for something that other threads do."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.002)
    return value


@pytest.fixture(params=["tcp", "zeromq-tcp", "zeromq-ipc"])
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    directory = Path(tempfile.mkdtemp(prefix="raft-"))
    if request.param == "zeromq-ipc":
        peers = {node_id: f"ipc://{directory}/{node_id}" for node_id in range(3)}
    else:
        listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        peers = {node_id: f"tcp://127.0.0.1:{each.getsockname()[1]}" for node_id, each in enumerate(listening)}
        for each in listening:
            each.close()
    make = TCPRaftNet if request.param == "tcp" else ZeroMQRaftNet
    controls = [RaftControl(make(node_id, peers)) for node_id in peers]
    for control in controls:
        control.start()
    yield controls
    for control in controls:
        control.stop()
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()


def leader_of(nodes: Nodes) -> RaftControl:
    """Wait for the one that leads; among those given."""
    return until(lambda: next((node for node in nodes if node.is_leader()), None))  # type: ignore[no-any-return]


def commit(nodes: Nodes, item: Any) -> int:
    """Append through whoever leads until it is committed."""

    def appended() -> Any:
        try:
            return (leader_of(nodes).client_append_entry(item).result(2.0),)
        except Exception:  # deposed, or not yet able to say: ask whoever leads then
            return None

    return int(until(appended)[0])


def test_three_nodes_elect_a_leader_and_commit(nodes: Nodes) -> None:
    indexes = [commit(nodes, f"x={number}") for number in range(20)]

    assert indexes == sorted(set(indexes))
    until(lambda: all(node.server.commit_index >= indexes[-1] for node in nodes))
    logs = [[entry.item for entry in node.server.log] for node in nodes]
    assert logs[0] == logs[1] == logs[2]


def test_two_of_three_go_on_without_the_leader(nodes: Nodes) -> None:
    commit(nodes, "before")
    lost = leader_of(nodes)

    lost.stop()

    others = [node for node in nodes if node is not lost]
    index = commit(others, "after")
    until(lambda: all(node.server.commit_index >= index for node in others))


@pytest.mark.parametrize("nodes", ["tcp"], indirect=True)
def test_a_tcp_cluster_survives_the_loss_of_every_connection(nodes: Nodes) -> None:
    commit(nodes, "before")

    for node in nodes:
        net = node.net
        assert isinstance(net, TCPRaftNet)
        listening = int(net.endpoint.rpartition(":")[2])
        for connection in list(net._sockets):
            with contextlib.suppress(OSError):  # closed already, from the other end
                if connection.getsockname()[1] != listening:  # an outgoing one; each connection has such an end
                    connection.shutdown(socket.SHUT_RDWR)

    index = commit(nodes, "after")
    until(lambda: all(node.server.commit_index >= index for node in nodes))
