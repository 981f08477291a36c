"""What changes of membership do to a configuration: one voter at a time, or any change in two steps (joint consensus).

    simple(C, [change])          at most one voter more or less: old and new majorities overlap anyway
    enter_joint(C, changes)      old and new voters, who must agree separately, side by side
    leave_joint(C)               the new voters alone

Source:     Raft §6; D§4.1 (one at a time), D§4.2.1 (catching up in rounds), D§4.3 (joint).
Invariant:  `voters` and `learners` are disjoint; there is always a voter; `next_node_id` never falls.
Not here:   when a change may be proposed and what it does to a leader; see changes.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from actorraft.raft.errors import ProposalRefused
from actorraft.raft.messages import Configuration, Member


class AddVoter(NamedTuple):
    """Make a node a voter, whether it is a learner or no member yet.

    `member`: how it is known from now on; `token`: the public half of what it joined with, used up by that.
    """

    node_id: int
    storage_id: str = ""
    member: Member | None = None
    token: str = ""


class AddLearner(NamedTuple):
    """Make a node a learner, which receives the log and does not count; a voter is demoted to one."""

    node_id: int
    storage_id: str = ""
    member: Member | None = None
    token: str = ""


class RemoveNode(NamedTuple):
    """Remove a voter or a learner."""

    node_id: int


MemberChange = AddVoter | AddLearner | RemoveNode


def simple(configuration: Configuration, changes: Iterable[MemberChange]) -> Configuration:
    """Return the configuration after `changes` that take effect in one step (D§4.1).

    Raises:
        ProposalRefused: the configuration is joint, more than one voter changes, or no voter is left.
    """
    if configuration.joint:
        raise ProposalRefused("a joint change is under way; leave it first")
    changed = apply_changes(configuration, changes)
    if len(changed.voters ^ configuration.voters) > 1:
        raise ProposalRefused("more than one voter changes; that needs a joint change")
    return changed


def enter_joint(configuration: Configuration, changes: Iterable[MemberChange]) -> Configuration:
    """Return the joint configuration in which the old voters and the changed ones both must agree (§6).

    Raises:
        ProposalRefused: the configuration is joint already, has no voter, or would have none.
    """
    if configuration.joint:
        raise ProposalRefused("a joint change is under way already")
    if not configuration.voters:
        raise ProposalRefused("a configuration without voters cannot be changed jointly")
    return apply_changes(configuration._replace(voters_outgoing=configuration.voters), changes)


def leave_joint(configuration: Configuration) -> Configuration:
    """Return the configuration of the new voters alone; outgoing voters that were demoted become learners (§6).

    Raises:
        ProposalRefused: the configuration is not joint.
    """
    if not configuration.joint:
        raise ProposalRefused("the configuration is not joint")
    left = configuration._replace(
        voters_outgoing=frozenset(),
        learners=configuration.learners | configuration.learners_next,
        learners_next=frozenset(),
    )
    return _tidy(left)


def apply_changes(configuration: Configuration, changes: Iterable[MemberChange]) -> Configuration:
    """Return what `changes` make of a configuration, however many voters they alter.

    Raises:
        ProposalRefused: they leave no voter, or name a negative id.
    """
    voters, learners = set(configuration.voters), set(configuration.learners)
    learners_next = set(configuration.learners_next)
    storage_ids = dict(configuration.storage_ids)
    roster = {member.node_id: member for member in configuration.roster}
    tokens = {token.public_key: token for token in configuration.tokens}
    next_node_id = configuration.next_node_id
    for change in changes:
        node_id = change.node_id
        if node_id < 0:
            raise ProposalRefused(f"a node id is 0 or more, not {node_id}")
        if isinstance(change, RemoveNode):
            for role in (voters, learners, learners_next):
                role.discard(node_id)
            continue
        next_node_id = max(next_node_id, node_id + 1)
        if isinstance(change, AddVoter):
            learners.discard(node_id)
            learners_next.discard(node_id)
            voters.add(node_id)
        else:
            voters.discard(node_id)
            # An outgoing voter still counts in the old set, so it becomes a learner only when the joint phase ends.
            (learners_next if node_id in configuration.voters_outgoing else learners).add(node_id)
        if change.storage_id:
            storage_ids[node_id] = change.storage_id
        if change.member is not None:
            roster[node_id] = change.member
        if change.token in tokens and change.member is not None:
            tokens[change.token] = tokens[change.token]._replace(
                bound_key=change.member.public_key, storage_id=change.storage_id, node_id=node_id
            )
    if not voters:
        raise ProposalRefused("the change would leave no voter")
    highest = max((*configuration.members, *voters, *learners), default=-1)
    return _tidy(
        configuration._replace(
            voters=frozenset(voters),
            learners=frozenset(learners),
            learners_next=frozenset(learners_next),
            next_node_id=max(next_node_id, highest + 1),
            storage_ids=tuple(sorted(storage_ids.items())),
            roster=tuple(sorted(roster.values())),
            tokens=tuple(tokens.values()),
        )
    )


def _tidy(configuration: Configuration) -> Configuration:
    """Forget the storage ids, keys and addresses of nodes that are no members any more."""
    members = configuration.members
    return configuration._replace(
        storage_ids=tuple(pair for pair in configuration.storage_ids if pair[0] in members),
        roster=tuple(member for member in configuration.roster if member.node_id in members),
    )
