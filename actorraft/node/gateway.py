"""The way from other machines to the public actors of this one: a door for administrators, and a link to each actor.

A sender says on each of its connections whom they are for (OPEN); from then on frames go on as they came, both ways.
Nothing is read or unpickled here. The sender is told (TOLD) how the actor stands: whether it is reached, how it ended.

Invariant:  once an actor's link is lost, nothing of the same connection goes on before the next OPEN, which comes
            behind all that the sender has sent for the life that is gone; and the sender is told of the loss behind all
            that this life has answered.
Bounds:     what waits for an actor is what its sender may have with it, and a connection that goes beyond is cut; where
            answers are not taken the actor's link is not read, and they stay with the actor.
Threads:    one of its own, with its own sockets; `set_keys` and `close` from any.
Source:     docs/decisions/0045; actorraft/actors/reach.py is the other end.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from actorraft.actors import public
from actorraft.actors.records import Record, Standing, read_record, record_file
from actorraft.actors.wire import FRAME_BYTES_MAX, OPEN, TOLD, Opening
from actorraft.errors import UsageError
from actorraft.loggers import guarded_logger
from actorraft.ports import Kinds, Sent
from actorraft.roles import ADMIN
from actorraft.steady import monotonic

if TYPE_CHECKING:
    from transports.keys import Keys
    from transports.sockets import LinkTimes

logger = guarded_logger("actorraft")

OPENING_BYTES_MAX: Final = 4096
LOOK_S: Final = 0.02  # how often actors that are not reached now are looked after
AGAIN_S: Final = 0.005  # when to try again with who does not read
SWEEP_S: Final = 1.0  # how often connections that are gone, or may not be here any more, are looked for
HELD_BYTES: Final = 64 << 20  # of answers for one connection, beyond which its actor is not read
ROOM_BYTES: Final = 64 << 20  # for what is around messages, above what a sender may have with an actor

_encode = msgspec.msgpack.Encoder().encode
_messages = msgspec.msgpack.Decoder(list[tuple[int, int, bytes]]).decode
_opening = msgspec.msgpack.Decoder(Opening).decode


class _Queue:
    """Frames that have not left yet."""

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()
        self.bytes = 0

    def add(self, frame: bytes) -> None:
        self.frames.append(frame)
        self.bytes += len(frame)

    def pop(self) -> None:
        self.bytes -= len(self.frames.popleft())

    def clear(self) -> None:
        self.frames.clear()
        self.bytes = 0


class _Way:
    """From one connection to one actor, and back.

    Attributes:
        dialled: there is a link, or there will be; not after a loss, before the next OPEN.
        up: what is sent on goes to the life of the actor that the sender means.
    """

    def __init__(self, client: bytes, opening: Opening) -> None:
        self.client = client
        self.opening = opening
        self.told = Standing()
        self.dialled = True
        self.up = False
        self.ahead = _Queue()
        self.back = _Queue()

    @property
    def bytes_max(self) -> int:
        return self.told.mailbox_bytes_max + ROOM_BYTES


class Gateway:
    """Passes frames between senders of other machines and actors of this one.

    Args:
        endpoint: where senders come in.
        keys: this node's own, and its clients' as far as they are known.
        times: heartbeats and reconnects, as this cluster has them.

    Raises:
        UsageError: it cannot be bound.
    """

    def __init__(self, endpoint: str, keys: Keys, times: LinkTimes) -> None:
        from transports.relay import ZeroMQRelay

        self._relay = ZeroMQRelay(endpoint, keys, frame_bytes_max=FRAME_BYTES_MAX, times=times)
        self._ways: dict[bytes, _Way] = {}  # by connection
        self._away: dict[_Way, None] = {}  # of these, whose actor is not reached now
        self._due: dict[_Way, None] = {}  # of these, where something waits to be passed on
        self._keys: deque[tuple[Mapping[int, tuple[str, ...]], Mapping[str, Any]]] = deque()
        self._looked_s = self._swept_s = monotonic()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="actorraft-gateway", daemon=True)

    def start(self) -> None:
        """Let senders in, by the keys that were last said."""
        logger.info("administrators reach public actors of this machine at %s", self._relay.endpoints[1])
        self._thread.start()

    def set_keys(self, members: Mapping[int, tuple[str, ...]], clients: Mapping[str, Any]) -> None:
        """Say who may come from now on; who may not any more is heard no more."""
        self._keys.append((members, clients))
        self._relay.wake()

    def close(self) -> None:
        """End the thread and close the sockets."""
        self._closed = True
        self._relay.wake()
        self._thread.join(timeout=5.0)

    # --- The gateway's own thread ---

    def _run(self) -> None:
        try:
            while not self._closed:
                self._round()
        except Exception:
            logger.exception("the gateway to actors met an error of ours, and ends; the node goes on")
        self._relay.close()

    def _round(self) -> None:
        while self._keys:
            self._relay.set_keys(*self._keys.popleft())
            self._sweep()
        for kind, client, frame in self._relay.wait(self._wait_s()):
            assert isinstance(frame, bytes), "no frame is lent here"
            if kind == Kinds.CLIENT:
                self._on_client(client, frame)
                continue
            way = self._ways.get(client)
            if way is None:
                continue
            if kind == Kinds.FRAME:
                way.back.add(frame)
                self._due[way] = None
            elif kind == Kinds.CONNECTED and way.dialled:
                way.up = True
                self._away.pop(way, None)
                record = read_record(record_file(way.opening.endpoint), way.opening.endpoint)
                standing = way.told if record is None else _standing_of(record)  # with the exits meanwhile
                self._tell(way, standing._replace(up=True, alive=True))
            elif kind == Kinds.DISCONNECTED:
                self._on_lost(way)
        now_s = monotonic()
        if self._away and now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            for way in list(self._away):
                self._look_at(way)
        for way in list(self._due):
            self._flush(way)
        if now_s - self._swept_s >= SWEEP_S:
            self._sweep()

    def _wait_s(self) -> float:
        return AGAIN_S if self._due else LOOK_S if self._away else SWEEP_S

    # --- From senders ---

    def _on_client(self, client: bytes, frame: bytes) -> None:
        way = self._ways.get(client)
        if way is not None and way.up:
            way.ahead.add(frame)
            self._due[way] = None
            if way.ahead.bytes > way.bytes_max:
                self._relay.drop("a sender that has more with an actor than it may", way.opening.name)
                self._on_lost(way)
            return
        opening = _read_opening(frame)
        if opening is None:
            self._relay.counts["frames for an actor that is not reached now"] += 1
        else:
            self._on_opening(client, way, opening)

    def _on_opening(self, client: bytes, way: _Way | None, opening: Opening) -> None:
        role = self._relay.role(client)
        if role != ADMIN:
            self._say(client, Standing(refused=f"a key of the role {role} may not: messages to actors are programs"))
            return
        if way is not None and way.opening == opening:  # it was public as this way began
            record = read_record(record_file(opening.endpoint), opening.endpoint)
        else:
            try:
                record = public.find(opening.name)
            except (OSError, ValueError) as error:  # the directory of names cannot be used, or that is no name
                self._say(client, Standing(refused=str(error)))
                return
        if record is None or opening.endpoint not in ("", record.endpoint):
            self._say(client, Standing())
        elif record.replicas:
            self._say(client, Standing(refused=f"{opening.name} is replicated: it is reached where it was spawned"))
        elif not opening.endpoint:
            self._say(client, _standing_of(record))
        else:
            for other in list(self._ways.values()):
                if (other.client == client) != (other.opening == opening):  # what this sender's connection was before
                    self._end(other)
            way = self._ways.setdefault(client, _Way(client, opening))
            way.dialled = True
            self._away[way] = None
            self._dial()
            self._tell(way, _standing_of(record))

    # --- Actors ---

    def _dial(self) -> None:
        """Have a link for each way that is to have one, and no other."""
        from transports.endpoints import check_connect

        while True:
            wanted: dict[Any, str] = {}
            for way in self._ways.values():
                if way.dialled:
                    try:
                        wanted[way.client] = check_connect(way.opening.endpoint)
                    except UsageError:  # its directory is gone: so is the actor, and whoever looks at it sees that
                        self._set_away(way)
            with contextlib.suppress(UsageError):  # one more has gone meanwhile
                self._relay.set_endpoints(wanted)
                return

    def _on_lost(self, way: _Way) -> None:
        self._set_away(way)
        self._dial()
        self._tell(way, way.told._replace(up=False, alive=False))

    def _set_away(self, way: _Way) -> None:
        way.dialled = way.up = False
        way.ahead.clear()
        self._away[way] = None

    def _look_at(self, way: _Way) -> None:
        """Tell what is known of an actor that is not reached, if it is news."""
        endpoint = way.opening.endpoint
        record = read_record(record_file(endpoint), endpoint)
        if record is None or record.dead:
            record = read_record(record_file(endpoint), endpoint)  # its parent may have started it again meanwhile
        standing = Standing() if record is None else _standing_of(record)
        if standing != way.told:
            self._tell(way, standing)
        elif (not standing.endpoint or standing.dead) and not way.back.frames:  # and the sender knows
            self._end(way)

    # --- To senders ---

    def _tell(self, way: _Way, standing: Standing) -> None:
        """Say how the actor stands, behind all that it has answered."""
        way.told = standing
        way.back.add(_told(standing))
        self._due[way] = None

    def _say(self, client: bytes, standing: Standing) -> None:
        self._relay.send_client(client, _told(standing))

    def _flush(self, way: _Way) -> None:
        relay, client = self._relay, way.client
        while way.up and way.ahead.frames and relay.send(client, way.ahead.frames[0]):
            way.ahead.pop()
        while way.back.frames:
            sent = relay.send_client(client, way.back.frames[0])
            if sent is Sent.FULL:
                break
            way.back.pop()
            if sent is Sent.GONE:
                self._end(way)
                return
        if not way.ahead.frames and not way.back.frames:
            self._due.pop(way, None)
        if way.back.bytes > HELD_BYTES:
            relay.hold(client)
        elif way.back.bytes <= HELD_BYTES // 2:
            relay.release(client)

    def _sweep(self) -> None:
        self._swept_s = monotonic()
        for way in list(self._ways.values()):
            if self._relay.role(way.client) != ADMIN:
                self._say(way.client, Standing(refused="the key it was reached by is no administrator's any more"))
                self._end(way)
            elif self._relay.is_gone(way.client):
                self._end(way)

    def _end(self, way: _Way) -> None:
        if self._ways.pop(way.client, None) is not None:
            self._away.pop(way, None)
            self._due.pop(way, None)
            self._dial()


def _read_opening(frame: bytes) -> Opening | None:
    if len(frame) > OPENING_BYTES_MAX:
        return None
    try:
        [(kind, _, data)] = _messages(frame)
        return _opening(data) if kind == OPEN else None
    except (msgspec.DecodeError, ValueError):
        return None


def _standing_of(record: Record) -> Standing:
    return Standing(
        record.endpoint,
        record.mailbox_max,
        record.mailbox_bytes_max,
        dead=record.dead,
        alive=record.alive,
        due=record.due,
        exits=record.exits,
        last_exit=record.last_exit,
    )


def _told(standing: Standing) -> bytes:
    return _encode((0, [(TOLD, True, _encode(standing))]))
