"""Every machine that comes with ActorRaft keeps a machine's promises: the same commands give the same state."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from actorraft.machine import StateMachine, methods_of
from actorraft.testing import context
from statemachines.kv import KVStore
from statemachines.lock import LockService


def kv_calls(rng: random.Random) -> Iterator[tuple[str, tuple[Any, ...]]]:
    keys = [f"k{number}" for number in range(6)]
    while True:
        key, value = rng.choice(keys), rng.randrange(5)
        yield rng.choice(
            [
                ("set", (key, value)),
                ("set_for", (key, value, rng.uniform(0.1, 5.0))),
                ("delete", (key,)),
                ("compare_and_set", (key, rng.choice([None, value]), rng.randrange(5))),
                ("increment", (key, 2)),
                ("update", ({key: value, "other": [value, {value, "x"}]},)),
                ("clear", ()),
            ]
        )


def lock_calls(rng: random.Random) -> Iterator[tuple[str, tuple[Any, ...]]]:
    while True:
        name, owner = rng.choice(["a", "b"]), rng.choice(["x", "y", "z"])
        yield rng.choice([("acquire", (name, owner, rng.uniform(0.1, 3.0))), ("release", (name, owner))])


MACHINES = [(KVStore, kv_calls), (LockService, lock_calls)]
Calls = Callable[[random.Random], Iterator[tuple[str, tuple[Any, ...]]]]


def play(machine: Any, calls: Iterator[tuple[str, tuple[Any, ...]]], first: int, count: int) -> list[Any]:
    """Apply some commands as the executor would, log time going on; an exception is a result."""
    results: list[Any] = []
    for number in range(first, first + count):
        method, args = next(calls)
        with context(index=number, serial=number, time=number * 0.1):
            try:
                results.append(getattr(machine, method)(*args))
            except Exception as error:
                results.append((type(error), str(error)))
    return results


def state_of(machine: Any) -> Any:
    """Return everything a machine is, to compare: the attributes, without what only orders or counts."""
    return {name: value for name, value in vars(machine).items() if name not in {"_due", "_due_count", "_kept"}}


def copy_of(machine: Any) -> Any:
    """Return a machine restored from a snapshot, as a new node would be."""
    state = machine.snapshot()
    fresh = type(machine)()
    if isinstance(state, Iterator):
        fresh.restore(pickle.loads(pickle.dumps(chunk)) for chunk in state)
    else:
        fresh.restore(pickle.loads(pickle.dumps(state)))
    return fresh


@pytest.mark.parametrize(("machine", "calls"), MACHINES)
def test_the_same_commands_give_the_same_results_and_state(machine: type[StateMachine], calls: Calls) -> None:
    one, other = machine(), machine()
    assert play(one, calls(random.Random(1)), 1, 300) == play(other, calls(random.Random(1)), 1, 300)
    assert state_of(one) == state_of(other)


@pytest.mark.parametrize(("machine", "calls"), MACHINES)
def test_a_restored_machine_goes_on_as_the_original(machine: type[StateMachine], calls: Calls) -> None:
    for cut in (0, 1, 7, 40, 160):
        original = machine()
        stream = calls(random.Random(cut))
        play(original, stream, 1, cut)
        restored = copy_of(original)
        assert state_of(restored) == state_of(original)
        rest = [next(stream) for _ in range(100)]
        assert play(restored, iter(rest), cut + 1, 100) == play(original, iter(rest), cut + 1, 100)
        assert state_of(restored) == state_of(original)


@pytest.mark.parametrize("machine", [KVStore, LockService])
def test_a_machine_is_made_of_commands_and_queries(machine: type[StateMachine]) -> None:
    methods = methods_of(machine)
    assert methods.row == "methods"
    public = {name for name in vars(machine) if not name.startswith("_")}
    hooks = {"snapshot", "snapshot_while_serving", "restore", "digest", "wake_at", "on_clock"}
    assert public - hooks == {*methods.commands, *methods.queries}
