"""What tests with real processes share: waiting with a deadline, scripts as a user runs them, and what is left behind.

Nothing here sleeps to let something happen: it asks again until it has, or a generous deadline passes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import pytest

from actorraft import Cluster
from actorraft.errors import ActorRaftError, Unavailable

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = Path(__file__).parent / "scripts"
PATIENCE_S = 60.0  # on a busy machine; never what a test measures

Spawn = Callable[..., Cluster[Any]]  # what the fixture raft_cluster is

T = TypeVar("T")


def eventually(ask: Callable[[], T], *, within_s: float = PATIENCE_S, what: str = "") -> T:
    """Ask until the answer is true, and return it; errors of the library count as no."""
    deadline_s = time.monotonic() + within_s
    answer: Any = None
    while True:
        try:
            answer = ask()
        except (ActorRaftError, OSError) as error:
            answer = None
            what = f"{what} ({error})"[:2000]
        if answer:
            return answer  # type: ignore[no-any-return]
        assert time.monotonic() < deadline_s, f"not within {within_s} s: {what or ask}: {answer!r}"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Whether a process is no more (one that nobody has waited for yet is gone too)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def agree(cluster: Cluster[Any], node_ids: list[int] | None = None) -> str:
    """Wait until these nodes have applied equally far, and have equal digests of their state; return the digest."""
    asked = list(cluster.nodes) if node_ids is None else node_ids

    def digest() -> str:
        said = [cluster.digest(node_id) for node_id in asked]
        if len({last_applied for last_applied, _ in said}) != 1:
            return ""
        assert len({digest for _, digest in said}) == 1, f"replicas differ: {dict(zip(asked, said, strict=True))}"
        return said[0][1]

    return eventually(digest, what=f"nodes {asked} applied equally far")


def refused(call: Callable[[float], Any], match: str, error: type[ActorRaftError] = Unavailable) -> None:
    """Call with a short deadline, and with longer ones as long as nobody was heard in time who says why it is refused."""
    for timeout in (2.0, 10.0, 30.0):
        with pytest.raises(error) as caught:
            call(timeout)
        if re.search(match, str(caught.value)):
            return
    raise AssertionError(f"it says nothing like {match!r}: {caught.value}")


def follower_of(cluster: Cluster[Any]) -> int:
    """A node that does not lead."""
    leader = cluster.wait_for_leader()
    return next(node_id for node_id in cluster.nodes if node_id != leader)


def _hear_ctrl_c() -> None:
    """As at a terminal: what a shell starts in the background ignores SIGINT, and so would what that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Script:
    """A Python program that runs beside the test, with a temporary directory and a mark of its own."""

    def __init__(self, *command: str, stdin: str | None = None, cwd: Path = ROOT) -> None:
        self.mark = uuid.uuid4().hex
        self.temporary = Path(tempfile.mkdtemp(prefix="ar-", dir="/tmp"))  # short: socket paths have 107 bytes
        environment = {**os.environ, "ACTORRAFT_TEST": self.mark, "TMPDIR": str(self.temporary)}
        environment["PYTHONPATH"] = str(ROOT)
        environment["PYTHONUNBUFFERED"] = "1"
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=cwd,
            preexec_fn=_hear_ctrl_c,
            process_group=0,  # a Ctrl-C that is meant for the tests is none for it
        )
        if stdin is not None:
            assert self.process.stdin is not None
            self.process.stdin.write(stdin)
            self.process.stdin.close()
            self.process.stdin = None

    def line(self) -> str:
        """Wait for the next line that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().rstrip("\n")
        assert line, f"it ended: {self.finish()}"
        return line

    def finish(self, within_s: float = PATIENCE_S) -> tuple[int, str, str]:
        """Wait for its end; return its code, and what it printed since the last `line`."""
        said, errors = self.process.communicate(timeout=within_s)
        return self.process.returncode, said, errors

    def processes(self) -> list[int]:
        """All processes that carry its mark, itself and zombies left out."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.process.pid:
                with contextlib.suppress(OSError):
                    if self.mark.encode() in (entry / "environ").read_bytes() and not is_gone(int(entry.name)):
                        found.append(int(entry.name))
        return found

    def left_files(self) -> list[str]:
        """What is in its temporary directory."""
        return sorted(str(path.relative_to(self.temporary)) for path in self.temporary.rglob("*"))

    def close(self) -> None:
        """Leave nothing of it."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            close_quietly(stream)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.temporary, ignore_errors=True)


def close_quietly(stream: IO[str] | None) -> None:
    """Close a pipe whose other side may be gone."""
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.close()


@contextlib.contextmanager
def running(*command: str, stdin: str | None = None, cwd: Path = ROOT) -> Iterator[Script]:
    """Run a program for the time of the block."""
    script = Script(*command, stdin=stdin, cwd=cwd)
    try:
        yield script
    finally:
        script.close()


def run(*command: str, stdin: str | None = None, cwd: Path = ROOT, within_s: float = PATIENCE_S) -> str:
    """Run a program to its end, which must be good and leave nothing; return what it printed."""
    with running(*command, stdin=stdin, cwd=cwd) as script:
        code, said, errors = script.finish(within_s)
        assert code == 0, f"exit code {code}\n{said}\n{errors}"
        assert "Traceback" not in errors, errors
        assert script.processes() == [], "processes are left"
        assert script.left_files() == [], "files are left"
        return said
