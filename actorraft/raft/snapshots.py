"""Snapshots: cutting the log, and sending what was cut off to followers that need it.

One chunk is under way at a time; its answer says how far the follower has got. A chunk is taken
for lost when the follower answers a heartbeat that left after it: no timer, and nothing is repeated
to a follower that does not read. Meanwhile the other followers get their appends as always.

Source:     Raft §7 (InstallSnapshot).
Invariant:  chunks from different leaders, or of different snapshots, are never mixed.
Shape:      offsets are bytes; the content of a chunk is filled in by the driver on the way out.
Not here:   taking a snapshot, storing it and restoring the machine, which are the driver's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from actorraft.raft.messages import NO_ENTRY, Configuration, EntryId, InstallSnapshot, InstallSnapshotResponse
from actorraft.raft.progress import SNAPSHOT, Progress

if TYPE_CHECKING:
    from actorraft.raft.server import RaftServer


class Receiving(NamedTuple):
    """A snapshot that is coming in. Another leader's bytes of the same snapshot may differ, so both are its name."""

    source: int
    term: int
    snapshot_id: EntryId
    next_offset: int = 0


def snapshot_taken(self: RaftServer, snapshot_id: EntryId, configuration: Configuration, trailing: int) -> int:
    """Cut the log behind a durable snapshot of this node's own machine; return the first index that is still held (§7).

    Args:
        snapshot_id: the last entry inside the snapshot; applied.
        configuration: as `configuration_at(snapshot_id.index)` said.
        trailing: entries before the snapshot's end to keep for followers that are a little late.
    """
    if snapshot_id.index <= self.snapshot_id.index:
        return self.log.first_index  # an installed snapshot was faster
    assert snapshot_id.index <= self.commit_index, f"snapshot at {snapshot_id}, committed only {self.commit_index}"
    assert configuration == self.configuration_at(snapshot_id.index), f"not the configuration at {snapshot_id}"
    self.snapshot_id = snapshot_id
    while len(self.configurations) > 1 and self.configurations[1][0] <= snapshot_id.index:
        del self.configurations[0]
    trailing = min(trailing, self.log.count_within(self.config.trailing_bytes_max, snapshot_id.index))
    self.log.compact(max(snapshot_id.index + 1 - trailing, self.log.first_index))
    self.send_due = True
    return self.log.first_index


# -- at the leader


def send_chunk(self: RaftServer, peer_id: int, progress: Progress) -> None:
    """Send the chunk at the follower's offset; the driver fills in `data` and `done`."""
    progress.chunk_due = False
    progress.snapshot_round = self.reads.round
    snapshot_id = progress.snapshot_id
    self.effects.messages.append(
        InstallSnapshot(
            self.node_id,
            peer_id,
            self.current_term,
            snapshot_id.index,
            snapshot_id.term,
            progress.snapshot_configuration,
            progress.snapshot_offset,
            round=self.reads.round,
        )
    )


def check_snapshot(self: RaftServer, progress: Progress, answered_round: int) -> None:
    """Look after a snapshot under way when the follower answers an append."""
    if progress.match_index >= self.log.first_index - 1:
        progress.become_replicate()  # it has caught up without
    elif answered_round > progress.snapshot_round:
        # It got what left after the chunk but not the chunk; or the driver no longer had that snapshot.
        if progress.snapshot_id == self.snapshot_id:
            progress.chunk_due = True
        else:
            self.start_snapshot(progress)


def start_snapshot(self: RaftServer, progress: Progress) -> None:
    """Begin sending the newest snapshot."""
    assert self.snapshot_id.index >= self.log.first_index - 1, f"no snapshot covers what is cut below {self.log!r}"
    progress.become_snapshot(self.snapshot_id, self.configuration_at(self.snapshot_id.index))


def handle_install_snapshot_response(self: RaftServer, message: InstallSnapshotResponse) -> None:
    """Send the next chunk, or go on with appends once the snapshot is installed (§7)."""
    progress = self.hear_follower(message)
    if progress is None:
        return
    self.send_due = True
    if progress.state is SNAPSHOT and message.snapshot_index == progress.snapshot_id.index:
        if message.done:
            progress.acknowledge(message.snapshot_index, self.reads.round)
            progress.become_replicate()
            self.maybe_commit(progress.match_index)
        elif message.next_offset != progress.snapshot_offset:
            progress.snapshot_offset = message.next_offset
            progress.chunk_due = True
    self.heard_follower(progress, message.round, leased=False)


# -- at the follower


def handle_install_snapshot(self: RaftServer, message: InstallSnapshot) -> None:
    """Take the next chunk; with the last one, put the snapshot in the place of the log (§7)."""
    self.hear_leader(message.source)
    snapshot_id = EntryId(message.snapshot_term, message.snapshot_index)
    if snapshot_id.index <= self.commit_index or self.log.match(snapshot_id.index, snapshot_id.term):
        # An older snapshot, or a prefix of this log: keep the log, which may be longer (§7, step 6).
        self.commit_to(snapshot_id.index)
        self.receiving = None
        self.answer_chunk(message, message.offset + len(message.data), done=True)
        return
    receiving = self.receiving
    if receiving is None or receiving[:3] != (message.source, message.term, snapshot_id):
        receiving = Receiving(message.source, message.term, snapshot_id)
        if message.offset != 0:
            self.answer_chunk(message, 0, done=False)
            return
    done = False
    if message.offset == receiving.next_offset:
        self.effects.write_chunk(message)
        receiving = receiving._replace(next_offset=receiving.next_offset + len(message.data))
        done = message.done
    self.receiving = None if done else receiving
    if done:
        self.install(snapshot_id, message.configuration)
    self.answer_chunk(message, receiving.next_offset, done=done)


def answer_chunk(self: RaftServer, message: InstallSnapshot, next_offset: int, *, done: bool) -> None:
    """Say, once it is durable, how far this node has got with a snapshot."""
    self.send_after_persist(
        InstallSnapshotResponse(
            self.node_id,
            message.source,
            self.current_term,
            message.snapshot_index,
            next_offset,
            done,
            message.round,
            counts=self.probation is None,
        )
    )


def install(self: RaftServer, snapshot_id: EntryId, configuration: Configuration) -> None:
    """Put a received snapshot in the place of the whole log (§7, steps 7 and 8)."""
    assert snapshot_id.index > self.commit_index, f"{snapshot_id} is older than what is committed, {self.commit_index}"
    self.log.reset(snapshot_id)
    self.snapshot_id = snapshot_id
    self.commit_index = snapshot_id.index
    if snapshot_id.index >= self.owed.index:
        self.owed = NO_ENTRY
    self.effects.install(snapshot_id)
    self.configurations = [(snapshot_id.index, configuration)]
    self.use_configuration()
