"""Arrays in commands, queries and results: as they were, without a pickle, and the same on a node that was restored."""

from __future__ import annotations

import contextlib
import gc
import pickle
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actorraft import StateMachine, UsageError, codec, command, query
from actorraft.pickling import beside
from actorraft.pickling.encoder import Encoder
from actorraft.pickling.formats import ARRAYS
from actorraft.roles import why_not
from tests.machine.local import Local

DTYPES = ["?", "u1", "i2", "u4", "i8", "f2", "f4", "f8", "c8", "c16"]


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    count = int(np.prod(shape, dtype=int))
    made = np.frombuffer(draw(st.binary(min_size=count * 16, max_size=count * 16)), np.uint8)[: count * dtype.itemsize]
    array = made.copy().view(dtype).reshape(shape) if dtype.kind != "b" else (made.copy() & 1).view(bool).reshape(shape)
    how = draw(st.sampled_from(["as it is", "reversed", "transposed", "read-only"]))
    if how == "reversed" and array.ndim:
        array = array[::-1]
    elif how == "transposed":
        array = array.T
    array.flags.writeable = how != "read-only"
    return array


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.binary()
values = st.recursive(
    scalars | arrays(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    | st.lists(inner, max_size=3).map(tuple),
    max_leaves=8,
)  # fmt: skip


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other) or (one != one and other != other)


@given(values)
def test_what_goes_beside_comes_back_as_it_was(value: Any) -> None:
    encoded = beside.dumps(value)
    assert encoded is not None
    assert same(beside.loads(encoded), value)
    assert same(beside.loads(encoded, writable=True), value)


@given(arrays())
def test_a_result_may_be_written_to_if_it_could_be_where_it_was_made(array: Any) -> None:
    encoded = beside.dumps([array])
    assert encoded is not None
    assert beside.loads(encoded, writable=True)[0].flags.writeable == array.flags.writeable
    assert not beside.loads(encoded)[0].flags.writeable


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]), np.array(["text"]), np.zeros(2, "f4,i4"), np.zeros(2, ">f4"), np.zeros(2, "M8[s]"),
        np.ma.masked_array([1.0], [True]), {1: np.zeros(2)}, [np.zeros(2), {1, 2}], [np.zeros(2), 1 << 70],
        [np.zeros(2), "\ud800"], [np.zeros(2), np.float32(1)],
    ],
)  # fmt: skip
def test_what_is_not_only_arrays_and_plain_data_goes_in_a_pickle(value: Any) -> None:
    assert beside.dumps(value) is None
    encoded = msgspec.msgpack.decode(Encoder(lambda _: None).encode_call("give", (value,), {}))
    assert encoded.code != ARRAYS


@given(st.binary(max_size=100))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    with contextlib.suppress(UsageError):
        beside.loads(data)


@settings(max_examples=300)
@given(values, st.data())
def test_a_message_that_was_changed_is_read_or_refused(value: Any, data: st.DataObject) -> None:
    encoded = bytearray(beside.dumps([value, np.zeros(3)]) or b"")
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UsageError):
        beside.loads(bytes(encoded))


class Keeper(StateMachine):
    """Keeps what it is given, as users will."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.total: Any = None

    @command
    def keep(self, name: str, array: Any, *, part: int | None = None) -> Any:
        self.kept[name] = array if part is None else array[:part]
        return array.flags.writeable

    @command
    def add_in_place(self, name: str, value: float) -> Any:
        self.kept[name] += value
        return self.kept[name]

    @command
    def add(self, name: str, arrays: dict[str, Any]) -> Any:
        self.kept[name] = sum(arrays.values(), np.zeros(3, np.float32))
        return self.kept[name]

    @query
    def get(self, name: str) -> Any:
        return self.kept[name]

    @query
    def nearest(self, array: Any) -> Any:
        return min(self.kept, key=lambda name: float(np.abs(self.kept[name] - array).sum()))


def test_arrays_in_commands_queries_and_results_open_no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Local(Keeper)
    for module in (pickle,):
        for name in ("loads", "dumps"):
            monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("a pickle"))
    assert machine.call("keep", "a", np.arange(3.0)) is False, "it is a view, which nobody may write to"
    assert machine.call("keep", "b", array=np.full(3, 9.0)) is False
    assert machine.call("add", "c", {"x": np.ones(3, np.float32), "y": np.ones(3, np.float32)}).tolist() == [2.0] * 3
    assert machine.ask("get", "a").tolist() == [0.0, 1.0, 2.0]
    assert machine.ask("nearest", np.full(3, 8.0)) == "b"


def test_a_method_that_is_not_there_and_bytes_that_are_nothing_are_named() -> None:
    machine = Local(Keeper)
    with pytest.raises(UsageError, match="no command 'gone'"):
        machine.call("gone", np.zeros(3))
    with pytest.raises(UsageError, match="cannot be read"):
        machine.apply(msgspec.msgpack.encode(msgspec.msgpack.Ext(ARRAYS, b"nonsense")))


calls = st.one_of(
    st.tuples(st.just("keep"), st.sampled_from("ab"), st.sampled_from([3, 2000]), st.sampled_from([None, 3])),
    st.tuples(st.just("add"), st.sampled_from("ab")),
    st.tuples(st.just("add_in_place"), st.sampled_from("ab"), st.integers(1, 3)),
)


@settings(max_examples=60)
@given(st.lists(calls, max_size=12))
def test_a_machine_that_is_restored_at_every_point_goes_on_as_one_that_never_was(some: Any) -> None:
    """An array that is read-only before a restore and writable after it would part them at the next `+=`."""
    never, often = Local(Keeper), Local(Keeper)

    def of(machine: Local, call: Any) -> Any:
        kind, name, *rest = call
        try:
            if kind == "keep":
                given_ = np.arange(rest[0], dtype=np.float32)
                return machine.call("keep", name, given_, part=rest[1])
            if kind == "add":
                return machine.call("add", name, {"x": np.ones(3, np.float32)}).tolist()
            return machine.call("add_in_place", name, rest[0]).tolist()
        except (KeyError, ValueError) as error:
            return type(error), str(error)

    for call in some:
        often.restore(often.snapshot())
        assert of(never, call) == of(often, call)
        assert never.host.digest() == often.host.digest()
    writable = [
        {name: array.flags.writeable for name, array in machine.host.machine.kept.items()} for machine in (never, often)
    ]
    assert writable[0] == writable[1]


def test_a_small_array_that_is_kept_holds_on_to_no_large_message() -> None:
    machine = Local(Keeper)
    machine.call("add", "a", {"x": np.ones(3, np.float32), "large": np.ones(3, np.float32)})
    encoded = beside.dumps([np.zeros(1000), np.zeros(10)])
    assert encoded is not None
    large, small = beside.loads(encoded)
    assert large.base is not None, "it is a view: nothing was copied"
    holds = {id(each) for array in (small, small.base) if array is not None for each in gc.get_referents(array)}
    assert id(encoded) not in holds
    for array in (large, small):
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True  # nor can it be after a restore


def test_a_client_that_may_send_plain_data_only_may_send_arrays() -> None:
    call = Encoder(lambda _: None).encode_call("keep", ("a", np.zeros(3)), {})
    assert why_not("write", codec.Commands(7, 0, 0, 1, codec.join_body([call]))) == ""


def test_large_arrays_are_moved_once_on_their_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(100_000, dtype=np.float32)
    encoded = Encoder(lambda _: None).encode_call("keep", ("a", array), {})
    decoded = msgspec.msgpack.decode(encoded)
    assert decoded.code == ARRAYS
    assert array.nbytes < len(encoded) < array.nbytes + 200
    method, args, kwargs = beside.loads(decoded.data)
    assert (method, args[0], kwargs) == ("keep", "a", {})
    assert args[1].ctypes.data % beside.ALIGNED_BYTES == 0
    assert same(args[1], array)
