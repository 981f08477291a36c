"""A cluster that is owned: a client of it that holds the processes of its nodes too.

It is made when these serve (spawn.py), so it is never half a client; what belongs to processes, files and sockets is in
processes.py.

Source:     contract section 2.
Threads:    every public method may be called from any thread.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from actorraft.client.client import Client, open_client
from actorraft.client.status import MemberStatus
from actorraft.cluster.nodes import Node, Nodes
from actorraft.cluster.processes import NodeProcesses
from actorraft.errors import StartError, Unavailable, UsageError

M = TypeVar("M")


class Cluster(Client[M]):
    """A running cluster: a client that also owns the processes. Made by `ReplicatedStateMachine.spawn`."""

    def __init__(self, machine: Callable[..., M], processes: NodeProcesses) -> None:
        from transports.zeromq import ZeroMQClientChannel

        super().__init__(
            _clients_of(processes),
            machine,
            channel=ZeroMQClientChannel(token=processes.token),
            frame_bytes_max=processes.config.frame_bytes_max,
        )
        self._processes = processes
        self._machine_name = processes.place.info.machine
        processes.emit = self._events.emit
        _clusters.add(self)

    def wait_until_it_serves(self, deadline_s: float) -> None:
        """Wait until the leader has applied all that there was before it, so that a stale read too finds it.

        Raises:
            Unavailable: nobody led in time.
            StartError: it was closed meanwhile.
        """
        ends: dict[int, int] = {}  # term -> where the log ended when its leader was first asked
        try:
            while True:
                said = self._ask_leader("status", {}, max(0.1, deadline_s - time.monotonic()))
                if said["last_applied"] >= ends.setdefault(said["term"], said["last_index"]):
                    break
                if time.monotonic() > deadline_s:
                    raise Unavailable("the leader is not up to date yet")
                time.sleep(0.001)
        except (Unavailable, UsageError):
            if not self._processes.ending:
                raise
        if self._processes.ending:
            raise StartError("the cluster was closed while it started")

    # --- What an owner can do ---

    @property
    def nodes(self) -> Nodes:
        """The nodes by id, each with kill, stop, restart, pause, resume, pid, alive and logs."""
        return Nodes(self._processes)

    @property
    def endpoints(self) -> dict[int, str]:
        """What `connect` takes: node id -> endpoint; over tcp with the path of the token's file."""
        suffix = f"#{self._processes.token_file}" if self._processes.token_file is not None else ""
        return {node_id: endpoint + suffix for node_id, endpoint in super().endpoints.items()}

    def client(self) -> Client[M]:
        """Open an independent session with this cluster."""
        client = open_client(self.endpoints, self._machine, frame_bytes_max=self._processes.config.frame_bytes_max)
        client.wait_for_leader()
        return client

    def add_node(self, *, timeout: float = 60.0) -> int:
        """Start one more node and make it a voter once it has caught up; commands keep flowing.

        Returns:
            Its id, never used before.

        Raises:
            Unavailable: it is not a voter after `timeout` seconds; the message says how far it came.
        """
        deadline_s = time.monotonic() + timeout
        free: int = self._ask_leader("status", {}, timeout)["next_node_id"]
        node_id = self._processes.add(free, deadline_s)
        self._set_endpoints()
        change = ["add_voter", node_id, self._processes.place.storage_ids()[node_id]]
        self._change_membership(change, lambda said: node_id in said["voters"], deadline_s)
        self._events.emit("membership", node_id, "is a voter")
        return node_id

    def remove_node(self, node_id: int, *, timeout: float = 60.0) -> None:
        """Take a node out of the cluster, then stop its process. A leader that is removed hands over first.

        Raises:
            Unavailable: it is still a member after `timeout` seconds.
        """
        if node_id not in self.nodes:
            raise UsageError(f"there is no node {node_id}; the nodes are {sorted(self.nodes)}")
        if len(self.nodes) == 1:
            raise UsageError("the last node cannot be removed; close() the cluster")
        deadline_s = time.monotonic() + timeout
        gone = lambda said: node_id not in (*said["voters"], *said["learners"])  # noqa: E731
        self._change_membership(["remove", node_id], gone, deadline_s)
        self._processes.stop(node_id)
        self._processes.forget(node_id)
        self._set_endpoints()
        self._events.emit("membership", node_id, "is no member any more")

    def _change_membership(self, change: list[Any], done: Callable[[dict[str, Any]], bool], deadline_s: float) -> None:
        """Ask the leader, whoever it is meanwhile, until the change is committed."""
        said: dict[str, Any] = {}
        refusal = ""
        while time.monotonic() < deadline_s:
            try:
                said = self._ask_leader("status", {}, 5.0)
                if done(said) and not said["joint"] and said["configuration_index"] <= said["commit_index"]:
                    return
                if not done(said):
                    self._ask_leader("change_membership", {"changes": [change]}, 5.0)
            except Unavailable as error:  # another change, or no entry of this leader's term is committed yet
                refusal = str(error)
            time.sleep(0.02)
        raise Unavailable(f"the membership did not change in time; the leader says {said}, and last: {refusal}")

    def _set_endpoints(self) -> None:
        self._endpoints = endpoints = _clients_of(self._processes)
        self._request(lambda _: self._channel.set_endpoints(endpoints))

    def partition(self, *groups: set[int]) -> None:
        """Cut the links between groups of nodes, silently; a node in no group is isolated. Clients reach every side."""
        named = [node_id for group in groups for node_id in group]
        if len(named) != len(set(named)) or not set(named) <= set(self.nodes):
            raise UsageError(f"groups are disjoint sets of {sorted(self.nodes)}, not {groups!r}")
        side = {node_id: group for group in groups for node_id in group}
        self._processes.cut({node_id: set(self.nodes) - set(side.get(node_id, {node_id})) for node_id in self.nodes})

    def heal(self) -> None:
        """Mend every link."""
        self.partition(set(self.nodes))

    def _member(self, node_id: int, said: dict[str, Any], error: str | None = None) -> MemberStatus:
        row = super()._member(node_id, said, error)
        node = Node(self._processes, node_id)
        reason = row.error if said else self._processes.reason(node_id) or error
        return replace(row, pid=node.pid, alive=node.alive, error=reason)

    # --- The end ---

    def close(self) -> None:
        """Close the client and end every process: gone within 5 s, running, stuck or paused. Idempotent."""
        if self._owner_pid != os.getpid():
            return
        self._processes.end_starts()  # before the client is closed: a start that is under way looks here
        try:
            super().close()
        finally:
            self._processes.close()

    def __del__(self) -> None:
        if not self._closed and self._owner_pid == os.getpid():
            _warn_unclosed(self)
            with contextlib.suppress(Exception):
                self.close()

    def __enter__(self) -> Cluster[M]:
        return self

    def __repr__(self) -> str:
        info, session = self._processes.place.info, self._session
        state = (
            "closed" if self._closed else f"leader {session.leader}, term {session.term}, {self._processes.transport}"
        )
        return f'<Cluster "{info.name}" {len(info.node_ids)} nodes, {state}>'


def _clients_of(processes: NodeProcesses) -> dict[int, str]:
    return {node_id: client for node_id, (_, client) in processes.bound.items()}


def _warn_unclosed(cluster: Cluster[Any]) -> None:
    with contextlib.suppress(ResourceWarning):  # where warnings are errors: the processes must go all the same
        warnings.warn(f"unclosed {cluster!r}", ResourceWarning, source=cluster, stacklevel=3)


def open_clusters() -> list[Cluster[Any]]:
    """Return the clusters of this process that are not closed."""
    return [cluster for cluster in _clusters if not cluster.closed]


_clusters: weakref.WeakSet[Cluster[Any]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Leave nothing behind at interpreter exit; starts no thread."""
    for cluster in open_clusters():
        _warn_unclosed(cluster)
        cluster.close()
