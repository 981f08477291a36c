"""python -m tests.soak.power_cut: the whole cluster loses its power, again and again.

Every node's data lies on one ext4 image, which stops dead in mid-work: nothing written after that instant reaches it,
nor what was written before and not synced. With "fsync" nothing acknowledged may be lost. With "os", which promises
nothing here, something must be lost, or this tests nothing: nodes that refuse to start, as they should, are made to give
up what cannot be read, and what is missing then is counted.
"""

from __future__ import annotations

import contextlib
import logging
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from actorraft import Cluster, ReplicatedStateMachine
from actorraft.errors import ActorRaftError, CorruptionError
from actorraft.storage.disk import DiskStorage
from actorraft.storage.recover import recover
from statemachines.kv import KVStore
from tests.nemesis import disks
from tests.nemesis.faults import kill_together
from tests.soak.load import Load

ANSWER_S = 0.5  # writers go on for so long after the cut


@dataclass
class Report:
    """What came of the cuts."""

    cuts: int = 0
    acknowledged: int = 0
    lost: int = 0
    refused: str = ""  # what the cluster said when it would not start on what was left
    problems: list[str] = field(default_factory=list)

    @property
    def harmed(self) -> bool:
        return bool(self.lost or self.refused or self.problems)


@contextlib.contextmanager
def image(megabytes: int = 1024) -> Iterator[disks.Image]:
    """An image for a cluster, and a folder to mount it at."""
    with tempfile.TemporaryDirectory(prefix="power-") as place:
        disk = disks.Image(Path(place) / "disk", Path(place) / "mounted", megabytes=megabytes)
        try:
            yield disk
        finally:
            disk.close()


def run(*, cuts: int, nodes: int, durability: str, seed: int, say: Callable[[str], None] = lambda _: None) -> Report:
    """Cut the power `cuts` times; stop at the first harm."""
    rng = random.Random(seed)
    report = Report()
    loads: list[Load] = []
    with image() as disk:
        data = disk.path / "data"
        for number in range(cuts + 1):
            try:
                cluster = _start(nodes, data, durability)
            except ActorRaftError as error:
                report.refused = f"{type(error).__name__}: {error}"
                if durability == "fsync":
                    return report
                kept = _accept_loss(data)
                if not kept:
                    report.lost = report.acknowledged
                    return report
                recover(data, kept, force=True)
                cluster = _start(None, data, durability)
            with cluster:
                report.lost = sum(load.count_lost(cluster) for load in loads)
                report.problems = [problem for load in loads for problem in load.problems]
                if number:
                    say(f"cut {number} of {cuts}: {report.acknowledged} acknowledged so far, {report.lost} lost")
                if number == cuts or report.harmed:
                    return report
                load = Load(cluster, name=f"p{number}w", timeout_s=5.0)
                loads.append(load)
                load.wait_for_more(rng.randint(100, 600))
                if durability == "os" and number % 2 == 0:  # the system writes back by itself now and then
                    disk.sync()
                    load.wait_for_more(rng.randint(100, 600))
                disk.cut_power()
                time.sleep(ANSWER_S)
                kill_together(cluster)
                load.stop()
                report.cuts, report.acknowledged = report.cuts + 1, report.acknowledged + load.acknowledged
            disk.power_on()
    return report


def _start(nodes: int | None, data: Path, durability: str) -> Cluster[Any]:
    machine = ReplicatedStateMachine(KVStore)
    return machine.spawn(nodes, data_dir=data, durability=durability, supervision=None, timeout=30.0)


def _accept_loss(data: Path) -> set[int]:
    """Do what an operator would who has nothing else: have stores give up what cannot be read; return whose is left."""
    kept = set()
    for node in sorted(data.glob("node-*")):
        store = DiskStorage(node, durability="os", create=False, accept_loss=True)
        with contextlib.closing(store), contextlib.suppress(CorruptionError):  # not one entry of it can be read
            store.recover()
            kept.add(int(node.name.removeprefix("node-")))
    return kept


def main(
    cuts: Annotated[int, typer.Option(help="How often the power fails.", min=1)] = 5,
    nodes: Annotated[int, typer.Option(help="Nodes of the cluster.", min=1)] = 5,
    durability: Annotated[str, typer.Option(help='"fsync": nothing may be lost; "os": something must be.')] = "fsync",
    seed: Annotated[int, typer.Option(help="Of the moments of the cuts.")] = 0,
) -> None:
    """Cut the power under load. Exit with 1 if "fsync" lost anything or "os" nothing, with 2 if it cannot be done."""
    logging.getLogger("actorraft").setLevel(logging.CRITICAL)  # nodes that die are meant to
    if reason := disks.why_not():
        print(f"not possible here: {reason}")
        sys.exit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is mounted is let go of
    report = run(cuts=cuts, nodes=nodes, durability=durability, seed=seed, say=partial(print, flush=True))
    for problem in report.problems[:5]:
        print(problem)
    if report.refused:
        print(f"the cluster refused to start on what was left: {report.refused}")
    print(
        f"{report.cuts} power cuts of {nodes} nodes ({durability}): {report.acknowledged} commands acknowledged, "
        f"{report.lost} of them lost"
    )
    sound = bool(report.lost) if durability == "os" else not report.harmed
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    typer.run(main)
