"""A replicated actor: `ActorOptions(replicas=3).spawn(Counter)` runs one actor on three nodes, kept equal by Raft.

Each message is a command of a replicated machine that holds the actor: it is taken once, in one order, on every
replica, and survives the death of any minority of them. The ref has the surface of an ordinary one. So an actor can be
replicated if `receive` is what a command must be: the same everywhere, without a clock or dice (`actorraft.context()`
has both). What it tells and asks others are effects (actors/effects.py), which the courier of whoever leads sends
(courier.py); its timers go by log time, and each is an entry of the log when it is due.

Differs:    from an ordinary actor: `kill` and the end of the process that spawned it end all replicas; `watch` tells of
            each replica's exits; it has no coroutines, and waits for no future.
Process:    whoever spawned it owns the processes. Everybody else reaches them as a client, and learns from the actor's
            record, as with any actor, where they are and that they are gone.
"""

from __future__ import annotations

import atexit
import bisect
import contextlib
import functools
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from actorraft import futures
from actorraft.actors import actor as actors
from actorraft.actors import public
from actorraft.actors.actor import Actor
from actorraft.actors.coroutines import is_asynchronous
from actorraft.actors.effects import (
    TAKEN,
    Effect,
    Inbox,
    Key,
    Outbox,
    Told,
    error_told,
    own_copy,
    told_error,
    told_value,
)
from actorraft.actors.letters import ring
from actorraft.actors.records import (
    DEAD,
    UP,
    Exit,
    Record,
    down_file,
    identify,
    make_exit,
    read_record,
    record_file,
    write_record,
)
from actorraft.actors.ref import ActorRef, check_asking
from actorraft.actors.spawn import ActorOptions, actor_ref, replicate_by
from actorraft.actors.system import drain_system, system
from actorraft.actors.wire import Call, Inquiry, Writer, callable_methods
from actorraft.cluster.courier import changed, make_courier
from actorraft.errors import (
    ActorDead,
    ActorRaftError,
    CommandFailed,
    MailboxFull,
    OutcomeUnknown,
    StorageFailed,
    Unavailable,
    UsageError,
)
from actorraft.futures import ResultFuture
from actorraft.loggers import guarded_logger
from actorraft.machine import active, context, default_state, methods_of, restore_default
from actorraft.pickling import exceptions

if TYPE_CHECKING:
    from actorraft.actors.system import System
    from actorraft.client.client import Client
    from actorraft.cluster.cluster import Cluster

__all__ = ["ActorOptions", "ReplicatedActor", "ReplicatedActorRef", "actor_ref"]  # the first and last: with replicas

logger = guarded_logger("actorraft")

# What a command is: one of these, and what is said of each.
TELL: Final = 0  # message, and the ref of its sender if that is an actor
ASK: Final = 1  # likewise
STOP: Final = 2
EFFECT: Final = 3  # an Effect of another replicated actor
SETTLE: Final = 4  # what became of effects of its own: a list of (key, told)
BEGIN: Final = 5  # nothing: there is a log now

LOOK_S: Final = 0.05  # how often a holder of a ref looks whether the actor is gone
_OURS: Final = {each.__name__: each for each in (ActorDead, MailboxFull, UsageError)}


class LoggedTimer(NamedTuple):
    """A timer of a replicated actor; a part of its state, if it keeps it."""

    due_s: float
    number: int

    def cancel(self) -> bool:
        """As Timer.cancel; in a turn of that actor."""
        machine = actors.inside
        if not isinstance(machine, ReplicatedActor):
            raise UsageError("a timer of a replicated actor is cancelled by that actor, in the turn of a message")
        return machine.cancel(self)


class ReplicatedActor:
    """The machine: an actor that is given its messages by the log."""

    __companion__ = make_courier

    def __init__(
        self, cls: type[Actor], args: tuple[Any, ...], kwargs: dict[str, Any], ref: ReplicatedActorRef
    ) -> None:
        self.ref = ref
        self.stopped = False
        self.outbox = Outbox()
        self._inbox = Inbox()
        self._timers: list[tuple[float, int, Any]] = []  # by when they are due
        self._timer_number = 0
        self._reads = False  # in a query
        self._counts = {"messages": 0, "failures": 0}
        with self._turn_of(None):
            self._actor = actor = cls.__new__(cls, *args, **kwargs)
            actor.ref = ref
            actor.__init__(*args, **kwargs)  # type: ignore[misc]
            actor.on_start()

    # --- Commands ---

    def apply(self, command: tuple[Any, ...]) -> Any:
        """Take a message; return its answer."""
        kind, what, *more = command
        self.outbox.begin(context().seed, context().term)
        if kind == SETTLE:
            self._settle(what)
        elif kind == EFFECT:
            return self._take_effect(what)
        elif kind != BEGIN:
            if self.stopped:
                raise ActorDead(f"{self.ref.name} was stopped")
            if kind == STOP:
                self.stop()
                return len(self.outbox)
            return self._take(what, more[0] if more else None, asked=kind == ASK)
        return None

    def on_clock(self) -> None:
        """Take the messages of timers that are due."""
        self.outbox.begin(context().seed, context().term)
        due = bisect.bisect_right(self._timers, context().time, key=lambda timer: timer[0])
        taken, self._timers = self._timers[:due], self._timers[due:]
        for _, _, message in taken:
            if not self.stopped:
                with contextlib.suppress(_Failed):
                    self._take(message, self.ref, asked=False)

    @property
    def wake_at(self) -> float | None:
        """When the first timer is due."""
        return self._timers[0][0] if self._timers and not self.stopped else None

    def _take(self, message: Any, sender: ActorRef[Any] | None, *, asked: bool) -> Any:
        """Have the actor take a message.

        Raises:
            BaseException: what the actor raised, if somebody asked.
            _Failed: it raised, and was told so itself.
        """
        self._counts["messages"] += 1
        return self._act(lambda: self._receive(message), message, sender, asked=asked)

    def _receive(self, message: Any) -> Any:
        answer = message.on(self._actor) if type(message) is Call else self._actor.receive(message)
        if isinstance(answer, Future) or inspect.isawaitable(answer):
            raise UsageError(
                f"what {type(self._actor).__name__} returned is to be waited for, and a replicated actor waits for "
                "nothing: use self.ask(ref, message, then=Class.method)"
            )
        return answer

    def _act(self, act: Callable[[], Any], message: Any, sender: ActorRef[Any] | None, *, asked: bool) -> Any:
        try:
            with self._turn_of((sender,)):
                return act()
        except (MemoryError, ImportError, StorageFailed):
            raise  # others may fare better
        except BaseException as error:
            self._counts["failures"] += 1
            if asked:
                raise
            self._on_failure(error, message)
            raise _Failed(exceptions.summary(error)) from error

    def _on_failure(self, error: BaseException, message: Any) -> None:
        logger.error("what it was told failed\n%s", exceptions.story(error))
        try:
            with self._turn_of((None,)):
                self._actor.on_failure(error, message)
        except (MemoryError, ImportError, StorageFailed):
            raise
        except BaseException as further:
            logger.error("on_failure raised\n%s", exceptions.story(further))

    @contextlib.contextmanager
    def _turn_of(self, turn: tuple[ActorRef[Any] | None] | None) -> Iterator[None]:
        """Run the actor's code: what it sends is an effect, and it must not wait."""
        outer = actors.inside
        actors.inside = self
        actors.turn.set(turn)
        futures.no_waiting_in = threading.get_ident()
        try:
            yield
        finally:
            futures.no_waiting_in = 0
            actors.turn.set(None)
            actors.inside = outer

    # --- Effects (actors/effects.py) ---

    def _take_effect(self, effect: Effect) -> Told:
        told: Told | None = self._inbox.admit(effect)
        if told is not None:
            return told
        if self.stopped:
            return told_error(ActorDead(f"{self.ref.name} was stopped"))
        try:
            value = self._take(effect.message, effect.sender, asked=effect.asks)
        except (MemoryError, ImportError, StorageFailed):
            raise
        except _Failed:
            told = TAKEN
        except BaseException as error:
            told = told_error(error)
        else:
            told = told_value(value) if effect.asks else TAKEN
        self._inbox.keep(effect, told)
        return told

    def _settle(self, settled: list[tuple[Key, Told]]) -> None:
        for key, (well, value) in settled:
            one = self.outbox.take_out(tuple(key))  # type: ignore[arg-type]  # a tuple goes as a list
            if one is None or self.stopped:
                continue
            if not well:
                self._on_failure(error_told(value), one.message)
            elif one.then is not None:
                then = getattr(self._actor, one.then)
                with contextlib.suppress(_Failed):
                    self._act(functools.partial(then, value), one.message, one.ref, asked=False)
        changed.set()

    # --- What the actor has done by its own hand ---

    def tell(self, ref: ActorRef[Any], message: Any) -> None:
        """As Actor.tell."""
        self._send(ref, message, None)

    def ask(self, ref: ActorRef[Any], message: Any, then: Callable[..., Any]) -> None:
        """As Actor.ask."""
        self._send(ref, message, actors.name_of_method(self._actor, then))

    def _send(self, ref: ActorRef[Any], message: Any, then: str | None) -> None:
        self._check_writes()
        if not isinstance(ref, ActorRef):
            raise UsageError(f"a message goes to the ref of an actor, not to {type(ref).__name__}")
        self.outbox.add(ref, message, then)
        changed.set()

    def after(self, seconds: float, message: Any) -> LoggedTimer:
        """As Actor.after, in log time."""
        self._check_writes()
        now_s = active.context.time if active.context is not None else 0.0  # log time begins with the log
        timer = LoggedTimer(now_s + seconds, self._timer_number)
        self._timer_number += 1
        bisect.insort(self._timers, (*timer, own_copy(message)))
        return timer

    def cancel(self, timer: LoggedTimer) -> bool:
        """Take a timer back; False if there is none any more."""
        self._check_writes()
        place = bisect.bisect_left(self._timers, tuple(timer))
        if place == len(self._timers) or self._timers[place][:2] != timer:
            return False
        del self._timers[place]
        return True

    def stop(self) -> None:
        """End: nothing is taken any more. The courier ends the processes once what was sent is settled."""
        self._check_writes()
        if self.stopped:
            return
        self.stopped = True
        changed.set()
        with contextlib.suppress(_Failed):
            self._act(self._actor.on_stop, None, None, asked=False)

    def _check_writes(self) -> None:
        if self._reads:
            raise UsageError("a query only reads: it sends nothing, sets no timer and stops nothing")

    # --- Queries ---

    def query(self, request: Any) -> Any:
        """Make a call of a method that is marked as a query, or say something of the actor."""
        if type(request) is Inquiry:
            return dict(self._counts) if request.about == "counts" else callable_methods(type(self._actor))
        if type(request) is not Call or request.method not in methods_of(type(self._actor)).queries:
            raise UsageError(f"a replicated {type(self._actor).__name__} is asked by ref.ask(...)")
        self._reads = True
        try:
            with self._turn_of((None,)):
                return request.on(self._actor)
        finally:
            self._reads = False

    # --- Snapshots ---

    def snapshot(self) -> Any:
        """The actor's own `snapshot()`, if it has one, else its attributes; and all that it owes."""
        own = getattr(self._actor, "snapshot", None)
        del self._actor.ref  # each process has its own
        try:
            state = own() if callable(own) else default_state(self._actor)
        finally:
            self._actor.ref = self.ref
        effects = self.outbox.state(), self._inbox.streams
        return self.stopped, state, effects, self._timers, self._timer_number, self._counts

    def restore(self, state: Any) -> None:
        """Take up what `snapshot` gave."""
        self.stopped, its_own, (sent, self._inbox.streams), self._timers, self._timer_number, self._counts = state
        self.outbox.restore(sent)
        own = getattr(self._actor, "restore", None)
        if callable(own):
            own(its_own)
        else:
            restore_default(self._actor, its_own)
        self._actor.ref = self.ref
        changed.set()


class _Failed(ActorRaftError):
    """A message that nobody waits for failed; the actor was told."""


class ReplicatedActorRef(ActorRef):
    """The address of a replicated actor; made by `ActorOptions(replicas=...).spawn` and `actor_ref`."""

    __slots__ = ()

    def tell(self, message: Any) -> None:
        """As ActorRef.tell."""
        if futures.no_waiting_in and actors.tell_as_effect(self, message):
            return
        try:
            link = link_to(self)
            sent = link.send(_said(TELL, message), None)
        except ActorDead:
            _keep(self, message, "is gone")
            raise
        sent.add_done_callback(functools.partial(link.tell_ended, message))

    def ask(self, message: Any, timeout: float | None = 5.0) -> ResultFuture[Any]:
        """As ActorRef.ask, with the outcomes of a command: Unavailable if no majority took it, certainly not done."""
        if futures.no_waiting_in:
            check_asking()
        try:
            link = link_to(self)
            if type(message) is Inquiry or (type(message) is Call and message.method in link.record.queries):
                return link.read(message, timeout)
            return link.send(_said(ASK, message), timeout)
        except ActorDead as error:
            future: ResultFuture[Any] = ResultFuture()
            future.set_exception(error)
            return future

    def stop(self) -> None:
        """As ActorRef.stop; `on_stop` runs on each replica."""
        with contextlib.suppress(ActorDead):
            link_to(self).send((STOP, None), None, bounded=False).add_done_callback(self._stopped)

    def _stopped(self, done: Future[Any]) -> None:
        """Unless its courier is still to send what it owes others, and ends it then, it ends now."""
        if done.exception() is not None or not done.result():
            self._want_down()

    def kill(self) -> None:
        """End every replica at once. It stays down."""
        self._want_down()
        link = _links.get((os.getpid(), self.endpoint))
        if link is not None and link.cluster is not None:
            link.end()

    def restart(self) -> None:
        """Restart each replica in turn. For who spawned it."""
        for node in self.cluster.nodes.values():
            node.restart()

    def logs(self, lines: int = 100) -> list[str]:
        """Return the last lines of what each replica's process wrote, one replica after another. For who spawned it."""
        return [line for node in self.cluster.nodes.values() for line in node.logs(lines)]

    def _want_down(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            down_file(self.endpoint).touch()  # its owner looks for this

    def watch(self, callback: Callable[[Exit], Any]) -> None:
        """Have `callback` called with an Exit each time a replica's process ends, and at the end of all."""
        try:
            link_to(self).watch(callback)
        except ActorDead:
            callback(Exit(self.name, None, None, "it is gone", False))

    def is_alive(self) -> bool:
        """Whether a majority of the replicas answers (within 1 s)."""
        try:
            rows = link_to(self).client.status()
        except (ActorDead, UsageError):
            return False
        return 2 * sum(row.error is None for row in rows) > len(rows)

    @property
    def pid(self) -> int | None:
        """The id of the process that leads; None while there is none."""
        try:
            rows = link_to(self).client.status()
        except (ActorDead, UsageError):
            return None
        return next((row.pid for row in rows if row.error is None and row.state == "leader"), None)

    @property
    def cluster(self) -> Cluster[Any]:
        """The replicas, for who spawned it: `ref.cluster.status()`, `ref.cluster.nodes[0].kill()`.

        Raises:
            UsageError: another process spawned it.
        """
        cluster = link_to(self).cluster
        if cluster is None:
            raise UsageError(f"the replicas of {self.name} belong to the process that spawned it")
        return cluster

    def __repr__(self) -> str:
        return f"<ReplicatedActorRef {self.name!r}>"


class _Link:
    """What this process has of one replicated actor: a client (for its owner, the cluster), and who is to be told."""

    def __init__(self, ref: ActorRef, record: Record, client: Client[Any], cluster: Cluster[Any] | None) -> None:
        self.ref, self.record, self.client, self.cluster = ref, record, client, cluster
        self.outstanding = self._bytes = 0  # messages that have no answer, and how much they are
        self.public = False  # whether it is named where others look too
        self._watchers: list[Callable[[Exit], Any]] = []
        self._told = record.exits
        self._lock = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._look, name="actorraft-replicated", daemon=True).start()

    def send(self, command: Any, timeout: float | None, *, bounded: bool = True) -> ResultFuture[Any]:
        """Submit a message; what it ends with says that the actor is gone, if it is."""
        answer: ResultFuture[Any] = ResultFuture()
        size = 0
        try:
            encoded = self.client.encode(command)
            size = self._admit(len(encoded), bounded)
            sent = self.client.submit_encoded(encoded, timeout, type(command))
            sent.add_done_callback(lambda done: self._done(done, answer, size))
        except BaseException as error:
            self._settle(size)
            if self.client.closed:
                raise ActorDead(f"{self.ref.name} is gone") from error
            raise
        return answer

    def _admit(self, size: int, bounded: bool) -> int:
        """Count a message, if there is room for it; return its size."""
        ref = self.ref
        with self._lock:
            if bounded and self.outstanding >= ref.mailbox_max:
                raise MailboxFull(f"{ref.name} has not taken the last {ref.mailbox_max} messages")
            if bounded and self._bytes + size > ref.mailbox_bytes_max:
                if size > ref.mailbox_bytes_max:
                    raise UsageError(f"a message of {size} bytes is over {ref.name}'s {ref.mailbox_bytes_max}")
                raise MailboxFull(f"{ref.name} has not taken the last {self._bytes} bytes of messages")
            self.outstanding += 1
            self._bytes += size
        return size

    def _settle(self, size: int) -> None:
        """A message that was admitted is outstanding no longer."""
        if size:
            with self._lock:
                self.outstanding -= 1
                self._bytes -= size

    def read(self, request: Any, timeout: float | None) -> ResultFuture[Any]:
        """Ask without an entry in the log."""
        answer: ResultFuture[Any] = ResultFuture()
        try:
            future = self.client.query_call("query", (request,), {}, "linearizable", "leader", timeout)
        except BaseException as error:
            if self.client.closed:
                raise ActorDead(f"{self.ref.name} is gone") from error
            raise
        future.add_done_callback(lambda done: self._end(done, answer))
        return answer

    def _done(self, done: Any, answer: ResultFuture[Any], size: int) -> None:
        self._settle(size)
        self._end(done, answer)

    def _end(self, done: Any, answer: ResultFuture[Any]) -> None:
        error = done.exception()
        if error is None:
            answer.set_result(done.result())
        elif type(error) is CommandFailed and error.type_name in _OURS:  # the actor raised one of ours
            ours = _OURS[error.type_name](error.message)
            ours.__cause__ = error
            answer.set_exception(ours)
        elif self.client.closed and isinstance(error, ActorRaftError):
            gone = ActorDead(f"{self.ref.name} is gone: {error}")
            gone.__cause__ = error
            answer.set_exception(gone)
        else:
            answer.set_exception(error)

    def tell_ended(self, message: Any, future: Any) -> None:
        """Nobody asked, but somebody may want to know."""
        if (error := future.exception()) is not None:
            reason = error.message if type(error) is CommandFailed else exceptions.summary(error)
            logger.warning("a message to %s failed: %s", self.ref.name, reason)
            if isinstance(error, ActorDead | Unavailable | OutcomeUnknown):
                _keep(self.ref, message, "has not taken this, as far as is known")

    def watch(self, callback: Callable[[Exit], Any]) -> None:
        """Tell of exits from now on."""
        with self._lock:
            self._watchers.append(callback)

    # --- The link's own thread ---

    def _look(self) -> None:
        """Tell watchers of exits, until the actor is gone."""
        exits = self.cluster.events() if self.cluster is not None else None
        while not self._ended.wait(LOOK_S):
            with contextlib.suppress(TimeoutError, StopIteration):
                while exits is not None and (event := exits.get(0.0)) is not None:
                    if event.kind == "exit" and event.node_id is not None:
                        self._write_exit(event.node_id, event.detail)
            record = read_record(record_file(self.ref.endpoint), self.ref.endpoint)
            if record is None or record.dead or (self.cluster is not None and down_file(self.ref.endpoint).exists()):
                break
            self._tell(record)
        self.end()

    def _write_exit(self, node_id: int, reason: str) -> None:
        """As the owner: a replica's process ended; let everybody see it who has the record."""
        assert self.cluster is not None
        node = self.cluster.nodes.get(node_id)
        code, again = (node.exit_code, node.restarting) if node is not None else (None, False)
        told = make_exit(f"{self.ref.name} (replica {node_id})", code, reason, restarting=again)
        self._write(self.record._replace(exits=self.record.exits + 1, last_exit=told))

    def _write(self, record: Record) -> None:
        self.record = record
        with contextlib.suppress(FileNotFoundError):  # the directory is gone: so is everybody who could read this
            write_record(record)

    def _tell(self, record: Record) -> None:
        if record.exits <= self._told or record.last_exit is None:
            return
        self._told = record.exits
        with self._lock:
            watchers = list(self._watchers)
        for watcher in watchers:
            try:
                watcher(record.last_exit)
            except BaseException:  # a guest: it may raise what it likes
                logger.exception("a watcher of %s raised", self.ref.name)

    def end(self) -> None:
        """It is gone for good: end what is outstanding, and, as the owner, its processes."""
        with self._lock:
            if self._ended.is_set():
                return
            self._ended.set()
        _links.pop((os.getpid(), self.ref.endpoint), None)
        if self.cluster is not None:
            for node in self.cluster.nodes.values():
                node.kill()
        self.client.close()
        gone = make_exit(self.ref.name, None, "all its replicas were ended", restarting=False)
        last = self.record._replace(
            state=DEAD, process=None, exits=max(self._told, self.record.exits) + 1, last_exit=gone
        )
        if self.cluster is not None:
            self._write(last)
            if self.public:
                public.withdraw(self.ref.name, self.ref.endpoint)
            down_file(self.ref.endpoint).unlink(missing_ok=True)
        self._tell(last)


_links: dict[tuple[int, str], _Link] = {}  # by process (a fork has none of its parent's) and endpoint
_linking = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().__setitem__("_linking", threading.Lock()))


def link_to(ref: ActorRef) -> _Link:
    """Return this process's link to a replicated actor, made at the first use.

    Raises:
        ActorDead: it is gone.
    """
    from actorraft.client.connect import open_client

    key = (os.getpid(), ref.endpoint)
    with _linking:
        link = _links.get(key)
        if link is not None:
            return link
        record = read_record(record_file(ref.endpoint), ref.endpoint)
        if record is None or record.dead:
            raise ActorDead(f"{ref.name} is gone")
        try:
            client: Client[Any] = open_client(dict(record.replicas), None)
        except UsageError as error:
            raise ActorDead(f"{ref.name} is gone: {error}") from error
        link = _links[key] = _Link(ref, record, client, None)
        with contextlib.suppress(UsageError):  # this process is ending
            _wait_at_the_end(system())
        return link


def _wait_at_the_end(here: System) -> None:
    if _owe not in here.owing:
        here.owing.append(_owe)


def _keep(ref: ActorRef, message: Any, why: str) -> None:
    """Nobody will take a message that was told."""
    data = b""
    with contextlib.suppress(BaseException):  # of the message's own
        data = Writer(lambda _: None).dumps(message)
    ring.add(ref.name, [(TELL, 0, data)], why)


def _owe() -> int:
    """Return how many messages of this process are on their way to replicated actors."""
    return sum(link.outstanding for (pid, _), link in list(_links.items()) if pid == os.getpid())


def _said(kind: int, message: Any) -> tuple[Any, ...]:
    return (kind, message) if actors.own_ref is None else (kind, message, actors.own_ref)


def _end_all() -> None:
    """End what this process spawned, let go of the rest."""
    for (pid, _), link in list(_links.items()):
        if pid == os.getpid():
            link.end()


def _end_at_exit() -> None:
    try:
        drain_system()
    finally:
        _end_all()


class _Replication:
    """How actors.spawn starts and finds actors with several replicas."""

    def spawn(
        self, options: ActorOptions, cls: type[Actor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ReplicatedActorRef:
        """Start a cluster that holds the actor; return the address once it takes messages."""
        from actorraft.cluster.spawn import ReplicatedStateMachine

        if is_asynchronous(cls):
            raise UsageError(
                f"{cls.__name__} has an async def, and cannot be replicated: what a coroutine waits for comes at "
                "another time on each replica"
            )
        if options.concurrency > 1:
            raise UsageError("a replicated actor takes one message after another: concurrency above 1 is not for it")
        here = system()
        mailbox = options.mailbox_max, options.mailbox_bytes_max
        ref = ReplicatedActorRef(*here.reserve(cls.__name__, options.name, *mailbox))
        me = identify(os.getpid())
        record = Record(ref.endpoint, ref.mailbox_max, me, me, UP, mailbox_bytes_max=ref.mailbox_bytes_max)
        try:
            machine = ReplicatedStateMachine(ReplicatedActor, cls, args, kwargs, ref)
            cluster = machine.spawn(options.replicas, supervision=options.supervision, name=ref.name)
        except BaseException:
            write_record(record._replace(state=DEAD, process=None))
            raise
        record = record._replace(replicas=tuple(cluster.endpoints.items()), queries=tuple(methods_of(cls).queries))
        write_record(record)
        _links[os.getpid(), ref.endpoint] = link = _Link(ref, record, cluster, cluster)
        if options.public:
            try:
                public.publish(ref.name, ref.endpoint)
            except BaseException:
                link.end()
                raise
            link.public = True
        cluster.submit((BEGIN, None), timeout=None)
        if _end_all not in here.at_close:
            here.at_close.append(_end_all)
            _wait_at_the_end(here)
            atexit.register(_end_at_exit)  # before the clusters' own, which would say that this one was left open
        return ref

    def ref(self, name: str, record: Record) -> ReplicatedActorRef:
        """Return the address of one that runs."""
        return ReplicatedActorRef(name, record.endpoint, record.mailbox_max, record.mailbox_bytes_max)


replicate_by(_Replication())
