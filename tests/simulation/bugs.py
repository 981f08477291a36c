"""Bugs that Raft systems have had, to be planted in the code under test by patching it; none of this ships.

Each is a function that patches what it needs. Most seeds do not meet the circumstances in which a bug shows, so a search
goes through seeds until one does. What seeds meet too rarely, or what breaks no invariant but only delays elections, has a
story: those circumstances, told to one or a few servers, often by the unit test that is named for it.

Source:     the bugs listed by those who test such systems: etcd, Jepsen, the 2015 single-server membership bug, the
            Raft paper's own warnings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from actorraft import codec
from actorraft.client.session import ClientSession
from actorraft.errors import StorageFailed
from actorraft.node.driver import Driver
from actorraft.node.executor import Executor
from actorraft.node.process import RaftNode
from actorraft.node.requests import Requests
from actorraft.node.session_table import Admission, Sessions
from actorraft.raft import changes, election, quorum, reads, replication, snapshots
from actorraft.raft.config import RaftConfig
from actorraft.raft.log import RaftLog
from actorraft.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Configuration,
    EntryId,
    HardState,
    InstallSnapshot,
    LogEntry,
    RequestVote,
    RequestVoteResponse,
)
from actorraft.raft.ready import LeaderState, Ready
from actorraft.raft.server import RaftServer
from actorraft.simulation.disk import SimDisk, Write
from tests.raft import test_paper, test_traps

Plant = Callable[[pytest.MonkeyPatch], None]


class Way(Enum):
    """Where a bug is looked for: among all seeds, or among those that have what it needs."""

    SEEDS = "seeds"
    GUESTS = "seeds whose machine is a user's"
    HOLDS = "those of them with commands that no node can apply"
    NO_MEMORY = "those of them in which nodes run out of memory"
    OLD_DISKS = "seeds in which a node comes back on an older copy of its disk"
    VERSIONS = "seeds in which nodes are started again with other code of the machine"
    THREADS = "schedules of the machine's thread and the loop's"


@dataclass(frozen=True)
class Bug:
    """A bug, and how to plant it."""

    name: str
    plant: Plant
    quick: bool = False  # caught within a few seeds: always run
    story: Callable[[], None] | None = None  # for circumstances too rare for seeds: fails if the bug is there
    way: Way = Way.SEEDS


BUGS: list[Bug] = []


def bug(
    name: str, *, quick: bool = False, story: Callable[[], None] | None = None, way: Way = Way.SEEDS
) -> Callable[[Plant], Plant]:
    def note(plant: Plant) -> Plant:
        BUGS.append(Bug(name, plant, quick, story, way))
        return plant

    return note


# --- Stories: the circumstances of the rarest bugs, told to one server ---


def server(voters: int = 3, **config: Any) -> RaftServer:
    config = {"pre_vote": False, "check_quorum": False, **config}
    members = Configuration(voters=frozenset(range(voters)), next_node_id=voters)
    return RaftServer(0, configuration=members, config=RaftConfig(**config), draw=lambda low, high: low, noop=False)


def settle(node: RaftServer) -> list[Any]:
    """Carry out what the server asks for; return what it sent."""
    sent: list[Any] = []
    while node.has_ready():
        ready = node.ready()
        node.advance(ready)
        sent += [*ready.messages, *ready.messages_after_persist]
    return sent


def a_vote_that_comes_twice_counts_once() -> None:
    node = server(5)
    node.campaign()
    settle(node)
    node.step(RequestVoteResponse(1, 0, 1, True))
    node.step(RequestVoteResponse(1, 0, 1, True))
    assert node.state is not LeaderState


def a_vote_of_an_older_term_does_not_count() -> None:
    node = server(3)
    node.campaign()
    node.campaign()
    settle(node)
    node.step(RequestVoteResponse(1, 0, 1, True))
    assert node.state is not LeaderState


def an_acknowledgement_of_an_older_term_does_not_count() -> None:
    node = server(3)
    node.become_leader_now(1)
    node.propose("a")
    settle(node)
    node.become_leader_now(3)
    settle(node)
    node.step(AppendEntriesResponse(1, 0, 1, True, 0))
    assert node.progress[1].match_index == -1


def a_leader_counts_itself_only_when_its_disk_has_the_entry() -> None:
    node = server(3)
    node.become_leader_now(1)
    settle(node)
    node.propose("a")
    node.has_ready()
    node.ready()  # the write is under way, and an acknowledgement is quicker
    node.step(AppendEntriesResponse(1, 0, 1, True, 0))
    assert node.commit_index == -1


def a_longer_log_of_an_older_term_gets_no_vote() -> None:
    node = server(3)
    node.step(AppendEntries(1, 0, 2, -1, -1, [LogEntry(2, "a")], -1))
    settle(node)
    node.step(RequestVote(2, 0, 3, 5, 1))
    assert not any(isinstance(message, RequestVoteResponse) and message.vote_granted for message in settle(node))


def a_lease_binds_who_gave_it() -> None:
    node = server(3, lease_reads=True)
    node.step(AppendEntries(1, 0, 1, -1, -1, [], -1, lease_ticks=20))
    settle(node)
    node.step(RequestVote(2, 0, 2, 5, 5))
    assert not any(isinstance(message, RequestVoteResponse) and message.vote_granted for message in settle(node))


def chunks_of_different_snapshots_are_not_mixed() -> None:
    node = server(3)
    members = node.configuration
    node.step(InstallSnapshot(1, 0, 1, 10, 1, members, 0, b"1234"))
    settle(node)
    node.step(InstallSnapshot(2, 0, 2, 12, 2, members, 4, b"5678", True))
    settle(node)
    assert node.snapshot_id.index == -1


def the_link_says_who_sent_a_message() -> None:
    """Node 2's link carries a coup in the name of node 1."""
    node = SimpleNamespace(_cut=frozenset(), _spec=SimpleNamespace(node_id=0), driver=SimpleNamespace(counts=Counter()))
    node._drop = partial(RaftNode._drop, node)  # type: ignore[arg-type]
    frame = codec.encode_message(AppendEntries(1, 0, 10**6, -1, -1, [], -1))
    events: list[Any] = []
    RaftNode._on_peer(node, 2, frame, events)  # type: ignore[arg-type]
    assert not events
    RaftNode._on_peer(node, 1, frame, events)  # type: ignore[arg-type]
    assert len(events) == 1


# --- Disk and order of effects ---


@bug("term and vote are not stored", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    persist = SimDisk.persist

    def forgetful(self: SimDisk, hard_state: HardState | None, first: int, entries: Sequence[LogEntry]) -> None:
        persist(self, None, first, entries)

    patch.setattr(SimDisk, "persist", forgetful)


@bug("the vote is not stored, the term is", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    persist = SimDisk.persist

    def forgetful(self: SimDisk, hard_state: HardState | None, first: int, entries: Sequence[LogEntry]) -> None:
        persist(self, hard_state and HardState(hard_state.term, None), first, entries)

    patch.setattr(SimDisk, "persist", forgetful)


@bug("answers leave before the write", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    def hasty(self: Driver, ready: Ready) -> None:
        for message in (*ready.messages, *ready.messages_after_persist):
            self._send(message)
        carry_out(self, ready._replace(messages=[], messages_after_persist=[]))

    carry_out = Driver._carry_out

    def advance_original(self: RaftServer, ready: Ready) -> None:
        # The Ready that is out is the original one, whatever copy was carried out.
        assert self.effects._taken is not None
        advance(self, self.effects._taken)

    advance = RaftServer.advance
    patch.setattr(RaftServer, "advance", advance_original)
    patch.setattr(Driver, "_carry_out", hasty)


@bug("acknowledged before the sync", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    """Writes are synced one batch late."""

    def late(self: SimDisk) -> None:
        newest = self.unsynced.pop()
        sync(self)
        self.unsynced.append(newest)

    sync = SimDisk.sync
    patch.setattr(SimDisk, "sync", late)


@bug("the rename of a snapshot is lost in a crash, its directory was not synced")
def _(patch: pytest.MonkeyPatch) -> None:
    crash = SimDisk.crash

    def forgetful(self: SimDisk) -> None:
        if len(self.images) > 1:
            self.images.pop()
        crash(self)

    patch.setattr(SimDisk, "crash", forgetful)


@bug("the log is cut at the first bad record though acknowledged ones follow", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    recover = SimDisk.recover

    def shorter(self: SimDisk) -> Any:
        keep = max(0, len(self.entries) - 3, self.snapshot_index + 1 - self.first_index)
        del self.entries[keep:]
        return recover(self)

    patch.setattr(SimDisk, "recover", shorter)


@bug("a failed write is ignored", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    write = SimDisk.write

    def careless(self: SimDisk, batch: Write) -> None:
        try:
            write(self, batch)
        except StorageFailed:
            self.unsynced.remove(batch)

    patch.setattr(SimDisk, "write", careless)


# --- Elections ---


@bug("a vote is given twice in a term", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    def generous(self: RaftServer, message: Any) -> None:
        if not message.pre_vote:
            self.voted_for = None
        handle(self, message)

    handle = election.handle_request_vote
    patch.setattr(RaftServer, "handle_request_vote", generous)


@bug("a vote goes to a candidate whose log is behind", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    def generous(self: RaftServer, message: Any) -> None:
        handle(self, message._replace(last_log_term=1 << 30))

    handle = election.handle_request_vote
    patch.setattr(RaftServer, "handle_request_vote", generous)


@bug("logs are compared by length alone when a vote is asked for", story=a_longer_log_of_an_older_term_gets_no_vote)
def _(patch: pytest.MonkeyPatch) -> None:
    def careless(self: RaftServer, message: Any) -> None:
        handle(self, message._replace(last_log_term=self.log.last.term))

    handle = election.handle_request_vote
    patch.setattr(RaftServer, "handle_request_vote", careless)


@bug("votes are counted per message, not per voter", story=a_vote_that_comes_twice_counts_once)
def _(patch: pytest.MonkeyPatch) -> None:
    def careless(self: RaftServer, message: Any) -> None:
        if message.vote_granted and message.source in self.votes:
            message = message._replace(source=next((v for v in sorted(self.voters) if v not in self.votes), -1))
        handle(self, message)

    handle = election.handle_request_vote_response
    patch.setattr(RaftServer, "handle_request_vote_response", careless)


@bug("a vote of an older term is counted", story=a_vote_of_an_older_term_does_not_count)
def _(patch: pytest.MonkeyPatch) -> None:
    step = RaftServer.step

    def careless(self: RaftServer, message: Any) -> None:
        if isinstance(message, RequestVoteResponse) and not message.pre_vote and message.term < self.current_term:
            message = message._replace(term=self.current_term)
        step(self, message)

    patch.setattr(RaftServer, "step", careless)


@bug(
    "no pre-vote: a node that comes back from a cut raises the term",
    story=partial(
        test_traps.test_trap_8_a_node_that_times_out_a_hundred_times_moves_neither_leader_nor_term, "rejoining"
    ),
)
def _(patch: pytest.MonkeyPatch) -> None:
    def blunt(self: RaftServer, *, pre_vote: bool | None = None, transfer: bool = False) -> None:
        campaign(self, pre_vote=False, transfer=transfer)

    campaign = election.campaign
    patch.setattr(RaftServer, "campaign", blunt)


@bug(
    "the election timer is reset by a refused vote",
    story=test_paper.test_a_refused_vote_does_not_reset_the_election_timer,
)
def _(patch: pytest.MonkeyPatch) -> None:
    def obliging(self: RaftServer, message: Any) -> None:
        handle(self, message)
        self.reset_election_timer()

    handle = election.handle_request_vote
    patch.setattr(RaftServer, "handle_request_vote", obliging)


@bug(
    "the election timer is reset by a stale leader",
    story=test_paper.test_a_stale_leader_does_not_reset_the_election_timer,
)
def _(patch: pytest.MonkeyPatch) -> None:
    def obliging(self: RaftServer, message: Any) -> None:
        answer(self, message)
        if isinstance(message, AppendEntries | InstallSnapshot):
            self.reset_election_timer()

    answer = RaftServer.answer_stale
    patch.setattr(RaftServer, "answer_stale", obliging)


@bug("one vote short of a majority is enough", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    def careless(self: RaftServer) -> None:
        voters = sorted(self.voters - self.votes.keys())
        if voters and len(self.voters) > 1 and sum(self.votes.values()) * 2 + 1 >= len(self.voters):
            self.votes[voters[0]] = True
        count(self)

    count = election.count_votes
    patch.setattr(RaftServer, "count_votes", careless)


# --- Replication and commitment ---


@bug("an entry of an older term is committed by counting")
def _(patch: pytest.MonkeyPatch) -> None:
    def hasty(self: RaftServer, hint_index: int | None = None) -> None:
        maybe_commit(self, hint_index)
        matches: dict[int, int] = {peer_id: progress.match_index for peer_id, progress in self.progress.items()}
        matches[self.node_id] = self.effects.persisted_index
        index = quorum.committed_index(matches, self.configuration.voters, self.configuration.voters_outgoing)
        if index > self.commit_index:
            self.commit_to(index)
            self.send_due = True

    maybe_commit = replication.maybe_commit
    patch.setattr(RaftServer, "maybe_commit", hasty)


@bug("a late AppendEntries truncates entries that match", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    def page(self: RaftLog, first: int, entries: Sequence[LogEntry]) -> int | None:
        return first if entries else None

    patch.setattr(RaftLog, "conflict", page)


@bug("the match index is taken from the end of the log", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    def careless(self: RaftServer, message: Any, match_index: int) -> None:
        acknowledge(self, message, self.log.last_index)

    acknowledge = replication.acknowledge_append
    patch.setattr(RaftServer, "acknowledge_append", careless)


@bug("a follower commits past what the message verified", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    def hasty(self: RaftServer, message: Any) -> None:
        handle(self, message)
        self.commit_to(min(message.commit_index, self.log.last_index))

    handle = replication.handle_append_entries
    patch.setattr(RaftServer, "handle_append_entries", hasty)


@bug("the leader counts itself before its own write", story=a_leader_counts_itself_only_when_its_disk_has_the_entry)
def _(patch: pytest.MonkeyPatch) -> None:
    def hasty(self: RaftServer, hint_index: int | None = None) -> None:
        persisted, self.effects.persisted_index = self.effects.persisted_index, self.log.last_index
        maybe_commit(self, hint_index)
        self.effects.persisted_index = persisted

    maybe_commit = replication.maybe_commit
    patch.setattr(RaftServer, "maybe_commit", hasty)


@bug("an answer of an older term is counted", story=an_acknowledgement_of_an_older_term_does_not_count)
def _(patch: pytest.MonkeyPatch) -> None:
    step = RaftServer.step

    def careless(self: RaftServer, message: Any) -> None:
        if isinstance(message, AppendEntriesResponse) and message.term < self.current_term:
            message = message._replace(term=self.current_term)
        step(self, message)

    patch.setattr(RaftServer, "step", careless)


# --- Membership ---


@bug(
    "a change of one voter begins before the leader's own-term commit",
    story=test_traps.test_trap_7_the_first_story_of_2015_a_change_before_the_own_term_noop_is_refused,
)
def _(patch: pytest.MonkeyPatch) -> None:
    def hasty(self: RaftServer, requested: Any) -> int:
        with patch.context() as during:
            during.setattr(RaftServer, "committed_in_own_term", True)
            return change(self, requested)

    change = changes.change_membership
    patch.setattr(RaftServer, "change_membership", hasty)


@bug("the quorum is that of the configuration before the newest")
def _(patch: pytest.MonkeyPatch) -> None:
    def late(self: RaftServer) -> None:
        use(self)
        if len(self.configurations) > 1:
            self.configuration = self.configurations[-2][1]

    use = changes.use_configuration
    patch.setattr(RaftServer, "use_configuration", late)


@bug("learners count in the quorum")
def _(patch: pytest.MonkeyPatch) -> None:
    def generous(matches: Mapping[int, int], voters: frozenset[int], outgoing: frozenset[int] = frozenset()) -> int:
        majority = len(voters) // 2
        found: int = sorted(matches.values(), reverse=True)[majority] if len(matches) > majority else -1
        return found

    patch.setattr(replication, "committed_index", generous)


@bug("a joint change needs only the new voters")
def _(patch: pytest.MonkeyPatch) -> None:
    index, result = quorum.committed_index, quorum.vote_result
    patch.setattr(replication, "committed_index", lambda matches, voters, outgoing=frozenset(): index(matches, voters))
    patch.setattr(election, "vote_result", lambda voters, votes, outgoing=frozenset(): result(voters, votes))


@bug("a truncated configuration stays in force")
def _(patch: pytest.MonkeyPatch) -> None:
    def stubborn(self: RaftServer, first: int, entries: list[LogEntry]) -> None:
        before, index = self.configuration, self.configurations[-1][0]
        store(self, first, entries)
        if self.configurations[-1][0] < index:
            self.configurations[-1] = (self.configurations[-1][0], before)
            self.configuration = before

    store = replication.store_entries
    patch.setattr(RaftServer, "store_entries", stubborn)


# --- Snapshots ---


@bug("sessions are not in the snapshot")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sessions, "state", lambda self: [])


@bug("a snapshot is installed and the conflicting log stays", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimDisk, "reset_log", lambda self, snapshot: None)


@bug("the machine is replayed from the start on top of a restored snapshot")
def _(patch: pytest.MonkeyPatch) -> None:
    """What was applied before the snapshot's end is applied once more."""

    def again(self: Executor, work: Any) -> Any:
        answer = restore(self, work)
        self.serial += 1
        for key in list(self.host.applied)[:1]:  # type: ignore[attr-defined]
            self.host.applied[key] += 1  # type: ignore[attr-defined]
        return answer

    restore = Executor._restore
    patch.setattr(Executor, "_restore", again)


@bug("chunks of two snapshots are mixed", story=chunks_of_different_snapshots_are_not_mixed)
def _(patch: pytest.MonkeyPatch) -> None:
    def careless(self: RaftServer, message: Any) -> None:
        if self.receiving is not None:
            message_id = (
                message.source,
                message.term,
                EntryId(message.snapshot_term, message.snapshot_index),
            )
            if message.offset and self.receiving[:3] != message_id:
                self.receiving = snapshots.Receiving(*message_id, self.receiving.next_offset)
        handle(self, message)

    handle = snapshots.handle_install_snapshot
    patch.setattr(RaftServer, "handle_install_snapshot", careless)


# --- Reads ---


@bug("a read is served without a quorum's word", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reads, "leads_alone", lambda self: True)


@bug("a new leader reads before its own term's commit")
def _(patch: pytest.MonkeyPatch) -> None:
    def hasty(self: RaftServer, read: reads.WaitingRead, *, lease: bool = False) -> None:
        self.reads.arrived.append(read)
        self.send_due = True

    patch.setattr(reads, "start_read", hasty)


@bug("answers to an earlier round confirm a later read")
def _(patch: pytest.MonkeyPatch) -> None:
    def careless(self: RaftServer, progress: Any, answered_round: int, *, leased: bool) -> None:
        count(self, progress, self.reads.round, leased=leased)

    count = reads.count_round
    patch.setattr(RaftServer, "count_round", careless)


@bug("a lease does not bind those who gave it", story=a_lease_binds_who_gave_it)
def _(patch: pytest.MonkeyPatch) -> None:
    def careless(self: RaftServer, message: Any) -> None:
        handle(self, message)
        self.promise_ticks = 0

    handle = replication.handle_append_entries
    patch.setattr(RaftServer, "handle_append_entries", careless)
    patch.setattr(RaftServer, "hears_leader", lambda self: self.state is LeaderState)


@bug("a read is served before the machine has applied its index", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    def hasty(self: Requests, token: int, index: int) -> None:
        waiting = self._reads.pop(token, None)
        if waiting is not None:
            self._serve(*waiting)

    patch.setattr(Requests, "on_read_index", hasty)


# --- Sessions and clients ---


@bug("a repeated frame is applied again", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    admit = Sessions.admit

    def forgetful(self: Sessions, frame: Any, log_time_s: float) -> Admission:
        admission = admit(self, frame, log_time_s)
        if admission.repeated is not None or admission.stale:
            return Admission(session=self._sessions[frame.client_id])
        return admission

    patch.setattr(Sessions, "admit", forgetful)


@bug("a frame that leaves a gap is accepted")
def _(patch: pytest.MonkeyPatch) -> None:
    admit = Sessions.admit

    def careless(self: Sessions, frame: Any, log_time_s: float) -> Admission:
        admission = admit(self, frame, log_time_s)
        return Admission(session=self._sessions[frame.client_id]) if admission.resume_from is not None else admission

    patch.setattr(Sessions, "admit", careless)


@bug("a client takes a timeout for a failure", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    def careless(self: ClientSession, frame: Any, now_s: float) -> None:
        frame.attempts_open = 0
        expire(self, frame, now_s)

    expire = ClientSession._expire_frame
    patch.setattr(ClientSession, "_expire_frame", careless)


@bug("a deposed leader refuses by name what it had appended")
def _(patch: pytest.MonkeyPatch) -> None:
    def honest(self: Requests) -> None:
        change(self)
        if self._server.state is LeaderState:
            return
        for index, client in self._pending.items():
            if self._server.log.first_index <= index <= self._server.log.last_index:
                item = self._server.log[index].item
                request = codec.decode_request(codec.unstamp(item)[1]) if type(item) is bytes else None
                if isinstance(request, codec.Commands):
                    refused = codec.Refused(request.client_id, request.first_sequence, "not leader", None)
                    self.reply(client, refused)
        self._pending.clear()

    change = Requests.leader_changed
    patch.setattr(Requests, "leader_changed", honest)


# --- Links ---


@bug("the claimed sender is believed over the one that the link belongs to", story=the_link_says_who_sent_a_message)
def _(patch: pytest.MonkeyPatch) -> None:
    def trusting(self: RaftNode, sender: int, frame: bytes, events: list[Any]) -> None:
        on_peer(self, codec.decode_message(frame).source, frame, events)

    on_peer = RaftNode._on_peer
    patch.setattr(RaftNode, "_on_peer", trusting)
