"""How long it takes to be there: `python -m benchmarks.startup`.

`import actorraft` in a fresh interpreter; `spawn(n)` until the first commit; `close()`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import measure, screen
from benchmarks.deployment import ROOT

IMPORTS = {
    "import actorraft": "import actorraft",
    "import all that spawn needs": "from actorraft import ReplicatedStateMachine",
}


def import_s(statement: str) -> float:
    """Return the seconds that a statement takes in a fresh interpreter, the interpreter's own start not counted."""
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return float(done.stdout)


def spawn_s(nodes: int) -> tuple[float, float, int]:
    """Return (seconds to the first commit, seconds to close, most bytes that an idle node holds)."""
    from actorraft import ReplicatedStateMachine
    from statemachines.kv import KVStore

    start = time.perf_counter()
    cluster = ReplicatedStateMachine(KVStore).spawn(nodes)
    try:
        cluster.proxy().set("x", 1)
        up = time.perf_counter()
        resident = max(measure.resident_bytes(node.pid) for node in cluster.nodes.values() if node.pid is not None)
        closing = time.perf_counter()
    finally:
        cluster.close()
    return up - start, time.perf_counter() - closing, resident


def main(
    nodes: Annotated[str, typer.Option(help="Cluster sizes.")] = "1,3,5",
    trials: Annotated[int, typer.Option(min=1, help="Times over; medians are shown.")] = 7,
    json: Annotated[Path | None, typer.Option(help="Write the rows there.")] = None,
) -> None:
    """Measure imports, spawn to first commit, and close."""
    sizes = screen.numbers(nodes, "--nodes")
    screen.heading("Startup")
    rows: list[dict[str, Any]] = []
    with screen.bar((len(IMPORTS) + len(sizes)) * trials) as bar:

        def row(what: str, values: list[float], **more: Any) -> None:
            median, longest = measure.percentile(values, 0.5), max(values)
            rows.append({"benchmark": "startup", "what": what, "p50_s": median, "max_s": longest, **more})
            bar.note(f"{what}: {median:.3f} s")

        for what, statement in IMPORTS.items():
            bar.say(what)
            times = []
            for _ in range(trials):
                times.append(import_s(statement))
                bar.advance(1)
            row(what, times)
        for size in sizes:
            bar.say(f"spawn({size})")
            seen = []
            for _ in range(trials):
                seen.append(spawn_s(size))
                bar.advance(1)
            row(f"spawn({size}) to the first commit", [up for up, _, _ in seen], nodes=size)
            row(f"close() of {size}", [close for _, close, _ in seen], nodes=size)
            rows[-1]["idle_node_bytes"] = max(resident for _, _, resident in seen)
    lines = [[row["what"], f"{row['p50_s']:.3f}", f"{row['max_s']:.3f}", _mib(row)] for row in rows]
    screen.table("Startup, in a temporary directory", ["what", "median s", "longest s", "MiB an idle node"], lines)
    screen.finish(rows, json=json)


def _mib(row: dict[str, Any]) -> str:
    return f"{row['idle_node_bytes'] / (1 << 20):.0f}" if "idle_node_bytes" in row else "-"


if __name__ == "__main__":
    typer.run(main)
