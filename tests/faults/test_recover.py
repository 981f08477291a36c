"""A majority is lost for good: what is left becomes a cluster again, if somebody says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from actorraft import CorruptionError, ReplicatedStateMachine, StartError, UsageError, connect
from actorraft.raft.messages import Configuration, HardState, LogEntry
from actorraft.storage import boot
from actorraft.storage.__main__ import app
from actorraft.storage.directory import ClusterDirectory, ClusterInfo, NodeDirectory
from actorraft.storage.disk import DiskStorage
from actorraft.storage.recover import TERM_GAP, look, recover
from actorraft.storage.verify import verify
from benchmarks.others.processes import free_ports
from tests.cluster.helpers import agree, eventually, refused
from tests.cluster.machines import Ledger


@pytest.fixture(autouse=True)
def _small_segments(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that no node uses has no need of 64 MB for its log, which each look would read."""
    if request.node.get_closest_marker("cluster") is None:
        monkeypatch.setitem(DiskStorage.__init__.__kwdefaults__, "segment_bytes", 1 << 16)


def made(path: Path, logs: dict[int, list[int]], nodes: int = 3, durability: str = "fsync") -> Path:
    """A cluster's folder whose nodes have logs with entries of these terms."""
    directory = ClusterDirectory(path, wait_s=0)
    ids = tuple(range(nodes))
    directory.create(ClusterInfo(cluster_id="00" * 8, machine="bank:Bank", node_ids=ids, founder_ids=ids, hash_seed=1))
    for node_id, terms in logs.items():
        store = DiskStorage(directory.node_path(node_id), node_id=node_id, durability=durability, sync_on_close=False)
        store.recover()
        store.persist(HardState(max(terms, default=0), None), 0, [LogEntry(term, b"item") for term in terms])
        store.close()
    directory.close()
    return path


def held(path: Path, node_id: int) -> tuple[HardState, list[LogEntry]]:
    """What a node's folder holds."""
    store = DiskStorage(path / f"node-{node_id}", create=False, wait_s=0)
    try:
        recovered = store.recover()
        return recovered.hard_state, recovered.entries
    finally:
        store.close()


def test_the_most_up_to_date_log_gets_the_new_configuration_and_the_others_stay_as_they_are(tmp_path: Path) -> None:
    path = made(tmp_path / "data", {0: [1, 1, 1, 1], 3: [1, 2], 4: [1]}, nodes=5)
    shutil.rmtree(path / "node-1")
    shutil.rmtree(path / "node-2")
    plan = recover(path, [0, 3, 4])
    assert (plan.best.node_id, plan.may_lose, plan.danger) == (3, False, "")
    assert sorted(plan.unreadable) == [1, 2]

    hard_state, entries = held(path, 3)
    assert hard_state == HardState(2 + TERM_GAP, 3)
    configuration = entries[-1].item
    assert [entry.term for entry in entries] == [1, 2, 2 + TERM_GAP]
    assert configuration.voters == frozenset({0, 3, 4})
    assert (configuration.learners, configuration.joint, configuration.next_node_id) == (frozenset(), False, 5)
    assert [node_id for node_id, _ in configuration.storage_ids] == [0, 3, 4]
    assert [entry.term for entry in held(path, 0)[1]] == [1, 1, 1, 1]
    assert verify(path).ok


def test_a_second_recovery_goes_on_from_the_first(tmp_path: Path) -> None:
    path = made(tmp_path / "data", {0: [1], 1: [1], 2: [1]})
    shutil.rmtree(path / "node-2")
    recover(path, [0, 1])
    shutil.rmtree(path / "node-1")
    plan = recover(path, [0])
    assert plan.configuration.voters == frozenset({0, 1})
    assert plan.may_lose
    assert held(path, 0)[0].term == 1 + 2 * TERM_GAP


def test_it_is_refused_while_a_majority_is_whole_unless_forced(tmp_path: Path) -> None:
    path = made(tmp_path / "data", {0: [1], 1: [1, 1], 2: [1, 1]})
    before = held(path, 0)
    with pytest.raises(UsageError, match=r"nodes \[0, 1, 2\] are whole, and a majority"):
        recover(path, [0])
    assert held(path, 0) == before
    assert recover(path, [0], force=True).may_lose
    assert held(path, 0)[1][-1].item.voters == frozenset({0})


def test_it_is_refused_while_another_node_has_a_newer_log_unless_forced(tmp_path: Path) -> None:
    path = made(tmp_path / "data", {0: [1], 1: [1, 1]}, nodes=5)
    with pytest.raises(UsageError, match="node 1 is whole and has a newer log"):
        recover(path, [0])
    assert recover(path, [0, 1]).may_lose


def test_it_is_refused_for_what_is_no_cluster_or_no_node_of_it(tmp_path: Path) -> None:
    path = made(tmp_path / "data", {0: [1], 1: [1]})
    with pytest.raises(UsageError, match=r"no cluster's folder"):
        recover(tmp_path, [0])
    with pytest.raises(UsageError, match=r"not \[7\]"):
        recover(path, [0, 7])
    with pytest.raises(UsageError, match="not none"):
        recover(path, [])
    with pytest.raises(UsageError, match="node-2 was never written to"):
        recover(path, [0, 2])


def test_a_node_that_is_damaged_cannot_be_kept(tmp_path: Path) -> None:
    path = made(tmp_path / "data", {0: [1, 1], 1: [1, 1], 2: [1]})
    (segment,) = (path / "node-0" / "log").glob("*.wal")
    content = bytearray(segment.read_bytes())
    content[content.index(b"item")] ^= 1
    segment.write_bytes(content)
    with pytest.raises(CorruptionError, match="node-0"):
        recover(path, [0, 1])
    plan = recover(path, [1, 2])
    assert not plan.may_lose
    assert "damaged" in plan.unreadable[0]


def test_folders_that_were_not_synced_when_the_machine_stopped_need_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(tmp_path / "data", {0: [1], 1: [1], 2: [1]}, durability="os")
    for module in ("actorraft.storage.recover.boot_id", "actorraft.storage.boot.boot_id"):
        monkeypatch.setattr(module, lambda: "another boot")
    assert boot.boot_id() == "another boot"
    with pytest.raises(UsageError, match="may be missing"):
        recover(path, [0, 1, 2])
    assert recover(path, [0, 1, 2], force=True).may_lose
    assert len(held(path, 1)[1]) == 1


def test_what_is_recovered_has_a_new_id_and_refuses_what_is_of_the_old_one_by_name(tmp_path: Path) -> None:
    path = made(tmp_path / "data", {0: [1], 1: [1], 2: [1]})
    shutil.copytree(path, tmp_path / "other")
    plan, other = recover(path, [0, 1]), recover(tmp_path / "other", [1, 2])
    assert len({"00" * 8, plan.cluster_id, other.cluster_id}) == 3
    directory = ClusterDirectory(path)
    info = directory.check("bank:Bank")
    directory.close()
    assert (info.cluster_id, info.machine_seed, info.becomes) == (plan.cluster_id, 0, "")
    assert {survivor.cluster_id for survivor in look(path)[0]} == {plan.cluster_id}
    shutil.rmtree(path / "node-1")
    shutil.copytree(tmp_path / "other" / "node-1", path / "node-1")
    with pytest.raises(UsageError, match=f"belongs to cluster {other.cluster_id}, not to {plan.cluster_id}"):
        NodeDirectory(path / "node-1", cluster_id=plan.cluster_id)
    with pytest.raises(UsageError, match=f"belongs to cluster {other.cluster_id}, and this is {plan.cluster_id}"):
        recover(path, [0, 1])
    assert recover(path, [0]).cluster_id not in {plan.cluster_id, other.cluster_id}


@pytest.mark.parametrize("done", [1, 2])
def test_a_recovery_that_was_interrupted_is_done_once_more_and_nothing_starts_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    path = made(tmp_path / "data", {0: [1], 1: [1], 2: [1]})
    stored: list[object] = []
    store = NodeDirectory.store

    def dies(self: NodeDirectory, info: object) -> None:
        if len(stored) == done - 1:
            raise KeyboardInterrupt
        stored.append(info)
        store(self, info)  # type: ignore[arg-type]

    monkeypatch.setattr(NodeDirectory, "store", dies)
    with pytest.raises(KeyboardInterrupt):
        recover(path, [0, 1])
    monkeypatch.undo()
    directory = ClusterDirectory(path)
    with pytest.raises(UsageError, match="recovery that was interrupted"):
        directory.check("bank:Bank")
    directory.close()
    plan = recover(path, [0, 1])
    assert {survivor.cluster_id for survivor in look(path)[0]} == {plan.cluster_id}
    assert held(path, 0)[1][-1].item.voters == frozenset({0, 1})


def test_each_folder_s_end_is_shown_so_that_they_can_be_compared(tmp_path: Path) -> None:
    path = made(tmp_path / "data", {0: [1, 1], 1: [1, 2], 2: [1, 2]})
    (path / "node-2" / "node.json").unlink()
    shown = CliRunner().invoke(app, ["recover", str(path), "--show"])
    assert shown.exit_code == 0, shown.output
    survivors, unreadable = look(path)
    assert [(one.last.term, one.last.index) for one in survivors] == [(1, 1), (2, 1)]
    assert len({one.checksum for one in survivors} - {""}) == 2
    for one in survivors:
        assert f"(term {one.last.term}, index 1, checksum {one.checksum})" in shown.output
    assert "node 2 cannot be read" in shown.output
    assert list(unreadable) == [2]
    told = CliRunner().invoke(app, ["recover", str(path), "--show", "-o", "json"])
    rows = [(row["node_id"], row["term"], row["index"], row["checksum"]) for row in json.loads(told.stdout)]
    assert rows == [(one.node_id, one.last.term, one.last.index, one.checksum) for one in survivors]
    assert "node 2 cannot be read" in told.stderr
    assert CliRunner().invoke(app, ["recover", str(path)]).exit_code == 2


def test_a_configuration_of_later_days_decides_who_is_a_majority(tmp_path: Path) -> None:
    path = made(tmp_path / "data", {0: [1], 1: [1], 2: [1]})
    store = DiskStorage(path / "node-2", create=False)
    store.recover()
    store.persist(None, 1, [LogEntry(1, Configuration(voters=frozenset({2}), next_node_id=3))])
    store.close()
    assert not recover(path, [2]).may_lose


def test_the_command_explains_and_refuses_and_does_it(tmp_path: Path) -> None:
    path = made(tmp_path / "data", {0: [1], 1: [1], 2: [1]})
    run = CliRunner().invoke
    refused = run(app, ["recover", str(path), "--keep", "0"])
    assert refused.exit_code == 2
    assert "keep them" in refused.output
    assert run(app, ["recover", str(path), "--keep", "x"]).exit_code == 2
    tried = run(app, ["recover", str(path), "--keep", "0,2", "--dry-run"])
    assert (tried.exit_code, held(path, 0)[0].term) == (0, 1)
    assert "nothing acknowledged is lost" in tried.output
    told = json.loads(run(app, ["recover", str(path), "--keep", "0,2", "--dry-run", "-o", "json"]).stdout)
    assert (told["kept"], told["may_lose"], told["danger"]) == ([0, 2], False, "")
    done = run(app, ["recover", str(path), "--keep", "0", "--force"])
    assert done.exit_code == 0, done.output
    assert "may be lost" in done.output


@pytest.mark.cluster
def test_a_cluster_that_lost_three_of_five_goes_on_with_two_and_grows_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    machine = ReplicatedStateMachine(Ledger)
    with machine.spawn(5, data_dir=data) as cluster:
        with pytest.raises(UsageError, match="in use"):
            recover(data, [0, 3])
        cluster.nodes[3].stop()
        for number in range(50):
            cluster.proxy().append("k", number)
        leader = cluster.wait_for_leader()
        best = 0 if leader != 0 else 1
        agree(cluster, [node_id for node_id in cluster.nodes if node_id != 3])
    lost = {0, 1, 2, 4} - {best}
    for node_id in lost:
        shutil.rmtree(data / f"node-{node_id}")
    with pytest.raises(UsageError, match="lacks"):
        machine.spawn(data_dir=data)

    plan = recover(data, [best, 3])
    assert (plan.best.node_id, plan.may_lose) == (best, True)
    with machine.spawn(data_dir=data) as cluster:
        assert sorted(cluster.nodes) == sorted((best, 3))
        assert cluster.proxy().get("k") == list(range(50))
        assert cluster.proxy().append("k", 50) == 51
        assert cluster.add_node() == 5
        cluster.nodes[best].kill()
        assert cluster.proxy().append("k", 51) == 52
        cluster.nodes[best].restart()
        agree(cluster)


@pytest.mark.cluster
def test_a_client_at_addresses_that_stay_goes_on_with_the_next_run_and_is_refused_by_a_recovered_cluster(
    tmp_path: Path,
) -> None:
    data, listen = tmp_path / "data", [f"127.0.0.1:{port}" for port in free_ports(3)]
    machine = ReplicatedStateMachine(Ledger)
    with machine.spawn(data_dir=data, listen=listen) as cluster:
        cluster.proxy().append("k", 0)
        client = connect(cluster.endpoints, Ledger)  # as another process would
        assert client.proxy().append("k", 1) == 2
    with client:
        with machine.spawn(data_dir=data, listen=listen):
            assert client.proxy(timeout=20.0).append("k", 2) == 3
        old = recover(data, [0], dry_run=True)
        new = recover(data, [0], force=True)
        assert len(old.keep) == 1
        with machine.spawn(data_dir=data, listen=listen[:1]) as cluster:
            refused(
                lambda timeout: client.proxy(timeout=timeout).append("k", 3),
                f"it looks for cluster .*, and this is {new.cluster_id}",
            )
            assert cluster.proxy().get("k") == [0, 1, 2]
            assert cluster.add_node() == 3
            with connect(cluster.endpoints, Ledger) as fresh:
                assert fresh.proxy().append("k", 3) == 4


@pytest.mark.cluster
def test_a_client_whose_session_the_cluster_has_lost_is_told_so_and_goes_on(tmp_path: Path) -> None:
    data, listen = tmp_path / "data", [f"127.0.0.1:{port}" for port in free_ports(1)]
    machine = ReplicatedStateMachine(Ledger)
    with machine.spawn(1, data_dir=data, listen=listen) as cluster:
        client = connect(cluster.endpoints, Ledger)
        assert client.proxy().append("k", 0) == 1
    shutil.copytree(data, tmp_path / "copy")
    with client:
        with machine.spawn(data_dir=data, listen=listen):
            for number in range(1, 4):
                client.proxy(timeout=20.0).append("k", number)
        shutil.rmtree(data)
        (tmp_path / "copy").rename(data)
        with machine.spawn(data_dir=data, listen=listen):
            assert eventually(lambda: client.proxy(timeout=20.0).append("k", "after"))
            assert client.proxy().get("k") == [0, "after"]


@pytest.mark.cluster
def test_without_recovery_two_of_five_never_serve(tmp_path: Path) -> None:
    data = tmp_path / "data"
    machine = ReplicatedStateMachine(Ledger)
    with machine.spawn(5, data_dir=data) as cluster:
        cluster.proxy().append("k", 1)
        for node_id in (1, 2, 4):
            cluster.nodes[node_id].kill()
    for node_id in (1, 2, 4):
        (data / f"node-{node_id}" / "log").rename(data / f"node-{node_id}" / "gone")
    with pytest.raises(StartError, match=r"node \d did not start: .*is missing"):
        machine.spawn(data_dir=data, timeout=60.0)
