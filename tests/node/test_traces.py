"""What a node makes of commands that are traced: spans below the client's, and nothing that a tracer does to its loop."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from actorraft.node import tracing
from actorraft.node.tracing import NOT_MADE, Traces

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    provider, exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


def play(traces: Traces, index: int, said: list[str]) -> None:
    traces.taken(index, 2, said)
    traces.written(index)
    traces.committed(index)
    traces.applied(index)


def wait_for(done: Callable[[], Any]) -> None:
    until_s = time.monotonic() + 30.0
    while not done():
        assert time.monotonic() < until_s, "it did not come about in time"
        time.sleep(0.001)


def test_each_traced_command_has_a_span_of_each_step_one_after_the_other(exporter: InMemorySpanExporter) -> None:
    traces = Traces(1, Counter())

    play(traces, 7, [TRACEPARENT, OTHER])

    assert not traces.under_way
    traces.close()
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["append", "commit", "apply"] * 2
    assert [f"{span.parent.span_id:016x}" for span in spans if span.parent] == [TRACEPARENT[36:52]] * 3 + [
        OTHER[36:52]
    ] * 3
    assert {span.context.trace_id for span in spans if span.context} == {int(TRACEPARENT[3:35], 16)}
    assert spans[0].end_time == spans[1].start_time
    assert spans[1].end_time == spans[2].start_time
    assert spans[0].attributes == {"actorraft.node_id": 1, "actorraft.index": 7, "actorraft.term": 2}


def test_what_another_leader_replaced_has_the_steps_it_came_to(exporter: InMemorySpanExporter) -> None:
    traces = Traces(1, Counter())
    traces.taken(7, 2, [TRACEPARENT])
    traces.taken(8, 2, [OTHER])
    traces.written(8)

    traces.replaced_from(8)
    traces.committed(7)
    traces.applied(7)

    traces.close()
    assert [span.name for span in exporter.get_finished_spans()] == ["append", "append", "commit", "apply"]


@pytest.mark.parametrize("said", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\ud800"])
def test_what_is_no_traceparent_begins_no_trace(exporter: InMemorySpanExporter, said: str) -> None:
    traces = Traces(1, Counter())

    play(traces, 7, [said, TRACEPARENT])

    traces.close()
    assert len(exporter.get_finished_spans()) == 3


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), BaseException()])
def test_a_tracer_that_raises_is_let_go_and_said_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    class Raises:
        def get_tracer(self, *_: Any, **__: Any) -> Any:
            raise error

    monkeypatch.setattr(trace, "get_tracer_provider", Raises)
    traces = Traces(1, Counter())
    with caplog.at_level(logging.ERROR, "actorraft"):
        play(traces, 7, [TRACEPARENT])
        wait_for(lambda: any("nothing is traced here any more" in record.message for record in caplog.records))

        play(traces, 8, [TRACEPARENT])

    assert not traces.under_way
    assert traces._thread is None


def test_a_tracer_that_hangs_holds_up_no_command_and_what_it_misses_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    class Hangs:
        def get_tracer(self, *_: Any, **__: Any) -> Any:
            go_on.wait()

    monkeypatch.setattr(trace, "get_tracer_provider", Hangs)
    monkeypatch.setattr(tracing, "WAITING_MAX", 2)
    monkeypatch.setattr(tracing, "UNDER_WAY_MAX", 1)
    monkeypatch.setattr(tracing, "END_S", 0.01)
    counts: Counter[str] = Counter()
    traces = Traces(1, counts)
    try:
        for index in range(5):
            play(traces, index, [TRACEPARENT])
        traces.taken(5, 2, [TRACEPARENT])
        traces.taken(6, 2, [TRACEPARENT])

        assert counts == {NOT_MADE: 4}
        traces.close()
    finally:
        go_on.set()


def test_a_process_that_has_nothing_of_opentelemetry_notes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    traces = Traces(1, Counter())

    traces.taken(7, 2, [TRACEPARENT])

    assert not traces.under_way
    traces.close()


@pytest.mark.parametrize("name", ["no such exporter", "otlp"])
def test_an_exporter_that_is_not_there_is_said_and_the_node_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", name)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "pigeons")
    with caplog.at_level(logging.WARNING, "actorraft"):
        Traces(1, Counter()).set_up()

    assert "actorraft[tracing]" in caplog.text
