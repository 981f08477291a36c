"""Public names, and pools of actors behind one ref."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from actorraft.actors.actor import Actor
from actorraft.actors.pool import PoolRef
from actorraft.actors.post import Post
from actorraft.actors.records import UP, Address, Exit, Record, identify, write_record
from actorraft.actors.ref import ActorRef
from actorraft.actors.spawn import ActorOptions, actor_ref
from actorraft.errors import StartError, UsageError
from tests.actors.helpers import until

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
Start = Callable[..., ActorRef]
OTHER = """
import os, sys
from actorraft import ActorDead, UsageError, actor_ref
try:
    ref = actor_ref(sys.argv[1])
    print(ref.ask(("double", 21)).result())
except UsageError as error:
    print(error)
"""


class Doubler(Actor):
    """Doubles, and says in which process."""

    def receive(self, message: Any) -> Any:
        return (os.getpid(), message) if message[0] != "double" else 2 * message[1]


def other_process(name: str, tmp_path: Path) -> str:
    """Ask the actor of this name from a process that nothing here has started, with another TMPDIR."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", OTHER, name], capture_output=True, text=True, timeout=60, env=environment
    )
    return done.stdout.strip() or done.stderr


def test_a_public_actor_is_found_by_any_process_of_the_user_until_its_end(start: Start, tmp_path: Path) -> None:
    name = f"public-{os.getpid()}"
    ref = start(Doubler, name=name, public=True)

    assert other_process(name, tmp_path) == "42"
    ref.restart()
    assert other_process(name, tmp_path) == "42"
    ref.kill()
    assert "no actor named" in other_process(name, tmp_path)


def test_who_watches_an_actor_whose_owner_is_killed_is_told() -> None:
    name = f"public-{os.getpid()}"
    script = (
        "from actorraft import ActorOptions\nfrom tests.actors.helpers import Echo\n"
        f"ActorOptions(name={name!r}, public=True).spawn(Echo)\nprint(flush=True)\ninput()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    exits: list[Exit] = []
    with owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        ref = actor_ref(name)
        ref.watch(exits.append)
        assert ref.ask("there", timeout=20.0).result(20.0) == "there"
        owner.kill()

    until(lambda: exits)
    assert [(each.name, each.restarting) for each in exits] == [(name, False)]


def test_who_watches_several_actors_is_told_of_each_when_their_owner_ends() -> None:
    """Their directory goes at once, before anybody could read how they ended."""
    me, exits = identify(os.getpid()), list[Exit]()
    with tempfile.TemporaryDirectory() as there:
        run_dir = Path(there) / "run"
        run_dir.mkdir(mode=0o700)
        post = Post()
        for number in range(4):
            endpoint = f"ipc://{run_dir}/actor-{number}.0"
            write_record(Record(endpoint, 10, me, me, UP))
            post.watch(post.box(Address(f"actor-{number}", endpoint, 10, 10_000)), exits.append)
        run_dir.rename(Path(there) / "gone")

        until(lambda: len(exits) == 4)
        post.close()
    assert sorted((each.name, each.restarting) for each in exits) == [(f"actor-{number}", False) for number in range(4)]


def test_what_a_script_tells_a_public_actor_before_it_ends_arrives(start: Start, tmp_path: Path) -> None:
    class Counting(Actor):
        def on_start(self) -> None:
            self.taken = 0

        def receive(self, message: Any) -> int:
            self.taken += message == "job"
            return self.taken

    name = f"public-{os.getpid()}"
    ref = start(Counting, name=name, public=True)
    script = (
        "from actorraft import actor_ref\nfrom tests.actors.helpers import take_time_to_leave\ntake_time_to_leave()\n"
        f"ref = actor_ref({name!r})\nfor _ in range(100): ref.tell('job')"
    )

    subprocess.run([sys.executable, "-c", script], timeout=60, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})

    assert ref.ask("?", timeout=20.0).result(20.0) == 100


def test_what_a_script_tells_actors_of_its_own_before_it_ends_is_taken(tmp_path: Path) -> None:
    script = (
        "from actorraft import spawn\nfrom tests.actors.helpers import Noting, take_time_to_leave\n"
        f"take_time_to_leave()\nref = spawn(Noting, {str(tmp_path / 'noted')!r})\n"
        "for _ in range(100): ref.tell('job')"
    )

    subprocess.run([sys.executable, "-c", script], timeout=60, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})

    assert (tmp_path / "noted").read_text() == "job\n" * 100


def test_an_actor_that_is_not_public_is_found_by_its_own_tree_alone(start: Start, tmp_path: Path) -> None:
    name = f"private-{os.getpid()}"
    start(Doubler, name=name)

    assert actor_ref(name).ask(("double", 1)).result(20.0) == 2
    assert "no actor named" in other_process(name, tmp_path)


def test_a_public_actor_needs_a_name_and_a_name_has_letters() -> None:
    with pytest.raises(UsageError, match="name"):
        ActorOptions(public=True)
    with pytest.raises(UsageError, match="name has letters"):
        actor_ref("../../etc/passwd")


def test_a_pool_gives_each_worker_its_turn_and_a_key_always_the_same_worker(start: Start) -> None:
    turns = start(Doubler, pool=3)
    by_key = start(Doubler, pool=3, route=lambda message: message[0])
    assert isinstance(turns, PoolRef)

    assert len({turns.ask(("where", 0), timeout=20.0).result()[0] for _ in range(3)}) == 3
    for key in ("a", "b", "c"):
        assert len({by_key.ask((key, number), timeout=20.0).result()[0] for number in range(4)}) == 1
    for number in range(4):
        same = (number, float(number), Fraction(number))
        assert len({by_key.ask((key, 0), timeout=20.0).result()[0] for key in same}) == 1
    assert turns.is_alive()
    turns.stop()
    until(lambda: not turns.is_alive())


def test_what_is_asked_of_all_workers_of_a_pool_needs_no_key(start: Start) -> None:
    pool = start(Doubler, pool=3, route=lambda message: message[0])
    assert isinstance(pool, PoolRef)
    for number in range(6):
        pool.ask((str(number), 0), timeout=20.0).result()

    assert pool.counts() == {"messages": 6, "failures": 0}
    assert dir(pool.proxy()) == dir(pool.workers[0].proxy())
    assert pool.debt == 0
    assert pool != pool.workers[0]
    assert pool == pickle.loads(pickle.dumps(PoolRef(pool.workers, "round_robin")))


def test_the_least_loaded_worker_gets_the_next_message(start: Start, tmp_path: Path) -> None:
    class Gate(Actor):
        def receive(self, message: Any) -> Any:
            while message == "block" and not (tmp_path / "open").exists():
                pass
            return os.getpid()

    ref = start(Gate, pool=2, route="least_loaded")
    assert isinstance(ref, PoolRef)
    blocked = ref.ask("block", timeout=60.0)

    pids = {ref.ask("next", timeout=20.0).result() for _ in range(4)}

    (tmp_path / "open").touch()
    assert len(pids) == 1
    assert blocked.result(20.0) not in pids


def test_a_pool_of_which_one_does_not_start_leaves_none() -> None:
    class Failing(Actor):
        def __init__(self) -> None:
            raise RuntimeError("not today")

    with pytest.raises(StartError, match="not today"):
        ActorOptions(pool=2).spawn(Failing)
    with pytest.raises(UsageError, match="route"):
        ActorOptions(pool=2, route="anyhow")
    with pytest.raises(UsageError, match="pool"):
        ActorOptions(pool=0)
