"""python -m tests.soak.machines: hosts in network namespaces, and how long each thing takes that can happen to them.

Prints one line a figure, and exits with 1 if an acknowledged write is gone or a client saw an error. Needs root.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from tests.machines.hosts import PORT, Hosts, Load, eventually, hosts
from tests.machines.test_names import silent_name_server as name_server
from tests.machines.test_names import write
from tests.machines.test_strangers import flooded
from tests.nemesis.namespaces import why_not


def first_commit(net: Hosts) -> str:
    """Two lines, 3 s apart; the third machine is off."""
    net.found()
    net.nodes[0].serve()
    time.sleep(3.0)
    net.nodes[1].serve()
    with net.connect() as client:
        client.proxy(timeout=30.0).set("x", 1)
        return f"first commit {time.monotonic() - net.nodes[1].began_s:.2f} s after the second line"


def all_killed(net: Hosts) -> str:
    """SIGKILL of all three, and the same lines again."""
    load = begin(net)
    for host in net.nodes.values():
        host.kill()
    again_s = time.monotonic()
    net.start()
    return f"next commit {ended(net, load, again_s):.2f} s after the lines of all three that were killed"


def cut_off(net: Hosts) -> str:
    """The leader's host is cut off for good: no socket closes."""
    load = begin(net)
    cut_s = time.monotonic()
    net.cut_off(load.leader)
    return f"next commit {ended(net, load, cut_s) * 1000:.0f} ms after the leader's host was cut off"


def leaves(net: Hosts) -> str:
    """SIGTERM of the leader."""
    load = begin(net)
    told_s = time.monotonic()
    net.nodes[load.leader].signal(signal.SIGTERM)
    gap_s = ended(net, load, told_s)
    return f"longest wait for a commit {gap_s * 1000:.0f} ms when the leader was asked to leave"


def joins(net: Hosts) -> str:
    """A new machine, under load."""
    load = begin(net)
    text = net.run("token", "create").stdout.strip()
    new = net.nodes[3] = net.all[4]
    new.serve("--join", text, "--listen", f"{new.address}:{PORT}", folder=False)
    eventually(lambda: '"voter"' in net.run("members", "list", "-o", "json").stdout.partition('"id": 3')[2], 60.0)
    took_s = time.monotonic() - new.began_s
    ended(net, load, new.began_s)
    return f"a voter {took_s:.1f} s after the line on a new machine"


def moves(net: Hosts) -> str:
    """A member comes back elsewhere."""
    load = begin(net)
    moved = next(node_id for node_id in net.nodes if node_id != load.leader)
    host = net.nodes[moved]
    host.kill()
    host.serve("--listen", f"{host.address}:{PORT + 100}")
    eventually(lambda: host.serves_s)
    index = load.client.status()[load.leader].commit_index

    def fed() -> bool:
        said = load.client._thread.admin(load.leader, "status", {}, 5.0).result()
        return bool(said["match_index"].get(moved, -1) >= index)

    eventually(fed)
    assert host.serves_s is not None
    took_s = time.monotonic() - host.serves_s
    ended(net, load, 0.0)
    return f"reached {took_s:.2f} s after it served at another address"


def silent_names(net: Hosts) -> str:
    """A name server that never answers for one peer, for a minute; the same cluster with all names before."""
    with name_server(net) as at:
        names = {host.name: host.address for host in net.all}
        net.found(names=True)
        found: list[dict[str, Any]] = []
        for known in (names, {name: at for name, at in names.items() if name != net.nodes[2].name}):
            for host in net.all:
                host.knows(known, at)
            for node_id in (0, 1):
                net.nodes[node_id].kill()
            net.start(0, 1)
            write(net, 2.0)
            found.append(write(net, 60.0))
        before, during = found
        after = write(net, 0.5)
    assert not before["errors"] + during["errors"], "a client saw an error"
    assert during["term"] == after["term"], "an election"
    return (
        f"p99 of commits {during['p99_ms']:.1f} ms in 60 s in which nobody answers for one peer's name, "
        f"{during['p99_ms'] / before['p99_ms']:.2f} times the {before['p99_ms']:.1f} ms with it; no election"
    )


def strangers(net: Hosts) -> str:
    """A thousand connections that say nothing sensible, and messages that never end."""
    return f"{flooded(net):.0f} MB more at the leader under 1,000 connections of a stranger and messages without end"


class Begun(Load):
    """A load on a cluster that is whole."""

    leader: int


def begin(net: Hosts) -> Begun:
    """Found a cluster, start it, and write."""
    net.found()
    net.start()
    client = net.connect()
    client.proxy(timeout=30.0).set("x", 1)
    net.settled(client)
    load = Begun(client, timeout=30.0)
    load.leader = client.wait_for_leader()
    load.wait_for_more(200)
    return load


def ended(net: Hosts, load: Begun, since_s: float) -> float:
    """Go on for a while; check that all is there; return how long a commit took at most since then."""
    load.wait_for_more(200)
    load.stop()
    load.check(load.client)
    load.client.close()
    assert not load.errors, load.errors[:3]
    before = max((time_s for time_s in load.times_s if time_s <= since_s), default=since_s)
    return load.longest_gap_s(before)


PARTS: tuple[Callable[[Hosts], str], ...] = (
    first_commit,
    all_killed,
    cut_off,
    leaves,
    joins,
    moves,
    strangers,
    silent_names,
)


def main(
    runs: int = typer.Option(1, help="How often each is tried."),
    only: str = typer.Option("", help="Names of parts, with commas between."),
) -> None:
    """Try everything, and print what it took."""
    reason = why_not()
    if reason is not None:
        sys.exit(f"no network namespaces: {reason}")
    failed = 0
    for part in [each for each in PARTS if only in ("", each.__name__) or each.__name__ in only.split(",")]:
        for _ in range(runs):
            with tempfile.TemporaryDirectory(prefix="machines-") as directory:
                try:
                    with hosts(Path(directory), quiet=True) as net:
                        print(part(net), flush=True)
                except AssertionError as error:
                    failed += 1
                    print(f"FAILED {part.__name__}: {error}", flush=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
