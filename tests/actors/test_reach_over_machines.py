"""Actors that are reached through a node: a gateway as a node has it, and a sender that only has a client's folder.

The gateway runs in a thread of this process, actors in their own. That the same holds over machines that share nothing
but a network is tests/machines/test_actors.py.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actorraft.actors import reach
from actorraft.actors.actor import Actor
from actorraft.actors.reach import RemoteActorRef
from actorraft.actors.records import Exit
from actorraft.actors.ref import ActorRef
from actorraft.actors.spawn import actor_ref
from actorraft.actors.supervision import Supervision
from actorraft.actors.wire import TELL
from actorraft.errors import ActorDead, MailboxFull, OutcomeUnknown, Unavailable, UsageError
from actorraft.node import gateway as gateways
from actorraft.node.gateway import Gateway
from actorraft.ports import Kinds, Sent
from benchmarks.others.processes import free_ports
from tests.actors.helpers import until
from transports.endpoints import next_port
from transports.keys import ClientFolder, Guest, KeyPair, Keys
from transports.sockets import BATCH_BYTES_MAX, LinkTimes
from transports.zeromq import ZeroMQClientChannel

pytestmark = pytest.mark.cluster

Start = Callable[..., ActorRef]
WAIT_S = 60.0


class Jobs(Actor):
    """Remembers what it was told, and does what it is asked."""

    def on_start(self) -> None:
        self.seen: list[Any] = []

    def receive(self, message: Any) -> Any:
        if message == "seen":
            return self.seen
        if message == "pid":
            return os.getpid()
        if message == "die":
            os._exit(3)
        if message == "raise":
            raise LookupError("no such job")
        if message == "who":
            return self.sender
        if isinstance(message, tuple):
            what, value = message
            if what == "wait for":
                Path(f"{value}.begun").touch()
                until(Path(value).exists)
                return "waited"
            return bytes(value)
        self.seen.append(message)
        return message

    def twice(self, number: int) -> int:
        return 2 * number


class Asks(Actor):
    """Is on one machine, and speaks to an actor of another."""

    def receive(self, message: Any) -> Any:
        name, folder, what = message
        return actor_ref(name, through=folder).ask(what, timeout=WAIT_S)


class Way:
    """A gateway, and folders of clients that may come to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.node = KeyPair.generate()
        self.guests: dict[str, Guest] = {}
        self.client_at = self.at = ""
        for _ in range(20):  # the port after a free one need not be free
            self.client_at = f"tcp://127.0.0.1:{free_ports(1)[0]}"
            self.at = next_port(self.client_at)
            try:
                self.gateway = self._open()
                break
            except UsageError:
                continue
        self.gateway.start()

    def _open(self) -> Gateway:
        return Gateway(self.at, Keys(self.node, self.members, self.guests), LinkTimes())

    @property
    def members(self) -> dict[int, tuple[str, ...]]:
        return {0: (self.node.public,)}

    def client(self, role: str = "admin", name: str = "") -> Path:
        """Let a client in; return its folder."""
        own = KeyPair.generate()
        self.guests[own.public] = Guest(name or role, role)
        self.gateway.set_keys(self.members, self.guests)
        folder = self.directory / (name or role)
        ClientFolder("00" * 8, {0: self.client_at}, Keys(own, self.members), name=name or role, role=role).save(folder)
        return folder

    def revoke(self, folder: Path) -> None:
        del self.guests[ClientFolder.load(folder).keys.own.public]
        self.gateway.set_keys(self.members, self.guests)

    def begin_anew(self) -> None:
        """As a node that ends and is started again."""
        self.gateway.close()
        self.gateway = self._open()
        self.gateway.start()


@pytest.fixture
def way(tmp_path: Path) -> Iterator[Way]:
    made = Way(tmp_path)
    yield made
    made.gateway.close()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"far-{os.getpid()}-{abs(hash(request.node.name)) % 10**9}"


def test_a_public_actor_is_found_through_a_node_and_answers_as_it_does_there(way: Way, start: Start, name: str) -> None:
    ref = start(Jobs, name=name, public=True, mailbox_max=77)

    far = actor_ref(name, through=way.client())

    assert isinstance(far, ActorRef)
    assert far.mailbox_max == 77
    assert far.ask("pid").result() == ref.pid
    assert far.proxy().twice(21) == 42
    assert "twice" in dir(far.proxy())
    assert far.is_alive()
    with pytest.raises(LookupError, match="no such job"):
        far.ask("raise").result()
    large = os.urandom(8 << 20)
    assert far.ask(("echo", large)).result() == large
    far.stop()
    until(lambda: not ref.is_alive())
    assert not far.is_alive()
    assert far.ask("pid").exception().__class__ is ActorDead
    with pytest.raises(UsageError, match="no public actor named"):
        actor_ref(name, through=way.directory / "admin")


def test_tells_keep_their_order_and_a_mailbox_that_is_full_says_so(
    way: Way, start: Start, name: str, tmp_path: Path
) -> None:
    start(Jobs, name=name, public=True, mailbox_max=50)
    far = actor_ref(name, through=way.client())
    go_on = tmp_path / "go on"

    waiting = far.ask(("wait for", str(go_on)), timeout=WAIT_S)
    told = 0
    with pytest.raises(MailboxFull):
        for number in range(51):
            far.tell(number)
            told += 1
    go_on.touch()
    waiting.result()
    while told < 300:
        try:
            far.tell(told)
            told += 1
        except MailboxFull:
            time.sleep(0.001)

    assert told >= 50
    assert until(lambda: _ask_when_there_is_room(far, "seen")) == list(range(300))


def _ask_when_there_is_room(ref: ActorRef, message: Any) -> Any:
    try:
        return ref.ask(message, timeout=WAIT_S).result()
    except MailboxFull:
        return None


def test_an_actor_that_is_killed_ends_the_asks_and_is_told_of(
    way: Way, start: Start, name: str, tmp_path: Path
) -> None:
    ref = start(Jobs, name=name, public=True, supervision=None)
    far = actor_ref(name, through=way.client())
    exits: list[Exit] = []
    far.watch(exits.append)
    assert far.ask("pid").result() == ref.pid

    on_its_hands = far.ask(("wait for", str(tmp_path / "never")), timeout=None)
    until((tmp_path / "never.begun").exists)
    ref.kill()

    assert isinstance(on_its_hands.exception(WAIT_S), ActorDead)
    assert isinstance(far.ask("pid", timeout=None).exception(WAIT_S), ActorDead)
    until(lambda: exits)
    assert (exits[0].signal, exits[0].restarting) == ("SIGKILL", False)
    assert len(exits) == 1
    told: list[Exit] = []
    far.watch(told.append)  # of one that is gone: at once, or when the node has said so
    until(lambda: told)


def test_an_actor_that_starts_again_is_reached_by_the_same_ref_and_nothing_is_taken_twice(
    way: Way, start: Start, name: str
) -> None:
    start(Jobs, name=name, public=True, supervision=Supervision(backoff_s=(0.05, 0.1), max_restarts=50))
    far = actor_ref(name, through=way.client())
    exits: list[Exit] = []
    far.watch(exits.append)
    number, first = 0, far.ask("pid").result()

    for life in range(4):
        deaths = [far.ask("die", timeout=WAIT_S)]
        for _ in range(200):  # behind it, for the life that is going or for the next one
            far.tell(number)
            number += 1
        assert isinstance(deaths[0].exception(WAIT_S), ActorDead)
        far.tell(number)
        number += 1
        seen = far.ask("seen", timeout=WAIT_S).result()
        assert seen == sorted(set(seen))
        assert seen[-1] == number - 1, "what was sent after the death was known is taken"
        until(lambda life=life: len(exits) == life + 1)
        assert exits[-1].code == 3
        assert exits[-1].restarting
    assert far.ask("pid").result() != first
    assert far.debt == 0


def test_what_was_sent_for_a_life_that_is_gone_goes_to_no_other(way: Way, start: Start, name: str) -> None:
    ref = start(Jobs, name=name, public=True, supervision=Supervision(backoff_s=(0.05, 0.1)))
    channel = ZeroMQClientChannel(keys=ClientFolder.load(way.client()).keys)
    channel.set_endpoints({0: way.at})
    told: list[Any] = []

    def until_told(about: Callable[[Any], bool]) -> None:
        told.clear()

        def heard() -> bool:
            frames = [frame for kind, _, frame in channel.wait(0.05) if kind == Kinds.FRAME]
            told.extend(filter(None, map(reach._said, frames)))
            return any(about(each) for each in told)

        until(heard)

    def tell(message: str, number: int) -> None:
        assert channel.send(0, reach._encode([(TELL, number, pickle.dumps(message, 4))]))

    opening = reach.opening(name, ref.endpoint, b"one")
    until(lambda: any(kind == Kinds.CONNECTED for kind, _, _ in channel.wait(0.1)))
    channel.send(0, opening)
    until_told(lambda said: said.up)
    tell("first", 0)
    until(lambda: ref.ask("seen", timeout=WAIT_S).result() == ["first"])
    ref.ask("die", timeout=WAIT_S).exception()
    tell("in between", 1)  # by somebody who has not heard of it yet
    assert ref.ask("seen", timeout=WAIT_S).result() == []
    tell("late", 2)
    channel.send(0, opening)
    until_told(lambda said: said.up)
    tell("afresh", 3)

    until(lambda: ref.ask("seen", timeout=WAIT_S).result() == ["afresh"])
    channel.close()


def test_a_node_that_ends_leaves_an_outcome_and_is_found_again(
    way: Way, start: Start, name: str, tmp_path: Path
) -> None:
    ref = start(Jobs, name=name, public=True)
    far = actor_ref(name, through=way.client())
    exits: list[Exit] = []
    far.watch(exits.append)
    far.tell("before")

    asked = far.ask(("wait for", str(tmp_path / "go on")), timeout=None)
    until((tmp_path / "go on.begun").exists)
    way.begin_anew()

    assert isinstance(asked.exception(WAIT_S), OutcomeUnknown), "the actor lives: nobody may say it is dead"
    (tmp_path / "go on").touch()
    far.tell("after")
    assert far.ask("seen", timeout=WAIT_S).result() == ["before", "after"]
    assert ref.is_alive()
    assert not exits


def test_a_node_that_does_not_come_back_ends_everything_by_name(
    way: Way, start: Start, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actorraft.actors.post.UNREACHABLE_S", 0.3)
    monkeypatch.setattr(reach, "UNREACHABLE_S", 0.3)
    start(Jobs, name=name, public=True)
    far = actor_ref(name, through=way.client())
    exits: list[Exit] = []
    far.watch(exits.append)
    assert far.ask("pid").result()

    way.gateway.close()
    until(lambda: not far._box[1].connected)

    assert isinstance(far.ask("pid", timeout=None).exception(WAIT_S), ActorDead)
    until(lambda: exits)
    assert "nobody here knows whether it lives" in exits[0].reason
    with pytest.raises(Unavailable, match="node 0"):
        reach.look(ClientFolder.load(way.directory / "admin"), name, timeout_s=0.3)
    monkeypatch.setattr(reach.look, "__defaults__", ("", None, 0.3))
    assert not far.is_alive()


@pytest.mark.parametrize("role", ["read", "write"])
def test_a_key_that_may_not_run_code_reaches_no_actor(way: Way, start: Start, name: str, role: str) -> None:
    ref = start(Jobs, name=name, public=True)
    folder = way.client(role)

    with pytest.raises(UsageError, match=f"role {role}"):
        actor_ref(name, through=folder)

    found = ClientFolder.load(folder)  # and none who does without the library's manners
    canary = pickle.dumps("a pickle")
    frames = [reach.opening(name, ref.endpoint, b"somebody"), reach._encode([(0, 0, canary)])]
    channel = ZeroMQClientChannel(keys=found.keys)
    channel.set_endpoints({0: way.at})
    until(lambda: any(kind == Kinds.CONNECTED for kind, _, _ in channel.wait(0.1)))
    for frame in frames:
        assert channel.send(0, frame)
    refused = until(lambda: [reach._said(frame) for kind, _, frame in channel.wait(0.1) if kind == Kinds.FRAME])
    channel.close()
    assert f"role {role}" in refused[0].refused
    until(lambda: way.gateway._relay.counts["frames for an actor that is not reached now"] == 1)
    assert ref.ask("seen").result() == []


def test_a_key_that_is_revoked_ends_what_it_has_begun(way: Way, start: Start, name: str, tmp_path: Path) -> None:
    start(Jobs, name=name, public=True)
    folder = way.client(name="leaver")
    far = actor_ref(name, through=folder)
    asked = far.ask(("wait for", str(tmp_path / "go on")), timeout=None)
    until((tmp_path / "go on.begun").exists)

    way.revoke(folder)

    with pytest.raises(ActorDead, match="no administrator's any more"):
        asked.result(WAIT_S)
    (tmp_path / "go on").touch()
    assert actor_ref(name, through=way.client(name="other")).ask("pid").result()


def test_what_is_not_public_or_no_name_is_not_found(way: Way, start: Start, name: str) -> None:
    ref = start(Jobs, name=name)
    folder = way.client()

    for asked in (name, "../records", ".lock", "a\0b", "x" * 41, 5):
        with pytest.raises(UsageError):
            actor_ref(asked, through=folder)
    endpoint = f"node://{'00' * 8}/0{ref.endpoint.removeprefix('ipc://')}"
    guessed = RemoteActorRef(name, endpoint, 10, 1 << 20, str(folder))
    assert isinstance(guessed.ask("pid", timeout=None).exception(WAIT_S), ActorDead)
    with pytest.raises(UsageError, match="no client's folder"):
        actor_ref(name, through=way.directory / "nowhere")


def test_an_actor_reaches_another_machine_s_and_refs_that_travel_lead_there_or_say_why_not(
    way: Way, start: Start, name: str, tmp_path: Path
) -> None:
    ref = start(Jobs, name=name, public=True)
    folder = way.client()
    far = actor_ref(name, through=folder)
    asker = start(Asks, name=f"{name}-asks")

    assert asker.ask((name, str(folder), "pid"), timeout=WAIT_S).result() == ref.pid
    sender = asker.ask((name, str(folder), "who"), timeout=WAIT_S).result()
    assert sender == asker
    assert sender.machine == os.uname().nodename
    copy = pickle.loads(pickle.dumps(far))
    assert copy == far
    assert copy.ask("pid").result() == ref.pid
    assert ClientFolder.load(folder).keys.own.secret.encode() not in pickle.dumps(far)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="no client's folder"):
        RemoteActorRef(far.name, far.endpoint, 1, 1 << 20, str(folder)).is_alive()
    for refused in (far.kill, far.restart, far.logs):
        with pytest.raises(UsageError, match="another machine"):
            refused()
    stranded = ActorRef("x", f"ipc://{tmp_path}/x.12345678", machine="host1")
    for call in (stranded.ask, stranded.tell):
        with pytest.raises(UsageError, match="on the machine host1"):
            call(1)


def test_answers_that_are_not_taken_stay_with_the_actor(
    way: Way, start: Start, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "HELD_BYTES", 2 << 20)
    ref = start(Jobs, name=name, public=True)
    far = actor_ref(name, through=way.client())
    assert far.ask("pid").result()
    relay = way.gateway._relay
    send, read = relay.send_client, threading.Event()
    monkeypatch.setattr(relay, "send_client", lambda *frame: send(*frame) if read.is_set() else Sent.FULL)
    size, count = 1 << 20, 150

    answers = [far.ask(("zeros", size), timeout=None) for _ in range(count)]
    until(lambda: ref.counts()["messages"] == count + 1)

    [waiting] = way.gateway._ways.values()
    until(lambda: relay._held == {waiting.client})
    assert waiting.back.bytes <= (2 << 20) + BATCH_BYTES_MAX + size < size * count // 2
    read.set()
    assert {len(each.result(WAIT_S)) for each in answers} == {size}
    until(lambda: not relay._held)
