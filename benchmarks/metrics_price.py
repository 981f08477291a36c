"""What /metrics costs: a cluster whose nodes are scraped every second beside one whose nodes serve nothing, in pairs.

    python -m benchmarks.metrics_price [--pairs 8] [--seconds 2] [--outstanding 1000] [--every 1]

Both clusters are there all the time, and one of them is loaded at a time, in turns, so that a machine that becomes
slower does so for both. The figure is the median of the pairs' ratios.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import statistics
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from actorraft import Cluster, ReplicatedStateMachine
from statemachines.kv import KVStore


def main(
    pairs: Annotated[int, typer.Option(min=1)] = 8,
    seconds: Annotated[float, typer.Option(min=0.1)] = 2.0,
    outstanding: Annotated[int, typer.Option(min=1)] = 1000,
    every: Annotated[float, typer.Option(help="Seconds between scrapes.", min=0.01)] = 1.0,
) -> None:
    """Print commands/s of each pair, and the median of their ratios."""
    machine, http = ReplicatedStateMachine(KVStore), _addresses(3)
    with machine.spawn(3) as plain, machine.spawn(3, http=http) as scraped:
        for cluster in (plain, scraped):
            _load(cluster, outstanding, seconds / 2)
        ratios = []
        for number in range(pairs):
            order = (plain, scraped) if number % 2 == 0 else (scraped, plain)
            said = {}
            for cluster in order:
                with _scraping(http if cluster is scraped else [], every):
                    said[cluster] = _load(cluster, outstanding, seconds)
            ratios.append(said[scraped] / said[plain])
            print(f"plain {said[plain]:,.0f}/s  scraped {said[scraped]:,.0f}/s  ratio {ratios[-1]:.3f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f} of {pairs} pairs, {outstanding} outstanding")


def _load(cluster: Cluster[KVStore], outstanding: int, seconds: float) -> float:
    """Return commands/s with so many outstanding."""
    store: Any = cluster.proxy()
    waiting: deque[Any] = deque(store.set.submit("x", number) for number in range(outstanding))
    began_s, done = time.monotonic(), 0
    while time.monotonic() - began_s < seconds:
        waiting.popleft().result()
        waiting.append(store.set.submit("x", done))
        done += 1
    passed_s = time.monotonic() - began_s
    for future in waiting:
        future.result()
    return done / passed_s


@contextlib.contextmanager
def _scraping(addresses: list[str], every: float) -> Iterator[None]:
    """Scrape from a process of its own, as Prometheus does: a thread here would slow the load down."""
    if not addresses:
        yield
        return
    spawning = multiprocessing.get_context("spawn")
    began = spawning.Event()
    scraper = spawning.Process(target=_scrape, args=(addresses, every, began), daemon=True)
    scraper.start()
    began.wait()
    try:
        yield
    finally:
        scraper.terminate()
        scraper.join()


def _scrape(addresses: list[str], every: float, began: Any) -> None:
    while True:
        for address in addresses:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
                answer.read()
        began.set()
        time.sleep(every)


def _addresses(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


if __name__ == "__main__":
    typer.run(main)
