"""The actors of one process: starts them, watches them, and knows where all others of the same tree are.

Made at the first use. The first process of a tree makes a directory for sockets and records (mode 0700) and removes it
at its exit; the actors' processes, and theirs in turn, share it, so that a name means the same to all.

Threads:    every function from any thread.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from actorraft.actors import public
from actorraft.actors.forkserver import ForkServer
from actorraft.actors.monitor import Monitor
from actorraft.actors.post import Post
from actorraft.actors.process import ActorProcess, refuse_nested_spawn
from actorraft.actors.records import (
    DEAD,
    RESTARTING,
    STARTING,
    UP,
    Address,
    Record,
    again_file,
    down_file,
    identify,
    is_running,
    machine_here,
    make_exit,
    read_record,
    record_file,
    send_signal,
    write_record,
)
from actorraft.actors.rundir import RunDir
from actorraft.actors.surroundings import check_descriptors, interpreter
from actorraft.errors import ActorDead, StartError, UsageError
from actorraft.loggers import guarded_logger
from actorraft.steady import Patience, monotonic

if TYPE_CHECKING:
    from actorraft.actors.bootstrap import ChildContext
    from actorraft.actors.supervision import Supervision

logger = guarded_logger("actorraft")

START_S: Final = 30.0
KILL_S: Final = 5.0
DRAIN_S: Final = 1.0  # a process that ends waits for what it has sent until nothing was taken for so long
DRAIN_MAX_S: Final = 5.0  # and no longer than this
LOOK_S: Final = 0.01  # how often a restart of somebody else's actor is looked after
NAME_CHARS_MAX: Final = 40
_NAME: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{NAME_CHARS_MAX}}}")
NAMES_BYTES_MAX: Final = NAME_CHARS_MAX + 1 + 8  # of a socket: name, point, 4 bytes in hexadecimal

Target = Callable[["ChildContext", Address, str, bytes], None]  # what a child runs: with its address, run_dir, code


class _Child:
    """An actor that this process started."""

    def __init__(self, address: Address, target: Target, code: bytes, supervision: Supervision | None) -> None:
        self.address = address
        self.target = target
        self.code = code
        self.supervision = supervision
        record = read_record(record_file(address.endpoint), address.endpoint)
        assert record is not None, "it was reserved"
        self.record = record
        self.public = False  # whether it is named where others look too
        self.process: ActorProcess | None = None
        self.exit: tuple[int | None, str] = (None, "")  # code and reason of the last exit


class System:
    """Of one process; `run_dir` and `actor`, its own address, are given in the process of an actor."""

    def __init__(self, run_dir: Path | None = None, actor: Address | None = None) -> None:
        self.pid = os.getpid()
        self._own_run: RunDir | None = None
        if run_dir is None:
            self._own_run = RunDir("actorraft-actors-", names_bytes_max=NAMES_BYTES_MAX)
            run_dir = self._own_run.path
        self.run_dir = run_dir
        self._actor = actor
        self._children: dict[str, _Child] = {}  # by the name of the process
        self._numbers: dict[str, int] = {}
        self._lock = threading.RLock()
        self._post: Post | None = None
        self._posts: dict[str, Post] = {}  # by a client's folder: to actors of other machines
        self._monitor: Monitor[ActorProcess] | None = None
        self._forks = ForkServer(run_dir)
        self.closed = False
        self.at_close: list[Callable[[], object]] = []  # what else ends with this
        self.owing: list[Callable[[], int]] = []  # each says how much of what was sent is still on its way

    @property
    def post(self) -> Post:
        """The sending side, made at the first use."""
        with self._lock:
            if self._post is None:
                self._post = Post(self._who)
                self.owing.append(self._post.owes)
            return self._post

    def post_through(self, folder: str, make: Callable[[tuple[Any, ...] | None], Post]) -> Post:
        """Return the sending side to actors that are reached through the nodes of a client's folder.

        Raises:
            UsageError: the folder cannot be used.
        """
        with self._lock:
            post = self._posts.get(folder)
            if post is None or post.closed:
                post = self._posts[folder] = make(self._who)
                self.owing.append(post.owes)
            return post

    @property
    def _who(self) -> tuple[Any, ...] | None:
        """What a ref to the actor that this process is is made of."""
        return (*self._actor, machine_here()) if self._actor is not None else None

    # --- Starting ---

    def spawn(
        self,
        target: Target,
        code: bytes,
        *,
        kind: str,
        name: str | None,
        mailbox: tuple[int, int],
        supervision: Supervision | None,
        to_all: bool = False,
    ) -> Address:
        """Start an actor's process; return where it takes messages once it does.

        Args:
            target: what the process runs, given its address and `code`.
            kind: what a name is made of, if none is given.
            to_all: whether others than this tree of processes may find it.
            mailbox: how many messages, and bytes, one sender may have with it that it has not taken.
        """
        refuse_nested_spawn()
        interpreter()
        check_descriptors(1)
        with self._lock:
            address = self.reserve(kind, name, *mailbox)
            child = _Child(address, target, code, supervision)
            if to_all:
                self._publish(child)
            self._children[f"actor {address.name}"] = child
        try:
            process = self._launch(child)
        except BaseException:
            self._bury(child)
            raise
        with self._lock:
            if not self.closed and self._children.get(process.name) is child:  # else it was up, and ended, already
                self._watch(process, child)
        return address

    def _publish(self, child: _Child) -> None:
        try:
            public.publish(child.address.name, child.address.endpoint)
        except BaseException:
            self._write(child, child.record._replace(state=DEAD))
            raise
        child.public = True

    def reserve(self, kind: str, name: str | None, mailbox_max: int, mailbox_bytes_max: int) -> Address:
        """Take a name, and say in a record that an actor is being started under it, at a fresh endpoint.

        What an earlier life of the actor that this process is has started, and is started again, keeps its endpoint.

        Raises:
            UsageError: it is taken, or no name; or this process is ending.
        """
        with self._lock:
            if self.closed:
                raise UsageError("this process is ending: no actor can be started")
            name = self._check_name(name) if name is not None else self._fresh_name(kind)
            endpoint = f"ipc://{self.run_dir}/{name}.{os.urandom(4).hex()}"
            record = Record(endpoint, mailbox_max, identify(os.getpid()), None, STARTING)
            record = record._replace(mailbox_bytes_max=mailbox_bytes_max)
            if self._actor is not None:
                record = record._replace(parent=self._actor.endpoint)
                before = read_record(self.run_dir / f"{name}.json")
                if before is not None and self._is_left(before):
                    again = make_exit(name, None, f"it ended with {self._actor.name}, its parent", restarting=True)
                    record = record._replace(endpoint=before.endpoint, exits=before.exits + 1, last_exit=again)
                    down_file(before.endpoint).unlink(missing_ok=True)
            write_record(record)
            return Address(name, record.endpoint, mailbox_max, mailbox_bytes_max)

    def _is_left(self, record: Record) -> bool:
        """Whether an earlier life of this actor has started it, and it ended with that."""
        return (
            self._actor is not None
            and record.parent == self._actor.endpoint
            and record.state != DEAD
            and not is_running(record.owner)
        )

    def _check_name(self, name: Any) -> str:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UsageError(f"an actor's name has 1 to 40 letters, digits, - and _, not {name!r}")
        record = read_record(self.run_dir / f"{name}.json")
        if record is not None and not record.dead and not self._is_left(record):
            raise UsageError(f"there is an actor named {name!r} already: actor_ref({name!r}) finds it")
        return name

    def _fresh_name(self, kind: str) -> str:
        kind = re.sub(r"[^a-z0-9_-]", "", kind.lower())[:20] or "actor"
        number = self._numbers[kind] = self._numbers.get(kind, 0) + 1
        if self._actor is None:
            return f"{kind}-{self.pid}-{number}"
        return f"{kind}-{zlib.crc32(self._actor.endpoint.encode()):08x}-{number}"  # the same in each of its lives

    def _launch(self, child: _Child) -> ActorProcess:
        name = child.address.name
        process = ActorProcess(
            child.target,
            (child.address, str(self.run_dir), child.code),
            name=f"actor {name}",
            run_dir=self.run_dir,
            logger=guarded_logger(f"actorraft.actor.{name}"),
            forks=self._forks,
        )
        with self._lock:
            if self._children.get(process.name) is not child:  # killed, or this process is ending
                raise StartError(f"{name} was ended before it was started")
            child.process = process
        try:
            process.start()
            process.receive(START_S)
        except BaseException:
            process.close()
            raise
        again_file(child.address.endpoint).unlink(missing_ok=True)
        self._write(child, child.record._replace(process=identify(process.pid), state=UP))
        return process

    def _watch(self, process: ActorProcess, child: _Child) -> None:
        with self._lock:
            if self._monitor is None:
                self._monitor = Monitor(
                    supervision=None,
                    restart=self._restart,
                    on_report=self._on_report,
                    on_exit=self._on_exit,
                    on_planned=self._on_planned,
                )
            self._monitor.watch(process, child.supervision)

    def find(self, name: Any) -> Record:
        """Return what is known of a named actor anywhere in this tree of processes, or of a public one elsewhere.

        Raises:
            UsageError: there is none of that name.
        """
        if not isinstance(name, str) or "/" in name or "\0" in name:
            raise UsageError(f"an actor's name has letters, digits, - and _, not {name!r}")
        record = read_record(self.run_dir / f"{name}.json")
        if record is None or record.dead:
            record = public.find(name)
        if record is None:
            raise UsageError(f"there is no actor named {name!r}")
        return record

    def children(self) -> list[Address]:
        """Return the addresses of the actors that this process started and that are not gone."""
        return [child.address for child in list(self._children.values())]

    # --- Ending ---

    def kill(self, name: str, endpoint: str) -> None:
        """SIGKILL for an actor, wherever it was started; it stays down. Nothing happens if it is gone."""
        record = read_record(record_file(endpoint), endpoint)
        if record is None or record.dead:
            return
        with contextlib.suppress(FileNotFoundError):  # the whole directory may be on its way out
            down_file(endpoint).touch()  # says that the end is wanted
        child = self._children.get(f"actor {name}")
        if child is None or child.address.endpoint != endpoint:
            if record.process is not None and record.state == UP:
                send_signal(record.process, signal.SIGKILL)
            return
        with self._lock:
            process = child.process
            if process is not None:
                if self._monitor is not None:
                    self._monitor.forget(process)
                process.kill()
                process.wait(KILL_S)
                child.exit = (process.returncode, process.last_words())
            self._down(child)

    def restart(self, name: str, endpoint: str) -> None:
        """End an actor's process, wherever it was started, so that its owner starts it again; wait for that.

        Raises:
            ActorDead: it is gone.
            StartError: it did not come up again in time.
        """
        before = read_record(record_file(endpoint), endpoint)
        if before is None or before.dead:
            raise ActorDead(f"{name} is gone")
        again_file(endpoint).touch()
        began_s, patient = monotonic(), True
        if before.process is not None:
            send_signal(before.process, signal.SIGTERM)
            if before.process.pid == os.getpid():
                return
        while (record := read_record(record_file(endpoint), endpoint)) is not None and not record.dead:
            if record.alive and record.process != before.process:
                return
            waited_s = monotonic() - began_s
            if patient and waited_s > KILL_S and before.process is not None:
                patient = False
                send_signal(before.process, signal.SIGKILL)
            if waited_s > KILL_S + START_S:
                raise StartError(f"{name} did not come up again within {waited_s:.0f} s")
            time.sleep(LOOK_S)
        raise ActorDead(f"{name} is gone: it did not come up again")

    def _on_report(self, process: ActorProcess, report: Any) -> None:
        if report[0] == "stopping":
            process.wanted = False

    def _on_exit(self, process: ActorProcess, reason: str) -> None:
        child = self._children.get(process.name)
        if child is not None and child.process is process:
            child.exit = (process.returncode, reason)
            if down_file(child.address.endpoint).exists():
                process.wanted = False
            process.again = again_file(child.address.endpoint).exists()

    def _on_planned(self, process: ActorProcess, again: bool) -> None:
        child = self._children.get(process.name)
        if child is None or child.process is not process:
            return
        if again:
            self._write(child, _after_exit(child, RESTARTING))
        else:
            self._down(child)

    def _restart(self, process: ActorProcess) -> None:
        child = self._children.get(process.name)
        if child is None or child.process is not process:
            return  # spawned anew under the same name, or killed meanwhile
        if down_file(child.address.endpoint).exists():
            self._down(child)
            return
        process.close()
        try:
            fresh = self._launch(child)
        except BaseException as error:
            child.process = process  # the one that the monitor asks about again
            child.exit = (child.exit[0], str(error))
            raise
        with self._lock:
            if self.closed or self._children.get(process.name) is not child:
                fresh.close()  # killed while it started
                return
        self._watch(fresh, child)

    def _down(self, child: _Child) -> None:
        """It is gone for good."""
        self._write(child, _after_exit(child, DEAD))
        self._bury(child)

    def _bury(self, child: _Child) -> None:
        with self._lock:
            if self._children.get(f"actor {child.address.name}") is child:
                del self._children[f"actor {child.address.name}"]
            if child.record.state != DEAD:
                self._write(child, child.record._replace(state=DEAD, process=None))
            endpoint = child.address.endpoint
            for file in (Path(endpoint.removeprefix("ipc://")), down_file(endpoint), again_file(endpoint)):
                file.unlink(missing_ok=True)
            if child.public:
                public.withdraw(child.address.name, endpoint)
            if child.process is not None:
                child.process.close()
            if not self._children:
                self._forks.close()  # who has no actors has no process beside it

    def _write(self, child: _Child, record: Record) -> None:
        child.record = record
        with contextlib.suppress(FileNotFoundError):  # the directory is gone: so is everybody who could read this
            write_record(record)

    def close(self) -> None:
        """End every actor that this process started, once what was sent is taken, if it can be.

        Idempotent; does nothing in a fork; starts no thread.
        """
        if self.pid != os.getpid() or self.closed:
            return
        with self._lock:
            self.closed = True
        try:
            self.drain()
        finally:  # a second Ctrl-C ends the wait alone
            self._end_all()

    def _end_all(self) -> None:
        for end in self.at_close:
            end()
        if self._monitor is not None:
            self._monitor.close()
        with self._lock:
            children = list(self._children.values())
            for child in children:
                if child.process is not None:
                    child.process.kill()
            for child in children:
                self._bury(child)
        self._forks.close()
        self.hang_up()
        if self._own_run is not None:
            self._own_run.remove()

    def drain(self, most_s: float | None = None) -> None:
        """Wait until what was sent is taken, DRAIN_S for each step of that, `most_s` (DRAIN_MAX_S) in all."""
        if self.pid != os.getpid():
            return
        patience = Patience(DRAIN_S, DRAIN_MAX_S if most_s is None else most_s, monotonic())
        while not patience.is_over(sum(owes() for owes in self.owing), monotonic()):
            time.sleep(LOOK_S)

    def hang_up(self) -> None:
        """End the sending side."""
        for post in (self._post, *self._posts.values()):
            if post is not None:
                post.close()


def _after_exit(child: _Child, state: str) -> Record:
    last = make_exit(child.address.name, *child.exit, restarting=state == RESTARTING)
    return child.record._replace(process=None, state=state, exits=child.record.exits + 1, last_exit=last)


_system: System | None = None
_making = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().__setitem__("_making", threading.Lock()))


def system() -> System:
    """Return this process's system, made at the first use; a fork gets one of its own, in the same directory."""
    global _system
    with _making:
        if _system is None or _system.pid != os.getpid():
            _system = System(_system.run_dir if _system is not None else None)
            atexit.register(_system.close)
        if _system.closed:
            raise UsageError("this process is ending: its actors can no longer be reached")
        return _system


def running_actors() -> list[Address]:
    """Return the addresses of the actors that this process started and that are not gone."""
    now = _system
    return now.children() if now is not None and now.pid == os.getpid() else []


def join_system(run_dir: str, actor: Address) -> None:
    """In the process of an actor: be part of the tree it was started from."""
    global _system
    with _making:
        _system = System(Path(run_dir), actor)


def drain_system() -> None:
    """Wait until what this process has sent is taken, if it can be."""
    if _system is not None:
        _system.drain()


def leave_system(*, soon: bool) -> None:
    """In the process of an actor that ends: have what it has sent taken, if it can be; `soon`: within DRAIN_S."""
    if _system is not None:
        _system.drain(DRAIN_S if soon else DRAIN_MAX_S)
        _system.hang_up()


def close_system() -> None:
    """End every actor that this process started, and forget them all; the next use starts anew."""
    global _system
    with _making:
        ending, _system = _system, None
    if ending is not None:
        atexit.unregister(ending.close)
        ending.close()
