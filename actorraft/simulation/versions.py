"""Which code of the machine the processes of a node run, where a seed mixes versions; and the machine that shows it.

A deploy starts a node again with newer code; now and then with older, which must wait for the newer, or with code that
was changed and says nothing of it, which must be refused. Every command notes by which rules it was applied, every step
of a migration that it was taken, and each version keeps a count that older ones do not have; all of it is state. So
replicas are equal, and equal to one that applies the log in one go, only if there is one rule at each index everywhere.
Code that was changed unsaid applies nothing by the rules of its version.

Not here:   when it happens (faults.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO, Final, NamedTuple

import msgspec

from actorraft import codec
from actorraft.machine import CommandContext
from actorraft.node.host import MachineStopped
from actorraft.simulation.invariants import InvariantViolation
from actorraft.simulation.machine import SimHost

NEWEST: Final = 4


class Installed(NamedTuple):
    """The code that a node's next process runs."""

    version: int = 1
    changed: bool = False  # and was changed without a word: it may apply nothing by its own rules

    @property
    def code(self) -> codec.Code:
        """What it says of itself."""
        return codec.Code(self.version, "changed" if self.changed else "as agreed")

    @property
    def greeting(self) -> codec.Greeting:
        """What it tells peers."""
        return codec.Greeting(code=(self.version, self.code.fingerprint), wire=codec.WIRE)


class Heard:
    """A peer's link comes up, and it says which code it runs: an event of the loop."""

    def __init__(self, hear: Callable[[int, codec.Greeting], object], node_id: int, greeting: codec.Greeting) -> None:
        self.hear, self.node_id, self.greeting = hear, node_id, greeting

    def __call__(self) -> None:
        self.hear(self.node_id, self.greeting)

    def __repr__(self) -> str:
        return f"Heard({self.node_id} runs {self.greeting.code})"


class VersionedHost(SimHost):
    """The machine of one version of the code."""

    def __init__(self, installed: Installed) -> None:
        super().__init__()
        self.installed = installed
        self.class_name = f"Versioned {installed.version}"
        self.rules = 0
        self.ruled: dict[int, int] = {}  # command id -> by which version it was applied
        self.steps: list[list[int]] = []  # of migrations: version before it, index
        self.counts = dict.fromkeys(range(2, installed.version + 1), 0)  # version -> commands by its rules, or later

    def use_rules(self, version: int) -> None:
        """As MachineHost.use_rules."""
        self.rules = version

    def did_not_migrate(self, why: str) -> None:
        """No step fails here."""

    def migrate(self, from_version: int, context: CommandContext) -> str:
        """Take a step."""
        if any(version >= from_version for version, _ in self.steps):
            self.complaints.append(f"index {context.index}: migrated from version {from_version} again")
        self.steps.append([from_version, context.index])
        return ""

    def _apply(self, command: Any, context: CommandContext) -> Any:
        version, changed = self.installed
        if changed and version == context.machine_version:
            raise InvariantViolation("one rule", f"index {context.index} was applied by code that changed unsaid")
        self.ruled[command[1]] = context.machine_version
        for version in range(2, context.machine_version + 1):
            self.counts[version] += 1
        return super()._apply(command, context)

    def state(self) -> list[Any]:
        """Return what the version that rules knows of."""
        counts = [[version, count] for version, count in sorted(self.counts.items()) if version <= self.rules]
        return [*super().state(), self.rules, sorted(self.ruled.items()), self.steps, counts]

    def known_parts(self) -> dict[str, bytes]:
        """Return a digest of what every version has, and each count that this one has."""
        parts = {f"counts {version}": b"%d" % count for version, count in self.counts.items()}
        return {"all": self.fingerprint(), **parts}

    def begin_anew(self) -> None:
        """Become what it was before the first command."""
        self.__init__(self.installed)  # type: ignore[misc]

    def restore(self, file: BinaryIO) -> None:
        """Become what a snapshot holds: what it does not know stays as the constructor made it.

        Raises:
            MachineStopped: it is of a newer version.
        """
        *state, version, ruled, steps, counts = msgspec.msgpack.decode(file.read())
        if version > self.installed.version:
            raise MachineStopped(f"the snapshot is of version {version}, and this is {self.installed.version}")
        registers, applied, self.last_serial, self.first_time, self.last_time = state
        self.registers = {key: value for key, value in registers}  # noqa: C416 (lists of two, not pairs)
        self.applied = {key: value for key, value in applied}  # noqa: C416
        self.ruled = {key: value for key, value in ruled}  # noqa: C416
        self.steps = steps
        self.counts = dict.fromkeys(range(2, self.installed.version + 1), 0) | {key: value for key, value in counts}  # noqa: C416
