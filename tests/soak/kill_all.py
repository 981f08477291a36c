"""python -m tests.soak.kill_all: kill -9 of every process at once, under load, again and again.

After each round all that was ever acknowledged must be there, and every counter exact.
"""

from __future__ import annotations

import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import typer

from actorraft import ReplicatedStateMachine
from statemachines.kv import KVStore
from tests.nemesis.faults import kill_together
from tests.nemesis.judge import wait_until_equal
from tests.soak.load import Load


@dataclass
class Report:
    """What came of the rounds."""

    rounds: int = 0
    acknowledged: int = 0
    lost: int = 0
    unknown: int = 0
    equal: bool = False
    problems: list[str] = field(default_factory=list)
    back_s: list[float] = field(default_factory=list)  # from the kill to the next acknowledged command

    @property
    def sound(self) -> bool:
        return not self.lost and not self.problems and self.equal


def run(*, rounds: int, nodes: int, durability: str, seed: int, say: Callable[[str], None] = lambda _: None) -> Report:
    """Kill all nodes `rounds` times."""
    rng = random.Random(seed)
    report = Report()
    with (
        tempfile.TemporaryDirectory() as place,
        ReplicatedStateMachine(KVStore).spawn(nodes, data_dir=place, durability=durability) as cluster,
    ):
        load = Load(cluster)
        for number in range(1, rounds + 1):
            load.wait_for_more(rng.randint(50, 500))
            began_s = time.monotonic()
            kill_together(cluster)
            for node in cluster.nodes.values():
                node.restart()
            load.wait_for_more(1)
            report.back_s.append(time.monotonic() - began_s)
            report.rounds, report.acknowledged = number, load.acknowledged
            report.lost = load.count_lost(cluster)
            say(
                f"round {number} of {rounds}: {report.acknowledged} acknowledged so far, {report.lost} lost, "
                f"back after {report.back_s[-1]:.2f} s"
            )
            if report.lost or load.problems:
                break
        load.stop()
        report.lost = max(report.lost, load.count_lost(cluster))
        report.acknowledged, report.unknown = load.acknowledged, load.outcomes["unknown"]
        report.problems = load.problems
        report.equal = wait_until_equal(cluster)[1] is not None
    return report


def main(
    rounds: Annotated[int, typer.Option(help="How often everything is killed.", min=1)] = 20,
    nodes: Annotated[int, typer.Option(help="Nodes of the cluster.", min=1)] = 5,
    durability: Annotated[str, typer.Option(help='"fsync" or "os"; processes may die under either.')] = "os",
    seed: Annotated[int, typer.Option(help="Of the moments of the kills.")] = 0,
) -> None:
    """Kill every node at once under load; exit with 1 if anything acknowledged is lost or applied twice."""
    logging.getLogger("actorraft").setLevel(logging.CRITICAL)  # nodes that die are meant to
    report = run(rounds=rounds, nodes=nodes, durability=durability, seed=seed, say=partial(print, flush=True))
    for problem in report.problems[:5]:
        print(problem)
    print(
        f"{report.rounds} rounds of {nodes} nodes killed at once ({durability}): {report.acknowledged} commands "
        f"acknowledged, {report.lost} lost, {len(report.problems)} out of order or twice, {report.unknown} unknown; "
        f"replicas {'equal' if report.equal else 'DIFFER'}; back after {max(report.back_s):.2f} s at most"
    )
    sys.exit(0 if report.sound else 1)


if __name__ == "__main__":
    typer.run(main)
