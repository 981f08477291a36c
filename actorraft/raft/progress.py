"""What a leader knows of one follower, and how it feeds it.

    probe       one append at a time, until the logs are known to agree somewhere
    replicate   appends leave before the earlier ones are acknowledged, within a window
    snapshot    the entries it needs are compacted, so it gets a snapshot, chunk by chunk

    probe ──success──► replicate ──rejection, lost connection──► probe
    probe, replicate ──next_index is compacted──► snapshot ──installed──► replicate

Source:     Raft §5.3 (nextIndex, matchIndex), §7; the three states are etcd's.
Invariant:  match_index < next_index; match_index never falls while this leader leads, unless the follower itself lost
            what it had acknowledged; what is in flight is bounded.
Not here:   which messages are built from it; see replication.py.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from actorraft.raft.log import RaftLog
from actorraft.raft.messages import NO_ENTRY, Configuration, EntryId


class ProgressState(Enum):
    """How a follower is fed."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


PROBE, REPLICATE, SNAPSHOT = ProgressState.PROBE, ProgressState.REPLICATE, ProgressState.SNAPSHOT


class Progress:
    """A leader's view of one follower."""

    __slots__ = (
        "acked_round",
        "append_due",
        "chunk_due",
        "commit_sent",
        "counts",
        "inflight",
        "inflight_bytes",
        "inflight_bytes_max",
        "inflight_max",
        "leased_round",
        "match_index",
        "match_round",
        "next_index",
        "owed",
        "probe_sent",
        "recent_active",
        "removed_at",
        "removed_ticks",
        "silent_ticks",
        "snapshot_configuration",
        "snapshot_id",
        "snapshot_offset",
        "snapshot_round",
        "state",
    )

    def __init__(self, next_index: int, *, inflight_max: int, inflight_bytes_max: int) -> None:
        # Figure 2, volatile state on leaders
        self.next_index = next_index  # the next entry to send; in probe, its predecessor is what is asked about
        self.match_index = -1  # highest entry known to be durable there; < next_index
        self.match_round = 0  # the leader's round when it learned that; it only grows
        self.owed = NO_ENTRY  # what it had acknowledged and has lost; NO_ENTRY again once it holds it again
        # Flow control
        self.state = PROBE
        self.probe_sent = False  # a probe is under way: nothing more before its answer or the next heartbeat
        # (last index, bytes) of unacknowledged appends, ascending, all above match_index; empty but in replicate
        self.inflight: deque[tuple[int, int]] = deque()
        self.inflight_bytes = 0  # their sum
        self.inflight_max = inflight_max  # these two bound it; one append may pass the bound of bytes
        self.inflight_bytes_max = inflight_bytes_max
        self.append_due = False  # an AppendEntries must leave now, even an empty one
        self.commit_sent = -1  # highest commit index that it was told and could take; <= the leader's
        # Liveness
        self.counts = True  # False while it is on probation: what it says moves no majority
        self.recent_active = False  # answered since the last look of CheckQuorum
        self.silent_ticks = 0  # since its last answer
        # Reads (D§6.4): the highest rounds that it repeated to us, never more than was sent; they only grow
        self.acked_round = 0
        self.leased_round = 0  # of those, in answer to a message with a lease; <= acked_round
        # Snapshot being sent (§7); void in other states
        self.snapshot_id = NO_ENTRY
        self.snapshot_configuration = Configuration()  # the one at or below it
        self.snapshot_offset = 0  # of the chunk that is under way; bytes before it are there
        self.snapshot_round = 0  # the round of the leader when that chunk left
        self.chunk_due = False  # the chunk at snapshot_offset must leave now
        # Removal (§6): index of the configuration without it, None for a member; it is fed until it knows
        self.removed_at: int | None = None
        self.removed_ticks = 0  # since then; < election_timeout_ticks

    def __repr__(self) -> str:
        return (
            f"Progress({self.state.value} match={self.match_index} next={self.next_index} "
            f"inflight={len(self.inflight)}/{self.inflight_bytes}B)"
        )

    # -- states

    def become_probe(self) -> None:
        """Send one append, then wait: what was in flight may be lost."""
        self.state = PROBE
        self.commit_sent = -1
        self.next_index = self.match_index + 1
        self._forget_inflight()
        self.probe_sent = False

    def become_replicate(self) -> None:
        """Send ahead: the logs agree up to match_index."""
        self.state = REPLICATE
        self.next_index = self.match_index + 1
        self._forget_inflight()
        self.probe_sent = False

    def become_snapshot(self, snapshot_id: EntryId, configuration: Configuration) -> None:
        """Send the snapshot, from its start; no appends until it is installed."""
        self.state = SNAPSHOT
        self.snapshot_id = snapshot_id
        self.snapshot_configuration = configuration
        self.snapshot_offset = 0
        self.chunk_due = True
        self._forget_inflight()
        self.probe_sent = False

    # -- the window

    @property
    def window_open(self) -> bool:
        """Whether one more append may leave in `replicate`."""
        return len(self.inflight) < self.inflight_max and self.inflight_bytes < self.inflight_bytes_max

    def sent(self, last_index: int, size_bytes: int) -> None:
        """Note an append with entries that left; in `replicate`, the next one follows on it at once."""
        if self.state is REPLICATE:
            self.next_index = last_index + 1
            self.inflight.append((last_index, size_bytes))
            self.inflight_bytes += size_bytes
        else:
            self.probe_sent = True

    def _forget_inflight(self) -> None:
        self.inflight.clear()
        self.inflight_bytes = 0

    # -- answers

    def acknowledge(self, match_index: int, current_round: int) -> bool:
        """Take a success into account; return whether it is news. A late or repeated one changes nothing."""
        inflight = self.inflight
        while inflight and inflight[0][0] <= match_index:
            self.inflight_bytes -= inflight.popleft()[1]
        if match_index <= self.match_index:
            return False
        self.match_index = match_index
        self.match_round = current_round
        if match_index >= self.owed.index:
            self.owed = NO_ENTRY
        if self.next_index <= match_index:
            self.next_index = match_index + 1
        return True

    def has_lost(self, rejected_index: int, answered_round: int) -> bool:
        """Whether a rejection shows that the follower lost entries that it had acknowledged.

        What left in a later round than the one in which its acknowledgement came found that entry durable; in one
        term a leader's entries are never replaced. A rejection that is only late belongs to an earlier round.
        """
        return rejected_index <= self.match_index and answered_round > self.match_round

    def lose(self, owed: EntryId, next_index: int) -> None:
        """Start again with a follower that lost entries: nothing is known to be durable there.

        Args:
            owed: the last entry that it had acknowledged.
            next_index: where to look next, as `next_index_after_rejection` says.
        """
        self.owed = max(self.owed, owed)
        self.match_index = -1
        if self.state is not SNAPSHOT:
            self.become_probe()
            self.next_index = max(next_index, 0)

    def reject(self, rejected_index: int, next_index: int) -> bool:
        """Take a rejection of `rejected_index` into account and go back to probing; return False if it is stale.

        Args:
            rejected_index: prev_index of the append that was rejected.
            next_index: where to look next, as `next_index_after_rejection` says.
        """
        if self.state is REPLICATE:
            if rejected_index <= self.match_index or rejected_index >= self.next_index:
                return False
            self.become_probe()
            return True
        # In probe there is one append under way, so any other rejection is a late one. So is one of what it has
        # acknowledged; or else it has lost that, and `has_lost` will tell after the next heartbeat, not sooner.
        if self.state is not PROBE or rejected_index != self.next_index - 1 or rejected_index <= self.match_index:
            return False
        self.next_index = max(min(rejected_index, next_index), self.match_index + 1)
        self.probe_sent = False
        return True


def rejection_hint(log: RaftLog, prev_index: int, prev_term: int) -> EntryId:
    """Return where the leader should look next, as the follower that rejected (`prev_index`, `prev_term`) sees it.

    That is the last entry, at or before prev_index, that is not of a later term than prev_term: whatever
    lies between cannot be in the leader's log, so a whole conflicting term is skipped at once (§5.3).
    """
    return log.find_by_term(min(prev_index, log.last_index), prev_term)


def next_index_after_rejection(log: RaftLog, hint: EntryId, rejected_index: int) -> int:
    """Return the next index to try: the leader skips what is, in its own log, of later terms than the hint.

    Args:
        hint: as `rejection_hint` said.
        rejected_index: prev_index of the append that was rejected.
    """
    return min(rejected_index, log.find_by_term(hint.index, hint.term).index + 1)
