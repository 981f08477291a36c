"""The key-value store, by itself: what each command does, what expiry does, and a dict beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actorraft.testing import context
from statemachines import kv
from statemachines.kv import SNAPSHOT_CHUNK_BYTES, SNAPSHOT_KEYS_MAX, KVStore
from tests.statemachines.test_contract import copy_of


def test_set_is_true_and_get_gives_it_back() -> None:
    store = KVStore()
    assert store.set("x", 1) is True
    assert store.get("x") == 1
    assert store.get("y") is None
    assert store.get("y", 7) == 7


def test_delete_says_whether_it_was_there() -> None:
    store = KVStore()
    store.set("x", None)  # a value of None is there all the same
    assert store.delete("x") is True
    assert store.delete("x") is False


def test_compare_and_set_changes_only_what_is_as_expected() -> None:
    store = KVStore()
    assert store.compare_and_set("x", None, 1) is True
    assert store.compare_and_set("x", None, 2) is False
    assert store.compare_and_set("x", 1, 2) is True
    assert store.get("x") == 2


def test_increment_begins_at_nothing() -> None:
    store = KVStore()
    assert [store.increment("n"), store.increment("n", 5)] == [1, 6]


def test_a_range_is_half_open_sorted_and_may_be_limited() -> None:
    store = KVStore()
    store.update({"b": 2, "a": 1, "d": 4, "c": 3})
    assert store.range("b", "d") == [("b", 2), ("c", 3)]
    assert store.range(limit=2) == [("a", 1), ("b", 2)]
    assert store.range(start="c") == [("c", 3), ("d", 4)]
    assert store.keys(stop="c") == ["a", "b"]
    assert store.get_many(["a", "z", "d"]) == {"a": 1, "d": 4}
    assert (store.size(), store.contains("a"), store.contains("z")) == (4, True, False)
    with pytest.raises(ValueError, match="limit is 0 or more"):
        store.range(limit=-1)


def test_a_key_that_expires_goes_at_its_log_time_and_not_before() -> None:
    store = KVStore()
    with context(time=100.0):
        store.set_for("x", 1, 5.0)
    assert store.wake_at == 105.0
    assert store.expires_at("x") == 105.0
    with context(time=104.9):
        store.set("other", 1)
    assert store.get("x") == 1
    with context(time=105.0):
        store.on_clock()
    assert store.get("x") is None
    assert store.wake_at is None


def test_a_key_set_again_keeps_its_new_life() -> None:
    store = KVStore()
    with context(time=0.0):
        store.set_for("x", 1, 5.0)
        store.set_for("y", 1, 5.0)
    with context(time=1.0):
        store.set("x", 2)  # for good
        store.set_for("y", 2, 10.0)
    with context(time=6.0):
        store.on_clock()
    assert (store.get("x"), store.get("y"), store.expires_at("x")) == (2, 2, None)
    with context(time=11.0):
        store.on_clock()
    assert (store.get("x"), store.get("y")) == (2, None)


def test_a_command_never_sees_a_key_whose_time_has_come() -> None:
    store = KVStore()
    with context(time=0.0):
        store.set_for("x", 1, 5.0)
    with context(time=9.0):
        assert store.compare_and_set("x", None, 2) is True


def test_setting_one_key_for_a_while_again_and_again_holds_no_old_expiries() -> None:
    store = KVStore()
    for number in range(10_000):
        with context(time=float(number)):
            store.set_for("x", number, 1e6)
    assert len(store._due) <= 2 + 64


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_life_of_no_time_is_refused(seconds: float) -> None:
    with context(), pytest.raises(ValueError, match="more than 0 seconds"):
        KVStore().set_for("x", 1, seconds)


def test_a_large_state_leaves_in_chunks_and_comes_back_whole() -> None:
    store = KVStore()
    store.update({number: str(number) for number in range(2 * SNAPSHOT_KEYS_MAX + 1)})
    with context(time=3.0):
        store.set_for("brief", 1, 4.0)
    assert len(list(store.snapshot())) == 3
    copy = copy_of(store)
    assert copy.size() == store.size() == 2 * SNAPSHOT_KEYS_MAX + 2
    assert list(copy.snapshot()) == list(store.snapshot())
    assert copy.wake_at == 7.0


def test_large_values_leave_in_chunks_of_few_keys() -> None:
    """A chunk holds up loop and commands for as long as it takes to pickle, and that goes by bytes."""
    store = KVStore()
    store.update({number: bytes(SNAPSHOT_CHUNK_BYTES // 4) for number in range(9)})
    store.set(9, "x" * 3 * SNAPSHOT_CHUNK_BYTES)
    chunks = list(store.snapshot_while_serving())
    assert [len(chunk) for chunk in chunks if chunk] == [4, 4, 2]
    copy = KVStore()
    copy.restore(chunks)
    assert copy.keys() == store.keys() == list(range(10))


VALUES = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
KEYS = st.sampled_from(["a", "b", "c", ""])


class KVModel(RuleBasedStateMachine):
    """The store against a dict of (value, when it expires), and a clock that only goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.store = KVStore()
        self.model: dict[str, tuple[Any, float | None]] = {}
        self.now = 0.0
        self.under_way: Iterator[Any] | None = None  # a snapshot that is drawn while commands go on
        self.expected: list[Any] = []
        self.drawn: list[Any] = []

    def enter(self) -> None:
        """What is due is gone before a command looks."""
        self.model = {key: held for key, held in self.model.items() if held[1] is None or held[1] > self.now}

    def call(self, method: str, *args: Any) -> Any:
        self.enter()
        with context(time=self.now):
            return getattr(self.store, method)(*args)

    @rule(seconds=st.floats(0.1, 3.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(key=KEYS, value=VALUES)
    def set(self, key: str, value: Any) -> None:
        assert self.call("set", key, value) is True
        self.model[key] = (value, None)

    @rule(key=KEYS, value=VALUES, seconds=st.floats(0.1, 3.0))
    def set_for(self, key: str, value: Any, seconds: float) -> None:
        assert self.call("set_for", key, value, seconds) is True
        self.model[key] = (value, self.now + seconds)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        assert self.call("delete", key) is (self.model.pop(key, None) is not None)

    @rule(key=KEYS, expected=VALUES, value=VALUES)
    def compare_and_set(self, key: str, expected: Any, value: Any) -> None:
        done = self.call("compare_and_set", key, expected, value)
        assert done is (self.model.get(key, (None, None))[0] == expected)
        if done:
            self.model[key] = (value, None)

    @precondition(lambda self: self.model)
    @rule(value=VALUES)
    def compare_and_set_that_fits(self, value: Any) -> None:
        key = next(iter(self.model))
        self.enter()
        self.compare_and_set(key, self.model.get(key, (None, None))[0], value)

    @rule(pairs=st.dictionaries(KEYS, VALUES))
    def update(self, pairs: dict[str, Any]) -> None:
        assert self.call("update", pairs) == len(pairs)
        self.model.update({key: (value, None) for key, value in pairs.items()})

    @rule()
    def clear(self) -> None:
        self.call("clear")
        self.model.clear()

    @rule()
    def clock_entry(self) -> None:
        self.call("on_clock")
        due = [expires_at for _, expires_at in self.model.values() if expires_at is not None]
        wake_at = self.store.wake_at
        assert (wake_at is None) == (due == [])
        assert wake_at is None or self.now < wake_at <= min(due)

    @rule()
    def restart_from_a_snapshot(self) -> None:
        before = list(self.store.snapshot())
        self.store = copy_of(self.store)
        assert list(self.store.snapshot()) == before

    @precondition(lambda self: self.under_way is None)
    @rule()
    def begin_a_snapshot_while_serving(self) -> None:
        self.expected = [item for chunk in self.store.snapshot() for item in chunk]
        self.under_way, self.drawn = self.store.snapshot_while_serving(), []

    @precondition(lambda self: self.under_way is not None)
    @rule()
    def draw_a_chunk_of_it(self) -> None:
        assert self.under_way is not None
        chunk = next(self.under_way, None)
        if chunk is not None:
            self.drawn += chunk
            return
        assert self.drawn == self.expected, "whatever commands did between two chunks"
        assert self.store._kept is None
        self.under_way = None

    @precondition(lambda self: self.under_way is not None)
    @rule()
    def give_it_up(self) -> None:
        self.under_way = None
        assert self.store._kept is None

    @invariant()
    def agree_on_what_is_not_due(self) -> None:
        for key, (value, expires_at) in self.model.items():
            if expires_at is None or expires_at > self.now:
                assert self.store.get(key) == value
                assert self.store.expires_at(key) == expires_at


class TestKVModel(KVModel.TestCase):  # type: ignore[name-defined,misc]
    @pytest.fixture(autouse=True)
    def _small_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kv, "SNAPSHOT_KEYS_MAX", 1)
