"""Which key an operator may put beside the log's, and which not: what a node that follows its log lets in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actorraft.node.members import Members
from actorraft.raft.messages import Configuration, Member
from actorraft.raft.ready import FollowerState

KEYS = tuple(str(node_id) * 40 for node_id in range(3))
NEW, NEWER, NEWEST = "a" * 40, "b" * 40, "c" * 40


def known_by(*keys: str) -> Configuration:
    roster = tuple(Member(node_id, key, f"host{node_id}:1", f"host{node_id}:2") for node_id, key in enumerate(keys))
    return Configuration(voters=frozenset({0, 1, 2}), roster=roster, next_node_id=3)


class Node:
    """Node 0, started again and again in one directory; `lets_in` is whom it was told last to let in, by which keys."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.lets_in: dict[int, tuple[str, ...]] = {}
        self._server = SimpleNamespace(
            configuration=Configuration(),
            configurations=[(-1, Configuration())],
            commit_index=-1,
            state=FollowerState,
            probation=None,
        )
        self._server.progress = {}
        self._log(known_by(*KEYS))

    def _log(self, *configurations: Configuration) -> None:
        later = enumerate(configurations, len(self._server.configurations) - 1)
        self._server.configurations = [*self._server.configurations, *later]
        self._server.configuration = configurations[-1]

    def start(self, first: str, second: str) -> None:
        self._server.configurations[0] = (-1, known_by(KEYS[0], first, second))  # as any start has it, of its file
        rules = SimpleNamespace(mine=None, interpreters=SimpleNamespace(mine="3.11"))
        requests = SimpleNamespace(endpoints=[])
        driver: Any = SimpleNamespace(server=self._server, rules=rules, requests=requests, refused={})
        mailbox: Any = SimpleNamespace(
            judge=None, introduce=lambda _: None, incarnation=b"\xff", set_keys=lambda told, _: self._note(told)
        )
        keys = SimpleNamespace(members={1: (first,), 2: (second,)})
        spec: Any = SimpleNamespace(
            node_id=0, keys=keys, seeds={}, directory=self._directory, advertise=("host0:1", "host0:2")
        )
        self._members = Members(driver, mailbox, spec, lambda _: None)

    def follow(self, *configurations: Configuration, commit_index: int = -1) -> None:
        """Take one batch that brings these to the log; then this much is committed."""
        self._log(*configurations)
        self._server.commit_index = commit_index
        self._members.follow()

    def _note(self, told: dict[int, tuple[str, ...]]) -> None:
        self.lets_in = told


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node(tmp_path)
    node.start(*KEYS[1:])
    return node


def test_a_key_that_came_and_went_with_one_batch_is_believed_no_more(node: Node) -> None:
    node.start(NEW, KEYS[2])
    assert node.lets_in[1] == (KEYS[1], NEW)
    node.follow(known_by(KEYS[0], NEW, KEYS[2]), known_by(KEYS[0], NEWER, KEYS[2]), commit_index=2)
    assert node.lets_in[1] == (NEWER,)
    node.start(NEW, KEYS[2])
    assert node.lets_in[1] == (NEWER,), "nor at a later start"


def test_a_key_that_the_log_has_not_reached_yet_stays_believed_while_older_ones_come(node: Node) -> None:
    node.start(NEWEST, KEYS[2])
    node.follow(known_by(KEYS[0], NEW, KEYS[2]), known_by(KEYS[0], NEWER, KEYS[2]), commit_index=2)
    assert node.lets_in[1] == (NEWER, NEWEST), "or it would lose the link that brings the rest"
    node.follow(known_by(KEYS[0], NEWEST, KEYS[2]), commit_index=3)
    assert node.lets_in[1] == (NEWEST,)


def test_a_key_that_was_never_committed_was_not_replaced(node: Node) -> None:
    node.start(NEW, KEYS[2])
    node.follow(known_by(KEYS[0], NEW, KEYS[2]), known_by(*KEYS), commit_index=0)
    assert node.lets_in[1] == (KEYS[1], NEW)


def test_the_file_of_the_first_day_that_was_put_back_lets_nobody_in_by_a_retired_key(node: Node) -> None:
    node.start(NEW, KEYS[2])
    node.follow(known_by(KEYS[0], NEW, KEYS[2]), commit_index=1)
    node.start(*KEYS[1:])
    assert node.lets_in[1] == (NEW,)


def test_a_key_under_the_wrong_member_or_under_two_proves_nobody(node: Node) -> None:
    node.start(KEYS[1], KEYS[1])
    assert node.lets_in == {node_id: (key,) for node_id, key in enumerate(KEYS)}
    node.start(NEW, NEW)
    assert node.lets_in == {node_id: (key,) for node_id, key in enumerate(KEYS)}
