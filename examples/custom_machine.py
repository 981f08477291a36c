"""A machine with everything a machine may have: log time, randomness, snapshots, a unit test without a cluster.

Run: `python examples/custom_machine.py`.
"""

from __future__ import annotations

from typing import Any

from actorraft import ReplicatedStateMachine, StateMachine, command, context, query
from actorraft.testing import context as test_context


class Raffle(StateMachine):
    """Tickets are bought while it is open; then one of them is drawn.

    Every node draws the same one: time and dice come from `context()`, never from the node.
    """

    def __init__(self, open_s: float) -> None:
        self.open_s = open_s
        self.closes_at: float | None = None
        self.tickets: list[str] = []
        self.winner: str | None = None

    @command
    def buy(self, name: str) -> int:
        """Return the number of the ticket. The first one opens the raffle."""
        now = context().time
        if self.closes_at is None:
            self.closes_at = now + self.open_s
        if now >= self.closes_at:
            raise ValueError("the raffle is closed")
        self.tickets.append(name)
        return len(self.tickets)

    @command
    def draw(self) -> str:
        """Draw, once; return the winner."""
        if self.winner is None:
            self.winner = context().random.choice(self.tickets)
        return self.winner

    @query
    def sold(self) -> int:
        """Return how many tickets are sold."""
        return len(self.tickets)

    def snapshot(self) -> Any:
        """Return what `restore` needs. Without these two the instance's attributes would be taken: the same, here."""
        return {"closes_at": self.closes_at, "tickets": self.tickets, "winner": self.winner}

    def restore(self, state: Any) -> None:
        """Take it over, on an instance built with the constructor's arguments."""
        self.closes_at, self.tickets, self.winner = state["closes_at"], state["tickets"], state["winner"]


# On a plain instance a command just runs: a unit test needs no cluster.
local = Raffle(open_s=60)
with test_context(time=1000.0, serial=1):
    assert local.buy("ann") == 1

with ReplicatedStateMachine(Raffle, open_s=3600).spawn(3) as cluster:
    raffle = cluster.proxy()
    numbers = [raffle.buy.submit(name) for name in ("ann", "bob", "cleo")]
    print("tickets:", [number.result() for number in numbers])
    print("winner: ", raffle.draw())
    for node_id in cluster.nodes:  # every replica drew the same
        print(f"node {node_id}:  {cluster.query(lambda state: state.winner, to=node_id)}")
