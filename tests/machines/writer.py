"""python -m tests.machines.writer FOLDER SECONDS: a client in a process of its own; prints what came of its writes.

Prints one line of JSON: acknowledged, errors, p50_ms, p99_ms, longest_gap_ms. Stops early when its input ends.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

from actorraft import ActorRaftError, connect
from statemachines.kv import KVStore


def main() -> None:
    """Write one key after another."""
    folder, seconds = sys.argv[1], float(sys.argv[2])
    errors: list[str] = []
    took_s: list[float] = []
    with connect(folder, KVStore, timeout=30.0) as client:
        proxy = client.proxy(timeout=20.0)
        proxy.set("first", 1)
        until_s = time.monotonic() + seconds
        while (now_s := time.monotonic()) < until_s:
            try:
                proxy.set(f"k{len(took_s) % 1000}", len(took_s))
                took_s.append(time.monotonic() - now_s)
            except ActorRaftError as error:
                errors.append(f"{type(error).__name__}: {error}")
        term = max(row.term for row in client.status())
    cuts = statistics.quantiles(took_s, n=100)
    print(
        json.dumps(
            {
                "acknowledged": len(took_s),
                "errors": errors,
                "term": term,
                "p50_ms": cuts[49] * 1000,
                "p99_ms": cuts[98] * 1000,
                "longest_ms": max(took_s) * 1000,
            }
        )
    )


if __name__ == "__main__":
    main()
