"""Nodes on hosts of their own, as far as the network can tell: a network namespace each, joined by a router.

The router is a namespace too, and loses packets between two nodes by a rule of its routing policy ("blackhole"), so a
link is cut in the middle, silently, both ways, and connections stay open until their ends give up. Clients and the
parent reach nodes over Unix sockets, which know nothing of network namespaces; so they reach every side.

Process:    nodes are started by `ip netns exec`, the launch prefix of their process.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import actorraft.cluster.spawn as spawn_module
from actorraft.cluster.cluster import Cluster
from actorraft.cluster.processes import NodeProcess, NodeProcesses
from actorraft.cluster.spawn import ReplicatedStateMachine
from actorraft.node.spec import NodeSpec

HOSTS_MAX = 250


def why_not() -> str | None:
    """Return why namespaces cannot be used here; None if they can."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    probe = f"nem{os.getpid()}p"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode != 0:
        return "this machine does not let namespaces be made"
    rule = ["ip", "-n", probe, "rule", "add", "from", "10.77.1.2", "to", "10.77.2.2", "blackhole"]
    works = subprocess.run(rule, capture_output=True, check=False).returncode == 0
    subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return None if works else "this kernel has no routing policy"


def remove_abandoned() -> None:
    """Remove the namespaces of runs that were killed: each name says whose it is."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for name in re.findall(r"^nem\d+(?:[rp]|n\d+)\b", listed, re.MULTILINE):
        owner = int(re.findall(r"\d+", name)[0])
        if not Path(f"/proc/{owner}").exists():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


class Router:
    """The namespace in the middle, and a host beside it for each node that asks."""

    def __init__(self) -> None:
        remove_abandoned()
        self.prefix = f"nem{os.getpid()}"
        self._hosts: set[int] = set()
        self._rules: set[tuple[int, int]] = set()
        self._ip("netns", "add", self._router)
        try:
            self._ip("netns", "exec", self._router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        except BaseException:
            self.close()
            raise

    @property
    def _router(self) -> str:
        return f"{self.prefix}r"

    def _ip(self, *words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")

    def host(self, node_id: int) -> str:
        """Return the namespace of a node, made if it is not there."""
        name, wire = f"{self.prefix}n{node_id}", f"{self.prefix}w{node_id}"
        if node_id in self._hosts:
            return name
        assert node_id < HOSTS_MAX, f"no address for node {node_id}"
        self._hosts.add(node_id)
        self._ip("netns", "add", name)
        self._ip("link", "add", wire, "netns", self._router, "type", "veth", "peer", "name", "eth0", "netns", name)
        self._ip("-n", self._router, "addr", "add", f"10.77.{node_id}.1/24", "dev", wire)
        self._ip("-n", self._router, "link", "set", wire, "up")
        self._ip("-n", name, "addr", "add", f"{self.address(node_id)}/24", "dev", "eth0")
        self._ip("-n", name, "link", "set", "eth0", "up")
        self._ip("-n", name, "link", "set", "lo", "up")
        self._ip("-n", name, "route", "add", "default", "via", f"10.77.{node_id}.1")
        return name

    def address(self, node_id: int) -> str:
        return f"10.77.{node_id}.2"

    def partition(self, *groups: set[int]) -> None:
        """Lose every packet between groups; a node in no group is alone."""
        side = {node_id: number for number, group in enumerate(groups) for node_id in group}
        self._cut(
            {
                (one, other)
                for one in self._hosts
                for other in self._hosts
                if one != other and (one not in side or side[one] != side.get(other))
            }
        )

    def cut_pairs(self, pairs: set[tuple[int, int]]) -> None:
        """Lose every packet from the first to the second of each pair, and no other."""
        self._cut(pairs)

    def cut_link(self, one: int, other: int) -> None:
        """Lose every packet between two nodes, both ways."""
        self._cut(self._rules | {(one, other), (other, one)})

    def heal(self) -> None:
        """Lose nothing."""
        self._cut(set())

    def _cut(self, wanted: set[tuple[int, int]]) -> None:
        for verb, pairs in (("add", wanted - self._rules), ("del", self._rules - wanted)):
            for one, other in pairs:
                between = ("from", self.address(one), "to", self.address(other), "blackhole")
                self._ip("-n", self._router, "rule", verb, *between)
        self._rules = set(wanted)

    def close(self) -> None:
        """Remove everything, by name."""
        for name in (*(f"{self.prefix}n{node_id}" for node_id in self._hosts), self._router):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def __enter__(self) -> Router:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NamespaceProcesses(NodeProcesses):
    """Nodes that live in namespaces. Peers speak tcp over the router, clients use Unix sockets."""

    def __init__(self, *args: Any, router: Router, **options: Any) -> None:
        self._router = router
        self._sockets = Path(tempfile.mkdtemp(prefix="nemesis-"))
        super().__init__(*args, **options)

    def spec(self, node_id: int) -> NodeSpec:
        self._router.host(node_id)
        peer, client = self.bound.get(
            node_id, (f"tcp://{self._router.address(node_id)}:0", f"ipc://{self._sockets}/{node_id}")
        )
        return replace(super().spec(node_id), peer_endpoint=peer, client_endpoint=client)

    def make_process(self, node_id: int) -> NodeProcess:
        return NodeProcess(
            self.spec(node_id),
            self.place,
            launch_prefix=("ip", "netns", "exec", self._router.host(node_id)),
        )

    def close(self) -> None:
        super().close()
        shutil.rmtree(self._sockets, ignore_errors=True)


class NamespaceCluster(Cluster[Any]):
    """A cluster of such nodes, which the router partitions."""

    def __init__(self, *args: Any, router: Router) -> None:
        super().__init__(*args)
        self._router = router

    def partition(self, *groups: set[int]) -> None:
        self._router.partition(*groups)

    def heal(self) -> None:
        self._router.heal()


def spawn(machine: type[Any], nodes: int, router: Router, **options: Any) -> Cluster[Any]:
    """`ReplicatedStateMachine(machine).spawn`, in namespaces."""
    with (
        mock.patch.object(spawn_module, "NodeProcesses", partial(NamespaceProcesses, router=router)),
        mock.patch.object(spawn_module, "Cluster", partial(NamespaceCluster, router=router)),
    ):
        return ReplicatedStateMachine(machine).spawn(nodes, transport="tcp", **options)
