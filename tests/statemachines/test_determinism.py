"""`check_determinism`: what it finds in bad machines, named; and that it lets good ones pass."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import functools
import os
import random
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from actorraft import StateMachine, UsageError, command, context, query
from statemachines.kv import KVStore
from statemachines.lock import LockService
from statemachines.testing import NotDeterministic, check_determinism

pytestmark = pytest.mark.cluster  # four interpreters for each check, and a fork for each command


class Machine(StateMachine):
    def __init__(self) -> None:
        self.items: Any = []

    @command
    def add(self, item: Any) -> Any:
        self.items.append(item)
        return len(self.items)


ADDS = [("add", number) for number in range(5)]


class Clock(Machine):
    @command
    def add(self, item: Any) -> None:
        self.items.append(time.time())


class Today(Machine):
    @command
    def add(self, item: Any) -> str:
        return str(datetime.date.today())


class Dice(Machine):
    @command
    def add(self, item: Any) -> float:
        return random.random()


class Identity(Machine):
    @command
    def add(self, item: Any) -> None:
        self.items.append(id(self.items))


class Address(Machine):
    @command
    def add(self, item: Any) -> str:
        return repr(object())[:40]


class Folder(Machine):
    @command
    def add(self, item: Any) -> str:
        return os.getcwd()


class Zone(Machine):
    @command
    def add(self, item: Any) -> str:
        return time.strftime("%H", time.gmtime(0)) + time.strftime("%H", time.localtime(0))


class HashOfText(Machine):
    @command
    def add(self, item: Any) -> int:
        return hash(f"item {item}") % 1000


class OrderOfASet(Machine):
    @command
    def add(self, item: Any) -> list[str]:
        return list({f"item {item} {number}" for number in range(10)})


class Pops(StateMachine):
    """Its set iterates in another order once it was rebuilt, under any hash seed."""

    def __init__(self) -> None:
        self.free: set[int] = set()

    @command
    def fill(self, count: int) -> None:
        self.free = set(range(count))

    @command
    def keep(self, *some: int) -> None:
        for each in list(self.free):
            if each not in some:
                self.free.discard(each)

    @command
    def take(self) -> int:
        return self.free.pop()


class NotInTheSnapshot(Machine):
    def __init__(self) -> None:
        super().__init__()
        self.cache = 0

    @command
    def add(self, item: Any) -> int:
        self.cache += 1
        return self.cache

    def __getstate__(self) -> dict[str, Any]:
        return {"items": self.items}


class Shares(Machine):
    """Two attributes are one list, and two after a restore by its own methods."""

    def __init__(self) -> None:
        super().__init__()
        self.newest = self.items

    @command
    def add(self, item: Any) -> int:
        self.newest.append(item)
        return len(self.items)

    def snapshot(self) -> Any:
        return list(self.items), list(self.newest)

    def restore(self, state: Any) -> None:
        self.items, self.newest = state


_count = 0


class Global(Machine):
    @command
    def add(self, item: Any) -> int:
        global _count
        _count += 1
        return _count


class Depth(Machine):
    @command
    def add(self, item: Any) -> int:
        def down(depth: int) -> int:
            try:
                return down(depth + 1)
            except RecursionError:
                return depth

        return down(0)


class Frames(Machine):
    @command
    def add(self, item: Any) -> int:
        frame, depth = sys._getframe(), 0
        while frame.f_back is not None:
            frame, depth = frame.f_back, depth + 1
        return depth


class Constructor(Machine):
    def __init__(self) -> None:
        super().__init__()
        self.started = time.time()


class Wakes(Machine):
    @property
    def wake_at(self) -> float | None:
        return time.monotonic()


class Publishes(Machine):
    @command
    def add(self, item: Any) -> None:
        context().publish("t", os.getpid())


class OnClass(Machine):
    seen: ClassVar[list[int]] = []

    @command
    def add(self, item: Any) -> int:
        self.seen.append(item)
        return len(self.seen)


class Digits(Machine):
    """What a command sets in its thread is in no snapshot."""

    @command
    def round_to(self, digits: int) -> None:
        decimal.getcontext().prec = digits

    @command
    def add(self, item: Any) -> str:
        return str(decimal.Decimal(1) / 3)


class Seeds(Dice):
    @command
    def seed(self) -> None:
        random.seed(1)


class Remembers(Machine):
    """Its module has what commands looked up."""

    @command
    def look_up(self, item: Any) -> None:
        remembered[item] = str(item)

    @command
    def add(self, item: Any) -> Any:
        return remembered.get(item)


remembered: dict[Any, str] = {}
ELSEWHERE = r"and restored from a snapshot in another process before command 2"

PATCHED = [("fill", 5000), ("keep", 5, 1000, 2500, 4097), ("take",), ("take",)]


@pytest.mark.parametrize(
    ("machine", "commands", "named"),
    [
        (Clock, ADDS, r"after command 1, \('add', 0\), .* the state differs: Clock\.items"),
        (Today, ADDS, r"command 1, \('add', 0\) gave '.*', and with another clock"),
        (Dice, ADDS, r"command 1, .* gave 0\.\d+, and in another process 0\.\d+"),
        (Identity, ADDS, r"the state differs: Identity\.items"),
        (Address, ADDS, r"command 1, .* gave '<object object at"),
        (Folder, ADDS, r"command 1, .*with another clock, time zone and working directory"),
        (Zone, ADDS, r"command 1, .*with another clock, time zone"),
        (HashOfText, ADDS, r"command 1, .* gave \d+, and under another hash seed \d+"),
        (OrderOfASet, ADDS, r"command 1, .*, and under another hash seed"),
        (Pops, PATCHED, r"command 3, \('take',\) gave \d+, and restored from a snapshot .* \d+"),
        (NotInTheSnapshot, ADDS, r"restored from a snapshot"),
        (Shares, ADDS, r"restored from a snapshot"),
        (Global, ADDS, r"command 1, .* gave 1, and in a second machine of the same process 6"),
        (Frames, ADDS, r"command 1, .*, and deeper in the stack"),
        (Constructor, ADDS, r"as the constructor made it, .* the state differs: Constructor\.started"),
        (Wakes, ADDS, r"wake_at is"),
        (Publishes, ADDS, r"command 1, "),
        (Digits, [("round_to", 3), ("add", 1)], rf"command 2, .* gave '0\.333', {ELSEWHERE} '0\.3333333"),
        (Seeds, [("seed",), ("add", 1)], rf"command 2, .* gave 0\.13\d+, {ELSEWHERE} 0\."),
        (Remembers, [("look_up", 5), ("add", 5)], rf"command 2, .* gave '5', {ELSEWHERE} None"),
        (OnClass, ADDS, r"command 1, .* gave 1, and in a second machine of the same process 6"),
    ],
)  # fmt: skip
def test_a_bad_machine_is_found_out_and_the_first_difference_named(machine: Any, commands: Any, named: str) -> None:
    with pytest.raises(NotDeterministic, match=named):
        check_determinism(machine, commands)


class Careful(Machine):
    """Uses all that may be used."""

    def __init__(self, first: str = "none") -> None:
        super().__init__()
        self.names, self.first = {"a", "b", "c"}, first

    @command
    def add(self, item: Any) -> Any:
        now = context()
        self.items.append((item, now.time, now.random.random(), now.serial))
        self.names.add(f"item {item}")
        now.publish("names", set(self.names))
        self.dug = 0
        with contextlib.suppress(RecursionError):  # as deep on all nodes, so it may be counted
            self.dig()
        if item == 3:
            raise ValueError(self.first)
        return sorted(self.names)[-1]

    def dig(self) -> None:
        self.dug += 1
        self.dig()

    @query
    def count(self) -> int:
        return len(self.items)


@dataclass
class Put:
    key: str

    def apply(self, state: Any) -> int:
        state[self.key] = len(state)
        return len(state)


class Adder:
    def __init__(self) -> None:
        self.total = 0

    def apply(self, number: int) -> int:
        self.total += number
        return self.total


@pytest.mark.parametrize(
    ("machine", "commands"),
    [
        (Careful, ADDS),
        (functools.partial(Careful, "me"), [lambda machine: machine.add(1)]),
        (KVStore, [("set", "a", 1), ("set_for", "b", 2, 1.5), ("increment", "a"), ("delete", "a"), ("get", "b")]),
        (LockService, [("acquire", "l", "me", 1.5), ("acquire", "l", "you", 1.0), ("release", "l", "me")]),
        (dict, [Put("a"), Put("b"), lambda state: state.pop("a")]),
        (Adder, [1, 2, (3,), 4]),
        (Careful, []),
        (Depth, ADDS),  # on a node, too, a command has as many frames wherever it is called
    ],
)
def test_a_good_machine_passes(machine: Any, commands: Any) -> None:
    check_determinism(machine, commands)


def test_the_constructors_arguments_are_given_on() -> None:
    check_determinism(Careful, ADDS, args=("me",))
    check_determinism(Careful, ADDS, kwargs={"first": "me"})


def test_a_machine_that_cannot_be_made_says_why() -> None:
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        check_determinism(lambda: 1 / 0, [])


@pytest.mark.parametrize("flags", [[], ["-E"], ["-I"]])
def test_it_works_for_a_class_in_a_script_under_any_flags_of_the_interpreter(flags: list[str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path[:0] = {[each for each in sys.path if each]!r}\n"
        + textwrap.dedent("""
            from actorraft import StateMachine, command
            from statemachines.testing import check_determinism, NotDeterministic
            class Pool(StateMachine):
                def __init__(self): self.free = set()
                @command
                def add(self, name): self.free.add(name)
                @command
                def take(self): return self.free.pop()
            adds = [("add", f"worker-{number}") for number in range(20)]
            check_determinism(Pool, adds)
            try: check_determinism(Pool, [*adds, ("take",)])
            except NotDeterministic as error: print(error)
        """)
    )
    run = subprocess.run([sys.executable, *flags, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert "command 21, ('take',) gave 'worker-" in run.stdout, run.stderr
