"""A machine that lost its disk must not come back under its old id: unavailable, never a lost write (rules.md R3).

The leader's machine is lost for good, the third one lags behind (its packets were dropped for a while, and it never
heard of the last writes); so those writes are on the machine whose disk is emptied, and nowhere else that can answer.
"""

from __future__ import annotations

import shutil
import time

import pytest

from actorraft import Client, OutcomeUnknown, Unavailable, connect
from statemachines.kv import KVStore
from tests.cluster.helpers import refused
from tests.machines.hosts import CLIENT, Hosts, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def acknowledged_by_two(net: Hosts, client: Client[KVStore]) -> tuple[int, int, int]:
    """Write "x" where only the leader and one more have it; return (leader, the other, the one that lags)."""
    proxy = client.proxy(timeout=30.0)
    proxy.set("before", 1)
    net.settled(client)
    leader = client.wait_for_leader()
    other, lags = (node_id for node_id in net.nodes if node_id != leader)
    gone = net.nodes[lags].number
    net.router.partition({host.number for host in net.all} - {gone}, {gone})
    for number in range(20):
        proxy.set("x", number)
    net.nodes[lags].kill()  # else it would be told as soon as its host is heard again
    net.router.heal()
    return leader, other, lags


def never_lost(client: Client[KVStore], within_s: float = 6.0) -> None:
    """Unavailable, or the write is there; whatever the cluster answers, it knows of it."""
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        try:
            assert client.proxy(timeout=2.0).get("x") == 19, "an acknowledged write is gone"
        except (Unavailable, OutcomeUnknown):
            continue


def test_an_emptied_disk_is_refused_under_its_id_with_what_to_do(net: Hosts) -> None:
    net.found()
    net.start()
    with net.connect() as client:
        leader, other, lags = acknowledged_by_two(net, client)
        net.nodes[leader].kill()
        emptied = net.nodes[other]
        emptied.kill()
        shutil.rmtree(emptied.data)
        net.start(lags)
        emptied.serve()
        assert emptied.wait() != 0
        assert f"node {other} has begun before" in emptied.said()
        assert "actorraft members remove" in emptied.said()
        assert "serve --join" in emptied.said()
        never_lost(client)
        net.start(leader)  # its disk was there all the time
        assert client.proxy(timeout=30.0).get("x") == 19


def test_folder_and_mark_restored_from_a_copy_beside_an_emptied_disk_lose_nothing(net: Hosts) -> None:
    net.found()
    kept = net.all[CLIENT].directory / "kept"
    shutil.copytree(net.directory, kept, ignore=shutil.ignore_patterns("kept"))
    net.start()
    with net.connect() as client:
        leader, other, lags = acknowledged_by_two(net, client)
        net.nodes[leader].kill()
        restored = net.nodes[other]
        restored.kill()
        shutil.rmtree(restored.directory)
        shutil.copytree(kept / restored.directory.name, restored.directory)
        assert (restored.folder / "first-start").exists()
        net.start(lags, other)
        never_lost(client)
        assert restored.process is not None
        assert restored.process.poll() is None, (
            "it waits; it was not refused, since its folder says that it never began"
        )
        net.start(leader)
        assert client.proxy(timeout=30.0).get("x") == 19
        eventually(lambda: net.status().get(other, {}).get("last_applied") == net.status()[leader]["last_applied"])


def test_a_disk_that_was_put_back_from_an_older_copy_is_refused_and_named(net: Hosts) -> None:
    net.found()
    net.start()
    with net.connect() as client:
        client.proxy(timeout=30.0).set("x", -1)
        net.settled(client)
        old = net.nodes[next(node_id for node_id in net.nodes if node_id != client.wait_for_leader())]
        old.kill()
        shutil.copytree(old.data, old.directory / "backup")
        node_id = next(node_id for node_id, host in net.nodes.items() if host is old)
        net.start(node_id)
        client.proxy(timeout=30.0).set("x", 19)
        net.settled(client)
        old.kill()
        shutil.rmtree(old.data)
        (old.directory / "backup").rename(old.data)
        old.serve()
        eventually(lambda: "older copy, or is used twice" in old.said())
        assert client.proxy(timeout=30.0).get("x") == 19


@pytest.mark.slow  # the same with the leader dead and the third machine behind; make slow
def test_a_disk_that_was_put_back_from_an_older_copy_loses_nothing_where_only_it_had_the_writes(net: Hosts) -> None:
    net.found()
    net.start()
    with net.connect() as client:
        client.proxy(timeout=30.0).set("x", -1)
        net.settled(client)
        for host in net.nodes.values():  # whoever it will be: copied while it is off, as backups are made
            host.kill()
            shutil.copytree(host.data, host.directory / "backup")
        net.start()
        leader, other, lags = acknowledged_by_two(net, client)
        net.nodes[leader].kill()
        old = net.nodes[other]
        old.kill()
        shutil.rmtree(old.data)
        (old.directory / "backup").rename(old.data)
        net.start(lags, other)
        eventually(lambda: f"node {other} comes with its start" in net.nodes[lags].said())
        eventually(lambda: "older copy, or is used twice" in old.said())
        never_lost(client)
        net.start(leader)
        assert client.proxy(timeout=30.0).get("x") == 19


def test_a_member_that_comes_with_another_machine_s_disk_is_refused_and_named(net: Hosts) -> None:
    net.found()
    net.start()
    with net.connect() as client:
        client.proxy(timeout=30.0).set("x", 1)
        net.settled(client)
        one, two = net.nodes[0], net.nodes[1]
        one.kill()
        shutil.rmtree(one.data)
        shutil.copytree(two.data, one.data)
        one.serve()
        assert one.wait() != 0
        assert "node 1" in one.said(), one.said()
        assert client.proxy(timeout=30.0).get("x") == 1


def test_one_machine_that_is_left_goes_on_as_a_new_cluster_that_hears_none_of_the_old_one(net: Hosts) -> None:
    net.found()
    kept = net.directory / "kept"
    net.start()
    with net.connect() as client:
        client.proxy(timeout=30.0).set("x", 1)
        net.settled(client)
    shutil.copytree(net.client_folder, kept)
    for host in net.nodes.values():
        host.kill()
    left, old, lost = net.nodes[0], net.nodes[1], net.nodes[2]
    shutil.rmtree(lost.directory)
    where = ("--data-dir", str(left.data))
    assert "its log ends with (term" in net.run("recover", str(left.folder), *where, "--show").stdout
    assert net.run("recover", str(left.folder), *where, "--keep", "1", check=False).returncode == 2
    said = net.run("recover", str(left.folder), *where, "--keep", "0").stdout
    assert "node 0 is cluster" in said
    net.start(0)
    with net.connect() as client:
        assert client.proxy(timeout=30.0).get("x") == 1
        net.start(1)  # it turns up
        eventually(lambda: old.serves_s)
        refused(lambda timeout: connect(kept, KVStore, timeout=timeout).close(), "it looks for cluster .*, and this is")
        dropped = client._thread.admin(0, "status", {}, 30.0).result()["dropped"]
        assert any("introduction" in what or "key" in what for what in dropped), dropped
        assert [row.id for row in client.status()] == [0]
        new = net.nodes[3] = net.all[4]
        new.serve("--join", net.run("token", "create").stdout.strip(), "--listen", f"{new.address}:7100", folder=False)
        eventually(lambda: '"voter"' in net.run("members", "list", "-o", "json").stdout.partition('"id": 3')[2], 40.0)
        assert client.proxy(timeout=30.0).get("x") == 1
