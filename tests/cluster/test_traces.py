"""A command is traced from its client through the leader's process, by OpenTelemetry's own variables."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from statemachines.kv import KVStore
from tests.cluster.helpers import Spawn, eventually

pytestmark = pytest.mark.cluster


def test_the_spans_of_a_command_s_leader_are_below_its_client_s(
    raft_cluster: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")

    cluster = raft_cluster(KVStore, 3)
    leader = cluster.wait_for_leader()
    assert cluster.proxy().set("x", 1)

    [submit] = eventually(exporter.get_finished_spans)
    assert submit.context is not None
    parent, in_trace = f'"parent_id": "0x{submit.context.span_id:016x}"', f"0x{submit.context.trace_id:032x}"

    def spans() -> list[str]:
        said = "\n".join(cluster.nodes[leader].logs(1000))
        return [each for each in re.split(r"^\{$", said, flags=re.MULTILINE) if parent in each and in_trace in each]

    eventually(lambda: len(spans()) == 3, what="spans of append, commit and apply")
    assert [re.findall(r'"name": "(\w+)"', each)[0] for each in spans()] == ["append", "commit", "apply"]
    assert all(f'"actorraft.node_id": {leader}' in each for each in spans())
    others = [each for each in cluster.nodes if each != leader]
    assert not any(in_trace in line for each in others for line in cluster.nodes[each].logs(1000))


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """Something that takes spans as a collector does, by OTLP over HTTP; yield its endpoint, and what came."""
    came: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            came.extend(span for one in request.resource_spans for scope in one.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", came
        finally:
            server.shutdown()
            thread.join()


def test_a_collector_gets_the_client_s_spans_and_below_each_those_of_the_leader(
    raft_cluster: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector() as (endpoint, came):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
        cluster = raft_cluster(KVStore, 3)
        for number in range(10):
            assert cluster.proxy().set("x", number)

        eventually(lambda: len(came) >= 40, what="40 spans at the collector")
        cluster.close()
        provider.shutdown()
    submits = {each.span_id: each for each in came if not each.parent_span_id}
    below = [each for each in came if each.parent_span_id]
    assert len(submits) == 10
    told = {(each.name, each.parent_span_id) for each in below}  # what another leader does again is told again
    assert sorted(name for name, _ in told) == ["append"] * 10 + ["apply"] * 10 + ["commit"] * 10
    assert all(each.trace_id == submits[each.parent_span_id].trace_id for each in below)
