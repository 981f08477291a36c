"""The nemesis against a training: a parameter server is its machine, workers behind fronts that die too its clients."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actorraft import ActorOptions, ActorRef, RaftConfig, ReplicatedStateMachine, Supervision
from actorraft.actors.system import close_system
from parameter_server import ParameterClient, ParameterFront
from statemachines.parameter_server import Async, ParameterServer
from tests.nemesis.faults import Faults
from tests.nemesis.judge import wait_until_equal

SIZE = 5000
SECONDS = 12.0
WORKERS = ("a", "b", "c", "d")
KINDS = {"kill", "pause", "partition", "transfer", "snapshot"}
STAYS = Supervision(max_restarts=1000, backoff_s=(0.02, 0.2))


class Worker:
    """One worker: what it was told is applied, by step."""

    def __init__(self, name: str, fronts: list[ActorRef], done: threading.Event) -> None:
        self.name, self.fronts, self.done = name, fronts, done
        self.acknowledged = 0
        self.failed: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            with ParameterClient(self.name, self.fronts, timeout=120.0) as client:
                under_way: list[Any] = []
                while not self.done.is_set():
                    under_way.append(client.push(np.ones(SIZE, np.float32), 0))
                    time.sleep(0.005)
                client.flush(120.0)
                self.acknowledged = sum(1 for each in under_way if each.result(0.0) > 0)
        except BaseException as error:
            self.failed = error


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_acknowledged_update_counts_once_whatever_befalls_nodes_and_fronts(tmp_path: Path, seed: int) -> None:
    config = RaftConfig(snapshot_after_entries=500, trailing_entries=50)
    machine = ReplicatedStateMachine(ParameterServer, {"w": np.zeros(SIZE)}, Async(0.0))
    rng = random.Random(seed)
    close_system()
    with machine.spawn(5, data_dir=tmp_path / "data", config=config, timeout=60.0) as cluster:
        fronts = [ActorOptions(supervision=STAYS).spawn(ParameterFront, cluster.endpoints) for _ in range(2)]
        done = threading.Event()
        workers = [Worker(name, fronts[:: rng.choice([1, -1])], done) for name in WORKERS]
        faults = Faults(cluster, set(KINDS), seed)
        faults.start()
        until_s = time.monotonic() + SECONDS
        while time.monotonic() < until_s:
            time.sleep(rng.uniform(0.5, 2.0))
            pid = rng.choice(fronts).pid
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        faults.stop()
        done.set()
        for worker in workers:
            worker.thread.join(240.0)
        assert [worker.failed for worker in workers] == [None] * len(WORKERS)
        acknowledged = {worker.name: worker.acknowledged for worker in workers}
        server = cluster.proxy(timeout=60.0)
        told = server.progress()
        assert told.steps == acknowledged
        total = sum(acknowledged.values())
        assert (told.updates, total > 100) == (total, True)
        assert server.pull()[1]["w"].tolist() == [float(total)] * SIZE, "each was of ones: none is missing, none twice"
        assert wait_until_equal(cluster)[1] is not None
        assert len(faults.done) >= 5
        for front in fronts:
            front.kill()
    close_system()
