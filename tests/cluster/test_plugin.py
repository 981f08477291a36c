"""The pytest plugin, in a test run of its own: its fixtures, its leak check, and that it costs nothing unasked."""

from __future__ import annotations

from pathlib import Path

import pytest

from actorraft.simulation import RaftSimulation
from tests.cluster.helpers import Spawn, running
from tests.cluster.machines import Ledger

BANK = """
from actorraft import ReplicatedStateMachine, StateMachine, command

class Bank(StateMachine):
    def __init__(self, balance=0):
        self.balance = balance

    @command
    def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance
"""


def pytest_says(tmp_path: Path, test: str, *options: str) -> str:
    """Run pytest on one file, in a folder of its own; return its last line."""
    (tmp_path / "test_it.py").write_text(test)
    with running("-m", "pytest", "-q", "-p", "no:cacheprovider", *options, cwd=tmp_path) as script:
        _, said, _ = script.finish()
        assert script.processes() == []
        return said


@pytest.mark.cluster
def test_clusters_of_the_fixture_are_closed_after_the_test(tmp_path: Path) -> None:
    said = pytest_says(
        tmp_path,
        BANK
        + "kept = []\n"
        + "def test_one(raft_cluster):\n"
        + "    kept.append(raft_cluster(Bank, nodes=1))\n"
        + "    kept.append(raft_cluster(ReplicatedStateMachine(Bank, balance=5), nodes=1))\n"
        + "    assert [cluster.proxy().deposit(1) for cluster in kept] == [1, 6]\n"
        + "def test_two(): assert all('closed' in repr(cluster) for cluster in kept)\n",
    )
    assert "2 passed" in said


@pytest.mark.cluster
def test_a_leak_fails_the_test_that_made_it_unless_the_check_is_off(tmp_path: Path) -> None:
    test = BANK + "def test_leak():\n    global kept\n    kept = ReplicatedStateMachine(Bank).spawn(1)\n"
    said = pytest_says(tmp_path, test)
    assert 'the test left open: <Cluster "bank" 1 nodes' in said
    assert "1 passed, 1 error" in said
    said = pytest_says(tmp_path, test, "-o", "actorraft_leak_check=false")
    assert "1 passed" in said
    assert "error" not in said


@pytest.mark.cluster
def test_a_cluster_of_a_wider_fixture_is_no_leak(tmp_path: Path) -> None:
    said = pytest_says(
        tmp_path,
        BANK
        + "import pytest\n@pytest.fixture(scope='module')\ndef bank():\n"
        + "    with ReplicatedStateMachine(Bank).spawn(1) as cluster: yield cluster.proxy()\n"
        + "def test_one(bank): assert bank.deposit(1) == 1\n"
        + "def test_two(bank): assert bank.deposit(1) == 2\n",
    )
    assert "2 passed" in said


@pytest.mark.cluster
def test_clusters_of_the_wider_fixtures_live_as_long_as_their_scope_and_under_xdist(tmp_path: Path) -> None:
    said = pytest_says(
        tmp_path,
        BANK
        + "import pytest\nkept = []\n"
        + "@pytest.fixture(scope='module')\ndef bank(module_raft_cluster): return module_raft_cluster(Bank, 1).proxy()\n"
        + "class TestIt:\n"
        + "    def test_one(self, bank, class_raft_cluster):\n"
        + "        kept.append(class_raft_cluster(Bank, 1)); assert bank.deposit(1) == 1\n"
        + "    def test_two(self, bank): assert (bank.deposit(1), kept[0].proxy().deposit(1)) == (2, 1)\n"
        + "def test_three(bank, session_raft_cluster, package_raft_cluster):\n"
        + "    assert 'closed' in repr(kept[0]); assert bank.deposit(1) == 3\n",
        *("-n", "2", "--dist", "loadfile"),
    )
    assert "3 passed" in said


@pytest.mark.cluster
def test_an_actor_that_a_test_leaves_running_is_named_and_ended_and_one_that_stops_is_not(tmp_path: Path) -> None:
    said = pytest_says(
        tmp_path,
        "import pytest\nfrom actorraft import Actor, ActorOptions, spawn\n"
        + "class Quiet(Actor):\n    def receive(self, message): return message\n"
        + "@pytest.fixture(scope='module')\ndef wide(): ref = spawn(Quiet); yield ref; ref.stop()\n"
        + "def test_stops(request): spawn(Quiet).stop(); request.getfixturevalue('wide')\n"
        + "def test_leaks(): ActorOptions(name='left').spawn(Quiet)\n"
        + "def test_after(wide): assert wide.ask(1).result() == 1\n",
    )
    assert "the test left open: <actor left>;" in said
    assert "3 passed, 1 error" in said


@pytest.mark.cluster
def test_the_fixture_takes_the_options_of_spawn(raft_cluster: Spawn, tmp_path: Path) -> None:
    cluster = raft_cluster(Ledger, nodes=1, data_dir=tmp_path / "data", name="mine")
    assert repr(cluster).startswith('<Cluster "mine" 1 nodes')


def test_the_simulation_fixture_makes_simulations(sim_cluster: type[RaftSimulation]) -> None:
    simulation = sim_cluster(3, seed=1)
    simulation.nodes[0].become_leader()
    simulation.nodes[0].client_append_entry("x=1")
    simulation.step_all()
    assert all(node.server.log == simulation.nodes[0].server.log for node in simulation.nodes)


@pytest.mark.long
def test_the_simulation_fixture_runs_a_users_machine_and_compares_its_replicas_after_the_test(tmp_path: Path) -> None:
    said = pytest_says(
        tmp_path,
        BANK
        + "import random\n"
        + "class Dice(Bank):\n    @command\n    def deposit(self, amount: int) -> int: self.balance = random.random()\n"
        + "def test_well(sim_cluster):\n"
        + "    bank = sim_cluster(Bank, nodes=3, seed=7, args=(5,)).proxy(timeout=60)\n"
        + "    assert [bank.deposit(1) for _ in range(30)] == list(range(6, 36))\n"
        + "def test_ill(sim_cluster): sim_cluster(Dice).proxy(timeout=60).deposit(1)\n",
    )
    assert "equal replicas: nodes 0 and 1 differ: Dice.balance" in said
    assert "2 passed, 1 error" in said


@pytest.mark.cluster
def test_the_plugin_loads_no_transport_in_a_run_that_does_not_use_it(tmp_path: Path) -> None:
    test = (
        "import sys\ndef test_it(): assert not {'zmq', 'cloudpickle', 'actorraft.cluster.cluster'} & set(sys.modules)\n"
    )
    assert "1 passed" in pytest_says(tmp_path, test)
