"""What can be awaited is told by what a class is made of, whatever its metaclass or the value says."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any

import pytest

from actorraft.actors.coroutines import Coroutines, is_awaitable
from actorraft.futures import ResultFuture


class Registry(type):
    def __getattr__(cls, name: str) -> Any:
        raise KeyError(name)


class Yes(type):
    def __getattr__(cls, name: str) -> Any:
        return lambda *_: iter(())


class Hides(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__mro__", "__dict__", "__await__"):
            raise RuntimeError(name)
        return super().__getattribute__(name)


class Registered(metaclass=Registry):
    pass


class Agreeable(metaclass=Yes):
    pass


class Hidden(metaclass=Hides):
    pass


class Refuses(ResultFuture[int]):
    __await__ = None  # type: ignore[assignment]


class Inherits(ResultFuture[int]):
    pass


async def of_async() -> None:
    pass


@coroutine
def of_generator() -> Generator[Any, Any, None]:
    yield


@pytest.mark.parametrize("kind", [Registered, Agreeable, Hidden, Refuses, object, int])
def test_what_has_no_await_of_its_own_cannot_be_awaited(kind: Any) -> None:
    assert not is_awaitable(kind())


def test_what_has_one_can() -> None:
    made: list[Coroutine[Any, Any, None]] = [of_async(), of_generator()]  # type: ignore[list-item]
    loop = asyncio.new_event_loop()
    assert all(is_awaitable(each) for each in (*made, loop.create_future(), Inherits()))
    assert not is_awaitable(each for each in ())
    for each in made:
        each.close()
    loop.close()


def test_a_hook_that_returns_an_answer_which_is_on_its_way_waits_for_nothing() -> None:
    asked: ResultFuture[int] = ResultFuture()
    Coroutines().call(lambda: asked)
    assert not asked.done()
