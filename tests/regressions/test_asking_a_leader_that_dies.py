"""`add_node` and `transfer_leadership` failed at once, whatever their timeout, if the leader died while it was asked."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import Any

import pytest

from actorraft.client.client import Client
from actorraft.client.session import NodeSilent
from actorraft.errors import Unavailable


class Asking(Client[Any]):
    """A client whose leaders, and what they answer, are written down beforehand."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.answers = deque(answers)
        self._changed = threading.Condition()

    def wait_for_leader(self, timeout: float | None = 30.0) -> int:
        return self.answers[0][0]

    def _admin(self, node_id: int, verb: str, arguments: dict[str, Any], timeout: float) -> Future[Any]:
        leader, answer = self.answers.popleft()
        assert node_id == leader
        future: Future[Any] = Future()
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return future


def test_the_next_leader_is_asked_if_one_dies_without_an_answer():
    client = Asking((1, NodeSilent("node 1 is gone")), (2, Unavailable("not leader")), (3, {"term": 7}))

    assert client._ask_leader("status", {}, 5.0) == {"term": 7}


def test_a_leader_that_refuses_is_not_asked_again():
    client = Asking((1, Unavailable("another change is under way")), (2, {}))

    with pytest.raises(Unavailable, match="another change"):
        client._ask_leader("change_membership", {}, 5.0)
