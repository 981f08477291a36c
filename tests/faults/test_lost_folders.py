"""A voter whose folder was wiped or swapped is refused, and told how its place is filled again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from actorraft import ReplicatedStateMachine, StartError, UsageError
from actorraft.storage.directory import seal, unseal
from actorraft.storage.recover import recover
from tests.cluster.helpers import Spawn, agree
from tests.cluster.machines import Ledger

pytestmark = pytest.mark.cluster


def test_a_node_whose_folder_was_wiped_is_refused_and_its_place_is_filled_by_a_new_one(
    raft_cluster: Spawn, tmp_path: Path
) -> None:
    cluster = raft_cluster(Ledger, nodes=3, data_dir=tmp_path / "data")
    cluster.proxy().append("k", 1)
    cluster.nodes[1].kill()
    shutil.rmtree(tmp_path / "data" / "node-1")

    for empty in (False, True):
        if empty:
            (tmp_path / "data" / "node-1").mkdir(mode=0o700)
        with pytest.raises(StartError, match=r"remove_node\(1\), then add_node\(\)") as caught:
            cluster.nodes[1].restart()
        assert "Traceback" not in str(caught.value)

    cluster.remove_node(1)
    assert cluster.add_node() == 3
    assert sorted(cluster.nodes) == [0, 2, 3]
    assert cluster.proxy(to=3).get("k") == [1]
    agree(cluster)


def test_folders_that_changed_places_or_have_another_storage_id_are_refused(
    raft_cluster: Spawn, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    cluster = raft_cluster(Ledger, nodes=3, data_dir=data)
    cluster.proxy().append("k", 1)
    cluster.nodes[1].kill()

    (data / "node-1").rename(tmp_path / "kept")
    shutil.copytree(data / "node-2", data / "node-1")
    with pytest.raises(StartError, match="is the folder of node 2, not of node 1"):
        cluster.nodes[1].restart()
    shutil.rmtree(data / "node-1")
    shutil.copytree(tmp_path / "kept", data / "node-1")
    said = unseal(data / "node-1" / "node.json")
    assert said is not None
    (data / "node-1" / "node.json").write_bytes(seal({**said, "storage_id": "ab" * 16}))
    with pytest.raises(StartError, match=r"its storage id is abab.*remove_node\(1\), then add_node\(\)"):
        cluster.nodes[1].restart()

    shutil.rmtree(data / "node-1")
    (tmp_path / "kept").rename(data / "node-1")
    cluster.nodes[1].restart()
    agree(cluster)


def test_a_cluster_that_lacks_a_folder_says_how_it_goes_on_without_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    machine = ReplicatedStateMachine(Ledger)
    with machine.spawn(3, data_dir=data) as cluster:
        for number in range(20):
            cluster.proxy().append("k", number)
    shutil.rmtree(data / "node-2")

    with pytest.raises(UsageError, match=r"lacks node-2.*recover .*--keep 0,1"):
        machine.spawn(data_dir=data)
    plan = recover(data, keep=[0, 1])
    assert not plan.may_lose
    with machine.spawn(data_dir=data) as cluster:
        assert cluster.proxy().get("k") == list(range(20))
        assert cluster.add_node() == 3
        agree(cluster)
    with machine.spawn(data_dir=data) as cluster:
        assert sorted(cluster.nodes) == [0, 1, 3]
        assert json.loads((data / "cluster.json").read_bytes().rpartition(b"\ncrc32")[0])["node_ids"] == [0, 1, 3]
