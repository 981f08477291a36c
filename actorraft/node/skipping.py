"""What nodes tell each other of the entries that operators had skipped: before anything else, on every link.

A skipped entry changes nothing on the nodes that know of it, and does what it says on those that do not. So a node that
skips anything says so first on each link, and until the other has answered with the same set neither sends nor takes a
Raft message there. Who learns of a skip that it has not come to yet keeps it in its folder, and starts again with it.
Who has applied the entry talks to such a node no more, and says why: one of the two is wrong, and a person must say
which. A leader puts its set into the log as well, once in its term, for whoever looks back.

A cluster that skips nothing, as nearly all do, pays one look at two empty dicts for each message.

Invariant:  a node that skips anything exchanges Raft messages with those alone that skip the same.
Threads:    the node's loop; `skips` is the executor's own dict, which grows there (executor.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from actorraft import codec
from actorraft.node.logtime import LogTime
from actorraft.ports import Net
from actorraft.raft.errors import RaftError
from actorraft.raft.messages import Introduction
from actorraft.raft.ready import LeaderState
from actorraft.raft.server import RaftServer
from actorraft.storage.marks import APPLIED, UNKNOWN, Marks


class Learned(Exception):
    """The node must start again, with an entry to skip that it has learned of; the message says which."""


class Skipping:
    """Whom this node talks to, as far as skipped entries go.

    Args:
        skips: index -> checksum; the executor's.
        keep: makes a set durable in this node's folder; None: nowhere.
    """

    def __init__(
        self,
        server: RaftServer,
        net: Net,
        marks: Marks,
        log_time: LogTime,
        skips: dict[int, int],
        keep: Callable[[dict[int, int]], object] | None,
    ) -> None:
        self._server = server
        self._net = net
        self._marks = marks
        self._log_time = log_time
        self._skips = skips
        self._keep = keep
        self._met: set[int] = set()  # peers whose set is ours, on the link that is up
        self._refused: dict[int, str] = {}  # peers that this node does not talk to -> why
        self._logged_term = -1
        self._beat = 0

    def talks_to(self, peer_id: int) -> bool:
        """Whether Raft messages may come from and go to a peer."""
        return peer_id not in self._refused and (not self._skips or peer_id in self._met)

    @property
    def careful(self) -> bool:
        """Whether `talks_to` need be asked at all."""
        return bool(self._skips or self._refused)

    @property
    def reason(self) -> str:
        """Whom this node does not talk to, and why; empty if it talks to all."""
        return "; ".join(self._refused.values())

    def connected(self, peer_id: int) -> None:
        """A link came up, or broke: what was said on another one does not count."""
        self._met.discard(peer_id)
        if self._skips:
            self._introduce(peer_id, asks=True)

    def tick(self) -> None:
        """Ask again whoever has not answered; at a leader, log the set."""
        if not self._skips:
            return
        server = self._server
        self._beat = (self._beat + 1) % server.config.heartbeat_ticks
        if self._beat:
            return
        for peer_id in server.configuration.members - self._met - {server.node_id}:
            self._introduce(peer_id, asks=True)
        leads = server.state is LeaderState and server.committed_in_own_term and not self._log_time.restoring
        if leads and self._logged_term != server.current_term:
            with contextlib.suppress(RaftError):  # later, then
                entry = codec.encode(codec.Skips(sorted(self._skips.items())))
                server.propose(codec.stamp(self._log_time.now_s(), entry))
                self._logged_term = server.current_term

    def on_introduction(self, said: Introduction) -> None:
        """A peer says what it skips.

        Raises:
            Learned: something that this node has not come to yet.
        """
        mine, theirs = dict(self._skips), dict(said.skips)
        applied = self._applied
        self._refused.pop(said.source, None)
        self._met.discard(said.source)
        new = {index: crc for index, crc in theirs.items() if index not in mine and index > applied}
        if new and self._keep is not None:
            self._keep({**mine, **new})
            raise Learned(
                f"node {said.source} skips what an operator said, at index {_listed(new)}; this node starts again, and "
                "skips it too"
            )
        # What only this node skips, and the other has not come to, that one learns now.
        differ = mine.items() ^ theirs.items()
        parted = {index for index, _ in differ if index in theirs or index <= said.applied_index}
        if not differ:
            self._met.add(said.source)
        elif parted:
            self._refused[said.source] = (
                f"does not talk to node {said.source}: at index {_listed(parted)} one of the two has passed an entry "
                "that the other skips; replace the one that is wrong: remove_node(), add_node()"
            )
        if said.asks:
            self._introduce(said.source, asks=False)

    @property
    def _applied(self) -> int:
        """The highest entry that this node may have applied, in this life or an earlier one."""
        words = self._marks.words
        return max(words[APPLIED], words[UNKNOWN], self._server.last_applied)

    def _introduce(self, peer_id: int, *, asks: bool) -> None:
        server, skips = self._server, sorted(self._skips.items())
        self._net.send(Introduction(server.node_id, peer_id, server.current_term, skips, self._applied, asks))


def _listed(indexes: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(indexes)))
