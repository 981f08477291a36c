"""A leader that is elected before it has restored its snapshot asked for log time too soon, and the term went by the wall."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from actorraft import RaftConfig, codec
from actorraft.node.control import RaftControl
from actorraft.node.driver import ClientEvent, TickEvent
from actorraft.node.members import Members
from actorraft.raft.messages import Configuration, Token
from actorraft.raft.ready import LeaderState
from actorraft.storage.memory import MemoryStorage
from tests.node.helpers import Clients, Clock, Steps
from transports.mock import MockNetwork

TWO_DAYS_S = 2 * 86_400.0


def control(storage: MemoryStorage, clock: Clock, steps: Steps, **config: Any) -> RaftControl:
    return RaftControl(
        MockNetwork(0),
        storage=storage,
        executor=steps,
        clients=Clients(),
        clock=clock,
        config=RaftConfig(**{"digest_every_s": 0.0, "trailing_entries": 0, "check_quorum": False} | config),
        configuration=Configuration(voters=frozenset({0}), next_node_id=1),
    )


def down_for_two_days(**config: Any) -> tuple[RaftControl, Clock, Steps]:
    """Return a node that leads, while the snapshot of before, with all that was ever stamped, is yet to be restored."""
    storage, clock, steps = MemoryStorage(), Clock(), Steps()
    before = control(storage, clock, steps)
    before.become_leader()
    before.process_event(ClientEvent("writer", codec.encode(codec.Register(7))))
    before.process_event(ClientEvent("operator", codec.encode(codec.Admin(1, "snapshot", {}))))
    assert before.log_time.applied_s == 100.0
    assert len(before.server.log) == before.server.snapshot_id.index + 1, "nothing is beside the snapshot"

    clock.now_s += TWO_DAYS_S
    steps = Steps()
    steps.at_once = False
    after = control(storage, clock, steps, **config)
    after.become_leader()
    assert after.server.state is LeaderState
    return after, clock, steps


def test_who_asks_before_the_snapshot_is_restored_does_not_make_the_term_go_by_the_wall() -> None:
    node, clock, steps = down_for_two_days()
    node.log_time.now_s()
    steps.run()
    node.process_events(())

    assert node.log_time.now_s() == 100.0
    clock.now_s += 5.0
    assert node.log_time.now_s() == 105.0


def test_nothing_that_a_leader_appends_of_its_own_accord_is_stamped_before_that() -> None:
    node, clock, steps = down_for_two_days(digest_every_s=1.0)
    for _ in range(5):
        clock.now_s += 1.0
        node.process_event(TickEvent(1))
    for _ in range(5):
        steps.run()
        clock.now_s += 1.0
        node.process_event(TickEvent(1))

    assert node.server.log.last_index > node.server.snapshot_id.index + 1, "checks are appended again"
    assert node.log_time.applied_s < 110.0


@pytest.mark.parametrize("restoring", [True, False])
def test_tokens_are_looked_at_by_a_leader_that_knows_log_time_and_only_if_one_can_end(
    restoring: bool, tmp_path: Any
) -> None:
    asked: list[float] = []
    annotated: list[Configuration] = []

    class Time:
        def __init__(self) -> None:
            self.restoring = restoring

        def now_s(self) -> float:
            asked.append(50.0)
            return 50.0

    late, used = Token("late", 10.0), Token("used", 10.0, node_id=0)
    configuration = Configuration(voters=frozenset({0}), next_node_id=1, tokens=(used,))
    server = SimpleNamespace(
        configuration=configuration,
        configurations=[(0, configuration)],
        commit_index=0,
        state=LeaderState,
        probation=None,
        progress={},
        unfit=frozenset(),
        annotate=annotated.append,
    )
    clock = Clock()
    rules = SimpleNamespace(mine=None, interpreters=SimpleNamespace(mine="3.11"))
    driver: Any = SimpleNamespace(
        server=server, rules=rules, requests=SimpleNamespace(endpoints=[]), refused={}, clock=clock, log_time=Time()
    )
    mailbox: Any = SimpleNamespace(judge=None, introduce=lambda _: None, incarnation=b"\xff")
    spec: Any = SimpleNamespace(node_id=0, keys=None, seeds={}, directory=tmp_path, advertise=("here:1", "here:2"))
    members = Members(driver, mailbox, spec, lambda _: None)

    def tokens_after(*tokens: Token) -> list[tuple[Token, ...]]:
        """Return what the leader makes of these, if anything."""
        server.configuration = configuration._replace(tokens=tokens)
        annotated.clear()
        for _ in range(2):  # the first may say where it is
            clock.now_s += 1.0
            members.follow()
        return [each.tokens for each in annotated if each.tokens != tokens]

    assert tokens_after(used) == []
    assert asked == [], "one that was used does not end"
    if restoring:
        assert tokens_after(used, late) == []
        assert asked == []
    else:
        assert (used,) in tokens_after(used, late)
