"""Reads at a node: each runs once, waits for what it must and no longer, and for its turn."""

from __future__ import annotations

from typing import Any

import pytest

from actorraft import NotYet, codec, query
from actorraft.node import reads
from actorraft.node.driver import MessageEvent
from actorraft.node.executor import Apply, Read
from actorraft.ports import GONE
from actorraft.raft.messages import AppendEntries, InstallSnapshot, Message
from tests.node.helpers import Node, Publisher


def busy() -> Node:
    """A node that leads, whose executor does nothing until it is told to."""
    node = Node().lead()
    node.steps.at_once = False
    return node


def reads_with_executor(node: Node) -> list[tuple[Any, int]]:
    return [(work.client, work.query.request_id) for work in node.steps.work if isinstance(work, Read)]


# --- Once ---


@pytest.mark.parametrize("consistency", ["linearizable", "lease", "stale"])
@pytest.mark.parametrize("pieces", [0, 1])
def test_a_read_that_is_asked_again_while_it_waits_or_runs_runs_once(consistency: str, pieces: int) -> None:
    node = busy()
    node.read("other", 1)
    for _ in range(5):
        node.read("reader", 1, consistency=consistency)
    node.settle(pieces)
    node.read("reader", 1, consistency=consistency)
    node.settle()

    assert [1] == [answer.request_id for answer in node.clients.of("reader", codec.Answers)]
    assert 2 == node.steps.executor.host.machine.asked  # with the other client's of the same number


def test_a_read_may_have_the_number_of_one_that_was_answered() -> None:
    node = Node().lead()
    for _ in range(3):
        node.read("reader", 1)
    assert 3 == len(node.clients.of("reader", codec.Answers))


def test_an_answer_that_found_the_clients_queue_full_is_refused_by_name_when_there_is_room() -> None:
    node = Node().lead()
    node.clients.full["reader"] = False
    node.read("reader", 1)
    node.tick()
    node.clients.full.clear()
    node.tick()
    node.tick()

    assert [codec.QueryRefused(1, "busy", 0)] == node.clients.of("reader", codec.QueryRefused)
    node.read("reader", 1)
    assert [0] == node.clients.of("reader", codec.Answers)[0].values


# --- Waiting for an index ---


@pytest.mark.parametrize("consistency", ["linearizable", "lease", "stale"])
def test_a_read_waits_until_the_state_has_the_index_that_it_asks_for(consistency: str) -> None:
    node = Node().lead()
    last = node.control.server.log.last_index
    node.read("reader", 1, consistency=consistency, min_index=last + 2)
    node.call("emit")
    assert [] == node.clients.of("reader", codec.Answers)
    node.call("emit")
    assert [[2]] == [answer.values for answer in node.clients.of("reader", codec.Answers)]


def test_results_say_the_index_of_their_entry_and_so_does_a_repetition() -> None:
    node = Node().lead()
    node.call("emit")
    node.sequence -= 1
    node.call("emit")
    first, again = node.clients.of("writer", codec.Results)
    assert first == again
    assert first.index == node.control.server.log.last_index - 1


def test_a_read_of_an_index_that_never_comes_is_let_go_when_its_asker_has_given_up() -> None:
    node = Node().lead()
    node.read("reader", 1, min_index=10_000, wait_s=5.0)
    node.read("patient", 1, min_index=10_000)
    node.tick(5.5)
    node.read("reader", 1, min_index=0)

    assert [[0]] == [answer.values for answer in node.clients.of("reader", codec.Answers)]
    node.tick(reads.WAIT_S)
    assert [codec.QueryRefused(1, "not yet", 0)] == node.clients.of("patient", codec.QueryRefused)


@pytest.mark.parametrize("follower", [True, False])
def test_at_a_change_of_leader_reads_that_go_to_the_leader_are_refused_and_others_wait_on(follower: bool) -> None:
    node = Node(members=3).lead()
    node.read("reader", 1, consistency="stale", follower=follower, min_index=3)
    node.control.process_event(MessageEvent(AppendEntries(1, 0, 9, -1, -1, [], -1)))

    refused = [] if follower else [codec.QueryRefused(1, "not leader", 1)]
    assert refused == node.clients.of("reader", codec.QueryRefused)


# --- An index that comes inside a snapshot ---


def deliver(nodes: list[Node], lost: Any = lambda message: False) -> None:
    for _ in range(100):
        messages: list[Message] = [message for node in nodes for message in node.control.outgoing]
        for node in nodes:
            node.control.outgoing.clear()
        for message in messages:
            if not lost(message):
                nodes[message.dest].control.process_event(MessageEvent(message))
        if not messages:
            return


@pytest.mark.parametrize("fields", [{}, {"min_index": 8}, {"consistency": "stale", "min_index": 8}])
def test_a_followers_read_is_served_when_its_index_comes_inside_a_snapshot(fields: dict[str, Any]) -> None:
    nodes = [Node(node_id, members=3) for node_id in range(3)]
    nodes[0].control.become_leader()
    deliver(nodes)

    def to_2(message: Message) -> bool:
        return message.dest == 2 and (
            isinstance(message, InstallSnapshot) or (isinstance(message, AppendEntries) and bool(message.entries))
        )

    nodes[0].say("writer", codec.Register(7))
    deliver(nodes, to_2)
    nodes[0].session = nodes[0].clients.of("writer", codec.Registered)[0].client_id
    for _ in range(8):
        nodes[0].call("emit")
        deliver(nodes, to_2)
    nodes[2].read("reader", 1, follower=True, **fields)
    deliver(nodes, to_2)
    nodes[0].control.snapshots.begin()
    nodes[0].control.process_events(())
    assert [] == nodes[2].clients.of("reader", codec.Answers)

    for _ in range(40):
        nodes[0].tick(0.01)
        deliver(nodes)

    assert [[8]] == [answer.values for answer in nodes[2].clients.of("reader", codec.Answers)]


# --- In turn, and bounded ---


def test_one_clients_many_reads_do_not_keep_another_clients_waiting() -> None:
    node = busy()
    for request_id in range(500):
        node.read("greedy", request_id)
    node.read("modest", 1)
    asked = 0
    while not node.clients.of("modest", codec.Answers):
        node.settle(1)
        asked += 1
    assert asked <= reads.AT_ONCE + 2


def test_commands_pass_reads_that_wait_for_their_turn() -> None:
    node = busy()
    for request_id in range(500):
        node.read("greedy", request_id)
    node.call("emit")
    [place] = [place for place, work in enumerate(node.steps.work) if isinstance(work, Apply)]
    assert place <= reads.AT_ONCE


def test_frames_of_many_reads_go_to_the_executor_one_at_a_time() -> None:
    node = busy()
    for request_id in range(10):
        node.read("greedy", request_id, count=reads.AT_ONCE_CALLS)
    assert [("greedy", 0)] == reads_with_executor(node)
    node.settle()
    assert [("greedy", 1)] == reads_with_executor(node)


def test_over_the_bounds_reads_are_busy_and_the_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    node = busy()
    monkeypatch.setattr(reads, "CLIENT_READS_MAX", 20)
    monkeypatch.setattr(reads, "READS_MAX", 30)
    for request_id in range(25):
        node.read("greedy", request_id)
    assert 5 == len(node.clients.of("greedy", codec.QueryRefused))
    for request_id in range(15):
        node.read("modest", request_id)
    assert {"busy"} == {refused.reason for refused in node.clients.of("modest", codec.QueryRefused)}
    for _ in range(10):
        node.settle()
    assert (20, 10) == tuple(len(node.clients.of(client, codec.Answers)) for client in ("greedy", "modest"))
    node.read("modest", 99)
    node.settle()
    assert 11 == len(node.clients.of("modest", codec.Answers))


def test_reads_are_bounded_by_their_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "READS_BYTES_MAX", 10_000)
    node = Node().lead()
    node.read("reader", 1, "count", "x" * 9_000, min_index=1_000)
    node.read("reader", 2, "count", "x" * 9_000, min_index=1_000)
    assert [2] == [refused.request_id for refused in node.clients.of("reader", codec.QueryRefused)]


# --- Waiting for the machine ---


class Later(Publisher):
    """Has nothing to say before there is enough."""

    @query
    def at_least(self, count: int) -> int:
        self.asked += 1
        if self.n < count:
            raise NotYet(f"{self.n} of {count}")
        return self.n


@pytest.mark.parametrize("consistency", ["linearizable", "lease", "stale"])
def test_a_read_that_the_machine_cannot_answer_yet_is_asked_again_after_each_entry_and_answered_once(
    consistency: str,
) -> None:
    node = Node(machine=Later).lead()
    node.read("reader", 1, "at_least", 2, consistency=consistency, parks=True, wait_s=10.0)
    asked = node.steps.executor.host.machine.asked
    for _ in range(5):
        node.tick(0.1)
    assert (node.clients.of("reader", codec.Answers), node.steps.executor.host.machine.asked) == ([], asked)
    node.call("emit")
    assert node.clients.of("reader", codec.Answers) == []
    node.call("emit")
    node.call("emit")
    assert [[2]] == [answer.values for answer in node.clients.of("reader", codec.Answers)]


def test_reads_that_came_together_are_answered_at_once_those_that_must_wait_by_name() -> None:
    node = Node(machine=Later).lead()
    node.read("reader", 1, "at_least", 2, count=2, wait_s=10.0)
    assert [[codec.NOT_YET] * 2] == [answer.values for answer in node.clients.of("reader", codec.Answers)]


def test_a_read_waits_for_the_machine_no_longer_than_its_asker_and_takes_nobodys_turn() -> None:
    node = Node(machine=Later).lead()
    for number in range(reads.AT_ONCE + 5):
        node.read("reader", number, "at_least", 2, parks=True, wait_s=1.0)
    node.read("other", 1)
    assert [[0]] == [answer.values for answer in node.clients.of("other", codec.Answers)]
    node.tick(2.0)
    node.call("emit", 2)
    assert node.clients.of("reader", codec.Answers) == []


# --- Nobody waits for them any more ---


@pytest.mark.parametrize("consistency", ["linearizable", "stale"])
def test_reads_of_a_client_that_is_gone_are_let_go_of(consistency: str) -> None:
    node = Node().lead()
    last = node.control.server.log.last_index
    for request_id in range(3):
        node.read("gone", request_id, consistency=consistency, min_index=last + 1)
    node.read("there", 1, consistency=consistency, min_index=last + 1)
    node.clients.full["gone"] = GONE
    node.clock.now_s += 1.0
    node.tick()

    assert 1 == len(node.control.requests._reads)
    node.call("emit")
    assert [1] == [answer.request_id for answer in node.clients.of("there", codec.Answers)]


def test_of_many_clients_that_wait_each_is_looked_at_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "LOOKS", 2)
    node = Node().lead()
    last = node.control.server.log.last_index
    for client in range(5):
        node.read(client, 1, min_index=last + 1)
    node.clients.full[4] = GONE
    for _ in range(3):
        node.clock.now_s += 1.0
        node.tick()

    assert 4 == len(node.control.requests._reads)
