"""Log replication and commitment: how a leader feeds its followers, and how a follower answers.

The leader's messages are built when a Ready is taken, not when a command is proposed, so all
that was proposed in one batch of events leaves in one AppendEntries per follower.

Source:     Raft §5.3 (replication, consistency check), §5.4.2 (commitment), Figure 2 (AppendEntries).
Invariant:  commit_index never falls, never passes what was verified; only an own-term entry is committed by counting.
Differs:    successes to one leader that wait for the same write are merged into the last of them; a leader with
            nothing new to send tells a new commit index at once, or, with `commit_along`, when the driver says so.
Not here:   the states of a follower (progress.py), snapshots (snapshots.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actorraft.raft.errors import NotLeader, ProposalRefused
from actorraft.raft.log import item_bytes
from actorraft.raft.messages import (
    NO_ENTRY,
    AppendEntries,
    AppendEntriesResponse,
    Configuration,
    EntryId,
    InstallSnapshotResponse,
    LogEntry,
    Reminder,
)
from actorraft.raft.progress import PROBE, REPLICATE, SNAPSHOT, Progress, next_index_after_rejection, rejection_hint
from actorraft.raft.quorum import committed_index
from actorraft.raft.ready import LeaderState, LostLog

if TYPE_CHECKING:
    from actorraft.raft.server import RaftServer

Slices = dict[int, tuple[list[LogEntry], int]]  # first index -> entries and bytes, shared by followers that are alike


# -- at the leader


def propose(self: RaftServer, item: Any, *, bounded: bool = True) -> int:
    """Append an item to the leader's log and return its index (§5.3). It is committed when a Ready says so, if ever.

    Args:
        item: what is to be appended.
        bounded: False for what the executor needs to go on: it must not wait for what the executor has not applied.

    Raises:
        NotLeader: propose it to `leader_id`.
        ProposalRefused: "busy", too many bytes are accepted and not yet applied; or leadership is being handed over.
    """
    if self.state is not LeaderState:
        raise NotLeader(self.leader_id)
    if self.transfer_target is not None:
        raise ProposalRefused(f"leadership is being handed over to node {self.transfer_target}")
    if isinstance(item, Configuration):
        raise ValueError("a configuration is changed with change_membership()")
    size = item_bytes(item)
    if bounded and self.unapplied and self.unapplied_bytes + size > self.config.uncommitted_bytes_max:
        raise ProposalRefused("busy")
    index = self.log.append(LogEntry(self.current_term, item))
    self.unapplied.append((index, size))
    self.unapplied_bytes += size
    self.send_due = True
    return index


def append_own(self: RaftServer, item: Configuration | None) -> int:
    """Append what the leader itself has to say: a no-op (§8) or a configuration, in effect from now on (§6)."""
    index = self.log.append(LogEntry(self.current_term, item))
    self.send_due = True
    if item is not None:
        self.configurations.append((index, item))
        self.use_configuration()
    return index


def broadcast_heartbeat(self: RaftServer) -> None:
    """Let an AppendEntries go to everyone, with entries or without (§5.2). It begins a round of its own."""
    self.reads.next_round()
    if self.leases:
        self.reads.lease_sent(self.now_ticks, self.config.election_timeout_ticks)
    for peer_id, progress in self.progress.items():
        progress.append_due = True
        if progress.owed is not NO_ENTRY:
            self.remind(peer_id, progress)
    self.send_due = True


def tell_commit(self: RaftServer) -> None:
    """Let followers know of a commit index that no append has told them meanwhile."""
    for progress in self.progress.values():
        if progress.state is REPLICATE and self.commit_is_news(progress):
            progress.append_due = self.send_due = True


def commit_is_news(self: RaftServer, progress: Progress) -> bool:
    """Whether a follower that replicates could commit more than it was told."""
    return min(self.commit_index, progress.next_index - 1) > progress.commit_sent


def flush(self: RaftServer) -> None:
    """Build the messages that the leader's state calls for."""
    if not self.send_due:
        return
    self.send_due = False
    if self.state is not LeaderState:
        return
    if self.reads.begin(self.commit_index):
        for progress in self.progress.values():
            progress.append_due = True
    slices: Slices = {}
    for peer_id, progress in self.progress.items():
        self.feed(peer_id, progress, slices)


def feed(self: RaftServer, peer_id: int, progress: Progress, slices: Slices) -> None:
    """Send one follower what its state allows (see progress.py)."""
    log = self.log
    if progress.next_index < log.first_index and progress.state is not SNAPSHOT:
        self.start_snapshot(progress)
    if progress.state is REPLICATE:
        last_index = log.last_index
        while progress.next_index <= last_index and progress.window_open:
            self.send_append(peer_id, progress, slices)
        if progress.append_due or (not self.commit_along and self.commit_is_news(progress)):
            self.send_append(peer_id, progress, None)
    elif progress.state is PROBE:
        if not progress.probe_sent:
            self.send_append(peer_id, progress, slices)
        elif progress.append_due:
            self.send_append(peer_id, progress, None)
    else:
        if progress.chunk_due:
            self.send_chunk(peer_id, progress)
        if progress.append_due:
            self.send_append(peer_id, progress, None)


def send_append(self: RaftServer, peer_id: int, progress: Progress, slices: Slices | None) -> None:
    """Send entries from next_index on, as many as one message may hold; none without `slices`."""
    log = self.log
    first = progress.next_index
    entries: list[LogEntry] = []
    if slices is not None:
        known = slices.get(first)
        if known is None:
            known = slices[first] = log.slice(first, log.last_index + 1, self.config.append_bytes_max)
        entries, size = known
        progress.sent(first + len(entries) - 1, size)
    prev_index = first - 1
    if progress.state is SNAPSHOT:
        # Only a sign of life: what is known to agree, or nothing at all, so that it is never rejected.
        prev_index = progress.match_index if progress.match_index >= log.first_index - 1 else -1
    if progress.state is REPLICATE:
        progress.commit_sent = min(self.commit_index, prev_index + len(entries))
    progress.append_due = False
    lease_ticks = self.config.election_timeout_ticks if self.leases else 0
    self.effects.messages.append(
        AppendEntries(
            self.node_id,
            peer_id,
            self.current_term,
            prev_index,
            log.term_at(prev_index),
            entries,
            self.commit_index,
            self.reads.round,
            lease_ticks,
        )
    )


def handle_append_entries_response(self: RaftServer, message: AppendEntriesResponse) -> None:
    """Advance or move back next_index, and commit what a quorum holds (§5.3)."""
    progress = self.hear_follower(message) if message.match_index <= self.log.last_index else None
    if progress is None:
        return
    if message.success:
        if progress.acknowledge(message.match_index, self.reads.round):
            self.maybe_commit(progress.match_index)
        if progress.state is PROBE and message.match_index == progress.match_index:
            progress.become_replicate()
            if self.commit_is_news(progress):
                progress.append_due = True  # what was committed meanwhile was told to those who replicated already
        elif progress.state is SNAPSHOT:
            self.check_snapshot(progress, message.round)
    else:
        hint = EntryId(message.hint_term, message.hint_index)
        next_index = next_index_after_rejection(self.log, hint, message.rejected_index)
        if progress.has_lost(message.rejected_index, message.round):
            self.note_lost_log(message.source, progress, next_index)
        else:
            progress.reject(message.rejected_index, next_index)
    if progress.state is not REPLICATE or progress.next_index <= self.log.last_index or progress.append_due:
        self.send_due = True  # else it has all there is, and `feed` has nothing for it
    self.heard_follower(progress, message.round, leased=self.leases)


def hear_follower(self: RaftServer, message: AppendEntriesResponse | InstallSnapshotResponse) -> Progress | None:
    """Note that a follower lives; return this leader's view of it, None if there is none (any more)."""
    progress = self.progress.get(message.source) if self.state is LeaderState else None
    if progress is not None:
        if progress.counts and not message.counts and progress.match_index >= 0:
            self.note_lost_log(message.source, progress, next_index=0)
        progress.counts = message.counts
        progress.recent_active = True
        progress.silent_ticks = 0
    return progress


def heard_follower(self: RaftServer, progress: Progress, answered_round: int, *, leased: bool) -> None:
    """Go on with what waited for a follower's answer: reads, a transfer, newcomers."""
    if self.state is LeaderState:  # committing its own removal may have ended its leadership
        self.count_round(progress, answered_round, leased=leased)
        if self.transfer_target is not None:
            self.check_transfer()
        if self.pending_change is not None:
            self.check_catch_up()


def note_lost_log(self: RaftServer, peer_id: int, progress: Progress, next_index: int) -> None:
    """Count a follower no longer for what it acknowledged and lost, say so, and bring it what it lacks.

    What it acknowledged may be committed, and on fewer disks than a majority now. Until it holds that again it must
    not help to elect somebody who does not; only its leader knows, and reminds it (`handle_reminder`).
    """
    # What is compacted here is committed, so no later leader is without it (§5.4.3).
    index = max(progress.match_index, self.log.first_index - 1)
    owed = EntryId(self.log.term_at(index), index)
    self.effects.say_lost(LostLog(peer_id, progress.match_index, next_index - 1))
    progress.lose(owed, next_index)
    self.remind(peer_id, progress)


def remind(self: RaftServer, peer_id: int, progress: Progress) -> None:
    """Tell a follower what it had acknowledged."""
    owed = progress.owed
    self.effects.messages.append(Reminder(self.node_id, peer_id, self.current_term, owed.index, owed.term))


def maybe_commit(self: RaftServer, hint_index: int | None = None) -> None:
    """Commit the highest index that a quorum holds, if it is of this term; older ones go with it (§5.3, §5.4.2).

    Args:
        hint_index: an index that was just acknowledged; nothing can be committed if it is not beyond commit_index.
    """
    if hint_index is not None and hint_index <= self.commit_index:
        return
    match_index = {peer_id: each.match_index for peer_id, each in self.progress.items() if each.counts}
    match_index[self.node_id] = self.effects.persisted_index  # a leader may count itself only for what its disk has
    index = committed_index(match_index, self.configuration.voters, self.configuration.voters_outgoing)
    if index > self.commit_index and self.log.term_at(index) == self.current_term:
        first = self.log.term_at(self.commit_index) != self.current_term
        self.commit_to(index)
        self.effects.commit_untold = self.commit_along
        if not self.commit_along:
            self.send_due = True
        if first and self.noop:  # without a no-op, in simulations of the paper, no more is sent than the paper says
            # What stopped the last leader (a command that holds its process up) may be in here, and may stop this one
            # before it has said so; the next one would meet it as a leader too. Told now, all meet it at once. And
            # whose probe was lost since the election is asked again.
            for progress in self.progress.values():
                progress.append_due = self.send_due = True
        self.after_leader_commit()


def after_leader_commit(self: RaftServer) -> None:
    """Go on with what waited for a commit: reads of a new leader (§8) and changes of membership (§6)."""
    if self.reads.held:
        self.release_held_reads()
    self.finish_change()


# -- at the follower


def handle_append_entries(self: RaftServer, message: AppendEntries) -> None:
    """Make the log agree with the leader's, commit what that verified, and answer after the write (§5.3)."""
    self.hear_leader(message.source)
    if message.lease_ticks:
        # One more, because the first tick may come at once.
        self.promise_ticks = max(self.promise_ticks, message.lease_ticks + 1)
    log = self.log
    prev_index, prev_term, entries = message.prev_index, message.prev_term, message.entries
    passed = log.first_index - 1 - prev_index
    if passed > 0:
        # What is compacted here was committed, so this leader's log has it too (§5.4.3).
        entries = entries[passed:]
        prev_index, prev_term = log.first_index - 1, log.previous_term
    if not log.match(prev_index, prev_term):
        hint = rejection_hint(log, prev_index, prev_term)
        self.send_after_persist(
            AppendEntriesResponse(
                self.node_id,
                message.source,
                self.current_term,
                False,
                -1,
                message.round,
                hint_index=hint.index,
                hint_term=hint.term,
                rejected_index=prev_index,
                counts=self.probation is None,
            )
        )
        return
    if entries:
        self.store_entries(prev_index + 1, entries)
    match_index = prev_index + len(entries)
    if self.owed is not NO_ENTRY and match_index >= self.owed.index:
        self.owed = NO_ENTRY  # a leader's log is here up to there
    # Only up to what this message verified: what follows in this log may be another leader's (Figure 2, step 5).
    self.commit_to(min(message.commit_index, match_index))
    if self.probation is not None:
        self.check_probation(message)
    self.acknowledge_append(message, match_index)


def handle_reminder(self: RaftServer, message: Reminder) -> None:
    """Take note that this disk held more: until it does again, vote as if it still did (§5.4.1), and do not lead."""
    self.hear_leader(message.source)
    owed = EntryId(message.owed_term, message.owed_index)
    if owed > max(self.log.last, self.owed):
        self.owed = owed
        self.effects.say_lost(LostLog(self.node_id, owed.index, self.log.last_index))


def store_entries(self: RaftServer, first: int, entries: list[LogEntry]) -> None:
    """Put the leader's entries in, removing what contradicts them; configurations in them take effect now (§6)."""
    changed = self.log.merge(first, entries)
    if changed is None:
        return
    assert changed > self.commit_index, (
        f"entry {changed} is committed (up to {self.commit_index}) and would be replaced"
    )
    self.effects.append_from(changed)
    configurations = self.configurations
    rolled_back = False
    while configurations[-1][0] >= changed:
        configurations.pop()
        rolled_back = True
    found = [
        (index, entry.item)
        for index, entry in enumerate(entries[changed - first :], changed)
        if type(entry.item) is Configuration
    ]
    if found or rolled_back:
        configurations.extend(found)
        self.use_configuration()


def acknowledge_append(self: RaftServer, message: AppendEntries, match_index: int) -> None:
    """Answer a success after the write, together with an earlier one that waits for the same write."""
    waiting = self.effects.messages_after_persist
    answered_round = message.round
    if waiting:
        last = waiting[-1]
        if (
            isinstance(last, AppendEntriesResponse)
            and last.success
            and last.dest == message.source
            and last.term == self.current_term
        ):
            # In one term a leader only appends, so what agreed with it a moment ago still does.
            match_index = max(match_index, last.match_index)
            answered_round = max(answered_round, last.round)
            waiting.pop()
    waiting.append(
        AppendEntriesResponse(
            self.node_id,
            message.source,
            self.current_term,
            True,
            match_index,
            answered_round,
            counts=self.probation is None,
        )
    )


def commit_to(self: RaftServer, index: int) -> None:
    """Raise commit_index; it never falls (Figure 2)."""
    if index > self.commit_index:
        assert index <= self.log.last_index, f"committing {index}, beyond the log's end {self.log.last_index}"
        self.commit_index = index


def applied(self: RaftServer, index: int) -> None:
    """Note that the executor has applied everything up to `index` (also by restoring a snapshot)."""
    self.last_applied = max(self.last_applied, index)
    unapplied = self.unapplied
    while unapplied and unapplied[0][0] <= index:
        self.unapplied_bytes -= unapplied.popleft()[1]
