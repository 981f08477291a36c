"""Client processes: each issues one operation at a time through the public API and writes down what it saw.

A client that does not learn an outcome goes on under a new name: the old one has an operation in flight for ever, and
whoever reads the history may rely on one name having one operation under way.

Shape:      keys live for `GENERATION_S`, so that no history of one key grows without bound; "r..." keys know get, put,
            cas and delete, "a..." keys know get and append. A value is written once.
Process:    the parent starts them by `ClientProcess`; they stop when their standard input ends, and take new endpoints
            from it, a JSON object a line.
"""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from actorraft import Busy, OutcomeUnknown, Unavailable, connect
from actorraft.client.client import Client
from actorraft.simulation.linearizability import Operation

GENERATION_S = 4.0
REGISTERS = 70  # keys of one generation
APPENDED = 30
RESOLVE_S = 2.0  # how long a client asks what became of an operation, half of the times
READS = (("linearizable", "leader"), ("linearizable", "leader"), ("linearizable", "any"), ("lease", "leader"))


class Config(NamedTuple):
    """What a client process is told at its start."""

    name: str
    machine: str  # module:class
    endpoints: dict[int, str]
    history: str
    seed: int
    rate: float  # operations a second at most
    timeout_s: float


class Worker:
    """One client: draws operations, does them, writes them down."""

    def __init__(self, config: Config) -> None:
        module, _, name = config.machine.partition(":")
        self._machine = getattr(importlib.import_module(module), name)
        self._config = config
        self._rng = random.Random(config.seed)
        self._name = config.name
        self._values = 0
        self._unknown = 0
        self._seen: dict[str, Any] = {}  # key -> what this client last knew of it
        self._endpoints = config.endpoints
        self._moved = threading.Event()
        self._stop = threading.Event()

    def listen(self) -> None:
        """Take what the parent says, until it says no more."""
        for line in sys.stdin:
            self._endpoints = {int(node_id): endpoint for node_id, endpoint in json.loads(line).items()}
            self._moved.set()
        self._stop.set()

    def run(self) -> None:
        """Work until told to stop."""
        client = self._connect()
        pause_s = 1.0 / self._config.rate
        next_s = time.monotonic()
        with open(self._config.history, "w", encoding="utf-8") as history:
            while not self._stop.is_set():
                if self._moved.is_set():
                    self._moved.clear()
                    client.close()
                    client = self._connect()
                operation = self._operate(client)
                history.write(json.dumps(operation._asdict()) + "\n")
                next_s = max(next_s + pause_s * self._rng.uniform(0.5, 1.5), time.monotonic() - 0.1)
                if (wait_s := next_s - time.monotonic()) > 0:
                    self._stop.wait(wait_s)
        client.close()

    def _connect(self) -> Client[Any]:
        while True:
            try:
                return connect(self._endpoints, self._machine, timeout=2.0)
            except Unavailable:
                if self._stop.is_set():
                    sys.exit(0)

    def _draw(self) -> Operation:
        """Draw the next operation, on a key of this generation; low numbers are hot."""
        rng = self._rng
        generation = int(time.monotonic() / GENERATION_S)
        if rng.random() < 0.4:
            key = f"a{generation}.{int(APPENDED * rng.random() ** 2)}"
            op = "append" if rng.random() < 0.6 else "get"
        else:
            key = f"r{generation}.{int(REGISTERS * rng.random() ** 2)}"
            op = rng.choices(("get", "put", "cas", "delete"), (45, 25, 20, 10))[0]
        operation = Operation(self._name, op, key)
        if op in ("put", "append", "cas"):
            self._values += 1
            operation = operation._replace(value=f"{self._config.name}-{self._values};")
        if op == "cas":
            operation = operation._replace(expected=self._seen.get(key))
        return operation

    def _operate(self, client: Client[Any]) -> Operation:
        operation = self._draw()
        consistency, to = self._rng.choice(READS)
        proxy = client.proxy(timeout=self._config.timeout_s, consistency=consistency, to=to)
        call_ns = time.monotonic_ns()
        try:
            try:
                result = self._call(proxy, operation)
            except OutcomeUnknown as unknown:
                if self._rng.random() < 0.5:
                    raise
                result = unknown.resolve(RESOLVE_S)
        except OutcomeUnknown:
            self._unknown += 1
            self._name = f"{self._config.name}.{self._unknown}"
            self._seen.pop(operation.key, None)
            return operation._replace(status="unknown", call_ns=call_ns)
        except (Unavailable, Busy):
            return operation._replace(status="fail", call_ns=call_ns)
        return_ns = time.monotonic_ns()
        if operation.op in ("put", "append"):
            result = None
        self._learn(operation, result)
        return operation._replace(status="ok", call_ns=call_ns, return_ns=return_ns, result=result)

    def _call(self, proxy: Any, operation: Operation) -> Any:
        match operation.op:
            case "get":
                return proxy.get(operation.key)
            case "put":
                return proxy.set(operation.key, operation.value)
            case "append":
                return proxy.append(operation.key, operation.value)
            case "cas":
                return proxy.compare_and_set(operation.key, operation.expected, operation.value)
            case _:
                return proxy.delete(operation.key)

    def _learn(self, operation: Operation, result: Any) -> None:
        """Remember a content, for the next cas on that key to have a chance."""
        if operation.op == "get":
            self._seen[operation.key] = result
        elif operation.op == "put" or (operation.op == "cas" and result):
            self._seen[operation.key] = operation.value
        elif operation.op == "delete":
            self._seen[operation.key] = None
        if len(self._seen) > 1000:
            self._seen.clear()


class ClientProcess:
    """The parent's handle on one client process."""

    def __init__(self, config: Config) -> None:
        self.history = Path(config.history)
        self._errors = open(self.history.with_suffix(".err"), "w+b")  # noqa: SIM115  (closed by `stop`)
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "tests.nemesis.clients", json.dumps(config._asdict())],
            stdin=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def move(self, endpoints: Mapping[int, str]) -> None:
        """Say where the nodes are now."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps(dict(endpoints)) + "\n")
        self._popen.stdin.flush()

    def stop(self, timeout_s: float = 20.0) -> str | None:
        """End it after the operation under way; return what went wrong with it, if anything did. Idempotent."""
        assert self._popen.stdin is not None
        if self._errors.closed:
            return None
        self._popen.stdin.close()
        try:
            code = self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            code = self._popen.wait()
        self._errors.seek(0)
        words = self._errors.read().decode("utf-8", "replace")
        self._errors.close()
        return None if code == 0 else f"a client ended with code {code}:\n{words[-2000:]}"


def outcomes(operations: list[Operation]) -> dict[str, Counter[str]]:
    """Count: operation -> status -> how many."""
    table: dict[str, Counter[str]] = {}
    for operation in operations:
        table.setdefault(operation.op, Counter())[operation.status] += 1
    return table


def main() -> None:
    """Be one client process."""
    said = json.loads(sys.argv[1])
    endpoints = {int(node_id): endpoint for node_id, endpoint in said.pop("endpoints").items()}
    worker = Worker(Config(endpoints=endpoints, **said))
    threading.Thread(target=worker.listen, daemon=True).start()
    worker.run()


if __name__ == "__main__":
    main()
