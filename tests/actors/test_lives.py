"""Restarts by hand, children of restarted parents, what an actor prints, who sent a message, and dead letters."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actorraft.actors.actor import Actor
from actorraft.actors.letters import CONTENT_BYTES_MAX, dead_letters
from actorraft.actors.records import Exit
from actorraft.actors.ref import ActorRef
from actorraft.actors.spawn import ActorOptions, spawn
from actorraft.actors.supervision import Supervision
from actorraft.errors import ActorDead, MailboxFull, UsageError
from tests.actors.helpers import until

pytestmark = pytest.mark.cluster

Start = Callable[..., ActorRef]
QUICK = Supervision(backoff_s=(0.01, 0.01))


class Doer(Actor):
    """Does what the message says."""

    def receive(self, message: Any) -> Any:
        return message(self)


class Gate(Actor):
    """Takes a message and is busy until the file that it names appears."""

    def receive(self, message: Any) -> Any:
        while isinstance(message, Path) and not message.exists():
            time.sleep(0.002)
        return message


# --- Restarts ---


@pytest.mark.parametrize("supervision", [None, Supervision(restart="temporary"), QUICK])
def test_a_restart_by_hand_gives_a_fresh_actor_whatever_its_supervision_says(
    start: Start, supervision: Supervision | None, tmp_path: Path
) -> None:
    class Tidy(Actor):
        def receive(self, message: Any) -> Any:
            self.n = getattr(self, "n", 0) + message
            return self.n

        def on_stop(self) -> None:
            (tmp_path / "stopped").touch()

    ref = start(Tidy, supervision=supervision)
    ref.ask(5).result(20.0)
    pid = ref.pid

    ref.restart()

    assert ref.pid not in (pid, None)
    assert ref.ask(1).result(20.0) == 1
    assert (tmp_path / "stopped").exists()


def test_an_actor_restarts_another_ones_child_and_itself(start: Start) -> None:
    ref, other = start(Doer), start(Doer)
    pids = [ref.pid, other.pid]

    other.ask(lambda actor: ref.restart(), timeout=20.0).result()
    other.ask(lambda actor: actor.ref.restart(), timeout=20.0).result()

    until(lambda: ref.pid not in (pids[0], None) and other.pid not in (pids[1], None))
    assert other.ask(lambda actor: "here", timeout=20.0).result() == "here"


def test_an_actor_that_is_gone_is_not_restarted(start: Start) -> None:
    ref = start(Doer)
    ref.kill()

    with pytest.raises(ActorDead):
        ref.restart()


class Parent(Actor):
    """Starts a named and an unnamed child each time it starts."""

    def on_start(self) -> None:
        self.children = [spawn(Doer), ActorOptions(name="child-of-parent").spawn(Doer)]

    def receive(self, message: Any) -> Any:
        return self.children


@pytest.mark.parametrize("how", ["restart", "SIGKILL"])
def test_refs_of_children_live_on_when_their_parent_starts_again(start: Start, how: str) -> None:
    parent = start(Parent, supervision=QUICK)
    children: list[ActorRef] = parent.ask("children").result(20.0)
    told: list[Exit] = []
    children[0].watch(told.append)
    pids = [child.ask(lambda actor: os.getpid()).result(20.0) for child in children]
    pid = parent.pid
    assert pid is not None

    if how == "restart":
        parent.restart()
    else:
        os.kill(pid, signal.SIGKILL)

    until(lambda: [child.pid for child in children] != pids and all(child.is_alive() for child in children))
    again = [child.ask(lambda actor: os.getpid(), timeout=20.0).result() for child in children]
    assert not set(again) & set(pids)
    until(lambda: told)
    assert told[0].restarting
    assert "parent" in told[0].reason


def test_a_child_that_its_parent_does_not_start_again_is_dead(start: Start) -> None:
    class Forgetful(Actor):
        def receive(self, message: Any) -> Any:
            return spawn(Doer)

    parent = start(Forgetful, supervision=QUICK)
    child = parent.ask("a child").result(20.0)
    assert child.ask(lambda actor: 1).result(20.0) == 1

    parent.restart()

    with pytest.raises(ActorDead):
        child.ask(lambda actor: 1, timeout=None).result(20.0)


# --- What is seen of it ---


def test_what_an_actor_prints_is_in_its_logs_and_what_it_logs_comes_out_under_its_name(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def speak(actor: Any) -> None:
        print("printed")
        os.write(2, b"to standard error\n")
        logging.getLogger("users.own").warning("logged")

    ref = start(Doer, name="speaker")
    with caplog.at_level(logging.INFO, "actorraft"):
        ref.ask(speak).result(20.0)
        until(lambda: any("users.own: logged" in record.getMessage() for record in caplog.records))

    assert ref.logs() == ["printed", "to standard error"]
    assert ref.logs(1) == ["to standard error"]
    assert {each.name for each in caplog.records if "logged" in each.getMessage()} == {"actorraft.actor.speaker"}
    ref.kill()
    assert ref.logs(1) == ["to standard error"]


def test_an_actor_knows_who_sent_a_message_and_that_this_process_is_no_actor(start: Start) -> None:
    ref, other = start(Doer), start(Doer)

    assert ref.ask(lambda actor: actor.sender).result(20.0) is None
    assert other.ask(lambda actor: ref.ask(lambda asked: asked.sender).result(20.0)).result(20.0) == other


def test_an_actor_that_asks_itself_in_a_turn_is_refused_at_once(start: Start) -> None:
    ref = start(Doer)

    with pytest.raises(UsageError, match="asks itself"):
        ref.ask(lambda actor: actor.ref.ask(lambda _: 1).result(20.0)).result(20.0)
    with pytest.raises(UsageError, match="asks itself"):
        ref.ask(lambda actor: actor.ref.proxy().anything()).result(20.0)


def test_a_proxy_knows_what_can_be_called(start: Start) -> None:
    class Adder(Actor):
        def add(self, one: int, other: int) -> int:
            return one + other

        def _own(self) -> None: ...

    assert dir(start(Adder).proxy()) == ["add"]


# --- Bounds, and what is not taken ---


def test_a_mailbox_is_bounded_in_bytes_and_takes_more_once_they_are_taken(start: Start, tmp_path: Path) -> None:
    ref = start(Gate, mailbox_bytes_max=1_000_000)
    ref.tell(tmp_path / "open")
    for _ in range(9):
        ref.tell(bytes(100_000))

    with pytest.raises(MailboxFull, match="bytes"):
        ref.tell(bytes(100_000))
    with pytest.raises(UsageError, match="over"):
        ref.tell(bytes(1_000_001))

    (tmp_path / "open").touch()
    assert ref.ask("behind all", timeout=20.0).result() == "behind all"
    for _ in range(9):
        ref.tell(bytes(100_000))
    assert ref.ask("again", timeout=20.0).result() == "again"


def test_an_actor_whose_mailbox_is_full_can_be_stopped(start: Start, tmp_path: Path) -> None:
    ref = start(Gate, mailbox_bytes_max=1_000)
    ref.tell(tmp_path / "open")
    with pytest.raises(MailboxFull, match="bytes"):
        while True:
            ref.tell(1)

    ref.stop()
    (tmp_path / "open").touch()
    until(lambda: not ref.is_alive())


def test_what_no_actor_takes_is_counted_and_kept(start: Start, tmp_path: Path) -> None:
    ref = start(Gate, name="grave")
    before = dead_letters().total
    ref.tell(tmp_path / "never")
    for number in range(5):
        ref.tell(number)
    ref.tell(bytes(CONTENT_BYTES_MAX + 1))

    ref.kill()
    until(lambda: dead_letters().total >= before + 7)
    until(lambda: ref._box is not None and ref._box[1].dead)
    with pytest.raises(ActorDead):
        ref.tell("late")

    letters = [letter for letter in dead_letters() if letter.actor == "grave"]
    assert [letter.message for letter in letters] == [tmp_path / "never", 0, 1, 2, 3, 4, None, "late"]
    assert {letter.kind for letter in letters} == {"tell"}
    assert all(letter.reason for letter in letters)
    assert "is gone" in letters[-1].reason


def test_a_stopped_actor_that_took_everything_leaves_no_dead_letters(start: Start) -> None:
    ref = start(Gate)
    for number in range(100):
        ref.tell(number)
    ref.stop()
    with pytest.raises(ActorDead):  # by then its link is gone, and what that had lost is known
        until(lambda: ref.ask("late", timeout=None).result(20.0) and None)

    assert [letter for letter in dead_letters() if letter.actor == ref.name and letter.kind == "tell"] == []


def test_dead_letters_are_bounded_and_all_are_counted(start: Start) -> None:
    ref = start(Gate)
    ref.kill()
    before = dead_letters().total
    for _ in range(1_100):
        with pytest.raises(ActorDead):
            ref.tell(1)

    assert dead_letters().total == before + 1_100
    assert len(dead_letters()) == 1_000
