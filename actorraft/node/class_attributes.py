"""Attributes of a machine's class that commands change: no instance's, so no snapshot would have them.

`items = []` in the body of a class is one list for all instances. It is named and warned of once; and since what was
acknowledged must not be lost to a beginner's slip, what differs from the class as imported rides in the snapshot.

Invariant:  an attribute that no command has changed is never taken along: a constant that newer code sets otherwise
            stays as the newer code has it.
Not here:   what commands keep in modules; `statemachines.testing.check_determinism` shows that.
"""

from __future__ import annotations

import pickle
import sys
import types
from typing import Any, NamedTuple

from actorraft.loggers import guarded_logger
from actorraft.machine import Method
from actorraft.pickling import canonical
from actorraft.pickling.definitions import Definitions
from actorraft.pickling.exceptions import name as class_name
from actorraft.pickling.names import name_of

logger = guarded_logger("actorraft")

_ABSENT: Any = object()
_OURS = frozenset(("actorraft", "statemachines", *sys.stdlib_module_names))
_RESERVED = frozenset(("machine_version", "machine_name", "wake_at"))

Key = tuple[str, str, str]  # module and qualified name of the class, name of the attribute


class _First(NamedTuple):
    """An attribute as it was before any command."""

    digest: bytes
    pickled: bytes


class ClassAttributes:
    """Those of one machine class and its bases, as far as they hold data.

    Args:
        cls: before any command has run on an instance of it.
    """

    def __init__(self, cls: type, definitions: Definitions) -> None:
        self._definitions = definitions
        owners = [each for each in cls.__mro__ if str(each.__module__).partition(".")[0] not in _OURS]
        self._owners = {name_of(each): each for each in owners}
        self._first: dict[Key, _First] = {}
        self._foreign: set[Key] = set()  # cannot be taken along
        self._said: set[Key] = set()
        for key, value in self._data().items():
            try:
                self._first[key] = _First(canonical.digest(value), pickle.dumps(value))
            except BaseException:
                self._foreign.add(key)

    def _data(self) -> dict[Key, Any]:
        return {
            (*owner_name, name): value
            for owner_name, owner in self._owners.items()
            for name, value in vars(owner).items()
            if not name.startswith("__") and not name.startswith("_abc_") and name not in _RESERVED and _is_data(value)
        }

    def changed(self) -> dict[Key, Any]:
        """Return those that are no longer as they were; each is warned of once, by name."""
        found: dict[Key, Any] = {}
        for key, value in self._data().items():
            first = self._first.get(key)
            if key not in self._foreign and (first is None or canonical.digest(value) != first.digest):
                found[key] = value
        for key in found.keys() - self._said:
            self._said.add(key)
            owner, name = self._owners[key[:2]], key[2]
            logger.warning(
                "%s.%s is an attribute of the class, and commands change it: every instance in a process shares it. It "
                "is kept in snapshots all the same; better set it in __init__: self.%s = ...",
                class_name(owner), name, name,
            )  # fmt: skip
        return found

    def restore(self, changed: dict[Key, Any]) -> None:
        """Make them what `changed` was taken from; those that it does not name are as they were at first."""
        for key in self._data().keys() - changed.keys() - self._foreign:
            first, owner = self._first.get(key), self._owners[key[:2]]
            if first is None:
                delattr(owner, key[2])
            elif canonical.digest(vars(owner)[key[2]]) != first.digest:
                setattr(owner, key[2], pickle.loads(first.pickled))
        for key, value in changed.items():
            owner_of = self._owners.get(key[:2])
            if owner_of is not None:
                setattr(owner_of, key[2], value)


def _is_data(value: Any) -> bool:
    kind = type(value)
    if issubclass(kind, type | types.ModuleType | Method) or callable(value):
        return False
    return getattr(kind, "__get__", _ABSENT) is _ABSENT
