"""Starting in odd surroundings: it works there, or is refused by name and with what to do, before anything is made."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actorraft import CommandObjects, RaftConfig, ReplicatedStateMachine, StartError, UsageError
from actorraft.node.spec import NodeSpec
from actorraft.storage.portable import PortableInfo, write_portable
from benchmarks.others.processes import free_ports
from tests.cluster.helpers import ROOT, Spawn, agree, eventually, follower_of, is_gone

pytestmark = pytest.mark.cluster

SITE = str(Path(pytest.__file__).parent.parent)


def python(program: str, *flags: str, **options: Any) -> str:
    """Run a program that finds this checkout whatever the flags; return what it printed."""
    head = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {SITE!r}]\n"
    run = subprocess.run(
        [sys.executable, *flags, "-c", head + program],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        **options,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


# --- The same hash everywhere ---

SETS = """
import threading, os
from actorraft import ReplicatedStateMachine
def ask():
    with ReplicatedStateMachine(set).spawn(3) as cluster:
        for i in range(40): cluster.execute(lambda s, i=i: s.update({f"w-{i}", ("t", f"{i}"), frozenset({f"f{i}"})}))
        last = cluster.submit(len); last.result()
        seen = {cluster.query(lambda s: repr(list(s)), to=i) for i in range(3)}
        flags = cluster.query(lambda s: __import__("os").environ.get("PYTHONSTARTUP"))
        print(len(seen), flags)
"""


@pytest.mark.parametrize(
    "flags", [(), ("-E",), ("-I",), ("-E", "-I", "-s"), ("-I", "-O"), ("-E", "-P"), ("-s", "-E", "-X", "utf8")]
)
@pytest.mark.parametrize("where", ["main", "thread", "fork"])
def test_sets_iterate_alike_on_all_nodes_whatever_the_interpreters_options(flags: tuple[str, ...], where: str) -> None:
    call = {
        "main": "ask()",
        "thread": "t = threading.Thread(target=ask); t.start(); t.join()",
        "fork": "pid = os.fork()\nif pid: os.waitpid(pid, 0)\nelse:\n    ask(); sys.stdout.flush(); os._exit(0)",
    }[where]
    assert python(SETS + call, *flags, env={**os.environ, "PYTHONHASHSEED": "7"}).split()[0] == "1"


def test_what_an_interpreter_was_told_to_ignore_stays_away_from_its_nodes() -> None:
    environment = {**os.environ, "PYTHONSTARTUP": "/somewhere", "PYTHONWARNINGS": "error"}
    assert python(SETS + "ask()", "-E", env=environment).split() == ["1", "None"]
    assert python(SETS + "ask()", env=environment | {"PYTHONWARNINGS": ""}).split() == ["1", "/somewhere"]


# --- Refused by name ---

BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"timeout": "x"}, "timeout"),
    ({"timeout": float("nan")}, "timeout"),
    ({"timeout": None}, "timeout"),
    ({"timeout": -1}, "timeout"),
    ({"timeout": True}, "timeout"),
    ({"data_dir": "a\0b"}, "data_dir"),
    ({"data_dir": 7}, "data_dir"),
    ({"data_dir": ""}, "data_dir"),
    ({"from_snapshot": "a\0b"}, "from_snapshot"),
    ({"durability": "fast"}, "durability"),
    ({"transport": ["tcp"]}, "transport"),
    ({"config": {}}, "config"),
    ({"supervision": "permanent"}, "supervision"),
    ({"name": 5}, "name"),
    ({"listen": "127.0.0.1:7100"}, "listen"),
    ({"listen": ["127.0.0.1"]}, "listen"),
    ({"listen": ["10.0.0.1:7100"]}, "keys"),
    ({"listen": ["127.0.0.1:7100", "127.0.0.1:7101"]}, "7101"),
    ({"listen": ["127.0.0.1:65535"]}, "65534"),
    ({"listen": [7100]}, "listen"),
    ({"nodes": 3, "listen": ["127.0.0.1:7100"]}, "one a node"),
]


@pytest.mark.parametrize(("options", "named"), BAD_OPTIONS)
def test_an_option_that_cannot_be_is_refused_by_its_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        ReplicatedStateMachine(dict).spawn(**options)


class Frame:
    """Like a DataFrame: its apply is not a machine's."""

    def apply(self, func: Any, axis: int = 0, *args: Any, **kwargs: Any) -> Any: ...


class Pipe:
    def apply(self) -> None: ...


class Two:
    def apply(self, one: Any, other: Any) -> None: ...


class Machine:
    def apply(self, command: Any) -> Any: ...


class Keeps:
    def apply(self, command: Any, verbose: bool = False) -> Any: ...

    def snapshot(self) -> Any: ...


def test_a_class_whose_apply_is_no_machines_is_pointed_to_command_objects() -> None:
    for cls in (Frame, Pipe, Two):
        with pytest.raises(UsageError, match=rf"ReplicatedStateMachine\(CommandObjects, {cls.__name__}\)"):
            ReplicatedStateMachine(cls)
        ReplicatedStateMachine(CommandObjects, cls)
    ReplicatedStateMachine(Machine)
    ReplicatedStateMachine(Keeps)


@pytest.mark.parametrize(
    "executable", ["''", "None", "'/bin/sleep'", "'/usr/bin/tail'", "'/no/such/python3'", "'/bin/cat'"]
)
def test_a_program_without_an_interpreter_is_told_so_at_once(executable: str) -> None:
    program = (
        f"sys.executable = {executable}\nfrom actorraft import *\n"
        "for call in (lambda: ReplicatedStateMachine(dict).spawn(3), lambda: ActorOptions().spawn(Actor)):\n"
        "    try: call()\n    except UsageError as error: print(error)\n"
    )
    assert python(program).count("sys.executable is") == 2


@pytest.mark.parametrize("frozen", ["sys.frozen = True", "__compiled__ = 1", "sys.frozen = 'console_exe'"])
def test_a_frozen_program_does_not_start_itself(frozen: str) -> None:
    program = f"{frozen}\nfrom actorraft import *\ntry: ReplicatedStateMachine(dict).spawn(3)\nexcept UsageError as error: print(error)\n"
    assert "frozen" in python(program)


@pytest.mark.parametrize(
    "what",
    ["ReplicatedStateMachine(dict).spawn(3)", "ReplicatedStateMachine(dict).spawn(9)", "ActorOptions().spawn(Actor)"],
)
@pytest.mark.parametrize("spare", [0, 3, 10, 20])
def test_too_few_descriptors_are_named_with_the_way_out(what: str, spare: int) -> None:
    program = (
        "import os, resource\nfrom actorraft import *\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) + {spare}, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        f"try: {what}\nexcept StartError as error: print(error)\n"
    )
    assert "ulimit -n" in python(program)


# --- Where it works ---


@pytest.mark.parametrize("what", ["cluster", "actor", "replicated actor"])
def test_a_working_directory_that_is_gone_is_no_hindrance(what: str, tmp_path: Path) -> None:
    call = {
        "cluster": "with ReplicatedStateMachine(dict).spawn(3) as c: print(c.execute(len))",
        "actor": "print(len(spawn(Echo).ask('').result()))",
        "replicated actor": "print(len(ActorOptions(replicas=3).spawn(Echo).ask('').result()))",
    }[what]
    (gone := tmp_path / "gone").mkdir()
    program = (
        f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})\nfrom actorraft import *\n"
        f"class Echo(Actor):\n    def receive(self, message): return message\n{call}\n"
    )
    assert python(program).split() == ["0"]


EVERYTHING = """
import ctypes
from actorraft import *
class Echo(Actor):
    def receive(self, message): return message
def rename(state): ctypes.CDLL(None).prctl(15, b"\\xc3\\xa4" * 7 + b"\\xc3", 0, 0, 0)
rename(None)
with ReplicatedStateMachine(dict).spawn(1, transport=%r, data_dir=%r) as c:
    c.execute(rename); c.nodes[0].pause(); c.nodes[0].resume(); c.nodes[0].restart()
    print(c.query(len), spawn(Echo).ask(1).result(), end=" ")
    ActorOptions(name=%r, public=True).spawn(Echo)
    print(actor_ref(%r).ask(2).result(), c.export_snapshot(%r).exists())
"""


def test_the_name_of_a_process_may_be_any_bytes(tmp_path: Path) -> None:
    """The system cuts it at fifteen, in the middle of a letter too."""
    name = f"odd-{os.getpid()}"
    program = EVERYTHING % ("ipc", str(tmp_path / "data"), name, name, str(tmp_path / "copy"))
    assert python(program).split() == ["0", "1", "2", "True"]


def test_no_file_is_read_or_written_by_what_a_machine_takes_for_its_encoding(tmp_path: Path) -> None:
    name = f"plain-{os.getpid()}"
    program = EVERYTHING % ("tcp", str(tmp_path / "data"), name, name, str(tmp_path / "copy"))
    flags = ("-X", "warn_default_encoding", "-W", "error::EncodingWarning")
    assert python(program, *flags).split() == ["0", "1", "2", "True"]


def test_nodes_of_a_program_that_holds_all_signals_back_leave_when_asked() -> None:
    program = (
        "import signal\nfrom actorraft import *\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
        "with ReplicatedStateMachine(dict).spawn(1) as c:\n"
        "    c.nodes[0].stop(); print(c._processes.find(0).returncode)\n"
    )
    assert python(program).split() == ["0"]


@pytest.mark.parametrize("path", ["", "lib"])
def test_a_program_that_changes_its_directory_keeps_what_its_nodes_are_started_with(path: str, tmp_path: Path) -> None:
    (tmp_path / path).mkdir(exist_ok=True)
    (tmp_path / path / "shop_of_a_relative_path.py").write_text(
        "from actorraft import Actor, StateMachine, command\n"
        "class Shop(StateMachine):\n    @command\n    def sell(self): return 1\n"
        "class Clerk(Actor):\n    def receive(self, message): return message\n"
    )
    program = (
        f"import os; os.chdir({str(tmp_path)!r}); sys.path.insert(0, {path!r})\n"
        "from actorraft import *\nfrom shop_of_a_relative_path import Shop, Clerk\n"
        "with ReplicatedStateMachine(Shop).spawn(1) as c:\n"
        "    clerk = spawn(Clerk); os.chdir('/'); c.nodes[0].restart(); clerk.restart()\n"
        "    print(c.proxy(timeout=30).sell(), clerk.ask(2, timeout=30).result())\n"
    )
    assert python(program).split() == ["1", "2"]


def test_a_relative_path_without_a_working_directory_is_refused_by_name(tmp_path: Path) -> None:
    (gone := tmp_path / "gone").mkdir()
    program = (
        f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})\nfrom actorraft import *\n"
        "try: ReplicatedStateMachine(dict).spawn(3, data_dir='here')\nexcept UsageError as error: print(error)\n"
    )
    assert "working directory" in python(program)


@pytest.mark.parametrize("name", ["x" * 10, "x" * 60, "x" * 100, "x" * 180, "a b ü", os.fsdecode(b"\xff\xfe")])
def test_a_temporary_directory_may_have_any_path(tmp_path: Path, name: str) -> None:
    long = tmp_path / name
    long.mkdir()
    program = (
        "from actorraft import *\n"
        "class Echo(Actor):\n    def receive(self, message): return message\n"
        "with ReplicatedStateMachine(dict).spawn(3) as c: print(c.execute(len))\n"
        "print(ActorOptions(name='n' * 40).spawn(Echo).ask(0).result())\n"
        "print(ActorOptions(replicas=3, name='m' * 40).spawn(Echo).ask(0).result())\n"
    )
    assert python(program, env={**os.environ, "TMPDIR": str(long)}).split() == ["0", "0", "0"]
    assert list(long.iterdir()) == []


def test_listen_gives_each_node_its_ports_over_restarts_and_spawns(raft_cluster: Spawn, tmp_path: Path) -> None:
    first, second, third = free_ports(3)
    listen = [f"127.0.0.1:{first}", f"127.0.0.1:{second}", f"tcp://localhost:{third}"]
    expected = {0: first + 1, 1: second + 1, 2: third + 1}
    for _ in range(2):
        with raft_cluster(dict, data_dir=tmp_path / "data", listen=listen) as cluster:
            cluster.execute(lambda d: d.update(a=1))
            cluster.nodes[0].restart()
            ports = {i: int(at.partition("#")[0].rpartition(":")[2]) for i, at in cluster.endpoints.items()}
            assert ports == expected
            assert cluster.query(len) == 1


def test_spawn_async_takes_what_spawn_takes() -> None:
    one, other = (
        inspect.signature(each).parameters
        for each in (ReplicatedStateMachine.spawn, ReplicatedStateMachine.spawn_async)
    )
    assert dict(one) == dict(other)


# --- Nothing is left, and nothing in others' reach ---


def test_a_removed_node_leaves_neither_folder_nor_socket_nor_output(raft_cluster: Spawn, tmp_path: Path) -> None:
    cluster = raft_cluster(dict, nodes=3, data_dir=tmp_path / "data")
    victim = follower_of(cluster)
    cluster.execute(lambda d: d.update(a=1))
    cluster.remove_node(victim)
    assert not (tmp_path / "data" / f"node-{victim}").exists()
    assert [path.name for path in cluster._processes.place.run_dir.iterdir() if str(victim) in path.name] == []
    assert cluster.add_node() == 3  # never given twice


@pytest.mark.parametrize("planted", ["link", "dangling link", "file", "link to a device", "hard link"])
def test_an_export_is_nobody_elses_to_read_and_goes_through_no_link(tmp_path: Path, planted: str) -> None:
    victim = tmp_path / "precious"
    victim.write_text("precious")
    for name in ("state", "state.tmp"):
        file = tmp_path / name
        if planted == "link":
            file.symlink_to(victim)
        elif planted == "dangling link":
            file.symlink_to(tmp_path / f"not-there-{name}")
        elif planted == "file":
            file.write_text("older")
        elif planted == "hard link":
            file.hardlink_to(victim)
        else:
            file.symlink_to("/dev/null")
    before = os.umask(0)
    try:
        written = write_portable(tmp_path / "state", PortableInfo(machine="m:M", term=1, index=1), [b"state"])
    finally:
        os.umask(before)
    assert victim.read_text() == "precious"
    assert not list(tmp_path.glob("not-there-*"))
    assert (written.is_symlink(), written.stat().st_mode & 0o777) == (False, 0o600)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "state", "state.tmp"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_root_does_not_take_another_users_directory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    os.chown(tmp_path / "data", 12345, -1)
    with pytest.raises(UsageError, match=r"12345.*uid 0"):
        ReplicatedStateMachine(dict).spawn(1, data_dir=tmp_path / "data")


def test_a_nodes_secret_is_not_shown(raft_cluster: Spawn) -> None:
    processes = raft_cluster(dict, nodes=1, transport="tcp")._processes
    spec = processes.spec(0)
    assert isinstance(spec, NodeSpec)
    assert spec.keys is not None
    assert spec.keys.own.secret not in repr(spec)
    assert spec.keys.own.secret not in repr(spec.keys)


# --- What returns has happened ---


class Falls:
    """A machine whose state cannot be taken up once a file says so."""

    def __init__(self, mark: str) -> None:
        self.mark, self.taken = mark, 0

    def apply(self, command: Any) -> int:
        self.taken += 1
        return self.taken

    def snapshot(self) -> int:
        return self.taken

    def restore(self, state: int) -> None:
        if os.path.exists(self.mark):
            raise ValueError("this state is from the moon")
        self.taken = state


@pytest.mark.parametrize("how", ["restart", "add_node", "restart of one that was killed"])
def test_a_node_that_dies_of_its_snapshot_is_not_said_to_serve(raft_cluster: Spawn, tmp_path: Path, how: str) -> None:
    mark = tmp_path / "mark"
    cluster = raft_cluster(
        ReplicatedStateMachine(Falls, str(mark)), nodes=3, supervision=None, config=RaftConfig(trailing_entries=0)
    )
    for number in range(10):
        cluster.execute(number)
    agree(cluster)  # else a follower that started late has nothing yet that a snapshot could hold
    assert len(cluster.take_snapshot()) == 3
    mark.touch()
    victim = follower_of(cluster)
    call: Callable[[], Any] = cluster.nodes[victim].restart
    if how == "add_node":
        from actorraft.cluster.cluster import Cluster

        assert isinstance(cluster, Cluster)
        call = cluster.add_node
    elif how != "restart":
        cluster.nodes[victim].kill()
    if how == "add_node":
        with pytest.raises((StartError, UsageError), match="moon"):
            call()
        return
    with pytest.raises(StartError, match="moon"):
        call()
    mark.unlink()
    call()
    assert cluster.nodes[victim].alive


def test_nodes_that_died_together_are_started_side_by_side(raft_cluster: Spawn, tmp_path: Path) -> None:
    """One that hangs while it starts holds up nobody."""
    mark = tmp_path / "hang"

    def make(mark: str) -> dict[str, int]:
        import os
        import time

        while os.path.exists(mark):
            try:
                os.mkdir(mark + ".first")  # the first of those that start hangs, whichever it is
            except FileExistsError:
                break
            time.sleep(60)
        return {}

    cluster = raft_cluster(ReplicatedStateMachine(make, str(mark)), nodes=5)
    leader = cluster.wait_for_leader()
    victims = [node_id for node_id in cluster.nodes if node_id != leader][:2]
    mark.touch()
    old = [cluster.nodes[victim].pid or 0 for victim in victims]
    for pid in old:
        os.kill(pid, 9)
    eventually(lambda: all(map(is_gone, old)))
    eventually(lambda: sum(row.error is None for row in cluster.status()) == 4, within_s=25.0)  # a start may take 30
    mark.unlink()
    threading.Event().wait(0)
