"""The load generator: a client in a process of its own, as a user's would be. One measurement, then it ends.

It speaks lines of JSON on standard output, and is told what to do on standard input; the generators for the systems
that are compared speak the same, so that the harness treats all alike.

Shape:      "window" mode, asked by {"mode": "window", ...} as the only argument:
              ready → (a line "go") → measuring → progress… → done with count, seconds, errors, cpu_s and latencies_ms
            "probe" mode, one command outstanding all the time:
              ready → (a line {"at", "until"}, seconds of CLOCK_MONOTONIC)… → recovered, for each
Not here:   who starts it and what is made of it; see harness.py.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, cast

KEYS = 10_000  # distinct keys of 16 bytes
LATENCIES_MAX = 20_000  # of the sampled ones; more are thinned evenly
BATCH_MAX = 256  # commands submitted in one go before finished ones are looked at again
PROGRESS_S = 0.5
ENDS_MAX = 10_000  # acknowledgements that a probe lists


@dataclass(frozen=True)
class LoadSpec:
    """One measurement. `operation` is "set" or a read's consistency; `commands`: in what shape a command is given."""

    endpoints: dict[str, str]
    mode: str = "window"
    concurrency: int = 1
    payload_bytes: int = 128
    warmup_s: float = 1.0
    seconds: float = 5.0
    operation: str = "set"
    commands: str = "kv"
    timeout_s: float = 120.0  # 10,000 outstanding of 64 KiB take a while to drain
    first_key: int = 0
    options: dict[str, Any] = field(default_factory=dict)  # of the system's own

    def to_json(self) -> str:
        """Return the generator's argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LoadSpec:
        """Read the generator's argument."""
        return cls(**json.loads(text))


class Pending(Protocol):
    """What a submission returns: a future."""

    def done(self) -> bool: ...

    def result(self, timeout: float | None = None) -> Any: ...


Submit = Callable[[int], Pending]


def say(event: str, **values: Any) -> None:
    """Print one line of JSON, at once."""
    sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
    sys.stdout.flush()


class Window:
    """Keeps `concurrency` commands outstanding, as a user with futures does: take what is done, submit as many anew.

    A commit counts when the caller has its result, inside the measured time. Every `stride`-th command is timed, from
    before `submit` until the caller has its result.
    """

    def __init__(self, submit: Submit, concurrency: int, failures: tuple[type[BaseException], ...]) -> None:
        self.submit = submit
        self.concurrency = concurrency
        self.failures = failures
        self.stride = 1 if concurrency <= 16 else 16
        self.number = 0
        self.outstanding: deque[tuple[Pending, float]] = deque()
        self.errors: dict[str, int] = {}
        self.latencies_s: list[float] = []

    def run(self, warmup_s: float, seconds: float) -> tuple[int, float]:
        """Warm up, measure, wait for the rest; return how many were done in how many seconds."""
        self.fill()
        self.turn(time.perf_counter() + warmup_s, lambda count: None)
        say("measuring")
        self.errors.clear()
        self.latencies_s.clear()
        start = time.perf_counter()
        count = self.turn(start + seconds, lambda count: say("progress", count=count))
        elapsed = time.perf_counter() - start
        say("measured")
        timed = len(self.latencies_s)
        while self.outstanding:
            self.take(BATCH_MAX)
        del self.latencies_s[timed:]
        return count, elapsed

    def turn(self, until: float, progress: Callable[[int], None]) -> int:
        """Keep the window full until then; return how many commands were done."""
        count = 0
        say_at = time.perf_counter() + PROGRESS_S
        while (now := time.perf_counter()) < until:
            if now >= say_at:
                progress(count)
                say_at = now + PROGRESS_S
            count += self.take(BATCH_MAX)
            self.fill()
        return count

    def fill(self) -> None:
        """Submit until `concurrency` are outstanding."""
        submit, stride, add = self.submit, self.stride, self.outstanding.append
        first = self.number
        self.number += self.concurrency - len(self.outstanding)
        for number in range(first, self.number):
            started = 0.0 if number % stride else time.perf_counter()
            add((submit(number), started))

    def take(self, most: int) -> int:
        """Wait for the oldest, and take with it what else is done, up to so many; return how many succeeded."""
        outstanding = self.outstanding
        succeeded = 0
        for _ in range(most):
            future, started = outstanding.popleft()
            try:
                future.result()
                succeeded += 1
                if started:
                    self.latencies_s.append(time.perf_counter() - started)
            except self.failures as error:
                name = type(error).__name__
                self.errors[name] = self.errors.get(name, 0) + 1
            if not outstanding or not outstanding[0][0].done():
                break
        return succeeded


class Probe:
    """One write after the other, for ever; says how long the cluster was silent when it is asked.

    Asked about a fault at `at`, it answers after `until`: `recovered_s`, the end of the first write that *began* after
    the fault (one that began before may have been answered by the dying leader), `gap_s`, the longest time without an
    acknowledged write since, and `ends_s`, when each was acknowledged. One attribute is written by each thread, so
    there is no lock to take in the loop.
    """

    def __init__(self, submit: Submit, failures: tuple[type[BaseException], ...]) -> None:
        self.submit = submit
        self.failures = failures
        self.asked: tuple[float, float] | None = None
        self.closed = False

    def listen(self) -> None:
        """Read the questions."""
        for line in sys.stdin:
            question = json.loads(line)
            self.asked = (question["at"], question["until"])
        self.closed = True

    def run(self) -> None:
        """Write until the input ends."""
        threading.Thread(target=self.listen, daemon=True).start()
        number = errors = 0
        last = time.monotonic()
        question: tuple[float, float] | None = None
        recovered: float | None = None
        gap = 0.0
        ends: list[float] = []
        while not self.closed:
            start = time.monotonic()
            try:
                self.submit(number).result()
            except self.failures:
                errors += 1
                continue
            finally:
                number += 1
            end = time.monotonic()
            if self.asked is not None:
                question, self.asked = self.asked, None
                recovered, gap, ends = None, 0.0, []
            if question is not None:
                at, until = question
                gap = max(gap, end - max(last, at))
                ends.append(end)
                if recovered is None and start >= at:
                    recovered = end
                if recovered is not None and end >= until:
                    say("recovered", recovered_s=recovered, gap_s=gap, ends_s=ends[:ENDS_MAX], errors=errors)
                    question, errors = None, 0
            last = end


def thinned(values: list[float], most: int = LATENCIES_MAX) -> list[float]:
    """Return at most `most` of the values, evenly spread."""
    return values[:: -(-len(values) // most)] if len(values) > most else values


def drive(spec: LoadSpec, submit: Submit, failures: tuple[type[BaseException], ...]) -> None:
    """Run one measurement with a way to submit."""
    say("ready")
    if spec.mode == "probe":
        Probe(submit, failures).run()
        return
    if not sys.stdin.readline():
        return
    window = Window(submit, spec.concurrency, failures)
    cpu_before = time.process_time()
    count, seconds = window.run(spec.warmup_s, spec.seconds)
    cpu_per_s = (time.process_time() - cpu_before) / (spec.warmup_s + seconds)
    latencies = [round(value * 1e3, 4) for value in thinned(window.latencies_s)]
    say("done", count=count, seconds=seconds, errors=window.errors, cpu_s=cpu_per_s * seconds, latencies_ms=latencies)


def main() -> None:
    """Drive an ActorRaft cluster."""
    from actorraft import ActorRaftError, connect
    from actorraft.client.arguments import Consistency
    from benchmarks.machines import Put, Register
    from statemachines.kv import KVStore

    spec = LoadSpec.from_json(sys.argv[1])
    sys.setswitchinterval(spec.options.get("switch_interval_s", sys.getswitchinterval()))
    machine: Any = {"kv": KVStore, "method": Register, "object": dict}[spec.commands]
    endpoints = {int(node_id): endpoint for node_id, endpoint in spec.endpoints.items()}
    keys = [f"key-{number + spec.first_key:012d}" for number in range(KEYS)]
    value = b"v" * spec.payload_bytes
    timeout = spec.timeout_s
    with connect(endpoints, machine) as client:
        submit: Submit
        if spec.operation != "set":
            get = client.proxy(consistency=cast(Consistency, spec.operation), timeout=timeout).get.submit
            for number in range(0, KEYS, 100):  # something to read
                client.proxy(timeout=timeout).set(keys[number], value)
            submit = lambda number: get(keys[number * 100 % KEYS])  # noqa: E731
        elif spec.commands == "object":
            submit = lambda number: client.submit(Put(keys[number % KEYS], value), timeout=timeout)  # noqa: E731
        else:
            proxy = client.proxy(timeout=timeout)
            put = proxy.set.submit if spec.commands == "kv" else proxy.put.submit
            submit = lambda number: put(keys[number % KEYS], value)  # noqa: E731
        drive(spec, submit, (ActorRaftError,))


if __name__ == "__main__":
    main()
