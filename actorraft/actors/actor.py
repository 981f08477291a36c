"""An actor: an object in a process of its own that takes one message after another.

What `receive` returns answers an ask. What it raises goes to who asked, and the actor lives on; after a tell nobody
would hear of it, so the actor ends with it, and its supervision decides whether it starts again (fresh: `on_start`).

Wire:       to an actor, a msgpack array of [kind, number, pickle]; from it, [messages taken from this sender so far,
            array of [number, ok, pickle]]. The count is the sender's credit: nobody holds more than `mailbox_max`.
            A message is taken when the actor is done with it.
Process:    one loop, one thread; a ROUTER that all senders' DEALERs are connected to.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import time
import traceback
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from actorraft.actors import pickles
from actorraft.errors import CommandFailed, RemoteTraceback, UsageError
from actorraft.ports import Kinds

if TYPE_CHECKING:
    from actorraft.actors.bootstrap import ChildContext
    from actorraft.actors.ref import ActorRef
    from actorraft.ports import Mailbox

logger = logging.getLogger("actorraft")

TELL: Final = 0
ASK: Final = 1
STOP: Final = 2
READ: Final = 3  # the sender has read the last answers

LAST: Final = -1  # the number of what is no answer, but says that no more will come
FRAME_BYTES_MAX: Final = 64 << 20
FLUSH_S: Final = 0.001  # answers wait for each other no longer than this
AGAIN_S: Final = 0.005  # when to try again with a sender that does not read
FAREWELL_S: Final = 1.0  # how long the last answers of a stopped actor may take to be read

_decode = msgspec.msgpack.Decoder(list[tuple[int, int, bytes]]).decode
_encode = msgspec.msgpack.Encoder().encode


class Actor:
    """Base class of actors. Override `receive`, and `on_start` and `on_stop` if needed.

    Its constructor runs in the actor's own process, with the arguments given to `spawn`.
    """

    ref: ActorRef  # its own address, to give to others; there from before the constructor on

    def on_start(self) -> None:
        """Get ready; called before the first message, and again after each restart."""

    def receive(self, message: Any) -> Any:
        """Take a message; what this returns answers an ask. A Future answers when it is done."""
        raise UsageError(f"{type(self).__name__} takes no messages: it has no receive method")

    def on_stop(self) -> None:
        """Clean up; called when the actor is stopped, not when it is killed or crashes."""


class Call(NamedTuple):
    """A message that is a method call, made by a proxy."""

    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on(self, actor: Actor) -> Any:
        """Make the call."""
        return check_callable(type(actor), self.method).__get__(actor)(*self.args, **self.kwargs)


def check_callable(cls: type, name: str) -> Any:
    """Return the function behind a method that others may call.

    Raises:
        AttributeError: there is none of that name.
    """
    function = inspect.getattr_static(cls, name, None)
    if name.startswith("_") or not inspect.isfunction(function) or name in ("receive", "on_start", "on_stop"):
        raise AttributeError(f"{cls.__name__} has no method {name!r} that others may call")
    return function


class ActorSpec(NamedTuple):
    """All that an actor's process is told at its start."""

    code: bytes  # pickle of (class, args, kwargs)
    ref: ActorRef
    run_dir: str


def run_actor(context: ChildContext, spec: ActorSpec) -> None:
    """The whole life of an actor's process."""
    from actorraft.actors.system import join_system
    from transports.zeromq import ZeroMQMailbox

    join_system(spec.run_dir)
    cls, args, kwargs = pickles.loads(spec.code)
    actor = cls.__new__(cls)
    actor.ref = spec.ref
    actor.__init__(*args, **kwargs)
    actor.on_start()
    mailbox = ZeroMQMailbox(
        0,
        incarnation=os.urandom(8),
        cluster_id=bytes(8),
        peer_endpoint=None,
        client_endpoint=spec.ref.endpoint,
        token=None,
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
                message = pickles.loads(data)
                result = message.on(self._actor) if type(message) is Call else self._actor.receive(message)
            except Exception as error:
                self._answer(sender_id, number, False, error)
            else:
                if isinstance(result, Future):
                    result.add_done_callback(lambda future: self._answer_later(sender_id, number, future))
                else:
                    self._answer(sender_id, number, True, result)
        else:
            message = pickles.loads(data)
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
            data = pickles.dumps(value) if ok else dump_error(value)
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


def dump_error(error: BaseException) -> bytes:
    """Make bytes of an exception, with its traceback as text; of one that cannot be rebuilt, a CommandFailed."""
    text = "".join(traceback.format_exception(error))
    try:
        data = pickles.dumps((error, text))
        pickles.loads(data)
    except Exception:
        try:
            message = str(error)
        except Exception:
            message = "(its message cannot be shown)"
        data = pickles.dumps((CommandFailed(type(error).__name__, message, text), text))
    return data


def load_error(data: bytes) -> BaseException:
    """The other way round; the remote traceback is the cause."""
    error, text = pickles.loads(data)
    assert isinstance(error, BaseException)
    error.__cause__ = RemoteTraceback(text)
    return error
