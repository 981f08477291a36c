"""Leader election: timeouts, pre-vote, votes, and what happens when a connection to the leader breaks.

A server that asks for a pre-vote stays a follower of its term (`pre_candidate`): it becomes a candidate, and its term
grows, only when a majority says that it could win and hears no leader either.

Source:     Raft §5.2 (election), §5.4.1 (up-to-date logs), §6 and D§4.2.3 (disruptive servers), D§6.2 (CheckQuorum),
            D§9.6 (PreVote).
Invariant:  at most one vote a term, durable before it leaves; the term never falls.
Differs:    pre-vote and CheckQuorum are on by default; a broken connection to the leader counts as not hearing it.
Not here:   handing over (transfer.py); what a new leader sends (replication.py).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from actorraft.raft.messages import RequestVote, RequestVoteResponse
from actorraft.raft.progress import SNAPSHOT
from actorraft.raft.quorum import VoteResult, vote_result
from actorraft.raft.ready import NOT_URGENT, CandidateState, FollowerState, LeaderState

if TYPE_CHECKING:
    from actorraft.raft.server import RaftServer

HOLDING_PATIENCE = 3  # election timeouts that a node whose machine holds leaves to the others
# For nodes that hear each other within a millisecond or so; `urgent_scale` stretches them where they are far apart.
URGENT_RANK_MS = 4  # between the first questions of followers that see their leader's death together
URGENT_RETRY_MS = 5  # until a refused pre-vote is repeated while the leader's link is down
URGENT_SPLIT_MS = (5, 26)  # until a new election after a split one, drawn from [low, high)
URGENT_TRIES_MAX = 40  # after so many the election timeout decides alone


# -- roles


def become_follower(self: RaftServer, term: int, leader_id: int | None) -> None:
    """Follow `leader_id` (None: not known yet) in `term`; forget all that a leader or candidate had (§5.1, §5.2)."""
    assert term >= self.current_term, f"term {term} would fall below {self.current_term}"
    if term > self.current_term:
        self.current_term = term
        self.voted_for = None
        if self.urgent_leader is not None:
            # Somebody else is at it: leave it time to win.
            self.arm_urgent(after_a_split(self))
    if self.state is LeaderState:
        self.election_elapsed = 0
        self.reset_leader()
        self.refuse_reads()
    if self.state is not FollowerState:
        self.state = FollowerState
        self.draw_election_timeout()
    self.votes = {}
    self.pre_candidate = False
    self.set_leader(leader_id)


def become_candidate(self: RaftServer) -> None:
    """Increment the term and vote for itself (§5.2)."""
    assert self.state is not LeaderState, "a leader does not campaign"
    # A new term even if it was a candidate: the last election may have split the vote (§5.2).
    self.current_term += 1
    self.voted_for = self.node_id
    self.state = CandidateState
    self.pre_candidate = False
    self.set_leader(None)
    self.votes = {self.node_id: True}
    self.reset_election_timer()
    self.arm_urgent(None)


def become_leader(self: RaftServer) -> None:
    """Lead this term: start every follower afresh, and append a no-op to commit older entries with (§5.4.2, §8)."""
    assert self.voted_for == self.node_id, f"leads term {self.current_term} without its own vote"
    self.state = LeaderState
    self.pre_candidate = False
    self.votes = {}
    self.disarm_urgent()
    self.reset_leader()
    self.set_leader(self.node_id)
    self.leases = self.config.lease_reads
    self.use_configuration()
    if self.noop:
        self.append_own(None)
    self.broadcast_heartbeat()
    self.election_elapsed = self.heartbeat_elapsed = 0


def become_leader_now(self: RaftServer, term: int) -> None:
    """Lead `term` at once, without an election. For simulations that have made sure that nobody else can lead it.

    Args:
        term: above the current term of every server.
    """
    assert term > self.current_term, f"term {term} is not above {self.current_term}"
    if self.state is not FollowerState:
        self.become_follower(self.current_term, None)
    self.current_term = term
    self.voted_for = self.node_id
    self.become_leader()


def reset_leader(self: RaftServer) -> None:
    """Forget what only one term's leader knows."""
    self.progress = {}
    self.unapplied = deque()
    self.unapplied_bytes = 0
    self.transfer_target = None
    self.timeout_now_sent = False
    self.pending_change = None
    self.leases = False
    self.reads.drop_lease()


def set_leader(self: RaftServer, leader_id: int | None) -> None:
    """Know another leader, or none: reads under way to the one before will not be answered."""
    if leader_id != self.leader_id:
        self.leader_id = leader_id
        if self.forwarded_reads:
            self.refuse_reads()


# -- timers


def reset_election_timer(self: RaftServer) -> None:
    """Start waiting afresh, with a new random timeout (§5.2)."""
    self.election_elapsed = 0
    self.draw_election_timeout()


def draw_election_timeout(self: RaftServer) -> None:
    """Draw the timeout from [n, 2n), so that split votes are rare and resolve (§5.2)."""
    n = self.config.election_timeout_ticks
    self.election_timeout = self.draw(n, 2 * n)


def hear_leader(self: RaftServer, leader_id: int) -> None:
    """Take note of the current leader's sign of life (§5.2); a candidate gives way to it."""
    assert self.state is not LeaderState, f"nodes {self.node_id} and {leader_id} both lead term {self.current_term}"
    assert self.leader_id in (None, leader_id), f"{self.leader_id} and {leader_id} both lead term {self.current_term}"
    self.election_elapsed = 0
    if self.disconnected.get(leader_id, self.now_ticks) <= self.now_ticks - self.config.heartbeat_ticks:
        # Not a last message from before the break: it does get through, whatever the transport knows.
        self.peer_connected(leader_id)
    if self.leader_id is None:
        self.become_follower(self.current_term, leader_id)
        if leader_id not in self.disconnected:
            self.disarm_urgent()


def hears_leader(self: RaftServer) -> bool:
    """Return whether there is a leader whom this server should not help to depose (D§4.2.3)."""
    if self.state is LeaderState:
        return True
    return (
        self.leader_id is not None
        and self.leader_id not in self.disconnected
        and self.election_elapsed < self.config.election_timeout_ticks
    )


def tick_election(self: RaftServer, ticks: int) -> None:
    """Count down to an election; learners and strangers only forget their leader (§5.2)."""
    self.election_elapsed += ticks
    if self.election_elapsed < self.election_timeout * (HOLDING_PATIENCE if self.holding or self.foreign else 1):
        return
    if self.promotable:
        self.campaign()
    else:
        self.reset_election_timer()
        self.set_leader(None)


def check_quorum(self: RaftServer) -> None:
    """Step down if a quorum has not answered since the last look, one election timeout ago (D§6.2)."""
    active = {peer_id: True for peer_id, each in self.progress.items() if each.recent_active and each.counts}
    active[self.node_id] = True
    for progress in self.progress.values():
        progress.recent_active = False
    voters, outgoing = self.configuration.voters, self.configuration.voters_outgoing
    if vote_result(voters, active, outgoing) is not VoteResult.WON:
        self.become_follower(self.current_term, None)


# -- elections


def campaign(self: RaftServer, *, pre_vote: bool | None = None, transfer: bool = False) -> None:
    """Try to become leader: ask for pre-votes first (D§9.6), or for votes at once (§5.2).

    Does nothing at a leader, at a node that is no voter or on probation, under a lease that it acknowledged, or while
    it owes log.

    Args:
        pre_vote: None for what the configuration says.
        transfer: the leader asked for it (D§3.10).
    """
    if self.state is LeaderState or not self.promotable or (self.promise_ticks and not transfer):
        return
    if self.probation is not None or self.log.last < self.owed:
        return  # what its disk lost may be committed
    if self.config.pre_vote if pre_vote is None else pre_vote:
        if self.state is not FollowerState:
            self.become_follower(self.current_term, None)
        self.set_leader(None)
        self.pre_candidate = True
        self.votes = {self.node_id: True}
        self.reset_election_timer()
        self.request_votes(self.current_term + 1, pre_vote=True)
    else:
        self.become_candidate()
        self.request_votes(self.current_term, transfer=transfer)
    self.count_votes()


def request_votes(self: RaftServer, term: int, *, pre_vote: bool = False, transfer: bool = False) -> None:
    """Ask all other voters, of both sets in a joint configuration (§5.2, §6)."""
    last = self.log.last
    for peer_id in sorted(self.voters - {self.node_id}):
        self.send_after_persist(RequestVote(self.node_id, peer_id, term, last.index, last.term, pre_vote, transfer))


def handle_request_vote(self: RaftServer, message: RequestVote) -> None:
    """Grant at most one vote a term, to a candidate whose log is up to date (§5.2, §5.4.1)."""
    last = max(self.log.last, self.owed)
    up_to_date = (message.last_log_term, message.last_log_index) >= (last.term, last.index)
    free = message.term > self.current_term or self.voted_for in (None, message.source)
    bound = self.promise_ticks > 0 and not message.transfer
    if self.probation is not None:
        free = False  # it may have voted in this term, on the disk that it lost
    if message.pre_vote:
        granted = up_to_date and free and not bound and not self.hears_leader()
    else:
        granted = up_to_date and free and not bound
        if granted:
            self.voted_for = message.source
            self.reset_election_timer()
            self.disarm_urgent()
    term = message.term if granted else self.current_term
    self.send_after_persist(RequestVoteResponse(self.node_id, message.source, term, granted, message.pre_vote))


def handle_request_vote_response(self: RaftServer, message: RequestVoteResponse) -> None:
    """Count a vote, once per voter (§5.2). One of another term, or to another question, is a late one."""
    if message.pre_vote:
        asked = self.pre_candidate and (not message.vote_granted or message.term == self.current_term + 1)
    else:
        asked = self.state is CandidateState and message.term == self.current_term
    if asked:
        # A vote given stays given; a pre-vote that was refused may be granted when asked for again.
        self.votes[message.source] = message.vote_granted or self.votes.get(message.source, False)
        self.count_votes()


def count_votes(self: RaftServer) -> None:
    """Go on with a majority; after a split vote among all who can be reached, try again soon."""
    result = vote_result(self.configuration.voters, self.votes, self.configuration.voters_outgoing)
    if result is VoteResult.WON:
        if self.pre_candidate:
            self.campaign(pre_vote=False)
        else:
            self.become_leader()
    elif self.state is CandidateState and self.urgent_leader is not None and self.urgent_delay_ms is None:
        everybody_answered = self.voters <= self.votes.keys() | self.disconnected.keys()
        if everybody_answered:
            self.arm_urgent(after_a_split(self))


# -- a broken connection (docs/core.md, "Urgent elections")


def urgent_scale(self: RaftServer) -> int:
    """Return how many times the waits above are stretched: a question must arrive before the next one asks his.

    Who is configured for an election timeout of seconds has questions that take a tenth of a second.
    """
    return max(1, round(self.config.election_timeout_ticks * self.config.tick_s * 1000) // 150)


def after_a_split(self: RaftServer) -> int:
    """Draw how long to wait before standing again."""
    return self.draw(*URGENT_SPLIT_MS) * urgent_scale(self)


def peer_disconnected(self: RaftServer, peer_id: int) -> None:
    """Note that the transport lost its connection to a peer. A lost leader is succeeded at once, without a timeout."""
    self.disconnected[peer_id] = self.now_ticks
    progress = self.progress.get(peer_id)
    if progress is not None:
        progress.recent_active = False
        if progress.state is not SNAPSHOT:
            progress.become_probe()
        progress.probe_sent = True  # nothing more until it is connected, or heard in answer to a heartbeat
    elif peer_id == self.leader_id and self.promotable and not (self.promise_ticks or self.holding or self.foreign):
        self.urgent_leader = peer_id
        self.urgent_tries = 0
        # Two followers see the death microseconds apart: by rank, one of them asks first.
        rank = sum(voter < self.node_id for voter in self.voters - {peer_id})
        self.arm_urgent(rank * URGENT_RANK_MS * urgent_scale(self))


def peer_connected(self: RaftServer, peer_id: int) -> None:
    """Note that the transport reaches a peer (again)."""
    self.disconnected.pop(peer_id, None)
    if peer_id == self.urgent_leader:
        self.disarm_urgent()
    if self.probation is not None:
        self.ask_standing(peer_id)
    progress = self.progress.get(peer_id)
    if progress is not None:
        progress.probe_sent = False
        progress.append_due = True
        self.send_due = True


def urgent(self: RaftServer) -> None:
    """Ask for pre-votes as the leader's connection is down. The driver calls it when a Ready told it to."""
    self.urgent_delay_ms = None
    lost = self.urgent_leader
    if lost is None or lost not in self.disconnected or self.leader_id not in (None, lost):
        self.disarm_urgent()
        return
    self.urgent_tries += 1
    if self.urgent_tries > URGENT_TRIES_MAX:
        self.disarm_urgent()
        return
    self.campaign()
    if self.pre_candidate:
        self.arm_urgent(URGENT_RETRY_MS * urgent_scale(self))


def arm_urgent(self: RaftServer, delay_ms: int | None) -> None:
    """Let the driver call `urgent` after `delay_ms`; None: not any more."""
    if delay_ms is not None or self.urgent_delay_ms is not None:
        self.effects.want_urgent(NOT_URGENT if delay_ms is None else delay_ms)
    self.urgent_delay_ms = delay_ms


def disarm_urgent(self: RaftServer) -> None:
    """Leave the next election to the election timeout."""
    self.arm_urgent(None)
    self.urgent_leader = None
