"""What a watcher is owed reaches it, or it is told by name that it cannot."""

from __future__ import annotations

from typing import Any

import pytest

from actorraft import codec
from actorraft.node import watches
from actorraft.node.driver import MessageEvent
from actorraft.node.history import History
from actorraft.node.work import by_entry
from actorraft.ports import GONE
from actorraft.raft.messages import AppendEntries, Configuration, InstallSnapshot
from tests.node.helpers import Node, Publisher


def values(node: Node, client: str = "watcher", watch_id: int = 0) -> list[Any]:
    said = node.clients.of(client, codec.Published)
    return [value for one in said if one.watch_id == watch_id for value in one.values]


def errors(node: Node, client: str = "watcher") -> list[str]:
    return [said.error for said in node.clients.of(client, codec.Published) if said.error]


def watching(from_index: int | None = None) -> Node:
    node = Node().lead()
    node.say("watcher", codec.Watch(0, "t", from_index))
    return node


@pytest.mark.parametrize("missed", [1, 5, 300])
@pytest.mark.parametrize("then", ["more events", "only time"])
def test_a_watcher_whose_queue_was_full_hears_all_of_it_later(missed: int, then: str) -> None:
    node = watching()
    node.call("emit")
    node.clients.full["watcher"] = False
    for _ in range(missed):
        node.call("emit")
        node.tick(0.01)
    node.clients.full.clear()
    if then == "more events":
        node.tick(watches.AGAIN_S)
        node.call("emit")
        missed += 1
    node.tick(2 * watches.AGAIN_S)
    node.tick(2 * watches.AGAIN_S)

    assert list(range(1, missed + 2)) == values(node)


def test_a_watcher_whose_queue_fills_up_again_and_again_misses_nothing() -> None:
    node = watching()
    for round_ in range(20):
        if round_ % 3:
            node.clients.full["watcher"] = False
        else:
            node.clients.full.clear()
        node.call("emit", 2)
        node.tick(2 * watches.AGAIN_S)
    node.clients.full.clear()
    node.tick(2 * watches.AGAIN_S)
    heard = values(node)
    assert list(range(1, 41)) == sorted(set(heard))
    assert heard == sorted(heard)


@pytest.mark.parametrize("from_index", [None, 0])
def test_a_watch_that_begins_while_the_queue_is_full_begins_when_there_is_room(from_index: int | None) -> None:
    node = Node().lead()
    node.call("emit")
    node.clients.full["watcher"] = False
    node.say("watcher", codec.Watch(0, "t", from_index))
    node.call("emit")
    node.clients.full.clear()
    node.tick(2 * watches.AGAIN_S)
    assert ([2] if from_index is None else [1, 2]) == values(node)


def test_a_watcher_that_stays_away_too_long_for_the_history_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node().lead()
    node.steps.executor.published = History(events_max=10)
    node.say("watcher", codec.Watch(0, "t", None))
    node.call("emit")
    node.clients.full["watcher"] = False
    for _ in range(30):
        node.call("emit")
    node.clients.full.clear()
    node.tick(2 * watches.AGAIN_S)
    assert [1] == values(node)
    assert ["no longer held" in error for error in errors(node)] == [True]
    node.call("emit")
    assert [1] == values(node)  # it has ended


def test_a_watcher_that_is_gone_is_forgotten() -> None:
    node = watching()
    node.clients.full["watcher"] = GONE
    node.call("emit")
    node.tick(1.0)
    assert 0 == len(node.control.requests.watches)


def test_a_watcher_that_takes_nothing_for_long_but_is_there_gets_what_it_is_owed_once_it_does() -> None:
    node = watching()
    node.clients.full["watcher"] = False
    node.call("emit", 3)
    for _ in range(100):
        node.tick(10.0)
    node.clients.full.clear()
    node.tick(2 * watches.AGAIN_S)
    assert [1, 2, 3] == values(node)


def test_a_full_queue_of_one_watcher_changes_nothing_for_another_nor_for_another_topic() -> None:
    node = watching()
    node.say("other", codec.Watch(0, "t", None))
    node.clients.full["watcher"] = False
    node.call("emit", 3)
    assert [1, 2, 3] == values(node, "other")


def test_a_watch_that_is_ended_while_it_is_behind_is_not_taken_up_again() -> None:
    node = watching()
    node.clients.full["watcher"] = False
    node.call("emit")
    node.say("watcher", codec.Unwatch(0))
    node.clients.full.clear()
    node.tick(2 * watches.AGAIN_S)
    node.call("emit")
    assert [] == values(node)


def test_a_watch_begun_anew_from_an_earlier_entry_while_the_first_is_looked_up_gets_what_it_asks_for() -> None:
    node = Node().lead()
    node.call("emit")
    node.steps.at_once = False
    node.say("watcher", codec.Watch(0, "t", None))
    node.say("watcher", codec.Watch(0, "t", 0))
    node.settle()
    assert [1] == values(node)
    assert 1 == len(node.control.requests.watches)


@pytest.mark.parametrize("from_index", [None, 0])
@pytest.mark.parametrize("queue", ["taken", "full meanwhile"])
def test_a_watcher_of_a_node_that_fetches_a_state_hears_what_was_published_up_to_there(
    from_index: int | None, queue: str
) -> None:
    """Who watches may not know that the node leads no more; it heard later events, and never these (seed 11127)."""
    leader = Node().lead()
    leader.call("emit", 3)
    leader.say("operator", codec.Admin(1, "snapshot", {}))
    server = leader.control.server
    term, index = server.snapshot_id
    with leader.control.storage.open_snapshot() as file:
        state = file.read()
    leader.call("emit")
    members = Configuration(voters=frozenset({0, 1, 2}), next_node_id=3)

    node = Node(1, members=3)
    node.say("watcher", codec.Watch(0, "t", from_index))
    if queue == "full meanwhile":
        node.clients.full["watcher"] = False
    node.control.process_event(MessageEvent(InstallSnapshot(0, 1, term, index, term, members, 0, state, True)))
    later = [server.log[at] for at in range(index + 1, len(server.log))]
    node.control.process_event(MessageEvent(AppendEntries(0, 1, term, index, term, later, len(server.log) - 1)))
    node.clients.full.clear()
    node.tick(2 * watches.AGAIN_S)
    node.tick(2 * watches.AGAIN_S)

    assert [1, 2, 3, 4] == values(node)


fails: list[Exception] = []  # with what a restore does, now


class Reluctant(Publisher):
    """Cannot take a snapshot up at first."""

    def restore(self, state: Any) -> None:
        if fails:
            raise fails[0]
        self.__dict__.update(state)

    def snapshot(self) -> Any:
        return dict(self.__dict__)


def test_a_watcher_of_a_node_that_takes_a_state_up_at_the_second_try_misses_nothing() -> None:
    leader = Node(machine=Reluctant).lead()
    leader.call("emit", 3)
    leader.say("operator", codec.Admin(1, "snapshot", {}))
    term, index = leader.control.server.snapshot_id
    with leader.control.storage.open_snapshot() as file:
        state = file.read()
    members = Configuration(voters=frozenset({0, 1, 2}), next_node_id=3)
    node = Node(1, members=3, machine=Reluctant)
    node.say("watcher", codec.Watch(0, "t", None))
    fails.append(ValueError("not yet"))
    node.control.process_event(MessageEvent(InstallSnapshot(0, 1, term, index, term, members, 0, state, True)))
    assert node.control.holding.reason
    fails.clear()
    for _ in range(100):
        node.tick(0.1)

    assert [1, 2, 3] == values(node)


def test_events_of_one_entry_that_no_link_carries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "ANSWER_BYTES_MAX", 10_000)
    node = watching()
    node.call("emit", 1, 20_000)
    assert ["too large" in error for error in errors(node)] == [True]


def test_a_client_has_a_bounded_number_of_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "CLIENT_WATCHES_MAX", 3)
    node = Node().lead()
    for watch_id in range(5):
        node.say("watcher", codec.Watch(watch_id, "t", None))
    assert 2 == len(errors(node))


def test_what_one_entry_published_to_a_topic_comes_in_one_piece_whatever_it_published_between() -> None:
    """The second piece passed for a repetition of the first, and was lost (simulator, seed 55)."""
    events = [(7, "a", 1), (7, "b", 2), (7, "a", 3), (8, "a", 4)]

    assert list(by_entry(events)) == [(7, "a", [1, 3]), (7, "b", [2]), (8, "a", [4])]
