"""What happened to my write: each outcome of a call, met on real nodes, and what it promises holds."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from actorraft import (
    Busy,
    Client,
    Cluster,
    OutcomeUnknown,
    RaftConfig,
    ReplicatedStateMachine,
    Unavailable,
    UsageError,
    connect,
)
from tests.cluster.helpers import Spawn, eventually
from tests.cluster.machines import Ledger

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster[Ledger]]:
    """A cluster for tests that break nothing, each with a key of its own."""
    with ReplicatedStateMachine(Ledger).spawn(3) as cluster:
        cluster.proxy(timeout=60.0).append("its session is open", 1)
        yield cluster


def pause_followers_until_nobody_leads(cluster: Cluster[Ledger]) -> int:
    leader = cluster.wait_for_leader()
    for node_id in cluster.nodes:
        if node_id != leader:
            cluster.nodes[node_id].pause()
    led = ("follower", "candidate")
    eventually(lambda: {row.id: row.state for row in cluster.status(timeout=1.0)}[leader] in led, what="it steps down")
    return leader


def test_without_a_majority_a_write_is_unavailable_and_never_applied(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    ledger = cluster.proxy(timeout=1.0)
    cluster.proxy().append("k", "before")
    pause_followers_until_nobody_leads(cluster)
    with pytest.raises(Unavailable, match="not applied"):
        ledger.append("k", "unavailable")
    with pytest.raises(Unavailable):
        ledger.get("k")
    for node in cluster.nodes.values():
        node.resume()
    assert cluster.proxy(timeout=60.0).append("k", "after") == 2
    assert cluster.proxy(timeout=60.0).get("k") == ["before", "after"]


def test_without_any_node_a_write_is_unavailable_and_nodes_that_come_back_serve(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    cluster.proxy().append("k", 0)
    for node in cluster.nodes.values():
        node.kill()
    eventually(lambda: cluster.leader() is None)
    with pytest.raises(Unavailable):
        cluster.proxy(timeout=0.3).append("k", 1)
    waiting = cluster.proxy(timeout=None).append.submit("k", 2)
    for node in cluster.nodes.values():
        node.restart()
    assert waiting.result(timeout=60) == 2


def test_an_answer_that_is_late_is_unknown_and_resolves_to_the_value(shared: Cluster[Ledger]) -> None:
    with pytest.raises(OutcomeUnknown, match="may or may not apply") as caught:
        shared.proxy(timeout=2.0).append_slowly("late", 1, 4.0)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.resolve(timeout=60) == 1
    assert caught.value.resolve(timeout=60) == 1
    assert shared.proxy(timeout=60.0).get("late") == [1]


def test_a_write_that_died_with_its_leader_is_unknown_and_resolves_to_never(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3)
    cluster.proxy().append("k", 0)
    leader = cluster.wait_for_leader()
    others = [node for node_id, node in cluster.nodes.items() if node_id != leader]
    for node in [*others, cluster.nodes[leader]]:  # nobody leads instead while the call is under way
        node.pause()
    with pytest.raises(OutcomeUnknown) as caught:
        cluster.proxy(timeout=2.0).append("k", "lost")
    cluster.nodes[leader].kill()
    for node in others:
        node.resume()
    with pytest.raises(Unavailable, match="never"):
        caught.value.resolve(timeout=60)
    assert cluster.proxy(timeout=60.0).append("k", 1) == 2
    assert cluster.proxy().get("k") == [0, 1]


def test_resolve_has_a_deadline_of_its_own(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=1)
    cluster.proxy().append("k", 0)
    cluster.nodes[0].pause()
    with pytest.raises(OutcomeUnknown) as caught:
        cluster.proxy(timeout=1.0).append("k", 1)
    with pytest.raises(OutcomeUnknown):
        caught.value.resolve(timeout=0.2)
    cluster.nodes[0].resume()
    try:
        assert caught.value.resolve(timeout=60) == 2
        applied = [0, 1]
    except Unavailable:  # the link broke meanwhile, with what was on it
        applied = [0]
    assert cluster.proxy(timeout=60.0).get("k") == applied


def test_a_full_queue_says_busy_and_nothing_was_applied(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=3, config=RaftConfig(uncommitted_bytes_max=10_000))
    slow = cluster.proxy(timeout=60.0).append_slowly.submit("slow", "x" * 20_000, 8.0)
    with cluster.client() as other:
        other_ledger = other.proxy(timeout=2.0)
        eventually(lambda: cluster.status(timeout=10)[cluster.wait_for_leader()].commit_index >= 2)
        with pytest.raises(Busy, match="stayed full"):
            other_ledger.append("other", "y" * 20_000)
        assert slow.result() == 1
        assert other.proxy(timeout=60.0).append("other", 1) == 1


def test_what_cannot_be_sent_is_refused_by_the_call_itself(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Ledger, nodes=1, config=RaftConfig(frame_bytes_max=100_000))
    ledger = cluster.proxy()
    with pytest.raises(UsageError, match=r"RaftConfig\.frame_bytes_max"):
        ledger.append("k", "x" * 200_000)
    with pytest.raises(UsageError, match="lock"):
        ledger.append("k", threading.Lock())
    with pytest.raises((TypeError, UsageError)):
        ledger.append("k", 1, 2, 3)
    with pytest.raises(UsageError, match="consistency"):
        cluster.query(len, consistency="eventual")
    with pytest.raises(UsageError, match="no node 9"):
        cluster.query(len, to=9)
    assert ledger.append("k", "x" * 50_000) == 1


def test_giving_up_a_wait_does_not_give_up_the_call(shared: Cluster[Ledger]) -> None:
    ledger = shared.proxy(timeout=60.0)
    future = ledger.append_slowly.submit("patience", 1, 0.5)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)

    async def impatient() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ledger.append.aio("patience", 2), timeout=0.01)

    asyncio.run(impatient())
    assert future.result(timeout=60) == 1
    eventually(lambda: ledger.get("patience") == [1, 2])


def test_ctrl_c_ends_a_wait_and_not_the_call(shared: Cluster[Ledger]) -> None:
    ledger = shared.proxy(timeout=60.0)
    future = ledger.append_slowly.submit("interrupted", 1, 2.0)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            future.result()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert future.result() == 1


def test_a_blocking_call_in_a_callback_is_refused_rather_than_waited_for_ever(shared: Cluster[Ledger]) -> None:
    caught: list[BaseException] = []
    done = threading.Event()

    def callback(_: object) -> None:
        try:
            shared.proxy().append("callback", 2)
        except BaseException as error:
            caught.append(error)
        done.set()

    shared.proxy().append_slowly.submit("callback", 1, 0.2).add_done_callback(callback)
    assert done.wait(60)
    assert isinstance(caught[0], UsageError)


def test_thousands_of_calls_may_be_outstanding_and_keep_their_order(shared: Cluster[Ledger]) -> None:
    ledger = shared.proxy(timeout=120.0)
    futures = [ledger.append.submit("many", number) for number in range(20_000)]
    assert [future.result() for future in futures] == list(range(1, 20_001))
    assert ledger.get("many") == list(range(20_000))


def test_many_threads_share_a_client(shared: Cluster[Ledger]) -> None:
    ledger = shared.proxy(timeout=60.0)
    threads = [
        threading.Thread(target=lambda: [ledger.append("threads", n) for n in range(50)], daemon=True) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.count("threads") == 400


# --- Clients ---


def test_a_second_client_connects_by_the_endpoints(shared: Cluster[Ledger]) -> None:
    with connect(shared.endpoints, Ledger) as client:
        assert type(client) is Client
        assert client.proxy().append("connected", 1) == 1
        assert shared.proxy().get("connected") == [1]
        assert client.wait_for_leader() == shared.wait_for_leader()
        assert len(client.status()) == 3
    with connect(shared.endpoints) as anonymous, pytest.raises(UsageError, match="does not know the machine"):
        anonymous.proxy()


def test_to_connect_where_nobody_is_ends_in_time(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no leader within"):
        connect({0: f"ipc://{tmp_path}/nobody"}, timeout=0.3)
    for endpoints in ({}, "ipc:///tmp/x", {0: "what is this"}):
        with pytest.raises((UsageError, Unavailable)):
            connect(endpoints, timeout=0.3)  # type: ignore[arg-type]
