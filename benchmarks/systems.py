"""The systems under load: ours, and which others there are.

Each deployment has a load generator of its own that speaks loadgen.py's lines, so that nobody is measured through
another's client.
"""

from __future__ import annotations

import math
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.deployment import MEND_S, System, Unusable, fresh_directory
from benchmarks.loadgen import LoadSpec

if TYPE_CHECKING:
    from actorraft import Cluster

ASK_S = 5.0  # how long a node may take to say how it is
FAULTS = ("crash", "freeze", "partition", "transfer", "none")


class ActorRaftSystem:
    """This library, at its default settings; `lease_reads` turns on what lease reads need, which is off by default."""

    name = "actorraft"
    durabilities: Sequence[str] = ("fsync", "os")
    faults: Sequence[str] = FAULTS
    election_durability = "fsync"

    def __init__(self, *, lease_reads: bool = False) -> None:
        self.lease_reads = lease_reads

    def deploy(self, nodes: int, durability: str, commands: str) -> ActorRaftDeployment:
        """Start a cluster of the machine that `commands` are for."""
        return ActorRaftDeployment(nodes, durability, commands, lease_reads=self.lease_reads)


class ActorRaftDeployment:
    """One cluster, its data on disk."""

    def __init__(self, nodes: int, durability: str, commands: str, *, lease_reads: bool = False) -> None:
        from actorraft import RaftConfig, ReplicatedStateMachine
        from benchmarks.machines import Register
        from statemachines.kv import KVStore

        machine: Any = {"kv": KVStore, "method": Register, "object": dict}[commands]
        self.directory = fresh_directory(self.__class__.__name__.lower())
        try:
            self.cluster: Cluster[Any] = ReplicatedStateMachine(machine).spawn(
                nodes,
                data_dir=self.directory / "data",
                durability=durability,  # type: ignore[arg-type]  # spawn refuses what it is not
                config=RaftConfig(lease_reads=True) if lease_reads else None,
            )
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise
        self.broken: tuple[str, int] | None = None

    def generator(self, spec: LoadSpec) -> list[str]:
        """Start loadgen.py in the parent's interpreter."""
        return [sys.executable, "-m", "benchmarks.loadgen", spec.to_json()]

    def endpoints(self) -> dict[str, str]:
        """Return what a LoadSpec takes."""
        return {str(node_id): endpoint for node_id, endpoint in self.cluster.endpoints.items()}

    def serves(self, operation: str) -> bool:
        """Everything."""
        return True

    def pids(self) -> dict[str, list[int]]:
        """Return the nodes' processes by role."""
        leader = self.cluster.wait_for_leader()
        nodes = {node_id: node.pid for node_id, node in self.cluster.nodes.items() if node.pid is not None}
        return {
            "leader": [pid for node_id, pid in nodes.items() if node_id == leader],
            "followers": [pid for node_id, pid in nodes.items() if node_id != leader],
        }

    def _ask(self, without: int | None = None) -> list[dict[str, Any]]:
        """Return what each node says of itself; one that does not answer is left out."""
        asked = [self.cluster.ask_node(each, "status", {}, ASK_S) for each in self.cluster.nodes if each != without]
        return [future.result() for future in asked if future.exception() is None]

    def work(self) -> dict[str, int]:
        """Return the leader's counts."""
        leader = [said for said in self._ask() if said["state"] == "leader"]
        return {name: value for name, value in leader[0]["metrics"].items() if type(value) is int} if leader else {}

    def term(self) -> int:
        """Return the highest term that a node knows."""
        return max(int(said["term"]) for said in self._ask())

    def phases(self, at_s: float) -> tuple[float, float]:
        """Ask the nodes, which run by this machine's clock too."""
        kind, node_id = self.broken if self.broken is not None else ("none", -1)
        said = self._ask(without=None if kind == "transfer" else node_id)
        lost = [each["metrics"]["leader_lost_s"] for each in said if each["metrics"]["leader_lost_s"] >= at_s]
        led = [each["metrics"]["leader_found_s"] for each in said if each["state"] == "leader"]
        return min(lost, default=math.nan), max((one for one in led if one >= at_s), default=math.nan)

    def fault(self, kind: str) -> float:
        """Break the leader, or hand over from it."""
        cluster = self.cluster
        leader = cluster.wait_for_leader()
        others = sorted(set(cluster.nodes) - {leader})
        self.broken = (kind, leader)
        at = time.monotonic()
        match kind:
            case "crash":
                cluster.nodes[leader].kill()
            case "freeze":
                cluster.nodes[leader].pause()
            case "partition":
                cluster.partition({leader}, set(others))
            case "transfer":
                cluster.transfer_leadership(random.choice(others))
            case other:
                raise ValueError(f"no fault {other!r}; there are {FAULTS}")
        return at

    def mend(self) -> None:
        """Bring the broken node back and wait until it is level with the others."""
        assert self.broken is not None
        kind, node_id = self.broken
        self.broken = None
        match kind:
            case "crash":
                self.cluster.nodes[node_id].restart()
            case "freeze":
                self.cluster.nodes[node_id].resume()
            case "partition":
                self.cluster.heal()
        wait_until_level(self.cluster)

    def close(self) -> None:
        """Close the cluster and remove its data."""
        self.cluster.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def wait_until_level(cluster: Cluster[Any], timeout_s: float = MEND_S) -> None:
    """Wait until every node is up, knows a leader, and has applied what was committed when this began.

    Raises:
        TimeoutError: with the status that was seen last.
    """
    deadline = time.monotonic() + timeout_s
    target: int | None = None
    while True:
        rows = cluster.status()
        alive = all(row.alive and row.error is None for row in rows)
        if target is None and any(row.commit_index >= 0 for row in rows):
            target = max(row.commit_index for row in rows)
        led = sum(row.state.lower().startswith("leader") for row in rows) == 1
        if alive and led and target is not None and all(row.last_applied >= target for row in rows):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"not level within {timeout_s} s:\n{rows}")
        time.sleep(0.02)


def system(name: str) -> System:
    """Return the system of that name.

    Raises:
        Unusable: there is none, or it is not installed here.
    """
    if name == "actorraft":
        return ActorRaftSystem()
    if name == "pysyncobj":
        from benchmarks.others.pysyncobj_system import PySyncObjSystem

        return PySyncObjSystem()
    if name == "etcd":
        from benchmarks.others.etcd_system import EtcdSystem

        return EtcdSystem()
    if name == "zookeeper":
        from benchmarks.others.zookeeper_system import ZooKeeperSystem

        return ZooKeeperSystem()
    if name == "redis":
        from benchmarks.others.redis_system import RedisSystem

        return RedisSystem()
    raise Unusable(f"no system {name!r}; there are: actorraft, pysyncobj, etcd, zookeeper, redis")


def usable_systems(others: Sequence[str], skipped: Callable[[str], None], *, lease_reads: bool = False) -> list[System]:
    """Return ours and those of the others that are installed here; say why one is not."""
    found: list[System] = [ActorRaftSystem(lease_reads=lease_reads)]
    for name in others:
        try:
            found.append(system(name))
        except Unusable as error:
            skipped(f"without {name}: {error}")
    return found
