"""python -m tests.soak.one_link: the leader cannot reach one follower, and both reach everybody else.

The follower hears nothing of its leader and would stand for election for ever; with pre-vote and a leader that is heard
by the others, nobody listens to it.

Source:     D§9.6 (pre-vote); trap 8.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from actorraft import ReplicatedStateMachine
from actorraft.cluster.cluster import Cluster
from statemachines.kv import KVStore
from tests.soak.load import Load

SUCCESS_MIN = 0.99


@dataclass
class Report:
    """What came of the cut."""

    terms: int  # by how much the term grew
    succeeded: int
    failed: int
    longest_gap_s: float
    caught_up: bool  # the follower, after the heal

    @property
    def share(self) -> float:
        return self.succeeded / max(1, self.succeeded + self.failed)

    @property
    def sound(self) -> bool:
        return self.terms <= 1 and self.share >= SUCCESS_MIN and self.caught_up


def run(*, seconds: float, nodes: int) -> Report:
    """Cut the leader from one follower for `seconds`."""
    with ReplicatedStateMachine(KVStore).spawn(nodes) as cluster:
        load = Load(cluster, writers=3, window=1, timeout_s=2.0)
        load.wait_for_more(10)
        leader = cluster.wait_for_leader()
        follower = next(node_id for node_id in cluster.nodes if node_id != leader)
        term, before = _term(cluster), load.outcomes
        began_s = time.monotonic()
        cluster._processes.cut({leader: {follower}, follower: {leader}})
        time.sleep(seconds)
        outcomes, gap_s, terms = load.outcomes, load.longest_gap_s(began_s), _term(cluster) - term
        cluster.heal()
        load.wait_for_more(10)
        load.stop()
        ok = outcomes["ok"] - before["ok"]
        failed = outcomes.total() - before.total() - ok
        return Report(terms, ok, failed, gap_s, _catches_up(cluster, follower))


def _term(cluster: Cluster[Any]) -> int:
    return max(row.term for row in cluster.status())


def _catches_up(cluster: Cluster[Any], node_id: int) -> bool:
    deadline_s = time.monotonic() + 10.0
    while time.monotonic() < deadline_s:
        rows = {row.id: row for row in cluster.status()}
        if rows[node_id].last_applied == max(row.commit_index for row in rows.values()):
            return True
    return False


def main(
    seconds: Annotated[float, typer.Option(help="How long the link is cut.")] = 60.0,
    nodes: Annotated[int, typer.Option(help="Nodes of the cluster.", min=3)] = 5,
) -> None:
    """Cut the leader off from one follower under load; exit with 1 if the term runs away or operations fail."""
    logging.getLogger("actorraft").setLevel(logging.CRITICAL)  # nodes that die are meant to
    report = run(seconds=seconds, nodes=nodes)
    print(
        f"leader cut from one follower for {seconds:.0f} s, {nodes} nodes: the term grew by {report.terms}; "
        f"{report.succeeded} operations succeeded, {report.failed} did not ({report.share:.2%}); longest time without "
        f"an answer {report.longest_gap_s * 1000:.0f} ms; afterwards the follower "
        f"{'caught up' if report.caught_up else 'did NOT catch up'}"
    )
    sys.exit(0 if report.sound else 1)


if __name__ == "__main__":
    typer.run(main)
