"""Coroutines are asyncio's: under any other loop each way in says what to do instead."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from actorraft import Client, ReplicatedStateMachine, UsageError, connect_async
from actorraft.client.events import EventStream


async def next_of(stream: EventStream) -> None:
    async for _ in stream:
        return


async def enter(client: Any) -> None:
    async with client:
        return


class Unmade(Client[Any]):
    def __init__(self) -> None:
        pass  # there is no cluster, and none is needed to refuse


@pytest.mark.parametrize(
    ("begin", "instead"),
    [
        (lambda: connect_async({0: "ipc:///nowhere"}), r"run_sync\(connect, endpoints, machine\)"),
        (lambda: ReplicatedStateMachine(dict).spawn_async(1), r"run_sync\(replicated\.spawn\)"),
        (lambda: next_of(EventStream()), r"run_sync\(next, iter\(stream\)\)"),
        (lambda: enter(Unmade()), r"run_sync\(client\.__enter__\)"),
    ],
)
def test_another_event_loop_is_told_what_to_do(begin: Callable[[], Coroutine[Any, Any, Any]], instead: str) -> None:
    with pytest.raises(UsageError, match=f"under trio: await trio.to_thread.{instead}"):
        begin().send(None)
