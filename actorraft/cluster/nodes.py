"""The nodes of a cluster as its owner handles them, one process each: `cluster.nodes[id].kill()` and so on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NoReturn

from actorraft.actors.process import describe_exit, last_lines
from actorraft.client.arguments import bounded
from actorraft.client.status import html_table

if TYPE_CHECKING:
    from actorraft.cluster.processes import NodeProcesses


class Node:
    """One node's process, as `cluster.nodes[id]`."""

    def __init__(self, processes: NodeProcesses, node_id: int) -> None:
        self._processes = processes
        self.id = node_id

    @property
    def pid(self) -> int | None:
        """Return the process id, None while there is no process."""
        process = self._processes.find(self.id)
        return process.pid if process is not None and process.alive else None

    @property
    def alive(self) -> bool:
        """Whether the process is there (a paused one is)."""
        process = self._processes.find(self.id)
        return process is not None and process.alive

    @property
    def exit_code(self) -> int | None:
        """With what the last process ended, minus the signal's number if one killed it; None while it lives."""
        process = self._processes.find(self.id)
        return process.returncode if process is not None else None

    @property
    def restarting(self) -> bool:
        """Whether a process that is gone is started again without being asked for: supervision looks after it."""
        process = self._processes.find(self.id)
        return process is not None and process.wanted and self._processes.supervised

    def __reduce__(self) -> NoReturn:
        raise TypeError("a node's handle belongs to the process that started it and cannot be sent; send its id")

    def kill(self) -> None:
        """SIGKILL. It stays down until `restart()`."""
        self._processes.kill(self.id)

    def stop(self) -> None:
        """Ask it to leave, and wait until it has. It stays down until `restart()`."""
        self._processes.stop(self.id)

    def restart(self, *, timeout: float = 30.0) -> None:
        """Start it again, on the data it left; return when it serves. One that still runs is stopped first.

        Raises:
            StartError: it did not come up; with its own words.
        """
        self._processes.restart(self.id, bounded(timeout))

    def pause(self) -> None:
        """SIGSTOP; return once the process stands still, or after a second."""
        self._processes.pause(self.id)

    def resume(self) -> None:
        """SIGCONT."""
        self._processes.resume(self.id)

    def logs(self, lines: int = 100) -> list[str]:
        """Return the last lines that the process wrote."""
        process = self._processes.find(self.id)
        return process.logs(lines) if process is not None else last_lines([], lines)

    def how(self) -> str:
        """Say in words how its process is: "pid 4711", or how it ended."""
        if self.alive:
            return f"pid {self.pid}"
        ended = "" if self.exit_code is None else f", {describe_exit(self.exit_code)}"
        return f"down{ended}" + (", starts again" if self.restarting else "")

    def _repr_html_(self) -> str:
        """Show it in a notebook, with the last that its process wrote."""
        return html_table(("node", "process", "last lines"), [(self.id, self.how(), " | ".join(self.logs(3)))])

    def __repr__(self) -> str:
        return f"<Node {self.id} {self.how()}>"


class Nodes(Mapping[int, Node]):
    """The nodes of a cluster by id; ids are never given twice."""

    def __init__(self, processes: NodeProcesses) -> None:
        self._processes = processes

    def __getitem__(self, node_id: int | None) -> Node:
        """Return a node; `nodes[cluster.leader()]` too, which is a KeyError while nobody is known to lead."""
        if node_id is None:
            raise KeyError("no leader is known now: nodes[cluster.wait_for_leader()]")
        if node_id not in self._processes.node_ids:
            raise KeyError(f"no node {node_id}; the nodes are {list(self._processes.node_ids)}")
        return Node(self._processes, node_id)

    def __iter__(self) -> Iterator[int]:
        return iter(self._processes.node_ids)

    def __len__(self) -> int:
        return len(self._processes.node_ids)

    def _repr_html_(self) -> str:
        """Show them in a notebook."""
        return html_table(("node", "process"), [(node.id, node.how()) for node in self.values()])

    def __repr__(self) -> str:
        return f"<Nodes {', '.join(f'{node.id}: {node.how()}' for node in self.values())}>"
