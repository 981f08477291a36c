"""Memory that the two ends of a link share: large buffers go through it, and not through the socket.

Each end writes into a ring of its own, and the other one copies what it is told of out of it at once, and says so. Both
stay mapped while they are in use, so that a message costs two copies within memory that is there already: no page is
new, none goes through a socket's small buffers. What a ring has no room for, or where there can be none, goes as
before, beside its message.

Why copied: to map what arrives and let the receiver keep it was three to six times slower, since each message then
            needs pages of its own; and a receiver's fork, or what it writes, would touch what the sender has (decision
            46).
Crashes:    a ring is a memfd, which has no name in any file system: the kernel takes it back with the last process that
            has it, however that ends.
Invariant:  nothing is written over that the other end has not said it has copied. A link that breaks takes its rings
            along: who has not heard of that may read on in what nobody writes to any more.
Security:   of where a ring lies the other end says two numbers, and the 16 bytes that it begins with. It is opened to
            be read, and only if it is such a ring; it is sealed, so that it cannot be cut short under who reads it.
Threads:    `Lane.put` from any; all else in the thread that has the link.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

SHARED_BYTES: Final = 256 << 10  # the first message of that size has its link share memory, for all with buffers
RING_BYTES: Final = 64 << 20  # of one direction of a link; pages are there from their first use on
HEAD_BYTES: Final = mmap.PAGESIZE  # at its beginning: the token
TOKEN_BYTES: Final = 16
PLACE_BYTES: Final = 64  # a place begins at a multiple of that: a cache line
LOOK_S: Final = 5.0  # a ring that has not been used between two looks is let go of

# What the ends say to each other, as (what, number, number, token).
_OFFER: Final = 0  # there is a ring: process id, descriptor, its token
_OPENED: Final = 1  # whether it can be read
_COPIED: Final = 2  # what was at this offset is not needed any more
_CLOSED: Final = 3  # there is none any more

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, int, int, bytes]).decode


class Place:
    """Where the buffers of one message lie in a ring, one behind the other."""

    __slots__ = ("fresh", "ring", "start", "stop")

    def __init__(self, ring: Ring, start: int, stop: int, fresh: bool) -> None:
        self.ring, self.start, self.stop = ring, start, stop
        self.fresh = fresh  # whether there may be no pages yet

    def views(self, sizes: Sequence[int]) -> list[memoryview]:
        """Return what lies there."""
        return cut(self.ring.memory, self.start, sizes)

    def let_go(self) -> None:
        """Nobody needs what lies there any more."""
        self.ring.let_go(self.start)


class Ring:
    """Memory that this process writes to.

    Raises:
        OSError: there is none to be had.
    """

    def __init__(self) -> None:
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memfd")
        self.token = os.urandom(TOKEN_BYTES)
        self.fd = os.memfd_create("actorraft", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, RING_BYTES)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        os.pwrite(self.fd, self.token, 0)
        self._map = mmap.mmap(self.fd, RING_BYTES)
        self.memory = memoryview(self._map).toreadonly()
        self.puts = 0
        self._broken = False
        self._used = HEAD_BYTES  # below, there are pages
        # Numbers, and no Place, which has the ring: what is in a circle waits for the garbage collector.
        self._places: deque[tuple[int, int]] = deque()  # start and stop, in the order of the ring
        self._busy: set[int] = set()  # starts of those that somebody needs
        # Never waited for: a signal handler may send in the middle of a send.
        self._lock = threading.Lock()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # it was not even begun
            os.close(self.fd)

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it that somebody needs."""
        return not self._busy

    def put(self, buffers: Sequence[Any], size: int) -> Place | None:
        """Copy buffers of so many bytes together into the ring; None if it has no room for them now."""
        place = self._reserve(size)
        if place is None:
            return None
        at = place.start
        try:
            for each in buffers:
                stop = at + len(each)
                if place.fresh:  # a page that is not to be had is an error here, and a signal that kills in a mapping
                    self._write(each, at)
                else:
                    self._map[at:stop] = each
                at = stop
        except OSError:
            self._broken = True
            place.let_go()
            return None
        except BaseException:  # a signal handler's
            place.let_go()
            raise
        return place

    def _write(self, buffer: Any, at: int) -> None:
        rest = memoryview(buffer).cast("B")
        while rest:
            written = os.pwrite(self.fd, rest, at)
            at += written
            rest = rest[written:]

    def _reserve(self, size: int) -> Place | None:
        """Find a place: in pages that are there, if it can be."""
        if self._broken or not self._lock.acquire(blocking=False):
            return None
        try:
            size = -(-size // PLACE_BYTES) * PLACE_BYTES
            places = self._places
            while places and places[0][0] not in self._busy:
                places.popleft()
            start, limit = HEAD_BYTES, RING_BYTES
            if places:
                tail, head = places[0][0], places[-1][1]
                if head <= tail:  # it has come round
                    start, limit = head, tail
                elif head + size <= self._used or HEAD_BYTES + size > tail:
                    start = head
                else:
                    limit = tail
            stop = start + size
            if stop > limit:
                return None
            fresh = stop > self._used
            self._used = max(self._used, stop)
            self._busy.add(start)
            places.append((start, stop))
            self.puts += 1
            return Place(self, start, stop, fresh)
        finally:
            self._lock.release()

    def let_go(self, start: int) -> None:
        """Have the place that starts there written over, when it is its turn."""
        self._busy.discard(start)


class Lane:
    """Both rings of a link, as one end sees them: its own, and the other end's.

    Args:
        say: takes what is to be said to the other end's `hear`, in order, on the same link.
        local: whether the link goes to the other process itself. Where a node stands between, one half of the way may
            break and the other one not: nothing is shared.
    """

    def __init__(self, say: Callable[[bytes], Any], local: bool = True) -> None:
        self._say = say
        self._local = local
        self.clear()

    def clear(self) -> None:
        """Begin anew: there is another link now, or none."""
        self._ring: Ring | None = None
        self._open = False  # whether the other end reads it
        self._useless = not self._local  # whether there can be none
        self._puts = 0  # of the ring, when it was last looked at
        self.theirs: memoryview | None = None

    @property
    def in_use(self) -> bool:
        """Whether there is anything to let go of."""
        return self._ring is not None or self.theirs is not None

    def put(self, buffers: Sequence[Any], size: int) -> Place | None:
        """Copy buffers to where the other end reads them; None if they have to go another way."""
        ring = self._ring
        return ring.put(buffers, size) if ring is not None and self._open else None

    def carries(self, place: Place) -> bool:
        """Whether the other end reads what was put there."""
        return self._open and place.ring is self._ring

    def offer(self) -> None:
        """Have a ring for what comes next, if there is none and there can be one."""
        if self._ring is not None or self._useless:
            return
        try:
            self._ring = ring = Ring()
        except OSError:
            self._useless = True
            return
        self._puts = 0
        self._say(_encode((_OFFER, os.getpid(), ring.fd, ring.token)))

    def hear(self, said: bytes) -> None:
        """Take what the other end says."""
        try:
            what, first, second, token = _decode(said)
        except msgspec.DecodeError:
            return
        if what == _OFFER:
            self.theirs = _open(first, second, token) if self._local else None
            self._say(_encode((_OPENED, int(self.theirs is not None), 0, b"")))
        elif what == _OPENED:
            self._open = bool(first)
            if not first:
                self._ring, self._useless = None, True
        elif what == _COPIED and self._ring is not None:
            self._ring.let_go(first)
        elif what == _CLOSED:
            self.theirs = None

    def read(self, at: int, sizes: Sequence[int]) -> list[memoryview]:
        """Return what lies in the other end's ring.

        Raises:
            ValueError: nothing can lie there.
        """
        if self.theirs is None or at < HEAD_BYTES or at + sum(sizes) > len(self.theirs):
            raise ValueError("outside of what this link shares")
        return cut(self.theirs, at, sizes)

    def copied(self, at: int) -> None:
        """Say that what was read there is not needed any more."""
        self._say(_encode((_COPIED, at, 0, b"")))

    def look(self) -> None:
        """Let go of a ring that was not used since the last look; every LOOK_S."""
        ring = self._ring
        if ring is None or not self._open:
            return
        if ring.puts == self._puts and ring.empty:
            self._ring, self._open = None, False
            self._say(_encode((_CLOSED, 0, 0, b"")))
        self._puts = ring.puts


def cut(memory: memoryview, at: int, sizes: Sequence[int]) -> list[memoryview]:
    """Return views of parts that lie one behind the other."""
    views = []
    for size in sizes:
        views.append(memory[at : at + size])
        at += size
    return views


def _open(pid: int, fd: int, token: bytes) -> memoryview | None:
    """Map another process's ring; None if it cannot be read here, or is none."""
    path = f"/proc/{pid}/fd/{fd}"
    with contextlib.suppress(OSError, ValueError):
        if not os.readlink(path).startswith("/memfd:"):  # another process has that number here: who knows what opens
            return None
        own = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            sealed = fcntl.fcntl(own, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
            if sealed and os.fstat(own).st_size == RING_BYTES and os.pread(own, TOKEN_BYTES, 0) == token:
                return memoryview(mmap.mmap(own, RING_BYTES, prot=mmap.PROT_READ))
        finally:
            os.close(own)
    return None
