"""A setting of another kind, or out of bounds, is refused where it is written and by its name: never by a node's death."""

from __future__ import annotations

import abc
import enum
import json
import math
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actorraft import Actor, ActorOptions, RaftConfig, Supervision, UsageError, actor_ref, spawn
from actorraft.actors import actor
from actorraft.actors.supervision import RestartLog
from actorraft.futures import ResultFuture
from actorraft.raft.config import BOUNDS, COUNT_MAX, deciding

ODD: list[Any] = ["x", b"1", [1], {}, None, 1j, Decimal("0.5"), math.nan, -1, int, object()]
CONFIG = {field.name: type(field.default) for field in fields(RaftConfig)}


@pytest.mark.parametrize("name", CONFIG)
def test_each_field_of_raft_config_names_what_it_does_not_take(name: str) -> None:
    kind = CONFIG[name]
    another: list[Any] = [0, 1] if kind is bool else [True, 0.5] if kind is int else [True]
    for value in (*ODD, *another, *([] if kind is bool else [math.inf, -math.inf, 10**400])):
        with pytest.raises((TypeError, ValueError), match=rf"RaftConfig\.{name} is "):
            RaftConfig(**{name: value})


class Size(enum.IntEnum):
    FRAME = 1 << 20


@pytest.mark.parametrize(
    "number", [np.int64(1 << 20), Size.FRAME, np.float64(1 << 20), np.float32(1 << 20), Fraction(1 << 20)]
)
def test_a_number_of_another_library_is_kept_as_a_plain_one_and_the_log_has_it_as_json(number: Any) -> None:
    name = "frame_bytes_max" if isinstance(number, int | np.int64) else "session_expiry_s"
    config = RaftConfig(**{name: number})
    assert type(getattr(config, name)) in (int, float)
    assert json.loads(deciding(config)[name]) == 1 << 20


@pytest.mark.parametrize("number", [np.float32(0.01), np.float64(0.01), Fraction(1, 100), np.int64(0), 0])
def test_a_number_of_another_library_is_a_wait_of_so_many_seconds(number: Any) -> None:
    with pytest.raises(TimeoutError):
        ResultFuture[None]().result(number)


def test_numbers_of_other_libraries_will_do_for_actors() -> None:
    options = ActorOptions(mailbox_max=np.int64(5), pool=Size.FRAME)  # type: ignore[arg-type]
    assert [(type(each), each) for each in (options.mailbox_max, options.pool)] == [(int, 5), (int, 1 << 20)]
    rule = Supervision(max_restarts=np.int64(2), period_s=Fraction(5), backoff_s=(np.float32(0.5), Fraction(3, 4)))  # type: ignore[arg-type]
    log = RestartLog(rule)
    assert [log.next_delay_s(0.0, crashed=True) for _ in range(3)] == [0.5, 0.75, None]


def test_a_bool_of_another_library_will_do_too() -> None:
    assert RaftConfig(lease_reads=np.bool_(True)).lease_reads is True  # type: ignore[arg-type]
    assert ActorOptions(name="a", public=np.bool_(True)).public is True  # type: ignore[arg-type]


def test_what_may_be_restarted_for_ever_is_after_a_thousand_times_too() -> None:
    log = RestartLog(Supervision(max_restarts=10_000, period_s=math.inf, backoff_s=(0.1, 5.0)))
    assert [log.next_delay_s(0.0, crashed=True) for _ in range(2000)][-1] == 5.0


@pytest.mark.parametrize("name", BOUNDS)
def test_each_bound_is_the_last_that_is_taken(name: str) -> None:
    # The fields that must fit each other, at their widest.
    wide: dict[str, Any] = {
        "frame_bytes_max": BOUNDS["frame_bytes_max"][1], "append_bytes_max": 1, "snapshot_chunk_bytes": 1,
        "election_timeout_ticks": BOUNDS["election_timeout_ticks"][1], "heartbeat_ticks": 1,
        "link_timeout_ms": BOUNDS["link_timeout_ms"][1], "link_heartbeat_ms": 10,
    }  # fmt: skip
    least, most = BOUNDS[name]
    for value in (least, most):
        fits = name not in ("heartbeat_ticks", "link_heartbeat_ms") or value == least  # else the other has no room
        if fits:
            assert getattr(RaftConfig(**{**wide, name: value}), name) == value
    for value in (least - 1, most + 1 if most < COUNT_MAX else most * 2):
        with pytest.raises(ValueError, match=rf"RaftConfig\.{name} is {least} to {most}, not"):
            RaftConfig(**{**wide, name: value})


@pytest.mark.parametrize("name", [field.name for field in fields(Supervision)])
def test_each_field_of_a_supervision_names_what_it_does_not_take(name: str) -> None:
    for value in (*ODD, True, (1.0, 0.5), (0.1,), ("a", "b"), (0.1, math.inf), (math.nan, 1.0)):
        with pytest.raises(UsageError, match=rf"{name} is "):
            Supervision(**{name: value})


@pytest.mark.parametrize("name", ["mailbox_max", "mailbox_bytes_max", "concurrency", "pool", "replicas"])
def test_each_number_of_an_actors_options_names_what_it_does_not_take(name: str) -> None:
    for value in (*ODD, True, 0, 1.0, math.inf):
        with pytest.raises(UsageError, match=rf"{name} is a whole number"):
            ActorOptions(**{name: value})


def test_the_other_options_of_an_actor_name_what_they_do_not_take() -> None:
    for name, value in (("supervision", "permanent"), ("supervision", True), ("public", "yes"), ("route", "random")):
        with pytest.raises(UsageError, match=f"{name} is "):
            ActorOptions(**{name: value, "name": "a"})  # type: ignore[arg-type]


class Yields(Actor):
    def receive(self, message: Any) -> Iterator[Any]:
        yield message


class YieldsAtTheStart(Actor):
    def on_start(self) -> Iterator[None]:  # type: ignore[override]
        yield


class YieldsLater(Actor):
    async def receive(self, message: Any) -> AsyncIterator[Any]:
        yield message


class Unfinished(Actor, abc.ABC):
    @abc.abstractmethod
    def price(self) -> int: ...


@pytest.mark.parametrize(
    ("cls", "why"),
    [
        (Yields, r"Yields\.receive is a generator"),
        (YieldsAtTheStart, r"YieldsAtTheStart\.on_start is a generator"),
        (YieldsLater, r"YieldsLater\.receive is a generator"),
        (Unfinished, r"Unfinished is abstract .it has no price"),
    ],
)
def test_an_actor_that_could_not_work_is_refused_before_a_process_starts(cls: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        spawn(cls)


@pytest.mark.parametrize("seconds", ["1", b"1", None, True, [1], math.nan, math.inf, -1, 10**400])
def test_a_timer_names_what_it_does_not_take(seconds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "inside", SimpleNamespace(after=None))
    with pytest.raises(UsageError, match="a timer is set for 0 seconds or more"):
        Actor().after(seconds, "message")


@pytest.mark.parametrize("name", [5, None, "../x", "a/b", "a\0b"])
def test_an_actor_is_found_by_a_name_and_nothing_else(name: Any) -> None:
    with pytest.raises(UsageError, match="an actor's name has letters"):
        actor_ref(name)
