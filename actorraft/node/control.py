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
from concurrent.futures import Future
from typing import Any

from actorraft.errors import Unavailable
from actorraft.node.driver import Driver, Event, MessageEvent, Observer, TickEvent
from actorraft.node.executor import ExecutorPort, LogOnly
from actorraft.node.logtime import Ticks
from actorraft.ports import Clients, Clock, Storage
from actorraft.raft.config import RaftConfig
from actorraft.raft.errors import RaftError
from actorraft.raft.messages import Configuration, LogEntry, Message
from actorraft.raft.ready import LeaderState
from actorraft.raft.server import RaftServer
from actorraft.storage.memory import MemoryStorage


class _Futures(Observer):
    """Those who wait for an entry to be committed, or for this node to lead."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[int, Future[int]]] = {}  # index -> (term, future)
        self._campaigns: list[Future[int]] = []

    def propose(self, server: RaftServer, item: Any, future: Future[int]) -> None:
        try:
            index = server.propose(item)
        except RaftError as error:
            future.set_exception(error)
        else:
            self._entries[index] = (server.current_term, future)

    def campaign(self, server: RaftServer, future: Future[int]) -> None:
        self._campaigns.append(future)
        server.campaign(pre_vote=False)

    def committed(self, first_index: int, entries: Sequence[LogEntry]) -> None:
        if not self._entries:
            return
        for index, entry in enumerate(entries, first_index):
            waiting = self._entries.pop(index, None)
            if waiting is None:
                continue
            term, future = waiting
            if term == entry.term:
                future.set_result(index)
            else:
                future.set_exception(Unavailable(f"another leader's entry of term {entry.term} took index {index}"))

    def state_changed(self, server: RaftServer) -> None:
        if server.state is LeaderState:
            for future in self._campaigns:
                future.set_result(server.current_term)
            self._campaigns.clear()

    def stopped(self) -> None:
        for _, future in self._entries.values():
            future.set_exception(Unavailable("this node was stopped before the entry was committed"))
        self._entries.clear()


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
        self._futures = _Futures()
        self._highest_term = highest_term
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()  # None: stop
        self._threads: list[threading.Thread] = []
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
        """Messages that a stepwise net (MockNetwork) holds until somebody takes them."""
        outgoing: list[Message] = getattr(self.net, "outgoing", [])
        return outgoing

    def is_leader(self) -> bool:
        """Return whether this node leads, as far as it knows."""
        return self.server.state is LeaderState

    def client_append_entry(self, item: Any) -> Future[int]:
        """Append an entry. From any thread.

        Returns:
            A future of its index, done when it is committed. It fails with NotLeader if this node does not lead, and
            with Unavailable if another leader's entry took the place.
        """
        future: Future[int] = Future()
        self._post(lambda: self._futures.propose(self.server, item, future))
        return future

    def become_leader(self) -> Future[int]:
        """Become the leader.

        In a simulation at once, in a term above every node's; on a real net by an election without pre-vote.

        Returns:
            A future of the term.
        """
        future: Future[int] = Future()
        if self._threads:
            self._events.put(lambda: self._futures.campaign(self.server, future))
        else:
            term = self._highest_term() if self._highest_term is not None else self.server.current_term
            self.process_event(lambda: self.server.become_leader_now(term + 1))
            future.set_result(self.server.current_term)
        return future

    def _post(self, event: Event) -> None:
        if self._threads:
            self._events.put(event)
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
            thread.join(timeout=5.0)
        self._threads = []
        self.storage.close()
        self._futures.stopped()

    def _receive(self) -> None:
        while (message := self.net.receive()) is not None:
            self._events.put(MessageEvent(message))

    def _run(self) -> None:
        ticks = Ticks(self.clock, self.config.tick_s)
        while True:
            batch: list[Event] = []
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
