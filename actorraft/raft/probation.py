"""A node that comes with an empty disk: it neither votes nor counts before it cannot do harm.

Raft builds on stable storage. A node that lost its disk has forgotten votes and entries that a majority was made with;
if it went on under its old id, it could help to elect a leader that lacks a write which was acknowledged. An empty disk
alone does not tell a first start from a lost one, and neither does anything that can be copied back beside it. So such
a node is on probation: it is fed, and what it says moves no majority, until

    all who must be asked are empty too: this is the cluster's first start; or
    the leader of the highest term among a majority of the *others* has brought it to a commit index that it learned
    after its start, committed in that leader's own term.

Why a majority of the others: whatever was acknowledged with this node's help, and every vote it gave, involved enough
others to meet them. Why own term: a new leader does not know yet all that is committed (§5.4.2).

A node whose folder proves that it never began (`marked`) need not hear a majority of the others for a first start: with
as many as make a majority together with itself two of three can begin before the third is there. Each of two
that find each other empty goes on only when it knows that the other has heard it; else the first would have begun
before the second has asked.

Source:     Raft §5 (persistent state), §5.4; docs/decisions/0020.
Invariant:  while `probation` is not None: no vote, no pre-vote, no campaign; every answer says that it does not count.
Not here:   the mark and the folder (node/standalone.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actorraft.raft.messages import AppendEntries, EntryId, Standing

if TYPE_CHECKING:
    from actorraft.raft.server import RaftServer

NO_SEED = EntryId(0, -1)


@dataclass
class Probation:
    """What a node on probation knows of the others, in this run.

    Attributes:
        marked: the folder says that this id was never begun.
        resumed: an earlier run was on probation already, and was fed.
        seed: the state of another cluster that all founders of this one begin with; having that alone is being empty.
    """

    marked: bool = False
    resumed: bool = False
    seed: EntryId = NO_SEED
    terms: dict[int, int] = field(default_factory=dict)  # other voter -> highest term that it told
    empty: set[int] = field(default_factory=set)  # those of them that had not begun when they were first heard
    mutual: set[int] = field(default_factory=set)  # and those of these that have heard the same of this node
    target_index: int | None = None  # this commit index is to be reached
    elapsed_ticks: int = 0  # since the others were asked


def ask_standing(self: RaftServer, peer_id: int) -> None:
    """Ask another voter whether it has begun."""
    if peer_id in self.voters and peer_id != self.node_id:
        self.send_after_persist(_standing(self, peer_id, asks=True))


def tick_probation(self: RaftServer, ticks: int) -> None:
    """Ask all others, once a heartbeat; a node that has none needs to ask nobody."""
    known = self.probation
    assert known is not None, "this node is not on probation"
    known.elapsed_ticks += ticks
    if known.elapsed_ticks >= self.config.heartbeat_ticks:
        known.elapsed_ticks = 0
        for peer_id in sorted(self.voters):
            self.ask_standing(peer_id)
    if not self.voters - {self.node_id}:
        self.end_probation()


def handle_standing(self: RaftServer, message: Standing) -> None:
    """Answer who asks; on probation, note who has begun, and go on if this is the cluster's first start."""
    known, source = self.probation, message.source
    if known is not None and source in self.voters:
        if source not in known.terms and not message.begun:
            known.empty.add(source)
        known.terms[source] = max(message.term, known.terms.get(source, 0))
        if source in known.empty and (message.heard or message.begun):
            known.mutual.add(source)
    if message.asks:
        self.send_after_persist(_standing(self, source))
    if known is not None and _is_first_start(self, known):
        self.end_probation()
        if message.begun:
            self.campaign()  # the other goes on already, and can vote: nobody need wait for a timeout
        else:
            for peer_id in sorted(known.mutual):
                self.send_after_persist(_standing(self, peer_id))


def _standing(self: RaftServer, dest: int, *, asks: bool = False) -> Standing:
    known = self.probation
    begun = known is None or known.resumed or has_begun(self, known)
    return Standing(self.node_id, dest, self.current_term, begun, known is not None and dest in known.empty, asks)


def has_begun(self: RaftServer, known: Probation) -> bool:
    """Whether this node has been fed, or has heard of an election: it has more than what it was founded with."""
    return self.current_term > known.seed.term or self.log.last_index > known.seed.index


def _is_first_start(self: RaftServer, known: Probation) -> bool:
    """Whether enough others are as empty as this node, and none that was heard is not."""
    others = self.voters - {self.node_id}
    if known.resumed or known.terms.keys() - known.empty:
        return False
    enough = (len(others) + 1) // 2 if known.marked else len(others) // 2 + 1
    return len(known.mutual & others) >= enough


def check_probation(self: RaftServer, message: AppendEntries) -> None:
    """End probation once the leader has brought this node far enough."""
    known = self.probation
    assert known is not None, "this node is not on probation"
    others = self.voters - {self.node_id}
    answered = known.terms.keys() & others
    if message.source not in answered or len(answered) * 2 <= len(others):
        return
    if message.term < max(known.terms.values()):
        return  # it leads no longer, and does not know it
    if known.target_index is None:
        known.target_index = message.commit_index
    if self.commit_index >= known.target_index and self.committed_in_own_term:
        self.end_probation()


def end_probation(self: RaftServer) -> None:
    """Vote and count from now on."""
    self.probation = None
    self.effects.end_probation()
