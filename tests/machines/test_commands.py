"""The commands of an administrator, on machines: calls of the machine, snapshots, keys, folders."""

from __future__ import annotations

import json
import signal

import pytest

from actorraft import connect
from statemachines.kv import KVStore
from tests.machines.hosts import Hosts, Load, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def test_one_call_from_a_shell_and_what_is_on_the_disks(net: Hosts) -> None:
    net.found()
    net.start()
    with net.connect() as client:
        client.proxy(timeout=30.0).set("x", [1, {"a": None}])
        net.settled(client)
    assert net.run("exec", "set", '"ann"', "10").stdout.strip() == "true"
    assert net.run("query", "get", '"ann"').stdout.strip() == "10"
    assert net.run("query", "get", '"ann"', "--consistency", "stale", "--to", "1").stdout.strip() in ("10", "null")
    assert json.loads(net.run("query", "get", '"x"').stdout) == [1, {"a": None}]
    assert json.loads(net.run("exec", "set", '"y"', '{"deep": [1, 2]}').stdout) is True
    assert json.loads(net.run("query", "get", '"y"').stdout) == {"deep": [1, 2]}
    wrong = net.run("exec", "no_such_method", check=False)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "no_such_method" in wrong.stderr
    assert net.run("exec", "set", "ann", check=False).returncode == 2, "that is no JSON"
    taken = json.loads(net.run("snapshot", "-o", "json").stdout)
    assert sorted(taken) == ["0", "1", "2"]
    for host in net.nodes.values():
        host.signal(signal.SIGTERM)
        assert host.wait() == 0
    for host in net.nodes.values():
        assert "good" in net.run("verify", str(host.data)).stdout
    shown = net.run("show", str(net.nodes[0].data), "-o", "json", check=False)
    assert shown.returncode in (0, 1), shown.stderr


def test_keys_are_replaced_one_member_at_a_time_under_load(net: Hosts) -> None:
    net.found()
    net.start()
    with net.connect() as client:
        client.proxy(timeout=30.0).set("x", 1)
        net.settled(client)
        before = {node_id: (host.folder / "secret.key").read_text() for node_id, host in net.nodes.items()}
        load = Load(client, timeout=30.0)
        load.wait_for_more(20)
        said = net.run("keys", "rotate", timeout_s=110).stdout
        load.wait_for_more(20)
        load.stop()
        print(f"longest gap between two commits {load.longest_gap_s() * 1000:.0f} ms")
        assert sorted(said.split("\n")[:3]) == [f"node {node_id} has a new key" for node_id in range(3)]
        after = {node_id: (host.folder / "secret.key").read_text() for node_id, host in net.nodes.items()}
        assert not set(before.values()) & set(after.values())
        assert not load.errors
        load.check(client)
    with connect(net.client_folder, KVStore, timeout=30.0) as client:  # its folder knows the new ones
        assert client.proxy(timeout=20.0).get("x") == 1
        eventually(lambda: all(row.alive for row in client.status()))
    roster = json.loads(net.run("members", "list", "-o", "json").stdout)
    assert len(roster) == 3
