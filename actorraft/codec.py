"""The wire: Raft messages between nodes, and the frames between clients and nodes. Bytes in, values out.

Raft messages are the core's NamedTuples, encoded by msgspec as they are, behind one byte that names the type.
Client messages are msgspec structs, encoded as arrays with a number for a tag.

A client's commands travel in one `Commands` frame, and that frame, behind an 8-byte stamp of log time, *is* the log
entry: leader, followers and disks pass its body on unread, and only the executor looks inside (`decode_body`).

Source:     docs/trust.md: a fixed format, checked while it is decoded; nothing of pickle on the control path.
Invariant:  whatever does not decode raises MalformedFrame and nothing else.
Shape:      body: a msgpack array with one value for each command or request; values are made elsewhere (pickling.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from actorraft.raft.membership import AddLearner, AddVoter, MemberChange, RemoveNode
from actorraft.raft.messages import (
    MESSAGE_TYPES,
    AppendEntries,
    Configuration,
    LogEntry,
    Message,
)

if TYPE_CHECKING:
    Body: TypeAlias = bytes | memoryview
else:
    Body = memoryview  # as a decoder makes it: a view of what it was given, which it keeps; either is encoded

NODE_ID_MAX: Final = (1 << 31) - 1
CONFIGURATION_EXT: Final = 1  # an item of a log entry on the wire; user values never share this decoder
APART_EXT: Final = 2  # likewise, in the place of one that came beside its message


class MalformedFrame(ValueError):
    """Bytes that are no frame of this protocol."""


# --- Raft messages ---

_encoder = msgspec.msgpack.Encoder()
_configuration_decoder = msgspec.msgpack.Decoder(Configuration)


def _ext_hook(code: int, data: memoryview) -> Any:
    if code == CONFIGURATION_EXT:
        return _configuration_decoder.decode(data)
    raise MalformedFrame(f"unknown extension {code} in a Raft message")


_decoders = [msgspec.msgpack.Decoder(kind, ext_hook=_ext_hook) for kind in MESSAGE_TYPES]
_codes = {kind: bytes((code,)) for code, kind in enumerate(MESSAGE_TYPES)}


# Of an item that is a part of its own, instead of growing with an encoder's buffer. Each has a piece of the encoding
# behind it, and a link takes two parts for so many bytes.
APART_BYTES: Final = 128 << 10


def encode_message(message: Message) -> bytes:
    """Encode a Raft message; items of entries are bytes, None, a Configuration or plain data that msgpack holds."""
    parts = encode_parts(message)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def encode_parts(message: Message) -> Sequence[bytes]:
    """Encode the same into parts that are it when they are joined; every second one is a large item, not copied."""
    kind = type(message)
    if kind is AppendEntries:
        holds_configuration = False
        for _, item in message.entries:  # type: ignore[union-attr]  # see above
            if type(item) is bytes:
                if len(item) >= APART_BYTES:
                    return _apart(message)  # type: ignore[arg-type]
            elif type(item) is Configuration:
                holds_configuration = True
        if holds_configuration:
            message = _without_configurations(message)  # type: ignore[arg-type]
    return (_codes[kind] + _encoder.encode(message),)


def _without_configurations(message: AppendEntries) -> AppendEntries:
    return message._replace(entries=[LogEntry(term, _wire_item(item)) for term, item in message.entries])


def _apart(message: AppendEntries) -> list[bytes]:
    where = AppendEntries._fields.index("entries")
    piece = [_codes[AppendEntries], _array_head(len(message)), *map(_encoder.encode, message[:where])]
    piece.append(_array_head(len(message.entries)))
    parts: list[bytes] = []
    for term, item in message.entries:
        piece += (b"\x92", _encoder.encode(term))
        if type(item) is bytes and len(item) >= APART_BYTES:
            piece.append(_bytes_head(len(item)))
            parts += (b"".join(piece), item)
            piece = []
        else:
            piece.append(_encoder.encode(_wire_item(item)))
    piece += map(_encoder.encode, message[where + 1 :])
    return [*parts, b"".join(piece)]


def _wire_item(item: Any) -> Any:
    if type(item) is Configuration:
        return msgspec.msgpack.Ext(CONFIGURATION_EXT, _encoder.encode(item))
    return item


def decode_message(frame: Body, beside: Sequence[memoryview] = ()) -> Message:
    """Decode a Raft message. What is in it is a copy: it keeps nothing of where the frame lies.

    Args:
        beside: the parts of it behind the first, as `encode_parts` made them.

    Raises:
        MalformedFrame: these bytes are none.
    """
    try:
        if beside:
            return _together(frame, beside)
        return _decoders[frame[0]].decode(memoryview(frame)[1:])  # type: ignore[no-any-return]
    except (IndexError, ValueError, TypeError, RecursionError) as error:
        raise MalformedFrame(f"not a Raft message: {error}") from error


_APART_ITEM: Final = _encoder.encode(msgspec.msgpack.Ext(APART_EXT, b"\0"))
_parts_decoder = msgspec.msgpack.Decoder(AppendEntries)


def _together(first: Body, beside: Sequence[memoryview]) -> AppendEntries:
    """Decode what came in parts, copying each item once."""
    items, pieces = beside[::2], [first, *beside[1::2]]
    if first[:1] != _codes[AppendEntries] or len(pieces) != len(items) + 1:
        raise MalformedFrame(f"{len(beside)} parts beside a message that has none")
    encoded: list[Body] = []
    for piece, item in zip(pieces, items, strict=False):
        head = _bytes_head(len(item))
        if piece[-len(head) :] != head:
            raise MalformedFrame(f"a part of {len(item)} bytes is not the item that is announced")
        encoded += (piece[: -len(head)], _APART_ITEM)
    message = _parts_decoder.decode(memoryview(b"".join((*encoded, pieces[-1])))[1:])
    left = iter(items)
    entries = [LogEntry(term, _put_in(item, left)) for term, item in message.entries]
    if next(left, None) is not None:
        raise MalformedFrame("an item that came beside no entry")
    return message._replace(entries=entries)


def _put_in(item: Any, left: Iterator[memoryview]) -> Any:
    if type(item) is not msgspec.msgpack.Ext:
        return item
    if item.code != APART_EXT:
        return _ext_hook(item.code, memoryview(item.data))
    apart = next(left, None)
    if apart is None:
        raise MalformedFrame("an item that did not come")
    return bytes(apart)


# --- Nodes to each other, as a link begins ---


WIRE: Final = 1  # 1: nodes tell the leader what came of comparing samples (Compared)


class Greeting(msgspec.Struct, array_like=True, frozen=True):
    """What a node says of itself and of others in the introduction of each link."""

    addresses: list[
        tuple[int, int, str, str]
    ] = []  # (node id, number of its start, what peers dial, what clients dial)
    code: tuple[int, str] | None = None  # version and fingerprint of its machine's code
    wire: int = 0  # what it can say and hear; see WIRE
    on_probation: bool = False  # its disk was empty: it has forgotten what it may have acknowledged
    lives: list[tuple[int, str]] = []  # that its disk remembers: (number of the start, incarnation), this one last
    python: str = ""  # the minor version of its interpreter, as "3.12"


_greeting_decoder = msgspec.msgpack.Decoder(Greeting)


def decode_greeting(payload: bytes) -> Greeting:
    """Decode what a node said; one that says nothing, or nothing that can be read, has said nothing."""
    try:
        return _greeting_decoder.decode(payload) if payload else Greeting()
    except (ValueError, RecursionError):
        return Greeting()


# --- Clients to nodes ---


class Hello(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """A client is there: tell it who leads, now and at every change."""


class Register(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Open a session (D§6.3); goes through the log, and its entry's index becomes the client's id."""

    nonce: int


class Commands(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Commands of one session: sequences `first_sequence` to `first_sequence + count - 1`, in order."""

    client_id: int
    first_sequence: int
    lowest_unanswered: int  # results below it are in the client's hands; the nodes forget them
    count: int
    body: Body
    traces: list[str] = []  # of its first commands that somebody traces, W3C traceparents; means nothing to the state


class CloseSession(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """The client is done: its results need not be kept."""

    client_id: int


class Query(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """Reads, answered together; never logged. `request_id` is the client's own number."""

    request_id: int
    consistency: str  # "linearizable", "lease", "stale"
    follower: bool  # the receiver serves it, leader or not
    count: int
    body: Body
    min_index: int = -1  # the state that serves it has applied at least this entry
    wait_s: float = 0.0  # for how long its asker waits, from when it was sent; 0: not said
    parks: bool = False  # it is one read, of which the machine has said NOT_YET: it stays here until that has changed


class Admin(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """Anything rare: status, hand-over, snapshots, membership. `arguments` is plain data."""

    request_id: int
    verb: str
    arguments: dict[str, Any]


class Clock(msgspec.Struct, array_like=True, frozen=True, tag=7):
    """Made by a leader, never by a client: lets log time pass on an idle cluster."""


class Watch(msgspec.Struct, array_like=True, frozen=True, tag=8):
    """Send what the machine publishes to `topic`, from the entry at `from_index` on; None: from now on."""

    watch_id: int  # the client's own number
    topic: str
    from_index: int | None


class Unwatch(msgspec.Struct, array_like=True, frozen=True, tag=9):
    """Nobody reads this watch any more."""

    watch_id: int


class Check(msgspec.Struct, array_like=True, frozen=True, tag=10):
    """Made by a leader, never by a client: where all take a sample of their state, and what its own last one was."""

    leader_id: int
    index: int  # of the check entry at which that was; -1: none
    state: bytes
    results: bytes
    parts: dict[str, bytes] = {}  # where code is mixed, instead of the state: of each attribute
    mixed: bool = False  # nodes run different code: a sample of the parts is to be taken here


class Outcome(msgspec.Struct, array_like=True, frozen=True, tag=21):
    """Made by a leader, never by a client: every voter holds at that command, and `result` is what it gave."""

    index: int  # of an entry before this one
    position: int  # of the command in it; -1: all of its commands
    result: Any


class Skips(msgspec.Struct, array_like=True, frozen=True, tag=22):
    """Made by a leader, never by a client: the entries that operators had skipped, (index, checksum) each."""

    skips: list[tuple[int, int]]


class Code(msgspec.Struct, array_like=True, frozen=True, tag=23):
    """Made by a leader, never by a client: what follows in the log is applied by this code of the machine."""

    version: int  # its machine_version
    fingerprint: str  # of its code (pickling/fingerprint.py)


class Replay(msgspec.Struct, array_like=True, frozen=True, tag=24):
    """Made by a leader, never by a client: from an entry before this one on, all is applied by this code.

    So what the log said of code from there up to here counts no more.
    """

    from_index: int
    version: int
    fingerprint: str


Request = (
    Hello
    | Register
    | Commands
    | CloseSession
    | Query
    | Admin
    | Clock
    | Watch
    | Unwatch
    | Check
    | Outcome
    | Skips
    | Code
    | Replay
)

# --- Nodes to clients ---


class LeaderIs(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Who leads, as far as this node knows; `leader_id` None: nobody now."""

    term: int
    leader_id: int | None
    frame_bytes_max: int = 0  # the largest frame that this cluster takes from a client; 0: not said


class Registered(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """The session is open."""

    nonce: int
    client_id: int


class Results(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """The results of one Commands frame, in its order: plain scalars, and an Ext for everything else."""

    client_id: int
    first_sequence: int
    values: list[Any]
    index: int = -1  # of the entry that gave them; -1: not known


class Refused(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """This node did not take the frame (Commands: by its first sequence; Register: by its nonce), and never will."""

    client_id: int
    first_sequence: int
    reason: str  # "not leader", "busy", "too large"; NO_ROOM and why
    leader_id: int | None
    forbidden: bool = False  # the client's key does not allow it; `reason` says so in words


class Resume(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """A frame would have left a gap and changed nothing: send again from `next_sequence` on."""

    client_id: int
    first_sequence: int
    next_sequence: int


class Expired(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """The cluster does not know this session (any more); the frame changed nothing."""

    client_id: int
    first_sequence: int


class Answers(msgspec.Struct, array_like=True, frozen=True, tag=7):
    """What the first reads of one Query gave, in its order; what is missing would not fit, and is to be asked again."""

    request_id: int
    values: list[Any]


class QueryRefused(msgspec.Struct, array_like=True, frozen=True, tag=8):
    """This node cannot serve the reads now."""

    request_id: int
    reason: str  # "not leader", "busy"
    leader_id: int | None
    forbidden: bool = False  # as in Refused


class AdminReply(msgspec.Struct, array_like=True, frozen=True, tag=9):
    """The outcome of an Admin request: `error` is empty when it went well."""

    request_id: int
    error: str
    value: Any


class Published(msgspec.Struct, array_like=True, frozen=True, tag=10):
    """Events of a watch: all that the entry at `index` published to its topic; none: it was read up to there.

    `error` is not empty if the watch cannot be served.
    """

    watch_id: int
    index: int
    values: list[Any]
    error: str = ""


Reply = LeaderIs | Registered | Results | Refused | Resume | Expired | Answers | QueryRefused | AdminReply | Published

_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)

encode = _encoder.encode  # of any Request or Reply

NO_ROOM: Final = "no room"  # begins the reason of a refusal: the disk takes no writes
ANSWER_BYTES_MAX: Final = (64 << 20) - (64 << 10)  # of a Reply: a client's link takes 64 MiB, heads included
_TOO_LARGE: Final = b"it was done; what it gave is too large to be sent"
LOST: Final = msgspec.msgpack.Ext(6, _TOO_LARGE)  # the result of that


def encode_reply(reply: Reply) -> bytes:
    """Encode a reply, without what a client's link would break of: of reads the last ones, of results the largest."""
    try:
        frame = _encoder.encode(reply)
        if len(frame) <= ANSWER_BYTES_MAX:
            return frame
    except (ValueError, OverflowError):
        pass  # over 4 GiB, which msgpack has no length for
    if type(reply) is Answers:
        return encode(Answers(reply.request_id, _first(reply.values)))
    if type(reply) is Results:
        return encode(Results(reply.client_id, reply.first_sequence, _smallest(reply.values), reply.index))
    if type(reply) is AdminReply:
        return encode(AdminReply(reply.request_id, "the answer is too large to be sent", None))
    if type(reply) is Published:
        error = f"what was published at index {reply.index} is too large to be sent"
        return encode(Published(reply.watch_id, -1, [], error))
    raise AssertionError(f"a {type(reply).__name__} of over {ANSWER_BYTES_MAX} bytes")


def _size(value: Any) -> int:
    try:
        return len(_encoder.encode(value))
    except (ValueError, OverflowError):
        return ANSWER_BYTES_MAX + 1


def _first(values: list[Any]) -> list[Any]:
    """Return as many of the first values as fit, at least one; one that never fits is lost."""
    fitting: list[Any] = []
    left = ANSWER_BYTES_MAX - 64
    for value in values:
        size = _size(value)
        if size > ANSWER_BYTES_MAX - 64:
            value, size = LOST, len(_TOO_LARGE) + 8
        if size > left:
            break
        fitting.append(value)
        left -= size
    return fitting


def _smallest(values: list[Any]) -> list[Any]:
    """Return the values, the largest of them lost so that the others fit."""
    sizes = [_size(value) for value in values]
    total, kept = sum(sizes) + 64, list(values)
    for position in sorted(range(len(values)), key=sizes.__getitem__, reverse=True):
        if total <= ANSWER_BYTES_MAX or sizes[position] <= len(_TOO_LARGE) + 8:
            break
        total += len(_TOO_LARGE) + 8 - sizes[position]
        kept[position] = LOST
    return kept


def decode_request(frame: Body) -> Request:
    """Decode what a client sent; a body in it is a view of the frame.

    Raises:
        MalformedFrame: these bytes are no request.
    """
    try:
        return _request_decoder.decode(frame)
    except (ValueError, RecursionError) as error:
        raise MalformedFrame(f"not a client's frame: {error}") from error


def decode_reply(frame: bytes) -> Reply:
    """Decode what a node sent to a client.

    Raises:
        MalformedFrame: these bytes are no reply.
    """
    try:
        return _reply_decoder.decode(frame)
    except (ValueError, RecursionError) as error:
        raise MalformedFrame(f"not a node's frame: {error}") from error


_CHANGES: Final[dict[str, type[MemberChange]]] = {
    "add_learner": AddLearner,
    "add_voter": AddVoter,
    "remove": RemoveNode,
}


def decode_changes(changes: Any) -> list[MemberChange]:
    """Read changes of membership from an administrator's plain data, [kind, node id, storage id] each.

    What gets by here goes into the log for good, so types are checked, not only counted.

    Raises:
        ValueError, TypeError, KeyError: they are none.
    """
    decoded = [msgspec.convert(values, _CHANGES[kind]) for kind, *values in changes]
    for change in decoded:
        if not 0 <= change.node_id <= NODE_ID_MAX:
            raise ValueError(f"a node id is from 0 to {NODE_ID_MAX}, not {change.node_id}")
    return decoded


# --- Bodies and stamps ---

GIVEN_UP: Final = msgspec.msgpack.Ext(7, b"")  # the result of a no-op in the place of a command that was given up
MALFORMED: Final = msgspec.msgpack.Ext(8, b"")  # the result of a command in a frame that does not decode
ARRAYS: Final = (
    10  # code of an Ext that is a call or a result with arrays in it, and holds no pickle (pickling/beside.py)
)
NOT_YET: Final = msgspec.msgpack.Ext(9, b"")  # the answer of a machine that has not what is asked for yet


def join_body(values: Sequence[bytes]) -> bytes:
    """Join values that are msgpack already into one array, touching each byte once."""
    return b"".join((_array_head(len(values)), *values))


LARGE_BYTES: Final = 16 << 10  # of a body that is joined to its frame, instead of being copied once more


def encode_commands(
    client_id: int, first_sequence: int, lowest_unanswered: int, values: Sequence[bytes], traces: list[str]
) -> bytes:
    """Encode a `Commands` frame of commands that are msgpack already."""
    count, size = len(values), sum(map(len, values))
    if size < LARGE_BYTES:
        return encode(Commands(client_id, first_sequence, lowest_unanswered, count, join_body(values), traces))
    head, tail = _array_head(count), encode(traces)
    frame = encode(Commands(client_id, first_sequence, lowest_unanswered, count, b"", traces))
    before = frame[: -len(tail) - len(_NO_BYTES)]
    return b"".join((before, _bytes_head(len(head) + size), head, *values, tail))


def _array_head(count: int) -> bytes:
    if count < 16:
        return bytes((0x90 | count,))
    if count < 65536:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


_NO_BYTES: Final = _encoder.encode(b"")


def _bytes_head(size: int) -> bytes:
    if size < 65536:
        return b"\xc5" + size.to_bytes(2, "big")
    return b"\xc6" + size.to_bytes(4, "big")


_body_decoder = msgspec.msgpack.Decoder(list)


def decode_body(body: Body) -> list[Any]:
    """Decode a body into its values, which are copies; what msgpack has no type for is a msgspec Ext.

    Raises:
        MalformedFrame: it is no array of msgpack values.
    """
    try:
        return _body_decoder.decode(body)
    except (ValueError, RecursionError) as error:
        raise MalformedFrame(f"not a body of values: {error}") from error


_STAMP = struct.Struct("<d")
STAMP_BYTES: Final = _STAMP.size


def stamp(log_time_s: float, frame: Body) -> bytes:
    """Make the item of a log entry: the leader's log time (seconds) and a copy of a client's frame."""
    return _STAMP.pack(log_time_s) + frame


_DECISIONS: Final = frozenset((21, 22, 24))  # tags of Outcome, Skips and Replay
_CODES: Final = frozenset((23, 24))  # tags of Code and Replay


def is_decision(item: bytes) -> bool:
    """Whether the item of a log entry may say what becomes of earlier entries: a look at one byte of it."""
    return len(item) > STAMP_BYTES + 1 and item[STAMP_BYTES + 1] in _DECISIONS


def is_code(item: bytes) -> bool:
    """Whether the item of a log entry may be a `Code` or a `Replay`: a look at one byte of it."""
    return len(item) > STAMP_BYTES + 1 and item[STAMP_BYTES + 1] in _CODES


_RULED: Final = frozenset((3, 7))  # tags of Commands and Clock


def is_ruled(item: bytes) -> bool:
    """Whether what the item of a log entry does may depend on the machine's code: a look at one byte of it."""
    return len(item) > STAMP_BYTES + 1 and item[STAMP_BYTES + 1] in _RULED


def unstamp(item: bytes) -> tuple[float, memoryview]:
    """Split the item of a log entry into log time (seconds) and frame.

    Raises:
        MalformedFrame: it is too short to hold a stamp.
    """
    if len(item) < STAMP_BYTES:
        raise MalformedFrame(f"a log item of {len(item)} bytes has no stamp")
    return _STAMP.unpack_from(item)[0], memoryview(item)[STAMP_BYTES:]
