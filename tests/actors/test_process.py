"""Processes: how they start, what they say, and that they never outlive their parent."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actorraft.actors import monitor
from actorraft.actors import process as process_module
from actorraft.actors.bootstrap import Reports, read_frame
from actorraft.actors.monitor import Monitor
from actorraft.actors.process import ActorProcess, describe_exit
from actorraft.actors.supervision import Supervision
from actorraft.errors import ActorRaftError, StartError, UsageError
from tests.leftovers import nothing_new, resources

ROOT = Path(__file__).resolve().parents[2]
LOGGER = logging.getLogger("actorraft.test")
Start = Callable[..., ActorProcess]

pytestmark = pytest.mark.cluster


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start processes that are closed at the end of the test."""
    started: list[ActorProcess] = []

    def start_one(target: Callable[..., Any], *args: Any, **options: Any) -> ActorProcess:
        process = ActorProcess(target, args, **{"name": "one", "run_dir": tmp_path, "logger": LOGGER, **options})
        started.append(process)
        process.start()
        return process

    yield start_one
    for process in started:
        process.close()
        assert not process.alive


def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Wait for something that another process does."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.005)
    return value


def gone(pid: int) -> bool:
    """Whether there is no such process; a zombie that nobody has buried yet counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


# --- What runs in the children (sent by value: tests are not importable there under their names) ---


def _stay(context: Any) -> None:
    context.report("up")
    context.receive(None)


def _echo(context: Any) -> None:
    while (order := context.receive(None)) is not None:
        context.report(order)


# --- Starting ---


def test_a_child_has_the_arguments_and_the_surroundings_of_its_parent(start: Start) -> None:
    def tell(context: Any, first: int, second: str) -> None:
        context.report((first, second, os.getcwd(), sys.argv, sys.path, sys.stdin.read(), os.getpgrp() == os.getpid()))

    first, second, cwd, argv, path, stdin, leads_group = start(tell, 1, "two").receive(20.0)

    assert (first, second, cwd, argv) == (1, "two", os.getcwd(), sys.argv)
    assert path == [os.path.abspath(each) for each in sys.path]
    assert stdin == ""
    assert leads_group


def test_the_hash_seed_is_the_one_asked_for(start: Start) -> None:
    def tell(context: Any) -> None:
        context.report(hash("actorraft"))

    one, two = (start(tell, name=name, hash_seed=7) for name in ("one", "two"))

    assert one.receive(20.0) == two.receive(20.0)


def test_a_large_argument_does_not_hold_up_the_start(start: Start) -> None:
    def measure(context: Any, data: bytes) -> None:
        context.report(len(data))

    process = start(measure, bytes(5 << 20))

    assert process.receive(20.0) == 5 << 20


def test_orders_and_reports_arrive_whole_and_in_order(start: Start) -> None:
    process = start(_echo)
    orders = [*range(100), b"x" * 300_000, {"last": None}]

    for order in orders:
        process.send(order)

    assert [process.receive(20.0) for _ in orders] == orders


def test_what_is_told_after_an_order_that_has_left_in_part_is_understood(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(_echo)
    process.send("before")
    assert process.receive(20.0) == "before"
    process.pause()
    monkeypatch.setattr(process_module, "SEND_S", 0.05)
    large = b"x" * 2_000_000
    for order in (large, "never begun", "nor this"):
        with pytest.raises(UsageError, match="takes no orders"):
            process.send(order)
    monkeypatch.undo()
    process.resume()
    process.send("after")

    assert [process.receive(20.0) for _ in range(2)] == [large, "after"]


def test_an_order_that_is_only_a_hint_waits_for_nobody(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start(_echo)
    process.send("before")
    assert process.receive(20.0) == "before"
    process.pause()
    monkeypatch.setattr(process_module, "SEND_S", 60.0)
    waits = threading.Thread(target=process.send, args=(b"x" * 2_000_000,), daemon=True)
    waits.start()
    until(process._sending.locked)
    began_s = time.monotonic()
    with pytest.raises(UsageError, match="takes no orders"):
        process.send("hint", patience_s=0.0)
    assert time.monotonic() - began_s < 30.0
    process.resume()
    waits.join(20.0)
    assert len(process.receive(20.0)) == 2_000_000


def test_a_report_never_holds_up_the_child(start: Start) -> None:
    def report_much(context: Any) -> None:
        for number in range(20):
            context.report((number, bytes(100_000)))
        Path(context.receive(None)).touch()
        context.receive(None)

    process = start(report_much)
    done = process._output.parent / "done"
    process.send(str(done))

    until(done.exists)  # nobody has read a single report

    assert [process.receive(20.0)[0] for _ in range(20)] == list(range(20))


@pytest.mark.parametrize("order", [b"", b"x" * 100_000])
def test_an_order_to_a_dead_child_is_refused(start: Start, order: bytes) -> None:
    process = start(_stay)
    process.receive(20.0)
    process.kill()
    process.wait(20.0)

    with pytest.raises(UsageError, match="is gone"):
        process.send(order)


# --- Children that do not come up ---


def test_a_child_that_raises_says_why(start: Start) -> None:
    def fail(context: Any) -> None:
        print("these are my last words")
        raise LookupError("no such thing")

    process = start(fail)

    with pytest.raises(StartError) as failure:
        process.receive(20.0)
    text = str(failure.value)
    assert "LookupError: no such thing" in text
    assert "exit code 1" in text
    assert "these are my last words" in text
    assert text.count("Traceback") == 1
    assert "in fail" in text


def test_a_child_that_dies_without_a_word_says_how(start: Start) -> None:
    def die(context: Any) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    process = start(die)

    with pytest.raises(StartError, match=r"(?s)killed by SIGSEGV.*Segmentation fault"):  # faulthandler's words
        process.receive(20.0)


def test_a_child_that_says_nothing_is_told_of_in_time(start: Start) -> None:
    process = start(_echo)

    with pytest.raises(StartError, match=r"said nothing within 0.0 s: it is still running"):
        process.receive(0.0)


def test_arguments_that_cannot_be_loaded_say_why(start: Start) -> None:
    def refuse() -> None:
        raise RuntimeError("not in this process")

    class Refuses:
        def __reduce__(self) -> Any:
            return refuse, ()

    process = start(_echo, Refuses())

    with pytest.raises(StartError, match="RuntimeError: not in this process"):
        process.receive(20.0)


def test_an_interpreter_that_cannot_be_started_is_a_start_error(start: Start) -> None:
    before = len(os.listdir("/proc/self/fd"))

    with pytest.raises(StartError, match="cannot be started"):
        start(_stay, launch_prefix=["/no/such/program"])

    assert len(os.listdir("/proc/self/fd")) == before


def test_a_usage_error_in_the_child_is_one_in_the_parent_too(start: Start) -> None:
    def refuse(context: Any) -> None:
        from actorraft.errors import UsageError

        raise UsageError("that path is too long")

    process = start(refuse)

    with pytest.raises(UsageError, match="that path is too long") as failure:
        process.receive(20.0)
    assert isinstance(failure.value, StartError)


def test_a_spawn_at_import_time_in_a_child_is_refused_and_names_module_and_fix(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unguarded_module.py").write_text(
        "from actorraft.actors.process import refuse_nested_spawn\nrefuse_nested_spawn()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(context: Any) -> None:
        import unguarded_module  # type: ignore[import-not-found]

        context.report(unguarded_module)

    process = start(load)

    with pytest.raises(UsageError, match=r'imports the module unguarded_module.*if __name__ == "__main__":'):
        process.receive(20.0)


def test_a_child_may_spawn_when_it_is_not_importing(start: Start) -> None:
    def check(context: Any) -> None:
        from actorraft.actors.process import refuse_nested_spawn

        context.report(refuse_nested_spawn())

    assert start(check).receive(20.0) is None


# --- Running and ending ---


def test_terminate_asks_and_wakes(start: Start) -> None:
    def wait(context: Any) -> None:
        woken = threading.Event()
        context.on_stop(woken.set)
        context.report("up")
        woken.wait(20.0)
        context.report(context.stop_requested)

    process = start(wait)
    process.receive(20.0)

    process.pause()
    process.terminate()

    assert process.receive(20.0) is True
    assert process.wait(20.0) == 0


def test_ctrl_c_is_the_parents_to_handle(start: Start) -> None:
    process = start(_echo)
    process.send("before")
    process.receive(20.0)

    os.kill(process.pid, signal.SIGINT)
    process.send("after")

    assert process.receive(20.0) == "after"


def test_kill_ends_what_the_child_started_too(start: Start) -> None:
    def start_another(context: Any) -> None:
        context.report(subprocess.Popen(["sleep", "60"]).pid)
        context.receive(None)

    process = start(start_another)
    grandchild = process.receive(20.0)

    process.kill()

    assert process.wait(20.0) == -signal.SIGKILL
    until(lambda: gone(grandchild))


def test_a_child_that_is_paused_stands_still_with_all_its_threads(start: Start) -> None:
    def toil(context: Any) -> None:
        import hashlib

        def work() -> None:
            while True:
                hashlib.sha256(bytes(1 << 16)).digest()  # side by side: it lets go of the lock

        for _ in range(8):
            threading.Thread(target=work, daemon=True).start()
        context.report("up")
        context.receive(None)

    process = start(toil)
    process.receive(20.0)
    for _ in range(20):
        process.pause()
        states = [
            file.read_text().rpartition(")")[2].split()[0] for file in Path(f"/proc/{process.pid}/task").glob("*/stat")
        ]
        assert set(states) == {"T"}
        process.resume()


def test_close_ends_a_child_that_is_paused(start: Start) -> None:
    process = start(_stay)
    process.receive(20.0)
    process.pause()

    process.close()

    assert process.returncode == -signal.SIGKILL


def test_one_that_is_closed_while_it_starts_is_ended_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when an actor is killed, or its program ends, while supervision starts it again."""
    process = ActorProcess(_stay, name="one", run_dir=tmp_path, logger=LOGGER)
    closing = threading.Thread(target=process.close)
    popen = subprocess.Popen

    def closed_meanwhile(*args: Any, **options: Any) -> Any:
        closing.start()
        closing.join(0.3)
        return popen(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", closed_meanwhile)
    process.start()
    monkeypatch.undo()
    closing.join(60.0)
    assert process._popen is not None
    assert process._popen.returncode is not None
    assert not process.alive


def test_one_that_was_closed_is_not_started(tmp_path: Path) -> None:
    process = ActorProcess(_stay, name="one", run_dir=tmp_path, logger=LOGGER)
    process.close()
    with pytest.raises(StartError, match="was ended before it was started"):
        process.start()
    assert process._popen is None


def test_log_records_come_out_of_the_parents_logger(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    def log(context: Any) -> None:
        logging.getLogger("actorraft").warning("of %s", "ours")
        logging.getLogger("mine").error("of the user's")
        context.report("logged")

    with caplog.at_level(logging.INFO, logger="actorraft"):
        start(log).receive(20.0)

    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("actorraft.test", "WARNING", "of ours"),
        ("actorraft.test", "ERROR", "mine: of the user's"),
    ]


def test_the_file_of_the_output_stays_bounded(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actorraft.actors.process.OUTPUT_BYTES_MAX", 10_000)
    monkeypatch.setattr("actorraft.actors.process.OUTPUT_KEPT_BYTES", 1_000)

    def write(context: Any) -> None:
        for number in range(2_000):
            print(f"line {number}")
        context.report("written")
        context.receive(None)
        print("and on")
        context.report("on")

    process = start(write)
    process.receive(20.0)
    process.bound_output()
    process.send("go on")
    process.receive(20.0)

    assert process._output.stat().st_size < 1_200
    assert process.logs(3) == ["line 1998", "line 1999", "and on"]
    assert process.logs(0) == []
    with pytest.raises(UsageError, match="lines is how many of the last ones are wanted, a whole number, not 'x'"):
        process.logs("x")  # type: ignore[arg-type]


def test_fifty_starts_and_ends_leave_nothing_behind(start: Start) -> None:
    before = resources()
    pids = []
    for _ in range(10):
        batch = [start(_stay, name=f"batch {number}") for number in range(5)]
        for process in batch:
            assert process.receive(20.0) == "up"
        for process in batch:
            pids.append(process.pid)
            process.close()

    assert nothing_new(before)
    assert all(gone(pid) for pid in pids)


# --- The parent dies ---

PARENT = """
import logging, os, sys, signal
from pathlib import Path
from actorraft.actors.process import ActorProcess

def idle(context):
    context.report("up")
    context.receive(None)

def stopped(context):
    import os, signal
    context.report("up")
    os.kill(os.getpid(), signal.SIGSTOP)

def busy(context):
    context.report("up")
    10 ** 10 ** 9  # one C call that holds the GIL for longer than any test

processes = [
    ActorProcess(target, name=target.__name__, run_dir=Path(sys.argv[1]), logger=logging.getLogger("actorraft"))
    for target in (idle, stopped, busy)
]
for process in processes:
    process.start()
for process in processes:
    process.receive(20)
{then}
"""


def run_parent(tmp_path: Path, then: str) -> tuple[subprocess.Popen[str], list[int]]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.replace("{then}", then), str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    return parent, [int(pid) for pid in parent.stdout.readline().split()]


def test_no_child_outlives_a_killed_parent_not_even_a_stopped_one_or_one_in_c(tmp_path: Path) -> None:
    parent, pids = run_parent(
        tmp_path, "print(*(p.pid for p in processes), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )

    parent.wait(20.0)

    until(lambda: all(gone(pid) for pid in pids), timeout_s=2.0)
    assert len(pids) == 3
    assert parent.stdout is not None
    parent.stdout.close()


def test_no_child_outlives_a_parent_that_just_ends_and_a_fork_of_it_keeps_none(tmp_path: Path) -> None:
    parent, pids = run_parent(
        tmp_path,
        "fork = os.fork()\n"
        "if fork == 0:\n    import time; time.sleep(20); os._exit(0)\n"
        "print(*(p.pid for p in processes), fork, flush=True)",
    )
    *children, fork = pids

    assert parent.wait(20.0) == 0

    try:
        until(lambda: all(gone(pid) for pid in children), timeout_s=2.0)
        assert not gone(fork)
    finally:
        os.kill(fork, signal.SIGKILL)
        assert parent.stdout is not None
        parent.stdout.close()


def test_closing_in_a_fork_leaves_the_parents_children_alone(start: Start) -> None:
    process = start(_echo)
    fork = os.fork()
    if fork == 0:
        process.kill()
        process.close()
        os._exit(0 if not process.alive else 1)

    assert os.waitpid(fork, 0)[1] == 0
    process.send("still here")
    assert process.receive(20.0) == "still here"


# --- The monitor ---


class Owner:
    """Starts processes, has them watched, and remembers what it was told."""

    def __init__(self, run_dir: Path, supervision: Supervision | None) -> None:
        self.run_dir = run_dir
        self.told: list[tuple[str, str, Any]] = []
        self.processes: dict[str, ActorProcess] = {}
        self.restarted: list[str] = []
        self.monitor = Monitor(
            supervision=supervision,
            restart=lambda process: (self.restarted.append(process.name), self.start(process.name))[0],
            on_report=lambda process, report: self.told.append(("report", process.name, report)),
            on_exit=lambda process, reason: self.told.append(("exit", process.name, reason)),
        )

    def start(self, name: str, target: Callable[..., Any] = _stay) -> ActorProcess:
        if name in self.processes:
            self.processes[name].close()
        process = ActorProcess(target, name=name, run_dir=self.run_dir, logger=LOGGER)
        self.processes[name] = process
        process.start()
        self.monitor.watch(process)
        return process

    def exits(self) -> list[str]:
        return [name for what, name, _ in self.told if what == "exit"]

    def up(self, name: str, lives: int = 1) -> bool:
        return self.told.count(("report", name, "up")) >= lives

    def close(self) -> None:
        self.monitor.close()
        for thread in threading.enumerate():  # a restart that is under way makes a process that is not known here yet
            if thread.name == "actorraft-restart":
                thread.join(60.0)
        for process in self.processes.values():
            process.close()


@pytest.fixture
def make_owner(tmp_path: Path) -> Iterator[Callable[[Supervision | None], Owner]]:
    owners: list[Owner] = []

    def make(supervision: Supervision | None) -> Owner:
        owners.append(Owner(tmp_path, supervision))
        return owners[-1]

    before = resources()
    yield make
    for owner in owners:
        owner.close()
    until(lambda: nothing_new(before))


FAST = {"backoff_s": (0.0, 0.0)}


def test_the_monitor_starts_again_what_dies_unasked(make_owner: Callable[..., Owner]) -> None:
    owner = make_owner(Supervision(**FAST))
    process = owner.start("a")
    until(lambda: owner.up("a"))

    process.kill()

    until(lambda: owner.up("a", lives=2))
    assert owner.exits() == ["a"]
    assert "killed by SIGKILL" in next(what for kind, _, what in owner.told if kind == "exit")
    assert owner.processes["a"].pid != process.pid


def test_a_restart_for_which_there_is_no_thread_is_tried_again(
    make_owner: Callable[..., Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    start = threading.Thread.start

    def start_or_not(thread: threading.Thread) -> None:
        if thread.name == "actorraft-restart" and len(refused) < 3:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(monitor, "LOOK_S", 0.05)
    monkeypatch.setattr(threading.Thread, "start", start_or_not)
    owner = make_owner(Supervision(**FAST))
    process = owner.start("a")
    until(lambda: owner.up("a"))

    process.kill()

    until(lambda: owner.up("a", lives=2))
    assert len(refused) == 3


def test_a_report_for_which_there_is_no_thread_goes_out_with_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    read, write = os.pipe()
    os.set_blocking(write, False)
    reports = Reports(write)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            reports.put(b"x" * 100_000)  # more than a pipe takes
    reports.put(b"last")
    frames = [read_frame(read) for _ in range(4)]
    assert frames == [b"x" * 100_000] * 3 + [b"last"]
    os.close(read)
    until(lambda: reports._flusher is None)
    os.close(write)


def test_what_is_forgotten_first_stays_down(make_owner: Callable[..., Owner]) -> None:
    owner = make_owner(Supervision(**FAST))
    asked, unasked = owner.start("asked"), owner.start("unasked")
    until(lambda: owner.up("asked") and owner.up("unasked"))

    owner.monitor.forget(asked)
    asked.kill()
    unasked.kill()

    until(lambda: owner.up("unasked", lives=2))
    assert owner.exits() == ["unasked"]
    assert owner.restarted == ["unasked"]


def test_what_dies_too_often_stays_down(make_owner: Callable[..., Owner], caplog: pytest.LogCaptureFixture) -> None:
    def die(context: Any) -> None:
        os._exit(3)

    owner = make_owner(Supervision(max_restarts=2, **FAST))
    original = owner.start
    owner.start = lambda name, target=die: original(name, target)  # type: ignore[method-assign]
    owner.start("a")

    until(lambda: "died too often" in caplog.text)

    assert owner.exits() == ["a", "a", "a"]


@pytest.mark.parametrize(
    ("strategy", "again"),
    [("one_for_one", {"b"}), ("rest_for_one", {"b", "c"}), ("one_for_all", {"a", "b", "c"})],
)
def test_a_death_concerns_whom_the_strategy_says(
    make_owner: Callable[..., Owner], strategy: Any, again: set[str]
) -> None:
    owner = make_owner(Supervision(strategy=strategy, **FAST))
    for name in ("a", "b", "c"):
        owner.start(name)
    until(lambda: all(owner.up(name) for name in "abc"))

    owner.processes["b"].kill()

    until(lambda: all(owner.up(name, lives=2) for name in again))
    assert owner.restarted == sorted(again)
    assert set(owner.exits()) == again


def test_an_owner_that_raises_does_not_end_the_watch(make_owner: Callable[..., Owner]) -> None:
    owner = make_owner(Supervision(**FAST))
    owner.monitor._on_report = lambda *_: 1 / 0  # type: ignore[assignment,return-value]
    process = owner.start("a")

    process.kill()

    until(lambda: owner.exits() == ["a"])


def test_every_way_to_end_is_said_in_words() -> None:
    assert describe_exit(None) == "it is still running"
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-signal.SIGKILL) == "killed by SIGKILL"
    assert describe_exit(-(signal.SIGRTMIN + 1)) == f"killed by signal {signal.SIGRTMIN + 1}"
    assert issubclass(StartError, ActorRaftError)
