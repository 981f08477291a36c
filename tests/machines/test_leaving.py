"""SIGTERM, and clients that outlive what they began with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from actorraft import ActorRaftError, Client, UsageError, connect
from statemachines.kv import KVStore
from tests.machines.hosts import PORT, Hosts, Load, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def test_sigterm_of_the_leader_under_load_costs_no_client_an_error(net: Hosts) -> None:
    net.found()
    net.start()
    with net.connect() as client:
        net.settled(client)
        loads = [Load(client, prefix) for prefix in "abcd"]
        for load in loads:
            load.wait_for_more(30)
        leader = client.wait_for_leader()
        net.nodes[leader].signal(signal.SIGTERM)
        assert net.nodes[leader].wait() == 0
        for load in loads:
            load.wait_for_more(30)
            load.stop()
        gap_s = max(load.longest_gap_s() for load in loads)
        print(f"longest gap between two commits {gap_s * 1000:.0f} ms")
        assert [load.errors for load in loads] == [[]] * 4
        for load in loads:
            load.check(client)


def test_a_second_sigterm_ends_at_once(net: Hosts) -> None:
    net.found()
    net.nodes[0].serve()  # it has no majority, and nobody to hand over to
    eventually(lambda: net.nodes[0].serves_s)
    net.nodes[0].signal(signal.SIGTERM)
    assert net.nodes[0].wait(20) == 0, "nobody to hand over to, nothing to wait for"


@pytest.mark.parametrize("form", ["a list", "a mapping"])
def test_connect_with_one_seed_outlives_that_seed(net: Hosts, form: str) -> None:
    net.found()
    net.start()
    with net.connect() as client:
        client.proxy(timeout=30.0).set("x", 1)
        net.settled(client)
        leader = client.wait_for_leader()
    at = f"{net.nodes[leader].address}:{PORT + 1}"
    seeds: list[str] | dict[int, str] = [at] if form == "a list" else {leader: f"tcp://{at}"}
    with connect(seeds, KVStore, keys=net.client_folder, timeout=30.0) as client:
        assert client.proxy(timeout=30.0).get("x") == 1
        eventually(lambda: set(client.endpoints) == {0, 1, 2}, 60.0, "it did not learn of the others")
        net.nodes[leader].kill()
        assert client.proxy(timeout=30.0).set("x", 2) is True
        assert {row.id: row.alive for row in client.status(timeout=30.0)} == {n: n != leader for n in range(3)}


def is_refused_at_once(client: Client[KVStore]) -> bool:
    """Whether a command raises, instead of giving a future."""
    try:
        client.submit_call("set", ("y", 2), {}, 5.0)
    except UsageError:
        return True
    return False


def test_a_revoked_client_is_shut_out_and_what_it_has_open_is_closed(net: Hosts) -> None:
    net.found()
    net.start()
    with net.connect() as admin:
        admin.proxy(timeout=30.0).set("x", 1)
        folder = net.directory / "host-0" / "team"
        net.run("clients", "add", "team", "--role", "write", "--folder", str(folder))
        with connect(folder, KVStore, timeout=30.0) as team:
            assert team.proxy(timeout=20.0).set("y", 2) is True
            innocent = team.submit_call("set", ("y", 2), {}, 20.0)
            with pytest.raises(UsageError, match="role write sends plain data only"):
                team.execute(len)
            assert innocent.result() is True
            net.run("clients", "add", "team", "--role", "read", "--folder", str(folder))
            eventually(lambda: is_refused_at_once(team), 60.0, "it is not told of its new role")
            net.run("clients", "add", "team", "--role", "write", "--folder", str(folder))
            assert net.run("clients", "add", "team", "--folder", str(folder) + "2", check=False).returncode != 0
            rows = json.loads(net.run("clients", "list", "-o", "json").stdout)
            assert {row["name"]: row["role"] for row in rows} == {"admin": "admin", "team": "write"}
            net.run("clients", "revoke", "team")
            with pytest.raises(ActorRaftError):
                team.proxy(timeout=3.0).set("y", 3)
            with pytest.raises(ActorRaftError):
                connect(folder, KVStore, timeout=2.0).close()
        assert admin.proxy(timeout=20.0).get("y") == 2


def test_a_client_that_is_another_process_reaches_the_cluster_by_its_folder_alone(net: Hosts) -> None:
    net.found()
    net.start()
    script = (
        "import sys; from actorraft import connect; from statemachines.kv import KVStore\n"
        "with connect(sys.argv[1], KVStore, timeout=30.0) as client:\n"
        "    client.proxy(timeout=20.0).set('z', 5); print(client.proxy().get('z'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(net.client_folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "5"), done.stderr
