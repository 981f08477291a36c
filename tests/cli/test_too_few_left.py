"""A removal after which nothing could be committed any more is refused while it still can be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actorraft.cli.members import _loses_majority
from tests.cli.served import Served, eventually


@pytest.mark.parametrize(
    ("voters", "lost", "node_id", "refused"),
    [
        ([0, 1, 2], {2: 5.0}, 1, True),
        ([0, 1, 2], {2: 5.0}, 0, True),  # the leader itself
        ([0, 1, 2], {2: 5.0}, 2, False),
        ([0, 1, 2], {2: 0.2}, 1, False),  # a link that comes and goes
        ([0, 1, 2], {}, 1, False),
        ([0, 1], {}, 1, False),
        ([0, 1, 2, 3, 4], {3: 9.0, 4: 9.0}, 1, True),
        ([0, 1, 2, 3, 4], {4: 9.0}, 1, False),
        ([0, 1, 2], {2: 5.0}, 7, False),  # a learner
    ],
)
def test_who_may_go_depends_on_who_is_there(
    voters: list[int], lost: dict[int, float], node_id: int, refused: bool
) -> None:
    links = {peer: lost.get(peer) for peer in voters if peer != 0}
    assert bool(_loses_majority({"voters": voters, "links": links}, node_id)) is refused


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_a_live_member_stays_while_a_dead_one_is_needed_without_it(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        served.start()
        leader = served.settled()
        dead, other = ((leader + more) % 3 for more in (1, 2))
        served.kill(dead)
        eventually(lambda: (served.status().get(leader, {}).get("links", {}).get(str(dead)) or 0.0) > 1.0)
        for node_id in (other, leader):
            refused = served.run("members", "remove", str(node_id), check=False)
            assert refused.returncode == 1
            assert f"Bring [{dead}] back, or remove them first" in refused.stderr
        served.run("exec", "set", '"x"', "1")
        served.run("members", "remove", str(dead))
        assert {row["id"] for row in json.loads(served.run("members", "list", "-o", "json").stdout)} == {leader, other}
