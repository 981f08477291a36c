"""Large buffers travel beside the pickle, as parts that are not copied again, and what they hold is what was sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from actorraft import Actor, ActorRef, MailboxFull, UsageError
from actorraft.actors.wire import BULK, Bulk, Writer, loads, read_bulk
from actorraft.pickling.encoder import BESIDE_BYTES
from actorraft.ports import Gathered

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
