"""The machine that the seeded world replicates: a register per key, and a ledger of what was applied how often.

It stands where a user's machine stands (executor.py calls it as it calls the host of one), and keeps what the checker
asks for at the end: how often each command was applied, and whether serials and log time ever fell.

Shape:      a command is [method, command id, key, ...]; a query is ["get", key].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import msgspec

from actorraft.machine import CommandContext


class SimHost:
    """Registers and ledger; deterministic, plain data."""

    takes_many = False

    def __init__(self) -> None:
        self.looking = CommandContext()
        self.registers: dict[str, str] = {}
        self.applied: dict[int, int] = {}  # command id -> how often it was applied
        self.last_serial = -1
        self.first_time = 0.0
        self.last_time = 0.0
        self.complaints: list[str] = []
        self.wake_at: float | None = None

    def apply_in_order(self, commands: Sequence[Any], context: CommandContext) -> list[Any]:
        """Apply the commands of one entry; return their results. None stands where one was given up."""
        results: list[Any] = []
        for serial, command in enumerate(commands, context.serial):
            context.position, context.serial = len(results), serial
            results.append(None if command is None else self._apply(command, context))
        return results

    def end_session(self, client_id: int) -> None:
        """Nothing here belongs to a session."""

    def _apply(self, command: Any, context: CommandContext) -> Any:
        method, command_id, key, *arguments = command
        self.applied[command_id] = self.applied.get(command_id, 0) + 1
        if context.serial <= self.last_serial or context.time < self.last_time:
            self.complaints.append(f"index {context.index}: serial {context.serial} or time {context.time} fell")
        self.last_serial, self.last_time = context.serial, context.time
        if not self.first_time:
            self.first_time = context.time
        registers = self.registers
        if method == "put":
            registers[key] = arguments[0]
            return True
        if method == "append":
            registers[key] = registers.get(key, "") + arguments[0]
            return True
        if method == "cas":
            if registers.get(key) != arguments[0]:
                return False
            registers[key] = arguments[1]
            return True
        if method == "delete":
            return registers.pop(key, None) is not None
        return registers.get(key)

    def query(self, request: Any) -> Any:
        """Read one register."""
        return self.registers.get(request[1])

    def queries(self, requests: Sequence[Any]) -> list[Any]:
        """Answer reads that came together."""
        return [self.query(request) for request in requests]

    def state(self) -> list[Any]:
        """Return everything, in an order of its own."""
        return [
            sorted(self.registers.items()),
            sorted(self.applied.items()),
            self.last_serial,
            self.first_time,
            self.last_time,
        ]

    def snapshot(self, write: Callable[[bytes], Any]) -> None:
        """Write everything."""
        write(msgspec.msgpack.encode(self.state()))

    def begin_anew(self) -> None:
        """Become what it was before the first command."""
        self.__init__()  # type: ignore[misc]

    def restore(self, file: BinaryIO) -> None:
        """Become what a snapshot holds."""
        state = msgspec.msgpack.decode(file.read())
        registers, applied, self.last_serial, self.first_time, self.last_time = state
        self.registers = {key: value for key, value in registers}  # noqa: C416 (lists of two, not pairs)
        self.applied = {key: value for key, value in applied}  # noqa: C416

    def fingerprint(self) -> bytes:
        """Return a digest of everything."""
        return hashlib.blake2b(msgspec.msgpack.encode(self.state()), digest_size=16).digest()

    def known_parts(self) -> dict[str, bytes]:
        """Return a digest of all that every version has."""
        return {"all": self.fingerprint()}

    sample = digest = fingerprint
