"""Machines as plain objects: decorators, what a class offers, contexts."""

from __future__ import annotations

import abc
import functools
import inspect
import pydoc
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

import actorraft as ar
import actorraft.testing
from actorraft import Replace, StateMachine, UsageError, command, context, query
from actorraft.machine import BoundCommand, CommandContext, hooks_of, methods_of


class Bank(StateMachine):
    """A bank."""

    def __init__(self) -> None:
        self.accounts: dict[str, int] = {}

    @command
    def deposit(self, name: str, amount: int = 1) -> int:
        """Put money in."""
        self.accounts[name] = self.accounts.get(name, 0) + amount
        return self.accounts[name]

    @query
    def balance(self, name: str) -> int:
        return self.accounts.get(name, 0)

    @command
    def note(self) -> tuple[float, int]:
        context().publish("notes", "noted")
        return context().time, context().random.randrange(1000)

    def helper(self) -> None: ...


def test_a_local_machine_just_runs_its_methods() -> None:
    bank = Bank()
    assert bank.deposit("ann", 5) == 5
    assert bank.deposit("ann", amount=2) == 7
    assert Bank.deposit(bank, "ann") == 8
    assert bank.balance("ann") == 8


def test_a_local_machine_has_nothing_to_submit_to() -> None:
    with pytest.raises(UsageError, match=r"Bank.deposit.submit: this is a local object"):
        Bank().deposit.submit("ann", 5)
    with pytest.raises(UsageError, match=r"Bank.deposit.aio"):
        Bank().deposit.aio("ann", 5)


def test_a_bound_command_shows_the_method_it_stands_for() -> None:
    deposit = Bank().deposit
    assert isinstance(deposit, BoundCommand)
    assert str(inspect.signature(deposit)) == "(name: 'str', amount: 'int' = 1) -> 'int'"
    assert deposit.__doc__ == "Put money in."
    assert "Put money in." in pydoc.render_doc(deposit, renderer=pydoc.plaintext)
    assert "deposit(self, name:" in pydoc.render_doc(Bank, renderer=pydoc.plaintext)
    assert repr(Bank.deposit) == "<command Bank.deposit>"


def test_a_subclass_overrides_a_command_and_calls_the_one_above() -> None:
    class Double(Bank):
        @command
        def deposit(self, name: str, amount: int = 1) -> int:
            return super().deposit(name, 2 * amount)

    assert Double().deposit("ann", 5) == 10


def test_an_override_without_a_decorator_stays_a_command() -> None:
    class Quiet(Bank):
        def deposit(self, name: str, amount: int = 1) -> int:  # type: ignore[override]
            return -1

    found = methods_of(Quiet)
    assert found.commands["deposit"](Quiet(), "ann") == -1
    assert set(found.queries) == {"balance"}


def test_an_override_by_another_kind_of_thing_is_none() -> None:
    class Other(Bank):
        deposit = 5  # type: ignore[assignment]
        balance = command(lambda self, name: 3)  # type: ignore[assignment]

    assert set(methods_of(Other).commands) == {"note", "balance"}
    assert set(methods_of(Other).queries) == set()


def test_an_abstract_command_must_be_defined() -> None:
    class Base(StateMachine, abc.ABC):
        @command
        @abc.abstractmethod
        def add(self, number: int) -> None: ...

    with pytest.raises(TypeError, match="abstract"):
        Base()  # type: ignore[abstract]


def test_what_cannot_be_made_is_refused_before_a_process_starts() -> None:
    class Base(StateMachine, abc.ABC):
        @command
        @abc.abstractmethod
        def add(self, number: int) -> None: ...

    class Shape(Protocol):
        @query
        def area(self) -> float: ...

    class Waits:
        async def apply(self, item: Any) -> None: ...

    class Yields:
        def apply(self, item: Any) -> Iterator[Any]:
            yield item

    for cls, why in (
        (Base, "abstract .it has no add"),
        (Shape, "as any Protocol"),
        (Waits, "async"),
        (Yields, "gener"),
    ):
        with pytest.raises(UsageError, match=why):
            ar.ReplicatedStateMachine(cls)


def test_a_method_called_query_hides_the_decorator_only_by_its_short_name() -> None:
    class Store:
        @ar.query
        def query(self, key: str) -> str:
            return key

        @ar.query
        def other(self, key: str) -> str:
            return key

    assert set(methods_of(Store).queries) == {"query", "other"}


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        return function(*arguments, **options)

    return called


@pytest.mark.parametrize("mark", [command, query])
@pytest.mark.parametrize(
    "around", [classmethod, staticmethod, property, functools.cached_property, functools.singledispatchmethod, logged]
)
def test_a_command_inside_another_decorator_is_refused_not_silently_none(around: Any, mark: Any) -> None:
    class Hides:
        add = around(mark(lambda self, number: number))

    with pytest.raises(UsageError, match=r"Hides\.add: @.* goes outermost, on a plain method"):
        methods_of(Hides)


def test_an_attribute_of_the_class_that_lies_about_its_own_class_hides_nothing() -> None:
    class Liar:
        @property  # type: ignore[misc]
        def __class__(self) -> type:
            raise SystemExit("which class?")

    class Keeps(Bank):
        mascot = Liar()

    assert methods_of(Keeps).commands == methods_of(Bank).commands


@pytest.mark.parametrize("mark", [command, query])
def test_what_cannot_be_a_command_is_refused_where_it_is_written(mark: Any) -> None:
    async def waits(self: Any) -> None: ...

    def yields(self: Any) -> Iterator[int]:
        yield 1

    with pytest.raises(UsageError, match="async"):
        mark(waits)
    with pytest.raises(UsageError, match="generator: its body would never run"):
        mark(yields)
    with pytest.raises(UsageError, match="plain method"):
        mark(staticmethod(lambda: None))
    with pytest.raises(UsageError, match="plain method"):
        mark(mark(lambda self: None))
    with pytest.raises(UsageError, match="plain method"):
        mark("name")


def test_a_decorator_may_make_a_result_of_what_a_generator_or_a_coroutine_gives() -> None:
    def listed(function: Any) -> Any:
        return functools.wraps(function)(lambda self, command: list(function(self, command)))

    class Counts:
        @listed
        def apply(self, command: int) -> Iterator[int]:
            yield command

        @listed
        async def query(self, request: int) -> int:
            return request

    hooks_of(Counts)
    assert methods_of(Counts).row == "apply"


def test_what_is_called_apply_or_query_beside_commands_is_a_helper_of_whatever_kind() -> None:
    class Helps(Bank):
        async def query(self) -> None: ...

        def apply(self) -> Iterator[int]:
            yield 1

    hooks_of(Helps)
    assert methods_of(Helps).commands == methods_of(Bank).commands


def test_a_helper_that_looks_like_a_command_is_a_helper() -> None:
    class Helps(Bank):
        @functools.wraps(Bank.note)
        def note_it(self) -> Any:
            return self.note()

    assert methods_of(Helps).commands == methods_of(Bank).commands


@pytest.mark.parametrize(
    ("cls", "row"), [(Bank, "methods"), (dict, "objects"), (type("A", (), {"apply": lambda self, c: c}), "apply")]
)
def test_the_kind_of_a_machine_follows_from_its_class(cls: type, row: str) -> None:
    assert methods_of(cls).row == row


# --- Contexts --------------------------------------------------------------------------------------------------------


def test_there_is_no_context_outside_a_command() -> None:
    with pytest.raises(UsageError, match=r"actorraft\.testing\.context"):
        Bank().note()


def test_a_unit_test_supplies_a_context() -> None:
    with actorraft.testing.context(index=3, time=5.0, serial=9, seed=1) as current:
        first = Bank().note()
        assert context() is current
        with actorraft.testing.context(time=6.0):
            assert Bank().note()[0] == 6.0
        assert context() is current
    assert first[0] == 5.0
    assert current.events == [(3, "notes", "noted")]
    with pytest.raises(UsageError):
        context()


def test_random_numbers_depend_on_cluster_and_serial_only() -> None:
    def draw(seed: int, serial: int) -> list[int]:
        made = CommandContext(seed)
        made.serial = serial
        return [made.random.randrange(10**9) for _ in range(3)]

    assert draw(1, 1) == draw(1, 1)
    assert len({tuple(draw(seed, serial)) for seed in (1, 2) for serial in (1, 2, 3)}) == 6


def test_a_topic_is_a_string() -> None:
    with pytest.raises(TypeError, match="topic"):
        CommandContext().publish(5, "event")  # type: ignore[arg-type]


def test_a_replacement_is_a_state_and_a_result() -> None:
    assert Replace(5) == (5, None)
    assert Replace(5, "old").result == "old"
