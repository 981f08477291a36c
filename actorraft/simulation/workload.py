"""Clients of the seeded world: the production client session, writing, reading and retrying, every call recorded.

Every value is written once, so that a history can be judged; every command has an id, so that the machine's ledger
tells at the end how often it was applied. A call whose outcome is unknown goes on being asked about, as
`OutcomeUnknown.resolve` does, and its record is corrected when the answer comes.

Not here:   judging (linearizability.py, world.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Protocol

from actorraft import codec
from actorraft.client.failures import Failure
from actorraft.client.reads import QueryCall
from actorraft.client.session import ClientSession
from actorraft.errors import OutcomeUnknown
from actorraft.simulation.linearizability import Operation
from actorraft.simulation.node import SimNode
from actorraft.simulation.world import World


class Call:
    """One operation under way, or done. `outcome` is None while its caller waits."""

    __slots__ = ("command_id", "operation", "outcome", "result", "was_unknown")

    def __init__(self, operation: Operation, command_id: int) -> None:
        self.operation = operation
        self.command_id = command_id  # -1 for a read
        self.outcome: str | None = None
        self.result: Any = None  # as the node said
        self.was_unknown = False  # for its caller, when its time was up


class Later:
    """What waits for the true outcome of a call that ended unknown."""

    __slots__ = ("call",)

    def __init__(self) -> None:
        self.call: Call | None = None


# What only guests (guest.py) do; none of it is in the history of the registers.
GUESTS_ONLY = ("fail", "later", "sicken", "hunger", "misspell")
HOOKS = ("", "wake_at", "on_clock", "digest", "snapshot")


class Link:
    """One connection of a client to a node: what the node answers on it comes to nobody once it is broken."""

    __slots__ = ("address", "client")

    def __init__(self, client: Station) -> None:
        self.client, self.address = client, client.address

    def deliver(self, what: tuple[SimNode, int, bytes]) -> None:
        """A node's answer arrives."""
        self.client.deliver(self, what)

    def lost(self, node_id: int) -> None:
        """A connection loses nothing in its middle: what is lost on the way ends it."""
        self.client.timeline.after(100, self._breaks, node_id)

    def _breaks(self, node_id: int) -> None:
        if self.client.links.get(node_id) is self:
            self.client.connection((node_id, False))
            self.client.timeline.after(20_000, self.client.connection, (node_id, True))


class Station:
    """A client's session, and its place in the network."""

    topic = ""  # what it watches

    def __init__(self, world: World, number: int, make_future: Callable[[], Any]) -> None:
        self.world = world
        self.timeline = world.timeline
        self.number = number
        self.address = -1 - number  # nodes count from 0 upwards, clients from -1 downwards
        self.rng = random.Random(world.rng.getrandbits(64))
        self.session = ClientSession(
            self._send,
            nonce=self.rng.getrandbits(63),
            make_future=make_future,
            frames_max=self.rng.choice((1, 2, 4)),
            frame_calls_max=self.rng.choice((1, 3, 100)),
        )
        self.links: dict[int, Link] = {}  # node -> the connection to it
        self.wake_us = -1
        for node in world.nodes.values():
            self.session.nodes.add(node.node_id)
        self.seen: list[tuple[int, Any]] = []  # (index, event)

    # --- The network's side ---

    def _send(self, node_id: int, frame: bytes) -> bool:
        node = self.world.nodes[node_id]
        link = self.links.get(node_id)
        if link is None:
            link = self.links[node_id] = Link(self)
        arriving = (node.start, link, frame)
        carried = self.world.network.carry(self.address, node_id, node.deliver_frame, arriving, peers=False)
        if not carried and self.topic and type(codec.decode_request(frame)) is codec.Watch:
            link.lost(node_id)
        return True

    def deliver(self, link: Link, what: tuple[SimNode, int, bytes]) -> None:
        """A node's answer arrives, unless its connection broke before."""
        node, start, frame = what
        if node.node_id not in self.session.nodes or (node.up and node.start != start):
            return
        if self.links.get(node.node_id) is not link:
            return
        self.timeline.events += 1
        now_s = self.timeline.now_us * 1e-6
        self.session.receive(node.node_id, codec.decode_reply(frame), now_s)
        self.turn()

    def connection(self, what: tuple[int, bool]) -> None:
        """A node's connection broke or came up."""
        node_id, up = what
        now_s = self.timeline.now_us * 1e-6
        if up:
            self.session.connected(node_id, now_s)
        else:
            self.links.pop(node_id, None)
            self.session.disconnected(node_id, now_s)
        self.turn()

    def turn(self) -> None:
        """Let the session send and expire, and take what it has for its user."""
        session, now_us = self.session, self.timeline.now_us
        session.advance(now_us * 1e-6)
        if session.results:
            for calls, values, _ in session.results:
                for (_, future, _), value in zip(calls, values, strict=True):
                    if future is not None:
                        self._succeed(future, value)
            session.results.clear()
        if session.answers:
            for queries, values in session.answers:
                for query, value in zip(queries, values, strict=True):
                    self._succeed(query.future, value)
            session.answers.clear()
        if session.published:
            for published in session.published:
                self.seen.extend((published.index, event) for event in published.values)
            session.published.clear()
        if session.failures:
            for failure in session.failures:
                self._fail(failure)
            session.failures.clear()
        deadline_s = session.deadline_s()
        if deadline_s < 1e9:
            self._wake_at(max(now_us + 1_000, int(deadline_s * 1e6) + 1))

    def _wake_at(self, at_us: int) -> None:
        if not 0 <= self.wake_us <= at_us:
            self.wake_us = at_us
            self.timeline.at(at_us, self._on_wake, None)

    def _on_wake(self, _: object) -> None:
        if self.timeline.now_us == self.wake_us:
            self.wake_us = -1
            self.timeline.events += 1
            self.turn()

    def _succeed(self, future: Any, value: Any) -> None:
        raise NotImplementedError

    def _fail(self, failure: Failure) -> None:
        raise NotImplementedError


class Run(Protocol):
    """What clients have in common, and know of the run that they are in (play.py)."""

    world: World
    operator: Operator
    mending: bool  # nothing goes wrong any more
    next_command_id: int
    last_values: dict[str, list[str | None]]  # key -> what was written of late
    calls: list[Call]  # of all clients, in the order of their beginning


class SimClient(Station):
    """A client that calls what the dice say."""

    def __init__(self, play: Run, number: int) -> None:
        super().__init__(play.world, number, Later)
        self.play = play
        self.waiting = 0  # calls whose caller waits
        self.from_start = False  # whether it watches from the first entry on
        if play.world.profile.guest and self.rng.random() < 0.6:
            self.topic = self.rng.choice(("timers", "k0", "k1", "k2"))
            self.from_start = self.rng.random() < 0.7
            self.session.watch(1, self.topic, 0 if self.from_start else None)

    def issue(self) -> None:
        """Begin one or more calls, as the dice say."""
        rng = self.rng
        for _ in range(1 if rng.random() < 0.7 else rng.randrange(1, 6)):
            self._begin()
        self.turn()

    def _begin(self) -> None:
        play, rng, random = self.play, self.rng, self.rng.random
        profile = self.world.profile
        command_id = play.next_command_id
        play.next_command_id += 1
        key_number = int(random() * profile.keys)
        appends = key_number % 3 == 0
        key = f"k{key_number}"
        value = f"{command_id}." if appends else f"{command_id}"
        dice = random()
        timeout_s = rng.choice(profile.timeouts_s)
        deadline_s = self.timeline.now_us * 1e-6 + timeout_s
        client, now_ns = self.number * 1000 + self.waiting, self.timeline.instant()
        self.waiting += 1
        operation = Operation(client, "get", key, None, None, None, "unknown", now_ns)
        if profile.guest and random() < 0.15 and self._begin_as_guest(operation, command_id, deadline_s):
            return
        if dice < 0.35:
            call = Call(operation, -1)
            crawls = profile.guest and not play.mending and random() < 0.02
            encoded = codec.encode(["crawl" if crawls else "get", key])
            consistency = "lease" if profile.config.lease_reads and random() < 0.7 else "linearizable"
            to = "any" if random() < 0.3 else "leader"
            self.session.query(QueryCall(encoded, call, deadline_s, consistency, to))
        else:
            command: list[Any]
            if appends:
                op, command = ("append", [value]) if dice < 0.9 else ("get", [])
            elif dice < 0.7:
                op, command = "put", [value]
            elif dice < 0.85:
                op, command = "cas", [rng.choice(play.last_values.get(key, [None])), value]
            elif dice < 0.95:
                op, command = "delete", []
            else:
                op, command = "get", []
            written = value if op in ("put", "append", "cas") else None
            expected = command[0] if op == "cas" else None
            call = Call(operation._replace(op=op, value=written, expected=expected), command_id)
            if profile.guest and op == "get":
                op = "get_logged"
            if written is not None:
                play.last_values.setdefault(key, [None])[1:] = [written]
            self.session.submit([(codec.encode([op, command_id, key, *command]), call, deadline_s)])
        play.calls.append(call)

    def _begin_as_guest(self, operation: Operation, command_id: int, deadline_s: float) -> bool:
        """Begin what only a guest understands; False if the dice say something else."""
        rng = self.rng
        op = rng.choice(GUESTS_ONLY)
        arguments: tuple[Any, ...] = ()
        if op == "misspell" and (not self.world.profile.holds or self.play.mending or rng.random() < 0.9):
            return False
        if op == "fail":
            arguments = (rng.randrange(1000),)
        elif op == "later":
            arguments = (rng.choice((20, 300, 2_000)),)
        elif op == "sicken":
            arguments = (rng.choice(HOOKS),)
        if self.play.mending and op == "sicken":
            arguments = ("",)
        self.command(op, operation, command_id, deadline_s, *arguments)
        return True

    def command(self, op: str, operation: Operation, command_id: int, deadline_s: float, *arguments: Any) -> Call:
        """Begin a command."""
        call = Call(operation._replace(op=op), command_id)
        encoded = codec.encode([op, command_id, operation.key, *arguments])
        self.session.submit([(encoded, call, deadline_s)])
        self.play.calls.append(call)
        return call

    def ask(self, op: str, key: str, timeout_s: float, *arguments: Any) -> Call:
        """Begin one call that somebody wants now."""
        command_id = self.play.next_command_id
        self.play.next_command_id += 1
        deadline_s = self.timeline.now_us * 1e-6 + timeout_s
        client, now_ns = self.number * 1000 + self.waiting, self.timeline.instant()
        operation = Operation(client, "get", key, None, None, None, "unknown", now_ns)
        self.waiting += 1
        if op == "crawl":
            call = Call(operation, -1)
            self.session.query(QueryCall(codec.encode([op, key]), call, deadline_s, "linearizable", "leader"))
            self.play.calls.append(call)
        else:
            call = self.command(op, operation, command_id, deadline_s, *arguments)
        self.turn()
        return call

    def _succeed(self, future: Call | Later, value: Any) -> None:
        if isinstance(future, Later):
            call = future.call
            assert call is not None
        else:
            call = future
            self.waiting -= 1
        call.outcome, call.result = "ok", value
        operation = call.operation
        result = value if operation.op in ("get", "cas", "delete") else None
        call.operation = operation._replace(status="ok", result=result, return_ns=self.timeline.instant())

    def _fail(self, failure: Failure) -> None:
        future, error, later = failure
        if isinstance(future, Later):
            call = future.call
            assert call is not None
        else:
            call = future
            self.waiting -= 1
        if isinstance(error, OutcomeUnknown):
            call.outcome = "unknown"
            call.was_unknown = True
            if later is not None:
                later.call = call
        else:
            call.outcome = "fail"
            call.operation = call.operation._replace(status="fail")


class Export:
    """A copy of the state, as `export_snapshot` makes it: a snapshot, then its chunks, all of one node."""

    def __init__(self, play: Run, node_id: int) -> None:
        self.play = play
        self.node_id = node_id
        self.committed = len(play.world.checker.committed)  # entries that must be in it
        self.acknowledged = [call for call in play.calls if call.outcome == "ok"]  # and commands
        self.snapshot_index = -1
        self.data = b""
        self.done = False
        self.failed = ""
        self._request_id = -1

    def begin(self) -> None:
        """Ask for the snapshot."""
        self._ask("snapshot")

    def _ask(self, verb: str, **arguments: Any) -> None:
        self._request_id = self.play.operator.ask(self.node_id, verb, **arguments)

    def take(self, reply: codec.AdminReply) -> bool:
        """Take an answer; False if it is not for this."""
        if reply.request_id != self._request_id:
            return False
        if reply.error:
            self.failed = reply.error
        elif self.snapshot_index < 0:
            self.snapshot_index = reply.value
            self._ask("read_snapshot", offset=0)
        else:
            _, index, chunk, last = reply.value
            if index < self.snapshot_index:
                self.failed = f"the chunk is of index {index}, the snapshot of {self.snapshot_index}"
            self.data += chunk
            self.done = last
            if not last:
                self._ask("read_snapshot", offset=len(self.data))
        return True


class Operator:
    """Whoever runs the cluster: hands over, compacts, changes the membership. It takes no for an answer."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.address = -1000
        self.requests = 0
        self.done: dict[str, int] = {}  # verb -> how many were accepted
        self.under_way: dict[int, str] = {}
        self.export: Export | None = None  # under way, or done

    def ask(self, node_id: int, verb: str, **arguments: Any) -> int:
        """Ask one node for something; return the request's number."""
        node = self.world.nodes[node_id]
        self.requests += 1
        self.under_way[self.requests] = verb
        frame = codec.encode(codec.Admin(self.requests, verb, arguments))
        self.world.network.carry(self.address, node_id, node.deliver_frame, (node.start, self, frame), peers=False)
        return self.requests

    def deliver(self, what: tuple[SimNode, int, bytes]) -> None:
        """The answer."""
        reply = codec.decode_reply(what[2])
        if isinstance(reply, codec.AdminReply):
            if self.export is not None and self.export.take(reply):
                return
            verb = self.under_way.pop(reply.request_id, "")
            if verb and not reply.error:
                self.done[verb] = self.done.get(verb, 0) + 1
