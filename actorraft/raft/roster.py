"""What the cluster knows of its members and clients, beside who votes: keys, addresses, tokens, settings.

Keys are identity, addresses are hints: whoever proves a member's key is that member, wherever it is. A change of the
roster is an entry like any configuration, in effect when it is appended and gone when it is cut; but it alters no set
of voters, so the quorums of before and after are the same, and it may be made at any time: during a joint change, or
beside one that is not committed yet.

Source:     Raft §6 (in effect on append); D§4.1: what must not overlap is two changes of the *voters*.
Invariant:  every function returns a configuration with the same voters and learners.
Not here:   who may ask for it (node/requests.py), and what a key proves (transports/curve.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from actorraft.raft.errors import NotLeader, ProposalRefused
from actorraft.raft.messages import ClientKey, Configuration, Member, Token
from actorraft.raft.ready import LeaderState

if TYPE_CHECKING:
    from actorraft.raft.server import RaftServer

ROLES = ("read", "write", "admin")


def member_of(configuration: Configuration, node_id: int) -> Member:
    """Return what is known of a member; nothing but its id if it never said more."""
    return next((member for member in configuration.roster if member.node_id == node_id), Member(node_id))


def with_member(configuration: Configuration, member: Member) -> Configuration:
    """Put a member's row in the place of the one before it."""
    others = (each for each in configuration.roster if each.node_id != member.node_id)
    return configuration._replace(roster=tuple(sorted((*others, member))))


def announce(configuration: Configuration, node_id: int, number: int, peer: str, client: str) -> Configuration:
    """Note where a member is since its start `number`; an older number, or no member, changes nothing."""
    known = member_of(configuration, node_id)
    if node_id not in configuration.members or number <= known.number:
        return configuration
    return with_member(configuration, known._replace(number=number, peer=peer, client=client))


def rotate(configuration: Configuration, node_id: int, public_key: str) -> Configuration:
    """Give a member a new key; the old one proves the same until `retire`.

    Raises:
        ProposalRefused: it is no member, somebody else has that key, or another rotation is not finished.
    """
    if node_id not in configuration.members:
        raise ProposalRefused(f"node {node_id} is no member")
    for member in configuration.roster:
        if member.old_key and member.node_id != node_id:
            raise ProposalRefused(
                f"the key of node {member.node_id} is being replaced, one member at a time: first "
                f"actorraft keys rotate {member.node_id}"
            )
        if public_key in (member.public_key, member.old_key) and member.node_id != node_id:
            raise ProposalRefused(f"node {member.node_id} has that key")
    known = member_of(configuration, node_id)
    if known.public_key == public_key:
        return configuration
    return with_member(configuration, known._replace(public_key=public_key, old_key=known.public_key))


def retire(configuration: Configuration, node_id: int) -> Configuration:
    """Let a member's old key prove nothing from now on."""
    known = member_of(configuration, node_id)
    return with_member(configuration, known._replace(old_key="")) if known.old_key else configuration


def admit(configuration: Configuration, client: ClientKey) -> Configuration:
    """Let a client in, or give one that is known by this name another key or role.

    Raises:
        ProposalRefused: the role is none, the name is empty, another client has that key, or nobody would be an
            administrator any more.
    """
    if client.role not in ROLES:
        raise ProposalRefused(f"a role is one of {', '.join(ROLES)}, not {client.role!r}")
    if not client.name:
        raise ProposalRefused("a client needs a name")
    others = [each for each in configuration.clients if each.name != client.name]
    if any(each.public_key == client.public_key for each in others):
        raise ProposalRefused("another client has that key")
    return _with_clients(configuration, (*others, client))


def revoke(configuration: Configuration, name: str) -> Configuration:
    """Let a client in no more.

    Raises:
        ProposalRefused: there is none of that name, or it is the last administrator.
    """
    kept = tuple(each for each in configuration.clients if each.name != name)
    if len(kept) == len(configuration.clients):
        raise ProposalRefused(f"there is no client {name!r}")
    return _with_clients(configuration, kept)


def _with_clients(configuration: Configuration, clients: tuple[ClientKey, ...]) -> Configuration:
    """Take these clients. There is no key above an administrator's: without one nothing could be changed ever again."""
    before = [each.name for each in configuration.clients if each.role == "admin"]
    if before and not any(each.role == "admin" for each in clients):
        raise ProposalRefused(
            f"{before[0]} is the last administrator, and without one nobody could change anything any more: first "
            "actorraft clients add ANOTHER --role admin"
        )
    return configuration._replace(clients=tuple(sorted(clients)))


def issue(configuration: Configuration, token: Token, now_s: float) -> Configuration:
    """Make a token known; those whose time is over, and whose machine is a voter or gone, are forgotten."""
    kept = tuple(each for each in configuration.tokens if _is_needed(configuration, each, now_s))
    return configuration._replace(tokens=(*kept, token))


def without_late_tokens(configuration: Configuration, now_s: float) -> Configuration:
    """Forget tokens that nobody has used in time; what there is comes back as it is if there are none."""
    kept = tuple(each for each in configuration.tokens if each.node_id >= 0 or now_s < each.until_s)
    return configuration if len(kept) == len(configuration.tokens) else configuration._replace(tokens=kept)


def _is_needed(configuration: Configuration, token: Token, now_s: float) -> bool:
    if token.node_id < 0:
        return now_s < token.until_s
    return token.node_id in configuration.members and token.node_id not in configuration.voters


def token_for(configuration: Configuration, public_key: str, joiner_key: str, storage_id: str, now_s: float) -> Token:
    """Return the token that a machine shows, if it may join with it; one that has joined with it may ask again.

    Raises:
        ProposalRefused: it is unknown, too old, or bound to another machine; the message says which.
    """
    token = next((each for each in configuration.tokens if each.public_key == public_key), None)
    if token is None:
        raise ProposalRefused("this token is not known, or no longer: ask for a new one")
    if token.node_id >= 0 and (token.bound_key, token.storage_id) != (joiner_key, storage_id):
        raise ProposalRefused(f"this token was used already, by node {token.node_id}: ask for a new one")
    if token.node_id < 0 and now_s >= token.until_s:
        raise ProposalRefused("this token's time is over: ask for a new one")
    return token


def settle(configuration: Configuration, settings: Mapping[str, str]) -> Configuration:
    """Make values the cluster's own, by name; those that it has stay as they are."""
    return configuration._replace(settings=tuple(sorted({**settings, **dict(configuration.settings)}.items())))


def annotate(self: RaftServer, configuration: Configuration) -> int:
    """Append a changed roster; return its index, or that of the present configuration if nothing changed.

    Raises:
        NotLeader: ask `leader_id`.
    """
    if self.state is not LeaderState:
        raise NotLeader(self.leader_id)
    present = self.configuration
    assert configuration[:4] == present[:4], "a change of the roster alters no set of nodes"
    if configuration == present:
        return self.configurations[-1][0]
    return self.append_own(configuration)
