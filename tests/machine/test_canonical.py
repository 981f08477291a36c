"""Digests depend on what a value is, never on how it came about; and names on what can be imported."""

from __future__ import annotations

import collections
import copy
import datetime
import decimal
import enum
import pickle
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorraft.pickling.canonical import Sample, digest
from actorraft.pickling.names import is_importable, module_is_importable

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class Point:
    x: Any
    y: Any


class Slim:
    __slots__ = ("x", "y")


class Colour(enum.Enum):
    RED = 1


class Items(dict[Any, Any]):
    pass


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner, max_size=4)
        | st.frozensets(st.integers() | st.text(), max_size=4)
        | st.builds(Point, inner, inner)
    ),
    max_leaves=12,
)


@given(values)
def test_a_copy_has_the_same_digest(value: Any) -> None:
    assert digest(value) == digest(copy.deepcopy(value)) == digest(pickle.loads(pickle.dumps(value)))


@given(values, values)
def test_values_that_print_differently_have_different_digests(one: Any, other: Any) -> None:
    if repr(one) != repr(other) and one != other:
        assert digest(one) != digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True), (1, 1.0), ("1", 1), (b"1", "1"), ([1], (1,)), ({}, []), ({1}, frozenset({1})), (0, None),
        ([[1], 2], [[1, 2]]), ([1, 2], [2, 1]), ({"a": 1, "b": 2}, {"b": 2, "a": 1}), (Point(1, 2), Point(2, 1)),
        (Colour.RED, 1), (Items(a=1), {"a": 1}), (1 << 70, str(1 << 70)), ([None] * 1000, [None] * 1001),
        (decimal.Decimal("1.0"), decimal.Decimal("1.00")), (bytearray(b"a"), b"a"), (int, str), (len, max),
        ([10**5000], [10**5000 + 1]), ([-(10**5000)], [10**5000]), ([1 << 2000], [1 << 2001]), ([10**600], [10**6000]),
    ],
)  # fmt: skip
def test_what_differs_has_different_digests(one: Any, other: Any) -> None:
    assert digest(one) != digest(other)


def test_the_order_of_sets_and_of_attributes_does_not_count() -> None:
    one, other = Point(1, 2), Point.__new__(Point)
    other.y, other.x = 2, 1
    assert digest(one) == digest(other)
    one_way, other_way = {0, 8}, {8, 0}  # they collide in a small set, so the order of insertion shows
    assert list(one_way) != list(other_way)
    assert digest(one_way) == digest(other_way)


def test_sharing_does_not_count_and_cycles_end() -> None:
    shared = [1]
    assert digest([shared, shared]) == digest([[1], [1]])
    loop: list[Any] = []
    loop.append(loop)
    again: list[Any] = []
    again.append(again)
    assert digest(loop) == digest(again)


def inside(wrap: Callable[[Any], Any], depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


def slim(value: Any) -> Slim:
    made = Slim()
    made.x = value
    return made


@pytest.mark.parametrize(
    "wrap",
    [
        lambda value: [value], lambda value: (value,), lambda value: {"k": value}, lambda value: frozenset({value}),
        lambda value: Point(value, 1), slim, lambda value: collections.deque([value]), lambda value: Items(k=value),
    ],
)  # fmt: skip
@pytest.mark.parametrize("depth", [50, 200, 5000])
def test_what_is_deep_has_a_digest_wherever_it_is_asked_for(wrap: Callable[[Any], Any], depth: int) -> None:
    def sampled(value: Any) -> bytes:
        walk = Sample(1 << 20)
        walk.take((value,))
        return walk.result()

    value, came = inside(wrap, depth), []
    thread = threading.Thread(target=lambda: came.append((digest(value), sampled(value))))  # as deep as in a node
    thread.start()
    thread.join()
    assert came == [(digest(inside(wrap, depth)), sampled(inside(wrap, depth)))]
    assert came[0][0] != digest(inside(wrap, 30))


def test_slots_times_and_what_cannot_be_pickled_have_digests() -> None:
    one, other = Slim(), Slim()
    one.x, other.x = 1, 1
    assert digest(one) == digest(other)
    other.y = 2
    assert digest(one) != digest(other)
    day = datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC)
    assert digest(day) == digest(copy.deepcopy(day)) != digest(day + datetime.timedelta(1))
    assert digest(threading.Lock()) == digest(threading.Lock())
    assert digest("\ud800") != digest("\ud801")


def test_processes_with_other_hash_seeds_agree() -> None:
    code = (
        "from actorraft.pickling.canonical import digest\n"
        "print(digest({'k': {'a', 'b', 'c', (1, 'd'), frozenset('xyz')}, 'n': [1.5, None, 1 << 80]}).hex())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


# --- Names -----------------------------------------------------------------------------------------------------------


def test_what_a_fresh_interpreter_can_import_goes_by_name() -> None:
    for each in (Point, Point.__init__, dict, len.__class__, threading.Thread, digest, st.SearchStrategy):
        if each is not Point.__init__ and each is not len.__class__:
            assert is_importable(each), each
    for name in ("os", "os.path", "sys", "_thread", "importlib._bootstrap", "xml.dom", "tests.machine", "pytest"):
        __import__(name)
        assert module_is_importable(name), name


def test_what_it_cannot_does_not() -> None:
    def local() -> None: ...

    class Local: ...

    assert not is_importable(local)
    assert not is_importable(Local)
    assert not is_importable(lambda: None)
    assert not module_is_importable("__main__")
    assert not module_is_importable("no.such.module")


def test_a_module_loaded_from_elsewhere_under_a_name_is_not_importable(tmp_path: Path) -> None:
    import importlib.util

    path = tmp_path / "elsewhere.py"
    path.write_text("class Thing: pass\n")
    spec = importlib.util.spec_from_file_location("elsewhere_of_a_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["elsewhere_of_a_test"] = module
    try:
        spec.loader.exec_module(module)
        assert not is_importable(module.Thing)
        sys.modules["elsewhere_of_a_test"] = types.ModuleType("elsewhere_of_a_test")
        assert not module_is_importable("elsewhere_of_a_test")
    finally:
        del sys.modules["elsewhere_of_a_test"]


def test_a_function_that_was_replaced_in_its_module_is_not_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    original = digest
    monkeypatch.setattr("actorraft.pickling.canonical.digest", lambda value: b"")
    assert not is_importable(original)
