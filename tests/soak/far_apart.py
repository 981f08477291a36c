"""python -m tests.soak.far_apart: machines with a delay between them, some with lost packets; what profiles make of it.

A relay in the router's namespace stands before each machine, and holds every byte for half the round trip. Loss is of
packets, by a rule of nftables, and so is a host that falls silent: no socket closes. Needs root.

Not here:   a limit of bandwidth.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from actorraft import ActorRaftError, Client
from statemachines.kv import KVStore
from tests.machines.hosts import PORT, REPOSITORY, Hosts, hosts
from tests.nemesis.namespaces import why_not


async def relay(rtt_s: float, jitter_s: float, pairs: list[tuple[str, str]]) -> None:
    """Listen at the first of each pair of host:port, and pass everything on to the second, late."""

    async def passes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def write() -> None:
            while True:
                due_s, data = await waiting.get()
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                if not data:
                    writer.close()
                    return
                writer.write(data)
                await writer.drain()

        task = asyncio.create_task(write())
        due_s = 0.0
        try:
            while data := await reader.read(1 << 18):
                due_s = max(due_s, time.monotonic() + rtt_s / 2 + random.uniform(0.0, jitter_s))
                waiting.put_nowait((due_s, data))
        except OSError:
            pass
        waiting.put_nowait((0.0, b""))
        await asyncio.gather(task, return_exceptions=True)

    def meets(target: str):  # type: ignore[no-untyped-def]
        async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            host, port = target.rsplit(":", 1)
            try:
                there, back = await asyncio.open_connection(host, int(port))
            except OSError:
                writer.close()
                return
            await asyncio.gather(passes(reader, back), passes(there, writer), return_exceptions=True)

        return on_connection

    servers = []
    for at, target in pairs:
        host, port = at.rsplit(":", 1)
        servers.append(await asyncio.start_server(meets(target), host, int(port)))
    print("there", flush=True)
    await asyncio.Event().wait()


def measure(net: Hosts, profile: str, rtt_ms: float, jitter_ms: float, loss: float, seconds: float) -> str:
    """One cluster, one profile: latency, throughput, an election, and elections nobody asked for."""
    doors = {number: f"10.77.{number}.1" for number in (1, 2, 3)}
    places = ",".join(f"{door}:{PORT}" for door in doors.values())
    net.found("--profile", profile, places=places)
    pairs = [f"{doors[n]}:{PORT + more}={net.all[n].address}:{PORT + more}" for n in doors for more in (0, 1)]
    words = [sys.executable, "-m", "tests.soak.far_apart", "--relay", f"{rtt_ms}", "--jitter", f"{jitter_ms}"]
    process = subprocess.Popen(
        ["ip", "netns", "exec", f"{net.router.prefix}r", *words, *pairs],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        with process.stdout:
            process.stdout.readline()
            if loss:
                rules = (
                    "add table ip lossy; add chain ip lossy in { type filter hook input priority 0; }; "
                    f"add rule ip lossy in tcp dport {PORT} numgen random mod 1000 < {round(loss * 1000)} drop"
                )
                subprocess.run(["ip", "netns", "exec", f"{net.router.prefix}r", "nft", rules], check=True)
            for n, door in doors.items():
                host = net.all[n]
                host.serve("--listen", f"{host.address}:{PORT}", "--advertise", f"{door}:{PORT}")
            return _figures(net, seconds)
    finally:
        process.kill()
        process.wait(10)


def _figures(net: Hosts, seconds: float) -> str:
    with net.connect(60.0) as client:
        proxy = client.proxy(timeout=30.0)
        proxy.set("x", 0)
        net.settled(client)
        term = max(row.term for row in client.status())
        took_s, errors = [], 0
        until_s = time.monotonic() + seconds
        while (began_s := time.monotonic()) < until_s:
            try:
                proxy.set("x", 1)
                took_s.append(time.monotonic() - began_s)
            except ActorRaftError:
                errors += 1
        rate = _rate(client, seconds)
        terms = max(row.term for row in client.status()) - term
        killed = client.wait_for_leader()
        net.nodes[killed].kill()
        after_kill_ms = _next_commit_ms(proxy)
        net.nodes[killed].serve("--listen", f"{net.nodes[killed].address}:{PORT}", "--advertise", _door(killed))
        net.settled(client)
        _rate(client, 0.5)
        _fall_silent(net, client.wait_for_leader())
        after_silence_ms = _next_commit_ms(proxy)
        cuts = statistics.quantiles(took_s, n=100)
        figures = (cuts[49] * 1000, cuts[98] * 1000, rate, after_kill_ms, after_silence_ms, terms, errors)
        return " | ".join(f"{figure:.0f}" for figure in figures)


def _next_commit_ms(proxy: KVStore) -> float:
    began_s = time.monotonic()
    proxy.set("x", 2)
    return (time.monotonic() - began_s) * 1000


def _rate(client: Client[KVStore], seconds: float) -> float:
    """Keep 1,000 commands outstanding; return commits a second, of the second half."""
    waiting = deque(client.submit_call("set", ("k", number), {}, 60.0) for number in range(1000))
    began_s = time.monotonic()
    count, half_s = 0, began_s
    while (now_s := time.monotonic()) < began_s + seconds:
        waiting.popleft().result()
        waiting.append(client.submit_call("set", ("k", 0), {}, 60.0))
        if now_s < began_s + seconds / 2:
            half_s = now_s
        else:
            count += 1
    rate = count / max(time.monotonic() - half_s, 0.001)
    for future in waiting:
        future.result()
    return rate


def _door(node_id: int) -> str:
    """Where the relay stands before a node."""
    return f"10.77.{node_id + 1}.1:{PORT}"


def _fall_silent(net: Hosts, node_id: int) -> None:
    """Lose every packet to and from a host; nobody is told."""
    wire = f"{net.router.prefix}w{net.nodes[node_id].number}"
    rules = (
        "add table ip silent; add chain ip silent in { type filter hook input priority 0; }; "
        "add chain ip silent out { type filter hook output priority 0; }; "
        f'add rule ip silent in iifname "{wire}" drop; add rule ip silent out oifname "{wire}" drop'
    )
    subprocess.run(["ip", "netns", "exec", f"{net.router.prefix}r", "nft", rules], check=True)


CASES = (
    ("lan", 1, 0, 0.0), ("lan", 1, 1, 0.01), ("wan", 30, 0, 0.0), ("wan", 30, 10, 0.0), ("wan", 80, 0, 0.0),
    ("wan", 80, 20, 0.0), ("wan", 30, 0, 0.01), ("wan", 30, 0, 0.05),
)  # fmt: skip


def main(
    pairs: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    as_relay: float = typer.Option(0.0, "--relay", hidden=True),
    jitter: float = typer.Option(0.0, hidden=True),
    seconds: float = typer.Option(10.0, help="Of writing one after another, and then many at once, for each case."),
    only: str = typer.Option("", help="Only this profile."),
) -> None:
    """Print a table."""
    if as_relay:
        split = [(pair.partition("=")[0], pair.partition("=")[2]) for pair in pairs or []]
        asyncio.run(relay(as_relay / 1000, jitter / 1000, split))
    reason = why_not()
    if reason is not None:
        sys.exit(f"no network namespaces: {reason}")
    print(
        "profile | round trip ms | jitter ms | loss | p50 ms | p99 ms | commits/s, 1,000 outstanding | after a kill ms "
        "| after silence ms | elections unasked | errors"
    )
    for profile, rtt_ms, jitter_ms, loss in CASES:
        if only not in ("", profile):
            continue
        with tempfile.TemporaryDirectory(prefix="far-") as directory, hosts(Path(directory), 3, quiet=True) as net:
            head = f"{profile} | {rtt_ms} | {jitter_ms} | {loss:.0%} | "
            try:
                print(head + measure(net, profile, rtt_ms, jitter_ms, loss, seconds), flush=True)
            except (AssertionError, ActorRaftError, OSError, subprocess.CalledProcessError) as error:
                print(f"{head}{type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    typer.run(main)
