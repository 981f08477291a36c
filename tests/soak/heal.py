"""python -m tests.soak.heal: the leader and one more are cut off; after the heal all nodes are soon equal.

The majority must commit again within 2 s of the cut, and within 2 s of the heal every node must have applied the same
and have the same digest.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from actorraft import ReplicatedStateMachine
from actorraft.cluster.cluster import Cluster
from statemachines.kv import KVStore
from tests.nemesis import namespaces
from tests.nemesis.judge import wait_until_equal
from tests.soak.load import Load

WITHIN_S = 2.0


@dataclass
class Report:
    """What came of the partition."""

    again_s: float  # from the cut to the next acknowledged command
    equal_s: float | None  # from the heal until all nodes were equal
    acknowledged: int  # during the partition
    lost: int
    network: str

    @property
    def sound(self) -> bool:
        return self.again_s <= WITHIN_S and self.equal_s is not None and self.equal_s <= WITHIN_S and not self.lost


def run(*, seconds: float, nodes: int, in_namespaces: bool) -> Report:
    """Partition for `seconds`, heal, and wait until all are equal."""
    with contextlib.ExitStack() as stack:
        cluster, network = _cluster(stack, nodes, in_namespaces)
        load = Load(cluster, writers=3, window=4, timeout_s=30.0)
        stack.callback(load.stop)
        load.wait_for_more(100)
        leader = cluster.wait_for_leader()
        others = [node_id for node_id in cluster.nodes if node_id != leader]
        minority = {leader, *others[: (nodes - 1) // 2 - 1]}
        before, began_s = load.acknowledged, time.monotonic()
        cluster.partition(minority, set(cluster.nodes) - minority)
        time.sleep(seconds)
        again_s = load.longest_gap_s(began_s)
        load.stop()
        acknowledged = load.acknowledged - before
        cluster.heal()
        _, equal_s = wait_until_equal(cluster, 30.0)
        return Report(again_s, equal_s, acknowledged, load.count_lost(cluster), network)


def _cluster(stack: contextlib.ExitStack, nodes: int, in_namespaces: bool) -> tuple[Cluster[Any], str]:
    reason = namespaces.why_not() if in_namespaces else "asked for"
    if reason:
        return stack.enter_context(ReplicatedStateMachine(KVStore).spawn(nodes)), f"frames dropped in nodes ({reason})"
    router = stack.enter_context(namespaces.Router())
    place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    cluster = namespaces.spawn(KVStore, nodes, router, data_dir=place, durability="os")
    return stack.enter_context(cluster), "packets dropped between namespaces"


def main(
    seconds: Annotated[float, typer.Option(help="How long the partition lasts.")] = 15.0,
    nodes: Annotated[int, typer.Option(help="Nodes of the cluster.", min=3)] = 5,
    namespaces: Annotated[bool, typer.Option(help="Cut packets between network namespaces, where possible.")] = True,
) -> None:
    """Cut off the leader's side under load, heal; exit with 1 if the majority or the reunion takes over 2 s."""
    logging.getLogger("actorraft").setLevel(logging.CRITICAL)  # nodes that die are meant to
    report = run(seconds=seconds, nodes=nodes, in_namespaces=namespaces)
    equal = f"equal after {report.equal_s:.2f} s" if report.equal_s is not None else "NOT equal after 30 s"
    print(
        f"partition of {nodes} nodes for {seconds:.0f} s ({report.network}): the majority answered again after "
        f"{report.again_s:.2f} s and acknowledged {report.acknowledged} commands; after the heal all nodes were "
        f"{equal}; {report.lost} lost"
    )
    sys.exit(0 if report.sound else 1)


if __name__ == "__main__":
    typer.run(main)
