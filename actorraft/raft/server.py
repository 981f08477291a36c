"""One Raft server as a pure machine: events in (`step`, `tick`, `propose`, ...), effects out (`Ready`).

It touches no socket, disk, clock or thread and draws no random number of its own, so a test, a
simulator and a real node run the very same code. This file has the state, the one rule about
terms, and the way in and out; the rules of the paper are in files of their own, as
functions that are methods of `RaftServer`:

    election.py      who leads: timeouts, pre-vote, votes, CheckQuorum,       §5.2, §5.4.1, D§4.2.3, D§6.2, D§9.6
                     lost connections
    replication.py   how the log gets to followers, and what is committed     §5.3, §5.4.2
    snapshots.py     what to do when the log does not reach back far enough   §7
    changes.py       who takes part                                           §6, D§4
    probation.py     who comes with an empty disk                             §5 (stable storage)
    roster.py        what is known of those who do: keys, addresses           §6
    reads.py         reads without a log entry                                §8, D§6.4
    transfer.py      handing over                                             D§3.10

Source:     Raft Figure 2.
Invariant:  last_applied <= commit_index <= log.last_index; snapshot_id.index <= commit_index;
            log.first_index <= snapshot_id.index + 1.
Threads:    one at a time; between `ready()` and its `advance()` further events may be stepped.
Not here:   doing the effects; see ready.py for their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from actorraft.raft import changes, election, probation, reads, replication, roster, snapshots, transfer
from actorraft.raft.changes import PendingChange
from actorraft.raft.config import RaftConfig
from actorraft.raft.effects import Effects, Role
from actorraft.raft.log import RaftLog
from actorraft.raft.messages import (
    NO_ENTRY,
    AppendEntries,
    AppendEntriesResponse,
    Configuration,
    EntryId,
    HardState,
    InstallSnapshot,
    InstallSnapshotResponse,
    Message,
    ReadIndex,
    ReadIndexResponse,
    Reminder,
    RequestVote,
    RequestVoteResponse,
    Standing,
    TimeoutNow,
)
from actorraft.raft.probation import Probation
from actorraft.raft.progress import Progress
from actorraft.raft.ready import FollowerState, LeaderState, ReadState, Ready


class RaftServer:
    """One server of a Raft cluster.

    Its driver gives it events and then, while `has_ready()`, takes a `Ready`, does what it says in its
    order, and calls `advance` once what had to be written is durable.
    """

    # One block of memory for all that each event touches: 3 % of a node's work with one command at a time.
    __slots__ = (
        "commit_along",
        "commit_index",
        "config",
        "configuration",
        "configurations",
        "current_term",
        "disconnected",
        "draw",
        "effects",
        "election_elapsed",
        "election_timeout",
        "foreign",
        "forwarded_reads",
        "handlers",
        "heartbeat_elapsed",
        "holding",
        "last_applied",
        "leader_id",
        "leases",
        "log",
        "node_id",
        "noop",
        "now_ticks",
        "owed",
        "pending_change",
        "pre_candidate",
        "probation",
        "progress",
        "promise_ticks",
        "read_token_next",
        "reads",
        "receiving",
        "send_due",
        "snapshot_id",
        "state",
        "timeout_now_sent",
        "too_old",
        "transfer_target",
        "transfer_ticks",
        "unapplied",
        "unapplied_bytes",
        "unfit",
        "urgent_delay_ms",
        "urgent_leader",
        "urgent_tries",
        "voted_for",
        "votes",
    )

    def __init__(
        self,
        node_id: int,
        *,
        configuration: Configuration,
        config: RaftConfig | None = None,
        draw: Callable[[int, int], int],
        log: RaftLog | None = None,
        hard_state: HardState | None = None,
        snapshot_id: EntryId = NO_ENTRY,
        noop: bool = True,
        commit_along: bool = False,
        probation: Probation | None = None,
    ) -> None:
        """Start as a follower with what the disk holds, or with nothing.

        Args:
            node_id: this server; it need not be a member (yet).
            configuration: as of the snapshot, or the one to begin with. Later ones in the log override it.
            config: timing and bounds.
            draw: `draw(low, high)` returns an integer in [low, high); the only source of randomness.
            log: as recovered, all of it durable.
            hard_state: as recovered.
            snapshot_id: last entry inside the newest snapshot; the machine must be in that state.
            noop: whether a new leader appends an empty entry (§8); without, older entries wait for a proposal.
            probation: its disk was empty, or was so not long ago; it neither votes nor counts until that is over.
            commit_along: tell of a new commit index with the next append, not at once; see `Ready.commit_untold`.
        """
        # Who and how; these never change
        self.node_id = node_id
        self.config = RaftConfig() if config is None else config
        self.draw = draw
        self.noop, self.commit_along = noop, commit_along

        # Figure 2, persistent state on all servers; no answer leaves before the disk holds it
        hard_state = HardState() if hard_state is None else hard_state
        self.current_term = hard_state.term  # latest seen; never falls; >= log.last.term
        self.voted_for = hard_state.voted_for  # in current_term, or None; once set, it stays until the term grows
        self.log = RaftLog() if log is None else log
        self.snapshot_id = snapshot_id  # last entry inside the newest snapshot; never falls
        assert snapshot_id.index >= self.log.first_index - 1, f"entries are missing after {snapshot_id}: {self.log!r}"
        if not self.log.match(snapshot_id.index, snapshot_id.term):
            # It crashed between committing an installed snapshot and cutting the log that contradicts it (§7).
            self.log.reset(snapshot_id)

        # Figure 2, volatile state on all servers; snapshot_id.index <= last_applied <= commit_index <= log.last_index
        self.commit_index = snapshot_id.index  # highest known to be committed; never falls
        self.last_applied = snapshot_id.index  # highest that the executor reported back; never falls
        self.state = FollowerState  # changed by become_* alone
        self.leader_id: int | None = (
            None  # of current_term; at a leader, itself; once known, it stays until the term grows
        )

        # Membership (§6)
        # (index, configuration) at or below the snapshot, and all in the log after it; indexes ascend
        self.configurations = changes.configurations_in(self.log, snapshot_id.index, configuration)
        self.configuration = self.configurations[-1][1]  # in effect: the last one, committed or not

        # Elections
        self.now_ticks = 0  # time, by this server's own count; only grows
        self.election_elapsed = 0  # ticks since the leader was heard, or a vote given; at a leader, since CheckQuorum
        self.election_timeout = 0  # ticks, drawn from [n, 2n) for each election; below, as soon as all is there
        self.pre_candidate = False  # asks for pre-votes for the next term; then it is a follower without a leader
        self.votes: dict[int, bool] = {}  # answers to this candidate or pre-candidate; empty at everybody else
        self.disconnected: dict[int, int] = {}  # peer whose connection is down, the transport says -> since which tick
        self.urgent_leader: int | None = None  # the lost leader that is to be succeeded at once
        self.urgent_tries = 0  # since it was lost; <= URGENT_TRIES_MAX
        self.urgent_delay_ms: int | None = None  # what the driver was last told of it; None: `urgent` is not due
        # A lease that it acknowledged (D§6.4.1): no vote while it runs. It may have acknowledged one before a restart.
        restarted = self.config.lease_reads and self.current_term > 0
        self.promise_ticks = self.config.election_timeout_ticks + 1 if restarted else 0
        self.probation = probation  # None: it votes and counts; once None, it stays so
        if probation is not None and self.has_begun(probation):
            probation.resumed = True

        # Figure 2, volatile state on leaders, and what else only a leader has; nothing of it outlives its term but
        # the round numbers inside `reads`
        self.progress: dict[int, Progress] = {}  # every other member, and who was removed and does not know it yet
        self.heartbeat_elapsed = 0  # ticks since the last heartbeat; < heartbeat_ticks after each tick
        self.reads = reads.ReadQueue()
        self.leases = False  # whether this term's leader may serve lease reads; once False, it stays so
        self.unapplied: deque[tuple[int, int]] = deque()  # (index, bytes) it accepted and has not applied; ascending
        self.unapplied_bytes = 0  # their sum; bounds what is accepted
        self.transfer_target: int | None = None  # the voter to whom leadership is being handed over; no proposals then
        self.transfer_ticks = 0  # since that began; < election_timeout_ticks
        self.timeout_now_sent = False  # the target was told to campaign
        self.pending_change: PendingChange | None = None  # waits for newcomers to catch up; no other change then
        self.send_due = False  # followers may need messages: `flush` has something to look at

        # At a follower
        self.owed = NO_ENTRY  # a leader said that this disk held it, and it does not; see `handle_reminder`
        self.receiving: snapshots.Receiving | None = None  # a snapshot that is not complete yet
        # Number on the wire -> (token, deadline in ticks); numbers and deadlines ascend; empty without a leader
        self.forwarded_reads: dict[int, tuple[int, int]] = {}
        # Not from 0: an answer to a question of this node before its restart must not pass for one to a new question.
        self.read_token_next = draw(0, reads.TOKEN_START_MAX)

        # What the driver says of the machine
        self.too_old = (
            False  # its machine's code cannot apply what the log holds, the driver says: it does not campaign
        )
        self.unfit: frozenset[int] = frozenset()  # learners of which that is true, likewise: they are not promoted
        self.holding = False  # its machine cannot go on, the driver says: it does not lead while another can
        self.foreign = False  # commands are applied under another interpreter than its own, likewise: nor does it

        # The next Ready, and how far disk and executor are
        self.effects = Effects(self.log, self.role, snapshot_id.index)

        self.draw_election_timeout()
        self.handlers = self.make_handlers()

    def __repr__(self) -> str:
        return (
            f"<RaftServer {self.node_id} {self.state.name} term={self.current_term} commit={self.commit_index} "
            f"last={self.log.last_index} leader={self.leader_id}>"
        )

    def make_handlers(self) -> dict[type, Callable[[Any], None]]:
        """Return the handler of each message type."""
        return {
            AppendEntries: self.handle_append_entries,
            AppendEntriesResponse: self.handle_append_entries_response,
            RequestVote: self.handle_request_vote,
            RequestVoteResponse: self.handle_request_vote_response,
            InstallSnapshot: self.handle_install_snapshot,
            InstallSnapshotResponse: self.handle_install_snapshot_response,
            TimeoutNow: self.handle_timeout_now,
            Reminder: self.handle_reminder,
            ReadIndex: self.handle_read_index,
            ReadIndexResponse: self.handle_read_index_response,
        }

    # -- what follows from the state

    @property
    def voters(self) -> frozenset[int]:
        """Everyone who votes; both sets in a joint configuration."""
        return self.configuration.voters | self.configuration.voters_outgoing

    @property
    def promotable(self) -> bool:
        """Whether this server may become leader.

        One that is no voter in its latest configuration may be needed until that is committed: it may be the only one
        whose log is long enough (D§4.2.2). It does not count its own vote.
        """
        if self.too_old:
            return False
        for index, configuration in reversed(self.configurations):
            if self.node_id in configuration.voters or self.node_id in configuration.voters_outgoing:
                return True
            if index <= self.commit_index:
                break
        return False

    @property
    def committed_in_own_term(self) -> bool:
        """Whether an entry of the current term is committed: only then a leader knows all that is committed (§8)."""
        return self.log.term_at(self.commit_index) == self.current_term

    # -- events

    def step(self, message: Message) -> None:
        """Take one message from a peer. Late, repeated and reordered ones are expected."""
        if message.dest != self.node_id:
            return
        if type(message) is Standing:  # says something of its sender's past, and nothing in any term
            self.handle_standing(message)
            return
        if message.term > self.current_term:
            if not self.accept_term(message):
                return
        elif message.term < self.current_term:
            self.answer_stale(message)
            return
        self.handlers[type(message)](message)

    def accept_term(self, message: Message) -> bool:
        """Apply the rule of a higher term (§5.1); return whether the message is to be handled."""
        if isinstance(message, RequestVote):
            if message.pre_vote:
                return True  # a question about a term in which nobody is yet (D§9.6)
            bound = self.promise_ticks > 0 or (self.config.check_quorum and self.hears_leader())
            if bound and not message.transfer:
                # Who does not hear the leader, removed or cut off, must not disturb those who do (§6, D§4.2.3).
                return False
        elif isinstance(message, RequestVoteResponse) and message.pre_vote and message.vote_granted:
            return True
        self.become_follower(message.term, None)
        return True

    def answer_stale(self, message: Message) -> None:
        """Refuse a request of an older term, so that its sender learns the current one (§5.1); drop a response."""
        node_id, source, term = self.node_id, message.source, self.current_term
        if isinstance(message, AppendEntries):
            self.send_after_persist(AppendEntriesResponse(node_id, source, term, False, -1))
        elif isinstance(message, InstallSnapshot):
            self.send_after_persist(InstallSnapshotResponse(node_id, source, term, message.snapshot_index, 0))
        elif isinstance(message, RequestVote):
            self.send_after_persist(RequestVoteResponse(node_id, source, term, False, message.pre_vote))
        elif isinstance(message, ReadIndex):
            self.send_after_persist(ReadIndexResponse(node_id, source, term, message.token, -1))

    def tick(self, ticks: int = 1, *, asleep: bool = False) -> None:
        """Let time pass. Called before a batch's other events, with the clock read after the batch was taken in.

        Args:
            ticks: how much.
            asleep: this process did not run meanwhile, so what its peers said may still be unread.
        """
        self.now_ticks += ticks
        self.promise_ticks = max(0, self.promise_ticks - ticks)
        if self.forwarded_reads:
            self.expire_reads()
        if self.probation is not None:
            self.tick_probation(ticks)
        if self.state is LeaderState:
            self.tick_leader(ticks)
        else:
            # Differs: a node that slept itself cannot say that its leader was silent, and counts no more than the time
            # between two heartbeats. Else a machine that was paused as a whole would wake up to elections.
            self.tick_election(min(ticks, self.config.heartbeat_ticks) if asleep else ticks)

    def tick_leader(self, ticks: int) -> None:
        """Count down to the next heartbeat and the next look at the quorum."""
        if ticks > self.config.heartbeat_ticks:
            self.reads.drop_lease()  # this process did not run for a while: its clock may not have either
        self.election_elapsed += ticks
        if self.election_elapsed >= self.config.election_timeout_ticks:
            self.election_elapsed = 0
            if self.config.check_quorum:
                self.check_quorum()
                if self.state is not LeaderState:
                    return
        self.tick_transfer(ticks)
        self.tick_members(ticks)
        self.heartbeat_elapsed += ticks
        if self.heartbeat_elapsed >= self.config.heartbeat_ticks:
            self.heartbeat_elapsed = 0
            self.broadcast_heartbeat()

    # -- effects

    def send_after_persist(self, message: Message) -> None:
        """Let a message leave once the term, vote and entries it speaks of are durable (Figure 2)."""
        self.effects.messages_after_persist.append(message)

    def add_read_state(self, read_state: ReadState) -> None:
        """Answer a read of this node."""
        self.effects.reads.append(read_state)

    @property
    def role(self) -> Role:
        """What the driver is told of when it changes, and has to make durable."""
        return self.state, self.current_term, self.leader_id, self.voted_for

    def has_ready(self) -> bool:
        """Whether there is something to do for the driver."""
        if self.send_due:
            self.flush()
        effects = self.effects
        return bool(
            effects.messages
            or effects.messages_after_persist
            or effects.unstable_from <= self.log.last_index
            or effects.handed_index < self.commit_index
            or effects.reads
            or effects.commit_untold
            or effects.seldom
            or effects.role != (self.state, self.current_term, self.leader_id, self.voted_for)
        )

    def ready(self) -> Ready:
        """Return what is to be done now, and forget it; `advance` is due before the next one."""
        self.flush()
        return self.effects.ready(self.role, self.commit_index)

    def advance(self, ready: Ready) -> None:
        """Note that what `ready` asked to persist is durable now. A leader counts itself for it from here on."""
        self.effects.advance(ready)
        if ready.entries and self.state is LeaderState:
            self.maybe_commit(self.effects.persisted_index)

    # -- elections: election.py

    become_follower = election.become_follower
    become_candidate = election.become_candidate
    become_leader = election.become_leader
    become_leader_now = election.become_leader_now
    reset_leader = election.reset_leader
    set_leader = election.set_leader
    reset_election_timer = election.reset_election_timer
    draw_election_timeout = election.draw_election_timeout
    hear_leader = election.hear_leader
    hears_leader = election.hears_leader
    tick_election = election.tick_election
    check_quorum = election.check_quorum
    campaign = election.campaign
    request_votes = election.request_votes
    handle_request_vote = election.handle_request_vote
    handle_request_vote_response = election.handle_request_vote_response
    count_votes = election.count_votes
    peer_disconnected = election.peer_disconnected
    peer_connected = election.peer_connected
    urgent = election.urgent
    arm_urgent = election.arm_urgent
    disarm_urgent = election.disarm_urgent

    # -- replication and commitment: replication.py

    propose = replication.propose
    append_own = replication.append_own
    broadcast_heartbeat = replication.broadcast_heartbeat
    tell_commit = replication.tell_commit
    commit_is_news = replication.commit_is_news
    flush = replication.flush
    feed = replication.feed
    send_append = replication.send_append
    handle_append_entries_response = replication.handle_append_entries_response
    hear_follower = replication.hear_follower
    heard_follower = replication.heard_follower
    note_lost_log = replication.note_lost_log
    remind = replication.remind
    maybe_commit = replication.maybe_commit
    after_leader_commit = replication.after_leader_commit
    handle_append_entries = replication.handle_append_entries
    handle_reminder = replication.handle_reminder
    store_entries = replication.store_entries
    acknowledge_append = replication.acknowledge_append
    commit_to = replication.commit_to
    applied = replication.applied

    # -- snapshots: snapshots.py

    snapshot_taken = snapshots.snapshot_taken
    send_chunk = snapshots.send_chunk
    check_snapshot = snapshots.check_snapshot
    start_snapshot = snapshots.start_snapshot
    handle_install_snapshot_response = snapshots.handle_install_snapshot_response
    handle_install_snapshot = snapshots.handle_install_snapshot
    answer_chunk = snapshots.answer_chunk
    install = snapshots.install

    # -- membership: changes.py

    configuration_at = changes.configuration_at
    use_configuration = changes.use_configuration
    new_progress = changes.new_progress
    change_membership = changes.change_membership
    enter_change = changes.enter_change
    finish_change = changes.finish_change
    check_catch_up = changes.check_catch_up
    tick_members = changes.tick_members
    annotate = roster.annotate

    # -- probation: probation.py

    ask_standing = probation.ask_standing
    tick_probation = probation.tick_probation
    handle_standing = probation.handle_standing
    check_probation = probation.check_probation
    end_probation = probation.end_probation
    has_begun = probation.has_begun

    # -- reads: reads.py

    read_index = reads.read_index
    release_held_reads = reads.release_held_reads
    count_round = reads.count_round
    handle_read_index = reads.handle_read_index
    handle_read_index_response = reads.handle_read_index_response
    refuse_reads = reads.refuse_reads
    expire_reads = reads.expire_reads

    # -- handing over: transfer.py

    transfer_leadership = transfer.transfer_leadership
    transfer_candidate = transfer.transfer_candidate
    check_transfer = transfer.check_transfer
    tick_transfer = transfer.tick_transfer
    handle_timeout_now = transfer.handle_timeout_now
