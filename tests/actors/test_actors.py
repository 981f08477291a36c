"""Actors: what they answer, how they end, what becomes of messages then, and that refs find them anyway."""

from __future__ import annotations

import asyncio
import enum
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from actorraft.actors.actor import Actor
from actorraft.actors.records import Exit
from actorraft.actors.ref import ActorRef
from actorraft.actors.rundir import RunDir
from actorraft.actors.spawn import ActorOptions, actor_ref, spawn
from actorraft.actors.supervision import Supervision
from actorraft.actors.system import close_system
from actorraft.errors import (
    ActorDead,
    CommandFailed,
    MailboxFull,
    OutcomeUnknown,
    RemoteTraceback,
    StartError,
    UsageError,
)
from tests.actors.helpers import Echo, until
from tests.leftovers import nothing_new, resources

ROOT = Path(__file__).resolve().parents[2]
QUICK = Supervision(backoff_s=(0.01, 0.01))

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_left() -> Iterator[None]:
    """Looks only at what this process made: others run actors on this machine too."""
    close_system()  # what tests of other files began
    before, made, make = resources(), [], RunDir.__init__

    def note(run_dir: RunDir, *args: Any, **options: Any) -> None:
        make(run_dir, *args, **options)
        made.append(run_dir.path)

    RunDir.__init__ = note  # type: ignore[method-assign]
    yield
    close_system()
    RunDir.__init__ = make  # type: ignore[method-assign]
    until(lambda: nothing_new(before))
    assert made
    assert [path for path in made if path.exists()] == []


class Counter(Actor):
    """Counts what it is told."""

    def __init__(self, step: int = 1) -> None:
        self.step = step
        self.n = 0

    def receive(self, message: Any) -> Any:
        self.n += self.step * message
        return self.n

    def add(self, number: int, *, twice: bool = False) -> int:
        """For a proxy."""
        return int(self.receive(number * (1 + twice)))

    def _secret(self) -> None: ...


class Doer(Actor):
    """Does what the message says, in its own process."""

    def receive(self, message: Any) -> Any:
        return message(self)


class Gate(Actor):
    """Takes a message and is busy until a file appears."""

    def receive(self, message: Any) -> Any:
        while isinstance(message, Path) and not message.exists():
            time.sleep(0.002)
        return message


# --- Messages ---


def test_what_receive_returns_answers_an_ask(start: Callable[..., ActorRef]) -> None:
    ref = start(Counter, 10)

    ref.tell(1)

    assert ref.ask(2).result() == 30


def test_messages_of_one_sender_keep_their_order(start: Callable[..., ActorRef]) -> None:
    class Rememberer(Actor):
        def on_start(self) -> None:
            self.seen: list[int] = []

        def receive(self, message: Any) -> Any:
            self.seen.append(message)
            return self.seen

    ref = start(Rememberer)
    for number in range(3_000):
        ref.tell(number)

    assert ref.ask(3_000).result() == list(range(3_001))


def test_anything_that_can_be_pickled_or_sent_by_value_is_a_message(start: Callable[..., ActorRef]) -> None:
    ref = start(Gate)
    for message in (None, 1, "text", b"bytes", 1.5, (1, "a"), [1, [2]], {"a": {1, 2}}, Exit("a", 1, None, "", False)):
        assert ref.ask(message).result() == message
    assert ref.ask(lambda: 7).result()() == 7


def test_a_class_that_only_this_process_knows_comes_back_as_itself(start: Callable[..., ActorRef]) -> None:
    class Local:
        def __init__(self, value: int) -> None:
            self.value = value

    answer = start(Gate).ask(Local(5)).result()

    assert isinstance(answer, Local)
    assert answer.value == 5


def test_an_enum_that_only_this_process_knows_comes_back_as_itself(start: Callable[..., ActorRef]) -> None:
    class Plain(enum.Enum):
        ONE = 1

    class Bits(enum.Flag):
        ONE = 1
        TWO = 2

    class Labelled(enum.Enum):
        def __new__(cls, value: int, label: str) -> Any:
            made = object.__new__(cls)
            made._value_ = value
            made.label = label  # type: ignore[attr-defined]
            return made

        ONE = 1, "the first"

    ref = start(Echo)
    for member in (Plain.ONE, Bits.ONE | Bits.TWO, Labelled.ONE):
        assert ref.ask(member).result(20.0) is member


def test_what_cannot_be_sent_is_a_usage_error_and_nothing_was_sent(start: Callable[..., ActorRef]) -> None:
    ref = start(Counter)

    with pytest.raises(UsageError, match="lock"):
        ref.tell(threading.Lock())

    assert ref.ask(0).result() == 0


def test_an_answer_that_cannot_be_sent_is_an_error_and_the_actor_lives(start: Callable[..., ActorRef]) -> None:
    ref = start(Doer)

    with pytest.raises(UsageError, match="lock"):
        ref.ask(lambda actor: __import__("threading").Lock()).result()

    assert ref.ask(lambda actor: 1).result() == 1


def test_an_exception_goes_to_who_asked_with_its_traceback_and_the_actor_lives(start: Callable[..., ActorRef]) -> None:
    ref = start(Doer)
    pid = ref.pid

    with pytest.raises(ZeroDivisionError) as failure:
        ref.ask(lambda actor: 1 // 0).result()

    assert isinstance(failure.value.__cause__, RemoteTraceback)
    assert "in receive" in str(failure.value.__cause__)
    assert ref.pid == pid
    assert ref.is_alive()


def test_an_exception_is_rebuilt_without_its_constructor(start: Callable[..., ActorRef]) -> None:
    class OddError(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__("odd")
            self.two = two

    def raise_odd(actor: Actor) -> None:
        raise OddError(1, 2)

    with pytest.raises(OddError, match="odd") as failure:
        start(Doer).ask(raise_odd).result()
    assert failure.value.two == 2


def test_an_exception_that_cannot_be_rebuilt_comes_as_what_it_said(start: Callable[..., ActorRef]) -> None:
    def raise_odd(actor: Actor) -> None:
        class OddError(Exception):
            def __init__(self, one: int, two: int) -> None:
                super().__init__("odd")
                self.held = threading.Lock()

        raise OddError(1, 2)

    with pytest.raises(CommandFailed, match="OddError: odd"):
        start(Doer).ask(raise_odd).result()


def test_a_future_as_an_answer_answers_when_it_is_done(start: Callable[..., ActorRef]) -> None:
    class Deferring(Actor):
        def on_start(self) -> None:
            self.open: list[Future[Any]] = []

        def receive(self, message: Any) -> Any:
            if message == "later":
                self.open.append(Future())
                return self.open[-1]
            future = self.open.pop(0)
            threading.Thread(
                target=future.set_exception if isinstance(message, Exception) else future.set_result, args=(message,)
            ).start()
            return None

    ref = start(Deferring)
    first, second = ref.ask("later"), ref.ask("later")

    assert ref.ask("a result").result() is None
    assert ref.ask(KeyError("k")).result() is None

    assert first.result(20.0) == "a result"
    with pytest.raises(KeyError):
        second.result(20.0)


def test_asks_can_be_awaited(start: Callable[..., ActorRef]) -> None:
    ref = start(Counter)

    async def ask_many() -> list[int]:
        return [await ref.ask(1), *await asyncio.gather(*(ref.proxy().add.aio(1) for _ in range(50)))]

    assert asyncio.run(ask_many()) == list(range(1, 52))


def test_a_proxy_calls_methods(start: Callable[..., ActorRef]) -> None:
    counter = start(Counter).proxy()

    counter.add.tell(1)

    assert counter.add(1) == 2
    assert counter.add.submit(1, twice=True).result() == 4


@pytest.mark.parametrize("name", ["nothing", "receive", "on_stop", "step"])
def test_a_proxy_calls_nothing_that_is_not_a_public_method(start: Callable[..., ActorRef], name: str) -> None:
    counter = start(Counter).proxy()

    with pytest.raises(AttributeError, match=f"no method '{name}'"):
        getattr(counter, name)()
    with pytest.raises(AttributeError):
        counter._secret()


def test_an_actor_without_receive_says_so(start: Callable[..., ActorRef]) -> None:
    with pytest.raises(UsageError, match="no receive method"):
        start(Actor).ask(1).result()


# --- Bounds ---


def test_a_mailbox_that_is_full_refuses_the_next_message_exactly_and_goes_on_later(
    start: Callable[..., ActorRef], tmp_path: Path
) -> None:
    ref = start(Gate, mailbox_max=5)
    gate = tmp_path / "gate"

    busy = ref.ask(gate, timeout=None)
    for number in range(4):
        ref.tell(number)
    with pytest.raises(MailboxFull, match="has not taken the last 5 messages"):
        ref.tell(5)
    with pytest.raises(MailboxFull):
        ref.ask(5)
    gate.touch()

    assert busy.result(20.0) == gate
    assert until(lambda: _accepted(ref)).result(20.0) == "again"


def _accepted(ref: ActorRef) -> Any:
    try:
        return ref.ask("again")
    except MailboxFull:
        return None


def test_an_ask_that_is_not_answered_in_time_is_unknown_and_the_actor_lives(
    start: Callable[..., ActorRef], tmp_path: Path
) -> None:
    ref = start(Gate)
    gate = tmp_path / "gate"

    ref.ask("first").result()
    with pytest.raises(OutcomeUnknown, match="has not answered in time"):
        ref.ask(gate, timeout=1.0).result()
    gate.touch()

    assert ref.ask("next").result() == "next"


@pytest.mark.parametrize("timeout", ["5", float("nan"), -1, True, 1j])
def test_a_timeout_that_is_no_time_is_refused_and_takes_no_room(start: Callable[..., ActorRef], timeout: Any) -> None:
    ref = start(Echo, mailbox_max=1)

    for _ in range(3):
        with pytest.raises(UsageError, match="timeout"):
            ref.ask("never", timeout=timeout)

    assert ref.debt == 0
    assert ref.ask("next").result(20.0) == "next"


# --- Ends ---


def test_stop_comes_after_the_messages_before_it_and_calls_on_stop(
    start: Callable[..., ActorRef], tmp_path: Path
) -> None:
    class Tidy(Actor):
        def __init__(self, file: Path) -> None:
            self.file = file
            self.seen: list[Any] = []

        def receive(self, message: Any) -> Any:
            self.seen.append(message)
            return len(self.seen)

        def on_stop(self) -> None:
            self.file.write_text(repr(self.seen))

    ref = start(Tidy, tmp_path / "seen")
    answers = [ref.ask(number) for number in range(100)]

    ref.stop()

    assert [answer.result(20.0) for answer in answers] == list(range(1, 101))
    until(lambda: not ref.is_alive())
    assert (tmp_path / "seen").read_text() == repr(list(range(100)))
    ref.stop()  # no harm


@pytest.mark.parametrize("end", [ActorRef.kill, ActorRef.stop])
def test_an_ask_to_a_dead_actor_fails_and_never_hangs(
    start: Callable[..., ActorRef], end: Callable[[ActorRef], None]
) -> None:
    ref = start(Counter)
    ref.ask(1).result()

    end(ref)
    until(lambda: not ref.is_alive())

    with pytest.raises(ActorDead):
        ref.ask(1, timeout=None).result(20.0)
    until(lambda: _is_dead_to_tell(ref))
    ref.kill()
    ref.stop()


def _is_dead_to_tell(ref: ActorRef) -> bool:
    try:
        ref.tell(1)
    except ActorDead:
        return True
    return False


def test_asks_on_the_hands_of_an_actor_that_is_killed_fail(start: Callable[..., ActorRef], tmp_path: Path) -> None:
    ref = start(Gate)
    asks = [ref.ask(tmp_path / "never", timeout=None), *(ref.ask(number, timeout=None) for number in range(10))]

    ref.kill()

    for ask in asks:
        with pytest.raises(ActorDead):
            ask.result(20.0)


def test_a_ref_survives_a_restart_and_what_was_not_sent_waits_for_it(start: Callable[..., ActorRef]) -> None:
    ref = start(Counter, supervision=QUICK)
    ref.ask(5).result()
    pid = ref.pid
    assert pid is not None

    os.kill(pid, signal.SIGKILL)
    until(lambda: ref.pid not in (pid, None))

    assert ref.ask(1).result(20.0) == 1  # it began anew
    assert ref.is_alive()


def test_an_actor_that_is_to_crash_starts_again_after_an_exception(start: Callable[..., ActorRef]) -> None:
    ref = start(Doer, supervision=Supervision(backoff_s=(0.01, 0.01), on_error="restart"))
    exits: list[Exit] = []
    ref.watch(exits.append)

    ref.tell(lambda actor: {}["no such key"])

    until(lambda: exits)
    assert exits[0].code == 1
    assert exits[0].restarting
    assert "KeyError: 'no such key'" in exits[0].reason
    assert ref.ask(lambda actor: "back", timeout=20.0).result() == "back"


def test_without_supervision_it_stays_down(start: Callable[..., ActorRef]) -> None:
    ref = start(Doer, supervision=None)
    exits: list[Exit] = []
    ref.watch(exits.append)

    ref.tell(lambda actor: os._exit(7))

    until(lambda: exits)
    assert (exits[0].code, exits[0].signal, exits[0].restarting) == (7, None, False)
    assert not ref.is_alive()
    told: list[Exit] = []
    ref.watch(told.append)  # late: told at once
    assert told == exits


def test_a_restart_that_fails_too_often_is_given_up(start: Callable[..., ActorRef], tmp_path: Path) -> None:
    class Fragile(Actor):
        def __init__(self, broken: Path) -> None:
            if broken.exists():
                raise RuntimeError("broken")

    broken = tmp_path / "broken"
    ref = start(Fragile, broken, supervision=Supervision(max_restarts=2, backoff_s=(0.0, 0.0)))
    pid = ref.pid
    assert pid is not None
    broken.touch()

    os.kill(pid, signal.SIGKILL)

    with pytest.raises(ActorDead):
        until(lambda: ref.ask(1, timeout=None).result(20.0) and None)
    assert not ref.is_alive()


def test_actors_with_one_supervision_are_a_group(start: Callable[..., ActorRef]) -> None:
    together = Supervision(strategy="one_for_all", backoff_s=(0.01, 0.01))
    first, second, apart = (start(Counter, supervision=each) for each in (together, together, QUICK))
    pids = [ref.pid for ref in (first, second, apart)]
    assert pids[0] is not None

    os.kill(pids[0], signal.SIGKILL)

    until(lambda: first.pid not in (pids[0], None) and second.pid not in (pids[1], None))
    assert apart.pid == pids[2]


# --- Names, refs, and other processes ---


def test_a_named_actor_is_found_by_its_name_and_the_name_is_free_again_after_its_end(
    start: Callable[..., ActorRef],
) -> None:
    ref = start(Counter, name="named")

    assert actor_ref("named") == ref
    with pytest.raises(UsageError, match="there is an actor named 'named' already"):
        start(Counter, name="named")
    ref.kill()
    with pytest.raises(UsageError, match="there is no actor named 'named'"):
        actor_ref("named")
    again = start(Counter, name="named")
    assert again != ref
    assert again.ask(1).result() == 1
    with pytest.raises(ActorDead):
        ref.ask(1).result(20.0)


def test_refs_are_values(start: Callable[..., ActorRef]) -> None:
    ref = start(Counter)
    copy = pickle.loads(pickle.dumps(ref))

    assert copy == ref
    assert hash(copy) == hash(ref)
    assert ref != "something else"
    assert copy.ask(3).result() == 3


def test_a_ref_can_be_sent_to_another_actor_which_asks_watches_and_kills_by_it(
    start: Callable[..., ActorRef], tmp_path: Path
) -> None:
    counter, other = start(Counter, supervision=QUICK), start(Doer)
    file = tmp_path / "exit"

    assert other.ask(lambda actor: counter.ask(4).result(20.0)).result(20.0) == 4
    other.ask(lambda actor: counter.watch(lambda told: file.write_text(str(told.signal)))).result(20.0)
    other.ask(lambda actor: counter.kill()).result(20.0)

    until(lambda: file.exists() and file.read_text() == "SIGKILL")
    until(lambda: not counter.is_alive())
    with pytest.raises(ActorDead):
        counter.ask(1, timeout=None).result(20.0)


def test_an_actor_starts_actors_which_are_found_from_everywhere_and_die_with_it(start: Callable[..., ActorRef]) -> None:
    parent = start(Doer, supervision=None)
    child = parent.ask(lambda actor: ActorOptions(name="grandchild").spawn(Counter), timeout=20.0).result()

    assert child.ask(2).result(20.0) == 2
    assert actor_ref("grandchild") == child
    assert parent.ask(lambda actor: actor.ref).result() == parent
    parent.kill()

    until(lambda: not child.is_alive())
    with pytest.raises(ActorDead):
        child.ask(1, timeout=None).result(20.0)


# --- Starts that fail ---


def test_a_constructor_that_raises_says_why() -> None:
    class Broken(Actor):
        def __init__(self) -> None:
            raise LookupError("no such thing")

    with pytest.raises(StartError, match="LookupError: no such thing"):
        spawn(Broken)


class SaysNothing(Exception):
    def __str__(self) -> str:
        raise SystemExit("in __str__")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SystemExit(0), "Leaving raised SystemExit: 0 as it started"),
        (KeyboardInterrupt("x"), "Leaving raised KeyboardInterrupt: x as it started"),
        (SaysNothing(), "SaysNothing"),
    ],
    ids=["SystemExit", "KeyboardInterrupt", "SaysNothing"],
)
def test_a_start_that_would_end_the_process_says_what_was_raised(error: BaseException, said: str) -> None:
    class Leaving(Actor):
        def on_start(self) -> None:
            raise error

    with pytest.raises(StartError, match=said):
        ActorOptions(supervision=None).spawn(Leaving)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "../x", "x" * 41, "."])
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="an actor's name has"):
        ActorOptions(name=name).spawn(Counter)


@pytest.mark.parametrize("wrong", [Counter(), dict, "Counter", None])
def test_what_is_no_actor_class_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="derives from Actor"):
        spawn(wrong)


def test_a_mailbox_holds_at_least_one_message() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        ActorOptions(mailbox_max=0)


# --- The end of the process ---

SCRIPT = """
import sys
from actorraft import Actor, spawn

class Counter(Actor):
    def on_start(self): self.n = 0
    def receive(self, message):
        self.n += message
        return self.n

ref = spawn(Counter)
ref.tell(1)
print(ref.ask(2, timeout=60.0).result(), ref.pid, ref.endpoint, flush=True)
"""


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_the_example_runs_unguarded_and_leaves_nothing_behind(tmp_path: Path, how: str) -> None:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        [sys.executable, *([str(file)] if how == "file" else ["-"])],
        input=SCRIPT if how == "stdin" else None,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=environment,
    )

    assert (done.returncode, done.stderr) == (0, "")
    answer, pid, endpoint = done.stdout.split()
    assert answer == "3"
    until(lambda: not Path(f"/proc/{pid}").exists())
    assert not Path(endpoint.removeprefix("ipc://")).parent.exists()


def test_actors_one_after_another_leave_nothing_behind(start: Callable[..., ActorRef]) -> None:
    close_system()  # what tests before this one opened is closed when this returns
    start(Counter).ask(1).result(20.0)
    before = resources()

    for _ in range(3):
        refs = [start(Counter) for _ in range(3)]
        assert [ref.ask(1).result(20.0) for ref in refs] == [1] * 3
        for ref in refs:
            ref.kill()
        # That an actor is dead is known before its link is closed: counted at that moment, there may be 6 too many.
        until(lambda: nothing_new(before))
