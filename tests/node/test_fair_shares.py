"""No client keeps the others out: each may have a share of what a leader takes before it is applied."""

from __future__ import annotations

import pytest

from actorraft import RaftConfig, codec
from actorraft.node import requests
from tests.node.helpers import Node


def busy(**config: int) -> Node:
    node = Node(**config).lead()
    node.steps.at_once = False
    return node


def refused(node: Node, client: str) -> list[str]:
    return [reply.reason for reply in node.clients.of(client, codec.Refused)]


@pytest.mark.parametrize("size", [200, 1_000, 10_000])
def test_a_client_that_sends_without_end_leaves_room_for_another(size: int) -> None:
    node = busy(uncommitted_bytes_max=100_000)
    for _ in range(100_000 // size + 10):
        node.call("emit", 1, 0, "x" * size, client="greedy")
    assert "busy" in refused(node, "greedy")
    for _ in range(2):
        node.call("emit", 1, 0, "x" * size, client="modest")
    assert [] == refused(node, "modest")


def test_one_frame_a_client_may_always_have_however_large() -> None:
    node = busy(uncommitted_bytes_max=1_000_000, frame_bytes_max=600_000)
    node.call("emit", 1, 0, "x" * 500_000, client="large")
    assert [] == refused(node, "large")


def test_frames_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "CLIENT_FRAMES_MAX", 10)
    node = busy()
    for _ in range(15):
        node.call("emit", client="greedy")
    assert 5 == len(refused(node, "greedy"))


def test_what_is_applied_makes_room_again() -> None:
    node = busy(uncommitted_bytes_max=100_000)
    for _ in range(20):
        for _ in range(5):
            node.call("emit", 1, 0, "x" * 4_000, client="steady")
        node.settle()
    assert [] == refused(node, "steady")
    assert not node.control.requests._held


def test_a_client_learns_the_clusters_frame_limit_with_its_leader() -> None:
    node = Node(frame_bytes_max=65_536).lead()
    node.say("client", codec.Hello())
    assert [codec.LeaderIs(1, 0, 65_536)] == node.clients.of("client", codec.LeaderIs)


@pytest.mark.parametrize(
    "bounds",
    [
        {"frame_bytes_max": 1 << 20, "append_bytes_max": 32 << 20},
        {"frame_bytes_max": 64 << 10, "append_bytes_max": 4 << 20},
        {"append_bytes_max": 64 << 20},
        {"snapshot_chunk_bytes": 64 << 20},
        {"frame_bytes_max": 64 << 10, "snapshot_chunk_bytes": 5 << 20},
    ],
)
def test_bounds_that_no_link_carries_are_refused(bounds: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="never catch up"):
        RaftConfig(**bounds)  # type: ignore[arg-type]


def test_the_largest_bounds_fit_a_link() -> None:
    config = RaftConfig(frame_bytes_max=64 << 10, append_bytes_max=(2 << 20) + (64 << 10))
    assert config.append_bytes_max * 3 // 2 < 2 * config.frame_bytes_max + (4 << 20)
