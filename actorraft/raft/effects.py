"""What comes together for the next Ready, and how far the log is with disk and executor.

The rules put effects in while they handle events; `ready` hands them over and `advance` notes that they are durable.
Everything that the driver is to do goes through here, so that there is one way out of the core.

Source:     Figure 2 (stable storage before answers); D§10.2.1 (the leader writes beside the others).
Invariant:  persisted_index < unstable_from <= log.last_index + 1; handed_index <= commit_index;
            one Ready is out at most.
Not here:   the order in which a driver carries a Ready out; see ready.py.
"""

from __future__ import annotations

from actorraft.raft.log import RaftLog
from actorraft.raft.messages import AppendEntriesResponse, EntryId, HardState, InstallSnapshot, LogEntry, Message
from actorraft.raft.ready import LostLog, ReadState, Ready, ServerState

Role = tuple[ServerState, int, int | None, int | None]  # state, term, leader, vote


class Effects:
    """One server's effects.

    Args:
        log: the server's; all of it is durable.
        role: as the driver knows it, term and vote as the disk holds them.
        handed_index: the machine is in the state after this entry.
    """

    __slots__ = (
        "_log",
        "_taken",
        "begun",
        "commit_untold",
        "handed_index",
        "lost_logs",
        "messages",
        "messages_after_persist",
        "persisted_index",
        "reads",
        "role",
        "seldom",
        "snapshot_chunks",
        "snapshot_installed",
        "unstable_from",
        "urgent_delay_ms",
    )

    def __init__(self, log: RaftLog, role: Role, handed_index: int) -> None:
        self._log = log
        # How far the log is
        self.persisted_index = log.last_index  # highest entry on this disk
        self.unstable_from = log.last_index + 1  # entries from here on were in no Ready yet; those before it were
        self.handed_index = handed_index  # highest entry given to the executor
        # What the last Ready said
        self.role = role  # term and vote are durable, once that Ready is advanced
        self._taken: Ready | None = None  # the Ready that is out
        self._clear_seldom()
        self._clear()

    def _clear(self) -> None:
        """Begin to gather for the next Ready; see there."""
        self.messages: list[Message] = []
        self.messages_after_persist: list[Message] = []
        self.reads: list[ReadState] = []
        self.commit_untold = False
        if self.seldom:
            self._clear_seldom()

    def _clear_seldom(self) -> None:
        """The same for what almost no Ready has."""
        self.snapshot_chunks: tuple[InstallSnapshot, ...] = ()
        self.snapshot_installed: EntryId | None = None
        self.urgent_delay_ms: int | None = None
        self.begun = False
        self.lost_logs: tuple[LostLog, ...] = ()
        self.seldom = False  # whether any of those is there

    # -- what the rules do to the log

    def append_from(self, index: int) -> None:
        """Entries from `index` on are new, or in the place of others: what was known of those is void."""
        if self.messages_after_persist:
            # An answer to the leader before that waits for this same write would speak of what is not there by then.
            self.messages_after_persist = [
                message
                for message in self.messages_after_persist
                if not (isinstance(message, AppendEntriesResponse) and message.match_index >= index)
            ]
        self.unstable_from = min(self.unstable_from, index)
        self.persisted_index = min(self.persisted_index, index - 1)

    def install(self, snapshot_id: EntryId) -> None:
        """A received snapshot is in the place of the whole log (§7)."""
        self.handed_index = self.persisted_index = snapshot_id.index
        self.unstable_from = snapshot_id.index + 1
        self.snapshot_installed = snapshot_id
        self.seldom = True

    def write_chunk(self, chunk: InstallSnapshot) -> None:
        """A piece of a snapshot has come (§7)."""
        self.snapshot_chunks += (chunk,)
        self.seldom = True

    def want_urgent(self, delay_ms: int) -> None:
        """See `Ready.urgent_delay_ms`."""
        self.urgent_delay_ms = delay_ms
        self.seldom = True

    def end_probation(self) -> None:
        """What this node votes and acknowledges counts from here on."""
        self.begun = self.seldom = True

    def say_lost(self, lost: LostLog) -> None:
        """A node came back without what it had acknowledged."""
        self.lost_logs += (lost,)
        self.seldom = True

    # -- out

    def ready(self, role: Role, commit_index: int) -> Ready:
        """Return what is to be done now, and forget it; `advance` is due before the next one."""
        assert self._taken is None, "the Ready before this one has not been advanced"
        log = self._log
        messages, after_persist = self.messages, self.messages_after_persist
        hard_state, state_changed = None, False
        if role != self.role:
            before, self.role = self.role, role
            state_changed = role[:3] != before[:3]
            (_, term_before, _, vote_before), (_, term, _, vote) = before, role
            if (term, vote) != (term_before, vote_before):
                hard_state = HardState(term, vote)
            if term > term_before:
                # A leader's messages may overtake its write of entries, but not that of its term.
                messages, after_persist = [], messages + after_persist
        entries_from, unstable_from = -1, self.unstable_from
        entries: list[LogEntry] = []
        if unstable_from <= log.last_index:
            entries_from, self.unstable_from = unstable_from, log.last_index + 1
            entries = log.between(entries_from, self.unstable_from)
        committed_from = self.handed_index + 1
        committed: list[LogEntry] = []
        if commit_index >= committed_from:
            self.handed_index = commit_index
            committed = log.between(committed_from, commit_index + 1)
        ready = self._taken = Ready(
            messages,
            hard_state,
            entries_from,
            entries,
            self.snapshot_chunks,
            self.snapshot_installed,
            after_persist,
            committed_from,
            committed,
            self.reads,
            state_changed,
            self.urgent_delay_ms,
            self.begun,
            self.lost_logs,
            self.commit_untold,
        )
        self._clear()
        return ready

    def advance(self, ready: Ready) -> None:
        """Note that what `ready` asked to persist is durable now."""
        assert ready is self._taken, "advance() takes the Ready that is out"
        self._taken = None
        if ready.entries:
            # What was replaced in the meantime is not durable.
            durable_to = min(self.unstable_from - 1, ready.entries_from + len(ready.entries) - 1)
            self.persisted_index = max(self.persisted_index, durable_to)
