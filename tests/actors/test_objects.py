"""Objects of classes that only a script has travel between actors, and stay what they are there and here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
import enum, multiprocessing, os, signal, time
from dataclasses import dataclass
from typing import NamedTuple
from actorraft import Actor, ActorDead, ActorOptions, ActorRef, Supervision, spawn

class Colour(enum.Enum):
    RED = 1
    CRIMSON = 1
    BLUE = 2

@dataclass(frozen=True, slots=True)
class Order:
    colour: Colour
    number: int = 1

class Pair(NamedTuple):
    order: Order
    text: str

class Refused(Exception):
    def __init__(self, order, why):
        super().__init__(why)
        self.order = order
"""

pytestmark = pytest.mark.cluster


def run(body: str, tmp_path: Path) -> None:
    """Run a script that says "ok" at its end."""
    script = tmp_path / "script.py"
    script.write_text(HEAD + body + "\nprint('ok')\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout.splitlines()[-1:] == ["ok"], done.stdout + done.stderr


def test_slotted_dataclasses_enums_and_exceptions_of_a_script_stay_what_they_are_on_both_sides(tmp_path: Path) -> None:
    run(
        """
class Keeper(Actor):
    def __init__(self, first):
        assert type(first) is Order and first.colour is Colour.RED and first.colour is Colour.CRIMSON
        self.orders = [first]

    def receive(self, message):
        assert isinstance(message, Order), type(message)
        assert message == Order(message.colour, message.number)
        assert message.colour is Colour.RED or message.colour is Colour.BLUE
        assert not hasattr(message, "__dict__")
        if message.number < 0:
            raise Refused(message, "negative")
        self.orders.append(message)
        return Pair(message, "taken")

ref = spawn(Keeper, Order(Colour.CRIMSON))
Order.seen = "a monkeypatch of the caller"
answer = ref.ask(Order(Colour.BLUE, 7)).result()
assert type(answer) is Pair and type(answer.order) is Order and answer.order == Order(Colour.BLUE, 7), answer
assert answer.order.colour is Colour.BLUE and answer.order.seen == "a monkeypatch of the caller"
try:
    ref.ask(Order(Colour.RED, -1)).result()
except Refused as error:
    assert error.order == Order(Colour.RED, -1)
else:
    raise AssertionError("nothing was raised")
""",
        tmp_path,
    )


def test_they_stay_so_through_several_actors_that_were_not_told_of_them_by_the_script(tmp_path: Path) -> None:
    run(
        """
class Forwarder(Actor):
    def __init__(self, to):
        self.to = to

    def receive(self, message):
        return self.to.ask(message)

class Echo(Actor):
    def receive(self, message):
        return {"back": [message], "kind": type(message).__name__}

ref = spawn(Forwarder, spawn(Forwarder, spawn(Echo)))
answer = ref.ask(Order(Colour.BLUE, 3)).result()
assert answer == {"back": [Order(Colour.BLUE, 3)], "kind": "Order"}, answer
assert answer["back"][0].colour is Colour.BLUE and type(answer["back"][0]) is Order
""",
        tmp_path,
    )


def test_an_actor_that_starts_again_knows_the_classes_of_messages_that_come_then(tmp_path: Path) -> None:
    run(
        """
class Echo(Actor):
    def receive(self, message):
        return message

ref = ActorOptions(supervision=Supervision(backoff_s=(0.01, 0.01))).spawn(Echo)
assert ref.ask(Order(Colour.BLUE)).result().colour is Colour.BLUE
ref.restart()
answer = ref.ask([Order(Colour.RED), lambda: Order(Colour.BLUE)], timeout=20.0).result()
assert answer[0] == Order(Colour.RED) and answer[1]() == Order(Colour.BLUE)
""",
        tmp_path,
    )


def test_a_class_that_is_defined_anew_is_the_new_one_from_then_on(tmp_path: Path) -> None:
    run(
        """
class Asker(Actor):
    def receive(self, message):
        return message.what()

ref = spawn(Asker)
class Note:
    def what(self): return "old"
assert ref.ask(Note()).result() == "old"
class Note:
    def what(self): return "new"
assert ref.ask(Note()).result() == "new"
""",
        tmp_path,
    )


def test_multiprocessing_works_inside_an_actor(tmp_path: Path) -> None:
    run(
        """
def square(number):
    return number * number

class Cruncher(Actor):
    def receive(self, message):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(square, message)

ref = spawn(Cruncher)
assert ref.ask([1, 2, 3], timeout=60.0).result() == [1, 4, 9]
assert ref.ask([4], timeout=60.0).result() == [16]
""",
        tmp_path,
    )


def test_a_fork_of_an_actor_ends_by_a_sigterm_however_early_it_comes(tmp_path: Path) -> None:
    run(
        """
import os, signal, time

class Forking(Actor):
    def receive(self, message):
        ended = []
        for _ in range(message):
            pid = os.fork()
            if not pid:
                time.sleep(60.0)
                os._exit(0)
            os.kill(pid, signal.SIGTERM)
            ended.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return ended

ref = spawn(Forking)
assert ref.ask(20, timeout=55.0).result() == [-signal.SIGTERM] * 20
""",
        tmp_path,
    )


def test_a_function_of_a_script_may_be_called_as_what_a_childs_process_begins_with_was(tmp_path: Path) -> None:
    names = "s o r l e f h main divide sys marshal"
    run(
        f"""
class Doer(Actor):
    def receive(self, message):
        return message()

doer = spawn(Doer)
for name in {names.split()!r}:
    exec(f"def {{name}}(): return '{{name}} of the script'")
    assert doer.ask(globals()[name]).result() == f"{{name}} of the script", name
""",
        tmp_path,
    )
