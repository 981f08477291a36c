"""The caller's side of node_process.py: a machine in another fresh interpreter, reached as a client reaches a node."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

from actorraft.pickling.encoder import Encoder, encode_factory
from actorraft.pickling.results import decode_result
from tests.machine.node_process import receive, send


class Node:
    """One machine in a process of its own, and one client of it."""

    def __init__(self, machine: Callable[..., Any], *args: Any, restore_from: str | None = None, **kwargs: Any) -> None:
        factory = encode_factory(machine, args, kwargs)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.machine.node_process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        send(self._process.stdin, sys.path)
        self.encoder = Encoder(self._define)
        self.definitions: list[bytes] = []
        self.ask("factory", factory)
        if restore_from is not None:
            self.ask("restore", restore_from)

    def ask(self, verb: str, argument: Any = None) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        send(self._process.stdin, [verb, argument])
        answer = receive(self._process.stdout)
        if answer is None:
            raise RuntimeError("the node process died; its standard error says why")
        if answer[0] is not None:
            raise RuntimeError(answer[0])
        return answer[1]

    def _define(self, encoded: bytes) -> None:
        self.definitions.append(encoded)
        decode_result(self.ask("apply", encoded))

    def execute(self, command: Any) -> Any:
        return decode_result(self.ask("apply", self.encoder.encode_command(command)))

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return decode_result(self.ask("apply", self.encoder.encode_call(method, args, kwargs)))

    def query(self, request: Any) -> Any:
        return decode_result(self.ask("query", self.encoder.encode_command(request)))

    def snapshot(self, path: str) -> None:
        self.ask("snapshot", path)

    def digest(self) -> Any:
        return self.ask("digest")

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
