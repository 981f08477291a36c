"""How long a node that leaves waits for its snapshot: for as long as whoever had it leave waits for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from actorraft.node.leaving import ALONE_S, WITH_PARENT_S, WORD_S, Leaving
from actorraft.raft.ready import FollowerState, LeaderState


class Slow:
    """A driver whose snapshot does not come to its end."""

    def __init__(self, state: Any = FollowerState, voters: tuple[int, ...] = (0,)) -> None:
        self.server = SimpleNamespace(
            state=state,
            voters=voters,
            transfer_leadership=lambda: None,
            commit_index=-1,
            log=(),
            committed_in_own_term=True,
        )
        self.requests = SimpleNamespace(closing=False, waiting=False)
        self.snapshots = SimpleNamespace(running=False, to_replay=True, begin=self._begin)

    def _begin(self) -> None:
        self.snapshots.running = True

    def process_events(self, events: Any) -> None:
        """Nothing comes of it."""


@pytest.mark.parametrize(
    ("keeps_data", "asked_at_s", "leaves_after_s"),
    [
        pytest.param(True, 0.0, WITH_PARENT_S, id="asked, with data"),
        pytest.param(True, None, ALONE_S, id="by a signal alone, with data"),
        pytest.param(True, 0.5, WITH_PARENT_S, id="the word comes behind the signal"),
        pytest.param(False, 0.0, 0.0, id="asked, and all is thrown away"),
        pytest.param(False, None, WORD_S + ALONE_S, id="by a signal alone: a command's, perhaps"),
    ],
)
def test_a_node_waits_for_its_snapshot_as_long_as_others_wait_for_it(
    keeps_data: bool, asked_at_s: float | None, leaves_after_s: float
) -> None:
    now_s = [100.0]
    driver: Any = Slow()
    clock: Any = SimpleNamespace(monotonic=lambda: now_s[0])
    leaving = Leaving(driver, clock, lambda _: None, keeps_data=keeps_data, hands_over=False)
    left = False
    while not left and now_s[0] < 200.0:
        if asked_at_s is not None and now_s[0] >= 100.0 + asked_at_s:
            leaving.asked = True
        left = leaving.may_leave()
        now_s[0] += 0.0 if left else 0.05
    assert now_s[0] - 100.0 == pytest.approx(leaves_after_s, abs=0.11)


@pytest.mark.parametrize(
    ("state", "voters", "closes"),
    [(LeaderState, (0,), True), (LeaderState, (0, 1, 2), False), (FollowerState, (0, 1, 2), False)],
)
def test_who_leads_alone_takes_nothing_behind_its_last_snapshot(
    state: Any, voters: tuple[int, ...], closes: bool
) -> None:
    driver: Any = Slow(state, voters)
    clock: Any = SimpleNamespace(monotonic=lambda: 100.0)
    reports: list[Any] = []
    leaving = Leaving(driver, clock, reports.append, keeps_data=True, hands_over=True)
    driver.snapshots.handed_index = -1
    assert not leaving.may_leave()
    assert driver.requests.closing is closes
    leaving.follow()
    assert reports == [] or not closes  # nobody waits to hear how far it is
