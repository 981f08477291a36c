"""RaftControl: the Raft layer by itself. Entries of any kind, futures of their indexes, threads on a RaftNet.

A driver with what whoever plays with it needs: `client_append_entry` and `become_leader` from any thread, and a thread
each to receive and to drive. A node of a cluster needs none of it: its loop is process.py's.

Threads:    every method but `client_append_entry`, `become_leader`, `start` and `stop` belongs to the loop's thread.
"""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import Any

from actorraft import codec
from actorraft.errors import OutcomeUnknown, Unavailable, UsageError
from actorraft.loggers import guarded_logger
from actorraft.node.driver import Driver, Event, MessageEvent, Observer, TickEvent
from actorraft.node.executor import LogOnly
from actorraft.node.logtime import Ticks
from actorraft.node.work import ExecutorPort
from actorraft.ports import Clients, Clock, Storage
from actorraft.raft.config import RaftConfig
from actorraft.raft.errors import RaftError
from actorraft.raft.messages import AppendEntries, Configuration, EntryId, LogEntry, Message
from actorraft.raft.ready import FollowerState, LeaderState
from actorraft.raft.server import RaftServer
from actorraft.storage.memory import MemoryStorage

logger = guarded_logger("actorraft")


class _Futures(Observer):
    """Those who wait for an entry to be committed, or for this node to lead. Each ends once, whatever happens."""

    def __init__(self, check: Callable[[Any], None]) -> None:
        self._check = check  # raises if an item can be neither stored nor sent
        self._entries: dict[int, list[tuple[int, Future[int]]]] = {}  # index -> (term, future), in order of terms
        self._campaigns: list[Future[int]] = []
        self.over = ""  # why nothing can be asked any more

    def __len__(self) -> int:
        return sum(map(len, self._entries.values())) + len(self._campaigns)

    def propose(self, server: RaftServer, item: Any, future: Future[int]) -> None:
        """Append an entry. From here on its future cannot be cancelled."""
        if not future.set_running_or_notify_cancel():
            return
        if self.over:
            _end(future, error=Unavailable(self.over))
            return
        try:
            self._check(item)
            index = server.propose(item)
        except (RaftError, UsageError) as error:
            _end(future, error=error)
        else:
            self._entries.setdefault(index, []).append((server.current_term, future))

    def campaign(self, server: RaftServer, future: Future[int]) -> None:
        """Hold an election, unless this node leads already."""
        if not future.set_running_or_notify_cancel():
            return
        if self.over:
            _end(future, error=Unavailable(self.over))
            return
        self._campaigns.append(future)
        if server.state is not LeaderState:
            server.campaign(pre_vote=False)
        if server.state is LeaderState:
            self.state_changed(server)
        elif server.state is FollowerState:
            self._lose(f"node {server.node_id} is no voter, so it cannot lead")

    def committed(self, first_index: int, entries: Sequence[LogEntry]) -> None:
        if not self._entries:
            return
        for index, entry in enumerate(entries, first_index):
            for term, future in self._entries.pop(index, ()):
                if term == entry.term:
                    _end(future, index)
                else:
                    why = f"another leader's entry of term {entry.term} took index {index}"
                    _end(future, error=Unavailable(why))

    def installed(self, snapshot_id: EntryId) -> None:
        for index in [index for index in self._entries if index <= snapshot_id.index]:
            for term, future in self._entries.pop(index):
                if index == snapshot_id.index and term == snapshot_id.term:
                    _end(future, index)
                else:
                    why = f"index {index} came inside a snapshot: nobody here can say whose entry it was"
                    _end(future, error=OutcomeUnknown(why))

    def state_changed(self, server: RaftServer) -> None:
        if server.state is LeaderState:
            campaigns, self._campaigns = self._campaigns, []
            for future in campaigns:
                _end(future, server.current_term)
        elif server.leader_id is not None:
            self._lose(f"node {server.leader_id} leads term {server.current_term}")

    def _lose(self, why: str) -> None:
        campaigns, self._campaigns = self._campaigns, []
        for future in campaigns:
            _end(future, error=Unavailable(why))

    def end(self, why: str) -> None:
        """End them all: an entry may be committed yet, by others."""
        self.over = self.over or why
        self._lose(why)
        entries, self._entries = self._entries, {}
        for waiting in entries.values():
            for _, future in waiting:
                _end(future, error=OutcomeUnknown(f"{why}, before this entry was known to be committed"))


def _end(future: Future[int], value: int = -1, *, error: Exception | None = None) -> None:
    """End a future; what its owner made of it, or does when it ends, stays its owner's."""
    try:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)
    except InvalidStateError:
        pass  # its owner has ended it
    except BaseException as raised:  # SystemExit and the like, out of a callback
        if isinstance(raised, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise
        logger.exception("a callback of a future raised")


class RaftControl(Driver):
    """One node's control.

    Args:
        net: a RaftNet (`address` is this node's id, `peers` the others), or anything with these and `send`.
        storage: the node's log and hard state; in memory by default.
        executor: where committed entries go; by default they only count as applied.
        clients: how clients are answered; None if there are none.
        configuration: the members of a new cluster; by default this node and its peers, all voters.
        rng: the source of election timeouts.
        noop: whether a new leader appends an empty entry (§8); off only for simulations of the paper's figures.
        commit_along: tell followers of a commit with the next append or a millisecond later, not at once, at its price.
        highest_term: the highest term of any node, where that can be known: above it `become_leader` leads at once.
    """

    def __init__(
        self,
        net: Any,
        *,
        storage: Storage | None = None,
        executor: ExecutorPort | None = None,
        clients: Clients | None = None,
        clock: Clock | None = None,
        config: RaftConfig | None = None,
        configuration: Configuration | None = None,
        rng: random.Random | None = None,
        noop: bool = True,
        commit_along: bool = False,
        highest_term: Callable[[], int] | None = None,
    ) -> None:
        if configuration is None:
            members = frozenset(net.peers) | {net.address}
            configuration = Configuration(voters=members, next_node_id=max(members) + 1)
        as_given = hasattr(net, "outgoing") and (storage is None or isinstance(storage, MemoryStorage))
        self._futures = _Futures(_check_nothing if as_given else _check_item)
        self._highest_term = highest_term
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()  # None: stop
        self._threads: list[threading.Thread] = []
        self._batch: list[Event] = []  # what the thread took out of there last
        self._lock = threading.Lock()  # whoever asks looks for the threads, and then puts, under it
        self._later: list[Event] | None = None  # what callbacks ask while events are being processed
        super().__init__(
            net,
            storage=storage if storage is not None else MemoryStorage(),
            executor=executor if executor is not None else LogOnly(),
            clients=clients,
            clock=clock,
            config=config if config is not None else RaftConfig(),
            configuration=configuration,
            rng=rng,
            noop=noop,
            commit_along=commit_along,
            observer=self._futures,
        )

    net: Any  # a RaftNet: it is started and stopped, and received from, beside the Net port

    @property
    def outgoing(self) -> list[Message]:
        """Return the messages that a stepwise net (MockNetwork) holds until somebody takes them."""
        outgoing: list[Message] = getattr(self.net, "outgoing", [])
        return outgoing

    def is_leader(self) -> bool:
        """Return whether this node leads, as far as it knows."""
        return self.server.state is LeaderState

    def client_append_entry(self, item: Any) -> Future[int]:
        """Append an entry. From any thread.

        Returns:
            A future of its index, done when it is committed. It fails with NotLeader if this node does not lead, with
            UsageError if the item can be neither stored nor sent, with Unavailable if it is certainly not committed
            (another leader's entry took the place, or this node was stopped before), and with OutcomeUnknown if nobody
            here can say any more. It cannot be cancelled once the entry is appended.
        """
        future: Future[int] = Future()
        self._post(partial(self._futures.propose, self.server, item, future))
        return future

    def become_leader(self) -> Future[int]:
        """Become the leader.

        In a simulation at once, in a term above every node's; on a real net by an election without pre-vote.

        Returns:
            A future of the term. It fails with Unavailable if another node leads instead, or this one is stopped.
        """
        future: Future[int] = Future()
        if self._threads or self._futures.over:
            self._post(partial(self._futures.campaign, self.server, future))
        else:
            term = self._highest_term() if self._highest_term is not None else self.server.current_term
            self.process_event(lambda: self.server.become_leader_now(term + 1))
            future.set_result(self.server.current_term)
        return future

    def process_events(self, events: Sequence[Event]) -> None:
        """Process events; what a callback of a future asks meanwhile comes after them."""
        if self._later is not None:
            self._later.extend(events)
            return
        try:
            self._later = []
            super().process_events(events)
            while self._later:
                events, self._later = self._later, []
                super().process_events(events)
        finally:
            self._later = None

    def _post(self, event: partial[None]) -> None:
        with self._lock:
            if self._threads:
                self._events.put(event)
                return
        if self._futures.over:
            event()
        else:
            self.process_event(event)

    # --- Threads ---

    def start(self) -> None:
        """Run on a real net: one thread receives, one drives this control, both daemons."""
        if self._threads:
            return
        self.net.start()
        self._threads = [
            threading.Thread(target=self._receive, name=f"raft-{self.node_id}-receive", daemon=True),
            threading.Thread(target=self._run, name=f"raft-{self.node_id}", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop the threads and the net. Idempotent."""
        self._events.put(None)
        self.net.stop()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=5.0)
        self.storage.close()
        self._end("this node was stopped")

    def _end(self, why: str) -> None:
        """Nothing is processed any more: end who waits, and who asks from now on."""
        with self._lock:
            self._futures.over, self._threads = self._futures.over or why, []
        self._futures.end(why)
        events, self._batch = self._batch, []
        while not self._events.empty():
            if (event := self._events.get()) is not None:
                events.append(event)
        for event in events:
            if isinstance(event, partial):
                _end(event.args[-1], error=Unavailable(why))

    def _receive(self) -> None:
        while (message := self.net.receive()) is not None:
            self._events.put(MessageEvent(message))

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # the disk refuses, or a fault of ours: nobody may wait for this node any more
            logger.critical("node %d stops", self.node_id, exc_info=True)
            self._end(f"this node has stopped: {type(error).__name__}: {error}")

    def _loop(self) -> None:
        ticks = Ticks(self.clock, self.config.tick_s)
        while True:
            batch = self._batch = []
            try:
                event = self._events.get(timeout=ticks.wait_s(self.due_s))
                while event is not None:
                    batch.append(event)
                    event = self._events.get_nowait()
                return
            except queue.Empty:
                pass
            # Time first: after a long pause a leader must learn that it may be deposed before it serves anybody.
            elapsed = ticks.take()
            self.process_events([TickEvent(elapsed), *batch] if elapsed else batch)


def _check_nothing(item: Any) -> None:
    """An item that goes to other nodes of this process as it is may be anything."""


def _check_item(item: Any) -> None:
    """Raise UsageError unless an item survives a disk and a wire."""
    try:
        codec.decode_message(codec.encode_message(AppendEntries(0, 0, 0, -1, -1, [LogEntry(0, item)], -1)))
    except Exception as error:  # whatever its parts raise when they are looked at
        raise UsageError(f"an entry's item is bytes, None, or plain data that msgpack holds: {error}") from error
