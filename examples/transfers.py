"""Two replicated actors move money between them while their leaders die: `python -m examples.transfers`.

A bank takes the money off its own account and tells the other bank to put it on. That message is an effect: it is kept
by all three replicas until the other bank has taken it, sent again by whoever leads next, and taken once. So money may
be under way, but is never lost and never made.
"""

from __future__ import annotations

import random
import time
from typing import Any, cast

from actorraft import Actor, ActorOptions, ActorRef, query
from actorraft.cluster.replicated_actor import ReplicatedActorRef


class Bank(Actor):
    """Holds an amount, and knows what it has sent and got."""

    def __init__(self, amount: int) -> None:
        self.amount = amount
        self.sent = self.got = self.confirmed = 0

    def receive(self, message: int) -> int:
        """Take money from the other bank."""
        self.amount += message
        self.got += 1
        return message

    def send(self, other: ActorRef[Any], amount: int) -> bool:
        """Send money to the other bank, if there is enough."""
        if amount > self.amount:
            return False
        self.amount -= amount
        self.sent += 1
        self.ask(other, amount, then=Bank.on_taken)
        return True

    def on_taken(self, _: int) -> None:
        """The other bank has it."""
        self.confirmed += 1

    @query
    def books(self) -> tuple[int, int, int, int]:
        """How much there is, how many transfers were sent, confirmed and got."""
        return self.amount, self.sent, self.confirmed, self.got


def move(transfers: int, kills: int, seed: int = 0) -> tuple[list[tuple[int, int, int, int]], int]:
    """Move money back and forth and kill leaders meanwhile; return both banks' books, and how many leaders died."""
    dice = random.Random(seed)
    banks = [cast(ReplicatedActorRef, ActorOptions(replicas=3).spawn(Bank, 1_000)) for _ in range(2)]
    calls = []
    killed = 0
    for number in range(transfers):
        source = number % 2
        calls.append(banks[source].proxy(timeout=None).send.submit(banks[1 - source], dice.randint(1, 20)))
        if killed < kills and number % (transfers // max(kills, 1)) == transfers // kills // 2:
            bank = dice.choice(banks)
            node = bank.cluster.nodes[bank.cluster.wait_for_leader()]
            node.kill()
            node.restart()
            killed += 1
    sent = sum(call.result() for call in calls)
    while True:
        books = [bank.proxy(timeout=None).books() for bank in banks]
        if sum(book[2] for book in books) == sent:
            break
        time.sleep(0.01)
    for bank in banks:
        bank.kill()
    return books, killed


def main() -> None:
    """Run it."""
    books, killed = move(transfers=100, kills=3)
    amounts, sent, confirmed, got = (list(column) for column in zip(*books, strict=True))
    assert sum(sent) == sum(confirmed) == sum(got)
    print(f"{sum(got)} transfers, {killed} leaders killed, and there are still {sum(amounts)}")


if __name__ == "__main__":
    main()
