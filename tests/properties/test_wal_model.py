"""The store on disk against a list: any sequence of calls, restarts and unfinished writes in between."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actorraft.raft.messages import Configuration, EntryId, HardState, LogEntry
from actorraft.storage.disk import DiskStorage
from tests.properties.strategies import configurations
from tests.storage.helpers import FastFiles

CONFIGURATIONS = configurations(st.integers(0, 5), st.integers(6, 9))
ITEMS = (
    st.binary(max_size=300)
    | st.none()
    | CONFIGURATIONS
    | st.text(max_size=10)
    | st.integers(-(2**63), 2**64 - 1)
    | st.lists(st.integers(-5, 5), max_size=3)
)


class StoreMachine(RuleBasedStateMachine):
    """The model: hard state, a list of entries from `first_index` on, the two newest snapshots."""

    @initialize(segment_bytes=st.sampled_from([512, 2000, 1 << 20]), durability=st.sampled_from(["fsync", "os"]))
    def open_a_new_store(self, segment_bytes: int, durability: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="actorraft-model-"))
        self.options: dict[str, Any] = {"segment_bytes": segment_bytes, "durability": durability}
        self.hard_state = HardState()
        self.first_index = 0
        self.previous_term = -1
        self.entries: list[LogEntry] = []
        self.snapshots: list[tuple[EntryId, Configuration, bytes]] = []
        self.term = 1
        self._open()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)

    @property
    def next_index(self) -> int:
        return self.first_index + len(self.entries)

    @property
    def newest_index(self) -> int:
        return self.snapshots[-1][0].index if self.snapshots else -1

    # ---- what a node does ----

    @rule(items=st.lists(ITEMS, max_size=6), voted_for=st.none() | st.integers(0, 4), with_hard_state=st.booleans())
    def append(self, items: list[Any], voted_for: int | None, with_hard_state: bool) -> None:
        entries = [LogEntry(self.term, item) for item in items]
        hard_state = HardState(self.term, voted_for) if with_hard_state else None
        self.store.persist(hard_state, self.next_index, entries)
        self.entries += entries
        self.hard_state = hard_state or self.hard_state

    @rule(items=st.lists(ITEMS, max_size=3), back=st.integers(1, 8))
    def overwrite(self, items: list[Any], back: int) -> None:
        place = max(self.first_index, self.newest_index + 1, self.next_index - back)
        self.term += 1
        entries = [LogEntry(self.term, item) for item in items]
        self.store.persist(HardState(self.term, None), place, entries)
        self.entries[place - self.first_index :] = entries
        self.hard_state = HardState(self.term, None)

    @rule(voted_for=st.none() | st.integers(0, 4))
    def vote(self, voted_for: int | None) -> None:
        self.term += 1
        self.hard_state = HardState(self.term, voted_for)
        self.store.persist(self.hard_state, -1, [])

    @precondition(lambda self: self.next_index - 1 > self.newest_index)
    @rule(data=st.data(), content=st.binary(max_size=200), repeat=st.sampled_from([1, 1, 1000]))
    def take_a_snapshot(self, data: st.DataObject, content: bytes, repeat: int) -> None:
        low = max(self.newest_index + 1, self.first_index)
        index = data.draw(st.integers(low, self.next_index - 1))
        self._write_snapshot(EntryId(self.entries[index - self.first_index].term, index), content * repeat)

    @precondition(lambda self: self.newest_index >= self.first_index)
    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        first_index = data.draw(st.integers(self.first_index, self.newest_index + 1))
        self.store.compact(first_index)
        count = first_index - self.first_index
        if count:
            self.previous_term = self.entries[count - 1].term
            del self.entries[:count]
            self.first_index = first_index

    @rule(ahead=st.integers(1, 20), content=st.binary(max_size=50))
    def install_a_snapshot(self, ahead: int, content: bytes) -> None:
        self.term += 1
        snapshot_id = EntryId(self.term, self.next_index + ahead)
        meta = self._write_snapshot(snapshot_id, content)
        self.store.reset_log(meta)
        self.entries = []
        self.first_index = snapshot_id.index + 1
        self.previous_term = snapshot_id.term

    @rule()
    def leave_a_snapshot_unfinished(self) -> None:
        writer = self.store.begin_snapshot(EntryId(self.term, self.next_index), Configuration())
        writer.write(b"unfinished")

    # ---- what befalls it ----

    @rule()
    def restart(self) -> None:
        self.store.close()
        self._open()

    @rule(noise=st.binary(min_size=1, max_size=60).filter(any))
    def restart_with_an_unfinished_write(self, noise: bytes) -> None:
        self.store.close()
        newest = max((self.folder / "node" / "log").glob("*.wal"))
        with open(newest, "r+b") as file:
            written = file.read().rstrip(b"\0")
            file.seek(len(written) + 24)  # zeros that end a record are part of it
            file.write(noise)
        self._open()

    @invariant()
    def snapshots_are_held(self) -> None:
        for snapshot_id, _, content in getattr(self, "snapshots", []):
            assert self.store.read_snapshot(snapshot_id, 0, 1 << 20) == (content, True)

    # ---- helpers ----

    def _write_snapshot(self, snapshot_id: EntryId, content: bytes) -> Any:
        configuration = Configuration(voters=frozenset({1, 2}), next_node_id=snapshot_id.index)
        writer = self.store.begin_snapshot(snapshot_id, configuration)
        for start in range(0, len(content), 70_000):
            writer.write(content[start : start + 70_000])
        meta = writer.commit()
        self.snapshots = [*self.snapshots, (snapshot_id, configuration, content)][-2:]
        return meta

    def _open(self) -> None:
        self.store = DiskStorage(self.folder / "node", files=FastFiles(), wait_s=0, **self.options)
        recovered = self.store.recover()
        assert recovered.hard_state == self.hard_state
        assert (recovered.first_index, recovered.previous_term) == (self.first_index, self.previous_term)
        assert recovered.entries == self.entries
        if self.snapshots:
            snapshot_id, configuration, content = self.snapshots[-1]
            assert recovered.snapshot == (snapshot_id, configuration, len(content))
            with self.store.open_snapshot() as file:
                assert file.read() == content
        else:
            assert recovered.snapshot is None


TestStoreModel = pytest.mark.long(StoreMachine.TestCase)
TestStoreModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
