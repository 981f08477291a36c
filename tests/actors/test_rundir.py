"""What a killed run leaves is removed by the next start; nothing else ever is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from actorraft.actors.rundir import RUN_FILE, RunDir, sweep
from actorraft.errors import UsageError
from tests.cluster.helpers import ROOT, Spawn


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for temporary files of the test's own, with a short name."""
    made = Path(tempfile.mkdtemp(prefix="ar-", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    yield made
    shutil.rmtree(made)


def killed(place: Path, code: str) -> None:
    """Run a program until it prints a line, and kill it."""
    environment = {**os.environ, "TMPDIR": str(place), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGKILL)


def test_one_whose_run_was_killed_is_swept_and_one_in_use_is_not(place: Path) -> None:
    killed(place, "import actorraft.actors.rundir as r; one = r.RunDir(); print('up', flush=True); input()")
    (left,) = place.iterdir()
    (left / "deep").mkdir()
    (left / "deep" / "file").write_text("x")
    mine = RunDir()
    assert list(place.iterdir()) == [mine.path]
    assert sweep(place) == []
    mine.remove()
    mine.remove()
    assert list(place.iterdir()) == []


def test_a_fork_of_its_maker_keeps_it_in_use_and_does_not_remove_it(place: Path) -> None:
    mine = RunDir()
    pid = os.fork()
    if pid == 0:
        mine.remove()
        os._exit(0)
    os.waitpid(pid, 0)
    assert mine.path.exists()
    assert sweep(place) == []
    mine.remove()


def test_what_is_not_certainly_left_by_a_run_stays(place: Path) -> None:
    def made(name: str, mode: int = 0o700, marker: str | None = RUN_FILE) -> Path:
        path = place / name
        path.mkdir()
        path.chmod(mode)
        if marker is not None:
            (path / marker).touch()
        return path

    stay = {
        made("somebodys-own"),
        made("actorraft-data", marker=None),  # a data_dir with such a name
        made("actorraft-being-made", marker=f"{RUN_FILE}.new"),
        made("actorraft-open-to-all", mode=0o755),
    }
    target = made("target")
    link = place / "actorraft-link"
    link.symlink_to(target)
    inner = made("actorraft-linked-marker", marker=None)
    (inner / RUN_FILE).symlink_to(target / RUN_FILE)
    left = made("actorraft-left")
    (left / "link").symlink_to(target)
    assert sweep(place) == [left]
    assert set(place.iterdir()) == {*stay, target, link, inner}
    assert (target / RUN_FILE).exists()


@pytest.mark.cluster
def test_the_next_cluster_removes_what_a_killed_one_left(place: Path, raft_cluster: Spawn) -> None:
    code = "import actorraft; c = actorraft.ReplicatedStateMachine(dict).spawn(1); print('up', flush=True); input()"
    killed(place, code)
    assert [path.name[:10] for path in place.iterdir()] == ["actorraft-"]
    cluster = raft_cluster(dict, nodes=1)
    assert list(place.iterdir()) == [cluster._processes.place.run_dir]


def test_a_place_where_nothing_can_be_made_is_named_and_so_is_the_way_out(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place / "gone"))
    with pytest.raises(UsageError, match=r"gone: No such file or directory\. .*ACTORRAFT_RUN_DIR"):
        RunDir()

    monkeypatch.setattr(tempfile, "tempdir", str(place))

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    for at_first, call in ((tempfile, "mkdtemp"), (os, "write")):
        with monkeypatch.context() as patched, pytest.raises(UsageError) as caught:
            patched.setattr(at_first, call, full)
            RunDir()
        assert "No space left on device. " in str(caught.value)
        assert "ACTORRAFT_RUN_DIR" in str(caught.value)
        assert list(place.iterdir()) == []

    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(UsageError, match=r"No usable temporary directory found in .*ACTORRAFT_RUN_DIR"):
        RunDir()
