"""Bugs beside user code, slow commands, watches, snapshots and threads, to be planted as those of bugs.py are.

Most of them were in 0.1.0, or in the code that mended it; the others are what a change of that code could easily bring back.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from actorraft import codec
from actorraft.client import requests as client_requests
from actorraft.client.reads import Reads
from actorraft.node import executor, host, machine_thread, watches, work
from actorraft.node.capture import Capture
from actorraft.node.digests import Checks
from actorraft.node.driver import Driver
from actorraft.node.executor import Executor
from actorraft.node.holding import Holding
from actorraft.node.host import MachineHost
from actorraft.node.machine_thread import MachineThread
from actorraft.node.requests import Requests
from actorraft.node.session_table import Sessions
from actorraft.node.snapshotting import SnapshotChunks, Snapshotting
from actorraft.node.work import Restored, Stopped
from actorraft.raft import replication
from actorraft.raft.log import RaftLog
from actorraft.raft.messages import EntryId
from actorraft.raft.progress import PROBE, Progress
from actorraft.raft.server import RaftServer
from actorraft.simulation.machine import SimHost
from tests.simulation.bugs import Way, bug

# --- User code is a guest ---


@bug("what an exception says is asked for without a guard", quick=True, way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    encode = host.encode_error

    def trusting(error: BaseException, *rest: Any) -> Any:
        str(error)
        return encode(error, *rest)

    patch.setattr(host, "encode_error", trusting)


@bug("what is no Exception is not caught", quick=True, way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    failed = MachineHost._failed

    def passing(self: MachineHost, command: Any, error: BaseException) -> Any:
        if not issubclass(type(error), Exception):
            raise error
        return failed(self, command, error)

    patch.setattr(MachineHost, "_failed", passing)


@bug("a wake_at that raises goes through", quick=True, way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MachineHost, "wake_at", property(lambda self: self.machine.wake_at))


@bug("a digest that raises goes through", quick=True, way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Checks, "_take_state", lambda self: self._digest())
    patch.setattr(MachineHost, "sample", lambda self: self.machine.digest())


@bug("a clock entry that raises goes through", quick=True, way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    clock = MachineHost.clock

    def bare(self: MachineHost, context: Any) -> None:
        clock(self, context)
        if "on_clock" in self._faults:
            raise SystemExit("from on_clock")

    patch.setattr(MachineHost, "clock", bare)


@bug("a command that raises is taken not to have been applied, and is run once more", quick=True, way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    failed = MachineHost._failed

    def again(self: MachineHost, command: Any, error: BaseException) -> Any:
        if type(command) is list and command[0] == "fail":
            try:
                self._commands[command[0]](*command[1:])
            except BaseException as second:
                error = second
        return failed(self, command, error)

    patch.setattr(MachineHost, "_failed", again)


# --- Holding at a command ---


@bug("a node that holds goes on from the half-changed state", way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    hold_at = Executor._hold_at

    def careless(self: Executor, held: Any, entries: Any) -> None:
        hold_at(self, held, entries)
        assert self.hold is not None
        self.hold = self.hold._replace(ready=True)

    patch.setattr(Executor, "_hold_at", careless)


@bug("what a node holds at is tried again on the half-changed state", way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    def hasty(self: Executor, work: Any) -> None:
        assert self.hold is not None
        self.hold = self.hold._replace(ready=True)

    patch.setattr(Executor, "_rebuild", hasty)


@bug("a snapshot that a node cannot restore ends it", quick=True, way=Way.NO_MEMORY)
def _(patch: pytest.MonkeyPatch) -> None:
    install = Executor._install

    def strict(self: Executor, work: Any) -> Any:
        done = install(self, work)
        return done if self.hold is None else Stopped(self.hold.reason)

    patch.setattr(Executor, "_install", strict)


@bug("a node goes on from what it could restore of a snapshot", quick=True, way=Way.NO_MEMORY)
def _(patch: pytest.MonkeyPatch) -> None:
    install = Executor._install

    def content(self: Executor, work: Any) -> Any:
        done = install(self, work)
        if self.hold is None:
            return done
        self.hold = None
        return Restored(work.last_index, self.log_time_s, None, self.code)

    patch.setattr(Executor, "_install", content)


@bug("an entry's outcome becomes its error while a voter is missing", way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    members = Holding._members

    def reached(self: Holding, index: int) -> frozenset[int]:
        return frozenset(one for one in members(self, index) if one not in self._server.disconnected)

    patch.setattr(Holding, "_members", reached)


@bug("what some nodes held at becomes the result of all, though others may have applied it", way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Holding, "_members", lambda self, index: frozenset((self._server.node_id,)))


@bug("what is decided of a command is refused for the bytes that wait behind it", way=Way.HOLDS)
def _(patch: pytest.MonkeyPatch) -> None:
    propose = replication.propose
    patch.setattr(RaftServer, "propose", lambda self, item, *, bounded=True: propose(self, item))


@bug("what later entries decide is not looked for", way=Way.HOLDS)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Executor, "_look_ahead", lambda self, first_index, entries: None)


# --- Log time, clock entries, checks ---


@bug("clock entries are never made", quick=True, way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Driver, "_wake_machine", lambda self: None)


@bug("a clock entry has the serial of the command after it", quick=True, way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    apply_clock = Executor._apply_clock

    def uncounted(self: Executor, index: int, term: int) -> None:
        apply_clock(self, index, term)
        self.serial -= 1

    patch.setattr(Executor, "_apply_clock", uncounted)


@bug("a machine that was restored wakes nobody", way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    on_done = Driver._on_done

    def forgetful(self: Driver, done: Any) -> None:
        on_done(self, done)
        if type(done) is work.Restored:
            self._restored = done.last_index  # type: ignore[attr-defined]
        if getattr(self, "_restored", -2) >= 0:
            self._wake_at_s = None

    patch.setattr(Driver, "_on_done", forgetful)


@bug("the state differs from node to node, where only a check looks", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    serial = itertools.count()
    patch.setattr(SimHost, "sample", lambda self: b"%d" % next(serial))


# --- What a snapshot holds ---


@bug("the serial is not in the snapshot", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    restore = Executor._restore

    def forgetful(self: Executor, one: work.Restore) -> Any:
        done = restore(self, one)
        self.serial = self.last_applied + 1
        return done

    patch.setattr(Executor, "_restore", forgetful)


@bug("sessions come back from a snapshot in another order, and so expire in another", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    restore = Sessions.restore
    patch.setattr(Sessions, "restore", lambda self, state: restore(self, sorted(state, key=lambda row: -row[0])))


@bug("what was published is not in the snapshot", quick=True, way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Executor, "_history_pieces", lambda self: iter([executor._HEAD.pack(0)]))


@bug("a snapshot that was asked for is said to be taken, and is the one before", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Snapshotting, "begin", lambda self: "")


@bug("a copy of a snapshot misses the first byte of its second chunk")
def _(patch: pytest.MonkeyPatch) -> None:
    read = SnapshotChunks.read

    def skipping(self: SnapshotChunks, snapshot_id: EntryId, offset: int) -> list[Any]:
        return read(self, snapshot_id, offset + (offset > 0))

    patch.setattr(SnapshotChunks, "read", skipping)


# --- Watches ---


@bug(
    "events of one entry for one topic come in two pieces, and the second passes for a repetition",
    quick=True,
    way=Way.GUESTS,
)
def _(patch: pytest.MonkeyPatch) -> None:
    def in_turn(events: Any) -> Iterator[tuple[int, str, list[Any]]]:
        for (index, topic), group in itertools.groupby(events, key=lambda event: event[:2]):
            yield index, topic, [event for _, _, event in group]

    patch.setattr(work, "by_entry", in_turn)
    patch.setattr(executor, "by_entry", in_turn)


@bug("a watch goes on behind the entry after the last one it saw", way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    on_published = client_requests.Watches.on_published

    def skipping(self: client_requests.Watches, reply: codec.Published) -> None:
        on_published(self, reply)
        watch = self._watches.get(self._askings.get(reply.watch_id, -1))
        if watch is not None and watch.next_index is not None and not reply.values:
            watch.next_index += 1

    patch.setattr(client_requests.Watches, "on_published", skipping)


@bug("a watch is told again what it has seen", way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    def trusting(self: client_requests.Watches, reply: codec.Published) -> None:
        watch_id = self._askings.get(reply.watch_id, -1)
        watch = self._watches.get(watch_id)
        if watch is not None:
            watch.next_index = reply.index + 1
            if reply.values:
                self.published.append(codec.Published(watch_id, reply.index, reply.values))

    patch.setattr(client_requests.Watches, "on_published", trusting)
    tell = client_requests.Watches.tell

    def anew(self: client_requests.Watches, leader: int | None) -> None:
        for watch in self._watches.values():
            if watch.asked is None and watch.next_index is not None:
                watch.next_index = max(0, watch.next_index - 5)
        tell(self, leader)

    patch.setattr(client_requests.Watches, "tell", anew)


@bug("a watcher whose queue was full loses what was published then", way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(watches.Watches, "_fall_behind", lambda self, key, watch: None)


@bug("a watch is not told to a new leader", way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(client_requests.Watches, "another_leads", lambda self, leader: None)


# --- What takes long ---


@bug("a read that takes long is asked as a new one each second, and its answer dropped", way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    expire = Reads.expire

    def impatient(self: Reads, now_s: float) -> None:
        for request_id, frame in list(self._frames.items()):
            if now_s >= frame.remind_s:
                self._ask_again(request_id)
        expire(self, now_s)

    patch.setattr(Reads, "expire", impatient)


@bug("what was committed is served before it is handed over", way=Way.GUESTS)
def _(patch: pytest.MonkeyPatch) -> None:
    read = Executor._read
    state: dict[str, Any] = {}

    def remembering(self: Executor, one: work.Read) -> Any:
        key = bytes(one.query.body)
        answer = state.setdefault((id(self), key), read(self, one))
        return work.Answered(one.client, answer.reply.__class__(one.query.request_id, *_rest(answer.reply)))

    patch.setattr(Executor, "_read", remembering)


def _rest(reply: Any) -> list[Any]:
    return [getattr(reply, name) for name in reply.__struct_fields__[1:]]


@bug("answers are taken for those of another entry", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    applied = Requests.applied

    def shifted(self: Requests, last_index: int, replies: list[Any]) -> None:
        indexes = [index for index, _ in replies]
        applied(self, last_index, list(zip(indexes, [reply for _, reply in replies][::-1], strict=True)))

    patch.setattr(Requests, "applied", shifted)


# --- Lost logs, bounds ---


@bug("what a follower lost is not seen", way=Way.OLD_DISKS)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Progress, "has_lost", lambda self, rejected_index, answered_round: False)


@bug("a late rejection passes for a lost log")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Progress, "has_lost", lambda self, rejected_index, answered_round: rejected_index <= self.match_index)


@bug("what a follower lost still counts", way=Way.OLD_DISKS)
def _(patch: pytest.MonkeyPatch) -> None:
    lose = Progress.lose

    def trusting(self: Progress, owed: EntryId, next_index: int) -> None:
        match_index = self.match_index
        lose(self, owed, next_index)
        self.match_index = match_index

    patch.setattr(Progress, "lose", trusting)


@bug("an append holds more than its bound", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    cut = RaftLog.slice
    patch.setattr(RaftLog, "slice", lambda self, first, stop, bytes_max: cut(self, first, stop, 1 << 30))


@bug("a chunk holds the whole snapshot", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    init = SnapshotChunks.__init__
    patch.setattr(SnapshotChunks, "__init__", lambda self, storage, chunk_bytes: init(self, storage, 1 << 30))


@bug("the window never closes", quick=True)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Progress, "window_open", property(lambda self: self.state is not PROBE))


# --- The machine's thread and the loop's ---


@bug("the machine's thread gets the loop while it has work to do", quick=True, way=Way.THREADS)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MachineThread, "_is_calm", lambda self: self._capture is None)


@bug("the machine's thread gets the loop with a snapshot under way", quick=True, way=Way.THREADS)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MachineThread, "_is_calm", lambda self: self._finished == self._handed)


@bug("the loop waits for a slow command", quick=True, way=Way.THREADS)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(machine_thread, "LATE_S", 5.0)


@bug("what nobody waits for is joined to a piece that has begun", quick=True, way=Way.THREADS)
def _(patch: pytest.MonkeyPatch) -> None:
    def put(self: MachineThread, joined: Any) -> None:
        if joined is not None:
            vars(self)["joined"] = joined

    patch.setattr(MachineThread, "_open", property(lambda self: vars(self).get("joined"), put), raising=False)


@bug("what was done wakes nobody", quick=True, way=Way.THREADS)
def _(patch: pytest.MonkeyPatch) -> None:
    def silent(self: MachineThread, one: Any, done: Any) -> None:
        self._done.append(done)
        self._finished += 1

    patch.setattr(MachineThread, "_did", silent)


@bug("a snapshot is taken in the loop", quick=True, way=Way.THREADS)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(machine_thread, "LONG", ())


@bug("a second snapshot begins before the first is written", quick=True, way=Way.THREADS)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MachineThread, "_finish_capture", lambda self: None)


@bug("the loop is given to the machine's thread, and kept", quick=True, way=Way.THREADS)
def _(patch: pytest.MonkeyPatch) -> None:
    def impatient(self: MachineThread) -> None:
        """Looks once, and takes it that the machine's thread is done with the loop."""

    patch.setattr(MachineThread, "_watch", impatient)


@bug("a snapshot's pieces are lost when the disk is behind", quick=True, way=Way.THREADS)
def _(patch: pytest.MonkeyPatch) -> None:
    draw = Capture._draw

    def hasty(self: Capture) -> None:
        draw(self)
        self._waiting._items = deque(list(self._waiting._items)[-2:])  # type: ignore[attr-defined]

    patch.setattr(Capture, "_draw", hasty)
