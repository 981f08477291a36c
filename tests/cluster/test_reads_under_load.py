"""Reads and watches of real processes: too many at once, too large, too slow, or nobody takes the answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from actorraft import Cluster, ResultLost, codec
from actorraft.ports import Kinds
from tests.cluster.helpers import Spawn, eventually, follower_of
from tests.cluster.machines import Publishes
from transports.zeromq import ZeroMQClientChannel

pytestmark = pytest.mark.cluster


class Raw:
    """A client that sends what it likes, to one node."""

    def __init__(self, channel: ZeroMQClientChannel, node_id: int) -> None:
        self._channel = channel
        self._node_id = node_id
        self.replies: list[Any] = []

    def read(self, request_id: int, *call: Any, follower: bool = False, **fields: Any) -> None:
        body = codec.join_body([msgspec.msgpack.encode(list(call))])
        query = codec.Query(request_id, "linearizable", follower, 1, body, **fields)
        while not self._channel.send(self._node_id, codec.encode(query)):
            self.of(codec.Answers)  # the queue is full

    def of(self, kind: type[Any]) -> list[Any]:
        for envelope in self._channel.wait(0.01):
            if envelope.kind == Kinds.FRAME:
                self.replies.append(codec.decode_reply(envelope.frame))
        return [reply for reply in self.replies if isinstance(reply, kind)]


@contextmanager
def raw(cluster: Cluster[Any], node_id: int) -> Iterator[Raw]:
    channel = ZeroMQClientChannel()
    channel.set_endpoints({node_id: cluster.endpoints[node_id]})
    eventually(lambda: any(envelope.kind == Kinds.CONNECTED for envelope in channel.wait(0.05)))
    yield Raw(channel, node_id)
    channel.close()


def terms(cluster: Cluster[Any]) -> set[int | None]:
    return {row.term for row in cluster.status(timeout=20.0)}


def everything(client: Raw, count: int) -> list[type[Any]]:
    """What became of each of so many reads, once that is known."""
    said = client.of(object)
    return [type(reply) for reply in said] if len(said) >= count else []


@pytest.mark.parametrize(("count", "seconds"), [(400, 0.003), (1_200, 0.001), (120, 0.012)])
def test_many_reads_at_once_are_all_served_and_no_leader_changes(
    raft_cluster: Spawn, count: int, seconds: float
) -> None:
    cluster = raft_cluster(Publishes, nodes=3)
    cluster.proxy().emit()
    for _ in range(3):  # a machine that stands still may cause an election now and then; the reads would each time
        before = eventually(lambda: len(told := terms(cluster)) == 1 and told)
        with raw(cluster, cluster.wait_for_leader()) as client:
            for request_id in range(count):
                client.read(request_id, "scan", seconds)
            answered = eventually(lambda: everything(client, count))
        if terms(cluster) == before:
            assert answered.count(codec.Answers) == count
            return
    raise AssertionError("each time")


def test_a_slow_read_that_is_asked_again_and_again_runs_once(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Publishes, nodes=1)
    with raw(cluster, 0) as client:
        for _ in range(20):
            client.read(1, "scan", 0.5)
        client.read(2, "scans")
        eventually(lambda: len(client.of(codec.Answers)) == 2)
        assert [1, 1] == [client.of(codec.Answers)[1].values[0], len(client.of(codec.Answers)[0].values)]


def test_one_clients_slow_reads_do_not_starve_anothers(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Publishes, nodes=1)
    with raw(cluster, 0) as greedy:
        for request_id in range(300):
            greedy.read(request_id, "scan", 0.03)
        for _ in range(5):
            cluster.proxy().scans()
        assert len(greedy.of(codec.Answers)) < 200


def test_a_follower_serves_a_read_once_it_has_the_index_that_it_asks_for(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Publishes, nodes=3)
    leader, follower = cluster.wait_for_leader(), follower_of(cluster)
    cluster.proxy().emit()
    with raw(cluster, leader) as at_leader, raw(cluster, follower) as at_follower:
        index = next(row.commit_index for row in cluster.status() if row.id == leader)
        assert index is not None
        at_follower.read(1, "count", follower=True, min_index=index + 3)
        at_leader.read(1, "count")
        eventually(lambda: at_leader.of(codec.Answers))
        assert [] == at_follower.of(codec.Answers)
        for _ in range(3):
            cluster.proxy().emit()
        [answer] = eventually(lambda: at_follower.of(codec.Answers))
        assert [4] == answer.values


@pytest.mark.parametrize("mebibytes", [65, 100])
def test_a_result_that_no_link_carries_is_lost_and_its_client_goes_on(raft_cluster: Spawn, mebibytes: int) -> None:
    cluster = raft_cluster(Publishes, nodes=1)
    proxy = cluster.proxy(timeout=20.0)
    with pytest.raises(ResultLost):
        proxy.large(mebibytes)
    with pytest.raises(ResultLost):
        proxy.large_read(mebibytes)
    assert proxy.emit() == 1


WATCHER = """
import json, sys, threading
from actorraft import connect
client = connect({int(node): endpoint for node, endpoint in json.loads(sys.argv[1]).items()})
seen = []
def read():
    for event in client.watch("t"):
        seen.append(event.event[0])
        if event.event[1] == "last":
            print(json.dumps(seen), flush=True)
            return
reader = threading.Thread(target=read)
reader.start()
while not seen:
    pass
print("begun", flush=True)
reader.join()
client.close()
"""


def test_a_watcher_that_is_stopped_for_a_while_hears_everything_when_it_goes_on(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Publishes, nodes=1)
    proxy = cluster.proxy(timeout=30.0)
    command = [sys.executable, "-W", "ignore", "-c", WATCHER, json.dumps(cluster.endpoints)]
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        first = 0
        signs = _lines(watcher)
        while not signs:
            first = proxy.publish("")
        os.kill(watcher.pid, signal.SIGSTOP)
        for _ in range(50):
            futures = [proxy.publish.submit("x" * 500) for _ in range(100)]  # type: ignore[attr-defined]
            for future in futures:
                future.result()
        os.kill(watcher.pid, signal.SIGCONT)
        last = proxy.publish("last")
        eventually(lambda: len(signs) == 2)
        seen = json.loads(signs[1])
        assert seen == list(range(seen[0], last + 1))
        assert seen[0] <= first
    finally:
        watcher.kill()
        watcher.communicate()


def _lines(process: subprocess.Popen[str]) -> list[str]:
    """What a process prints, as it prints it."""
    lines: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.strip())

    threading.Thread(target=read, daemon=True).start()
    return lines
