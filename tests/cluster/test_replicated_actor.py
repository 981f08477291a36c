"""An actor with replicas: the surface of any actor, and what was told or asked survives the death of a minority."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from actorraft import (
    Actor,
    ActorDead,
    ActorOptions,
    CommandFailed,
    MailboxFull,
    OutcomeUnknown,
    StartError,
    Unavailable,
    UsageError,
    actor_ref,
    context,
    dead_letters,
    spawn,
)
from actorraft.actors.records import Exit
from actorraft.actors.system import close_system
from actorraft.cluster.replicated_actor import ReplicatedActorRef
from tests.cluster.helpers import eventually, is_gone, running

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every process, thread and directory of an actor goes with the system."""
    temporary = tmp_path_factory.mktemp("t")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    close_system()
    before = threading.active_count()
    yield
    close_system()
    eventually(lambda: threading.active_count() <= before, what="threads")
    assert list(temporary.iterdir()) == []


class Counter(Actor):
    """Counts what it is told; a message that is lost or taken twice shows."""

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def on_start(self) -> None:
        self.n = self.start
        self.seen: list[Any] = []

    def receive(self, message: Any) -> Any:
        if isinstance(message, Exception):
            raise message
        self.seen.append(message)
        self.n += message
        return self.n

    def all(self) -> list[Any]:
        """What was told, in order."""
        return self.seen

    def fail(self, text: str) -> None:
        """Raise."""
        raise LookupError(text)

    def drawn(self) -> tuple[float, float]:
        """What is the same on every replica, though it is a draw and a time."""
        return context().random.random(), context().time


class Broken(Actor):
    """Its constructor raises."""

    def __init__(self) -> None:
        raise RuntimeError("not today")


class Slow(Actor):
    """Takes its time."""

    def receive(self, message: float) -> float:
        time.sleep(message)
        return message


def start(cls: Callable[..., Actor] = Counter, *args: Any, **options: Any) -> ReplicatedActorRef:
    ref = ActorOptions(replicas=3, **options).spawn(cls, *args)
    assert isinstance(ref, ReplicatedActorRef)
    return ref


def test_it_is_told_asked_and_called_like_any_actor() -> None:
    ref = start(Counter, 100)
    ref.tell(1)
    assert ref.ask(2).result() == 103
    assert ref.proxy().all() == [1, 2]
    assert ref.proxy().all.submit().result() == [1, 2]
    with pytest.raises(LookupError, match="no such"):
        ref.proxy().fail("no such")
    with pytest.raises(AttributeError, match="no method 'receive'"):
        ref.proxy().receive(1)
    with pytest.raises(ZeroDivisionError):
        ref.ask(ZeroDivisionError()).result()
    ref.tell(ZeroDivisionError())  # nobody is told, and nobody ends
    assert ref.ask(0).result() == 103
    assert 0.0 <= ref.proxy().drawn()[0] < 1.0
    assert ref.is_alive()
    with pytest.raises(UsageError, match="lock"):
        ref.tell(threading.Lock())


def test_the_leader_is_killed_amid_asks_and_nothing_is_lost_or_done_twice() -> None:
    ref = start()
    numbers = iter(range(1_000_000))
    asked, stop = [], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            asked.append(ref.ask(next(numbers), timeout=60.0))
            time.sleep(0.001)

    asking = threading.Thread(target=ask)
    asking.start()
    for _ in range(2):
        leader = ref.cluster.nodes[ref.cluster.wait_for_leader()]
        before = len(asked)
        pid = leader.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda before=before: len(asked) > before and asked[before].done(), what="asks go on")  # type: ignore[misc]
        eventually(lambda leader=leader, pid=pid: leader.pid not in (None, pid), what="it is started again")  # type: ignore[misc]
    stop.set()
    asking.join()
    answers = [future.result() for future in asked]
    told = list(range(len(asked)))
    assert ref.proxy(timeout=60.0).all() == told
    assert answers == [sum(told[: number + 1]) for number in told]


def test_the_state_survives_a_restart_of_every_replica_and_snapshots() -> None:
    ref = start()
    for number in range(10):
        ref.tell(number)
    ref.ask(0).result()
    assert len(ref.cluster.take_snapshot()) == 3
    for node in ref.cluster.nodes.values():
        node.restart()
        assert ref.ask(1, timeout=60.0).result() == 45 + node.id + 1
    assert ref.proxy().all() == [*range(10), 0, 1, 1, 1]


def test_a_minority_alone_does_nothing_and_says_so() -> None:
    ref = start(supervision=None)
    ref.ask(1).result()
    leader = ref.cluster.wait_for_leader()
    for node in ref.cluster.nodes.values():
        if node.id != leader:
            node.kill()
    eventually(lambda: not ref.is_alive(), what="it knows")
    # Which of the two depends on whether the last node knows by now that it leads no more: then it took nothing.
    with pytest.raises((OutcomeUnknown, Unavailable)):
        ref.ask(1, timeout=0.5).result()
    eventually(lambda: ref.cluster.leader() is None, what="nobody leads")
    with pytest.raises(Unavailable):
        ref.ask(1, timeout=0.5).result()


def test_a_mailbox_is_bounded() -> None:
    ref = start(Slow, mailbox_max=3)
    first = ref.ask(3.0)
    ref.tell(0.0)
    ref.tell(0.0)
    with pytest.raises(MailboxFull, match="last 3 messages"):
        ref.tell(0.0)
    assert first.result() == 3.0
    assert eventually(lambda: ref.ask(0.25)).result() == 0.25


def test_a_mailbox_is_bounded_in_bytes_and_what_is_not_taken_is_a_dead_letter() -> None:
    ref = start(Counter, mailbox_bytes_max=100_000, supervision=None)
    for node in ref.cluster.nodes.values():
        node.pause()
    before = dead_letters().total
    with pytest.raises(MailboxFull, match="bytes"):
        for _ in range(20):
            ref.tell("x" * 10_000)
    with pytest.raises(UsageError, match="over"):
        ref.tell("x" * 200_000)
    ref.kill()
    eventually(lambda: dead_letters().total == before + 9, what="dead letters")
    with pytest.raises(ActorDead):
        ref.tell(5)
    assert dead_letters()[-1][:2] + dead_letters()[-1][3:] == (ref.name, "tell", 5)


def test_a_public_one_is_found_by_any_process_of_the_user_until_its_end() -> None:
    name = f"public-{os.getpid()}"
    ref = start(Counter, name=name, public=True)
    script = f"from actorraft import actor_ref; ref = actor_ref({name!r}); print(ref.ask(1).result()); ref.tell(10)"

    def run(script: str = script) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment
        )

    assert run().stdout == "1\n"
    assert ref.ask(0).result() == 11  # what it told before it ended, too
    also_spawns = (
        "from actorraft import ActorOptions, actor_ref\nfrom tests.actors.helpers import Noting, take_time_to_leave\n"
        f"take_time_to_leave()\nActorOptions(replicas=3).spawn(Noting, '')\nref = actor_ref({name!r})\n"
        "for _ in range(100): ref.tell(1)"
    )
    assert run(also_spawns).returncode == 0
    assert ref.ask(0, timeout=20.0).result() == 111
    with pytest.raises(UsageError, match="already"):
        start(Counter, name=name, public=True)
    ref.kill()
    assert "no actor named" in run().stderr


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_after_its_end_it_is_dead_to_everybody(end: str) -> None:
    ref = start(name="mortal")
    exits: list[Exit] = []
    ref.watch(exits.append)
    pids = [node.pid or 0 for node in ref.cluster.nodes.values()]
    answers = [ref.ask(1) for _ in range(100)]
    getattr(ref, end)()
    if end == "stop":
        assert [answer.result() for answer in answers] == list(range(1, 101))
    eventually(lambda: all(is_gone(pid) for pid in pids), what="its processes are gone")
    eventually(lambda: exits, what="the watcher is told")
    assert (exits[-1].name, exits[-1].restarting) == ("mortal", False)
    assert not ref.is_alive()
    with pytest.raises(ActorDead):
        ref.ask(1, timeout=None).result(20.0)
    with pytest.raises(ActorDead):
        ref.tell(1)
    with pytest.raises(UsageError, match="no actor named 'mortal'"):
        actor_ref("mortal")
    ref.stop()
    ref.kill()
    assert start(name="mortal").ask(1).result() == 1


def test_asks_that_wait_for_a_lost_majority_end_with_the_actor() -> None:
    ref = start(supervision=None)
    ref.ask(1).result()
    for node in ref.cluster.nodes.values():
        node.pause()
    asks = [ref.ask(1, timeout=None) for _ in range(10)]
    ref.kill()
    for ask in asks:
        with pytest.raises(ActorDead):
            ask.result(20.0)


def test_watch_tells_of_a_replica_that_died() -> None:
    ref = start()
    exits: list[Exit] = []
    ref.watch(exits.append)
    pid = ref.cluster.nodes[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: exits)
    assert (exits[0].signal, exits[0].restarting) == ("SIGKILL", True)
    assert "replica 0" in exits[0].name


class Doer(Actor):
    """Does what the message says, in its own process."""

    def receive(self, message: Any) -> Any:
        return message(self)


def test_its_ref_travels_and_serves_other_processes() -> None:
    ref = start(name="shared")
    assert actor_ref("shared") == ref
    assert pickle.loads(pickle.dumps(ref)).ask(5).result() == 5
    other = spawn(Doer)
    assert other.ask(lambda actor: ref.ask(4).result(20.0), timeout=20.0).result() == 9
    found = "__import__('actorraft').actor_ref('shared').proxy().all()"
    assert other.ask(lambda actor: eval(found), timeout=20.0).result() == [5, 4]
    with pytest.raises((UsageError, CommandFailed), match="belong to the process that spawned it"):
        other.ask(lambda actor: ref.cluster, timeout=20.0).result()
    other.ask(lambda actor: ref.kill(), timeout=20.0).result()
    eventually(lambda: not ref.is_alive())
    with pytest.raises(ActorDead):
        ref.ask(1, timeout=None).result(20.0)


def test_what_cannot_be_started_says_why_and_leaves_the_name_free() -> None:
    with pytest.raises(StartError, match="RuntimeError: not today"):
        start(Broken, name="later")
    assert start(name="later").ask(1).result() == 1
    with pytest.raises(UsageError, match="there is an actor named 'later' already"):
        start(name="later")
    with pytest.raises(UsageError, match="derives from Actor"):
        start(dict)  # type: ignore[arg-type]
    for wrong in (0, -1, 2.5, "3", True):
        with pytest.raises(UsageError, match="replicas is a whole number"):
            ActorOptions(replicas=wrong)  # type: ignore[arg-type]


def test_a_script_needs_no_guard_and_leaves_nothing() -> None:
    program = (
        "from actorraft import Actor, ActorOptions\n"
        "class Counter(Actor):\n"
        "    def on_start(self): self.n = 0\n"
        "    def receive(self, message):\n"
        "        self.n += message\n"
        "        return self.n\n"
        "ref = ActorOptions(replicas=3).spawn(Counter)\n"
        "ref.tell(1)\n"
        "ref.cluster.nodes[ref.cluster.wait_for_leader()].kill()\n"
        "print(ref.ask(2).result())\n"
    )
    with running("-W", "error", "-", stdin=program) as script:
        assert script.finish() == (0, "3\n", "")
        assert (script.processes(), script.left_files()) == ([], [])
