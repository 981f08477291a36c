"""`add_node` and `transfer_leadership` failed at once, whatever their timeout, if the leader died while it was asked."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from actorraft.client.administration import ask_leader
from actorraft.client.bell import Bell
from actorraft.client.requests import NodeDoesNotLead, NodeRefused, NodeSilent
from actorraft.futures import ResultFuture


class Asking:
    """A client's thread whose leaders, and what they answer, are written down beforehand."""

    closed = False

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.answers = deque(answers)
        self.changed = Bell()

    def ready(self) -> None:
        pass

    @property
    def leader(self) -> int | None:
        return self.answers[0][0] if self.answers else None

    def admin(self, node_id: int, verb: str, arguments: dict[str, Any], timeout: float) -> ResultFuture[Any]:
        leader, answer = self.answers.popleft()
        assert node_id == leader
        future: ResultFuture[Any] = ResultFuture()
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return future


def test_the_next_leader_is_asked_if_one_dies_without_an_answer():
    thread: Any = Asking((1, NodeSilent("node 1 is gone")), (2, NodeDoesNotLead("not leader")), (3, {"term": 7}))

    assert ask_leader(thread, "status", {}, 5.0) == {"term": 7}


def test_a_leader_that_refuses_is_not_asked_again():
    thread: Any = Asking((1, NodeRefused("another change is under way")), (2, {}))

    with pytest.raises(NodeRefused, match="another change"):
        ask_leader(thread, "change_membership", {}, 5.0)
