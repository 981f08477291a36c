"""The driver's part of telling commits along: a millisecond after the last one, if no append has said it by then."""

from __future__ import annotations

from typing import Any

from actorraft.node.control import RaftControl
from actorraft.node.driver import COMMIT_TOLD_S, MessageEvent
from actorraft.raft.messages import AppendEntries, AppendEntriesResponse, Configuration


class StillClock:
    """Time that goes by when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def wall(self) -> float:
        return self.now_s


class Net:
    address = 0
    peers = (1, 2)

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def taken(self) -> list[Any]:
        sent, self.sent = self.sent, []
        return sent


def test_followers_hear_of_the_last_commit_a_millisecond_later_and_of_others_with_the_next_append() -> None:
    net, clock = Net(), StillClock()
    members = Configuration(voters=frozenset({0, 1, 2}), next_node_id=3)
    control = RaftControl(net, clock=clock, configuration=members, commit_along=True)
    control.server.become_leader_now(1)
    control.process_events(())

    def acknowledge() -> None:
        server = control.server
        answers = [
            AppendEntriesResponse(peer, 0, 1, True, server.log.last_index, server.reads.round) for peer in (1, 2)
        ]
        control.process_events([MessageEvent(answer) for answer in answers])

    def propose() -> None:
        control.client_append_entry(b"x")

    acknowledge()
    assert control.due_s == clock.now_s + COMMIT_TOLD_S
    net.taken()

    propose()  # before that: it carries the commit
    assert {append.commit_index for append in net.taken()} == {0}
    clock.now_s += COMMIT_TOLD_S / 2
    acknowledge()
    assert net.taken() == []
    assert control.due_s == clock.now_s + COMMIT_TOLD_S  # put off by the newer one

    clock.now_s += COMMIT_TOLD_S
    control.process_events(())
    told = net.taken()
    assert [(type(one), one.dest, one.entries, one.commit_index) for one in told] == [
        (AppendEntries, 1, [], 1),
        (AppendEntries, 2, [], 1),
    ]
    assert control.due_s is None
