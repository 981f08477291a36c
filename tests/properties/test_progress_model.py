"""Progress against a follower that is a set of indexes, over links that lose, repeat and reorder.

The follower may also lose what it had acknowledged. The leader believes too much then, until it is told; it never takes
a late answer for such a loss.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actorraft.raft import Progress, ProgressState, RaftLog
from actorraft.raft.progress import next_index_after_rejection, rejection_hint
from tests.helpers import entries_of

BYTES_MAX = 40


class Feeding(RuleBasedStateMachine):
    """One leader, one follower, and two bags of messages."""

    @initialize(
        leader=st.lists(st.integers(1, 4), min_size=1, max_size=8),
        follower=st.lists(st.integers(1, 4), max_size=8),
        common=st.integers(0, 8),
        inflight_max=st.integers(1, 3),
    )
    def begin(self, leader: list[int], follower: list[int], common: int, inflight_max: int) -> None:
        terms = sorted(leader)
        # Two logs that agree up to `common` and nowhere after: other terms there, as log matching demands.
        other = [term + 10 for term in sorted(follower)[common:]]
        self.leader = RaftLog([*entries_of(*terms)])
        self.follower = RaftLog([*entries_of(*terms[:common]), *entries_of(*other, first=min(common, len(terms)))])
        self.leader.append(entries_of(30, first=len(self.leader))[0])  # the leader's own term
        self.progress = Progress(len(self.leader), inflight_max=inflight_max, inflight_bytes_max=BYTES_MAX)
        self.appends: list[tuple[int, list[object], int]] = []  # first index, entries, round
        self.answers: list[tuple[bool, int, int, object, int]] = []
        self.highest_match = -1
        self.round = 1
        self.has_lost = False  # since the leader learned of it last

    @rule(more=st.integers(1, 3))
    def propose(self, more: int) -> None:
        for _ in range(more):
            self.leader.append(entries_of(30, first=len(self.leader))[0])

    @rule(count=st.integers(1, 3))
    def send(self, count: int) -> None:
        progress = self.progress
        if progress.state is ProgressState.PROBE and progress.probe_sent:
            return
        if progress.state is ProgressState.REPLICATE and not progress.window_open:
            return
        first = progress.next_index
        entries = self.leader[first : first + count]
        self.appends.append((first, list(entries), self.round))
        if entries:
            progress.sent(first + len(entries) - 1, 10 * len(entries))
        else:
            progress.probe_sent = progress.state is ProgressState.PROBE

    @rule()
    def heartbeat(self) -> None:
        self.round += 1
        self.appends.append((self.progress.next_index, [], self.round))

    @precondition(lambda self: len(self.follower))
    @rule(kept=st.integers(0, 8))
    def come_back_with_less(self, kept: int) -> None:
        """The follower's log is cut; what is under way to it, and from it, went down with its connections."""
        self.appends.clear()
        self.answers.clear()
        self.has_lost = self.has_lost or kept <= self.progress.match_index
        self.follower = RaftLog(self.follower[:kept])
        self.progress.become_probe()

    @precondition(lambda self: self.appends)
    @rule(data=st.data(), keep=st.booleans())
    def receive_append(self, data: st.DataObject, keep: bool) -> None:
        position = data.draw(st.integers(0, len(self.appends) - 1))
        self.answer(*(self.appends[position] if keep else self.appends.pop(position)))

    def answer(self, first: int, entries: list[object], asked_round: int) -> None:
        prev_term = self.leader.term_at(first - 1)
        if self.follower.append_entries(first - 1, prev_term, entries):
            self.answers.append((True, first - 1 + len(entries), 0, None, asked_round))
        else:
            hint = rejection_hint(self.follower, first - 1, prev_term)
            self.answers.append((False, -1, first - 1, hint, asked_round))

    @precondition(lambda self: self.answers)
    @rule(data=st.data(), keep=st.booleans())
    def receive_answer(self, data: st.DataObject, keep: bool) -> None:
        position = data.draw(st.integers(0, len(self.answers) - 1))
        self.take(*(self.answers[position] if keep else self.answers.pop(position)))

    def take(self, success: bool, match_index: int, rejected: int, hint: Any, answered_round: int) -> None:
        progress = self.progress
        if success:
            progress.acknowledge(match_index, self.round)
            if progress.state is ProgressState.PROBE and match_index == progress.match_index:
                progress.become_replicate()
            return
        next_index = next_index_after_rejection(self.leader, hint, rejected)
        if progress.has_lost(rejected, answered_round):
            assert self.has_lost, f"a late rejection of {rejected} passes for a loss: {progress}"
            owed = self.leader.last._replace(index=progress.match_index)
            owed_before = progress.owed  # it may lose once more before it holds again what it lost first
            progress.lose(owed, next_index)
            assert (progress.owed, progress.match_index) == (max(owed_before, owed), -1)
            self.has_lost, self.highest_match = False, -1
        else:
            progress.reject(rejected, next_index)

    @rule()
    def lose_everything(self) -> None:
        self.appends.clear()
        self.answers.clear()
        self.progress.become_probe()

    @invariant()
    def match_is_true_and_never_falls(self) -> None:
        if not hasattr(self, "progress"):
            return
        progress = self.progress
        assert progress.match_index >= self.highest_match
        self.highest_match = progress.match_index
        assert progress.match_index < progress.next_index <= len(self.leader)
        if not self.has_lost:
            agreeing = self.follower[: progress.match_index + 1]
            assert agreeing == self.leader[: progress.match_index + 1]
            assert progress.owed.index < 0 or progress.match_index < progress.owed.index
        assert len(progress.inflight) <= progress.inflight_max
        assert progress.inflight_bytes == sum(size for _, size in progress.inflight)
        assert progress.inflight_bytes < BYTES_MAX + 30

    def teardown(self) -> None:
        """However it began, over a good link the follower ends with the leader's log, in a bounded number of steps."""
        if not hasattr(self, "progress"):
            return
        self.lose_everything()
        for _ in range(4 * len(self.leader) + 20):
            self.heartbeat()
            self.send(3)
            while self.appends:
                self.answer(*self.appends.pop(0))
                self.take(*self.answers.pop(0))
        assert self.follower == self.leader
        assert self.progress.match_index == self.leader.last_index


TestFeeding = Feeding.TestCase
TestFeeding.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
