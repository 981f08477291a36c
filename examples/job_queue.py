"""A job queue whose workers are killed at random, and every job is done: `python -m examples.job_queue`.

The queue hands out jobs and keeps each until its result is there. A worker that is killed takes its job with it; the
ask for it ends with ActorDead, and the queue gives the job to the next. So a job may be begun twice, and counts once.
"""

from __future__ import annotations

import os
import random
import signal

from actorraft import Actor, ActorDead, ActorOptions, ActorRef, ResultFuture, Supervision

PATIENT = Supervision(max_restarts=1_000, backoff_s=(0.01, 0.05))


class Worker(Actor):
    """Finds out how many primes there are below a number."""

    def receive(self, message: int) -> int:
        return sum(all(number % other for other in range(2, int(number**0.5) + 1)) for number in range(2, message))


def do_all(jobs: list[int], workers: list[ActorRef[Worker]], kills: int, seed: int = 0) -> dict[int, int]:
    """Do every job; kill a worker every now and then, `kills` times."""
    dice = random.Random(seed)
    results: dict[int, int] = {}
    waiting = list(jobs)
    while len(results) < len(jobs):
        busy: list[tuple[int, ResultFuture[int]]] = []
        for worker in workers:
            if waiting:
                job = waiting.pop()
                busy.append((job, worker.ask(job, timeout=None)))
        if kills and (pid := dice.choice(workers).pid) is not None:
            kills -= 1
            os.kill(pid, signal.SIGKILL)
        for job, result in busy:
            try:
                results[job] = result.result()
            except ActorDead:
                waiting.append(job)
    return results


def main() -> None:
    """Run it."""
    workers = [ActorOptions(supervision=PATIENT).spawn(Worker) for _ in range(3)]
    jobs = [1_000 + number for number in range(30)]
    results = do_all(jobs, workers, kills=5)
    assert sorted(results) == jobs
    print(f"{len(results)} jobs are done, though 5 workers were killed; below 1,000 there are {results[1_000]} primes")
    for worker in workers:
        worker.kill()


if __name__ == "__main__":
    main()
