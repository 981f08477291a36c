"""Every future of RaftControl ends: whatever its owner, another leader, a snapshot, the disk or the end does to it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from actorraft import OutcomeUnknown, RaftControl, StorageFailed, Unavailable, UsageError
from actorraft.node.driver import MessageEvent
from actorraft.raft.errors import NotLeader
from actorraft.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Configuration,
    HardState,
    InstallSnapshot,
    LogEntry,
)
from actorraft.storage.memory import MemoryStorage
from transports.mock import MockNetwork
from transports.tcp import TCPRaftNet

MEMBERS = Configuration(voters=frozenset({0, 1, 2}), next_node_id=3)
WAIT_S = 10.0


def leader(term: int = 1) -> RaftControl:
    """Node 0 of three, which leads; its no-op is at index 0 and not committed."""
    control = RaftControl(MockNetwork(0, (1, 2)))
    control.become_leader()
    assert control.server.current_term == term
    return control


def commit(control: RaftControl) -> None:
    server = control.server
    answer = AppendEntriesResponse(1, 0, server.current_term, True, server.log.last_index, server.reads.round)
    control.process_event(MessageEvent(answer))


def replace_all(control: RaftControl, term: int = 2) -> None:
    control.process_event(MessageEvent(AppendEntries(1, 0, term, -1, -1, [LogEntry(term, None)], -1)))


def error_of(future: Future[int]) -> type[BaseException] | None:
    assert future.done()
    return type(future.exception(0))


# --- What becomes of an entry ---


def test_an_entry_that_its_owner_wants_to_cancel_after_it_is_appended_is_not_cancelled() -> None:
    control = leader()
    future = control.client_append_entry("x")
    assert not future.cancel()
    commit(control)
    assert future.result(0) == 1


def test_an_owner_that_ends_the_future_itself_disturbs_nobody_else() -> None:
    control = leader()
    mine, others = control.client_append_entry("x"), control.client_append_entry("y")
    mine.set_result(77)
    commit(control)
    assert (mine.result(0), others.result(0)) == (77, 2)


@pytest.mark.parametrize("raised", [SystemExit, GeneratorExit, CancelledError, ValueError])
def test_a_callback_that_raises_takes_nobody_with_it(raised: type[BaseException]) -> None:
    control = leader()
    first, second = control.client_append_entry("x"), control.client_append_entry("y")

    def callback(_: Future[int]) -> None:
        raise raised("out of a callback")

    first.add_done_callback(callback)
    commit(control)
    assert (first.result(0), second.result(0)) == (1, 2)


def test_a_callback_may_append_the_next_entry() -> None:
    control, indexes = RaftControl(MockNetwork(0)), []
    control.become_leader()

    def again(future: Future[int]) -> None:
        indexes.append(future.result(0))
        if len(indexes) < 50:
            control.client_append_entry("next").add_done_callback(again)

    control.client_append_entry("first").add_done_callback(again)
    assert indexes == list(range(1, 51))


def test_entries_of_three_terms_at_one_index_end_each_by_what_is_committed_there() -> None:
    control = leader()
    first = control.client_append_entry("term 1")
    replace_all(control, 2)
    control.become_leader()  # term 3
    second = control.client_append_entry("term 3")  # at index 2
    replace_all(control, 4)
    control.become_leader()  # term 5: its no-op is at index 1
    third = control.client_append_entry("term 5")  # at index 2
    commit(control)
    assert [error_of(future) for future in (first, second)] == [Unavailable, Unavailable]
    assert third.result(0) == 2


@pytest.mark.parametrize(
    ("snapshot_term", "last_index", "ends"), [(2, 50, OutcomeUnknown), (2, 1, OutcomeUnknown), (1, 1, 1)]
)
def test_an_entry_that_an_installed_snapshot_covers_is_unknown_unless_it_is_its_last(
    snapshot_term: int, last_index: int, ends: Any
) -> None:
    control = leader()
    future = control.client_append_entry("in there or not")
    snapshot = InstallSnapshot(1, 0, 2, last_index, snapshot_term, MEMBERS, 0, b"", True)
    control.process_event(MessageEvent(snapshot))
    if ends is OutcomeUnknown:
        assert error_of(future) is ends
    else:
        commit_by_other = AppendEntries(1, 0, 2, last_index, snapshot_term, [], last_index)
        control.process_event(MessageEvent(commit_by_other))
        assert future.result(0) == ends


def test_an_entry_that_is_appended_when_the_node_stops_is_unknown_for_others_may_commit_it() -> None:
    control = leader()
    future = control.client_append_entry("sent already")
    control.stop()
    assert error_of(future) is OutcomeUnknown


@pytest.mark.parametrize("item", [object(), lambda: None, 1j, {"deep": [threading.Lock()]}, 1 << 70, MEMBERS.__class__])
def test_an_item_that_cannot_be_sent_is_refused_and_the_node_goes_on(item: Any) -> None:
    control = RaftControl(TCPRaftNet(0, {}, endpoint="127.0.0.1:0"))
    control.start()
    try:
        control.become_leader().result(WAIT_S)
        assert isinstance(control.client_append_entry(item).exception(WAIT_S), UsageError)
        assert control.client_append_entry("after").result(WAIT_S) == 1
    finally:
        control.stop()


# --- Threads ---


def test_an_entry_cancelled_before_the_thread_takes_it_is_not_appended_and_the_next_one_is() -> None:
    control = RaftControl(MockNetwork(0))
    control.start()
    try:
        control.become_leader().result(WAIT_S)
        appended = [control.client_append_entry(f"{n}") for n in range(300)]
        cancelled = {n for n, future in enumerate(appended) if future.cancel()}
        assert control.client_append_entry("after").result(WAIT_S) == 1 + 300 - len(cancelled)
    finally:
        control.stop()


class RefusingStorage(MemoryStorage):
    def persist(self, hard_state: HardState | None, first_index: int, entries: Sequence[LogEntry]) -> None:
        if any(entry.item == "the last straw" for entry in entries):
            raise StorageFailed("no space left on device")
        super().persist(hard_state, first_index, entries)


@pytest.mark.parametrize("ask", [lambda c: c.client_append_entry("late"), lambda c: c.become_leader()])
def test_whoever_waits_when_the_nodes_thread_dies_or_asks_later_hears_of_it(
    ask: Callable[[RaftControl], Future[int]],
) -> None:
    control = RaftControl(MockNetwork(0), storage=RefusingStorage())
    control.start()
    control.become_leader().result(WAIT_S)
    waiting = [control.client_append_entry(item) for item in ("the last straw", "one more", "and one")]
    assert all(isinstance(future.exception(WAIT_S), OutcomeUnknown | Unavailable) for future in waiting)
    late = ask(control).exception(WAIT_S)
    assert isinstance(late, Unavailable)
    assert "no space left on device" in str(late)
    control.stop()


def test_entries_asked_for_while_the_node_is_stopped_all_end() -> None:
    control = RaftControl(MockNetwork(0))
    control.start()
    control.become_leader().result(WAIT_S)
    futures: list[Future[int]] = []
    begun = threading.Event()

    def ask() -> None:
        for n in range(2_000):
            futures.append(control.client_append_entry(str(n)))
            begun.set()

    asking = threading.Thread(target=ask)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        asking.start()
        begun.wait(WAIT_S)
        control.stop()
        asking.join(WAIT_S)
    finally:
        sys.setswitchinterval(interval)
    for future in futures:
        assert type(future.exception(WAIT_S)) in (type(None), OutcomeUnknown, Unavailable)


# --- Elections ---


def test_a_node_that_leads_already_says_so_at_once() -> None:
    control = RaftControl(MockNetwork(0))
    control.start()
    try:
        term = control.become_leader().result(WAIT_S)
        assert [control.become_leader().result(WAIT_S) for _ in range(3)] == [term] * 3
    finally:
        control.stop()


def test_an_election_that_another_node_wins_ends_with_its_name() -> None:
    control = RaftControl(MockNetwork(0, (1, 2)))
    control.start()
    try:
        future = control.become_leader()
        while control.server.current_term == 0:
            assert not future.done()
        control._events.put(MessageEvent(AppendEntries(1, 0, 9, -1, -1, [], -1)))
        error = future.exception(WAIT_S)
        assert isinstance(error, Unavailable)
        assert "node 1 leads term 9" in str(error)
    finally:
        control.stop()


def test_a_node_that_is_no_voter_says_that_it_cannot_lead() -> None:
    control = RaftControl(MockNetwork(0, (1,)), configuration=Configuration(voters=frozenset({1}), next_node_id=2))
    control.start()
    try:
        assert isinstance(control.become_leader().exception(WAIT_S), Unavailable)
        assert isinstance(control.client_append_entry("x").exception(WAIT_S), NotLeader)
    finally:
        control.stop()


def test_an_election_that_nobody_can_win_ends_when_the_node_is_stopped() -> None:
    control = RaftControl(MockNetwork(0, (1, 2)))
    control.start()
    future = control.become_leader()
    control.stop()
    assert error_of(future) is Unavailable
