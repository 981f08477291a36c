"""What happens to a cluster, and what its machine publishes, as a user of real processes sees it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from actorraft import Cluster, ReplicatedStateMachine, StateMachine, Unavailable, command, context

pytestmark = pytest.mark.cluster


class Publisher(StateMachine):
    def __init__(self) -> None:
        self.count = 0

    @command
    def say(self, topic: str, *words: str) -> int:
        self.count += 1
        for word in words:
            context().publish(topic, (self.count, word))
        return context().index


@pytest.fixture
def cluster() -> Iterator[Cluster[Publisher]]:
    with ReplicatedStateMachine(Publisher).spawn(3) as running:
        yield running


def test_what_is_published_is_read_in_order_across_a_change_of_leader(cluster: Cluster[Publisher]) -> None:
    machine = cluster.proxy()
    with_from_start = cluster.watch("news", 0)
    machine.say("news", "a", "b")
    machine.say("other", "x")
    cluster.nodes[cluster.wait_for_leader()].kill()
    machine.say("news", "c")

    seen = [with_from_start.get(timeout=20.0) for _ in range(3)]

    assert [one.event for one in seen] == [(1, "a"), (1, "b"), (3, "c")]
    assert seen[0].index == seen[1].index < seen[2].index


def test_a_watch_resumes_from_an_index_also_on_a_node_that_was_restored_from_a_snapshot(
    cluster: Cluster[Publisher],
) -> None:
    machine = cluster.proxy()
    first = machine.say("news", "a")
    second = machine.say("news", "b")
    cluster.take_snapshot()
    for node in cluster.nodes.values():
        node.restart()

    resumed = cluster.watch("news", first + 1)

    assert resumed.get(timeout=20.0) == (second, (2, "b"))


def test_a_watch_from_now_on_says_nothing_of_the_past_and_close_ends_it(cluster: Cluster[Publisher]) -> None:
    machine = cluster.proxy()
    machine.say("news", "old")
    stream = cluster.watch("news")
    cluster.query(lambda state: None)  # behind the watch on the same link
    machine.say("news", "new")

    assert stream.get(timeout=20.0).event == (2, "new")
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)


def test_events_from_before_what_is_held_are_refused_by_name(
    cluster: Cluster[Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = cluster.proxy()
    for _ in range(3):
        machine.say("news", *map(str, range(4_000)))

    with pytest.raises(Unavailable, match="no longer held"):
        cluster.watch("news", 0).get(timeout=20.0)


def test_leaders_exits_restarts_members_and_snapshots_are_events(cluster: Cluster[Publisher]) -> None:
    stream = cluster.events()
    seen: list[Any] = []
    reader = threading.Thread(target=lambda: seen.extend(stream))
    reader.start()
    leader = cluster.wait_for_leader()

    cluster.nodes[leader].kill()
    cluster.proxy().say("news")
    cluster.nodes[leader].restart()
    added = cluster.add_node()
    cluster.take_snapshot()
    cluster.close()
    reader.join(timeout=20.0)

    assert not reader.is_alive()
    kinds = [(event.kind, event.node_id) for event in seen]
    assert ("exit", leader) in kinds
    assert ("restart", leader) in kinds
    assert ("membership", added) in kinds
    assert {"leader", "snapshot"} <= {kind for kind, _ in kinds}
