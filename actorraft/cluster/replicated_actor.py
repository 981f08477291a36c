"""A replicated actor: `ActorOptions(replicas=3).spawn(Counter)` runs one actor on three nodes, kept equal by Raft.

Each message is a command of a replicated machine that holds the actor: it is taken once, in one order, on every
replica, and survives the death of any minority of them. The ref has the surface of an ordinary one. So an actor can be
replicated if `receive` is what a command must be: the same everywhere, without a clock or dice (`actorraft.context()`
has both), and sending nothing (each replica would send).

Differs:    from an ordinary actor: what `receive` raises after a tell is in the sender's log; `kill` and the end of the
            process that spawned it end all replicas; `watch` tells of each replica's exits; it has no coroutines.
Process:    whoever spawned it owns the processes. Everybody else reaches them as a client, and learns from the actor's
            record, as with any actor, where they are and that they are gone.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from actorraft.actors.actor import Actor
from actorraft.actors.coroutines import is_asynchronous
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
from actorraft.actors.ref import ActorRef
from actorraft.actors.spawn import ActorOptions, actor_ref, replicate_by
from actorraft.actors.system import system
from actorraft.actors.wire import Call
from actorraft.errors import ActorDead, ActorRaftError, MailboxFull, UsageError
from actorraft.futures import ResultFuture
from actorraft.machine import default_state, restore_default

if TYPE_CHECKING:
    from actorraft.client.client import Client
    from actorraft.cluster.cluster import Cluster

__all__ = ["ActorOptions", "ReplicatedActor", "ReplicatedActorRef", "actor_ref"]  # the first and last: with replicas

logger = logging.getLogger("actorraft")

MESSAGE: Final = 0  # what a command is: (MESSAGE, the message), or (STOP, None)
STOP: Final = 1
LOOK_S: Final = 0.05  # how often a holder of a ref looks whether the actor is gone


class ReplicatedActor:
    """The machine: an actor that is given its messages by the log."""

    def __init__(
        self, cls: type[Actor], args: tuple[Any, ...], kwargs: dict[str, Any], ref: ReplicatedActorRef
    ) -> None:
        self._ref = ref
        self._stopped = False
        self._actor = actor = cls.__new__(cls)
        actor.ref = ref
        actor.__init__(*args, **kwargs)  # type: ignore[misc]
        actor.on_start()

    def apply(self, command: tuple[int, Any]) -> Any:
        """Take a message; return its answer."""
        kind, message = command
        if self._stopped:
            raise ActorDead(f"{self._ref.name} was stopped")
        if kind == STOP:
            self._stopped = True
            return self._actor.on_stop()
        return message.on(self._actor) if type(message) is Call else self._actor.receive(message)

    def snapshot(self) -> Any:
        """The actor's own `snapshot()`, if it has one, else its attributes."""
        own = getattr(self._actor, "snapshot", None)
        del self._actor.ref  # each process has its own
        try:
            return self._stopped, own() if callable(own) else default_state(self._actor)
        finally:
            self._actor.ref = self._ref

    def restore(self, state: Any) -> None:
        """Take up what `snapshot` gave."""
        self._stopped, its_own = state
        own = getattr(self._actor, "restore", None)
        if callable(own):
            own(its_own)
        else:
            restore_default(self._actor, its_own)
        self._actor.ref = self._ref


class ReplicatedActorRef(ActorRef):
    """The address of a replicated actor; made by `ActorOptions(replicas=...).spawn` and `actor_ref`."""

    __slots__ = ()

    def tell(self, message: Any) -> None:
        """As ActorRef.tell."""
        link = _link(self)
        link.send((MESSAGE, message), None).add_done_callback(link.log_failure)

    def ask(self, message: Any, timeout: float | None = 5.0) -> ResultFuture[Any]:
        """As ActorRef.ask, with the outcomes of a command: Unavailable if no majority took it, certainly not done."""
        try:
            return _link(self).send((MESSAGE, message), timeout)
        except ActorDead as error:
            future: ResultFuture[Any] = ResultFuture()
            future.set_exception(error)
            return future

    def stop(self) -> None:
        """As ActorRef.stop; `on_stop` runs on each replica."""
        with contextlib.suppress(ActorDead):
            _link(self).send((STOP, None), None, bounded=False).add_done_callback(lambda _: self._want_down())

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
            _link(self).watch(callback)
        except ActorDead:
            callback(Exit(self.name, None, None, "it is gone", False))

    def is_alive(self) -> bool:
        """Whether a majority of the replicas answers (within 1 s)."""
        try:
            rows = _link(self).client.status()
        except (ActorDead, UsageError):
            return False
        return 2 * sum(row.error is None for row in rows) > len(rows)

    @property
    def pid(self) -> int | None:
        """Return None: it has several processes; `cluster.nodes` knows them."""
        return None

    @property
    def cluster(self) -> Cluster[Any]:
        """The replicas, for who spawned it: `ref.cluster.status()`, `ref.cluster.nodes[0].kill()`.

        Raises:
            UsageError: another process spawned it.
        """
        cluster = _link(self).cluster
        if cluster is None:
            raise UsageError(f"the replicas of {self.name} belong to the process that spawned it")
        return cluster

    def __repr__(self) -> str:
        return f"<ReplicatedActorRef {self.name!r}>"


class _Link:
    """What this process has of one replicated actor: a client (for its owner, the cluster), and who is to be told."""

    def __init__(self, ref: ActorRef, record: Record, client: Client[Any], cluster: Cluster[Any] | None) -> None:
        self.ref, self.record, self.client, self.cluster = ref, record, client, cluster
        self._outstanding = 0
        self._watchers: list[Callable[[Exit], Any]] = []
        self._told = record.exits
        self._lock = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._look, name="actorraft-replicated", daemon=True).start()

    def send(self, command: Any, timeout: float | None, *, bounded: bool = True) -> ResultFuture[Any]:
        """Submit a message; what it ends with says that the actor is gone, if it is."""
        with self._lock:
            if bounded and self._outstanding >= self.ref.mailbox_max:
                raise MailboxFull(f"{self.ref.name} has not taken the last {self.ref.mailbox_max} messages")
            self._outstanding += 1
        answer: ResultFuture[Any] = ResultFuture()
        try:
            self.client.submit(command, timeout=timeout).add_done_callback(lambda done: self._done(done, answer))
        except BaseException as error:
            with self._lock:
                self._outstanding -= 1
            if self.client.closed:
                raise ActorDead(f"{self.ref.name} is gone") from error
            raise
        return answer

    def _done(self, done: Any, answer: ResultFuture[Any]) -> None:
        with self._lock:
            self._outstanding -= 1
        error = done.exception()
        if error is None:
            answer.set_result(done.result())
        elif self.client.closed and isinstance(error, ActorRaftError):
            gone = ActorDead(f"{self.ref.name} is gone: {error}")
            gone.__cause__ = error
            answer.set_exception(gone)
        else:
            answer.set_exception(error)

    def log_failure(self, future: Any) -> None:
        """Nobody asked, but somebody may want to know."""
        if (error := future.exception()) is not None:
            logger.warning("a message to %s failed: %s: %s", self.ref.name, type(error).__name__, error)

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
            except Exception:
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
            down_file(self.ref.endpoint).unlink(missing_ok=True)
        self._tell(last)


_links: dict[tuple[int, str], _Link] = {}  # by process (a fork has none of its parent's) and endpoint
_linking = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().__setitem__("_linking", threading.Lock()))


def _link(ref: ActorRef) -> _Link:
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
        return link


def _end_all() -> None:
    """End what this process spawned, let go of the rest."""
    for (pid, _), link in list(_links.items()):
        if pid == os.getpid():
            link.end()


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
        record = record._replace(replicas=tuple(cluster.endpoints.items()))
        write_record(record)
        _links[os.getpid(), ref.endpoint] = _Link(ref, record, cluster, cluster)
        if _end_all not in here.at_close:
            here.at_close.append(_end_all)
            atexit.register(_end_all)  # before the clusters' own, which would say that this one was left open
        return ref

    def ref(self, name: str, record: Record) -> ReplicatedActorRef:
        """Return the address of one that runs."""
        return ReplicatedActorRef(name, record.endpoint, record.mailbox_max, record.mailbox_bytes_max)


replicate_by(_Replication())
