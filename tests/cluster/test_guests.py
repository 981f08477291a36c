"""Machines whose hooks raise, on real nodes: every node lives, says which hook it was, and comes back from its disk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from actorraft import ActorRaftError, RaftConfig, ReplicatedStateMachine, StartError, StateMachine, command, query
from actorraft.actors import bootstrap
from tests.cluster.helpers import ROOT, SCRIPTS, eventually

pytestmark = pytest.mark.cluster


class Guest(StateMachine):
    """Each of its hooks does what it is told to."""

    def __init__(self) -> None:
        self.broken: dict[str, str] = {}
        self.count = 0

    @command
    def breaks(self, hook: str, how: str) -> int:
        """Let a hook fail from now on."""
        self.broken[hook] = how
        self.count += 1
        return self.count

    @query
    def counted(self) -> int:
        """How many commands were applied."""
        return self.count

    def _fail(self, hook: str) -> None:
        match self.broken.get(hook):
            case "exit":
                sys.exit(3)
            case "interrupt":
                raise KeyboardInterrupt
            case "key":
                raise KeyError(hook)

    @property
    def wake_at(self) -> float | None:
        """Log time has always come once the clock's hook is broken."""
        self._fail("wake_at")
        return 1.0 if "on_clock" in self.broken and self.count < 3 else None

    def on_clock(self) -> None:
        """Fail if it is to."""
        self._fail("on_clock")

    def digest(self) -> bytes:
        """Fail if it is to."""
        self._fail("digest")
        return str(self.count).encode()

    def snapshot(self) -> Any:
        """Fail if it is to."""
        self._fail("snapshot")
        return self.broken, self.count

    def restore(self, state: Any) -> None:
        """Take up the state."""
        self.broken, self.count = state


@pytest.mark.parametrize("how", ["exit", "interrupt", "key"])
def test_a_hook_that_raises_is_in_the_status_of_every_node_and_ends_none(how: str, tmp_path: Path) -> None:
    raised = {"exit": "SystemExit", "interrupt": "KeyboardInterrupt", "key": "KeyError"}[how]
    with ReplicatedStateMachine(Guest).spawn(3, data_dir=tmp_path / "data", supervision=None) as cluster:
        guest = cluster.proxy()
        for number, hook in enumerate(("wake_at", "digest", "snapshot", "on_clock"), 1):
            assert guest.breaks(hook, how) == number
        for node_id in range(3):
            assert cluster.proxy(to=node_id).counted() == 4  # it has applied them all
            with pytest.raises(ActorRaftError, match=f"Guest.digest raised {raised}"):
                cluster.digest(node_id)
        with pytest.raises(ActorRaftError, match=f"Guest.snapshot raised {raised}"):
            cluster.take_snapshot()
        for hook in ("wake_at", "digest", "snapshot"):
            named = f"Guest.{hook} raised {raised}"
            eventually(lambda named=named: all(named in str(row.error) for row in cluster.status()))
        assert guest.breaks("none", how) == 5
        assert all(row.alive for row in cluster.status())
    with ReplicatedStateMachine(Guest).spawn(data_dir=tmp_path / "data") as cluster:
        assert cluster.proxy().counted() == 5


def test_a_state_with_a_lock_is_named_in_the_status_before_any_snapshot_is_due() -> None:
    with ReplicatedStateMachine(Locked).spawn(3) as cluster:
        eventually(lambda: all("Locked.shelf['lock'] cannot be pickled" in str(row.error) for row in cluster.status()))


class Locked(Guest):
    """Something that no snapshot can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = {"lock": threading.Lock()}

    snapshot = StateMachine.snapshot
    restore = StateMachine.restore


class Picky(StateMachine):
    """Restores nothing while a file is there."""

    def __init__(self, flag: str) -> None:
        self.flag = flag
        self.count = 0

    @command
    def add(self) -> int:
        """Count."""
        self.count += 1
        return self.count

    @query
    def counted(self) -> int:
        """How many commands were applied."""
        return self.count

    def snapshot(self) -> Any:
        """Return the count."""
        return self.count

    def restore(self, state: Any) -> None:
        """Take it up, or not."""
        if Path(self.flag).exists():
            sys.exit("not today")
        self.count = state


def test_a_node_that_cannot_restore_says_so_lives_and_goes_on_by_itself(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with ReplicatedStateMachine(Picky, str(flag)).spawn(3, config=RaftConfig(trailing_entries=0)) as cluster:
        picky = cluster.proxy(timeout=30.0)
        assert [picky.add() for _ in range(3)] == [1, 2, 3]
        cluster.take_snapshot()
        flag.touch()
        follower = next(row.id for row in cluster.status() if row.state == "follower")
        with pytest.raises(StartError, match=r"runs, and holds: the snapshot .* Picky\.restore raised SystemExit: not"):
            cluster.nodes[follower].restart()
        with pytest.raises(StartError, match=r"was added, and holds: the snapshot .* Picky\.restore raised SystemExit"):
            cluster.add_node()
        for row in cluster.status():
            assert row.alive
            assert ("Picky.restore raised" in str(row.error)) == (row.id in (follower, 3))
        assert picky.add() == 4
        flag.unlink()
        eventually(lambda: not any(row.error for row in cluster.status()))
        for node_id in (follower, 3):
            assert cluster.proxy(to=node_id, timeout=30.0).counted() == 4


class Forks(StateMachine):
    """Forks wherever its code runs, and the child comes back."""

    def __init__(self) -> None:
        self.count = 0
        self.where = ""
        if bootstrap.in_child:
            os.fork()

    @command
    def fork(self, how: str) -> int:
        """Count, in two processes."""
        self.count += 1
        if os.fork() == 0 and how == "raise":
            raise SystemExit(7)
        return self.count

    @command
    def fork_in(self, where: str) -> None:
        """Let a hook fork."""
        self.where = where

    @command
    def trace(self) -> int:
        """Leave a trace function that raises, as a debugger may."""
        self.count += 1
        sys.settrace(lambda *_: 1 // 0)  # type: ignore[arg-type,return-value]
        return self.count

    @query
    def asked(self) -> int:
        """Fork."""
        os.fork()
        return self.count

    def snapshot(self) -> Any:
        """Fork if it is to."""
        if self.where == "snapshot":
            os.fork()
        return self.count, self.where

    def restore(self, state: Any) -> None:
        """Take it up."""
        self.count, self.where = state


def children(pid: int | None) -> list[str]:
    """Return the living processes that the threads of a process have started."""
    found = [each for path in Path(f"/proc/{pid}/task").glob("*/children") for each in path.read_text().split()]
    return [each for each in found if Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[0] != "Z"]


def test_a_process_that_user_code_forks_does_not_come_back_as_a_second_node(tmp_path: Path) -> None:
    with ReplicatedStateMachine(Forks).spawn(3, data_dir=tmp_path / "data", supervision=None) as cluster:
        forks = cluster.proxy(timeout=30.0)
        assert [forks.fork(how) for how in ("return", "raise", "return")] == [1, 2, 3]
        assert forks.asked() == 3
        assert forks.trace() == 4
        forks.fork_in("snapshot")
        cluster.take_snapshot()
        assert forks.fork("return") == 5
        eventually(lambda: not any(children(node.pid) for node in cluster.nodes.values()))
        assert all(row.alive for row in cluster.status())
        assert len({cluster.digest(node_id)[1] for node_id in range(3) if cluster.proxy(to=node_id).asked()}) == 1
    with ReplicatedStateMachine(Forks).spawn(data_dir=tmp_path / "data") as cluster:
        assert cluster.proxy(timeout=30.0).fork("return") == 6


@pytest.mark.parametrize(("flags", "where"), [(["-E"], "thread"), (["-I"], "fork"), ([], "signal"), (["-I"], "main")])
def test_what_a_script_raises_wherever_it_is_called_from_ends_in_outcomes_and_ends_no_node(
    flags: list[str], where: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    path = f"import sys; sys.path[:0] = {[str(ROOT), *(each for each in sys.path if each)]!r}\n"
    script.write_text(path + (SCRIPTS / "guests.py").read_text())
    line = [sys.executable, *flags, str(script), where]
    run = subprocess.run(line, capture_output=True, text=True, timeout=100, check=False)
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr
