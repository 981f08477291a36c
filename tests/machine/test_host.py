"""A machine on a node: which commands it takes, what comes back, what stops it, and its snapshots."""

from __future__ import annotations

import collections
import enum
import importlib
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actorraft import (
    ActorRaftError,
    CommandFailed,
    CommandObjects,
    RemoteTraceback,
    Replace,
    ResultLost,
    StateMachine,
    Unavailable,
    UnknownType,
    UsageError,
    command,
    context,
    query,
)
from actorraft.errors import CorruptionError, NoRoom, StorageFailed
from actorraft.machine import CommandContext
from actorraft.node.history import History
from actorraft.node.host import MachineHeld, MachineHost, MachineStopped
from actorraft.pickling.encoder import encode_factory
from actorraft.pickling.results import decode_result
from tests.machine.local import Local, through_a_frame


class NotEnough(Exception):
    """Its constructor's arguments are not its `args`: pickle alone cannot rebuild it."""

    def __init__(self, need: int, *, have: int) -> None:
        super().__init__(f"need {need}, have {have}")
        self.need, self.have = need, have


class Bank(StateMachine):
    def __init__(self, currency: str = "EUR") -> None:
        self.currency = currency
        self.accounts: dict[str, int] = {}
        self.trash = "made by the constructor"

    @command
    def deposit(self, name: str, amount: int) -> int:
        self.accounts[name] = self.accounts.get(name, 0) + amount
        return self.accounts[name]

    @command
    def withdraw(self, name: str, amount: int) -> int:
        have = self.accounts.get(name, 0)
        if have < amount:
            raise NotEnough(amount, have=have)
        return self.deposit(name, -amount)

    @command
    def fail(self, error: Any) -> None:
        if error == "keyboard":
            raise KeyboardInterrupt
        raise error

    @command
    def give(self, what: Any) -> Any:
        return what

    @command
    def state(self) -> dict[str, int]:
        return self.accounts

    @command
    def clean(self) -> None:
        del self.trash

    @command
    def now(self) -> tuple[int, int, int, float, float]:
        current = context()
        current.publish("topic", self.accounts)
        return current.index, current.serial, current.term, current.time, current.random.random()

    @query
    def balance(self, name: str) -> int:
        return self.accounts[name]

    @query
    def misuse(self) -> None:
        context().publish("topic", 1)


@dataclass
class Transfer:
    source: str
    dest: str
    amount: int

    def apply(self, bank: Bank) -> tuple[int, int]:
        return bank.withdraw(self.source, self.amount), bank.deposit(self.dest, self.amount)


@pytest.fixture
def bank() -> Local:
    return Local(Bank)


# --- The three kinds of machine --------------------------------------------------------------------------------------


def test_a_method_is_called_with_its_arguments(bank: Local) -> None:
    assert bank.call("deposit", "ann", 5) == 5
    assert bank.call("deposit", "ann", amount=2) == 7
    assert bank.call("deposit", ("a", "tuple"), 2) == 2
    assert bank.ask("balance", "ann") == 7


def test_a_machine_with_methods_takes_command_objects_and_callables_too(bank: Local) -> None:
    bank.call("deposit", "ann", 5)
    assert bank.execute(Transfer("ann", "bob", 2)) == (3, 2)
    extra = 10
    assert bank.execute(lambda machine: machine.deposit("cy", extra)) == 10
    assert bank.query(lambda machine: sorted(machine.accounts)) == ["ann", "bob", "cy"]


def test_a_machine_with_apply_takes_any_object() -> None:
    class Adder:
        def __init__(self) -> None:
            self.total = 0

        def apply(self, number: int) -> int:
            self.total += number
            return self.total

        def query(self, request: str) -> Any:
            return getattr(self, request)

    adder = Local(Adder)
    assert [adder.execute(number) for number in (1, 2, 3)] == [1, 3, 6]
    assert adder.query("total") == 6
    assert adder.call("apply", 4) == 10
    assert adder.ask("query", "total") == 10


def test_a_machine_with_apply_and_no_query_is_read_by_callables() -> None:
    class Adder:
        total = 0

        def apply(self, number: int) -> None:
            self.total += number

    adder = Local(Adder)
    adder.execute(4)
    assert adder.query(lambda machine: machine.total) == 4


def test_any_other_class_is_a_state_for_command_objects() -> None:
    state = Local(dict)
    assert state.execute(lambda items: items.setdefault("k", 5)) == 5
    assert state.query(len) == 1
    assert state.execute(dict.clear) is None
    with pytest.raises(TypeError, match=r"apply\(self, state\)"):
        state.execute("nothing callable")


def test_a_class_as_a_command_is_called_not_applied(bank: Local) -> None:
    assert bank.execute(type) is Bank


def test_command_objects_says_so_for_a_class_that_has_an_apply() -> None:
    class Frame:
        def __init__(self, rows: int) -> None:
            self.rows = rows

        def apply(self, function: Any) -> str:
            return "the frame's own"

        def snapshot(self) -> str:
            return "something else"

    frame = Local(lambda: CommandObjects(Frame, 3))
    assert frame.execute(lambda state: state.rows) == 3
    assert frame.execute(lambda state: state.__dict__.update(rows=4)) is None
    other = Local(lambda: CommandObjects(Frame, 3))
    other.restore(frame.snapshot())
    assert other.query(lambda state: state.rows) == 4


def test_an_immutable_state_is_replaced() -> None:
    number = Local(lambda: 5)
    assert number.execute(lambda state: Replace(state + 1, state)) == 5
    assert number.execute(lambda state: state) == 6
    other = Local(lambda: 5)
    other.restore(number.snapshot())
    assert other.query(lambda state: state) == 6


def test_a_method_that_there_is_not_is_named(bank: Local) -> None:
    with pytest.raises(UsageError, match="Bank has no command 'balance'; that is a query"):
        bank.call("balance", "ann")
    with pytest.raises(UsageError, match=r"Bank has no command 'x'; it has .*deposit"):
        bank.call("x", amount=1)
    with pytest.raises(UsageError, match="Bank has no query 'deposit'; that is a command"):
        bank.ask("deposit", "ann", 1)
    with pytest.raises(UsageError, match=r"Bank has no query 'y'; it has .*balance"):
        bank.ask("y")


def test_a_key_error_of_the_users_own_stays_one(bank: Local) -> None:
    with pytest.raises(KeyError, match="nobody"):
        bank.ask("balance", "nobody")


def test_nonsense_is_a_result_and_not_the_end(bank: Local) -> None:
    for nonsense in ([], [5], [{}], 5, "text", msgspec.msgpack.Ext(9, b""), msgspec.msgpack.Ext(1, b"")):
        result = bank.host.apply(nonsense, bank.context)
        assert type(result) is msgspec.msgpack.Ext
        assert result.code == 5
    assert bank.host.apply(None, bank.context) is None
    assert bank.call("deposit", "ann", 1) == 1


# --- Results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None, True, 5, 1 << 62, -(1 << 63), 1 << 63, 1 << 64, -(1 << 70), 1.5, "text", "ünï", "\ud800", b"bytes",
        (1, 2), [1, [2]], {"k": (1,)}, {1, 2}, Ellipsis, int, len, bytearray(b"x"), float("inf"),
    ],
)  # fmt: skip
def test_any_value_comes_back_as_it_was(bank: Local, value: Any) -> None:
    back = bank.call("give", value)
    assert back == value
    assert type(back) is type(value)


def test_a_result_does_not_alias_the_state(bank: Local) -> None:
    context, encoder = bank.context, bank.encoder
    results = [
        bank.host.apply(msgspec.msgpack.decode(encoder.encode_call(method, args, {})), context)
        for method, args in (("state", ()), ("deposit", ("ann", 1)), ("state", ()))
    ]
    from actorraft.pickling.results import decode_result

    assert [decode_result(each) for each in results] == [{}, 1, {"ann": 1}]


def test_a_result_that_cannot_be_sent_is_lost_and_says_so(bank: Local) -> None:
    with pytest.raises(ResultLost, match="its result, a generator, cannot be sent"):
        bank.execute(lambda machine: (machine.deposit("ann", 1), (x for x in ()))[1])
    assert bank.ask("balance", "ann") == 1


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_a_coroutine_as_a_result_says_that_its_body_did_not_run(bank: Local) -> None:
    async def later(machine: Any) -> None:
        machine.deposit("ann", 1)

    with pytest.raises(ResultLost, match="its result, a coroutine, cannot be sent: no node runs its body"):
        bank.execute(later)
    with pytest.raises(KeyError):
        bank.ask("balance", "ann")


# Kinds of error by which this library stops a node, or holds it: a machine that raises one (it may be a client of another
# cluster, or use the storage) means its command.
STOPPING = [StorageFailed("mine"), NoRoom("mine"), MachineStopped("mine"), MachineHeld("mine"), CorruptionError("mine")]


class RaisesWhenRead:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return _raise, (self.error,)


def _raise(error: BaseException) -> None:
    raise error


class GivesBack:
    """A machine with `apply_many`, whose results are exceptions that nobody raised."""

    def apply(self, item: Any) -> Any:
        raise item

    def apply_many(self, items: Sequence[Any]) -> list[Any]:
        return list(items)


@pytest.mark.parametrize("error", STOPPING, ids=lambda error: type(error).__name__)
def test_what_stops_a_node_when_the_library_raises_it_is_a_result_when_a_user_does(
    bank: Local, error: ActorRaftError
) -> None:
    for where, act in {
        "a command": lambda: bank.execute(lambda _: _raise(error)),
        "a read": lambda: bank.query(lambda _: _raise(error)),
        "a pickle": lambda: bank.execute(RaisesWhenRead(error)),
        "a list of results": lambda: apply_together(Local(GivesBack), error),
    }.items():
        with pytest.raises(CommandFailed, match="mine"):
            print(where)  # pytest shows it where this fails
            act()
    bank.call("deposit", "ann", 1)  # it goes on


def apply_together(local: Local, item: Any) -> Any:
    encoded = [msgspec.msgpack.decode(local.encoder.encode_command(item)) for _ in range(2)]
    return decode_result(through_a_frame(local.host.apply_many(encoded, local.context)[0]))


class Leaves(StateMachine):
    def __init__(self, how: type[BaseException]) -> None:
        raise how("enough")


class MakesAnother(StateMachine):
    def __new__(cls) -> Any:
        return 5

    @command
    def add(self) -> None: ...


@pytest.mark.parametrize("how", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_constructor_that_ends_its_process_is_named(how: type[BaseException]) -> None:
    with pytest.raises(UsageError, match=rf"Leaves\(\) raised {how.__name__}: enough"):
        MachineHost.from_factory(encode_factory(Leaves, (how,), {}))


def test_a_class_that_makes_something_else_is_named() -> None:
    with pytest.raises(UsageError, match=r"MakesAnother\(\) made int, which has not its commands"):
        MachineHost.from_factory(encode_factory(MakesAnother, (), {}))


def test_a_result_nested_too_deeply_is_lost_and_stops_nobody(bank: Local) -> None:
    def nest(machine: Any) -> Any:
        made: list[Any] = []
        for _ in range(100_000):
            made = [made]
        return made

    with pytest.raises(ResultLost):
        bank.execute(nest)


# --- Exceptions ------------------------------------------------------------------------------------------------------


def test_an_exception_comes_back_as_itself_with_the_remote_traceback(bank: Local) -> None:
    with pytest.raises(NotEnough, match="need 5, have 0") as caught:
        bank.call("withdraw", "ann", 5)
    assert (caught.value.need, caught.value.have) == (5, 0)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "in withdraw" in str(caught.value.__cause__)
    assert "actorraft/node/host.py" not in str(caught.value.__cause__)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("text", 5), KeyError("k"), OSError(2, "text", "file"), FileNotFoundError(2, "text", "a", None, "b"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "reason"), TimeoutError(), ExceptionGroup("g", [ValueError("a")]),
        AssertionError(), ZeroDivisionError("z"),
    ],
)  # fmt: skip
def test_exceptions_of_the_language_come_back_whole(bank: Local, error: Exception) -> None:
    error.add_note("a note")
    with pytest.raises(type(error)) as caught:
        bank.call("fail", error)
    back = caught.value
    assert (str(back), repr(back.args), back.__notes__) == (str(error), repr(error.args), ["a note"])
    assert getattr(back, "filename2", None) == getattr(error, "filename2", None)


@pytest.mark.parametrize(
    "error",
    [StopIteration(3), StopAsyncIteration(), SystemExit(3), GeneratorExit(), Unavailable("no"), UsageError("u")],
)
def test_what_means_something_else_to_a_caller_arrives_as_command_failed(bank: Local, error: BaseException) -> None:
    with pytest.raises(CommandFailed) as caught:
        bank.call("fail", error)
    assert caught.value.type_name == type(error).__name__
    assert caught.value.message == str(error)
    assert "in fail" in caught.value.traceback


def test_a_keyboard_interrupt_in_a_command_is_a_result(bank: Local) -> None:
    with pytest.raises(CommandFailed, match="KeyboardInterrupt"):
        bank.call("fail", "keyboard")


def test_an_exception_that_cannot_be_pickled_arrives_as_command_failed(bank: Local) -> None:
    def fail(machine: Any) -> None:
        error = ValueError("holds a lock")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error

    with pytest.raises(CommandFailed, match="ValueError: holds a lock"):
        bank.execute(fail)


def test_an_exception_whose_text_cannot_be_made_is_a_result(bank: Local) -> None:
    class Rude(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def fail(machine: Any) -> None:
        raise Rude

    with pytest.raises(Rude):
        bank.execute(fail)


def test_publishing_in_a_query_is_the_users_mistake_and_no_refusal(bank: Local) -> None:
    with pytest.raises(CommandFailed, match="UsageError: context"):
        bank.ask("misuse")


@pytest.mark.parametrize("error", [MemoryError(), ImportError("module", name="module"), ModuleNotFoundError()])
def test_what_may_differ_from_node_to_node_is_held_at_and_not_taken_for_a_result(bank: Local, error: Exception) -> None:
    with pytest.raises(MachineHeld, match=rf"Bank\.fail raised {type(error).__name__}|raised") as held:
        bank.call("fail", error)

    assert held.value.module == (getattr(error, "name", None) or "")
    assert not held.value.untouched
    with pytest.raises(type(error)):
        decode_result(through_a_frame(held.value.result))


def test_a_recursion_that_is_too_deep_is_a_result(bank: Local) -> None:
    with pytest.raises(RecursionError, match="deep"):
        bank.call("fail", RecursionError("deep"))


def test_a_query_stops_nothing(bank: Local) -> None:
    def fail(machine: Any) -> None:
        raise RecursionError("deep")

    with pytest.raises(RecursionError):
        bank.query(fail)


def test_a_command_that_cannot_be_unpickled_is_a_result(bank: Local) -> None:
    unknown = pickle.dumps(Transfer("a", "b", 1)).replace(b"Transfer", b"Tramsfer")
    with pytest.raises(UnknownType, match=r"test_host:Tramsfer"):
        bank.apply(msgspec.msgpack.encode(msgspec.msgpack.Ext(2, unknown)))
    with pytest.raises(pickle.UnpicklingError):
        bank.apply(msgspec.msgpack.encode(msgspec.msgpack.Ext(2, b"\x80\x05nonsense")))


def test_a_command_of_a_module_that_is_not_here_is_held_at_before_it_has_touched_anything(bank: Local) -> None:
    missing = pickle.dumps(Transfer).replace(b"tests.machine.test_host", b"tests.machine.test_hosd")

    with pytest.raises(MachineHeld) as held:
        bank.apply(msgspec.msgpack.encode(msgspec.msgpack.Ext(2, missing)))

    assert held.value.untouched
    assert held.value.module == "tests.machine.test_hosd"
    with pytest.raises(UnknownType, match=r"tests\.machine\.test_hosd:Transfer"):
        decode_result(through_a_frame(held.value.result))


# --- Context ---------------------------------------------------------------------------------------------------------


def test_a_command_sees_its_context_and_publishes(bank: Local) -> None:
    first, second = bank.call("now"), bank.call("now")
    assert first[:4] == (0, 0, 1, 10.0)
    assert second[:4] == (1, 1, 1, 10.0)
    assert first[4] != second[4]
    assert [(index, topic) for index, topic, _ in bank.context.events] == [(0, "topic"), (1, "topic")]
    again = Local(Bank)
    assert again.call("now") == first


def test_published_events_do_not_alias_the_state(bank: Local) -> None:
    from actorraft.pickling.results import decode_result

    bank.call("now")
    bank.call("deposit", "ann", 1)
    assert decode_result(bank.context.events[0][2]) == {}


# --- Snapshots -------------------------------------------------------------------------------------------------------


def test_a_machines_attributes_are_its_state(bank: Local) -> None:
    bank.call("deposit", "ann", 5)
    bank.call("clean")
    other = Local(lambda: Bank("USD"))
    other.restore(bank.snapshot())
    assert vars(other.host.machine) == {"currency": "EUR", "accounts": {"ann": 5}}
    assert other.call("deposit", "ann", 1) == 6
    assert bank.host.digest() != other.host.digest()
    bank.call("deposit", "ann", 1)
    assert bank.host.digest() == other.host.digest()


def test_restore_runs_on_an_instance_made_by_the_constructor() -> None:
    class Locked:
        def __init__(self) -> None:
            self.lock, self.items = threading.Lock(), [1]

        @command
        def add(self, item: int) -> int:
            with self.lock:
                self.items.append(item)
                return len(self.items)

        def __getstate__(self) -> dict[str, Any]:
            return {"items": self.items}

    first, second = Local(Locked), Local(Locked)
    first.call("add", 5)
    second.restore(first.snapshot())
    assert second.call("add", 6) == 3


def test_slots_are_state_too() -> None:
    class Slim:
        __slots__ = ("total", "unset")

        def __init__(self) -> None:
            self.total = 0

        @command
        def add(self, number: int) -> int:
            self.total += number
            return self.total

    first, second = Local(Slim), Local(Slim)
    first.call("add", 5)
    second.restore(first.snapshot())
    assert second.call("add", 1) == 6
    first.call("add", 1)
    assert first.host.digest() == second.host.digest()


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"a": 1}, lambda: [1, 2], lambda: {1, 2}, lambda: collections.OrderedDict(a=1),
        lambda: collections.defaultdict(int, a=1), lambda: collections.Counter("abc"),
        lambda: collections.deque([1], 5), lambda: bytearray(b"abc"), lambda: "text", lambda: (1, 2),
        lambda: frozenset((1, 2)),
    ],
)  # fmt: skip
def test_builtin_states_are_kept_as_they_are(make: Any) -> None:
    first, second = Local(make), Local(lambda: type(make())())
    assert first.host.digest() == Local(make).host.digest()
    second.restore(first.snapshot())
    assert second.host.machine == make()
    assert type(second.host.machine) is type(make())
    assert second.host.digest() == first.host.digest()


def test_a_dict_with_commands_keeps_items_and_attributes() -> None:
    class Words(dict[str, int]):
        @command
        def count(self, word: str) -> int:
            self[word] = self.get(word, 0) + 1
            self.last = word
            return self[word]

    first, second = Local(Words), Local(Words)
    first.call("count", "a")
    second.restore(first.snapshot())
    assert (second.call("count", "a"), second.host.machine.last) == (2, "a")


@dataclass
class Chunked:
    items: dict[int, str] = field(default_factory=dict)

    @command
    def put(self, key: int, value: str) -> None:
        self.items[key] = value

    def snapshot(self) -> Iterator[Any]:
        yield len(self.items)
        yield from self.items.items()
        yield b"bytes too"

    def restore(self, chunks: Iterator[Any]) -> None:
        count = next(chunks)
        self.items = dict(next(chunks) for _ in range(count))


def test_a_snapshot_in_chunks_is_restored_from_chunks() -> None:
    first, second = Local(Chunked), Local(Chunked)
    for key in range(10):
        first.call("put", key, str(key))
    second.restore(first.snapshot())
    assert second.host.machine == first.host.machine
    assert second.host.digest() == first.host.digest()


def test_a_file_is_read_to_the_end_of_the_snapshot_and_no_further() -> None:
    first, second = Local(Chunked), Local(Chunked)
    first.call("put", 1, "one")
    file = io.BytesIO(first.snapshot() + b"what comes after")
    second.host.restore(file)
    assert file.read() == b"what comes after"


@pytest.mark.parametrize("keep", [10, 40, -1])
def test_a_snapshot_cut_short_is_refused(keep: int) -> None:
    bank = Local(Bank)
    with pytest.raises(Exception, match=r".") as caught:
        Local(Bank).restore(bank.snapshot()[:keep])
    assert not isinstance(caught.value, AssertionError)


def test_a_machine_with_half_of_snapshot_and_restore_is_refused_at_once() -> None:
    class Half:
        @command
        def go(self) -> None: ...

        def snapshot(self) -> int:
            return 5

    with pytest.raises(UsageError, match=r"Half has snapshot\(\) and no restore\(\)"):
        Local(Half)


def test_a_snapshot_of_a_newer_version_is_refused() -> None:
    class Versioned(Bank):
        machine_version = 2

    class Older(Bank):
        machine_version = 1

    newer, older = Local(Versioned), Local(Older)
    assert newer.host.version == 2
    with pytest.raises(MachineStopped, match=r"version 2 of .*Older, and this node runs version 1"):
        older.restore(newer.snapshot())
    newer.restore(older.snapshot())


def test_a_lambda_in_the_state_is_kept() -> None:
    first, second = Local(dict), Local(dict)
    number = 5
    first.execute(lambda state: state.update(add=lambda other: other + number))
    second.restore(first.snapshot())
    assert second.query(lambda state: state["add"](2)) == 7


def test_wake_at_and_digest_are_the_machines_if_it_offers_them() -> None:
    class Timer:
        wake_at: float | None = None

        @command
        def wake(self, at: float) -> None:
            self.wake_at = at

        def digest(self) -> bytes:
            return b"mine"

    timer = Local(Timer)
    assert timer.host.wake_at is None
    timer.call("wake", 3)
    assert timer.host.wake_at == 3.0
    assert timer.host.digest() == b"mine"
    assert Local(dict).host.wake_at is None


# --- Many at once ----------------------------------------------------------------------------------------------------


def test_apply_many_is_given_runs_of_command_objects() -> None:
    class Batcher:
        def __init__(self) -> None:
            self.batches: list[list[Any]] = []

        def apply(self, command: Any) -> Any:
            return command

        def apply_many(self, commands: list[Any]) -> list[Any]:
            self.batches.append(commands)
            if commands == ["all fail"]:
                raise ValueError("all")
            return [ValueError("one") if each == "fail" else each for each in commands]

    machine = Local(Batcher)
    assert machine.host.takes_many
    assert not Local(Bank).host.takes_many
    encode = machine.encoder.encode_command
    commands = [msgspec.msgpack.decode(encode(each)) for each in (1, "fail", 3)]
    results = machine.host.apply_many([*commands, ["apply", 4], commands[0]], CommandContext())
    assert [type(each) for each in results] == [int, msgspec.msgpack.Ext, int, int, int]
    assert machine.host.machine.batches == [[1, "fail", 3], [1]]
    (failed,) = machine.host.apply_many([msgspec.msgpack.decode(encode("all fail"))], CommandContext())
    assert failed.code == 5


def test_a_constructor_that_raises_is_seen() -> None:
    def broken() -> None:
        raise ValueError("no machine")

    with pytest.raises(ValueError, match="no machine"):
        MachineHost(broken)


class Forecast(StateMachine):
    """Imports late."""

    @command
    def misspelled(self) -> None:
        import surely_no_such_module.inside  # type: ignore[import-not-found]  # noqa: F401

    @query
    def nested(self) -> Any:
        def later() -> None:
            from surely_none_either import something  # type: ignore[import-not-found]  # noqa: F401

        return later

    @command
    def knows_what_to_do(self) -> None:
        try:
            import surely_not_needed  # type: ignore[import-not-found]  # noqa: F401
        except ImportError:
            return

    @command
    def fine(self) -> None:
        import json.decoder  # noqa: F401


def test_modules_that_commands_would_miss_are_named_before_any_is_applied(caplog: pytest.LogCaptureFixture) -> None:
    MachineHost(Forecast).forecast()

    told = [record.getMessage() for record in caplog.records]
    assert 2 == len(told)
    assert told[0].startswith(
        "Forecast.misspelled imports surely_no_such_module.inside, and there is no surely_no_such"
    )
    assert told[1].startswith("Forecast.nested imports surely_none_either, and there is no surely_none_either here")


class Topic(enum.StrEnum):
    NEWS = "news"


class Evasive(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise SystemExit("no words")

    def isascii(self) -> bool:
        raise SystemExit("none of yours")


class Tells(StateMachine):
    """Publishes to whatever it is told."""

    topic: Any = ""

    @command
    def tell(self) -> None:
        context().publish(self.topic, 1)


@pytest.mark.parametrize(
    ("topic", "plain"),
    [(Topic.NEWS, "news"), (Evasive("news"), "news"), ("neuigkeiten über", "neuigkeiten über"), ("", "")],
)
def test_what_a_machine_publishes_has_a_topic_that_a_frame_can_hold(topic: Any, plain: str) -> None:
    host, told = MachineHost(Tells), CommandContext(0)
    host.machine.topic = topic

    assert host.apply(["tell"], told) is None

    assert [(plain, 1)] == [event[1:] for event in told.events]
    assert type(told.events[0][1]) is str
    History().extend(told.events)


@pytest.mark.parametrize("topic", ["half \ud800", 5, None, b"news"])
def test_a_topic_that_no_frame_can_hold_is_that_commands_error(topic: Any) -> None:
    host, told = MachineHost(Tells), CommandContext(0)
    host.machine.topic = topic

    with pytest.raises((TypeError, UnicodeEncodeError)):
        decode_result(host.apply(["tell"], told))

    assert [] == told.events


def test_a_fault_is_told_in_words_that_a_frame_can_hold() -> None:
    class Odd:
        def __repr__(self) -> str:
            return "\ud800"

    class Shelf(StateMachine):
        def __init__(self) -> None:
            self.shelf = {Odd(): threading.Lock()}

    host = MachineHost(Shelf)

    assert "Shelf.shelf[\\ud800] cannot be pickled" in host.fault
    host.fault.encode()


# --- What is run before there is a machine ----------------------------------------------------------------------------

ODD_MODULE = """
import os, sys
def act():
    how = os.environ.get("ODD_MODULE")
    if how == "exit": sys.exit(0)
    if how == "interrupt": raise KeyboardInterrupt
    if how == "fork": os.fork()
if os.environ.get("ODD_MODULE_WHERE") == "import": act()
class Odd:
    def __init__(self):
        self.n = 0
        if os.environ.get("ODD_MODULE_WHERE") == "constructor": act()
    def apply(self, command): return 1
"""


@pytest.mark.parametrize("where", ["import", "constructor"])
@pytest.mark.parametrize("how", ["exit", "interrupt"])
def test_a_module_that_exits_when_a_node_imports_it_is_said_to_do_that(
    how: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_module_of_a_machine.py").write_text(ODD_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("odd_module_of_a_machine")
    factory = encode_factory(module.Odd, (), {})
    monkeypatch.delitem(sys.modules, "odd_module_of_a_machine")
    monkeypatch.setenv("ODD_MODULE", how)
    monkeypatch.setenv("ODD_MODULE_WHERE", where)
    try:
        with pytest.raises(UsageError, match=r"raised (SystemExit: 0|KeyboardInterrupt)"):
            MachineHost.from_factory(factory)
    finally:
        sys.modules.pop("odd_module_of_a_machine", None)


@pytest.mark.parametrize("where", ["import", "constructor"])
def test_a_fork_before_there_is_a_machine_is_no_second_node(where: str, tmp_path: Path) -> None:
    (tmp_path / "odd_module_of_a_machine.py").write_text(ODD_MODULE)
    script = (
        "import os, sys\n"
        f"sys.path[:0] = {[str(tmp_path), *(each for each in sys.path if each)]!r}\n"
        "from actorraft.node.guest import fork\n"
        "from actorraft.node.host import MachineHost\n"
        "from actorraft.pickling.encoder import encode_factory\n"
        "from odd_module_of_a_machine import Odd\n"
        "factory = encode_factory(Odd, (), {})\n"
        "del sys.modules['odd_module_of_a_machine']\n"
        f"os.environ['ODD_MODULE'], os.environ['ODD_MODULE_WHERE'] = 'fork', {where!r}\n"
        "fork.watch()\n"
        "MachineHost.from_factory(factory)\n"
        "print('went on', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr
