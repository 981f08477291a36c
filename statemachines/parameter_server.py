"""The parameters of a model that many workers train at once: no acknowledged update is lost, none counts twice.

A worker pulls the parameters, computes an update (what is to be added to them), and pushes it. A rule says when the
updates of many workers become the next version: `Mean`, in rounds (FedAvg, with backup workers); `FedBuff`, a number of
them, discounted by age; `Async`, each at once, discounted likewise.

All parameters are one vector of float32; their names are views of it. Arithmetic is elementwise (`+`, `*`, one worker
after another in the order of the log), since that has the same bits whatever the processor of a node can do; sums
within a vector, norms and powers have not, and belong to the workers.

Source:     FedAvg (AISTATS 2017), FedBuff (AISTATS 2022), stale synchronous parallel (NIPS 2013), backup workers
            (2016), parameter server (OSDI 2014: sum before you replicate).
Invariant:  a worker's steps count from 1 and are applied in order, without gaps, each once, whatever the sessions they
            come by. A command that raises has changed nothing.
Shape:      a window of updates summed before the log goes in as one `push_sum`: each update times its worker's number
            of examples, added up. One entry of it, replayed, gives the same bits; another order of adding need not.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from zlib import crc32

from actorraft.errors import NotYet, UsageError
from actorraft.machine import StateMachine, command, context, query
from statemachines import updates
from statemachines.ranges import Fetches, Ranges

if TYPE_CHECKING:
    from statemachines.updates import Vector

Worker: TypeAlias = str | int
Member: TypeAlias = tuple[Worker, int, int, int | None]  # worker, step, base version, life

ANSWERS_MAX: Final = 128  # of a worker's last steps, whose answers are held for those who ask again
LEFT_MAX: Final = 10_000  # workers that left whose last step is remembered; the longest gone are forgotten first
LIVES_MAX: Final = 8  # former processes of one worker that are known still
GIVEN_UP: Final = -1  # the answer of a step that was given up
UPLOADS_MAX: Final = 4  # updates that may be under way in ranges, each as large as all parameters
VERSIONS_MAX: Final = 4  # of the parameters, that are held for who pulls them in ranges
RATE_MAX: Final = 1e6  # either way; with EXAMPLES: what they are multiplied to stays a float32, at any number of them
EXAMPLES: Final = (1e-9, 1e12)  # of a worker: the fewest, and the most
ROUND_S: Final = 60.0  # of log time: how long a round lasts at the most, where the rule does not say
CHUNK_FLOATS: Final = 1 << 18  # of a vector, in one piece of a snapshot


# --- Errors: each names the worker and the step; the state is as before -----------------------------------------------


class PushRefused(Exception):
    """An update is not applied, and nothing is changed by it."""

    def __init__(self, text: str, worker: Worker | None = None, step: int | None = None) -> None:
        super().__init__(text)
        self.worker, self.step = worker, step


class WrongUpdate(PushRefused):
    """It is no update of these parameters."""


class WrongShape(WrongUpdate):
    """Names or shapes are not those of the parameters."""


class WrongDtype(WrongUpdate):
    """It is not float32."""


class NotFinite(PushRefused):
    """There is a NaN or an infinity in it, or in its sum with those it would be added to."""


class UnknownWorker(PushRefused):
    """This worker has not joined, or has left."""


class Superseded(PushRefused):
    """This worker has joined again since, as another process: what the one before still sends counts for nothing."""


class UnknownVersion(PushRefused):
    """It says that it comes from a version that there is not yet."""


class StepAhead(PushRefused):
    """An earlier step of this worker has not come; send that first, then this one again."""


class TooFarAhead(PushRefused):
    """The slowest worker is too many steps behind, or this round has an update of this worker already; try later."""


class TooOld(PushRefused):
    """It comes from a version too far back; pull, and compute it anew."""


class RoundClosed(PushRefused):
    """The round that it was computed for is closed; pull, and compute it anew."""


class AnswerForgotten(PushRefused):
    """It was applied so long ago that its answer is no longer held."""


class GivenUp(PushRefused):
    """Its worker has given this step up (`skip`): it is never applied."""


class AlreadyApplied(PushRefused):
    """Some members of a sum were applied before; leave them out, and send the rest.

    Attributes:
        members: (worker, step, the answer that it had; GIVEN_UP if its worker gave it up).
    """

    def __init__(self, text: str, members: list[tuple[Worker, int, int]]) -> None:
        super().__init__(text, *members[0][:2])
        self.members = members


# --- Rules ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What all rules share.

    Attributes:
        rate: what a version's change is multiplied by.
        momentum: how much of the last change comes again; 0.0: none.
        steps_ahead_max: how far a worker may be ahead of the slowest; None: as far as it likes.
        versions_behind_max: how old a base version may be; None: as old as it likes.
    """

    rate: float = 1.0
    momentum: float = 0.0
    steps_ahead_max: int | None = None
    versions_behind_max: int | None = None

    def _check(self) -> None:
        for name, least in (("steps_ahead_max", 0), ("versions_behind_max", 0), ("k", 1)):
            value = getattr(self, name, None)
            if value is not None and (type(value) is not int or value < least):
                raise UsageError(f"{name} is an int from {least}, not {value!r}")
        for name in ("rate", "momentum", "discount", "round_s"):
            value = getattr(self, name, None)
            if value is not None and not isinstance(value, Real):
                raise UsageError(f"{name} is a number, not {value!r}")
        if not abs(self.rate) <= RATE_MAX:
            raise UsageError(f"a rate is a number of at most {RATE_MAX:g} either way, not {self.rate!r}")
        if not 0.0 <= self.momentum < 1.0:
            raise UsageError(f"momentum is from 0 to below 1, not {self.momentum!r}")
        if not 0.0 <= getattr(self, "discount", 0.0) < 100.0:
            raise UsageError(f"a discount is an exponent from 0 on, not {self.discount!r}")  # type: ignore[attr-defined]

    def __post_init__(self) -> None:
        self._check()


@dataclass(frozen=True)
class _MeanFields:
    k: int | None = None
    round_s: float | None = None


@dataclass(frozen=True)
class Mean(Rule, _MeanFields):
    """Rounds: the mean of their updates, weighted by examples, makes the next version.

    Attributes:
        k: how many updates close a round; None: those of all who joined.
        round_s: seconds of log time after its first update when a round closes with what is there, so that a worker
            that died stalls nobody for ever; None: 60.
    """

    def _check(self) -> None:
        super()._check()
        if self.round_s is not None and not self.round_s > 0:
            raise UsageError(f"a round lasts for more than 0 seconds, not {self.round_s!r}")


@dataclass(frozen=True)
class _FedBuffFields:
    k: int
    discount: float = 0.5


@dataclass(frozen=True)
class FedBuff(Rule, _FedBuffFields):
    """The mean of `k` updates makes the next version; one that is `age` versions old counts (1 + age) ** -discount."""

    def _check(self) -> None:
        super()._check()
        if self.k is None:
            raise UsageError("k is how many updates make a version")


@dataclass(frozen=True)
class _AsyncFields:
    discount: float = 0.5


@dataclass(frozen=True)
class Async(Rule, _AsyncFields):
    """Each update makes the next version; one that is `age` versions old counts (1 + age) ** -discount."""


@lru_cache(maxsize=4096)
def discounted(age: int, discount: float) -> float:
    """Return (1 + age) ** -discount, with the same bits everywhere: the C library's powers differ in the last one."""
    return float(Context(prec=25).power(Decimal(1 + age), -Decimal(float(discount))))


# --- The machine ------------------------------------------------------------------------------------------------------


@dataclass
class _Known:
    """What is known of a worker. `step`: its last; `answers`: of the last steps, in order, the newest last."""

    examples: float
    step: int = 0
    head_start: int = 0  # one who joins late is as far as the slowest was then
    answers: list[int] | None = None
    life: int | None = None  # of the process that speaks for it, as that one said when it joined
    former: tuple[int, ...] = ()  # lives before that one, the newest last: their joins may still be on their way

    @property
    def clock(self) -> int:
        return self.step + self.head_start


class Progress(NamedTuple):
    """How far the training is.

    Attributes:
        version: of the parameters, from 0.
        updates: acknowledged so far, those that wait for their round included.
        pending: updates that wait for their round.
        steps: worker -> its last step, of those who are in.
        members: how many are in.
    """

    version: int
    updates: int
    pending: int
    steps: dict[Worker, int]
    members: int


class ParameterServer(StateMachine):
    """Parameters that workers train together.

    Args:
        parameters: name -> array; taken as float32.
        rule: when updates become the next version.
        workers: who is in from the start, or each with its number of examples; None: they `join`.
    """

    def __init__(
        self,
        parameters: Mapping[str, Any],
        rule: Rule,
        workers: Mapping[Worker, float] | Iterable[Worker] | None = None,
    ) -> None:
        import numpy as np

        if not isinstance(rule, Rule):
            raise UsageError(f"the rule is a Mean, FedBuff or Async, not {rule!r}")
        self._rule = rule
        self._places: dict[str, tuple[int, int, tuple[int, ...]]] = {}  # name -> start, stop, shape
        size = 0
        for name, value in parameters.items():
            shape = np.shape(value)
            count = int(np.prod(shape, dtype=np.int64))
            self._places[name] = (size, size + count, shape)
            size += count
        if not size:
            raise UsageError("there are no parameters to train")
        self._values = np.empty(size, np.float32)  # never written once it is here: whoever looks at it keeps it
        for name, (start, stop, _) in self._places.items():
            self._values[start:stop] = np.ravel(np.asarray(parameters[name], np.float32))
        if not np.isfinite(self._values).all():
            raise UsageError("the parameters hold a NaN or an infinity")
        self._velocity: Vector | None = np.zeros(size, np.float32) if rule.momentum else None
        self._sum: Vector | None = None  # of the updates that wait for their round; as _values
        self._weight = 0.0  # of what is in the sum
        self._pending: dict[Worker, int] = {}  # whose updates are in the sum, and how many
        self._closes_at: float | None = None  # log time at which the round closes
        self._version = 0
        self._updates = 0
        self._workers: dict[Worker, _Known] = {}
        self._left: dict[Worker, _Known] = {}  # the longest gone first
        self._spare = _Spare(size)
        self._ranges = Ranges(UPLOADS_MAX, updates.bytes_max(size))
        self._fetches = Fetches(VERSIONS_MAX)
        for worker in workers or ():
            _check_worker(worker)
            examples = workers[worker] if isinstance(workers, Mapping) else 1
            self._workers[worker] = _Known(_checked_examples(examples))
        self._weigh()

    # --- Commands ---

    @command
    def join(self, worker: Worker, examples: float = 1, life: int | None = None) -> int:
        """Take a worker in, or know it again; return its last step, 0 if there is none.

        From now on only pushes of this `life` are applied: an earlier process of the worker, which was stopped and
        comes back, cannot push beside its successor, nor a copy of its last push that is still on its way.

        Args:
            worker: its name or number, the same after a restart.
            examples: how much its updates count, relative to the others'.
            life: a number of its process's own; who joins twice under one has joined once.

        Raises:
            UsageError: the name, the number of examples or the life is none.
            Superseded: it is a life before the one that speaks for the worker now.
        """
        _check_worker(worker)
        examples = _checked_examples(examples)
        if life is not None and type(life) is not int:
            raise UsageError(f"a life is an int of the worker's own, not {life!r}")
        known = self._workers.get(worker)
        before = known or self._left.get(worker)
        if before is not None and life is not None and life in before.former:
            raise Superseded(f"worker {worker!r} has joined again since, as another process", worker, before.step)
        if known is None:
            slowest = min((each.clock for each in self._workers.values()), default=None)
            known = self._left.pop(worker, None) or _Known(examples)
            known.head_start = 0 if slowest is None else slowest - known.step
            self._workers[worker] = known
        if known.life is not None and known.life != life:
            known.former = (*known.former, known.life)[-LIVES_MAX:]
        known.examples, known.life = examples, life
        self._weigh()
        return known.step

    @command
    def leave(self, worker: Worker) -> bool:
        """Let a worker go; nobody waits for it any more. Return whether it was in. What it pushed stays."""
        known = self._workers.pop(worker, None)
        if known is None:
            return False
        self._left[worker] = known
        self._weigh()
        if len(self._left) > LEFT_MAX:
            del self._left[next(iter(self._left))]
        if self._is_round_full(self._pending):
            self._close_round()
        return True

    @command
    def push(self, worker: Worker, step: int, base_version: int, update: Any, life: int | None = None) -> int:
        """Add an update; return the version that has it, or will have it when its round closes.

        A step that was applied before is answered as it was then.

        Args:
            worker: who computed it.
            step: the worker's count of its updates, from 1.
            base_version: of the parameters that it was computed from.
            update: name -> array of float32; or all of them as one vector; or bytes (updates.py).
            life: as it joined.

        Raises:
            PushRefused: it is not applied; which of its subclasses says why.
            RangeRefused: it says that its ranges have gone ahead, and they are not all there; likewise.
        """
        known = self._known(worker, step, life)
        if type(step) is int and 1 <= step <= known.step:
            answer = _answer(known, worker, step)
            if answer == GIVEN_UP:
                raise GivenUp(f"step {step} of worker {worker!r} was given up", worker, step)
            return answer
        self._check_step(known, worker, step, known.step)
        self._check_base(worker, step, base_version)
        vector = self._vector(update, worker, step)
        answer = self._take([(worker, step, base_version, life)], vector, known.examples)
        self._forget_ranges(update)
        return answer

    @command
    def push_sum(self, members: Iterable[tuple[Any, ...]], update: Any) -> int:
        """Add a sum of updates, all or none of it; return the version that has them, or will have.

        Args:
            members: (worker, step, base version), or these and a life, of each; a worker's steps in order.
            update: the sum of their updates, each times its worker's number of examples (`join`).

        Raises:
            AlreadyApplied: some were applied (or given up) before; it names them, with their answers.
            PushRefused: one of the others may not be applied; it names the first.
            RangeRefused: as in `push`.
        """
        these = [_member(*each) for each in members]
        if not these:
            raise WrongUpdate("a sum has members")
        done: list[tuple[Worker, int, int]] = []
        last: dict[Worker, int] = {}
        weight = 0.0
        for worker, step, base_version, life in these:
            known = self._known(worker, step, life)
            before = last.get(worker, known.step)
            if 1 <= step <= known.step:
                done.append((worker, step, _answer(known, worker, step)))
                continue
            if worker in last and type(self._rule) is Mean:
                raise TooFarAhead(f"two updates of worker {worker!r} in one round", worker, step)
            self._check_step(known, worker, step, before)
            self._check_base(worker, step, base_version)
            last[worker] = step
            weight += known.examples
        if done:
            named = ", ".join(f"{worker!r} step {step}" for worker, step, _ in done)
            raise AlreadyApplied(f"applied before: {named}", done)
        answer = self._take(these, self._vector(update, *these[0][:2]), weight, summed=True)
        self._forget_ranges(update)
        return answer

    @command
    def put_range(self, sender: int, number: int, size: int, data: bytes) -> int:
        """Keep a range of an update, as bytes, that is larger than an entry of the log should be; return its number.

        The last range comes with the push of it (`updates.ranged`); they may all be sent without waiting.

        Args:
            sender: a number of the sender's own; it has one update under way at a time.
            number: of the range, from 0, which begins anew.
            size: of the whole update.
            data: the range; `RANGE_BYTES` of it (ranges.py).

        Raises:
            RangeRefused: it is not kept; which of its subclasses says why.
        """
        self._ranges.put(sender, number, size, data, _log_time())
        return number

    @command
    def skip(self, worker: Worker, step: int, life: int | None = None) -> int:
        """Give up a step that was refused for good, so that the ones after it can be applied; return the last step.

        Its number is used up: it never means another update, whoever may still hold a copy of the first.
        """
        known = self._known(worker, step, life)
        if type(step) is not int or step > known.step:
            self._check_step(known, worker, step, known.step, ahead=False)
            self._note(known, step, GIVEN_UP)
        return known.step

    # --- Queries ---

    @query
    def pull(self, keys: Iterable[str] | None = None, min_version: int = 0) -> tuple[int, dict[str, Any]]:
        """Return the version, and the parameters: name -> array, read-only.

        Args:
            keys: which of them; None: all.
            min_version: not before there is this version.

        Raises:
            NotYet: there is not; a read of a cluster's waits for it.
            KeyError: there is no such name.
        """
        if self._version < min_version:
            raise NotYet(f"version {min_version}: this is {self._version}")
        return self._version, {name: self._view(name) for name in (self._places if keys is None else keys)}

    @query
    def pull_vector(self, min_version: int = 0) -> tuple[int, bytes]:
        """Return the version, and all parameters as the bytes of one vector of float32, little-endian.

        Raises:
            NotYet: it has not reached `min_version`; a read through a cluster waits for it.
        """
        if self._version < min_version:
            raise NotYet(f"version {min_version}: this is {self._version}")
        return self._version, self._values.tobytes()

    @query
    def pull_range(self, fetcher: int, number: int, min_version: int = 0) -> tuple[int, int, bytes]:
        """Return the version, the size of all parameters in bytes, and a range of these (ranges.py).

        All ranges that one fetcher asks one node for are of one version, which is told with each.

        Args:
            fetcher: a number of the fetch's own.
            number: of the range, from 0, which begins anew.
            min_version: as in `pull_vector`, of what begins.

        Raises:
            NotYet: as in `pull_vector`.
            RangeRefused: begin anew, or later; which of its subclasses says why.
        """
        if number == 0 and self._version < min_version:
            raise NotYet(f"version {min_version}: this is {self._version}")
        return self._fetches.get(fetcher, number, self._version, self._values.data.cast("B"))

    @query
    def layout(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return the names and shapes of the parameters, in the order of the vector."""
        return [(name, shape) for name, (_, _, shape) in self._places.items()]

    @query
    def progress(self) -> Progress:
        """Return how far the training is."""
        steps = {worker: known.step for worker, known in self._workers.items()}
        return Progress(self._version, self._updates, sum(self._pending.values()), steps, len(steps))

    # --- Rounds end by log time, too ---

    @property
    def wake_at(self) -> float | None:
        """Return the log time at which the round closes, None if it closes at none."""
        return self._closes_at

    def on_clock(self) -> None:
        """Close a round whose time has come."""
        if self._closes_at is not None and context().time >= self._closes_at:
            self._close_round()

    # --- Snapshots: in pieces, of vectors that nobody writes to while they are looked at ---

    def snapshot(self) -> Iterator[Any]:
        """Return the state in pieces: what is small, then each vector, a megabyte at a time."""
        return self.snapshot_while_serving()

    def snapshot_while_serving(self) -> Iterator[Any]:
        """Return the same; commands may run between two pieces."""
        vectors = [self._values, self._sum, self._velocity]
        uploads, ranges = self._ranges.state()
        head = (self._small(), [vector is not None for vector in vectors], self._rule, self._places, uploads)
        return _pieces(head, [vector for vector in vectors if vector is not None], ranges)

    def restore(self, state: Any) -> None:
        """Take up what `snapshot` gave."""
        import numpy as np

        chunks = iter(state)
        small, there, self._rule, self._places, uploads = next(chunks)
        size = max(stop for _, stop, _ in self._places.values())
        vectors: list[Vector | None] = []
        for is_there in there:
            vector = np.empty(size, np.float32) if is_there else None
            if vector is not None:
                for start in range(0, size, CHUNK_FLOATS):
                    part = vector[start : start + CHUNK_FLOATS]
                    part[:] = np.frombuffer(next(chunks), "<f4")
            vectors.append(vector)
        self._ranges = Ranges(UPLOADS_MAX, updates.bytes_max(size))
        self._ranges.restore(uploads, chunks)
        self._fetches = Fetches(VERSIONS_MAX)
        values, self._sum, self._velocity = vectors
        assert values is not None, "there are always parameters"
        self._values, self._spare = values, _Spare(size)
        self._version, self._updates, self._weight, self._closes_at, pending, workers, left = small
        self._pending = dict(pending)
        self._workers = {worker: _Known(*known) for worker, known in workers}
        self._left = {worker: _Known(*known) for worker, known in left}
        self._weigh()

    def digest(self) -> bytes:
        """Return what is equal on equal replicas: checksums of the vectors, which are read where they are."""
        crc = crc32(repr((self._rule, self._places, self._small())).encode())
        crcs = [0 if vector is None else crc32(vector.data) for vector in (self._values, self._sum, self._velocity)]
        return struct.pack("<5I", crc, *crcs, self._ranges.digest())

    def _small(self) -> tuple[Any, ...]:
        workers, left = (
            [
                (name, (each.examples, each.step, each.head_start, [*(each.answers or ())], each.life, each.former))
                for name, each in some.items()
            ]
            for some in (self._workers, self._left)
        )
        pending = list(self._pending.items())
        return self._version, self._updates, self._weight, self._closes_at, pending, workers, left

    def _weigh(self) -> None:
        """Say how many examples an update that counts once has, where there is no round to take the mean of."""
        some = [known.examples for known in self._workers.values()]
        self._mean_examples = sum(some) / len(some) if some else 1.0

    # --- Whether it may be applied ---

    def _known(self, worker: Worker, step: int, life: int | None) -> _Known:
        known = self._workers.get(worker) if type(worker) in (str, int) else None
        if known is None:
            raise UnknownWorker(f"worker {worker!r} has not joined, or has left", worker, step)
        if known.life != life:
            raise Superseded(f"worker {worker!r} has joined again since, as another process", worker, step)
        return known

    def _check_step(self, known: _Known, worker: Worker, step: int, last: int, *, ahead: bool = True) -> None:
        if type(step) is not int or step < 1:
            raise WrongUpdate(f"steps are ints that count from 1, not {step!r}", worker, step)
        if step > last + 1:
            raise StepAhead(f"worker {worker!r}: step {step} came before step {last + 1}", worker, step)
        ahead_max = self._rule.steps_ahead_max
        if ahead and ahead_max is not None:
            slowest = min(each.clock for each in self._workers.values())
            if step + known.head_start - slowest > ahead_max:
                raise TooFarAhead(
                    f"worker {worker!r}: step {step} is more than {ahead_max} ahead of the slowest", worker, step
                )

    def _check_base(self, worker: Worker, step: int, base_version: int) -> None:
        if type(base_version) is not int or base_version < 0:
            raise WrongUpdate(f"a base version is an int from 0, not {base_version!r}", worker, step)
        if base_version > self._version:
            raise UnknownVersion(f"version {base_version}: this is {self._version}", worker, step)
        if type(self._rule) is Mean:
            if base_version < self._version:
                raise RoundClosed(f"round {base_version} is closed; this is {self._version}", worker, step)
            if worker in self._pending:
                raise TooFarAhead(f"round {self._version} has an update of worker {worker!r}", worker, step)
        behind_max = self._rule.versions_behind_max
        if behind_max is not None and self._version - base_version > behind_max:
            raise TooOld(
                f"version {base_version} is more than {behind_max} behind {self._version}: pull, and compute it anew",
                worker,
                step,
            )

    def _vector(self, update: Any, worker: Worker, step: int) -> Vector:
        """Return an update as one vector: a view of what came, where that is possible."""
        import numpy as np

        size = self._values.size
        if isinstance(update, bytes | bytearray | memoryview):
            ranged = updates.read_ranged(update)
            if ranged is not None:
                update = self._ranges.whole(*ranged)
            try:
                return updates.read(update, size)
            except ValueError as error:
                raise WrongUpdate(str(error), worker, step) from None
        if isinstance(update, Mapping):
            if set(update) != set(self._places):
                raise WrongShape(f"it has {sorted(map(str, update))}, not {sorted(self._places)}", worker, step)
            vector = np.empty(size, np.float32)
            for name, (start, stop, shape) in self._places.items():
                vector[start:stop] = _floats(update[name], shape, name, worker, step).ravel()
            return vector
        return _floats(update, (size,), "the vector", worker, step)

    def _forget_ranges(self, update: Any) -> None:
        """What came in ranges is applied."""
        ranged = updates.read_ranged(update) if isinstance(update, bytes | bytearray | memoryview) else None
        if ranged is not None:
            self._ranges.forget(ranged[0])

    # --- Applying: everything is computed before anything is changed ---

    def _take(self, members: list[Member], vector: Vector, weight: float, *, summed: bool = False) -> int:
        """Add up what came, or make a version of it at once; then note who was applied."""
        rule = self._rule
        answer = self._version + 1
        if isinstance(rule, Async | FedBuff):
            ages = [self._version - base_version for _, _, base_version, _ in members]
            mean = sum(discounted(age, rule.discount) for age in ages) / len(ages)
            factor = mean / self._mean_examples
        else:
            factor = 1.0
        if not summed:
            factor *= weight
        if isinstance(rule, Async):
            self._make_version(vector, factor * rule.rate, checked=False, of=members[0])
        else:
            self._add(vector, factor, weight if isinstance(rule, Mean) else float(len(members)), members)
        for worker, step, *_ in members:
            self._note(self._workers[worker], step, answer)
        self._updates += len(members)
        if not isinstance(rule, Async) and self._is_round_full(self._pending):
            self._close_round()
        return answer

    def _note(self, known: _Known, step: int, answer: int) -> None:
        """A step of a worker is done, and this is its answer."""
        known.step = step
        answers = known.answers = known.answers or []
        answers.append(answer)
        if len(answers) > 2 * ANSWERS_MAX:
            del answers[:-ANSWERS_MAX]

    def _add(self, vector: Vector, factor: float, weight: float, members: list[Member]) -> None:
        """Add to the sum of the round; the first one begins it."""
        import numpy as np

        total = self._spare.take()
        with np.errstate(all="ignore"):  # what overflows is looked for below
            np.multiply(vector, np.float32(factor), out=total)
            if self._sum is not None:
                np.add(self._sum, total, out=total)
        if not np.isfinite(total).all():
            self._spare.give(total)
            raise NotFinite("a NaN or an infinity in the update, or in its sum with the others", *members[0][:2])
        if self._sum is None and isinstance(self._rule, Mean):
            self._closes_at = _end_of_round(self._rule.round_s)
        self._spare.give(self._sum)
        self._sum = total
        self._weight += weight
        for worker, *_ in members:
            self._pending[worker] = self._pending.get(worker, 0) + 1

    def _is_round_full(self, pending: dict[Worker, int]) -> bool:
        rule = self._rule
        if isinstance(rule, FedBuff):
            return sum(pending.values()) >= rule.k
        if not isinstance(rule, Mean) or not pending:
            return False
        if rule.k is not None:
            return len(pending) >= min(rule.k, max(1, len(self._workers)))
        return all(worker in pending for worker in self._workers)

    def _close_round(self) -> None:
        """Make the next version of the sum."""
        assert self._sum is not None, "a round has at least one update"
        self._make_version(self._sum, self._rule.rate / self._weight)
        self._spare.give(self._sum)
        self._sum, self._weight, self._closes_at = None, 0.0, None
        self._pending = {}

    def _make_version(
        self, change: Vector, factor: float, *, checked: bool = True, of: Member = ("", 0, 0, None)
    ) -> None:
        """Add a change to the parameters. A sum of finite numbers that is too large for float32 ends at its limit."""
        import numpy as np

        values = self._spare.take()
        velocity = None
        with np.errstate(all="ignore"):
            np.multiply(change, np.float32(factor), out=values)
            if self._velocity is not None:
                velocity = self._spare.take()
                np.multiply(self._velocity, np.float32(self._rule.momentum), out=velocity)
                np.add(velocity, values, out=velocity)
                np.add(self._values, velocity, out=values)
            else:
                np.add(self._values, values, out=values)
        if not np.isfinite(values).all():
            if not checked and not np.isfinite(change).all():
                self._spare.give(values, velocity)
                raise NotFinite("a NaN or an infinity in the update", *of[:2])
            largest = np.finfo(np.float32).max
            for each in (values, velocity):
                if each is not None:
                    np.clip(each, -largest, largest, out=each)
        self._spare.give(self._values, self._velocity if velocity is not None else None)
        self._values = values
        if velocity is not None:
            self._velocity = velocity
        self._version += 1

    def _view(self, name: str) -> Any:
        start, stop, shape = self._places[name]
        view = self._values[start:stop].reshape(shape)
        view.flags.writeable = False
        return view


class _Spare:
    """Vectors to compute the next state in, so that the one before stays whole; no part of the state.

    One at which somebody still looks (a snapshot being written, what a pull returned) is left to them.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[Vector] = []

    def take(self) -> Vector:
        """Return a vector of anything that nobody else sees."""
        import numpy as np

        for place in range(len(self._free) - 1, -1, -1):
            vector = self._free.pop(place)
            if sys.getrefcount(vector) <= _ALONE:
                return vector
        return np.empty(self._size, np.float32)

    def give(self, *vectors: Vector | None) -> None:
        """Take back what is no longer part of the state."""
        self._free.extend(vector for vector in vectors if vector is not None and len(self._free) < 4)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Spare, (self._size,)


def _references() -> int:
    vector = object()
    return sys.getrefcount(vector)


_ALONE: Final = _references()  # as counted for an object that only a local variable holds


def _pieces(head: Any, vectors: list[Vector], ranges: list[bytes]) -> Iterator[Any]:
    yield head
    for vector in vectors:
        for start in range(0, vector.size, CHUNK_FLOATS):
            yield vector[start : start + CHUNK_FLOATS].tobytes()
    yield from ranges


def _end_of_round(round_s: float | None) -> float | None:
    if round_s is not None:
        return context().time + round_s
    try:
        return context().time + ROUND_S
    except UsageError:
        return None  # a plain local instance, where no log time passes


def _log_time() -> float:
    try:
        return context().time
    except UsageError:
        return 0.0  # likewise


def _floats(value: Any, shape: tuple[int, ...], name: str, worker: Worker, step: int) -> Vector:
    import numpy as np

    if not isinstance(value, np.ndarray) or value.dtype != np.float32:
        kind = getattr(value, "dtype", type(value).__name__)
        raise WrongDtype(f"{name} is an array of float32, not {kind}", worker, step)
    if value.shape != shape:
        raise WrongShape(f"{name} has shape {shape}, not {value.shape}", worker, step)
    return value


def _answer(known: _Known, worker: Worker, step: int) -> int:
    answers = known.answers or []
    behind = known.step - step
    if behind >= len(answers):
        raise AnswerForgotten(
            f"step {step} of worker {worker!r} was applied; its answer is no longer held", worker, step
        )
    return answers[-1 - behind]


def _member(worker: Any, step: Any, base_version: Any, life: Any = None) -> Member:
    return worker, step, base_version, life


def _check_worker(worker: Any) -> None:
    if type(worker) not in (str, int):
        raise UsageError(f"a worker is named by a str or an int, not {worker!r}")


def _checked_examples(examples: Any) -> float:
    if type(examples) not in (int, float) or not EXAMPLES[0] <= examples <= EXAMPLES[1]:
        raise UsageError(
            f"a worker has a number of examples, from {EXAMPLES[0]:g} to {EXAMPLES[1]:g}, not {examples!r}"
        )
    return float(examples)
