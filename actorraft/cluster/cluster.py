"""A cluster that is owned: a client of it that holds the processes of its nodes too.

It is made when these serve (spawn.py), so it is never half a client; what belongs to processes, files and sockets is in
processes.py.

Threads:    every public method may be called from any thread.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
import warnings
import weakref
from collections.abc import Callable, Collection
from dataclasses import replace
from html import escape
from typing import Any, Final, TypeVar

from actorraft.client.administration import ask_leader
from actorraft.client.arguments import bounded
from actorraft.client.client import Client
from actorraft.client.connect import open_client, zeromq_channel
from actorraft.client.status import MemberStatus
from actorraft.client.thread import ClientThread
from actorraft.cluster.nodes import Node, Nodes
from actorraft.cluster.processes import END_S, NodeProcesses
from actorraft.errors import StartError, Unavailable, UsageError
from actorraft.futures import check_timeout
from actorraft.loggers import guarded_logger
from actorraft.steady import monotonic

M = TypeVar("M")

logger = guarded_logger("actorraft")

LOOK_S = 1.0  # how often a spawn that waits for a leader looks whether there can be one
DAY_S: Final = 86_400.0  # for ever, as far as a lock can wait


class Cluster(Client[M]):
    """A running cluster: a client that also owns the processes. Made by `ReplicatedStateMachine.spawn`."""

    def __init__(self, machine: Callable[..., M], processes: NodeProcesses) -> None:
        thread = ClientThread(
            _clients_of(processes),
            lambda: zeromq_channel(processes.keys.of_client() if processes.keys is not None else None),
            folder=str(processes.keys.folder) if processes.keys is not None else "",
            frame_bytes_max=processes.config.frame_bytes_max,
        )
        super().__init__(thread, machine, name=processes.place.info.machine)
        self._processes = processes
        self._served = False  # so there is something to end cleanly
        processes.emit = thread.events.emit  # and not our own, which would tie the two to each other
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
                try:
                    said = self._ask_leader("status", {}, min(LOOK_S, max(0.1, deadline_s - monotonic())))
                except Unavailable:
                    if self._processes.hopeless or self._processes.ending or monotonic() > deadline_s:
                        raise
                    continue
                if said["last_applied"] >= ends.setdefault(said["term"], said["last_index"]):
                    break
                if monotonic() > deadline_s:
                    raise Unavailable("the leader is not up to date yet")
                time.sleep(0.001)
        except (Unavailable, UsageError):
            if not self._processes.ending:
                raise
        if self._processes.ending:
            raise StartError("the cluster was closed while it started")
        self._served = True

    # --- What an owner can do ---

    @property
    def owned(self) -> bool:
        """Return whether this process started the nodes; a fork of it did not, and leaves them alone."""
        return self._owner_pid == os.getpid()

    @property
    def nodes(self) -> Nodes:
        """Return the nodes by id, each with kill, stop, restart, pause, resume, pid, alive and logs."""
        return Nodes(self._processes)

    def client(self) -> Client[M]:
        """Open an independent session with this cluster, and return it.

        Raises:
            Unavailable: no leader is known within 30 s.
        """
        client: Client[M] = open_client(self.endpoints, self._machine)
        client.wait_for_leader()
        return client

    def add_node(self, *, voter: bool = True, timeout: float = 60.0) -> int:
        """Start one more node and make it a voter once it has caught up; commands keep flowing.

        Args:
            voter: False: it stays a learner, which has all and does not vote, until `promote`.

        Returns:
            Its id, never used before.

        Raises:
            Unavailable: it is not a member after `timeout` seconds; the message says how far it came.
            StartError: it did not come up, or cannot take up the state; with its own words.
        """
        deadline_s = monotonic() + (timeout := bounded(timeout))
        free: int = self._ask_leader("status", {}, timeout)["next_node_id"]
        node_id = self._processes.add(free, deadline_s)
        self._set_endpoints()
        kind, role = ("add_voter", "voter") if voter else ("add_learner", "learner")
        change = [kind, node_id, self._processes.place.storage_ids()[node_id]]
        self._change_membership(node_id, change, lambda said: node_id in said[f"{role}s"], deadline_s)
        self._wait_until_applied(node_id, deadline_s)
        self._emit("membership", node_id, f"is a {role}")
        return node_id

    def promote(self, node_id: int, *, timeout: float = 60.0) -> None:
        """Let a learner vote, once it has caught up. One that votes already stays as it is.

        Raises:
            UsageError: there is no such node.
            Unavailable: it is not a voter after `timeout` seconds; the message says how far it came.
        """
        if node_id not in self._processes.node_ids:
            raise UsageError(f"there is no node {node_id}; the nodes are {list(self._processes.node_ids)}")
        change = ["add_voter", node_id, self._processes.place.storage_ids()[node_id]]
        done = lambda said: node_id in said["voters"]  # noqa: E731
        self._change_membership(node_id, change, done, monotonic() + bounded(timeout))
        self._emit("membership", node_id, "is a voter")

    def _wait_until_applied(self, node_id: int, deadline_s: float) -> None:
        """Wait until a node has the state that all others have now: one that has the log may yet die of a snapshot."""
        index = self._ask_leader("status", {}, max(0.1, deadline_s - monotonic()))["commit_index"]
        while True:
            self._refuse_lost(node_id)
            with contextlib.suppress(Unavailable):
                left_s = max(0.1, deadline_s - monotonic())
                if self._thread.admin(node_id, "status", {}, min(1.0, left_s)).result()["last_applied"] >= index:
                    return
            if monotonic() > deadline_s:
                raise Unavailable(f"node {node_id} is a voter, and has not applied entry {index} in time")
            time.sleep(0.01)

    def _refuse_lost(self, node_id: int) -> None:
        """Raise StartError if a node that is being added stopped, and says that something must be mended first."""
        reason = self._processes.fatal(node_id)
        if reason is not None:
            raise StartError(
                f"node {node_id} was added, and stopped: {reason}\n"
                f"Mend that and nodes[{node_id}].restart() it, or remove_node({node_id})"
            )
        reason = self._processes.hold(node_id)
        if reason is not None:
            raise StartError(f"node {node_id} was added, and {reason}\nMend that, or remove_node({node_id})")

    def remove_node(self, node_id: int, *, timeout: float = 60.0) -> None:
        """Take a node out of the cluster, then stop its process. A leader that is removed hands over first.

        Raises:
            Unavailable: it is still a member after `timeout` seconds.
        """
        if node_id not in self.nodes:
            raise UsageError(f"there is no node {node_id}; the nodes are {sorted(self.nodes)}")
        if len(self.nodes) == 1:
            raise UsageError("the last node cannot be removed; close() the cluster")
        deadline_s = monotonic() + bounded(timeout)
        gone = lambda said: node_id not in (*said["voters"], *said["learners"])  # noqa: E731
        self._change_membership(node_id, ["remove", node_id], gone, deadline_s)
        self._processes.end(node_id)
        self._processes.forget(node_id)
        self._set_endpoints()
        self._emit("membership", node_id, "is no member any more")

    def _change_membership(
        self, node_id: int, change: list[Any], done: Callable[[dict[str, Any]], bool], deadline_s: float
    ) -> None:
        """Ask the leader, whoever it is meanwhile, until the change is committed."""
        said: dict[str, Any] = {}
        refusal = ""
        while monotonic() < deadline_s:
            try:
                said = self._ask_leader("status", {}, 5.0)
                if done(said) and not said["joint"] and said["configuration_index"] <= said["commit_index"]:
                    return
                if not done(said):
                    self._ask_leader("change_membership", {"changes": [change]}, 5.0)
                if change[0] != "remove":
                    self._refuse_lost(node_id)
            except Unavailable as error:  # another change, or no entry of this leader's term is committed yet
                refusal = str(error)
            time.sleep(0.02)
        raise Unavailable(f"the membership did not change in time; the leader says {said}, and last: {refusal}")

    def _set_endpoints(self) -> None:
        keys = self._processes.keys
        self._thread.set_endpoints(_clients_of(self._processes), keys.members() if keys is not None else {})

    def _emit(self, kind: str, node_id: int | None, detail: str) -> None:
        self._thread.events.emit(kind, node_id, detail)

    def _ask_leader(self, verb: str, arguments: dict[str, Any], timeout: float) -> Any:
        return ask_leader(self._thread, verb, arguments, timeout)

    def partition(self, *groups: set[int]) -> list[set[int]]:
        """Cut the links between groups of nodes, silently; a node in no group is alone. Clients reach every side.

        To cut node 3 of five off from the others: `partition({3}, {0, 1, 2, 4})`.

        Returns:
            The sides that there are now, the largest first.

        Raises:
            UsageError: the groups are not disjoint, or name a node that is not there.
        """
        if not all(isinstance(group, Collection) for group in groups):
            raise UsageError(f"groups are disjoint sets of {sorted(self.nodes)}, not {groups!r}")
        named = [node_id for group in groups for node_id in group]
        if len(named) != len(set(named)) or not set(named) <= set(self.nodes):
            raise UsageError(f"groups are disjoint sets of {sorted(self.nodes)}, not {groups!r}")
        side = {node_id: group for group in groups for node_id in group}
        alone = sorted(set(self.nodes) - set(named))
        sides = sorted(
            [set(group) for group in groups if group] + [{node_id} for node_id in alone], key=len, reverse=True
        )
        if alone and 2 * len(sides[0]) <= len(self.nodes):
            logger.warning(
                "partition%s: %s are in no group, so each of them is alone, and no side has a majority of %d; to keep "
                "them together, name them as a group",
                f"({', '.join(map(str, groups))})",
                alone,
                len(self.nodes),
            )
        self._processes.cut({node_id: set(self.nodes) - set(side.get(node_id, {node_id})) for node_id in self.nodes})
        return sides

    def heal(self) -> None:
        """Mend every link."""
        self.partition(set(self.nodes))

    def _member(self, node_id: int, said: dict[str, Any], error: str | None = None) -> MemberStatus:
        row = super()._member(node_id, said, error)
        if not self.owned:
            return row
        node = Node(self._processes, node_id)
        silent = error if node.alive else f"node {node_id} is {node.how()}"
        reason = row.error if said else self._processes.reason(node_id) or silent
        return replace(row, pid=node.pid, alive=node.alive, error=reason)

    # --- The end ---

    def close(self, timeout: float = END_S) -> None:
        """Close the client and end every process: gone within 5 s more, running, stuck or paused. Idempotent.

        Args:
            timeout: seconds in which, where data is kept, all nodes come to one index and leave a snapshot there, so
                that the next start has nothing to replay. What is not done by then is skipped, and said.
        """
        checked_s = check_timeout(timeout)
        if not self.owned:
            super().close()  # a fork has a session of its own, and owns no process
            return
        self._processes.end_starts()  # before the client is closed: a start that is under way looks here
        ends = self._served and not self.closed
        try:
            super().close()
            if ends:
                self._processes.heal()
                self._processes.come_to_an_end(DAY_S if checked_s is None else min(checked_s, DAY_S))
        finally:
            self._processes.close()

    def __del__(self) -> None:
        if "_processes" in vars(self) and not self.closed and self.owned:
            _warn_unclosed(self)
            with contextlib.suppress(Exception):
                self.close()

    def __enter__(self) -> Cluster[M]:
        return self

    async def __aenter__(self) -> Cluster[M]:
        await super().__aenter__()
        return self

    def _repr_html_(self) -> str:
        """Show it with its status in a notebook."""
        return f"<p>{escape(repr(self))}</p>" + ("" if self.closed else self.status()._repr_html_())

    def __repr__(self) -> str:
        info, thread = self._processes.place.info, self._thread
        state = "closed" if self.closed else f"leader {thread.leader}, term {thread.term}, {self._processes.transport}"
        return f'<Cluster "{info.name}" {len(info.node_ids)} nodes, {state}>'


def _clients_of(processes: NodeProcesses) -> dict[int, str]:
    return {node_id: client for node_id, (_, client) in processes.bound.items()}


def _warn_unclosed(cluster: Cluster[Any]) -> None:
    with contextlib.suppress(ResourceWarning):  # where warnings are errors: the processes must go all the same
        warnings.warn(f"unclosed {cluster!r}", ResourceWarning, source=cluster, stacklevel=3)


def open_clusters() -> list[Cluster[Any]]:
    """Return the clusters that this process owns and has not closed."""
    return [cluster for cluster in _clusters if not cluster.closed and cluster.owned]


_clusters: weakref.WeakSet[Cluster[Any]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Leave nothing behind at interpreter exit; starts no thread."""
    for cluster in open_clusters():
        _warn_unclosed(cluster)
        cluster.close()
