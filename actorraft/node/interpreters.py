"""Under which minor version of Python commands are applied, and what a node of another one does: it holds.

What a command comes to may differ between minor versions (how deep it may recurse, above all). So one of them is the
cluster's: the first leader's own is written into the log, beside what else decides replicated state. A node that runs
another one stores and votes, applies nothing, and says so. While somebody of the cluster's version is linked, it waits
longer before it campaigns (its log may be the only one that is long enough), and hands over if it leads. When a
majority of the voters has said that it runs the leader's, and no voter that is linked runs the cluster's or says
nothing, the leader's becomes that: after a stop of all, or when the last node was started anew.

Source:     docs/decisions/0043.
Invariant:  what is committed behind an entry that names a version is applied by nodes of that version only.
Threads:    the node's loop.
"""

from __future__ import annotations

import contextlib
import json
from typing import Final

from actorraft.raft.errors import RaftError
from actorraft.raft.messages import Configuration
from actorraft.raft.quorum import VoteResult, vote_result
from actorraft.raft.ready import LeaderState
from actorraft.raft.server import RaftServer

PYTHON: Final = "python"  # in the settings of a Configuration


class Interpreters:
    """What one node knows of its own interpreter, its peers' and the log's.

    Args:
        mine: this node's, as "3.12"; "": nobody looks after that (simulations, a log without a machine).
    """

    def __init__(self, server: RaftServer, mine: str) -> None:
        self.mine = mine
        self.waited = False  # entries that were applied under another one were kept back
        self._server = server
        self._heard: dict[int, str] = {}  # what peers on a living link have said
        self._asked = -1  # whom this leader last asked to lead in its place
        self._seen = Configuration()  # the one that was looked into last,
        self._said = ""  # and what it says
        self._fitting: Configuration | None = None  # the one that was found to name this node's version

    def hear(self, node_id: int, python: str) -> None:
        """A peer says what it runs; one of an older library says nothing."""
        self._heard[node_id] = python

    def lost(self, node_id: int) -> None:
        """A peer's link is down: it may come back under another one."""
        self._heard.pop(node_id, None)

    @property
    def foreign(self) -> set[int]:
        """Return the peers on a living link that run another version than the cluster's."""
        ruling = self._said_in(self._server.configuration)
        return {one for one, python in self._heard.items() if python and ruling and python != ruling}

    def fits(self) -> bool:
        """Whether what is committed is known to be for this node's version: so it was, and nothing has changed."""
        index, configuration = self._server.configurations[-1]
        return configuration is self._fitting and index <= self._server.commit_index

    def look(self) -> str:
        """See whether this node may apply what is committed; returns why not, if so."""
        server = self._server
        if not self.mine:
            return ""
        known = server.configurations[0][1]
        for index, configuration in reversed(server.configurations):
            if index <= server.commit_index:
                known = configuration
                break
        ruling = self._said_in(known)
        self._fitting = known if ruling == self.mine else None
        if ruling in ("", self.mine):
            server.foreign = False
            return ""
        able = self._who(ruling)
        server.foreign, self.waited = bool(able), True
        others = f"as nodes {able} run" if able else "and a majority has not said yet that it runs another"
        return (
            f"commands are applied under Python {ruling}, {others}, and this node runs {self.mine}: it stores and "
            f"votes only. Start it under Python {ruling}; or all nodes under {self.mine}"
        )

    def may_append(self) -> bool:
        """Whether this leader may append a command now."""
        known = self._server.configuration
        said = self._said if known is self._seen else self._said_in(known)
        return not self.mine or said == self.mine

    def tick(self) -> None:
        """Make this leader's version the cluster's, if it can be now; else hand over to a node of the cluster's."""
        server, mine = self._server, self.mine
        if not mine or server.state is not LeaderState or not server.committed_in_own_term:
            return
        configuration = server.configuration
        ruling = self._said_in(configuration)
        if ruling == mine or server.transfer_target is not None:
            return
        able = self._who(ruling) or self._who("")  # who says nothing looks after none of this, and takes commands
        said = {one: True for one, python in self._heard.items() if python == mine} | {server.node_id: True}
        won = vote_result(configuration.voters, said, configuration.voters_outgoing) is VoteResult.WON
        with contextlib.suppress(RaftError):  # later, then
            if not ruling or (won and not able):
                server.annotate(named(configuration, mine))
            elif able:
                # Another one each time: who does not take over must not be the only one that is asked.
                self._asked = min((one for one in able if one > self._asked), default=able[0])
                server.transfer_leadership(self._asked)

    def _said_in(self, configuration: Configuration) -> str:
        """Return what a configuration says: it is asked with every frame, and is the same for long."""
        if configuration is not self._seen:
            self._seen, self._said = configuration, json.loads(dict(configuration.settings).get(PYTHON, '""'))
        return self._said

    def _who(self, python: str) -> list[int]:
        """Return the voters on a living link that run this version."""
        return sorted(one for one, theirs in self._heard.items() if theirs == python and one in self._server.voters)


def named(configuration: Configuration, python: str) -> Configuration:
    """Return the configuration with this as the cluster's version."""
    settings = dict(configuration.settings) | {PYTHON: json.dumps(python)}
    return configuration._replace(settings=tuple(sorted(settings.items())))
