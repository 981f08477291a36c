"""The ports: what processes need from sockets, disks and clocks, without knowing any.

Threads, processes and real devices are one shell around what uses them; the simulator is another.
Each method says who calls it, whether it may block, and what is durable on return.

Shape:      an Envelope is (kind, sender, frame). PEER: a frame from the node `sender`. CLIENT: a frame from the client
            with the routing id `sender`. FRAME: on a client's channel, a frame from the node `sender`.
            CONNECTED, DISCONNECTED: the link to the node `sender`. WAKE: somebody called `wake`.
Not here:   sockets (transports/zeromq.py); what is in a frame.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, Protocol

if TYPE_CHECKING:  # values only: an actor's process needs a mailbox and no Raft
    from actorraft.raft.messages import Configuration, EntryId, HardState, LogEntry, Message


class SnapshotMeta(NamedTuple):
    """A snapshot on disk: the last entry inside it, the configuration at or below that, and its size."""

    snapshot_id: EntryId
    configuration: Configuration
    size_bytes: int


class Recovered(NamedTuple):
    """What a store holds when it is opened.

    `entries` are contiguous from `first_index`; `snapshot` is the newest one, or None; then first_index is 0.
    `first_index` may lie below the snapshot's index (trailing entries are kept).
    `previous_term`: the term of the entry at first_index - 1 (-1 if first_index is 0).
    """

    hard_state: HardState
    snapshot: SnapshotMeta | None
    first_index: int
    previous_term: int
    entries: list[LogEntry]


class SnapshotWriter(Protocol):
    """A snapshot being written aside. Used by one thread at a time, not necessarily the loop's."""

    def write(self, data: bytes, /) -> Any:
        """Append; may block."""

    def commit(self) -> SnapshotMeta:
        """Make it durable (file, rename, directory) and the newest. Blocks on the disk."""

    def abort(self) -> None:
        """Throw it away."""


class Storage(Protocol):
    """Log, hard state and snapshots of one node. All but the writer's methods are called by the node's loop alone."""

    def recover(self) -> Recovered:
        """Return what is held. Called once, first.

        Raises CorruptionError rather than return less than was acknowledged.
        """

    def persist(self, hard_state: HardState | None, first_index: int, entries: Sequence[LogEntry]) -> None:
        """Write and sync; durable on return. Entries go in at `first_index` and replace what is held at and after it.

        Raises StorageFailed; the caller then stops the process and never calls again.
        """

    def begin_snapshot(self, snapshot_id: EntryId, configuration: Configuration) -> SnapshotWriter:
        """Start a snapshot of this node's own state (or one being received, chunk by chunk)."""

    def open_snapshot(self) -> BinaryIO:
        """Open the newest snapshot's content for reading, from its start. Raises CorruptionError."""

    def read_snapshot(self, snapshot_id: EntryId, offset: int, size_bytes: int) -> tuple[bytes, bool] | None:
        """Return (chunk, whether it is the last); None if that snapshot is no longer held."""

    def compact(self, first_index: int) -> None:
        """Forget entries below `first_index`; all of them must be inside the newest snapshot."""

    def reset_log(self, snapshot: SnapshotMeta) -> None:
        """After an installed snapshot: drop every entry of the log; the next one is at snapshot index + 1."""

    def close(self) -> None:
        """Flush and let go of locks. Idempotent."""


class Net(Protocol):
    """Sending to peers; may lose, repeat and reorder, never alters. Called by the loop alone; never blocks."""

    address: int  # this node's id

    def send(self, message: Message, /) -> None: ...


GONE: Final = object()  # a client certainly is


class Clients(Protocol):
    """Answering clients; called by the loop alone; never blocks; an answer that does not leave at once is dropped."""

    def send_client(self, client: Any, frame: bytes) -> object:
        """Return False if the client's queue is full now, GONE if the client certainly is; anything else: it left."""

    def is_gone(self, client: Any) -> bool:
        """Return whether a client certainly is gone; may say a word on its connection to find out."""

    def role(self, client: Any) -> str:
        """Return what a client's key allows: "read", "write", "join" or "admin"; who needs no key may do all."""

    def key(self, client: Any) -> str:
        """Return the public key that a client has proven; "" where none is needed."""


class Clock(Protocol):
    """Seconds. `monotonic` never goes back; `wall` is the machine's idea of the time of day."""

    def monotonic(self) -> float: ...

    def wall(self) -> float: ...


class Kinds:
    """What an envelope can be."""

    PEER: Final = 1
    CLIENT: Final = 2
    DISCONNECTED: Final = 3
    CONNECTED: Final = 4
    WAKE: Final = 5
    FRAME: Final = 6


class Gathered(bytes):
    """A frame behind which large buffers came: `beside`, where they came to lie; nobody else has them."""

    beside: Sequence[memoryview] = ()


class Envelope(NamedTuple):
    """One thing that happened.

    Attributes:
        frame: of PEER, CLIENT and FRAME what was sent, at a mailbox that lends a large one where it came to lie, which
            nobody else has; of CONNECTED what the other end says in its introduction.
    """

    kind: int
    sender: Any
    frame: bytes | memoryview = b""


class Sent(enum.Enum):
    """What became of a frame; true if it left (which does not say that it arrives)."""

    LEFT = enum.auto()
    FULL = enum.auto()  # the receiver does not read now
    GONE = enum.auto()  # there is no link
    TOO_LARGE = enum.auto()  # the receiver takes no frame of that size, now or later; the link is as it was

    def __bool__(self) -> bool:
        return self is Sent.LEFT


class Inbox(Protocol):
    """What a mailbox and a channel have in common: one wait for everything. Used by one thread, but for `wake`."""

    counts: Counter[str]  # what was dropped or not sent, by reason

    def wait(self, timeout_s: float) -> list[Envelope]:
        """Wait until something happens, or `timeout_s` passes; return what happened, in order per sender. Bounded."""

    def drop(self, what: str) -> None:
        """Count a message that its receiver throws away; say so in the log, once for each reason."""

    def wake(self) -> None:
        """Make `wait` return. From any thread; several calls may count as one."""

    def close(self) -> None:
        """Close every socket; what was not sent yet is lost. Idempotent."""


class Mailbox(Inbox, Protocol):
    """The mailbox of a process that has peers and clients; kinds are all but FRAME."""

    refusals: dict[Any, str]  # peer that lets this process in no link now -> why, in its own words

    @property
    def incarnation(self) -> bytes:
        """A random number of this life of the process."""

    @property
    def endpoints(self) -> tuple[str, str]:
        """Where peers and clients reach it, as bound."""

    def set_peers(self, peers: Mapping[int, str]) -> None:
        """Say who the peers are: node id -> endpoint. Links to others are closed; a link that stays is left alone."""

    judge: Callable[
        [Any], str
    ]  # asked about each peer that introduces itself, its key proven; why it is refused, or ""

    def set_keys(self, members: Mapping[int, tuple[str, ...]], clients: Mapping[str, Any] | None = None) -> None:
        """Say which public keys prove a peer, the preferred one first; who proves another is heard no more.

        Args:
            clients: public key -> who that is (name, role); None: as before.
        """

    def introduce(self, payload: bytes) -> None:
        """Say this to whoever is linked from now on; there it comes with CONNECTED."""

    def send_peer(self, peer_id: int, frame: bytes, beside: Sequence[bytes] = ()) -> Sent:
        """Send to a peer, never blocking. What left may be lost too.

        Args:
            beside: what the peer gets behind the frame, as one with it or beside it; not copied for each peer.
        """

    def send_client(self, client: Any, frame: bytes) -> Sent:
        """Answer a client, never blocking."""

    def is_gone(self, client: Any) -> bool:
        """As Clients.is_gone."""

    def role(self, client: Any) -> str:
        """As Clients.role."""

    def key(self, client: Any) -> str:
        """As Clients.key."""

    def try_send_client(self, client: Any, frame: bytes, beside: Sequence[bytes] = ()) -> bool | None:
        """Answer a client, never blocking; False if its queue is full now, None if it is gone.

        Args:
            beside: what the client gets behind the frame, as one with it.
        """


class Channel(Inbox, Protocol):
    """The client's side: links to the nodes of a cluster. Kinds are FRAME, CONNECTED, DISCONNECTED and WAKE."""

    refusals: dict[Any, str]  # node that lets this process in no link now -> why, in its own words

    def unresolved(self) -> dict[str, str]:
        """Return the hosts whose names have no address yet, and why. From any thread."""

    def set_keys(self, members: Mapping[int, tuple[str, ...]]) -> None:
        """Say which public keys prove a node, the preferred one first."""

    def set_endpoints(self, endpoints: Mapping[Any, str]) -> None:
        """Say where the nodes are: node id (or whatever else names one) -> endpoint."""

    def send(self, node_id: Any, frame: bytes) -> bool:
        """Send to a node, never blocking; False if it certainly did not leave."""
