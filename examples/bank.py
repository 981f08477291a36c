"""A user's class, replicated: five processes, one of which may die at any time. Run: `python examples/bank.py`."""

from actorraft import ReplicatedStateMachine, StateMachine, command, query


class Bank(StateMachine):
    """Accounts in one currency."""

    def __init__(self, currency: str = "EUR") -> None:
        self.currency = currency
        self.accounts: dict[str, int] = {}

    @command  # goes through the log; runs once on every node, in log order
    def deposit(self, name: str, amount: int) -> int:
        """Add to an account; return what is there now."""
        self.accounts[name] = self.accounts.get(name, 0) + amount
        return self.accounts[name]

    @query  # reads only; never logged; linearizable unless asked otherwise
    def balance(self, name: str) -> int:
        """Return what is there."""
        return self.accounts.get(name, 0)


cluster = ReplicatedStateMachine(Bank, currency="USD").spawn(5)  # 5 OS processes; returns once a leader is ready
bank = cluster.proxy()  # typed as Bank
print("deposit 10:", bank.deposit("ann", 10))  # committed by a majority and applied
print("balance:   ", bank.balance("ann"))

future = bank.deposit.submit("ann", 5)  # a future of the same call; thousands may be outstanding
print("deposit 5: ", future.result())

leader = cluster.leader()
assert leader is not None
cluster.nodes[leader].kill()  # SIGKILL; the others elect another, the client finds it
print("after the leader was killed:", bank.deposit("ann", 1))
print(cluster.status())
cluster.close()
