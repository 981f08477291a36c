"""Writers that remember exactly what was acknowledged to them, and the check that it is all there.

A writer is one session. Each of its commands writes a key of its own; every third is an increment of its counter, whose
results must be 1, 2, 3 ... : a command that applied twice, or was lost after its answer, breaks the row.

Threads:    one a writer, with `window` commands under way; the client's I/O thread runs the callbacks.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

from actorraft.client.client import Client
from actorraft.cluster.cluster import Cluster
from actorraft.errors import ActorRaftError, OutcomeUnknown

CHUNK = 2000


class Writer:
    """One session's stream of commands."""

    def __init__(self, cluster: Cluster[Any], name: str, *, window: int, timeout_s: float) -> None:
        self.name = name
        self.acknowledged: list[int] = []  # numbers of the commands that were acknowledged, in order
        self.times: list[tuple[float, float]] = []  # of each answer: (when sent, when answered)
        self.increments = 0
        self.outcomes: Counter[str] = Counter()
        self.problems: list[str] = []
        self._client: Client[Any] = cluster.client()
        self._window = window
        self._slots = threading.Semaphore(window)
        self._timeout_s = timeout_s
        self._stop = threading.Event()
        self._stopped = False
        self._next = 0
        self._thread = threading.Thread(target=self._run, name=f"writer {name}", daemon=True)
        self._thread.start()

    def key(self, number: int) -> str:
        return f"{self.name}:{number}"

    @property
    def counter(self) -> str:
        return f"{self.name}:count"

    def _run(self) -> None:
        proxy = self._client.proxy(timeout=self._timeout_s)
        while not self._stop.is_set():
            self._slots.acquire()
            if self._stop.is_set():
                self._slots.release()
                return
            number, self._next = self._next, self._next + 1
            sent_s = time.monotonic()
            if number % 3 == 2:
                future = proxy.increment.submit(self.counter)
            else:
                future = proxy.set.submit(self.key(number), number)
            future.add_done_callback(lambda done, number=number, sent_s=sent_s: self._done(done, number, sent_s))

    def _done(self, future: Future[Any], number: int, sent_s: float) -> None:
        try:
            result = future.result()
        except OutcomeUnknown:
            self.outcomes["unknown"] += 1
        except ActorRaftError as error:
            self.outcomes[type(error).__name__] += 1
        else:
            self.outcomes["ok"] += 1
            self.times.append((sent_s, time.monotonic()))
            if number % 3 == 2:
                self._check_increment(result)
            else:
                self.acknowledged.append(number)
        self._slots.release()

    def _check_increment(self, result: int) -> None:
        self.increments += 1
        if not self.increments <= result <= self.increments + self.outcomes["unknown"]:
            self.problems.append(
                f"increment {self.increments} of writer {self.name} gave {result}: one was lost or applied twice"
            )

    def no_more(self) -> None:
        """Send no more."""
        self._stop.set()

    def stop(self) -> None:
        """Send no more, and wait for what is under way. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        self.no_more()
        self._thread.join()
        deadline_s = time.monotonic() + self._timeout_s
        for _ in range(self._window):
            self._slots.acquire(timeout=max(0.0, deadline_s - time.monotonic()))
        self._client.close()


class Load:
    """Several writers at once."""

    def __init__(
        self, cluster: Cluster[Any], *, writers: int = 3, window: int = 8, timeout_s: float = 60.0, name: str = "w"
    ) -> None:
        self.writers = [
            Writer(cluster, f"{name}{number}", window=window, timeout_s=timeout_s) for number in range(writers)
        ]

    @property
    def acknowledged(self) -> int:
        return sum(writer.outcomes["ok"] for writer in self.writers)

    @property
    def outcomes(self) -> Counter[str]:
        return sum((writer.outcomes for writer in self.writers), Counter())

    @property
    def problems(self) -> list[str]:
        return [problem for writer in self.writers for problem in writer.problems]

    def wait_for_more(self, count: int, timeout_s: float = 30.0) -> None:
        """Wait until `count` more commands are acknowledged. Raises TimeoutError."""
        goal, deadline_s = self.acknowledged + count, time.monotonic() + timeout_s
        while self.acknowledged < goal:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"nothing is acknowledged any more: {dict(self.outcomes)}")
            time.sleep(0.001)

    def longest_gap_s(self, since_s: float) -> float:
        """Return the longest time without an answer to anybody, from `since_s` on."""
        moments = [since_s, *sorted(at_s for writer in self.writers for _, at_s in writer.times if at_s > since_s)]
        return max((after - before for before, after in pairwise(moments)), default=0.0)

    def stop(self) -> None:
        """Stop all writers. Idempotent."""
        for writer in self.writers:
            writer.no_more()
        for writer in self.writers:
            writer.stop()

    def count_lost(self, client: Client[Any]) -> int:
        """Return how many acknowledged commands are not to be found."""
        proxy = client.proxy(timeout=60.0)
        lost = 0
        for writer in self.writers:
            numbers = list(writer.acknowledged)
            increments = writer.increments
            for start in range(0, len(numbers), CHUNK):
                chunk = numbers[start : start + CHUNK]
                found = proxy.get_many([writer.key(number) for number in chunk])
                lost += sum(found.get(writer.key(number)) != number for number in chunk)
            lost += max(0, increments - (proxy.get(writer.counter) or 0))
        return lost
