"""Large buffers between processes of one machine go through memory that both have, and nothing of it is left behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from actorraft import Actor, ActorDead, ActorRef, MailboxFull, Supervision
from actorraft.actors import shared
from actorraft.actors.loop import _Loop
from actorraft.actors.shared import HEAD_BYTES, RING_BYTES, SHARED_BYTES, TOKEN_BYTES, Lane, Ring
from actorraft.actors.system import system
from actorraft.actors.wire import SHARED, TELL, Bulk, Writer, loads, read_bulk
from actorraft.ports import Envelope, Kinds
from tests.actors.helpers import until

ROOT = Path(__file__).resolve().parents[2]
LARGE = 1 << 20
SMALL = 10_240  # of a ring, without what it begins with

if not hasattr(os, "memfd_create"):
    pytest.skip("this system has no memfd", allow_module_level=True)


def rings_of(pid: int) -> int:
    """How many rings a process has mapped; none if it is gone."""
    try:
        return Path(f"/proc/{pid}/maps").read_text().count("/memfd:actorraft")
    except OSError:
        return 0


# --- A ring -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_what_is_in_a_ring_stays_as_it_is_until_it_is_let_go_of(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(shared, "RING_BYTES", HEAD_BYTES + SMALL)
    rng = random.Random(seed)
    ring = Ring()
    held: list[tuple[Any, list[int], bytes]] = []
    put = refused = 0
    for number in range(3000):
        if held and rng.random() < 0.5:
            place, sizes, content = held.pop(0 if rng.random() < 0.8 else rng.randrange(len(held)))
            assert b"".join(place.views(sizes)) == content
            place.let_go()
        else:
            sizes = [rng.randrange(1, 1500) for _ in range(rng.randrange(1, 4))]
            parts = [bytes([(number + which) % 256]) * size for which, size in enumerate(sizes)]
            place = ring.put(parts, sum(sizes))
            if place is None:
                refused += 1
                assert held, "an empty ring has room"
            else:
                put += 1
                held.append((place, sizes, b"".join(parts)))
    assert put > 500
    assert refused > 10
    for place, sizes, content in held:
        assert b"".join(place.views(sizes)) == content
        place.let_go()
    assert ring.empty
    assert ring.put([b"x" * SMALL], SMALL) is not None, "all of it can be used again"


def test_pages_that_are_there_are_used_before_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Ring()
    first, second = ring.put([b"a" * LARGE], LARGE), ring.put([b"b" * LARGE], LARGE)
    assert first is not None
    assert second is not None
    for _ in range(10):
        first.let_go()
        first, second = second, ring.put([b"c" * LARGE], LARGE)
        assert second is not None
    assert os.stat(ring.fd).st_blocks * 512 <= HEAD_BYTES + 3 * LARGE


def test_memory_that_is_not_to_be_had_is_no_place_and_no_signal() -> None:
    """The kernel refuses to write further than the limit, as it does where memory is accounted for strictly."""
    ring = Ring()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HEAD_BYTES + LARGE, hard))
    try:
        assert ring.put([b"x" * 1000, b"y" * LARGE], 1000 + LARGE) is None
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            Ring()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ring.empty
    assert ring.put([b"x"], 1) is None, "it is given up"


def test_a_put_amid_another_one_goes_another_way() -> None:
    """A signal handler may send in the middle of a send, in the same thread."""
    ring = Ring()
    assert ring._lock.acquire(blocking=False)
    assert ring.put([b"x"], 1) is None
    ring._lock.release()
    assert ring.put([b"x"], 1) is not None


def test_only_a_ring_is_opened_and_only_to_be_read(tmp_path: Path) -> None:
    ring, pid = Ring(), os.getpid()
    opened = shared._open(pid, ring.fd, ring.token)
    assert opened is not None
    assert opened.readonly
    assert bytes(opened[:TOKEN_BYTES]) == ring.token
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(ring.fd, 0)  # nobody can cut it short under who reads it

    assert shared._open(pid, ring.fd, os.urandom(TOKEN_BYTES)) is None
    assert shared._open(pid, 1 << 20, ring.token) is None
    assert shared._open(1 << 30, ring.fd, ring.token) is None
    assert shared._open(-1, ring.fd, ring.token) is None
    file = tmp_path / "memfd:actorraft"
    file.write_bytes(ring.token)
    unsealed = os.memfd_create("actorraft", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    short = os.memfd_create("actorraft", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    plain = os.open(file, os.O_RDWR)
    try:
        os.ftruncate(plain, RING_BYTES)
        os.ftruncate(unsealed, RING_BYTES)
        fcntl.fcntl(short, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        for fd in (unsealed, short, plain):
            os.pwrite(fd, ring.token, 0)
            assert shared._open(pid, fd, ring.token) is None
    finally:
        for fd in (unsealed, short, plain):
            os.close(fd)


# --- A link -----------------------------------------------------------------------------------------------------------


class Ends:
    """Both ends of a link, in one process."""

    def __init__(self) -> None:
        self.words: deque[tuple[int, bytes]] = deque()
        self.lanes = [Lane(lambda said: self.words.append((1, said))), Lane(lambda said: self.words.append((0, said)))]

    def talk(self) -> None:
        while self.words:
            to, said = self.words.popleft()
            self.lanes[to].hear(said)


def test_a_message_in_shared_memory_is_read_where_it_came_and_its_place_used_again() -> None:
    ends = Ends()
    one, other = ends.lanes
    array = np.arange(LARGE, dtype="u1")
    fixed = np.frombuffer(b"f" * LARGE, dtype="u1")
    assert one.put([b"x"], 1) is None, "nobody reads it yet"
    one.offer()
    assert one.put([b"x"], 1) is None
    ends.talk()
    places = set()
    for number in range(200):  # more than a ring holds
        bulk = Writer(lambda _: None).message({"array": array, "fixed": [fixed]})
        assert isinstance(bulk, Bulk)
        size = len(bulk)
        bulk.own(bytes, one)
        assert bulk.place is not None
        places.add(bulk.place.start)
        frame = bulk.head(0, number)
        assert len(frame) < 1000
        arrived = read_bulk(frame, other)[2]
        assert len(arrived) == size
        value = loads(arrived)
        ends.talk()
        one._ring._map[bulk.place.start : bulk.place.stop] = bytes(bulk.place.stop - bulk.place.start)  # type: ignore[union-attr]
        assert (value["array"] == array).all()
        assert value["array"].flags.writeable
        value["array"] += 1
        assert (value["fixed"][0] == fixed).all()
        assert not value["fixed"][0].flags.writeable
    assert len(places) == 1
    assert one._ring is not None
    assert one._ring.empty


def test_a_frame_that_lies_about_shared_memory_is_refused() -> None:
    ends = Ends()
    one, other = ends.lanes
    one.offer()
    ends.talk()
    bulk = Writer(lambda _: None).message(np.ones(LARGE, dtype="u1"))
    assert isinstance(bulk, Bulk)
    bulk.own(bytes, one)
    good = bulk.head(0, 0)
    assert bulk.place is not None
    for lane in (None, Lane(lambda _: None), one):  # memory that this end has not
        with pytest.raises(msgspec.DecodeError):
            read_bulk(good, lane)
    for at, size in ((0, LARGE), (RING_BYTES - 10, LARGE), (-5, LARGE), (HEAD_BYTES, 1 << 60), (HEAD_BYTES, -1)):
        bulk.place.start, bulk._sizes = at, [size]
        with pytest.raises(msgspec.DecodeError):
            read_bulk(bulk.head(0, 0), other)
    for nonsense in (b"", b"\xc1", msgspec.msgpack.encode([9, 9]), msgspec.msgpack.encode((77, 0, 0, b""))):
        other.hear(nonsense)
    other.hear(msgspec.msgpack.encode((2, 12345, 0, b"")))  # a place that was never there


def test_a_ring_that_nobody_uses_is_let_go_of_by_both_and_comes_again() -> None:
    ends = Ends()
    one, other = ends.lanes
    for _ in range(2):
        one.offer()
        ends.talk()
        place = one.put([b"x" * LARGE], LARGE)
        assert place is not None
        for _ in range(3):  # what somebody needs stays
            one.look()
            ends.talk()
        assert other.in_use
        other.copied(place.start)
        ends.talk()
        one.look()
        ends.talk()
        assert not one.in_use
        assert not other.in_use


def test_where_it_cannot_be_read_it_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = Ends()
    monkeypatch.setattr(shared, "_open", lambda *_: None)
    ends.lanes[0].offer()
    ends.talk()
    assert not ends.lanes[0].in_use
    ends.lanes[0].offer()
    assert not ends.words
    ends.lanes[0].clear()  # another process is there now
    ends.lanes[0].offer()
    assert ends.words


def test_through_a_node_no_memory_is_shared_either_way_though_it_could_be_on_one_machine() -> None:
    ends = Ends()
    near = ends.lanes[0]
    ends.lanes[1] = far = Lane(lambda said: ends.words.append((0, said)), local=False)
    far.offer()
    far.clear()
    far.offer()
    assert not ends.words
    near.offer()
    ends.talk()
    assert not near.in_use
    assert not far.in_use
    assert near.put([b"x"], 1) is None


def test_a_message_for_another_life_of_its_actor_leaves_its_place() -> None:
    ends = Ends()
    one, _ = ends.lanes
    one.offer()
    ends.talk()
    array = np.arange(LARGE, dtype="u1")
    bulk = Writer(lambda _: None).message(array)
    assert isinstance(bulk, Bulk)
    bulk.own(bytes, one)
    place = bulk.place
    assert place is not None
    one.clear()
    assert not one.carries(place)

    bulk.leave_place(bytes)

    assert place.ring.empty
    frame = bulk.head(0, 0) + b"".join(bulk.buffers)
    assert (loads(read_bulk(frame)[2]) == array).all()


class Quiet:
    """What an actor's loop sees of its mailbox: what it is given, and then nothing; its sender is gone."""

    def __init__(self) -> None:
        self.coming: deque[list[Envelope]] = deque()
        self.sent: list[bytes] = []
        self.gone = False

    def wait(self, timeout_s: float) -> list[Envelope]:
        return self.coming.popleft() if self.coming else []

    def wake(self) -> None:
        return

    def drop(self, what: str, detail: str = "") -> None:
        raise AssertionError(what)

    def try_send_client(self, client: bytes, frame: bytes, beside: Sequence[bytes] = ()) -> bool | None:
        self.sent.append(frame)
        return None if self.gone else True


def test_what_a_sender_sent_before_it_ended_is_read_from_its_memory_and_then_that_is_let_go_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[int] = []
    mailbox = Quiet()
    actor = SimpleNamespace(receive=lambda message: taken.append(int(message.sum())))
    loop = _Loop(actor, mailbox, SimpleNamespace(report=lambda said: None))  # type: ignore[arg-type]
    ends = Ends()
    lane = ends.lanes[0]

    def deliver(*frames: bytes) -> None:
        mailbox.coming.append([Envelope(Kinds.CLIENT, b"sender", frame) for frame in frames])
        loop._listen(0.0)
        while loop._inbox:
            loop._take(*loop._inbox.popleft())
        loop.flush()

    lane.offer()
    deliver(msgspec.msgpack.encode([(SHARED, 0, ends.words.popleft()[1])]))
    lane.hear(msgspec.msgpack.decode(mailbox.sent[-1])[1][0][2])
    frames = []
    for number in range(3):
        bulk = Writer(lambda _: None).message(np.full(LARGE, number + 1, dtype="u1"))
        assert isinstance(bulk, Bulk)
        bulk.own(bytes, lane)
        assert bulk.place is not None
        frames.append(bulk.head(TELL, number))

    mailbox.gone = True
    lane.clear()  # it is killed: nobody else has that memory now
    for frame in frames:  # the loop learns that it is gone with the first, and reads the others later
        deliver(frame)
        assert loop._senders == {}
    assert taken == [LARGE, 2 * LARGE, 3 * LARGE]

    assert loop._left
    monkeypatch.setattr("actorraft.actors.loop.QUIET_S", 0.0)
    loop._listen(0.0)
    assert not loop._left
    loop._look_s = 0.0
    loop.flush()
    assert not loop._lanes


# --- Processes --------------------------------------------------------------------------------------------------------


class Sink(Actor):
    """Says what came; to a number, answers with an array of its own, which it writes to again for the next."""

    def on_start(self) -> None:
        self.answer = np.zeros(LARGE, dtype="u1")

    def receive(self, message: Any) -> Any:
        if isinstance(message, Path):  # goes on once that is there
            return until(message.exists)
        if isinstance(message, int):
            self.answer[:] = message
            return self.answer
        return said_of(message)


def said_of(message: Any) -> tuple[str, int, int, int]:
    """A value that can be compared, of an array or bytes."""
    return type(message).__name__, len(message), int(message[0]), int(message[-1])


def full(number: int, size: int = LARGE) -> Any:
    """A message: an array full of a number."""
    return np.full(size, number, dtype="u1")


def box_of(ref: ActorRef) -> Any:
    """What this process knows of an actor."""
    return system().post._boxes[ref.endpoint]


def share(ref: ActorRef) -> None:
    """Send large messages until they go through shared memory, both ways."""

    def shared_both_ways() -> bool:
        assert ref.ask(full(97)).result(20.0) == ("ndarray", LARGE, 97, 97)
        assert int(ref.ask(3).result(20.0)[0]) == 3
        lane = box_of(ref).lane
        return bool(lane._open and lane.theirs is not None)

    until(shared_both_ways)


@pytest.fixture
def no_rings() -> Iterator[None]:
    """In the end this process has none, and there is no new file where others put theirs."""
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    yield
    after = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    assert [name for name in after - before if "actorraft" in name] == []


@pytest.mark.cluster
def test_large_messages_and_answers_go_through_shared_memory_and_arrive_in_order_as_they_were(
    start: Callable[..., ActorRef],
) -> None:
    ref = start(Sink)
    share(ref)
    ring = box_of(ref).lane._ring
    puts = ring.puts
    array = full(0)
    futures = []
    for number in range(1, 21):
        array[:] = number
        futures.append(
            [ref.ask(each, 20.0) for each in (array, bytes([number]) * LARGE, number, b"small")],
        )
    array[:] = 99
    for number, (first, second, third, small) in enumerate(futures, start=1):
        assert first.result() == ("ndarray", LARGE, number, number)
        assert second.result() == ("bytes", LARGE, number, number)
        came = third.result()
        assert set(came.tolist()) == {number}
        came += 1  # it is the caller's own
        assert small.result() == ("bytes", 5, ord("s"), ord("l"))
    assert ring.puts > puts
    until(lambda: ring.empty)
    assert ref.debt == 0


@pytest.mark.cluster
def test_memory_is_shared_from_the_first_large_message_on_and_by_all_that_have_buffers_then(
    start: Callable[..., ActorRef],
) -> None:
    ref = start(Sink)
    for _ in range(3):
        ref.ask(full(1, SHARED_BYTES // 2)).result(20.0)
    assert not box_of(ref).lane.in_use
    share(ref)
    ring = box_of(ref).lane._ring
    puts = ring.puts
    ref.ask(full(1, SHARED_BYTES // 2)).result(20.0)
    assert ring.puts == puts + 1
    ref.ask(full(1, 1000)).result(20.0)
    assert ring.puts == puts + 1


@pytest.mark.cluster
def test_what_several_threads_send_at_once_arrives_as_each_sent_it(start: Callable[..., ActorRef]) -> None:
    ref = start(Sink)
    share(ref)
    ring = box_of(ref).lane._ring

    def send(number: int) -> list[Any]:
        mine = full(number)
        futures = []
        for step in range(20):
            mine[-1] = step
            futures.append(ref.ask(mine, 60.0))
        return [future.result() for future in futures]

    with ThreadPoolExecutor(4) as threads:
        for number, came in enumerate(threads.map(send, range(4))):
            assert came == [("ndarray", LARGE, number, step) for step in range(20)]
    until(lambda: ring.empty)


@pytest.mark.cluster
def test_bytes_are_counted_wherever_they_lie_and_what_is_refused_holds_no_memory(
    start: Callable[..., ActorRef], tmp_path: Path
) -> None:
    ref = start(Sink, mailbox_bytes_max=4 * LARGE)
    share(ref)
    ring = box_of(ref).lane._ring
    until(lambda: ring.empty and ref.debt == 0)
    ref.tell(tmp_path / "go on")
    for _ in range(3):
        ref.tell(full(1))
    for _ in range(10):
        with pytest.raises(MailboxFull):
            ref.tell(full(1))
    assert len(ring._busy) == 3
    (tmp_path / "go on").touch()
    until(lambda: ring.empty and ref.debt == 0)
    assert ref.ask(full(2)).result(20.0) == ("ndarray", LARGE, 2, 2)


@pytest.mark.cluster
@pytest.mark.usefixtures("no_rings")
def test_nothing_of_an_actor_that_is_killed_is_kept_and_what_waited_reaches_its_next_life(
    start: Callable[..., ActorRef],
) -> None:
    ref = start(Sink, supervision=Supervision(backoff_s=(0.01, 0.01)))
    share(ref)
    box, dead = box_of(ref), ref.pid
    assert dead is not None
    old = weakref.ref(box.lane._ring)
    os.kill(dead, signal.SIGSTOP)
    futures = {number: ref.ask(full(number), 30.0) for number in range(5)}
    until(lambda: not box.waiting or not box.connected)
    os.kill(dead, signal.SIGKILL)
    futures |= {number: ref.ask(full(number), 30.0) for number in range(5, 10)}  # some before, some after it is known
    for number, each in futures.items():
        with contextlib.suppress(ActorDead):  # those that had left
            assert each.result() == ("ndarray", LARGE, number, number)

    share(ref)

    assert ref.pid != dead
    del futures, each
    until(lambda: gc.collect() >= 0 and old() is None)


SENDER = """
import os, sys
from actorraft import actor_ref
ref = actor_ref(sys.argv[1])
message = b"k" * (1 << 20)
ref.ask(message).result()
ref.ask(1).result()
ref.ask(message).result()
print("ready", flush=True)
while True:
    futures = [ref.ask(message), ref.ask(2)]
    for _ in range(8):
        ref.tell(message)
    for future in futures:
        future.result()
"""


@pytest.mark.cluster
@pytest.mark.usefixtures("no_rings")
def test_a_sender_of_another_tree_that_is_killed_at_any_moment_leaves_none_of_its_memory(
    start: Callable[..., ActorRef],
) -> None:
    name = f"sink-{os.getpid()}"
    ref = start(Sink, name=name, public=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for round_ in range(3):
        sender = subprocess.Popen(
            [sys.executable, "-c", SENDER, name], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert sender.stdout is not None
        try:
            assert sender.stdout.readline() == "ready\n"
            until(lambda: rings_of(ref.pid) > 0)
            for _ in range(3 * round_):  # further and further into it
                ref.ask(b"turn").result(20.0)
        finally:
            sender.kill()
            sender.wait()
            sender.stdout.close()
        assert ref.ask(b"e").result(20.0) == ("bytes", 1, 101, 101)
    until(lambda: rings_of(ref.pid) == 0)


TREE = """
import os, sys, time
from actorraft import Actor, spawn
class Stage(Actor):
    def __init__(self, further):
        self.further = further
    def receive(self, message):
        if message == "pids":
            return [os.getpid()] + (self.further.ask(message).result() if self.further else [])
        return self.further.ask(message, None) if self.further else message
if __name__ == "__main__":
    first = spawn(Stage, spawn(Stage, spawn(Stage, None)))
    message = b"t" * (1 << 20)
    for _ in range(3):
        assert first.ask(message).result() == message
    print(*first.ask("pids").result(), flush=True)
    while True:
        for future in [first.ask(message) for _ in range(4)]:
            future.result()
"""


@pytest.mark.cluster
@pytest.mark.usefixtures("no_rings")
def test_of_a_tree_of_actors_that_is_killed_in_the_middle_of_large_messages_no_memory_is_left(tmp_path: Path) -> None:
    (tmp_path / "tree.py").write_text(TREE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    tree = subprocess.Popen(
        [sys.executable, str(tmp_path / "tree.py")], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert tree.stdout is not None
    try:
        pids = [int(pid) for pid in tree.stdout.readline().split()]
        assert len(pids) == 3
        until(lambda: all(rings_of(pid) >= 2 for pid in (tree.pid, *pids)))
    finally:
        tree.kill()
        tree.wait()
        tree.stdout.close()
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
    # A ring has no name anywhere: it is gone with the last process that has it.


WITHOUT = """
import os, resource
from actorraft import Actor, spawn
class Sink(Actor):
    def receive(self, message):
        return message
if __name__ == "__main__":
    {deprive}
    ref = spawn(Sink)
    for number in range(6):
        message = bytes([number]) * (1 << 20)
        assert ref.ask(message).result() == message
    print(open("/proc/self/maps").read().count("/memfd:actorraft"))
"""


@pytest.mark.cluster
@pytest.mark.parametrize(
    "deprive",
    [
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 20, 16 << 20))",
        "del os.memfd_create",
    ],
)
def test_where_there_is_no_such_memory_large_messages_go_as_others_do(tmp_path: Path, deprive: str) -> None:
    (tmp_path / "without.py").write_text(textwrap.dedent(WITHOUT).format(deprive=deprive))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "without.py")],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 1, "at most what its actor offers"
    assert "Traceback" not in done.stderr
