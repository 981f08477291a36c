"""What the core asks of its driver after each batch of events, with the order of effects in its type.

The driver, for each Ready: sends `messages`; writes `snapshot_chunks`; if `install`, commits that
snapshot and resets the stored log; persists `hard_state` and `entries` in one durable write; calls
`advance`; sends `messages_after_persist`; if `install`, has the machine restored, and reports that with
`applied`; hands over `committed` and `reads`; sets its timers. Then again, while `has_ready()`.

Source:     Figure 2 ("updated on stable storage before responding to RPCs"); D§10.2.1 (the leader writes beside the
            others).
Invariant:  nothing in `messages` depends on this Ready's write; nothing that the driver must do is anywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from actorraft.raft.messages import EntryId, HardState, InstallSnapshot, LogEntry, Message

NOT_URGENT = -1  # in the place of a delay: `urgent` need not be called any more


class ServerState(Enum):
    """What a server is doing now (§5.1)."""

    FollowerState = "follower"
    CandidateState = "candidate"
    LeaderState = "leader"

    def __repr__(self) -> str:
        return self.name


FollowerState = ServerState.FollowerState
CandidateState = ServerState.CandidateState
LeaderState = ServerState.LeaderState


class ReadState(NamedTuple):
    """A read may be served once `last_applied` has reached `index`; index -1: refused, ask again or elsewhere."""

    token: int
    index: int  # type: ignore[assignment]


class LostLog(NamedTuple):
    """A node came back with less log than it had acknowledged: an older copy of its folder, or a store in memory."""

    node_id: int  # another's, as its leader sees it; or this node's own, as its leader says
    acknowledged_index: int
    last_index: int  # it holds no more than that


class Ready(NamedTuple):
    """Effects, in the order in which they must happen; see the module's head."""

    # May leave before the write: a leader's AppendEntries and InstallSnapshot, of a term that is durable.
    messages: list[Message]
    hard_state: HardState | None  # persist, if not None
    entries_from: int  # `entries` go in at this index and replace what is there and after; -1: nothing to write
    entries: list[LogEntry]
    # Received, in order; offset 0 begins a snapshot, aborts an unfinished one.
    snapshot_chunks: Sequence[InstallSnapshot]
    install: EntryId | None  # the chunks up to now complete this snapshot; it replaces log and machine
    messages_after_persist: list[Message]  # every response, vote request, read request and TimeoutNow
    committed_from: int  # index of committed[0]
    committed: list[LogEntry]  # for the executor, in order, each index once
    reads: list[ReadState]
    state_changed: bool  # role, term or leader differ from the last Ready
    urgent_delay_ms: int | None = None  # call `urgent` so long from now, once; NOT_URGENT: do not; None: as before
    begun: bool = False  # probation is over: once this Ready's write is durable, the folder need not say so any more
    lost_logs: Sequence[LostLog] = ()  # say it aloud: until it is mended, entries are on fewer disks than was believed
    commit_untold: bool = False  # call `tell_commit` soon: followers wait for a commit index (only with commit_along)
