"""An executor that meets what other nodes may not meet: it holds, and never shows or keeps half a command."""

from __future__ import annotations

import importlib
import pickle
from typing import Any

import msgspec
import pytest

from actorraft import StateMachine, codec, command, context, query
from actorraft.errors import CommandFailed, UsageError
from actorraft.machine import CommandContext
from actorraft.node.executor import Executor
from actorraft.node.host import MachineHost
from actorraft.node.work import (
    BEFORE,
    TOGETHER,
    Answered,
    Applied,
    Apply,
    Hold,
    Read,
    Restore,
    Restored,
    SnapshotFailed,
    SnapshotTaken,
    Stopped,
    TakeSnapshot,
    Tried,
    TryAgain,
    Watch,
    Watched,
)
from actorraft.pickling import exceptions
from actorraft.pickling.results import decode_result
from actorraft.raft.messages import Configuration, EntryId, LogEntry
from actorraft.storage.marks import HELD, HELD_POSITION, RUNNING, Marks
from actorraft.storage.memory import MemoryStorage
from actorraft.storage.records import entry_checksum

missing: set[str] = set()  # what cannot be had just now


class Fragile(StateMachine):
    """Counts, and needs something in the middle of it."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    @command
    def add(self, name: str) -> int:
        self.counts[name] = self.counts.get(name, 0) + 1
        context().publish("counts", name)
        return self.counts[name]

    @command
    def add_with(self, name: str, needs: str) -> int:
        self.add(name)
        if needs in missing:
            importlib.import_module(f"surely_not_installed_{needs}")
        return self.add(name)

    @command
    def add_much(self, name: str) -> int:
        self.add(name)
        if "memory" in missing:
            raise MemoryError
        return self.add(name)

    @query
    def all(self) -> dict[str, int]:
        return dict(self.counts)


class Versioned(Fragile):
    """One that notes by which rules it adds."""

    machine_version = 2

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    @command
    def add(self, name: str) -> int:
        self.seen.append(context().machine_version)
        return super().add(name)

    def migrate(self, from_version: int) -> None:
        """Nothing to do."""


class Together:
    """A machine whose command objects come together."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def apply(self, command: Any) -> Any:
        raise AssertionError("they come together")

    def apply_many(self, commands: list[Any]) -> list[Any]:
        self.names += commands
        if "pandas" in missing:
            raise ImportError("no pandas", name="pandas")
        return list(commands)


class Hooked(Fragile):
    """One whose clock needs something."""

    wake_at = 1.0

    def on_clock(self) -> None:
        self.add("clock")
        if "pandas" in missing:
            raise ImportError("no pandas", name="pandas")
        self.add("clock")


class Unsendable(Fragile):
    """One whose result cannot be pickled without a module."""

    @command
    def add_and_tell(self, name: str) -> Any:
        self.add(name)
        return Told()


class Told:
    def __reduce__(self) -> Any:
        if "pandas" in missing:
            raise ImportError("no pandas", name="pandas")
        return (int, ("7",))


@pytest.fixture(autouse=True)
def nothing_is_missing() -> Any:
    missing.clear()
    yield
    missing.clear()
    raises.clear()


class Node:
    """An executor with a log and a store, as a driver would use it."""

    def __init__(
        self,
        machine: type = Fragile,
        marks: Marks | None = None,
        skips: dict[int, int] | None = None,
        code: codec.Code | None = None,
    ) -> None:
        self.executor = Executor(MachineHost(machine), session_expiry_s=1e9, marks=marks, skips=skips, code=code)
        self.storage = MemoryStorage()
        self.log: list[LogEntry] = []
        self.replies: list[tuple[int, codec.Reply]] = []
        self.events: list[Any] = []
        self.sequence = 0

    def append(self, *requests: object) -> Applied:
        entries = [LogEntry(1, codec.stamp(5.0, codec.encode(request))) for request in requests]
        self.log += entries
        return self.apply(entries)

    def apply(self, entries: list[LogEntry]) -> Applied:
        done = self.executor.run(Apply(len(self.log) - len(entries), entries))
        assert isinstance(done, Applied), done
        return self._took(done)

    def _took(self, done: Applied) -> Applied:
        self.replies += done.replies
        self.events += done.events
        return done

    def commands(self, *calls: list[Any]) -> codec.Commands:
        first, self.sequence = self.sequence, self.sequence + len(calls)
        body = codec.join_body([codec.encode(call) for call in calls])  # type: ignore[type-var]
        return codec.Commands(0, first, 0, len(calls), body)

    def call(self, *calls: list[Any]) -> Applied:
        return self.append(self.commands(*calls))

    def try_again(self, *, apply: bool = False) -> Applied:
        hold = self.executor.hold
        assert hold is not None
        snapshot = self.storage.recover().snapshot
        first = 0 if snapshot is None else snapshot.snapshot_id.index + 1
        restore = None if snapshot is None else Restore.newest(first - 1, self.storage)
        done = self.executor.run(TryAgain(restore, first, self.log[first : hold.index], apply))
        assert isinstance(done, Tried), done
        return self._took(done.applied)

    def read(self, consistency: str = "stale") -> Any:
        body = codec.join_body([codec.encode(["all"])])  # type: ignore[type-var]
        done = self.executor.run(Read(None, codec.Query(1, consistency, True, 1, body)))
        assert isinstance(done, Answered)
        return decode_result(done.reply.values[0]) if isinstance(done.reply, codec.Answers) else done.reply

    def results(self, index: int) -> list[Any]:
        [reply] = [reply for at, reply in self.replies if at == index and isinstance(reply, codec.Results)]
        return reply.values

    def decide(self, hold: Hold) -> Applied:
        return self.append(codec.Outcome(hold.index, hold.position, hold.error))


def opened(machine: type = Fragile, **options: Any) -> Node:
    node = Node(machine, **options)
    node.append(codec.Register(7))
    return node


def held(done: Applied) -> Hold:
    assert done.hold is not None, "it does not hold"
    return done.hold


def test_what_a_command_has_done_before_it_was_held_at_is_seen_by_nobody() -> None:
    node = opened()
    node.call(["add", "a"])
    missing.add("pandas")

    hold = held(node.call(["add_with", "a", "pandas"]))

    assert (2, 0, False) == (hold.index, hold.position, hold.ready)
    assert isinstance(node.read(), codec.QueryRefused)
    assert held(node.try_again()).ready
    assert {"a": 1} == node.read()
    assert isinstance(node.read("linearizable"), codec.QueryRefused)
    assert [("counts", "a")] == [event[1:] for event in node.events]


@pytest.mark.parametrize("trailing", [0, 1, 5])
def test_what_was_missing_comes_and_the_node_goes_on_by_itself_as_if_it_had_never_been_missing(trailing: int) -> None:
    node = opened()
    missing.add("pandas")
    node.call(["add", "a"], ["add_with", "a", "pandas"], ["add", "b"])
    for _ in range(trailing):
        assert held(node.call(["add", "a"])).index == 1
    node.try_again()
    assert held(node.try_again(apply=True)).reason.endswith("No module named 'surely_not_installed_pandas'")
    node.try_again()
    missing.clear()

    done = node.try_again(apply=True)

    assert done.hold is None
    assert done.last_index == 1 + trailing
    assert [1, 3, 1] == node.results(1)
    assert {"a": 3 + trailing, "b": 1} == node.read()
    assert (4 + trailing) == len(node.events), "each event is told of once"


@pytest.mark.parametrize(
    ("machine", "call", "error"),
    [
        (Fragile, ["add_with", "a", "pandas"], ModuleNotFoundError),
        (Fragile, ["add_much", "a"], MemoryError),
        (Unsendable, ["add_and_tell", "a"], ImportError),
    ],
)
def test_what_everybody_met_becomes_the_result_and_the_state_is_that_before(
    machine: type, call: list[Any], error: type[Exception]
) -> None:
    node = opened(machine)
    missing.update(("pandas", "memory"))
    hold = held(node.call(["add", "b"], call, ["add", "c"]))
    node.try_again()

    done = node.decide(hold)

    assert done.hold is None
    assert {"b": 1, "c": 1} == node.read()
    first, failed, last = node.results(1)
    assert (1, 1) == (first, last)
    with pytest.raises(error):
        decode_result(failed)
    assert node.executor.serial == 3


def test_an_outcome_that_comes_before_the_state_is_at_hand_waits_for_it() -> None:
    node = opened()
    missing.add("pandas")
    hold = held(node.call(["add_with", "a", "pandas"]))

    assert held(node.decide(hold)).index == 1
    assert node.try_again().hold is None
    assert {} == node.read()


def test_two_commands_of_one_entry_are_decided_one_after_the_other() -> None:
    node = opened()
    missing.add("pandas")
    first = held(node.call(["add_with", "a", "pandas"], ["add", "b"], ["add_with", "c", "pandas"]))
    node.try_again()

    second = held(node.decide(first))
    assert (1, 2) == (second.index, second.position)
    node.try_again()
    assert node.decide(second).hold is None

    assert {"b": 1} == node.read()


def test_a_hook_and_commands_that_come_together_are_held_at_as_well() -> None:
    clock = opened(Hooked)
    missing.add("pandas")
    hold = held(clock.append(codec.Clock()))
    clock.try_again()
    assert clock.decide(hold).hold is None
    assert {} == clock.read()
    assert 1 == clock.executor.serial

    together = opened(Together)
    objects = [codec.encode(msgspec.msgpack.Ext(2, pickle.dumps(name))) for name in "ab"]  # type: ignore[type-var]
    hold = held(together.append(codec.Commands(0, 0, 0, 2, codec.join_body(objects))))
    assert TOGETHER == hold.position
    together.try_again()
    assert together.decide(hold).hold is None
    assert [5, 5] == [result.code for result in together.results(1)]
    assert [] == together.executor.host.machine.names


def test_a_node_that_is_started_again_knows_of_an_outcome_before_it_comes_to_the_command() -> None:
    node = opened()
    node.call(["add", "a"])
    missing.add("pandas")
    hold = held(node.call(["add_with", "a", "pandas"]))
    node.try_again()
    node.decide(hold)
    missing.clear()

    again = Node()
    again.log = list(node.log)
    again.apply(again.log)

    assert node.read() == again.read() == {"a": 1}
    assert node.executor.serial == again.executor.serial


def test_a_node_that_has_promised_to_hold_does_so_after_a_restart_too_though_nothing_is_missing_any_more() -> None:
    marks = Marks()
    node = opened(marks=marks)
    missing.add("pandas")
    hold = held(node.call(["add_with", "a", "pandas"]))
    marks.words[HELD], marks.words[HELD_POSITION] = hold[:2]
    missing.clear()

    again = Node(marks=marks)
    again.log = list(node.log)
    promised = held(again.apply(again.log))

    assert (hold.index, hold.position, None, True) == (
        promised.index,
        promised.position,
        promised.error,
        promised.ready,
    )
    assert again.decide(hold).hold is None
    assert {} == again.read()
    assert -1 == marks.words[HELD]


def test_a_node_that_has_applied_what_the_others_decided_of_stops_and_says_so() -> None:
    node = opened()
    node.call(["add", "a"])

    done = node.executor.run(Apply(2, [LogEntry(1, codec.stamp(5.0, codec.encode(codec.Outcome(1, 0, None))))]))

    assert isinstance(done, Stopped)
    assert "entry at index 1 failed, and this node has applied it" in done.reason


@pytest.mark.parametrize("needs", [["add_with", "a", "pandas"], ["add_much", "a"]], ids=["ImportError", "MemoryError"])
@pytest.mark.parametrize("from_snapshot", [False, True])
def test_a_node_that_computes_the_log_anew_and_holds_has_its_state_again_by_the_new_code(
    needs: list[Any], from_snapshot: bool
) -> None:
    old, new = codec.Code(1, "old"), codec.Code(Versioned.machine_version, "new")
    before = opened(Versioned, code=old)
    before.append(old)
    before.call(["add", "a"])
    writer = before.storage.begin_snapshot(EntryId(1, 2), Configuration())
    if from_snapshot:
        assert isinstance(before.executor.run(TakeSnapshot(writer)), SnapshotTaken)
    before.call(["add", "b"])
    before.call(needs)
    before.call(["add", "c"])
    seen_by_old = [1] if from_snapshot else []

    node = Node(Versioned, code=new)
    node.log, node.storage, node.sequence = before.log, before.storage, before.sequence
    first = 3 if from_snapshot else 0
    if from_snapshot:
        assert isinstance(node.executor.run(Restore.newest(2, node.storage)), Restored)
    node.log.append(LogEntry(2, codec.stamp(5.0, codec.encode(codec.Replay(first, *_of(new))))))
    missing.update(("pandas", "memory"))
    assert held(node.apply(node.log[first:])).index == 4

    assert held(node.try_again()).ready
    assert [*seen_by_old, *[2] * (2 - len(seen_by_old))] == node.executor.host.machine.seen
    missing.clear()
    done = node.try_again(apply=True)

    assert (None, 6) == (done.hold, done.last_index)
    assert [*seen_by_old, *[2] * (5 - len(seen_by_old))] == node.executor.host.machine.seen
    assert new == node.executor.code


def _of(code: codec.Code) -> tuple[int, str]:
    return code.version, code.fingerprint


def test_no_snapshot_is_taken_of_half_a_command_and_the_state_before_comes_from_the_newest_one() -> None:
    node = opened()
    node.call(["add", "a"])
    writer = node.storage.begin_snapshot(EntryId(1, 1), Configuration())
    assert isinstance(node.executor.run(TakeSnapshot(writer)), SnapshotTaken)
    node.call(["add", "a"])
    missing.add("pandas")
    node.call(["add_with", "a", "pandas"])

    refused = node.executor.run(TakeSnapshot(node.storage.begin_snapshot(EntryId(1, 3), Configuration())))

    assert isinstance(refused, SnapshotFailed)
    assert "holds at index 3" in refused.reason
    assert held(node.try_again()).ready
    assert {"a": 2} == node.read()


def test_a_state_before_that_cannot_be_had_either_is_asked_for_again_and_nothing_is_applied_meanwhile() -> None:
    node = opened()
    node.call(["add_with", "a", "numpy"])
    missing.update(("pandas", "numpy"))
    node.call(["add_with", "a", "pandas"])

    still = held(node.try_again())
    assert not still.ready
    assert "the state before it cannot be had now" in still.reason
    assert isinstance(node.read(), codec.QueryRefused)
    missing.discard("numpy")

    assert held(node.try_again()).ready
    assert {"a": 2} == node.read()


class Opens(Fragile):
    """One whose constructor needs a file."""

    def __init__(self) -> None:
        super().__init__()
        if "constructor" in raises:
            raise raises["constructor"]


@pytest.mark.parametrize("error", [OSError("no file"), SystemExit(3), RecursionError("deep"), UsageError("mine")])
def test_a_constructor_that_raises_when_the_state_before_is_made_is_named_and_asked_again(error: BaseException) -> None:
    node = opened(Opens)
    node.call(["add", "a"])
    missing.add("pandas")
    node.call(["add_with", "a", "pandas"])
    raises["constructor"] = error

    still = held(node.try_again())
    assert not still.ready
    assert "the state before it cannot be had now: " in still.reason
    assert exceptions.message(error) in still.reason
    assert isinstance(node.read(), codec.QueryRefused)
    raises.clear()

    assert held(node.try_again()).ready
    assert {"a": 1} == node.read()


class Shares(Fragile):
    """One whose instances have one dict together."""

    def __init__(self, counts: dict[str, int] = {}) -> None:  # noqa: B006 (a beginner's slip)
        self.counts = counts


def test_what_instances_share_is_not_counted_twice_when_the_state_before_is_made() -> None:
    Shares.__init__.__defaults__[0].clear()  # type: ignore[index]
    node = opened(Shares)
    node.call(["add", "a"])
    missing.add("pandas")
    node.call(["add_with", "a", "pandas"])

    assert held(node.try_again()).ready
    assert {"a": 1} == node.read()
    missing.clear()
    node.try_again(apply=True)
    assert {"a": 3} == node.read()


def test_a_skipped_entry_changes_nothing_but_that_its_clients_know() -> None:
    node = opened()
    poison = node.commands(["add", "a"], ["add", "a"])
    item = LogEntry(1, codec.stamp(5.0, codec.encode(poison)))
    node.executor.skips[1] = entry_checksum(1, item)

    node.append(poison)
    node.call(["add", "b"])

    assert {"b": 1} == node.read()
    for result in node.results(1):
        with pytest.raises(CommandFailed, match="Skipped: the entry at index 1 was skipped by an operator"):
            decode_result(result)
    assert 3 == node.executor.serial


@pytest.mark.parametrize("what", ["other code", "an outcome that it passed", "a skip that it passed"])
def test_a_node_that_stops_on_purpose_is_not_said_to_have_died_in_an_entry(what: str) -> None:
    marks = Marks()
    for run in range(4):
        marks.begin(0, run=run)
        assert marks.poison == -1, "it would be said to be ended by a command, and to be skipped"
        node = opened(marks=marks, code=codec.Code(1, "mine"))
        node.append(codec.Code(1, "mine" if what != "other code" else "other"))
        if what != "other code":
            node.call(["add", "a"])
        stops = {
            "other code": node.commands(["add", "a"]),
            "an outcome that it passed": codec.Outcome(2, 0, None),
            "a skip that it passed": codec.Skips([(1, 7)]),
        }[what]
        entry = LogEntry(1, codec.stamp(5.0, codec.encode(stops)))
        done = node.executor.run(Apply(len(node.log), [entry]))
        assert isinstance(done, Stopped)
        assert marks.words[RUNNING] == -1


def test_an_entry_of_another_checksum_is_not_skipped() -> None:
    node = opened(skips={1: 12345})
    node.call(["add", "a"])

    assert {"a": 1} == node.read()


def test_the_marks_say_which_entry_is_being_applied_and_that_none_is() -> None:
    marks = Marks()
    seen: list[int] = []

    class Looks(StateMachine):
        @command
        def look(self) -> None:
            seen.append(marks.words[RUNNING])

    node = opened(Looks, marks=marks)
    node.call(["look"])
    node.append(node.commands(["look"]), node.commands(["look"]))

    assert [1, 2, 3] == seen
    assert -1 == marks.words[RUNNING]
    assert marks.may_have_applied(3)
    assert not marks.may_have_applied(4)


def test_the_context_of_a_command_around_which_another_was_decided_is_what_it_would_have_been() -> None:
    seen: list[tuple[int, int]] = []

    class Looks(Fragile):
        @command
        def look(self) -> None:
            told: CommandContext = context()
            seen.append((told.position, told.serial))

    node = opened(Looks)
    missing.add("pandas")
    hold = held(node.call(["look"], ["add_with", "a", "pandas"], ["look"]))
    node.try_again()
    seen.clear()
    node.decide(hold)

    assert [(0, 0), (2, 2)] == seen


# --- A snapshot that cannot be restored ---


class Unrestored(Fragile):
    """One whose restore does what it is told to, halfway."""

    def restore(self, state: Any) -> None:
        self.counts = {"half": 1}
        if "error" in raises:
            raise raises["error"]
        self.__dict__.update(state)


raises: dict[str, BaseException] = {}  # what user code does now


def install(node: Node, *, last_index: int = 2) -> Any:
    """Have another node, which has a snapshot of this one's, restore it."""
    node.log = [LogEntry(1, b"")] * (last_index + 1)
    return node.executor.run(Restore.newest(last_index, node.storage))


def with_snapshot() -> Node:
    """Return a node whose snapshot holds two commands, and that has applied nothing of it."""
    first = opened(Unrestored)
    first.call(["add", "a"])
    first.call(["add", "a"])
    assert isinstance(
        first.executor.run(TakeSnapshot(first.storage.begin_snapshot(EntryId(1, 2), Configuration()))), SnapshotTaken
    )
    node = Node(Unrestored)
    node.storage, node.sequence = first.storage, 2
    return node


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no file"),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        MemoryError(),
        ImportError("no pandas", name="pandas"),
        RecursionError(),
        StopIteration(),
        OSError(28, "No space left"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_restore_that_raises_is_held_at_and_tried_again_until_it_does_not(
    error: BaseException,
) -> None:
    node = with_snapshot()
    raises["error"] = error

    hold = held(install(node))

    assert (3, BEFORE, None, False) == (hold.index, hold.position, hold.error, hold.ready)
    assert "the snapshot at index 2 cannot be restored: " in hold.reason
    assert type(error).__name__ in hold.reason
    assert isinstance(node.read(), codec.QueryRefused), "half a state is shown to nobody"
    assert held(node.call(["add", "b"])).index == 3
    assert not held(node.try_again()).ready
    raises.clear()
    done = node.executor.run(TryAgain(Restore.newest(2, node.storage), 3, [], False))

    assert isinstance(done, Tried)
    assert isinstance(done.restored, Restored)
    assert done.applied.hold is None
    assert {"a": 2, "b": 1} == node.read()


def test_a_watch_at_a_node_that_cannot_restore_misses_nothing() -> None:
    node = with_snapshot()
    raises["error"] = ValueError()
    install(node)
    raises.clear()
    node.try_again()

    watched = node.executor.run(Watch(None, codec.Watch(1, "counts", 0)))

    assert isinstance(watched, Watched)
    assert [1, 2] == [reply.index for reply in watched.replies if reply.values]


def test_a_restore_that_comes_right_releases_no_promise_about_the_entry_behind_it() -> None:
    node = with_snapshot()
    node.executor.marks.words[HELD], node.executor.marks.words[HELD_POSITION] = 3, 0
    raises["error"] = ValueError()
    install(node)
    node.call(["add", "b"])
    raises.clear()

    hold = held(node.try_again())

    assert (3, 0) == (hold.index, hold.position), "it has told that it holds there"
    assert 3 == node.executor.marks.words[HELD]
    assert {"a": 2} == node.read()


def test_a_snapshot_that_is_installed_later_takes_the_place_of_one_that_cannot_be_restored() -> None:
    node = with_snapshot()
    raises["error"] = ValueError()
    install(node)
    raises.clear()

    assert isinstance(install(node), Restored)
    assert node.executor.hold is None
    assert {"a": 2} == node.read()


# --- A step from version to version ---


class Grown(Fragile):
    """Of version 2, with a migrate that fails at the step that it is told."""

    machine_version = 2

    def migrate(self, from_version: int) -> None:
        self.counts[f"from {from_version}"] = self.counts.get(f"from {from_version}", 0) + 1
        if f"step {from_version}" in raises:
            raise raises[f"step {from_version}"]

    def snapshot(self) -> Any:
        if "copy" in raises:
            raise raises["copy"]
        return self.counts

    def restore(self, state: Any) -> None:
        self.counts = state


CODE = codec.Code(2, "f" * 32)


def growing() -> Node:
    node = Node(Grown)
    node.executor = Executor(MachineHost(Grown), session_expiry_s=1e9, code=CODE)
    node.append(codec.Register(7), codec.Code(0, "e" * 32))
    node.executor.serial = 1  # commands have been
    return node


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("error", [ImportError, MemoryError])
def test_each_step_is_taken_once_though_one_of_them_is_held_at(step: int, error: type[BaseException]) -> None:
    node = growing()
    raises[f"step {step}"] = error()
    assert held(node.append(CODE)).index == 2
    assert held(node.try_again()).ready
    raises.clear()

    assert node.try_again(apply=True).hold is None
    assert {"from 0": 1, "from 1": 1} == node.read()
    assert node.executor.code == CODE


def test_a_state_that_cannot_be_kept_aside_is_not_migrated_and_what_all_met_leaves_it_at_its_version() -> None:
    node = growing()
    raises["copy"] = SystemExit("no copy")
    hold = held(node.append(CODE))
    assert "Grown.migrate was not called: Grown.snapshot raised SystemExit: no copy" in hold.reason
    assert hold.error is not None

    assert node.decide(hold).hold is None
    assert {} == node.read()
    assert codec.Code(0, CODE.fingerprint) == node.executor.code
