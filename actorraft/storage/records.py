"""The format of the log on disk: segments, batches and the records in them. Pure functions over bytes.

A segment is a header and then batches, back to back, up to zeros or the end of the file. **One call of persist() is
one batch, and a batch is one checksummed unit**: marker, CRC, length, sequence number, records. So a batch is its own
commit record: it counts as a whole or not at all. (A commit record of its own after separately checksummed records
was the alternative; a torn write can leave any part of itself behind, so those CRCs could decide nothing that the
batch's cannot, and cost a call each.) Sequence numbers are dense over all segments of a store. A batch is written
only after the one before it is durable, therefore: a bad batch with a good later one behind it is damage, never a
torn write.

The marker is random for each segment. It is what recovery searches for behind a bad batch, at the speed of
`bytes.find`, and what keeps a copy of a log stored as an entry from looking like the log.

Shape:     all integers little-endian. Every byte of a file up to the zeros at its end is under one CRC, but for the
           marker, which is compared with the header's.
Not here:  files (wal.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from actorraft.errors import UsageError
from actorraft.raft.messages import Configuration, HardState, LogEntry
from actorraft.storage.checksum import crc32

FORMAT_VERSION = 1
MAGIC = b"ARaftLog"
MARKER_BYTES = 8
STORAGE_ID_BYTES = 16

_SEGMENT = struct.Struct("<8sIQ16s8s")  # magic, version, first sequence, storage id, marker; a CRC follows
_CRC = struct.Struct("<I")
SEGMENT_HEADER_BYTES = _SEGMENT.size + _CRC.size

_LENGTH_SEQUENCE = struct.Struct("<IQ")
BATCH_HEADER_BYTES = MARKER_BYTES + _CRC.size + _LENGTH_SEQUENCE.size
BATCH_BYTES_MAX = 0xFFFF_FFFF

_START = struct.Struct("<Bqqqqq")  # kind, term, voted_for, first_index, previous_term, next_index
START_BYTES = _START.size
_HARD_STATE = struct.Struct("<Bqq")  # kind, term, voted_for (-1: nobody)
_ENTRIES = struct.Struct("<BqI")  # kind, index of the first, count
_ENTRY = struct.Struct("<qBI")  # term, codec of the item, its size
_FORGET = struct.Struct("<Bqq")  # kind, first_index, previous_term

_KIND_START, _KIND_HARD_STATE, _KIND_ENTRIES, _KIND_COMPACT, _KIND_RESET = range(1, 6)
_CODEC_NONE, _CODEC_BYTES, _CODEC_CONFIGURATION, _CODEC_PLAIN = range(4)

_SLOT = struct.Struct("<Q")  # sequence; a CRC follows
SLOT_BYTES = _SLOT.size + _CRC.size


class SegmentHeader(NamedTuple):
    """The head of a segment. `first_sequence` is the sequence number of its first batch, and its name."""

    first_sequence: int
    storage_id: bytes
    marker: bytes


class Start(NamedTuple):
    """The first record of a segment: all that the segments before it amount to, but for their entries."""

    hard_state: HardState
    first_index: int
    previous_term: int
    next_index: int


class Entries(NamedTuple):
    """Entries that go in at `first_index` and replace what was held at and after it; none: only cut there."""

    first_index: int
    entries: list[LogEntry]


class Compact(NamedTuple):
    """Entries below `first_index` are forgotten; `previous_term` is the term of the last of them."""

    first_index: int
    previous_term: int


class Reset(NamedTuple):
    """Every entry is forgotten; the next one is `first_index`, after one of `previous_term`."""

    first_index: int
    previous_term: int


Record = Start | HardState | Entries | Compact | Reset


class Batch(NamedTuple):
    """Where a good batch lies in its segment: its records are [start, stop)."""

    sequence: int
    start: int
    stop: int


# ---- values -------------------------------------------------------------------------------------------------------

_plain_encoder = msgspec.msgpack.Encoder(order="deterministic")
_plain_decoder = msgspec.msgpack.Decoder()
_configuration_decoder = msgspec.msgpack.Decoder(Configuration)


def encode_configuration(configuration: Configuration) -> bytes:
    """Return it as msgpack; equal configurations give equal bytes."""
    return _plain_encoder.encode(configuration)


def decode_configuration(data: bytes | memoryview) -> Configuration:
    """Undo encode_configuration. Raises ValueError."""
    return _configuration_decoder.decode(data)


def _encode_item(item: Any) -> tuple[int, bytes]:
    if item is None:
        return _CODEC_NONE, b""
    if isinstance(item, bytes):
        return _CODEC_BYTES, bytes(item)
    try:
        if isinstance(item, Configuration):
            return _CODEC_CONFIGURATION, encode_configuration(item)
        return _CODEC_PLAIN, _plain_encoder.encode(item)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(
            f"the log on disk holds bytes, Configuration, None and plain data, not {item!r}: {error}"
        ) from None


def _decode_item(codec: int, data: bytes) -> Any:
    if codec == _CODEC_BYTES:
        return data
    if codec == _CODEC_NONE:
        return None
    if codec == _CODEC_CONFIGURATION:
        return decode_configuration(data)
    if codec == _CODEC_PLAIN:
        return _plain_decoder.decode(data)
    raise ValueError(f"unknown codec {codec}")


# ---- records ------------------------------------------------------------------------------------------------------


def encode_start(start: Start) -> bytes:
    """Return the record that every segment begins with."""
    term, voted_for = start.hard_state
    vote = -1 if voted_for is None else voted_for
    return _START.pack(_KIND_START, term, vote, start.first_index, start.previous_term, start.next_index)


def encode_hard_state(hard_state: HardState) -> bytes:
    """Return a hard state as a record."""
    term, voted_for = hard_state
    return _HARD_STATE.pack(_KIND_HARD_STATE, term, -1 if voted_for is None else voted_for)


def encode_entries(first_index: int, entries: Sequence[LogEntry]) -> list[bytes]:
    """Return entries as the parts of one record; items that are bytes are not copied. Raises UsageError."""
    parts = [_ENTRIES.pack(_KIND_ENTRIES, first_index, len(entries))]
    append = parts.append
    pack = _ENTRY.pack
    for term, item in entries:
        if type(item) is bytes:
            append(pack(term, _CODEC_BYTES, len(item)))
            append(item)
        else:
            codec, data = _encode_item(item)
            append(pack(term, codec, len(data)))
            append(data)
    return parts


def entry_checksum(index: int, entry: LogEntry) -> int:
    """Return a CRC of an entry at its place: what an operator names it by."""
    return crc32(b"".join(encode_entries(index, [entry])))


def encode_compact(compact: Compact) -> bytes:
    """Return the record that forgets a prefix."""
    return _FORGET.pack(_KIND_COMPACT, *compact)


def encode_reset(reset: Reset) -> bytes:
    """Return the record that forgets everything."""
    return _FORGET.pack(_KIND_RESET, *reset)


def decode_records(data: bytes, start: int, stop: int) -> Iterator[Record]:
    """Yield the records of a batch whose CRC was right. Raises ValueError or struct.error if they make no sense."""
    offset = start
    while offset < stop:
        kind = data[offset]
        if kind == _KIND_ENTRIES:
            _, first_index, count = _ENTRIES.unpack_from(data, offset)
            entries, offset = _decode_entries(data, offset + _ENTRIES.size, count)
            yield Entries(first_index, entries)
        elif kind == _KIND_HARD_STATE:
            _, term, vote = _HARD_STATE.unpack_from(data, offset)
            yield HardState(term, None if vote < 0 else vote)
            offset += _HARD_STATE.size
        elif kind == _KIND_START:
            _, term, vote, *indexes = _START.unpack_from(data, offset)
            yield Start(HardState(term, None if vote < 0 else vote), *indexes)
            offset += _START.size
        elif kind in (_KIND_COMPACT, _KIND_RESET):
            _, first_index, previous_term = _FORGET.unpack_from(data, offset)
            yield (Compact if kind == _KIND_COMPACT else Reset)(first_index, previous_term)
            offset += _FORGET.size
        else:
            raise ValueError(f"unknown record kind {kind}")
    if offset != stop:
        raise ValueError("a record reaches over the end of its batch")


def _decode_entries(data: bytes, offset: int, count: int) -> tuple[list[LogEntry], int]:
    entries = []
    unpack_from = _ENTRY.unpack_from
    for _ in range(count):
        term, codec, size = unpack_from(data, offset)
        offset += _ENTRY.size
        item = data[offset : offset + size]
        if len(item) != size:
            raise ValueError("an entry reaches over the end of its batch")
        entries.append(LogEntry(term, item if codec == _CODEC_BYTES else _decode_item(codec, item)))
        offset += size
    return entries, offset


# ---- batches and segments -----------------------------------------------------------------------------------------


def encode_batch_header(marker: bytes, sequence: int, *body: bytes) -> bytes:
    """Return what goes before the body of a batch, given in parts."""
    counts = _LENGTH_SEQUENCE.pack(sum(map(len, body)), sequence)
    crc = crc32(counts)
    for part in body:
        crc = crc32(part, crc)
    return b"".join((marker, _CRC.pack(crc), counts))


def decode_batch(data: bytes, offset: int, marker: bytes) -> Batch | None:
    """Return the batch that begins at `offset`, or None if no good one does."""
    start = offset + BATCH_HEADER_BYTES
    if start > len(data) or not data.startswith(marker, offset):
        return None
    (crc,) = _CRC.unpack_from(data, offset + MARKER_BYTES)
    counts = data[start - _LENGTH_SEQUENCE.size : start]
    length, sequence = _LENGTH_SEQUENCE.unpack(counts)
    stop = start + length
    if stop > len(data):
        return None
    with memoryview(data) as view, view[start:stop] as body:
        good = crc32(body, crc32(counts)) == crc
    return Batch(sequence, start, stop) if good else None


def find_batch(data: bytes, offset: int, marker: bytes, sequence_min: int) -> tuple[int, Batch] | None:
    """Return the first good batch from `offset` on that is numbered `sequence_min` or later, and where it begins."""
    while (offset := data.find(marker, offset)) >= 0:
        batch = decode_batch(data, offset, marker)
        if batch is not None and batch.sequence >= sequence_min:
            return offset, batch
        offset += 1
    return None


def encode_segment_header(header: SegmentHeader) -> bytes:
    """Return the head of a segment."""
    head = _SEGMENT.pack(MAGIC, FORMAT_VERSION, *header)
    return head + _CRC.pack(crc32(head))


def decode_segment_header(data: bytes) -> SegmentHeader:
    """Undo encode_segment_header. Raises ValueError saying what is wrong."""
    if len(data) < SEGMENT_HEADER_BYTES:
        raise ValueError("it is cut off within its header")
    (crc,) = _CRC.unpack_from(data, _SEGMENT.size)
    magic, version, *rest = _SEGMENT.unpack_from(data)
    if crc != crc32(data[: _SEGMENT.size]) or magic != MAGIC:
        raise ValueError("its header is damaged")
    if version != FORMAT_VERSION:
        raise ValueError(f"its format is {version}, and this version of ActorRaft reads {FORMAT_VERSION}")
    return SegmentHeader(*rest)


def encode_slot(sequence: int) -> bytes:
    """Return one slot of the mark: the last batch that is known to be durable."""
    slot = _SLOT.pack(sequence)
    return slot + _CRC.pack(crc32(slot))


def decode_mark(data: bytes) -> int | None:
    """Return the sequence number in the newest good slot of the mark, or None if no slot is good."""
    newest = None
    for offset in (0, SLOT_BYTES):
        slot = data[offset : offset + _SLOT.size]
        if data[offset + _SLOT.size : offset + SLOT_BYTES] == _CRC.pack(crc32(slot)) and len(slot) == _SLOT.size:
            (sequence,) = _SLOT.unpack(slot)
            newest = sequence if newest is None else max(newest, sequence)
    return newest
