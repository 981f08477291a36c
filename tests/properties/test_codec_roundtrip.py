"""Whatever is encoded comes back as it was; whatever else arrives is refused by one error."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorraft import codec
from actorraft.raft.messages import (
    MESSAGE_TYPES,
    AppendEntries,
    AppendEntriesResponse,
    InstallSnapshot,
    LogEntry,
    RequestVote,
)
from tests.properties.strategies import configurations

numbers = st.integers(min_value=-1, max_value=2**62)
ids = st.integers(min_value=0, max_value=2**31)
items = st.none() | st.binary(max_size=40) | configurations() | st.text(max_size=10) | st.integers(-(2**60), 2**60)
entries = st.lists(st.builds(LogEntry, term=numbers, item=items), max_size=5)
messages = st.one_of(
    st.builds(AppendEntries, ids, ids, numbers, numbers, numbers, entries, numbers, numbers, numbers),
    st.builds(AppendEntriesResponse, ids, ids, numbers, st.booleans(), numbers, numbers, numbers, numbers, numbers),
    st.builds(RequestVote, ids, ids, numbers, numbers, numbers, st.booleans(), st.booleans()),
    st.builds(
        InstallSnapshot,
        ids,
        ids,
        numbers,
        numbers,
        numbers,
        configurations(),
        numbers,
        st.binary(max_size=50),
        st.booleans(),
        numbers,
    ),
)


@given(messages)
def test_a_raft_message_comes_back_as_it_was(message: Any) -> None:
    back = codec.decode_message(codec.encode_message(message))

    assert type(message) is type(back)
    assert message == back


class Zeros(NamedTuple):
    """Stands for so many bytes, for a report of what failed that can be read."""

    count: int


sizes = st.sampled_from([0, 200, 300, (1 << 16) - 1, 1 << 16, codec.APART_BYTES - 1, codec.APART_BYTES, 1 << 18])
large_entries = st.lists(st.builds(LogEntry, term=numbers, item=items | sizes.map(Zeros)), min_size=1, max_size=10)


def append_of(some: list[LogEntry], number: int) -> AppendEntries:
    entries = [LogEntry(term, bytes(item.count) if type(item) is Zeros else item) for term, item in some]
    return AppendEntries(1, 2, number, number, number, entries, number, number, 3)


@given(large_entries, numbers)
def test_large_items_are_joined_to_the_very_bytes_that_an_encoder_makes(some: list[LogEntry], number: int) -> None:
    message = append_of(some, number)
    frame = codec.encode_message(message)

    assert frame == _encoded(message)
    assert codec.decode_message(frame) == message


def _encoded(message: AppendEntries) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "APART_BYTES", 1 << 40)
        return codec.encode_message(message)


@given(large_entries, numbers)
def test_large_items_leave_uncopied_and_what_is_made_of_the_parts_holds_on_to_none(
    some: list[LogEntry], number: int
) -> None:
    message = append_of(some, number)
    first, *beside = codec.encode_parts(message)
    arrived = [bytearray(part) for part in beside]

    back = codec.decode_message(first, [memoryview(part) for part in arrived])
    for part in arrived:
        part.clear()  # BufferError if somebody looked at it still

    large = [item for _, item in message.entries if type(item) is bytes and len(item) >= codec.APART_BYTES]
    assert len(beside) == 2 * len(large)
    assert all(part is item for part, item in zip(beside[::2], large, strict=True))
    assert back == message


def test_parts_that_do_not_fit_together_are_refused() -> None:
    large = bytes(codec.APART_BYTES)
    message = AppendEntries(1, 2, 3, 4, 3, [LogEntry(3, large), LogEntry(3, b"small"), LogEntry(3, large)], 4)
    first, *beside = map(memoryview, codec.encode_parts(message))  # type: ignore[arg-type]
    stray = msgspec.msgpack.encode(msgspec.msgpack.Ext(codec.APART_EXT, b"\0"))
    vote = memoryview(codec.encode_message(RequestVote(1, 2, 3, 4, 3)))
    mixed = memoryview(bytes(beside[1]).replace(msgspec.msgpack.encode(b"small"), stray))

    assert codec.decode_message(first, beside) == message
    for wrong in (
        (first, beside[:-1]),
        (first, beside[:-2]),
        (first, [*beside, *beside[:2]]),
        (first, [beside[0][1:], *beside[1:]]),
        (first, [beside[0], mixed, *beside[2:]]),
        (vote, beside[:2]),
        (first, ()),
        (first[:0], beside),
    ):
        with pytest.raises(codec.MalformedFrame):
            codec.decode_message(*wrong)


@pytest.mark.parametrize("size", [0, 100, codec.LARGE_BYTES, 1 << 16, 100_000])
@pytest.mark.parametrize("count", [1, 2, 15, 16, 100])
@pytest.mark.parametrize("traces", [[], ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]])
def test_a_large_frame_of_commands_is_the_very_bytes_that_an_encoder_makes(
    size: int, count: int, traces: list[str]
) -> None:
    values = [codec.encode(["set", b"v" * (size // count), n]) for n in range(count)]  # type: ignore[type-var]

    frame = codec.encode_commands(7, 1 << 40, 300, values, traces)

    assert frame == codec.encode(codec.Commands(7, 1 << 40, 300, count, codec.join_body(values), traces))


def test_every_message_of_the_core_has_a_code() -> None:
    from typing import get_args

    from actorraft.raft.messages import Message

    assert set(get_args(Message)) <= set(MESSAGE_TYPES)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_refused_by_one_error(data: bytes) -> None:
    for decode in (codec.decode_message, codec.decode_request, codec.decode_reply, codec.decode_body):
        try:
            decode(data)
        except codec.MalformedFrame:
            continue


@given(messages, st.data())
def test_a_damaged_message_is_decoded_or_refused_never_worse(message: Any, data: st.DataObject) -> None:
    frame = bytearray(codec.encode_message(message))
    position = data.draw(st.integers(0, len(frame) - 1))
    frame[position] ^= data.draw(st.integers(1, 255))
    try:
        codec.decode_message(bytes(frame))
    except codec.MalformedFrame:
        return


@given(ids, numbers, numbers, st.binary(max_size=60))
def test_a_client_frame_survives_its_stamp(client_id: int, first: int, lowest: int, body: bytes) -> None:
    frame = codec.Commands(client_id, first, lowest, 3, body)

    lent = bytearray(codec.encode(frame))
    item = codec.stamp(12.5, memoryview(lent))
    lent.clear()  # BufferError if the item looked at it still
    time_s, back = codec.unstamp(item)

    assert type(item) is bytes
    assert 12.5 == time_s
    assert frame == codec.decode_request(back)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 300, 70_000])
def test_a_body_holds_any_number_of_values(count: int) -> None:
    assert list(range(count)) == codec.decode_body(codec.join_body([codec.encode(n) for n in range(count)]))


def test_an_item_without_a_stamp_is_refused() -> None:
    with pytest.raises(codec.MalformedFrame):
        codec.unstamp(b"1234567")
