"""The machine of these tests, importable by the nodes."""

from __future__ import annotations

from actorraft import StateMachine, command, query


class Bank(StateMachine):
    """Accounts."""

    def __init__(self) -> None:
        self.accounts: dict[str, int] = {}

    @command
    def deposit(self, name: str, amount: int) -> int:
        """Add to an account; return what is there now."""
        self.accounts[name] = self.accounts.get(name, 0) + amount
        return self.accounts[name]

    @query
    def balance(self, name: str) -> int:
        """Return what is there."""
        return self.accounts.get(name, 0)
