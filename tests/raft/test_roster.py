"""What the cluster knows of its members and clients: by table, by random sequences, and in a running server."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorraft.raft import (
    AddLearner,
    AddVoter,
    AppendEntries,
    ClientKey,
    Configuration,
    LogEntry,
    Member,
    NotLeader,
    ProposalRefused,
    RemoveNode,
    Token,
    roster,
)
from actorraft.raft.membership import apply_changes, enter_joint, leave_joint
from actorraft.storage.records import decode_configuration
from tests.helpers import Cluster, acknowledge, drain, follower_of, settled_leader

THREE = Configuration(voters=frozenset({0, 1, 2}), next_node_id=3)


def announced(configuration: Configuration, node_id: int, number: int, host: str) -> Configuration:
    return roster.announce(configuration, node_id, number, f"{host}:1", f"{host}:2")


# -- addresses


def test_a_member_is_where_it_said_last() -> None:
    at_a = announced(THREE, 1, 5, "a")
    assert roster.member_of(announced(at_a, 1, 6, "b"), 1) == Member(1, "", "b:1", "b:2", 6)


@pytest.mark.parametrize("number", [0, 4, 5])
def test_an_older_announcement_or_the_same_again_changes_nothing(number: int) -> None:
    at_a = announced(THREE, 1, 5, "a")
    assert announced(at_a, 1, number, "b") is at_a


def test_a_stranger_announces_nothing() -> None:
    assert announced(THREE, 7, 5, "a") is THREE


def test_rows_go_with_their_members_and_survive_a_joint_change() -> None:
    known = announced(announced(THREE, 1, 1, "a"), 2, 1, "b")
    joint = enter_joint(known, [RemoveNode(1), AddVoter(3, "id", Member(3, "key", "c:1", "c:2", 1)), AddVoter(4)])
    assert [member.node_id for member in joint.roster] == [1, 2, 3]
    assert [member.node_id for member in leave_joint(joint).roster] == [2, 3]


# -- keys


def test_the_old_key_is_kept_until_it_is_retired() -> None:
    first = roster.rotate(THREE, 1, "one")
    second = roster.rotate(first, 1, "two")
    assert (roster.member_of(second, 1).public_key, roster.member_of(second, 1).old_key) == ("two", "one")
    assert roster.member_of(roster.retire(second, 1), 1).old_key == ""
    assert roster.rotate(second, 1, "two") is second


def test_keys_rotate_one_member_at_a_time_and_belong_to_one() -> None:
    turning = roster.rotate(roster.rotate(THREE, 1, "one"), 1, "two")
    for node_id, key in [(2, "three"), (0, "one"), (9, "four")]:
        with pytest.raises(ProposalRefused):
            roster.rotate(turning, node_id, key)
    with pytest.raises(ProposalRefused, match="node 1 has that key"):
        roster.rotate(roster.retire(turning, 1), 2, "two")


def test_clients_come_change_their_role_and_go() -> None:
    one = roster.admit(THREE, ClientKey("web", "k1", "read"))
    two = roster.admit(one, ClientKey("web", "k1", "admin"))
    assert two.clients == (ClientKey("web", "k1", "admin"),)
    three = roster.admit(two, ClientKey("second", "k3", "admin"))
    assert roster.revoke(three, "web").clients == (ClientKey("second", "k3", "admin"),)
    for wrong in (ClientKey("x", "k1", "read"), ClientKey("x", "k2", "root"), ClientKey("", "k2", "read")):
        with pytest.raises(ProposalRefused):
            roster.admit(two, wrong)
    with pytest.raises(ProposalRefused, match="no client 'wib'"):
        roster.revoke(two, "wib")


def test_the_last_administrator_stays_one() -> None:
    alone = roster.admit(roster.admit(THREE, ClientKey("web", "k1", "read")), ClientKey("ann", "k2", "admin"))
    with pytest.raises(ProposalRefused, match="ann is the last administrator"):
        roster.revoke(alone, "ann")
    with pytest.raises(ProposalRefused, match="actorraft clients add ANOTHER --role admin"):
        roster.admit(alone, ClientKey("ann", "k2", "write"))
    assert roster.revoke(alone, "web").clients == (ClientKey("ann", "k2", "admin"),)
    assert roster.revoke(roster.admit(THREE, ClientKey("web", "k1", "read")), "web").clients == ()  # there was none


# -- tokens (used once, for a time, by one machine)


def join(configuration: Configuration, token: str, key: str, storage_id: str, now_s: float = 0.0) -> Configuration:
    known = roster.token_for(configuration, token, key, storage_id, now_s)
    node_id = known.node_id if known.node_id >= 0 else configuration.next_node_id
    return apply_changes(configuration, [AddLearner(node_id, storage_id, Member(node_id, key), token)])


def test_a_token_admits_one_machine_and_that_one_again() -> None:
    issued = roster.issue(THREE, Token("t", until_s=10.0), 0.0)
    joined = join(issued, "t", "key", "disk")
    assert (joined.learners, joined.next_node_id, joined.tokens[0].node_id) == ({3}, 4, 3)
    assert join(joined, "t", "key", "disk", now_s=99.0) == joined  # after a crash, and late
    for key, disk in [("other", "disk"), ("key", "other"), ("other", "other")]:
        with pytest.raises(ProposalRefused, match="used already, by node 3"):
            roster.token_for(joined, "t", key, disk, 0.0)


def test_a_token_that_is_late_or_unknown_admits_nobody() -> None:
    issued = roster.issue(THREE, Token("t", until_s=10.0), 0.0)
    with pytest.raises(ProposalRefused, match="time is over"):
        roster.token_for(issued, "t", "key", "disk", 10.0)
    with pytest.raises(ProposalRefused, match="not known"):
        roster.token_for(issued, "u", "key", "disk", 0.0)


def test_tokens_that_are_done_with_are_forgotten() -> None:
    joined = join(roster.issue(THREE, Token("t", until_s=10.0), 0.0), "t", "key", "disk")
    assert [each.public_key for each in roster.issue(joined, Token("u", 20.0), 11.0).tokens] == ["t", "u"]
    voter = apply_changes(joined, [AddVoter(3)])
    assert [each.public_key for each in roster.issue(voter, Token("u", 20.0), 11.0).tokens] == ["u"]
    late = roster.issue(roster.issue(THREE, Token("t", until_s=10.0), 0.0), Token("u", 20.0), 10.0)
    assert [each.public_key for each in late.tokens] == ["u"]


def test_a_setting_is_settled_once() -> None:
    settled = roster.settle(THREE, {"session_expiry_s": "60.0", "machine": "bank:Bank"})
    assert settled.settings == (("machine", "bank:Bank"), ("session_expiry_s", "60.0"))
    assert roster.settle(settled, {"machine": "shop:Shop", "name": "x"}).settings == (
        ("machine", "bank:Bank"), ("name", "x"), ("session_expiry_s", "60.0"),
    )  # fmt: skip


# -- no change of the roster alters a quorum

KEYS = st.sampled_from(["a", "b", "c"])
NODES = st.integers(0, 4)
CHANGES = st.one_of(
    st.builds(lambda n, k: lambda c: announced(c, n, k, "h"), NODES, st.integers(0, 5)),
    st.builds(lambda n, k: lambda c: roster.rotate(c, n, k), NODES, KEYS),
    st.builds(lambda n: lambda c: roster.retire(c, n), NODES),
    st.builds(lambda n, k: lambda c: roster.admit(c, ClientKey(n, k, "read")), KEYS, KEYS),
    st.builds(lambda n: lambda c: roster.revoke(c, n), KEYS),
    st.builds(lambda k: lambda c: roster.issue(c, Token(k, 5.0), 0.0), KEYS),
    st.builds(lambda k: lambda c: roster.settle(c, {k: "1"}), KEYS),
)


@given(st.lists(CHANGES, max_size=12), st.booleans())
def test_any_sequence_leaves_the_sets_alone(steps: list, joint: bool) -> None:  # type: ignore[type-arg]
    begun = enter_joint(THREE, [RemoveNode(2), AddLearner(1), AddVoter(3)]) if joint else THREE
    now = begun
    for step in steps:
        try:
            now = step(now)
        except ProposalRefused:
            continue
        assert now[:5] == begun[:5]
    keys = [key for each in now.roster for key in (each.public_key, each.old_key) if key]
    assert len({each.node_id for each in now.roster}) == len(now.roster)
    assert sum(1 for each in now.roster if each.old_key) <= 1 or len(keys) == len(set(keys))


# -- in a server


def test_only_a_leader_annotates() -> None:
    with pytest.raises(NotLeader):
        follower_of(2, 1).annotate(announced(THREE, 1, 1, "a"))


def test_what_changes_nothing_appends_nothing() -> None:
    leader = settled_leader()
    last = leader.log.last_index
    leader.annotate(leader.configuration)
    assert leader.log.last_index == last


def test_an_address_is_in_effect_at_once_also_beside_a_change_that_is_not_committed() -> None:
    leader = settled_leader(size=3)
    leader.change_membership([RemoveNode(2), AddLearner(1)])
    assert leader.configuration.joint
    leader.annotate(announced(leader.configuration, 0, 3, "new"))
    assert leader.configuration.joint
    assert roster.member_of(leader.configuration, 0).peer == "new:1"
    with pytest.raises(ProposalRefused, match="under way"):
        leader.change_membership([AddLearner(7)])


def test_the_joint_phase_is_left_and_keeps_what_was_said_in_it() -> None:
    cluster = Cluster(3)
    leader = cluster.elect(0)
    leader.change_membership([RemoveNode(2), AddVoter(1), AddLearner(1)])
    leader.annotate(announced(leader.configuration, 0, 3, "new"))
    cluster.settle()
    assert not leader.configuration.joint
    assert leader.configuration.voters == {0}
    assert roster.member_of(leader.configuration, 0).peer == "new:1"


def test_an_address_that_another_leader_cut_off_is_gone() -> None:
    leader = settled_leader()
    leader.annotate(announced(leader.configuration, 1, 3, "new"))
    assert roster.member_of(leader.configuration, 1).peer == "new:1"
    drain(leader)
    index = leader.log.last_index
    term = leader.current_term
    leader.step(AppendEntries(1, 0, term + 1, index - 1, term, [LogEntry(term + 1, None)], index - 1))
    assert roster.member_of(leader.configuration, 1).peer == ""


def test_a_roster_change_is_committed_like_any_entry() -> None:
    leader = settled_leader()
    index = leader.annotate(announced(leader.configuration, 1, 3, "new"))
    drain(leader)
    acknowledge(leader, 1, 2)
    drain(leader)
    assert leader.commit_index >= index


def test_a_configuration_that_0_1_0_wrote_knows_nobody_s_keys() -> None:

    old = msgspec.msgpack.encode([[0, 1], [], [2], [], 3, [[0, "a"]]])
    assert decode_configuration(old) == Configuration(
        frozenset({0, 1}), learners=frozenset({2}), next_node_id=3, storage_ids=((0, "a"),)
    )
