"""A snapshot is installed while the executor is behind: found by the simulator (seeds 39, 160, 391 and 796 then)."""

from __future__ import annotations

from typing import Any

from actorraft import codec
from actorraft.node import work
from actorraft.node.control import RaftControl
from actorraft.node.driver import ClientEvent, MessageEvent
from actorraft.ports import SnapshotMeta
from actorraft.raft.config import RaftConfig
from actorraft.raft.messages import AppendEntries, Configuration, EntryId, InstallSnapshot, LogEntry, ReadIndexResponse
from actorraft.storage.memory import MemoryStorage

MEMBERS = Configuration(voters=frozenset({0, 1, 2}), next_node_id=3)


class Net:
    address = 1
    peers = (0, 2)

    def send(self, message: Any) -> None:
        pass


class HeldExecutor:
    """Does nothing until it is told to; says what it is told to say."""

    def __init__(self) -> None:
        self.work: list[work.Work] = []
        self.done: list[work.Done] = []

    def submit(self, piece: work.Work) -> None:
        self.work.append(piece)

    def poll(self) -> list[work.Done]:
        done, self.done = self.done, []
        return done


class CarefulStorage(MemoryStorage):
    """Remembers what it was asked to forget, and what it held in snapshots then."""

    def __init__(self) -> None:
        super().__init__()
        self.compactions: list[tuple[int, int]] = []

    def compact(self, first_index: int) -> None:
        snapshot = self.recover().snapshot
        self.compactions.append((first_index, snapshot.snapshot_id.index if snapshot else -1))
        super().compact(first_index)


class Clients:
    """What was answered to whom."""

    def __init__(self) -> None:
        self.replies: list[tuple[Any, codec.Reply]] = []

    def is_gone(self, client: Any) -> bool:
        return False

    def role(self, client: Any) -> str:
        return "admin"

    def key(self, client: Any) -> str:
        return ""

    def send_client(self, client: Any, frame: bytes, /) -> None:
        self.replies.append((client, codec.decode_reply(frame)))


def follower(clients: Clients | None = None, **config: Any) -> tuple[RaftControl, CarefulStorage, HeldExecutor]:
    storage, machine = CarefulStorage(), HeldExecutor()
    control = RaftControl(
        Net(),
        storage=storage,
        executor=machine,
        clients=clients,
        configuration=MEMBERS,
        config=RaftConfig(trailing_entries=0, **config),
    )
    entries = [LogEntry(1, f"command {i}".encode()) for i in range(10)]
    control.process_event(MessageEvent(AppendEntries(0, 1, 1, -1, -1, entries, 9)))
    return control, storage, machine


def chunk(index: int, data: bytes, *, done: bool = True) -> MessageEvent:
    return MessageEvent(InstallSnapshot(0, 1, 1, index, 1, MEMBERS, 0, data, done))


def test_a_snapshot_of_its_own_that_is_reported_late_never_compacts_past_what_is_on_disk() -> None:
    control, storage, machine = follower(snapshot_after_entries=5)
    machine.done.append(work.Applied(9, [], 0.0, None, []))
    control.process_events(())  # begins a snapshot at 9
    take = machine.work[-1]
    assert isinstance(take, work.TakeSnapshot)
    take.writer.write(b"state at 9")
    machine.done.append(work.SnapshotTaken(take.writer.commit()))

    control.process_event(chunk(30, b"state at 30"))  # is reported in the same turn of the loop

    assert all(first_index <= snapshot_index + 1 for first_index, snapshot_index in storage.compactions)
    assert control.server.snapshot_id == EntryId(1, 30)
    assert storage.first_index == 31


def test_entries_applied_late_begin_no_snapshot_of_a_log_that_was_replaced() -> None:
    control, storage, machine = follower(snapshot_after_entries=5)
    machine.done.append(work.Applied(9, [], 0.0, None, []))

    control.process_event(chunk(30, b"state at 30"))

    snapshot = storage.recover().snapshot
    assert snapshot == SnapshotMeta(EntryId(1, 30), MEMBERS, len(b"state at 30"))


def ask_for_snapshot(request_id: int = 7) -> ClientEvent:
    return ClientEvent("operator", codec.encode(codec.Admin(request_id, "snapshot", {})))


def leader_said(control: RaftControl) -> list[MessageEvent]:
    """What a node waits for before it takes a snapshot that was asked for: how far it must be."""
    return [MessageEvent(ReadIndexResponse(0, 1, 1, token, 9)) for token in control.server.forwarded_reads]


def test_a_snapshot_that_may_begin_in_the_batch_that_installs_a_later_one_is_not_begun() -> None:
    """The core has cut its log already, the disk has not: the entry to take a snapshot at is gone from the log."""
    clients = Clients()
    control, storage, machine = follower(clients)
    machine.done.append(work.Applied(9, [], 0.0, None, []))

    control.process_event(ask_for_snapshot(7))
    control.process_events([chunk(30, b"state at 30"), *leader_said(control)])

    assert not any(isinstance(piece, work.TakeSnapshot) for piece in machine.work)
    assert control.server.snapshot_id == EntryId(1, 30)
    assert storage.open_snapshot().read() == b"state at 30"
    assert clients.replies == [("operator", codec.AdminReply(7, "", 30))]  # answered, not left waiting

    control.process_event(ask_for_snapshot(8))
    control.process_events(leader_said(control))

    assert clients.replies[1:] == [("operator", codec.AdminReply(8, "", 30))]


def test_a_snapshot_is_not_begun_beside_one_that_is_being_taken_and_both_askers_hear_of_it() -> None:
    clients = Clients()
    control, _, machine = follower(clients)

    control.process_events([ask_for_snapshot(7), ask_for_snapshot(8)])
    assert not any(isinstance(piece, work.TakeSnapshot) for piece in machine.work)
    control.process_events(leader_said(control))

    [take] = [piece for piece in machine.work if isinstance(piece, work.TakeSnapshot)]
    assert clients.replies == []
    take.writer.write(b"state at 9")
    machine.done.append(work.SnapshotTaken(take.writer.commit()))
    control.process_events(())
    assert clients.replies == [("operator", codec.AdminReply(number, "", 9)) for number in (7, 8)]


def test_a_snapshot_is_installed_though_the_first_chunk_of_the_next_one_came_in_the_same_batch() -> None:
    control, storage, _ = follower()

    control.process_events([chunk(30, b"state at 30"), chunk(60, b"begins", done=False)])

    assert control.server.snapshot_id == EntryId(1, 30)
    assert storage.open_snapshot().read() == b"state at 30"


def test_a_restore_that_runs_late_reads_its_own_snapshot_though_a_newer_one_is_there() -> None:
    control, _, machine = follower()

    control.process_event(chunk(30, b"state at 30"))
    control.process_event(chunk(60, b"state at 60"))

    restores = [piece for piece in machine.work if isinstance(piece, work.Restore)]
    assert [work.last_index for work in restores] == [30, 60]
    assert [work.open().read() for work in restores] == [b"state at 30", b"state at 60"]
