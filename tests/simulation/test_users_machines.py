"""A user's own machine under the simulator's faults: as a cluster to call, and with commands that are made up."""

from __future__ import annotations

import enum
import random
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest

from actorraft import CommandObjects, StateMachine, UsageError, command, context, query
from actorraft.simulation.cluster import SimCluster, run_machine
from actorraft.simulation.commands import drawing_of, maker_of
from actorraft.simulation.invariants import InvariantViolation
from statemachines.kv import KVStore


class Bank(StateMachine):
    def __init__(self, currency: str = "EUR") -> None:
        self.currency = currency
        self.accounts: dict[str, int] = {}

    @command
    def deposit(self, name: str, amount: int) -> int:
        if amount < 0:
            raise ValueError("a deposit is positive")
        self.accounts[name] = self.accounts.get(name, 0) + amount
        return self.accounts[name]

    @query
    def balance(self, name: str) -> int:
        return self.accounts.get(name, 0)


class Dice(Bank):
    @command
    def deposit(self, name: str, amount: int) -> int:
        self.accounts[name] = random.randrange(1 << 60)
        return 0


class Clock(Bank):
    @command
    def deposit(self, name: str, amount: int) -> int:
        self.accounts[name] = time.perf_counter_ns()
        return 0


class Forgetful(Bank):
    """Its snapshot leaves something out, so that a node which was restored is another."""

    def snapshot(self) -> dict[str, int]:
        return {name: amount for name, amount in self.accounts.items() if name != "bob"}

    def restore(self, state: dict[str, int]) -> None:
        self.accounts = state


class Expiring(StateMachine):
    def __init__(self) -> None:
        self.due: dict[str, float] = {}
        self.gone: list[str] = []

    @property
    def wake_at(self) -> float | None:
        return min(self.due.values(), default=None)

    @command
    def put(self, name: str, seconds: float) -> None:
        self.due[name] = context().time + seconds

    def on_clock(self) -> None:
        for name in [name for name, at in self.due.items() if at <= context().time]:
            del self.due[name]
            self.gone.append(name)

    @query
    def expired(self) -> list[str]:
        return self.gone


@pytest.mark.parametrize("seed", range(200))
def test_what_only_machines_of_the_simulator_know_never_happens_to_a_users(seed: int) -> None:
    cluster = SimCluster(Bank, nodes=3, seed=seed, faults=False)
    profile = cluster.world.profile

    assert (profile.guest, profile.holds, profile.versions) == (False, False, False)
    assert not {"old disk", "out of memory", "deploy"} & set(profile.kinds)
    assert cluster.proxy(timeout=60.0).deposit("ann", 1) == 1


@pytest.mark.parametrize("seed", range(10))
def test_calls_come_out_as_on_a_cluster_whatever_happens_meanwhile(seed: int) -> None:
    cluster = SimCluster(Bank, nodes=3, seed=seed, kwargs={"currency": "USD"}, faults_every_s=0.1)
    bank = cluster.proxy(timeout=60.0)

    assert [bank.deposit("ann", 1) for _ in range(50)] == list(range(1, 51))
    with pytest.raises(ValueError, match="a deposit is positive"):
        bank.deposit("ann", -1)
    assert bank.balance("ann") == 50
    assert cluster.query(lambda machine: machine.currency, timeout=60.0) == "USD"
    futures = [bank.deposit.submit("bob", 1) for _ in range(20)]
    assert [future.result() for future in futures] == list(range(1, 21))
    cluster.check()


def test_a_seed_and_the_same_calls_give_the_same_run() -> None:
    def play() -> tuple[float, dict[str, int], list[int]]:
        cluster = SimCluster(Bank, seed=4)
        bank = cluster.proxy(timeout=60.0)
        results = [bank.deposit("ann", n) for n in range(100)]
        return cluster.now_s, dict(cluster.faults), results

    first, second = play(), play()
    assert first == second
    assert sum(first[1].values()) > 0


@pytest.mark.parametrize("machine", [Dice, Clock])
def test_a_machine_that_is_not_deterministic_is_found_and_the_attribute_named(machine: type[Bank]) -> None:
    cluster = SimCluster(machine, faults=False)
    cluster.proxy().deposit("ann", 1)
    with pytest.raises(InvariantViolation, match=rf"nodes 0 and 1 differ: {machine.__name__}\.accounts") as raised:
        cluster.check()
    assert "seed 0" in raised.value.__notes__[0]


def test_a_snapshot_that_forgets_is_found_by_a_restore_on_the_way() -> None:
    cluster = SimCluster(Forgetful, faults=False)
    for _ in range(20):
        cluster.proxy().deposit("bob", 1)
    with pytest.raises(InvariantViolation, match="differs from one restored at"):
        cluster.check()


def test_time_is_virtual_and_clock_entries_come() -> None:
    cluster = SimCluster(Expiring, faults=False)
    machine = cluster.proxy()
    machine.put("soon", 30.0)
    began_s = cluster.now_s
    cluster.sleep(29.0)
    assert machine.expired() == []
    cluster.sleep(3.0)
    assert machine.expired() == ["soon"]
    assert cluster.now_s - began_s > 31.9
    cluster.check()


def test_two_clients_and_command_objects_of_any_state() -> None:
    cluster: SimCluster[Any] = SimCluster(CommandObjects, args=(dict,), seed=3)
    one, other = cluster.client(), cluster.client()
    assert one.execute(lambda accounts: accounts.setdefault("ann", 1), timeout=60.0) == 1
    assert other.query(dict, timeout=60.0) == {"ann": 1}
    cluster.check()


def test_commands_are_drawn_by_their_annotations() -> None:
    class Color(enum.Enum):
        RED = 1

    rng = Random(1)
    for hint, kind in (
        (str, str), (int, int), (float, float), (bytes, bytes), (list[int], list), (dict[str, float], dict),
        (tuple[int, str], tuple), (set[str], set), (Color, Color), (Literal["a"], str), (int | None, (int, type(None))),
    ):  # fmt: skip
        make = maker_of(hint)
        assert make is not None
        assert isinstance(make(rng), kind)
    assert maker_of(Bank) is None
    assert {drawing_of(KVStore)(rng)[0] for _ in range(200)} >= {"set", "delete", "compare_and_set", "update"}
    with pytest.raises(UsageError, match="--commands"):
        drawing_of(dict)


def test_many_commands_of_a_seed_say_how_they_ended() -> None:
    outcome = run_machine(KVStore, drawing_of(KVStore), seed=2, commands=60)
    assert outcome.violation is None
    assert sum(outcome.ended.values()) == outcome.commands == 60
    assert outcome.ended["returned"] > 30
    found = run_machine(Dice, drawing_of(Dice), seed=2, commands=30)
    assert found.violation is not None


@pytest.mark.long
def test_the_command_line_runs_a_machine_of_a_module_in_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "bank.py").write_text(
        "import random\nfrom actorraft import StateMachine, command\n"
        "class Bank(StateMachine):\n    def __init__(self) -> None: self.n = 0.0\n"
        "    @command\n    def add(self, amount: int) -> None: self.n += amount\n"
        "class Dice(Bank):\n    @command\n    def add(self, amount: int) -> None: self.n = random.random()\n"
        "def half(rng): return 'add', rng.randrange(2)\n"
    )

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "actorraft.simulation", "--seeds", "2", "--calls", "20", *options]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)

    well = run("--machine", "bank:Bank", "--commands", "bank:half")
    assert well.returncode == 0, well.stderr
    assert "Bank: 2 seeds, 0 of them broke a promise" in well.stdout
    broken = run("--machine", "bank:Dice")
    assert broken.returncode == 1
    assert "nodes 0 and 1 differ: Dice.n" in broken.stdout
    unknown = run("--machine", "bank:Nothing")
    assert unknown.returncode == 2
    assert "bank:Nothing" in unknown.stderr
