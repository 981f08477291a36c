"""What user code leaves set in its thread: a trace or profile function, a recursion limit. Our own code meets none."""

from __future__ import annotations

import _thread
import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from actorraft import CommandFailed, StateMachine, UsageError, codec, command, query
from actorraft.node.executor import Executor
from actorraft.node.guest import HookFailed, check_threads
from actorraft.node.host import MachineHost
from actorraft.node.work import Applied, Apply
from actorraft.pickling.results import decode_result
from actorraft.raft.messages import LogEntry
from tests.machine.local import Local


def raises(*_: Any) -> Any:
    raise RuntimeError("in a trace")


def depth() -> int:
    frame, found = sys._getframe(1), 0
    while frame is not None:
        frame, found = frame.f_back, found + 1  # type: ignore[assignment]
    return found


LEFT: dict[str, Callable[[], object]] = {
    "a trace that raises": lambda: sys.settrace(raises),
    "a profile that raises": lambda: sys.setprofile(raises),
    "a trace": lambda: sys.settrace(lambda *_: None),
    "a profile": lambda: sys.setprofile(lambda *_: None),
    "hardly any room to call": lambda: sys.setrecursionlimit(depth() + 3),
    "little room to call": lambda: sys.setrecursionlimit(depth() + 12),
    "much room to call": lambda: sys.setrecursionlimit(100_000),
}


class Leaves(StateMachine):
    """Leaves something set wherever it is told to."""

    def __init__(self) -> None:
        self.where = self.what = ""
        self.count = 0

    def leave(self, where: str) -> None:
        if where == self.where:
            LEFT[self.what]()

    @command
    def tell(self, where: str, what: str) -> None:
        self.where, self.what = where, what

    @command
    def add(self) -> list[int]:
        self.count += 1
        self.leave("command")
        return [self.count]

    @command
    def fail(self) -> None:
        self.leave("command")
        raise ValueError("mine")

    @query
    def counted(self) -> list[int]:
        self.leave("query")
        return [self.count]

    def digest(self) -> bytes:
        self.leave("digest")
        return b"d"

    def snapshot(self) -> Any:
        self.leave("snapshot")
        return self.count

    def restore(self, state: Any) -> None:
        self.leave("restore")
        self.count = state

    @property
    def wake_at(self) -> float | None:
        self.leave("wake_at")
        return 1.0

    def on_clock(self) -> None:
        self.leave("on_clock")

    def migrate(self, from_version: int) -> None:
        self.leave("migrate")


class Together:
    """Takes its commands many at once."""

    def apply(self, command: Any) -> Any:
        raise AssertionError("they come together")

    def apply_many(self, commands: list[Any]) -> list[Any]:
        LEFT[commands[0]]()
        return [[each] for each in commands]


@pytest.fixture(autouse=True)
def undisturbed() -> Iterator[None]:
    before = sys.gettrace(), sys.getprofile(), sys.getrecursionlimit()  # a coverage's, perhaps
    yield
    sys.settrace(before[0])
    sys.setprofile(before[1])
    sys.setrecursionlimit(before[2])


WAYS: dict[str, Callable[[Local], object]] = {
    "command": lambda local: local.call("add"),
    "query": lambda local: local.ask("counted"),
    "digest": lambda local: local.host.digest(),
    "snapshot": lambda local: local.snapshot(),
    "wake_at": lambda local: local.host.wake_at,
    "on_clock": lambda local: local.host.clock(local.context),
    "migrate": lambda local: local.host.migrate(0, local.context),
}


@pytest.mark.parametrize("what", LEFT)
@pytest.mark.parametrize("where", WAYS)
def test_what_user_code_sets_is_as_it_was_when_our_own_goes_on(where: str, what: str) -> None:
    local = Local(Leaves)
    local.call("tell", where, what)
    before = sys.gettrace(), sys.getprofile(), sys.getrecursionlimit()
    with contextlib.suppress(HookFailed, RuntimeError):  # as the user's own code met it
        WAYS[where](local)
    assert (sys.gettrace(), sys.getprofile(), sys.getrecursionlimit()) == before
    local.call("tell", "", "")
    assert local.call("add")[0] in (1, 2)


@pytest.mark.parametrize("what", LEFT)
def test_a_command_that_leaves_it_and_raises_arrives_as_what_it_raised(what: str) -> None:
    local = Local(Leaves)
    local.call("tell", "command", what)
    with pytest.raises((ValueError, RuntimeError)):
        local.call("fail")
    local.call("tell", "", "")
    assert local.call("add") == [1]


@pytest.mark.parametrize("what", LEFT)
def test_an_apply_many_that_leaves_it_gives_its_results(what: str) -> None:
    local = Local(Together)
    encoded = msgspec.msgpack.decode(local.encoder.encode_command(what))
    local.context.begin_entry(0, 1, 0.0)
    given = []
    for each in local.host.apply_many([encoded, encoded], local.context):
        try:
            given.append(decode_result(each))
        except (RuntimeError, CommandFailed):
            given.append(None)
    assert given in ([[what], [what]], [None, None])


SIGNALS = """
import os, signal
from actorraft.node.guest import signals_kept

def raises(*_): raise SystemExit(3)
def counts(*_): counted.append(1)
counted = []
before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE)]
try:
    with signals_kept():
        for each in (signal.SIGTERM, signal.SIGINT): signal.signal(each, raises)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, raises)
        signal.signal(signal.SIGUSR2, counts)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        raise KeyError("mine")
except KeyError:
    pass
assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE)] == before
for each in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP): os.kill(os.getpid(), each)
print(counted)
"""


def test_what_a_module_sets_for_signals_ends_no_node_and_keeps_none_from_leaving() -> None:
    script = f"import sys; sys.path[:0] = {[each for each in sys.path if each]!r}\n{SIGNALS}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "[1]\n"), done.stderr
    assert "a handler for SIGUSR1 raised SystemExit: 3" in done.stderr
    assert "the machine's module sets a handler for SIGTERM, which a node needs itself" in done.stderr


def test_threads_that_would_never_run_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_threads()
    monkeypatch.setattr(_thread, "start_new_thread", lambda *_: None)  # as gevent does
    with pytest.raises(UsageError, match=r"gevent.*in no module that nodes import"):
        check_threads()


class Deep(StateMachine):
    @command
    def allow(self, frames: int) -> None:
        sys.setrecursionlimit(frames)

    @command
    def down(self, frames: int) -> int:
        return 0 if frames == 0 else 1 + Deep.down.function(self, frames - 1)


@pytest.mark.parametrize("limit", [150, 100_000])
def test_a_limit_that_a_command_sets_is_gone_with_its_entry_however_entries_come_together(limit: int) -> None:
    def run(together: bool) -> list[Any]:
        executor = Executor(MachineHost(Deep), session_expiry_s=3600.0, recursion_max=1000)
        requests = [codec.Register(7)]
        for sequence, call in enumerate((["allow", limit], ["down", 300], ["down", 3000])):
            body = codec.join_body([msgspec.msgpack.encode(call)])
            requests.append(codec.Commands(0, sequence, sequence, 1, body))  # type: ignore[arg-type]
        entries = [LogEntry(1, codec.stamp(0.0, codec.encode(request))) for request in requests]
        batches = [entries] if together else [[entry] for entry in entries]
        replies: list[Any] = []
        first = 0
        for batch in batches:
            done = executor.run(Apply(first, batch))
            assert type(done) is Applied
            replies += done.replies
            first += len(batch)
        return replies[1:]

    apart, together = run(together=False), run(together=True)
    assert apart == together
    assert apart[1][1].values == [300]
    with pytest.raises(RecursionError):
        decode_result(apart[2][1].values[0])
