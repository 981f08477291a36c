"""Fronts and workers in real processes: whoever is killed, each acknowledged update is there once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actorraft import Actor, ActorOptions, ActorRef, Cluster, RaftConfig, ReplicatedStateMachine, Supervision
from actorraft.actors.system import close_system
from parameter_server import ParameterClient, ParameterFront, sending
from statemachines import updates
from statemachines.parameter_server import Async, Mean, ParameterServer, Rule, Superseded
from tests.cluster.helpers import Spawn, agree, eventually

pytestmark = pytest.mark.cluster

SIZE = 200
STAYS = Supervision(max_restarts=1000, backoff_s=(0.01, 0.1))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    close_system()
    yield
    close_system()


def ones() -> Any:
    return np.ones(SIZE, np.float32)


def start(raft_cluster: Spawn, rule: Rule, workers: Any = None, **options: Any) -> Cluster[ParameterServer]:
    return raft_cluster(ReplicatedStateMachine(ParameterServer, {"w": np.zeros(SIZE)}, rule, workers), 3, **options)


def front(cluster: Cluster[Any]) -> ActorRef:
    return ActorOptions(supervision=STAYS).spawn(ParameterFront, cluster.endpoints)


def kill(ref: ActorRef) -> None:
    """Kill the process behind a ref, unasked: its supervision starts it again."""
    pid = eventually(lambda: ref.pid, what="the front runs")
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: ref.pid not in (None, pid), what="it runs again")


def kill_all(cluster: Cluster[Any]) -> None:
    """Kill every node at once, and start them again."""
    for node in cluster.nodes.values():
        os.kill(node.pid, signal.SIGKILL)
    for node in cluster.nodes.values():
        node.restart()


def check(cluster: Cluster[ParameterServer], steps: dict[str | int, int]) -> None:
    """Every update was of ones: what there is says how many were applied."""
    server = cluster.proxy(timeout=60.0)
    told = server.progress()
    assert (told.steps, told.updates) == (steps, sum(steps.values()))
    assert server.pull()[1]["w"].tolist() == [float(sum(steps.values()))] * SIZE
    agree(cluster)


def test_a_front_killed_twenty_times_between_submit_and_answer_loses_and_doubles_nothing(raft_cluster: Spawn) -> None:
    cluster = start(raft_cluster, Async(0.0))
    ref = front(cluster)
    with ParameterClient("a", ref, timeout=60.0) as one, ParameterClient("b", ref, timeout=60.0) as other:
        answers = []
        for _ in range(20):
            answers += [one.push(ones(), 0), other.push(ones(), 0), one.push(ones(), 0)]
            kill(ref)
        for answer in answers:
            answer.result(60)
    check(cluster, {"a": 40, "b": 20})


def test_two_fronts_of_which_one_dies_now_and_then(raft_cluster: Spawn) -> None:
    cluster = start(raft_cluster, Async(0.0))
    fronts = [front(cluster), front(cluster)]
    done = threading.Event()
    counts = dict.fromkeys("abc", 0)

    def work(worker: str, order: list[ActorRef]) -> None:
        with ParameterClient(worker, order, timeout=60.0) as client:
            while not done.is_set() or counts[worker] < 20:
                client.push(ones(), 0)
                counts[worker] += 1
            client.flush(60)

    workers = [
        threading.Thread(target=work, args=(name, fronts if place % 2 else fronts[::-1]))
        for place, name in enumerate(counts)
    ]
    for worker in workers:
        worker.start()
    for number in range(6):
        kill(fronts[number % 2])
    done.set()
    for worker in workers:
        worker.join(120)
    check(cluster, dict(counts))


def test_a_window_holds_two_steps_of_one_worker_and_sums_leave_out_what_was_applied(raft_cluster: Spawn) -> None:
    cluster = start(raft_cluster, Async(0.0), ["a", "b"])
    ref = front(cluster)
    encoded = updates.whole(ones())
    leader = cluster.wait_for_leader()
    asked = [ref.ask(("push", "b", 1, 0, None, 1.0, encoded), 60.0)]
    assert asked[0].result(60) == 1
    cluster.proxy(timeout=60.0).push("a", 1, 0, encoded)
    cluster.nodes[leader].pause()  # what comes meanwhile is one window
    asked = [
        ref.ask(("push", "b", 2, 0, None, 1.0, encoded), 60.0),
        ref.ask(("push", "b", 3, 0, None, 1.0, encoded), 60.0),
    ]
    asked += [
        ref.ask(("push", *each, 0, None, 1.0, encoded), 60.0) for each in (("a", 1), ("a", 2), ("b", 4), ("a", 3))
    ]
    ref.ask(("layout",), 60.0).result(60)  # it takes messages in order: all of them are there
    cluster.nodes[leader].resume()
    answers = [each.result(60) for each in asked]
    assert answers[2] == 2, "answered as it was when it was applied"
    check(cluster, {"a": 3, "b": 4})
    assert cluster.proxy().progress().version < 7, "some went as a sum"


@pytest.mark.parametrize(
    "size", [1_200_000, 700_000], ids=["above an entry of ours", "above one of the cluster's only"]
)
def test_updates_larger_than_a_frame_come_in_ranges_whoever_is_killed_on_the_way(
    raft_cluster: Spawn, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "MESSAGE_BYTES_MAX", 1 << 20)  # so that it goes to the front in ranges, too
    config = RaftConfig(frame_bytes_max=2 << 20)  # 4.8 and 2.8 MB, where a frame takes 2 MiB
    machine = ReplicatedStateMachine(ParameterServer, {"w": np.zeros(size)}, Async(0.0))
    cluster = raft_cluster(machine, 3, config=config)
    ref = front(cluster)
    update = np.ones(size, np.float32)
    with ParameterClient("a", ref, timeout=60.0) as one, ParameterClient("b", cluster, timeout=60.0) as other:
        assert one.push(update, 0).result(60) == 1
        assert other.push(update, 0).result(60) == 2
        answers = [one.push(update, 0), other.push(update, 0)]
        leader = cluster.wait_for_leader()
        cluster.nodes[leader].kill()
        cluster.nodes[leader].restart()
        answers.append(one.push(update, 0))
        kill(ref)
        for answer in answers:
            answer.result(60)
        version, vector = one.pull_vector(min_version=5)
    assert version == 5, "each counts once"
    assert (vector.min(), vector.max()) == (5.0, 5.0)
    agree(cluster)


def test_parameters_larger_than_an_answer_are_pulled_in_ranges_of_one_version_whoever_is_killed_meanwhile(
    raft_cluster: Spawn,
) -> None:
    size, config = 1_200_000, RaftConfig(frame_bytes_max=2 << 20)  # 4.8 MB: above what is asked for at once
    machine = ReplicatedStateMachine(ParameterServer, {"w": np.zeros(size)}, Async(0.0), ["p"])
    cluster = raft_cluster(machine, 3, config=config)
    ref, done = front(cluster), threading.Event()

    def push() -> None:
        with ParameterClient("p", cluster, timeout=60.0) as client:
            while not done.is_set():
                client.push(np.ones(size, np.float32), 0).result(60)

    pusher = threading.Thread(target=push)
    pusher.start()
    try:
        with ParameterClient("a", ref, timeout=60.0) as one, ParameterClient("b", cluster, timeout=60.0) as other:
            for number in range(4):
                for client in (one, other):
                    version, vector = client.pull_vector()
                    assert (vector.min(), vector.max()) == (version, version), "of one version"
                    version, _ = client.pull_vector(min_version=version + 1)
                if number == 0:
                    leader = cluster.wait_for_leader()
                    cluster.nodes[leader].kill()
                    cluster.nodes[leader].restart()
                if number == 1:
                    kill(ref)
    finally:
        done.set()
        pusher.join(60)
    agree(cluster)


class Worker(Actor):
    """Pushes, and says so without waiting for an answer."""

    def __init__(self, front: ActorRef) -> None:
        self.front = front

    def on_start(self) -> None:
        self.client = ParameterClient("w", self.front, timeout=60.0)

    def push(self) -> int:
        """Send one update."""
        self.client.push(ones(), 0)
        return self.client.step

    def push_and_wait(self) -> int:
        """Send one update; return what its answer is."""
        return self.client.push(ones(), 0).result(60)


def test_a_worker_killed_after_its_push_was_sent_goes_on_from_its_last_step(raft_cluster: Spawn) -> None:
    cluster = start(raft_cluster, Async(0.0))
    ref = front(cluster)
    for _ in range(5):
        worker = ActorOptions(supervision=None).spawn(Worker, ref)
        worker.proxy(timeout=60.0).push()
        pid = worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    with ParameterClient("w", ref, timeout=60.0) as client:
        before = client.step
        assert before <= 5, "none of its pushes counted twice"
        client.push(ones(), 0).result(60)
        assert client.step == before + 1
    check(cluster, {"w": client.step})


def test_a_worker_that_was_paused_and_replaced_cannot_push_beside_its_successor(raft_cluster: Spawn) -> None:
    cluster = start(raft_cluster, Async(0.0))
    ref = front(cluster)
    first = ActorOptions(supervision=None).spawn(Worker, ref)
    first.proxy(timeout=60.0).push()
    eventually(lambda: cluster.proxy(timeout=60.0).progress().updates == 1, what="its push is there")
    pid = first.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with ParameterClient("w", [front(cluster), ref], timeout=60.0) as successor:
        assert successor.step == 1
        os.kill(pid, signal.SIGCONT)
        with pytest.raises(Superseded):
            first.proxy(timeout=60.0).push_and_wait()
        assert successor.push(ones(), 1).result(60) == 2
    check(cluster, {"w": 2})


def test_nobody_waits_for_a_worker_that_left_for_good(raft_cluster: Spawn) -> None:
    cluster = start(raft_cluster, Mean())
    ref = front(cluster)
    with ParameterClient("a", ref, timeout=60.0) as stays, ParameterClient("b", ref, timeout=60.0) as leaves:
        round_0 = stays.push(ones(), 0)
        leaves.push(ones(), 0).result(60)
        assert round_0.result(60) == 1
        version, _ = stays.pull(min_version=1)
        answer = stays.push(ones(), version)
        leaves.leave()
        assert answer.result(60) == 2
        assert stays.pull(min_version=2)[0] == 2


@pytest.mark.parametrize("compress", [None, "bfloat16", 0.25])
def test_all_nodes_killed_at_once_in_mid_training_it_goes_on_from_the_last_acknowledged_update(
    raft_cluster: Spawn, tmp_path: Path, compress: Any
) -> None:
    cluster = start(raft_cluster, Async(0.0), data_dir=tmp_path / "data", durability="fsync")
    ref = front(cluster)
    acknowledged = {"a": 0, "b": 0}
    killed = threading.Event()

    def work(worker: str) -> None:
        rng = np.random.default_rng(ord(worker))
        with ParameterClient(worker, ref, timeout=60.0, compress=compress) as client:
            while acknowledged[worker] < 10 or not killed.is_set():
                client.push(rng.standard_normal(SIZE).astype(np.float32), 0).result(60)
                acknowledged[worker] += 1

    workers = [threading.Thread(target=work, args=(name,)) for name in acknowledged]
    for each in workers:
        each.start()
    eventually(lambda: min(acknowledged.values()) >= 5, what="training is under way")
    kill_all(cluster)
    killed.set()
    for each in workers:
        each.join(120)
    server = cluster.proxy(timeout=60.0)
    told = server.progress()
    assert told.steps == acknowledged
    assert told.updates == sum(acknowledged.values())
    agree(cluster)
    as_applied = server.pull_vector()
    kill_all(cluster)
    assert server.pull_vector() == as_applied, "the sums that are in the log have the same bits, added up anew"
