"""Replicas compare their states: a machine that is not deterministic is named, with the node and the index."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
from msgspec.structs import replace

from actorraft import RaftConfig, codec
from actorraft.node.digests import Checks, Sample, Schedule
from actorraft.node.guest import HookFailed
from actorraft.node.host import MachineHost
from actorraft.pickling.canonical import Sample as StateSample
from statemachines.kv import KVStore
from tests.cluster.helpers import Spawn, eventually
from tests.faults.machines import Dice

OFTEN = RaftConfig(digest_every_s=0.05)


def sample(value: Any, bytes_max: int = 1 << 19) -> bytes:
    walk = StateSample(bytes_max)
    walk.take((value,))
    return walk.result()


# ---- samples of states


def test_equal_states_have_equal_samples_however_they_came_about() -> None:
    rng = random.Random(1)
    members = [f"member {number}" for number in range(3000)]
    shuffled = rng.sample(members, len(members))
    for size in (10, 3000):
        one = {"set": set(members[:size]), "list": members[:size], "dict": dict.fromkeys(members[:size])}
        other = {"set": set(sorted(shuffled, key=members.index)[:size]), "list": list(members[:size]), "dict": {}}
        for member in members[:size]:
            other["dict"]["".join(list(member))] = None  # type: ignore[index]
        for bytes_max in (100, 1000, 10_000, 1 << 20):
            assert sample(one, bytes_max) == sample(other, bytes_max)


def test_a_sample_sees_the_oldest_and_the_newest_of_a_large_state() -> None:
    state: dict[str, Any] = {f"key {number}": number for number in range(200_000)}
    before = sample(state)
    state["one more"] = 1
    assert sample(state) != before
    del state["one more"]
    assert sample(state) == before
    state["key 0"] = -1
    assert sample(state) != before


def test_a_sample_of_a_set_too_large_does_not_depend_on_its_order() -> None:
    one = set(range(100_000))
    other = set(range(200_000))
    other -= set(range(100_000, 200_000))
    assert sample([one, 1]) == sample([other, 1])


def test_a_sample_of_one_huge_value_ends_early() -> None:
    assert sample(b"x" * 50_000_000) == sample(b"x" * 50_000_000)
    assert sample(b"x" * 50_000_000) != sample(b"x" * 49_999_999)


def test_a_store_built_by_commands_and_one_restored_have_the_same_sample() -> None:
    one, other = MachineHost(KVStore), MachineHost(KVStore)
    for number in range(5000):
        one.machine.set(f"k{number}", number)
    other.machine.restore(list(one.machine.snapshot()))
    assert one.sample() == other.sample()
    other.machine.set("k4", 5)
    assert one.sample() != other.sample()


# ---- checks


def carried(sample: Sample) -> codec.Check:
    """The entry with which a leader, node 0, tells its sample."""
    return codec.Check(0, sample.index, sample.state, sample.results)


def test_nodes_that_agree_say_nothing_and_one_that_does_not_says_since_when() -> None:
    leader, other = Checks(lambda: b"same"), Checks(lambda: state)
    state = b"same"
    first = codec.Check(0, -1, b"", b"")
    one = leader.check(10, 5, first).sample
    assert other.check(10, 5, first).difference == ""
    two = leader.check(20, 9, carried(one)).sample
    state = b"other"
    assert other.check(20, 9, carried(one)).difference == ""
    leader.check(30, 9, carried(two))
    difference = other.check(30, 9, carried(two)).difference
    assert "the state of this node is not that of node 0" in difference
    assert "at index 20; they parted after index 10" in difference


def test_results_are_compared_where_both_counted_all_of_them() -> None:
    leader, other, restored = (Checks(lambda: b"same") for _ in range(3))
    first = codec.Check(0, -1, b"", b"")
    for checks in (leader, other):
        checks.check(10, 0, first)
    leader.note([1, "a"])
    other.note([1, "b"])
    restored.note(["anything"])
    two = leader.check(20, 2, carried(Sample(10, b"same", b"", True))).sample
    for checks in (other, restored):
        checks.check(20, 2, carried(Sample(10, b"same", b"", True)))
    assert "what commands returned" in other.check(30, 2, carried(two)).difference
    assert restored.check(30, 2, carried(two)).difference == ""


def test_a_digest_that_raises_or_takes_long_is_not_compared() -> None:
    def fails() -> bytes:
        raise HookFailed("no digest today")

    times = iter([0.0, 1.0, 1.0])
    slow = Checks(lambda: b"state", lambda: next(times))
    first = codec.Check(0, -1, b"", b"")
    assert Checks(fails).check(5, 1, first).sample.state == b""
    assert slow.check(5, 1, first).sample.state == b"state"
    assert slow.check(6, 2, first).sample.state == b""


def test_a_leader_checks_once_more_after_the_last_command_and_then_rests() -> None:
    schedule = Schedule(10.0)
    assert not schedule.due(0.0, 7)
    assert schedule.due(10.0, 7)
    schedule.appended(10.0)
    schedule.checked(Sample(8, b"s", b"", True))
    assert not schedule.due(19.0, 8)
    assert schedule.due(20.0, 8), "what it found is not told yet"
    assert schedule.entry(3) == codec.Check(3, 8, b"s", b"")
    schedule.appended(20.0)
    schedule.checked(Sample(9, b"s", b"", False))
    assert not schedule.due(40.0, 9)
    assert schedule.due(50.0, 10)
    assert not Schedule(0.0).due(1e9, 5)


# ---- real clusters


def differing(cluster: Any) -> dict[int, str]:
    """What the status says of nodes that differ."""
    return {row.id: row.error for row in cluster.status() if row.alive and row.error}


@pytest.mark.cluster
def test_a_machine_that_rolls_dice_is_named_with_the_index_and_the_node(
    raft_cluster: Spawn, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = raft_cluster(Dice, nodes=3, config=OFTEN)
    dice = cluster.proxy()
    events = cluster.events()
    for number in range(20):
        dice.add(number)
    eventually(lambda: max(row.last_applied for row in cluster.status()) > 22, what="a check of the equal states")
    assert differing(cluster) == {}

    dice.roll()
    dice.add(1)
    found = eventually(lambda: found if len(found := differing(cluster)) == 2 else None, what="both followers say so")
    [other] = {int(text.partition("is not that of node ")[2][:1]) for text in found.values()}
    assert other not in found
    assert all("at index" in text for text in found.values())
    for node_id in found:
        records = [one for one in caplog.records if one.name == f"actorraft.node.{node_id}"]
        assert [one.levelno for one in records if "not deterministic" in one.message] == [logging.ERROR]
    assert {next(event for event in events if event.kind == "difference").node_id for _ in found} == set(found)
    assert dice.add(1) == sum(range(20)) + 2, "it serves on"


@pytest.mark.cluster
def test_results_that_differ_are_found_though_the_state_does_not(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Dice, nodes=3, config=OFTEN)

    def found() -> bool:
        for _ in range(20):
            cluster.proxy().tell()
        return len(differing(cluster)) == 2

    eventually(found)
    assert all("what commands returned" in text for text in differing(cluster).values())


@pytest.mark.cluster
def test_a_sound_machine_is_never_accused_whatever_happens_to_its_nodes(raft_cluster: Spawn) -> None:
    config = RaftConfig(digest_every_s=0.02, snapshot_after_entries=60, trailing_entries=5)
    cluster = raft_cluster(KVStore, nodes=3, config=config)
    kv = cluster.proxy(timeout=20.0)
    for turn in range(4):
        victim = turn % 3
        cluster.nodes[victim].kill()
        for number in range(100):
            kv.set(f"{turn} {number}", {"a": number, "b": [turn]})
        cluster.nodes[victim].restart()
        for number in range(20):
            kv.delete(f"{turn} {number}")
    last = max(row.last_applied for row in cluster.status())
    eventually(lambda: min(row.last_applied for row in cluster.status()) > last, what="one more check everywhere")
    assert differing(cluster) == {}


def test_results_are_compared_since_the_last_check_also_where_code_that_is_newer_passes_over_the_state() -> None:
    older, newer = Checks(lambda: b"old", parts=lambda: {"n": b"1"}), Checks(lambda: b"new", parts=lambda: {"n": b"1"})
    said = codec.Check(0, -1, b"", b"")
    for index, mixed in ((0, True), (4, False), (8, True), (12, True)):
        sample = older.check(index, index, replace(said, mixed=mixed)).sample
        checked = newer.check(index, index, replace(said, mixed=mixed), alike=False)
        assert not checked.difference
        said = codec.Check(0, sample.index, sample.state, sample.results, dict(sample.parts))
        older.note([index])
        newer.note([index])
    assert checked.compared_index == 8
