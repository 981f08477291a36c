"""Holding: what a node does at a command that it cannot apply, for a reason that other nodes may not have.

A module that is not there, memory that is not there: another node may have applied the command all the same, and its
client may have the answer. So a node that meets ImportError or MemoryError *holds* at that command. It stores and votes
as ever, applies nothing further, does not lead while another can, says so in its status, and tries again with back-off,
always from the state as it was before the command (executor.py has it again from the newest snapshot and the log). If
what was missing comes, it goes on by itself.

If it never comes, because it was a typo, the cluster must not stand for ever. Once **every** member has told the leader
that it holds at that very command, the leader appends an `Outcome` entry that makes the error the command's result;
every node goes on from the state before the command. An outcome that may have been answered stands, therefore:

- Telling is a promise, kept in the node's marks and synced before it is told: who has told does not apply that command
  until an outcome is committed, or the leader has given it leave (`MayTry`), also not after a restart.
- The leader gives leave only when an entry of its own term is committed and no outcome is in its log: then none that
  rests on the promise can be committed any more. From then on it counts the node no longer, until that tells again.
- A node that may have applied the command in an earlier life (marks.py) never tells. Members are all that were any
  since that entry, learners and removed ones included: each may have answered a read. Where one of them is missing,
  `skip` is the operator's way (docs/operations.md).
- The outcome stands in the log behind the entry that it is about. So at its start a node applies nothing before all
  that was committed then is at hand (`Gate`), and looks ahead. Nobody is let in while the leader holds.

Threads:    the node's loop.
Source:     docs/decisions/0029-holding.md.
Not here:   which errors these are (host.py); the state, and its like before a command (executor.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from actorraft import codec
from actorraft.node.guest import can_be_found
from actorraft.node.logtime import LogTime
from actorraft.node.work import BEFORE, ExecutorPort, Hold, Restore, TryAgain
from actorraft.ports import Net, Storage
from actorraft.raft.config import RaftConfig
from actorraft.raft.errors import RaftError
from actorraft.raft.messages import AppendEntries, Holds, MayTry, Message
from actorraft.raft.ready import LeaderState
from actorraft.raft.server import RaftServer
from actorraft.storage.marks import HELD, HELD_POSITION, ROUND, Marks

TRY_S = (1.0, 60.0)  # until the first try, and the longest pause; each is twice as long as the one before


class Gate:
    """Shut from a node's start until all that was committed by then is at hand."""

    def __init__(self) -> None:
        self._term = -1
        self._target = -1  # what the leader of that term said to be committed when it was first heard

    def hear(self, message: Message, current_term: int) -> None:
        """Take note of a leader's word."""
        if isinstance(message, AppendEntries) and message.term >= current_term and message.term != self._term:
            self._term, self._target = message.term, message.commit_index

    def opens(self, server: RaftServer) -> bool:
        """Whether nothing is missing any more: only a leader that has committed in its own term knows (§8)."""
        if not server.committed_in_own_term:
            return False
        if server.state is LeaderState:
            return True
        return self._term == server.current_term and self._target <= server.commit_index


class Holding:
    """What this node knows of holds: its own, and, as a leader, those of the others.

    Args:
        net: sends to peers.
        executor: tries again when told to.
        marks: where promises are kept.
        changed: told when the node begins to hold, and when it goes on; with the reason, empty if it goes on.

    Attributes:
        hold: where this node holds; None: it does not.
    """

    def __init__(
        self,
        server: RaftServer,
        net: Net,
        storage: Storage,
        executor: ExecutorPort,
        config: RaftConfig,
        marks: Marks,
        log_time: LogTime,
        changed: Callable[[str], object],
    ) -> None:
        self._server = server
        self._net = net
        self._storage = storage
        self._executor = executor
        self._config = config
        self._marks = marks
        self._log_time = log_time
        self._changed = changed
        self.hold: Hold | None = None
        self._trying = False  # the executor is at it
        self._in_vain = False  # the state before the command could not be had again; so that is tried later
        self._withdrawing = False  # asks for leave to try
        self._pause_s = 0.0
        self._try_ticks = 0  # until the next try
        self._beat_ticks = 0  # until it tells again
        self._held_ticks = 0
        self._told: dict[int, Holds] = {}  # at a leader: what each peer said last, in this term
        self._term = -1

    # --- What the executor says ---

    def note(self, hold: Hold | None) -> None:
        """Take up where the executor is: called with everything that it applied."""
        if hold is self.hold:
            return
        before, self.hold = self.hold, hold
        if hold is None:
            self._server.holding = self._withdrawing = False
            self._changed("")
            return
        if before is None or before[:2] != hold[:2]:
            self._server.holding = True
            self._pause_s, self._held_ticks, self._withdrawing = TRY_S[0], 0, False
            self._wait()
            self._changed(self.reason)
            if hold.error is None:
                self._try_ticks = 0  # what was missing may have come while this node was away
        if not hold.ready and not self._trying and not self._in_vain:
            self._try(apply=False)
        self._speak()

    def tried(self, hold: Hold | None, *, apply: bool) -> None:
        """The executor has tried; what came of it is noted next."""
        self._trying = False
        self._in_vain = hold is not None and not hold.ready and not apply

    @property
    def reason(self) -> str:
        """Why this node does not go on, and what that waits for; empty if it does."""
        hold = self.hold
        if hold is None:
            return ""
        if hold.position == BEFORE:
            return f"holds: {hold.reason}. It stores and votes, and tries again by itself"
        text = f"holds at index {hold.index}: {hold.reason}. It tries again by itself"
        if self._marks.may_have_applied(hold.index):
            return f"{text}; what it gave in an earlier run may have been answered, so nothing else is decided of it"
        if self._server.state is not LeaderState or self._is_passed(hold):
            return text
        missing = sorted(self._members(hold.index) - {self._server.node_id} - self._holders(hold))
        if missing:
            return (
                f"{text}; or the error becomes its result once nodes {missing} say that they hold there too. If they "
                f"cannot, an operator can have it skipped: python -m actorraft.storage show PATH --index {hold.index}"
            )
        return text

    # --- Time ---

    def tick(self, ticks: int) -> None:
        """Tell again, try again, see who else could lead."""
        server = self._server
        if self._term != server.current_term:
            self._term = server.current_term
            self._told.clear()
        if self.hold is None or self._is_passed(self.hold):
            return
        self._held_ticks += ticks
        self._try_ticks -= ticks
        self._beat_ticks -= ticks
        if self._try_ticks <= 0 and not self._trying:
            self._retry(self.hold)
        if self._beat_ticks <= 0:
            self._speak()
            self._hand_over()

    def _wait(self) -> None:
        self._try_ticks = int(self._pause_s / self._config.tick_s)
        self._pause_s = min(2 * self._pause_s, TRY_S[1])

    def _retry(self, hold: Hold) -> None:
        self._wait()
        if not hold.ready:
            self._try(apply=False)
        elif hold.module and hold.error is not None and not can_be_found(hold.module):
            pass
        elif self._marks.words[HELD] != hold.index:
            self._try(apply=True)
        elif not self._withdrawing:
            self._withdrawing = True
            self._marks.words[ROUND] += 1
            self._marks.sync()
            self._speak()

    def _try(self, *, apply: bool) -> None:
        hold, server = self.hold, self._server
        assert hold is not None, "it tries only where it holds"
        restore = None
        first_index = server.snapshot_id.index + 1
        if first_index > 0:
            restore = Restore.newest(server.snapshot_id.index, self._storage)
        self._trying = True
        entries = server.log.between(first_index, hold.index)
        self._executor.submit(TryAgain(restore, first_index, entries, apply))

    # --- What nodes tell each other ---

    def _speak(self) -> None:
        """Tell the leader where this node stands; a leader looks whether that decides it."""
        self._beat_ticks = self._config.heartbeat_ticks
        hold, server = self.hold, self._server
        if hold is None or hold.position == BEFORE:
            return  # of which there is nothing to decide
        if server.state is LeaderState:
            if self._withdrawing and self._nothing_decided(hold.index):
                self._released()
            else:
                self._decide()
        elif server.leader_id is not None and (self._withdrawing or self._promise(hold)):
            told = (hold.index, hold.position, self._marks.words[ROUND], self._withdrawing)
            self._net.send(Holds(server.node_id, server.leader_id, server.current_term, *told))

    def _promise(self, hold: Hold) -> bool:
        """Promise not to apply that command without leave, durably; False if that cannot be promised now."""
        if self._withdrawing or self._trying or not hold.ready or hold.error is None:
            return False
        if self._marks.may_have_applied(hold.index):
            return False
        words = self._marks.words
        if (words[HELD], words[HELD_POSITION]) != hold[:2]:
            words[HELD], words[HELD_POSITION] = hold[:2]
            words[ROUND] += 1
            self._marks.sync()
        return True

    def on_message(self, message: Message) -> None:
        """Take what a peer says of holds."""
        if isinstance(message, Holds):
            self._on_holds(message)
        elif isinstance(message, MayTry):
            self._on_may_try(message)

    def _on_holds(self, message: Holds) -> None:
        """A peer tells where it holds, or asks for leave to try again."""
        server = self._server
        if server.state is not LeaderState or message.term != server.current_term:
            return
        if self._term != server.current_term:
            self._term = server.current_term
            self._told.clear()
        known = self._told.get(message.source)
        if known is not None and message.round < known.round:
            return  # a late one
        self._told[message.source] = message
        if not message.withdraw:
            self._decide()
        elif self._nothing_decided(message.index):
            leave = MayTry(server.node_id, message.source, message.term, message.index, message.round)
            self._net.send(leave)

    def _on_may_try(self, message: MayTry) -> None:
        """The leader gives leave."""
        hold = self.hold
        asked = hold is not None and self._withdrawing and message.index == hold.index
        if asked and message.term == self._server.current_term and message.round == self._marks.words[ROUND]:
            self._released()

    def _released(self) -> None:
        """No promise binds this node any more."""
        words = self._marks.words
        words[HELD] = words[HELD_POSITION] = -1
        self._marks.sync()
        self._withdrawing = False
        self._try(apply=True)

    # --- At the leader ---

    def _is_passed(self, hold: Hold) -> bool:
        """Whether a snapshot that was installed holds what that command gave: the executor will hear of it next."""
        return hold.index <= self._server.snapshot_id.index

    def _members(self, index: int) -> frozenset[int]:
        """Return everybody who has been a member since that entry."""
        server = self._server
        later = [configuration.members for at, configuration in server.configurations if at > index]
        return server.configuration_at(index).members.union(*later)

    def _holders(self, hold: Hold) -> set[int]:
        disconnected = self._server.disconnected
        return {
            peer_id
            for peer_id, told in self._told.items()
            if (told.index, told.position) == hold[:2] and not told.withdraw and peer_id not in disconnected
        }

    def _nothing_decided(self, index: int) -> bool:
        """Whether no outcome of that entry can be committed any more, unless this leader appends one from now on."""
        return self._server.committed_in_own_term and not self._outcomes(index)

    def _outcomes(self, index: int) -> set[int]:
        """Return of which commands of that entry the log says what they gave."""
        log = self._server.log
        found = set()
        for _, item in log.between(max(index + 1, log.first_index), len(log)):
            if type(item) is bytes and codec.is_decision(item):
                with contextlib.suppress(codec.MalformedFrame):
                    decision = codec.decode_request(codec.unstamp(item)[1])
                    if type(decision) is codec.Outcome and decision.index == index:
                        found.add(decision.position)
        return found

    def _decide(self) -> None:
        """Make the error the command's result, if everybody holds there."""
        hold, server = self.hold, self._server
        if hold is None or not server.committed_in_own_term or self._is_passed(hold):
            return
        if not self._members(hold.index) <= self._holders(hold) | {server.node_id}:
            return
        if hold.position in self._outcomes(hold.index) or not self._promise(hold):
            return
        outcome = codec.encode(codec.Outcome(hold.index, hold.position, hold.error))
        with contextlib.suppress(RaftError):  # later, then
            server.propose(codec.stamp(self._log_time.now_s(), outcome), bounded=False)

    def _hand_over(self) -> None:
        """Have a node lead that does not hold, as far as is known; give it the time to say so."""
        hold, server = self.hold, self._server
        if hold is None or server.state is not LeaderState or self._held_ticks < self._config.election_timeout_ticks:
            return
        free = [
            (progress.match_index, -peer_id)
            for peer_id, progress in server.progress.items()
            if peer_id in server.configuration.voters
            and peer_id not in self._told
            and peer_id not in server.disconnected
            and progress.recent_active
        ]
        if free:
            self._held_ticks = 0  # if it does not take it, or holds as well, another is asked
            with contextlib.suppress(RaftError):
                server.transfer_leadership(-max(free)[1])
