"""What /metrics costs: a cluster that is scraped every second, by itself when it is not, and beside one that cannot be.

    python -m benchmarks.metrics_price [--rounds 8] [--seconds 2] [--outstanding 1000] [--every 1]

Both clusters are there all the time, and one of them is loaded at a time, in turns, so that a machine that becomes
slower does so for all. Two clusters differ by some percent whatever they do, so what scraping costs is the median of
the ratios of one and the same cluster, scraped and not.
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
    rounds: Annotated[int, typer.Option(min=1)] = 8,
    seconds: Annotated[float, typer.Option(min=0.1)] = 2.0,
    outstanding: Annotated[int, typer.Option(min=1)] = 1000,
    every: Annotated[float, typer.Option(help="Seconds between scrapes.", min=0.01)] = 1.0,
) -> None:
    """Print commands/s of each round, and the medians of their ratios."""
    machine, http = ReplicatedStateMachine(KVStore), _addresses(3)
    with machine.spawn(3) as plain, machine.spawn(3, http=http) as serving:
        for cluster in (plain, serving):
            _load(cluster, outstanding, seconds / 2)
        ways = {"plain": (plain, []), "serving": (serving, []), "scraped": (serving, http)}
        said: list[dict[str, float]] = []
        for number in range(rounds):
            said.append({})
            for way in list(ways)[:: 1 if number % 2 == 0 else -1]:
                cluster, addresses = ways[way]
                with _scraping(addresses, every):
                    said[-1][way] = _load(cluster, outstanding, seconds)
            print("  ".join(f"{way} {said[-1][way]:,.0f}/s" for way in ways), flush=True)
    for way, beside in (("scraped", "serving"), ("serving", "plain"), ("scraped", "plain")):
        ratio = statistics.median(each[way] / each[beside] for each in said)
        print(f"{way} beside {beside}: median ratio {ratio:.3f} of {rounds}, {outstanding} outstanding")


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
