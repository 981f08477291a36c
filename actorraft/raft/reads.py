"""Linearizable reads without a log entry: ReadIndex, leases, and reads that followers ask for.

A read may be served at the leader's commit index once the leader knows that it still led after
the read arrived. Every AppendEntries and InstallSnapshot carries the leader's current round, a
number that only grows; a read waits for a round that begins after its arrival, and one answered
round confirms all reads waiting for it or an earlier one. As no round is used twice, an answer that is
late or repeated confirms nothing that came after its question.

Lease reads need no question: who answered a message with a lease has promised, for `lease_ticks` of its
own clock, to help nobody else to lead. The leader counts from when it sent the round, and only
`LEASE_TENTHS` tenths, so clocks may differ in rate by 10 %.

Source:     D§6.4 (ReadIndex), D§6.4.1 (leases).
Invariant:  rounds grow strictly over the server's life; a read is confirmed only by a round that began after it.
Differs:    D§6.4 speaks of heartbeats; here any AppendEntries that carries the round will do.
Not here:   waiting until the machine has applied the index, which is the driver's.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from actorraft.raft.messages import ReadIndex, ReadIndexResponse
from actorraft.raft.quorum import VoteResult, committed_index, vote_result
from actorraft.raft.ready import FollowerState, LeaderState, ReadState

if TYPE_CHECKING:
    from actorraft.raft.progress import Progress
    from actorraft.raft.server import RaftServer

LEASE_TENTHS = 9  # the part of a lease that the leader uses; the rest is for clocks that differ
TOKEN_START_MAX = 1 << 48  # where the numbers of forwarded reads may begin


class WaitingRead(NamedTuple):
    """A read on its way through the leader. `requester` is None for one of its own, else the follower that asks."""

    requester: int | None
    token: int
    index: int = -1  # type: ignore[assignment]  # the commit index when its round began
    round: int = 0  # the round that confirms it


class ReadQueue:
    """Reads that wait at a leader, and the rounds that confirm them. One object serves for the server's whole life."""

    def __init__(self) -> None:
        self.round = 0  # the last round begun; only grows, also from term to term
        self.held: list[WaitingRead] = []  # until an entry of the leader's own term is committed
        self.arrived: list[WaitingRead] = []  # since the last round began: they need a further one
        self.waiting: deque[WaitingRead] = deque()  # for their round to be answered; rounds ascend
        self.lease_starts: deque[tuple[int, int]] = (
            deque()
        )  # (round, tick at which it began), not yet answered by a quorum
        self.lease_until_ticks = -1  # of the leader's own count; the lease holds before it

    def next_round(self) -> int:
        """Begin a round; what is sent from here on carries it."""
        self.round += 1
        return self.round

    def begin(self, commit_index: int) -> bool:
        """Begin a round for the reads that arrived; return whether there were any."""
        if not self.arrived:
            return False
        current = self.next_round()
        self.waiting.extend(read._replace(index=commit_index, round=current) for read in self.arrived)
        self.arrived = []
        return True

    def confirm(self, answered_round: int) -> list[WaitingRead]:
        """Return, once, the reads that an answer of a quorum to `answered_round` confirms."""
        confirmed = []
        while self.waiting and self.waiting[0].round <= answered_round:
            confirmed.append(self.waiting.popleft())
        return confirmed

    def lease_sent(self, now_ticks: int, lease_ticks: int) -> None:
        """Note that the current round, sent now, carries a lease."""
        self.lease_starts.append((self.round, now_ticks))
        while self.lease_starts[0][1] + lease_ticks <= now_ticks:
            self.lease_starts.popleft()

    def lease_confirmed(self, answered_round: int, lease_ticks: int) -> None:
        """Prolong the lease: a quorum answered `answered_round`."""
        start = None
        while self.lease_starts and self.lease_starts[0][0] <= answered_round:
            start = self.lease_starts.popleft()[1]
        if start is not None:
            self.lease_until_ticks = max(self.lease_until_ticks, start + lease_ticks * LEASE_TENTHS // 10)

    def drop_lease(self) -> None:
        """End the lease; only rounds that begin after this can renew it."""
        self.lease_starts.clear()
        self.lease_until_ticks = -1

    def drain(self) -> list[WaitingRead]:
        """Return all reads, confirmed or not, and forget them."""
        everything = [*self.waiting, *self.arrived, *self.held]
        self.waiting.clear()
        self.arrived, self.held = [], []
        return everything


# -- at the leader


def read_index(self: RaftServer, token: int, lease: bool = False) -> None:
    """Ask for an index at which a read may be served; the answer is a `ReadState` in a later Ready.

    Every token gets exactly one answer (CheckQuorum ends the waiting at a leader that is cut off); index -1 is a
    refusal: there is no known leader, it changed, or it did not answer. Works on followers too, which ask the leader.

    Args:
        token: the caller's name for the read; not reused while it is waiting.
        lease: serve it under the leader's lease where `config.lease_reads` is on and the lease holds.
    """
    if self.state is LeaderState:
        start_read(self, WaitingRead(None, token), lease=lease)
    elif self.state is FollowerState and self.leader_id is not None:
        wire_token = self.read_token_next
        self.read_token_next += 1
        self.forwarded_reads[wire_token] = (token, self.now_ticks + self.config.election_timeout_ticks)
        self.send_after_persist(ReadIndex(self.node_id, self.leader_id, self.current_term, wire_token))
    else:
        self.add_read_state(ReadState(token, -1))


def start_read(self: RaftServer, read: WaitingRead, *, lease: bool = False) -> None:
    """Let a read wait for what it needs: a commit of this term, then a quorum's word or a lease (D§6.4)."""
    if not self.committed_in_own_term:
        # Entries of former leaders may be committed without this leader knowing it yet (§8).
        self.reads.held.append(read)
    elif (lease and lease_holds(self)) or leads_alone(self):
        finish_read(self, read._replace(index=self.commit_index))
    else:
        self.reads.arrived.append(read)
        self.send_due = True  # a round of its own, now: the next heartbeat may be far


def leads_alone(self: RaftServer) -> bool:
    """Return whether this leader is a quorum all by itself."""
    voters, outgoing = self.configuration.voters, self.configuration.voters_outgoing
    return vote_result(voters, {self.node_id: True}, outgoing) is VoteResult.WON


def lease_holds(self: RaftServer) -> bool:
    """Return whether no other leader can exist at this tick (D§6.4.1)."""
    return self.leases and self.now_ticks < self.reads.lease_until_ticks


def release_held_reads(self: RaftServer) -> None:
    """Let the reads go on that waited for the first commit of this term (§8)."""
    held, self.reads.held = self.reads.held, []
    for read in held:
        start_read(self, read)


def count_round(self: RaftServer, progress: Progress, answered_round: int, *, leased: bool) -> None:
    """Count a follower's answer to a round; confirm what a quorum has answered by now.

    A rejection counts as well: it too says that the follower was in this leader's term when the round reached it.
    """
    progress.acked_round = max(progress.acked_round, answered_round)
    if leased:
        progress.leased_round = max(progress.leased_round, answered_round)
    reads = self.reads
    voters, outgoing = self.configuration.voters, self.configuration.voters_outgoing
    if reads.waiting and answered_round >= reads.waiting[0].round:
        rounds = {peer_id: peer.acked_round for peer_id, peer in self.progress.items() if peer.counts}
        rounds[self.node_id] = reads.round
        for read in reads.confirm(committed_index(rounds, voters, outgoing)):
            finish_read(self, read)
    if leased and reads.lease_starts and answered_round >= reads.lease_starts[0][0]:
        rounds = {peer_id: peer.leased_round for peer_id, peer in self.progress.items() if peer.counts}
        rounds[self.node_id] = reads.round
        reads.lease_confirmed(committed_index(rounds, voters, outgoing), self.config.election_timeout_ticks)


def finish_read(self: RaftServer, read: WaitingRead) -> None:
    """Answer a read, with its index or with a refusal."""
    if read.requester is None:
        self.add_read_state(ReadState(read.token, read.index))
    else:
        self.send_after_persist(
            ReadIndexResponse(self.node_id, read.requester, self.current_term, read.token, read.index)
        )


def handle_read_index(self: RaftServer, message: ReadIndex) -> None:
    """Answer a follower's question; whoever does not lead refuses, and the follower asks again elsewhere."""
    read = WaitingRead(message.source, message.token)
    if self.state is LeaderState and message.source in self.progress:
        self.progress[message.source].append_due = self.send_due = True  # it will wait until it knows of the commit
        start_read(self, read)
    else:
        finish_read(self, read)


# -- at the follower


def handle_read_index_response(self: RaftServer, message: ReadIndexResponse) -> None:
    """Pass the leader's answer on, once; an answer to a question that is not open is a late one."""
    forwarded = self.forwarded_reads.pop(message.token, None)
    if forwarded is not None:
        self.add_read_state(ReadState(forwarded[0], message.index))


def refuse_reads(self: RaftServer) -> None:
    """Refuse every read that waits here: this node's leader, or its own leadership, is gone."""
    for read in self.reads.drain():
        finish_read(self, read._replace(index=-1))
    for token, _ in self.forwarded_reads.values():
        self.add_read_state(ReadState(token, -1))
    self.forwarded_reads.clear()


def expire_reads(self: RaftServer) -> None:
    """Refuse forwarded reads whose question or answer must have been lost."""
    for wire_token, (token, deadline_ticks) in list(self.forwarded_reads.items()):
        if deadline_ticks > self.now_ticks:
            break  # deadlines ascend, as tokens do
        del self.forwarded_reads[wire_token]
        self.add_read_state(ReadState(token, -1))
