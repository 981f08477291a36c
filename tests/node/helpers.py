"""A node's driver under a test's hand: clients that take or do not, an executor that works when it is told to."""

from __future__ import annotations

from typing import Any

import msgspec

from actorraft import RaftConfig, StateMachine, codec, command, context, query
from actorraft.node.control import RaftControl
from actorraft.node.driver import ClientEvent, TickEvent
from actorraft.node.executor import Done, Executor, Work
from actorraft.node.host import MachineHost
from actorraft.ports import GONE
from actorraft.raft.messages import Configuration
from transports.mock import MockNetwork


class Clock:
    """Time that goes by when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def wall(self) -> float:
        return self.now_s


class Clients:
    """What was sent to whom, in order; what a client in `full` or `gone` is sent does not leave."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, codec.Reply]] = []
        self.full: dict[Any, object] = {}  # client -> what sending to it returns: False, or ports.GONE

    def send_client(self, client: Any, frame: bytes) -> object:
        if client in self.full:
            return self.full[client]
        self.sent.append((client, codec.decode_reply(frame)))
        return True

    def is_gone(self, client: Any) -> bool:
        return self.full.get(client) is GONE

    def role(self, client: Any) -> str:
        return "admin"

    def key(self, client: Any) -> str:
        return ""

    def of(self, client: Any, kind: type[Any]) -> list[Any]:
        return [reply for one, reply in self.sent if one == client and isinstance(reply, kind)]


class Publisher(StateMachine):
    """Publishes and counts; its reads are counted too."""

    def __init__(self) -> None:
        self.n = 0
        self.asked = 0

    @command
    def emit(self, events: int = 1, size: int = 0) -> int:
        for _ in range(events):
            self.n += 1
            context().publish("t", self.n if not size else "x" * size)
        return self.n

    @query
    def count(self) -> int:
        self.asked += 1
        return self.n


class Steps:
    """Does what it is given when `run` is called, all of it or some."""

    def __init__(self, machine: type[Any] = Publisher) -> None:
        self.executor = Executor(MachineHost(machine), session_expiry_s=3600.0)
        self.work: list[Work] = []
        self.done: list[Done] = []
        self.at_once = True

    def submit(self, work: Work) -> None:
        self.work.append(work)
        if self.at_once:
            self.run()

    def run(self, pieces: int = 1 << 30) -> None:
        taken, self.work = self.work[:pieces], self.work[pieces:]
        self.done += [self.executor.run(work) for work in taken]

    def poll(self) -> list[Done]:
        done, self.done = self.done, []
        return done


class Node:
    """One node, alone or of three; node 0 leads if it is told to."""

    def __init__(self, node_id: int = 0, *, members: int = 1, machine: type[Any] = Publisher, **config: Any) -> None:
        ids = range(members)
        self.clock, self.clients, self.steps = Clock(), Clients(), Steps(machine)
        config = {"digest_every_s": 0.0, "trailing_entries": 0, "check_quorum": False} | config
        self.control = RaftControl(
            MockNetwork(node_id, [one for one in ids if one != node_id]),
            executor=self.steps,
            clients=self.clients,
            clock=self.clock,
            config=RaftConfig(**config),
            configuration=Configuration(voters=frozenset(ids), next_node_id=members),
        )
        self.sequence = 0
        self.session = -1

    def lead(self) -> Node:
        self.control.become_leader()
        if len(self.control.server.voters) == 1:
            self.say("writer", codec.Register(7))
            self.session = self.clients.of("writer", codec.Registered)[0].client_id
        return self

    def say(self, client: Any, request: codec.Request) -> None:
        self.control.process_event(ClientEvent(client, codec.encode(request)))

    def call(self, *call: Any, client: Any = "writer") -> None:
        """A command of one frame."""
        body = codec.join_body([msgspec.msgpack.encode(list(call))])
        self.say(client, codec.Commands(self.session, self.sequence, self.sequence, 1, body))
        self.sequence += 1

    def read(self, client: Any, request_id: int, *call: Any, count: int = 1, **fields: Any) -> None:
        body = codec.join_body([msgspec.msgpack.encode(list(call or ("count",)))] * count)
        fields = {"consistency": "linearizable", "follower": False} | fields
        self.say(client, codec.Query(request_id, count=count, body=body, **fields))

    def tick(self, seconds: float = 0.0) -> None:
        self.clock.now_s += seconds
        self.control.process_event(TickEvent(1))

    def settle(self, pieces: int = 1 << 30) -> None:
        """Let the executor work, and the node look at it."""
        self.steps.run(pieces)
        self.control.process_events(())
