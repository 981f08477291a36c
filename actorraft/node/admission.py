"""Who is let in: machines that join with a token, clients, keys. An administrator's words in, entries of the log out.

Everything here changes the roster of the configuration (raft/roster.py) and nothing else, at the leader.

Source:     docs/trust.md.
Not here:   whether a transport takes a key or an address (members.py), for all members are going to act on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from actorraft.raft import roster
from actorraft.raft.errors import NotLeader, ProposalRefused
from actorraft.raft.membership import AddLearner, AddVoter
from actorraft.raft.messages import ClientKey, Configuration, Member, Token
from actorraft.raft.ready import LeaderState
from actorraft.raft.server import RaftServer

TTL_MAX_S: Final = 30 * 86_400.0
NOT_NOW: Final = "not at this moment: "  # how a refusal of who may ask again soon begins
_STORAGE_ID: Final = re.compile("[0-9a-f]{32}")


def admit_client(server: RaftServer, now_s: float, asked: Mapping[str, Any]) -> int:
    """Let a client in: `name`, `public_key`, `role`."""
    client = ClientKey(str(asked["name"]), _key(asked["public_key"]), str(asked["role"]))
    return server.annotate(roster.admit(server.configuration, client))


def revoke_client(server: RaftServer, now_s: float, asked: Mapping[str, Any]) -> int:
    """Let a client in no more: `name`."""
    return server.annotate(roster.revoke(server.configuration, str(asked["name"])))


def list_clients(server: RaftServer, now_s: float, asked: Mapping[str, Any]) -> list[list[Any]]:
    """Return (name, public key, role) of each client."""
    _lead(server)
    return [list(client) for client in server.configuration.clients]


def create_token(server: RaftServer, now_s: float, asked: Mapping[str, Any]) -> int:
    """Make a token known: `public_key`, `ttl_s`, `learner`."""
    ttl_s = float(asked["ttl_s"])
    if not 0 < ttl_s <= TTL_MAX_S:
        raise ProposalRefused(f"a token is good for more than 0 s and at most {TTL_MAX_S:.0f} s, not {ttl_s:g}")
    token = Token(_key(asked["public_key"]), now_s + ttl_s, bool(asked["learner"]))
    return server.annotate(roster.issue(server.configuration, token, now_s))


def join(server: RaftServer, now_s: float, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Make the machine that shows a token a member; it may ask again after a crash, and is told the same.

    Args:
        asked: `token` (its public half, proven by the connection), `public_key`, `storage_id`, `peer`, `client`.

    Returns:
        What the machine needs to begin: its `node_id`, the cluster's `settings`, the `members` to dial.
    """
    _lead(server)
    public_key, storage_id = _key(asked["public_key"]), str(asked["storage_id"])
    if not _STORAGE_ID.fullmatch(storage_id):
        raise ValueError(f"a storage id is 32 hexadecimal digits, not {storage_id[:64]!r}")
    before = server.configuration
    token = roster.token_for(before, str(asked["token"]), public_key, storage_id, now_s)
    if any(public_key in (row.public_key, row.old_key) and row.node_id != token.node_id for row in before.roster):
        raise ProposalRefused("a member has that key already")
    node_id = token.node_id if token.node_id >= 0 else before.next_node_id
    if node_id not in before.members:
        if token.node_id >= 0:
            raise ProposalRefused(f"node {node_id}, which joined with this token, was removed: ask for a new one")
        waiting = before.learners - server.unfit  # who is unfit is not promoted before it is started otherwise
        busy = [each.node_id for each in before.tokens if each.node_id in waiting and not each.learner]
        if busy:
            raise ProposalRefused(f"{NOT_NOW}node {busy[0]} is catching up; one after the other")
        member = Member(node_id, public_key, str(asked["peer"]), str(asked["client"]))
        if asked.get("learner") and not token.learner:
            asks_less = token._replace(learner=True)
            tokens = tuple(asks_less if each is token else each for each in before.tokens)
            server.annotate(before._replace(tokens=tokens))
            token = asks_less
        kind = AddLearner if token.learner else AddVoter
        try:
            server.change_membership([kind(node_id, storage_id, member, token.public_key)])
        except ProposalRefused as error:  # another change, a hand-over or an election is not over yet
            raise ProposalRefused(f"{NOT_NOW}{error.reason}") from error
    return {"node_id": node_id, "learner": token.learner, **told(server.configuration)}


def told(configuration: Configuration) -> dict[str, Any]:
    """Return what a new machine must know of the cluster."""
    storage_ids = dict(configuration.storage_ids)
    return {
        "settings": dict(configuration.settings),
        "members": [
            [row.node_id, row.peer, row.client, row.public_key, storage_ids.get(row.node_id, "")]
            for row in configuration.roster
        ],
    }


def show_roster(server: RaftServer, now_s: float, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a new machine would be told, and whose keys are being replaced (`rotating`)."""
    _lead(server)
    rotating = [row.node_id for row in server.configuration.roster if row.old_key]
    return {**told(server.configuration), "rotating": rotating}


def rotate_key(server: RaftServer, now_s: float, asked: Mapping[str, Any]) -> int:
    """Give a member another key: `node_id`, `public_key`; the old one proves the same until it is retired."""
    return server.annotate(roster.rotate(server.configuration, int(asked["node_id"]), _key(asked["public_key"])))


def retire_key(server: RaftServer, now_s: float, asked: Mapping[str, Any]) -> int:
    """Let a member's old key prove nothing any more: `node_id`; after every voter has the entry of the new one.

    `force`: also if a voter does not have it yet.
    """
    _lead(server)
    index = server.configurations[-1][0]
    late = [
        voter
        for voter in sorted(server.voters - {server.node_id})
        if voter not in server.progress or server.progress[voter].match_index < index
    ]
    if late and not asked.get("force"):
        raise ProposalRefused(f"node {late[0]} has not got the new key yet: later, or with --force")
    return server.annotate(roster.retire(server.configuration, int(asked["node_id"])))


VERBS: Final[dict[str, Callable[[RaftServer, float, Mapping[str, Any]], Any]]] = {
    "admit_client": admit_client,
    "revoke_client": revoke_client,
    "clients": list_clients,
    "create_token": create_token,
    "join": join,
    "roster": show_roster,
    "rotate_key": rotate_key,
    "retire_key": retire_key,
}


def _lead(server: RaftServer) -> None:
    if server.state is not LeaderState:
        raise NotLeader(server.leader_id)


def _key(value: Any) -> str:
    if not isinstance(value, str) or len(value) != 40 or not value.isascii():
        raise ValueError("a public key has 40 characters of Z85")
    return value
