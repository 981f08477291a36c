"""Starting load generators and collecting what they measured: the part that every benchmark shares.

The harness itself sleeps while the load runs: it reads a line now and then, so it takes next to nothing of the cores
that nodes and generators share.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import IO, Any

from benchmarks import measure
from benchmarks.deployment import ROOT, Deployment
from benchmarks.loadgen import LoadSpec

START_S = 60.0


class GeneratorFailed(Exception):
    """A load generator ended or fell silent; the message holds its last words."""


class Generator:
    """One load generator process, and the lines it says."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.stderr_tail = ""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        threads = [(self._read, self.process.stdout), (self._read_errors, self.process.stderr)]
        self._threads = [threading.Thread(target=target, args=(pipe,), daemon=True) for target, pipe in threads]
        for thread in self._threads:
            thread.start()

    def _read(self, pipe: IO[str]) -> None:
        for line in pipe:
            self.lines.put(json.loads(line))
        self.lines.put(None)

    def _read_errors(self, pipe: IO[str]) -> None:
        for line in pipe:
            self.stderr_tail = (self.stderr_tail + line)[-4000:]

    def tell(self, line: str) -> None:
        """Send one line."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise GeneratorFailed(f"the load generator is gone: {self.stderr_tail.strip()}") from None

    def wait_for(self, event: str, timeout_s: float, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
        """Return the next line of that event; progress lines go to `progress`.

        Raises:
            GeneratorFailed: it ended, or said nothing for `timeout_s`.
        """
        while True:
            try:
                line = self.lines.get(timeout=timeout_s)
            except queue.Empty:
                raise GeneratorFailed(f"the load generator said nothing for {timeout_s:.0f} s") from None
            if line is None:
                self.process.wait(5)
                self._threads[1].join(1)
                raise GeneratorFailed(
                    f"the load generator ended ({self.process.returncode}): {self.stderr_tail.strip()}"
                )
            if line["event"] == event:
                return line
            if line["event"] == "progress" and progress is not None:
                progress(line["count"])

    def close(self) -> None:
        """End it and wait for it. Idempotent."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        for thread in self._threads:
            thread.join(5)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Measured:
    """One window over all client processes.

    Attributes:
        cpu_s_per_100k: CPU seconds for 100,000 operations, by role ("clients", "leader", "followers").
        cpu_by_process: the same for each process ("client 0", "leader", "follower 0", "follower 1").
        work: what the leader did meanwhile (Deployment.work).
        elections: by how much the term grew meanwhile; nobody broke anything.
    """

    per_s: float
    p50_ms: float
    p99_ms: float
    count: int
    errors: int
    error_names: dict[str, int]
    cpu_s_per_100k: dict[str, float]
    cpu_by_process: dict[str, float] = field(default_factory=dict)
    work: dict[str, int] = field(default_factory=dict)
    elections: int = 0


def run_window(
    deployment: Deployment, spec: LoadSpec, clients: int, progress: Callable[[int], None] | None = None
) -> Measured:
    """Measure one window with the outstanding commands shared among some client processes."""
    clients = min(clients, spec.concurrency)
    generators: list[Generator] = []
    try:
        for number in range(clients):
            share = spec.concurrency // clients + (number < spec.concurrency % clients)
            its = replace(spec, concurrency=share, first_key=number * 1_000_000)
            generators.append(Generator(deployment.generator(its)))
        for generator in generators:
            generator.wait_for("ready", START_S)
        for generator in generators:
            generator.tell("go")
        patience_s = spec.warmup_s + spec.seconds + 2 * spec.timeout_s
        for generator in generators:
            generator.wait_for("measuring", patience_s)
        pids, term = deployment.pids(), deployment.term()
        cpu_before, work_before = _cpu(pids), deployment.work()
        counts = [0] * len(generators)

        def count(number: int) -> Callable[[int], None]:
            def seen(value: int) -> None:
                counts[number] = value
                if progress is not None:
                    progress(sum(counts))

            return seen

        for number, generator in enumerate(generators):
            generator.wait_for("measured", patience_s, count(number))
        cpu_after, work_after = _cpu(pids), deployment.work()
        done = [generator.wait_for("done", patience_s) for generator in generators]
        elections = deployment.term() - term
    finally:
        for generator in generators:
            generator.close()
    work = {name: work_after[name] - work_before[name] for name in work_before if name in work_after}
    cpu = {role: [b - a for a, b in zip(cpu_before[role], cpu_after[role], strict=True)] for role in pids}
    return replace(_combine(done, cpu), work={} if elections else work, elections=elections)


def _cpu(pids: dict[str, list[int]]) -> dict[str, list[float]]:
    return {role: [measure.cpu_s(pid) for pid in its] for role, its in pids.items()}


def _combine(done: list[dict[str, Any]], cpu_s: dict[str, list[float]]) -> Measured:
    count = sum(line["count"] for line in done)
    latencies: list[float] = [value for line in done for value in line["latencies_ms"]]
    errors: dict[str, int] = {}
    for line in done:
        for name, times in line["errors"].items():
            errors[name] = errors.get(name, 0) + times
    cpu_s = {"clients": [line["cpu_s"] for line in done], **cpu_s}
    each = {
        role if role == "leader" else f"{role.removesuffix('s')} {number}": value
        for role, values in cpu_s.items()
        for number, value in enumerate(values)
    }

    def per_100k(seconds: float) -> float:
        return round(seconds / count * 1e5, 3) if count else 0.0

    return Measured(
        per_s=sum(line["count"] / line["seconds"] for line in done),
        p50_ms=measure.percentile(latencies, 0.5),
        p99_ms=measure.percentile(latencies, 0.99),
        count=count,
        errors=sum(errors.values()),
        error_names=errors,
        cpu_s_per_100k={role: per_100k(sum(values)) for role, values in cpu_s.items()},
        cpu_by_process={name: per_100k(value) for name, value in each.items()},
    )
