"""Reads on real nodes: every consistency from everywhere, and no deposed leader ever answers a linearizable one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from actorraft import Cluster, RaftConfig, Unavailable, UnknownType, UsageError
from tests.cluster.helpers import Spawn, eventually, follower_of
from tests.cluster.machines import Applied, Ledger

pytestmark = pytest.mark.cluster


def leading_and_committed(cluster: Cluster[Any]) -> tuple[int, int]:
    """The term, and how far the log is committed."""
    rows = cluster.status(timeout=20.0)
    return max(row.term for row in rows), max(row.commit_index for row in rows)


def test_every_consistency_is_served_from_everywhere_without_a_log_entry(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3, config=RaftConfig(lease_reads=True))
    cluster.proxy().append("k", 1)
    eventually(lambda: all(row.lag_entries == 0 for row in cluster.status()))
    told = leading_and_committed(cluster)
    for consistency in ("linearizable", "lease", "stale"):
        for to in ("leader", "any", *cluster.nodes):
            assert cluster.proxy(consistency=consistency, to=to).get("k") == [1], (consistency, to)
            assert cluster.query(lambda ledger: ledger.get("k"), consistency=consistency, to=to) == [1]
    definitions = 2  # the lambda above is sent once, as a definition and a registration
    term, before = told
    now, after = leading_and_committed(cluster)
    assert after <= before + definitions + (now - term)  # each leader that there was begins with an entry of its own


def test_a_linearizable_read_sees_every_write_acknowledged_before_it_from_any_node(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    readers = [cluster.proxy(to=node_id) for node_id in cluster.nodes]
    for number in range(1, 200):
        cluster.proxy().append("k", number)
        assert readers[number % 3].count("k") == number


def test_many_reads_at_once_share_rounds(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    cluster.proxy().append("k", 1)
    ledger = cluster.proxy(timeout=60.0, to="any")
    assert {future.result() for future in [ledger.count.submit("k") for _ in range(5_000)]} == {1}


def test_a_machine_with_a_query_of_its_own_is_asked_by_it_on_a_follower(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Applied, nodes=3)
    cluster.execute(5)
    assert cluster.query("total", to=follower_of(cluster)) == 5


class Watched:
    """A writer that counts up, and readers of one node that never may see less than was acknowledged before."""

    def __init__(self, cluster: Cluster[Any], node_id: int) -> None:
        self.acknowledged = 0
        self.answers = 0
        self.wrong: list[tuple[int, int]] = []
        self._stop = threading.Event()
        self._clients = [cluster.client(), cluster.client()]
        self._threads = [threading.Thread(target=self._write), threading.Thread(target=self._read, args=(node_id,))]

    def _write(self) -> None:
        ledger = self._clients[0].proxy(timeout=60.0)
        while not self._stop.is_set():
            self.acknowledged = ledger.append("k", self.acknowledged)

    def _read(self, node_id: int) -> None:
        ledger = self._clients[1].proxy(timeout=0.5, to=node_id)
        while not self._stop.is_set():
            before = self.acknowledged
            try:
                found = ledger.count("k")
            except Unavailable:
                continue
            self.answers += 1
            if found < before:
                self.wrong.append((found, before))

    def go_on(self) -> None:
        """Wait until some more writes are acknowledged."""
        before = self.acknowledged
        eventually(lambda: self.acknowledged > before + 10, what="writes go on")

    def __enter__(self) -> Watched:
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for client in self._clients:
            client.close()


@pytest.mark.parametrize("how", ["partition", "pause"])
def test_a_deposed_leader_never_answers_a_linearizable_read(raft_cluster: Spawn, how: str) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    leader = cluster.wait_for_leader()
    with Watched(cluster, leader) as watched:
        eventually(lambda: watched.answers > 0)
        for _ in range(3):
            if how == "partition":
                cluster.partition({leader}, set(cluster.nodes) - {leader})
                watched.go_on()
                cluster.heal()
            else:
                cluster.nodes[leader].pause()
                watched.go_on()
                cluster.nodes[leader].resume()
            answers = watched.answers
            eventually(lambda answers=answers: watched.answers > answers, what="reads go on after the heal")  # type: ignore[misc]
            eventually(lambda: cluster.transfer_leadership(leader) == leader, what="it leads again")
    assert watched.wrong == []


def test_an_isolated_leader_serves_stale_reads_and_no_others(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    old = cluster.wait_for_leader()
    cluster.proxy().append("k", 1)
    eventually(lambda: all(row.lag_entries == 0 for row in cluster.status()))
    cluster.partition({old}, set(cluster.nodes) - {old})
    assert cluster.proxy(timeout=60.0).append("k", 2) == 2
    assert cluster.proxy(timeout=60.0).get("k") == [1, 2]
    with pytest.raises(Unavailable):
        cluster.proxy(to=old, timeout=1.0).get("k")
    assert cluster.proxy(to=old, consistency="stale").get("k") == [1]
    cluster.heal()
    assert cluster.proxy(to=old, timeout=60.0).get("k") == [1, 2]


def test_a_stale_read_that_needs_what_its_node_does_not_know_yet_waits_for_it(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(dict, nodes=3)
    cluster.execute(lambda state: state.update(a=1))
    behind = follower_of(cluster)
    cluster.partition(set(cluster.nodes) - {behind})

    class Wanted:
        def __init__(self, key: str) -> None:
            self.key = key

        def __call__(self, state: dict[str, int]) -> Any:
            return state.get(self.key)

    assert cluster.query(Wanted("a")) == 1
    with pytest.raises(Unavailable):
        cluster.query(Wanted("a"), consistency="stale", to=behind, timeout=0.5)
    healing = threading.Timer(0.5, cluster.heal)
    healing.start()
    assert cluster.query(Wanted("a"), consistency="stale", to=behind, timeout=60.0) == 1
    healing.join()


def test_a_read_that_no_node_can_ever_understand_says_so_at_once(
    raft_cluster: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def look(state): return 1\n")
    cluster = raft_cluster(dict, nodes=3)
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    for consistency in ("linearizable", "stale"):
        with pytest.raises(UnknownType, match="only_here"):
            cluster.query(only_here.look, consistency=consistency, to="any", timeout=60.0)


def test_a_read_to_a_node_that_is_down_is_unavailable_and_to_any_goes_elsewhere(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    cluster.proxy().append("k", 1)
    down = follower_of(cluster)
    cluster.nodes[down].kill()
    with pytest.raises(Unavailable, match="read"):
        cluster.proxy(to=down, timeout=0.5).get("k")
    for _ in range(6):
        assert cluster.proxy(to="any", timeout=60.0).get("k") == [1]


# --- Handing over ---


def test_leadership_is_handed_over_on_purpose_under_load_without_an_error(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    with Watched(cluster, follower_of(cluster)) as watched:
        for target in (2, 0, 1):
            assert cluster.transfer_leadership(target) == target
            assert cluster.wait_for_leader() == target
            watched.go_on()
        before = cluster.wait_for_leader()
        assert cluster.transfer_leadership() != before
        watched.go_on()
    assert watched.wrong == []


def test_a_read_that_is_under_way_when_its_leader_hands_over_is_answered_by_it(
    raft_cluster: Spawn, tmp_path: Path
) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    future = cluster.proxy(timeout=60.0).pass_gate.submit(str(tmp_path))
    first = eventually(lambda: [*tmp_path.glob("*.asked")], what="the read has begun")[0]
    old = next(node_id for node_id, node in cluster.nodes.items() if first.stem == str(node.pid))
    target = next(node_id for node_id in cluster.nodes if node_id != old)
    assert cluster.transfer_leadership(target) == target
    eventually(lambda: len([*tmp_path.glob("*.asked")]) > 1, what="the new leader is asked as well")
    first.with_suffix(".open").touch()  # and the gate stays shut to all others

    assert future.result() == cluster.nodes[old].pid


def test_a_hand_over_to_a_node_that_cannot_fails_and_the_leader_leads_on(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    leader, target = cluster.wait_for_leader(), follower_of(cluster)
    cluster.nodes[target].pause()
    with pytest.raises(Unavailable):
        cluster.transfer_leadership(target, timeout=1.0)
    assert cluster.proxy(timeout=60.0).append("k", 1) == 1
    cluster.nodes[target].resume()
    with pytest.raises(UsageError, match="no node 9"):
        cluster.transfer_leadership(9, timeout=1.0)
    assert cluster.proxy(timeout=60.0).append("k", 2) == 2
    assert leader in cluster.nodes
