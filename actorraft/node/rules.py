"""Which code of the machine applies from which index on: what a leader writes into the log about it, and when.

A `Code` entry names a machine's version and the fingerprint of its code (pickling/fingerprint.py); what follows it in
the log is applied by that code. Every node says its own in the introduction of each link. A leader whose code is
another than the log's writes its own there once all members have said that they run it, or newer. Until then, one with
a higher `machine_version` goes on by the old rules, which its commands ask for (`context().machine_version`); and one
of the same version takes no commands, for that is a deploy which cannot roll, and hands over.

Source:     docs/upgrades.md; docs/decisions/0031.
Invariant:  versions in the log never fall; before a leader's first command, the log says by which code.
Threads:    the node's loop.
Not here:   what an entry of other code does to a node (executor.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

from actorraft import codec
from actorraft.loggers import guarded_logger
from actorraft.node.interpreters import Interpreters
from actorraft.node.logtime import LogTime
from actorraft.raft.errors import RaftError
from actorraft.raft.messages import LogEntry
from actorraft.raft.quorum import VoteResult, vote_result
from actorraft.raft.ready import LeaderState
from actorraft.raft.server import RaftServer

logger = guarded_logger("actorraft")

COMPARE_S: Final = 1.0  # so long commands wait for nodes to be found equal; if they are not, the older code rules on


class Rules:
    """What one node knows of its own code, its peers' and the log's.

    Args:
        mine: this node's code; None: nobody looks after that (simulations, a log without a machine).
        log_time: of the cluster; while a snapshot is restored, it is not known yet of which code that is either.
        replay_from: the entry from which on all nodes compute anew, by this code.
        compares: nodes compare their states now and then.
        python: the minor version of this node's interpreter; "": nobody looks after that.

    Attributes:
        interpreters: under which Python commands are applied.
    """

    def __init__(
        self,
        server: RaftServer,
        log_time: LogTime,
        mine: codec.Code | None,
        *,
        replay_from: int | None = None,
        compares: bool = True,
        python: str = "",
    ) -> None:
        self.mine = mine
        self.interpreters = Interpreters(server, python)
        self.replay_from = replay_from
        self._compares = compares
        self._server = server
        self._log_time = log_time
        self._base: codec.Code | None = None  # of the newest snapshot that was restored
        self._base_index = -1  # of its last entry
        self._heard: dict[int, codec.Code] = {}  # what peers on a living link have said
        self._term = -1  # of which the next is known
        self._in_log: codec.Code | None = None  # at the end of the log
        self._said = ""
        self._mute: set[int] = set()  # of an older library: they do not say what came of a comparison
        self._agreed: dict[int, int] = {}  # at which check a peer was found equal to this leader, in this term
        self._compares_since_s: float | None = None  # log time; since when only this is waited for, in this term
        self._from_index = -1  # and that counts, from here on

    def restored(self, code: codec.Code | None, index: int) -> None:
        """The state of the snapshot whose last entry is at `index` is here, made by that code."""
        self._base, self._base_index, self._term = code, index, -1

    def hear(self, node_id: int, greeting: codec.Greeting) -> None:
        """A peer says which code it runs, and under which Python."""
        self.interpreters.hear(node_id, greeting.python)
        self._heard.pop(node_id, None)
        if greeting.code is not None:
            self._heard[node_id] = codec.Code(*greeting.code)
        self._find_unfit()
        self._mute.discard(node_id)
        if greeting.wire < 1:
            self._mute.add(node_id)

    def is_newer(self, node_id: int) -> bool:
        """Whether a peer runs newer code than this node."""
        code = self._heard.get(node_id)
        return code is not None and self.mine is not None and code.version > self.mine.version

    def compared(self, node_id: int, index: int, *, equal: bool) -> str:
        """A peer has compared its sample at a check with this leader's; return why this node is in doubt, if so."""
        if equal:
            self._agreed[node_id] = max(index, self._agreed.get(node_id, -1))
            return ""
        code = self._heard.get(node_id)
        if code is None or self.mine is None or code.version >= self.mine.version:
            return ""
        return (
            f"the state or the results of this node are not those of node {node_id} at index {index}, which runs older "
            "code. This node's code is newer, so it applies nothing further as it is"
        )

    def lost(self, node_id: int) -> None:
        """A peer's link is down: it may come back with other code."""
        self.interpreters.lost(node_id)
        self._heard.pop(node_id, None)
        self._find_unfit()

    def _find_unfit(self) -> None:
        known = self._in_log
        unfit = {one for one, code in self._heard.items() if known is not None and code.version < known.version}
        self._server.unfit = frozenset(unfit | self.interpreters.foreign)

    def look(self) -> str:
        """See whether this node's code is older than the log's: it does not lead then. Returns why, if so."""
        known = self._look()
        self._server.too_old = self.mine is not None and known is not None and known.version > self.mine.version
        if not self._server.too_old:
            return ""
        assert known is not None, "compared with"
        assert self.mine is not None, "compared with"
        return (
            f"commands are applied by machine_version {known.version}, and this node runs {self.mine.version}: it "
            "stores and votes only. Start it with the newer code"
        )

    def older_rule(self, entries: Sequence[LogEntry]) -> bool | None:
        """Whether any of these entries, the next to be applied, are older code's; None: that is not known yet.

        Those of newer code, or of other code of the same version, nobody can give this node (executor.py).
        """
        mine, code = self.mine, self._base
        if mine is None:
            return False
        if self._log_time.restoring:
            return None
        if any(type(item) is bytes and self._is_replay(item) for _, item in entries):
            return False  # nobody's but this one's
        for _, item in entries:
            if type(item) is not bytes:
                continue
            if codec.is_code(item):
                code = _code_in(item) or code
            elif code is not None and code.version < mine.version and codec.is_ruled(item):
                return True
        return False

    def refusal(self, entries: Sequence[LogEntry]) -> str:
        """Say why this node must not take part, given what it is about to apply: a deploy that cannot roll; else ""."""
        mine, code = self.mine, self._base
        for _, item in entries:
            if type(item) is bytes and codec.is_code(item):
                code = _code_in(item) or code
        if mine is None or code is None or code == mine or code.version != mine.version:
            return ""
        others = sorted(node_id for node_id, known in self._heard.items() if known != mine)
        if not others:
            return ""
        return (
            f"this node runs other code ({_words(mine)}) than nodes {others}, which serve by {_words(code)}: results "
            "would not be equal. To roll changed code through the nodes, raise machine_version in the class, whose "
            "commands then ask context().machine_version by which rules they are applied; or close the cluster, change "
            "the code, and start it"
        )

    def replays(self, entries: Sequence[LogEntry]) -> bool:
        """Whether what is next is to be computed anew by this code, and these entries do not say so yet."""
        if self.replay_from is None or self._server.snapshot_id.index >= self.replay_from:
            return False
        return not any(type(item) is bytes and self._is_replay(item) for _, item in entries)

    def _is_replay(self, item: bytes) -> bool:
        return codec.is_code(item) and _code_in(item) == self.mine and _from_index(item) == self.replay_from

    def _say_replay(self) -> bool:
        """See to it that the log says from where on this code computes anew; return whether it does."""
        log, mine = self._server.log, self.mine
        if self.replay_from is None or mine is None:
            return True
        if any(type(item) is bytes and self._is_replay(item) for _, item in log.between(log.first_index, len(log))):
            return True
        if self._server.snapshot_id.index >= self.replay_from:
            return True
        if self._log_time.restoring or self._replay_waits_for:
            return False
        said = codec.Replay(self.replay_from, mine.version, mine.fingerprint)
        self._server.propose(codec.stamp(self._log_time.now_s(), codec.encode(said)), bounded=False)
        self._term = -1  # look again
        return True

    @property
    def _replay_waits_for(self) -> list[int]:
        """Members that have not said that they run this code; nobody once a majority has, and none has said otherwise.

        That is enough: whoever is away applies nothing before it has all that was committed when it came, and this is.
        """
        configuration = self._server.configuration
        said = {one: code == self.mine for one, code in self._heard.items() if one in configuration.members}
        said[self._server.node_id] = True
        won = vote_result(configuration.voters, said, configuration.voters_outgoing) is VoteResult.WON
        return [] if won and all(said.values()) else sorted(one for one in configuration.members if not said.get(one))

    def may_append(self) -> bool:
        """Whether this leader may append a command now; writes down first by which code, if that must be said.

        Raises:
            RaftError: it may not append anything now.
        """
        mine, server = self.mine, self._server
        interpreters = self.interpreters
        if interpreters.mine and not interpreters.may_append():
            return False
        if mine is None or (self._term == server.current_term and self._in_log is mine):
            return True
        if server.state is not LeaderState:
            return True  # the core says so itself
        if self._log_time.restoring:
            return False
        if self._term != server.current_term:
            if not self._say_replay():
                return False
            self._begin_term()
        known = self._in_log
        if known == mine:
            self._in_log = mine
            return True
        if known is None or (mine.version >= known.version and not self.waits_for and not self.to_compare):
            server.propose(codec.stamp(self._log_time.now_s(), codec.encode(mine)))
            self._in_log = mine
            return True
        return mine.version > known.version and not self.compares_now

    def tick(self) -> None:
        """Look whether the log's code can be this node's now; hand over if this node may not take commands."""
        self.interpreters.tick()
        self._find_unfit()  # of another version than the cluster's is who was of its version until that changed
        if self.mine is None or self._server.state is not LeaderState or self._server.transfer_target is not None:
            return
        if self._log_time.restoring or not self._server.committed_in_own_term:
            return
        with contextlib.suppress(RaftError):  # later, then
            if self._term != self._server.current_term:
                if not self._say_replay():
                    self._say(self.waiting)
                    return
                self._begin_term()
            if self._in_log is None:
                return  # with the first command
            if self.may_append() or not self.interpreters.may_append():
                return
            members = self._server.configuration.members  # who was removed is heard until it knows
            able = [one for one, code in self._heard.items() if code == self._in_log and one in members]
            if able or self._heard.keys() >= members - {self._server.node_id}:
                self._say(
                    f"this node runs code {_words(self.mine)} and the log is at {_words(self._in_log)}: it takes no "
                    f"commands before nodes {self.waits_for} run the same. Changed code that is to roll through the "
                    "nodes raises machine_version"
                )
            if able:
                self._server.transfer_leadership(min(able))

    def _begin_term(self) -> None:
        self._term, self._in_log = self._server.current_term, self._look()
        self._find_unfit()
        self._agreed.clear()
        self._compares_since_s = None
        self._from_index = self._server.log.last_index

    @property
    def mixed(self) -> bool:
        """Whether members run different code, or other code than the log is applied by; as this leader sees it."""
        known = self._in_log if self._term == self._server.current_term else None
        if known is None or self.mine is None:
            return False
        members = self._server.configuration.members
        return known != self.mine or any(code != known for one, code in self._heard.items() if one in members)

    @property
    def waiting(self) -> str:
        """Say for whom a higher version waits, or what is to be computed anew, at the leader; "" if for nobody."""
        if self._term != self._server.current_term and self._server.state is LeaderState:
            if self.replay_from is None or self._server.snapshot_id.index >= self.replay_from:
                return ""
            if late := self._replay_waits_for:
                return (
                    f"nothing is served before a majority of the voters, and whoever is linked, run the code that "
                    f"computes anew from index {self.replay_from} on; not yet: nodes {late}"
                )
        known = self._in_log if self._term == self._server.current_term else None
        if self.mine is None or known is None or self.mine.version <= known.version:
            return ""
        if self.waits_for:
            return f"machine_version {self.mine.version} takes effect once nodes {self.waits_for} run it"
        if self.to_compare:
            return f"machine_version {self.mine.version} takes effect once nodes {self.to_compare} are found equal"
        return ""

    @property
    def compares_now(self) -> bool:
        """Whether commands wait a moment: all run the newer code, and it rules as soon as they are found equal."""
        if not self.to_compare:
            return False
        now_s = self._log_time.now_s()
        if self._compares_since_s is None:
            self._compares_since_s = now_s
        return now_s < self._compares_since_s + COMPARE_S

    @property
    def to_compare(self) -> list[int]:
        """Members that must say yet that they are equal to this leader, before its higher version takes effect."""
        known = self._in_log if self._term == self._server.current_term else None
        if not self._compares or known is None or self.mine is None or self.mine.version <= known.version:
            return []
        if self.waits_for:
            return []
        others = self._server.configuration.members - {self._server.node_id} - self._mute
        return sorted(one for one in others if self._agreed.get(one, -1) <= self._from_index)

    @property
    def waits_for(self) -> list[int]:
        """Members that have not said that they run this node's code, or newer."""
        if self.mine is None:
            return []
        ready = {self._server.node_id}
        # Code of the version that rules comes after a stop of all: then all run the same.
        rolls = self._in_log is None or self.mine.version > self._in_log.version
        ready |= {
            one
            for one, code in self._heard.items()
            if code == self.mine or (rolls and code.version > self.mine.version)
        }
        return sorted(self._server.configuration.members - ready)

    def _look(self) -> codec.Code | None:
        """Return the code that the log ends with.

        What it says below a snapshot may never have come into force: the state says what did, where `migrate` raised.
        """
        log = self._server.log
        for _, item in reversed(log.between(max(log.first_index, self._base_index + 1), len(log))):
            if type(item) is bytes and codec.is_code(item):
                found = _code_in(item)
                if found is not None:
                    return found
        return self._base

    def _say(self, words: str) -> None:
        if words and words != self._said:
            self._said = words
            logger.warning("%s", words)


def _code_in(item: bytes) -> codec.Code | None:
    with contextlib.suppress(codec.MalformedFrame):
        found = codec.decode_request(codec.unstamp(item)[1])
        if type(found) is codec.Code:
            return found
        if type(found) is codec.Replay:
            return codec.Code(found.version, found.fingerprint)
    return None


def _from_index(item: bytes) -> int:
    found = codec.decode_request(codec.unstamp(item)[1])
    return found.from_index if type(found) is codec.Replay else -1


def _words(code: codec.Code) -> str:
    return f"{code.fingerprint[:8]} of version {code.version}"
