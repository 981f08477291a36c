"""A machine in this process, reached with the bytes that a client would send."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import msgspec

from actorraft.machine import CommandContext
from actorraft.node.host import MachineHost
from actorraft.pickling.encoder import Encoder
from actorraft.pickling.results import decode_result


def through_a_frame(value: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value))


class Local:
    """One machine and one client of it, without processes."""

    def __init__(self, factory: Callable[[], Any], seed: int = 7) -> None:
        self.host = MachineHost(factory, seed)
        self.context = CommandContext()
        self.encoder = Encoder(self._define)
        self.definitions: list[bytes] = []

    def apply(self, encoded: bytes) -> Any:
        self.context.begin_entry(self.context.index + 1, 1, 10.0)
        self.context.position, self.context.serial = 0, self.context.serial + 1
        return decode_result(through_a_frame(self.host.apply(msgspec.msgpack.decode(encoded), self.context)))

    def _define(self, encoded: bytes) -> None:
        self.definitions.append(encoded)
        self.apply(encoded)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self.apply(self.encoder.encode_call(method, args, kwargs))

    def execute(self, command: Any) -> Any:
        return self.apply(self.encoder.encode_command(command))

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        request = self.encoder.encode_call(method, args, kwargs)
        return decode_result(through_a_frame(self.host.queries([msgspec.msgpack.decode(request)])[0]))

    def query(self, request: Any) -> Any:
        encoded = self.encoder.encode_command(request)
        return decode_result(through_a_frame(self.host.queries([msgspec.msgpack.decode(encoded)])[0]))

    def snapshot(self) -> bytes:
        buffer = io.BytesIO()
        self.host.snapshot(buffer.write)
        return buffer.getvalue()

    def restore(self, snapshot: bytes) -> None:
        self.host.restore(io.BytesIO(snapshot))
