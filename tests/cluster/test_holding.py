"""One bad command takes neither a cluster nor its data: what every node meets is a result, what one meets holds that one.

With real processes. A module is missing on a node if a file of that node's name says so, and comes when it is removed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actorraft import Cluster, ReplicatedStateMachine, StateMachine, command, query
from actorraft.errors import OutcomeUnknown, StartError, Unavailable, UnknownType
from tests.cluster.helpers import agree, eventually, follower_of

pytestmark = pytest.mark.cluster


def this_node() -> str:
    """The name of the node whose process this is, as the file of its output has it."""
    return Path(os.readlink("/proc/self/fd/1")).stem


class Needy(StateMachine):
    """Needs what may be missing, in the middle of its commands."""

    def __init__(self, place: str) -> None:
        self.place, self.n = place, 0

    def _need(self) -> None:
        if Path(self.place, this_node()).exists():
            raise ModuleNotFoundError("No module named 'rare'", name="")

    @command
    def add(self) -> int:
        self.n += 1
        return self.n

    @command
    def add_with(self) -> int:
        self.n += 1
        self._need()
        self.n += 1
        return self.n

    @command
    def bad(self, how: str) -> Any:
        self.n += 1
        match how:
            case "typo":
                import pandsa  # type: ignore[import-not-found]  # noqa: F401
            case "name":
                from os import pahts  # type: ignore[attr-defined]  # noqa: F401
            case "memory":
                bytearray(1 << 50)
            case "result":
                return Unsendable()
            case "deep":
                self.bad("deep")
            case "deep in C":
                nested: list[Any] = []
                for _ in range(100_000):
                    nested = [nested]
                repr(nested)
            case "raised":
                raise ImportError("by hand")
        return None

    @query
    def total(self) -> int:
        return self.n


class Unsendable:
    def __reduce__(self) -> Any:
        raise ImportError("no pickle of this")


@contextlib.contextmanager
def missing(place: Path, *node_ids: int) -> Iterator[None]:
    for node_id in node_ids:
        (place / f"node-{node_id}").touch()
    try:
        yield
    finally:
        for node_id in node_ids:
            (place / f"node-{node_id}").unlink(missing_ok=True)


def spawn(place: Path, nodes: int | None = 3, *, timeout: float = 60.0) -> Cluster[Needy]:
    return ReplicatedStateMachine(Needy, str(place)).spawn(nodes, data_dir=place / "data", timeout=timeout)


def holds(cluster: Cluster[Any], node_id: int) -> str:
    [row] = [row for row in cluster.status() if row.id == node_id]
    return row.error if row.error is not None and "holds at index" in row.error else ""


BAD = {
    "typo": ImportError,
    "name": ImportError,
    "memory": MemoryError,
    "result": ImportError,
    "deep": RecursionError,
    "deep in C": RecursionError,
    "raised": ImportError,
}


def test_what_every_node_meets_is_the_result_and_the_cluster_and_its_data_go_on(tmp_path: Path) -> None:
    with spawn(tmp_path) as cluster:
        machine = cluster.proxy()
        for count, (how, error) in enumerate(BAD.items(), 1):
            with pytest.raises(error):
                machine.bad(how)
            changed = count if error is not RecursionError else None
            assert machine.add() >= count
            if changed is not None:
                agree(cluster)
        total = machine.total()
        assert all(row.alive and row.error is None for row in cluster.status())
    with spawn(tmp_path, None) as cluster:
        assert total == cluster.proxy().total()
        agree(cluster)


def test_a_command_that_is_held_at_leaves_nothing_of_itself_behind(tmp_path: Path) -> None:
    with spawn(tmp_path) as cluster:
        machine = cluster.proxy()
        for how in ("typo", "memory", "result"):
            with pytest.raises((ImportError, MemoryError)):
                machine.bad(how)
        assert 0 == machine.total()


def test_a_burst_of_bad_commands_between_good_ones_gives_each_its_own_outcome(tmp_path: Path) -> None:
    with spawn(tmp_path) as cluster:
        machine = cluster.proxy()
        calls = [machine.bad.submit("typo") if at % 5 == 2 else machine.add.submit() for at in range(25)]
        for at, call in enumerate(calls):
            if at % 5 == 2:
                with pytest.raises(ImportError):
                    call.result(timeout=60)
            else:
                call.result(timeout=60)
        assert 20 == machine.total()


def test_a_class_of_a_module_that_no_node_has_is_unknown_and_takes_nothing_with_it(tmp_path: Path) -> None:
    module = tmp_path / "only_here_as_a_class.py"
    module.write_text("class Add:\n    def apply(self, state):\n        state['n'] = 1\n")
    with ReplicatedStateMachine(dict).spawn(3) as cluster:
        sys.path.insert(0, str(tmp_path))
        try:
            import only_here_as_a_class  # type: ignore[import-not-found]

            with pytest.raises(UnknownType, match="only_here_as_a_class"):
                cluster.execute(only_here_as_a_class.Add())
        finally:
            sys.path.remove(str(tmp_path))
            sys.modules.pop("only_here_as_a_class", None)
        cluster.execute(lambda state: state.update(n=2))
        assert {"n": 2} == cluster.query(dict)


def test_a_node_that_alone_lacks_something_holds_and_goes_on_by_itself_when_it_comes(tmp_path: Path) -> None:
    with spawn(tmp_path) as cluster:
        machine = cluster.proxy()
        machine.add()
        poor = follower_of(cluster)
        with missing(tmp_path, poor):
            assert 3 == machine.add_with()
            reason = eventually(lambda: holds(cluster, poor))
            assert "Needy.add_with raised ModuleNotFoundError: No module named 'rare'" in reason
            assert 4 == machine.add()
            assert 4 == machine.total()
            assert 1 == cluster.proxy(consistency="stale", to=poor).total()
        eventually(lambda: not holds(cluster, poor))
        agree(cluster)


def test_a_leader_that_alone_lacks_something_hands_over_and_the_others_answer(tmp_path: Path) -> None:
    with spawn(tmp_path) as cluster:
        machine = cluster.proxy(timeout=60)
        poor = cluster.wait_for_leader()
        with missing(tmp_path, poor):
            assert 2 == machine.add_with()
            eventually(lambda: cluster.leader() not in (None, poor))
            assert 3 == machine.add()
            assert eventually(lambda: holds(cluster, poor))
        eventually(lambda: not holds(cluster, poor))
        agree(cluster)


def test_with_a_voter_missing_nothing_is_decided_until_it_is_back(tmp_path: Path) -> None:
    with spawn(tmp_path) as cluster:
        machine = cluster.proxy()
        away = follower_of(cluster)
        cluster.nodes[away].stop()
        with missing(tmp_path, *cluster.nodes):
            call = machine.add_with.submit()

            def reason_of_the_leader() -> str:
                reason = holds(cluster, cluster.wait_for_leader())
                return reason if f"nodes [{away}]" in reason else ""

            reason = eventually(reason_of_the_leader)
            assert "actorraft.storage show" in reason
            with pytest.raises((OutcomeUnknown, Unavailable)):
                cluster.proxy(timeout=2.0).add()
            cluster.nodes[away].restart()
            with pytest.raises((ModuleNotFoundError, OutcomeUnknown)):
                call.result(timeout=60)
            assert 0 < eventually(lambda: cluster.proxy(timeout=10.0).add())
        agree(cluster)
        assert all(row.error is None for row in cluster.status())


def test_an_answer_that_was_given_stands_when_what_it_took_is_missing_at_the_next_start(tmp_path: Path) -> None:
    with spawn(tmp_path) as cluster:
        assert 2 == cluster.proxy().add_with()
        for node in cluster.nodes.values():
            node.kill()
    with missing(tmp_path, 0, 1, 2), pytest.raises(StartError, match=r"holds at index \d+: .*may have been answered"):
        spawn(tmp_path, None, timeout=30.0)
    with spawn(tmp_path, None) as cluster:
        assert 2 == cluster.proxy().total()
        agree(cluster)


def test_held_nodes_that_are_all_killed_hold_on_and_are_freed_by_what_was_missing(tmp_path: Path) -> None:
    with spawn(tmp_path) as cluster:
        machine = cluster.proxy()
        away = follower_of(cluster)
        cluster.nodes[away].stop()
        with missing(tmp_path, *cluster.nodes):
            machine.add_with.submit()
            leader = cluster.wait_for_leader()
            eventually(lambda: holds(cluster, leader))
            others = [node_id for node_id in cluster.nodes if node_id != away]
            for node_id in others:
                cluster.nodes[node_id].kill()
        for node_id in cluster.nodes:
            cluster.nodes[node_id].restart()
        assert 3 == cluster.proxy(timeout=60.0).add()
        agree(cluster)
