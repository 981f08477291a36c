"""Fixtures for tests that use replicated machines, loaded by pytest through the entry point `actorraft`.

    def test_deposits_survive_the_leader(raft_cluster):
        cluster = raft_cluster(Bank, nodes=3)
        cluster.proxy().deposit("ann", 10)
        cluster.nodes[cluster.wait_for_leader()].kill()
        assert cluster.proxy().balance("ann") == 10

`raft_cluster` starts real processes and closes them after the test. `sim_cluster` makes a simulation in memory. And a
test that leaves a cluster open fails and says which, because its processes would disturb every test after it; the ini
option `actorraft_leak_check = false` turns that off.

Not here:   anything that is imported before a test asks for it; the plugin is loaded in every pytest run of an
            environment that has this package.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from actorraft.cluster.cluster import Cluster
    from actorraft.simulation import RaftSimulation


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the ini option."""
    parser.addini(
        "actorraft_leak_check", "fail a test that leaves an ActorRaft cluster open (default: true)", "bool", True
    )


@pytest.fixture
def raft_cluster() -> Iterator[Callable[..., Cluster[Any]]]:
    """A factory of clusters of real processes, closed after the test.

    `raft_cluster(machine, nodes=3, **options)`: `machine` is a class, or a ReplicatedStateMachine that holds the
    constructor's arguments too; the options are those of `spawn`.
    """
    from actorraft.cluster.spawn import ReplicatedStateMachine

    with contextlib.ExitStack() as opened:

        def spawn(machine: Any, nodes: int | None = None, **options: Any) -> Cluster[Any]:
            replicated = machine if isinstance(machine, ReplicatedStateMachine) else ReplicatedStateMachine(machine)
            cluster = replicated.spawn(nodes, **options)
            opened.callback(cluster.close)
            return cluster

        yield spawn


@pytest.fixture
def sim_cluster() -> Callable[..., RaftSimulation]:
    """A factory of simulated clusters, without processes, sockets or clocks: `sim_cluster(nodes, seed=0)`."""
    from actorraft.simulation import RaftSimulation

    return RaftSimulation


@pytest.fixture(autouse=True)
def _actorraft_leak_check(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a cluster open, and close it."""
    if not request.config.getini("actorraft_leak_check"):
        yield
        return
    before = _open_clusters()
    yield
    leaked = [cluster for cluster in _open_clusters() if cluster not in before]
    names = [repr(cluster) for cluster in leaked]
    for cluster in leaked:
        cluster.close()
    if names:
        pytest.fail(f"the test left open: {', '.join(names)}; close it, or use raft_cluster", pytrace=False)


def _open_clusters() -> list[Cluster[Any]]:
    """Return the clusters of this process that are not closed; imports nothing."""
    module = sys.modules.get("actorraft.cluster.cluster")
    return module.open_clusters() if module is not None else []
