"""The sound code under the seeded world: no seed may break an invariant."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from actorraft.simulation.invariants import InvariantViolation
from actorraft.simulation.play import Play
from actorraft.simulation.profile import KINDS, Profile
from actorraft.simulation.runner import Summary, run_seed, run_seeds

pytestmark = pytest.mark.long


def assert_sound(summary: Summary) -> None:
    lines = [f"seed {one.seed}, step {one.step}: {one.invariant}: {one.violation}" for one in summary.violations]
    assert not lines, "\n".join(lines)


def run(seeds: range, *, num_nodes: int = 5, steps: int = 6_000) -> Summary:
    summary = Summary()
    for outcome in run_seeds(seeds, num_nodes=num_nodes, steps=steps):
        summary.add(outcome)
    return summary


def test_the_first_seeds_break_no_invariant() -> None:
    summary = run(range(25))

    assert_sound(summary)
    assert summary.commits > 1_000
    assert summary.elections > 25


@pytest.mark.parametrize(
    ("seed", "steps"),
    [
        (55, 6_000),  # a watch took the second piece of what one entry published for a repetition
        (306, 6_000),  # a leader that held refused the entry that decides what it held at
        (1360, 16_000),  # a node that held, and had not enough memory to rebuild its state, forgot what was published
        (774, 16_000),  # a node that held died when a snapshot beyond that was installed
        (5018, 16_000),  # leaders changed sooner than a read took, and what the ones before answered was dropped
        (70094, 16_000),  # a machine that had stopped was still asked for a snapshot, of an entry that it had refused
    ],
)
def test_seeds_that_found_faults_find_none_any_more(seed: int, steps: int) -> None:
    assert run_seed(seed, steps=steps).violation is None


def test_a_read_that_takes_longer_than_leaders_last_is_answered() -> None:
    for seed in range(3):
        drawn = Profile.draw(random.Random(1))
        profile = replace(drawn, kinds=("transfer",), every_us=300_000, guest=True, holds=False, delayed_executor=True)
        play = Play(seed, profile=profile)
        for node in play.world.nodes.values():
            play.world.boot(node)
        play.nemesis.begin()
        play.timeline.run(until_us=2_000_000)
        before = play.world.elections
        read = play.clients[0].ask("crawl", "k1", 10.0)
        play.timeline.run(until_us=12_000_000)

        assert read.outcome == "ok"
        assert play.world.elections > before + 10


@pytest.mark.parametrize("seed", [201, 1424])
def test_calls_succeed_once_removed_nodes_are_ended_where_nothing_keeps_these_from_campaigning(seed: int) -> None:
    play = Play(seed)
    assert play.run().violation is None
    leader = play.world.leader()
    assert leader is not None
    assert leader.server is not None
    assert {node_id for node_id, node in play.world.nodes.items() if node.up} == leader.server.configuration.members

    next(call for call in play.must_succeed if call.command_id < 0).outcome = "fail"  # a read
    with pytest.raises(InvariantViolation, match="service"):
        play.judge()


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4])
def test_small_and_even_clusters_break_no_invariant(num_nodes: int) -> None:
    assert_sound(run(range(6), num_nodes=num_nodes, steps=3_000))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_few_hundred_seeds_break_no_invariant_and_meet_every_kind_of_fault() -> None:
    summary = run(range(10_000, 10_300))

    assert_sound(summary)
    names = {
        "membership": "operator change_membership",
        "transfer": "operator transfer",
        "snapshot": "operator snapshot",
    }
    missing = [kind for kind in KINDS if kind != "fuse" and not summary.faults[names.get(kind, kind)]]
    assert not missing


@pytest.mark.parametrize("seed", [3, 11])
def test_a_seed_gives_the_same_run_every_time(seed: int) -> None:
    assert run_seed(seed, steps=2_000) == run_seed(seed, steps=2_000)


def test_the_trace_is_the_same_in_processes_with_different_hash_seeds(tmp_path: Path) -> None:
    traces = []
    for hash_seed in ("1", "2"):
        path = tmp_path / f"trace-{hash_seed}.txt"
        command = [
            sys.executable,
            "-m",
            "actorraft.simulation",
            "--seed",
            "12",
            "--steps",
            "2000",
            "--trace",
            str(path),
        ]
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": hash_seed}, capture_output=True, timeout=100)
        traces.append(path.read_bytes())

    assert traces[0] == traces[1]
    assert len(traces[0].splitlines()) > 500


def test_without_faults_there_is_one_election_and_every_call_succeeds() -> None:
    drawn = Profile.draw(random.Random(1))
    calm = Profile(kinds=("wall clock",), every_us=10**12, config=drawn.config, timeouts_s=(3.0,))
    play = Play(5, steps=3_000, profile=calm)

    outcome = play.run()

    assert outcome.violation is None
    assert outcome.elections == 1
    assert {call.outcome for call in play.calls} == {"ok"}


def test_a_violation_ends_with_exit_code_1_and_the_command_that_replays_it(tmp_path: Path) -> None:
    """The command line, on code with a planted bug."""
    script = tmp_path / "planted.py"
    script.write_text(
        "from actorraft.simulation.disk import SimDisk\n"
        "persist = SimDisk.persist\n"
        "SimDisk.persist = lambda self, hard_state, first, entries: persist(self, None, first, entries)\n"
        "from actorraft.simulation.__main__ import app\n"
        "app(['--seed', '7', '--nodes', '3'])\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "300"},
    )

    assert done.returncode == 1
    line = next(line for line in done.stdout.splitlines() if line.startswith("seed 7, step "))
    assert "disk before word" in line
    assert line.endswith("python -m actorraft.simulation --seed 7 --nodes 3")
