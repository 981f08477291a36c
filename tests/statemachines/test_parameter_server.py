"""The parameter server: each rule, each refusal, exactly once, and the same bits whatever happens to a replica."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actorraft.errors import NotYet, UsageError
from actorraft.machine import methods_of
from actorraft.testing import context
from statemachines import parameter_server as ps
from statemachines import ranges, updates
from statemachines.parameter_server import Async, FedBuff, Mean, ParameterServer, Rule

SIZE = 7
RULES: list[Rule] = [
    Mean(),
    Mean(k=2, round_s=3.0),
    Mean(k=3, momentum=0.9, rate=0.5),
    FedBuff(3, 0.5),
    FedBuff(2, 0.0, momentum=0.5, versions_behind_max=4),
    Async(0.5),
    Async(0.7, momentum=0.9, steps_ahead_max=3),
    Async(1.0, versions_behind_max=2, rate=0.1),
]


@pytest.fixture(autouse=True, scope="module")
def short_ranges() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "RANGE_BYTES", 8)
        yield


def server(rule: Rule, workers: Any = ("a", "b", "c")) -> ParameterServer:
    start = np.linspace(-1, 1, SIZE, dtype=np.float32)
    return ParameterServer({"w": start[:6].reshape(2, 3), "b": start[6:]}, rule, workers)


def vector(value: float) -> Any:
    return np.full(SIZE, value, np.float32)


def values(machine: ParameterServer) -> list[float]:
    return np.frombuffer(machine.pull_vector()[1], "<f4").tolist()


def moved(machine: ParameterServer) -> float:
    """How far every parameter has moved: they all move alike in these tests."""
    change = np.frombuffer(machine.pull_vector()[1], "<f4") - np.linspace(-1, 1, SIZE, dtype=np.float32)
    assert np.allclose(change, change[0], atol=1e-6)
    return round(float(change[0]), 4)


def restored(machine: ParameterServer, rule: Rule) -> ParameterServer:
    chunks = [pickle.loads(pickle.dumps(chunk)) for chunk in machine.snapshot()]
    fresh = server(rule)
    fresh.restore(iter(chunks))
    return fresh


# --- The rules ---


def test_a_round_closes_when_all_who_joined_have_pushed_and_its_mean_is_the_change() -> None:
    machine = server(Mean(), ["a", "b"])
    assert machine.push("a", 1, 0, vector(1)) == 1
    assert (machine.progress().version, moved(machine)) == (0, 0.0)
    assert machine.push("b", 1, 0, vector(3)) == 1
    assert (machine.progress().version, moved(machine)) == (1, 2.0)


def test_the_mean_is_weighted_by_examples() -> None:
    machine = server(Mean(), {"a": 3, "b": 1})
    machine.push("a", 1, 0, vector(1))
    machine.push("b", 1, 0, vector(5))
    assert moved(machine) == 2.0


def test_the_first_k_make_a_round_and_the_rest_of_it_is_refused() -> None:
    machine = server(Mean(k=2))
    machine.push("a", 1, 0, vector(1))
    machine.push("b", 1, 0, vector(3))
    with pytest.raises(ps.RoundClosed, match="round 0 is closed"):
        machine.push("c", 1, 0, vector(100))
    assert machine.push("c", 1, 1, vector(100)) == 2, "the step is not used up by a refusal"


def test_a_round_closes_after_its_time_with_what_is_there() -> None:
    machine = server(Mean(round_s=5.0))
    assert machine.wake_at is None
    with context(time=10.0):
        machine.push("a", 1, 0, vector(1))
    assert machine.wake_at == 15.0
    with context(time=14.9):
        machine.on_clock()
    assert machine.progress().version == 0
    with context(time=15.0):
        machine.on_clock()
    assert (machine.progress().version, moved(machine), machine.wake_at) == (1, 1.0, None)


def test_nobody_waits_for_one_who_left_and_what_it_pushed_stays() -> None:
    machine = server(Mean())
    machine.push("a", 1, 0, vector(1))
    machine.push("b", 1, 0, vector(3))
    assert machine.leave("a") is True
    assert machine.progress().version == 0
    assert machine.leave("c") is True
    assert (machine.progress().version, moved(machine)) == (1, 2.0)
    assert machine.leave("c") is False


def test_one_who_left_and_came_back_goes_on_from_its_last_step() -> None:
    machine = server(Async())
    machine.push("a", 1, 0, vector(1))
    machine.leave("a")
    with pytest.raises(ps.UnknownWorker):
        machine.push("a", 2, 0, vector(1))
    assert machine.join("a") == 1
    assert machine.push("a", 1, 0, vector(1)) == 1
    assert machine.push("a", 2, 1, vector(1)) == 2
    assert moved(machine) == 2.0


def test_a_round_whose_rule_says_nothing_stalls_no_longer_than_a_minute() -> None:
    machine = server(Mean())
    with context(time=10.0):
        machine.push("a", 1, 0, vector(1))
    assert machine.wake_at == 10.0 + ps.ROUND_S
    with context(time=10.0 + ps.ROUND_S):
        machine.on_clock()
    assert machine.progress().version == 1


def test_a_process_of_a_worker_that_comes_back_cannot_push_beside_its_successor() -> None:
    machine = server(Async(0.0))
    assert machine.join("a", life=1) == 0
    assert machine.push("a", 1, 0, vector(1), life=1) == 1
    assert machine.join("a", life=2) == 1
    before = machine.digest()
    for call in (
        lambda: machine.push("a", 2, 1, vector(9), life=1),
        lambda: machine.push("a", 1, 0, vector(1), life=1),
        lambda: machine.push("a", 2, 1, vector(9)),
        lambda: machine.push_sum([("b", 1, 1), ("a", 2, 1, 1)], vector(9)),
        lambda: machine.skip("a", 2, 1),
    ):
        with pytest.raises(ps.Superseded, match="joined again"):
            call()
    assert machine.digest() == before
    assert machine.join("a", life=2) == 1, "who asks again has joined once"
    for restored in (False, True):  # a join that was on its way by another front unseats nobody
        if restored:
            machine.restore(machine.snapshot())
        with pytest.raises(ps.Superseded, match="joined again"):
            machine.join("a", life=1)
    assert machine.push_sum([("b", 1, 1), ("a", 2, 1, 2)], vector(2)) == 2
    assert moved(machine) == 3.0


def test_an_asynchronous_update_counts_less_the_older_it_is() -> None:
    machine = server(Async(0.5))
    assert machine.push("a", 1, 0, vector(1)) == 1
    assert machine.push("b", 1, 0, vector(1)) == 2
    assert moved(machine) == round(1 + 2**-0.5, 4)


def test_a_buffer_of_k_updates_makes_a_version() -> None:
    machine = server(FedBuff(2, 0.5))
    machine.push("a", 1, 0, vector(1))
    assert machine.push("a", 2, 0, vector(3)) == 1
    assert moved(machine) == 2.0
    machine.push("b", 1, 0, vector(1))
    machine.push("a", 3, 1, vector(1))
    assert moved(machine) == round(2.0 + (1 + 2**-0.5) / 2, 4)


def test_momentum_brings_the_last_change_again() -> None:
    machine = server(Async(0.0, momentum=0.5))
    machine.push("a", 1, 0, vector(1))
    machine.push("a", 2, 1, vector(1))
    assert moved(machine) == 2.5


def test_a_sum_counts_as_its_members() -> None:
    single, summed = server(Mean(), {"a": 3, "b": 1}), server(Mean(), {"a": 3, "b": 1})
    single.push("a", 1, 0, vector(1))
    single.push("b", 1, 0, vector(5))
    assert summed.push_sum([("a", 1, 0), ("b", 1, 0)], vector(3 * 1 + 1 * 5)) == 1
    assert values(summed) == values(single)
    assert summed.progress() == single.progress()


def test_a_window_may_hold_two_steps_of_one_worker() -> None:
    for rule in (Async(0.0), FedBuff(2, 0.0)):
        machine = server(rule)
        assert machine.push_sum([("a", 1, 0), ("b", 1, 0), ("a", 2, 0)], vector(3)) == 1
        assert machine.progress().steps == {"a": 2, "b": 1, "c": 0}


# --- Exactly once, in order ---


def test_a_step_that_comes_again_is_answered_as_it_was() -> None:
    machine = server(Async())
    for step in range(1, 6):
        assert machine.push("a", step, step - 1, vector(1)) == step
    before = machine.digest()
    assert [machine.push("a", step, 0, vector(9)) for step in (1, 4, 5)] == [1, 4, 5]
    assert machine.digest() == before


def test_a_step_that_was_given_up_never_means_another_update() -> None:
    machine = server(Mean(k=1))
    machine.push("a", 1, 0, vector(1))
    with pytest.raises(ps.RoundClosed):
        machine.push("b", 1, 0, vector(9))
    with pytest.raises(ps.StepAhead):
        machine.skip("b", 2)
    assert (machine.skip("b", 1), machine.skip("b", 1)) == (1, 1)
    with pytest.raises(ps.GivenUp):
        machine.push("b", 1, 1, vector(9))
    with pytest.raises(ps.AlreadyApplied) as caught:
        machine.push_sum([("b", 1, 1), ("a", 2, 1)], vector(9))
    assert caught.value.members == [("b", 1, ps.GIVEN_UP)]
    assert machine.push("b", 2, 1, vector(1)) == 2
    assert (machine.progress().updates, moved(machine)) == (2, 2.0)


def test_an_answer_from_long_ago_is_not_made_up() -> None:
    machine = server(Async())
    for step in range(1, 3 * ps.ANSWERS_MAX):
        machine.push("a", step, step - 1, vector(0))
    with pytest.raises(ps.AnswerForgotten, match="was applied"):
        machine.push("a", 1, 0, vector(9))


def test_a_sum_with_a_member_that_was_applied_names_it_and_changes_nothing() -> None:
    machine = server(Async())
    machine.push("a", 1, 0, vector(1))
    before = machine.digest()
    with pytest.raises(ps.AlreadyApplied) as caught:
        machine.push_sum([("a", 1, 0), ("a", 2, 0), ("b", 1, 0)], vector(3))
    assert caught.value.members == [("a", 1, 1)]
    assert machine.digest() == before
    assert machine.push_sum([("a", 2, 0), ("b", 1, 0)], vector(2)) == 2


REFUSED = [
    (Async(), ("nobody", 1, 0, vector(1)), ps.UnknownWorker),
    (Async(), ("a", 3, 0, vector(1)), ps.StepAhead),
    (Async(), ("a", 0, 0, vector(1)), ps.WrongUpdate),
    (Async(), ("a", 2, 9, vector(1)), ps.UnknownVersion),
    (Async(), ("a", 2, -1, vector(1)), ps.WrongUpdate),
    (Async(), ("a", 2, 0, np.ones(SIZE)), ps.WrongDtype),
    (Async(), ("a", 2, 0, [1.0] * SIZE), ps.WrongDtype),
    (Async(), ("a", 2, 0, np.ones(SIZE + 1, np.float32)), ps.WrongShape),
    (Async(), ("a", 2, 0, {"w": np.ones((2, 3), np.float32)}), ps.WrongShape),
    (Async(), ("a", 2, 0, {"w": np.ones((3, 2), np.float32), "b": np.ones(1, np.float32)}), ps.WrongShape),
    (Async(), ("a", 2, 0, b"\x00" * 36), ps.WrongUpdate),
    (Async(), ("a", 2, 0, vector(float("nan"))), ps.NotFinite),
    (Async(momentum=0.5), ("a", 2, 0, vector(float("-inf"))), ps.NotFinite),
    (Mean(), ("b", 1, 0, vector(float("inf"))), ps.NotFinite),
    (FedBuff(9), ("b", 1, 0, vector(float("nan"))), ps.NotFinite),
    (Mean(), ("a", 2, 0, vector(1)), ps.TooFarAhead),
    (Async(steps_ahead_max=1), ("a", 2, 0, vector(1)), ps.TooFarAhead),
    (Async(versions_behind_max=0), ("b", 1, 0, vector(1)), ps.TooOld),
    (Mean(k=1), ("b", 1, 0, vector(1)), ps.RoundClosed),
]


@pytest.mark.parametrize(("rule", "push", "error"), REFUSED)
def test_what_is_refused_is_named_and_leaves_the_state_bit_for_bit(rule: Rule, push: Any, error: Any) -> None:
    machine = server(rule)
    machine.push("a", 1, 0, vector(0.25))
    before = machine.digest()
    with pytest.raises(error) as caught:
        machine.push(*push)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.worker, again.step) == (error, *push[:2])
    assert machine.digest() == before
    worker, step, base_version, update = push
    with pytest.raises(error):
        machine.push_sum([(worker, step, base_version)], update)
    assert machine.digest() == before


def test_a_worker_who_joins_late_is_as_far_as_the_slowest() -> None:
    machine = server(Async(steps_ahead_max=1), ["a"])
    for step in range(1, 4):
        machine.push("a", step, 0, vector(0))
    assert machine.join("late") == 0
    machine.push("a", 4, 0, vector(0))
    with pytest.raises(ps.TooFarAhead):
        machine.push("a", 5, 0, vector(0))
    machine.push("late", 1, 0, vector(0))
    machine.push("a", 5, 0, vector(0))


def test_a_sum_too_large_for_its_type_ends_at_its_limit() -> None:
    machine = server(Async(0.0))
    most = float(np.finfo(np.float32).max)
    machine.push("a", 1, 0, vector(most))
    machine.push("a", 2, 1, vector(most))
    assert values(machine) == [most] * SIZE


def test_a_pull_gives_named_arrays_that_nobody_can_write_and_no_later_version_changes() -> None:
    machine = server(Async(0.0))
    version, before = machine.pull()
    assert (version, list(before), before["w"].shape) == (0, ["w", "b"], (2, 3))
    kept = before["w"].copy()
    for step in range(1, 9):
        machine.push("a", step, step - 1, vector(1))
    assert np.array_equal(before["w"], kept), "the vector of a version is never written again while it is looked at"
    assert not before["w"].flags.writeable
    assert list(machine.pull(["b"], 8)[1]) == ["b"]
    with pytest.raises(NotYet, match="version 9: this is 8"):
        machine.pull(min_version=9)


def test_wrong_rules_and_parameters_are_refused_at_once() -> None:
    for make in (
        lambda: Mean(k=0),
        lambda: Mean(round_s=0.0),
        lambda: Async(momentum=1.0),
        lambda: Async(-1.0),
        lambda: Async(rate=float("nan")),
        lambda: Mean(rate=1e39),  # there is no such float32
        lambda: FedBuff(2, rate="0.1"),  # type: ignore[arg-type]
        lambda: FedBuff(None),  # type: ignore[arg-type]
        lambda: Mean(round_s="1"),  # type: ignore[arg-type]
        lambda: server(Mean(), {"a": 1e-300}),
        lambda: server(Mean(), {"a": 1e300}),
        lambda: server(Async(), [1.5]),
        lambda: server(Async(), {"a": 0}),
        lambda: ParameterServer({}, Async()),
        lambda: ParameterServer({"w": [float("nan")]}, Async()),
        lambda: ParameterServer({"w": [1.0]}, "mean"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UsageError):
            make()


def test_a_machine_is_made_of_commands_and_queries() -> None:
    methods = methods_of(ParameterServer)
    assert set(methods.commands) == {"join", "leave", "push", "push_sum", "put_range", "skip"}
    assert set(methods.queries) == {"pull", "pull_vector", "pull_range", "layout", "progress"}


# --- Restored anywhere, and replayed ---

Call = tuple[str, tuple[Any, ...]]


def some_call(rng: random.Random, machine: ParameterServer) -> Call:
    """Make a call, of which most are good, and some are late, early, doubled or wrong."""
    told = machine.progress()
    worker = rng.choice("abc")
    step = told.steps.get(worker, 0)
    base = max(0, told.version - rng.randrange(3))
    update = np.asarray([rng.uniform(-1, 1) for _ in range(SIZE)], np.float32)
    kind = rng.random()
    if kind < 0.15:
        return some_range(rng, machine, update)
    if kind < 0.6:
        encoded = rng.choice([updates.whole, updates.rounded, lambda some: updates.largest(some, 3)])(update)
        return "push", (worker, step + 1, base, encoded, rng.choice([None, None, None, 1]))
    if kind < 0.75:
        some = rng.sample("abc", rng.randrange(1, 4))
        return "push_sum", ([(each, told.steps.get(each, 0) + 1, told.version) for each in some], update)
    if kind < 0.85:
        return "push", (worker, step + rng.randrange(-2, 3), base, update)
    if kind < 0.9:
        return "push", (worker, step + 1, told.version, vector(float("nan")))
    if kind < 0.92:
        return "skip", (worker, step + rng.randrange(-1, 3))
    if kind < 0.95:
        return "leave", (worker,)
    return "join", (worker, rng.choice([1, 2]), rng.choice([None, None, 1]))


def some_range(rng: random.Random, machine: ParameterServer, update: Any) -> Call:
    """Go on with an update that comes in ranges; now and then with one that is not there, or not this one."""
    encoded = rng.choice([updates.whole(update), updates.rounded(update)])
    there = {row[0]: row[-1] for row in machine._ranges.state()[0]}
    sender = rng.choice([*there, *range(6)])
    number = there.get(sender, 0) + (rng.random() < 0.1)
    *parts, last = ranges.cut(encoded)
    if number < len(parts) and rng.random() < 0.9:
        return "put_range", (sender, number, len(encoded), parts[number])
    worker, told = rng.choice("abc"), machine.progress()
    step = told.steps.get(worker, 0) + 1
    crc = ranges.checksum(parts if rng.random() < 0.9 else parts[1:])
    ranged = updates.ranged(sender, len(encoded), crc, last[: rng.choice([99, 99, 99, 1])])
    if rng.random() < 0.5:
        return "push", (worker, step, told.version, ranged)
    return "push_sum", ([(worker, step, told.version)], ranged)


def apply(machine: ParameterServer, number: int, call: Call) -> Any:
    """Apply as an executor would, log time going on; an exception is a result."""
    method, args = call
    with context(index=number, serial=number, time=number * 0.5):
        machine.on_clock()
        before = machine.digest()
        try:
            return getattr(machine, method)(*args), machine.digest()
        except (ps.PushRefused, ranges.RangeRefused) as error:
            refused = type(error), str(error)
    assert machine.digest() == before, f"{call} changed something, and was refused: {refused}"
    return refused


@pytest.mark.parametrize("rule", RULES, ids=str)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_restored_at_every_point_it_goes_on_with_the_same_bits(rule: Rule, seed: int) -> None:
    rng = random.Random(seed)
    kept, often, writable = server(rule), server(rule), None
    for number in range(40):
        call = some_call(rng, kept)
        often = restored(often, rule)
        assert apply(kept, number, call) == apply(often, number, call)
        assert kept.wake_at == often.wake_at
        assert kept.pull_vector() == often.pull_vector()
        writable = [
            {name: value.flags.writeable for name, value in vars(each).items() if isinstance(value, np.ndarray)}
            for each in (kept, often)
        ]
        assert writable[0] == writable[1]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_logged_calls_replayed_give_the_same_bits_and_every_acknowledged_step_counts_once(rule: Rule) -> None:
    rng = random.Random(7)
    machine, log, counted = server(rule), [], dict.fromkeys("abc", 0)
    for number in range(300):
        call = some_call(rng, machine)
        log.append((call, apply(machine, number, call)))
    again = server(rule)
    assert [result for _, result in log] == [apply(again, number, call) for number, (call, _) in enumerate(log)]
    acknowledged: set[Any] = set()
    given_up: set[Any] = set()
    for (method, args), result in log:
        if isinstance(result[0], int) and method in ("push", "push_sum"):
            acknowledged |= {args[:2]} if method == "push" else {member[:2] for member in args[0]}
    for worker, _ in acknowledged:
        counted[worker] += 1
    for (method, args), result in log:
        if method == "skip" and result[0] == args[1] and isinstance(result[0], int) and args[1] > 0:
            given_up.add(args)
    for worker, _ in given_up - acknowledged:
        counted[worker] += 1
    for worker in "abc":
        with context():
            assert machine.join(worker) == counted[worker]
    assert machine.progress().updates == len(acknowledged)
    assert any(machine.progress().steps.values())


def test_a_snapshot_in_the_middle_of_a_round_is_of_its_moment_whatever_is_pushed_meanwhile() -> None:
    machine = server(Mean(momentum=0.5))
    machine.push("a", 1, 0, vector(1))
    before = machine.digest()
    chunks = machine.snapshot_while_serving()
    taken = [next(chunks)]
    machine.push("b", 1, 0, vector(2))
    machine.push("c", 1, 0, vector(3))
    machine.push("a", 2, 1, vector(1))
    taken.extend(chunks)
    copy = server(Mean(momentum=0.5))
    copy.restore(iter(taken))
    assert copy.digest() == before
    copy.push("b", 1, 0, vector(2))
    copy.push("c", 1, 0, vector(3))
    copy.push("a", 2, 1, vector(1))
    assert copy.digest() == machine.digest()


def put(machine: ParameterServer, sender: int, encoded: bytes) -> bytes:
    """Send all ranges but the last; return what to push."""
    *parts, last = ranges.cut(encoded)
    for number, part in enumerate(parts):
        assert machine.put_range(sender, number, len(encoded), part) == number
    return updates.ranged(sender, len(encoded), ranges.checksum(parts), last)


@pytest.mark.parametrize("encode", [updates.whole, updates.rounded, lambda some: updates.largest(some, 3)])
def test_an_update_in_ranges_counts_as_if_it_had_come_in_one(encode: Any) -> None:
    update = np.linspace(-2, 3, SIZE, dtype=np.float32)
    in_one, in_ranges = server(Async(0.5)), server(Async(0.5))
    for step in (1, 2):
        in_one.push("a", step, 0, encode(update))
        ranged = put(in_ranges, 5, encode(update))
        assert in_ranges.push("a", step, 0, ranged) == step
    in_one.push_sum([("b", 1, 0)], encode(update))
    in_ranges.push_sum([("b", 1, 0)], put(in_ranges, 5, encode(update)))
    assert in_ranges.digest() == in_one.digest()
    with pytest.raises(ranges.RangeMissing):
        in_ranges.push("a", 3, 0, ranged)
    assert in_ranges.push("a", 2, 0, ranged) == 2, "one that was applied is answered, whether its ranges are there"


def test_a_refused_update_in_ranges_is_there_still_and_may_be_pushed_by_what_is_right() -> None:
    machine = server(Async(0.0))
    ranged = put(machine, 5, updates.whole(vector(1)))
    with pytest.raises(ps.StepAhead):
        machine.push("a", 2, 0, ranged)
    assert machine.push("a", 1, 0, ranged) == 1
    assert moved(machine) == 1.0


def test_a_snapshot_in_the_middle_of_an_update_in_ranges_has_those_that_had_come() -> None:
    machine = server(Mean(momentum=0.5))
    encoded = updates.whole(vector(2))
    *parts, last = ranges.cut(encoded)
    machine.push("a", 1, 0, vector(1))
    for number, part in enumerate(parts[:2]):
        machine.put_range(5, number, len(encoded), part)
    before, chunks = machine.digest(), machine.snapshot_while_serving()
    taken = [next(chunks)]
    for number, part in enumerate(parts[2:], 2):
        machine.put_range(5, number, len(encoded), part)
    machine.push("b", 1, 0, updates.ranged(5, len(encoded), ranges.checksum(parts), last))
    copy = server(Mean(momentum=0.5))
    copy.restore(iter([*taken, *chunks]))
    assert copy.digest() == before
    for number, part in enumerate(parts[2:], 2):
        copy.put_range(5, number, len(encoded), part)
    copy.push("b", 1, 0, updates.ranged(5, len(encoded), ranges.checksum(parts), last))
    assert copy.digest() == machine.digest()


def pull_ranges(machine: ParameterServer, fetcher: int, numbers: Any) -> list[tuple[int, bytes]]:
    return [(version, data) for version, _, data in (machine.pull_range(fetcher, number) for number in numbers)]


def test_parameters_in_ranges_are_of_the_version_that_the_first_one_had_whatever_is_pushed_meanwhile() -> None:
    machine = server(Async(0.0, momentum=0.5))
    before = machine.pull_vector()[1]
    got = pull_ranges(machine, 1, [0])
    for step in range(1, 6):
        machine.push("a", step, step - 1, vector(step))
        got += pull_ranges(machine, 1, [step % 4] if step < 4 else [])
    assert got == [(0, before[start : start + 8]) for start in (0, 8, 16, 24)]
    with pytest.raises(ranges.RangeMissing):
        machine.pull_range(1, 1)  # all of it was handed out
    assert b"".join(data for _, data in pull_ranges(machine, 1, range(4))) == machine.pull_vector()[1]
    with pytest.raises(NotYet):
        machine.pull_range(2, 0, 6)


def test_a_fifth_version_waits_until_one_of_four_was_fetched_or_its_fetcher_asks_no_more() -> None:
    machine = server(Async(0.0))
    for step in range(1, 5):
        pull_ranges(machine, step, [0])
        machine.push("a", step, step - 1, vector(step))
    with pytest.raises(ranges.NoRoomForRanges):
        machine.pull_range(5, 0)
    pull_ranges(machine, 2, [1, 2, 3])
    assert pull_ranges(machine, 5, [0])[0][0] == 4
    pull_ranges(machine, 6, [0])  # of the same version
    machine.push("a", 5, 4, vector(5))
    refused = 0
    while True:  # asked for again and again, as a client does
        assert pull_ranges(machine, 1, [1])[0][0] == 0, "who goes on asking goes on"
        try:
            assert machine.pull_range(7, 0)[0] == 5
            break
        except ranges.NoRoomForRanges:
            refused += 1
    assert 10 < refused < 100
    with pytest.raises(ranges.RangeMissing):
        machine.pull_range(3, 1)


def test_ranges_that_are_none_are_refused_and_hold_nothing() -> None:
    machine = server(Async(0.0))
    for fetcher, number in ((1, -1), (1, 4), ("a", 0), (1, 1.0), (True, 0)):
        with pytest.raises(ranges.RangeRefused):
            machine.pull_range(fetcher, number)  # type: ignore[arg-type]
    assert not machine._fetches._fetches
    machine.pull_range(1, 0)
    for number in (-1, 4, 10**9):
        with pytest.raises(ranges.WrongRange):
            machine.pull_range(1, number)
    copy = pickle.loads(pickle.dumps(machine._fetches))
    assert not copy._fetches, "no part of the state"


def test_the_state_takes_no_more_memory_than_is_said_whatever_is_sent() -> None:
    size, momentum = 50_000, 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "RANGE_BYTES", 1 << 14)
        tracemalloc.start()
        try:
            machine = ParameterServer({"w": np.zeros(size)}, Mean(momentum=0.9), "ab")
            encoded = updates.whole(np.ones(size, np.float32))
            before = tracemalloc.get_traced_memory()[0] - 4 * size * (1 + momentum)
            for round_ in range(6):
                for sender in range(9):
                    with contextlib.suppress(ranges.NoRoomForRanges, ranges.RangeMissing):
                        ranged = put(machine, sender, encoded)
                looked_at = machine.snapshot_while_serving()
                next(looked_at)
                with contextlib.suppress(ranges.NoRoomForRanges):
                    machine.pull_range(round_, 0)
                for worker in "ab":
                    machine.push(worker, round_ + 1, round_, ranged if worker == "a" else encoded)
                    ranged = put(machine, 3, encoded)
                del looked_at
            held, peak = (each - before for each in tracemalloc.get_traced_memory())
        finally:
            tracemalloc.stop()
    assert machine.progress().version == 6
    # Parameters, momentum, sum, spare ones, updates in ranges, and versions that are fetched in ranges.
    vectors = 1 + momentum + 1 + 4 + ps.UPLOADS_MAX + ps.VERSIONS_MAX
    slack = 100_000  # of all that is small
    assert held <= 4 * size * vectors + slack
    # While one is applied: two that are computed, the update as a whole; three that a snapshot looks at.
    assert peak <= 4 * size * (vectors + 6) + slack


def test_vectors_are_used_again_and_only_those_that_nobody_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = server(Async(0.0, momentum=0.5))
    for step in range(1, 5):
        machine.push("a", step, step - 1, vector(1))
    made = []
    empty = np.empty
    monkeypatch.setattr(np, "empty", lambda *args: made.append(args) or empty(*args))
    for step in range(5, 30):
        machine.push("a", step, step - 1, vector(1))
    assert made == []


def test_updates_as_bytes_come_back_as_they_were_or_as_near_as_they_may() -> None:
    some = np.asarray([0.0, 1.0, -1.0, 3.1415927, 1e-40, -2.5e38, 1.00390625], np.float32)
    assert np.array_equal(updates.read(updates.whole(some), SIZE), some)
    near = updates.read(updates.rounded(some), SIZE)
    assert np.allclose(near, some, rtol=2**-8, atol=1e-40)
    assert near[6] == 1.0, "as near to the one above: the even one"
    assert updates.read(updates.largest(some, 2), SIZE).tolist() == [0, 0, 0, float(some[3]), 0, float(some[5]), 0]
    assert updates.read(updates.largest(some, 0), SIZE).tolist() == [0.0] * SIZE


@given(st.binary(max_size=80))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert updates.read(data, SIZE).shape == (SIZE,)


# --- The same bits on every processor ---

SCRIPT = """
import random, sys
sys.path[:0] = {path!r}
from tests.statemachines import test_parameter_server as t
t.SIZE, t.ranges.RANGE_BYTES = 10_007, 8_000
for rule in t.RULES:
    rng, machine = random.Random(5), t.server(rule)
    for number in range(60):
        t.apply(machine, number, t.some_call(rng, machine))
    print(machine.progress().version, machine.digest().hex())
"""


@pytest.mark.long
def test_the_bits_are_the_same_with_fewer_features_of_the_processor() -> None:
    root = Path(__file__).resolve().parents[2]
    said = set()
    for extra in (
        {},
        {"NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR", "OPENBLAS_CORETYPE": "Haswell"},
        {
            "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
            "OPENBLAS_CORETYPE": "Nehalem",
            "OPENBLAS_NUM_THREADS": "1",
        },
    ):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT.format(path=[str(root), *filter(None, sys.path)])],
            env={**os.environ, **extra},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.add(done.stdout)
    assert len(said) == 1
    assert said.pop().count("\n") == len(RULES)
