"""What must be true of a Raft cluster at every instant, checked after every event.

Nothing is scanned: what is committed is kept once, as the one history that all nodes must agree with, and each event
is judged by what it changed. So the cost of a check does not grow with the length of the run.

    election safety          at most one leader per term                                          §5.2
    log matching             an entry (index, term) has one item and one predecessor everywhere   §5.3
    leader completeness      a leader holds everything that was committed in terms before its own §5.4
    state-machine safety     all nodes commit the same entry at an index                          §5.4.3
    commit index             never falls while a node runs; what is committed is never overwritten
    commitment               a leader counts replicas only for entries of its own term            §5.4.2
    quorum                   an entry is durable on a majority at the instant of its commit        §5.3, §6
    election                 a majority has given a new leader its votes                          §5.2, §6
    up-to-date votes         nobody votes for a candidate whose log is behind its own             §5.4.1
    one vote                 a voter's disk never holds two votes of one term                     §5.2
    match index              never beyond what a follower in this term holds of the leader's log   Figure 2
    configuration            in force is the latest in the log, committed or not                   §6
    reads                    a read gets no index below what was committed when it was asked for   §8, D§6.4
    disk before word         no message says what the sender's disk does not hold yet             Figure 2

Source:     the figures and sections named; "durable" is asked of the simulated disks, never of the servers.
Not here:   histories of clients (linearizability.py) and convergence (world.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from actorraft import codec
from actorraft.raft.log import item_bytes
from actorraft.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Configuration,
    HardState,
    InstallSnapshot,
    InstallSnapshotResponse,
    LogEntry,
    Message,
    RequestVote,
    RequestVoteResponse,
)
from actorraft.raft.ready import LeaderState
from actorraft.raft.server import RaftServer
from actorraft.simulation.disk import SimDisk


class InvariantViolation(AssertionError):
    """A rule of the paper was broken; `invariant` names it."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant
        self.detail = detail


class Judged(Protocol):
    """A node, as the checker sees it."""

    node_id: int
    disk: SimDisk
    founding: Configuration  # what it was started with, before there was any in its log
    server: RaftServer | None
    view: View


class View:
    """What the checker saw of a node's server last; new with every start of the node."""

    __slots__ = ("before", "commit_index", "configuration", "elected_term", "led_term", "term")

    def __init__(self, server: RaftServer, configuration: Configuration) -> None:
        self.commit_index = server.commit_index
        self.term = server.current_term
        self.led_term = self.elected_term = -1
        self.configuration = self.before = configuration  # in force by its disk, at the last look and before this event


class Checker:
    """The judge of one run.

    Args:
        nodes: all nodes that ever were, by id; the caller may add some.
        on_event: told, in words, when a leader is elected.
    """

    def __init__(self, nodes: Mapping[int, Judged], on_event: Callable[[int, str], None]) -> None:
        self.nodes = nodes
        self.on_event = on_event
        self.committed: list[LogEntry] = []  # the one history
        self.commit_terms: list[int] = []  # the leader's term when it was committed
        self.leaders: dict[int, int] = {}  # term -> who led
        self.behind: int | None = None  # the node that was put on an older copy of its disk
        self.told_by: int | None = None  # the leader that knows, and said so
        self.given: dict[tuple[int, int], int] = {}  # (voter, term) -> to whom it gave its vote, in a message
        self.candidates: dict[tuple[int, int], tuple[int, int]] = {}  # (node, term) -> its last log term and index
        self.entries: dict[tuple[int, int], tuple[int, Any]] = {}  # (index, term) -> (term before it, item)
        self.on_message: dict[type, Callable[[Judged, Any], None]] = {
            AppendEntries: self._on_append,
            InstallSnapshot: self._on_chunk,
            AppendEntriesResponse: self._on_append_response,
            RequestVote: self._on_request_vote,
            RequestVoteResponse: self._on_vote_response,
            InstallSnapshotResponse: self._on_snapshot_response,
        }

    # --- After each event of a node ---

    @property
    def agreed_version(self) -> int:
        """The version of the machine by which commands are applied in the end, as far as is committed; 0: none said."""
        for _, item in reversed(self.committed):
            if type(item) is bytes and codec.is_code(item):
                said = codec.decode_request(codec.unstamp(item)[1])
                assert isinstance(said, codec.Code), f"no code: {said}"
                return said.version
        return 0

    def started(self, node: Judged) -> None:
        """A node came up: what it knows must be what its disk holds."""
        server = node.server
        assert server is not None
        node.view = View(server, self.configuration_of(node))
        if server.commit_index >= len(self.committed):
            raise InvariantViolation("state-machine safety", f"node {node.node_id} restarted with a commit of its own")

    def after(self, node: Judged) -> None:
        """Judge what an event of `node` changed."""
        server, view = node.server, node.view
        assert server is not None
        if server.commit_index != view.commit_index:
            self._check_commit(node, server, view)
        term = server.current_term
        if term != view.term:
            if term < view.term:
                raise InvariantViolation("terms never fall", f"node {node.node_id} went from {view.term} to {term}")
            view.term = term
        # One that crashes before its term is stored has led nobody: alone in its configuration, it may win at once.
        if server.state is LeaderState and view.led_term != term and node.disk.hard_state.term == term:
            view.led_term = term
            self._check_leader(node, server, term)
        view.configuration = self.configuration_of(node)

    def settled(self, node: Judged, sources: Sequence[int]) -> None:
        """Judge what only holds when an event's effects are all done; `sources` answered this node's appends in it."""
        server = node.server
        assert server is not None
        durable = node.view.configuration
        if server.configuration is not durable and server.configuration != durable:
            raise InvariantViolation(
                "configuration", f"node {node.node_id} goes by {server.configuration}, its log says {durable}"
            )
        if server.state is LeaderState:
            if node.view.elected_term != server.current_term:
                self._check_votes(node, server.current_term)
            self._check_matches(node, server, sources)
        node.view.before = durable

    def _check_matches(self, node: Judged, server: RaftServer, sources: Sequence[int]) -> None:
        log = server.log
        for peer_id in sources:
            progress = server.progress.get(peer_id)
            disk = self.nodes[peer_id].disk
            if progress is None or disk.hard_state.term > server.current_term:
                continue  # deposed without knowing it: what was acknowledged to it may be its successor's by now
            match = progress.match_index
            if peer_id == self.behind and self.told_by != node.node_id and match > disk.last_index:
                continue  # its leader has not heard yet that it lost this
            if match >= log.first_index and not disk.holds(match, log[match].term):
                raise InvariantViolation(
                    "match index",
                    f"leader {node.node_id} believes that node {peer_id} holds {match}; its disk does not",
                )

    def _check_votes(self, node: Judged, term: int) -> None:
        """Whoever leads was given a majority's votes, each of which its voter's disk held when it left."""
        node.view.elected_term = term
        leader_id, given = node.node_id, self.given
        voted = [voter for voter in self.nodes if voter == leader_id or given.get((voter, term)) == leader_id]
        if not self._majorities(node, voted):
            raise InvariantViolation("election", f"node {node.node_id} leads term {term} with the votes of {voted}")

    def read_answered(self, node: Judged, index: int, committed_then: int) -> None:
        """Judge the index that a read got; `committed_then` was committed when it was asked for."""
        if 0 <= index < committed_then:
            raise InvariantViolation(
                "reads", f"node {node.node_id} serves a read at {index}, asked for when {committed_then} was committed"
            )

    def lost_log(self, node: Judged, lost_by: int, words: str) -> None:
        """A leader says that a node lost what it had acknowledged."""
        if lost_by != self.behind:
            raise InvariantViolation("lost logs", f"leader {node.node_id} says so falsely: {words}")
        self.told_by = node.node_id

    def configuration_of(self, node: Judged) -> Configuration:
        """Return the configuration in force by what is durable, worked out apart from the core."""
        disk = node.disk
        if disk.configurations:
            return disk.configurations[-1][1]
        if disk.images:
            return disk.images[-1].meta.configuration
        return node.founding

    def _check_leader(self, node: Judged, server: RaftServer, term: int) -> None:
        """Election safety and leader completeness."""
        other = self.leaders.setdefault(term, node.node_id)
        if other != node.node_id:
            raise InvariantViolation("election safety", f"nodes {other} and {node.node_id} both lead term {term}")
        self.on_event(node.node_id, f"leads term {term}")
        last = len(self.committed) - 1
        while last >= 0 and self.commit_terms[last] >= term:
            last -= 1
        if last < 0:
            return
        log = server.log
        if log.last_index < last or (last >= log.first_index and log[last] != self.committed[last]):
            raise InvariantViolation(
                "leader completeness",
                f"node {node.node_id} leads term {term} without {last}, committed in term {self.commit_terms[last]}",
            )

    def _check_commit(self, node: Judged, server: RaftServer, view: View) -> None:
        """State-machine safety, and the quorum behind every new commit."""
        old, new = view.commit_index, server.commit_index
        if new < old:
            raise InvariantViolation("commit index", f"node {node.node_id} went back from {old} to {new}")
        view.commit_index = new
        committed, log = self.committed, server.log
        known = len(committed)
        for index in range(max(old + 1, log.first_index), min(new + 1, known)):
            if log[index] != committed[index]:
                raise InvariantViolation(
                    "state-machine safety",
                    f"node {node.node_id} commits {log[index]!r} at {index}, where {committed[index]!r} is committed",
                )
        if new < known:
            return
        if server.snapshot_id.index >= known:
            raise InvariantViolation(
                "state-machine safety", f"node {node.node_id} has a snapshot of what is uncommitted"
            )
        # A later term may have reached it in the same batch; then it committed in the one that it led before.
        led = server.current_term if server.state is LeaderState else view.led_term
        if log[new].term != led:
            raise InvariantViolation(
                "commitment", f"node {node.node_id} commits {new} of term {log[new].term} in term {led}"
            )
        holders = [one.node_id for one in self.nodes.values() if one.disk.holds(new, log[new].term)]
        if not self._majorities(node, holders):
            raise InvariantViolation(
                "quorum",
                f"node {node.node_id} commits {new} in term {server.current_term}, durable only on {holders}",
            )
        committed.extend(log[known : new + 1])
        self.commit_terms.extend([led] * (new + 1 - known))

    def _majorities(self, node: Judged, nodes: Sequence[int]) -> bool:
        """Whether these are a quorum, by the configuration in force at `node` before or after the event under way."""
        return any(
            all(
                2 * len(voters.intersection(nodes)) > len(voters)
                for voters in (configuration.voters, configuration.voters_outgoing)
                if voters
            )
            for configuration in (node.view.before, node.view.configuration, self.configuration_of(node))
        )

    # --- Writes ---

    def wrote(self, node: Judged, hard_state: HardState | None, first_index: int, entries: Sequence[LogEntry]) -> None:
        """Judge a write before it happens: one vote a term, log matching, nothing committed overwritten."""
        disk = node.disk
        if hard_state is not None:
            held = disk.hard_state
            if hard_state.term < held.term:
                raise InvariantViolation("terms never fall", f"node {node.node_id} stores {hard_state} over {held}")
            voted = disk.votes.get(hard_state.term)
            if voted is not None and hard_state.voted_for != voted:
                raise InvariantViolation(
                    "one vote",
                    f"node {node.node_id} voted for {voted} in term {hard_state.term}, now for {hard_state.voted_for}",
                )
        if first_index < 0:
            return
        start = first_index - disk.first_index
        held_entries = disk.entries
        if not 0 <= start <= len(held_entries):
            raise InvariantViolation(
                "log matching",
                f"node {node.node_id} writes at {first_index}, its disk has {disk.first_index} to {disk.last_index}",
            )
        if start < len(held_entries):
            self._check_overwrite(node, first_index, entries)
        before = held_entries[start - 1].term if start > 0 else disk.previous_term
        known = self.entries
        index = first_index
        for term, item in entries:
            seen = known.setdefault((index, term), (before, item))
            if seen[0] != before or seen[1] != item:
                raise InvariantViolation(
                    "log matching",
                    f"node {node.node_id} stores {item!r} after term {before} at {index} of term {term}, "
                    f"where others have {seen[1]!r} after term {seen[0]}",
                )
            before = term
            index += 1

    def _check_overwrite(self, node: Judged, first_index: int, entries: Sequence[LogEntry]) -> None:
        disk, committed = node.disk, self.committed
        for index in range(first_index, min(disk.last_index + 1, len(committed))):
            held = disk.entries[index - disk.first_index]
            offset = index - first_index
            if held == committed[index] and (offset >= len(entries) or entries[offset] != held):
                raise InvariantViolation(
                    "leader completeness", f"node {node.node_id} overwrites entry {index}, which is committed"
                )

    # --- Messages: nothing may be said that the disk does not hold ---

    def sends(self, node: Judged, message: Message) -> None:
        """Judge a message at the instant it leaves."""
        term, durable = message.term, node.disk.hard_state.term
        if term > durable and not getattr(message, "pre_vote", False):
            raise InvariantViolation(
                "disk before word", f"node {node.node_id} speaks of term {term}, its disk of {durable}: {message}"
            )
        check = self.on_message.get(type(message))
        if check is not None:
            check(node, message)

    def _on_append(self, node: Judged, message: AppendEntries) -> None:
        """No more at once, and no more under way, than the configuration says: links are made for that."""
        server, entries = node.server, message.entries
        if server is None or not entries:
            return
        config = server.config
        if len(entries) > 1 and sum(item_bytes(item) for _, item in entries) > config.append_bytes_max:
            raise InvariantViolation(
                "bounds",
                f"node {node.node_id} sends {len(entries)} entries, over {config.append_bytes_max} bytes",
            )
        progress = server.progress.get(message.dest)
        if progress is not None and len(progress.inflight) > config.inflight_max:
            raise InvariantViolation(
                "bounds", f"node {node.node_id} has {len(progress.inflight)} appends to {message.dest} under way"
            )

    def _on_chunk(self, node: Judged, message: InstallSnapshot) -> None:
        if node.server is not None and len(message.data) > node.server.config.snapshot_chunk_bytes:
            raise InvariantViolation("bounds", f"node {node.node_id} sends a chunk of {len(message.data)} bytes")

    def _on_append_response(self, node: Judged, message: AppendEntriesResponse) -> None:
        if not message.success:
            return
        index, disk = message.match_index, node.disk
        if index > disk.last_index and index > disk.snapshot_index:
            raise InvariantViolation(
                "disk before word", f"node {node.node_id} acknowledges {index}, its disk ends at {disk.last_index}"
            )
        leader = self.nodes.get(self.leaders.get(message.term, -1))
        if leader is None or leader.server is None or leader.view.led_term != message.term:
            return  # it is down, or came back without what it had sent and not yet stored
        if leader.server.state is not LeaderState or leader.server.current_term != message.term:
            return  # deposed: its log may be its successor's by now, and says nothing of this term's
        log = leader.server.log
        if index > log.last_index or (index >= log.first_index and not disk.holds(index, log[index].term)):
            raise InvariantViolation(
                "log matching", f"node {node.node_id} acknowledges {index}, where it differs from its leader"
            )

    def _on_request_vote(self, node: Judged, message: RequestVote) -> None:
        if message.pre_vote or message.term < node.disk.hard_state.term:
            return  # with a later term on its disk it can never vote in this one again
        self.candidates[node.node_id, message.term] = message.last_log_term, message.last_log_index
        if node.disk.votes.get(message.term) != node.node_id:
            raise InvariantViolation(
                "disk before word", f"node {node.node_id} is a candidate in term {message.term} without its own vote"
            )

    def _on_vote_response(self, node: Judged, message: RequestVoteResponse) -> None:
        if message.pre_vote or not message.vote_granted:
            return
        given = self.given.setdefault((node.node_id, message.term), message.dest)
        if given != message.dest:
            raise InvariantViolation(
                "one vote", f"node {node.node_id} votes for {given} and {message.dest} in term {message.term}"
            )
        if message.term < node.disk.hard_state.term:
            return
        if node.disk.votes.get(message.term) != message.dest:
            raise InvariantViolation(
                "disk before word",
                f"node {node.node_id} grants {message.dest} its vote of term {message.term}; "
                f"its disk says {node.disk.votes.get(message.term)}",
            )
        disk = node.disk
        own = last_before(disk, message.term)
        theirs = self.candidates.get((message.dest, message.term), own)
        if theirs < own and self.leaders.get(message.term) != message.dest:
            raise InvariantViolation(
                "up-to-date votes", f"node {node.node_id} at {own} votes for node {message.dest} at {theirs}"
            )

    def _on_snapshot_response(self, node: Judged, message: InstallSnapshotResponse) -> None:
        disk = node.disk
        if message.done and message.snapshot_index > max(disk.snapshot_index, disk.last_index):
            raise InvariantViolation(
                "disk before word", f"node {node.node_id} says it installed {message.snapshot_index}; its disk does not"
            )


def last_before(disk: SimDisk, term: int) -> tuple[int, int]:
    """Return (term, index) of the last entry of an earlier term.

    Entries of the vote's own term come from the leader of that term. They may have been written behind the vote, by the
    same write, so they were not there when it was decided. A snapshot of that term hides what was there.
    """
    index = disk.last_index
    for entry in reversed(disk.entries):
        if entry.term < term:
            return entry.term, index
        index -= 1
    return (disk.previous_term, index) if disk.previous_term < term else (-1, -1)
