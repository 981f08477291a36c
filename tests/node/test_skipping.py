"""Nodes that skip other entries do not talk, unless the one that does not has not come to them yet: it learns then."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from actorraft import codec
from actorraft.node.driver import ConnectEvent, Driver, MessageEvent, NodeStopped, TickEvent
from actorraft.node.executor import LogOnly
from actorraft.raft.config import RaftConfig
from actorraft.raft.messages import AppendEntries, Configuration, Introduction, Message
from actorraft.storage.marks import APPLIED, Marks
from actorraft.storage.memory import MemoryStorage

POISON = {7: 0xBAD}


class Net:
    address = 0

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def send(self, message: Message) -> None:
        self.sent.append(codec.decode_message(codec.encode_message(message)))

    def take(self) -> list[Message]:
        sent, self.sent = self.sent, []
        return sent


class Node:
    def __init__(self, skips: dict[int, int], applied: int) -> None:
        self.net, self.marks, self.kept = Net(), Marks(), [skips]
        self.marks.words[APPLIED] = applied
        keep: Callable[[dict[int, int]], object] = self.kept.append
        self.driver = Driver(
            self.net,
            storage=MemoryStorage(),
            executor=LogOnly(),
            config=RaftConfig(),
            configuration=Configuration(voters=frozenset({0, 1, 2}), next_node_id=3),
            rng=random.Random(1),
            marks=self.marks,
            skips=dict(skips),
            keep_skips=keep,
        )

    def hear(self, skips: dict[int, int], applied: int, *, asks: bool = True) -> None:
        said = Introduction(1, 0, 0, list(skips.items()), applied, asks)
        self.driver.process_event(MessageEvent(said))

    def talks(self) -> bool:
        """Whether it takes what node 1 says as its leader."""
        self.driver.process_event(
            MessageEvent(AppendEntries(1, 0, self.driver.server.current_term + 1, -1, -1, [], -1))
        )
        return self.driver.server.leader_id == 1 and any(not isinstance(one, Introduction) for one in self.net.take())


def test_a_node_that_skips_says_so_first_on_a_link_and_talks_once_it_has_met_its_like() -> None:
    node = Node(POISON, applied=9)
    node.driver.process_event(ConnectEvent(1))

    assert [Introduction(0, 1, 0, list(POISON.items()), 9, True)] == [
        one._replace(skips=[tuple(pair) for pair in one.skips])  # type: ignore[misc]
        for one in node.net.take()
        if isinstance(one, Introduction)
    ]
    assert not node.talks()
    node.hear(POISON, applied=8)
    assert node.talks()
    node.driver.process_event(ConnectEvent(1))
    assert not node.talks(), "another link, on which nothing was said yet"


@pytest.mark.parametrize(
    ("mine", "applied", "theirs", "their_applied", "outcome"),
    [
        ({}, 3, {}, 9, "talks"),
        (POISON, 3, POISON, 9, "talks"),
        (POISON, 9, {}, 3, "waits"),  # they learn, and come again
        (POISON, 6, {}, 6, "waits"),
        (POISON, 9, {}, 9, "parts"),
        ({}, 9, POISON, 9, "parts"),
        ({}, 9, POISON, 6, "parts"),
        ({7: 1}, 9, {7: 2}, 9, "parts"),
        ({7: 1, 8: 2}, 9, {7: 1}, 9, "parts"),
    ],
)
def test_who_talks_to_whom(
    mine: dict[int, int], applied: int, theirs: dict[int, int], their_applied: int, outcome: str
) -> None:
    node = Node(mine, applied)
    node.hear(theirs, their_applied)

    assert (outcome == "talks") == node.talks()
    error = node.driver.status()["error"] or ""
    assert (outcome == "parts") == ("does not talk to node 1: at index" in error)


@pytest.mark.parametrize("theirs", [5, 6, 9])
def test_who_has_not_come_to_it_learns_of_it_and_starts_again(theirs: int) -> None:
    node = Node({}, applied=5)

    with pytest.raises(NodeStopped, match="node 1 skips what an operator said, at index 7"):
        node.hear(POISON, applied=theirs)

    assert POISON == node.kept[-1]


def test_a_cluster_that_skips_nothing_introduces_nobody() -> None:
    node = Node({}, applied=5)
    node.driver.process_event(ConnectEvent(1))
    for _ in range(50):
        node.driver.process_event(TickEvent(1))

    assert not any(isinstance(one, Introduction) for one in node.net.take())
