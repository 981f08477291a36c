"""Handing leadership over on purpose.

The leader stops taking commands, brings the target up to date, and tells it to campaign at once. If the target
does not lead after one election timeout, the old leader goes on.

Source:     D§3.10.
Invariant:  after TimeoutNow has left, this leader serves no lease read in this term any more: the target's
            votes are given in spite of leases (D§6.4.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actorraft.raft.errors import NotLeader, ProposalRefused
from actorraft.raft.messages import TimeoutNow
from actorraft.raft.ready import LeaderState

if TYPE_CHECKING:
    from actorraft.raft.server import RaftServer


def transfer_leadership(self: RaftServer, target: int | None = None) -> None:
    """Hand leadership over to `target`, or to the voter that is most up to date.

    Proposals are refused until the target leads or one election timeout has passed (D§3.10).

    Raises:
        NotLeader: ask `leader_id`.
        ProposalRefused: another transfer is under way, or the target is no other voter.
    """
    if self.state is not LeaderState:
        raise NotLeader(self.leader_id)
    if self.transfer_target is not None:
        if target in (None, self.transfer_target):
            return
        raise ProposalRefused(f"leadership is being handed over to node {self.transfer_target}")
    if target is None:
        target = self.transfer_candidate()
    voters = self.configuration.voters
    if target is None or target == self.node_id or target not in voters:
        raise ProposalRefused(f"leadership can only go to another voter ({sorted(voters - {self.node_id})})")
    self.transfer_target = target
    self.transfer_ticks = 0
    if self.progress[target].match_index < self.log.last_index:
        # The last appends to it may be lost: ask now, for the next heartbeat is far.
        self.progress[target].append_due = self.send_due = True
    self.check_transfer()


def transfer_candidate(self: RaftServer) -> int | None:
    """Return the voter that is most up to date, preferring those that answered lately; None if there is none."""
    candidates = [
        (progress.recent_active, progress.match_index, -peer_id)
        for peer_id, progress in self.progress.items()
        if peer_id in self.configuration.voters and progress.counts
    ]
    return -max(candidates)[2] if candidates else None


def check_transfer(self: RaftServer) -> None:
    """Tell the target to campaign, once, as soon as it has the whole log."""
    target = self.transfer_target
    if target is None or self.timeout_now_sent:
        return
    progress = self.progress.get(target)
    if progress is not None and progress.counts and progress.match_index == self.log.last_index:
        self.timeout_now_sent = True
        self.leases = False
        self.reads.drop_lease()
        self.send_after_persist(TimeoutNow(self.node_id, target, self.current_term))


def tick_transfer(self: RaftServer, ticks: int) -> None:
    """Give a transfer up after one election timeout, and go on leading (D§3.10)."""
    if self.transfer_target is None:
        return
    self.transfer_ticks += ticks
    if self.transfer_ticks >= self.config.election_timeout_ticks:
        self.transfer_target = None
        self.timeout_now_sent = False


def handle_timeout_now(self: RaftServer, message: TimeoutNow) -> None:
    """Campaign at once: the leader asked for it, so no pre-vote and nobody's lease stands in the way (D§3.10)."""
    if self.state is not LeaderState:
        self.campaign(pre_vote=False, transfer=True)
