"""What replicated actors send, in real processes: messages, answers and timers survive the death of who would send them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import pytest

from actorraft import (
    Actor,
    ActorDead,
    ActorOptions,
    CommandFailed,
    ReplicatedStateMachine,
    ResultFuture,
    UsageError,
    actor_ref,
    query,
    spawn,
)
from actorraft.actors.system import close_system
from actorraft.cluster.replicated_actor import ASK, ReplicatedActor, ReplicatedActorRef
from actorraft.storage.recover import recover
from examples.transfers import move
from tests.cluster.helpers import eventually

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    close_system()


class Keeper(Actor):
    """Keeps what it got and what happened to what it sent; does what a message says."""

    def on_start(self) -> None:
        self.got: list[Any] = []
        self.timer: Any = None

    def receive(self, message: Any) -> Any:
        if callable(message):
            return message(self)
        if isinstance(message, Exception):
            raise message
        self.got.append(message if self.sender is None else (message, self.sender.name))
        return f"got {message}"

    def on_answer(self, answer: Any) -> None:
        """What it asked was answered."""
        self.got.append(("answer", answer))

    def on_failure(self, error: BaseException, message: Any) -> None:
        self.got.append(("failure", type(error).__name__, str(error)))

    @query
    def all(self) -> list[Any]:
        """What happened."""
        return self.got

    @query
    def sends(self, ref: Any) -> None:
        """A query that does what it must not."""
        self.tell(ref, 1)

    def drop_timer(self) -> bool:
        """Cancel the timer that it keeps."""
        return bool(self.timer.cancel())


def start(**options: Any) -> ReplicatedActorRef:
    return cast(ReplicatedActorRef, ActorOptions(replicas=3, **options).spawn(Keeper))


def test_messages_answers_failures_and_timers_of_a_replicated_actor() -> None:
    ref, other = start(name="first"), spawn(Keeper)

    assert ref.ask(lambda self: self.tell(other, 1)).result() is None
    ref.ask(lambda self: self.ask(other, 2, then=Keeper.on_answer)).result()
    ref.ask(lambda self: self.ask(other, LookupError("none"), then=Keeper.on_answer)).result()
    ref.ask(lambda self: other.tell(3)).result()  # in the turn of a message it is the same
    ref.ask(lambda self: self.tell(self.ref, "to itself")).result()
    ref.ask(lambda self: self.after(0.05, "later")).result()
    ref.ask(lambda self: setattr(self, "timer", self.after(3600.0, "never"))).result()
    eventually(lambda: len(ref.proxy().all()) == 4)
    assert sorted(map(str, ref.proxy().all())) == sorted(
        map(str, [("answer", "got 2"), ("failure", "LookupError", "none"), ("to itself", "first"), ("later", "first")])
    )
    eventually(lambda: len(other.proxy().all()) == 3)
    assert other.proxy().all() == [(1, "first"), (2, "first"), (3, "first")]
    assert ref.proxy().drop_timer() is True
    assert ref.proxy().drop_timer() is False

    other.ask(lambda self: self.ask(ref, 4, then=Keeper.on_answer)).result()  # an ordinary actor has the same words
    other.ask(lambda self: self.ask(ref, LookupError("here"), then=Keeper.on_answer)).result()
    eventually(lambda: len(other.proxy().all()) == 5)
    assert other.proxy().all()[3:] == [("answer", "got 4"), ("failure", "LookupError", "here")]
    assert ref.proxy().all()[-1] == (4, other.name)

    other.kill()
    ref.ask(lambda self: self.ask(other, 5, then=Keeper.on_answer)).result()
    assert eventually(lambda: ref.proxy().all()[-1][:2] == ("failure", "ActorDead"))

    # As any actor.
    assert dir(ref.proxy()) == ["all", "drop_timer", "on_answer", "sends"]
    assert ref.counts()["messages"] > 8
    assert ref.pid == ref.cluster.nodes[ref.cluster.wait_for_leader()].pid
    assert actor_ref("first").proxy().all() == ref.proxy().all()


def test_a_replicated_actor_waits_for_nothing_and_a_query_sends_nothing() -> None:
    ref, other = start(), spawn(Keeper)
    waited: list[Any] = [
        lambda self: other.ask(1),
        lambda self: other.proxy().all(),
        lambda self: ResultFuture().result(),
        lambda self: Future(),
        lambda self: self.ask(other, 1, then=len),
        lambda self: self.after(-1.0, 1),
    ]
    for each in waited:
        with pytest.raises(UsageError):
            ref.ask(each).result()
    with pytest.raises((UsageError, CommandFailed), match="only reads"):
        ref.proxy().sends(other)

    def applied() -> tuple[int, int]:  # a follower may be behind; a leader begins with an entry of its own
        rows = ref.cluster.status(timeout=20.0)
        return max(row.term for row in rows), max(row.last_applied for row in rows)

    before = eventually(lambda: said if (said := applied())[0] else None)
    while True:
        assert [ref.proxy().all() for _ in range(5)] == [[]] * 5
        after = applied()
        if after[0] == before[0]:
            break
        before = after
    assert after == before, "reads are no entries of the log"
    assert other.proxy().all() == []


def test_an_ordinary_actor_takes_what_a_replicated_one_sends_once_though_its_leader_dies() -> None:
    ref, other = start(), spawn(Keeper)
    for number in range(60):
        ref.tell(lambda self, number=number: self.tell(other, number))
        if number == 30:
            node = ref.cluster.nodes[ref.cluster.wait_for_leader()]
            node.kill()
    ref.ask(0, timeout=60.0).result()
    eventually(lambda: len(other.proxy().all()) >= 60)
    assert [number for number, _ in other.proxy().all()] == list(range(60))


def test_a_stopped_actor_sends_what_it_owes_before_it_ends() -> None:
    ref, other = start(), spawn(Keeper)
    ref.tell(lambda self: [self.tell(other, number) for number in range(20)])
    ref.stop()
    eventually(lambda: not ref.is_alive())
    with pytest.raises(ActorDead):
        ref.ask(1, timeout=None).result(60.0)
    assert len(other.proxy().all()) == 20


def test_money_moves_between_replicated_actors_while_leaders_die_and_the_sum_stays() -> None:
    books, killed = move(transfers=60, kills=2)
    amounts, sent, confirmed, got = (sum(column) for column in zip(*books, strict=True))
    assert (amounts, killed) == (2_000, 2)
    assert sent == confirmed == got == 60


def test_what_a_recovered_actor_sends_arrives_though_the_lost_majority_had_sent_other_things(tmp_path: Path) -> None:
    other = spawn(Keeper)
    machine = ReplicatedStateMachine(
        ReplicatedActor, Keeper, (), {}, ReplicatedActorRef("kept", "ipc:///nowhere/kept.1")
    )

    def told(number: int) -> tuple[int, Any]:
        return ASK, lambda self: self.tell(other, number)

    with machine.spawn(3, data_dir=tmp_path / "data") as cluster:
        cluster.execute(told(1), timeout=30.0)
        eventually(lambda: other.proxy().all() == [(1, "kept")])
        eventually(lambda: all(row.last_applied == cluster.status()[0].last_applied for row in cluster.status()))
        cluster.nodes[2].kill()
        cluster.execute(told(2), timeout=30.0)
        eventually(lambda: other.proxy().all() == [(1, "kept"), (2, "kept")])
    for lost in ("node-0", "node-1"):
        shutil.rmtree(tmp_path / "data" / lost)
    recover(tmp_path / "data", [2], force=True)

    with machine.spawn(data_dir=tmp_path / "data") as cluster:
        cluster.execute(told(3), timeout=30.0)
        eventually(lambda: other.proxy().all() == [(1, "kept"), (2, "kept"), (3, "kept")])
