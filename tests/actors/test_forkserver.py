"""The server that actors are forked from: a fork is what a fresh interpreter would be, and nobody hangs on the server."""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from actorraft.actors import forkserver, system
from actorraft.actors.forkserver import Forked, ForkServer
from actorraft.actors.process import ActorProcess
from actorraft.actors.ref import ActorRef
from actorraft.actors.spawn import ActorOptions
from actorraft.actors.surroundings import environment, inherited
from actorraft.actors.system import close_system
from actorraft.errors import StartError
from tests.actors.helpers import Echo, parent_of, until
from tests.cluster.helpers import is_gone

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(inherited() is None, reason="children are not forked on this system"),
]

ROOT = Path(__file__).resolve().parents[2]
LOGGER = logging.getLogger("actorraft.test")
Start = Callable[..., ActorProcess]


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[ForkServer]:
    """A server that is closed at the end of the test."""
    server = ForkServer(tmp_path)
    yield server
    server.close()


@pytest.fixture
def start(tmp_path: Path, forks: ForkServer) -> Iterator[Start]:
    """Start processes, forked if nothing else is said, that are closed at the end of the test."""
    started: list[ActorProcess] = []

    def start_one(target: Callable[..., Any], *args: Any, **options: Any) -> ActorProcess:
        name = f"process {len(started)}"
        process = ActorProcess(
            target, args, **{"name": name, "run_dir": tmp_path, "logger": LOGGER, "forks": forks, **options}
        )
        started.append(process)
        process.start()
        return process

    yield start_one
    for process in started:
        process.close()


def is_forked(process: ActorProcess) -> bool:
    return isinstance(process._popen, Forked)


def children_of(pid: int) -> set[str]:
    return {word for each in Path(f"/proc/{pid}/task").glob("*/children") for word in each.read_text().split()}


# --- What runs in the children ---


def _tell_all(context: Any) -> None:
    """Report what a process has from its parent, and what it has loaded."""
    import gc
    import resource
    import stat
    import threading

    limits = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
    umask = os.umask(0)
    os.umask(umask)
    context.report(
        {
            "environment": dict(os.environ),
            "directory": os.getcwd(),
            "path": sys.path,
            "argv": sys.argv,
            "flags": str(sys.flags),
            "streams": [(each.encoding, each.errors, each.line_buffering) for each in (sys.stdout, sys.stderr)],
            "input": sys.stdin.read(),
            "leads its group": os.getpgrp() == os.getpid(),
            "session": os.getsid(0),
            "handlers": {
                number: str(signal.getsignal(number)).partition(" at ")[0] for number in signal.valid_signals()
            },
            "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            "umask": umask,
            "limits": [resource.getrlimit(each) for each in limits],
            "affinity": os.sched_getaffinity(0),
            "descriptors": sorted(stat.S_IFMT(os.fstat(fd).st_mode) for fd in _open_fds()),
            "heirlooms": [fd for fd in _open_fds() if fd > 2 and os.get_inheritable(fd)],
            "threads": threading.active_count(),
            "main": sorted(vars(sys.modules["__main__"])),
            "collects": gc.isenabled(),
            "handed down": Path("/proc/self/environ").read_bytes(),
        }
    )


def _open_fds() -> list[int]:
    fds = []
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:  # of the list itself
            continue
        fds.append(int(name))
    return fds


def _say(context: Any) -> None:
    context.report("up")
    while (order := context.receive(None)) is not None:
        context.report(order)


# --- A fork is as a fresh interpreter ---


def test_a_fork_has_all_that_a_fresh_interpreter_has(start: Start) -> None:
    forked, fresh = start(_tell_all), start(_tell_all, forks=None)

    assert is_forked(forked)
    assert not is_forked(fresh)
    had, has = fresh.receive(30.0), forked.receive(30.0)
    assert {name: (had[name], has[name]) for name in had if had[name] != has[name]} == {}


def test_what_changes_in_the_parent_holds_for_the_next_child(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(_say).receive(30.0)

    def told() -> dict[str, Any]:
        process = start(_tell_all)
        assert is_forked(process)
        said: dict[str, Any] = process.receive(30.0)
        return said

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("somewhere")
    monkeypatch.setattr(sys, "argv", ["another", "argument"])
    said = told()
    assert said["directory"] == str(tmp_path)
    assert said["path"][0] == str(tmp_path / "somewhere")
    assert said["argv"] == ["another", "argument"]

    monkeypatch.setenv("ACTORRAFT_TEST_WORD", "word")
    umask, limit = os.umask(0o027), resource.getrlimit(resource.RLIMIT_CORE)
    handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, limit[1]))
    try:
        said = told()
    finally:
        os.umask(umask)
        signal.signal(signal.SIGUSR2, handler)
        resource.setrlimit(resource.RLIMIT_CORE, limit)
    assert said["environment"]["ACTORRAFT_TEST_WORD"] == "word"
    assert said["umask"] == 0o027
    assert said["handlers"][signal.SIGUSR2] == str(signal.SIG_IGN)
    assert (0, limit[1]) in said["limits"]


def test_a_child_with_an_environment_or_a_program_of_its_own_is_a_fresh_interpreter(start: Start) -> None:
    assert not is_forked(start(_say, hash_seed=1))
    assert not is_forked(start(_say, launch_prefix=["nice"]))


def test_what_changes_while_the_server_starts_stays_with_no_child(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(more: Mapping[str, str]) -> dict[str, str]:
        return {**environment(more), "ACTORRAFT_TEST_WORD": os.environ.setdefault("ACTORRAFT_TEST_WORD", "word")}

    monkeypatch.setenv("ACTORRAFT_TEST_WORD", "")
    monkeypatch.delenv("ACTORRAFT_TEST_WORD")
    monkeypatch.setattr(forkserver, "environment", changed)
    first = start(_tell_all)
    monkeypatch.setattr(forkserver, "environment", environment)
    del os.environ["ACTORRAFT_TEST_WORD"]

    second = start(_tell_all)

    assert is_forked(first)
    assert is_forked(second)
    assert first.receive(30.0)["environment"]["ACTORRAFT_TEST_WORD"] == "word"
    assert "ACTORRAFT_TEST_WORD" not in second.receive(30.0)["environment"]


def test_a_fork_that_cannot_begin_says_why(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: real(__file__ if path == "." else path, *rest, **more))

    process = start(_say)

    with pytest.raises(StartError, match="NotADirectoryError"):
        process.receive(30.0)


def test_actors_that_are_started_side_by_side_come_from_one_server() -> None:
    with ThreadPoolExecutor(8) as starting:
        refs: list[ActorRef] = list(starting.map(lambda _: ActorOptions().spawn(Echo), range(8)))
    try:
        assert [ref.ask(number, 30.0).result() for number, ref in enumerate(refs)] == list(range(8))
        servers = {parent_of(parent_of(ref.pid or 0)) for ref in refs}
        assert len(servers) == 1
        assert parent_of(servers.pop()) == os.getpid()
    finally:
        close_system()


# --- Nobody hangs on the server ---


def test_children_live_on_without_the_server_and_the_next_one_has_another(start: Start, forks: ForkServer) -> None:
    first = start(_say)
    first.receive(30.0)
    server = forks._server
    assert server is not None

    os.kill(server.pid, signal.SIGKILL)
    until(lambda: is_gone(server.pid))
    second = start(_say)

    assert second.receive(30.0) == "up"
    first.send("still here")
    assert first.receive(30.0) == "still here"
    assert is_forked(second)
    first.kill()
    assert first.wait(30.0) == -signal.SIGKILL


def test_a_server_that_is_ended_as_soon_as_it_has_answered_takes_no_child_along(
    start: Start, forks: ForkServer
) -> None:
    processes = []
    for _ in range(5):
        processes.append(start(_say))
        forks.close()

    assert [process.receive(30.0) for process in processes] == ["up"] * 5
    assert all(map(is_forked, processes))


def test_a_server_that_does_not_answer_is_ended_and_a_child_comes_up_without_it(
    start: Start, forks: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(_say).receive(30.0)
    server = forks._server
    assert server is not None
    os.kill(server.pid, signal.SIGSTOP)
    monkeypatch.setattr(forkserver, "FORK_S", 0.2)

    assert start(_say).receive(30.0) == "up"
    assert is_gone(server.pid)


def test_a_python_that_has_threads_from_its_start_is_not_forked(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    program = (
        "import os\nfrom actorraft import spawn\nfrom tests.actors.helpers import Echo, parent_of\n"
        "refs = [spawn(Echo) for _ in range(2)]\n"
        "print([ref.ask(1, 30.0).result() for ref in refs], {parent_of(parent_of(ref.pid)) for ref in refs} == {os.getpid()})\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}

    said = subprocess.check_output([sys.executable, "-c", program], env=environment, cwd=ROOT, text=True, timeout=60)

    assert said.split() == ["[1,", "1]", "True"]


def test_where_no_process_can_be_held_children_are_fresh_and_nobody_is_left(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    before = children_of(os.getpid())
    monkeypatch.setattr(os, "pidfd_open", forbidden)

    process = start(_say)

    assert process.receive(30.0) == "up"
    assert not is_forked(process)
    process.close()
    assert children_of(os.getpid()) - before == set()


# --- And nothing of it is left ---


def test_an_owner_that_has_become_another_user_ends_them_all_the_same() -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    program = (
        "import os, sys, tempfile\nfrom actorraft.actors.forkserver import ForkServer\n"
        "from actorraft.actors.process import ActorProcess\nfrom pathlib import Path\n"
        "from tests.actors.test_forkserver import LOGGER, _say\nfrom tests.actors.helpers import parent_of\n"
        "with tempfile.TemporaryDirectory() as place:\n"
        "    os.chmod(place, 0o777)\n"
        "    forks = ForkServer(Path(place))\n"
        "    process = ActorProcess(_say, name='one', run_dir=Path(place), logger=LOGGER, forks=forks)\n"
        "    process.start()\n    process.receive(30.0)\n"
        "    pids = process.pid, parent_of(process.pid), parent_of(parent_of(process.pid))\n"
        "    assert pids[2] != os.getpid()\n"
        "    os.setresuid(65534, 65534, 0)\n"
        "    process.close()\n    forks.close()\n"
        "    os.seteuid(0)\n"
        "print(*pids)\n"
    )

    said = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True, timeout=60)

    until(lambda: all(is_gone(int(pid)) for pid in said.split()))


def test_a_process_that_is_not_gone_in_time_costs_no_descriptor() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        try:
            pidfd = os.pidfd_open(child.pid)
            forked = Forked(child.pid, pidfd)
            with pytest.raises(subprocess.TimeoutExpired):
                forked.wait(0.0)

            del forked
            gc.collect()

            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(pidfd)
        finally:
            child.kill()


def test_an_actor_that_is_being_started_while_all_are_ended_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    before = children_of(os.getpid())

    def made(*args: Any, **more: Any) -> ActorProcess:
        process = ActorProcess(*args, **more)
        close_system()
        return process

    monkeypatch.setattr(system, "ActorProcess", made)

    with pytest.raises(StartError, match="ended before it was started"):
        ActorOptions().spawn(Echo)
    assert children_of(os.getpid()) - before == set()


@pytest.mark.parametrize("stopped", [False, True])
def test_the_server_and_what_it_forked_end_with_a_parent_that_is_killed(stopped: bool) -> None:
    program = (
        "import sys\nfrom actorraft import spawn\nfrom tests.actors.helpers import Echo, parent_of\n"
        "ref = spawn(Echo)\nguardian = parent_of(ref.pid)\nprint(ref.pid, guardian, parent_of(guardian), flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 3
        if stopped:
            os.kill(pids[2], signal.SIGSTOP)
        parent.kill()

    until(lambda: all(is_gone(pid) for pid in pids))


def test_a_closed_server_leaves_no_process_and_no_descriptor(start: Start, forks: ForkServer) -> None:
    before = len(os.listdir("/proc/self/fd"))
    process = start(_say)
    process.receive(30.0)
    server = forks._server
    assert server is not None
    guardian = parent_of(process.pid)

    process.close()
    assert os.readlink(f"/proc/{server.pid}/cwd") == "/"  # which keeps no directory busy
    forks.close()

    assert is_gone(server.pid)
    until(lambda: is_gone(guardian))
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_server_ends_with_the_last_actor_and_comes_back_with_the_next() -> None:
    first, second = ActorOptions().spawn(Echo), ActorOptions().spawn(Echo)
    server = parent_of(parent_of(second.pid or 0))
    first.kill()
    assert not is_gone(server)

    second.kill()

    assert is_gone(server)
    third = ActorOptions().spawn(Echo)
    server = parent_of(parent_of(third.pid or 0))
    assert third.ask("again", 30.0).result() == "again"
    third.stop()
    until(lambda: is_gone(server))


def test_a_fork_of_the_parent_leaves_the_server_to_it_and_has_one_of_its_own() -> None:
    program = (
        "import os\nfrom actorraft import spawn\nfrom tests.actors.helpers import Echo, parent_of\n"
        "first = spawn(Echo)\npid = os.fork()\n"
        "ref = spawn(Echo)\n"
        "assert parent_of(parent_of(parent_of(ref.pid))) == os.getpid()\n"
        "assert ref.ask(1, 30.0).result() == 1\n"
        "if pid == 0:\n    from actorraft.actors.system import close_system\n    close_system()\n    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert first.ask(2, 30.0).result() == 2\n"
        "assert parent_of(parent_of(spawn(Echo).pid)) == parent_of(parent_of(first.pid))\n"
        "print('done')\n"
    )

    assert subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True, timeout=60) == "done\n"
