"""By which code the log is applied, as a leader decides it: for whom it waits, for how long, and what it says of that."""

from __future__ import annotations

import logging
from collections import deque
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from actorraft import RaftConfig, codec, command
from actorraft.node.driver import ClientEvent, ConnectEvent, DisconnectEvent, Driver, MessageEvent, TickEvent
from actorraft.node.executor import Executor
from actorraft.node.host import MachineHost
from actorraft.node.rules import Rules
from actorraft.node.work import Applied, Apply, Stopped
from actorraft.raft.log import RaftLog
from actorraft.raft.messages import Compared, Configuration, EntryId, LogEntry, Message
from actorraft.raft.ready import LeaderState
from actorraft.storage.memory import MemoryStorage
from tests.node.helpers import Clients, Clock, Publisher, Steps

OLD, NEW, OTHER = codec.Code(1, "aaaaaaaa"), codec.Code(2, "bbbbbbbb"), codec.Code(2, "cccccccc")


class Leader:
    """A node that leads its first term, of three; what it appends is in its log at once."""

    def __init__(self, *items: Any) -> None:
        self.node_id, self.state, self.current_term = 0, LeaderState, 1
        self.configuration = Configuration(voters=frozenset({0, 1, 2}), next_node_id=3)
        self.log = RaftLog([LogEntry(1, None), *(LogEntry(1, codec.stamp(0.0, codec.encode(item))) for item in items)])
        self.snapshot_id = EntryId(-1, -1)
        self.transfer_target = None
        self.committed_in_own_term = True
        self.unfit: frozenset[int] = frozenset()
        self.proposed: list[Any] = []

    def propose(self, item: bytes, *, bounded: bool = True) -> int:
        self.proposed.append(codec.decode_request(codec.unstamp(item)[1]))
        self.log = RaftLog([*self.log.between(0, len(self.log)), LogEntry(1, item)])
        return len(self.log) - 1


def log_time() -> Any:
    return SimpleNamespace(now_s=lambda: 0.0, restoring=False)


def rules_of(leader: Leader, replay_from: int | None = 1) -> Rules:
    return Rules(leader, log_time(), NEW, replay_from=replay_from)  # type: ignore[arg-type]


def says(rules: Rules, node_id: int, code: codec.Code, python: str = "") -> None:
    rules.hear(node_id, codec.Greeting(code=(code.version, code.fingerprint), wire=codec.WIRE, python=python))


@pytest.mark.parametrize(
    ("came_into_force", "mine", "waits"),
    [
        (codec.Code(1, NEW.fingerprint), OLD, ""),  # its step failed, and the older code is back
        (codec.Code(1, NEW.fingerprint), NEW, ""),  # or the step is to be tried again
        (NEW, OLD, "commands are applied by machine_version 2, and this node runs 1"),
    ],
)
def test_what_the_log_says_below_a_snapshot_is_what_came_of_it(
    came_into_force: codec.Code, mine: codec.Code, waits: str
) -> None:
    leader = Leader(OLD, NEW)
    time = log_time()
    time.restoring = True
    rules = Rules(leader, time, mine, compares=False)  # type: ignore[arg-type]
    assert not rules.may_append()
    leader.snapshot_id = EntryId(2, 1)
    time.restoring = False
    rules.restored(came_into_force, 2)
    for node_id in (1, 2):
        says(rules, node_id, mine)
    assert rules.look().startswith(waits)
    assert bool(rules.look()) is bool(waits)
    assert rules.may_append() is not bool(waits)
    assert leader.proposed == ([] if waits else [mine])


def test_a_log_is_computed_anew_as_soon_as_a_majority_runs_the_code_and_whoever_is_missing_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    leader = Leader(OLD)
    rules = rules_of(leader)
    with caplog.at_level(logging.WARNING, logger="actorraft"):
        rules.tick()
    assert leader.proposed == []
    assert not rules.may_append()
    assert "not yet: nodes [1, 2]" in rules.waiting
    assert rules.waiting in caplog.text
    says(rules, 1, NEW)
    rules.tick()
    assert leader.proposed == [codec.Replay(1, NEW.version, NEW.fingerprint)]
    assert rules.waiting == ""
    assert rules.may_append()


def test_a_log_is_not_computed_anew_while_somebody_who_is_linked_runs_other_code() -> None:
    leader = Leader(OLD)
    rules = rules_of(leader)
    says(rules, 1, NEW)
    says(rules, 2, OTHER)
    rules.tick()
    assert leader.proposed == []
    assert "not yet: nodes [2]" in rules.waiting
    says(rules, 2, NEW)
    rules.tick()
    assert leader.proposed == [codec.Replay(1, NEW.version, NEW.fingerprint)]


def test_who_may_take_no_commands_hands_over_to_a_member_and_to_nobody_who_was_removed() -> None:
    leader = Leader(OTHER)
    handed_to: list[int] = []
    leader.transfer_leadership = handed_to.append  # type: ignore[attr-defined]
    rules = rules_of(leader, replay_from=None)
    says(rules, 2, OTHER)
    leader.configuration = Configuration(voters=frozenset({0, 2}), next_node_id=3)
    says(rules, 1, OTHER)  # it is heard until it knows that it was removed
    rules.tick()
    assert handed_to == [2]


# --- Three nodes ---


class Tens(Publisher):
    """Counts in tens, and says nothing of a version: changed code."""

    @command
    def emit(self, events: int = 1, size: int = 0) -> int:
        self.n += 10
        return self.n


class Second(Publisher):
    """The next version, with the same rules."""

    machine_version = 1


class World:
    """Three nodes over stores that outlive them; what they send to one that is not there is lost."""

    def __init__(self, *, digest_every_s: float = 0.0) -> None:
        self.config = RaftConfig(digest_every_s=digest_every_s, check_quorum=False)
        self.lost: tuple[type[Any], ...] = ()  # messages of these kinds
        self.stores = [MemoryStorage() for _ in range(3)]
        self.clock, self.clients = Clock(), Clients()
        self.up: dict[int, Driver] = {}
        self.steps: dict[int, Steps] = {}
        self.sent: deque[Message] = deque()
        self.session = self.sequence = 0

    def start(
        self,
        node_id: int,
        code: codec.Code,
        machine: type[Any],
        replay_from: int | None = None,
        python: str = "",
    ) -> None:
        steps = self.steps[node_id] = Steps(machine)
        steps.executor = Executor(MachineHost(machine), session_expiry_s=3600.0, code=code)
        self.up[node_id] = Driver(
            SimpleNamespace(address=node_id, send=self.sent.append),
            storage=self.stores[node_id],
            executor=steps,
            clients=self.clients,
            clock=self.clock,
            config=self.config,
            configuration=Configuration(voters=frozenset({0, 1, 2}), next_node_id=3),
            code=code,
            replay_from=replay_from,
            python=python,
        )
        self.link(node_id)

    def link(self, node_id: int) -> None:
        """A node and the others hear of each other."""
        driver = self.up[node_id]
        for peer_id, peer in self.up.items():
            if peer_id != node_id:
                for one, at in ((driver, peer), (peer, driver)):
                    assert one.rules.mine is not None
                    says(at.rules, one.node_id, one.rules.mine, one.rules.interpreters.mine)
                    at.process_event(ConnectEvent(one.node_id))

    def cut_off(self, node_id: int) -> Driver:
        """A node hears nobody, and is not heard."""
        driver = self.up.pop(node_id)
        for peer_id, peer in self.up.items():
            peer.process_event(DisconnectEvent(node_id))
            driver.process_event(DisconnectEvent(peer_id))
        return driver

    def lead(self, term: int) -> None:
        self.up[0].process_event(lambda: self.up[0].server.become_leader_now(term))
        self.turn()

    def turn(self) -> None:
        """Let a second go by."""
        for _ in range(10):
            self.clock.now_s += 0.1
            for driver in list(self.up.values()):
                driver.process_event(TickEvent(1))
            while self.sent:
                message = self.sent.popleft()
                if message.dest in self.up and not isinstance(message, self.lost):
                    self.up[message.dest].process_event(MessageEvent(message))

    def say(self, request: codec.Request) -> None:
        self.up[0].process_event(ClientEvent("writer", codec.encode(request)))
        self.turn()

    def emit(self) -> None:
        if not self.session:
            self.say(codec.Register(7))
            self.session = self.clients.of("writer", codec.Registered)[0].client_id
        body = codec.join_body([msgspec.msgpack.encode(["emit"])])
        self.say(codec.Commands(self.session, self.sequence, self.sequence, 1, body))
        self.sequence += 1

    def stop(self) -> None:
        self.up.clear()
        self.sent.clear()

    def counts(self) -> dict[int, int]:
        return {node_id: self.steps[node_id].executor.host.machine.n for node_id in sorted(self.up)}


@pytest.mark.parametrize("comes", ["in the same run", "in a later one"])
def test_who_was_away_while_a_log_was_computed_anew_computes_it_anew_as_well(comes: str) -> None:
    world = World()
    before, after = codec.Code(0, "aaaaaaaa"), codec.Code(0, "bbbbbbbb")
    for node_id in range(3):
        world.start(node_id, before, Publisher)
    world.lead(1)
    for _ in range(3):
        world.emit()
    assert world.counts() == {0: 3, 1: 3, 2: 3}
    world.stop()
    for node_id in (0, 1):
        world.start(node_id, after, Tens, replay_from=0)
    world.lead(2)
    world.emit()
    assert world.counts() == {0: 40, 1: 40}
    if comes == "in the same run":
        world.start(2, after, Tens, replay_from=0)
    else:
        world.stop()
        for node_id in range(3):
            world.start(node_id, after, Tens)
        world.lead(3)
    world.emit()
    assert world.counts() == {0: 50, 1: 50, 2: 50}


def test_a_node_that_computed_a_log_by_one_code_stops_where_the_log_says_another() -> None:
    executor = Executor(MachineHost(Tens), session_expiry_s=3600.0, code=NEW)
    said = [codec.Register(7), codec.Replay(0, NEW.version, NEW.fingerprint)]
    first = [LogEntry(1, codec.stamp(0.0, codec.encode(one))) for one in said]
    assert isinstance(executor.run(Apply(0, first, True)), Applied)
    again = LogEntry(2, codec.stamp(0.0, codec.encode(codec.Replay(0, OTHER.version, OTHER.fingerprint))))
    done = executor.run(Apply(2, [again], True))
    assert isinstance(done, Stopped)
    assert "computed anew by other code" in done.reason


def test_checks_that_a_switch_waits_for_come_fast_for_a_moment_only_and_then_still_come() -> None:
    """A follower that holds answers none of them: an idle cluster must not fill its log meanwhile."""
    world = World(digest_every_s=30.0)
    for node_id in range(3):
        world.start(node_id, codec.Code(0, "a" * 32), Publisher)
    world.lead(1)
    world.emit()
    world.stop()
    world.lost = (Compared,)
    for node_id in range(3):
        world.start(node_id, codec.Code(1, "b" * 32), Second)
    world.lead(2)
    log = world.up[0].server.log
    for _ in range(2):
        world.turn()
    before = log.last_index
    for _ in range(30):
        world.turn()
    assert 20 <= log.last_index - before <= 31
    assert "takes effect once nodes [1, 2] are found equal" in world.up[0].rules.waiting
    world.lost = ()
    for _ in range(3):
        world.turn()
    assert world.up[0].rules.waiting == ""
