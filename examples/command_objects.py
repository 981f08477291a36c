"""Command objects on any class: the state is a plain dict, the commands are yours.

Run: `python examples/command_objects.py`.

A command is an object with `apply(self, state)`, or any callable that takes the state. It is pickled, replicated, and
applied once on every node; its class is sent once, and named after that.
"""

from dataclasses import dataclass

from actorraft import ReplicatedStateMachine


class NotEnough(Exception):
    """An account does not hold what was asked for."""


@dataclass(frozen=True)
class Transfer:
    """Move money from one account to another, if it is there."""

    source: str
    target: str
    amount: int

    def apply(self, accounts: dict[str, int]) -> int:
        """Return what is left in the source account."""
        if accounts.get(self.source, 0) < self.amount:
            raise NotEnough(f"{self.source} has {accounts.get(self.source, 0)}, not {self.amount}")
        accounts[self.source] -= self.amount
        accounts[self.target] = accounts.get(self.target, 0) + self.amount
        return accounts[self.source]


with ReplicatedStateMachine(dict, ann=100).spawn(3) as cluster:
    print("ann keeps:", cluster.execute(Transfer("ann", "bob", 5)))
    try:
        cluster.execute(Transfer("bob", "ann", 500))
    except NotEnough as error:  # your own class, raised on every node alike; the log goes on
        print("refused: ", error)
    print("a lambda: ", cluster.execute(lambda accounts: accounts.setdefault("cleo", 7)))
    print("all:      ", cluster.query(lambda accounts: dict(sorted(accounts.items()))))
