"""Spans of a client's commands, with OpenTelemetry's API, where the program has set up a provider of traces.

The span of a command begins as it is submitted and ends with its future; whether it is sampled, the program's sampler
says here, for all that follows. What is sampled goes along in its frame (codec.py), and the node that takes it adds
spans of its own below it (node/tracing.py).

Nothing is imported that the program has not imported itself, and a client that is made before there is a provider
does not trace: then this costs a comparison a command.

Source:     docs/operations.md, "Traces"; docs/decisions/0041.
Threads:    a span begins in the caller's thread and ends where its future does.
Invariant:  a tracer is the program's code: what it raises ends tracing, never a command.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from actorraft.errors import ActorRaftError
from actorraft.futures import ResultFuture, log_raised
from actorraft.loggers import guarded_logger

if TYPE_CHECKING:
    from opentelemetry.trace import Span

logger = guarded_logger("actorraft")


class Tracing:
    """The traced commands of one client that are under way.

    Attributes:
        traceparents: future of a sampled command -> what says so to others, as W3C's header of that name does.
    """

    def __init__(self) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        from actorraft import __version__

        self.traceparents: dict[Any, str] = {}
        self._trace = trace
        self._tracer = trace.get_tracer("actorraft", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._broken = False

    @classmethod
    def begin(cls) -> Tracing | None:
        """Return one if this program traces; else None."""
        api = sys.modules.get("opentelemetry.trace")
        try:
            if api is None or isinstance(api.get_tracer_provider(), api.ProxyTracerProvider):
                return None
            return cls()
        except Exception as error:
            log_raised("OpenTelemetry (commands are not traced)", error)
            return None

    def submitted(self, future: ResultFuture[Any], name: str | type) -> None:
        """A command is about to be sent: begin its span, and have it end with its future."""
        if self._broken:
            return
        trace = self._trace
        try:
            named = name if isinstance(name, str) else type.__getattribute__(name, "__name__")
            attributes = {"actorraft.command": named}
            span = self._tracer.start_span("submit", kind=trace.SpanKind.CLIENT, attributes=attributes)
            if not span.is_recording():
                return
            if span.get_span_context().trace_flags.sampled:
                carrier: dict[str, str] = {}
                self._propagator.inject(carrier, trace.set_span_in_context(span))
                self.traceparents[future] = carrier["traceparent"]
        except Exception as error:  # in the caller's own thread, where Ctrl-C is the caller's too
            self._give_up(error)
            self.traceparents.pop(future, None)
        else:
            future.add_done_callback(partial(self._ended, span))

    def _ended(self, span: Span, future: Future[Any]) -> None:
        self.traceparents.pop(future, None)
        try:
            error = future.exception()
            index = getattr(future, "index", None)
            if index is not None:
                span.set_attribute("actorraft.index", index)
            if error is not None:
                name = type.__getattribute__(type(error), "__qualname__")
                span.set_attribute("error.type", name)
                span.set_status(self._trace.StatusCode.ERROR, str(error) if isinstance(error, ActorRaftError) else name)
            span.end()
        except BaseException as raised:
            self._give_up(raised)

    def _give_up(self, error: BaseException) -> None:
        if not self._broken:
            self._broken = True
            log_raised("the program's tracer (this client's commands are not traced any more)", error)
