"""Hooks of a machine: what counts as one, and that whatever one does ends nothing but is named."""

from __future__ import annotations

import dataclasses
import io
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec
import pytest

from actorraft import CommandFailed, StateMachine, UsageError, command, context, query
from actorraft.machine import CommandContext
from actorraft.node.guest import HookFailed
from actorraft.node.host import MachineHost
from actorraft.pickling import canonical
from actorraft.pickling.definitions import Definitions
from actorraft.pickling.formats import ERROR, LOST
from tests.machine.local import Local


class Counting(StateMachine):
    def __init__(self) -> None:
        self.count = 0

    @command
    def add(self) -> int:
        self.count += 1
        return self.count


class Rude(Exception):
    """Nothing of it can be asked for."""

    def __str__(self) -> str:
        raise SystemExit("in __str__")

    @property
    def __class__(self) -> Any:
        raise KeyboardInterrupt


class Frozen(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise TypeError("frozen")


RAISED = [
    lambda: KeyError("k"), lambda: SystemExit(3), KeyboardInterrupt, GeneratorExit, lambda: StopIteration(5),
    StopAsyncIteration, lambda: BaseException("base"), lambda: RecursionError("deep"), Rude, lambda: Frozen("f"),
    lambda: BaseExceptionGroup("g", [KeyboardInterrupt()]), lambda: UsageError("mine"), AssertionError,
]  # fmt: skip


RESULTS = [make for make in RAISED if type(make()) is not RecursionError]  # of commands; that one is the executor's


@pytest.fixture(params=RAISED, ids=lambda make: type(make()).__name__)
def error(request: pytest.FixtureRequest) -> BaseException:
    made: BaseException = request.param()  # not a parameter itself: nobody but user code may ask it for anything
    return made


def clock(local: Local) -> None:
    context = local.context
    context.begin_entry(context.index + 1, 1, 20.0)
    local.host.clock(context)


# --- Whatever a hook raises ------------------------------------------------------------------------------------------


def test_a_wake_at_that_raises_is_a_fault_with_its_name_and_wakes_nobody(error: BaseException) -> None:
    class Wakes(Counting):
        broken = False

        def wake_at(self) -> float:
            if self.broken:
                raise error
            return 5.0

    local = Local(Wakes)
    told: list[str] = []
    local.host.on_fault = told.append
    assert local.host.wake_at == 5.0
    local.host.machine.broken = True
    assert local.host.wake_at is None
    assert local.call("add") == 1
    assert f"Wakes.wake_at raised {type(error).__qualname__}" in local.host.fault
    local.host.machine.broken = False
    assert local.host.wake_at == 5.0
    assert local.host.fault == ""
    assert told == [told[0], ""]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("5", True), (b"5", True), (float("nan"), True), (object(), True), ([], True), (10**400, True), (1j, True),
        (float("inf"), False), (None, False),
    ],
)  # fmt: skip
def test_a_wake_at_that_is_no_number_is_none_and_says_so(value: Any, named: bool) -> None:
    class Wakes(Counting):
        wake_at = None

        @command
        def wake(self) -> None:
            self.wake_at = value

    local = Local(Wakes)
    local.call("wake")
    assert local.host.wake_at is None
    assert ("Wakes.wake_at" in local.host.fault) == named


@pytest.mark.parametrize("make", RESULTS)
def test_an_on_clock_that_raises_is_a_fault_and_the_log_goes_on(make: Any) -> None:
    error = make()

    class Ticks(Counting):
        def on_clock(self) -> None:
            self.count += 1
            if self.count == 1:
                raise error

    local = Local(Ticks)
    clock(local)
    assert f"Ticks.on_clock raised {type(error).__qualname__}" in local.host.fault
    clock(local)
    assert local.host.fault == ""
    assert local.host.machine.count == 2


def test_a_digest_that_raises_is_named_and_stops_nobody(error: BaseException) -> None:
    class Digests(Counting):
        def digest(self) -> bytes:
            raise error

    local = Local(Digests)
    for ask in (local.host.digest, local.host.sample):
        with pytest.raises(HookFailed, match=f"Digests.digest raised {type(error).__qualname__}"):
            ask()
    assert "Digests.digest" in local.host.fault


def whole(error: BaseException) -> Any:
    raise error


def before_the_first(error: BaseException) -> Iterator[Any]:
    raise error
    yield


def after_some(error: BaseException) -> Iterator[Any]:
    yield from range(3)
    raise error


class RaisesInIter:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        raise self.error


@pytest.mark.parametrize("give", [whole, before_the_first, after_some, RaisesInIter])
def test_a_snapshot_that_raises_has_failed_and_says_where(give: Any, error: BaseException) -> None:
    class Snaps(Counting):
        def snapshot(self) -> Any:
            return give(error)

        def restore(self, state: Any) -> None: ...

    local = Local(Snaps)
    if give is RaisesInIter and type(error) is StopIteration:
        assert local.snapshot()  # that is how an iterator ends
        return
    with pytest.raises(HookFailed, match=r"Snaps\.snapshot raised"):
        local.snapshot()
    assert "the log goes on growing" in local.host.fault
    assert local.call("add") == 1


def test_a_snapshot_that_is_taken_while_serving_and_raises_has_failed(error: BaseException) -> None:
    class Snaps(Counting):
        def snapshot(self) -> Any:
            return self.count

        def restore(self, state: Any) -> None:
            self.count = state

        def snapshot_while_serving(self) -> Iterator[Any]:
            yield 1
            raise error

    local = Local(Snaps)
    assert local.host.serves_while_copied
    with pytest.raises(HookFailed, match=r"Snaps\.snapshot_while_serving raised"):
        list(local.host.pieces())
    assert "snapshot_while_serving" in local.host.fault
    assert local.snapshot()
    assert local.host.fault == ""


def test_a_restore_that_raises_names_itself(error: BaseException) -> None:
    class Restores(Counting):
        def snapshot(self) -> Any:
            return self.count

        def restore(self, state: Any) -> None:
            raise error

    local = Local(Restores)
    with pytest.raises(HookFailed, match=f"Restores.restore raised {type(error).__qualname__}"):
        local.restore(local.snapshot())


def test_a_state_whose_pickling_raises_has_no_snapshot_and_says_which_attribute(error: BaseException) -> None:
    class Reduces:
        def __reduce__(self) -> Any:
            raise error

    class Holds(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.shelves = {"a": [1, Reduces()]}

    local = Local(Holds)
    assert "Holds.shelves['a'][1] cannot be pickled" in local.host.fault
    with pytest.raises(HookFailed, match=r"Holds\.shelves\['a'\]\[1\] cannot be pickled"):
        local.snapshot()


def test_a_disk_that_refuses_is_told_from_user_code() -> None:
    local = Local(Counting)

    def write(data: bytes) -> None:
        raise OSError(28, "No space")

    with pytest.raises(OSError, match="No space"):
        local.host.snapshot(write)
    assert local.host.fault == ""


@pytest.mark.parametrize("make", RESULTS)
def test_an_apply_many_that_raises_is_the_result_of_every_command(make: Any) -> None:
    error = make()

    class Many:
        def apply(self, item: Any) -> Any:
            return item

        def apply_many(self, items: list[Any]) -> list[Any]:
            raise error

    local = Local(Many)
    encoded = [msgspec.msgpack.decode(local.encoder.encode_command(number)) for number in range(3)]
    results = local.host.apply_many(encoded, local.context)
    assert [type(result) for result in results] == [msgspec.msgpack.Ext] * 3


def test_an_odd_thing_among_what_apply_many_returns_is_one_commands_result_only() -> None:
    class Lies:
        @property
        def __class__(self) -> Any:
            raise SystemExit("class")

        def __reduce__(self) -> Any:
            raise SystemExit("reduce")

    class Many:
        def apply(self, item: Any) -> Any:
            return item

        def apply_many(self, items: list[Any]) -> Any:
            return (Lies() if item == 1 else Rude() if item == 2 else item for item in items)

    local = Local(Many)
    encoded = [msgspec.msgpack.decode(local.encoder.encode_command(number)) for number in range(4)]
    results = local.host.apply_many(encoded, local.context)
    assert (results[0], results[3]) == (0, 3)
    assert [results[1].code, results[2].code] == [LOST, ERROR]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_results_that_lie_or_raise_are_lost_or_sent_and_end_nothing() -> None:
    class Lies:
        @property
        def __class__(self) -> Any:
            raise RuntimeError("class")

        def __iter__(self) -> Any:
            raise SystemExit

        def __eq__(self, other: object) -> bool:
            raise SystemExit

        def __hash__(self) -> int:
            raise SystemExit

        def __len__(self) -> int:
            raise SystemExit

        def __bool__(self) -> bool:
            raise SystemExit

        def __del__(self) -> None:
            raise SystemExit

    class Gives(Counting):
        @command
        def give(self) -> Any:
            self.count += 1
            return Lies()

        @query
        def look(self) -> Any:
            return Lies()

    local = Local(Gives)
    for ask, request in (
        (lambda request: local.host.queries([request])[0], ["look"]),
        (lambda c: local.host.apply(c, local.context), ["give"]),
    ):
        assert type(ask(request)) is msgspec.msgpack.Ext
    assert local.call("add") == 2


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), RuntimeError("no")])
def test_a_getattr_that_answers_or_raises_for_every_name_is_asked_for_nothing(raised: BaseException) -> None:
    class Anything(Counting):
        def __getattr__(self, name: str) -> Any:
            raise raised

    class Answers(Counting):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *arguments: "answered"

    for cls in (Anything, Answers):
        first, second = Local(cls), Local(cls)
        first.call("add")
        clock(first)
        second.restore(first.snapshot())
        assert second.call("add") == 2
        assert (first.host.wake_at, first.host.version, first.host.takes_many) == (None, 0, False)
        assert len(first.host.digest()) == canonical.DIGEST_BYTES
        assert first.host.fault == ""


def test_a_replacement_that_is_no_machine_is_a_result() -> None:
    from actorraft import CommandFailed, Replace

    class Broken:
        machine_version = "two"

        async def on_clock(self) -> None: ...

        def apply(self, item: Any) -> Any: ...

    local = Local(dict)
    with pytest.raises((CommandFailed, UsageError), match="on_clock is async"):
        local.execute(lambda state: Replace(Broken()))
    assert local.query(len) == 0


# --- What counts as one ----------------------------------------------------------------------------------------------


def test_an_instances_attributes_are_no_hooks() -> None:
    class Own(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.digest = b"mine"
            self.snapshot = {"my": "own"}
            self.restore = self.on_clock = self.apply_many = self.machine_version = "text"

    first, second = Local(Own), Local(Own)
    first.call("add")
    clock(first)
    second.restore(first.snapshot())
    assert second.host.machine.count == 1
    assert second.host.machine.snapshot == {"my": "own"}
    assert first.host.digest() == second.host.digest()
    assert first.host.version == 0


def test_a_hook_of_the_class_is_called_though_an_attribute_hides_it() -> None:
    class Hidden(Counting):
        def snapshot(self) -> Any:
            return self.count

        def restore(self, state: Any) -> None:
            self.count = state
            self.snapshot = None  # type: ignore[assignment]

    first, second = Local(Hidden), Local(Hidden)
    first.call("add")
    second.restore(first.snapshot())
    third = Local(Hidden)
    third.restore(second.snapshot())
    assert third.host.machine.count == 1


def test_what_is_marked_as_a_command_or_query_is_no_hook() -> None:
    class Marked(Counting):
        @query
        def digest(self) -> Any:
            return {"the user's": "own"}

        @query
        def snapshot(self) -> Any:  # type: ignore[override]
            return "the user's own"

        @command
        def on_clock(self) -> None:
            self.count += 100

    first, second = Local(Marked), Local(Marked)
    first.call("add")
    clock(first)
    second.restore(first.snapshot())
    assert second.host.machine.count == 1
    assert second.ask("snapshot") == "the user's own"


def test_a_machine_of_which_commands_are_given_the_state_has_no_hooks() -> None:
    class State:
        wake_at = 5.0

        def digest(self) -> bytes:
            raise AssertionError("no hook")

        def snapshot(self) -> Any:
            raise AssertionError("no hook")

        def on_clock(self) -> None:
            raise AssertionError("no hook")

    local = Local(State)
    clock(local)
    assert local.host.wake_at is None
    assert local.host.digest()
    assert local.snapshot()


def test_a_machine_with_apply_has_hooks() -> None:
    class Adder:
        wake_at: float | None = None
        machine_version = 4

        def apply(self, number: float) -> None:
            self.wake_at = number

        def digest(self) -> str:
            return "it"

    local = Local(Adder)
    local.execute(7)
    assert (local.host.wake_at, local.host.version, local.host.digest()) == (7.0, 4, b"it")


@dataclasses.dataclass
class Dated:
    wake_at: float | None = None

    @command
    def wake(self, at: float) -> None:
        self.wake_at = at


class Slotted:
    __slots__ = ("wake_at",)

    def __init__(self) -> None:
        self.wake_at: float | None = None

    @command
    def wake(self, at: float) -> None:
        self.wake_at = at


class Inherits(Dated):
    pass


@pytest.mark.parametrize("cls", [Dated, Slotted, Inherits])
def test_a_wake_at_that_the_class_names_is_read_from_the_instance(cls: Any) -> None:
    local = Local(cls)
    assert local.host.wake_at is None
    local.call("wake", 5)
    assert local.host.wake_at == 5.0


def test_a_wake_at_that_only_the_instance_has_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    class Bare(Counting):
        @command
        def wake(self, at: float) -> None:
            self.wake_at = at

    local = Local(Bare)
    with caplog.at_level(logging.WARNING, "actorraft"):
        assert local.host.wake_at is None
        assert caplog.messages == []
        for at in range(3):
            local.call("wake", at)
            assert local.host.wake_at is None
        local.restore(local.snapshot())
        assert local.host.wake_at is None
    assert len(caplog.messages) == 1
    assert "Bare has a wake_at that is no hook" in caplog.messages[0]


def test_a_snapshot_while_serving_is_not_inherited() -> None:
    class Serves(Counting):
        def snapshot(self) -> Any:
            return self.count

        def restore(self, state: Any) -> None:
            self.count = state

        def snapshot_while_serving(self) -> Iterator[Any]:
            yield self.count

    class Sub(Serves):
        pass

    assert Local(Serves).host.serves_while_copied
    assert not Local(Sub).host.serves_while_copied


@pytest.mark.parametrize("name", ["on_clock", "digest", "apply_many", "snapshot"])
def test_an_async_hook_is_refused_when_the_machine_is_made(name: str) -> None:
    async def hook(self: Any) -> None: ...

    cls = type("Waits", (), {name: hook, "apply": lambda self, item: item})
    with pytest.raises(UsageError, match=rf"Waits\.{name} is async"):
        Local(cls)


def test_a_hook_with_yield_whose_body_would_never_run_is_refused() -> None:
    class Yields(Counting):
        def restore(self, state: Any) -> Iterator[None]:  # type: ignore[override]
            self.count = state
            yield

    with pytest.raises(UsageError, match=r"Yields\.restore is a generator"):
        Local(Yields)


# --- Versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mine", [7, "v1.2", None, [1]])
def test_an_attribute_called_version_is_the_users_own(mine: Any) -> None:
    class Doc(Counting):
        version = 12

        def __init__(self) -> None:
            super().__init__()
            self.version = mine

    first, second = Local(Doc), Local(Doc)
    first.call("add")
    second.restore(first.snapshot())
    assert second.host.machine.version == mine
    assert second.host.version == 0


@pytest.mark.parametrize("version", ["2", 1.0, True, -1, None, lambda self: 2])
def test_a_machine_version_that_is_no_int_is_refused_when_the_machine_is_made(version: Any) -> None:
    cls = type("Odd", (Counting,), {"machine_version": version})
    with pytest.raises(UsageError, match=r"Odd\.machine_version is an int"):
        Local(cls)


# --- The default restore ---------------------------------------------------------------------------------------------


class Old(StateMachine):
    def __init__(self) -> None:
        self.accounts: dict[str, int] = {}
        self.trash = "made by the constructor"

    @command
    def clean(self) -> None:
        del self.trash

    @command
    def note(self, name: str) -> None:
        setattr(self, name, 1)


class New(Old):
    def __init__(self) -> None:
        super().__init__()
        self.limits: dict[str, int] = {"ann": 5}


def test_an_attribute_that_a_snapshot_does_not_know_stays_as_the_constructor_made_it() -> None:
    old, new = Local(Old), Local(New)
    old.call("note", "extra")
    new.restore(old.snapshot())
    assert vars(new.host.machine) == {**vars(old.host.machine), "limits": {"ann": 5}}


def test_an_attribute_that_was_deleted_when_a_snapshot_was_taken_stays_deleted() -> None:
    class Supers(Old):
        def snapshot(self) -> Any:
            return super().snapshot()

        def restore(self, state: Any) -> None:
            super().restore(state)

    class Slots:
        __slots__ = ("__kept", "trash")

        def __init__(self) -> None:
            self.trash = self.__kept = 1

        @command
        def clean(self) -> None:
            del self.trash

    for cls in (Old, Supers, Slots):
        first, second = Local(cls), Local(cls)
        first.call("clean")
        second.restore(first.snapshot())
        assert not hasattr(second.host.machine, "trash")
        third = Local(cls)
        third.restore(second.snapshot())
        assert first.host.digest() == second.host.digest() == third.host.digest()


@pytest.mark.parametrize("version", [0, 3, 12])
def test_a_snapshot_of_the_first_release_is_read_whatever_its_version_says(version: int) -> None:
    buffer = io.BytesIO()
    definitions = Definitions()
    head = msgspec.msgpack.encode([version, "attributes", False, definitions.state()])
    buffer.write(b"ARM1" + len(head).to_bytes(4, "little") + head + b"\x01")
    definitions.dump({"accounts": {"ann": 1}}, buffer)
    buffer.write(b"\x00")
    new = Local(New)
    new.restore(buffer.getvalue())
    assert vars(new.host.machine) == {"accounts": {"ann": 1}, "trash": "made by the constructor", "limits": {"ann": 5}}


def test_a_restored_machine_has_the_constructors_arguments_and_not_what_commands_made_of_them() -> None:
    from actorraft.pickling.encoder import encode_factory

    host = MachineHost.from_factory(encode_factory(Keeps, ({"a": 1},), {}))
    host.machine.given["b"] = 2
    snapshot = io.BytesIO()
    host.snapshot(snapshot.write)
    fresh = MachineHost.from_factory(encode_factory(Keeps, ({"a": 1},), {}))
    for each in (host, fresh):
        snapshot.seek(0)
        each.restore(snapshot)
        assert each.machine.untold == {"a": 1}


class Keeps(Counting):
    def __init__(self, given: dict[str, int]) -> None:
        self.given = given
        self.untold = given

    def snapshot(self) -> Any:
        return None

    def restore(self, state: Any) -> None:
        pass


# --- What no snapshot has --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (threading.RLock, "guard"), (lambda: sys.stderr, "guard"), (lambda: (each for each in ()), "guard"),
        (lambda: {"deep": [threading.Lock()]}, r"guard\['deep'\]\[0\]"), (sys._getframe, "guard"),
    ],
)  # fmt: skip
def test_an_attribute_that_cannot_be_pickled_is_named_when_the_machine_is_made(make: Any, path: str) -> None:
    class Guarded(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.guard = make()

    local = Local(Guarded)
    assert "Guarded.guard" in local.host.fault
    assert "the log grows for ever" in local.host.fault
    with pytest.raises(HookFailed, match=rf"Guarded\.{path} cannot be pickled"):
        local.snapshot()
    assert local.call("add") == 1


def test_a_large_fresh_state_is_not_pickled_whole_when_the_machine_is_made() -> None:
    class Large(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.items = [bytes(1000)] * 10
            self.pages = {number: str(number) * 100 for number in range(30_000)}

    assert Local(Large).host.fault == ""


class Todo(StateMachine):
    items: ClassVar[list[str]] = []
    by_name: ClassVar[dict[str, int]] = {}
    limit = 5
    total = 0

    @command
    def add(self, text: str) -> int:
        self.items.append(text)
        Todo.by_name[text] = 1
        Todo.total += 1
        return len(self.items)

    @command
    def invent(self) -> None:
        Todo.later = [1]  # type: ignore[attr-defined]


def test_what_commands_change_of_the_class_is_kept_and_warned_of_once_by_name(caplog: pytest.LogCaptureFixture) -> None:
    local = Local(Todo)
    try:
        before = local.snapshot()
        with caplog.at_level(logging.WARNING, "actorraft"):
            local.call("add", "a")
            local.call("invent")
            local.host.sample()
            kept = local.snapshot()
            local.snapshot()
        named = sorted(message.split()[0] for message in caplog.messages)
        assert named == ["Todo.by_name", "Todo.items", "Todo.later", "Todo.total"]
        local.restore(before)
        assert (Todo.items, Todo.by_name, Todo.total, hasattr(Todo, "later")) == ([], {}, 0, False)
        Todo.limit = 6  # as newer code has it
        local = Local(Todo)
        local.restore(kept)
        assert (Todo.items, Todo.by_name, Todo.total, Todo.limit) == (["a"], {"a": 1}, 1, 6)
        assert local.call("add", "b") == 2
    finally:
        local.restore(before)
        Todo.limit = 5


def test_a_set_is_warned_of_once_with_its_path(caplog: pytest.LogCaptureFixture) -> None:
    class Jobs(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.queues: dict[str, Any] = {"a": [frozenset()]}

        @command
        def fill(self) -> None:
            self.queues["b"] = [{1, 2}]

    local = Local(Jobs)
    with caplog.at_level(logging.WARNING, "actorraft"):
        local.snapshot()
        assert caplog.messages == []
        local.call("fill")
        local.snapshot()
        local.snapshot()
    assert len(caplog.messages) == 1
    assert "Jobs.queues['b'][0] is a set" in caplog.messages[0]


def test_a_constructor_that_makes_another_state_each_time_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    made = iter(range(100))

    class Reads(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.started = next(made)

    local = Local(Reads)
    with caplog.at_level(logging.WARNING, "actorraft"):
        local.restore(local.snapshot())
    assert any("Reads.__init__ made another state" in message for message in caplog.messages)


@pytest.mark.parametrize("writable", [True, False])
def test_a_large_array_that_a_constructor_makes_keeps_no_snapshot_from_being_made(writable: bool) -> None:
    numpy = pytest.importorskip("numpy")

    class Large(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.array = numpy.ones(100_000)
            self.array.flags.writeable = writable

    local = Local(Large)
    assert not local.host.fault
    other = Local(Large)
    other.restore(local.snapshot())
    assert other.host.machine.array.flags.writeable == writable


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("kind", ["contiguous", "strided", "fortran", "objects", "subclass", "of bytes", "single"])
def test_an_array_is_as_writable_after_a_restore_as_before(kind: str, writable: bool) -> None:
    numpy = pytest.importorskip("numpy")

    class Own(numpy.ndarray):  # type: ignore[misc,name-defined]
        pass

    class Keeps(Counting):
        def __init__(self) -> None:
            super().__init__()
            array = numpy.arange(12.0).reshape(3, 4)
            self.array = {
                "contiguous": array, "strided": array[:, ::2], "fortran": numpy.asfortranarray(array),
                "objects": numpy.array([{}, []], dtype=object), "subclass": array.view(Own),
                "of bytes": numpy.frombuffer(bytearray(8)), "single": numpy.array(5.0),
            }[kind]  # fmt: skip
            self.array.flags.writeable = writable

    first, second, third = Local(Keeps), Local(Keeps), Local(Keeps)
    second.restore(first.snapshot())
    third.restore(second.snapshot())
    for each in (first, second, third):
        assert each.host.machine.array.flags.writeable == writable
        assert type(each.host.machine.array).__name__ == type(first.host.machine.array).__name__
        assert each.host.machine.array.tolist() == first.host.machine.array.tolist()


def test_hooks_run_in_any_thread_alike(error: BaseException) -> None:
    class Wakes(Counting):
        def wake_at(self) -> float:
            raise error

    found: list[Any] = []

    def run() -> None:
        host = MachineHost(Wakes)
        found.extend((host.wake_at, host.fault, host.apply(["add"], CommandContext())))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found[0] is None
    assert "Wakes.wake_at" in found[1]
    assert found[2] == 1


class Asking(StateMachine):
    """Asks for its context wherever it may."""

    machine_version = 3

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def _see(self, where: str) -> None:
        self.seen.append((where, context().machine_version))

    @command
    def ask(self) -> None:
        self._see("command")

    @query
    def look(self) -> int:
        return context().machine_version

    @query
    def publish(self) -> None:
        context().publish("topic", 1)

    def snapshot(self) -> Any:
        self._see("snapshot")
        return self.seen

    def restore(self, state: Any) -> None:
        self.seen = state
        self._see("restore")

    def digest(self) -> bytes:
        self._see("digest")
        return b""


def test_queries_and_hooks_may_ask_by_which_rules_commands_are_applied() -> None:
    local = Local(Asking)
    local.host.use_rules(3)
    assert 3 == local.ask("look")
    local.host.digest()
    written = io.BytesIO()
    local.host.snapshot(written.write)
    written.seek(0)
    local.host.restore(written)
    assert [("digest", 3), ("snapshot", 3), ("restore", 3)] == local.host.machine.seen
    with pytest.raises(CommandFailed, match="publish"):
        local.ask("publish")
    with pytest.raises(UsageError, match="context"):
        context()
