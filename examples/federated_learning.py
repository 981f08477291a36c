"""Federated learning that survives its servers: `python -m examples.federated_learning`.

Workers in processes of their own train one model on unlike shards of real images. Meanwhile the server's leader, the
front and a worker are killed, and another worker is stalled; a table shows how they go on, and at the end nothing that
was acknowledged is missing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from actorraft import ActorOptions, ActorRaftError, ActorRef, Cluster, ReplicatedStateMachine, Supervision
from examples.learning import MODELS, Model, Task, Told, Worker, load
from parameter_server import ParameterFront
from statemachines.parameter_server import Async, FedBuff, Mean, ParameterServer

RULES = {"async": Async(0.5, rate=0.5), "fedbuff": FedBuff(4, 0.5), "mean": Mean(k=3, round_s=2.0)}
STAYS = Supervision(max_restarts=1000, backoff_s=(0.02, 0.2))


class Run:
    """One training, from its start until enough updates are applied."""

    def __init__(self, cluster: Cluster[ParameterServer], task: Task) -> None:
        self.cluster, self.task = cluster, task
        self.model, self.data = Model(MODELS[task.data, task.model]), load(task.data)
        self.server = cluster.proxy(timeout=60.0, consistency="stale")
        self.front = ActorOptions(supervision=STAYS).spawn(ParameterFront, cluster.endpoints)
        self.workers = [
            ActorOptions(supervision=STAYS).spawn(Worker, replace(task, number=number), cluster.endpoints, [self.front])
            for number in range(task.workers)
        ]
        self.told = [Told(0, 0, float("nan"), 0, 0.0)] * task.workers
        self.curve: list[tuple[float, int, float]] = []  # seconds, updates, accuracy
        self.kills: list[tuple[float, str]] = []
        self.began_s = time.monotonic()

    def look(self) -> int:
        """Ask how far the training is; return how many updates there are."""
        progress = self.cluster.proxy(timeout=60.0).progress()
        _, data = self.server.pull_vector(progress.version)  # a node that was just started waits until it is there
        accuracy = self.model.accuracy(np.frombuffer(data, np.float32), self.data.test_x, self.data.test_y)
        self.curve.append((time.monotonic() - self.began_s, progress.updates, accuracy))
        asked = [worker.ask("status", 1.0) for worker in self.workers]
        for number, answer in enumerate(asked):
            with contextlib.suppress(ActorRaftError, TimeoutError):
                self.told[number] = answer.result(1.5)
        return progress.updates

    def table(self) -> Table:
        """Show it."""
        seconds, updates, accuracy = self.curve[-1]
        last = self.kills[-1][1] if self.kills else ""
        table = Table(title=f"{updates} updates in {seconds:.1f} s, accuracy {accuracy:.1%}  {last}")
        for column in ("worker", "step", "staleness", "loss"):
            table.add_column(column, justify="right")
        for number, told in enumerate(self.told):
            table.add_row(str(number), str(told.step), str(told.staleness), f"{told.loss:.3f}")
        return table

    def stop(self) -> None:
        """Let the workers end, then the front."""
        for answer in [worker.ask("stop", 60.0) for worker in self.workers]:
            with contextlib.suppress(ActorRaftError, TimeoutError):
                answer.result(60.0)
        self.look()
        for ref in (*self.workers, self.front):
            ref.kill()

    def kill_leader(self) -> None:
        """SIGKILL the server's leader; it is started again."""
        leader = self.cluster.wait_for_leader()
        self.cluster.nodes[leader].kill()
        self._note(f"leader {leader} killed")
        self.cluster.nodes[leader].restart()

    def kill_front(self) -> None:
        """SIGKILL the front; its supervision starts it again."""
        _signal(self.front, signal.SIGKILL)
        self._note("front killed")

    def kill_worker(self) -> None:
        """SIGKILL a worker; likewise."""
        _signal(self.workers[0], signal.SIGKILL)
        self._note("worker 0 killed")

    def stall_worker(self) -> None:
        """Stop a worker for a while."""
        _signal(self.workers[1 % len(self.workers)], signal.SIGSTOP)
        self._note("a worker stalled")

    def resume_worker(self) -> None:
        """Let it go on."""
        _signal(self.workers[1 % len(self.workers)], signal.SIGCONT)
        self._note("it goes on")

    def _note(self, what: str) -> None:
        self.kills.append((time.monotonic() - self.began_s, what))


def _signal(ref: ActorRef, number: int) -> None:
    pid = ref.pid
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def train(task: Task, rule: Any, updates: int, *, kills: bool, show: Callable[[Run], None]) -> Run:
    """Train until there are so many updates; check that none is missing, and that the replicas are equal."""
    model = Model(MODELS[task.data, task.model])
    machine = ReplicatedStateMachine(ParameterServer, {"w": model.start(task.seed)}, rule)
    with machine.spawn(3) as cluster:
        run = Run(cluster, task)
        plan = [run.kill_leader, run.stall_worker, run.kill_front, run.resume_worker, run.kill_worker, run.kill_leader]
        while (done := run.look()) < updates or (kills and plan):
            show(run)
            if kills and plan and done >= updates * (7 - len(plan)) / 8:
                plan.pop(0)()
            time.sleep(0.05)
        if kills:
            run.resume_worker()
        run.stop()
        show(run)
        progress = cluster.proxy(timeout=60.0).progress()
        for number, told in enumerate(run.told):
            assert told.step <= progress.steps[number], f"worker {number}: acknowledged and lost"
        assert sum(progress.steps.values()) >= progress.updates >= updates, "an update counts once"
        return run


def plot(runs: dict[str, Run], path: Path) -> None:
    """Draw accuracy over time, with the kills marked."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5))
    for name, run in runs.items():
        axes.plot([each[0] for each in run.curve], [each[2] for each in run.curve], label=name)
        for seconds, what in run.kills:
            axes.axvline(seconds, color="grey", linewidth=0.6)
            axes.text(seconds, 0.02, what, rotation=90, fontsize=7, transform=axes.get_xaxis_transform())
    axes.set_xlabel("seconds")
    axes.set_ylabel("accuracy on examples that nobody trains on")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def compare(task: Task, rule: Any, updates: int, seeds: int, console: Console) -> None:
    """Train with kills and without, for as many updates, by several seeds; print what both reach."""
    table = Table(title=f"accuracy after {updates} updates: {task.data}, {task.model}")
    for column in ("seed", "undisturbed", "with kills", "points"):
        table.add_column(column, justify="right")
    differences = []
    for seed in range(task.seed, task.seed + seeds):
        reached = []
        for kills in (False, True):
            run = train(replace(task, seed=seed), rule, updates, kills=kills, show=lambda run: None)
            reached.append(next(accuracy for _, done, accuracy in run.curve if done >= updates))
        differences.append(100 * (reached[1] - reached[0]))
        table.add_row(str(seed), f"{reached[0]:.1%}", f"{reached[1]:.1%}", f"{differences[-1]:+.1f}")
    console.print(table)
    console.print(f"with kills {sum(differences) / len(differences):+.2f} points, the mean of {seeds} seeds")


def main(
    data: Annotated[str, typer.Option(help="digits or mnist")] = "digits",
    model: Annotated[str, typer.Option(help="softmax, network or million (of parameters)")] = "network",
    rule: Annotated[str, typer.Option(help="async, fedbuff or mean")] = "async",
    workers: Annotated[int, typer.Option(help="processes that train")] = 4,
    updates: Annotated[int, typer.Option(help="when to stop")] = 800,
    seed: Annotated[int, typer.Option(help="of shards and parameters")] = 0,
    compress: Annotated[str, typer.Option(help="none, bfloat16, or a share such as 0.01")] = "none",
    calm: Annotated[bool, typer.Option(help="without kills, for comparison")] = False,
    seeds: Annotated[int, typer.Option(help="so many times, each beside an undisturbed run of as many updates")] = 0,
    png: Annotated[Path, typer.Option(help="where the picture goes")] = Path("federated_learning.png"),
) -> None:
    """Train, kill, and show that nothing is lost."""
    if (data, model) not in MODELS or rule not in RULES:
        raise typer.BadParameter(f"there is no {data} with {model} by {rule}")
    how: Any = {"none": None, "bfloat16": "bfloat16"}.get(compress) or (None if compress == "none" else float(compress))
    task = Task(workers=workers, data=data, model=model, seed=seed, compress=how, rounds=rule == "mean")
    console = Console()
    if seeds:
        compare(task, RULES[rule], updates, seeds, console)
        return
    with Live(console=console, refresh_per_second=8) as live:
        run = train(task, RULES[rule], updates, kills=not calm, show=lambda run: live.update(run.table()))
    plot({f"{data}, {model}, {rule}": run}, png)
    seconds, done, accuracy = run.curve[-1]
    console.print(f"{done} updates in {seconds:.1f} s; accuracy {accuracy:.1%}; none lost, none twice; picture: {png}")


if __name__ == "__main__":
    typer.run(main)
