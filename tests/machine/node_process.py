"""A node's machine in an interpreter of its own, without a cluster: requests on standard input, answers on output."""

from __future__ import annotations

import io
import os
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

HEAD = struct.Struct("<I")


def send(file: BinaryIO, value: Any) -> None:
    data = msgspec.msgpack.encode(value)
    file.write(HEAD.pack(len(data)) + data)
    file.flush()


def receive(file: BinaryIO) -> Any:
    head = file.read(HEAD.size)
    return msgspec.msgpack.decode(file.read(HEAD.unpack(head)[0])) if head else None


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what user code prints must not get between
    sys.path[:] = receive(sys.stdin.buffer)
    from actorraft.machine import CommandContext
    from actorraft.node.host import MachineHost, MachineStopped

    context = CommandContext()
    host: Any = None
    while (request := receive(sys.stdin.buffer)) is not None:
        verb, argument = request
        try:
            if verb == "factory":
                host = MachineHost.from_factory(argument, 7)
                answer: Any = None
            elif verb == "apply":
                context.serial += 1
                context.begin_entry(context.serial, 1, 0.5)
                answer = host.apply(msgspec.msgpack.decode(argument), context)
            elif verb == "query":
                answer = host.queries([msgspec.msgpack.decode(argument)])[0]
            elif verb == "snapshot":
                buffer = io.BytesIO()
                host.snapshot(buffer.write)
                Path(argument).write_bytes(buffer.getvalue())
                answer = None
            elif verb == "restore":
                host.restore(io.BytesIO(Path(argument).read_bytes()))
                answer = None
            else:
                answer = host.digest()
            send(answers, [None, answer])
        except MachineStopped as stop:
            send(answers, [str(stop), None])


if __name__ == "__main__":
    main()
