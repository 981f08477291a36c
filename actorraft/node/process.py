"""A Raft node as a process of its own: mailbox, control, disk and machine around one loop.

The loop waits once for everything (peers, clients, broken links, the executor, the parent), takes all that is there,
and gives it to the driver as one batch: so a busy node makes one write and one message out of many commands.

Process:    the loop owns sockets and disk, and runs in one of two threads (turns.py); a third only passes on what the
            parent says. Leaving because of a disk or a machine is by `os._exit`, at once.
Source:     architecture 5, 9 and 19.
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from actorraft import codec
from actorraft.errors import CorruptionError, StorageFailed, UsageError
from actorraft.node.clock import SystemClock
from actorraft.node.driver import (
    ClientEvent,
    ConnectEvent,
    DisconnectEvent,
    Driver,
    Event,
    MessageEvent,
    NodeStopped,
    Observer,
    TickEvent,
)
from actorraft.node.executor import Executor
from actorraft.node.host import MachineHost
from actorraft.node.logtime import Ticks
from actorraft.node.machine_thread import EXIT_MACHINE, MachineThread, last_words
from actorraft.ports import Kinds
from actorraft.raft.config import RaftConfig
from actorraft.raft.messages import Configuration, Message
from actorraft.storage.disk import DiskStorage
from actorraft.storage.portable import seed

if TYPE_CHECKING:
    from actorraft.actors.bootstrap import ChildContext
    from actorraft.ports import Mailbox
    from transports.keys import Keys

logger = logging.getLogger("actorraft")

EXIT_DISK: Final = 74  # EX_IOERR: the disk refused


@dataclass(frozen=True, kw_only=True)
class NodeSpec:
    """All that a node's process is told at its start.

    Attributes:
        factory: the machine's class and arguments, as pickling.encode_factory makes them.
        voters: the voters that the cluster began with; none at a node that joined later. The log overrides them.
        from_snapshot: a portable snapshot that a new cluster begins with.
        storage_id: which folder this node had from the first; with another one it is somebody else.
        storage_ids: (node id, storage id) of the founders; none at a node that joined later.
        keeps_data: False if the directory is removed with the cluster.
        peer_endpoint, client_endpoint: where to bind; a tcp port of 0 lets the system choose.
        keys: this node's own, its peers' and its clients'; needed on tcp.
    """

    node_id: int
    cluster_id: bytes
    factory: bytes
    machine_seed: int
    directory: Path
    durability: str
    keeps_data: bool
    from_snapshot: Path | None
    voters: frozenset[int]
    storage_id: str
    storage_ids: tuple[tuple[int, str], ...]
    peer_endpoint: str
    client_endpoint: str
    keys: Keys | None
    config: RaftConfig


def open_storage(spec: NodeSpec) -> DiskStorage:
    """Open the node's store, and lock it.

    Raises:
        StorageFailed, CorruptionError: it cannot be used, or is not this node's.
    """
    try:
        store = DiskStorage(
            spec.directory,
            durability=spec.durability,
            sync_on_close=spec.keeps_data,
            create=False,  # the cluster made it; if it is gone, so is what this node promised
            node_id=spec.node_id,
            cluster_id=spec.cluster_id.hex(),
            storage_id=spec.storage_id,
        )
    except UsageError as error:
        raise StorageFailed(str(error)) from error
    return store


class _Net:
    """Raft messages over the mailbox."""

    def __init__(self, address: int, mailbox: Mailbox) -> None:
        self.address = address
        self.peers: dict[int, str] = {}
        self._mailbox = mailbox

    def send(self, message: Message) -> None:
        self._mailbox.send_peer(message.dest, codec.encode_message(message))


class _Reports(Observer):
    """Tells the parent what its user may want to know."""

    def __init__(self, context: ChildContext) -> None:
        self._context = context

    def noticed(self, what: str, value: Any) -> None:
        self._context.report((what, value))


class RaftNode:
    """One node of a cluster.

    Args:
        context: the line to the parent process.
        spec: what this node is.
        mailbox: its sockets, already bound.
        peers: node id -> peer endpoint, of everybody else.
    """

    def __init__(self, context: ChildContext, spec: NodeSpec, mailbox: Mailbox, peers: dict[int, str]) -> None:
        self._context = context
        self._spec = spec
        self._mailbox = mailbox
        self._clock = SystemClock()
        self._net = _Net(spec.node_id, mailbox)
        self._connected: set[int] = set()
        self._orders: deque[tuple[str, Any]] = deque()  # what the parent says
        self._campaign = False
        self._cut: frozenset[int] = frozenset()  # peers that a test has cut off
        configuration = Configuration(
            voters=spec.voters, next_node_id=max(spec.voters, default=-1) + 1, storage_ids=spec.storage_ids
        )
        if spec.from_snapshot is not None:
            storage = open_storage(spec)
            seed(storage, spec.from_snapshot, configuration)
            storage.close()
        storage = open_storage(spec)
        host = MachineHost.from_factory(spec.factory, spec.machine_seed)
        executor = Executor(
            host,
            session_expiry_s=spec.config.session_expiry_s,
            timer=time.perf_counter,
            marks=storage.marks,
            recursion_max=sys.getrecursionlimit(),
        )
        self._machine = MachineThread(executor, mailbox.wake)
        self.driver = Driver(
            self._net,
            storage=storage,
            executor=self._machine,
            clients=mailbox,
            clock=self._clock,
            config=spec.config,
            configuration=configuration,
            commit_along=True,
            marks=storage.marks,
            counts=mailbox.counts,  # one list of what was dropped, for the status
            observer=_Reports(context),
        )
        host.on_fault = functools.partial(setattr, self.driver, "fault")
        self.driver.fault = host.fault
        self._ticks = Ticks(self._clock, spec.config.tick_s)
        self._set_peers(peers)

    def run(self) -> None:
        """Serve until the parent asks to stop."""
        self._context.on_stop(self._mailbox.wake)
        threading.Thread(target=self._listen, name="parent", daemon=True).start()
        self._machine.run(self._turn, lambda: self.driver.process_events(()))
        self.driver.storage.close()
        self._mailbox.close()

    def _turn(self, wait_max_s: float) -> bool | None:
        """One round of the loop: wait, take all that is there, handle it as one batch.

        Returns:
            Whether anything came; None: the parent asks to stop.
        """
        driver, ticks = self.driver, self._ticks
        envelopes = self._mailbox.wait(min(wait_max_s, ticks.wait_s(driver.due_s)))
        events: list[Event] = []
        # Time first: after a long pause a leader must learn that it may be deposed before it serves anybody.
        elapsed = ticks.take()
        if elapsed:
            events.append(TickEvent(elapsed))
        for kind, sender, frame in envelopes:
            if kind == Kinds.PEER:
                self._on_peer(sender, frame, events)
            elif kind == Kinds.CLIENT:
                events.append(ClientEvent(sender, frame))
            elif kind == Kinds.CONNECTED:
                self._connected.add(sender)
                events.append(ConnectEvent(sender))
            elif kind == Kinds.DISCONNECTED:
                self._connected.discard(sender)
                events.append(DisconnectEvent(sender))
        while self._orders:
            self._obey(*self._orders.popleft())
        driver.process_events(events)
        if self._campaign:
            self._campaign_when_connected()
        return None if self._context.stop_requested else bool(envelopes)

    def _on_peer(self, sender: int, frame: bytes, events: list[Event]) -> None:
        if sender in self._cut:
            return
        try:
            message = codec.decode_message(frame)
        except codec.MalformedFrame as error:
            self._drop(f"a frame from node {sender}: {error}")
            return
        if message.source != sender or message.dest != self._spec.node_id:
            self._drop(f"a message from node {sender} that says it is from {message.source} to {message.dest}")
            return
        events.append(MessageEvent(message))

    def _drop(self, what: str) -> None:
        self.driver.counts["malformed peer frames"] += 1
        if self.driver.counts["malformed peer frames"] == 1:
            logger.warning("dropped %s (further ones are only counted)", what)

    # --- What the parent says ---

    def _listen(self) -> None:
        while (order := self._context.receive(None)) is not None:
            self._orders.append(order)
            self._mailbox.wake()

    def _obey(self, verb: str, value: Any) -> None:
        match verb:
            case "peers":
                self._set_peers(value)
            case "keys":
                self._mailbox.set_keys(value)
            case "clients":
                self.driver.requests.endpoints = value
            case "campaign":
                self._campaign = True
            case "cut":
                serial, peers = value
                self._cut = frozenset(peers)
                self._set_peers(dict(self._net.peers))
                self._context.report(("cut", serial))
            case _:
                logger.error("the parent asks for %r, which this version does not know", verb)

    def _set_peers(self, peers: dict[int, str]) -> None:
        self._net.peers = {node_id: endpoint for node_id, endpoint in peers.items() if node_id != self._spec.node_id}
        self._mailbox.set_peers(self._net.peers)

    def _campaign_when_connected(self) -> None:
        """A new cluster need not wait for an election timeout: its parent names who asks first."""
        voters = self.driver.server.configuration.voters
        if self.driver.server.leader_id is not None:
            self._campaign = False
        elif len((self._connected | {self._spec.node_id}) & voters) * 2 > len(voters):
            self._campaign = False
            self.driver.server.campaign()
            self.driver.process_events(())


def run_node(context: ChildContext, spec: NodeSpec) -> None:
    """The whole life of a node's process, from binding its sockets to the end."""
    from transports.sockets import LinkTimes
    from transports.zeromq import ZeroMQMailbox

    sys.setswitchinterval(0.0005)
    mailbox = ZeroMQMailbox(
        spec.node_id,
        incarnation=os.urandom(8),
        cluster_id=spec.cluster_id,
        peer_endpoint=spec.peer_endpoint,
        client_endpoint=spec.client_endpoint,
        frame_bytes_max=spec.config.frame_bytes_max,
        append_bytes_max=max(spec.config.append_bytes_max, spec.config.snapshot_chunk_bytes),
        keys=spec.keys,
        storage_id=spec.storage_id,
        times=LinkTimes(
            heartbeat_ms=spec.config.link_heartbeat_ms,
            timeout_ms=spec.config.link_timeout_ms,
            reconnect_max_ms=spec.config.reconnect_max_ms,
        ),
    )
    context.report(("bound", mailbox.endpoints))
    order: tuple[str, Any] | None = context.receive(None)
    while order is not None and order[0] == "keys":
        mailbox.set_keys(order[1])
        order = context.receive(None)
    if order is None:
        return  # the parent is gone
    _, peers = order
    try:
        node = RaftNode(context, spec, mailbox, peers)
        context.loaded()
        log = node.driver.server.log
        context.report(("ready", tuple(log.last)))
        gc.collect()
        gc.freeze()  # what the start made lives as long as the process; the collector need not walk it again
        node.run()
    except (StorageFailed, CorruptionError) as error:
        context.report(("stopped", str(error)))
        os._exit(last_words(str(error), EXIT_DISK))
    except NodeStopped as error:
        context.report(("stopped", str(error)))
        os._exit(last_words(str(error), EXIT_MACHINE))
