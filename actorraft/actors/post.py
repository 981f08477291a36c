"""The sending side of actors: one thread for each process, a DEALER to each actor, and the answers that come back.

`tell` and `ask` make bytes in the caller's thread, take a number and return; the thread packs what waits for one actor
into one frame, and resolves the futures of a whole frame of answers at once. An actor says how many messages it has
taken; what it has not taken is the sender's debt, which is bounded exactly.

Invariant:  a message leaves at most once, in order per thread that sends. What was sent to an actor that died then is
            lost: its asks end with ActorDead, and all of it is among the dead letters (letters.py). What was not sent
            yet waits for the actor's restart, for a while.
Threads:    `send` and `watch` from any; all else in the post's own thread.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from actorraft.actors.letters import ring
from actorraft.actors.records import Address, Exit, Record, Standing, read_record, record_file
from actorraft.actors.shared import LOOK_S as LANES_LOOK_S
from actorraft.actors.shared import SHARED_BYTES, Lane
from actorraft.actors.wire import (
    BATCH_MAX,
    BULK,
    DEFINE,
    DEFINITION,
    FRAME_BYTES_MAX,
    HELLO,
    LAST,
    MESSAGE_BYTES_MAX,
    READ,
    SCALAR_PROTOCOL,
    SHARED,
    SHARING,
    STOP,
    Bulk,
    Writer,
    define,
    forget,
    load_error,
    loads,
    new_owner,
    read_bulk,
)
from actorraft.errors import ActorDead, ActorRaftError, MailboxFull, OutcomeUnknown, UsageError
from actorraft.futures import ResultFuture, resolve_many
from actorraft.loggers import guarded_logger
from actorraft.pickling import exceptions
from actorraft.ports import Kinds
from actorraft.steady import monotonic

if TYPE_CHECKING:
    from transports.zeromq import ZeroMQClientChannel

logger = guarded_logger("actorraft")

BATCH_BYTES_MAX: Final = 256 << 10
LINK_BYTES_MAX: Final = FRAME_BYTES_MAX + (64 << 10)  # of a frame from an actor, with what is around it
UNREACHABLE_S: Final = 10.0  # an actor that nobody reaches for so long is dead: longer than a restart takes
EXIT_KNOWN_S: Final = 2.0  # so long after a link broke, its actor's exit may still become known
LOOK_S: Final = 0.02  # how often to look after actors that cannot be reached, or were seen to go

_decode = msgspec.msgpack.Decoder(tuple[int, list[tuple[int, bool, bytes]]]).decode
_BULK: Final = bytes([BULK])
_loads = pickle.loads
_encode = msgspec.msgpack.Encoder().encode

Message = tuple[int, int, bytes | Bulk]  # kind, number, pickle
Watcher = Callable[[Exit], Any]


given: dict[str, Writer] = {}  # by endpoint, of actors that this process has spawned and sent nothing yet


class Box:
    """What waits for one actor, and what is known of it.

    Callers append to `waiting` and count what they accept, under the post's lock; the post's thread takes from it and
    counts what is off its hands, without.
    """

    local = True  # whether nothing stands between

    def __init__(self, address: Address, define: Callable[[Box, bytes], None]) -> None:
        made: Writer | None = given.pop(address.endpoint, None)
        self.writer = made if made is not None else Writer(lambda _: None)
        self.writer.on_definition = lambda data: define(self, data)
        self.definitions: list[bytes] = []  # that it was sent: a fresh process at the other end needs them again
        self.owner = new_owner()  # of what its answers define here
        self.name, self.endpoint, self.mailbox_max, self.mailbox_bytes_max = address
        self.numbers = 0  # given to messages so far
        self.bytes = 0  # of these messages
        self.waiting: deque[Message] = deque()
        self.numbers_max, self.bytes_max = self.mailbox_max, self.mailbox_bytes_max  # until more is off our hands
        self.sent = 0  # have left
        self.taken = 0  # of these, off this process's hands: the actor has taken them, or they are lost
        self.untaken: deque[Message] = deque()  # have left, and are not taken: sent - taken of them
        self.taken_before = 0  # of these, by what was there before the link that is there now
        self.asks: dict[int, ResultFuture[Any]] = {}
        self.linked = False  # whether the channel knows of it
        self.connected = False
        self.lost_at_s = monotonic()  # since when there is no link, where there is none
        self.dead: str | None = None  # why nothing will ever be taken
        self.watchers: list[Watcher] = []
        self.exits_told = -1  # how many exits the watchers know of; -1: nobody asked yet
        self.look_until_s = 0.0  # an exit was seen, and what is known of it is about to be written
        self.words: deque[bytes] = deque()  # of the lane, to be sent
        self.lane = Lane(self.words.append, self.local)

    @property
    def debt(self) -> int:
        """Messages that the actor has not taken."""
        return self.numbers - self.numbers_max + self.mailbox_max

    @property
    def debt_bytes(self) -> int:
        """Bytes of them."""
        return self.bytes - self.bytes_max + self.mailbox_bytes_max

    def settle(self, count: int, size: int) -> None:
        """Say that so many more, and so many bytes, will wait for the actor no longer; the post's thread alone."""
        self.numbers_max += count
        self.bytes_max += size

    def record(self) -> Record | Standing | None:
        """Read what its owner says of it."""
        return read_record(record_file(self.endpoint), self.endpoint)


class Post:
    """The sending side of this process; made at the first use, closed at its exit.

    Args:
        who: the address of the actor that this process is; None if it is none.
    """

    def __init__(self, who: tuple[Any, ...] | None = None) -> None:
        self.pid = os.getpid()
        self._who = who
        self._channel = self._open_channel()
        self._boxes: dict[str, Box] = {}
        # Of `_boxes`, and of what callers accept. A signal handler may send while its thread holds it, and wait for the
        # answer there; so what it takes to send and to be answered needs no lock: see Box.
        self._lock = threading.RLock()
        self._touched: dict[Box, None] = {}  # boxes with something new
        self._deadlines: list[tuple[float, int, int, Box]] = []  # at, number of the message, unique, box
        self._new_deadlines: deque[tuple[float, int, int, Box]] = deque()
        self._unquiet: set[str] = set()  # endpoints of boxes to look after
        self._lanes: set[Box] = set()  # boxes that share memory with their actors
        self._look_s = 0.0  # when to look after these
        self._wake = self._channel.wake
        self.closed = False
        self._thread = threading.Thread(target=self._run, name="actorraft-post", daemon=True)
        self._thread.start()

    def _open_channel(self) -> ZeroMQClientChannel:
        from transports.zeromq import ZeroMQClientChannel

        return ZeroMQClientChannel(gathers=True, message_bytes_max=LINK_BYTES_MAX)

    # --- From any thread ---

    def _make_box(self, address: Address) -> Box:
        return Box(address, self._define)

    def box(self, address: Address) -> Box:
        """Return the box of an actor, and open a link to it if there is none."""
        endpoint = address.endpoint
        box = self._boxes.get(endpoint)
        if box is not None:
            return box
        fresh = self._make_box(address)
        record = fresh.record()
        if record is None or record.dead:
            fresh.dead = "is gone"
            return fresh
        with self._lock:
            box = self._boxes.setdefault(endpoint, fresh)
            self._touched[box] = None
        self._wake()
        return box

    def send(
        self, box: Box, kind: int, data: bytes | Bulk, timeout_s: float | None, future: ResultFuture[Any] | None
    ) -> None:
        """Accept a message for an actor.

        Raises:
            MailboxFull: the actor has not taken what was sent before.
            ActorDead: nobody will take it; for an ask, the future says so instead.
        """
        if self.closed:
            raise UsageError("this process is ending: its actors can no longer be reached")
        size = len(data)
        if size > MESSAGE_BYTES_MAX:
            raise UsageError(f"a message of {size} bytes is over the limit of {FRAME_BYTES_MAX}")
        if type(data) is Bulk:  # as it is now, whatever becomes of it later
            data.own(self._channel.part, box.lane)
        with self._lock:
            dead = box.dead
            if dead is None:
                if box.numbers >= box.numbers_max and kind != STOP:
                    _give_up(data)
                    raise MailboxFull(f"{box.name} has not taken the last {box.mailbox_max} messages")
                if box.bytes + size > box.bytes_max and kind != STOP:
                    _give_up(data)
                    if size > box.mailbox_bytes_max:
                        raise UsageError(f"a message of {size} bytes is over {box.name}'s {box.mailbox_bytes_max}")
                    raise MailboxFull(f"{box.name} has not taken the last {box.debt_bytes} bytes of messages")
                box.bytes += size
                number = box.numbers
                box.numbers += 1
                if future is not None:
                    box.asks[number] = future
                    if timeout_s is not None:
                        self._new_deadlines.append((monotonic() + timeout_s, number, id(box), box))
                box.waiting.append((kind, number, data))
                self._touched[box] = None
        if dead is None:
            self._wake()
            return
        ring.add(box.name, [(kind, 0, data)], dead)
        if future is None:
            raise ActorDead(f"{box.name} {dead}")
        future.set_exception(ActorDead(f"{box.name} {dead}"))

    def _define(self, box: Box, data: bytes) -> None:
        """Send a definition ahead of the message that needs it."""
        with self._lock:
            if box.dead is None:
                box.definitions.append(data)
                box.waiting.append((DEFINE, box.numbers, data))
                box.numbers += 1
                box.bytes += len(data)
                self._touched[box] = None

    def watch(self, box: Box, watcher: Watcher) -> None:
        """Tell of the actor's exits from now on; at once, if it is gone."""
        with self._lock:
            record = box.record()
            if record is not None and not record.dead and box.dead is None:
                if box.exits_told < 0:
                    box.exits_told = record.exits
                box.watchers.append(watcher)
                return
        watcher(record.last_exit if record is not None and record.last_exit is not None else unknown_exit(box))

    def owes(self) -> int:
        """Return how much others still have to take, if they can: messages, and the links that these wait for."""
        own = self._who[1] if self._who is not None else None  # who ends takes nothing from itself any more
        owed = 0
        for box in list(self._boxes.values()):
            if box.dead is None and box.debt > 0 and box.endpoint != own:
                record = box.record()
                if record is not None and not record.dead:
                    owed += box.debt + (not box.connected)
        return owed

    def close(self) -> None:
        """End the thread and close the sockets; asks that are open end with ActorDead. Idempotent."""
        if self.pid != os.getpid() or self.closed:
            return
        self.closed = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5.0)

    # --- The post's own thread ---

    def _run(self) -> None:
        try:
            while not self.closed:
                self._round()
        except Exception:
            logger.exception("the thread that sends to actors met an error of ours, and ends")
        self.closed = True
        for box in list(self._boxes.values()):
            self._forget(box, "can no longer be reached: this process is ending")
        self._channel.close()

    def _round(self) -> None:
        for kind, endpoint, frame in self._channel.wait(self._wait_s()):
            box = self._boxes.get(endpoint)
            if box is None:
                continue
            if kind == Kinds.FRAME:
                self._on_frame(box, frame)
            elif kind == Kinds.CONNECTED:
                self._on_link(box)
            elif kind == Kinds.DISCONNECTED:
                self._on_broken_link(box)
        if self._lanes and monotonic() >= self._look_s:
            self._look_after_lanes()
        if self._touched:
            self._flush_touched()
        if self._deadlines and self._deadlines[0][0] <= monotonic():
            self._end_overdue()
        if self._unquiet:
            for endpoint in list(self._unquiet):
                box = self._boxes.get(endpoint)
                if box is not None:  # else it went with the one before it: one directory held both
                    self._look_after(box)

    def _wait_s(self) -> float:
        if self._touched:
            return 0.0
        deadlines, fresh = self._deadlines, self._new_deadlines
        while fresh:
            heapq.heappush(deadlines, fresh.popleft())
        wait_s = LOOK_S if self._unquiet else 1.0
        if deadlines:
            left_s = deadlines[0][0] - monotonic()
            if left_s < wait_s:
                return left_s if left_s > 0.0 else 0.0
        return wait_s

    def _flush_touched(self) -> None:
        touched = self._touched
        for box in list(touched):  # in one step
            del touched[box]  # before it is looked at: what is accepted from now on touches it again
            if box.dead is None and not box.linked:
                self._link()
            if box.dead is None:
                self._flush(box)

    def _link(self) -> None:
        """Have a link to each actor that there is a box for, and to no other."""
        from transports.endpoints import check_connect

        boxes = list(self._boxes.values())  # in one step
        while True:
            for box in boxes:
                try:
                    check_connect(box.endpoint)
                except UsageError:  # its directory is gone, and so is the actor
                    self._end(box, "is gone")
            boxes = [box for box in boxes if box.dead is None]
            with contextlib.suppress(UsageError):  # one more has gone meanwhile
                self._channel.set_endpoints({box.endpoint: box.endpoint for box in boxes})
                break
        for box in boxes:
            box.linked = True
            if not box.connected:
                self._unquiet.add(box.endpoint)

    def _flush(self, box: Box) -> None:
        """Send what waits, as much in a frame as is sensible."""
        while box.words and box.connected:
            if not self._channel.send(box.endpoint, _encode([(SHARED, 0, box.words[0])])):
                self._unquiet.add(box.endpoint)
                return
            box.words.popleft()
        waiting = box.waiting
        popleft = waiting.popleft
        while waiting and box.connected:
            batch: list[Message] = []
            size = 0
            for _ in range(min(len(waiting), BATCH_MAX)):
                message = popleft()
                data = message[2]
                if type(data) is Bulk:  # goes alone
                    if batch:
                        waiting.appendleft(message)
                        break
                    size = BATCH_BYTES_MAX
                batch.append(message)
                size += len(data)
                if size >= BATCH_BYTES_MAX:
                    break
            box.sent += len(batch)
            box.untaken.extend(batch)
            kind, number, data = batch[0]
            if type(data) is Bulk:
                if data.place is None and len(data) >= SHARED_BYTES:
                    self._share(box)
                elif data.place is not None and not box.lane.carries(data.place):
                    data.leave_place(self._channel.part)
                left = self._channel.send(box.endpoint, data.head(kind, number), data.buffers)
            else:
                left = self._channel.send(box.endpoint, _encode(batch))
            if not left:
                waiting.extendleft(reversed(batch))
                box.sent -= len(batch)
                for _ in batch:
                    box.untaken.pop()
                self._unquiet.add(box.endpoint)  # its queue is full: look again soon
                return

    def _share(self, box: Box) -> None:
        """Share memory with an actor from the next large message on."""
        box.lane.offer()
        if box.words:
            self._lanes.add(box)
            self._touched[box] = None

    def _look_after_lanes(self) -> None:
        self._look_s = monotonic() + LANES_LOOK_S
        for box in list(self._lanes):
            box.lane.look()
            if box.words:
                self._touched[box] = None
            if not box.lane.in_use:
                self._lanes.discard(box)

    def _on_frame(self, box: Box, frame: bytes | memoryview) -> None:
        answers: list[tuple[int, bool, Any]]
        try:
            if frame[:1] == _BULK:
                ok, number, bulk = read_bulk(frame, box.lane)
                taken, answers = 0, [(number, bool(ok), bulk)]
            else:
                taken, answers = _decode(frame)
        except msgspec.DecodeError:
            self._channel.drop(f"an answer from {box.name} that does not decode")
            return
        newly = min(box.sent, box.taken_before + taken) - box.taken
        if newly > 0:
            popleft, size = box.untaken.popleft, 0
            for _ in range(newly):
                size += len(popleft()[2])
            box.taken += newly
            box.settle(newly, size)
        results: list[tuple[ResultFuture[Any], Any]] = []
        failures: list[tuple[ResultFuture[Any], BaseException]] = []
        asks = box.asks
        for number, ok, data in answers:
            if number < 0:
                self._on_word(box, number, data)
                continue
            future = asks.pop(number, None)
            if future is None:
                if type(data) is Bulk:
                    data.let_go()
                continue
            try:
                if ok:
                    plain = type(data) is bytes and data[1] == SCALAR_PROTOCOL
                    results.append((future, _loads(data) if plain else loads(data)))
                else:
                    failures.append((future, load_error(data)))  # of an error nothing lies beside
            except BaseException as error:
                lost = ActorRaftError(f"the answer of {box.name} cannot be read here: {exceptions.summary(error)}")
                lost.__cause__ = error
                failures.append((future, lost))
        if box.words:
            self._touched[box] = None
        resolve_many(results, failures)

    def _on_word(self, box: Box, number: int, data: bytes) -> None:
        """Take what is no answer."""
        if number == LAST:
            self._channel.send(box.endpoint, _encode([(READ, 0, b"")]))  # what came before it is read
        elif number == DEFINITION:
            try:
                define(data, box.owner)
            except BaseException as error:
                logger.warning("what %s defined cannot be built here: %s", box.name, exceptions.summary(error))
        elif number == SHARING:
            box.lane.hear(data)
            self._lanes.add(box)

    def _on_link(self, box: Box) -> None:
        self._on_reached(box)

    def _on_broken_link(self, box: Box) -> None:
        self._on_lost(box)

    def _on_reached(self, box: Box) -> None:
        """The actor takes what is sent from now on."""
        box.connected, box.taken_before = True, box.sent
        box.lane.clear()  # of another life of it
        box.words.clear()
        if self._who is not None or box.definitions:
            hello = pickle.dumps((self._who, list(box.definitions)))
            self._channel.send(box.endpoint, _encode([(HELLO, 0, hello)]))
        self._touched[box] = None

    def _on_lost(self, box: Box, unknown: str = "") -> None:
        """What has left is lost; `unknown`: why nobody can say so, the actor may live and take it."""
        box.connected, box.lost_at_s = False, monotonic()
        box.lane.clear()
        box.words.clear()
        with self._lock:
            box.taken = box.sent
            lost, box.untaken = box.untaken, deque()
            box.settle(len(lost), sum(len(data) for _, _, data in lost))
            unsent = {number for _, number, _ in box.waiting}
            futures = [box.asks.pop(number) for number in list(box.asks) if number not in unsent]
        ring.add(box.name, lost, unknown or "died before it had taken this, or while it did")
        how = unknown or "died with this ask on its hands"
        ended = OutcomeUnknown if unknown else ActorDead
        resolve_many((), [(future, ended(f"{box.name} {how}: it may have been done or not")) for future in futures])
        box.look_until_s = monotonic() + EXIT_KNOWN_S
        self._unquiet.add(box.endpoint)

    def _end_overdue(self) -> None:
        now_s = monotonic()
        overdue: dict[Box, set[int]] = {}
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, number, _, box = heapq.heappop(self._deadlines)
            if number in box.asks:
                overdue.setdefault(box, set()).add(number)
        for box, numbers in overdue.items():
            with self._lock:
                unsent = {number for _, number, _ in box.waiting} & numbers
                kept = [message for message in box.waiting if message[1] not in unsent]
                if unsent:
                    never_sent = [len(message[2]) for message in box.waiting if message[1] in unsent]
                    box.settle(len(never_sent), sum(never_sent))
                    for _, number, data in box.waiting:
                        if number in unsent:
                            _give_up(data)
                    box.waiting.clear()
                    box.waiting.extend(kept)
                futures = [(number in unsent, box.asks.pop(number)) for number in numbers]
            never = f"{box.name} could not be reached in time; it was not asked"
            unknown = f"{box.name} has not answered in time; what it answers later is dropped"
            resolve_many(
                (), [(future, ActorDead(never) if early else OutcomeUnknown(unknown)) for early, future in futures]
            )

    def _look_after(self, box: Box) -> None:
        """See whether an actor that cannot be reached is gone for good, and tell the watchers of exits."""
        record = box.record()
        self._tell_watchers(box, record)
        now_s = monotonic()
        if box.connected:
            self._flush(box)
            if not box.waiting and not box.words and now_s >= box.look_until_s:
                self._unquiet.discard(box.endpoint)
        elif record is None or record.dead:
            again = box.record()  # between two looks its parent may have started it again
            if again is None or again.dead:
                self._bury(box, "is gone")
        elif now_s - box.lost_at_s > UNREACHABLE_S and record.due:
            self._bury(box, f"could not be reached for {UNREACHABLE_S:.0f} s")

    def _tell_watchers(self, box: Box, record: Record | Standing | None) -> None:
        if not box.watchers:
            return
        exits = record.exits if record is not None else box.exits_told + 1
        if exits <= box.exits_told:
            return
        box.exits_told = exits
        self._tell_exit(
            box, record.last_exit if record is not None and record.last_exit is not None else unknown_exit(box)
        )

    def _tell_exit(self, box: Box, told: Exit) -> None:
        for watcher in list(box.watchers):
            try:
                watcher(told)
            except BaseException:  # a guest: it may raise what it likes
                logger.exception("a watcher of %s raised", box.name)
        if not told.restarting:
            box.watchers.clear()

    def _bury(self, box: Box, why: str) -> None:
        """Nothing will be taken any more."""
        self._end(box, why)
        if not self.closed:
            self._link()

    def _end(self, box: Box, why: str) -> None:
        self._forget(box, why)
        if box.watchers:  # its owner ended before it could say how this one did
            self._tell_exit(box, unknown_exit(box))

    def _forget(self, box: Box, why: str) -> None:
        with self._lock:
            box.dead = why
            futures = list(box.asks.values())
            lost = [*box.untaken, *box.waiting]
            box.asks.clear()
            box.untaken.clear()
            box.waiting.clear()
            self._boxes.pop(box.endpoint, None)
        self._unquiet.discard(box.endpoint)
        self._lanes.discard(box)
        box.lane.clear()
        forget(box.owner)
        ring.add(box.name, lost, why)
        resolve_many((), [(future, ActorDead(f"{box.name} {why}")) for future in futures])


def _give_up(data: bytes | Bulk) -> None:
    """A message is not sent."""
    if type(data) is Bulk:
        data.give_up()


def unknown_exit(box: Box, reason: str = "nothing is known of how it ended") -> Exit:
    return Exit(box.name, None, None, reason, False)
