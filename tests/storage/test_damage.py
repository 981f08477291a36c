"""Cut the store at any byte, flip any byte: it recovers exactly what was acknowledged, or refuses and says where."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from actorraft.errors import CorruptionError
from actorraft.ports import Recovered
from actorraft.raft.messages import HardState, LogEntry
from tests.storage.helpers import held_at, open_store, outcome, read_tree, write_history, write_tree

pytestmark = pytest.mark.long


class Written:
    """A store with a history, closed; `tree` is what is on disk and `expected` what must come back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        store = open_store(path)
        store.recover()
        write_history(store)
        store.close()
        self.tree = read_tree(path)
        self.expected = held_at(path)

    def damaged(self, name: str, content: bytes | None) -> tuple[Recovered, bytes] | Exception:
        tree = {**self.tree, name: content or b""}
        if content is None:
            del tree[name]
        write_tree(self.path, tree)
        return outcome(self.path)

    def segments(self) -> list[str]:
        return [name for name in self.tree if name.endswith(".wal")]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    logging.getLogger("actorraft.storage").setLevel(logging.ERROR)
    return Written(tmp_path / "node")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("actorraft.storage")
    before = logger.level
    yield
    logger.setLevel(before)


def flips(written: Written, bits: range) -> dict[str, list[bool]]:
    """Flip those bits of each byte in turn; return, by file, whether the store refused."""
    refused: dict[str, list[bool]] = {}
    for name, content in written.tree.items():
        refused[name] = []
        for place in range(len(content)):
            for bit in bits if len(bits) > 1 else (place % 8,):
                changed = bytearray(content)
                changed[place] ^= 1 << bit
                result = written.damaged(name, bytes(changed))
                assert isinstance(result, Exception) or result == written.expected, f"{name}, byte {place}, bit {bit}"
                refused[name].append(isinstance(result, Exception))
    return refused


def test_every_byte_flipped_is_detected_or_without_effect(written: Written) -> None:
    refused = flips(written, range(1))

    newest = [name for name in written.tree if name.endswith(".snapshot")][-1]
    for name in [*written.segments(), newest, "node.json"]:
        assert all(refused[name]), f"{name}: {refused[name].index(False)}"
    for name in ("lock", "log/mark"):
        assert not any(refused[name]), name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_bit_flipped_is_detected_or_without_effect(written: Written) -> None:
    flips(written, range(8))


def test_every_file_cut_at_every_byte_is_detected_or_without_effect(written: Written) -> None:
    for name, content in written.tree.items():
        for size in range(len(content)):
            result = written.damaged(name, content[:size])
            assert isinstance(result, Exception) or result == written.expected, f"{name} cut to {size}"
            if name.endswith(".wal"):
                assert isinstance(result, CorruptionError), f"{name} cut to {size}"


def test_every_file_missing_is_detected_or_without_effect(written: Written) -> None:
    for name in written.tree:
        result = written.damaged(name, None)
        assert isinstance(result, Exception) or result == written.expected, name


def test_every_segment_zeroed_from_any_sector_on_is_detected(written: Written) -> None:
    for name in written.segments():
        content = written.tree[name]
        for start in range(0, len(content), 64):
            result = written.damaged(name, content[:start].ljust(len(content), b"\0"))
            assert isinstance(result, CorruptionError), f"{name} zeroed from {start}"


def test_noise_behind_the_log_is_dropped_with_a_warning(written: Written, caplog: pytest.LogCaptureFixture) -> None:
    name = written.segments()[-1]
    with caplog.at_level(logging.WARNING, "actorraft.storage"):
        assert written.damaged(name, written.tree[name] + b"\1\2\3" * 50) == written.expected
    assert "dropped an unfinished write" in caplog.text
    assert outcome(written.path) == written.expected


def test_a_refusal_names_file_offset_index_and_the_way_out(written: Written) -> None:
    name = written.segments()[-1]
    changed = bytearray(written.tree[name])
    changed[-1] ^= 1
    error = written.damaged(name, bytes(changed))
    assert isinstance(error, CorruptionError)
    for part in (name, "offset ", "log index 9", "acknowledged", "accept_loss=True"):
        assert part in str(error)


def test_a_log_of_which_nothing_can_be_read_does_not_offer_to_go_on_with_what_can(written: Written) -> None:
    name = written.segments()[0]
    error = written.damaged(name, b"\xff" + written.tree[name][1:])
    assert isinstance(error, CorruptionError)
    assert "add a new one" in str(error)
    assert "accept_loss" not in str(error)
    with pytest.raises(CorruptionError):
        held_at(written.path, accept_loss=True)


def test_a_segment_of_another_store_is_refused(written: Written, tmp_path: Path) -> None:
    other = Written(tmp_path / "other")
    name = written.segments()[0]
    error = written.damaged(name, other.tree[name])
    assert isinstance(error, CorruptionError)
    assert "another store" in str(error)


def test_a_copy_of_the_log_inside_an_entry_does_not_look_like_the_log(tmp_path: Path) -> None:
    first = Written(tmp_path / "first")
    store = open_store(tmp_path / "second")
    store.recover()
    store.persist(HardState(1, 0), 0, [LogEntry(1, first.tree[first.segments()[-1]])])
    store.close()
    tree = read_tree(tmp_path / "second")
    mark = tree.pop("log/mark")
    assert mark
    name = "log/00000000000000000000.wal"
    write_tree(tmp_path / "second", {**tree, name: tree[name][:-1]})
    recovered, _ = held_at(tmp_path / "second")
    assert recovered == Recovered(HardState(), None, 0, -1, [])


def test_accepting_loss_goes_on_with_what_is_before_the_damage(written: Written) -> None:
    name = written.segments()[-1]
    changed = bytearray(written.tree[name])
    changed[-1] ^= 1
    assert isinstance(written.damaged(name, bytes(changed)), CorruptionError)

    recovered, snapshot = held_at(written.path, accept_loss=True)
    assert snapshot == written.expected[1]
    assert recovered.entries == written.expected[0].entries[:-2]
    assert held_at(written.path)[0].entries == recovered.entries


def test_accepting_loss_in_an_early_segment_sets_the_later_ones_aside(written: Written) -> None:
    names = written.segments()
    changed = bytearray(written.tree[names[0]])
    changed[-10] ^= 1
    assert isinstance(written.damaged(names[0], bytes(changed)), CorruptionError)

    recovered, snapshot = held_at(written.path, accept_loss=True)
    assert snapshot == written.expected[1]
    assert (recovered.first_index, recovered.previous_term) == (5, 2)
    assert held_at(written.path)[0] == recovered
    assert len([one for one in (written.path / "log").iterdir() if one.suffix == ".lost"]) == len(names) - 1
