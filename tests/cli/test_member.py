"""Members hosted from Python: three services that each serve one, and one folder that is another machine's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from actorraft import ReplicatedStateMachine, UsageError, connect
from actorraft.cluster.founding import found
from actorraft.node.folder import read_folder
from actorraft.node.standalone import overrides_of, plan
from benchmarks.others.processes import free_ports
from statemachines.kv import KVStore

pytestmark = pytest.mark.cluster


def test_three_services_host_a_member_each(tmp_path: Path) -> None:
    nodes = [f"127.0.0.1:{port}" for port in free_ports(3)]
    found(tmp_path / "c", "statemachines.kv:KVStore", nodes)
    machine = ReplicatedStateMachine(KVStore)
    members = [machine.serve(tmp_path / "c" / f"node-{n}") for n in range(3)]
    try:
        assert [member.id for member in members] == [0, 1, 2]
        with connect(tmp_path / "c" / "client", KVStore, timeout=30.0) as client:
            client.proxy(timeout=30.0).set("x", 1)
            # The third may still be on its way into the cluster; until then two of three are all there are.
            until_s = time.monotonic() + 30.0
            while any(not row.alive or row.not_ready for row in client.status()):
                assert time.monotonic() < until_s, client.status()
                time.sleep(0.05)
            leader = client.wait_for_leader()
            members[leader].stop()
            assert client.proxy(timeout=20.0).get("x") == 1
            members[leader] = machine.serve(tmp_path / "c" / f"node-{leader}")
            assert {row.id for row in members[0].status()} == {0, 1, 2}
    finally:
        for member in members:
            member.stop()
    assert not any(member.alive for member in members)


def test_a_folder_that_is_another_machine_s_or_has_other_arguments_is_refused(tmp_path: Path) -> None:
    found(tmp_path / "c", "statemachines.kv:KVStore", ["127.0.0.1:7000"])
    with pytest.raises(UsageError, match=r"is for statemachines\.kv:KVStore.*and this is builtins:dict"):
        ReplicatedStateMachine(dict).serve(tmp_path / "c" / "node-0")
    with pytest.raises(UsageError, match="and this is builtins:dict with"):
        ReplicatedStateMachine(dict, ann=1).serve(tmp_path / "c" / "node-0")


@pytest.mark.parametrize("actors", [False, True])
def test_actors_are_reached_only_if_that_is_asked_for_at_the_port_after_the_clients(
    tmp_path: Path, actors: bool
) -> None:
    found(tmp_path / "c", "statemachines.kv:KVStore", ["127.0.0.1:7000"])
    folder = tmp_path / "c" / "node-0"
    read = read_folder(folder, overrides=overrides_of(None, "127.0.0.1:7200", "", "", actors))

    assert plan(folder, read).actors == ("tcp://127.0.0.1:7202" if actors else "")


def test_actors_are_not_reached_where_nobody_proves_a_key(tmp_path: Path) -> None:
    found(tmp_path / "c", "statemachines.kv:KVStore", ["127.0.0.1:7000"], keys=False)
    folder = tmp_path / "c" / "node-0"

    with pytest.raises(UsageError, match="an administrator's key"):
        plan(folder, read_folder(folder, overrides=overrides_of(None, "", "", "", actors=True)))
    assert (folder / "first-start").exists(), "it was refused before anything was begun"


@pytest.mark.parametrize(
    "odd",
    [{"timeout": "x"}, {"timeout": -1}, {"timeout": float("nan")}, {"listen": 5}, {"http": 5}, {"data_dir": 5}],
    ids=str,
)
def test_what_is_of_another_kind_is_refused_by_name(tmp_path: Path, odd: dict[str, Any]) -> None:
    found(tmp_path / "c", "statemachines.kv:KVStore", ["127.0.0.1:7000"])
    with pytest.raises(UsageError, match=next(iter(odd))):
        ReplicatedStateMachine(KVStore).serve(tmp_path / "c" / "node-0", **odd)
    for folder in (None, 5, b"c"):
        with pytest.raises(UsageError, match="folder is"):
            ReplicatedStateMachine(KVStore).serve(folder)  # type: ignore[arg-type]
    assert (tmp_path / "c" / "node-0" / "first-start").exists(), "it was refused before anything was begun"
