"""When a node takes a snapshot by itself."""

from __future__ import annotations

from actorraft.node import work
from actorraft.node.control import RaftControl
from actorraft.ports import SnapshotMeta
from actorraft.raft.config import RaftConfig
from actorraft.raft.messages import Configuration
from actorraft.storage.memory import MemoryStorage


class Net:
    address = 0
    peers = ()

    def send(self, message: object) -> None:
        raise AssertionError("there is nobody to send to")


class Applying:
    """Applies at once; snapshots have the size that the test says."""

    def __init__(self) -> None:
        self.state_bytes = 0
        self.taken: list[SnapshotMeta] = []
        self.done: list[work.Done] = []

    def submit(self, piece: work.Work) -> None:
        match piece:
            case work.Apply(first_index, entries):
                self.done.append(work.Applied(first_index + len(entries) - 1, [], 0.0, None, [], []))
            case work.TakeSnapshot(writer):
                writer.write(b"s" * self.state_bytes)
                self.taken.append(writer.commit())
                self.done.append(work.SnapshotTaken(self.taken[-1]))

    def poll(self) -> list[work.Done]:
        done, self.done = self.done, []
        return done


def append(control: RaftControl, entries: int) -> None:
    for _ in range(entries):
        control.client_append_entry(b"x" * 100).result(0)


def test_a_large_state_is_written_again_only_after_as_much_log() -> None:
    """Else the cost of a commit would grow with the state: one of 10 GB would be written once for each 64 MiB."""
    applying = Applying()
    only_me = Configuration(voters=frozenset({0}), next_node_id=1)
    config = RaftConfig(snapshot_after_bytes=1_000, snapshot_after_entries=1 << 60)
    control = RaftControl(Net(), storage=MemoryStorage(), executor=applying, configuration=only_me, config=config)
    control.become_leader()

    append(control, 10)
    assert 1 == len(applying.taken)

    applying.state_bytes = 5_000
    append(control, 10)
    assert 2 == len(applying.taken)

    append(control, 49)
    assert 2 == len(applying.taken)
    append(control, 1)
    assert 3 == len(applying.taken)
