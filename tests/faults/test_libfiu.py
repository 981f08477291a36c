"""A disk whose syncs fail below Python: libfiu stands between the node and the C library (Debian's fiu-utils)."""

from __future__ import annotations

import errno
import shutil
import subprocess
from pathlib import Path

import pytest

from actorraft.node.process import EXIT_DISK
from tests.cluster.helpers import Spawn, agree
from tests.cluster.machines import Ledger
from tests.faults.helpers import append_until, error_of

LIBRARIES = [Path("/usr/lib/fiu") / name for name in ("fiu_run_preload.so", "fiu_posix_preload.so")]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        shutil.which("fiu-ctrl") is None or not all(path.exists() for path in LIBRARIES),
        reason="libfiu is not installed (Debian: fiu-utils)",
    ),
]


@pytest.mark.parametrize("point", ["posix/io/sync/fdatasync", "posix/io/sync/fsync"])
def test_a_node_stops_when_the_c_library_says_that_the_disk_failed(
    raft_cluster: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    control = tmp_path / "fiu"
    monkeypatch.setenv("LD_PRELOAD", ":".join(map(str, LIBRARIES)))
    monkeypatch.setenv("FIU_CTRL_FIFO", str(control))
    cluster = raft_cluster(Ledger, nodes=3, data_dir=tmp_path / "data", supervision=None)
    acknowledged = append_until(cluster, "k", iter([False] * 10 + [True]).__next__)
    leader = cluster.wait_for_leader()
    process = cluster._processes.living(leader)

    order = f"enable name={point},failinfo={errno.EIO}"
    monkeypatch.delenv("LD_PRELOAD")  # the tool itself must not listen too: it crashes then, now and then
    subprocess.run(["fiu-ctrl", "-f", str(control), "-c", order, str(process.pid)], check=True, timeout=20)
    if point.endswith("/fsync"):  # of a snapshot
        cluster.take_snapshot(timeout=20.0)
    acknowledged += append_until(cluster, "k", lambda: not process.alive, first=len(acknowledged))
    assert process.returncode == EXIT_DISK
    assert "Input/output error" in error_of(cluster, leader)

    cluster.nodes[leader].restart()
    assert cluster.proxy(to=leader, timeout=20.0).get("k") == acknowledged
    agree(cluster)
