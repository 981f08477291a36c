"""When a node takes what its log says for its removal: never before it has been a member."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actorraft.node.members import Members
from actorraft.raft.messages import Configuration, Member
from actorraft.raft.ready import FollowerState

BEFORE = Configuration(voters=frozenset({0, 1, 2}), next_node_id=3)
WITH = Configuration(voters=frozenset({0, 1, 2}), learners=frozenset({3}), next_node_id=4)
AFTER = Configuration(voters=frozenset({0, 1, 2}), next_node_id=4)


@pytest.fixture
def hears(tmp_path: Path) -> Callable[..., bool]:
    """Have node 3 hear of a configuration at an index; return whether it takes itself for removed."""
    server = SimpleNamespace(
        configuration=Configuration(),
        configurations=[(-1, None)],
        commit_index=-1,
        state=FollowerState,
        probation=None,
        progress={},
    )
    rules = SimpleNamespace(mine=None, interpreters=SimpleNamespace(mine="3.11"))
    requests = SimpleNamespace(endpoints=[])
    driver: Any = SimpleNamespace(server=server, rules=rules, requests=requests, refused={})
    mailbox: Any = SimpleNamespace(judge=None, introduce=lambda _: None, incarnation=b"\xff")
    spec: Any = SimpleNamespace(node_id=3, keys=None, seeds={}, directory=tmp_path, advertise=("here:1", "here:2"))
    members = Members(driver, mailbox, spec, lambda _: None)

    def hears(configuration: Configuration, index: int, commit_index: int) -> bool:
        server.configuration, server.commit_index = configuration, commit_index
        server.configurations = [(index, configuration)]
        members.follow()
        return members.removed

    return hears


def test_a_log_that_has_not_come_to_where_this_node_joins_is_no_removal(hears: Callable[..., bool]) -> None:
    assert not hears(BEFORE, 0, 90)
    assert not hears(WITH, 100, 90)
    assert not hears(WITH, 100, 100)


def test_a_removal_counts_once_it_is_committed(hears: Callable[..., bool]) -> None:
    assert not hears(WITH, 100, 100)
    assert not hears(AFTER, 200, 199)
    assert hears(AFTER, 200, 200)


def test_a_removal_is_known_from_the_log_alone(hears: Callable[..., bool]) -> None:
    assert hears(AFTER, 200, 200)


def test_who_was_removed_is_dialled_as_long_as_it_is_fed(tmp_path: Path) -> None:
    key = {node_id: str(node_id) * 40 for node_id in range(4)}
    roster = tuple(Member(node_id, key[node_id], f"host{node_id}:1", f"host{node_id}:2") for node_id in range(4))
    server = SimpleNamespace(
        configuration=WITH._replace(roster=roster),
        configurations=[(5, WITH)],
        commit_index=5,
        state=FollowerState,
        probation=None,
        progress={1: "", 2: "", 3: ""},
    )
    rules = SimpleNamespace(mine=None, interpreters=SimpleNamespace(mine="3.11"))
    driver: Any = SimpleNamespace(server=server, rules=rules, requests=SimpleNamespace(endpoints=[]), refused={})
    keys: list[dict[int, Any]] = []
    mailbox: Any = SimpleNamespace(
        judge=None, introduce=lambda _: None, incarnation=b"\xff", set_keys=lambda members, _: keys.append(members)
    )
    spec: Any = SimpleNamespace(
        node_id=0, keys=SimpleNamespace(members={}), seeds={}, directory=tmp_path, advertise=("host0:1", "host0:2")
    )
    peers: list[dict[int, str]] = []
    members = Members(driver, mailbox, spec, peers.append)

    server.configuration = AFTER._replace(roster=roster[:3])
    members.follow()
    assert peers[-1][3] == "tcp://host3:1"
    assert keys[-1][3] == (key[3],)
    assert [row[0] for row in driver.requests.endpoints] == [0, 1, 2], "clients are not sent there"
    del server.progress[3]
    members.follow()
    assert sorted(peers[-1]) == sorted(keys[-1]) == [0, 1, 2]
