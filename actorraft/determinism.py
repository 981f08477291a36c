"""Does a machine do the same everywhere? The same commands are applied under everything that differs between nodes.

Replicas are equal only as long as a command's effect depends on nothing but the state and its arguments. What breaks
that is seldom seen in one process: a clock, random numbers, `id()`, the order of a set, a global that the process
keeps, an attribute that no snapshot has. So the commands are applied again in fresh interpreters (another hash seed;
another clock, time zone and folder), in a second machine of one process, deeper in the stack, and with the state put
into a snapshot and back, after each command and once at each place, there and in a process that has run nothing of the
machine's before. All must give the same results, events and state.

Process:    each interpreter is a child that lives as long as the check; it is given code and commands as a node is.
"""

from __future__ import annotations

import datetime
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from actorraft.errors import ActorRaftError, UsageError
from actorraft.machine import CommandContext, CommandObjects, methods_of
from actorraft.node.guest import HookFailed
from actorraft.node.host import MachineHost
from actorraft.node.recursion import limit_recursion
from actorraft.pickling import beside, canonical
from actorraft.pickling.encoder import Encoder, encode_factory
from actorraft.pickling.formats import ARRAYS, ERROR, OBJECT

RESTORES_MAX: Final = 100  # places where a run is restored once; evenly spread where there are more commands
DEEPER: Final = 300  # frames
RECURSION_MAX: Final = sys.getrecursionlimit()
CLOCK_S: Final = 40_000_000.0  # how far the other clock is off

_encode = msgspec.msgpack.Encoder().encode
_Ext = msgspec.msgpack.Ext


class NotDeterministic(AssertionError):
    """A machine did not do the same under two conditions; the text names the first difference."""


class _Step(NamedTuple):
    """What is known after a command (the first: before any)."""

    result: str
    digest: bytes  # of the result and of what was published
    state: dict[str, bytes]  # digest by attribute
    wake_at: float | None


def check_determinism(
    machine: Callable[..., Any],
    commands: Iterable[Any],
    *,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    timeout: float = 60.0,
) -> None:
    """Apply the same commands under everything that may differ between nodes, and compare.

    Args:
        machine: the class, or what builds one; as for ReplicatedStateMachine.
        commands: each a tuple of a command's name and its arguments, `("deposit", "ann", 5)`, for a machine that has
            commands as methods; else, or for what is no such tuple, an object as `cluster.execute` takes it.
        args: of the machine's constructor.
        kwargs: likewise.
        timeout: seconds for each of the interpreters.

    Raises:
        NotDeterministic: two runs differ; it names the condition, the command, and the attribute or the result.
        UsageError: the machine cannot be made, or cannot be sent to another process.
        TimeoutError: an interpreter took longer.
    """
    frames: list[bytes] = []
    encoder = Encoder(frames.append)
    named = _command_names(machine, args)
    labels: list[str] = []
    places: list[int] = []  # of the commands among the frames, which also hold definitions
    for number, command in enumerate(commands, 1):
        if type(command) is tuple and command and command[0] in named:
            encoded = encoder.encode_call(command[0], command[1:], {})
        else:
            encoded = encoder.encode_command(command)
        places.append(len(frames))
        frames.append(encoded)
        labels.append(f"command {number}, {_short(command)}")
    factory = encode_factory(machine, args, kwargs or {})
    runs: dict[str, list[_Step]] = {}
    with tempfile.TemporaryDirectory() as folder:
        plain = {"PYTHONHASHSEED": "1"}
        children = [
            ("", _Child(_Job(factory, frames, places, 0.0, full=True), plain, os.getcwd(), timeout)),
            ("in another process", _Child(_Job(factory, frames, places, 0.0), plain, os.getcwd(), timeout)),
            (
                "under another hash seed",
                _Child(_Job(factory, frames, places, 0.0), {"PYTHONHASHSEED": "2"}, os.getcwd(), timeout),
            ),
            (
                "with another clock, time zone and working directory",
                _Child(_Job(factory, frames, places, CLOCK_S), {**plain, "TZ": "Pacific/Kiritimati"}, folder, timeout),
            ),
        ]
        try:
            for condition, child in children:
                runs.update({condition or name: steps for name, steps in child.steps().items()})
        finally:
            for _, child in children:
                child.end()
    expected = runs.pop(_FIRST)
    for condition in sorted(runs, key=_order):
        _compare(expected, runs[condition], condition, labels)


_FIRST: Final = "first"


def _order(condition: str) -> int:
    """Say in which order conditions are judged: what explains the others comes first."""
    for place, begin in enumerate(("in another process", "in a second", "under", "with", "deeper", "restored")):
        if condition.startswith(begin):
            return place
    return 99


def _command_names(machine: Any, args: tuple[Any, ...]) -> frozenset[str]:
    if machine is CommandObjects or not isinstance(machine, type):
        return frozenset()
    found = methods_of(machine)
    return frozenset(found.commands) if found.row == "methods" else frozenset()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _compare(expected: Sequence[_Step], steps: Sequence[_Step], condition: str, labels: Sequence[str]) -> None:
    first = len(expected) - len(steps)  # what began from a snapshot has only what came behind that
    for number, (one, other) in enumerate(zip(expected[first:], steps, strict=True), first):
        where = f"after {labels[number - 1]}" if number else "as the constructor made it"
        if one.digest != other.digest and number > first:
            raise NotDeterministic(f"{labels[number - 1]} gave {one.result}, and {condition} {other.result}")
        names = sorted(
            each for each in one.state.keys() | other.state.keys() if one.state.get(each) != other.state.get(each)
        )
        if names:
            raise NotDeterministic(f"{where}, {condition} the state differs: {', '.join(names)}")
        if one.wake_at != other.wake_at:
            raise NotDeterministic(f"{where}, {condition} wake_at is {other.wake_at}, not {one.wake_at}")


# --- The other side ---------------------------------------------------------------------------------------------------


class _Job(NamedTuple):
    factory: bytes
    frames: list[bytes]
    places: list[int]
    clock_s: float
    full: bool = False


class _Child:
    """A fresh interpreter that applies the commands."""

    def __init__(self, job: _Job, environment: dict[str, str], folder: str, timeout: float) -> None:
        self._timeout = timeout
        path = [os.path.abspath(each) for each in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}; from {__name__} import _main; _main()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **environment}, cwd=folder,
        )  # fmt: skip
        self._answer: tuple[bytes, bytes] | None = None
        # All of them work at once; each has a thread that feeds it and reads what it says.
        self._thread = threading.Thread(target=self._talk, args=(_encode(job),), daemon=True)
        self._thread.start()

    def _talk(self, job: bytes) -> None:
        self._answer = self._process.communicate(job)

    def steps(self) -> dict[str, list[_Step]]:
        self._thread.join(self._timeout)
        if self._answer is None:
            raise TimeoutError(f"the commands took longer than {self._timeout} s in one of the interpreters")
        out, error = self._answer
        if self._process.returncode != 0:
            text = error.decode("utf-8", "replace").strip()[-4000:]
            raise UsageError(
                f"the machine cannot be tried: its interpreter ended with {self._process.returncode}: {text}"
            )
        return msgspec.msgpack.decode(out, type=dict[str, list[_Step]])

    def end(self) -> None:
        self._process.kill()
        self._thread.join(5.0)


def _main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what user code prints must not get between
    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=_Job)
    if job.clock_s:
        _move_clock(job.clock_s)
    runs: dict[str, list[_Step]] = {}
    count = len(job.places)
    every = max(1, -(-count // RESTORES_MAX))
    if job.full:  # before this process has run anything of the machine's: what commands change in it is not there
        taken = _elsewhere(lambda: _snapshots(job, range(every, count, every)), dict[int, bytes])
        for begin in taken.items():
            steps = _elsewhere(_later(job, begin), list[_Step])
            runs[f"restored from a snapshot in another process before command {begin[0] + 1}"] = steps
    runs[_FIRST] = _run(job)
    if job.full:
        runs["in a second machine of the same process"] = _run(job)
        runs["deeper in the stack"] = _deeper(DEEPER, lambda: _run(job))
        runs["restored from a snapshot after every command"] = _run(job, range(count + 1))
        for place in range(0, count, every):
            runs[f"restored from a snapshot before command {place + 1}"] = _run(job, (place,))
    answers.write(_encode(runs))
    answers.close()


def _deeper(frames: int, act: Callable[[], Any]) -> Any:
    return act() if frames == 0 else _deeper(frames - 1, act)


def _later(job: _Job, begin: tuple[int, bytes]) -> Callable[[], list[_Step]]:
    return lambda: _run(job, begin=begin)  # no partial: what is written in C may count as a frame


def _elsewhere(act: Callable[[], Any], kind: Any) -> Any:
    """Return what `act` gives in a fork of this process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as out:
                out.write(_encode(act()))
            code = 0
        except SystemExit as error:
            print(error.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as answers:
        data = answers.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        sys.exit(code)
    return msgspec.msgpack.decode(data, type=kind)


def _snapshots(job: _Job, places: Sequence[int]) -> dict[int, bytes]:
    """Return the snapshots before the commands whose places are given."""
    taken: dict[int, bytes] = {}

    def take(host: MachineHost, number: int) -> None:
        if number in places:
            taken[number] = _snapshot(host)

    _run(job, before=take)
    return taken


def _run(
    job: _Job,
    restore_at: Sequence[int] = (),
    begin: tuple[int, bytes] = (0, b""),
    before: Callable[[MachineHost, int], object] = lambda *_: None,
) -> list[_Step]:
    """Apply the commands on a fresh machine.

    Args:
        restore_at: places of commands before which it is restored.
        begin: of the first command, and the snapshot that it is restored from before that; empty: none.
        before: told of each command before it is applied.

    Returns:
        What is known before the first command and after each.
    """
    host = MachineHost.from_factory(job.factory, 1)
    context = CommandContext(1)
    first, snapshot = begin
    if snapshot:
        host.restore(io.BytesIO(snapshot))
    steps = [_step(host, context, None)]
    begin_frame = job.places[first - 1] + 1 if first else 0
    for number, place in enumerate(job.places):
        if number < first:
            continue
        before(host, number)
        if number in restore_at:
            _restore(host)
        context.begin_entry(number, 1, 1000.0 + number)
        context.position, context.serial = 0, number
        wake_at = host.wake_at
        if wake_at is not None and wake_at <= context.time:
            host.clock(context)
        result = None
        limit_recursion(RECURSION_MAX)  # as a node does: how deep a command may call depends on nobody else
        for frame in job.frames[begin_frame : place + 1]:
            try:
                result = host.apply(msgspec.msgpack.decode(frame), context)
            except ActorRaftError as stop:  # on a cluster the node would hold or stop here
                result = f"no result: {stop}"
        begin_frame = place + 1
        steps.append(_step(host, context, result))
    if len(job.places) in restore_at:
        _restore(host)
        steps[-1] = steps[-1]._replace(state=host.parts(), wake_at=host.wake_at)
    return steps


def _restore(host: MachineHost) -> None:
    host.restore(io.BytesIO(_snapshot(host)))


def _snapshot(host: MachineHost) -> bytes:
    buffer = io.BytesIO()
    try:
        host.snapshot(buffer.write)
    except HookFailed as error:
        raise SystemExit(f"no snapshot can be made of the machine: {error}") from error
    return buffer.getvalue()


def _step(host: MachineHost, context: CommandContext, result: Any) -> _Step:
    shown, value = _read(host, result)
    events = [(topic, _read(host, event)[1]) for _, topic, event in context.events]
    context.events = []
    return _Step(shown, canonical.digest((value, events)), host.parts(), host.wake_at)


def _read(host: MachineHost, result: Any) -> tuple[str, Any]:
    """Return a result as text, and as what is compared."""
    if type(result) is not _Ext:
        return _short(result), result
    if result.code == ERROR:
        _, type_name, message, *_ = msgspec.msgpack.decode(result.data)
        return f"{type_name}: {message}", (type_name, message)
    if result.code == ARRAYS:
        return _short(value := beside.loads(result.data)), value
    if result.code == OBJECT:
        value = host.decode_value(bytes(result.data))
        return _short(value), value
    return bytes(result.data).decode("utf-8", "replace"), bytes(result.data)


def _move_clock(by_s: float) -> None:
    """Let this process think that it is another time; for those who ask the modules `time` and `datetime`."""
    for name in ("time", "monotonic", "perf_counter", "process_time"):
        real = getattr(time, name)
        setattr(time, name, lambda real=real: real() + by_s)
    for name in ("time_ns", "monotonic_ns", "perf_counter_ns"):
        real = getattr(time, name)
        setattr(time, name, lambda real=real: real() + int(by_s * 1e9))
    for name in ("localtime", "gmtime", "ctime"):
        real = getattr(time, name)
        setattr(time, name, lambda secs=None, real=real: real(time.time() if secs is None else secs))
    off = datetime.timedelta(seconds=by_s)

    class Moved(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return super().now(tz) + off

        @classmethod
        def utcnow(cls) -> Any:
            return super().utcnow() + off

        @classmethod
        def today(cls) -> Any:
            return super().today() + off

    class MovedDate(datetime.date):
        @classmethod
        def today(cls) -> Any:
            return super().today() + off

    datetime.datetime, datetime.date = Moved, MovedDate  # type: ignore[misc]
