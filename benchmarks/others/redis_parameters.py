"""A parameter server of Redis, one copy with `appendfsync always`: what workers would write who have nothing else.

The parameters are one value; an update reads them under WATCH and writes them in MULTI, discounted by its age, and
tries again if another was first. SIGKILLed, the server is started again and reads its file.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import redis

from benchmarks.deployment import Unusable
from benchmarks.measure import written_bytes
from benchmarks.others.redis_system import SYNCED, server
from examples.learning import Worker

UP_S = 10.0


class Server:
    """redis-server in a process of its own, on a socket of its own."""

    def __init__(self, folder: Path, parameters: Any) -> None:
        program = server()
        self.address = str(folder / "redis.sock")
        self._arguments = [program, "--port", "0", "--unixsocket", self.address, "--dir", str(folder), *SYNCED]
        self._start()
        client: Any = redis.Redis(unix_socket_path=self.address)
        client.mset({"version": 0, "updates": 0, "w": parameters.tobytes()})

    def _start(self) -> None:
        self.process = subprocess.Popen(self._arguments, stdout=subprocess.DEVNULL)
        client = redis.Redis(unix_socket_path=self.address)
        until_s = time.monotonic() + UP_S
        while True:
            with contextlib.suppress(redis.RedisError):
                client.ping()
                return
            if time.monotonic() > until_s:
                raise Unusable("redis-server does not answer")
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL it, and start it again."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._start()

    def written(self) -> int:
        """Return the bytes that it has written."""
        return written_bytes(self.process.pid)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


class Way:
    """How a worker reaches it: each update its own transaction."""

    def __init__(self, socket: str) -> None:
        self._client: Any = redis.Redis(unix_socket_path=socket)
        self.step = 0

    def pull_vector(self, least: int = 0) -> tuple[int, Any]:
        """Return version and parameters."""
        while True:
            with contextlib.suppress(redis.RedisError):
                version, data = self._client.mget("version", "w")
                return int(version), np.frombuffer(data, np.float32)
            time.sleep(0.005)

    def updates(self) -> int:
        """Return how many updates were applied."""
        return int(self._client.get("updates"))

    def push(self, update: Any, base: int) -> Future[int]:
        """Apply an update, whatever it takes."""
        answer: Future[int] = Future()
        while True:
            with contextlib.suppress(redis.RedisError), self._client.pipeline() as transaction:
                transaction.watch("version")
                version, data = transaction.mget("version", "w")
                version = int(version)
                weight = np.float32((1 + max(0, version - base)) ** -0.5)
                values = np.frombuffer(data, np.float32) + update * weight
                transaction.multi()
                transaction.mset({"version": version + 1, "w": values.tobytes()})
                transaction.incr("updates")
                transaction.execute()
                break
        self.step += 1
        answer.set_result(version + 1)
        return answer

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()


class ParameterWorker(Worker):
    """The same training, by that way."""

    def way(self, examples: int) -> Way:
        """Return it; the endpoint is the socket."""
        return Way(self.endpoints[0])
