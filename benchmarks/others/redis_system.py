"""Redis from Debian's package: one primary, the other processes its replicas; and the load, by redis-py.

Each write is followed by WAIT for all replicas, and the primary and they write their files with `appendfsync always`.
That is no consensus: nobody is elected when the primary is lost, WAIT undoes nothing when it times out, and whoever
promotes a replica may lose what was acknowledged. A read at the primary says nothing of what was promoted meanwhile, so
only writes are measured.

With many outstanding, writes that came together share one WAIT, as one pipeline, on a few connections: its fastest way.

Run: `python -m benchmarks.others.redis_system SPEC` is the load generator.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from benchmarks.deployment import fresh_directory
from benchmarks.loadgen import KEYS, LoadSpec, drive
from benchmarks.others.processes import Opaque, Processes, Whole, free_ports, needed_module, needed_program, wait_until

SYNCED = ("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--loglevel", "warning")
LANES = 4  # connections, each with one pipeline under way; a primary takes commands of all in one turn of its loop
PIPELINE_MAX = 256
WAIT_MS = 10_000


def server() -> str:
    """Return redis-server's path.

    Raises:
        Unusable: it, or its client for Python, is not installed.
    """
    needed_module("redis")
    return needed_program("redis-server", "redis-server")


class RedisSystem:
    """Redis with its safest settings."""

    name = "redis"
    durabilities: Sequence[str] = ("fsync, WAIT for all replicas",)
    faults: Sequence[str] = ()
    election_durability = durabilities[0]

    def __init__(self) -> None:
        self.program = server()

    def deploy(self, nodes: int, durability: str, commands: str) -> RedisDeployment:
        """Start a primary and `nodes` - 1 replicas."""
        return RedisDeployment(self.program, nodes)


class RedisDeployment(Opaque, Whole):
    """A primary, number 0, and its replicas on loopback."""

    def __init__(self, program: str, nodes: int) -> None:
        self.directory = fresh_directory("redis")
        self.processes = Processes(self.directory)
        self.ports = free_ports(nodes)
        try:
            for number, port in enumerate(self.ports):
                data = self.directory / f"n{number}"
                data.mkdir()
                command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(data), *SYNCED]
                command += ["--repl-diskless-sync-delay", "0"]
                if number:
                    command += ["--replicaof", f"127.0.0.1 {self.ports[0]}"]
                self.processes.start(number, command)
            wait_until(self._is_up, "Redis's replication")
        except BaseException:
            self.close()
            raise

    def _is_up(self) -> bool:
        import redis

        with redis.Redis(port=self.ports[0]) as client:
            try:
                said: Any = client.info("replication")
            except redis.RedisError:
                return False
        replicas = [said[f"slave{number}"]["state"] for number in range(said["connected_slaves"])]
        return replicas == ["online"] * (len(self.ports) - 1)

    def term(self) -> int:
        """Return 0: nobody is ever elected."""
        return 0

    def endpoints(self) -> dict[str, str]:
        """Return the primary's port, and how many replicas it has."""
        return {"port": str(self.ports[0]), "replicas": str(len(self.ports) - 1)}

    def serves(self, operation: str) -> bool:
        """Writes."""
        return operation == "set"

    def generator(self, spec: LoadSpec) -> list[str]:
        """Start this module."""
        return [sys.executable, "-m", "benchmarks.others.redis_system", spec.to_json()]

    def pids(self) -> dict[str, list[int]]:
        """Return the processes by role."""
        followers = [self.processes.pid(number) for number in range(1, len(self.ports))]
        return {"leader": [self.processes.pid(0)], "followers": followers}

    def close(self) -> None:
        """Kill everything and remove the data."""
        self.processes.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class TooFewReplicas(Exception):
    """WAIT ended before all replicas had the write."""


Write = tuple[int, Future[None]]  # the number of it, and what is told of it


class Lane:
    """A connection, with one pipeline under way."""

    def __init__(self, spec: LoadSpec, client: Any) -> None:
        self.client = client
        self.replicas = int(spec.endpoints["replicas"])
        self.keys = [f"key-{number + spec.first_key:012d}" for number in range(KEYS)]
        self.value = b"v" * spec.payload_bytes

    def write(self, number: int) -> Future[None]:
        """Make one write, in the caller's thread."""
        future: Future[None] = Future()
        self.send([(number, future)])
        return future

    def serve(self, writes: queue.SimpleQueue[Write]) -> None:
        """Send what is there as one pipeline, for ever."""
        while True:
            batch = [writes.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < PIPELINE_MAX:
                    batch.append(writes.get_nowait())
            self.send(batch)

    def send(self, batch: list[Write]) -> None:
        """Send writes with one WAIT behind them, and end their futures."""
        error: Exception | None = None
        try:
            with self.client.pipeline(transaction=False) as pipeline:
                for number, _ in batch:
                    pipeline.set(self.keys[number % KEYS], self.value)
                pipeline.execute_command("WAIT", self.replicas, WAIT_MS)
                have = pipeline.execute()[-1]
            if have < self.replicas:
                error = TooFewReplicas(f"{have} of {self.replicas}")
        except Exception as raised:  # whoever waits is told
            error = raised
        for _, future in batch:
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)


def main() -> None:
    """Write to the primary."""
    import redis

    spec = LoadSpec.from_json(sys.argv[1])
    writes: queue.SimpleQueue[Write] = queue.SimpleQueue()

    def submit(number: int) -> Future[None]:
        future: Future[None] = Future()
        writes.put((number, future))
        return future

    lanes = [Lane(spec, redis.Redis(port=int(spec.endpoints["port"]))) for _ in range(LANES)]
    for lane in lanes if spec.concurrency > 1 else []:
        threading.Thread(target=lane.serve, args=(writes,), daemon=True).start()
    drive(spec, submit if spec.concurrency > 1 else lanes[0].write, (redis.RedisError, TooFewReplicas))


if __name__ == "__main__":
    main()
