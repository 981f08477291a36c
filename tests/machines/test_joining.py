"""A token makes a member of one new machine, once, while clients go on (rules.md R7)."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from tests.machines.hosts import PORT, Host, Hosts, Load, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def token(net: Hosts, *more: str) -> str:
    return net.run("token", "create", *more).stdout.strip()


def join(host: Host, text: str, *more: str) -> None:
    host.serve("--join", text, "--listen", f"{host.address}:{PORT}", *more, folder=False)


def roles(net: Hosts) -> dict[int, str]:
    said = json.loads(net.run("members", "list", "-o", "json").stdout)
    return {row["id"]: row["role"] for row in said}


def test_a_new_machine_becomes_a_voter_under_load_and_no_client_sees_an_error(net: Hosts) -> None:
    net.found()
    net.start()
    with net.connect() as client:
        load = Load(client)
        load.wait_for_more(100)
        new = net.nodes[3] = net.all[4]
        text = token(net)
        join(new, text)
        eventually(lambda: roles(net).get(3) == "voter", 40.0, "it is no voter")
        print(f"a voter {time.monotonic() - new.began_s:.1f} s after its line")
        load.wait_for_more(50)
        load.stop()
        assert not load.errors
        new.kill()  # the same line for every later start
        join(new, text)
        eventually(lambda: new.serves_s)
        for node_id in (0, 1):  # two of four are gone: the new one's word is needed
            net.nodes[node_id].kill()
            break
        load.check(client)
        assert client.proxy(timeout=30.0).set("after", 1) is True


def test_a_token_is_good_once(net: Hosts) -> None:
    net.found()
    net.start()
    with net.connect() as client:
        client.proxy(timeout=30.0).set("x", 1)
    text = token(net)
    new = net.nodes[3] = net.all[4]
    join(new, text)
    eventually(lambda: roles(net).get(3) == "voter", 40.0)
    new.kill()
    kept = new.directory / "kept"
    new.data.rename(kept)  # another machine, as far as anybody can tell
    join(new, text)
    assert new.wait() != 0
    assert "used already" in new.said()
    shutil.rmtree(new.data)
    net.run("token", "create")  # now nobody needs to know of that one any more
    join(new, text)
    assert new.wait(40) != 0
    assert "nobody lets the key of this token in: it was used already" in new.said()
    shutil.rmtree(new.data)
    kept.rename(new.data)  # the same machine: it may come as often as it likes
    join(new, text)
    eventually(lambda: new.serves_s)


def test_a_machine_that_dies_while_it_joins_may_try_again_with_the_same_token(net: Hosts) -> None:
    net.found()
    net.start()
    with net.connect() as client:
        client.proxy(timeout=30.0).set("x", 1)
    text = token(net)
    new = net.nodes[3] = net.all[4]
    join(new, text)
    eventually(lambda: (new.data / "node.toml").exists() or 3 in roles(net), 40.0)
    new.kill()
    (new.data / "node.toml").unlink(missing_ok=True)  # it died before it could note what it was told
    for kept in new.data.iterdir():
        if kept.name not in ("secret.key", "storage-id"):
            shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
    if not (new.data / "storage-id").exists():
        said = json.loads(net.run("members", "list", "-o", "json").stdout)
        (new.data / "storage-id").write_text(next(row["storage_id"] for row in said if row["id"] == 3))
    join(new, text)
    eventually(lambda: roles(net).get(3) == "voter", 40.0, "it is no voter")


def test_a_token_whose_time_is_over_is_refused(net: Hosts) -> None:
    net.found()
    net.start()
    with net.connect() as client:
        client.proxy(timeout=30.0).set("x", 1)
        text = token(net, "--ttl", "1")
        time.sleep(2.0)
        client.proxy(timeout=30.0).set("x", 2)  # log time goes on with the log
    new = net.all[4]
    join(new, text)
    assert new.wait() != 0
    assert "time is over" in new.said()


def test_a_learner_stays_one_until_it_is_promoted(net: Hosts) -> None:
    net.found()
    net.start()
    with net.connect() as client:
        client.proxy(timeout=30.0).set("x", 1)
        new = net.nodes[3] = net.all[4]
        (net.directory / "host-4" / "token").write_text(token(net, "--learner"))
        join(new, f"@{net.directory / 'host-4' / 'token'}")
        eventually(lambda: net.status().get(3, {}).get("last_applied", -1) >= 0, 40.0)
        time.sleep(1.0)
        assert roles(net)[3] == "learner"
        net.run("members", "promote", "3")
        assert roles(net)[3] == "voter"


def test_a_lost_machine_is_replaced_by_two_commands(net: Hosts) -> None:
    net.found()
    net.start()
    with net.connect() as client:
        client.proxy(timeout=30.0).set("x", 1)
        net.settled(client)
        leader = client.wait_for_leader()
        lost = next(node_id for node_id in net.nodes if node_id != leader)
        net.nodes[lost].kill()
        shutil.rmtree(net.nodes[lost].directory)
        net.run("members", "remove", str(lost))
        new = net.nodes[3] = net.all[4]
        join(new, token(net))
        eventually(lambda: roles(net) == {n: "voter" for n in (0, 1, 2, 3) if n != lost}, 40.0)
        assert client.proxy(timeout=20.0).get("x") == 1


@pytest.mark.parametrize("leads", [True, False], ids=["the leader", "a follower"])
def test_a_member_that_is_removed_leaves_and_says_so(leads: bool, net: Hosts) -> None:
    net.found()
    net.start()
    with net.connect() as client:
        client.proxy(timeout=30.0).set("x", 1)
        net.settled(client)
        leader = client.wait_for_leader()
        removed = leader if leads else (leader + 1) % 3
        net.run("members", "remove", str(removed))
        assert net.nodes[removed].wait(30) == 0
        assert "no member any more" in net.nodes[removed].said()
        assert client.proxy(timeout=20.0).get("x") == 1
        net.start(removed)  # by mistake
        assert net.nodes[removed].wait(30) == 2
        assert "was removed" in net.nodes[removed].said()
        assert sorted(roles(net)) == [n for n in range(3) if n != removed]
