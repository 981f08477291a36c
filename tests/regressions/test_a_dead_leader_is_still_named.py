"""A client followed a leader that was dead: a node that had not noticed yet named it again, and nobody was asked again."""

from __future__ import annotations

import math
from concurrent.futures import Future
from typing import Any

from actorraft import codec
from actorraft.client.session import ClientSession
from actorraft.errors import Busy


def session_with_nodes(sent: list[int]) -> ClientSession:
    def send(node_id: int, _: bytes) -> bool:
        sent.append(node_id)
        return True

    session = ClientSession(send, nonce=1, make_future=Future)
    for node_id in range(3):
        session.connected(node_id, 0.0)
    session.receive(1, codec.LeaderIs(1, 0), 0.0)
    assert session.leader == 0
    return session


def test_a_leader_without_a_link_is_not_followed_and_the_others_are_asked_again() -> None:
    sent: list[int] = []
    session = session_with_nodes(sent)
    session.disconnected(0, 1.0)
    session.receive(1, codec.LeaderIs(1, 0), 1.0)
    assert session.leader is None
    sent.clear()
    assert session.deadline_s() < math.inf
    session.advance(2.0)
    assert sorted(sent) == [1, 2]
    session.receive(2, codec.LeaderIs(2, 2), 2.0)
    assert session.leader == 2


def test_a_leader_that_is_connected_later_is_followed_then() -> None:
    sent: list[int] = []
    session = session_with_nodes(sent)
    session.receive(1, codec.LeaderIs(2, 3), 1.0)
    assert session.leader is None
    session.connected(3, 1.1)
    session.receive(3, codec.LeaderIs(2, 3), 1.2)
    assert session.leader == 3


def test_a_registration_that_a_full_queue_refuses_ends_as_busy() -> None:
    session = session_with_nodes([])
    future: Future[Any] = Future()
    session.submit([(b"\x01", future, 2.0)])
    session.advance(0.0)
    session.receive(0, codec.Refused(1, -1, "busy", 0), 0.1)
    session.advance(2.0)
    assert [(ended, type(error)) for ended, error, _ in session.failures] == [(future, Busy)]
