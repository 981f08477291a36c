"""What type checkers make of a user's code. Never run: test_types.py hands it to mypy --strict and to pyright.

Each line marked `# wrong` must be refused by both, all others accepted.
"""

from __future__ import annotations

import abc
from collections.abc import Awaitable
from typing import Any, assert_type

import actorraft as ar
from actorraft import (
    Actor,
    ActorOptions,
    ActorRef,
    Client,
    Cluster,
    CommandObjects,
    ReplicatedStateMachine,
    ResultFuture,
    StateMachine,
    command,
    connect,
    connect_async,
    context,
    query,
    spawn,
)
from actorraft.client.events import ClusterEvent
from actorraft.testing import context as testing_context


class Bank(StateMachine):
    def __init__(self, currency: str = "EUR") -> None:
        self.currency = currency
        self.accounts: dict[str, int] = {}

    @command
    def deposit(self, name: str, amount: int) -> int:
        self.accounts[name] = self.accounts.get(name, 0) + amount
        context().publish("deposits", (name, amount))
        return self.accounts[name]

    @query
    def balance(self, name: str, *, default: int = 0) -> int:
        return self.accounts.get(name, default)

    def helper(self) -> str:
        return self.currency


class Savings(Bank):
    @command
    def deposit(self, name: str, amount: int) -> int:
        return super().deposit(name, 2 * amount)

    def snapshot(self) -> dict[str, int]:
        return self.accounts

    def restore(self, state: dict[str, int]) -> None:
        self.accounts = state


class Base(StateMachine, abc.ABC):
    @command
    @abc.abstractmethod
    def add(self, number: int) -> None: ...


class Sum(Base):
    total = 0

    @command
    def add(self, number: int) -> None:
        self.total += number


class Store:
    """No StateMachine, and a method called query: the decorators are reached through the package."""

    @ar.command
    def put(self, key: str, value: bytes) -> bool:
        return bool(key and value)

    @ar.query
    def query(self, key: str) -> bytes | None:
        return key.encode()


class Adder:
    def apply(self, number: int) -> int:
        return number


def local() -> None:
    bank = Bank("USD")
    assert_type(bank.deposit("ann", 10), int)
    assert_type(bank.deposit.submit("ann", amount=10), ResultFuture[int])
    with testing_context(time=5.0) as current:
        assert_type(current.time, float)
    bank.deposit("ann", "ten")  # wrong
    bank.deposit("ann")  # wrong
    bank.deposit.submit("ann", 1, 2)  # wrong


async def remote() -> None:
    cluster = ReplicatedStateMachine(Bank, currency="USD").spawn(5)
    with cluster:
        bank = cluster.proxy()
        assert_type(bank, Bank)
        assert_type(bank.deposit("ann", 10), int)
        assert_type(bank.deposit.submit("ann", 5), ResultFuture[int])
        assert_type(bank.deposit.submit("ann", 5).result(), int)
        assert_type(await bank.deposit.submit("ann", 5), int)
        assert_type(bank.deposit.aio("ann", 1), Awaitable[int])
        assert_type(await bank.deposit.aio("ann", 1), int)
        assert_type(bank.balance("ann", default=3), int)
        assert_type(cluster.client().proxy(timeout=1.0, consistency="stale"), Bank)
        bank.balance("ann", 3)  # wrong
        bank.withdraw("ann", 3)  # wrong
        await bank.deposit.aio(1, 1)  # wrong


def accounts_of(bank: Bank) -> dict[str, int]:
    return bank.accounts


class Answering:
    """A machine whose reads are data."""

    def apply(self, command: tuple[str, bytes]) -> None: ...

    def query(self, key: str) -> bytes | None:
        return None


def amounts(state: dict[str, int]) -> list[int]:
    return list(state.values())


async def in_a_loop() -> None:
    async with await ReplicatedStateMachine(Bank).spawn_async(3, durability="os", transport="tcp") as cluster:
        assert_type(cluster, Cluster[Bank])
        assert_type(cluster.query(accounts_of), dict[str, int])
        assert_type(cluster.query(Bank.helper, consistency="stale", to="any"), str)
        assert_type(cluster.query(lambda bank: len(bank.accounts)), int)
        assert_type(cluster.query(lambda bank: bank.balance("ann"), to="any"), int)
        cluster.query("no callable, and a Bank has no query of its own")  # wrong
        cluster.query(lambda bank: bank.acounts)  # wrong
        assert_type(cluster.nodes[cluster.leader()].pid, int | None)
        async for event in cluster.events():
            assert_type(event, ClusterEvent)
        for published in cluster.watch("deposits"):
            assert_type(published.index, int)
        async with await connect_async(cluster.endpoints, Bank) as client:
            assert_type(client, Client[Bank])
            assert_type(await client.query_async(Bank.helper, to=2), str)
            assert_type(await client.query_async(lambda bank: sorted(bank.accounts)), list[str])
        cluster.query(Bank.helper, consistency="stail")  # wrong
        await cluster.query_async(Bank.helper, to="leeder")  # wrong
        cluster.proxy(consistency="fresh")  # wrong
    await ReplicatedStateMachine(Bank).spawn_async(3, durability="ssd")  # wrong
    ReplicatedStateMachine(Bank).spawn(3, transport="udp")  # wrong
    assert_type(connect("bank/client", Bank), Client[Bank])


def others() -> None:
    savings = ReplicatedStateMachine(Savings).spawn(1).proxy()
    assert_type(savings, Savings)
    assert_type(savings.deposit("ann", 1), int)
    assert_type(savings.balance("ann"), int)
    store = ReplicatedStateMachine(Store).spawn().proxy()
    assert_type(store.query("key"), bytes | None)
    assert_type(store.put.submit("key", b"value"), ResultFuture[bool])
    assert_type(ReplicatedStateMachine(Adder).spawn(3).execute(5), Any)
    assert_type(ReplicatedStateMachine(Sum).spawn(3).proxy().add(5), None)
    answering = ReplicatedStateMachine(Answering).spawn(3)
    assert_type(answering.query("key"), bytes | None)
    answering.query(5)  # wrong
    by_state = ReplicatedStateMachine(CommandObjects, dict).spawn(3)
    assert_type(by_state.query(amounts), list[int])
    assert_type(connect({0: "tcp://127.0.0.1:7101"}).query(amounts), list[int])
    ReplicatedStateMachine(Bank, currency=3)  # wrong
    ReplicatedStateMachine(Bank, "USD", 5)  # wrong
    ReplicatedStateMachine(Bank())  # wrong


class Greeter(Actor):
    def __init__(self, greeting: str, *, loud: bool = False) -> None:
        self.greeting = greeting.upper() if loud else greeting

    async def receive(self, message: str) -> str:
        if self.sender is not None:
            self.sender.tell(message)
        self.after(1.0, "later").cancel()
        return f"{self.greeting} {message}"

    def greet(self, name: str) -> str:
        return f"{self.greeting} {name}"

    async def on_failure(self, error: BaseException, message: object) -> None:
        self.stop()


def any_actor(ref: ActorRef) -> int | None:
    return ref.pid


def actors() -> None:
    ref = spawn(Greeter, "hello", loud=True)
    assert_type(ref, ActorRef[Greeter])
    assert_type(ref.proxy(), Greeter)
    assert_type(ref.proxy().greet("ann"), str)
    assert_type(ActorOptions(name="g", concurrency=3).spawn(Greeter, "hello"), ActorRef[Greeter])
    assert_type(any_actor(ref), int | None)
    assert_type(ActorOptions(replicas=3).spawn(Greeter, "hello").cluster, Cluster[Any])
    spawn(Greeter)  # wrong
    spawn(Greeter, 5)  # wrong
    spawn(Greeter, "hello", quiet=True)  # wrong
    ActorOptions().spawn(Greeter, "hello", loud="yes")  # wrong
    spawn(Bank)  # wrong
    ref.proxy().greet(5)  # wrong
    ref.proxy().leave()  # wrong
