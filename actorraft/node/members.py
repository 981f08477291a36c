"""A node that has no parent to tell it who the others are: it follows the log, and what the others say of themselves.

The configuration in the log says who the members and clients are and by which key each is known. Where members are,
whoever has moved says first, in the introduction of the links that it dials; the leader puts that into the log.

Source:     docs/trust.md; docs/decisions/0033.
Threads:    the node's loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

from actorraft import codec
from actorraft.loggers import guarded_logger
from actorraft.node.addresses import AddressBook, Announcement
from actorraft.node.driver import Driver
from actorraft.node.spec import NodeSpec
from actorraft.ports import Mailbox
from actorraft.raft import roster
from actorraft.raft.errors import RaftError
from actorraft.raft.membership import AddVoter
from actorraft.raft.messages import Configuration
from actorraft.raft.ready import LeaderState

logger = guarded_logger("actorraft")

PROMOTE_S: Final = 0.2  # how often the leader looks for machines that have joined and do not vote yet
JOIN_ROLE: Final = "join"  # of a token's key: it may ask to join, and nothing else


class Said(Protocol):
    """What the other end of a link has said of itself, its key proven."""

    @property
    def node_id(self) -> int: ...

    @property
    def storage_id(self) -> str: ...

    @property
    def payload(self) -> bytes: ...


class Door(Protocol):
    """Lets in whom it is told of."""

    def set_keys(self, members: Mapping[int, tuple[str, ...]], clients: Mapping[str, Any]) -> None:
        """As Mailbox.set_keys."""


class Members:
    """Who the others are.

    Args:
        set_peers: says whom to dial: node id -> endpoint.
        doors: who else lets in whom the mailbox does.
    """

    def __init__(
        self,
        driver: Driver,
        mailbox: Mailbox,
        spec: NodeSpec,
        set_peers: Callable[[dict[int, str]], None],
        doors: Sequence[Door] = (),
    ) -> None:
        assert spec.advertise is not None, "a node without a parent says where it is"
        self._driver = driver
        self._mailbox = mailbox
        self._set_peers = set_peers
        self._doors: Sequence[Door] = (mailbox, *doors)
        self._node_id = spec.node_id
        self._has_keys = spec.keys is not None
        self._seen: Configuration | None = None
        self._news = False  # something is in the book that the log does not have, as far as is known
        self._looked_s = 0.0
        self.removed = False  # the log says, for good, that this node is no member any more
        self._removed: dict[int, tuple[str, tuple[str, ...]]] = {}  # and fed until it knows -> endpoint, keys
        told = spec.keys.members if spec.keys is not None else {}
        keys = {node_id: publics[0] for node_id, publics in told.items() if node_id != spec.node_id}
        self._book = AddressBook(spec.node_id, spec.seeds, spec.directory, keys=keys)
        self._start = partial(self._book.start, *spec.advertise, mailbox.incarnation.hex())
        self._start(after=roster.member_of(driver.server.configuration, spec.node_id).number)
        mailbox.judge = self._judge
        driver.requests.check = check_said
        self.follow()

    # --- The others ---

    def _judge(self, said: Said) -> str:
        """Hear what a peer says of itself as a link begins; return why it is not to be heard at all."""
        configuration = self._driver.server.configuration
        known = dict(configuration.storage_ids).get(said.node_id, "")
        if known and said.storage_id != known:
            why = self._driver.refused[said.node_id] = (
                f"node {said.node_id} comes with another data directory than it had (storage id {said.storage_id}, "
                f"was {known}): what it acknowledged is gone. actorraft members remove {said.node_id}, and join anew"
            )
            return why
        greeting = codec.decode_greeting(said.payload)
        why = self._book.meet(said.node_id, greeting.lives, greeting.on_probation)
        if why:
            self._driver.refused[said.node_id] = why
            return why
        self._driver.refused.pop(said.node_id, None)
        self._driver.rules.hear(said.node_id, greeting)
        told = {node_id: Announcement(number, peer, client) for node_id, number, peer, client in greeting.addresses}
        news = self._book.hear(told, configuration.members)
        mine = told.get(self._node_id)
        if mine is not None and mine.number > self._book[self._node_id].number and self._on_probation:
            self._start(after=mine.number)  # its book was lost with its disk
            news = True
        if news:
            self._use_book()
        return ""

    @property
    def _on_probation(self) -> bool:
        return self._driver.server.probation is not None

    def follow(self) -> bool:
        """Follow the log: called after each batch. Returns whether it has given the core something to do."""
        server = self._driver.server
        configuration = server.configuration
        if configuration is not self._seen:
            if self._seen is not None:
                self._part_with(self._seen.members - configuration.members, self._seen)
            self._seen = configuration
            if configuration.members:  # else it has just joined, and the seeds are all it knows
                self._book.follow(configuration)
            self._believe(configuration)
        elif self._removed and self._removed.keys() - server.progress.keys():
            self._believe(configuration)
        if self._node_id not in configuration.members and server.configurations[-1][0] <= server.commit_index:
            # Below the next free id it was a member before; else this log has not come yet to where it joins.
            self.removed = self._node_id < configuration.next_node_id
        if self._driver.server.state is not LeaderState:
            self._news = True  # whoever leads next looks what it has to tell
            return False
        return self._tell_log(configuration) or self._promote(configuration)

    def _part_with(self, gone: frozenset[int], before: Configuration) -> None:
        """Keep the links to whom a leader still feeds: by the log alone does a member know that it is none any more."""
        known, keys = self._book.known, proofs(before)
        for node_id in gone & known.keys():
            self._removed[node_id] = (f"tcp://{known[node_id].peer}", keys.get(node_id, ()))

    def _believe(self, configuration: Configuration) -> None:
        """Hear and dial the members, and who was removed and does not know it yet."""
        self._removed = {
            node_id: each for node_id, each in self._removed.items() if node_id in self._driver.server.progress
        }
        if self._has_keys and configuration.roster:
            parting = {node_id: keys for node_id, (_, keys) in self._removed.items() if keys}
            known = proofs(configuration)
            self._book.follow_keys(known, *self._earlier())
            told = believed_beside(known, self._book.new_keys)
            for door in self._doors:
                door.set_keys(known | told | parting, guests(configuration))
        self._use_book()

    def _earlier(self) -> list[dict[int, tuple[str, ...]]]:
        """Return by which keys members were known before: a batch may have brought several that came and went.

        Before the log's first entry is what this start's file says, which is nothing that the log ever had.
        """
        server = self._driver.server
        return [proofs(each) for index, each in server.configurations[:-1] if 0 <= index <= server.commit_index]

    def _use_book(self) -> None:
        known = self._book.known
        self._news = True
        parting = {node_id: endpoint for node_id, (endpoint, _) in self._removed.items()}
        self._set_peers(parting | {node_id: f"tcp://{at.peer}" for node_id, at in known.items() if at.peer})
        keys = proofs(self._driver.server.configuration)
        self._driver.requests.endpoints = [
            (node_id, f"tcp://{at.client}", *keys.get(node_id, ())) for node_id, at in known.items() if at.client
        ]
        rows = [(node_id, *at) for node_id, at in known.items()]
        mine = self._driver.rules.mine
        code = (mine.version, mine.fingerprint) if mine is not None else None
        python = self._driver.rules.interpreters.mine
        said = codec.Greeting(rows, code, codec.WIRE, self._on_probation, list(self._book.lives), python)
        self._mailbox.introduce(codec.encode(said))

    # --- As leader ---

    def _tell_log(self, configuration: Configuration) -> bool:
        """Put into the log where members are."""
        if not self._news:
            return False
        self._news = False
        changed = configuration
        for node_id, at in self._book.known.items():
            changed = roster.announce(changed, node_id, at.number, at.peer, at.client)
        if changed is configuration:
            return False
        self._driver.server.annotate(changed)
        return True

    def _promote(self, configuration: Configuration) -> bool:
        """Let who joined to vote do so; what was begun by a leader before this one is not forgotten."""
        now_s = self._driver.clock.monotonic()
        if now_s < self._looked_s + PROMOTE_S:
            return False
        self._looked_s, server = now_s, self._driver.server
        log_time = self._driver.log_time
        if any(token.node_id < 0 for token in configuration.tokens) and not log_time.restoring:
            fresh = roster.without_late_tokens(configuration, log_time.now_s())
            if fresh is not configuration:  # else a later leader, whose log time stood while it was idle, took them
                server.annotate(fresh)
                return True
        waiting = [
            token.node_id
            for token in configuration.tokens
            if token.node_id in configuration.learners - server.unfit and not token.learner
        ]
        if not waiting:
            return False
        with contextlib.suppress(RaftError):  # another change is under way: later, then
            server.change_membership([AddVoter(waiting[0])])
        return True


def proofs(configuration: Configuration) -> dict[int, tuple[str, ...]]:
    """Return node id -> the public keys that prove it, the preferred one first."""
    return {
        member.node_id: tuple(key for key in (member.public_key, member.old_key) if key)
        for member in configuration.roster
        if member.public_key
    }


def believed_beside(known: Mapping[int, tuple[str, ...]], new_keys: Mapping[int, str]) -> dict[int, tuple[str, ...]]:
    """Return the keys of members of whom an operator has said a new one, that one last.

    A key proves one member: what was put under the wrong one, or under two, is left out.
    """
    said = [*(key for keys in known.values() for key in keys), *new_keys.values()]
    return {
        node_id: (*known[node_id], key)
        for node_id, key in new_keys.items()
        if node_id in known and said.count(key) == 1
    }


def guests(configuration: Configuration) -> dict[str, Any]:
    """Return public key -> who that is, of clients and of whoever comes with a token."""
    from transports.keys import Guest

    clients = {client.public_key: Guest(client.name, client.role) for client in configuration.clients}
    return clients | {token.public_key: Guest("a token", JOIN_ROLE) for token in configuration.tokens}


def check_said(asked: Mapping[str, Any]) -> None:
    """Look at what is going to be in the log: every member uses it, at every later start, so it must be of use.

    Raises:
        UsageError: no transport takes this key, or nobody could dial this address.
    """
    from transports.endpoints import check_dialled
    from transports.keys import check_public

    if "public_key" in asked:
        check_public(asked["public_key"])
    for name in ("peer", "client"):
        if name in asked:
            check_dialled(str(asked[name]))
