"""How an update gets into the log, and parameters to a worker: in one piece, or, where that would be a large one, in
ranges.

An entry of many megabytes holds up each node's loop, and one above RaftConfig.frame_bytes_max is refused. Ranges are
sent without waiting, in the order of one session, so that one is written while the next is on its way. Parameters are
fetched likewise, all ranges from one node or front, which holds their version until they have all been asked for.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from statemachines import updates
from statemachines.ranges import RangeMissing, checksum, cut

if TYPE_CHECKING:
    from statemachines.updates import Vector

ENTRY_BYTES_MAX: Final = 4 << 20  # of an update in one entry, and of parameters in one answer
ASKED_MAX: Final = 4  # ranges of one fetch without an answer

_Range: TypeAlias = tuple[int, int, bytes]  # the version, the size of all of it, and the range


class Sender:
    """One session's way to push; it has one update under way in ranges at a time, since a session keeps its order.

    Args:
        server: the proxy of a ParameterServer.
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        self._number = secrets.randbits(62)

    def send(self, update: bytes | Vector, push: Callable[[bytes | Vector], Future[int]]) -> Future[int]:
        """Push an update, given how to push what stands for it; return the future of that.

        It fails with RangeRefused where a range got lost; nothing is applied then, and all of it is to be sent again.
        """
        size = len(update) if isinstance(update, bytes) else update.nbytes
        if size <= ENTRY_BYTES_MAX:
            return push(update)
        encoded = update if isinstance(update, bytes) else updates.whole(update)
        *ranges, last = cut(encoded)
        for number, data in enumerate(ranges):
            self._server.put_range.submit(self._number, number, len(encoded), data)
        return push(updates.ranged(self._number, len(encoded), checksum(ranges), last))


class Fetch:
    """Parameters on their way in ranges.

    Args:
        ask: asks for a range, given a number of the fetch's own, the range's, and the least version.

    Attributes:
        future: of the version and its bytes. It fails with RangeRefused where they are to be fetched anew.
    """

    def __init__(self, ask: Callable[[int, int, int], Future[_Range]], min_version: int) -> None:
        self.future: Future[tuple[int, bytearray]] = Future()
        self._ask = ask
        self._min_version = min_version
        self._fetcher = secrets.randbits(62)
        self._lock = threading.RLock()  # callbacks may come at once, within what asked
        self._version, self._data = -1, bytearray()
        self._range_bytes = 0
        self._numbers = iter(range(0))  # of the ranges that are not asked for yet
        self._left = 1  # that are not there yet
        self._ask_for(0, self._first)

    def _ask_for(self, number: int, take: Callable[[int, _Range], None]) -> None:
        try:
            asked = self._ask(self._fetcher, number, self._min_version)
        except Exception as error:
            self._fail(error)
            return
        asked.add_done_callback(lambda asked: self._came(number, asked, take))

    def _came(self, number: int, asked: Future[_Range], take: Callable[[int, _Range], None]) -> None:
        try:
            take(number, asked.result())
        except Exception as error:
            self._fail(error)

    def _first(self, number: int, answer: _Range) -> None:
        self._version, size, data = answer
        self._data, self._range_bytes = bytearray(size), len(data)
        self._left = -(-size // len(data))
        self._numbers = iter(range(1, self._left))
        self._take(number, answer)
        for _ in range(ASKED_MAX - 1):
            self._ask_next()

    def _take(self, number: int, answer: _Range) -> None:
        version, size, data = answer
        start = number * self._range_bytes
        with self._lock:
            if (version, size) != (self._version, len(self._data)):
                raise RangeMissing(f"version {version} came for a range of version {self._version}")
            self._data[start : start + len(data)] = data
            self._left -= 1
            if not self._left:
                self.future.set_result((self._version, self._data))
        self._ask_next()

    def _ask_next(self) -> None:
        with self._lock:
            number = None if self.future.done() else next(self._numbers, None)
        if number is not None:
            self._ask_for(number, self._take)

    def _fail(self, error: Exception) -> None:
        with self._lock:
            if not self.future.done():
                self._data = bytearray()
                self.future.set_exception(error)
