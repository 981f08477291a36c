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

import typer

from tests.machines.hosts import PORT, Hosts, Load, eventually, hosts
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


PARTS: tuple[Callable[[Hosts], str], ...] = (first_commit, all_killed, cut_off, leaves, joins, moves)


def main(runs: int = typer.Option(1, help="How often each is tried.")) -> None:
    """Try everything, and print what it took."""
    reason = why_not()
    if reason is not None:
        sys.exit(f"no network namespaces: {reason}")
    failed = 0
    for part in PARTS:
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
