"""Three machines, one line on each: in any order, after the loss of all, and without the leader's."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from tests.machines.hosts import Hosts, Load, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[::2], ids=str)
def test_three_lines_in_any_order_make_a_cluster_with_the_second(net: Hosts, order: tuple[int, ...], seed: int) -> None:
    net.found()
    pause_s = random.Random(f"{seed} {order}").uniform(0.0, 4.0)
    first, second, third = (net.nodes[node_id] for node_id in order)
    first.serve()
    eventually(lambda: first.serves_s, what="the first does not serve")
    time.sleep(pause_s)
    second.serve()
    with net.connect() as client:
        client.proxy(timeout=20.0).set("x", 1)
        took_s = time.monotonic() - second.began_s
        print(f"order {order}, {pause_s:.1f} s apart: first commit {took_s:.2f} s after the second line")
        assert third.process is None
        third.serve()
        eventually(lambda: sum(row.alive for row in client.status()) == 3, what="the third never came")
        eventually(lambda: {row.last_applied for row in client.status()} == {client.status()[0].last_applied})
    assert took_s < 15.0


def test_all_three_killed_and_started_by_the_same_lines_have_everything_and_a_client_goes_on(net: Hosts) -> None:
    net.found()
    net.start()
    with net.connect() as client:
        load = Load(client, timeout=40.0)
        load.wait_for_more(50)
        for host in net.nodes.values():
            host.kill()
        time.sleep(1.0)  # the client meets nobody
        killed_s = time.monotonic()
        net.start()
        load.wait_for_more(20)
        load.stop()
        print(f"next commit {next(t for t in load.times_s if t > killed_s) - killed_s:.2f} s after the lines")
        assert not load.errors
        load.check(client)


def test_the_leader_s_host_cut_off_for_good_costs_one_election(net: Hosts) -> None:
    net.found()
    net.start()
    with net.connect() as client:
        net.settled(client)
        load = Load(client, timeout=20.0)
        load.wait_for_more(50)
        leader = client.wait_for_leader()
        term = max(row.term for row in client.status())
        cut_s = time.monotonic()
        net.cut_off(leader)
        load.wait_for_more(50)
        load.stop()
        gap_s = load.longest_gap_s(cut_s - 1.0)
        print(f"longest gap between two commits {gap_s * 1000:.0f} ms")
        assert not load.errors
        assert client.wait_for_leader() != leader
        assert max(row.term for row in client.status()) <= term + 2, "one election, or a split one"
        load.check(client)
    assert gap_s < 5.0
