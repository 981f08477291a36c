"""The values of the protocol: entries, hard state, and the RPCs of Figure 2 as one-way messages.

Every request and every response is a message of its own, because between actors
there is no call to return from. Names and fields are the paper's; fields of ours
come after them and have defaults.

Source:     Raft Figure 2 (RPCs), §6 and D§4 (membership), §7 (snapshots), D§3.10 (transfer), D§6.4 (reads).
Shape:      log indexes are 0-based; -1 is before the first entry. `entries` are contiguous from `prev_index + 1`.
Not here:   how they are encoded (codec.py) and who sends them when (server.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple


class EntryId(NamedTuple):
    """Identity of a log entry; compares as "more up-to-date" does: later term first, then longer log (§5.4.1)."""

    term: int
    index: int  # type: ignore[assignment]


NO_ENTRY = EntryId(-1, -1)  # before the first entry


class LogEntry(NamedTuple):
    """One entry: the term in which a leader made it, and the item (bytes, a Configuration, None for a no-op)."""

    term: int
    item: Any


class HardState(NamedTuple):
    """What must be durable before any answer that depends on it leaves (Figure 2, persistent state)."""

    term: int = 0
    voted_for: int | None = None


class Member(NamedTuple):
    """How one member is known: its key says who it is, its addresses where it was last.

    Invariant: `number` grows with each start of the member; what it said under an older one is ignored. While its key
    is being replaced, the one before it is in `old_key` and proves the same.
    """

    node_id: int
    public_key: str = ""  # 40 characters of Z85; empty where links carry no keys (ipc)
    peer: str = ""  # what other nodes dial, as host:port
    client: str = ""  # what clients dial
    number: int = 0
    old_key: str = ""


class ClientKey(NamedTuple):
    """A client that may speak to the cluster. `role`: "read", "write" or "admin"."""

    name: str
    public_key: str
    role: str


class Token(NamedTuple):
    """A key that lets one new machine join, once. After `until_s` (log time) it admits nobody new.

    Invariant: `bound_key` and `storage_id` are both empty, or both of the machine that has redeemed it as `node_id`.
    """

    public_key: str
    until_s: float
    learner: bool = False  # what joins stays a learner
    bound_key: str = ""
    storage_id: str = ""
    node_id: int = -1


class Configuration(NamedTuple):
    """Who takes part. During a joint change (§6) `voters_outgoing` is not empty, and both sets must agree.

    Invariant: `voters` and `learners` are disjoint. `learners_next` are outgoing voters that become
    learners when the joint phase ends. `storage_ids` holds (node_id, storage id) for members whose directory is known;
    a node that comes with another directory under an old id is refused. `next_node_id` is never reused.
    The rest, from `roster` on, is what the cluster knows of its members and clients; it decides no quorum (roster.py).
    `settings` holds what decides replicated state and is therefore the cluster's: (name, value as JSON), sorted.
    """

    voters: frozenset[int] = frozenset()
    voters_outgoing: frozenset[int] = frozenset()
    learners: frozenset[int] = frozenset()
    learners_next: frozenset[int] = frozenset()
    next_node_id: int = 0
    storage_ids: tuple[tuple[int, str], ...] = ()
    roster: tuple[Member, ...] = ()
    clients: tuple[ClientKey, ...] = ()
    tokens: tuple[Token, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def members(self) -> frozenset[int]:
        """Everyone who receives the log."""
        return self.voters | self.voters_outgoing | self.learners | self.learners_next

    @property
    def joint(self) -> bool:
        """Whether a joint change is under way (§6)."""
        return bool(self.voters_outgoing)


class AppendEntries(NamedTuple):
    """Replicate entries, or say that the leader lives when there are none (§5.2, §5.3)."""

    source: int
    dest: int
    term: int
    prev_index: int
    prev_term: int
    entries: list[LogEntry]
    commit_index: int
    round: int = 0  # the leader's read counter; the response repeats it (D§6.4)
    lease_ticks: int = 0  # how long the receiver helps nobody else to lead, where lease reads are on


class AppendEntriesResponse(NamedTuple):
    """`match_index`: highest index known to agree with the leader's log, -1 if none (also when it failed)."""

    source: int
    dest: int
    term: int
    success: bool
    match_index: int
    round: int = 0
    hint_index: int = -1  # on failure: where the leader should look next, and the term found there
    hint_term: int = -1
    rejected_index: int = -1  # on failure: the prev_index that did not match, so that late rejections are known
    counts: bool = True  # False: its sender is on probation, and may not have what it acknowledged before


class RequestVote(NamedTuple):
    """Ask for a vote (§5.2); with `pre_vote`, ask whether a vote would be given (D§9.6)."""

    source: int
    dest: int
    term: int
    last_log_index: int
    last_log_term: int
    pre_vote: bool = False
    transfer: bool = False  # asked for by the leader itself (D§3.10): answered even within a live leader's term


class RequestVoteResponse(NamedTuple):
    """The answer; for a pre-vote that was granted, `term` is the term asked for."""

    source: int
    dest: int
    term: int
    vote_granted: bool
    pre_vote: bool = False


class InstallSnapshot(NamedTuple):
    """One chunk of a snapshot (§7). The core leaves `data` empty and `done` False; the driver fills them in."""

    source: int
    dest: int
    term: int
    snapshot_index: int
    snapshot_term: int
    configuration: Configuration
    offset: int
    data: bytes = b""
    done: bool = False
    round: int = 0


class InstallSnapshotResponse(NamedTuple):
    """`next_offset`: bytes received so far; `done` when the snapshot is installed and durable."""

    source: int
    dest: int
    term: int
    snapshot_index: int
    next_offset: int
    done: bool = False
    round: int = 0
    counts: bool = True  # as in AppendEntriesResponse


class TimeoutNow(NamedTuple):
    """Start an election at once: the leader hands over (D§3.10)."""

    source: int
    dest: int
    term: int


class Reminder(NamedTuple):
    """The leader reminds a follower of the last entry that it had acknowledged, and does not hold any more."""

    source: int
    dest: int
    term: int
    owed_index: int
    owed_term: int


class ReadIndex(NamedTuple):
    """A follower asks the leader for an index at which it may serve the read `token` (D§6.4)."""

    source: int
    dest: int
    term: int
    token: int


class ReadIndexResponse(NamedTuple):
    """`index` -1: refused, ask again later."""

    source: int
    dest: int
    term: int
    token: int
    index: int  # type: ignore[assignment]


class Standing(NamedTuple):
    """Between a node on probation and the others: whether its sender has begun (probation.py)."""

    source: int
    dest: int
    term: int
    begun: bool
    heard: bool = False  # the sender has heard, in this run, that `dest` had not begun
    asks: bool = False  # answer with your own


class Holds(NamedTuple):
    """A node tells the leader that it cannot apply a command, or, with `withdraw`, asks for leave to try again.

    The core passes both by; see node/holding.py. A higher `round` is the later word of its node.
    """

    source: int
    dest: int
    term: int
    index: int  # type: ignore[assignment]
    position: int  # of the command in the entry; -1: all of them
    round: int
    withdraw: bool = False


class MayTry(NamedTuple):
    """The leader gives that leave: nothing will be decided on the strength of what was said up to `round`."""

    source: int
    dest: int
    term: int
    index: int  # type: ignore[assignment]
    round: int


class Introduction(NamedTuple):
    """What a node skips, (index, checksum) each, said before anything else on a link; see node/skipping.py."""

    source: int
    dest: int
    term: int
    skips: list[tuple[int, int]]
    applied_index: int  # the highest entry that it may have applied, in this life or an earlier one
    asks: bool  # answer with your own


class StateWanted(NamedTuple):
    """A node that must not apply what it holds, for its code is another, asks the leader for the state behind that.

    The core passes both by; see node/fetching.py.
    """

    source: int
    dest: int
    term: int
    least_index: int  # it needs the state at that index, or a later one
    snapshot_term: int  # the snapshot of which it has `offset` bytes; -1: none yet
    snapshot_index: int
    offset: int


class StatePart(NamedTuple):
    """A part of the leader's newest snapshot; index -1: it is being taken, or, with `why_not`, cannot be."""

    source: int
    dest: int
    term: int
    snapshot_term: int
    snapshot_index: int
    offset: int
    data: bytes = b""
    done: bool = False
    why_not: str = ""


class Compared(NamedTuple):
    """A node tells the leader whether its own sample at a check is the leader's; the core passes it by."""

    source: int
    dest: int
    term: int
    index: int  # type: ignore[assignment]
    equal: bool


Message = (
    AppendEntries
    | AppendEntriesResponse
    | RequestVote
    | RequestVoteResponse
    | InstallSnapshot
    | InstallSnapshotResponse
    | TimeoutNow
    | ReadIndex
    | ReadIndexResponse
    | Standing
    | Reminder
    | Holds
    | MayTry
    | Introduction
    | StateWanted
    | StatePart
    | Compared
)

# The position in this tuple is the message's code on the wire: append only, never reorder.
MESSAGE_TYPES: tuple[type[Any], ...] = (
    AppendEntries,
    AppendEntriesResponse,
    RequestVote,
    RequestVoteResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    TimeoutNow,
    ReadIndex,
    ReadIndexResponse,
    Standing,
    Reminder,
    Holds,
    MayTry,
    Introduction,
    StateWanted,
    StatePart,
    Compared,
)
