"""Under which Python commands are applied, and what a node of another one does: it stores and votes only."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from actorraft import codec
from actorraft.node import admission
from actorraft.node.interpreters import Interpreters, named
from actorraft.raft import roster
from actorraft.raft.errors import ProposalRefused
from actorraft.raft.messages import Configuration, StateWanted, Token
from actorraft.raft.ready import LeaderState
from tests.node.helpers import Publisher
from tests.node.test_rules import World as Nodes
from tests.node.test_rules import says

CODE = codec.Code(0, "aaaaaaaa")


class World(Nodes):
    """Three nodes that run what is said, node 0 in front."""

    def __init__(self, *pythons: str) -> None:
        super().__init__()
        for node_id, python in enumerate(pythons):
            self.run(node_id, python)
        self.lead(1)

    def run(self, node_id: int, python: str) -> None:
        """Start a node, or start it again."""
        if node_id in self.up:
            self.cut_off(node_id)
        self.start(node_id, CODE, Publisher, python=python)

    def turns(self, count: int = 4) -> None:
        for _ in range(count):
            self.turn()

    def leader(self) -> int:
        return max((one.server.current_term, at) for at, one in self.up.items() if one.server.state is LeaderState)[1]

    def ruling(self) -> set[Any]:
        return {dict(one.server.configuration.settings).get("python") for one in self.up.values()}


def test_a_node_under_another_python_stores_and_votes_applies_nothing_and_says_which_both_are() -> None:
    world = World("3.11", "3.11", "3.12")
    for _ in range(3):
        world.emit()

    assert world.counts() == {0: 3, 1: 3, 2: 0}
    held = world.up[2]
    assert held.server.log.last_index == world.up[0].server.log.last_index
    assert held.server.foreign
    assert "applied under Python 3.11, as nodes [0, 1] run, and this node runs 3.12" in held.status()["error"]

    world.cut_off(1)  # its copy counts
    world.emit()
    assert world.counts() == {0: 4, 2: 0}


def test_it_goes_on_under_the_python_of_the_cluster() -> None:
    world = World("3.11", "3.11", "3.12")
    world.emit()
    world.run(2, "3.11")
    world.emit()

    assert world.counts() == {0: 2, 1: 2, 2: 2}
    assert world.up[2].status()["error"] is None


def test_nodes_that_are_started_anew_one_by_one_go_over_when_the_last_one_was() -> None:
    world = World("3.11", "3.11", "3.11")
    world.emit()
    world.run(2, "3.12")
    world.emit()
    world.run(1, "3.12")
    world.emit()
    assert world.counts() == {0: 3, 1: 0, 2: 0}
    assert world.ruling() == {'"3.11"'}

    world.run(0, "3.12")
    world.lead(9)
    world.turns()
    world.emit()
    assert world.ruling() == {'"3.12"'}
    assert world.counts() == {0: 4, 1: 4, 2: 4}
    assert [one.status()["error"] for one in world.up.values()] == [None, None, None]


def test_after_a_stop_of_all_a_majority_goes_over_and_who_comes_late_under_the_old_one_holds() -> None:
    world = World("3.11", "3.11", "3.11")
    world.emit()
    world.stop()
    for node_id in (0, 1):
        world.run(node_id, "3.12")
    world.lead(9)
    world.turns()
    world.emit()
    world.run(2, "3.11")
    world.emit()

    assert world.counts() == {0: 3, 1: 3, 2: 0}
    assert "applied under Python 3.12, as nodes [0, 1] run" in world.up[2].status()["error"]


def test_a_node_that_was_cut_off_while_the_others_went_over_applies_nothing_of_theirs() -> None:
    world = World("3.11", "3.11", "3.11")
    world.emit()
    old = world.cut_off(2)
    for node_id in (0, 1):
        world.run(node_id, "3.12")
    world.lead(9)
    world.turns()
    world.emit()

    world.up[2] = old
    world.link(2)
    world.turns()
    world.emit()
    assert world.counts() == {0: 3, 1: 3, 2: 1}
    assert old.server.log.last_index == world.up[0].server.log.last_index
    assert "this node runs 3.11" in old.status()["error"]


def test_a_leader_under_another_python_takes_no_commands_and_hands_over() -> None:
    world = World("3.11", "3.11", "3.11")
    world.emit()
    world.run(0, "3.12")
    world.lead(9)
    assert not world.up[0].rules.may_append()
    world.turns()

    assert world.leader() in (1, 2)
    assert world.up[world.leader()].rules.may_append()


def test_it_asks_another_one_each_time_since_one_may_not_take_over() -> None:
    asked: list[int] = []
    voters = frozenset({0, 1, 2})
    server: Any = SimpleNamespace(
        node_id=0, state=LeaderState, committed_in_own_term=True, transfer_target=None, voters=voters,
        configuration=named(Configuration(voters=voters), "3.11"), transfer_leadership=asked.append,
    )  # fmt: skip
    interpreters = Interpreters(server, "3.12")
    for node_id in (1, 2):
        interpreters.hear(node_id, "3.11")
    for _ in range(3):
        interpreters.tick()
    assert asked == [1, 2, 1]


def test_what_was_applied_under_another_python_is_taken_from_the_leader_and_not_computed_again() -> None:
    world = World("3.11", "3.11", "3.11")
    world.run(2, "3.12")
    world.emit()
    asked: list[Any] = []
    for node_id in (0, 1):
        world.run(node_id, "3.12")
    send = world.up[2].net.send
    world.up[2].net.send = lambda message: (asked.append(type(message)), send(message))  # type: ignore[func-returns-value]
    world.lead(9)
    world.turns()

    assert StateWanted in asked
    assert world.counts() == {0: 1, 1: 1, 2: 1}


def test_a_log_that_says_no_python_is_every_ones_until_a_leader_says_its_own() -> None:
    world = World("", "", "")
    world.emit()
    assert world.ruling() == {None}
    for node_id in range(3):
        world.run(node_id, "3.12")
    world.lead(9)
    world.turns()
    world.emit()

    assert world.ruling() == {'"3.12"'}
    assert world.counts() == {0: 2, 1: 2, 2: 2}


def test_a_learner_under_another_python_is_not_fit_to_be_promoted() -> None:
    world = World("3.11", "3.11", "3.11")
    world.emit()
    world.run(2, "3.12")
    world.turns()
    assert world.up[world.leader()].server.unfit == {2}

    world.run(2, "3.11")
    assert world.up[world.leader()].server.unfit == set()


def test_who_joins_under_another_python_keeps_nobody_else_from_joining() -> None:
    world = World("3.11", "3.11", "3.11")
    world.emit()
    leader = world.up[0]

    def join(number: int) -> int:
        token = Token(f"token {number}", until_s=1e9)
        leader.process_event(lambda: leader.server.annotate(roster.issue(leader.server.configuration, token, 0.0)))
        world.turn()
        own = {"public_key": f"{number:040d}", "storage_id": f"{number:032x}", "peer": "", "client": ""}
        return int(admission.join(leader.server, 0.0, {"token": token.public_key, **own})["node_id"])

    assert join(1) == 3
    world.turn()
    with pytest.raises(ProposalRefused, match="node 3 is catching up"):
        join(2)
    says(leader.rules, 3, CODE, "3.12")
    world.turn()
    assert join(3) == 4


def test_its_log_may_be_the_only_one_that_is_long_enough_and_then_it_leads_for_as_long_as_that_takes() -> None:
    world = World("3.11", "3.11", "3.12")
    world.emit()
    away = world.cut_off(1)
    world.emit()
    world.cut_off(0)
    world.up[1] = away
    world.link(1)
    world.turns(20)

    assert world.leader() == 1
    assert away.rules.may_append()
    assert world.counts() == {1: 2, 2: 0}


def test_who_was_of_another_version_is_fit_once_that_is_the_clusters() -> None:
    world = World("3.11", "3.11", "3.11")
    world.emit()
    world.stop()
    for node_id in (0, 1, 2):
        world.run(node_id, "3.12")
    leader = world.up[0]
    leader.process_event(lambda: leader.server.become_leader_now(9))
    leader.rules.lost(1)  # this leader's term begins before a majority has said what it runs
    leader.rules.lost(2)
    world.turn()
    assert world.ruling() == {'"3.11"'}
    for node_id in (1, 2):
        says(leader.rules, node_id, CODE, "3.12")
    assert leader.server.unfit == {1, 2}
    world.turn()

    assert world.ruling() == {'"3.12"'}
    assert leader.server.unfit == set()


def test_where_nobody_runs_the_clusters_version_one_that_says_nothing_leads_and_takes_commands() -> None:
    world = World("3.11", "3.11", "")
    world.emit()
    for node_id in (0, 1):
        world.run(node_id, "3.12")
    world.lead(9)
    world.turns()

    assert world.leader() == 2
    assert world.up[2].rules.may_append()


def test_a_node_of_a_third_version_keeps_a_majority_from_nothing() -> None:
    world = World("3.11", "3.11", "3.11")
    world.emit()
    world.stop()
    for node_id, python in enumerate(("3.12", "3.12", "3.13")):
        world.run(node_id, python)
    world.lead(9)
    world.turns()
    world.emit()

    assert world.leader() == 0, "it hands over to nobody meanwhile"
    assert world.ruling() == {'"3.12"'}
    assert world.counts() == {0: 2, 1: 2, 2: 0}
