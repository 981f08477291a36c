"""A leader whose log begins behind a snapshot not restored yet stamps entries all the same (simulator, seed 690)."""

from __future__ import annotations

from actorraft import codec
from actorraft.node.logtime import LogTime
from actorraft.raft.log import RaftLog
from actorraft.raft.messages import Configuration, EntryId, LogEntry
from actorraft.raft.server import RaftServer


class StoppedClock:
    def monotonic(self) -> float:
        return 5.0

    def wall(self) -> float:
        return 1000.0


def server(log: RaftLog, snapshot_id: EntryId) -> RaftServer:
    members = Configuration(voters=frozenset({0}), next_node_id=1)
    return RaftServer(0, configuration=members, draw=lambda low, high: low, log=log, snapshot_id=snapshot_id)


def test_log_time_is_found_above_a_snapshot_that_the_executor_has_not_restored_yet() -> None:
    log = RaftLog([LogEntry(3, None)], first_index=48, previous_term=2)
    behind = server(log, EntryId(2, 47))
    behind.last_applied = 40

    assert LogTime(behind, StoppedClock()).now_s() == 1000.0


def test_log_time_goes_on_from_what_the_restored_snapshot_says() -> None:
    log = RaftLog([LogEntry(3, None)], first_index=48, previous_term=2)
    time = LogTime(server(log, EntryId(2, 47)), StoppedClock())
    time.applied_s = 2000.0

    assert time.now_s() == 2000.0


def test_log_time_goes_on_from_the_newest_stamp_that_is_not_applied_yet() -> None:
    log = RaftLog([LogEntry(1, codec.stamp(3000.0, b"")), LogEntry(3, None)])

    assert LogTime(server(log, EntryId(-1, -1)), StoppedClock()).now_s() == 3000.0
