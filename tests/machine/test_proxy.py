"""Proxies: calls are checked and sent, and nothing else can be reached."""

from __future__ import annotations

import asyncio
import inspect
import pydoc
from typing import Any

import pytest

from actorraft import CommandObjects, StateMachine, UsageError, command, query
from actorraft.client.proxy import WrongArguments, machine_class, make_binder, make_proxy
from actorraft.futures import ResultFuture


class Bank(StateMachine):
    """A bank."""

    accounts = 3

    @command
    def deposit(self, name: str, amount: int = 1, note: str = "") -> int:
        """Put money in."""
        raise NotImplementedError

    @command
    def odd(self, first: int, /, second: int = 2, *rest: int, key: int, other: int = 5, **more: int) -> None: ...

    @query
    def balance(self, name: str) -> int:
        raise NotImplementedError

    def helper(self) -> None: ...


class Client:
    """Takes calls down and answers each with what was sent."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def _answer(self, call: Any) -> ResultFuture[Any]:
        self.calls.append(call)
        future: ResultFuture[Any] = ResultFuture()
        future.set_result(call)
        return future

    def submit_call(self, method: str, args: Any, kwargs: Any, timeout: float | None) -> ResultFuture[Any]:
        return self._answer(("command", method, args, dict(kwargs), timeout))

    def query_call(
        self, method: str, args: Any, kwargs: Any, consistency: str, to: Any, timeout: float | None
    ) -> ResultFuture[Any]:
        return self._answer(("query", method, args, dict(kwargs), consistency, to, timeout))

    def wait(self, future: ResultFuture[Any], instead: str = "") -> Any:
        return future.result()


@pytest.fixture
def bank() -> Any:
    return make_proxy(Client(), Bank, 3.0, "stale", 2)


def test_a_call_is_sent_as_it_was_made(bank: Any) -> None:
    assert bank.deposit("ann", 5) == ("command", "deposit", ("ann", 5), {}, 3.0)
    assert bank.deposit("ann") == ("command", "deposit", ("ann",), {}, 3.0)
    assert bank.deposit(amount=5, name="ann")[2:4] == (("ann", 5), {})
    assert bank.deposit("ann", note="x")[2:4] == (("ann",), {"note": "x"})
    assert bank.balance("ann") == ("query", "balance", ("ann",), {}, "stale", 2, 3.0)


def test_submit_and_aio_send_the_same(bank: Any) -> None:
    async def ask() -> Any:
        return await bank.deposit.aio("ann", 5)

    future = bank.deposit.submit("ann", 5)
    assert isinstance(future, ResultFuture)
    assert future.result() == asyncio.run(ask()) == bank.deposit("ann", 5)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((1,), {"key": 1}), ((1, 2, 3, 4), {"key": 1, "other": 2, "x": 3}), ((1,), {"second": 5, "key": 1, "first": 9})],
)
def test_every_kind_of_parameter_is_kept(bank: Any, args: Any, kwargs: Any) -> None:
    sent = bank.odd(*args, **kwargs)

    def take(first: int, /, second: int = 2, *rest: int, key: int, other: int = 5, **more: int) -> Any:
        return first, second, rest, key, other, more

    assert take(*sent[2], **sent[3]) == take(*args, **kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, r"Bank\.deposit\(\) missing 1 required positional argument: 'name'"),
        ((1, 2, 3, 4), {}, r"Bank\.deposit\(\) takes from 1 to 3 positional arguments but 4 were given"),
        ((1,), {"nmae": 2}, r"Bank\.deposit\(\) got an unexpected keyword argument 'nmae'"),
        ((1,), {"name": 2}, r"Bank\.deposit\(\) got multiple values for argument 'name'"),
    ],
)
def test_wrong_arguments_are_refused_in_the_methods_own_words(bank: Any, args: Any, kwargs: Any, message: str) -> None:
    for call in (bank.deposit, bank.deposit.submit):
        with pytest.raises(WrongArguments, match=message) as caught:
            call(*args, **kwargs)
        assert isinstance(caught.value, UsageError)
        assert isinstance(caught.value, TypeError)
    assert vars(bank)["_Proxy__client"].calls == []


def test_what_is_no_command_or_query_says_so(bank: Any) -> None:
    with pytest.raises(AttributeError, match=r"'helper' is no command or query of Bank.*decorate it.*balance, deposit"):
        bank.helper
    with pytest.raises(AttributeError, match="'accounts' is no command or query of Bank"):
        bank.accounts
    with pytest.raises(AttributeError, match="cannot set 'accounts' through a proxy of Bank"):
        bank.accounts = 5
    assert not hasattr(bank, "__len__")


def test_a_state_without_methods_says_how_it_is_reached() -> None:
    for machine in (dict, CommandObjects):
        with pytest.raises(AttributeError, match=r"use cluster\.execute\(command\) and cluster\.query\(callable\)"):
            make_proxy(Client(), machine).update


def test_a_machine_with_apply_has_apply_and_query() -> None:
    class Adder:
        def apply(self, command: Any) -> None: ...
        def query(self, request: Any) -> None: ...

    adder = make_proxy(Client(), Adder)
    assert adder.apply(5)[:3] == ("command", "apply", (5,))
    assert adder.query("total")[:3] == ("query", "query", ("total",))
    assert dir(adder) == ["apply", "query"]


def test_dir_help_and_signatures_are_the_machines(bank: Any) -> None:
    assert dir(bank) == ["balance", "deposit", "odd"]
    expected = "(name: 'str', amount: 'int' = 1, note: 'str' = '') -> 'int'"
    for method in (bank.deposit, bank.deposit.submit, bank.deposit.aio):
        assert str(inspect.signature(method)) == expected
    assert "Put money in." in pydoc.render_doc(bank.deposit, renderer=pydoc.plaintext)
    assert "A bank." in pydoc.render_doc(bank, renderer=pydoc.plaintext)
    assert repr(bank).startswith("<proxy of Bank on <")
    assert repr(bank.deposit).startswith("<command Bank.deposit of <proxy of Bank")


def test_a_builder_says_its_class_in_its_annotation() -> None:
    def build() -> Bank:
        return Bank()

    def silent():  # type: ignore[no-untyped-def]
        return Bank()

    assert machine_class(build) is Bank
    with pytest.raises(UsageError, match="does not say in its annotation"):
        make_proxy(Client(), silent)


def test_a_signature_that_cannot_be_written_down_is_left_to_the_nodes() -> None:
    parameter = inspect.Parameter("_named_", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert make_binder("f", inspect.Signature([parameter]))(1, x=2) == ((1,), {"x": 2})


def test_positional_only_defaults_are_left_out_from_the_end() -> None:
    def take(a: int, b: int = 1, c: int = 2, /) -> Any:
        return a, b, c

    bind = make_binder("take", inspect.signature(take))
    assert [bind(*range(count))[0] for count in (1, 2, 3)] == [(0,), (0, 1), (0, 1, 2)]
