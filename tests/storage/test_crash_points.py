"""Kill the process, or the machine, at every step: what was acknowledged is there, and nothing that never was."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actorraft.ports import Recovered, SnapshotMeta
from actorraft.raft.messages import EntryId, HardState, LogEntry
from actorraft.storage.disk import DiskStorage
from actorraft.storage.files import Files
from tests.storage.helpers import (
    CONFIGURATION,
    REFUSALS,
    Crash,
    CrashingFiles,
    FastFiles,
    PowerFiles,
    held,
    held_at,
    open_store,
    read_tree,
    take_snapshot,
    write_tree,
)

Held = tuple[Recovered, bytes]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("actorraft.storage")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


def install(store: DiskStorage) -> None:
    """What a follower does with a snapshot that a leader sent."""
    writer = store.begin_snapshot(EntryId(4, 20), CONFIGURATION)
    writer.write(b"sent")
    store.reset_log(writer.commit())


STEPS: list[Callable[[DiskStorage], Any]] = [
    lambda store: store.recover(),
    lambda store: store.persist(HardState(1, 0), 0, [LogEntry(1, b"a" * 60), LogEntry(1, b"b")]),
    lambda store: store.persist(None, 2, [LogEntry(1, b"c" * 300)]),
    lambda store: store.persist(HardState(2, None), 1, [LogEntry(2, b"d" * 200)]),
    lambda store: store.persist(None, 2, [LogEntry(2, b"e" * 250), LogEntry(2, None)]),
    lambda store: take_snapshot(store, 2, 1, b"one"),
    lambda store: take_snapshot(store, 2, 2, b"two"),
    lambda store: store.compact(2),
    lambda store: store.persist(HardState(3, 1), 4, [LogEntry(3, b"f" * 400)]),
    lambda store: store.persist(None, 4, []),
    lambda store: take_snapshot(store, 2, 3, b"three"),
    lambda store: store.compact(4),
    install,
    lambda store: store.persist(HardState(5, 0), 21, [LogEntry(5, b"g")]),
]


def acknowledged_states(path: Path) -> list[Held]:
    """Return what a store holds after each step, taken from an undisturbed run."""
    states = []
    store = open_store(path)
    for step in STEPS:
        step(store)
        store.close()
        states.append(held_at(path))
        store = open_store(path)
        store.recover()
    store.close()
    return [(Recovered(HardState(), None, 0, -1, []), b""), *states]


def run_steps(
    path: Path, files: Files, on_step: Callable[[int], None] = lambda number: None, segment_bytes: int = 512
) -> int:
    """Take the steps until the process is killed; return how many were finished."""
    done = 0
    store = None
    try:
        store = open_store(path, files=files, segment_bytes=segment_bytes)
        for step in STEPS:
            on_step(done)
            step(store)
            done += 1
    except Crash:
        return done
    finally:
        if store is not None:
            with_no_more_changes(store)
    return done


def with_no_more_changes(store: DiskStorage) -> None:
    """Close the descriptors of a store whose process was killed."""
    with contextlib.suppress(Crash):
        store.close()


def within(state: Held, before: Held, after: Held) -> bool:
    """Whether a store that was killed between two states holds one of them, or a legal step between them."""
    if state in (before, after):
        return True
    # A snapshot that is committed before the log was reset, or compacted, may stand alone.
    if after[0].snapshot is None:
        return False
    recovered, content = state
    return content == after[1] and recovered == settle(before[0]._replace(snapshot=after[0].snapshot))


def settle(recovered: Recovered) -> Recovered:
    """Apply the rule of §7: a snapshot that the log does not agree with replaces it."""
    assert recovered.snapshot is not None
    term, index = recovered.snapshot.snapshot_id
    place = index - recovered.first_index
    if place < len(recovered.entries) and (place < 0 or recovered.entries[place].term == term):
        return recovered
    return recovered._replace(first_index=index + 1, previous_term=term, entries=[])


@pytest.mark.parametrize(
    ("durability", "torn"),
    [
        ("fsync", 0.3),
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in [("fsync", 0.0), ("fsync", 0.99), ("os", 0.0), ("os", 0.3), ("os", 0.99)]
        ),
    ],
)
def test_a_process_killed_at_any_step_keeps_what_it_acknowledged(tmp_path: Path, torn: float, durability: str) -> None:
    states = acknowledged_states(tmp_path / "undisturbed")
    for crash_at in range(10_000):
        path = tmp_path / str(crash_at)
        files = CrashingFiles(crash_at, torn)
        done = run_steps(path, files)
        if not files.dead:
            break
        found = held_at(path)
        after = states[min(done + 1, len(states) - 1)]
        assert within(found, states[done], after), f"killed at change {crash_at}, in step {done}: {found}"
        assert held_at(path) == found, "recovery is not repeatable"
    assert done == len(STEPS)
    assert crash_at > 80


def test_a_process_killed_during_recovery_recovers_the_next_time(tmp_path: Path) -> None:
    store = open_store(tmp_path / "node")
    for step in STEPS:
        step(store)
    writer = store.begin_snapshot(EntryId(5, 21), CONFIGURATION)
    writer.write(b"half")
    store.close()
    log = tmp_path / "node" / "log"
    newest = sorted(log.glob("*.wal"))[-1]
    newest.write_bytes(newest.read_bytes() + b"torn")
    tree = read_tree(tmp_path / "node")
    expected = held_at(tmp_path / "node")

    for crash_at in range(1000):
        write_tree(tmp_path / "node", tree)
        files = CrashingFiles(crash_at)
        try:
            store = open_store(tmp_path / "node", files=files)
            store.recover()
        except Crash:
            pass
        with_no_more_changes(store)
        assert held_at(tmp_path / "node") == expected
        if not files.dead:
            break
    assert crash_at > 5


@pytest.mark.parametrize("segment_bytes", [512, 6000], ids=["small segments", "one segment"])
@pytest.mark.parametrize("seed", range(6))
def test_a_loss_of_power_at_any_step_keeps_what_was_acknowledged(tmp_path: Path, seed: int, segment_bytes: int) -> None:
    rng = random.Random(seed)
    states = acknowledged_states(tmp_path / "undisturbed")
    cuts = power_cuts(tmp_path / "node", rng, segment_bytes)
    assert len(cuts) > 20

    for number, (done, tree) in enumerate(cuts):
        path = tmp_path / f"cut-{number}"
        path.mkdir()
        write_tree(path, tree)
        found = held_at(path, segment_bytes=segment_bytes)
        after = states[min(done + 1, len(states) - 1)]
        assert within(found, states[done], after), f"cut {number}, in step {done}: {found}"


def power_cuts(path: Path, rng: random.Random, segment_bytes: int) -> list[tuple[int, dict[str, bytes]]]:
    """Take the steps; return (steps finished, what is on the disk) for losses of power at random changes."""
    files = PowerFiles()
    cuts: list[tuple[int, dict[str, bytes]]] = []
    done = 0

    def maybe_cut() -> None:
        if path.is_dir() and rng.random() < 0.5:
            cuts.append((done, files.after_power_loss(path, rng)))

    def on_step(number: int) -> None:
        nonlocal done
        done = number

    files.on_change = maybe_cut
    try:
        assert run_steps(path, files, on_step, segment_bytes) == len(STEPS)
    finally:
        files.release()
    return cuts


@pytest.mark.parametrize("skipped", ["sync_data", "sync", "sync_directory"])
def test_without_syncs_a_loss_of_power_loses_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skipped: str
) -> None:
    """The test above must be able to fail: a store that skips its syncs does not pass it."""
    monkeypatch.setattr(PowerFiles, skipped, lambda self, fd: None)
    rng = random.Random(0)
    states = acknowledged_states(tmp_path / "undisturbed")
    lost = 0
    for number, (done, tree) in enumerate(power_cuts(tmp_path / "node", rng, segment_bytes=512)):
        path = tmp_path / f"cut-{number}"
        path.mkdir()
        write_tree(path, tree)
        try:
            found = held_at(path)
        except REFUSALS:
            lost += 1
        else:
            lost += not within(found, states[done], states[min(done + 1, len(states) - 1)])
    assert lost > 5


def test_a_write_torn_at_any_byte_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "node"
    store = open_store(path, segment_bytes=1 << 20)
    store.recover()
    store.persist(HardState(1, 0), 0, [LogEntry(1, b"kept")])
    store.close()
    before = read_tree(path)
    store = open_store(path, segment_bytes=1 << 20)
    expected = held(store)
    store.persist(None, 1, [LogEntry(1, b"torn" * 20), LogEntry(1, b"too")])
    store.close()
    name = "log/00000000000000000000.wal"
    after = read_tree(path)[name]

    for size in range(len(before[name]), len(after)):
        write_tree(path, {**before, name: after[:size]})
        assert held_at(path) == expected, size
    write_tree(path, {**before, name: after})
    assert len(held_at(path)[0].entries) == 3


def test_a_write_of_which_any_sectors_are_missing_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "node"
    store = open_store(path, segment_bytes=1 << 20)
    store.recover()
    store.close()
    before = read_tree(path)
    store = open_store(path, segment_bytes=1 << 20)
    expected = held(store)
    store.persist(None, 0, [LogEntry(1, b"%d" % number * 100) for number in range(40)])
    store.close()
    name = "log/00000000000000000000.wal"
    after = read_tree(path)[name]

    for start in range(len(before[name]), len(after), 128):
        holed = bytearray(after)
        holed[start : start + 128] = bytes(len(holed[start : start + 128]))
        write_tree(path, {**before, name: bytes(holed)})
        assert held_at(path) == expected, start


def test_the_last_write_is_made_durable_before_it_is_believed(tmp_path: Path) -> None:
    """A sync that failed leaves pages that only look written: recovery writes them again before it counts on them."""
    path = tmp_path / "node"
    store = open_store(path)
    store.recover()
    store.persist(HardState(1, 0), 0, [LogEntry(1, b"last")])
    store.close()

    written: list[bytes] = []
    synced: list[int] = []

    class Watching(FastFiles):
        def write(self, fd: int, parts: Any, offset: int) -> None:
            written.append(b"".join(parts))
            super().write(fd, parts, offset)

        def sync(self, fd: int) -> None:
            synced.append(len(written))

    store = open_store(path, files=Watching())
    store.recover()
    store.close()
    assert b"last" in written[0]
    assert 1 in synced


def test_snapshot_metadata_survives(tmp_path: Path) -> None:
    store = open_store(tmp_path / "node")
    store.recover()
    store.persist(None, 0, [LogEntry(1, b"a")])
    take_snapshot(store, 1, 0, b"x" * 70_000)
    store.close()
    assert held_at(tmp_path / "node")[0].snapshot == SnapshotMeta(EntryId(1, 0), CONFIGURATION, 70_000)
