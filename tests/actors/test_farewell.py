"""How an actor takes its leave: the last answers are read before its links end, and nobody is waited for in vain."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actorraft import Actor
from actorraft.actors import loop as module
from actorraft.actors import system as system_module
from actorraft.actors.loop import AGAIN_S, FAREWELL_S
from actorraft.actors.wire import ASK, LAST, READ
from actorraft.ports import Envelope, Kinds


class Echo(Actor):
    def receive(self, message: Any) -> Any:
        return message


class Mailbox:
    """One sender: `sends` says what becomes of each frame to it; it reads the last one if it is to.

    Its clock passes only while somebody waits.
    """

    def __init__(self, sends: Iterable[bool | None], reads: bool) -> None:
        self.sends = iter(sends)
        self.reads = reads
        self.now_s = 0.0
        self.frames: list[list[int]] = []  # numbers of the answers in each frame that left
        self.waiting: list[Envelope] = []

    def try_send_client(self, client: bytes, frame: bytes, beside: Sequence[bytes] = ()) -> bool | None:
        sent = next(self.sends, True)
        if sent:
            _, answers = module.msgspec.msgpack.decode(frame)
            self.frames.append([number for number, _, _ in answers])
            if self.reads and self.frames[-1] == [LAST]:
                self.waiting.append(Envelope(Kinds.CLIENT, client, module._encode([(READ, 0, b"")])))
        return sent

    def wait(self, timeout_s: float) -> list[Envelope]:
        waiting, self.waiting = self.waiting, []
        if not waiting:
            self.now_s += timeout_s
        return waiting


def leave(mailbox: Mailbox) -> float:
    """Have an actor that has answered one ask go; return how long that took, in seconds."""
    loop = module._Loop(Echo(), mailbox, SimpleNamespace(stop_requested=False))  # type: ignore[arg-type]
    loop._take(b"sender", ASK, 7, pickle.dumps("x"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "monotonic", lambda: mailbox.now_s)
        loop.farewell()
    return mailbox.now_s


def test_it_goes_when_the_last_answers_are_read() -> None:
    mailbox = Mailbox([], reads=True)
    assert leave(mailbox) < FAREWELL_S
    assert mailbox.frames == [[7], [LAST]]


def test_answers_for_a_sender_whose_queue_is_full_are_tried_again_before_it_goes() -> None:
    mailbox = Mailbox([False, False, True, False], reads=True)
    assert leave(mailbox) < FAREWELL_S
    assert mailbox.frames == [[7], [LAST]]


@pytest.mark.parametrize("sends", [[None], [True, None]])
def test_a_sender_that_is_gone_is_not_waited_for(sends: list[bool | None]) -> None:
    assert leave(Mailbox(sends, reads=False)) < FAREWELL_S


def test_a_sender_that_does_not_read_is_not_waited_for_for_ever() -> None:
    mailbox = Mailbox([], reads=False)
    assert FAREWELL_S <= leave(mailbox) <= FAREWELL_S + AGAIN_S
    assert mailbox.frames == [[7], [LAST]]  # said once


@pytest.mark.parametrize(
    ("left", "seconds"),
    [
        ([0], 0.0),
        ([4, 4, 4, 4, 4], 1.0),  # nobody takes anything
        ([4, 4, 3, 3, 2, 2, 1, 1, 0], 4.0),  # slow, but they do
        ([*range(100, 0, -1)], 5.0),  # not for ever
        ([4, 5, 6, 7, 8], 1.0),  # more of it is no progress
    ],
)
def test_what_was_sent_is_waited_for_as_long_as_somebody_takes_of_it(
    left: list[int], seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a second passes between two looks."""
    looks = iter(left)
    now_s = 100.0

    def sleep(_: float) -> None:
        nonlocal now_s
        now_s += 0.5

    monkeypatch.setattr(system_module, "monotonic", lambda: now_s)
    monkeypatch.setattr(system_module, "time", SimpleNamespace(sleep=sleep))
    system = system_module.System(tmp_path)
    system.owing.append(lambda: next(looks))
    system.drain()

    assert now_s - 100.0 == seconds
