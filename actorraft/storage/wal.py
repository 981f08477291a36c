"""The log of a node on disk: append-only segments, one write and one fdatasync for each call of `persist`.

Why our own: the log is written always and read only at start, so an append is all it needs. SQLite's write-ahead log
ends silently at the first bad frame, and loses acknowledged entries to one flipped bit; here a store recovers exactly
what was acknowledged, or refuses.

What recovery makes of a batch that is not good:
  - a good batch with a higher number behind it (in the segment, or a later segment): damage, since each was synced
    before the next;
  - the mark says that it was acknowledged: damage, or a lost tail;
  - otherwise it was never acknowledged: it is dropped, with a warning, and the file is cut there.

**The mark** is a small file beside the segments, two slots written in turn after each sync and never synced itself.
It is exact after the death of a process. After a loss of power it may be older than the log, never newer; so for the
batches written in the last seconds before a loss of power, damage cannot be told from a torn write (a cut that was
synced stays readable, whatever the mark says).

**A sync that failed** leaves pages that look written and are not. The store refuses everything after it, and the next
recovery writes the last batch anew and syncs it before it counts: every batch before that one was synced for certain.

A new segment is written aside, synced, and renamed, so a segment with a bad header is always damage.

Threads:   one, the node's loop.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from actorraft.errors import CorruptionError, UsageError
from actorraft.loggers import guarded_logger
from actorraft.raft.messages import EntryId, HardState, LogEntry
from actorraft.storage import records
from actorraft.storage.files import Files
from actorraft.storage.image import LogImage, TermRuns
from actorraft.storage.records import Compact, Reset, SegmentHeader, Start

logger = guarded_logger(__name__)

SEGMENT_BYTES = 64 << 20
JOINED_BYTES_MAX = 1 << 16  # a batch that is larger is written from where its parts are, not copied together
PARTS_MAX = 500  # that one write takes; the kernel's bound is 1,024
PREALLOCATE_BYTES = 16 << 20
_ZEROS = memoryview(bytes(256 << 10))
SUFFIX = ".wal"
LOST_SUFFIX = ".lost"
MARK_NAME = "mark"
EMPTY_SEGMENT_BYTES = records.SEGMENT_HEADER_BYTES + records.BATCH_HEADER_BYTES + records.START_BYTES
ONLY_WAY_OUT = (
    "Acknowledged data is damaged or missing, so the node does not start. Remove it from its cluster and add a new one"
)
WAY_OUT = ONLY_WAY_OUT + "; or, to give up whatever cannot be read, open the store with accept_loss=True"


@dataclass
class Segment:
    """One file of the log. `last_index`: the highest index that lives in it, -1 if none does."""

    path: Path
    first_sequence: int
    last_index: int = -1


@dataclass
class Scan:
    """What reading a log found. `stop` is where the next batch goes in the last segment."""

    image: LogImage = field(default_factory=LogImage)
    segments: list[Segment] = field(default_factory=list)
    marker: bytes = b""
    next_sequence: int = 0
    stop: int = 0
    last_batch: bytes = b""  # the last good one, which begins at stop - len(last_batch)
    torn_bytes: int = 0  # never acknowledged, behind `stop`


def segment_paths(directory: Path) -> list[Path]:
    """Return the segments, oldest first."""
    return sorted(path for path in directory.iterdir() if path.suffix == SUFFIX)


def damage(path: Path, offset: int, index: int, what: str, *, nothing_read: bool = False) -> CorruptionError:
    """Return an error that names the place, what is wrong there, and the way out."""
    way_out = ONLY_WAY_OUT if nothing_read else WAY_OUT
    return CorruptionError(f"{path}, offset {offset}, log index {index}: {what}. {way_out}.")


class LogReader:
    """Reads a log from its files and changes nothing; for recovery and verification. `scan` is what was read so far."""

    def __init__(self, directory: Path, storage_id: bytes) -> None:
        self.directory = directory
        self.storage_id = storage_id
        self.scan = Scan()
        self.mark: int | None = None

    def read(self) -> Scan:
        """Read everything. Raises CorruptionError; `scan` then holds what is good before that place. OSError."""
        scan = self.scan
        mark_path = self.directory / MARK_NAME
        self.mark = records.decode_mark(mark_path.read_bytes()) if mark_path.exists() else None
        paths = segment_paths(self.directory)
        if not paths:
            raise damage(self.directory, 0, 0, "the log has no segment", nothing_read=True)
        for path in paths:
            self._read_segment(path, last=path is paths[-1])
        if not scan.image.complete:
            image = scan.image
            what = f"the entries from index {image.first_index} up to {image.known_from} are in no segment"
            raise damage(paths[0], 0, image.first_index, what)
        return scan

    def _read_segment(self, path: Path, last: bool) -> None:
        scan = self.scan
        data = path.read_bytes()
        header = self._read_header(path, data)
        segment = Segment(path, header.first_sequence)
        offset = records.SEGMENT_HEADER_BYTES
        while (batch := records.decode_batch(data, offset, header.marker)) is not None:
            fresh = batch.sequence == header.first_sequence
            if batch.sequence != (header.first_sequence if fresh else scan.next_sequence):
                raise self._damage(path, offset, f"batch {batch.sequence} follows batch {scan.next_sequence - 1}")
            self._replay(path, data, batch, segment, fresh)
            scan.marker = header.marker
            scan.next_sequence = batch.sequence + 1
            scan.last_batch = data[offset : batch.stop]
            offset = scan.stop = batch.stop
        if segment not in scan.segments:
            raise self._damage(path, offset, "the first batch of the segment is damaged")
        if last:
            self._judge_tail(path, data, header.marker)

    def _read_header(self, path: Path, data: bytes) -> SegmentHeader:
        scan = self.scan
        try:
            header = records.decode_segment_header(data)
        except ValueError as error:
            raise self._damage(path, 0, f"it is no segment of the log: {error}") from None
        if header.storage_id != self.storage_id:
            raise self._damage(path, 0, f"it belongs to another store ({header.storage_id.hex()})")
        if path.stem != segment_name(header.first_sequence):
            raise self._damage(path, 0, f"it was renamed: it begins with batch {header.first_sequence}")
        if scan.segments and header.first_sequence != scan.next_sequence:
            what = f"batches {scan.next_sequence} to {header.first_sequence - 1} are damaged or missing"
            raise self._damage(scan.segments[-1].path, scan.stop, what)
        return header

    def _replay(self, path: Path, data: bytes, batch: records.Batch, segment: Segment, fresh: bool) -> None:
        scan = self.scan
        image = scan.image
        try:
            for record in records.decode_records(data, batch.start, batch.stop):
                if isinstance(record, Start) != fresh:
                    raise CorruptionError("a segment does not begin with its start record, or has a second one")
                if isinstance(record, Start) and not scan.segments:
                    image.begin(record)
                else:
                    image.apply(record)
                if fresh:
                    scan.segments.append(segment)
                note_record(scan.segments, record)
        except CorruptionError as error:
            raise self._damage(path, batch.start, str(error)) from None
        except MemoryError:
            raise  # it says nothing of what is on disk
        except Exception as error:  # whatever a decoder makes of nonsense
            raise self._damage(path, batch.start, f"its records make no sense: {error!r}") from error

    def _judge_tail(self, path: Path, data: bytes, marker: bytes) -> None:
        """Tell a clean end, a torn tail and damage apart (see the head of this file)."""
        scan = self.scan
        tail = data[scan.stop :].rstrip(b"\0")
        found = records.find_batch(data, scan.stop, marker, scan.next_sequence) if tail else None
        if found:
            at, batch = found
            what = f"batch {scan.next_sequence} is damaged, and a good batch {batch.sequence} follows at offset {at}"
            raise self._damage(path, scan.stop, what)
        if self.mark is not None and self.mark >= scan.next_sequence:
            what = f"batches {scan.next_sequence} to {self.mark}, which were acknowledged, are damaged or missing"
            raise self._damage(path, scan.stop, what)
        scan.torn_bytes = len(tail)

    def _damage(self, path: Path, offset: int, what: str) -> CorruptionError:
        return damage(path, offset, self.scan.image.next_index, what, nothing_read=not self.scan.segments)


def segment_name(first_sequence: int) -> str:
    """Return the name of a segment without its suffix; names sort as segments do."""
    return f"{first_sequence:020d}"


def note_record(segments: list[Segment], record: records.Record) -> None:
    """Keep the last index of each segment right when a record is added to the newest."""
    if isinstance(record, records.Entries):
        for segment in segments:
            segment.last_index = min(segment.last_index, record.first_index - 1)
        if record.entries:
            segments[-1].last_index = record.first_index + len(record.entries) - 1
    elif isinstance(record, Reset):
        for segment in segments:
            segment.last_index = -1


def _begin_anew(image: LogImage, snapshot_id: EntryId | None) -> bytes:
    """Let the log begin behind the snapshot, where entries before that are lost; return the record that says so."""
    term, index = snapshot_id or EntryId(-1, -1)
    if image.known_from <= index + 1 <= image.next_index:
        image.apply(compact := Compact(index + 1, term))
        return records.encode_compact(compact)
    image.apply(reset := Reset(index + 1, term))
    return records.encode_reset(reset)


class Wal:
    """The log, open for writing. Raises OSError from every method; its owner must then never call again.

    Invariant: entries are held in [first_index, next_index); `previous_term` is the term at first_index - 1.
    """

    def __init__(self, directory: Path, storage_id: bytes, files: Files, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.directory = directory
        self.storage_id = storage_id
        self.files = files
        self.segment_bytes = segment_bytes
        self.hard_state = HardState()
        self.first_index = 0
        self.previous_term = -1
        self.next_index = 0
        self.segments: list[Segment] = []
        self._terms = TermRuns()
        self._fd = -1
        self._mark_fd = -1
        self._marker = b""
        self._sequence = 0  # of the next batch
        self._offset = 0  # where it goes
        self._room = 0  # preallocated up to here
        self._zeroed = 0  # and overwritten with zeros up to here
        self._preallocating = files.syncing

    # ---- opening ----

    def create(self) -> None:
        """Begin an empty log in an empty directory."""
        self._begin_segment()
        self._open_mark()

    def recover(self, snapshot_id: EntryId | None = None, *, accept_loss: bool = False) -> list[LogEntry]:
        """Read the log, make what was read durable, and return its entries. Raises CorruptionError.

        Args:
            snapshot_id: where the log may begin if it has lost entries before that.
            accept_loss: where something is damaged, go on with what is before it.
        """
        for path in self.directory.glob("*.tmp"):
            self.files.unlink(path)
        reader = LogReader(self.directory, self.storage_id)
        try:
            scan = reader.read()
        except CorruptionError as error:
            scan = reader.scan
            if not accept_loss or not scan.segments:
                raise
            logger.warning("giving up what cannot be read, as asked: %s", error)
            scan.torn_bytes = 1
            self._set_aside_after(scan.segments[-1])
        image = scan.image
        replaced = [] if image.complete else [_begin_anew(image, snapshot_id)]
        self._take(scan)
        self._make_durable(scan)
        if replaced:
            self._append(replaced)
        return image.held()

    def _take(self, scan: Scan) -> None:
        image = scan.image
        self.hard_state = image.hard_state
        self.first_index, self.previous_term, self.next_index = image.first_index, image.previous_term, image.next_index
        self.segments = scan.segments
        self._terms = TermRuns(image.first_index - 1, image.previous_term)
        self._terms.replace(image.first_index, image.held())
        self._marker, self._sequence, self._offset = scan.marker, scan.next_sequence, scan.stop

    def _make_durable(self, scan: Scan) -> None:
        """Nothing that was read may be answered for until it is certainly on the disk."""
        files = self.files
        for segment in self.segments[:-1]:
            fd = files.open(segment.path)
            try:
                files.sync(fd)
            finally:
                files.close(fd)
        self._fd = files.open(self.segments[-1].path)
        if scan.torn_bytes:
            logger.warning(
                "%s: dropped an unfinished write at offset %d, behind log index %d; it was never acknowledged",
                self.segments[-1].path,
                self._offset,
                self.next_index - 1,
            )
            files.truncate(self._fd, self._offset)
        files.write(self._fd, [scan.last_batch], self._offset - len(scan.last_batch))
        files.sync(self._fd)
        files.sync_directory(self.directory)
        self._room, self._zeroed = os.fstat(self._fd).st_size, self._offset
        self._open_mark()

    def _set_aside_after(self, segment: Segment) -> None:
        for path in segment_paths(self.directory):
            if path.stem > segment.path.stem:
                self.files.rename(path, path.with_suffix(LOST_SUFFIX))

    def _open_mark(self) -> None:
        path = self.directory / MARK_NAME
        files = self.files
        if path.exists():
            self._mark_fd = files.open(path)
            files.truncate(self._mark_fd, 2 * records.SLOT_BYTES)
        else:
            if self._sequence > 1:
                logger.warning("%s is missing: the end of the log is taken as it is", path)
            self._mark_fd = files.create(path)
            files.sync_directory(self.directory)
        slot = records.encode_slot(self._sequence - 1)
        files.write(self._mark_fd, [slot, slot], 0)

    # ---- writing ----

    def persist(self, hard_state: HardState | None, first_index: int, entries: Sequence[LogEntry]) -> None:
        """As Storage.persist. Raises UsageError, with nothing changed, for an item that cannot be stored."""
        parts = [] if hard_state is None else [records.encode_hard_state(hard_state)]
        cuts = 0 <= first_index < self.next_index
        if entries or cuts:
            assert self.first_index <= first_index <= self.next_index, (
                f"entries at {first_index}, but the log holds [{self.first_index}, {self.next_index})"
            )
            parts += records.encode_entries(first_index, entries)
        if not parts:
            return
        self._append(parts)
        if hard_state is not None:
            self.hard_state = hard_state
        if entries or cuts:
            self._terms.replace(first_index, entries)
            self.next_index = first_index + len(entries)
            if cuts:
                note_record(self.segments, records.Entries(first_index, list(entries)))
            else:
                self.segments[-1].last_index = self.next_index - 1

    def compact(self, first_index: int) -> None:
        """Forget entries below `first_index`, and remove the segments that hold nothing else."""
        if first_index <= self.first_index:
            return
        assert first_index <= self.next_index, f"compacting to {first_index}, but the log ends before {self.next_index}"
        record = Compact(first_index, self.term_at(first_index - 1))
        self._append([records.encode_compact(record)])
        self.first_index, self.previous_term = record
        self._terms.forget(first_index)
        self._remove_old_segments()

    def reset(self, first_index: int, previous_term: int) -> None:
        """Forget every entry; the next one is `first_index`."""
        record = Reset(first_index, previous_term)
        self._append([records.encode_reset(record)])
        self.first_index = self.next_index = first_index
        self.previous_term = previous_term
        self._terms = TermRuns(first_index - 1, previous_term)
        note_record(self.segments, record)
        self._remove_old_segments()

    def term_at(self, index: int) -> int:
        """Return the term at `index`, in [first_index - 1, next_index)."""
        return self._terms.at(index)

    def close(self) -> None:
        """Let go of the files. Idempotent."""
        for fd in (self._fd, self._mark_fd):
            if fd >= 0:
                self.files.close(fd)
        self._fd = self._mark_fd = -1

    def _append(self, parts: Sequence[bytes]) -> None:
        """Write one batch and sync it: the hot path. Durable on return."""
        length = sum(map(len, parts))
        if length < JOINED_BYTES_MAX or len(parts) > PARTS_MAX:
            parts = (b"".join(parts),)
        size = records.BATCH_HEADER_BYTES + length
        if size > records.BATCH_BYTES_MAX:
            raise UsageError(f"one write to the log holds at most {records.BATCH_BYTES_MAX} bytes, not {size}")
        if self._offset + size > self.segment_bytes and self._sequence > self.segments[-1].first_sequence + 1:
            self._rotate()
        files = self.files
        sequence = self._sequence
        header = records.encode_batch_header(self._marker, sequence, *parts)
        if self._offset + size > self._zeroed and self._preallocating:
            files.write(self._fd, (header, *parts, self._zeros_behind(size)), self._offset)
        else:
            files.write(self._fd, (header, *parts), self._offset)
        files.sync_data(self._fd)
        if size >= JOINED_BYTES_MAX:
            files.forget(self._fd, self._offset, size)
        self._offset += size
        self._sequence = sequence + 1
        files.write(self._mark_fd, (records.encode_slot(sequence),), records.SLOT_BYTES if sequence & 1 else 0)

    def _zeros_behind(self, size: int) -> memoryview:
        """Return the zeros to write behind a batch of `size`, in room that is preallocated for them.

        Blocks that were written once are cheaper to sync than blocks that were only preallocated, for those change
        the file's metadata: 120 against 206 us for 64 KiB, 99 against 125 us for 128 B. A batch too large to gain
        from that gets none.
        """
        stop = self._offset + size
        zeros = _ZEROS[: max(0, self.segment_bytes - stop)] if size < len(_ZEROS) else _ZEROS[:0]
        self._zeroed = stop + len(zeros)
        if self._zeroed > self._room:
            start = max(self._room, self._offset)
            length = max(min(PREALLOCATE_BYTES, self.segment_bytes - start), self._zeroed - start)
            try:
                self.files.preallocate(self._fd, start, length)
                self._room = start + length
            except OSError as error:  # no room, or no such thing on this file system: then without
                logger.info("%s: no preallocation: %s", self.segments[-1].path, error)
                self._preallocating = False
                return _ZEROS[:0]
        return zeros

    def _rotate(self) -> None:
        old, stop = self._fd, self._offset
        self._begin_segment()
        self.files.truncate(old, stop)  # gives back what was preallocated; that it may be undone does not matter
        self.files.close(old)

    def _begin_segment(self) -> None:
        """Write a segment aside, durable and whole, and only then give it its name."""
        files = self.files
        first = self._sequence
        marker = os.urandom(records.MARKER_BYTES)
        start = records.encode_start(Start(self.hard_state, self.first_index, self.previous_term, self.next_index))
        head = records.encode_segment_header(SegmentHeader(first, self.storage_id, marker))
        path = self.directory / (segment_name(first) + SUFFIX)
        aside = path.with_suffix(".tmp")
        fd = files.create(aside)
        self._fd, self._marker, self._sequence = fd, marker, first + 1
        files.write(fd, (head, records.encode_batch_header(marker, first, start), start), 0)
        self._offset = self._room = self._zeroed = len(head) + records.BATCH_HEADER_BYTES + len(start)
        files.sync(fd)
        files.rename(aside, path)
        files.sync_directory(self.directory)
        self.segments.append(Segment(path, first))

    def _remove_old_segments(self) -> None:
        """Oldest first and one by one, so that a crash leaves no gap."""
        while len(self.segments) > 1 and self.segments[0].last_index < self.first_index:
            self.files.unlink(self.segments.pop(0).path)
            self.files.sync_directory(self.directory)
