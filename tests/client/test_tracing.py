"""What a client's commands are traced as, with a node made by hand; and that no tracer keeps a command from its outcome."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased

from actorraft import OutcomeUnknown, codec
from actorraft.client.client import Client
from actorraft.client.session import TRACES_MAX, ClientSession
from actorraft.client.thread import HEAD_BYTES, ClientThread
from actorraft.futures import ResultFuture
from tests.client.test_thread import Node

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Connect = Callable[[Any], Client[Any]]


class Hearing(Node):
    """A node that keeps the traces of the frames it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.traces: list[list[str]] = []

    def send(self, node_id: int, frame: bytes) -> bool:
        request = codec.decode_request(frame)
        if isinstance(request, codec.Commands):
            self.traces.append(request.traces)
        return super().send(node_id, frame)


@pytest.fixture
def node() -> Hearing:
    return Hearing()


@pytest.fixture
def connect(node: Hearing, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Make a client in a program whose provider of traces is the one given."""
    clients: list[Client[Any]] = []

    def connect(provider: Any) -> Client[Any]:
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
        clients.append(Client[Any](ClientThread({0: "x"}, lambda: node)))
        clients[0].wait_for_leader(5.0)
        return clients[0]

    yield connect
    for client in clients:
        client.close()


def recording(sampler: Any = ALWAYS_ON) -> tuple[TracerProvider, InMemorySpanExporter]:
    provider, exporter = TracerProvider(sampler=sampler, shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def ended(exporter: InMemorySpanExporter, count: int) -> list[ReadableSpan]:
    """A future's callbacks are called after those who wait have been woken."""
    until_s = time.monotonic() + 30.0
    while len(spans := exporter.get_finished_spans()) < count:
        assert time.monotonic() < until_s, f"{len(spans)} of {count} spans have ended"
        time.sleep(0.001)
    return list(spans)


def test_a_command_s_span_is_below_its_caller_s_ends_with_its_future_and_goes_along(
    node: Hearing, connect: Connect
) -> None:
    provider, exporter = recording()
    client = connect(provider)

    with provider.get_tracer("a program").start_as_current_span("order") as order:
        assert client.submit_call("deposit", ("ann", 10), {}, 5.0).result() == 1

    span = next(each for each in ended(exporter, 2) if each.name == "submit")
    assert span.parent == order.get_span_context()
    assert span.attributes == {"actorraft.command": "deposit", "actorraft.index": 7}
    assert span.context is not None
    [[told]] = node.traces
    assert told.rpartition("-")[0] == f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}"


def test_what_the_program_s_sampler_leaves_out_is_not_told_of(node: Hearing, connect: Connect) -> None:
    provider, exporter = recording(ParentBased(ALWAYS_OFF))

    assert connect(provider).execute("a") == 1

    assert node.traces == [[]]
    assert exporter.get_finished_spans() == ()


def test_an_outcome_that_is_an_error_is_in_the_span(node: Hearing, connect: Connect) -> None:
    provider, exporter = recording()
    client, node.mute = connect(provider), True

    with pytest.raises(OutcomeUnknown):
        client.execute("a", timeout=0.05)

    [span] = ended(exporter, 1)
    assert span.attributes == {"actorraft.command": "str", "error.type": "OutcomeUnknown"}
    assert span.status.status_code is trace.StatusCode.ERROR


def test_a_client_that_is_closed_leaves_no_span_open(node: Hearing, connect: Connect) -> None:
    provider, exporter = recording()
    client, node.mute = connect(provider), True
    client.submit("a")

    client.close()

    assert [each.name for each in ended(exporter, 1)] == ["submit"]


def test_a_program_without_a_provider_is_not_traced(node: Hearing, connect: Connect) -> None:
    client = connect(trace.ProxyTracerProvider())

    assert client._thread._tracing is None
    assert client.execute("a") == 1
    assert node.traces == [[]]


class Raising(SpanProcessor):
    """Raises where it is told to."""

    def __init__(self, place: str, error: BaseException) -> None:
        self.place, self.error = place, error

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self.place == "begin":
            raise self.error

    def on_end(self, span: Any) -> None:
        if self.place == "end":
            raise self.error


@pytest.mark.parametrize(
    ("place", "error"),
    [("begin", ValueError("no")), ("end", ValueError("no")), ("end", SystemExit(3)), ("end", KeyboardInterrupt())],
)
def test_a_tracer_that_raises_is_let_go_and_said_so_once(
    connect: Connect, caplog: pytest.LogCaptureFixture, place: str, error: BaseException
) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Raising(place, error))
    client = connect(provider)

    with caplog.at_level(logging.ERROR, "actorraft"):
        assert [client.execute("a") for _ in range(5)] == [1] * 5
        client.close()  # the last callback has been called

    assert len([record for record in caplog.records if "tracer" in record.message]) == 1


def test_a_frame_tells_of_as_many_traces_as_its_head_has_room_for() -> None:
    futures: list[ResultFuture[Any]] = [ResultFuture() for _ in range(TRACES_MAX + 5)]
    sent: list[bytes] = []
    session = ClientSession(
        lambda node_id, frame: sent.append(frame) is None,
        nonce=1,
        make_future=ResultFuture,
        traceparents=dict.fromkeys(futures[1:], TRACEPARENT),
    )
    session.connected(0, 0.0)
    session.receive(0, codec.LeaderIs(1, 0), 0.0)
    session.submit([(b"\x01", future, 9e9) for future in futures])
    session.advance(0.0)
    session.receive(0, codec.Registered(1, 2**63), 0.0)
    session.advance(0.0)

    frame = codec.decode_request(sent[-1])

    assert isinstance(frame, codec.Commands)
    assert frame.traces == [TRACEPARENT] * TRACES_MAX
    assert len(sent[-1]) - len(futures) < HEAD_BYTES


class CommandsBefore(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """The same, as versions without traces know it."""

    client_id: int
    first_sequence: int
    lowest_unanswered: int
    count: int
    body: bytes


def test_versions_without_traces_and_with_them_read_each_other_s_frames() -> None:
    before, after = CommandsBefore(1, 2, 3, 4, b"x"), codec.Commands(1, 2, 3, 4, b"x", [TRACEPARENT])

    assert msgspec.msgpack.decode(codec.encode(after), type=CommandsBefore) == before
    assert codec.decode_request(msgspec.msgpack.encode(before)) == codec.Commands(1, 2, 3, 4, b"x")
