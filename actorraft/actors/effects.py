"""What a replicated actor sends: kept in its state until somebody has taken it, and taken once whoever sends it.

Each replica takes each message, so none of them may send what comes of it. An effect is state: it lies in the outbox of
every replica, and whoever leads sends what lies there until the receiver has said that it took it; then an entry of
the log takes it out. A leader that dies in between leaves it to the next one, which sends it again; the receiver knows
it by its number, and answers as it did.

Numbers:    belong to a stream, (sending cluster, epoch). A cluster that begins with the state of another one begins an
            epoch, for that one may go on, and give the same numbers to other effects. What lay in the outbox keeps its
            number: whichever of the two sends it, it is taken once. Numbers begin anew, higher, with each term of the
            log: a cluster that was recovered from a minority has lost entries, and with them what numbers they gave.
Bounds:     an effect says the lowest number that its sender still holds for this receiver; what is below is settled,
            and the receiver forgets it. Streams beyond STREAMS_MAX are forgotten, the longest silent one first.
Threads:    `Outbox.boxes` changes in the thread that applies and is read in the courier's: under `lock`.
"""

from __future__ import annotations

import copy
import threading
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from actorraft.actors.pool import PoolRef
from actorraft.actors.wire import SCALARS
from actorraft.errors import ActorDead, CommandFailed, MailboxFull, UsageError
from actorraft.pickling import exceptions

if TYPE_CHECKING:
    from actorraft.actors.ref import ActorRef

WINDOW: Final = 1000  # effects on their way to one receiver
STREAMS_MAX: Final = 10_000
TERM_BITS: Final = 32  # a number has its term above these

Told = tuple[bool, Any]  # whether it went well; the answer, or what went wrong: see `told_error`
Key = tuple[str, int]  # stream, number

_OURS: Final = {each.__name__: each for each in (ActorDead, MailboxFull, UsageError)}
TAKEN: Final[Told] = (True, None)


class Effect(NamedTuple):
    """An effect on its way: a message to whoever gets it.

    Attributes:
        stream, number: by which it is told from others.
        low: of this stream, all below it to this receiver is settled.
        asks: whether an answer is wanted.
    """

    stream: str
    number: int
    low: int
    asks: bool
    sender: ActorRef[Any]
    message: Any


class Outgoing(NamedTuple):
    """An effect in the outbox; `then`: the method that is given the answer, None if none is wanted."""

    ref: ActorRef[Any]
    message: Any
    then: str | None


class Outbox:
    """What a replicated actor has sent and nobody has said to have taken: a part of its state."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cluster: int | None = None  # whose numbers are being given
        self.epoch = 0
        self.next_number = 0
        self.early: list[Outgoing] = []  # from before the first entry of the log
        self.boxes: dict[str, dict[Key, Outgoing]] = {}  # by receiver, in the order of sending

    def begin(self, cluster: int, term: int = 0) -> None:
        """Apply an entry of that cluster's log, of that term."""
        if cluster == self.cluster:
            if self.next_number < term << TERM_BITS:
                self.next_number = term << TERM_BITS
            return
        self.cluster, self.epoch, self.next_number = cluster, self.epoch + 1, max(0, term << TERM_BITS)
        early, self.early = self.early, []
        for one in early:
            self.add(*one)

    def add(self, ref: ActorRef[Any], message: Any, then: str | None) -> None:
        """Have a message sent; as it is now, whatever becomes of it later.

        Raises:
            MailboxFull: the receiver has not taken the last `mailbox_max` of them.
            UsageError: it cannot be sent.
        """
        if isinstance(ref, PoolRef):  # by what is equal on every replica
            ref = ref.worker_for(message) if callable(ref.route) else ref.workers[self.next_number % len(ref.workers)]
        one = Outgoing(own_copy(ref), own_copy(message), then)
        if self.cluster is None:
            self.early.append(one)
            return
        with self.lock:
            box = self.boxes.setdefault(ref.endpoint, {})
            if len(box) >= ref.mailbox_max:
                raise MailboxFull(f"{ref.name} has not taken the last {ref.mailbox_max} messages")
            box[f"{self.cluster:x}.{self.epoch}", self.next_number] = one
            self.next_number += 1

    def take_out(self, key: Key) -> Outgoing | None:
        """Somebody has taken it; None if that is known already."""
        for endpoint, box in self.boxes.items():
            if key in box:
                with self.lock:
                    one = box.pop(key)
                    if not box:
                        del self.boxes[endpoint]
                return one
        return None

    def __len__(self) -> int:
        return len(self.early) + sum(map(len, self.boxes.values()))

    def state(self) -> tuple[Any, ...]:
        """Return it for a snapshot."""
        return self.cluster, self.epoch, self.next_number, self.early, self.boxes

    def restore(self, state: tuple[Any, ...]) -> None:
        """Take up what `state` gave."""
        with self.lock:
            self.cluster, self.epoch, self.next_number, self.early, self.boxes = state


class Inbox:
    """What somebody has taken of effects: of a replicated actor in its state, of another one in its memory."""

    def __init__(self) -> None:
        self.streams: dict[str, tuple[int, dict[int, Any]]] = {}  # low, and by number what was told of those above

    def admit(self, effect: Effect) -> Any:
        """Return what was told of an effect that was taken already; None: it is to be taken now."""
        low, taken = self.streams.pop(effect.stream, (0, {}))
        low = max(low, effect.low)
        while taken and (first := next(iter(taken))) < low:
            del taken[first]
        self.streams[effect.stream] = low, taken
        if len(self.streams) > STREAMS_MAX:
            del self.streams[next(iter(self.streams))]
        return TAKEN if effect.number < low else taken.get(effect.number)

    def keep(self, effect: Effect, told: Any) -> None:
        """Remember what is told of an effect, until its sender has settled it."""
        stream = self.streams.get(effect.stream)
        if stream is not None and effect.number >= stream[0]:
            stream[1][effect.number] = told


class Deliveries:
    """What a leader has sent of an outbox, and what is to be settled: the courier without its threads."""

    def __init__(self) -> None:
        self._sent: set[Key] = set()
        self._told: list[tuple[Key, Told]] = []
        self._asked: set[Key] = set()  # of what was sent: somebody waits for the answer
        self._urgent = False
        self._settling: list[tuple[Key, Told]] = []

    def begin(self) -> None:
        """Begin to lead: nothing is known of what others have sent."""
        self._sent, self._asked = set(), set()

    def to_send(self, outbox: Outbox, sender: ActorRef[Any]) -> list[tuple[ActorRef[Any], Effect]]:
        """Return what is to be sent now, in order for each receiver."""
        found: list[tuple[ActorRef[Any], Effect]] = []
        with outbox.lock:
            for box in outbox.boxes.values():
                lows: dict[str, int] = {}
                for (stream, number), one in islice(box.items(), WINDOW):
                    low = lows.setdefault(stream, number)
                    if (stream, number) not in self._sent:
                        self._sent.add((stream, number))
                        if one.then is not None:
                            self._asked.add((stream, number))
                        effect = Effect(stream, number, low, one.then is not None, sender, one.message)
                        found.append((one.ref, effect))
        return found

    def told(self, key: Key, told: Told) -> None:
        """A receiver has taken it, or nobody ever will."""
        self._told.append((key, told))
        if key in self._asked or not told[0]:
            self._asked.discard(key)
            self._urgent = True

    def send_again(self, key: Key) -> None:
        """Nobody knows whether it was taken."""
        self._sent.discard(key)

    def to_settle(self, *, all_of_it: bool) -> list[tuple[Key, Told]]:
        """Return what an entry of the log is to settle; empty while one is on its way.

        That a tell was taken may wait, unless `all_of_it` is asked for: an entry costs the same for many.
        """
        if self._settling or not (all_of_it or self._urgent or len(self._told) >= WINDOW // 2):
            return []
        self._urgent = False
        self._settling, self._told = self._told, []
        return self._settling

    def settled(self, done: bool) -> None:
        """That entry was applied; or nobody knows, and it is to be sent again."""
        settling, self._settling = self._settling, []
        if done:
            self._sent.difference_update(key for key, _ in settling)
        else:
            self._told = settling + self._told
            self._urgent = True

    @property
    def owes(self) -> bool:
        """Whether there is something to settle, and nothing on its way that does."""
        return bool(self._told) and not self._settling

    def spoil(self, told: Told) -> None:
        """An answer cannot be sent on: whoever asked hears that instead."""
        self._told = [(key, told if value is not None else (well, value)) for key, (well, value) in self._told]


def own_copy(value: Any) -> Any:
    """Return a value that nobody else changes.

    Raises:
        UsageError: it cannot be copied, and so cannot be sent either.
    """
    kind = type(value)
    if kind in SCALARS or (kind is tuple and SCALARS.issuperset(map(type, value))):
        return value
    try:
        return copy.deepcopy(value)
    except (MemoryError, ImportError):
        raise
    except BaseException as error:
        raise UsageError(f"{kind.__name__} cannot be sent: {exceptions.summary(error)}") from error


def told_value(value: Any) -> Told:
    """Return what is told of an effect that was answered."""
    try:
        return True, own_copy(value)
    except UsageError as error:
        return told_error(error)


def told_error(error: BaseException) -> Told:
    """Return what is told of an effect that failed: the same on every replica."""
    parts = None
    if isinstance(error, Exception) and exceptions.goes_as_itself(type(error)) and exceptions.can_be_shown(error):
        try:
            parts = own_copy(exceptions.take_apart(error))
        except UsageError:
            parts = None
    return False, (exceptions.type_name(error), exceptions.message(error), parts)


def error_told(told: Any) -> BaseException:
    """The other way round."""
    type_name, message, parts = told
    if type_name in _OURS:
        return _OURS[type_name](message)
    if parts is not None:
        try:
            rebuilt = exceptions.put_together(parts)
            assert isinstance(rebuilt, BaseException)
        except (MemoryError, ImportError):
            raise
        except BaseException:
            return CommandFailed(type_name, message, "")
        return rebuilt
    return CommandFailed(type_name, message, "")
