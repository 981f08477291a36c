"""What the threads of actors tell each other is not lost, whenever they tell it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actorraft import Actor
from actorraft.actors.loop import Inside, _Loop, _Sender
from actorraft.actors.post import Post
from actorraft.actors.records import UP, Address, Record, identify, write_record
from actorraft.actors.wire import FRAME_BYTES_MAX
from tests.actors.helpers import until


@pytest.mark.parametrize("look", [1, 2])
def test_a_timer_that_another_thread_sets_as_the_loop_finds_none_is_not_left_behind_while_messages_come(
    look: int,
) -> None:
    """What an ask has come to is such a timer; the loop looks for one only when something says that there may be."""
    inside = Inside()
    looks: list[None] = []

    class Heap(list[Any]):
        """Another thread sets a timer as this is looked at."""

        def __bool__(self) -> bool:
            looks.append(None)
            if len(looks) == look:
                inside.after(0.0, "came meanwhile")
            return len(self) > 0

    inside._timers = Heap()
    first = inside.take_due()
    assert first is not None or inside.armed
    timer = first or inside.take_due()
    assert timer is not None
    assert timer.message == "came meanwhile"


def test_actors_whose_directory_goes_are_gone_and_others_are_still_reached() -> None:
    directories = [Path(tempfile.mkdtemp(prefix="wakes-")) for _ in range(2)]
    me = identify(os.getpid())
    *together, other = [
        Address(name, f"ipc://{directory}/{name}.1", 10, 1000)
        for name, directory in zip("abcd", [directories[0]] * 3 + [directories[1]], strict=True)
    ]
    for address in (*together, other):
        write_record(Record(address.endpoint, 10, me, me, UP))
    post = Post()
    try:
        boxes = [post.box(address) for address in together]
        until(lambda: len(post._unquiet) == len(boxes))  # it looks after all of them
        shutil.rmtree(directories[0])
        until(lambda: all(box.dead for box in boxes))
        box = post.box(other)
        until(lambda: box.linked or post.closed)
        assert not post.closed
        assert [box.dead for box in boxes] == ["is gone"] * 3
    finally:
        post.close()
        shutil.rmtree(directories[1])


def test_an_actor_whose_directory_goes_just_as_it_is_dialled_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    directories = [Path(tempfile.mkdtemp(prefix="wakes-")) for _ in range(2)]
    me = identify(os.getpid())
    gone, there = (
        Address(name, f"ipc://{directory}/{name}.1", 10, 1000)
        for name, directory in zip("ab", directories, strict=True)
    )
    for address in (gone, there):
        write_record(Record(address.endpoint, 10, me, me, UP))
    post = Post()
    set_endpoints = post._channel.set_endpoints

    def set_late(endpoints: Mapping[Any, str]) -> None:
        shutil.rmtree(directories[0], ignore_errors=True)  # all of them have just been looked at
        set_endpoints(endpoints)

    monkeypatch.setattr(post._channel, "set_endpoints", set_late)
    try:
        first, second = post.box(gone), post.box(there)
        until(lambda: (first.dead and second.linked) or post.closed)
        assert not post.closed
        assert (first.dead, second.dead) == ("is gone", None)
    finally:
        post.close()
        shutil.rmtree(directories[1])


class Mailbox:
    """Takes frames up to some length."""

    def __init__(self) -> None:
        self.takes_bytes = 0
        self.sent: list[int] = []  # the number of each answer

    def try_send_client(self, client: bytes, frame: bytes, beside: Sequence[bytes] = ()) -> bool:
        if len(frame) > self.takes_bytes:
            return False
        self.sent += [number for number, _, _ in msgspec.msgpack.decode(frame)[1]]
        return True


def test_an_answer_never_overtakes_an_earlier_one_for_which_there_is_no_room_now() -> None:
    """The earlier one may be what defines the classes that the later one needs."""
    mailbox = Mailbox()
    loop = _Loop(Actor(), mailbox, None)  # type: ignore[arg-type]
    sender = loop._senders[b"s"] = loop._due[b"s"] = _Sender()
    sender.answers = [(1, True, bytes(FRAME_BYTES_MAX // 2)), (2, True, b"small"), (3, True, b"small")]
    mailbox.takes_bytes = 1000
    loop.flush()
    loop.flush()
    assert mailbox.sent == []
    mailbox.takes_bytes = FRAME_BYTES_MAX
    loop.flush()
    assert mailbox.sent == [1, 2, 3]
    assert not sender.answers
