"""The machine that the nemesis's clients talk to: the shipped store, and an append that shows every repetition."""

from __future__ import annotations

from actorraft.machine import command
from statemachines.kv import KVStore


class Registers(KVStore):
    """A key-value store whose values can also grow: a command that is lost or applied twice stays visible."""

    snapshot_while_serving = KVStore.snapshot_while_serving

    @command
    def append(self, key: str, value: str) -> None:
        """Put `value` behind what is under `key`."""
        self._keep(key)
        self._data[key] = self._data.get(key, "") + value
