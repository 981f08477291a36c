"""An actor that sums the updates of many workers before they are replicated, and serves pulls from one copy.

While one window is being committed, the next one gathers: what comes meanwhile goes into the log as one sum, whose
order is fixed here, once. A worker is answered when its window is committed. Nothing is remembered here that counts:
which steps were applied is known to the machine, so a front that is killed, or doubled, loses and doubles nothing.
Its workers ask again, here after a restart or at another front, and are answered as they would have been.

Process:    an actor's. Messages come in its loop; all else is done by one thread, in the order in which it comes.
Shape:      messages are tuples of scalars: ("push", worker, step, base version, life, examples, update),
            ("put_range", sender, number, size, bytes), ("pull", version), ("pull_range", fetcher, number, version),
            ("skip", worker, step, life), ("join", worker, examples, life), ("leave", worker), ("layout",),
            ("progress",).
"""

from __future__ import annotations

import functools
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from actorraft import Actor, ActorRaftError, NotYet, OutcomeUnknown, Unavailable, UsageError, connect
from actorraft.steady import monotonic
from parameter_server import sending
from statemachines import updates
from statemachines.parameter_server import (
    GIVEN_UP,
    UPLOADS_MAX,
    VERSIONS_MAX,
    AlreadyApplied,
    GivenUp,
    NotFinite,
    ParameterServer,
    PushRefused,
    StepAhead,
    Superseded,
    WrongUpdate,
)
from statemachines.ranges import Fetches, RangeRefused, Ranges

if TYPE_CHECKING:
    from statemachines.parameter_server import Member
    from statemachines.updates import Vector

AGAIN_S: Final = 0.005  # when what was not taken, or not there yet, is asked for again
PULL_S: Final = 5.0  # for how long a pull waits for its version


@dataclass(eq=False)
class _Push:
    """One update that is not answered yet; whoever sent it twice is answered twice."""

    worker: str | int
    step: int
    base_version: int
    life: int | None
    examples: float
    update: bytes
    vector: Vector
    futures: list[Future[int]] = field(default_factory=list)
    singly: bool = False  # a sum that it was in was refused as a whole

    @property
    def member(self) -> Member:
        return self.worker, self.step, self.base_version, self.life


@dataclass
class _Pull:
    min_version: int
    future: Future[Any]
    deadline_s: float
    fetcher: int | None = None  # it begins to fetch in ranges


class ParameterFront(Actor):
    """Sums windows of updates for a cluster of ParameterServers.

    Args:
        endpoints: as `actorraft.connect` takes them.
        window_max: updates in one sum.
        windows_outstanding_max: sums that may be on their way to the log at once.
    """

    def __init__(
        self, endpoints: Mapping[int, str] | str, *, window_max: int = 256, windows_outstanding_max: int = 2
    ) -> None:
        self._endpoints = endpoints
        self._window_max = window_max
        self._windows_outstanding_max = windows_outstanding_max

    def on_start(self) -> None:
        """Connect, and begin to work."""
        client = connect(self._endpoints, ParameterServer, timeout=60.0)
        server: Any = client.proxy(timeout=None)
        self._layout = server.layout()
        size = sum(_count(shape) for _, shape in self._layout)
        reader: Any = client.proxy(timeout=PULL_S, consistency="stale")
        self._bench = _Bench(server, reader, size, self._window_max, self._windows_outstanding_max)
        self._server, self._reader = server, reader
        self._client = client

    def receive(self, message: Any) -> Any:
        """Take a message, and return the answer or a future of it; that of a push is the version that has it.

        Raises:
            UsageError: it is no message of a ParameterClient's.
        """
        match message:
            case (
                "push",
                str() | int() as worker,
                int(step),
                int(base_version),
                int() | None as life,
                int() | float() as examples,
                update,
            ):
                return self._bench.push(worker, step, base_version, life, float(examples), update)
            case ("put_range", int(sender), int(number), int(size), bytes(data)):
                return self._bench.put_range(sender, number, size, data)
            case ("pull", int(min_version)):
                return self._bench.pull(min_version)
            case ("pull_range", int(fetcher), int(number), int(min_version)):
                return self._bench.pull_range(fetcher, number, min_version)
            case ("join", worker, examples, life):
                return self._server.join.submit(worker, examples, life)
            case ("leave", worker):
                return self._server.leave.submit(worker)
            case ("skip", worker, step, life):
                return self._server.skip.submit(worker, step, life)
            case ("layout",):
                return self._layout
            case ("progress",):
                return self._reader.progress.submit()
        raise UsageError(f"a ParameterFront does not know {str(message)[:100]!r}")

    def on_stop(self) -> None:
        """Answer who still waits, as far as that goes."""
        self._bench.stop()
        self._client.close()


class _Bench:
    """Where updates are gathered, summed and sent. One thread has all of it; the methods in front only ask it."""

    def __init__(self, server: Any, reader: Any, size: int, window_max: int, outstanding_max: int) -> None:
        self._server = server
        self._sender = sending.Sender(server)
        self._reader = reader
        self._size = size
        self._window_max = window_max
        self._outstanding_max = outstanding_max
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._open: dict[
            tuple[str | int, int, int | None], _Push
        ] = {}  # by worker, step and life: what is not answered yet
        self._gathered: deque[_Push] = deque()
        self._outstanding = 0  # windows
        self._known = 0  # a version that there certainly is
        self._copy: tuple[int, bytes | bytearray] = (-1, b"")
        self._ranges = Ranges(UPLOADS_MAX, updates.bytes_max(size))
        self._fetches = Fetches(VERSIONS_MAX)
        self._pulls: list[_Pull] = []
        self._fetching: list[int] = []  # the least versions that are asked for
        self._again_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="parameter-front", daemon=True)
        self._thread.start()

    def push(
        self, worker: str | int, step: int, base_version: int, life: int | None, examples: float, update: bytes
    ) -> Future[int]:
        """Gather an update; a future of its answer."""
        future: Future[int] = Future()
        self._todo.put(lambda: self._gather(future, (worker, step, base_version, life), examples, update))
        return future

    def put_range(self, sender: int, number: int, size: int, data: bytes) -> Future[int]:
        """Keep a range of an update, as a ParameterServer does; a future of its number."""
        future: Future[int] = Future()
        self._todo.put(lambda: self._keep_range(future, sender, number, size, data))
        return future

    def pull(self, min_version: int) -> Future[tuple[int, bytes]]:
        """Return a future of the parameters, at that version or later."""
        future: Future[tuple[int, bytes]] = Future()
        self._todo.put(lambda: self._add_pull(min_version, future))
        return future

    def pull_range(self, fetcher: int, number: int, min_version: int) -> Future[tuple[int, int, bytes]]:
        """Return a future of a range of the parameters, as of a ParameterServer's; the first is at that version."""
        future: Future[tuple[int, int, bytes]] = Future()
        if number == 0:
            self._todo.put(lambda: self._add_pull(min_version, future, fetcher))
        else:
            self._todo.put(lambda: self._answer_range(future, fetcher, number))
        return future

    def stop(self) -> None:
        """End the thread."""
        self._todo.put(None)
        self._thread.join(1.0)

    # --- The thread ---

    def _run(self) -> None:
        while True:
            try:
                wait_s = None if self._again_s is None else max(0.0, self._again_s - monotonic())
                todo = self._todo.get(timeout=wait_s)
            except queue.Empty:
                todo = self._try_again
            if todo is None:
                return
            todo()
            while not self._todo.empty():  # what has come by now is one window
                more = self._todo.get()
                if more is None:
                    return
                more()
            self._send_windows()
            self._serve_pulls()

    def _try_again(self) -> None:
        self._again_s = None

    def _later(self) -> None:
        if self._again_s is None:
            self._again_s = monotonic() + AGAIN_S

    # --- Updates ---

    def _gather(self, future: Future[int], member: Member, examples: float, update: bytes) -> None:
        import numpy as np

        worker, step, _, life = member
        there = self._open.get((worker, step, life))
        try:
            update = self._whole(update)
            if there is None:
                vector = updates.read(update, self._size)
        except RangeRefused as error:
            future.set_exception(error)
            return
        except (ValueError, TypeError) as error:
            future.set_exception(WrongUpdate(str(error), worker, step))
            return
        if there is not None:
            there.futures.append(future)
            return
        if not np.isfinite(vector).all():
            future.set_exception(NotFinite("a NaN or an infinity in the update", worker, step))
            return
        push = _Push(*member, examples, update, vector, [future])
        self._open[(worker, step, life)] = push
        self._gathered.append(push)

    def _keep_range(self, future: Future[int], sender: int, number: int, size: int, data: bytes) -> None:
        try:
            self._ranges.put(sender, number, size, data, monotonic())
            future.set_result(number)
        except RangeRefused as error:
            future.set_exception(error)

    def _whole(self, update: bytes) -> bytes:
        """Return an update, of which the last range has come, or all of it."""
        ranged = updates.read_ranged(update)
        if ranged is None:
            return update
        whole = self._ranges.whole(*ranged)
        self._ranges.forget(ranged[0])
        return whole

    def _send_windows(self) -> None:
        while self._gathered and self._outstanding < self._outstanding_max and self._again_s is None:
            window = self._next_window()
            self._outstanding += 1
            try:
                sent = self._send(window)
            except UsageError as error:  # the cluster takes no entry of this size, say
                sent = Future()
                sent.set_exception(WrongUpdate(str(error), *window[0].member[:2]))
            sent.add_done_callback(functools.partial(self._ended, window))

    def _next_window(self) -> list[_Push]:
        window = [self._gathered.popleft()]
        while self._gathered and len(window) < self._window_max and not (window[0].singly or self._gathered[0].singly):
            window.append(self._gathered.popleft())
        return window

    def _send(self, window: list[_Push]) -> Future[int]:
        if len(window) == 1:
            worker, step, base_version, life = window[0].member
            push = self._server.push.submit
            return self._sender.send(window[0].update, lambda update: push(worker, step, base_version, update, life))
        members = [push.member for push in window]
        push_sum = self._server.push_sum.submit
        return self._sender.send(_summed(window), lambda update: push_sum(members, update))

    def _ended(self, window: list[_Push], sent: Future[int]) -> None:
        self._todo.put(lambda: self._committed(window, sent))

    def _committed(self, window: list[_Push], sent: Future[int]) -> None:
        self._outstanding -= 1
        error = sent.exception()
        if error is None:
            self._known = max(self._known, sent.result() - 1)
            for push in window:
                self._answer(push, sent.result())
        elif isinstance(error, AlreadyApplied):
            had = {(worker, step): answer for worker, step, answer in error.members}
            for push in window:
                answer = had.get((push.worker, push.step))
                if answer == GIVEN_UP:
                    self._answer(push, GivenUp("this step was given up", push.worker, push.step))
                elif answer is not None:
                    self._answer(push, answer)
            self._put_back([push for push in window if (push.worker, push.step) not in had])
        elif isinstance(error, StepAhead) and self._has_earlier(error.worker, error.step):
            self._put_back(window)  # the window it counted on was refused
        elif isinstance(error, PushRefused) and len(window) == 1:
            self._answer(window[0], error)
        elif isinstance(error, NotFinite | Superseded):  # each is finite by itself; a step may be here for two lives
            for push in window:
                push.singly = True
            self._put_back(window)
        elif isinstance(error, PushRefused):
            refused = [push for push in window if (push.worker, push.step) == (error.worker, error.step)]
            for push in refused or window:
                self._answer(push, error)
            self._put_back([push for push in window if push not in refused] if refused else [])
        elif isinstance(error, OutcomeUnknown | Unavailable | RangeRefused):  # applied or not: the machine knows
            self._put_back(window)
            self._later()
        else:
            for push in window:
                self._answer(push, error)

    def _has_earlier(self, worker: str | int | None, step: int | None) -> bool:
        return step is not None and any(push.worker == worker and push.step < step for push in self._open.values())

    def _put_back(self, window: list[_Push]) -> None:
        """Windows come back in any order; a worker's steps go out in theirs."""
        self._gathered = deque(sorted([*window, *self._gathered], key=lambda push: push.step))

    def _answer(self, push: _Push, answer: int | BaseException) -> None:
        del self._open[(push.worker, push.step, push.life)]
        for future in push.futures:
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    # --- Pulls ---

    def _add_pull(self, min_version: int, future: Future[Any], fetcher: int | None = None) -> None:
        """What is known to be there when it is asked for, it sees; what comes later, it need not wait for."""
        self._pulls.append(_Pull(max(min_version, self._known), future, monotonic() + PULL_S, fetcher))

    def _answer_range(self, future: Future[Any], fetcher: int, number: int) -> None:
        version, data = self._copy
        try:
            future.set_result(self._fetches.get(fetcher, number, version, memoryview(data)))
        except RangeRefused as error:
            future.set_exception(error)

    def _serve_pulls(self) -> None:
        """Answer from the copy those for whom it is recent enough; have another one fetched for the rest."""
        version = self._copy[0]
        for pull in self._pulls:
            if pull.min_version <= version:
                if pull.fetcher is None:
                    pull.future.set_result((version, bytes(self._copy[1])))
                else:
                    self._answer_range(pull.future, pull.fetcher, 0)
        self._pulls = [pull for pull in self._pulls if pull.min_version > version]
        if not self._pulls or self._again_s is not None:
            return
        now_s = monotonic()
        for pull in self._pulls:
            if pull.deadline_s <= now_s and not self._fetching:
                pull.future.set_exception(NotYet(f"version {pull.min_version}: this is {version}"))
        self._pulls = [pull for pull in self._pulls if not pull.future.done()]
        if self._pulls:
            wanted = min(pull.min_version for pull in self._pulls)
            if not self._fetching or wanted < min(self._fetching):  # who asks for less does not wait for who asks more
                self._fetching.append(wanted)
                fetched = self._fetch(wanted)
                fetched.add_done_callback(lambda fetched: self._todo.put(lambda: self._fetched(fetched, wanted)))

    def _fetch(self, wanted: int) -> Future[Any]:
        if 4 * self._size <= sending.ENTRY_BYTES_MAX:
            return self._reader.pull_vector.submit(wanted)  # type: ignore[no-any-return]
        return sending.Fetch(self._reader.pull_range.submit, wanted).future

    def _fetched(self, fetched: Future[tuple[int, bytes | bytearray]], wanted: int) -> None:
        self._fetching.remove(wanted)
        error = fetched.exception()
        if error is None:
            self._copy = max(self._copy, fetched.result(), key=lambda copy: copy[0])
            self._known = max(self._known, self._copy[0])
        elif isinstance(error, ActorRaftError | RangeRefused):
            self._later()
        else:
            for pull in self._pulls:
                pull.future.set_exception(error)
            self._pulls = []


def _summed(window: list[_Push]) -> bytes | Vector:
    """Add up a window, in its order: each update times its worker's examples; as short as its members were.

    A whole one stays an array, which goes into the log as it is.
    """
    import numpy as np

    total = window[0].vector * np.float32(window[0].examples)
    for push in window[1:]:
        np.add(total, push.vector if push.examples == 1 else push.vector * np.float32(push.examples), out=total)
    kinds = {updates.kind_of(push.update) for push in window}
    if kinds == {updates.LARGEST}:
        return updates.sparse(total)
    return updates.rounded(total) if kinds == {updates.ROUNDED} else total


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for each in shape:
        count *= each
    return count
