"""A Raft node as a process of its own: mailbox, control, disk and machine around one loop.

The loop waits once for everything (peers, clients, broken links, the executor, the parent), takes all that is there,
and gives it to the driver as one batch: so a busy node makes one write and one message out of many commands.

Process:    the loop owns sockets and disk, and runs in one of two threads (turns.py); a third only passes on what the
            parent says. Leaving because of a disk or a machine is by `os._exit`, at once.
Source:     docs/a-node.md; docs/decisions/0005 and 0014.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from actorraft import __version__, codec
from actorraft.descriptors import raise_limit
from actorraft.errors import CorruptionError, StorageFailed, UsageError
from actorraft.loggers import guarded_logger
from actorraft.machine import defined
from actorraft.memory import keep_freed
from actorraft.node import logs
from actorraft.node.backups import Backups
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
from actorraft.node.guest import check_threads, fork, signals_kept
from actorraft.node.health import HealthServer
from actorraft.node.host import MachineHost
from actorraft.node.interpreters import PYTHON
from actorraft.node.journal import Journal
from actorraft.node.key_change import KeyChange
from actorraft.node.leaving import Leaving
from actorraft.node.logtime import Ticks
from actorraft.node.machine_thread import EXIT_MACHINE, MachineThread, last_words
from actorraft.node.members import Door, Members
from actorraft.node.room import DiskRoom
from actorraft.node.service_manager import ServiceManager
from actorraft.node.spec import NodeSpec
from actorraft.pickling.fingerprint import fingerprint_of
from actorraft.ports import GONE, Gathered, Kinds, Sent
from actorraft.raft import roster
from actorraft.raft.errors import RaftError
from actorraft.raft.messages import Configuration, Message
from actorraft.raft.ready import LeaderState
from actorraft.storage.directory import CLUSTER_FILE, this_python
from actorraft.storage.disk import DiskStorage
from actorraft.storage.files import Files
from actorraft.storage.marks import DEATHS, Marks
from actorraft.storage.portable import seed
from actorraft.storage.records import entry_checksum
from actorraft.storage.show import describe
from actorraft.storage.skips import read_skips, store_skips

if TYPE_CHECKING:
    from actorraft.actors.bootstrap import ChildContext
    from actorraft.ports import Mailbox
    from actorraft.raft.server import RaftServer

logger = guarded_logger("actorraft")

ON_PROBATION: Final = "on-probation"  # a file in the data directory, while it is so
REMOVED: Final = "removed"  # likewise, once this node is no member any more
EXIT_DISK: Final = 74  # EX_IOERR: the disk refused
EXIT_POISONED: Final = 78  # EX_CONFIG: a command ends the process, and somebody must do something about that


class Poisoned(Exception):
    """This node's process ended more than once while it applied one and the same entry; the message names it."""


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
            run=spec.run,
        )
    except UsageError as error:
        raise StorageFailed(str(error)) from error
    return store


def check_settings(spec: NodeSpec, configuration: Configuration) -> bool:
    """Return whether the log lacks something of what decides replicated state.

    Raises:
        StorageFailed: the log says otherwise than this start.
    """
    kept = dict(configuration.settings)
    for name, value in spec.settings.items():
        if kept.get(name, value) != value:
            raise StorageFailed(
                f"this start of node {spec.node_id} says {name} = {value}, and the cluster's is {kept[name]}: what "
                "decides the state is equal on all nodes, and set once, when the cluster begins"
            )
    return bool((spec.settings.keys() | {PYTHON}) - kept.keys())


def has_begun(directory: Path) -> None:
    """Note, for good, that probation is over."""
    (directory / ON_PROBATION).unlink(missing_ok=True)
    Files().sync_directory(directory)


class _Net:
    """Raft messages over the mailbox."""

    def __init__(self, address: int, mailbox: Mailbox) -> None:
        self.address = address
        self.peers: dict[int, str] = {}
        self._mailbox = mailbox

    def send(self, message: Message) -> None:
        frame, *beside = codec.encode_parts(message)
        self._mailbox.send_peer(message.dest, frame, beside)


class _Clients:
    """Answers to clients over the mailbox."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._send = mailbox.send_client
        self.key, self.role, self.is_gone = mailbox.key, mailbox.role, mailbox.is_gone

    def send_client(self, client: Any, frame: bytes) -> object:
        sent = self._send(client, frame)
        return True if sent is Sent.LEFT else False if sent is Sent.FULL else GONE


class Companion(Protocol):
    """What a machine of this library has beside it in a node's process: its class's `__companion__` makes it."""

    def lead(self, leads: bool) -> None:
        """The node leads from now on, or does not."""


class _Reports(Observer):
    """Tells the parent what its user may want to know."""

    def __init__(self, context: ChildContext, begun: Callable[[], None]) -> None:
        self._context = context
        self._begun = begun
        self.journal = Journal()
        self.more: Callable[[], dict[str, Any]] = dict
        self.companion: Companion | None = None

    def about(self) -> dict[str, Any]:
        return self.more()

    def state_changed(self, server: RaftServer) -> None:
        if self.companion is not None:
            self.companion.lead(server.state is LeaderState)

    def noticed(self, what: str, value: Any) -> None:
        if what == "begun":
            self._begun()
        self.journal.noticed(what, value)
        self._context.report((what, value))


class RaftNode:
    """One node of a cluster.

    Args:
        context: the line to the parent process.
        spec: what this node is.
        mailbox: its sockets, already bound.
        peers: node id -> peer endpoint, of everybody else.
        cuts: (number, peers) of partitions that are in force as this node starts.
        doors: who else lets in whom the mailbox does.
    """

    def __init__(
        self,
        context: ChildContext,
        spec: NodeSpec,
        mailbox: Mailbox,
        peers: dict[int, str],
        cuts: Sequence[tuple[int, list[int]]] = (),
        doors: Sequence[Door] = (),
    ) -> None:
        self._context = context
        self._spec = spec
        self._mailbox = mailbox
        self._clock = SystemClock()
        self._net = _Net(spec.node_id, mailbox)
        self._connected: set[int] = set()
        self._orders: deque[tuple[str, Any]] = deque()  # what the parent says
        self._campaign = False
        self._cut: frozenset[int] = frozenset()  # peers that a test has cut off
        for cut in cuts:
            self._cut = frozenset(cut[1])  # before anything is heard
            self._orders.append(("cut", cut))
        if spec.from_snapshot is not None:
            storage = open_storage(spec)
            seed(storage, spec.from_snapshot, spec.configuration)
            storage.close()
        storage = open_storage(spec)
        fork.watch()  # the machine's module and its constructor are user code, too
        with signals_kept():
            host = MachineHost.from_factory(spec.factory, spec.machine_seed)
        check_threads()
        host.forecast()
        skips = read_skips(spec.directory)
        code = codec.Code(host.version, fingerprint_of(type(host.machine), only_holds=host.only_holds))
        if spec.pins is not None:
            host.keep_modules(spec.pins / f"{code.version}-{code.fingerprint}")
        executor = Executor(
            host,
            session_expiry_s=spec.config.session_expiry_s,
            timer=time.perf_counter,
            marks=storage.marks,
            recursion_max=sys.getrecursionlimit(),
            skips=skips,
            code=code,
            slow_s=spec.config.slow_command_ms / 1000,
        )
        self._slow, self._sessions = executor.slow, executor.sessions
        self._told_stopping = False
        self._not_ready_since_s: float | None = None
        self._machine = MachineThread(executor, mailbox.wake)
        reports = self._reports = _Reports(context, partial(has_begun, spec.directory))
        companion = defined(type(host.machine), "__companion__", None)
        if companion is not None:
            reports.companion = companion(lambda: host.machine)
        self.driver = Driver(
            self._net,
            storage=storage,
            executor=self._machine,
            clients=_Clients(mailbox),
            clock=self._clock,
            config=spec.config,
            configuration=spec.configuration,
            probation=spec.probation,
            commit_along=True,
            marks=storage.marks,
            skips=skips,
            keep_skips=partial(store_skips, spec.directory),
            counts=mailbox.counts,  # one list of what was dropped, for the status
            code=code,
            replay_from=spec.replay_from,
            python=this_python(),
            observer=reports,
        )
        self.driver.traces.set_up()  # now that the machine's module has had its turn
        host.on_fault = functools.partial(setattr, self.driver, "fault")
        self.driver.fault = host.fault
        self._since_s = self._clock.monotonic()
        self._lost_s: dict[int, float] = {}  # peer -> since when its link is down
        self.driver.requests.own_verbs["events"] = reports.journal.since
        reports.journal.note(
            "start", f"serves, version {__version__}, with entries up to {len(self.driver.server.log) - 1}"
        )
        self._room = DiskRoom(
            spec.directory,
            self._clock,
            reserve_bytes=spec.config.disk_reserve_bytes,
            snapshot_bytes=lambda: self.driver.snapshots.newest_bytes,
        )
        self.driver.requests.no_room = self._room.low
        self._manager: ServiceManager = getattr(context, "manager", None) or ServiceManager({})
        self._handed_over = False  # leadership, since the disk is low
        self._caught_up = False  # what was committed when a leader was first known is applied
        self._to_apply: int | None = None  # and that is up to here
        reports.more = self._about
        self._health = HealthServer(spec.http, self._ask) if spec.http else None
        self._backups: Backups | None = None
        if spec.backups is not None:
            self._backups = Backups(spec.backups, self.driver, spec.cluster_id.hex(), self._ask_loop)
        self._unsettled = check_settings(spec, self.driver.server.configuration)
        self._refuse_poison(storage.marks)
        self._ticks = Ticks(self._clock, spec.config.tick_s)
        self._leaving = Leaving(
            self.driver, self._clock, context.report, keeps_data=spec.keeps_data, hands_over=spec.hands_over
        )
        self._members: Members | None = None
        if spec.advertise is not None:
            self._members = Members(self.driver, mailbox, spec, self._set_peers, doors)
        if self._members is None:
            mailbox.judge = self._hear
            said = codec.Greeting(code=(code.version, code.fingerprint), wire=codec.WIRE, python=this_python())
            mailbox.introduce(codec.encode(said))
            self._set_peers(peers)
        elif spec.key_file is not None:
            self.driver.requests.own_verbs |= KeyChange(
                spec.key_file, lambda: self.driver.server.configuration, spec.node_id, context
            ).verbs

    def _refuse_poison(self, marks: Marks) -> None:
        """Stay down where a command has ended this process again and again; a new run of the cluster tries once."""
        index, log = marks.poison, self.driver.server.log
        if marks.first_try or not log.first_index <= index < len(log):
            return
        [entry] = log.between(index, index + 1)
        if read_skips(self._spec.directory).get(index) == entry_checksum(index, entry):
            return
        shown = describe(index, entry)
        folder = self._spec.directory
        folder = folder.parent if (folder.parent / CLUSTER_FILE).exists() else folder
        raise Poisoned(
            f"its process ended {marks.words[DEATHS]} times while it applied {shown.words}, so it stays down. Mend "
            "what ends it (code, then of a higher machine_version; memory) and start it again; or skip the entry: "
            f"python -m actorraft.storage skip {folder} --index {index} --checksum {shown.checksum}"
        )

    def run(self) -> None:
        """Serve until the parent asks to stop."""
        self._context.on_stop(self._mailbox.wake)
        threading.Thread(target=self._listen, name="parent", daemon=True).start()
        if self._backups is not None:
            self._backups.start()
        self._manager.tell("READY=1")
        self._machine.run(self._turn, self.driver.settle)
        if self._backups is not None:
            self._backups.close()
        if self._health is not None:
            self._health.close()
        self.driver.storage.close()
        self._mailbox.close()
        self.driver.traces.close()

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
                self._reports.journal.note("link", f"node {sender} is reached")
                self._lost_s.pop(sender, None)
                events.append(ConnectEvent(sender))
            elif kind == Kinds.DISCONNECTED:
                self._connected.discard(sender)
                self._reports.journal.note("link", f"node {sender} is not reached any more")
                self._lost_s.setdefault(sender, self._clock.monotonic())
                events.append(DisconnectEvent(sender))
        while self._orders:
            self._obey(*self._orders.popleft())
        driver.process_events(events)
        if elapsed:
            self._look_at_disk()
            now_s = self._clock.monotonic()
            self._manager.feed(now_s)
            self._readiness(now_s)
            self._reports.journal.follow(driver.server)
        if self._campaign:
            self._campaign_when_connected()
        if self._unsettled and driver.server.state is LeaderState:
            self._settle()
        if self._members is not None and self._is_removed(self._members):
            return None
        if driver.requests.closing:
            self._leaving.follow()
        if self._context.stop_requested and self._may_stop():
            return None
        return bool(envelopes)

    def _is_removed(self, members: Members) -> bool:
        """Follow the members that the log names; whether this node is none of them any more."""
        if members.follow():
            self.driver.process_events(())
        if members.removed:
            logger.warning("node %d is no member any more, and leaves; its directory may go", self._spec.node_id)
            Files().replace(self._spec.directory / REMOVED, b"This node is no member any more.\n")
        return members.removed

    def _may_stop(self) -> bool:
        """The parent asks to stop: whether what is to be done before is done."""
        if not self._told_stopping:
            self._told_stopping = True
            if not getattr(self._context, "again", False):  # it begins anew in this process: that is no end
                self._manager.tell("STOPPING=1")
        return self._leaving.may_leave()

    def _settle(self) -> None:
        """Make what decides replicated state the cluster's own, once; a cluster of 0.1.0 has none of it in its log."""
        self._unsettled = False
        configuration = self.driver.server.configuration
        settings = {PYTHON: json.dumps(this_python()), **self._spec.settings}
        if settings.keys() - dict(configuration.settings).keys():
            self.driver.server.annotate(roster.settle(configuration, settings))
            self.driver.process_events(())

    def _look_at_disk(self) -> None:
        """Below the watermark: take no writes, cut the log once, and let another lead, who may have room."""
        driver, low = self.driver, self._room.low
        if self._room.look():
            low = driver.requests.no_room = self._room.low
            self._handed_over = False
            self._reports.noticed("disk", low)
            if low:
                logger.error("takes no writes: %s", low)
                driver.snapshots.begin()
            else:
                logger.warning("takes writes again: its disk has room")
            driver.process_events(())
        if low and not self._handed_over and driver.server.state is LeaderState:
            self._handed_over = True  # once: where all disks are full, leadership must come to rest
            with contextlib.suppress(RaftError):
                driver.server.transfer_leadership()
            driver.process_events(())

    def _hear(self, said: Any) -> str:
        self.driver.rules.hear(said.node_id, codec.decode_greeting(said.payload))
        return ""

    def _on_peer(self, sender: int, frame: bytes | memoryview, events: list[Event]) -> None:
        if sender in self._cut:
            return
        try:
            message = codec.decode_message(frame, frame.beside if type(frame) is Gathered else ())
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

    # --- What is told of it ---

    def _ask(self, timeout_s: float) -> dict[str, Any] | None:
        """Have the loop say how this node is; from any thread. None: it does not turn."""
        said: dict[str, Any] | None = self._ask_loop(lambda put: put(self.driver.status()), timeout_s)
        return said

    def _ask_loop(self, do: Callable[[Callable[[Any], object]], object], timeout_s: float) -> Any:
        """Have the loop do something that answers through its argument; from any thread. None: not in time.

        Raises:
            Exception: what it raised, for that is its asker's; but not what ends this node.
        """
        answer: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

        def asked() -> None:
            try:
                do(lambda said: answer.put((said, None)))
            except (StorageFailed, CorruptionError, NodeStopped):
                raise
            except Exception as error:
                answer.put((None, error))

        self._orders.append(("do", asked))
        self._mailbox.wake()
        try:
            said, error = answer.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if error is not None:
            raise error
        return said

    def _about(self) -> dict[str, Any]:
        now_s = self._clock.monotonic()
        peers = sorted(self.driver.server.configuration.members - {self._spec.node_id})
        dialled = self._spec.advertise
        return {
            "address": self._mailbox.endpoints[0] if dialled is None else f"tcp://{dialled[0]}",
            "pid": os.getpid(),
            "http": self._health.address if self._health is not None else "",
            "uptime_s": round(now_s - self._since_s, 3),
            "links": {
                peer: None if peer in self._connected else round(now_s - self._lost_s.get(peer, self._since_s), 3)
                for peer in peers
            },
            **self._readiness(now_s),
            "disk": self._room.report(),
            "slow": list(self._slow),
            "sessions": len(self._sessions),
            **({"backup": self._backups.report()} if self._backups is not None else {}),
        }

    def _readiness(self, now_s: float) -> dict[str, Any]:
        """Say why it is not ready, and since when: it is looked at all the time, not only when somebody asks."""
        why = self._why_not_ready()
        if not why:
            self._not_ready_since_s = None
        elif self._not_ready_since_s is None:
            self._not_ready_since_s = now_s
        since_s = self._not_ready_since_s
        return {"not_ready": why, "not_ready_s": None if since_s is None else round(now_s - since_s, 3)}

    def _why_not_ready(self) -> str:
        """Say why this node should not be sent to yet; "" if it should."""
        server = self.driver.server
        if self.driver.foreign or self.driver.holding.reason:
            return self.driver.foreign or self.driver.holding.reason
        if self.driver.fetching.reason:
            return self.driver.fetching.reason
        if server.probation is not None:
            return "its disk was empty, and it neither votes nor counts yet"
        if server.leader_id is None:
            return "; ".join(
                ["it knows no leader", *(f"node {node_id}: {why}" for node_id, why in self._mailbox.refusals.items())]
            )
        if not self._caught_up:
            if self._to_apply is None and server.committed_in_own_term:  # else it may not know of all that is committed
                self._to_apply = server.commit_index
            self._caught_up = self._to_apply is not None and server.last_applied >= self._to_apply
        return "" if self._caught_up else f"it has applied up to {server.last_applied} of {self._to_apply}"

    # --- What the parent says ---

    def _listen(self) -> None:
        while (order := self._context.receive(None)) is not None:
            self._orders.append(order)
            self._mailbox.wake()

    def _obey(self, verb: str, value: Any) -> None:
        match verb:
            case "peers":
                self._set_peers(value)
            case "do":
                value()
            case "keys":
                self._mailbox.set_keys(value)
            case "clients":
                self.driver.requests.endpoints = value
            case "end":
                self._leaving.end()
            case "snapshot at":
                self._leaving.snapshot_at(value)
            case "go on":
                self._leaving.go_on()
            case "leave":
                self._leaving.asked = True
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


def _introduced(context: ChildContext, mailbox: Mailbox) -> tuple[dict[int, str], list[Any]] | None:
    """Wait for the parent to say where the others are.

    Returns:
        Where they are, and what it says of a partition; None: it is gone.
    """
    order: tuple[str, Any] | None
    cuts: list[Any] = []
    while (order := context.receive(None)) is not None:
        verb, value = order
        if verb == "peers":
            return dict(value), cuts
        if verb == "keys":
            mailbox.set_keys(value)
        elif verb == "cut":
            cuts.append(value)
    return None


def run_node(context: ChildContext, spec: NodeSpec) -> None:
    """The whole life of a node's process, from binding its sockets to the end."""
    from transports.sockets import LinkTimes
    from transports.zeromq import ZeroMQMailbox

    raise_limit()
    keep_freed()
    sys.setswitchinterval(0.0005)
    times = LinkTimes(
        heartbeat_ms=spec.config.link_heartbeat_ms,
        timeout_ms=spec.config.link_timeout_ms,
        reconnect_max_ms=spec.config.reconnect_max_ms,
    )
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
        times=times,
        plaintext_on_loopback=spec.advertise is not None and spec.keys is None,
        gathers=True,
        lends=True,
    )
    context.report(("bound", mailbox.endpoints))
    peers: dict[int, str] = {}
    cuts: list[Any] = []
    if spec.advertise is None:
        told = _introduced(context, mailbox)
        if told is None:
            return  # the parent is gone
        peers, cuts = told
    gateway = None
    if spec.actors:
        from actorraft.node.gateway import Gateway

        assert spec.keys is not None
        gateway = Gateway(spec.actors, spec.keys, times)
    try:
        node = RaftNode(context, spec, mailbox, peers, cuts, [gateway] if gateway is not None else [])
        logs.about.term = lambda: node.driver.server.current_term
        context.loaded()
        log = node.driver.server.log
        context.report(("ready", tuple(log.last)))
        if node.driver.snapshots.newest_index < 0:  # else it is said when the machine has taken up that state
            context.report(("restored", -1))
        gc.collect()
        gc.freeze()  # what the start made lives as long as the process; the collector need not walk it again
        if gateway is not None:
            gateway.start()
        node.run()
        if gateway is not None:
            gateway.close()
    except Poisoned as error:
        context.report(("poisoned", str(error)))
        os._exit(last_words(str(error), EXIT_POISONED))
    except (StorageFailed, CorruptionError) as error:
        context.report(("stopped", str(error)))
        os._exit(last_words(str(error), EXIT_DISK))
    except NodeStopped as error:
        context.report(("stopped", str(error)))
        os._exit(last_words(str(error), EXIT_MACHINE))
