"""How an update gets into the log, and parameters to a worker: in one piece, or, where that would be a large one, in
ranges.

An entry of many megabytes holds up each node's loop, and one above RaftConfig.frame_bytes_max is refused. Ranges are
sent without waiting, in the order of one session, so that one is written while the next is on its way. Parameters are
fetched likewise, all ranges from one node or front, which holds their version until they have all been asked for. To a
front, whose mailbox is bounded, ranges go a few at a time.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from actorraft import UsageError
from statemachines import ranges, updates
from statemachines.ranges import RangeMissing, checksum, cut

if TYPE_CHECKING:
    from statemachines.updates import Vector

ENTRY_BYTES_MAX: Final = 4 << 20  # of an update in one entry, and of parameters in one answer
MESSAGE_BYTES_MAX: Final = 32 << 20  # of an update in one message to a front
ASKED_MAX: Final = 4  # ranges of one fetch, or of one update to a front, without an answer

_Range: TypeAlias = tuple[int, int, bytes]  # the version, the size of all of it, and the range


class Sender:
    """One session's way to push; it has one update under way in ranges at a time, since a session keeps its order.

    Args:
        server: the proxy of a ParameterServer.
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        self._number = secrets.randbits(62)
        self._entry_bytes_max = ENTRY_BYTES_MAX

    def send(self, update: bytes | Vector, push: Callable[[bytes | Vector], Future[int]]) -> Future[int]:
        """Push an update, given how to push what stands for it; return the future of that.

        It fails with RangeRefused where a range got lost; nothing is applied then, and all of it is to be sent again.
        """
        size = len(update) if isinstance(update, bytes) else update.nbytes
        if size <= self._entry_bytes_max:
            try:
                return push(update)
            except UsageError:
                if size <= ranges.RANGE_BYTES:
                    raise
                self._entry_bytes_max = size - 1  # the cluster takes no entry of that size, or nothing at all
        encoded = update if isinstance(update, bytes) else updates.whole(update)
        *before, last = cut(encoded)
        for number, data in enumerate(before):
            self._server.put_range.submit(self._number, number, len(encoded), data)
        return push(updates.ranged(self._number, len(encoded), checksum(before), last))


@dataclass(eq=False)
class _Upload:
    """An update on its way to a front. `left`: ranges that are not answered; `numbers`: of those not sent yet."""

    update: bytes
    push: Callable[[bytes], Future[int]]
    future: Future[int]
    left: int
    numbers: Iterator[int]


class FrontSender:
    """A worker's way to push through a front: what does not fit into a message goes ahead in ranges.

    What is pushed meanwhile waits behind it, so that a worker's steps arrive in their order.

    Args:
        put: sends a range, given a number of the sender's own, the range's, the size of all of it, and the bytes.
    """

    def __init__(self, put: Callable[[int, int, int, bytes], Future[Any]]) -> None:
        self._put = put
        self._number = secrets.randbits(62)
        self._lock = threading.RLock()  # callbacks may come at once, within what asked
        self._waiting: deque[_Upload] = deque()  # the first is under way

    def send(self, update: bytes, push: Callable[[bytes], Future[int]]) -> Future[int]:
        """Push an update, given how to push what stands for it; return the future of that.

        It fails where a range was not taken, and so do those behind it; they are to be sent again, in their order.
        """
        with self._lock:
            if not self._waiting and len(update) <= MESSAGE_BYTES_MAX:
                return push(update)
            count = (len(update) - 1) // ranges.RANGE_BYTES if len(update) > MESSAGE_BYTES_MAX else 0
            upload = _Upload(update, push, Future(), count, iter(range(count)))
            self._waiting.append(upload)
            if len(self._waiting) == 1:
                self._begin()
        return upload.future

    def _begin(self) -> None:
        """Push those whose ranges have all been taken, and begin with the next; its first range makes room for all."""
        while self._waiting and self._waiting[0].left == 0:
            upload = self._waiting[0]
            try:
                sent = upload.push(self._rest(upload.update))
            except Exception as error:
                self._fail(error)
                return
            self._waiting.popleft()
            sent.add_done_callback(lambda sent, future=upload.future: _pass_on(sent, future))  # type: ignore[misc]
        if self._waiting:
            self._put_next(self._waiting[0])

    def _rest(self, update: bytes) -> bytes:
        """Return what is to be pushed for an update whose ranges have gone ahead, if it has any."""
        if len(update) <= MESSAGE_BYTES_MAX:
            return update
        start = (len(update) - 1) // ranges.RANGE_BYTES * ranges.RANGE_BYTES
        return updates.ranged(self._number, len(update), checksum([memoryview(update)[:start]]), update[start:])

    def _put_next(self, upload: _Upload) -> None:
        number = next(upload.numbers, None)
        if number is None:
            return
        start = number * ranges.RANGE_BYTES
        try:
            data = upload.update[start : start + ranges.RANGE_BYTES]
            put = self._put(self._number, number, len(upload.update), data)
        except Exception as error:
            self._fail(error)
            return
        put.add_done_callback(lambda put: self._came(upload, number, put.exception()))

    def _came(self, upload: _Upload, number: int, error: BaseException | None) -> None:
        with self._lock:
            if not self._waiting or self._waiting[0] is not upload:
                return  # it has failed
            if error is not None:
                self._fail(error)
                return
            upload.left -= 1
            if upload.left == 0:
                self._begin()
                return
            for _ in range(1 if number else ASKED_MAX):
                if self._waiting and self._waiting[0] is upload:
                    self._put_next(upload)

    def _fail(self, error: BaseException) -> None:
        failed, self._waiting = self._waiting, deque()
        for upload in failed:
            upload.future.set_exception(error)


def _pass_on(sent: Future[int], future: Future[int]) -> None:
    error = sent.exception()
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(sent.result())


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
