"""Fixtures for tests that use replicated machines, loaded by pytest through the entry point `actorraft`.

    def test_deposits_survive_the_leader(raft_cluster):
        cluster = raft_cluster(Bank, nodes=3)
        cluster.proxy().deposit("ann", 10)
        cluster.nodes[cluster.wait_for_leader()].kill()
        assert cluster.proxy().balance("ann") == 10

`raft_cluster` starts real processes and closes them after the test; `class_raft_cluster`, `module_raft_cluster`,
`package_raft_cluster` and `session_raft_cluster` close them when that scope ends. `sim_cluster(Bank, nodes=3, seed=7)`
runs the machine under the faults that a seed chooses, without a process, and compares all replicas after the test. A
test that leaves a cluster or an actor running fails and says which, because its processes would disturb every test
after it; the ini option `actorraft_leak_check = false` turns that off. Under pytest-xdist each worker has its own.

Not here:   anything that is imported before a test asks for it; the plugin is loaded in every pytest run of an
            environment that has this package.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from actorraft.actors.records import Address
    from actorraft.cluster.cluster import Cluster
    from actorraft.simulation import RaftSimulation
    from actorraft.simulation.cluster import SimCluster

GONE_S = 2.0  # an actor that was told to stop has so long to be gone

_kept: set[Any] = set()  # clusters and actors' addresses that belong to a fixture of a wider scope than a test's


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the ini option."""
    parser.addini(
        "actorraft_leak_check",
        "fail a test that leaves an ActorRaft cluster or actor running (default: true)",
        "bool",
        True,
    )


def _spawning(scope: Literal["function", "class", "module", "package", "session"]) -> Callable[[], Any]:
    def fixture() -> Iterator[Callable[..., Cluster[Any]]]:
        from actorraft.cluster.spawn import ReplicatedStateMachine

        with contextlib.ExitStack() as opened:

            def spawn(machine: Any, nodes: int | None = None, **options: Any) -> Cluster[Any]:
                replicated = machine if isinstance(machine, ReplicatedStateMachine) else ReplicatedStateMachine(machine)
                cluster = replicated.spawn(nodes, **options)
                opened.callback(cluster.close)
                if scope != "function":
                    _kept.add(cluster)
                    opened.callback(_kept.discard, cluster)
                return cluster

            yield spawn

    end = scope.replace("function", "test")
    fixture.__doc__ = f"""A factory of clusters of real processes, closed at the end of the {end}.

    `raft_cluster(machine, nodes=3, **options)`: `machine` is a class, or a ReplicatedStateMachine that holds the
    constructor's arguments too; the options are those of `spawn`.
    """
    return fixture


raft_cluster = pytest.fixture(_spawning("function"))
class_raft_cluster = pytest.fixture(scope="class")(_spawning("class"))
module_raft_cluster = pytest.fixture(scope="module")(_spawning("module"))
package_raft_cluster = pytest.fixture(scope="package")(_spawning("package"))
session_raft_cluster = pytest.fixture(scope="session")(_spawning("session"))


@pytest.fixture
def sim_cluster() -> Iterator[Callable[..., SimCluster[Any] | RaftSimulation]]:
    """A factory of simulated clusters, without processes, sockets or clocks.

    `sim_cluster(machine, nodes=3, seed=0, args=(), kwargs=None, faults=True)` runs a class of yours, and after the test
    all that went wrong is mended and the replicas are compared (`SimCluster.check`). `sim_cluster(nodes, seed=0)` is
    the protocol alone, to step through by hand (RaftSimulation).
    """
    from actorraft.simulation import RaftSimulation
    from actorraft.simulation.cluster import SimCluster

    made: list[SimCluster[Any]] = []

    def make(machine: Any, *arguments: Any, **options: Any) -> SimCluster[Any] | RaftSimulation:
        if isinstance(machine, int):
            return RaftSimulation(machine, *arguments, **options)
        cluster: SimCluster[Any] = SimCluster(machine, *arguments, **options)
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        cluster.check()


# --- What is left running ---


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """What a fixture of a wider scope than a test's starts is not the test's to end."""
    if fixturedef.scope == "function":
        return (yield)
    before = _running()
    try:
        return (yield)
    finally:
        _kept.update(_running() - before)


@pytest.fixture(autouse=True)
def _actorraft_leak_check(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a cluster or an actor running, and end it."""
    if not request.config.getini("actorraft_leak_check"):
        yield
        return
    before = _running()
    yield
    names = []
    for cluster in _open_clusters() - before - _kept:
        names.append(repr(cluster))
        cluster.close()
    from actorraft.steady import monotonic

    patient_until_s = monotonic() + GONE_S
    while (actors := _running_actors() - before - _kept) and monotonic() < patient_until_s:
        time.sleep(0.02)
    for actor in actors:
        names.append(f"<actor {actor.name}>")
        sys.modules["actorraft.actors.system"].system().kill(actor.name, actor.endpoint)
    if names:
        ways = "close() or stop() it, or use raft_cluster"
        pytest.fail(f"the test left open: {', '.join(sorted(names))}; {ways}", pytrace=False)


def _running() -> set[Any]:
    return _open_clusters() | _running_actors()


def _open_clusters() -> set[Cluster[Any]]:
    """Return the clusters of this process that are not closed; imports nothing."""
    module = sys.modules.get("actorraft.cluster.cluster")
    return set(module.open_clusters()) if module is not None else set()


def _running_actors() -> set[Address]:
    """Return the addresses of actors that this process started and that run; imports nothing."""
    module = sys.modules.get("actorraft.actors.system")
    return set(module.running_actors()) if module is not None else set()
