"""Run seeds, one after another or over several cores, and add up what happened."""

from __future__ import annotations

import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

from actorraft.simulation.play import STEPS, Outcome, Play

CHUNK = 10  # seeds that a worker takes at once


def run_seed(seed: int, *, num_nodes: int = 5, steps: int = STEPS) -> Outcome:
    """Run one seed to its end or its first violation."""
    be_quiet()
    return Play(seed, num_nodes=num_nodes, steps=steps).run()


def trace_seed(seed: int, *, num_nodes: int = 5, steps: int = STEPS) -> tuple[Outcome, Iterator[str]]:
    """Run one seed and keep its whole trace."""
    be_quiet()
    play = Play(seed, num_nodes=num_nodes, steps=steps, trace_all=True)
    outcome = play.run()
    return outcome, play.world.trace.all()


def be_quiet() -> None:
    """The code under test warns of what is done to it on purpose."""
    logging.getLogger("actorraft").setLevel(logging.CRITICAL + 1)


def _run_chunk(seeds: Sequence[int], num_nodes: int, steps: int) -> list[Outcome]:
    return [run_seed(seed, num_nodes=num_nodes, steps=steps) for seed in seeds]


def run_seeds(seeds: Sequence[int], *, num_nodes: int = 5, steps: int = STEPS, workers: int = 1) -> Iterator[Outcome]:
    """Yield the outcome of each seed, in the order in which they end."""
    if workers <= 1 or len(seeds) <= CHUNK:
        for seed in seeds:
            yield run_seed(seed, num_nodes=num_nodes, steps=steps)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures: list[Future[list[Outcome]]] = [
            pool.submit(_run_chunk, seeds[first : first + CHUNK], num_nodes, steps)
            for first in range(0, len(seeds), CHUNK)
        ]
        try:
            for future in as_completed(futures):
                yield from future.result()
        finally:
            for future in futures:
                future.cancel()


def replay_command(outcome: Outcome, *, num_nodes: int, steps: int) -> str:
    """Return the command that replays a seed to the same step."""
    command = f"python -m actorraft.simulation --seed {outcome.seed}"
    if num_nodes != 5:
        command += f" --nodes {num_nodes}"
    if steps != STEPS:
        command += f" --steps {steps}"
    return command


@dataclass
class Summary:
    """What many seeds were like together."""

    seeds: int = 0
    events: int = 0
    simulated_s: float = 0.0
    elections: int = 0
    commits: int = 0
    operations: int = 0
    unknown: int = 0
    undecided: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    violations: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one more."""
        self.seeds += 1
        self.events += outcome.events
        self.simulated_s += outcome.simulated_s
        self.elections += outcome.elections
        self.commits += outcome.commits
        self.operations += outcome.operations
        self.unknown += outcome.unknown
        self.undecided += outcome.undecided
        self.faults.update(outcome.faults)
        if outcome.violation is not None:
            self.violations.append(outcome)
