"""Whoever asks for a snapshot gets one of no less than was acknowledged before, or is told why not."""

from __future__ import annotations

from typing import Any

import pytest

from actorraft import codec
from actorraft.errors import NoRoom
from actorraft.node.driver import MessageEvent
from actorraft.node.executor import SnapshotFailed, TakeSnapshot
from actorraft.raft.messages import AppendEntries
from tests.node.helpers import Node


def ask(node: Node, request_id: int) -> None:
    node.say("operator", codec.Admin(request_id, "snapshot", {}))


def replies(node: Node) -> list[codec.AdminReply]:
    return node.clients.of("operator", codec.AdminReply)


def busy() -> Node:
    node = Node().lead()
    node.call("emit")
    node.steps.at_once = False
    return node


@pytest.mark.parametrize("later", [1, 3])
def test_one_that_is_under_way_is_not_enough_for_what_was_acknowledged_after_it_began(later: int) -> None:
    node = busy()
    ask(node, 1)
    before = node.control.snapshots.handed_index
    [take] = node.steps.work
    node.steps.work.clear()
    for _ in range(later):
        node.call("emit")
    node.settle()
    ask(node, 2)
    node.steps.done.append(node.steps.executor.run(take) if later == 0 else _taken(take, before))
    node.control.process_events(())
    assert [(1, before)] == [(reply.request_id, reply.value) for reply in replies(node)]

    node.settle()
    assert (2, before + later) == (replies(node)[1].request_id, replies(node)[1].value)


def _taken(take: Any, index: int) -> Any:
    from actorraft.node.executor import SnapshotTaken

    take.writer.write(b"state")
    meta = take.writer.commit()
    assert meta.snapshot_id.index == index
    return SnapshotTaken(meta)


def test_askers_for_what_there_is_already_are_answered_with_its_index() -> None:
    node = Node().lead()
    node.call("emit")
    last = node.control.server.log.last_index
    for request_id in range(3):
        ask(node, request_id)
    assert [(number, "", last) for number in range(3)] == [
        (one.request_id, one.error, one.value) for one in replies(node)
    ]


@pytest.mark.parametrize("how", ["at once", "later"])
def test_when_none_can_be_taken_its_askers_are_told_why(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node = busy()
    if how == "at once":

        def full(*_: Any) -> Any:
            raise NoRoom("no space left on device")

        monkeypatch.setattr(node.control.storage, "begin_snapshot", full)
    ask(node, 1)
    if how == "later":
        assert isinstance(node.steps.work.pop(), TakeSnapshot)
        node.steps.done.append(SnapshotFailed("no space left on device"))
        node.control.process_events(())
    [reply] = replies(node)
    assert "no space left on device" in reply.error


def test_a_failed_one_is_tried_again_for_those_who_ask_for_more_than_it_had() -> None:
    node = busy()
    ask(node, 1)
    node.steps.work.clear()
    node.call("emit")
    node.settle()
    ask(node, 2)
    node.steps.done.append(SnapshotFailed("the machine says no"))
    node.control.process_events(())
    assert [1] == [reply.request_id for reply in replies(node)]
    node.settle()
    assert (2, "") == (replies(node)[1].request_id, replies(node)[1].error)


def test_a_leader_that_cannot_know_what_was_acknowledged_takes_none() -> None:
    node = Node(members=3).lead()
    ask(node, 1)
    node.control.process_event(MessageEvent(AppendEntries(1, 0, 9, -1, -1, [], -1)))
    assert [codec.AdminReply(1, "not leader", None)] == replies(node)
