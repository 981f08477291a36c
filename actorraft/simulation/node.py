"""A node of the seeded world: the production driver, executor and sessions on a disk, a clock and links that fail.

One loop, as in a real process: while a write takes its time the node hears nothing, and what arrived meanwhile is one
batch afterwards, elapsed ticks first. Every effect (a send, a write, a sync, a snapshot's commit) may be its last:
`fuse` counts them down to a crash, so that crashes fall between any two of them.

Not here:   what happens to whom and when (faults.py); what is judged (invariants.py).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actorraft import codec
from actorraft.errors import StorageFailed
from actorraft.node.driver import ClientEvent, Driver, Event, MessageEvent, NodeStopped, Observer, TickEvent
from actorraft.node.executor import Executor, InlineExecutor
from actorraft.node.host import MachineHost
from actorraft.node.logtime import Ticks
from actorraft.node.work import Apply, Done, Read, Stopped, Work
from actorraft.raft.messages import AppendEntriesResponse, Configuration, HardState, LogEntry, Message
from actorraft.raft.server import RaftServer
from actorraft.simulation.disk import SimDisk
from actorraft.simulation.guest import CRAWL, Guest, Mood
from actorraft.simulation.invariants import Checker, InvariantViolation, View
from actorraft.simulation.machine import SimHost
from actorraft.simulation.network import SimNetwork
from actorraft.simulation.profile import Profile
from actorraft.simulation.timeline import Timeline
from actorraft.simulation.trace import Trace, said
from actorraft.simulation.versions import Installed, VersionedHost

CRAWL_US = 1_700_000  # what takes long takes longer than a client waits before it asks again


class SimulatedCrash(BaseException):
    """The process dies at this instant; nothing may catch it but the world."""


class SimClock:
    """A node's clocks: monotonic has a rate of its own and may leap ahead; wall may be anywhere."""

    def __init__(self, node: SimNode) -> None:
        self.node = node
        self.rate = 1.0
        self.ahead_s = 0.0
        self.wall_offset_s = 1.7e9

    def monotonic(self) -> float:
        node = self.node
        return (node.timeline.now_us + node.spent_us) * 1e-6 * self.rate + self.ahead_s

    def wall(self) -> float:
        return self.monotonic() + self.wall_offset_s


class Watcher(Observer):
    """Tells the checker of reads, and of what would alarm an operator."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self._asked: dict[int, int] = {}  # read -> what was committed when it was asked for

    def read_asked(self, token: int) -> None:
        self._asked[token] = len(self._node.checker.committed) - 1

    def read_answered(self, token: int, index: int) -> None:
        self._node.checker.read_answered(self._node, index, self._asked.pop(token))

    def noticed(self, what: str, value: Any) -> None:
        if what == "difference":
            raise InvariantViolation("checks", f"node {self._node.node_id}: {value}")
        if what == "lost log":
            self._node.checker.lost_log(self._node, *value)


class DelayedExecutor:
    """The machine's thread: takes work in order, finishes it later, and wakes the loop."""

    def __init__(self, node: SimNode, machine: Executor) -> None:
        self.node = node
        self.executor = machine
        self.queue: deque[Work] = deque()
        self.done: list[Done] = []
        self.busy = False
        self.start = node.start

    def submit(self, work: Work) -> None:
        """Queue; never blocks."""
        self.queue.append(work)
        if not self.busy:
            self.busy = True
            self.node.timeline.after(self.node.spent_us + self.cost_us(), self.run, None)

    def cost_us(self) -> int:
        """Return how long the next piece takes: mostly little, sometimes very long."""
        random = self.node.rng.random
        slow = random() < 0.02 and not self.node.calm
        us = int(random() * (200_000 if slow else 100)) + 20
        return us + CRAWL_US if self.node.profile.guest and _crawls(self.queue[0]) else us

    def run(self, _: object) -> None:
        """Do one piece, then the next one later."""
        node = self.node
        if node.start != self.start or not node.up:
            return
        if node.paused_until_us > node.timeline.now_us:
            node.timeline.at(node.paused_until_us, self.run, None)
            return
        spent_us = node.spent_us
        try:
            work = self.queue.popleft()
            self.done.append(self.executor.run(work))
        except SimulatedCrash:
            node.crash("at an effect of its executor")
            return
        except (InvariantViolation, KeyboardInterrupt):
            raise
        except BaseException as error:  # whatever user code raises
            raise InvariantViolation("no error", f"node {node.node_id}: {said(error)}") from error
        finally:
            node.spent_us = spent_us
        if type(self.done[-1]) is Stopped:
            node.wake()  # which ends the process; nothing else is done in it
            return
        if self.queue:
            node.timeline.after(self.cost_us(), self.run, None)
        else:
            self.busy = False
        if type(work) is not Apply or not work.quiet:
            node.wake()

    def poll(self) -> list[Done]:
        """Return what is done."""
        done, self.done = self.done, []
        return done


def _crawls(work: Work) -> bool:
    """Whether a piece of work has something in it that takes long."""
    if type(work) is Read:
        return CRAWL in bytes(work.query.body)
    return type(work) is Apply and any(type(item) is bytes and CRAWL in item for _, item in work.entries)


class SimNode:
    """One node: a disk that stays, and a process that comes and goes. Implements DiskHooks, Net and Clients.

    Args:
        founding: the members of the cluster that it founds, or nobody.
        nodes: all of them, by their id; this one among them soon.
        crashed: told when the process is gone.
        make_host: makes the host of its machine; None: a machine of our own, as the profile says.
    """

    def __init__(
        self,
        node_id: int,
        founding: Configuration,
        *,
        timeline: Timeline,
        network: SimNetwork,
        checker: Checker,
        trace: Trace,
        profile: Profile,
        rng: random.Random,
        nodes: Mapping[int, SimNode],
        crashed: Callable[[SimNode], None],
        make_host: Callable[[], Any] | None = None,
    ) -> None:
        self.node_id = self.address = node_id
        self.founding = founding
        self.timeline = timeline
        self.network = network
        self.checker = checker
        self.trace = trace
        self.profile = profile
        self.rng = rng
        self.nodes = nodes
        self.crashed = crashed
        self.make_host = make_host or self._make_host
        self.disk = SimDisk(self, self.rng)
        self.clock = SimClock(self)
        self.driver: Driver | None = None
        self.server: RaftServer | None = None
        self.executor: Executor | None = None
        self.thread: InlineExecutor | DelayedExecutor | None = None  # the machine's
        self.mood = Mood()  # of its machine
        self.installed = Installed()  # where versions are mixed: the code that its next process runs
        self.runs = self.installed  # and that of the present one
        self.view: View
        self.up = False
        self.start = 0  # how often it was started; what was meant for an earlier start is void
        self.retired = False  # removed from the cluster for good
        self.inbox: list[Event] = []
        self.spent_us = 0  # by the event under way
        self.busy_until_us = 0
        self.paused_until_us = 0
        self.wake_us = -1  # when the next wake-up is due
        self.fuse = 0  # effects left until a crash; 0: none is due
        self.calm = False  # nothing goes wrong any more, and nothing takes long

    @property
    def machine(self) -> SimHost | Guest | None:
        """The machine itself, as the judge wants it."""
        if self.executor is None:
            return None
        host: Any = self.executor.host
        return host.machine if self.profile.guest else host  # type: ignore[no-any-return]

    def _make_host(self) -> Any:
        if self.profile.versions:
            return VersionedHost(self.installed)
        return MachineHost(lambda: Guest(self.mood)) if self.profile.guest else SimHost()

    # --- The process comes and goes ---

    def boot(self) -> None:
        """Start a process on what the disk holds."""
        config = self.profile.config
        self.start += 1
        self.up = True
        self.inbox = []
        self.spent_us = self.fuse = 0
        self.busy_until_us = self.paused_until_us = 0
        self.wake_us = -1
        self.runs = self.installed
        code = self.runs.code if self.profile.versions else None
        self.executor = Executor(
            self.make_host(), session_expiry_s=config.session_expiry_s, marks=self.disk.marks, code=code
        )
        inline = not self.profile.delayed_executor
        executor = self.thread = InlineExecutor(self.executor) if inline else DelayedExecutor(self, self.executor)
        self.driver = Driver(
            self,
            storage=self.disk,
            executor=executor,
            clients=self,
            clock=self.clock,
            config=config,
            configuration=self.founding,
            rng=random.Random(self.rng.getrandbits(64)),
            commit_along=True,
            marks=self.disk.marks,
            code=code,
            observer=Watcher(self),
        )
        self.server = self.driver.server
        self.ticks = Ticks(self.clock, config.tick_s)
        self.checker.started(self)
        self._plan_wake()

    def crash(self, how: str) -> None:
        """The process is gone, with everything that was not on its disk."""
        self.trace.append((self.timeline.now_us, self.node_id, f"crashes {how}"))
        if self.server is not None:
            self.checker.after(self)
        self.up = False
        self.disk.crash()
        self.driver = self.server = self.executor = None
        self.inbox = []
        self.crashed(self)

    # --- DiskHooks ---

    def effect(self, name: str) -> None:
        """An effect is about to happen, or has just happened."""
        if self.fuse:
            self.fuse -= 1
            if not self.fuse:
                raise SimulatedCrash(name)

    def spend_us(self, us: int) -> None:
        """The loop waits."""
        self.spent_us += us

    def wrote(self, hard_state: HardState | None, first_index: int, entries: Sequence[LogEntry]) -> None:
        """A write is about to happen."""
        self.checker.wrote(self, hard_state, first_index, entries)

    def compacting(self) -> None:
        """Entries are about to vanish into a snapshot: judge them while they can be seen."""
        if self.server is not None:
            self.checker.after(self)

    # --- Net and Clients ---

    def send(self, message: Message, /) -> None:
        """Hand a message to the network."""
        if self.fuse:
            self.effect("send")
        self.checker.sends(self, message)
        dest = self.nodes.get(message.dest)
        if dest is None:
            return
        if self.profile.wire:
            message = codec.decode_message(codec.encode_message(message))
        start = 0 if self.profile.ghosts else dest.start
        arriving = (start, MessageEvent(message))
        self.network.carry(self.node_id, message.dest, dest.deliver, arriving, later_us=self.spent_us)

    def is_gone(self, client: Any) -> bool:
        """Nobody goes without a word."""
        return False

    def role(self, client: Any) -> str:
        """Whoever is simulated may do all."""
        return "admin"

    def key(self, client: Any) -> str:
        """Nobody needs one."""
        return ""

    def send_client(self, client: Any, frame: bytes, /) -> bool:
        """Hand an answer to the network."""
        if self.fuse:
            self.effect("answer")
        if client.address in self.network.full:
            self.network.counts["queue was full"] += 1
            return False
        arriving = (self, self.start, frame)
        carried = self.network.carry(
            self.node_id, client.address, client.deliver, arriving, later_us=self.spent_us, peers=False
        )
        if not carried and self.profile.guest and type(codec.decode_reply(frame)) is codec.Published:
            client.lost(self.node_id)
        return True

    # --- The loop ---

    def deliver(self, what: tuple[int, Event]) -> None:
        """Something arrives from the network."""
        start, event = what
        if not self.up or 0 < start != self.start:
            return  # its connection broke with the process it was meant for (0: for whichever runs then)
        if self.timeline.now_us < self.busy_until_us or self.inbox:
            self.inbox.append(event)
            self._wake_at(self.busy_until_us)
        else:
            self.process([event])

    def deliver_frame(self, what: tuple[int, Any, bytes]) -> None:
        """A client's frame arrives."""
        start, client, frame = what
        self.deliver((start, ClientEvent(client, frame)))

    def post(self, event: Event) -> None:
        """Something happens at the node itself: its transport says that a connection broke or came up."""
        self.deliver((self.start, event))

    def wake(self) -> None:
        """The executor is done with something."""
        self._wake_at(max(self.timeline.now_us, self.busy_until_us))

    def _wake_at(self, at_us: int) -> None:
        if not 0 <= self.wake_us <= at_us:
            self.wake_us = at_us
            self.timeline.at(at_us, self._on_wake, self.start)

    def _on_wake(self, start: int) -> None:
        now_us = self.timeline.now_us
        if not self.up or start != self.start or now_us != self.wake_us:
            return  # meanwhile an earlier one was due, or another process
        self.wake_us = -1
        if now_us < self.busy_until_us:
            self._wake_at(self.busy_until_us)
            return
        batch, self.inbox = self.inbox, []
        self.process(batch)

    def _plan_wake(self) -> None:
        """See to it that the next tick, and what is urgent, finds this node awake."""
        assert self.driver is not None
        wait_us = int(self.ticks.wait_s(self.driver.due_s) / self.clock.rate * 1e6) + 1
        self._wake_at(max(self.timeline.now_us + self.spent_us + wait_us, self.busy_until_us))

    def process(self, batch: list[Event]) -> None:
        """One turn of the loop: time first, then what arrived."""
        timeline, driver = self.timeline, self.driver
        assert driver is not None
        self.spent_us = 0
        elapsed = self.ticks.take()
        timeline.events += len(batch) + (elapsed > 0)
        self.trace.extend([(timeline.now_us, self.node_id, event) for event in batch])
        try:
            driver.process_events([TickEvent(elapsed), *batch] if elapsed else batch)
            self.checker.after(self)
            answered = [
                event.message.source
                for event in batch
                if type(event) is MessageEvent and type(event.message) is AppendEntriesResponse
            ]
            self.checker.settled(self, answered)
        except SimulatedCrash as crash:
            self.crash(f"at an effect: {crash}")
            return
        except StorageFailed:
            self.crash("because its disk failed")
            return
        except NodeStopped as stop:
            self.refused(stop)
            return
        except (InvariantViolation, KeyboardInterrupt):
            raise
        except BaseException as error:  # whatever user code raises
            raise InvariantViolation("no error", f"node {self.node_id}: {said(error)}") from error
        self.busy_until_us = timeline.now_us + self.spent_us
        if self.wake_us < 0 or driver.due_s is not None:
            self._plan_wake()
        self.spent_us = 0

    def refused(self, stop: NodeStopped) -> None:
        """The process stops with a reason: right only if its code was changed, or is too old for what is committed."""
        runs, agreed = self.runs, self.checker.agreed_version
        if not runs.changed and runs.version >= agreed:
            raise InvariantViolation("no error", f"node {self.node_id}: {said(stop)}") from stop
        self.installed = Installed(max(runs.version, agreed))
        self.crash("for its code is refused")

    def pause(self, us: int) -> None:
        """The process stands still (SIGSTOP); its clocks go on."""
        self.busy_until_us = self.paused_until_us = max(self.busy_until_us, self.timeline.now_us + us)

    @property
    def occupied(self) -> bool:
        """Whether its machine holds at a command, or has something to do that takes long."""
        if self.executor is None:
            return False
        crawls = type(self.thread) is DelayedExecutor and any(map(_crawls, self.thread.queue))
        return crawls or self.executor.hold is not None

    def resume(self) -> None:
        """Whatever keeps the process waiting is over."""
        if self.up and self.busy_until_us > self.timeline.now_us:
            self.busy_until_us = self.paused_until_us = self.timeline.now_us
            self.wake()
