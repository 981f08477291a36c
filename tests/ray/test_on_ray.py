"""A cluster on a Ray of several nodes on one host: a member in each; one is lost with its machine, and replaced."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from actorraft import Ray, ReplicatedStateMachine, UsageError
from statemachines.kv import KVStore
from tests.cli.served import REPOSITORY, eventually

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]  # what is Ray's is Ray's


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that runs no members, and three nodes that may run one each."""
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    made.workers = [made.add_node(num_cpus=1) for _ in range(3)]
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def living() -> list[dict[str, Any]]:
    """The actors of Ray's that are alive, as its own control store has them."""
    from ray._private.state import actors

    return [actor for actor in actors().values() if actor["State"] == "ALIVE"]


@pytest.mark.cluster
@pytest.mark.slow  # a Ray of four nodes takes its time to come and go; make slow
def test_a_leader_that_is_lost_with_its_machine_is_succeeded_at_once_and_replaced(machines: Any) -> None:
    with ReplicatedStateMachine(KVStore).spawn(3, on=Ray(), timeout=120.0) as cluster:
        store = cluster.proxy(timeout=60.0)
        store.set("x", 1)
        eventually(lambda: all(row.alive and not row.not_ready for row in cluster.status()), what=cluster.status)
        leader = cluster.wait_for_leader()
        where = {actor["ActorID"]: actor["Address"]["NodeID"] for actor in living()}
        assert len(set(where.values())) == 3, "one on each"
        host = cluster._hosts[cluster._ids.index(leader)]  # type: ignore[attr-defined]
        [node] = [each for each in machines.workers if each.node_id == where[host._actor_id.hex()]]
        machines.remove_node(node, allow_graceful=False)
        began_s = time.monotonic()
        store.set("x", 2)
        took_s = time.monotonic() - began_s
        machines.add_node(num_cpus=1)
        eventually(
            lambda: (
                sorted(row.id for row in cluster.status() if row.alive and not row.not_ready)
                == sorted({0, 1, 2, 3} - {leader})
            ),
            120.0,
            cluster.status,
        )
        print(f"next commit {took_s:.3f} s after the loss, three members again {time.monotonic() - began_s:.1f} s")
        assert store.get("x") == 2
        assert cluster.proxy(timeout=60.0).set("x", 3)


SCRIPT = """
import sys
from actorraft import Ray, ReplicatedStateMachine
from statemachines.kv import KVStore
cluster = ReplicatedStateMachine(KVStore).spawn(3, on=Ray(sys.argv[1], detached=sys.argv[2] == "detached"), timeout=120.0)
cluster.proxy(timeout=60.0).set("x", 1)
print("set", flush=True)
"""


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["attached", "detached"])
def test_the_end_of_the_driver_ends_all_unless_they_are_detached(machines: Any, kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, machines.address, kind],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert "set" in done.stdout, done.stderr

    if kind == "attached":
        eventually(lambda: not living())
    else:
        assert len(living()) == 3


def test_what_cannot_be_said_with_ray_is_refused() -> None:
    with pytest.raises(UsageError, match="only name, durability and timeout"):
        ReplicatedStateMachine(KVStore).spawn(3, on=Ray(), http=["127.0.0.1:1"])
    with pytest.raises(UsageError, match="on is a Ray"):
        ReplicatedStateMachine(KVStore).spawn(3, on="ray")  # type: ignore[arg-type]
