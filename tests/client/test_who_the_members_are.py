"""A client whose folder is older than the membership: it asks for members that are new, and forgets those that are gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from actorraft import codec
from actorraft.client.client import Client
from actorraft.client.thread import ClientThread
from actorraft.ports import Envelope, Kinds
from tests.client.helpers import ByHand

MEMBERS = {0: "zero", 1: "one", 4: "four"}  # the client comes with 0, 1 and 2


class Nodes(ByHand):
    """A channel to nodes that say who the members are; 0 leads, 2 is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.linked: set[int] = set()
        self.endpoints: dict[int, str] = {}
        self.tells = True  # where members are; else that question is not answered

    def set_endpoints(self, endpoints: Mapping[int, str]) -> None:
        self.endpoints = dict(endpoints)
        for node_id in (endpoints.keys() & MEMBERS.keys()) - self.linked:
            self.linked.add(node_id)
            self.queue.put(Envelope(Kinds.CONNECTED, node_id))

    def send(self, node_id: int, frame: bytes) -> bool:
        match codec.decode_request(frame):
            case codec.Hello():
                self.say(node_id, codec.LeaderIs(1, 0))
            case codec.Admin(request_id, "status"):
                self.say(node_id, codec.AdminReply(request_id, "", {"voters": list(MEMBERS), "commit_index": 7}))
            case codec.Admin(request_id, "endpoints") if self.tells:
                said = [[each, at, f"key {each}"] for each, at in MEMBERS.items()]
                self.say(node_id, codec.AdminReply(request_id, "", said))
        return node_id in self.linked


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


@pytest.fixture
def client(nodes: Nodes) -> Iterator[Client[Any]]:
    with Client[Any](ClientThread({0: "zero", 1: "one", 2: "two"}, lambda: nodes, learns=True)) as client:
        yield client


def wait_for(done: Callable[[], Any]) -> None:
    until_s = time.monotonic() + 30.0
    while not done():
        assert time.monotonic() < until_s, "it did not come about in time"
        time.sleep(0.001)


def test_who_is_no_member_any_more_and_not_reached_is_dialled_no_more(nodes: Nodes, client: Client[Any]) -> None:
    wait_for(lambda: nodes.endpoints == MEMBERS)
    assert client.endpoints == MEMBERS


def test_status_has_a_row_for_a_member_that_joined_since(nodes: Nodes) -> None:
    nodes.tells = False
    with Client[Any](ClientThread({0: "zero", 1: "one", 2: "two"}, lambda: nodes, learns=True)) as client:
        client.wait_for_leader(30.0)
        wait_for(lambda: nodes.linked == {0, 1})
        assert client.endpoints.keys() == {0, 1, 2}  # nobody has said otherwise yet
        nodes.tells = True

        rows = client.status(timeout=30.0)

    assert {row.id: (row.alive, row.endpoint) for row in rows} == {
        node_id: (True, endpoint) for node_id, endpoint in MEMBERS.items()
    }
