"""An actor's process from inside: it takes one message after another, and answers.

What `receive` returns answers an ask. What it raises goes to who asked; after a tell nobody would hear of it, so it is
logged and counted and `on_failure` is called. Either way the actor lives on with its state: only with
`Supervision(on_error="restart")` does it end there, to start again fresh.

Process:    one loop in the main thread; a ROUTER that all senders' DEALERs are connected to. Coroutines run in a thread
            beside it (coroutines.py), and put what they come to into `_late`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import pickle
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import msgspec

from actorraft.actors import actor as actors
from actorraft.actors import wire
from actorraft.actors.actor import turn
from actorraft.actors.coroutines import Coroutines, is_asynchronous, is_awaitable, is_future, settle
from actorraft.actors.effects import TAKEN, Effect, Inbox, Key, Told, told_error, told_value
from actorraft.actors.records import machine_here
from actorraft.actors.ref import ActorRef
from actorraft.actors.shared import LOOK_S, SHARED_BYTES, Lane
from actorraft.actors.system import join_system, leave_system
from actorraft.actors.wire import (
    ASK,
    BATCH_MAX,
    DEFINE,
    DEFINITION,
    FRAME_BYTES_MAX,
    HELLO,
    LAST,
    MESSAGE_BYTES_MAX,
    READ,
    SCALAR_PROTOCOL,
    SCALARS,
    SHARED,
    SHARING,
    STOP,
    TELL,
    Bulk,
    Call,
    Inquiry,
    NoSuchMethod,
    callable_methods,
    dump_error,
    loads,
    read_bulk,
)
from actorraft.errors import StartError, UsageError
from actorraft.loggers import guarded_logger
from actorraft.pickling import exceptions
from actorraft.pickling.encoder import BESIDE_BYTES
from actorraft.ports import Kinds
from actorraft.steady import Patience, monotonic

if TYPE_CHECKING:
    from actorraft.actors.actor import Actor
    from actorraft.actors.bootstrap import ChildContext
    from actorraft.actors.records import Address
    from actorraft.ports import Mailbox

logger = guarded_logger("actorraft")

FLUSH_S: Final = 0.001  # answers wait for each other no longer than this
SMALL_BYTES: Final = BESIDE_BYTES // 4  # a text of so many characters is below BESIDE_BYTES in any case
AGAIN_S: Final = 0.005  # when to try again with a sender that does not read
FAREWELL_S: Final = 1.0  # an actor that stops waits for its last answers until nothing was read for so long
FAREWELL_MAX_S: Final = 5.0  # and no longer than this
QUIET_S: Final = 0.1  # when nothing came for so long, nothing is left that a sender sent before it ended

_BULK: Final = bytes([wire.BULK])
_OURS: Final = frozenset({Call, Inquiry, Effect})
_PENDING: Final = object()  # in the place of what is told of an effect, while it is being taken
_decode = msgspec.msgpack.Decoder(list[tuple[int, int, bytes]]).decode
_loads, _dumps = pickle.loads, pickle.dumps
_encode = msgspec.msgpack.Encoder().encode


class Manner(NamedTuple):
    """How an actor takes its messages.

    Attributes:
        concurrency: how many of them at once, while others are being awaited.
        on_error: what follows an exception that `receive` lets out: "go on" or "restart".
    """

    concurrency: int = 1
    on_error: str = "go on"


class _Turn(NamedTuple):
    """A message that is being taken; a timer's has no sender. `effect`: what it came in."""

    sender_id: bytes | None
    kind: int
    number: int
    message: Any
    effect: Effect | None = None


class _Answer(NamedTuple):
    """A message of the loop's own: what the actor asked another one has come back."""

    then: str
    asked: Any
    ended: Future[Any]


class _Timer:
    """As actor.Timer."""

    def __init__(self, message: Any) -> None:
        self.message = message
        self.open = True

    def cancel(self) -> bool:
        was_open, self.open = self.open, False
        return was_open


class Inside:
    """What the actor may ask of its loop, from any of its threads; there from before its constructor on."""

    def __init__(self) -> None:
        self.leaving = False  # whether no further message is taken
        self.forked = False  # whether this is a fork of the actor's process, which is no actor
        self.stopping = False  # whether it stays down then
        self.armed = False  # whether there may be timers
        self.actor: Any = None
        self.wake: Callable[[], None] = lambda: None  # once there is a mailbox, that one's
        self._fresh: deque[tuple[float, int, _Timer]] = deque()
        self._timers: list[tuple[float, int, _Timer]] = []  # a heap, the loop's alone
        self._numbers = itertools.count()
        os.register_at_fork(after_in_child=self._in_a_fork)

    def _in_a_fork(self) -> None:
        self.leaving = self.forked = True

    def stop(self) -> None:
        self.stopping = True
        self.leave()

    def leave(self) -> None:
        """Have the loop end once what is being taken is done."""
        self.leaving = True
        self.wake()

    def after(self, seconds: float, message: Any) -> _Timer:
        timer = _Timer(message)
        self._fresh.append((monotonic() + seconds, next(self._numbers), timer))
        self.armed = True
        self.wake()
        return timer

    def tell(self, ref: ActorRef[Any], message: Any) -> None:
        ref.tell(message)

    def ask(self, ref: ActorRef[Any], message: Any, then: Callable[..., Any]) -> None:
        name = actors.name_of_method(self.actor, then)
        ref.ask(message, None).add_done_callback(lambda ended: self._at_once(_Answer(name, message, ended)))

    def _at_once(self, message: Any) -> None:
        self.after(0.0, message)

    def take_due(self) -> _Timer | None:
        """Return a timer whose time has come; None if there is none."""
        self.armed = False
        while self._fresh:
            heapq.heappush(self._timers, self._fresh.popleft())
        while self._timers and (not self._timers[0][2].open or self._timers[0][0] <= monotonic()):
            timer = heapq.heappop(self._timers)[2]
            if timer.cancel():
                self.armed = True
                return timer
        self.armed = bool(self._timers)
        if self._fresh:  # set by another thread before the line above: after it, that thread has said so itself
            self.armed = True
        return None

    def wait_s(self) -> float:
        """Return how long until the next timer, a second at the longest."""
        if self._fresh:
            return 0.0
        return min(1.0, max(0.0, self._timers[0][0] - monotonic())) if self._timers else 1.0


def run_actor(context: ChildContext, address: Address, run_dir: str, code: bytes) -> None:
    """The whole life of an actor's process; `code` is a pickle of (class, args, kwargs, manner)."""
    from transports.zeromq import ZeroMQMailbox

    join_system(run_dir, address)
    cls, args, kwargs, manner = wire.unpack(code)
    actors.own_ref = ActorRef(*address, machine_here())
    actors.own_endpoint = address.endpoint
    actors.inside = inside = Inside()
    try:
        inside.actor = actor = cls.__new__(cls, *args, **kwargs)
        actor.ref = actors.own_ref
        actor.__init__(*args, **kwargs)
        coroutines = Coroutines()
        in_loop = is_asynchronous(cls)
        call_hook = coroutines.run if in_loop else coroutines.call
        call_hook(actor.on_start)
    except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
        if context.stop_requested:
            raise
        raise StartError(f"{cls.__qualname__} raised {exceptions.summary(error)} as it started") from error
    mailbox = ZeroMQMailbox(
        0,
        incarnation=os.urandom(8),
        cluster_id=bytes(8),
        peer_endpoint=None,
        client_endpoint=address.endpoint,
        frame_bytes_max=FRAME_BYTES_MAX,
        gathers=True,
    )
    inside.wake = mailbox.wake
    context.on_stop(inside.leave)
    loop = _Loop(actor, mailbox, context, inside, coroutines, manner, in_loop=in_loop)
    context.report(("ready", None))
    crashed = True
    try:
        loop.run()
        call_hook(actor.on_stop)
        crashed = False
    finally:
        loop.farewell()
        mailbox.close()
        leave_system(soon=crashed)  # who crashed is to start again


class _Sender:
    """What the actor knows of one sender."""

    def __init__(self, lane: Lane | None = None) -> None:
        self.ref: ActorRef[Any] | None = None  # if it is an actor
        self.turn: tuple[ActorRef[Any] | None] = (None,)
        self.taken = 0
        self.answers: list[tuple[int, bool, bytes | Bulk]] = []
        self.heavy = False  # whether large ones may be among them
        self.owner = wire.new_owner()  # of what it defines here
        self.writer = wire.Writer(lambda data: self.add(DEFINITION, True, data))
        self.lane = lane or Lane(lambda data: self.add(SHARING, True, data))

    def add(self, number: int, ok: bool, data: bytes | Bulk) -> None:
        """Have one more answer to send."""
        self.answers.append((number, ok, data))
        if len(data) >= BESIDE_BYTES:
            self.heavy = True

    def next_frame(self) -> tuple[int, bytes, list[Any]]:
        """Return how many answers can go now, the frame with them, and what goes beside it.

        One with buffers goes by itself; how many messages were taken is said in the frame after it.
        """
        answers = self.answers
        if not self.heavy and len(answers) <= BATCH_MAX:
            return len(answers), _encode((self.taken, answers)), []
        count = size = 0
        for number, ok, data in answers:
            size += len(data)
            if type(data) is Bulk:
                if not count:
                    return 1, data.head(int(ok), number), data.buffers
                break
            if count and size > FRAME_BYTES_MAX // 2:
                break
            count += 1
        return count, _encode((self.taken, answers[:count])), []

    def sent(self, count: int) -> None:
        """Let go of the first answers: they have left."""
        del self.answers[:count]
        self.heavy = self.heavy and bool(self.answers)


class _Loop:
    """Takes frames from the mailbox, one message after another to the actor, answers in batches back."""

    def __init__(
        self,
        actor: Actor,
        mailbox: Mailbox,
        context: ChildContext,
        inside: Inside | None = None,
        coroutines: Coroutines | None = None,
        manner: Manner | None = None,
        *,
        in_loop: bool = False,
    ) -> None:
        self._actor = actor
        self._mailbox = mailbox
        self._context = context
        self._inside = inside or Inside()
        self._coroutines = coroutines or Coroutines()
        self._in_loop = in_loop  # whether all of the actor runs there, or only what it returns that can be awaited
        self._manner = manner or Manner()
        self._senders: dict[bytes, _Sender] = {}
        self._due: dict[bytes, _Sender] = {}  # have something coming
        self._inbox: deque[tuple[bytes, int, int, Any]] = deque()
        self._late: deque[tuple[_Turn, bool, bool, Any]] = deque()  # what came to an end elsewhere: see _listen
        self._keeps_memory = False  # of large messages
        self._lanes: set[bytes] = set()  # senders that memory is shared with
        self._look_s = 0.0  # when to look after these
        self._left: dict[bytes, Lane] = {}  # of senders that are gone: what came of theirs may not be read yet
        self._heard_s = 0.0  # when something came, as long as there are such
        self._running = 0  # messages that are being awaited
        self._flush_due_s = 0.0
        self._crash: BaseException | None = None
        self._messages = self._failures = 0
        self._in_turn: tuple[ActorRef[Any] | None] | None = None
        self._inbox_of_effects = Inbox()  # of this life: whoever starts anew has forgotten what it took
        self._again: dict[Key, list[_Turn]] = {}  # came again while they were being taken

    def run(self) -> None:
        """Take messages until the actor is stopped.

        Raises:
            BaseException: what an actor that is to be restarted after an exception let out.
        """
        inbox, inside, concurrency = self._inbox, self._inside, self._manner.concurrency
        take, popleft = self._take, inbox.popleft
        timed = False  # the last turn was a timer's
        while not inside.leaving or self._running:
            busy = inbox and not inside.leaving and self._running < concurrency
            wait_s = AGAIN_S if self._due else QUIET_S if self._left else 1.0
            self._listen(0.0 if busy else min(wait_s, inside.wait_s()))
            while not inside.leaving and self._running < concurrency:
                if inside.armed and not (timed and inbox) and (timer := inside.take_due()) is not None:
                    timed = True  # one that sets itself again and again keeps no message waiting
                    self._begin(_Turn(None, TELL, 0, timer.message), self._actor.ref)
                elif inbox:
                    timed = False
                    take(*popleft())
                else:
                    timed = False
                    break
                if monotonic() > self._flush_due_s:
                    self.flush()
                    if timed:
                        break
            self.flush()
        self._in_turn_of(None)
        if self._crash is not None:
            raise self._crash
        if self._inside.stopping:
            self._context.report(("stopping", None))

    def _listen(self, wait_s: float) -> None:
        came = self._mailbox.wait(wait_s)
        if self._left:
            self._let_go_of_left(bool(came))
        for kind, sender, frame in came:
            if kind == Kinds.CLIENT:
                try:
                    messages: list[Any] = _decode(frame) if frame[:1] != _BULK else self._read_bulk(sender, frame)
                except msgspec.DecodeError:
                    self._mailbox.drop("a message that does not decode")
                    continue
                self._inbox.extend([(sender, *message) for message in messages])
        self._take_late()

    def _take_late(self) -> None:
        """Answer what came to an end elsewhere."""
        while self._late:
            done, was_running, ok, value = self._late.popleft()
            if was_running:
                self._running -= 1
                self._count_taken(done.sender_id)
            if ok:
                self._answer_to(done, True, value)
            else:
                self._on_error(done, value)

    def _read_bulk(self, sender_id: bytes, frame: bytes | memoryview) -> list[Any]:
        if not self._keeps_memory:
            self._keeps_memory = True
            wire.keep_memory()
        sender = self._senders.get(sender_id) or self._meet(sender_id)
        return [read_bulk(frame, sender.lane)]

    def _meet(self, sender_id: bytes) -> _Sender:
        lane = self._left.pop(sender_id, None) or Lane(partial(self._say, sender_id))
        sender = self._senders[sender_id] = _Sender(lane)
        return sender

    def _say(self, sender_id: bytes, said: bytes) -> None:
        """Say something of shared memory to a sender."""
        sender = self._senders.get(sender_id)
        if sender is not None:
            sender.add(SHARING, True, said)
            self._due[sender_id] = sender

    def _let_go_of_left(self, came: bool) -> None:
        now_s = monotonic()
        if came:
            self._heard_s = now_s
        elif now_s - self._heard_s >= QUIET_S:
            for lane in self._left.values():
                lane.clear()
            self._left.clear()

    def _look_after_lanes(self, now_s: float) -> None:
        """Let go of memory that is not used, and say a word to who shares it: who is gone is found by that."""
        self._look_s = now_s + LOOK_S
        for sender_id in list(self._lanes):
            sender = self._senders.get(sender_id)
            if sender is not None:
                sender.lane.look()
            if sender is not None and sender.lane.in_use:
                self._due[sender_id] = sender
            else:
                self._lanes.discard(sender_id)

    def _take(self, sender_id: bytes, kind: int, number: int, data: Any) -> None:
        sender = self._senders.get(sender_id)
        if sender is None:
            sender = self._meet(sender_id)
        if kind > ASK:
            self._take_word(sender_id, sender, kind, data)
            return
        try:
            message = _loads(data) if type(data) is bytes and data[1] == SCALAR_PROTOCOL else loads(data)
        except BaseException as error:
            self._count_taken(sender_id)
            self._on_error(_Turn(sender_id, kind, number, None), error, crashes=False)
            return
        if self._in_loop or type(message) in _OURS:
            self._begin(_Turn(sender_id, kind, number, message), sender.ref)
            return
        # The way of most messages, without anything that only others need.
        self._messages += 1
        if self._in_turn is not sender.turn:
            self._in_turn_of(sender.turn)
        try:
            result = self._actor.receive(message)
        except BaseException as error:
            self._count_taken(sender_id)
            self._on_error(_Turn(sender_id, kind, number, message), error)
            return
        what = type(result)
        if what not in SCALARS:
            self._finish(_Turn(sender_id, kind, number, message), sender.ref, result)
            return
        if kind == ASK:
            large = (what is bytes or what is str) and len(result) >= SMALL_BYTES
            if large or len(answer := _dumps(result, SCALAR_PROTOCOL)) >= BESIDE_BYTES:
                self._answer(sender_id, number, True, result)
            else:
                sender.answers.append((number, True, answer))
        sender.taken += 1
        self._due[sender_id] = sender

    def _take_word(self, sender_id: bytes, sender: _Sender, kind: int, data: Any) -> None:
        """Take what is no message for the actor."""
        if kind == STOP:
            self._count_taken(sender_id)
            self._inside.stop()
        elif kind == HELLO:
            address, definitions = wire.loads(data)
            sender.ref = ActorRef(*address) if address is not None else None
            sender.turn = (sender.ref,)
            for each in definitions:
                self._define(sender, each)
        elif kind == DEFINE:
            self._count_taken(sender_id)
            self._define(sender, data)
        elif kind == SHARED:
            self._lanes.add(sender_id)
            sender.lane.hear(data)

    @staticmethod
    def _define(sender: _Sender, data: bytes) -> None:
        try:
            wire.define(data, sender.owner)
        except BaseException as error:
            logger.error("what a sender defined cannot be built here: %s", exceptions.summary(error))

    def _begin(self, one: _Turn, sender: ActorRef[Any] | None) -> None:
        """Take a message: here, if that needs nothing to be awaited."""
        if type(one.message) is Effect:
            effect = one.message
            one = one._replace(kind=ASK if effect.asks else TELL, message=effect.message, effect=effect)
            sender = effect.sender
            if self._was_taken(one, effect):
                return
        self._messages += type(one.message) is not Inquiry
        if self._in_loop and type(one.message) is not Inquiry:
            self._running += 1
            self._coroutines.start(partial(self._run, one, sender, self._act))
            return
        self._in_turn_of((sender,))
        try:
            result = self._act(one.message)
        except BaseException as error:
            self._count_taken(one.sender_id)
            self._on_error(one, error)
            return
        self._finish(one, sender, result)

    def _was_taken(self, one: _Turn, effect: Effect) -> bool:
        """Answer an effect that was taken already as it was then."""
        told = self._inbox_of_effects.admit(effect)
        if told is None:
            self._inbox_of_effects.keep(effect, _PENDING)
            return False
        self._count_taken(one.sender_id)
        if told is _PENDING:
            self._again.setdefault((effect.stream, effect.number), []).append(one)
        elif one.sender_id is not None:
            self._answer(one.sender_id, one.number, True, told)
        return True

    def _tell_of_effect(self, one: _Turn, effect: Effect, told: Told) -> None:
        """Say that an effect was taken, to all who have sent it."""
        self._inbox_of_effects.keep(effect, told)
        for each in (one, *self._again.pop((effect.stream, effect.number), ())):
            if each.sender_id is not None:
                self._answer(each.sender_id, each.number, True, told)

    def _in_turn_of(self, now: tuple[ActorRef[Any] | None] | None) -> None:
        """Say whose message has its turn. It is left said between turns, when no code of the actor's runs here."""
        self._in_turn = now
        turn.set(now)

    def _finish(self, one: _Turn, sender: ActorRef[Any] | None, result: Any) -> None:
        if is_future(result):
            self._count_taken(one.sender_id)
            result.add_done_callback(lambda future: self._on_future(one, future))
        elif is_awaitable(result):
            self._running += 1
            self._coroutines.start(partial(self._run, one, sender, lambda _: result))
        else:
            self._count_taken(one.sender_id)
            self._answer_to(one, True, result)

    def _act(self, message: Any) -> Any:
        if type(message) is Call:
            return message.on(self._actor)
        if type(message) is Inquiry:
            return (
                callable_methods(type(self._actor))
                if message.about == "methods"
                else {"messages": self._messages, "failures": self._failures}
            )
        if type(message) is _Answer:
            return getattr(self._actor, message.then)(message.ended.result())
        return self._actor.receive(message)

    async def _run(self, one: _Turn, sender: ActorRef[Any] | None, act: Callable[[Any], Any]) -> None:
        """In the coroutines' thread: take a message, and what failing brings with it."""
        turn.set((sender,))
        try:
            ok, value = True, await settle(act(one.message))
        except BaseException as error:
            if self._inside.forked:
                _end_fork(error)
            ok, value = False, error
            if one.kind == TELL and self._in_loop:
                with _logged("on_failure"):
                    await settle(self._actor.on_failure(error, _said(one.message)))
        if self._inside.forked:
            _end_fork(None)
        self._late.append((one, True, ok, value))
        self._mailbox.wake()

    def _on_future(self, one: _Turn, future: Future[Any]) -> None:
        """In whatever thread: the loop sends what it came to."""
        if future.cancelled():
            self._late.append((one, False, False, UsageError("the future that receive returned was cancelled")))
        else:
            error = future.exception()
            self._late.append((one, False, error is None, error if error is not None else future.result()))
        self._mailbox.wake()

    def _count_taken(self, sender_id: bytes | None) -> None:
        if sender_id is not None and (sender := self._senders.get(sender_id)) is not None:
            sender.taken += 1
            self._due[sender_id] = sender

    # --- What a message comes to ---

    def _on_error(self, one: _Turn, error: BaseException, *, crashes: bool = True) -> None:
        if self._inside.forked:
            _end_fork(error)
        self._failures += 1
        if one.kind == ASK:
            self._answer_to(one, False, error)
        else:
            logger.error("what it was told failed\n%s", exceptions.story(error))
            if not self._in_loop or not crashes:  # else it has been called, in the coroutines' thread
                self._tell_of_failure(error, _said(one.message))
            if one.effect is not None:
                self._tell_of_effect(one, one.effect, TAKEN)
        if crashes and self._manner.on_error == "restart" and type(error) is not NoSuchMethod:
            self._crash = error
            self._inside.leaving = True

    def _tell_of_failure(self, error: BaseException, message: Any) -> None:
        with _logged("on_failure"):
            call_hook = self._coroutines.run if self._in_loop else self._coroutines.call
            call_hook(self._actor.on_failure, error, message)

    def _answer_to(self, one: _Turn, ok: bool, value: Any) -> None:
        if one.effect is not None:
            told = TAKEN if one.kind == TELL else told_value(value) if ok else told_error(value)
            self._tell_of_effect(one, one.effect, told)
        elif one.kind == ASK and one.sender_id is not None:
            self._answer(one.sender_id, one.number, ok, value)

    def _answer(self, sender_id: bytes, number: int, ok: bool, value: Any) -> None:
        sender = self._senders.get(sender_id)
        if sender is None:
            return  # gone meanwhile
        self._due[sender_id] = sender
        data: bytes | Bulk
        try:
            data = sender.writer.message(value) if ok else dump_error(value, sender.writer.dumps)
            if type(data) is Bulk and len(data) <= MESSAGE_BYTES_MAX:
                if len(data) >= SHARED_BYTES:
                    self._lanes.add(sender_id)
                    sender.lane.offer()
                data.own(bytes, sender.lane)
        except BaseException as error:
            ok, data = False, dump_error(error, sender.writer.dumps)
        if len(data) > MESSAGE_BYTES_MAX:
            large = UsageError(f"an answer of {len(data)} bytes is over {FRAME_BYTES_MAX}")
            ok, data = False, dump_error(large, sender.writer.dumps)
        sender.add(number, ok, data)

    def flush(self) -> None:
        """Send what is due: answers, and how many messages were taken."""
        if self._inside.forked:  # the turn in which the actor forked is over in its child too
            _end_fork(None)
        now_s = monotonic()
        self._flush_due_s = now_s + FLUSH_S
        if self._lanes and now_s >= self._look_s:
            self._look_after_lanes(now_s)
        due, self._due = self._due, {}
        for sender_id, sender in due.items():
            while self._send(sender_id, sender):
                pass

    def _forget(self, sender_id: bytes) -> None:
        sender = self._senders.pop(sender_id, None)
        if sender is not None:
            wire.forget(sender.owner)
            if sender.lane.in_use:  # what it sent before may still be on its way to here
                self._left[sender_id], self._heard_s = sender.lane, monotonic()

    def farewell(self) -> None:
        """Send the last answers and wait, not for ever, until they are read: a link that ends drops what is unread."""
        patience = Patience(FAREWELL_S, FAREWELL_MAX_S, monotonic())
        reading: set[bytes] = set()
        while True:
            self._take_late()  # the last turn, or `on_stop`, may have ended what others wait for
            self.flush()
            for sender_id in self._senders.keys() - reading - self._due.keys():
                last = _encode((self._senders[sender_id].taken, [(LAST, True, b"")]))
                sent = self._mailbox.try_send_client(sender_id, last)
                if sent:
                    reading.add(sender_id)
                elif sent is None:
                    self._forget(sender_id)
            left = len(self._senders) + len(self._senders.keys() - reading)  # of two steps: told of the end; has read
            if patience.is_over(left, monotonic()):
                return
            for kind, sender_id, frame in self._mailbox.wait(AGAIN_S):
                with contextlib.suppress(msgspec.DecodeError):
                    if kind == Kinds.CLIENT and any(message[0] == READ for message in _decode(frame)):
                        self._senders.pop(sender_id, None)

    def _send(self, sender_id: bytes, sender: _Sender) -> bool:
        """Send the first of what a sender has coming, in order; return whether it can be sent more."""
        count, frame, beside = sender.next_frame()
        sent = self._mailbox.try_send_client(sender_id, frame, beside)
        if sent:
            sender.sent(count)
            return bool(sender.answers) or frame[:1] == _BULK
        if sent is None:
            self._forget(sender_id)  # gone, and with it all that it had coming
        else:
            self._due[sender_id] = sender  # it does not read now: again with the next flush
        return False


def _end_fork(error: BaseException | None) -> NoReturn:
    """End a fork of the actor's process as an interpreter that lets this exception out would; it never was an actor."""
    code = 0 if error is None else 1
    with contextlib.suppress(BaseException):
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            sys.stderr.write(exceptions.story(error))
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _said(message: Any) -> Any:
    """Return what `on_failure` is told of: of an answer, what was asked."""
    return message.asked if type(message) is _Answer else message


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    """Have nothing that a hook raises end the actor."""
    try:
        yield
    except BaseException as error:
        logger.error("%s raised\n%s", what, exceptions.story(error))
