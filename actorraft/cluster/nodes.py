"""The nodes of a cluster as its owner handles them, one process each: `cluster.nodes[id].kill()` and so on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from actorraft.actors.process import ActorProcess

if TYPE_CHECKING:
    from actorraft.cluster.cluster import Cluster


class Node:
    """One node's process, as `cluster.nodes[id]`."""

    def __init__(self, cluster: Cluster[Any], node_id: int) -> None:
        self._cluster = cluster
        self.id = node_id

    @property
    def pid(self) -> int | None:
        """The process id, None while there is no process."""
        process = self._cluster._processes.get(self.id)
        return process.pid if process is not None and process.alive else None

    @property
    def alive(self) -> bool:
        """Whether the process is there (a paused one is)."""
        process = self._cluster._processes.get(self.id)
        return process is not None and process.alive

    def kill(self) -> None:
        """SIGKILL. It stays down until `restart()`."""
        self._cluster._take_down(self.id, ActorProcess.kill)

    def stop(self) -> None:
        """Ask it to leave, and wait until it has. It stays down until `restart()`."""
        self._cluster._take_down(self.id, ActorProcess.terminate)

    def restart(self, *, timeout: float = 30.0) -> None:
        """Start it again, on the data it left; return when it serves. One that still runs is stopped first."""
        self._cluster._monitor.pardon(f"node {self.id}")
        self._cluster._restart(self.id, timeout)

    def pause(self) -> None:
        """SIGSTOP."""
        self._cluster._process(self.id).pause()
        self._cluster._paused.add(self.id)

    def resume(self) -> None:
        """SIGCONT."""
        self._cluster._process(self.id).resume()
        self._cluster._paused.discard(self.id)

    def logs(self, lines: int = 100) -> list[str]:
        """Return the last lines that the process wrote."""
        process = self._cluster._processes.get(self.id)
        return process.logs(lines) if process is not None else []

    def __repr__(self) -> str:
        return f"<Node {self.id} {f'pid {self.pid}' if self.alive else 'down'}>"


class Nodes(Mapping[int, Node]):
    """The nodes of a cluster by id; ids are never given twice."""

    def __init__(self, cluster: Cluster[Any]) -> None:
        self._cluster = cluster

    def __getitem__(self, node_id: int) -> Node:
        if node_id not in self._cluster._place.info.node_ids:
            raise KeyError(f"no node {node_id}; the nodes are {list(self._cluster._place.info.node_ids)}")
        return Node(self._cluster, node_id)

    def __iter__(self) -> Iterator[int]:
        return iter(self._cluster._place.info.node_ids)

    def __len__(self) -> int:
        return len(self._cluster._place.info.node_ids)
