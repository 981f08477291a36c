"""Spans of what a node does with commands that their clients trace, below the clients' own (client/tracing.py).

    append   from when the frame came until it is on this node's disk
    commit   from there until a majority has it
    apply    from there until the machine has done it

The loop notes times, one list a frame that says it is traced. Spans are made of them in a thread of their own, so that
no tracer or exporter holds up the loop, whatever it does. It is the leader that takes frames, so they are its spans.

Where the environment has OTEL_TRACES_EXPORTER, a node sets up a provider that exports there, unless the machine's
module has set up one already; else nothing of OpenTelemetry is imported here.

Source:     docs/operations.md, "Traces"; docs/decisions/0041; OpenTelemetry's specification of environment variables.
Threads:    the node's loop, but for `_make_spans`.
Invariant:  a tracer is a guest: what it raises ends tracing here, and nothing else.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections import Counter, deque
from importlib.metadata import entry_points
from time import time_ns
from typing import Any, Final

from actorraft import __version__
from actorraft.futures import log_raised
from actorraft.loggers import guarded_logger

logger = guarded_logger("actorraft")

UNDER_WAY_MAX: Final = 1_000  # traced frames that are appended and not applied; more are not traced
WAITING_MAX: Final = 1_000  # traced frames whose spans wait to be made; likewise
TRACES_MAX: Final = 16  # of a frame; a client sends no more (client/session.py)
END_S: Final = 1.0  # what a node that ends gives an exporter for what it has not sent
STEPS: Final = ("append", "commit", "apply")
NOT_MADE: Final = "spans of a traced frame"
PROTOCOLS: Final = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}  # what "otlp" is, by its protocol


class Entry:
    """One traced frame, and when what happened to it."""

    __slots__ = ("index", "term", "times_ns", "traces")

    def __init__(self, index: int, term: int, traces: list[str]) -> None:
        self.index = index
        self.term = term
        self.traces = traces
        self.times_ns = [time_ns()]  # it came, was written, was committed, was applied, as far as it got


class Traces:
    """The traced frames that a node has under way, oldest first.

    Args:
        node_id: the node's.
        counts: what was dropped, by name.
    """

    def __init__(self, node_id: int, counts: Counter[str]) -> None:
        self._node_id = node_id
        self._counts = counts
        self.under_way: deque[Entry] = deque()  # asked before each batch, for nothing is mostly traced
        self._waiting: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._provider: Any = None  # that this node has set up; ended with it
        self._broken = False

    def taken(self, index: int, term: int, traces: list[str]) -> None:
        """A traced frame came, and is the entry at `index`."""
        if self._thread is None and not self._broken and "opentelemetry.trace" in sys.modules:
            self._thread = threading.Thread(target=self._run, name="tracing", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # user code has all the threads that there are
                self._thread = None
        if self._thread is not None:
            self.under_way.append(Entry(index, term, traces[:TRACES_MAX]))
            if len(self.under_way) > UNDER_WAY_MAX:
                self.under_way.pop()
                self._counts[NOT_MADE] += 1

    def written(self, last_index: int) -> None:
        """Entries up to here are on the disk."""
        self._passed(1, last_index)

    def committed(self, last_index: int) -> None:
        """Entries up to here are committed."""
        self._passed(2, last_index)

    def applied(self, last_index: int) -> None:
        """Entries up to here are applied."""
        self._passed(3, last_index)
        while self.under_way and self.under_way[0].index <= last_index:
            self._make(self.under_way.popleft())

    def replaced_from(self, first_index: int) -> None:
        """Another leader replaced entries from here on; their clients ask there."""
        while self.under_way and self.under_way[-1].index >= first_index:
            self._make(self.under_way.pop())

    def _passed(self, step: int, last_index: int) -> None:
        now_ns = time_ns()
        for entry in self.under_way:
            if entry.index > last_index:
                return
            if len(entry.times_ns) == step:
                entry.times_ns.append(now_ns)

    def _make(self, entry: Entry) -> None:
        if self._waiting.qsize() < WAITING_MAX:
            self._waiting.put(entry)
        else:
            self._counts[NOT_MADE] += 1

    # --- The provider ---

    def set_up(self) -> None:
        """Set up a provider as the environment says, if it says so and nobody else has."""
        name = os.environ.get("OTEL_TRACES_EXPORTER", "none").strip()
        if name in ("", "none"):
            return
        try:
            self._set_up(name)
        except ImportError as error:
            logger.warning(
                "OTEL_TRACES_EXPORTER is %r, and nothing is traced: %s; pip install 'actorraft[tracing]'", name, error
            )
        except BaseException as error:
            log_raised(f"what OTEL_TRACES_EXPORTER={name!r} names (nothing is traced)", error)

    def _set_up(self, name: str) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            return
        if name == "otlp":
            general = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
            protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", general)
            name = PROTOCOLS.get(protocol, f"otlp over {protocol}")
        found = entry_points(group="opentelemetry_traces_exporter", name=name)
        if not found:
            raise ImportError(f"no exporter {name!r} is installed")
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(next(iter(found)).load()()))
        trace.set_tracer_provider(provider)
        self._provider = provider

    def close(self) -> None:
        """Give what has not been sent a moment to leave."""
        thread = self._thread  # which forgets itself where a tracer raises
        if thread is not None:
            self._waiting.put(None)
            thread.join(END_S)

    # --- In a thread of its own ---

    def _run(self) -> None:
        try:
            self._make_spans()
            if self._provider is not None:
                self._provider.shutdown()
        except BaseException as error:
            self._broken, self._thread = True, None
            log_raised("the tracer of this process (nothing is traced here any more)", error)

    def _make_spans(self) -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        tracer = trace.get_tracer("actorraft", __version__)
        propagator = TraceContextTextMapPropagator()
        while (entry := self._waiting.get()) is not None:
            about = {
                "actorraft.node_id": self._node_id,
                "actorraft.index": entry.index,
                "actorraft.term": entry.term,
            }
            times_ns = entry.times_ns
            for traceparent in entry.traces:
                parent = propagator.extract({"traceparent": traceparent}, Context())
                if not trace.get_current_span(parent).get_span_context().is_valid:
                    continue  # whatever that client said: no node begins a trace of its own
                for name, began_ns, ended_ns in zip(STEPS, times_ns, times_ns[1:], strict=False):
                    span = tracer.start_span(name, context=parent, attributes=about, start_time=began_ns)
                    span.end(end_time=ended_ns)
