"""What surprises says what to do: workers of a web server, a directory for runs, and how things show themselves."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

from actorraft import ReplicatedStateMachine, UsageError, command, context, query
from actorraft.actors.rundir import RunDir
from actorraft.client import client
from actorraft.cluster import spawn
from tests.cluster.helpers import Spawn, eventually


class Tally:
    def __init__(self) -> None:
        self.n = 0

    @command
    def add(self, amount: int) -> int:
        self.n += amount
        context().publish("sums", self.n)
        return self.n

    @query
    def value(self) -> int:
        return self.n


def test_a_spawn_in_a_worker_of_a_web_server_is_advised_against(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "gunicorn.arbiter", raising=False)
    for name in ("uvicorn", "hypercorn"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spawn._warn_of_workers()
    assert caplog.text == ""
    monkeypatch.setitem(sys.modules, "uvicorn", ModuleType("uvicorn"))
    spawn._warn_of_workers()  # its parent: that is the place
    assert caplog.text == ""
    monkeypatch.setattr(spawn.multiprocessing, "parent_process", lambda: object())
    spawn._warn_of_workers()
    assert "spawn() in a worker of uvicorn" in caplog.text
    assert "connect() in each worker's lifespan" in caplog.text


def test_runs_have_their_directories_where_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        monkeypatch.setenv("ACTORRAFT_RUN_DIR", place)
        run = RunDir()
        assert run.path.parent == Path(place)
        run.remove()
    with pytest.raises(UsageError, match=f"ACTORRAFT_RUN_DIR={place}: sockets are made there, and it is no directory"):
        RunDir()
    monkeypatch.setenv("ACTORRAFT_RUN_DIR", f"/tmp/{'x' * 90}")
    with pytest.raises(UsageError, match="has over"):
        RunDir()


@pytest.mark.cluster
def test_a_cluster_its_nodes_and_its_events_show_themselves(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Tally, nodes=1)
    events = cluster.events()
    assert repr(events) == "<EventStream 0 waiting>"
    pid = cluster.nodes[0].pid
    assert repr(cluster.nodes[0]) == f"<Node 0 pid {pid}>"
    assert repr(cluster.nodes) == f"<Nodes 0: pid {pid}>"
    assert f"<td>pid {pid}</td>" in cluster.nodes._repr_html_()
    assert "<caption>" not in cluster.nodes[0]._repr_html_()
    assert "1 nodes, leader 0" in cluster._repr_html_()
    assert "<td>leader</td>" in cluster._repr_html_()

    cluster.nodes[0].kill()
    eventually(lambda: "<td>exit</td>" in events._repr_html_(), what="the exit is shown")
    assert repr(cluster.nodes[0]) == "<Node 0 down, killed by SIGKILL>"
    with pytest.raises(KeyError, match="no leader is known now"):
        cluster.nodes[None]


@pytest.mark.cluster
def test_everything_has_its_form_in_a_coroutine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_warned_of_loop", False)  # it warns once in a process
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # and not in a notebook

    async def main() -> None:
        from actorraft import connect_async

        async with await ReplicatedStateMachine(Tally).spawn_async(1) as cluster:
            events, sums = cluster.events(), cluster.watch("sums", from_index=0)
            async with await connect_async(cluster.endpoints, Tally) as other:
                tally = other.proxy()
                assert await tally.add.aio(2) == 2
                assert await other.submit(lambda machine: machine.add(3)) == 5
                assert await other.query_async(Tally.value) == await tally.value.aio() == 5
                seen = [published.event async for published, _ in _first(sums, 2)]
                assert seen == [2, 5]
                with pytest.warns(RuntimeWarning, match=r"await add\.aio"):
                    tally.add(1)
            cluster.nodes[0].kill()
            kinds = [event.kind async for event, _ in _first(events, 1)]
            assert kinds == ["exit"]

    asyncio.run(main())


async def _first(stream, count):  # type: ignore[no-untyped-def]
    number = 0
    async for one in stream:
        number += 1
        yield one, number
        if number == count:
            return
