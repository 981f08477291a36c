"""A cluster of nodes that were started by `actorraft serve`, each on a host of its own, as the nemesis sees one.

Nobody starts a node again but the nemesis itself; clients are on one more host, which reaches every side of a partition
through the nodes' addresses alone.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.machines.hosts import Host, Hosts, eventually, inside

SETTINGS: Final = {
    "ACTORRAFT_RAFT__SNAPSHOT_AFTER_ENTRIES": "3000",
    "ACTORRAFT_RAFT__TRAILING_ENTRIES": "300",
    "ACTORRAFT_RAFT__SNAPSHOT_AFTER_BYTES": str(8 << 20),
    "ACTORRAFT_RAFT__LEASE_READS": "true",
}
SERVES_S: Final = 60.0


class ServedNode:
    """One host's node, with the handles of a spawned one."""

    def __init__(self, node_id: int, host: Host) -> None:
        self.id = node_id
        self._host = host

    @property
    def alive(self) -> bool:
        return self._host.process is not None and self._host.process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._host.process.pid if self.alive and self._host.process is not None else None

    def kill(self) -> None:
        self._host.kill()

    def pause(self) -> None:
        self._host.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._host.signal(signal.SIGCONT)

    def restart(self) -> None:
        """Run the same line again, if it does not run; return once it serves."""
        if not self.alive:
            self._host.serve(environment=SETTINGS)
        eventually(lambda: self._host.serves_s, SERVES_S, self._host.said)


class ServedCluster:
    """A client of the cluster, and the handles of its nodes."""

    def __init__(self, net: Hosts, client: Any) -> None:
        self.nodes = {node_id: ServedNode(node_id, host) for node_id, host in net.nodes.items()}
        self._net = net
        self._client = client
        self._processes = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def kill_together(self) -> None:
        """SIGKILL every node before any of them is waited for."""
        for host in self._net.nodes.values():
            host.signal(signal.SIGKILL)
        for host in self._net.nodes.values():
            host.kill()

    def partition(self, *groups: set[int]) -> None:
        """Lose every packet between groups of nodes; a node in none is alone. Clients reach all."""
        side = {node_id: number for number, group in enumerate(groups) for node_id in group}
        numbers = {node_id: host.number for node_id, host in self._net.nodes.items()}
        self._net.router.cut_pairs(
            {
                (numbers[one], numbers[other])
                for one in numbers
                for other in numbers
                if one != other and (one not in side or side[one] != side.get(other))
            }
        )

    def heal(self) -> None:
        self._net.router.heal()


@contextlib.contextmanager
def serve(machine: type[Any], nodes: int, durability: str, directory: Path) -> Iterator[ServedCluster]:
    """Found a cluster on hosts of its own, start it, and be on the clients' host."""
    from actorraft import connect

    directory.mkdir()
    net = Hosts(directory, nodes)
    try:
        with inside(net.all[0].namespace):
            net.found("--durability", durability, nodes=nodes, machine=f"{machine.__module__}:{machine.__qualname__}")
            for host in net.nodes.values():
                host.serve(environment=SETTINGS)
            with connect(net.client_folder, machine, timeout=SERVES_S) as client:
                net.settled(client)
                cluster = ServedCluster(net, client)
                yield cluster
    finally:
        net.close()
