"""Calls end by their deadlines, whatever happens in their process: the client's thread, with a node made by hand."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from actorraft import ActorRaftError, OutcomeUnknown, Unavailable, UsageError, codec
from actorraft.client.client import Client
from actorraft.client.thread import ClientThread
from actorraft.futures import ResultFuture
from actorraft.ports import Envelope, Kinds
from tests.client.helpers import ByHand
from tests.cluster.helpers import eventually
from transports.sockets import LinkTimes
from transports.zeromq import ZeroMQClientChannel, ZeroMQMailbox


class Node(ByHand):
    """A channel to one node that leads and answers every command with 1 and every read with 2, unless it is mute."""

    def __init__(self) -> None:
        super().__init__()
        self.mute = False

    def set_endpoints(self, endpoints: Mapping[int, str]) -> None:
        self.queue.put(Envelope(Kinds.CONNECTED, 0))

    def send(self, node_id: int, frame: bytes) -> bool:
        match codec.decode_request(frame):
            case codec.Hello():
                self.say(0, codec.LeaderIs(1, 0))
            case codec.Register(nonce=nonce):
                self.say(0, codec.Registered(nonce, 5))
            case codec.Commands(first_sequence=first, count=count) if not self.mute:
                self.say(0, codec.Results(5, first, [1] * count, 7))
            case codec.Query(request_id=request_id, count=count) if not self.mute:
                self.say(0, codec.Answers(request_id, [2] * count))
        return True


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def client(node: Node) -> Iterator[Client[Any]]:
    with Client[Any](ClientThread({0: "x"}, lambda: node)) as client:
        client.wait_for_leader(5.0)
        yield client


def raises(error: BaseException) -> Callable[[Any], None]:
    def callback(_: Any) -> None:
        raise error

    return callback


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError(), BaseException()])
@pytest.mark.parametrize("call", ["submit", "query", "status"])
def test_whatever_a_callback_raises_the_next_call_is_served(
    client: Client[Any], error: BaseException, call: str
) -> None:
    future = {
        "submit": lambda: client.submit("a"),
        "query": lambda: client._query("a", "linearizable", "leader", None, 5.0),
        "status": lambda: client.ask_node(9, "status", {}, 0.01),
    }[call]()
    future.add_done_callback(raises(error))
    future.exception(5.0)

    assert client.execute("b") == 1
    assert client.query("b") == 2


def test_a_callback_that_holds_up_the_thread_does_not_hold_up_a_call_for_ever(
    client: Client[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actorraft.futures.LATE_S", 0.05)
    let_go, held = threading.Event(), threading.Event()
    client.submit("a").add_done_callback(lambda _: (held.set(), let_go.wait(20.0)))
    held.wait(5.0)
    try:
        with pytest.raises(OutcomeUnknown, match="held up"):
            client.execute("b", timeout=0.05)
        with pytest.raises(Unavailable, match="held up"):
            client.query("b", timeout=0.05)
    finally:
        let_go.set()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TimeoutError("a signal handler's"), RuntimeError("no thread")])
@pytest.mark.parametrize("where", ["before it runs", "once it runs", "while it opens its channel"])
def test_a_client_that_is_interrupted_while_its_thread_is_started_leaves_neither_thread_nor_channel(
    error: BaseException, where: str, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    used_in: list[threading.Thread] = []
    opens, go_on = threading.Event(), threading.Event()
    close, start = node.close, threading.Thread.start

    def open_channel() -> Node:
        used_in.append(threading.current_thread())
        opens.set()
        assert go_on.wait(20.0)
        return node

    def start_and_raise(thread: threading.Thread) -> None:
        if thread.name != "actorraft-client":
            start(thread)
            return
        if where != "before it runs":
            start(thread)
        if where == "once it runs":
            go_on.set()
        elif where == "while it opens its channel":
            assert opens.wait(20.0)
        raise error

    monkeypatch.setattr(node, "close", lambda: (used_in.append(threading.current_thread()), close()))
    monkeypatch.setattr(threading.Thread, "start", start_and_raise)
    before = set(threading.enumerate())
    with pytest.raises(type(error)):
        ClientThread({0: "x"}, open_channel)
    go_on.set()
    eventually(lambda: not [each for each in set(threading.enumerate()) - before if each.name == "actorraft-client"])
    assert len(used_in) == (0 if where == "before it runs" else 2), "it is closed by who opened it"
    assert len(set(used_in)) < 2
    assert threading.current_thread() not in used_in


@pytest.mark.parametrize("mute", [True, False])
def test_the_future_of_a_client_that_nobody_has_any_more_ends(mute: bool) -> None:
    def fire() -> ResultFuture[Any]:
        node = Node()
        node.mute = mute
        client = Client[Any](ClientThread({0: "x"}, lambda: node))
        client.wait_for_leader(5.0)
        threads.append(client._thread)
        return client.submit("a", timeout=2.0 if mute else 5.0)

    threads: list[ClientThread] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        future = fire()
        gc.collect()
    if mute:
        with pytest.raises(OutcomeUnknown):
            future.result(10.0)
    else:
        assert future.result(5.0) == 1
    deadline_s = time.monotonic() + 5.0
    while threads[0].is_alive() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert not threads[0].is_alive()  # it ends with its last call


class ClosingQueue(deque[Any]):
    """Has the client closed by somebody just before something is put into it."""

    def __init__(self, client: Client[Any]) -> None:
        super().__init__()
        self.client = client

    def append(self, what: Any, /) -> None:
        self.client.close()
        super().append(what)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.query("q", timeout=1.0),
        lambda client: client.status(timeout=1.0),
        lambda client: client.ask_node(0, "digest", {}, 1.0).result(5.0),
        lambda client: client.watch("topic").get(5.0),
        lambda client: client._thread.set_endpoints({1: "y"}, {}),
    ],
)
def test_whatever_races_with_close_is_refused_or_ends(client: Client[Any], call: Callable[[Client[Any]], Any]) -> None:
    client._thread._requests = ClosingQueue(client)

    with pytest.raises((ActorRaftError, StopIteration)):
        call(client)


def test_a_call_after_the_end_is_refused_by_name(client: Client[Any]) -> None:
    client.close()
    for call in (client.execute, client.query, client.ask_node):
        with pytest.raises(UsageError, match="closed"):
            call(0, "status", {}, 1.0) if call == client.ask_node else call("a")


@pytest.mark.parametrize("clock", ["monotonic", "time", "perf_counter"])
def test_a_clock_that_a_test_has_frozen_stops_no_call(
    client: Client[Any], node: Node, clock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.mute = True
    monkeypatch.setattr(time, clock, lambda: 1_700_000_000.0)
    with pytest.raises(OutcomeUnknown):
        client.execute("a", timeout=0.5)
    with pytest.raises(Unavailable):
        client.query("a", timeout=0.1)
    with pytest.raises(TimeoutError):
        client.events().get(0.01)


def in_a_fork(act: Callable[[], bool]) -> bool:
    """Whether `act` is true in a forked child, within 10 s."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        good = False
        try:
            good = act()
        finally:
            os._exit(0 if good else 1)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("times", [1, 2])
def test_a_forked_child_goes_on_with_a_session_of_its_own(times: int) -> None:
    with Client[Any](ClientThread({0: "x"}, Node)) as client:
        client.wait_for_leader(5.0)
        assert client.execute("a") == 1

        def use(left: int) -> bool:
            served = client.execute("b") == 1 and client.query("b") == 2 and client.leader() == 0
            return served and (left == 1 or in_a_fork(lambda: use(left - 1)))

        assert in_a_fork(lambda: use(times))
        assert client.execute("a") == 1


def test_what_was_outstanding_at_a_fork_ends_in_the_child_and_goes_on_in_the_parent(
    client: Client[Any], node: Node
) -> None:
    node.mute = True
    called: list[Any] = []
    command = client.submit("a", timeout=60.0)
    command.add_done_callback(called.append)
    read = client._query("a", "linearizable", "leader", None, 60.0)
    stream, watched = client.events(), client.watch("topic")
    while client._thread._inbox or client._thread._requests:
        time.sleep(0.001)

    def ends() -> bool:
        assert isinstance(command.exception(1.0), OutcomeUnknown)
        assert isinstance(read.exception(1.0), Unavailable)
        for ended in (stream, watched):
            with pytest.raises((StopIteration, UsageError)):
                ended.get(1.0)
        return called == []  # it is the parent's to call

    assert in_a_fork(ends)
    assert not command.done()
    assert not read.done()
    client.close()
    assert isinstance(command.exception(5.0), OutcomeUnknown)
    assert called == [command]


def test_a_fork_in_a_callback_and_in_another_thread_works_too() -> None:
    with Client[Any](ClientThread({0: "x"}, Node)) as client:
        client.wait_for_leader(5.0)
        found: list[bool] = []

        def fork(_: Any = None) -> None:
            found.append(in_a_fork(lambda: client.submit("b").result(5.0) == 1))

        client.submit("a").add_done_callback(fork)
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        assert client.execute("c") == 1
        assert found == [True, True]


def test_a_thread_that_ends_before_it_begins_is_told_of_instead_of_waited_for(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*_: Any) -> Any:
        raise RuntimeError("a trace function of the user's")

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    threading.settrace(ends)
    try:
        with pytest.raises(Unavailable, match="ended before it could open its links"):
            ClientThread({0: "x"}, lambda: node)
    finally:
        threading.settrace(None)  # type: ignore[arg-type]


def test_a_signal_handler_calls_in_the_middle_of_any_line_of_a_call(client: Client[Any]) -> None:
    """Single-stepped: at every line of ours that a call runs in its thread, a handler makes calls of its own."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(sys.modules[Client.__module__].__file__ or "")))
    lines = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(package):
            return None
        if event == "line":
            lines += 1
            sys.settrace(None)
            assert client.execute("inner", timeout=5.0) == 1
            if lines % 5 == 0:
                assert client.query("inner", timeout=5.0) == 2
            sys.settrace(trace)
        return trace

    sys.settrace(trace)
    try:
        client.execute("outer")
        client.query("outer")
        client.wait_for_leader()
        client.status(timeout=0.05)
        with pytest.raises(TimeoutError):
            client.events().get(0.0)
    finally:
        sys.settrace(None)
    assert lines > 100


@pytest.mark.parametrize(
    ("timeout", "error"),
    [("x", TypeError), (True, TypeError), ([], TypeError), (float("nan"), ValueError), (-1, ValueError)],
)
def test_a_timeout_that_is_none_is_refused_by_name(client: Client[Any], timeout: Any, error: type[Exception]) -> None:
    for call in (
        lambda: client.submit("a", timeout=timeout),
        lambda: client.query("a", timeout=timeout),
        lambda: client.status(timeout=timeout),
        lambda: client.wait_for_leader(timeout),
        lambda: client.take_snapshot(timeout=timeout),
    ):
        with pytest.raises(UsageError, match="timeout") as caught:
            call()
        assert isinstance(caught.value, error)


def wait_for(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 10.0
    while not holds():
        assert time.monotonic() < until_s
        time.sleep(0.001)


@pytest.mark.parametrize("role", ["read", "write"])
def test_what_a_client_s_role_does_not_allow_is_refused_at_once_and_takes_nothing_else_down(
    client: Client[Any], node: Node, role: str
) -> None:
    node.mute = True
    beside = client._thread.query(client._encoder.encode_call("get", ("x",), {}), "linearizable", "leader", None, 20.0)
    node.queue.put(Envelope(Kinds.CONNECTED, 0, role.encode()))
    wait_for(lambda: client._thread._role == role)
    sent: list[bytes] = []
    node.send = lambda node_id, frame: sent.append(frame) is None  # type: ignore[method-assign,func-returns-value]
    with pytest.raises(UsageError, match=f"role {role} sends plain data only"):
        client.query(len)
    if role == "read":
        with pytest.raises(UsageError, match="role read may not send commands"):
            client.submit_call("set", ("x", 1), {}, 5.0)
    else:
        with pytest.raises(UsageError, match="role write sends plain data only"):
            client.submit(len)
    assert not sent
    assert not beside.done()


def test_a_command_says_where_it_was_applied(client: Client[Any]) -> None:
    future = client.submit("a")

    assert future.index is None or future.done()
    assert (future.result(5.0), future.index) == (1, 7)


def test_a_future_is_no_argument(client: Client[Any]) -> None:
    with pytest.raises(UsageError, match="send its result"):
        client.submit(("set", client.submit("a")))


def test_a_blocking_call_in_an_event_loop_warns_once_and_says_what_to_do(
    client: Client[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actorraft.client.client._warned_of_loop", False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # another test may have run a notebook

    async def main() -> None:
        with pytest.warns(RuntimeWarning, match="await client.submit"):
            client.execute("a")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            client.execute("a")
            assert await client.submit("a") == 1
            assert await client.query_async("a") == 2

    asyncio.run(main())


def test_async_with_and_async_for() -> None:
    async def main() -> None:
        async with Client[Any](ClientThread({0: "x"}, Node)) as client:
            stream = client.events()
            client._thread.events.emit("leader", 0, "leads")
            seen = [event.kind async for event in _first(stream, 1)]
            assert seen == ["leader"]
            ends = asyncio.create_task(_collect(client.watch("topic")))
            await asyncio.sleep(0)
        assert await asyncio.wait_for(ends, 5.0) == []

    asyncio.run(main())


async def _first(stream: Any, count: int) -> Any:
    async for one in stream:
        yield one
        count -= 1
        if not count:
            return


async def _collect(stream: Any) -> list[Any]:
    return [one async for one in stream]


def test_nodes_that_answer_nothing_are_not_called_leaderless() -> None:
    class Deaf(Node):
        def send(self, node_id: int, frame: bytes) -> bool:
            return True

    with Client[Any](ClientThread({0: "x"}, Deaf)) as client:
        with pytest.raises(Unavailable, match="another version of ActorRaft"):
            client.wait_for_leader(0.2)
        with pytest.raises(Unavailable, match="answered nothing"):
            client.execute("a", timeout=0.1)
        with pytest.raises(Unavailable, match=r"within 0\.123 s"):
            client.wait_for_leader(0.12345678)


def test_a_cluster_says_how_large_a_frame_may_be(client: Client[Any], node: Node) -> None:
    node.say(0, codec.LeaderIs(1, 0, 64 << 10))
    node.say(0, codec.LeaderIs(2, 0, 64 << 10))
    while client._thread.term < 2:
        time.sleep(0.001)

    with pytest.raises(UsageError, match="frame_bytes_max"):
        client.submit("x" * (64 << 10))
    assert [future.result(5.0) for future in [client.submit("x" * 1000) for _ in range(500)]] == [1] * 500


def test_a_program_that_leaves_in_the_middle_of_calls_ends() -> None:
    """Interpreter exit with calls outstanding, no close."""
    program = (
        "from tests.client.test_thread import *\n"
        "node = Node(); node.mute = True\n"
        "client = Client(ClientThread({0: 'x'}, lambda: node)); client.wait_for_leader(5.0)\n"
        "futures = [client.submit('a', timeout=None) for _ in range(10)]\n"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=20).returncode == 0


@pytest.mark.parametrize("error", [SystemExit("thrown in"), KeyboardInterrupt(), RuntimeError("of ours")])
def test_a_client_whose_thread_was_ended_by_an_error_says_by_which(
    node: Node, client: Client[Any], error: BaseException
) -> None:
    """As by a debugger or a tool for time limits that throws exceptions into threads."""
    node.mute = True
    outstanding = client.submit("a")
    node.wait = raises(error)  # type: ignore[method-assign]
    node.wake()

    with pytest.raises((OutcomeUnknown, Unavailable)):
        outstanding.result(5.0)
    for call in (lambda: client.execute("b"), lambda: client.query("b")):
        with pytest.raises(UsageError, match=f"this client is closed: its I/O thread met {type(error).__name__}"):
            call()


def test_a_client_that_somebody_would_send_says_what_to_send(client: Client[Any]) -> None:
    for copies in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="send its endpoints"):
            copies(client)


@pytest.mark.parametrize("node_id", [[0], {}, "0", 0.0, None, True, float("nan")])
def test_what_is_no_node_is_refused_to_who_asks_and_ends_no_thread(client: Client[Any], node_id: Any) -> None:
    for ask in (client.digest, lambda each: client.ask_node(each, "status", {}, 1.0)):
        with pytest.raises(UsageError, match="a node's id, not"):
            ask(node_id)
    assert client.execute("b") == 1


@pytest.mark.parametrize("arguments", [{"a": object()}, {"a": [1j]}, {"a": 1 << 80}, {"a": "\ud800"}])
def test_what_no_frame_holds_is_refused_to_who_asks_and_ends_no_thread(client: Client[Any], arguments: Any) -> None:
    with pytest.raises(UsageError, match="a node cannot be asked this"):
        client.ask_node(0, "status", arguments, 1.0)
    assert client.execute("b") == 1


# --- Links that are taken away while the node lives and leads on ---


UNHURRIED = LinkTimes(heartbeat_ms=20_000, timeout_ms=60_000)  # no link ends because this process gets no turn


def channel() -> ZeroMQClientChannel:
    return ZeroMQClientChannel(times=UNHURRIED)


@pytest.fixture
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as directory:
        served = Served(Path(directory))
        yield served
        served.mailbox.close()


class Served:
    """A node's real mailbox, which has two addresses."""

    def __init__(self, directory: Path) -> None:
        (directory / "one").mkdir(mode=0o700)
        (directory / "two").mkdir(mode=0o700)
        self.at, self.also_at = (f"ipc://{directory}/{name}/node" for name in ("one", "two"))
        self.mailbox = ZeroMQMailbox(
            0,
            incarnation=bytes(8),
            cluster_id=bytes(8),
            peer_endpoint=None,
            client_endpoint=self.at,
            frame_bytes_max=1 << 16,
            times=UNHURRIED,
        )
        (directory / "two" / "node").symlink_to(directory / "one" / "node")
        self.asked: list[tuple[bytes, codec.Request]] = []

    def until(self, kind: type[codec.Request], times: int) -> list[Any]:
        """Lead, and wait until it was asked so often for something of a kind: by whom, and for what."""
        deadline_s = time.monotonic() + 20.0
        while len(asked := [each for each in self.asked if type(each[1]) is kind]) < times:
            assert time.monotonic() < deadline_s, f"only {self.asked}"
            for envelope in self.mailbox.wait(0.01):
                if envelope.kind == Kinds.CLIENT:
                    request = codec.decode_request(envelope.frame)
                    self.asked.append((envelope.sender, request))
                    if type(request) is codec.Hello:
                        self.mailbox.send_client(envelope.sender, codec.encode(codec.LeaderIs(1, 0)))
        return asked


def test_a_watch_goes_on_though_its_link_is_made_anew_and_the_same_node_leads(served: Served) -> None:
    thread = ClientThread({0: served.at}, channel)
    try:
        stream = thread.watch("t", None)
        served.until(codec.Watch, 1)
        thread.set_endpoints({0: served.also_at}, {})
        (first, _), (second, watch) = served.until(codec.Watch, 2)
        assert first != second, "the node knows it as another client"
        published = codec.Published(watch.watch_id, 7, [1])
        served.mailbox.send_client(second, codec.encode(published))
        assert stream.get(10.0).index == 7
    finally:
        thread.close()


def test_a_read_asked_of_a_place_to_begin_at_that_is_no_place_any_more_is_asked_elsewhere(served: Served) -> None:
    thread = ClientThread({-1: served.at}, channel)
    try:
        future = thread.query(b"\x01", "stale", "any", None, None)
        served.until(codec.Query, 1)
        thread.set_endpoints({0: served.also_at}, {})
        _, (second, query) = served.until(codec.Query, 2)
        served.mailbox.send_client(second, codec.encode(codec.Answers(query.request_id, [5])))
        assert future.result(10.0) == 5
    finally:
        thread.close()
