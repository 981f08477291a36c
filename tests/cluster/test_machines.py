"""Machines of every kind on real nodes: what commands return, raise and know, and that nothing aliases the state."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from actorraft import (
    Cluster,
    CommandFailed,
    CommandObjects,
    RemoteTraceback,
    Replace,
    ReplicatedStateMachine,
    ResultLost,
    UsageError,
    context,
)
from tests.cluster.helpers import Spawn, agree
from tests.cluster.machines import Applied, EndsTheProcess, Ledger, NoSnapshot, Refused

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def ledgers() -> Iterator[Cluster[Ledger]]:
    """One cluster for the tests that only add to it, each under a key of its own."""
    with ReplicatedStateMachine(Ledger).spawn(3) as cluster:
        yield cluster


class Append:
    """A command object, importable by the nodes."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def apply(self, state: list[Any]) -> int:
        state.append(self.item)
        return len(state)


# --- Kinds of machine ---


def test_a_dict_takes_closures_and_lambdas(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(dict, nodes=3)
    for number in range(3):
        assert cluster.execute(lambda state, number=number: state.setdefault("x", number)) == 0
    assert cluster.query(lambda state: state) == {"x": 0}
    agree(cluster)


def test_a_list_takes_command_objects(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(list, nodes=1)
    assert [cluster.execute(Append(item)) for item in "ab"] == [1, 2]
    assert cluster.query(list) == ["a", "b"]


def test_a_class_with_apply_takes_any_object(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(Applied, nodes=1)
    assert [cluster.execute(number) for number in (1, 2, 3)] == [1, 3, 6]
    assert cluster.query("total") == 6


def test_command_objects_says_so_for_a_class_with_an_apply_of_its_own(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(ReplicatedStateMachine(CommandObjects, Applied), nodes=1)
    assert cluster.execute(lambda machine: machine.apply(5)) == 5
    assert cluster.query(lambda machine: machine.total) == 5


def test_an_immutable_state_is_replaced(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(int, nodes=1)
    assert cluster.execute(lambda number: Replace(number + 7, "added")) == "added"
    assert cluster.query(lambda number: number) == 7


def test_a_machine_with_methods_takes_command_objects_too(ledgers: Cluster[Ledger]) -> None:
    assert ledgers.execute(lambda ledger: ledger.append("objects", 1)) == 1
    assert ledgers.proxy().get("objects") == [1]


def test_the_constructors_arguments_reach_every_node(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(ReplicatedStateMachine(dict, {"a": 1}, b=2), nodes=3)
    assert [cluster.query(dict, to=node_id) for node_id in cluster.nodes] == [{"a": 1, "b": 2}] * 3


# --- Results and errors ---


def test_a_command_that_raises_raises_the_same_in_the_caller_and_the_log_goes_on(ledgers: Cluster[Ledger]) -> None:
    ledger = ledgers.proxy()
    with pytest.raises(Refused, match="no more for raised") as caught:
        ledger.append_and_raise("raised", 1)
    assert (type(caught.value), caught.value.key, caught.value.limit) == (Refused, "raised", 3)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "append_and_raise" in str(caught.value.__cause__)
    assert ledger.append("raised", 2) == 2


@pytest.mark.parametrize("oddity", [StopIteration("x"), SystemExit(3), KeyboardInterrupt("y"), GeneratorExit()])
def test_an_oddity_that_a_command_raises_arrives_as_command_failed(
    ledgers: Cluster[Ledger], oddity: BaseException
) -> None:
    def throw(_: Ledger) -> None:
        raise oddity

    with pytest.raises(CommandFailed) as caught:
        ledgers.execute(throw)
    assert caught.value.type_name.endswith(type(oddity).__name__)


def test_an_error_that_cannot_be_pickled_arrives_as_command_failed(ledgers: Cluster[Ledger]) -> None:
    def throw(_: Ledger) -> None:
        error = ValueError("holds a generator")
        error.generator = iter(())  # type: ignore[attr-defined]
        raise error

    with pytest.raises((CommandFailed, ValueError), match="holds a generator"):
        ledgers.execute(throw)
    assert ledgers.execute(lambda ledger: 1) == 1


def test_a_result_that_cannot_be_sent_is_lost_and_the_command_is_applied(ledgers: Cluster[Ledger]) -> None:
    with pytest.raises(ResultLost, match="lock"):
        ledgers.proxy().bad_result("lost", 1)
    assert ledgers.proxy().get("lost") == [1]


def test_an_error_in_a_query_is_the_callers_and_harms_nobody(ledgers: Cluster[Ledger]) -> None:
    with pytest.raises(ZeroDivisionError):
        ledgers.query(lambda ledger: 1 // 0)
    assert ledgers.proxy().count("nothing") == 0


def test_commands_of_one_batch_have_serials_and_dice_of_their_own(ledgers: Cluster[Ledger]) -> None:
    ledger = ledgers.proxy()
    told = [future.result() for future in [ledger.about.submit() for _ in range(500)]]
    assert len({(index, position) for index, position, *_ in told}) == 500
    serials = [serial for _, _, serial, *_ in told]
    assert serials == sorted(set(serials))
    assert len({dice for *_, dice in told}) == 500
    times = [time for *_, time, _ in told]
    assert times == sorted(times)
    assert len({index for index, *_ in told}) < 500, "none shared an entry, so this tested nothing"


def test_results_of_one_batch_do_not_alias_the_state(ledgers: Cluster[Ledger]) -> None:
    ledger = ledgers.proxy()
    futures: list[Any] = []
    for number in range(50):
        ledger.append.submit("alias", number)
        futures.append(ledger.state.submit())
    assert [future.result()["alias"] for future in futures] == [list(range(number + 1)) for number in range(50)]


def test_a_context_is_only_for_a_machine_at_work_and_only_commands_publish(ledgers: Cluster[Ledger]) -> None:
    with pytest.raises(UsageError, match="while"):
        context()
    ledgers.proxy().append("context", 1)
    assert ledgers.query(lambda ledger: context().index) >= 0
    with pytest.raises((CommandFailed, UsageError), match="publish"):
        ledgers.query(lambda ledger: context().publish("topic", 1))


# --- The proxy ---


def test_the_proxy_offers_the_machines_methods_and_nothing_else(ledgers: Cluster[Ledger]) -> None:
    ledger = ledgers.proxy()
    assert "append" in dir(ledger)
    assert list(inspect.signature(ledger.append).parameters) == ["key", "item"]
    with pytest.raises(AttributeError, match="entries"):
        _ = ledger.entries
    with pytest.raises((UsageError, TypeError), match="item"):
        ledger.append("key")  # type: ignore[call-arg]


def test_a_future_can_be_awaited_and_waited_for(ledgers: Cluster[Ledger]) -> None:
    ledger = ledgers.proxy()

    async def main() -> list[int]:
        return [await ledger.append.aio("awaited", 1), await ledgers.submit(lambda each: each.append("awaited", 2))]

    assert asyncio.run(main()) == [1, 2]
    future = ledger.append.submit("awaited", 3)
    assert not future.cancel()
    assert future.result(timeout=30) == 3


# --- Machines that stop their node ---


def test_a_command_that_runs_out_of_stack_is_a_result_and_ends_no_node(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(EndsTheProcess, nodes=1)
    with pytest.raises(RecursionError):
        cluster.proxy(timeout=30.0).run_out_of_stack()
    assert [(row.alive, row.error) for row in cluster.status()] == [(True, None)]


def test_a_snapshot_that_raises_leaves_the_log_and_works_once_mended(raft_cluster: Spawn) -> None:
    cluster = raft_cluster(NoSnapshot, nodes=3)
    ledger = cluster.proxy()
    ledger.append("broken", 1)
    with pytest.raises(Exception, match="no snapshot today"):
        cluster.take_snapshot()
    assert ledger.append("k", 1) == 1
    ledger.mend()
    taken = cluster.take_snapshot()
    assert sorted(taken) == [0, 1, 2]
    cluster.nodes[0].restart()
    assert ledger.append("k", 2) == 2
    agree(cluster)
