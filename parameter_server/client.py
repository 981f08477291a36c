"""A worker's side: pulls, and pushes that are each applied once, whatever dies in between.

Pushes are pipelined: some may be under way while the next update is computed. They are numbered from the worker's last
step, which the machine knows, so a worker that was killed goes on where it was acknowledged. What has no answer is sent
again, in order, to the next front, under the same number; the machine answers what it has already.

A push that is refused for good (its round is closed, its version is too old) ends its future; if others are under way
behind it, its number is given up (`skip`), never used again: a copy of it may still be at some front. One that is only
too early waits here.

Threads:    any may call; one thread of this client's own has what is under way.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from actorraft import ActorDead, ActorRaftError, Client, CommandFailed, MailboxFull, NotYet, Unavailable, UsageError
from actorraft.futures import ResultFuture
from actorraft.steady import monotonic
from parameter_server import sending
from statemachines import updates
from statemachines.parameter_server import GIVEN_UP, GivenUp, PushRefused, StepAhead, TooFarAhead, WrongUpdate
from statemachines.ranges import RangeRefused

if TYPE_CHECKING:
    from actorraft import ActorRef
    from statemachines.parameter_server import Member, Progress
    from statemachines.updates import Vector

AGAIN_S: Final = (0.002, 0.2)  # the first and the longest wait before what failed is sent again
LOOK_S: Final = 0.5  # for how long to find out why a pull came to nothing
ASK_S: Final = 10.0  # for how long one way is given for an answer, before another is tried


class Way(Protocol):
    """How a worker reaches the server: through a front, or as a client of the cluster."""

    def push(self, member: Member, examples: float, update: bytes) -> Future[int]: ...
    def skip(self, worker: str | int, step: int, life: int) -> Future[int]: ...
    def pull(self, min_version: int) -> Future[tuple[int, bytes]]: ...
    def pull_range(self, fetcher: int, number: int, min_version: int) -> Future[tuple[int, int, bytes]]: ...
    def join(self, worker: str | int, examples: float, life: int) -> Future[int]: ...
    def leave(self, worker: str | int) -> Future[bool]: ...
    def layout(self) -> Future[list[tuple[str, tuple[int, ...]]]]: ...
    def progress(self) -> Future[Progress]: ...


class _Front:
    def __init__(self, ref: ActorRef) -> None:
        self._ref = ref
        self._sender = sending.FrontSender(lambda *put: ref.ask(("put_range", *put), ASK_S))

    def push(self, member: Member, examples: float, update: bytes) -> Future[int]:
        return self._sender.send(update, lambda update: self._ref.ask(("push", *member, examples, update), ASK_S))

    def skip(self, worker: str | int, step: int, life: int) -> Future[int]:
        return self._ref.ask(("skip", worker, step, life), ASK_S)

    def pull(self, min_version: int) -> Future[tuple[int, bytes]]:
        return self._ref.ask(("pull", min_version), ASK_S)

    def pull_range(self, fetcher: int, number: int, min_version: int) -> Future[tuple[int, int, bytes]]:
        return self._ref.ask(("pull_range", fetcher, number, min_version), ASK_S)

    def join(self, worker: str | int, examples: float, life: int) -> Future[int]:
        return self._ref.ask(("join", worker, examples, life), ASK_S)

    def leave(self, worker: str | int) -> Future[bool]:
        return self._ref.ask(("leave", worker), ASK_S)

    def layout(self) -> Future[list[tuple[str, tuple[int, ...]]]]:
        return self._ref.ask(("layout",), ASK_S)

    def progress(self) -> Future[Progress]:
        return self._ref.ask(("progress",), ASK_S)


class _Direct:
    def __init__(self, client: Client[Any]) -> None:
        self._commands: Any = client.proxy(timeout=ASK_S)
        self._reads: Any = client.proxy(timeout=ASK_S, consistency="stale")
        self._sender = sending.Sender(self._commands)

    def push(self, member: Member, examples: float, update: bytes) -> Future[int]:
        worker, step, base_version, life = member
        push = self._commands.push.submit
        return self._sender.send(update, lambda update: push(worker, step, base_version, update, life))

    def skip(self, worker: str | int, step: int, life: int) -> Future[int]:
        return self._commands.skip.submit(worker, step, life)  # type: ignore[no-any-return]

    def pull(self, min_version: int) -> Future[tuple[int, bytes]]:
        return self._reads.pull_vector.submit(min_version)  # type: ignore[no-any-return]

    def pull_range(self, fetcher: int, number: int, min_version: int) -> Future[tuple[int, int, bytes]]:
        return self._reads.pull_range.submit(fetcher, number, min_version)  # type: ignore[no-any-return]

    def join(self, worker: str | int, examples: float, life: int) -> Future[int]:
        return self._commands.join.submit(worker, examples, life)  # type: ignore[no-any-return]

    def leave(self, worker: str | int) -> Future[bool]:
        return self._commands.leave.submit(worker)  # type: ignore[no-any-return]

    def layout(self) -> Future[list[tuple[str, tuple[int, ...]]]]:
        return self._commands.layout.submit()  # type: ignore[no-any-return]

    def progress(self) -> Future[Progress]:
        return self._reads.progress.submit()  # type: ignore[no-any-return]


@dataclass(eq=False)
class _Push:
    base_version: int
    update: bytes
    sent: Vector | None  # what of it goes out, where that is not all
    future: ResultFuture[int]
    given_up: bool = False  # its future has ended, and its number is to be used up


class ParameterClient:
    """One worker's way to the parameters.

    Args:
        worker: its name or number, the same after a restart.
        way: a front's ref, or several; or a client of the cluster (a Cluster is one) of a ParameterServer.
        examples: how much its updates count, relative to the others'.
        compress: None; "bfloat16"; or the share of entries to send, as 0.01: what is held back is added to the next
            update (error feedback).
        outstanding_max: pushes without an answer; the next one waits.
        behind_max: of those, how many a pull may be without; it waits for the others. Parameters that lack a worker's
            own last updates are old, and what is computed from them is worth less: more updates a second, and for some
            models a longer way to the same accuracy.
        timeout: seconds to join, and for each pull; None waits for ever.

    Attributes:
        step: the last one that was acknowledged.
    """

    def __init__(
        self,
        worker: str | int,
        way: ActorRef | Sequence[ActorRef] | Client[Any],
        *,
        examples: float = 1,
        compress: str | float | None = None,
        outstanding_max: int = 4,
        behind_max: int = 0,
        timeout: float | None = 30.0,
    ) -> None:
        if not (compress in (None, "bfloat16") or (isinstance(compress, float) and 0.0 < compress <= 1.0)):
            raise UsageError(f"compress is None, 'bfloat16' or a share from 0.0 to 1.0, not {compress!r}")
        if outstanding_max < 1 or behind_max < 0:
            raise UsageError(
                f"outstanding_max is 1 or more, and behind_max 0 or more, not {outstanding_max!r} and {behind_max!r}"
            )
        if isinstance(way, Client):
            self._ways: list[Way] = [_Direct(way)]
        else:
            self._ways = [_Front(ref) for ref in (way if isinstance(way, Sequence) else [way])]
        if not self._ways:
            raise UsageError("there is no front to go to")
        self.worker = worker
        self._life = secrets.randbits(62)  # a process that speaks for this worker later has another
        self._examples = examples
        self._compress = compress
        self._timeout = timeout
        self._way = 0
        self._outstanding_max, self._behind_max = outstanding_max, behind_max
        self._unanswered = 0  # pushes; fewer of them are told by this:
        self._answered = threading.Condition()
        self._residual: Vector | None = None  # what compression held back
        self._residual_lock = threading.Lock()
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._under_way: list[_Push] = []  # in the order of their steps; the first is step + 1
        self._round = 0  # of sending all of it again; answers to earlier rounds count only if they are no failure
        self._again_s: float | None = None
        self._backoff_s = AGAIN_S[0]
        self._layout = [(str(name), tuple(shape)) for name, shape in self._ask(lambda way: way.layout())]
        self._size = sum(_count(shape) for _, shape in self._layout)
        self.step: int = self._ask(lambda way: way.join(worker, examples, self._life))
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"parameter-client-{worker}", daemon=True)
        self._thread.start()

    # --- For the worker ---

    def push(self, update: Mapping[str, Any] | Vector, base_version: int) -> ResultFuture[int]:
        """Send an update: what is to be added to the parameters; return a future. Wait while too many have no answer.

        The future ends with the version that has the update, or will have it when its round closes; with a PushRefused
        if it is refused for good.

        Args:
            update: name -> array of float32, or all of them as one vector.
            base_version: of the parameters that it was computed from.

        Raises:
            UsageError: this client is closed, or the update does not have the parameters' shapes.
        """
        encoded, sent = self._encode(self._vector(update))
        push = _Push(base_version, encoded, sent, ResultFuture())
        with self._answered:
            if threading.current_thread() is not self._thread:  # a callback of a push: it would wait for itself
                self._answered.wait_for(lambda: self._closed or self._unanswered < self._outstanding_max)
            if self._closed:
                raise UsageError("this client is closed")
            self._unanswered += 1
            self._todo.put(lambda: self._begin(push))  # before what `close` puts, or not at all
        return push.future

    def pull(self, min_version: int = 0) -> tuple[int, dict[str, Any]]:
        """Return the version, and the parameters by name, read-only: at `min_version` or later.

        It waits until at most `behind_max` pushes are without an answer.

        Raises:
            NotYet: there was no such version in time.
            Unavailable: nobody served it in time.
        """
        version, vector = self.pull_vector(min_version)
        parameters, start = {}, 0
        for name, shape in self._layout:
            stop = start + _count(shape)
            parameters[name] = vector[start:stop].reshape(shape)
            start = stop
        return version, parameters

    def pull_vector(self, min_version: int = 0) -> tuple[int, Vector]:
        """Return the same as one vector of float32."""
        import numpy as np

        self._catch_up()
        try:
            if 4 * self._size <= sending.ENTRY_BYTES_MAX:
                version, data = self._ask(lambda way: way.pull(min_version))
            else:  # each range has ASK_S
                version, data = self._ask(lambda way: sending.Fetch(way.pull_range, min_version).future, math.inf)
        except NotYet:
            raise
        except Unavailable as error:
            self._check_version(min_version, error)
            raise
        return version, np.frombuffer(memoryview(data).toreadonly(), "<f4")

    def _check_version(self, min_version: int, error: Unavailable) -> None:
        """Raise NotYet if a pull had to wait too long for its version, and not for whoever has it."""
        version = min_version
        with contextlib.suppress(Exception):  # nobody serves
            version = self._ways[self._way].progress().result(LOOK_S).version
        if version < min_version:
            raise NotYet(f"version {min_version}: this is {version}") from error

    def _catch_up(self) -> None:
        if threading.current_thread() is self._thread:
            return  # a callback of a push: what it would wait for waits for it
        with self._answered:
            enough = self._answered.wait_for(
                lambda: self._closed or self._unanswered <= self._behind_max, self._timeout
            )
        if not enough:
            raise Unavailable("pushes are still without an answer")

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every push has ended.

        Raises:
            TimeoutError: not in time.
            UsageError: this is the callback of a push: what it would wait for waits for it.
        """
        if threading.current_thread() is self._thread:
            raise UsageError("the callback of a push cannot wait for pushes: they wait for it")
        done = threading.Event()
        with self._answered:
            if self._closed:
                return
            self._todo.put(lambda: self._when_idle(done))
        if not done.wait(timeout):
            raise TimeoutError("pushes are still without an answer")

    def leave(self) -> None:
        """Say that nobody need wait for this worker any more."""
        self.flush(self._timeout)
        self._ask(lambda way: way.leave(self.worker))

    def close(self) -> None:
        """End at once; pushes without an answer end as Unavailable, though they may be applied."""
        if not self._closed:
            with self._answered:
                self._closed = True
                self._answered.notify_all()
                self._todo.put(None)
            if threading.current_thread() is not self._thread:
                self._thread.join()

    def __enter__(self) -> ParameterClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- What is sent ---

    def _vector(self, update: Mapping[str, Any] | Vector) -> Vector:
        import numpy as np

        if not isinstance(update, Mapping):
            vector = np.ascontiguousarray(update)
        elif set(update) == {name for name, _ in self._layout}:
            vector = np.concatenate([np.ravel(update[name]) for name, _ in self._layout])
        else:
            raise UsageError(f"an update has {sorted(name for name, _ in self._layout)}, not {sorted(update)}")
        if vector.dtype != np.float32 or vector.shape != (self._size,):
            raise UsageError(f"an update is {self._size} numbers of float32, not {vector.shape} of {vector.dtype}")
        return vector

    def _encode(self, vector: Vector) -> tuple[bytes, Vector | None]:
        import numpy as np

        if self._compress is None:
            return updates.whole(vector), None
        with self._residual_lock:
            wanted = vector if self._residual is None else vector + self._residual
            if self._compress == "bfloat16":
                encoded = updates.rounded(wanted)
            else:
                encoded = updates.largest(wanted, max(1, int(self._size * float(self._compress))))
            sent = updates.read(encoded, self._size)
            residual = wanted - sent
            if not np.isfinite(residual).all():  # too large to be rounded, or no numbers: what was held back stays so
                return updates.whole(vector), None
            self._residual = residual
        return encoded, sent

    # --- Asking one way, then the next ---

    def _ask(self, ask: Callable[[Way], Future[Any]], each_s: float = ASK_S) -> Any:
        deadline_s = None if self._timeout is None else monotonic() + self._timeout
        backoff_s = AGAIN_S[0]
        for number in itertools.count():
            left_s = math.inf if deadline_s is None else deadline_s - monotonic()
            wait_s = max(0.0, min(each_s, left_s))
            way = self._ways[(self._way + number) % len(self._ways)]
            try:
                return ask(way).result(None if wait_s == math.inf else wait_s)
            except CommandFailed as error:  # the machine said no, and would again
                if error.type_name == "UsageError":
                    raise UsageError(error.message) from error
                raise
            except (ActorRaftError, RangeRefused, TimeoutError) as error:
                last = deadline_s is not None and monotonic() + backoff_s >= deadline_s
                if isinstance(error, UsageError) or last:
                    raise error if isinstance(error, UsageError | NotYet) else Unavailable(str(error)) from error
            time.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, AGAIN_S[1])
        raise AssertionError("it counts for ever")

    # --- The thread: pushes under way ---

    def _run(self) -> None:
        self._idle: list[threading.Event] = []
        while True:
            try:
                wait_s = None if self._again_s is None else max(0.0, self._again_s - monotonic())
                todo = self._todo.get(timeout=wait_s)
            except queue.Empty:
                self._again_s = None
                self._send(0)
                continue
            if todo is None:
                break
            todo()
        for push in self._under_way:
            if push.given_up:
                continue
            push.future.set_exception(Unavailable("the client was closed before an answer came"))
        for done in self._idle:
            done.set()

    def _when_idle(self, done: threading.Event) -> None:
        if self._under_way:
            self._idle.append(done)
        else:
            done.set()

    def _begin(self, push: _Push) -> None:
        self._under_way.append(push)
        if self._again_s is None:
            self._send(len(self._under_way) - 1)

    def _send(self, first: int) -> None:
        """Send what is under way, from a place on."""
        sent_round = self._round
        for place in range(first, len(self._under_way)):
            push = self._under_way[place]
            step, way = self.step + 1 + place, self._ways[self._way]
            try:
                if push.given_up:
                    answer = way.skip(self.worker, step, self._life)
                else:
                    answer = way.push((self.worker, step, push.base_version, self._life), self._examples, push.update)
            except (ActorDead, MailboxFull, Unavailable) as error:
                self._failed(error, sent_round)
                return
            except UsageError as error:  # too large for a message or an entry, say
                answer = Future()
                answer.set_exception(WrongUpdate(str(error), self.worker, step))
            answer.add_done_callback(
                lambda answer, push=push: self._todo.put(lambda: self._ended(push, answer, sent_round))  # type: ignore[misc]
            )

    def _ended(self, push: _Push, answer: Future[int], sent_round: int) -> None:
        if push not in self._under_way:
            return  # answered before, by another way
        if push.given_up and sent_round != self._round:
            return  # what became of it as an update is told already
        error = answer.exception()
        if isinstance(error, UsageError):  # it can never be sent, or is no message of a worker's
            error = WrongUpdate(str(error), self.worker, self.step + 1 + self._under_way.index(push))
        if error is None:
            self._backoff_s = AGAIN_S[0]
            if push is self._under_way[0]:  # else the answers of those before it are lost, or on their way
                self._settle(push, answer.result())
            else:
                self._failed(StepAhead("the answers of earlier pushes are missing"), sent_round)
        elif isinstance(error, StepAhead | TooFarAhead) or not isinstance(error, PushRefused):
            self._failed(error, sent_round)
        elif push is self._under_way[0]:
            self._refuse(push, error)
        else:  # what becomes of those before it comes first
            self._failed(StepAhead("the answers of earlier pushes are missing"), sent_round)

    def _settle(self, push: _Push, version: int) -> None:
        self._under_way.pop(0)
        self.step += 1
        self._end(push, version)

    def _refuse(self, push: _Push, error: PushRefused) -> None:
        """It is never applied. Its number is used up only if others were sent under later ones."""
        if push.given_up:  # the worker is not known any more; the next push says so
            self._settle(push, GIVEN_UP)
            return
        if push.sent is not None:
            with self._residual_lock:
                self._residual = push.sent if self._residual is None else self._residual + push.sent
        if isinstance(error, GivenUp):
            self.step += 1
        if len(self._under_way) == 1 or isinstance(error, GivenUp):
            self._under_way.pop(0)
            self._end(push, error)
            return
        push.future.set_exception(error)
        push.given_up = True
        self._round += 1
        self._send(0)

    def _end(self, push: _Push, result: int | PushRefused) -> None:
        with self._answered:
            self._unanswered -= 1
            self._answered.notify_all()
        if not push.given_up:
            if isinstance(result, PushRefused):
                push.future.set_exception(result)
            else:
                push.future.set_result(result)
        if not self._under_way:
            for done in self._idle:
                done.set()
            self._idle = []

    def _failed(self, error: BaseException, sent_round: int) -> None:
        """Send all of it again, a little later; to another front, if it was not the machine that said no."""
        if sent_round != self._round:
            return
        self._round += 1
        if not isinstance(error, PushRefused):
            self._way = (self._way + 1) % len(self._ways)
        self._again_s = monotonic() + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, AGAIN_S[1])


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for each in shape:
        count *= each
    return count
