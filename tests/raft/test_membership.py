"""Changes of membership: by table on configurations, and in a running server."""

from __future__ import annotations

import pytest

from actorraft.raft import (
    AddLearner,
    AddVoter,
    AppendEntries,
    Configuration,
    FollowerState,
    LeaderState,
    LogEntry,
    MemberChange,
    NotLeader,
    ProposalRefused,
    RemoveNode,
)
from actorraft.raft.changes import ROUNDS_MAX, SILENT_TIMEOUTS_MAX
from actorraft.raft.membership import enter_joint, leave_joint, simple
from tests.helpers import (
    Cluster,
    acknowledge,
    appends_to,
    catch_up,
    drain,
    follower_of,
    make_leader,
    settled_leader,
    timeout_nows,
    voters,
)


def of(
    voters: str = "", outgoing: str = "", learners: str = "", learners_next: str = "", next_node_id: int = 0
) -> Configuration:
    """A configuration from digits."""

    def ids(digits: str) -> frozenset[int]:
        return frozenset(int(digit) for digit in digits)

    return Configuration(ids(voters), ids(outgoing), ids(learners), ids(learners_next), next_node_id)


# -- pure functions

SIMPLE: list[tuple[Configuration, list[MemberChange], Configuration | None]] = [
    (of("0"), [AddVoter(1)], of("01", next_node_id=2)),
    (of("0"), [AddLearner(1)], of("0", learners="1", next_node_id=2)),
    (of("0", learners="1"), [AddVoter(1)], of("01", next_node_id=2)),
    (of("01"), [AddLearner(1)], of("0", learners="1", next_node_id=2)),
    (of("01"), [RemoveNode(1)], of("0", next_node_id=2)),
    (of("0", learners="1"), [RemoveNode(1)], of("0", next_node_id=2)),
    (of("0"), [RemoveNode(7)], of("0", next_node_id=1)),
    (of("0"), [AddVoter(0)], of("0", next_node_id=1)),
    (of("0"), [AddVoter(1), RemoveNode(1)], of("0", next_node_id=2)),
    (of("0"), [AddVoter(1), AddLearner(2), AddLearner(3)], of("01", learners="23", next_node_id=4)),
    (of("0"), [], of("0", next_node_id=1)),
    (of("0"), [AddVoter(1), AddVoter(2)], None),
    (of("01"), [AddVoter(2), RemoveNode(1)], None),
    (of("0"), [RemoveNode(0)], None),
    (of("0"), [AddLearner(0)], None),
    (of("0"), [AddVoter(-1)], None),
    (of("01", outgoing="0"), [AddLearner(5)], None),
]


@pytest.mark.parametrize(("before", "changes", "after"), SIMPLE)
def test_simple_changes(before: Configuration, changes: list[MemberChange], after: Configuration | None) -> None:
    if after is None:
        with pytest.raises(ProposalRefused):
            simple(before, changes)
    else:
        assert simple(before, changes) == after


JOINT: list[tuple[Configuration, list[MemberChange], Configuration, Configuration]] = [
    (of("0"), [AddVoter(1), AddVoter(2)], of("012", "0", next_node_id=3), of("012", next_node_id=3)),
    (of("012"), [RemoveNode(1), RemoveNode(2)], of("0", "012", next_node_id=3), of("0", next_node_id=3)),
    (
        of("012"),
        [AddLearner(1), AddVoter(3)],
        of("023", "012", learners_next="1", next_node_id=4),
        of("023", learners="1", next_node_id=4),
    ),
    (
        of("012", learners="3"),
        [AddVoter(3), RemoveNode(0)],
        of("123", "012", next_node_id=4),
        of("123", next_node_id=4),
    ),
    (of("01"), [AddLearner(1), RemoveNode(1)], of("0", "01", next_node_id=2), of("0", next_node_id=2)),
    (of("01"), [AddLearner(1), AddVoter(1)], of("01", "01", next_node_id=2), of("01", next_node_id=2)),
    (of("0"), [AddLearner(1)], of("0", "0", learners="1", next_node_id=2), of("0", learners="1", next_node_id=2)),
]


@pytest.mark.parametrize(("before", "changes", "joint", "after"), JOINT)
def test_joint_changes(
    before: Configuration, changes: list[MemberChange], joint: Configuration, after: Configuration
) -> None:
    assert enter_joint(before, changes) == joint
    assert joint.joint
    assert leave_joint(joint) == after


def test_joint_changes_that_are_refused() -> None:
    joint = enter_joint(of("0"), [AddVoter(1)])

    wrong: list[tuple[Configuration, MemberChange]] = [
        (joint, AddVoter(2)),
        (of(), AddVoter(2)),
        (of("0"), RemoveNode(0)),
    ]
    for before, change in wrong:
        with pytest.raises(ProposalRefused):
            enter_joint(before, [change])
    with pytest.raises(ProposalRefused):
        leave_joint(of("0"))


def test_storage_ids_come_and_go_with_their_members() -> None:
    one = simple(of("0"), [AddLearner(1, "b")])
    two = simple(one, [AddVoter(1)])
    joint = enter_joint(two, [RemoveNode(1), AddVoter(2, "c"), AddVoter(3)])

    assert (one.storage_ids, two.storage_ids) == (((1, "b"),), ((1, "b"),))
    assert joint.storage_ids == ((1, "b"), (2, "c"))
    assert leave_joint(joint).storage_ids == ((2, "c"),)


def test_members_are_everyone_who_receives_the_log() -> None:
    assert of("01", "12", "3", "2").members == {0, 1, 2, 3}


# -- in a server


def test_only_a_leader_changes_the_membership() -> None:
    with pytest.raises(NotLeader) as raised:
        follower_of(2, 1).change_membership([AddLearner(5)])

    assert raised.value.leader_id == 2


def test_a_change_that_is_done_already_appends_nothing() -> None:
    leader = settled_leader()
    index = leader.change_membership([AddLearner(3)])
    drain(leader)
    acknowledge(leader, 1, 2)
    drain(leader)

    assert leader.change_membership([AddLearner(3)]) == index
    assert leader.change_membership([AddVoter(1), RemoveNode(9)]) == index

    assert leader.log.last_index == index


def test_what_is_wrong_in_itself_appends_nothing() -> None:
    leader = settled_leader(size=1)

    wrong: list[list[MemberChange]] = [
        [RemoveNode(0)],
        [AddLearner(0)],
        [AddVoter(-1)],
        [AddVoter(5), RemoveNode(0), RemoveNode(5)],
    ]
    for changes in wrong:
        with pytest.raises(ProposalRefused):
            leader.change_membership(changes)

    assert (leader.log.last_index, leader.pending_change) == (0, None)


def test_no_change_during_a_transfer() -> None:
    leader = settled_leader()
    leader.propose(b"x")
    leader.transfer_leadership(1)

    with pytest.raises(ProposalRefused, match="handed over"):
        leader.change_membership([AddLearner(5)])


def test_a_newcomer_catches_up_in_rounds_before_it_votes() -> None:
    """D§4.2.1: a round takes in what the leader had at its start; one shorter than an election timeout is enough."""
    leader = settled_leader(size=1)
    leader.change_membership([AddVoter(1)])
    drain(leader)
    first_target = leader.log.last_index
    leader.tick(leader.config.election_timeout_ticks)  # the first round takes long
    leader.propose(b"more")
    drain(leader)
    assert leader.configuration.learners == {1}

    acknowledge(leader, 1, match_index=first_target)
    assert leader.configuration.learners == {1}
    assert leader.pending_change is not None
    assert leader.pending_change.rounds[1].number == 2
    acknowledge(leader, 1)

    assert leader.configuration == of("01", next_node_id=2)
    assert leader.pending_change is None


def test_a_newcomer_that_is_quicker_than_the_commit_waits_for_it() -> None:
    """One configuration entry at a time: the learner's must be committed before the voter's is appended."""
    leader = settled_leader(size=3)
    index = leader.change_membership([AddVoter(3)])
    drain(leader)

    acknowledge(leader, 3)
    assert leader.log.last_index == index
    acknowledge(leader, 1)

    assert (leader.commit_index, leader.log.last_index) == (index, index + 1)
    assert leader.configuration.voters == {0, 1, 2, 3}


def test_a_newcomer_that_is_never_quick_enough_stays_a_learner() -> None:
    leader = settled_leader(size=1)
    leader.change_membership([AddVoter(1)])

    for _ in range(ROUNDS_MAX):
        drain(leader)
        leader.tick(leader.config.election_timeout_ticks)
        leader.propose(b"more")
        target = leader.log.last_index - 1
        drain(leader)
        acknowledge(leader, 1, match_index=target)

    assert leader.pending_change is None
    assert leader.configuration.learners == {1}


def test_a_newcomer_that_is_silent_is_given_up() -> None:
    leader = settled_leader(size=1)
    leader.change_membership([AddVoter(1)])

    for _ in range(SILENT_TIMEOUTS_MAX * leader.config.election_timeout_ticks):
        assert leader.pending_change is not None
        leader.tick()
        drain(leader)

    assert leader.pending_change is None
    leader.change_membership([RemoveNode(1)])
    assert leader.configuration.learners == frozenset()


def test_asking_again_after_a_change_of_leader_goes_on_where_it_was() -> None:
    """A change that waits is known to its leader alone; the learners remain, and the next leader takes it up."""
    cluster = Cluster(3)
    cluster.elect(0)
    cluster.add(3, Configuration())
    cluster.drop(lambda message: message.dest == 3)
    cluster[0].change_membership([AddVoter(3)])
    cluster.settle()
    cluster[0].transfer_leadership(1)
    cluster.settle()
    cluster.heal()
    assert cluster[1].state is LeaderState
    assert cluster[1].configuration.learners == {3}

    cluster[1].change_membership([AddVoter(3)])
    cluster.tick(10)

    assert cluster[1].configuration.voters == {0, 1, 2, 3}
    assert cluster[3].configuration == cluster[1].configuration


def test_replacing_every_voter_at_once_under_load() -> None:
    cluster = Cluster(3)
    cluster.elect(0)
    for node_id in (3, 4, 5):
        cluster.add(node_id, Configuration())

    cluster[0].change_membership([*(AddVoter(node_id) for node_id in (3, 4, 5)), *(RemoveNode(n) for n in (0, 1, 2))])
    for number in range(20):
        for node_id in cluster.leaders():
            cluster.propose(node_id, b"%d" % number)
        cluster.tick(2)
    cluster.tick(100)

    (leader_id,) = cluster.leaders()
    assert leader_id in (3, 4, 5)
    assert cluster[leader_id].configuration == of("345", next_node_id=6)
    assert cluster.machines[3] == cluster.machines[4] == cluster.machines[5]
    assert len(cluster.machines[3]) > 20
    for node_id in (0, 1, 2):
        assert cluster[node_id].configuration == of("345", next_node_id=6)  # they were told
        assert not cluster[node_id].promotable


def test_a_removed_node_is_fed_until_it_knows() -> None:
    leader = settled_leader(size=3)
    index = leader.change_membership([RemoveNode(2)])
    assert len(appends_to(drain(leader), 2)) == 1

    acknowledge(leader, 1, 2)
    told = appends_to(drain(leader), 2)
    assert [append.commit_index for append in told] == [index]
    leader.tick()

    assert 2 not in leader.progress


def test_a_removed_node_that_is_silent_is_forgotten_after_an_election_timeout() -> None:
    leader = settled_leader(size=3)
    leader.change_membership([RemoveNode(2)])
    drain(leader)
    acknowledge(leader, 1)

    for _ in range(leader.config.election_timeout_ticks):
        assert 2 in leader.progress
        leader.tick()

    assert 2 not in leader.progress


def test_a_removed_leader_hands_over_to_the_voter_that_has_most() -> None:
    leader = settled_leader(size=4)
    leader.change_membership([RemoveNode(0)])
    drain(leader)

    acknowledge(leader, 3)
    acknowledge(leader, 2)

    assert leader.state is FollowerState
    assert [(message.dest, message.term) for message in timeout_nows(drain(leader))] == [(2, 1)]


def test_a_demoted_leader_steps_down_as_well() -> None:
    leader = settled_leader(size=3)
    leader.change_membership([AddLearner(0)])
    drain(leader)

    acknowledge(leader, 1, 2)

    assert leader.state is FollowerState
    assert leader.configuration.learners == {0}


def test_a_new_leader_finishes_a_joint_change_that_it_finds_in_its_log() -> None:
    """§6: it commits the joint configuration with its own no-op, and then leaves it."""
    leader = make_leader(size=3)
    follower = settled_leader(size=3)
    joint = enter_joint(voters(0, 1, 2), [RemoveNode(1), RemoveNode(2)])
    follower.step(AppendEntries(1, 0, 5, 0, 1, [LogEntry(5, joint)], -1))
    drain(follower)

    follower.become_leader_now(6)
    drain(follower)
    acknowledge(follower, 1)

    assert follower.configuration == leave_joint(joint)
    assert leader.configuration != follower.configuration


def test_voters_in_the_joint_phase_and_catching_up_under_a_full_change() -> None:
    leader = settled_leader(size=3)
    leader.change_membership([AddVoter(3), RemoveNode(1), RemoveNode(2)])
    assert leader.configuration.learners == {3}

    catch_up(leader, 3)

    assert leader.configuration == of("03", "012", next_node_id=4)
    assert leader.voters == {0, 1, 2, 3}


def test_a_learner_whose_code_is_too_old_is_not_promoted() -> None:
    leader = settled_leader(size=1)
    leader.change_membership([AddVoter(1)])
    drain(leader)
    leader.unfit = frozenset({1})
    acknowledge(leader, 1, match_index=leader.log.last_index)

    assert leader.pending_change is None
    assert leader.configuration.learners == {1}
    with pytest.raises(ProposalRefused, match="older"):
        leader.change_membership([AddVoter(1)])
    leader.unfit = frozenset()
    leader.change_membership([AddVoter(1)])
    acknowledge(leader, 1, match_index=leader.log.last_index)
    assert leader.configuration.voters == {0, 1}
