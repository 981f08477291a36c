"""A call ends by its deadline on real nodes too: in a fork, from a signal handler, with a frozen clock, without a client."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actorraft import (
    ActorRaftError,
    Client,
    Cluster,
    OutcomeUnknown,
    ReplicatedStateMachine,
    StartError,
    StateMachine,
    Unavailable,
    UsageError,
    command,
    connect,
    connect_async,
)
from actorraft.client.connect import open_client
from actorraft.futures import ResultFuture
from statemachines.kv import KVStore
from tests.cluster.helpers import eventually, refused
from transports import hello

pytestmark = pytest.mark.cluster

cluster: Cluster[KVStore]


@pytest.fixture(scope="module", autouse=True)
def shared() -> Iterator[None]:
    global cluster
    with ReplicatedStateMachine(KVStore).spawn(3, transport="tcp") as cluster:
        yield


def in_a_fork(act: Callable[[], Any]) -> bool:
    """Whether `act` returns what is true in a forked child, within a minute."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        good = False
        try:
            good = bool(act())
        finally:
            os._exit(0 if good else 1)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    "use",
    [
        lambda: cluster.proxy(timeout=30).set("a", 1),
        lambda: cluster.proxy(timeout=30).get("a", 2),
        lambda: cluster.proxy(timeout=30, to="any").get("a", 2),
        lambda: cluster.execute(lambda state: True),
        lambda: len(cluster.status()) == 3,
        lambda: cluster.wait_for_leader(30.0) >= 0,
        lambda: cluster.client().proxy(timeout=30).set("a", 1),
        lambda: connect(cluster.endpoints, KVStore).proxy().set("a", 1),
        lambda: cluster.close() is None,
        lambda: repr(cluster),
    ],
)
def test_a_forked_worker_uses_what_was_made_before_the_fork(use: Callable[[], Any]) -> None:
    cluster.proxy().set("before", 1)

    assert in_a_fork(use)

    assert all(node.alive for node in cluster.nodes.values())
    assert cluster.proxy(timeout=30).set("after", 1)


@pytest.mark.parametrize(
    "act",
    [
        lambda: cluster.nodes[0].kill(),
        lambda: cluster.nodes[0].stop(),
        lambda: cluster.nodes[0].pause(),
        lambda: cluster.nodes[0].restart(),
        lambda: cluster.add_node(timeout=5.0),
        lambda: cluster.partition({0}, {1, 2}),
        lambda: cluster.heal(),
    ],
)
def test_a_forked_process_is_told_whose_the_nodes_are(act: Callable[[], Any]) -> None:
    def refused() -> bool:
        with pytest.raises(UsageError, match="from which this one was forked"):
            act()
        return True

    assert in_a_fork(refused)
    assert [node.alive for node in cluster.nodes.values()] == [True] * 3


def _in_a_pool(number: int) -> Any:
    return cluster.proxy(timeout=30).set(f"pool {number}", number)


def test_a_pool_of_forked_workers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork of a process with threads
        with multiprocessing.get_context("fork").Pool(3) as pool:
            assert pool.map(_in_a_pool, range(30)) == [True] * 30
    assert cluster.proxy().get("pool 29") == 29


def test_forks_while_other_threads_call() -> None:
    ended = threading.Event()
    errors: list[BaseException] = []

    def call() -> None:
        store = cluster.proxy(timeout=30)
        try:
            while not ended.is_set():
                for future in [store.set.submit("k", 1) for _ in range(50)]:
                    future.result()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            assert in_a_fork(lambda: cluster.proxy(timeout=30).set("forked", 1))
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert errors == []


def test_a_signal_handler_calls_while_its_thread_is_in_a_call() -> None:
    store, handled = cluster.proxy(timeout=30), 0

    def handler(*_: Any) -> None:
        nonlocal handled
        handled += 1
        store.set("handler", handled)
        assert store.get("handler") == handled
        signal.setitimer(signal.ITIMER_REAL, 0.0002 + (handled % 37) * 0.00001)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    try:
        until_s = time.monotonic() + 3.0
        while time.monotonic() < until_s or handled <= 20:  # a busy machine gets fewer done in that time
            store.set("main", 1)
            for future in [store.set.submit("main", number) for number in range(20)]:
                future.result()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert handled > 20


@pytest.mark.parametrize("freeze", ["freezegun", "time_machine"])
def test_with_a_frozen_clock_calls_are_served_and_those_that_cannot_be_end(freeze: str) -> None:
    library = pytest.importorskip(freeze)
    frozen = library.freeze_time("2012-01-14") if freeze == "freezegun" else library.travel("2012-01-14", tick=False)
    with frozen, connect(cluster.endpoints, KVStore) as client:
        assert client.proxy(timeout=30).set("frozen", 1)
        client._thread.set_endpoints({0: "tcp://127.0.0.1:9"}, {})
        with pytest.raises(Unavailable):
            client.proxy(timeout=0.5).get("frozen")


class Sticks(StateMachine):
    """A machine whose process may stand still, also for signals: in C, without giving the interpreter away."""

    def __init__(self, hangs: bool = False) -> None:
        if hangs:
            time.sleep(600)

    @command
    def stick(self) -> None:
        re.match(r"(a+)+b", "a" * 64)

    @command
    def add(self) -> int:
        return 1


def ends(what: str, call: Callable[[], Any]) -> Any:
    """Return what a call returns, or raises, within a minute by a clock that runs."""
    came: list[Any] = []

    def run() -> None:
        try:
            came.append(call())
        except ActorRaftError as error:
            came.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60.0)
    assert not thread.is_alive(), f"{what} does not end"
    return came[0]


def test_with_a_clock_that_stands_still_processes_are_started_ended_and_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 9.0)
    started = ends("a start", lambda: ReplicatedStateMachine(Sticks, True).spawn(1, timeout=1.0))
    assert isinstance(started, StartError)
    sticks = ReplicatedStateMachine(Sticks).spawn(3)
    try:
        machine = sticks.proxy(timeout=30)
        dead = sticks.nodes[0].pid
        assert dead is not None
        os.kill(dead, signal.SIGKILL)
        again = threading.Event()
        for _ in range(600):
            if sticks.nodes[0].alive and sticks.nodes[0].pid != dead:
                break
            again.wait(0.1)
        assert sticks.nodes[0].pid != dead
        assert ends("a call", machine.add) == 1
        assert ends("a new node", sticks.add_node) == 3
        assert ends("its end", lambda: sticks.remove_node(3)) is None
        assert ends("a hand-over", sticks.transfer_leadership) in (0, 1, 2)
        with contextlib.suppress(OutcomeUnknown, Unavailable):
            sticks.proxy(timeout=1.0).stick()
        assert ends("the stop of a node that stands still", sticks.nodes[1].stop) is None
        assert not sticks.nodes[1].alive
    finally:
        ends("close()", sticks.close)


def test_a_future_outlives_its_client() -> None:
    def fire() -> Any:
        return connect(cluster.endpoints, KVStore).proxy(timeout=30).set.submit("forgotten", 1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        futures = [fire() for _ in range(5)]
        gc.collect()
    assert [future.result(60.0) for future in futures] == [True] * 5


def test_endpoints_that_went_through_json_and_others_that_are_none(tmp_path: Path) -> None:
    endpoints = cluster.endpoints
    with connect(json.loads(json.dumps(endpoints)), KVStore) as client:
        assert sorted(client.endpoints) == [0, 1, 2]
        assert len(client.status()) == 3
    missing = {node_id: f"{at.partition('#')[0]}#{tmp_path}/gone" for node_id, at in endpoints.items()}
    for wrong, match in (
        ({"a": "tcp://127.0.0.1:1"}, "whole number"),
        ({0: None}, "string"),
        ({0: "tcp://127.0.0.1:1", "0": "tcp://127.0.0.1:2"}, "twice"),
        ({}, "mapping"),
        (missing, "no client's folder"),
    ):
        with pytest.raises(UsageError, match=match):
            connect(wrong, KVStore)  # type: ignore[arg-type]


def test_another_clusters_keys_and_nobody_at_all_are_said_to_be_that(tmp_path: Path) -> None:
    with ReplicatedStateMachine(KVStore).spawn(1, transport="tcp") as other:
        keys = other.endpoints[0].partition("#")[2]
        wrong = {node_id: f"{at.partition('#')[0]}#{keys}" for node_id, at in cluster.endpoints.items()}
        seeds = [at.partition("#")[0] for at in cluster.endpoints.values()]
        refused(
            lambda timeout: connect(seeds, KVStore, keys=keys, timeout=timeout),
            "who answers there says: this process's key is not allowed there, or",
        )
        refused(
            lambda timeout: connect(wrong, KVStore, timeout=timeout),
            r"within \d+ s: no node can be reached.* key is not allowed there, or",
        )
    with pytest.raises(Unavailable, match="no node can be reached: none runs there"):
        connect({0: f"ipc://{tmp_path}/nobody"}, KVStore, timeout=0.2)


def test_connect_async_and_what_follows_it() -> None:
    import asyncio

    async def main() -> None:
        async with await connect_async(cluster.endpoints, KVStore) as client:
            assert await client.proxy().set.aio("async", 1)
            assert await client.query_async(lambda state: state.get("async")) == 1
        with pytest.raises(Unavailable):
            await connect_async({0: "tcp://127.0.0.1:9#" + cluster.endpoints[0].partition("#")[2]}, timeout=0.2)

    asyncio.run(main())


def test_a_client_that_has_not_reached_anybody_yet_takes_calls() -> None:
    client: Client[KVStore] = open_client(cluster.endpoints, KVStore)
    with client:
        assert client.proxy(timeout=30).set("early", 1)


@pytest.mark.parametrize("machine", [KVStore, dict, list])
def test_a_majority_that_is_gone_is_no_quorum(machine: Any) -> None:
    with ReplicatedStateMachine(machine).spawn(3) as cluster:
        assert cluster.has_quorum(timeout=30.0)
        followers = [node for node_id, node in cluster.nodes.items() if node_id != cluster.leader()]
        followers[0].pause()
        assert cluster.has_quorum(timeout=30.0)
        followers[1].pause()
        assert not cluster.has_quorum()
        followers[0].resume()
        assert cluster.has_quorum(timeout=30.0)


# --- Why nobody can be spoken to ---


def test_another_version_of_the_wire_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, _, folder = cluster.endpoints[0].partition("#")
    old = tuple((2, 2) if each == hello.WIRE_VERSIONS else each for each in hello.Introduction.__new__.__defaults__)
    monkeypatch.setattr(hello.Introduction.__new__, "__defaults__", old)
    refused(
        lambda timeout: connect({0: endpoint}, KVStore, keys=folder, timeout=timeout),
        r"node 0 says: it speaks \(2, 2\) of the wire, and node 0 \(3, 3\)",
    )


def test_a_node_that_is_paused_is_not_said_to_refuse_a_key() -> None:
    with ReplicatedStateMachine(KVStore).spawn(1, transport="tcp") as other:
        other.nodes[0].pause()

        def said() -> str:
            with pytest.raises(Unavailable) as told:
                connect(other.endpoints, KVStore, timeout=3.0)
            return str(told.value)

        eventually(lambda: "node 0 says: nothing; it takes connections, so" in said())
        other.nodes[0].resume()


# --- What is no argument costs no client ---


@pytest.mark.parametrize(
    "call",
    [
        lambda: cluster.query(len, min_index=10**30),
        lambda: cluster.query(len, min_index=1 << 62),
        lambda: cluster.watch("t", from_index=10**30),
        lambda: cluster.watch("\ud800"),
        lambda: cluster.proxy(timeout=-(10**400)),
        lambda: ResultFuture[None]().result("x"),  # type: ignore[arg-type]  # one that has not ended
        lambda: ResultFuture[None]().result(float("nan")),
        lambda: cluster.execute(int, timeout=complex(1)),  # type: ignore[arg-type]
        lambda: cluster.watch("t").get("x"),  # type: ignore[arg-type]
        lambda: cluster.events().get(float("nan")),
        lambda: cluster.add_node(timeout="x"),  # type: ignore[arg-type]
        lambda: cluster.remove_node(0, timeout=float("nan")),
        lambda: cluster.promote(0, timeout=-1),
        lambda: cluster.nodes[0].restart(timeout=True),
        lambda: cluster.transfer_leadership([]),  # type: ignore[arg-type]
        lambda: cluster.transfer_leadership(1.0),  # type: ignore[arg-type]
        lambda: cluster.partition(5),  # type: ignore[arg-type]
        lambda: ReplicatedStateMachine(KVStore).spawn(1, data_dir="/tmp/\ud800"),
        lambda: ReplicatedStateMachine(KVStore).spawn(1, timeout=10**400),
    ],
)
def test_what_is_no_argument_is_refused_by_name_and_costs_no_client(call: Callable[[], Any]) -> None:
    with pytest.raises(UsageError):
        call()
    assert cluster.proxy(timeout=10**400).set("still", 1)
