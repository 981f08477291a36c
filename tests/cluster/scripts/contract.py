from actorraft import ReplicatedStateMachine, StateMachine, command, query


class Bank(StateMachine):
    def __init__(self, currency="EUR"):
        self.currency, self.accounts = currency, {}

    @command  # goes through the log; runs once on every node, in log order
    def deposit(self, name: str, amount: int) -> int:
        self.accounts[name] = self.accounts.get(name, 0) + amount
        return self.accounts[name]

    @query  # reads only; never logged; linearizable unless asked otherwise
    def balance(self, name: str) -> int:
        return self.accounts.get(name, 0)


cluster = ReplicatedStateMachine(Bank, currency="USD").spawn(5)  # 5 OS processes; returns once a leader is ready
bank = cluster.proxy()  # typed as Bank
assert bank.deposit("ann", 10) == 10  # → 10, committed by a majority and applied
assert bank.balance("ann") == 10  # → 10
future = bank.deposit.submit("ann", 5)  # a future of the same call; thousands may be outstanding
assert future.result() == 15
cluster.close()  # or: with ReplicatedStateMachine(Bank).spawn(5) as cluster: ...
print("done")
