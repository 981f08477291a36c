"""An actor's process from inside: it takes one message after another, and answers.

What `receive` returns answers an ask. What it raises goes to who asked, and the actor lives on; after a tell nobody
would hear of it, so the actor ends with it, and its supervision decides whether it starts again (fresh: `on_start`).

Process:    one loop, one thread; a ROUTER that all senders' DEALERs are connected to.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

import msgspec

from actorraft.actors import wire
from actorraft.actors.ref import ActorRef
from actorraft.actors.system import join_system
from actorraft.actors.wire import ASK, FRAME_BYTES_MAX, LAST, READ, STOP, Call, dump_error
from actorraft.errors import UsageError
from actorraft.ports import Kinds

if TYPE_CHECKING:
    from actorraft.actors.actor import Actor
    from actorraft.actors.bootstrap import ChildContext
    from actorraft.actors.records import Address
    from actorraft.ports import Mailbox

FLUSH_S: Final = 0.001  # answers wait for each other no longer than this
AGAIN_S: Final = 0.005  # when to try again with a sender that does not read
FAREWELL_S: Final = 1.0  # how long the last answers of a stopped actor may take to be read

_decode = msgspec.msgpack.Decoder(list[tuple[int, int, bytes]]).decode
_encode = msgspec.msgpack.Encoder().encode


def run_actor(context: ChildContext, address: Address, run_dir: str, code: bytes) -> None:
    """The whole life of an actor's process; `code` is a pickle of (class, args, kwargs)."""
    from transports.zeromq import ZeroMQMailbox

    join_system(run_dir)
    cls, args, kwargs = wire.loads(code)
    actor = cls.__new__(cls)
    actor.ref = ActorRef(*address)
    actor.__init__(*args, **kwargs)
    actor.on_start()
    mailbox = ZeroMQMailbox(
        0,
        incarnation=os.urandom(8),
        cluster_id=bytes(8),
        peer_endpoint=None,
        client_endpoint=address.endpoint,
        frame_bytes_max=FRAME_BYTES_MAX,
    )
    context.on_stop(mailbox.wake)
    loop = _Loop(actor, mailbox, context)
    context.report(("ready", None))
    try:
        loop.run()
        actor.on_stop()
    finally:
        loop.farewell()
        mailbox.close()


class _Sender:
    """What the actor knows of one sender."""

    def __init__(self) -> None:
        self.taken = 0
        self.answers: list[tuple[int, bool, bytes]] = []


class _Loop:
    """Takes frames from the mailbox, one message after another to the actor, answers in batches back."""

    def __init__(self, actor: Actor, mailbox: Mailbox, context: ChildContext) -> None:
        self._actor = actor
        self._mailbox = mailbox
        self._context = context
        self._senders: dict[bytes, _Sender] = {}
        self._due: dict[bytes, _Sender] = {}  # have something coming
        self._inbox: deque[tuple[bytes, int, int, bytes]] = deque()
        self._late: deque[tuple[bytes, int, Future[Any]]] = deque()  # answers that were futures, and are done
        self._flushed_s = 0.0
        self._stopping = False

    def run(self) -> None:
        """Take messages until the actor is stopped."""
        inbox = self._inbox
        while not self._ending():
            self._listen(0.0 if inbox else AGAIN_S if self._due else 1.0)
            while inbox and not self._ending():
                self._take(*inbox.popleft())
                if time.monotonic() - self._flushed_s > FLUSH_S:
                    self.flush()
            self.flush()

    def _ending(self) -> bool:
        return self._stopping or self._context.stop_requested

    def _listen(self, wait_s: float) -> None:
        for kind, sender, frame in self._mailbox.wait(wait_s):
            if kind == Kinds.CLIENT:
                try:
                    messages = _decode(frame)
                except msgspec.DecodeError:
                    self._mailbox.drop("a message that does not decode")
                    continue
                self._inbox.extend([(sender, *message) for message in messages])
        while self._late:
            sender, number, future = self._late.popleft()
            error = future.exception()
            self._answer(sender, number, error is None, error if error is not None else future.result())

    def _take(self, sender_id: bytes, kind: int, number: int, data: bytes) -> None:
        sender = self._senders.get(sender_id)
        if sender is None:
            sender = self._senders[sender_id] = _Sender()
        sender.taken += 1
        self._due[sender_id] = sender
        if kind == STOP:
            self._context.report(("stopping", None))
            self._stopping = True
        elif kind == ASK:
            try:
                message = wire.loads(data)
                result = message.on(self._actor) if type(message) is Call else self._actor.receive(message)
            except Exception as error:
                self._answer(sender_id, number, False, error)
            else:
                if isinstance(result, Future):
                    result.add_done_callback(lambda future: self._answer_later(sender_id, number, future))
                else:
                    self._answer(sender_id, number, True, result)
        else:
            message = wire.loads(data)
            if type(message) is Call:
                message.on(self._actor)
            else:
                self._actor.receive(message)

    def _answer_later(self, sender_id: bytes, number: int, future: Future[Any]) -> None:
        """In whatever thread: the loop sends it."""
        self._late.append((sender_id, number, future))
        self._mailbox.wake()

    def _answer(self, sender_id: bytes, number: int, ok: bool, value: Any) -> None:
        sender = self._senders.get(sender_id)
        if sender is None:
            return  # gone meanwhile
        self._due[sender_id] = sender
        try:
            data = wire.dumps(value) if ok else dump_error(value)
        except UsageError as error:
            ok, data = False, dump_error(error)
        if len(data) > FRAME_BYTES_MAX - 1024:
            ok, data = False, dump_error(UsageError(f"an answer of {len(data)} bytes is over {FRAME_BYTES_MAX}"))
        sender.answers.append((number, ok, data))

    def flush(self) -> None:
        """Send what is due: answers, and how many messages were taken."""
        self._flushed_s = time.monotonic()
        due, self._due = self._due, {}
        for sender_id, sender in due.items():
            answers, sender.answers = sender.answers, []
            batch: list[tuple[int, bool, bytes]] = []
            size = 0
            for answer in answers:
                if batch and size + len(answer[2]) > FRAME_BYTES_MAX // 2:
                    self._send(sender_id, sender, batch)
                    batch, size = [], 0
                batch.append(answer)
                size += len(answer[2])
            self._send(sender_id, sender, batch)

    def farewell(self) -> None:
        """Send the last answers and wait, not for ever, until they are read: a link that ends drops what is unread."""
        until_s = time.monotonic() + FAREWELL_S
        reading: set[bytes] = set()
        while True:
            self.flush()
            for sender_id in self._senders.keys() - reading - self._due.keys():
                last = _encode((self._senders[sender_id].taken, [(LAST, True, b"")]))
                sent = self._mailbox.try_send_client(sender_id, last)
                if sent:
                    reading.add(sender_id)
                elif sent is None:
                    del self._senders[sender_id]
            if not self._senders or time.monotonic() >= until_s:
                return
            for kind, sender_id, frame in self._mailbox.wait(AGAIN_S):
                with contextlib.suppress(msgspec.DecodeError):
                    if kind == Kinds.CLIENT and any(message[0] == READ for message in _decode(frame)):
                        self._senders.pop(sender_id, None)

    def _send(self, sender_id: bytes, sender: _Sender, batch: list[tuple[int, bool, bytes]]) -> None:
        sent = self._mailbox.try_send_client(sender_id, _encode((sender.taken, batch)))
        if sent is None:
            self._senders.pop(sender_id, None)  # gone, and with it all that it had coming
        elif not sent:
            sender.answers.extend(batch)  # it does not read now: again with the next flush
            self._due[sender_id] = sender
