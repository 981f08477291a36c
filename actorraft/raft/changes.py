"""Changing the membership of a running cluster: when it may be proposed, and what it does to this server.

A configuration takes effect when it is appended, not when it is committed (§6), so a server keeps every
configuration since its snapshot with its index: cutting the log takes back what was in the part cut off.
A change of one voter is made in one step; of more, in two, and the leader takes the second by itself. Who is to
vote first catches up as a learner, in rounds.

Source:     Raft §6; D§4.1 and the correction of 2015 (own-term commit first), D§4.2.1 (rounds), D§4.2.2 (removed
            leader), D§4.3 (joint).
Invariant:  at most one configuration entry is uncommitted.
Differs:    a removed node is fed until it knows of its removal, for one election timeout at most, so that it does
            not campaign.
Not here:   the arithmetic of configurations; see membership.py.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actorraft.raft.errors import NotLeader, ProposalRefused
from actorraft.raft.log import RaftLog
from actorraft.raft.membership import (
    AddLearner,
    AddVoter,
    MemberChange,
    apply_changes,
    enter_joint,
    leave_joint,
    simple,
)
from actorraft.raft.messages import Configuration, TimeoutNow
from actorraft.raft.progress import Progress
from actorraft.raft.ready import LeaderState

if TYPE_CHECKING:
    from actorraft.raft.server import RaftServer

ROUNDS_MAX = 10  # D§4.2.1: who is not quick enough in the last of them does not become a voter
SILENT_TIMEOUTS_MAX = 10  # nor who is silent for so many election timeouts


@dataclass
class Round:
    """One round of catching up: replicate what the leader had when it began."""

    target_index: int
    started_ticks: int
    number: int = 1


@dataclass
class PendingChange:
    """A change that waits until its new voters have caught up. Volatile: a new leader knows nothing of it."""

    changes: tuple[MemberChange, ...]
    rounds: dict[int, Round] = field(default_factory=dict)  # those who have not caught up yet


# -- at every server


def configurations_in(
    log: RaftLog, snapshot_index: int, configuration: Configuration
) -> list[tuple[int, Configuration]]:
    """Return the snapshot's configuration and those in the log after it, each with its index."""
    entries = log.between(snapshot_index + 1, len(log))
    found = [(index, entry.item) for index, entry in enumerate(entries, snapshot_index + 1)]
    return [(snapshot_index, configuration), *(one for one in found if isinstance(one[1], Configuration))]


def configuration_at(self: RaftServer, index: int) -> Configuration:
    """Return the last configuration at or below `index`, which is not below the snapshot."""
    found = bisect_right(self.configurations, index, key=lambda known: known[0])
    assert found, f"the configuration at {index} is older than what is known since {self.configurations[0][0]}"
    return self.configurations[found - 1][1]


def use_configuration(self: RaftServer) -> None:
    """Use the latest configuration in the log, committed or not (§6)."""
    self.configuration = self.configurations[-1][1]
    if self.state is not LeaderState:
        return
    members = self.configuration.members - {self.node_id}
    for peer_id in members - self.progress.keys():
        self.progress[peer_id] = self.new_progress()
    for peer_id, progress in self.progress.items():
        progress.removed_at = None if peer_id in members else self.configurations[-1][0]
        progress.removed_ticks = 0


def new_progress(self: RaftServer) -> Progress:
    """Return the view of an unknown follower: its log is taken to be as long as the leader's (Figure 2)."""
    config = self.config
    progress = Progress(
        self.log.last_index + 1, inflight_max=config.inflight_max, inflight_bytes_max=config.inflight_bytes_max
    )
    progress.append_due = True
    return progress


# -- at the leader


def change_membership(self: RaftServer, changes: Sequence[MemberChange]) -> int:
    """Begin a change of membership; return the index of the configuration entry that begins it.

    If the change adds voters that have not caught up, that entry makes them learners (if they are learners already,
    there is none, and the index is that of the present configuration). The change itself follows once they have caught
    up; `pending_change` is None again when it did, or when they were too slow or silent: `configuration` tells which.
    More than one voter more or less makes the change joint; the leader leaves the joint phase by itself. A change
    that has no effect appends nothing.

    Raises:
        NotLeader: ask `leader_id`.
        ProposalRefused: another change or a transfer is under way, no entry of this leader's term is committed yet
            (try again soon), or the change is wrong in itself.
    """
    if self.state is not LeaderState:
        raise NotLeader(self.leader_id)
    if self.transfer_target is not None:
        raise ProposalRefused(f"leadership is being handed over to node {self.transfer_target}")
    if not self.committed_in_own_term:
        # Else two leaders could each commit a change that the other does not know (the bug of 2015).
        raise ProposalRefused("this leader has not committed an entry of its own term yet")
    if self.holding:
        # Who joins now would learn too late what is decided of the entry that this node cannot apply.
        raise ProposalRefused("this leader cannot apply a command; see its status")
    if self.pending_change is not None or self.configuration.joint or self.configurations[-1][0] > self.commit_index:
        raise ProposalRefused("another change of membership is under way")
    configuration = self.configuration
    for change in changes:
        check_identity(configuration, change)
        if isinstance(change, AddVoter) and change.node_id in self.unfit:
            raise ProposalRefused(
                f"node {change.node_id} runs code of the machine that is older than the log's, or another Python"
            )
    if apply_changes(configuration, changes) == configuration:
        return self.configurations[-1][0]  # done already: asked for once more, perhaps
    newcomers = [
        change for change in changes if isinstance(change, AddVoter) and change.node_id not in configuration.voters
    ]
    if not newcomers:
        return self.enter_change(changes)
    strangers = [AddLearner(*change) for change in newcomers if change.node_id not in configuration.learners]
    if strangers:
        self.append_own(simple(configuration, strangers))
    self.pending_change = PendingChange(
        tuple(changes), {change.node_id: Round(self.log.last_index, self.now_ticks) for change in newcomers}
    )
    self.check_catch_up()
    return self.configurations[-1][0]


def check_identity(configuration: Configuration, change: MemberChange) -> None:
    """Refuse an id that belonged to a removed node, or that belongs to another directory than the one named."""
    node_id = change.node_id
    if not isinstance(change, AddVoter | AddLearner):
        return
    if node_id not in configuration.members and node_id < configuration.next_node_id:
        raise ProposalRefused(f"node id {node_id} was used before; the next free one is {configuration.next_node_id}")
    known = dict(configuration.storage_ids).get(node_id, "")
    if known and change.storage_id and known != change.storage_id:
        raise ProposalRefused(f"node {node_id} is known with another storage id")


def enter_change(self: RaftServer, changes: Sequence[MemberChange]) -> int:
    """Append the configuration that carries out `changes`, joint if more than one voter changes."""
    configuration = self.configuration
    changed = apply_changes(configuration, changes)
    if len(changed.voters ^ configuration.voters) > 1:
        changed = enter_joint(configuration, changes)
    return self.append_own(changed)


def finish_change(self: RaftServer) -> None:
    """Take the next step when the latest configuration is committed: leave the joint phase, or leadership (§6)."""
    if self.configurations[-1][0] > self.commit_index:
        return
    if self.configuration.joint:
        self.append_own(leave_joint(self.configuration))
    elif self.node_id not in self.configuration.voters:
        # It led until now, and was not counted; the others learn of the commit before it goes (§6, second issue).
        self.flush()
        heir = self.transfer_candidate()
        term = self.current_term
        self.become_follower(term, None)
        if heir is not None:
            self.send_after_persist(TimeoutNow(self.node_id, heir, term))
    elif self.pending_change is not None:
        self.check_catch_up()


def check_catch_up(self: RaftServer) -> None:
    """Finish rounds of newcomers; when all have caught up, enter the change itself (D§4.2.1)."""
    pending = self.pending_change
    if pending is None:
        return
    if self.unfit and any(change.node_id in self.unfit for change in pending.changes if isinstance(change, AddVoter)):
        self.pending_change = None
        return
    election_timeout_ticks = self.config.election_timeout_ticks
    for node_id, current in list(pending.rounds.items()):
        progress = self.progress.get(node_id)
        if progress is None or progress.silent_ticks >= SILENT_TIMEOUTS_MAX * election_timeout_ticks:
            self.pending_change = None
            return
        if progress.match_index < current.target_index:
            continue
        if self.now_ticks - current.started_ticks < election_timeout_ticks:
            # A round this short: what is still missing delays a commit by less than an election would.
            del pending.rounds[node_id]
        elif current.number >= ROUNDS_MAX:
            self.pending_change = None
            return
        else:
            pending.rounds[node_id] = Round(self.log.last_index, self.now_ticks, current.number + 1)
    settled = self.configurations[-1][0] <= self.commit_index and self.transfer_target is None
    if not pending.rounds and settled:
        self.pending_change = None
        self.enter_change(pending.changes)


def tick_members(self: RaftServer, ticks: int) -> None:
    """Stop waiting for newcomers that are silent, and feeding removed nodes that know of it or had time to learn it."""
    for peer_id, progress in list(self.progress.items()):
        progress.silent_ticks += ticks
        if progress.removed_at is None:
            continue
        progress.removed_ticks += ticks
        told = progress.match_index >= progress.removed_at and progress.commit_sent >= progress.removed_at
        if told or progress.removed_ticks >= self.config.election_timeout_ticks:
            del self.progress[peer_id]
    self.check_catch_up()
