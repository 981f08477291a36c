"""What keys cost: `python -m benchmarks.links`.

The same three nodes, hosted by one process over the loopback, once with keys and once without, in turn; and over Unix
sockets, as `spawn` has them. The price of CURVE is the ratio of the pairs of one run: machines are not equally fast
from one minute to the next.

Not here:   the way between two machines (tests/soak/far_apart.py).
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
from typing import Annotated, Any

import typer

from actorraft import ReplicatedStateMachine
from actorraft.cluster.founding import CLIENT_FOLDER, found
from benchmarks import screen
from benchmarks.deployment import fresh_directory
from benchmarks.harness import run_window
from benchmarks.loadgen import LoadSpec
from benchmarks.others.processes import free_ports
from benchmarks.systems import ActorRaftDeployment
from statemachines.kv import KVStore

KINDS = ("tcp with keys", "tcp without", "Unix sockets")


class ServedDeployment(ActorRaftDeployment):
    """Three members, each with a folder, as `actorraft init` and `serve` have them."""

    def __init__(self, nodes: int, keys: bool, durability: str) -> None:
        self.directory = fresh_directory("links")
        self._stack = contextlib.ExitStack()
        self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        try:
            made = self.directory / "cluster"
            addresses = [f"127.0.0.1:{port}" for port in free_ports(nodes)]
            found(
                made,
                "statemachines.kv:KVStore",
                addresses,
                durability=durability,  # type: ignore[arg-type]  # found refuses what it is not
                profile="local",
                keys=keys,
            )
            machine = ReplicatedStateMachine(KVStore)
            for node_id in range(nodes):
                self._stack.enter_context(machine.serve(made / f"node-{node_id}", data_dir=made / f"data-{node_id}"))
            from actorraft import connect

            self._client = self._stack.enter_context(connect(made / CLIENT_FOLDER, KVStore, timeout=60.0))
            self._client.proxy(timeout=60.0).set("x", b"")
        except BaseException:
            self.close()
            raise

    def endpoints(self) -> dict[str, str]:
        """Return what a LoadSpec takes."""
        return {str(node_id): endpoint for node_id, endpoint in self._client.endpoints.items()}

    def pids(self) -> dict[str, list[int]]:
        """Whose processor time it is, is not looked at here."""
        return {}

    def work(self) -> dict[str, int]:
        """Nor what the leader did."""
        return {}

    def term(self) -> int:
        """Return the highest term that a node knows."""
        return max(row.term for row in self._client.status())

    def close(self) -> None:
        """End every process and remove the data."""
        self._stack.close()


def deploy(kind: str, nodes: int, durability: str) -> Any:
    """Start a cluster whose links are of that kind."""
    if kind == "Unix sockets":
        return ActorRaftDeployment(nodes, durability, "kv")
    return ServedDeployment(nodes, kind == "tcp with keys", durability)


def main(
    nodes: Annotated[int, typer.Option(help="Nodes of each cluster.")] = 3,
    concurrency: Annotated[str, typer.Option(help="Commands outstanding.")] = "1,64,1000",
    payload: Annotated[int, typer.Option(help="Bytes of a value.")] = 128,
    seconds: Annotated[float, typer.Option(help="Of each window.")] = 2.0,
    rounds: Annotated[int, typer.Option(help="How often all is done; medians are told.")] = 3,
    durability: Annotated[str, typer.Option(help="fsync or os; os keeps the disk out of it.")] = "os",
) -> None:
    """Print commits a second over each kind of link, and what is left of them with keys."""
    levels = [int(each) for each in concurrency.split(",")]
    seen: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds):
        for kind in KINDS if number % 2 == 0 else KINDS[::-1]:
            deployment = deploy(kind, nodes, durability)
            try:
                for level in levels:
                    spec = LoadSpec(
                        endpoints=deployment.endpoints(),
                        concurrency=level,
                        payload_bytes=payload,
                        warmup_s=0.5,
                        seconds=seconds,
                    )
                    measured = run_window(deployment, spec, 1)
                    seen.setdefault((kind, level), []).append(measured.per_s)
                    screen.console.print(f"{kind}, {level} outstanding: {measured.per_s:,.0f}/s", highlight=False)
            finally:
                deployment.close()
    middle = {key: statistics.median(values) for key, values in seen.items()}
    screen.console.print("outstanding | " + " | ".join(KINDS) + " | with keys / without", highlight=False)
    for level in levels:
        ratios = [a / b for a, b in zip(seen[KINDS[0], level], seen[KINDS[1], level], strict=True)]
        figures = " | ".join(f"{middle[kind, level]:,.0f}" for kind in KINDS)
        screen.console.print(f"{level} | {figures} | {statistics.median(ratios):.0%}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
