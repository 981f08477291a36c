"""A command is traced from its client through the leader's process, by OpenTelemetry's own variables."""

from __future__ import annotations

import re

import pytest
from opentelemetry import trace
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
