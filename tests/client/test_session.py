"""The client's session by itself: order, retries, deadlines and truthful outcomes, with a network of lists."""

from __future__ import annotations

import math
from typing import Any

import pytest

from actorraft import codec
from actorraft.client.reads import QueryCall
from actorraft.client.session import NOOP, ClientSession
from actorraft.errors import Busy, OutcomeUnknown, Unavailable


class Net:
    """A session and everything it sent."""

    def __init__(self, **options: Any) -> None:
        self.sent: list[tuple[int, codec.Request]] = []
        self.up = True
        self.session = ClientSession(self.send, nonce=77, make_future=object, **options)

    def send(self, node_id: int, frame: bytes) -> bool:
        if self.up:
            self.sent.append((node_id, codec.decode_request(frame)))
        return self.up

    def take(self, kind: type[Any] = codec.Commands) -> list[tuple[int, Any]]:
        return self.take_any(kind)

    def take_any(self, *kinds: type[Any]) -> list[tuple[int, Any]]:
        taken = [(node_id, frame) for node_id, frame in self.sent if type(frame) in kinds]
        self.sent.clear()
        return taken

    def open(self, leader: int = 0) -> ClientSession:
        """Connect three nodes, find a leader, register as client 9."""
        session = self.session
        for node_id in range(3):
            session.connected(node_id, 0.0)
        session.receive(leader, codec.LeaderIs(1, leader), 0.0)
        session.submit([(b"\x01", "first", math.inf)])
        session.advance(0.0)
        session.receive(leader, codec.Registered(77, 9), 0.0)
        session.advance(0.0)
        session.receive(leader, codec.Results(9, 0, [None]), 0.0)
        session.results.clear()
        self.sent.clear()
        return session


def call(name: str, deadline_s: float = math.inf, encoded: bytes = b"\x01") -> tuple[bytes, str, float]:
    return encoded, name, deadline_s


def test_commands_that_wait_leave_in_one_frame_with_dense_sequences() -> None:
    net = Net()
    session = net.open()

    session.submit([call("a"), call("b")])
    session.advance(1.0)
    session.submit([call("c")])
    session.advance(1.0)

    frames = [frame for _, frame in net.take()]
    assert [(1, 2), (3, 1)] == [(frame.first_sequence, frame.count) for frame in frames]


def test_results_end_the_calls_of_their_frame_once() -> None:
    net = Net()
    session = net.open()
    session.submit([call("a"), call("b")])
    session.advance(1.0)

    session.receive(0, codec.Results(9, 1, [10, 20], 7), 1.0)
    session.receive(0, codec.Results(9, 1, [10, 20], 9), 1.0)

    assert [([call("a"), call("b")], [10, 20], 7)] == session.results
    assert session.idle


def test_a_new_leader_gets_everything_unanswered_in_order() -> None:
    net = Net()
    session = net.open()
    for name in "abc":
        session.submit([call(name)])
        session.advance(1.0)
    net.take()

    session.receive(2, codec.LeaderIs(2, 2), 1.1)

    assert [(2, 1), (2, 2), (2, 3)] == [(node_id, frame.first_sequence) for node_id, frame in net.take()]


def test_a_refused_frame_is_sent_again_and_ends_as_unavailable_when_its_time_is_up() -> None:
    net = Net()
    session = net.open()
    session.submit([call("a", deadline_s=1.8)])
    session.advance(1.0)

    session.receive(0, codec.Refused(9, 1, "not leader", None), 1.1)
    session.advance(1.8)

    [(future, error, _)] = session.failures
    assert future == "a"
    assert type(error) is Unavailable


def test_a_frame_that_was_refused_as_busy_to_the_end_is_busy() -> None:
    net = Net()
    session = net.open()
    session.submit([call("a", deadline_s=1.8)])
    session.advance(1.0)
    session.receive(0, codec.Refused(9, 1, "busy", 0), 1.1)

    session.advance(1.8)

    assert [Busy] == [type(error) for _, error, _ in session.failures]


def test_a_frame_that_was_sent_and_not_answered_is_unknown_and_a_noop_takes_its_place() -> None:
    net = Net()
    session = net.open()
    session.submit([call("a", deadline_s=1.8), call("b", deadline_s=9.0)])
    session.advance(1.0)
    net.take()

    session.advance(1.8)
    session.receive(1, codec.LeaderIs(5, 1), 2.1)

    [(future, error, _)] = session.failures
    assert (future, type(error)) == ("a", OutcomeUnknown)
    [(_, frame)] = net.take()
    assert codec.join_body([NOOP, b"\x01"]) == frame.body
    assert (1, 2) == (frame.first_sequence, frame.count)


def test_one_refusal_of_two_sendings_leaves_the_outcome_unknown() -> None:
    net = Net()
    session = net.open()
    session.submit([call("a", deadline_s=1.8)])
    session.advance(1.0)
    session.receive(1, codec.LeaderIs(2, 1), 1.1)  # sent a second time

    session.receive(1, codec.Refused(9, 1, "not leader", None), 1.2)
    session.advance(1.8)

    assert [OutcomeUnknown] == [type(error) for _, error, _ in session.failures]


def test_what_became_of_an_unknown_command_is_said_by_the_late_answer() -> None:
    net = Net()
    session = net.open()
    session.submit([call("a", deadline_s=1.8)])
    session.advance(1.0)
    session.advance(1.8)
    later = session.failures.pop().later

    session.receive(0, codec.Results(9, 1, [42]), 3.0)

    [(calls, values, _)] = session.results
    assert (later, 42) == (calls[0][1], values[0])


def test_a_command_whose_noop_came_first_is_definitely_never_applied() -> None:
    net = Net()
    session = net.open()
    session.submit([call("a", deadline_s=1.8)])
    session.advance(1.0)
    session.advance(1.8)
    later = session.failures.pop().later

    session.receive(0, codec.Results(9, 1, [codec.GIVEN_UP]), 3.0)

    assert [(later, Unavailable)] == [(future, type(error)) for future, error, _ in session.failures]


def test_a_gap_is_sent_again_from_the_sequence_that_is_missing() -> None:
    """Frame 1 refused, frame 2 taken: nothing is lost, nothing twice, order kept (trap 15a)."""
    net = Net()
    session = net.open()
    session.submit([call("a")])
    session.advance(1.0)
    session.submit([call("b")])
    session.advance(1.0)
    net.take()

    session.receive(0, codec.Refused(9, 1, "busy", 0), 1.1)
    session.receive(0, codec.Resume(9, 2, 1), 1.1)
    session.advance(1.5)

    assert [1, 2] == [frame.first_sequence for _, frame in net.take()]


def test_a_session_that_the_cluster_has_lost_the_end_of_is_replaced_and_its_calls_end() -> None:
    """Somebody has put older disks back: what was answered is not there, and nobody can fill the gap."""
    net = Net()
    session = net.open()
    for name in ("answered", "not answered"):
        session.submit([call(name)])
        session.advance(1.0)
    session.receive(0, codec.Results(9, 1, [1], 5), 1.1)
    session.receive(1, codec.LeaderIs(2, 1), 1.2)  # sent a second time, to the leader of the older disks
    net.take()

    session.receive(1, codec.Resume(9, 2, 0), 1.5)
    assert [(future, type(error)) for future, error, _ in session.failures] == [("not answered", OutcomeUnknown)]
    session.submit([call("next")])
    session.advance(1.5)
    session.receive(1, codec.Registered(77, 30), 1.6)
    net.take()
    session.advance(1.6)

    [(_, frame)] = net.take()
    assert (frame.client_id, frame.first_sequence) == (30, 0)


def test_an_expired_session_is_replaced_and_only_certain_commands_go_into_the_new_one() -> None:
    """The frame before the refused one may have applied in time, its answer lost (simulator, seed 2221)."""
    net = Net(frames_max=3)
    session = net.open()
    for name in ("before", "refused", "behind", "queued"):
        session.submit([call(name)])
        session.advance(1.0)

    session.receive(0, codec.Expired(9, 2), 1.5)
    session.advance(1.5)
    session.receive(0, codec.Registered(77, 30), 1.6)
    net.take()
    session.advance(1.6)

    outcomes = [(future, type(error)) for future, error, _ in session.failures]
    assert outcomes == [("before", OutcomeUnknown), ("behind", OutcomeUnknown)]
    [(_, frame)] = net.take()
    assert (frame.client_id, frame.first_sequence, frame.count) == (30, 0, 2)


def test_a_command_that_was_sent_twice_is_unknown_when_its_session_expires() -> None:
    net = Net()
    session = net.open()
    session.submit([call("twice")])
    session.advance(1.0)
    session.receive(1, codec.LeaderIs(2, 1), 1.1)

    session.receive(1, codec.Expired(9, 1), 1.5)

    assert [(future, type(error)) for future, error, _ in session.failures] == [("twice", OutcomeUnknown)]


def test_a_command_that_never_left_is_unavailable() -> None:
    net = Net()
    net.session.submit([call("a", deadline_s=1.0)])
    net.session.advance(0.0)

    net.session.advance(1.0)

    assert [Unavailable] == [type(error) for _, error, _ in net.session.failures]
    assert net.session.idle


def test_a_lost_answer_is_asked_for_again_after_a_while() -> None:
    net = Net()
    session = net.open()
    session.submit([call("a")])
    session.advance(1.0)
    net.take()

    assert session.deadline_s() == pytest.approx(1.0 + session.RESEND_S)
    session.advance(1.0 + session.RESEND_S)

    assert [1] == [frame.first_sequence for _, frame in net.take()]


def test_a_registration_that_did_not_leave_is_sent_again_soon() -> None:
    net = Net()
    session = net.session
    session.connected(0, 0.0)
    session.receive(0, codec.LeaderIs(1, 0), 0.0)
    net.up = False
    session.submit([call("a")])
    session.advance(0.0)
    again_s = session.deadline_s()
    assert again_s < 1.0
    net.up = True
    session.advance(again_s)
    assert [(0, codec.Register(77))] == net.take(codec.Register)


def test_closing_ends_everything_truthfully() -> None:
    net = Net(frames_max=1)
    session = net.open()
    session.submit([call("sent")])
    session.advance(1.0)
    session.submit([call("queued")])
    session.advance(1.0)

    session.close()

    outcomes = {future: type(error) for future, error, _ in session.failures}
    assert outcomes == {"sent": OutcomeUnknown, "queued": Unavailable}


def test_reads_that_have_nobody_to_go_to_do_not_keep_the_client_awake() -> None:
    net = Net()
    net.session.query(QueryCall(b"\x01", "read", 9.0, "linearizable", "leader"))

    net.session.advance(1.0)

    assert net.session.deadline_s() > 1.0


def test_reads_wait_for_a_leader_and_leave_at_once_when_there_is_one() -> None:
    net = Net()
    net.session.query(QueryCall(b"\x01", "read", 9.0, "linearizable", "leader"))
    net.session.advance(1.0)
    net.session.connected(2, 1.0)

    net.session.receive(2, codec.LeaderIs(1, 2), 1.001)

    assert [2] == [node_id for node_id, _ in net.take(codec.Query)]


def test_who_asks_a_node_before_its_link_is_up_is_answered_and_is_told_in_time_if_it_never_comes() -> None:
    net = Net()
    session = net.session
    session.admin(0, "status", {}, "there", 10.0, 1.0)
    session.admin(1, "status", {}, "not there", 10.0, 1.0)
    assert session.deadline_s() <= 1.0

    session.connected(0, 0.5)
    [(node_id, asked)] = net.take(codec.Admin)
    session.receive(0, codec.AdminReply(asked.request_id, "", "well"), 0.6)
    session.advance(1.0)

    assert node_id == 0
    assert session.admin_replies == [("there", "well")]
    assert [(future, str(error)) for future, error, _ in session.failures] == [("not there", "node 1 is not reachable")]
    assert session.idle


def test_a_node_that_was_reached_and_is_gone_is_not_waited_for() -> None:
    net = Net()
    session = net.open()
    session.disconnected(2, 1.0)

    session.admin(2, "status", {}, "asked", 10.0, 5.0)

    assert [(future, str(error)) for future, error, _ in session.failures] == [("asked", "node 2 is not reachable")]


@pytest.mark.parametrize(("reason", "error"), [("busy", Busy), ("not leader", Unavailable)])
def test_a_read_that_was_refused_up_to_its_deadline_says_for_which_reason(reason: str, error: type[Exception]) -> None:
    net = Net()
    session = net.open()
    session.query(QueryCall(b"\x01", "read", 5.0, "stale", 1))
    session.advance(1.0)
    (_, query) = net.take(codec.Query)[0]

    session.receive(1, codec.QueryRefused(query.request_id, reason, None), 1.0)
    session.advance(5.1)

    assert [("read", error)] == [(future, type(each)) for future, each, _ in session.failures]


def test_what_a_former_leader_says_late_of_a_gap_is_no_sign_of_a_lost_session() -> None:
    net = Net()
    session = net.open()
    session.submit([call("first")])
    session.advance(1.0)
    session.submit([call("second")])
    session.advance(1.0)
    session.receive(0, codec.Refused(9, 1, "busy", 0), 1.1)  # the second is in its log, and leaves a gap
    session.receive(1, codec.LeaderIs(2, 1), 1.2)
    session.advance(1.3)
    session.receive(1, codec.Results(9, 1, [1], 7), 1.4)
    session.receive(0, codec.Resume(9, 2, 1), 1.5)
    session.receive(1, codec.Results(9, 2, [2], 8), 1.6)

    assert session.client_id == 9
    assert (session.failures, [values for _, values, _ in session.results]) == ([], [[1], [2]])


@pytest.mark.parametrize(("to", "min_index"), [(2, 10**6), (2, -1), ("leader", 10**6)])
def test_reads_that_a_node_does_not_answer_keep_no_others_back(to: str | int, min_index: int) -> None:
    net = Net()
    session = net.open()
    for _ in range(10):
        session.query(QueryCall(b"\xc0", object(), math.inf, "stale", to, min_index))
        session.advance(1.0)
    net.sent.clear()
    session.query(QueryCall(b"\xc1", object(), math.inf, "linearizable", "leader"))
    session.advance(1.1)

    assert [(node_id, query.consistency) for node_id, query in net.take(codec.Query)] == [(0, "linearizable")]


def test_a_read_waits_for_no_larger_index_than_its_own() -> None:
    net = Net()
    session = net.open()
    for min_index in (5, 7, 5, -1):
        session.query(QueryCall(b"\xc0", object(), math.inf, "stale", "leader", min_index))
    session.advance(1.0)

    assert sorted((query.min_index, query.count) for _, query in net.take(codec.Query)) == [(-1, 1), (5, 2), (7, 1)]


def read_when_leaders_change(net: Net, deadline_s: float = 9.0, *, full: bool = False) -> tuple[ClientSession, int]:
    """Ask node 0, the leader, for two reads; then node 1 leads. Return the session, and the number of the reads.

    `full`: nothing can be sent in that moment.
    """
    session = net.open()
    for name in ("a", "b"):
        session.query(QueryCall(b"\xc0", name, deadline_s, "linearizable", "leader"))
    session.advance(1.0)
    ((_, asked),) = net.take(codec.Query)
    net.up = not full
    session.receive(1, codec.LeaderIs(2, 1), 3.0)
    session.advance(3.0)
    net.up = True
    return session, asked.request_id


def test_reads_under_way_are_asked_of_the_new_leader_too_for_as_long_as_they_are_waited_for() -> None:
    net = Net()
    session, request_id = read_when_leaders_change(net)

    ((node_id, again),) = net.take(codec.Query)
    session.advance(4.0)
    ((reminded, later),) = net.take(codec.Query)

    assert (node_id, again.request_id, again.count, again.wait_s) == (1, request_id, 2, 6.0)
    assert (reminded, later.request_id, later.count, later.wait_s) == (1, request_id, 2, 5.0)


@pytest.mark.parametrize("first", [0, 1])
def test_the_first_answer_to_a_read_is_taken_whether_its_node_still_leads_or_not(first: int) -> None:
    net = Net()
    session, request_id = read_when_leaders_change(net)
    for node_id, values in [(first, [1, 2]), (1 - first, [3, 4])]:
        session.receive(node_id, codec.Answers(request_id, values), 4.0)
    session.advance(10.0)

    assert [([query.future for query in queries], values) for queries, values in session.answers] == [
        (["a", "b"], [1, 2])
    ]
    assert (session.failures, session.idle) == ([], True)


@pytest.mark.parametrize(
    "late", [codec.QueryRefused(1, "not leader", None), codec.QueryRefused(1, "busy", 1), codec.NOT_YET]
)
def test_that_a_former_leader_cannot_serve_a_read_is_no_reason_to_ask_the_new_one_twice(late: Any) -> None:
    net = Net()
    session, request_id = read_when_leaders_change(net)
    net.sent.clear()
    if isinstance(late, codec.QueryRefused):
        session.receive(0, codec.QueryRefused(request_id, late.reason, late.leader_id), 3.1)
    else:
        session.receive(0, codec.Answers(request_id, [1, late]), 3.1)
    session.advance(3.5)
    asked_again = net.take(codec.Query)
    session.receive(1, codec.Answers(request_id, [1, 2]), 3.6)

    assert asked_again == []
    assert [values for _, values in session.answers] == [[1, 2]]


@pytest.mark.parametrize("how", ["refused", "busy", "disconnected", "full"])
def test_a_read_that_the_new_leader_does_not_take_is_still_answered_by_the_former(how: str) -> None:
    net = Net()
    session, request_id = read_when_leaders_change(net, full=how == "full")
    if how == "disconnected":
        session.disconnected(1, 3.1)
    elif how != "full":
        session.receive(1, codec.QueryRefused(request_id, "busy" if how == "busy" else "not leader", None), 3.1)
    net.sent.clear()
    session.advance(3.2)
    session.receive(2, codec.LeaderIs(3, 2), 3.3)
    session.advance(3.4)
    asked = net.take(codec.Query)
    session.receive(0, codec.Answers(request_id, [1, 2]), 3.5)
    session.advance(10.0)

    before = [1] if how in ("busy", "full") else []  # it leads on, and is asked again meanwhile
    assert [node_id for node_id, _ in asked] == [*before, 2]
    assert {query.request_id for _, query in asked} == {request_id}
    assert [values for _, values in session.answers] == [[1, 2]]
    assert (session.failures, session.idle) == ([], True)


def test_a_read_that_no_node_will_answer_is_asked_as_a_new_one() -> None:
    net = Net()
    session, request_id = read_when_leaders_change(net)
    net.sent.clear()
    session.receive(1, codec.QueryRefused(request_id, "not leader", None), 3.1)
    session.receive(0, codec.QueryRefused(request_id, "not leader", None), 3.1)
    session.receive(2, codec.LeaderIs(3, 2), 3.3)
    session.advance(3.4)
    ((node_id, asked),) = net.take(codec.Query)
    session.receive(2, codec.Answers(asked.request_id, [1, 2]), 3.5)

    assert (node_id, asked.count) == (2, 2)
    assert [values for _, values in session.answers] == [[1, 2]]


def test_a_client_sleeps_while_a_former_leader_is_at_its_read_and_nobody_leads() -> None:
    net = Net()
    session, _ = read_when_leaders_change(net, 90.0)
    session.disconnected(1, 3.1)
    session.advance(3.2)

    assert session.deadline_s() > 3.2


# --- What is watched ---


def said_of_watches(session: ClientSession) -> list[tuple[int, int, list[str], str]]:
    return [(said.watch_id, said.index, said.values, said.error) for said in session.published]


def test_only_the_leader_that_was_asked_last_is_heard_by_a_watch() -> None:
    """One that led before may have fetched a state, and no longer hold what this one is about to say."""
    net = Net()
    session = net.open()
    session.watch(7, "t", 0)
    first = net.take(codec.Watch)[0][1].watch_id
    session.receive(0, codec.Published(first, 5, ["a"]), 0.0)
    session.receive(1, codec.LeaderIs(2, 1), 0.0)
    called_off, (asked, watch) = net.take_any(codec.Watch, codec.Unwatch)
    assert called_off == (0, codec.Unwatch(first))
    assert (asked, watch.topic, watch.from_index) == (1, "t", 6)

    session.receive(0, codec.Published(first, 9, ["c"]), 0.0)
    session.receive(0, codec.Published(first, -1, [], "what was published before index 8 is no longer held"), 0.0)
    session.receive(1, codec.Published(watch.watch_id, 7, ["b"]), 0.0)
    session.receive(1, codec.Published(watch.watch_id, 9, ["c"]), 0.0)

    assert said_of_watches(session) == [(7, 5, ["a"], ""), (7, 7, ["b"], ""), (7, 9, ["c"], "")]


def test_what_a_node_was_asked_when_it_led_before_does_not_count_when_it_leads_again() -> None:
    """It sent on all the time, and nobody took it: the next of that would leave a gap (seed 1070)."""
    net = Net()
    session = net.open()
    session.watch(7, "t", 0)
    [(_, first)] = net.take(codec.Watch)
    session.receive(0, codec.Published(first.watch_id, 5, ["a"]), 0.0)
    session.receive(1, codec.LeaderIs(2, 1), 0.0)
    session.receive(0, codec.Published(first.watch_id, 7, ["b"]), 0.0)
    net.take(codec.Watch)
    session.receive(0, codec.LeaderIs(3, 0), 0.0)
    [(_, again)] = net.take(codec.Watch)

    session.receive(0, codec.Published(first.watch_id, 9, ["c"]), 0.0)  # left before it was asked again
    for index, value in ((7, "b"), (9, "c")):
        session.receive(0, codec.Published(again.watch_id, index, [value]), 0.0)

    assert again.from_index == 6
    assert said_of_watches(session) == [(7, 5, ["a"], ""), (7, 7, ["b"], ""), (7, 9, ["c"], "")]


def test_a_watch_that_ends_is_called_off_where_it_was_asked_for() -> None:
    net = Net()
    session = net.open()
    session.watch(7, "t", None)
    [(_, watch)] = net.take(codec.Watch)
    session.unwatch(7)
    session.receive(0, codec.Published(watch.watch_id, 5, ["a"]), 0.0)
    assert net.take(codec.Unwatch) == [(0, codec.Unwatch(watch.watch_id))]
    assert said_of_watches(session) == []
