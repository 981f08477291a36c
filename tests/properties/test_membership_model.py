"""Changes of membership against their meaning: who votes, who learns, and which majorities overlap."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from actorraft.raft import (
    AddLearner,
    AddVoter,
    Configuration,
    MemberChange,
    ProposalRefused,
    RemoveNode,
    VoteResult,
    vote_result,
)
from actorraft.raft.membership import enter_joint, leave_joint, simple

ids = st.integers(0, 5)
change = st.one_of(ids.map(AddVoter), ids.map(AddLearner), ids.map(RemoveNode))
changes = st.lists(change, max_size=5)


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    voters = draw(st.frozensets(ids, min_size=1, max_size=4))
    learners = draw(st.frozensets(ids, max_size=3)) - voters
    return Configuration(voters, learners=learners, next_node_id=6)


def meaning(configuration: Configuration, wanted: list[MemberChange]) -> tuple[frozenset[int], frozenset[int]]:
    """Voters and learners when all is done."""
    voters, learners = set(configuration.voters), set(configuration.learners)
    for one in wanted:
        voters.discard(one.node_id)
        learners.discard(one.node_id)
        if isinstance(one, AddVoter):
            voters.add(one.node_id)
        elif isinstance(one, AddLearner):
            learners.add(one.node_id)
    return frozenset(voters), frozenset(learners)


def quorums(configuration: Configuration) -> list[frozenset[int]]:
    everyone = sorted(configuration.voters | configuration.voters_outgoing)
    every = (frozenset(one) for size in range(len(everyone) + 1) for one in itertools.combinations(everyone, size))
    return [
        one
        for one in every
        if vote_result(configuration.voters, dict.fromkeys(one, True), configuration.voters_outgoing) is VoteResult.WON
    ]


def check(configuration: Configuration) -> None:
    assert configuration.voters
    assert not configuration.voters & configuration.learners
    assert not configuration.learners & configuration.voters_outgoing
    assert configuration.learners_next <= configuration.voters_outgoing
    assert not configuration.learners_next & configuration.voters


def overlap(one: Configuration, other: Configuration) -> bool:
    return all(left & right for left in quorums(one) for right in quorums(other))


@given(configurations(), changes)
def test_a_joint_change_ends_with_what_was_asked_for(before: Configuration, wanted: list[MemberChange]) -> None:
    voters, learners = meaning(before, wanted)
    try:
        joint = enter_joint(before, wanted)
    except ProposalRefused:
        assert not voters
        return
    check(joint)
    assert joint.joint
    assert joint.voters_outgoing == before.voters

    after = leave_joint(joint)

    check(after)
    assert (after.voters, after.learners, after.joint) == (voters, learners, False)
    assert overlap(before, joint)
    assert overlap(joint, after)
    assert after.next_node_id >= before.next_node_id


@given(configurations(), changes)
def test_a_simple_change_is_taken_exactly_when_at_most_one_voter_changes(
    before: Configuration, wanted: list[MemberChange]
) -> None:
    voters, learners = meaning(before, wanted)
    allowed = bool(voters) and len(voters ^ before.voters) <= 1
    try:
        after = simple(before, wanted)
    except ProposalRefused:
        assert not allowed
        return

    assert allowed
    check(after)
    assert (after.voters, after.learners, after.joint) == (voters, learners, False)
    assert overlap(before, after)


@given(configurations(), changes, changes)
def test_a_joint_configuration_takes_no_further_change(
    before: Configuration, wanted: list[MemberChange], more: list[MemberChange]
) -> None:
    try:
        joint = enter_joint(before, wanted)
    except ProposalRefused:
        return

    for function in (simple, enter_joint):
        try:
            function(joint, more)
        except ProposalRefused:
            continue
        raise AssertionError("a joint configuration was changed")
