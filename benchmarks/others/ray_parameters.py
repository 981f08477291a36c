"""A parameter server as an actor of Ray's: in memory, one copy, started again by Ray when it dies.

Arrays go through Ray's shared memory, which is its fast way. What the actor had is gone with its process: its
constructor is run again, and the workers go on from there (`max_restarts`, `max_task_retries`).
"""

from __future__ import annotations

import logging
import os
import signal
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import numpy as np
import ray

from examples.learning import Worker

NAMESPACE: Final = "parameters"
NAME: Final = "server"
OUTSTANDING_MAX: Final = 4  # pushes of a worker without an answer, as our own client has
SHARED_BYTES: Final = 512 << 20


class Parameters:
    """What Ray runs in a process of its own."""

    def __init__(self, parameters: Any) -> None:
        self.values, self.version = np.array(parameters), 0

    def pull(self) -> tuple[int, Any]:
        """Return version and parameters."""
        return self.version, self.values

    def push(self, update: Any, base: int) -> int:
        """Apply an update, discounted by its age."""
        # What it has handed out is on its way to shared memory already, but the next version is a vector of its own.
        self.values = self.values + update * np.float32((1 + max(0, self.version - base)) ** -0.5)
        self.version += 1
        return self.version

    def pid(self) -> int:
        """Return its process."""
        return os.getpid()


class Server:
    """A cluster of Ray's on this machine, and the actor in it."""

    def __init__(self, folder: Path, parameters: Any) -> None:
        context: Any = ray.init(
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            namespace=NAMESPACE,
            object_store_memory=SHARED_BYTES,
        )
        self.address = str(context.address_info["gcs_address"])
        actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Parameters)
        self._initial = ray.put(parameters)  # kept: the actor's next life is made from it, too
        self._actor = actor.options(name=NAME).remote(self._initial)
        ray.get(self._actor.pid.remote())

    def kill(self) -> None:
        """SIGKILL the actor's process; Ray starts it again."""
        os.kill(ray.get(self._actor.pid.remote()), signal.SIGKILL)

    def written(self) -> int:
        """It writes nothing."""
        return 0

    def close(self) -> None:
        """End it."""
        ray.shutdown()


class Way:
    """How a worker reaches it: asynchronous calls, some of them under way."""

    def __init__(self, address: str) -> None:
        if not ray.is_initialized():
            ray.init(address=address, namespace=NAMESPACE, logging_level=logging.ERROR, log_to_driver=False)
        self._actor: Any = ray.get_actor(NAME)
        self._under_way: list[Future[int]] = []
        self.step = 0

    def pull_vector(self, least: int = 0) -> tuple[int, Any]:
        """Return version and parameters."""
        version, values = ray.get(self._actor.pull.remote())
        return version, values

    def updates(self) -> int:
        """Return how many updates the actor has."""
        return int(self.pull_vector()[0])

    def push(self, update: Any, base: int) -> Future[int]:
        """Send an update; wait while too many have no answer."""
        if len(self._under_way) == OUTSTANDING_MAX:
            self._under_way.pop(0).exception()
        answer: Future[int] = self._actor.push.remote(update, base).future()
        self._under_way.append(answer)
        self.step += 1
        return answer

    def close(self) -> None:
        """Let go of Ray."""
        for answer in self._under_way:
            answer.exception()
        ray.shutdown()


class ParameterWorker(Worker):
    """The same training, by that way."""

    def way(self, examples: int) -> Way:
        """Return it; the endpoint is Ray's address."""
        return Way(self.endpoints[0])
