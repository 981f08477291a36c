"""What a machine's state is: also where it refers to its machine, and where instances share parts of it."""

from __future__ import annotations

import functools
import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

from actorraft import StateMachine, command, query
from actorraft.machine import default_state
from actorraft.node.guest import HookFailed
from actorraft.node.host import MachineHost
from tests.machine.local import Local

# --- A state that refers to its own machine --------------------------------------------------------------------------


class Steps:
    __slots__ = ()
    count: int

    def step(self) -> int:
        self.count += 1
        return self.count

    @query
    def counted(self) -> int:
        return self.count


class Counting(Steps, StateMachine):
    """Counts, always by way of something that refers to it."""

    def __init__(self) -> None:
        self.count = 0
        self.way: Any = self.refer()

    def refer(self) -> Any:
        """Return what leads back here."""
        raise NotImplementedError

    @command
    def mark(self) -> int:
        return self.step()

    @command
    def add(self) -> int:
        return int(self.follow(self.way)())

    def follow(self, way: Any) -> Callable[[], int]:
        """Return what counts, at the end of that way."""
        found: Callable[[], int] = way
        return found


class Itself(Counting):
    def refer(self) -> Any:
        return self

    def follow(self, way: Any) -> Callable[[], int]:
        return way.step  # type: ignore[no-any-return]


class Method(Counting):
    def refer(self) -> Any:
        return self.step


class Table(Counting):
    def refer(self) -> Any:
        return {"add": [self.step]}

    def follow(self, way: Any) -> Callable[[], int]:
        return way["add"][0]  # type: ignore[no-any-return]


class Command(Counting):
    def refer(self) -> Any:
        return self.mark


class Closure(Counting):
    def refer(self) -> Any:
        return lambda: self.step()


class Partial(Counting):
    def refer(self) -> Any:
        return functools.partial(Counting.step, self)


class Leaf:
    def __init__(self, root: Counting) -> None:
        self.root = root


class Tree(Counting):
    def refer(self) -> Any:
        return Leaf(self)

    def follow(self, way: Any) -> Callable[[], int]:
        return way.root.step  # type: ignore[no-any-return]


class Slots(Steps):
    __slots__ = ("count", "way")

    def __init__(self) -> None:
        self.count, self.way = 0, self.step

    @command
    def add(self) -> int:
        return self.way()


class Own(Method):
    def snapshot(self) -> Any:
        return self.count, self.way

    def restore(self, state: Any) -> None:
        self.count, self.way = state


class Chunks(Own):
    def snapshot(self) -> Iterator[Any]:
        return iter((self.count, self.way))

    def restore(self, state: Any) -> None:
        self.count, self.way = state


class Items(dict[str, int]):
    """Is a dict, so it is its own state as a whole."""

    def __init__(self) -> None:
        super().__init__(count=0)
        self.way = self.step

    def step(self) -> int:
        self["count"] += 1
        return self["count"]

    @command
    def add(self) -> int:
        return self.way()

    @query
    def counted(self) -> int:
        return self["count"]


@pytest.mark.parametrize("cls", [Itself, Method, Table, Command, Closure, Partial, Tree, Slots, Own, Chunks, Items])
def test_what_refers_to_its_machine_refers_to_the_one_that_reads_it(cls: type[Any]) -> None:
    one = Local(cls)
    assert [one.call("add") for _ in range(2)] == [1, 2]
    other = Local(cls)
    other.restore(one.snapshot())
    again = Local(cls)
    again.restore(other.snapshot())
    for each in (one, other, again):
        assert each.call("add") == 3
        assert each.ask("counted") == 3
    assert one.host.digest() == other.host.digest() == again.host.digest()


class GivesItself(Method):
    """Its state is in the machine that it hands out, not in a reference to whoever reads it."""

    def snapshot(self) -> Any:
        return self

    def restore(self, state: Any) -> None:
        self.count = state.count


class GivesItselfInside(GivesItself):
    def snapshot(self) -> Any:
        return {"it": [self]}

    def restore(self, state: Any) -> None:
        self.count = state["it"][0].count


class GivesItselfInPieces(GivesItself):
    def snapshot(self) -> Iterator[Any]:
        yield self

    def restore(self, state: Any) -> None:
        (one,) = state
        self.count = one.count


@pytest.mark.parametrize("cls", [GivesItself, GivesItselfInside, GivesItselfInPieces])
def test_a_snapshot_that_hands_out_the_machine_has_its_state(cls: type[Any]) -> None:
    one = Local(cls)
    for _ in range(5):
        one.call("add")
    other = Local(cls)
    other.restore(one.snapshot())
    assert other.ask("counted") == 5


class OfClass(StateMachine):
    made: ClassVar[list[Any]] = []

    @command
    def add(self) -> int:
        self.made.append(self)
        return len(self.made)


def test_what_the_class_holds_of_its_machine_is_the_one_that_reads_it() -> None:
    one = Local(OfClass)
    assert one.call("add") == 1
    snapshot = one.snapshot()
    other = Local(OfClass)
    other.restore(snapshot)
    assert OfClass.made == [other.host.machine]


# --- A state that could not be put back ------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [[("count", 1)], (1, 2), ({}, {}, {}), {"count"}, 7, "text", (None, [])])
def test_a_getstate_that_gives_what_nobody_takes_up_has_no_snapshot_and_says_so(state: Any) -> None:
    class Gives(StateMachine):
        def __getstate__(self) -> Any:
            return state

        @command
        def add(self) -> int:
            return 1

    local = Local(Gives)
    named = rf"Gives.__getstate__ raised TypeError: it gave a {type(state).__name__}, which only a __setstate__"
    with pytest.raises(HookFailed, match=named):
        local.snapshot()
    assert "the log goes on growing" in local.host.fault
    assert local.call("add") == 1

    class Takes(Gives):
        def __setstate__(self, state: Any) -> None:
            self.taken = state

    local = Local(Takes)
    local.restore(local.snapshot())
    assert local.host.machine.taken == state


@pytest.mark.parametrize("state", [None, {}, {"count": 1}, (None, None), (None, {"count": 1}), ({"count": 1}, None)])
def test_a_getstate_that_gives_attributes_is_taken_as_it_is(state: Any) -> None:
    class Gives(StateMachine):
        def __getstate__(self) -> Any:
            return state

        @command
        def add(self) -> int:
            return 1

    assert default_state(Gives()) == state
    local = Local(Gives)
    local.restore(local.snapshot())


# --- As before the first command -------------------------------------------------------------------------------------


class Adds(StateMachine):
    """Counts in a dict."""

    counts: dict[str, int]

    @command
    def add(self) -> int:
        self.counts["n"] = self.counts.get("n", 0) + 1
        return self.counts["n"]


class Default(Adds):
    def __init__(self, counts: dict[str, int] = {}) -> None:  # noqa: B006 (a beginner's slip)
        self.counts = counts


class ClassAttribute(Adds):
    counts: ClassVar[dict[str, int]] = {}  # type: ignore[misc]


shared: dict[str, int] = {}


class OfModule(Adds):
    def __init__(self) -> None:
        self.counts = shared


class OwnHooks(OfModule):
    def snapshot(self) -> Any:
        return self.counts

    def restore(self, state: Any) -> None:
        self.counts.update(state)


class Single(Adds):
    one: ClassVar[Any] = None

    def __new__(cls) -> Single:
        if cls.one is None:
            made = cls.one = super().__new__(cls)
            made.counts = {}
        return cls.one  # type: ignore[no-any-return]


class SharedItems(dict[str, Any]):
    def __init__(self) -> None:
        self["counts"] = shared

    @command
    def add(self) -> int:
        self["counts"]["n"] = self["counts"].get("n", 0) + 1
        return int(self["counts"]["n"])


@functools.cache
def the_only_one() -> Adds:
    made = Adds()
    made.counts = {}
    return made


@pytest.fixture(autouse=True)
def nothing_shared() -> Iterator[None]:
    yield
    shared.clear()
    the_only_one.cache_clear()
    Single.one = None
    Default.__init__.__defaults__[0].clear()  # type: ignore[index]


@pytest.mark.parametrize(
    "factory", [Default, ClassAttribute, OfModule, OwnHooks, Single, SharedItems, lambda: the_only_one()]
)
def test_a_machine_begins_anew_without_what_commands_made_of_what_its_instances_share(factory: Any) -> None:
    local = Local(factory)
    assert [local.call("add") for _ in range(3)] == [1, 2, 3]
    for _ in range(2):
        local.host.begin_anew()
        assert [local.call("add") for _ in range(2)] == [1, 2]


class NotPickled(OwnHooks):
    def __init__(self) -> None:
        super().__init__()
        self.gives = (each for each in ())


def test_a_machine_that_cannot_begin_anew_says_why_and_does_not_go_on_from_another_state() -> None:
    local = Local(NotPickled)
    local.call("add")
    with pytest.raises(HookFailed, match="NotPickled"):
        local.host.begin_anew()


class HasThread(Adds):
    """What it keeps beside its state is another one in each process."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.thread = threading.Thread(name=f"worker {time.monotonic_ns()}")

    def snapshot(self) -> Any:
        return self.counts

    def restore(self, state: Any) -> None:
        self.counts = state


def test_what_a_machine_keeps_beside_its_state_does_not_keep_it_from_beginning_anew() -> None:
    local = Local(HasThread)
    local.call("add")
    local.host.begin_anew()
    assert local.call("add") == 1


@pytest.mark.parametrize("error", [OSError("no file"), SystemExit(3), KeyboardInterrupt(), RecursionError("deep")])
def test_a_constructor_that_raises_later_on_is_named(error: BaseException) -> None:
    failing: list[BaseException] = []

    class Later(Adds):
        def __init__(self) -> None:
            self.counts = {}
            if failing:
                raise failing[0]

    host = MachineHost(Later)
    snapshot = io.BytesIO()
    host.snapshot(snapshot.write)
    failing.append(error)
    for act in (host.begin_anew, lambda: host.restore(snapshot)):
        with pytest.raises(HookFailed, match=rf"Later\.__init__ raised {type(error).__name__}"):
            act()
