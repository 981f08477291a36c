"""Fetching: a node whose code is newer than what it would have to replay takes the leader's state instead.

At its start a node holds entries that the others have applied, by older code. Newer code may not know those rules any
more; and whoever replays computes anew what was acknowledged. So what was committed by then is not applied: the node
asks the leader for a snapshot of the state behind it, part by part, and goes on from there as if it had taken that
snapshot itself. A leader that has none takes one. What is committed later is applied by all alike, by the rules that
the log says (rules.py).

If nobody answers for PATIENCE election timeouts, if the leader cannot take a snapshot, or if this node itself leads,
nobody else has that state: the entries are replayed then, by the old rules.

Source:     docs/decisions/0031.
Invariant:  the log is not touched before the snapshot is durable; then it is cut as behind one of this node's own.
Threads:    the node's loop.
Not here:   which entries are other code's (rules.py); a log that is too short, which is the core's (raft/snapshots.py).
"""

from __future__ import annotations

from typing import Final

from actorraft.errors import NoRoom
from actorraft.loggers import guarded_logger
from actorraft.node.snapshotting import Snapshotting
from actorraft.ports import Net, SnapshotWriter, Storage
from actorraft.raft.config import RaftConfig
from actorraft.raft.messages import NO_ENTRY, EntryId, StatePart, StateWanted
from actorraft.raft.ready import LeaderState
from actorraft.raft.server import RaftServer

logger = guarded_logger("actorraft")

PATIENCE: Final = 10  # election timeouts without an answer


class Fetching:
    """What one node asks for, and what it answers as a leader.

    Attributes:
        over: nothing is asked for any more: the state is here, or cannot be had.
    """

    def __init__(
        self, server: RaftServer, net: Net, storage: Storage, snapshots: Snapshotting, config: RaftConfig
    ) -> None:
        self._server = server
        self._net = net
        self._storage = storage
        self._snapshots = snapshots
        self._config = config
        self.over = False
        self._least_index = -1  # of the state that is wanted; -1: none is
        self._snapshot_id = NO_ENTRY  # of what is coming in
        self._giver = (-1, -1)  # whose bytes these are, in which term: another's of the same snapshot may differ
        self._offset = 0
        self._writer: SnapshotWriter | None = None
        self._silent_ticks = 0  # since the last answer
        self._beat_ticks = 0  # until it is asked again

    @property
    def reason(self) -> str:
        """What this node waits for; empty if for nothing."""
        if self._least_index < 0:
            return ""
        return (
            f"it holds entries up to index {self._least_index} that older code or another Python applied, and takes "
            "the leader's state instead of replaying them"
        )

    def want(self, least_index: int) -> bool:
        """Whether the state at an index, or later, is on its way: the node applies nothing meanwhile."""
        if self.over:
            return False
        if self._server.state is LeaderState:
            self._end("this node leads")
            return False
        if self._least_index < 0:
            self._least_index = least_index
            self._server.holding = True  # others, which have that state, should lead
            self._ask()
        return True

    def tick(self, ticks: int) -> None:
        """Ask again; give up at last."""
        if self._least_index < 0:
            return
        self._silent_ticks += ticks
        self._beat_ticks -= ticks
        if self._server.state is LeaderState:
            self._end("this node leads")
        elif self._silent_ticks >= PATIENCE * self._config.election_timeout_ticks:
            self._end("no leader gives its state")
        elif self._beat_ticks <= 0:
            self._ask()

    def _ask(self) -> None:
        server = self._server
        self._beat_ticks = self._config.heartbeat_ticks
        if server.leader_id is not None and server.leader_id != server.node_id:
            if self._giver != (server.leader_id, server.current_term):
                self._drop()
                self._giver = (server.leader_id, server.current_term)
            ask = (self._least_index, *self._snapshot_id, self._offset)
            self._net.send(StateWanted(server.node_id, server.leader_id, server.current_term, *ask))

    def answer(self, asked: StateWanted, last_applied: int) -> None:
        """A peer asks for this node's state; only a leader gives it."""
        server, snapshots = self._server, self._snapshots
        if server.state is not LeaderState or asked.term != server.current_term or asked.least_index < 0:
            return
        snapshot_id = EntryId(asked.snapshot_term, asked.snapshot_index)
        chunk = None
        if snapshot_id.index >= asked.least_index:
            chunk = self._storage.read_snapshot(snapshot_id, asked.offset, self._config.snapshot_chunk_bytes)
        offset = asked.offset
        if chunk is None and snapshots.newest_index == server.snapshot_id.index >= asked.least_index:
            snapshot_id, offset = server.snapshot_id, 0
            chunk = self._storage.read_snapshot(snapshot_id, 0, self._config.snapshot_chunk_bytes)
        why_not = ""
        if chunk is None:
            snapshot_id, offset, chunk = NO_ENTRY, 0, (b"", False)
            if snapshots.why_not and snapshots.tried_index >= asked.least_index and not snapshots.running:
                why_not = snapshots.why_not
            elif last_applied >= asked.least_index:
                why_not = snapshots.begin()
        part = StatePart(server.node_id, asked.source, server.current_term, *snapshot_id, offset, *chunk, why_not)
        self._net.send(part)

    def take(self, part: StatePart, committed_index: int) -> EntryId | None:
        """Take a part; return what is whole and durable now, for the machine to be restored from.

        Args:
            committed_index: the last entry that is known to be committed, and held in this log.

        Raises:
            StorageFailed: the disk refused.
        """
        server = self._server
        if self._least_index < 0 or part.term != server.current_term or part.source != server.leader_id:
            return None
        self._silent_ticks = 0
        if part.why_not:
            self._end(f"the leader has no snapshot: {part.why_not}")
            return None
        snapshot_id = EntryId(part.snapshot_term, part.snapshot_index)
        if not self._least_index <= snapshot_id.index <= committed_index:
            return None  # it is being taken; or what it holds is not known here yet to be committed: soon
        if server.log.term_at(snapshot_id.index) != snapshot_id.term:
            return None
        if self._giver != (part.source, part.term):
            return None  # this leader was not asked yet
        try:
            return snapshot_id if self._write(part, snapshot_id) else None
        except NoRoom as error:
            self._writer = None
            self._end(str(error))
            return None

    def _write(self, part: StatePart, snapshot_id: EntryId) -> bool:
        if snapshot_id != self._snapshot_id:
            self._drop()
            self._writer = self._storage.begin_snapshot(snapshot_id, self._server.configuration_at(snapshot_id.index))
            self._snapshot_id = snapshot_id
        if part.offset != self._offset or self._writer is None:
            return False  # a late one
        self._writer.write(part.data)
        self._offset += len(part.data)
        if not part.done:
            self._ask()
            return False
        meta, self._writer = self._writer.commit(), None
        self._snapshots.fetched(meta)
        self._end("")
        return True

    def forget(self) -> None:
        """Ask nothing any more: the core has brought a later state."""
        if self._least_index >= 0:
            self._end("")

    def _drop(self) -> None:
        if self._writer is not None:
            self._writer.abort()
            self._writer = None
        self._snapshot_id, self._offset = NO_ENTRY, 0

    def _end(self, why: str) -> None:
        if why:
            logger.warning("entries that older code or another Python applied are replayed here: %s", why)
        self._drop()
        if self._least_index >= 0:
            self._server.holding = False
        self.over, self._least_index = True, -1
