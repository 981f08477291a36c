"""What other threads and administrators have a node's loop do: what it raises is told to them, and the loop goes on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from actorraft import codec
from actorraft.errors import CorruptionError, StorageFailed, UsageError
from actorraft.node.backups import Backups, Schedule
from actorraft.node.driver import NodeStopped
from actorraft.node.process import RaftNode
from actorraft.raft.errors import ProposalRefused
from tests.node.helpers import Node


def loop() -> RaftNode:
    """As much of a node as turns when it is woken."""
    node = object.__new__(RaftNode)
    node._orders = deque()
    node._mailbox = SimpleNamespace(wake=lambda: node._obey(*node._orders.popleft()))  # type: ignore[assignment]
    return node


def raising(error: Exception) -> Callable[[Any], object]:
    def do(put: Any) -> object:
        raise error

    return do


def test_what_the_loop_was_asked_for_and_raises_is_its_askers() -> None:
    node = loop()
    asked = []
    node._mailbox.wake = lambda: asked.append(node._obey(*node._orders.popleft()))
    with pytest.raises(ProposalRefused, match="no snapshot"):
        node._ask_loop(raising(ProposalRefused("there is no snapshot now")), 5.0)
    assert asked == [None], "nothing was raised in the loop"
    assert node._ask_loop(lambda put: put(7), 5.0) == 7
    assert node._ask_loop(lambda put: None, 0.001) is None


@pytest.mark.parametrize("error", [StorageFailed("disk"), CorruptionError("disk"), NodeStopped("machine")])
def test_what_ends_a_node_is_not_kept_from_its_loop(error: Exception) -> None:
    node = loop()
    node._mailbox.wake = lambda: None
    node._ask_loop(raising(error), 0.001)
    with pytest.raises(type(error)):
        node._obey(*node._orders.popleft())


def test_a_node_without_a_leader_and_without_anything_committed_says_so_to_whoever_wants_a_backup(
    tmp_path: Any,
) -> None:
    node = Node(members=3)

    def ask(do: Callable[[Callable[[Any], object]], object], _: float) -> Any:
        said: list[Any] = []
        node.control.process_event(lambda: do(said.append))
        return said[0] if said else None

    backups = Backups(Schedule(every_s=3600.0, directory=tmp_path / "b"), node.control, "0" * 32, ask)
    with pytest.raises(UsageError, match="nothing is committed here yet"):
        backups.write()
    assert backups.report()["error"] == "nothing is committed here yet"
    assert not (tmp_path / "b").exists()
    node.say("operator", codec.Admin(1, "snapshot", {}))
    assert node.clients.of("operator", codec.AdminReply) == [codec.AdminReply(1, "nothing is committed here yet", None)]


def test_an_administrators_request_that_is_no_number_ends_no_node() -> None:
    node = Node().lead()
    node.say("operator", codec.Admin(1, "rotate_key", {"node_id": math.inf, "public_key": "x" * 40}))
    [reply] = node.clients.of("operator", codec.AdminReply)
    assert "infinity" in reply.error
