"""One PySyncObj node, and the load inside it: the process that PySyncObj wants its user to live in.

Runs in an environment of its own, so it imports nothing but the standard library, PySyncObj and the load generator.
The load is driven from PySyncObj's own callbacks, which is the fastest way in: each finished command submits the next,
in the thread that finished it.

Shape:      argument: {"address" (null: a client that has no vote), "partners", "socket", "conf"} as JSON.
Not here:   any promise: PySyncObj never calls fsync, and has no linearizable read.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, replicated  # type: ignore[import-not-found, unused-ignore]

from benchmarks.loadgen import KEYS, LoadSpec, thinned

ATTEMPT_S = 0.5  # of a probe: a command that was lost with its leader may never be answered


class Store(SyncObj):  # type: ignore[misc, unused-ignore]
    """What is replicated: a dict."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.data: dict[str, bytes] = {}
        super().__init__(options["address"], options["partners"], SyncObjConf(**options["conf"]))

    @replicated  # type: ignore[untyped-decorator, unused-ignore]
    def put(self, key: str, value: bytes) -> bool:
        self.data[key] = value
        return True


class Caller:
    """One harness connection."""

    def __init__(self, store: Store, connection: socket.socket, options: dict[str, Any]) -> None:
        self.store, self.options = store, options
        self.lines = connection.makefile("rw")
        self.spec = LoadSpec.from_json(self.lines.readline())
        self.keys = [f"key-{number + self.spec.first_key:012d}" for number in range(KEYS)]
        self.value = b"v" * self.spec.payload_bytes

    def say(self, event: str, **values: Any) -> None:
        self.lines.write(json.dumps({"event": event, **values}) + "\n")
        self.lines.flush()

    def run(self) -> None:
        """Serve one measurement."""
        self.say("ready")
        if self.spec.mode == "probe":
            self.probe()
        elif self.lines.readline():
            self.window()

    def window(self) -> None:
        """Keep `concurrency` commands outstanding from inside the callbacks."""
        spec, put, keys, value = self.spec, self.store.put, self.keys, self.value
        stride = 1 if spec.concurrency <= 16 else 16
        state = {"count": 0, "failed": 0, "number": 0, "running": True}
        latencies: list[float] = []
        idle = threading.Semaphore(0)

        def submit() -> None:
            number = state["number"]
            state["number"] = number + 1
            started = time.perf_counter() if number % stride == 0 else 0.0

            def finished(result: Any, error: int) -> None:
                if error:
                    state["failed"] += 1
                else:
                    state["count"] += 1
                    if started:
                        latencies.append(time.perf_counter() - started)
                if state["running"]:
                    submit()
                else:
                    idle.release()

            put(keys[number % KEYS], value, callback=finished)

        for _ in range(spec.concurrency):
            submit()
        time.sleep(spec.warmup_s)
        self.say("measuring")
        first, failed, timed = state["count"], state["failed"], len(latencies)
        cpu_before, start = time.process_time(), time.perf_counter()
        while (left := start + spec.seconds - time.perf_counter()) > 0:
            time.sleep(min(0.5, left))
            self.say("progress", count=state["count"] - first)
        elapsed, count = time.perf_counter() - start, state["count"] - first
        last_timed = len(latencies)
        inside_a_node = self.options["address"] is not None  # then its seconds are that node's already
        cpu_s = 0.0 if inside_a_node else time.process_time() - cpu_before
        self.say("measured")
        state["running"] = False
        patience = time.monotonic() + 5.0  # for what is still under way; a command that is lost is never answered
        for _ in range(spec.concurrency):
            idle.acquire(timeout=max(0.0, patience - time.monotonic()))
        errors = {"failed": state["failed"] - failed} if state["failed"] > failed else {}
        sample = [round(latency * 1e3, 4) for latency in thinned(latencies[timed:last_timed])]
        self.say("done", count=count, seconds=elapsed, errors=errors, cpu_s=cpu_s, latencies_ms=sample)

    def probe(self) -> None:
        """Write one after the other; answer questions as loadgen.Probe does."""
        asked: list[tuple[float, float]] = []
        closed = threading.Event()

        def listen() -> None:
            for line in self.lines:
                question = json.loads(line)
                asked.append((question["at"], question["until"]))
            closed.set()

        threading.Thread(target=listen, daemon=True).start()
        number, errors, gap = 0, 0, 0.0
        recovered: float | None = None
        last = time.monotonic()
        while not closed.is_set():
            start = time.monotonic()
            number += 1
            if not self.put_and_wait(number):
                errors += 1
                continue
            end = time.monotonic()
            if asked:
                at, until = asked[0]
                gap = max(gap, end - max(last, at))
                if recovered is None and start >= at:
                    recovered = end
                if recovered is not None and end >= until:
                    self.say("recovered", recovered_s=recovered, gap_s=gap, errors=errors)
                    asked.clear()
                    errors, gap, recovered = 0, 0.0, None
            last = end

    def put_and_wait(self, number: int) -> bool:
        done = threading.Event()
        outcome: list[int] = []

        def finished(result: Any, error: int) -> None:
            outcome.append(error)
            done.set()

        self.store.put(self.keys[number % KEYS], self.value, callback=finished)
        return done.wait(ATTEMPT_S) and outcome[0] == 0


def serve_status(store: Store, connection: socket.socket) -> None:
    """Answer "status" lines on a control connection."""
    with connection.makefile("rw") as lines:
        for line in lines:
            status = store.getStatus()
            if line.strip() == "transfer":
                store.transferLeadership()
            lines.write(
                json.dumps(
                    {
                        "leader": str(status["leader"]) if status["leader"] is not None else None,
                        "self": str(status["self"]),
                        "last_applied": status["last_applied"],
                        "commit_index": status["commit_idx"],
                        "ready": store.isReady(),
                        "term": status["raft_term"],
                    }
                )
                + "\n"
            )
            lines.flush()


def main() -> None:
    """Run the node until its standard input ends."""
    options = json.loads(sys.argv[1])
    store = Store(options)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(options["socket"])
    listener.listen(64)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            kind = connection.recv(1)  # "s": status, "l": load
            target = (lambda c: serve_status(store, c)) if kind == b"s" else (lambda c: Caller(store, c, options).run())
            threading.Thread(target=target, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdout.write("up\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
