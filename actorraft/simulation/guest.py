"""A user's machine as bad as users' machines are, run by the production host: for seeds that ask for it.

It raises exceptions of every odd kind, wants clock entries, publishes, lets its hooks fail for a while, and some of its
commands and reads take longer than clients wait before they ask again (node.py gives these their time).
Else it is the machine of machine.py: a register per key, and a ledger of what was applied how often.

Invariant:  every method is deterministic; what it raises is equal on every node.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec

from actorraft.machine import CommandContext, StateMachine, command, context, query

CRAWL = b"crawl"  # in a frame: what it holds takes long


class Mood:
    """What is different from node to node, and no part of any state: how much memory there is."""

    out_of_memory = 0  # so many times a command, or a restore, finds none

    def __reduce__(self) -> tuple[type[Mood], tuple[()]]:
        return Mood, ()  # one is as good as another


class Guest(StateMachine):
    """Registers, ledger, timers, events, and hooks that can be made to fail."""

    def __init__(self, mood: Mood) -> None:
        self._mood = mood
        self.registers: dict[str, str] = {}
        self.applied: dict[int, int] = {}  # command id -> how often it was applied
        self.timers: dict[int, float] = {}  # command id -> log time at which it is due
        self.fired: dict[int, float] = {}  # command id -> log time at which it was
        self.clocks = 0  # clock entries
        self.sick = ""  # the hook that fails now
        self.last_serial = -1
        self.first_time = 0.0
        self.last_time = 0.0
        self.complaints: list[str] = []

    # --- As in machine.py ---

    @command
    def put(self, command_id: int, key: str, value: str) -> bool:
        """Set."""
        self._note(command_id)
        self.registers[key] = value
        context().publish(key, value)
        return True

    @command
    def append(self, command_id: int, key: str, value: str) -> bool:
        """Add at the end."""
        self._note(command_id)
        self.registers[key] = self.registers.get(key, "") + value
        context().publish(key, value)
        return True

    @command
    def cas(self, command_id: int, key: str, expected: str | None, value: str) -> bool:
        """Set if it is what was expected."""
        self._note(command_id)
        if self.registers.get(key) != expected:
            return False
        self.registers[key] = value
        return True

    @command
    def delete(self, command_id: int, key: str) -> bool:
        """Remove."""
        self._note(command_id)
        return self.registers.pop(key, None) is not None

    @command
    def get_logged(self, command_id: int, key: str) -> str | None:
        """Read through the log."""
        self._note(command_id)
        return self.registers.get(key)

    @query
    def get(self, key: str) -> str | None:
        """Read one register."""
        return self.registers.get(key)

    @query
    def crawl(self, key: str) -> str | None:
        """Read one register, slowly."""
        return self.registers.get(key)

    # --- What only guests do ---

    @command
    def crawl_put(self, command_id: int, key: str, value: str) -> bool:
        """Set, slowly."""
        return self.put(command_id, key, value)

    @command
    def fail(self, command_id: int, key: str, kind: int) -> NoReturn:
        """Change something, and raise; a command that raises midway is not rolled back."""
        self._note(command_id)
        self.registers["failed"] = str(command_id)
        ODD[kind % len(ODD)]()
        raise AssertionError("an odd error did not raise")

    @command
    def hunger(self, command_id: int, key: str) -> int:
        """Need memory, which this node may not have, in the middle of it."""
        self._note(command_id)
        self.registers["hunger"] = str(command_id)
        if self._mood.out_of_memory:
            self._mood.out_of_memory -= 1
            raise MemoryError("of a test")
        return command_id

    @command
    def misspell(self, command_id: int, key: str) -> NoReturn:
        """Import what is on no node."""
        self._note(command_id)
        import actorraft.no_such_module  # type: ignore[import-not-found]

        raise AssertionError(f"there is a {actorraft.no_such_module}")

    @command
    def later(self, command_id: int, key: str, delay_ms: int) -> None:
        """Set a timer."""
        self._note(command_id)
        self.timers[command_id] = context().time + delay_ms / 1000

    @command
    def sicken(self, command_id: int, key: str, hook: str) -> None:
        """Let a hook fail from now on; "" lets none."""
        self._note(command_id)
        self.sick = hook

    def _note(self, command_id: int) -> None:
        self.applied[command_id] = self.applied.get(command_id, 0) + 1
        self._look(context())

    def _look(self, now: CommandContext) -> None:
        if now.serial <= self.last_serial or now.time < self.last_time:
            self.complaints.append(f"index {now.index}: serial {now.serial} or time {now.time} fell")
        self.last_serial, self.last_time = now.serial, now.time
        if not self.first_time:
            self.first_time = now.time

    # --- Hooks ---

    @property
    def wake_at(self) -> Any:
        """When the next timer is due."""
        if self.sick == "wake_at":
            Unprintable.throw()
        return min(self.timers.values(), default=None)

    def on_clock(self) -> None:
        """Fire what is due."""
        now = context()
        self.clocks += 1
        self._look(now)
        for command_id, due_s in list(self.timers.items()):
            if due_s <= now.time:
                del self.timers[command_id]
                self.fired[command_id] = now.time
                now.publish("timers", str(command_id))
        if self.sick == "on_clock":
            raise SystemExit("a clock entry")

    def digest(self) -> bytes:
        """Return a digest of everything."""
        if self.sick == "digest":
            Unprintable.throw()
        return self.fingerprint()

    def fingerprint(self) -> bytes:
        """Return a digest of everything, for the judge."""
        state = {name: sorted(value.items()) if type(value) is dict else value for name, value in self._state().items()}
        return hashlib.blake2b(msgspec.msgpack.encode(sorted(state.items())), digest_size=16).digest()

    def snapshot(self) -> Any:
        """Return everything."""
        if self.sick == "snapshot":
            raise KeyboardInterrupt("a snapshot")
        return self._state()

    def restore(self, state: Any) -> None:
        """Become what a snapshot holds, or some of it, if there is no memory for more."""
        if self._mood.out_of_memory:
            self._mood.out_of_memory -= 1
            self.registers, self.applied = dict(state["registers"]), {}
            raise MemoryError("of a restore")
        vars(self).update(state)

    def _state(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_mood"}


# --- What it raises ---


class Unprintable(Exception):
    """Cannot be put into words."""

    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __str__

    @classmethod
    def throw(cls) -> NoReturn:
        """Raise one."""
        raise cls


class Unpicklable(Exception):
    """Has a lock."""

    def __init__(self) -> None:
        super().__init__("held")
        self.lock = threading.Lock()


class Unreducible(Exception):
    """Refuses to be pickled, and leaves while it is asked."""

    def __reduce__(self) -> NoReturn:
        raise SystemExit("while it is pickled")


class Picky(Exception):
    """Cannot be rebuilt from its arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("two numbers")
        self.sum = one + two


class Liar(Exception):
    """Says that it is of another class, or rather does not."""

    @property
    def __class__(self) -> type:
        raise KeyError("no class")

    @__class__.setter
    def __class__(self, _: object) -> None:
        raise KeyError("no class")


class Annotated(Exception):
    """Notes that are none."""

    def __init__(self) -> None:
        super().__init__("noted")
        self.__notes__ = [Unprintable(), 3]  # type: ignore[list-item]


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Takes no attributes."""

    code: int = 7


class Slotted(Exception):
    """Has one slot."""

    __slots__ = ("code",)

    def __init__(self) -> None:
        self.code = 7


class Ending(BaseException):
    """No Exception."""


class Silent(Exception):
    """Answers every attribute."""

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


def _thrower(make: Callable[[], BaseException]) -> Callable[[], NoReturn]:
    def throw() -> NoReturn:
        raise make()

    return throw


def _chained() -> NoReturn:
    try:
        Unprintable.throw()
    except Unprintable as error:
        raise Picky(1, 2) from error


ODD: tuple[Callable[[], NoReturn], ...] = (
    _thrower(lambda: ValueError("an ordinary one")),
    Unprintable.throw,
    _thrower(Unpicklable),
    _thrower(Unreducible),
    _thrower(lambda: Picky(1, 2)),
    _thrower(Liar),
    _thrower(Annotated),
    _thrower(Frozen),
    _thrower(Slotted),
    _thrower(Ending),
    _thrower(Silent),
    _thrower(lambda: StopIteration(3)),
    _thrower(lambda: SystemExit(3)),
    _thrower(lambda: KeyboardInterrupt()),
    _thrower(lambda: GeneratorExit()),
    _thrower(lambda: ExceptionGroup("two", [ValueError("one"), Unprintable()])),
    _chained,
)
