"""What happens to a cluster, as it happens: `cluster.events()`; and what its machine publishes: `client.watch(topic)`.

Both are iterators, for `for` and for `async for`, that wait until there is something and end when the client is closed.
A reader that does not keep up loses the oldest events of `events()`, and is told how many; what is watched is never
lost on the way, since it can be asked for again from an index.

Threads:    a stream is fed by the I/O and monitor threads, and read by the user's; no lock is shared (bell.py).
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from actorraft.client.bell import Bell
from actorraft.client.status import html_table
from actorraft.futures import check_timeout

T = TypeVar("T")

STREAM_MAX = 10_000  # events that wait for a reader


@dataclass(frozen=True, kw_only=True)
class ClusterEvent:
    """One thing that happened.

    Attributes:
        kind: "leader", "exit", "restart", "membership", "snapshot", "difference", "hold", "disk" (it takes no
            writes, or does again), "lost log" (a node came back without entries that it had acknowledged), "missed"
            (this reader was too slow).
        node_id: whom it concerns, if anybody.
        detail: in words.
        time_s: this process's wall clock.
    """

    kind: str
    node_id: int | None = None
    detail: str = ""
    time_s: float = field(default_factory=time.time)


class Published(NamedTuple):
    """What a machine published: at which index of the log, and the event itself. Resume from `index + 1`."""

    index: int  # type: ignore[assignment]  # the field hides tuple.index, and is the better name
    event: Any


class Stream(Generic[T]):
    """An iterator that waits for what is put into it; `close` ends it."""

    bound: int | None = STREAM_MAX  # of what waits for the reader

    def __init__(self) -> None:
        self._bell = Bell()
        self._waiting: deque[T] = deque()
        self._missed = 0  # what was dropped and not told yet
        self._closed = False
        self._error: BaseException | None = None  # what the iteration ends with

    def put(self, one: T) -> None:
        """Add one; the oldest goes if the reader is too far behind."""
        if self.bound is not None and len(self._waiting) >= self.bound:
            with contextlib.suppress(IndexError):  # it was just read
                self._waiting.popleft()
                self._missed += 1
        self._waiting.append(one)
        self._bell.ring()

    def close(self, error: BaseException | None = None) -> None:
        """End the iteration once what waits is read, with `error` if there is one. Idempotent."""
        self._error = self._error or error
        self._closed = True
        self._bell.ring()

    def get(self, timeout: float | None = None) -> T:
        """Return the next one; TimeoutError if there is none within `timeout` seconds; StopIteration at the end."""
        timeout = check_timeout(timeout)
        while self._bell.wait_for(self._something, timeout):
            if self._waiting:
                with contextlib.suppress(IndexError):  # another reader was faster
                    return self._waiting.popleft()
            elif self._error is not None:
                raise self._error
            elif self._closed:
                raise StopIteration
        raise TimeoutError(f"nothing happened within {timeout} s")

    def _something(self) -> bool:
        return bool(self._waiting) or self._closed

    def take_missed(self) -> int:
        """Return how many were lost since this was asked last."""
        missed, self._missed = self._missed, 0
        return missed

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed, ' if self._closed else ''}{len(self._waiting)} waiting>"

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return self.get()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        while True:
            await self._bell.wait_for_async(self._something)
            try:
                return self.get(0.0)
            except TimeoutError:
                continue  # another reader was faster
            except StopIteration:
                raise StopAsyncIteration from None


class EventStream(Stream[ClusterEvent]):
    """The iterator that `events()` returns; in a notebook it shows what waits to be read."""

    def _repr_html_(self) -> str:
        """Show what has happened and was not read yet; it can still be read."""
        rows = [
            (time.strftime("%H:%M:%S", time.localtime(one.time_s)), one.kind, one.node_id, one.detail)
            for one in tuple(self._waiting)
        ]
        return html_table(("time", "kind", "node", "detail"), rows)

    def get(self, timeout: float | None = None) -> ClusterEvent:
        """Return the next one; first, if some were lost, how many."""
        missed = self.take_missed()
        if missed:
            return ClusterEvent(kind="missed", detail=f"{missed} events were not read in time")
        return super().get(timeout)


class WatchStream(Stream[Published]):
    """The iterator that `watch()` returns. `close` ends the watch."""

    bound = None  # what was published is never dropped here; a reader that stops reading closes the stream

    def __init__(self, on_close: Callable[[], None]) -> None:
        super().__init__()
        self._on_close = on_close

    def close(self, error: BaseException | None = None) -> None:
        """End it. Idempotent."""
        super().close(error)
        self._on_close()


class EventHub:
    """Hands every event to every stream that is open."""

    def __init__(self) -> None:
        self._streams: list[EventStream] = []
        self._closed = False

    def open(self) -> EventStream:
        """Return an iterator over what happens from now on."""
        stream = EventStream()
        self._streams.append(stream)
        if self._closed:
            self.close()
        return stream

    def emit(self, kind: str, node_id: int | None = None, detail: str = "") -> None:
        """Tell everybody."""
        if not self._streams:
            return
        event = ClusterEvent(kind=kind, node_id=node_id, detail=detail)
        for stream in list(self._streams):
            stream.put(event)

    def close(self) -> None:
        """End every stream. Idempotent."""
        self._closed = True
        with contextlib.suppress(IndexError):
            while True:
                self._streams.pop().close()
