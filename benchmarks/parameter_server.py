"""How fast workers train through their server's death: `python -m benchmarks.parameter_server`.

Workers in processes of their own train a model of each size on scikit-learn's digits, one of them a straggler, while
the server's leader is killed in the middle. `plain` is the way that comes to mind first: synchronous rounds, one array
in one command a push, linearizable reads that wait for the round. The others go through a front that sums before the
log.

All workers begin at once, when all are ready: how long processes take to start is no part of it.

Shape:      a row for each way and size, the median of the rounds; rounds are interleaved. `seconds_to_target` is None
            where the target was not reached in the time. `applied` is what the server has at the end, and less than was
            acknowledged where its death lost some. A worker's step takes `--step-ms`, as on a device of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from actorraft import ActorOptions, ActorRaftError, ReplicatedStateMachine, Supervision
from benchmarks import screen
from benchmarks.deployment import Unusable
from benchmarks.systems import system

WAYS = ("plain", "ssp", "k-of-n", "async", "bfloat16", "top-k")
OTHERS = ("redis", "ray")
STRAGGLERS = ("none", "constant", "bursts")
MODELS = {650: "softmax", 50_000: "network", 1_000_000: "million"}
STAYS = Supervision(max_restarts=1000, backoff_s=(0.02, 0.2))
LOOK_S = 0.1
KILL_S = 0.4  # after the start: before any way has reached its target


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    seconds: float
    workers: int
    step_s: float
    straggler: str
    kill: str
    target: float
    durability: Any


def measure_other(name: str, size: int, plan: Plan, seed: int) -> dict[str, Any]:
    """Train by way of another system; return what was seen, as `measure` does. Its updates are acknowledged ones."""
    from examples.learning import MODELS as LAYERS
    from examples.learning import Model, Task, load

    other = importlib.import_module(f"benchmarks.others.{name}_parameters")
    model, data = Model(LAYERS["digits", MODELS[size]]), load("digits")
    task = Task(
        workers=plan.workers,
        model=MODELS[size],
        way=name,
        step_s=plan.step_s,
        straggler=plan.straggler,
        seed=seed,
        waits=True,
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        server = other.Server(Path(folder), model.start(seed))
        stack.callback(server.close)
        workers = []
        for number in range(plan.workers):
            options = ActorOptions(supervision=STAYS)
            workers.append(options.spawn(other.ParameterWorker, replace(task, number=number), {0: server.address}, []))
            stack.callback(workers[-1].kill)
        way = other.Way(server.address)
        before = server.written()
        began_s = _begin(workers)
        target: tuple[float, int] | None = None
        killed, logged, extra = plan.kill != "leader", 0, 0
        while (now_s := time.monotonic() - began_s) < plan.seconds:
            if not killed and now_s > KILL_S:
                killed = True
                logged = server.written() - before
                extra = sum(told.acknowledged for told in _ask_all(workers, "status"))
                server.kill()
            if target is None and model.accuracy(way.pull_vector()[1], data.test_x, data.test_y) >= plan.target:
                target = time.monotonic() - began_s, sum(told.acknowledged for told in _ask_all(workers, "status"))
            time.sleep(LOOK_S)
        done = sum(told.acknowledged for told in _ask_all(workers, "status"))
        took_s = time.monotonic() - began_s
        if not extra:
            logged, extra = server.written() - before, done
        told = _ask_all(workers, "stop")
        final, applied = way.pull_vector()[1], way.updates()
        accuracy = model.accuracy(final, data.test_x, data.test_y)
    return {
        "updates_per_s": done / took_s,
        "updates_to_target": target[1] if target else None,
        "seconds_to_target": target[0] if target else None,
        "final_accuracy": accuracy,
        "log_bytes_per_update": logged / max(1, extra),
        "longest_gap_ms": max(each.gap_s for each in told) * 1000,
        "acknowledged": sum(each.acknowledged for each in told),
        "applied": applied,
        "terms": 0,
    }


def _begin(workers: list[Any]) -> float:
    """Have all of them begin at once, when all are ready; return when that was."""
    while not all(told.ready for told in _ask_all(workers, "status")):
        time.sleep(0.01)
    began_s = time.monotonic()
    _ask_all(workers, "go")
    return began_s


def _ask_all(workers: list[Any], what: str) -> list[Any]:
    return [answer.result(60.0) for answer in [worker.ask(what, 60.0) for worker in workers]]


def rule_of(way: str, workers: int) -> Any:
    """Return the rule by which a way trains."""
    from statemachines.parameter_server import Async, Mean

    return {
        "plain": Mean(),
        "ssp": Async(0.0, steps_ahead_max=4),
        "k-of-n": Mean(k=max(1, workers - 1)),
    }.get(way, Async(0.25))


def measure(way: str, size: int, plan: Plan, seed: int) -> dict[str, Any]:
    """Train once; return what was seen."""
    import numpy as np

    from benchmarks.measure import written_bytes
    from examples.learning import MODELS as LAYERS
    from examples.learning import Model, Task, Worker, load
    from parameter_server import ParameterFront
    from statemachines.parameter_server import ParameterServer

    model, data = Model(LAYERS["digits", MODELS[size]]), load("digits")
    task = Task(
        workers=plan.workers,
        model=MODELS[size],
        way="plain" if way == "plain" else "front",
        rounds=way in ("plain", "k-of-n"),
        compress={"bfloat16": "bfloat16", "top-k": 0.01}.get(way),
        step_s=plan.step_s,
        straggler=plan.straggler,
        seed=seed,
        waits=True,
    )
    machine = ReplicatedStateMachine(ParameterServer, {"w": model.start(seed)}, rule_of(way, plan.workers))
    with (
        tempfile.TemporaryDirectory() as folder,
        machine.spawn(3, data_dir=Path(folder) / "data", durability=plan.durability) as cluster,
    ):
        fronts = [ActorOptions(supervision=STAYS).spawn(ParameterFront, cluster.endpoints)] if way != "plain" else []
        server, reader = cluster.proxy(timeout=30.0), cluster.proxy(timeout=30.0, consistency="stale")
        before = written(cluster, written_bytes)
        term = max(row.term or 0 for row in cluster.status())
        workers = [
            ActorOptions(supervision=STAYS).spawn(Worker, replace(task, number=number), cluster.endpoints, fronts)
            for number in range(plan.workers)
        ]
        began_s = _begin(workers)
        target: tuple[float, int] | None = None
        killed = plan.kill != "leader"
        accuracy, logged, extra = 0.0, 0, 0
        while (now_s := time.monotonic() - began_s) < plan.seconds:
            if not killed and now_s > KILL_S:
                killed = True
                leader = cluster.wait_for_leader()
                logged += written(cluster, written_bytes) - before
                extra = server.progress().updates
                cluster.nodes[leader].kill()
                cluster.nodes[leader].restart()
            if target is None:
                with contextlib.suppress(ActorRaftError):
                    version_vector = np.frombuffer(reader.pull_vector()[1], np.float32)
                    accuracy = model.accuracy(version_vector, data.test_x, data.test_y)
                    if accuracy >= plan.target:
                        target = time.monotonic() - began_s, server.progress().updates
            time.sleep(LOOK_S)
        done, took_s = server.progress().updates, time.monotonic() - began_s
        if not logged:
            logged, extra = written(cluster, written_bytes) - before, done
        told = _ask_all(workers, "stop")
        progress = server.progress()
        final = np.frombuffer(server.pull_vector()[1], np.float32)
        terms = max(row.term or 0 for row in cluster.status()) - term
        for ref in (*workers, *fronts):
            ref.kill()
    return {
        "updates_per_s": done / took_s,
        "updates_to_target": target[1] if target else None,
        "seconds_to_target": target[0] if target else None,
        "final_accuracy": model.accuracy(final, data.test_x, data.test_y),
        "log_bytes_per_update": logged / 3 / max(1, extra),
        "longest_gap_ms": max(each.gap_s for each in told) * 1000,
        "acknowledged": sum(each.acknowledged for each in told),
        "applied": progress.updates,
        "terms": terms,
    }


def written(cluster: Any, count: Any) -> int:
    """Return the bytes that the nodes have written, those that are alive."""
    return sum(count(node.pid) for node in cluster.nodes.values() if node.alive)


def why_not(other: str) -> str:
    """Say why a system cannot be compared; "" if it can."""
    if other not in OTHERS:
        return "no comparison with it is built"
    if other == "ray":
        return "" if importlib.util.find_spec("ray") else "it is not installed: pip install ray"
    try:
        system(other)
    except Unusable as error:
        return str(error)
    return ""


def medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each figure; None where most have none."""
    found: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows if row[name] is not None]
        found[name] = statistics.median(values) if 2 * len(values) > len(rows) else None
    return found


def cases(ways: list[str], sizes: list[int], stragglers: list[str]) -> Iterator[tuple[str, int, str]]:
    """Yield (way, size, straggler), the ways next to each other."""
    for straggler in stragglers:
        for size in sizes:
            for way in ways:
                yield way, size, straggler


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    names = ("way", "size", "straggler", "kill")
    figures = ("updates_per_s", "seconds_to_target", "updates_to_target", "final_accuracy", "longest_gap_ms")
    screen.table(
        "Training through the server's death (medians)",
        [*names, *(name.replace("_", " ") for name in figures), "KB logged an update", "acknowledged", "applied"],
        [
            [
                *(str(row[name]) for name in names),
                *(screen.figure(row[name]) for name in figures),
                screen.figure(row["log_bytes_per_update"] / 1000, 1),
                str(row["acknowledged"]),
                str(row["applied"]),
            ]
            for row in rows
        ],
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw updates a second by way, a panel for each size."""
    sizes = sorted({row["size"] for row in rows})
    with screen.picture(path, len(sizes)) as panels:
        for axes, size in zip(panels, sizes, strict=True):
            these = [row for row in rows if row["size"] == size]
            axes.bar([f"{row['way']}\n{row['straggler']}" for row in these], [row["updates_per_s"] for row in these])
            axes.set_title(f"{size:,} floats: updates a second")
            axes.tick_params(axis="x", labelrotation=60, labelsize=7)


def main(
    ways: Annotated[str, typer.Option(help="of " + ", ".join(WAYS))] = ",".join(WAYS),
    sizes: Annotated[str, typer.Option(help="floats: 650, 50000, 1000000")] = "650,50000,1000000",
    straggler: Annotated[str, typer.Option(help="of none, constant, bursts")] = "constant",
    kill: Annotated[str, typer.Option(help="leader or nothing")] = "leader",
    compare: Annotated[str, typer.Option(help="other systems: redis, ray")] = "",
    seconds: Annotated[float, typer.Option(help="of each run")] = 8.0,
    rounds: Annotated[int, typer.Option(help="of all of it, interleaved")] = 1,
    workers: Annotated[int, typer.Option(help="processes that train")] = 4,
    step_ms: Annotated[float, typer.Option(help="that a worker's step takes at the least")] = 5.0,
    target: Annotated[float, typer.Option(help="accuracy to reach")] = 0.93,
    durability: Annotated[str, typer.Option(help="fsync or os")] = "fsync",
    json: Annotated[Path | None, typer.Option(help="write the rows here")] = None,
    plot_to: Annotated[Path | None, typer.Option("--plot", help="draw a picture here")] = None,
) -> None:
    """Measure each way to train."""
    some = screen.names(ways, "--ways", WAYS)
    for other in filter(None, compare.split(",")):
        why = why_not(other)
        if why:
            screen.warn(f"{other} is skipped: {why}")
        else:
            some.append(other)
    counts = [size for size in screen.numbers(sizes, "--sizes") if size in MODELS]
    asked = list(cases(some, counts, screen.names(straggler, "--straggler", STRAGGLERS)))
    seen: dict[tuple[str, int, str], list[dict[str, Any]]] = {case: [] for case in asked}
    with screen.bar(len(asked) * rounds * (seconds + 5)) as bar:
        for number in range(rounds):
            for case in asked:
                way, size, slow = case
                plan = Plan(seconds, workers, step_ms / 1000, slow, kill, target, durability)
                row = (measure_other if way in OTHERS else measure)(way, size, plan, number)
                seen[case].append(row)
                bar.advance(seconds + 5)
    rows = [
        {"benchmark": "parameter_server", "way": way, "size": size, "straggler": slow, "kill": kill, **medians(found)}
        for (way, size, slow), found in seen.items()
    ]
    show(rows)
    if json is not None or plot_to is not None:
        screen.finish(rows, (), json, plot_to, plot)


if __name__ == "__main__":
    typer.run(main)
