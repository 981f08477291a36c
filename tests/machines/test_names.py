"""Machines with names: a name server that never answers holds up nobody else, and a name that means another number
is dialled there."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.machines.hosts import CLIENT, REPOSITORY, Hosts, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@contextlib.contextmanager
def silent_name_server(net: Hosts) -> Iterator[str]:
    """Something at the client's host that takes questions and never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hole:
        hole.bind((net.all[CLIENT].address, 53))
        yield net.all[CLIENT].address


def write(net: Hosts, seconds: float) -> dict[str, Any]:
    """Run a client, with the names of its host, for so long."""
    host = net.all[CLIENT]
    words = [sys.executable, "-m", "tests.machines.writer", str(net.client_folder), str(seconds)]
    done = subprocess.run(
        ["ip", "netns", "exec", host.namespace, *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_a_name_server_that_never_answers_for_one_peer_holds_up_nobody(net: Hosts) -> None:
    names = {host.name: host.address for host in net.all}
    with silent_name_server(net) as name_server:
        for host in net.all:
            host.knows(names, name_server)
        net.found(names=True)
        net.start(0, 1)
        before = write(net, 6.0)
        for node_id in (0, 1):
            net.nodes[node_id].kill()
        for host in net.all:
            host.knows({name: at for name, at in names.items() if name != net.nodes[2].name}, name_server)
        net.start(0, 1)
        write(net, 1.0)
        for _ in range(3):  # the machine may be busy with other things; a name server would hold it up each time
            during = write(net, 6.0)
            print(f"p99 {before['p99_ms']:.1f} ms with the name, {during['p99_ms']:.1f} ms without; {before} {during}")
            after = write(net, 1.0)
            assert not before["errors"] + during["errors"]
            elections = after["term"] - during["term"]
            waited = during["longest_ms"] >= 2000 or during["p50_ms"] >= 3 * before["p50_ms"] + 5
            if not elections and not waited:
                return
    assert not elections
    assert not waited, "commits that waited for a name server"


def test_a_peer_that_comes_back_under_another_address_of_the_same_name_is_reached(net: Hosts) -> None:
    names = {host.name: host.address for host in net.all}
    with silent_name_server(net) as name_server:
        for host in net.all:
            host.knows(names, name_server)
        net.found(names=True)
        net.start()
        write(net, 1.0)
        host = net.nodes[2]
        host.kill()
        elsewhere = f"{host.address.rpartition('.')[0]}.3"
        for change in (
            ["addr", "del", f"{host.address}/24", "dev", "eth0"],
            ["addr", "add", f"{elsewhere}/24", "dev", "eth0"],
            ["route", "replace", "default", "via", f"10.77.{host.number}.1"],
        ):
            subprocess.run(["ip", "-n", host.namespace, *change], check=True)
        write(net, 1.0)
        for each in net.all:
            each.knows({**names, host.name: elsewhere}, name_server)
        host.serve()
        eventually(lambda: host.serves_s)

        def caught_up() -> bool:
            said = status(net)
            return bool(said.get(2, {}).get("alive")) and said[2]["last_applied"] == said[2]["commit_index"] >= 0

        eventually(caught_up)
        assert host.serves_s is not None
        print(f"reached {time.monotonic() - host.serves_s:.2f} s after it served")
        net.nodes[0].kill()  # now its word is needed
        assert not write(net, 2.0)["errors"]


def status(net: Hosts) -> dict[int, dict[str, Any]]:
    """`actorraft status` with the names of the client's host."""
    words = [sys.executable, "-m", "actorraft", "status", "--client", str(net.client_folder), "-o", "json"]
    done = subprocess.run(
        ["ip", "netns", "exec", net.all[CLIENT].namespace, *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return {row["id"]: row for row in json.loads(done.stdout or "[]")}
