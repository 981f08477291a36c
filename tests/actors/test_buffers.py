"""Large buffers travel beside the pickle, as parts that are not copied again, and what they hold is what was sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from actorraft import Actor, ActorRef, MailboxFull, UsageError
from actorraft.actors import actor
from actorraft.actors.loop import Inside, _Loop
from actorraft.actors.wire import ASK, BULK, Bulk, Writer, loads, read_bulk
from actorraft.pickling.encoder import BESIDE_BYTES
from actorraft.ports import Envelope, Gathered, Kinds

LARGE = BESIDE_BYTES


def sent(value: Any) -> tuple[Bulk, Any]:
    """How a value is sent, and what arrives."""
    message = Writer(lambda _: None).message(value)
    assert isinstance(message, Bulk)
    frame = message.head(0, 7) + b"".join(bytes(each) for each in message.buffers)
    kind, number, arrived = read_bulk(frame)
    assert (kind, number, len(arrived)) == (0, 7, len(message))
    return message, loads(arrived)


def test_arrays_and_bytes_of_64_kib_are_not_in_the_pickle() -> None:
    array = np.arange(LARGE, dtype="u1")
    message, arrived = sent({"array": array, "small": np.ones(3)})
    assert len(message.data) < 1000
    assert [memoryview(each).obj is not None and len(each) for each in message.buffers] == [LARGE]
    assert np.shares_memory(np.frombuffer(message.buffers[0], dtype="u1"), array), "nothing is copied yet"
    assert (arrived["array"] == array).all()
    message, arrived = sent(b"x" * LARGE)
    assert message.data == b""
    assert (type(arrived), arrived) == (bytes, b"x" * LARGE)
    assert type(Writer(lambda _: None).message(b"x" * (LARGE - 1))) is bytes


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_may_be_written_to_may_be_written_to_where_it_arrives(writable: bool, order: Any) -> None:
    array = np.asarray(np.ones((300, 300)), order=order)
    array.flags.writeable = writable
    _, arrived = sent(array)
    assert arrived.flags.writeable is writable
    assert arrived.flags.f_contiguous is (order == "F")
    assert (arrived == array).all()


def test_a_frame_that_lies_about_its_buffers_is_refused() -> None:
    message = Writer(lambda _: None).message(np.ones(LARGE, dtype="u1"))
    assert isinstance(message, Bulk)
    frame = message.head(0, 0) + bytes(message.buffers[0])
    for broken in (frame[:-1], frame + b"x", frame[:20], frame[:3], bytes([BULK]), bytes([BULK]) + b"\xff" * 20):
        with pytest.raises(msgspec.DecodeError):
            read_bulk(broken)


def test_buffers_that_came_in_parts_of_their_own_are_used_where_they_lie() -> None:
    message = Writer(lambda _: None).message(np.ones(LARGE, dtype="u1"))
    assert isinstance(message, Bulk)
    part = bytearray(message.buffers[0])
    frame = Gathered(message.head(0, 0))
    frame.beside = [memoryview(part)]
    array = loads(read_bulk(frame)[2])
    part[0] = 77
    assert array[0] == 77
    frame.beside = [memoryview(part)[1:]]
    with pytest.raises(msgspec.DecodeError):
        read_bulk(frame)


class Answering:
    """What an actor's loop sees of its mailbox: messages come, and what is sent is kept."""

    def __init__(self, *messages: tuple[int, int, bytes]) -> None:
        self.came = [Envelope(Kinds.CLIENT, b"caller", msgspec.msgpack.encode(messages))]
        self.sent: list[tuple[bytes, list[bytes]]] = []

    def wait(self, timeout_s: float) -> list[Envelope]:
        came, self.came = self.came, []
        return came

    def wake(self) -> None:
        return

    def try_send_client(self, client: bytes, frame: bytes, beside: Sequence[bytes] = ()) -> bool:
        self.sent.append((frame, list(beside)))
        return True


class Making(Actor):
    """Answers with arrays, or bytes, of the size that it is asked for, and ends with the last one."""

    def __init__(self) -> None:
        self.made = np.zeros(LARGE, dtype="u1")

    def receive(self, message: Any) -> Any:
        if message == "stop":
            actor.inside.stop()  # type: ignore[union-attr]
            return None
        if message == "bytes":
            return b"b" * LARGE
        self.made[:] = message
        return self.made


def test_large_buffers_of_an_answer_go_beside_it_and_are_as_they_were_when_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = [3, 4, "bytes", "stop"]
    mailbox = Answering(*[(ASK, number, Writer(lambda _: None).dumps(each)) for number, each in enumerate(asked)])
    inside = Inside()
    monkeypatch.setattr(actor, "inside", inside)
    loop = _Loop(Making(), mailbox, SimpleNamespace(report=lambda said: None), inside)  # type: ignore[arg-type]

    loop.run()

    bulks = [(frame, beside) for frame, beside in mailbox.sent if beside]
    assert [beside for _, beside in bulks] == [[b"\3" * LARGE], [b"\4" * LARGE], [b"b" * LARGE]]
    assert all(len(frame) < 1000 for frame, _ in mailbox.sent)
    taken, answers = msgspec.msgpack.decode(mailbox.sent[-1][0])
    assert (taken, [number for number, _, _ in answers]) == (4, [3])
    arrived = []
    for frame, beside in bulks:
        gathered = Gathered(frame)
        gathered.beside = [memoryview(bytearray(each)) for each in beside]
        arrived.append((read_bulk(gathered)[1], bytes(loads(read_bulk(gathered)[2]))))
    assert arrived == [(0, b"\3" * LARGE), (1, b"\4" * LARGE), (2, b"b" * LARGE)]


@pytest.mark.cluster
def test_answers_large_and_small_come_in_order_and_arrays_may_be_written_to(start: Callable[..., ActorRef]) -> None:
    ref = start(Making)
    futures = [ref.ask(each, 20.0) for _ in range(20) for each in (1, "bytes", 2)]
    for number, future in enumerate(futures):
        answer = future.result()
        if number % 3 == 1:
            assert answer == b"b" * LARGE
        else:
            answer += 1
            assert set(answer.tolist()) == {2 + number % 3 // 2}
    assert ref.debt == 0


class Holder(Actor):
    """Keeps arrays."""

    def on_start(self) -> None:
        self.kept: list[Any] = []

    def receive(self, message: Any) -> Any:
        self.kept.append(message)
        if isinstance(message, np.ndarray) and message.flags.writeable:
            message += 1
        return [(type(each).__name__, int(each[0]), len(each)) for each in self.kept]


@pytest.mark.cluster
def test_what_arrives_is_what_was_sent_then_whatever_becomes_of_it(start: Callable[..., ActorRef]) -> None:
    ref = start(Holder, mailbox_bytes_max=4 << 20)
    array = np.full(1 << 20, 5, dtype="u1")
    ref.tell(array)
    array[:] = 9
    ref.tell(1 * array[:LARGE])
    ref.tell(b"z" * LARGE)
    assert ref.ask(array).result(20.0) == [
        ("ndarray", 6, 1 << 20),
        ("ndarray", 10, LARGE),
        ("bytes", ord("z"), LARGE),
        ("ndarray", 10, 1 << 20),
    ]
    with pytest.raises(UsageError, match="over"):
        ref.tell(np.zeros(5 << 20, dtype="u1"))
    with pytest.raises(MailboxFull):
        for _ in range(100):
            ref.tell(array)
