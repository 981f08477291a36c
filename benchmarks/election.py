"""How long a cluster is silent when its leader goes: `python -m benchmarks.election`.

One client writes all the time, one write after the other, beside a load of others. The leader is broken at a random
point of the heartbeat interval; the figure is the time from just before the fault until the end of the first write
that began after it, as that client sees it. Then the node is mended and has caught up before the next trial.

A planned transfer breaks nothing: there the figure is the longest time without an acknowledged write around it.
"""

from __future__ import annotations

import json as jsonlib
import random
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import measure, screen
from benchmarks.harness import START_S, Generator, GeneratorFailed, write_json
from benchmarks.loadgen import LoadSpec
from benchmarks.systems import Deployment, System, usable_systems

HEARTBEAT_S = 0.04  # the default interval; a fault falls somewhere into it
SETTLE_S = 0.3  # of undisturbed writing between trials
AROUND_S = 0.5  # a transfer is watched for so long
SILENCE_S = 60.0  # no system may take longer
QUIET_FAULTS = ("transfer", "none")


@dataclass
class Trials:
    """What one system did, fault after fault."""

    silences_ms: list[float]
    errors: int = 0


def run_trials(
    deployment: Deployment, fault: str, trials: int, load: int, rng: random.Random, bar: screen.Bar
) -> Trials:
    """Break the leader again and again under load."""
    seen = Trials([])
    with ExitStack() as stack:
        endpoints = deployment.endpoints()
        spec = LoadSpec(endpoints=endpoints, mode="probe", first_key=1_000_000)
        probe = stack.enter_context(Generator(deployment.generator(spec)))
        probe.wait_for("ready", START_S)
        if load:
            endless = LoadSpec(endpoints=endpoints, concurrency=load, warmup_s=0.0, seconds=1e6)
            background = stack.enter_context(Generator(deployment.generator(endless)))
            stack.callback(background.process.kill)
            background.wait_for("ready", START_S)
            background.tell("go")
        for _ in range(trials):
            time.sleep(SETTLE_S + rng.uniform(0, HEARTBEAT_S))
            line = _one_trial(deployment, probe, fault)
            seen.silences_ms.append(line["silence_ms"])
            seen.errors += line["errors"]
            deployment.mend()
            bar.advance(1)
            bar.note(f"  {fault}: {line['silence_ms']:.1f} ms")
    return seen


def _one_trial(deployment: Deployment, probe: Generator, fault: str) -> dict[str, Any]:
    if fault in QUIET_FAULTS:
        at = time.monotonic()
        probe.tell(jsonlib.dumps({"at": at, "until": at + AROUND_S}))
        deployment.fault(fault)
    else:
        at = deployment.fault(fault)
        probe.tell(jsonlib.dumps({"at": at, "until": at}))
    line = probe.wait_for("recovered", SILENCE_S)
    silence_s = line["gap_s"] if fault in QUIET_FAULTS else line["recovered_s"] - at
    return {"silence_ms": silence_s * 1e3, "errors": line["errors"]}


def run(
    systems: list[System], nodes: list[int], faults: list[str], trials: int, rounds: int, load: int, seed: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run every fault on every system, the systems in turn; return one row a combination, and what failed."""
    rng = random.Random(seed)
    failures: list[str] = []
    seen: dict[tuple[str, int, str], Trials] = {}
    kinds = [(each, count, fault) for count in nodes for fault in faults for each in systems if fault in each.faults]
    share = -(-trials // rounds)
    with screen.bar(len(kinds) * share * rounds) as bar:
        try:
            for _ in range(rounds):
                for each, count, fault in kinds:
                    bar.say(f"{each.name}, {count} nodes: {fault}")
                    bar.note(f"{each.name}, {count} nodes: {fault}")
                    try:
                        found = _on_a_fresh_deployment(each, count, fault, share, load, rng, bar)
                    except (GeneratorFailed, TimeoutError) as error:
                        failures.append(f"{each.name}, {count} nodes, {fault}: {error}")
                        continue
                    total = seen.setdefault((each.name, count, fault), Trials([]))
                    total.silences_ms += found.silences_ms
                    total.errors += found.errors
        except KeyboardInterrupt:
            screen.console.print("stopped; what was measured so far:")
    return [_row(*key, trials_seen, load) for key, trials_seen in seen.items()], failures


def _on_a_fresh_deployment(
    each: System, nodes: int, fault: str, trials: int, load: int, rng: random.Random, bar: screen.Bar
) -> Trials:
    deployment = each.deploy(nodes, each.election_durability, "kv")
    try:
        return run_trials(deployment, fault, trials, load, rng, bar)
    finally:
        deployment.close()


def _row(system_name: str, nodes: int, fault: str, seen: Trials, load: int) -> dict[str, Any]:
    return {
        "benchmark": "election",
        "system": system_name,
        "nodes": nodes,
        "fault": fault,
        "trials": len(seen.silences_ms),
        "p50_ms": screen.number_or_none(measure.percentile(seen.silences_ms, 0.5)),
        "p99_ms": screen.number_or_none(measure.percentile(seen.silences_ms, 0.99)),
        "max_ms": screen.number_or_none(max(seen.silences_ms)),
        "min_ms": screen.number_or_none(min(seen.silences_ms)),
        "mean_ms": screen.number_or_none(statistics.fmean(seen.silences_ms)),
        "errors": seen.errors,
        "load": load,
        "silences_ms": [round(value, 3) for value in seen.silences_ms],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    names = ("min_ms", "p50_ms", "p99_ms", "max_ms")
    lines = [
        [row["system"], str(row["nodes"]), row["fault"], str(row["trials"])]
        + [screen.figure(row[name], 1) for name in names]
        + [str(row["errors"])]
        for row in rows
    ]
    columns = ["system", "nodes", "fault", "trials", "min ms", "p50 ms", "p99 ms", "max ms", "errors"]
    screen.table("From the fault to the next committed write, as a client sees it", columns, lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the distribution of each row: the share of trials that were over after so many milliseconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    for row in rows:
        values = sorted(row["silences_ms"])
        shares = [(number + 1) / len(values) for number in range(len(values))]
        axes.step(
            values, shares, where="post", marker=".", label=f"{row['system']}, {row['nodes']} nodes, {row['fault']}"
        )
    axes.set(
        xscale="log", xlabel="ms from the fault to the next committed write", ylabel="share of trials", ylim=(0, 1.02)
    )
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=120)
    pyplot.close(picture)


def main(
    nodes: Annotated[str, typer.Option(help="Cluster sizes.")] = "3,5",
    trials: Annotated[int, typer.Option(min=1, help="Faults for each cluster size and kind.")] = 20,
    fault: Annotated[
        str, typer.Option(help="crash (SIGKILL), freeze (SIGSTOP), partition, transfer, none (nothing is broken).")
    ] = "crash",
    load: Annotated[int, typer.Option(min=0, help="Commands that a second client keeps outstanding meanwhile.")] = 16,
    compare: Annotated[str, typer.Option(help="Other systems in the same run: pysyncobj, etcd.")] = "none",
    rounds: Annotated[int, typer.Option(min=0, help="Parts the trials are in. 0: 3 to compare, else 1.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the points in time.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the rows there.")] = None,
    plot_: Annotated[Path | None, typer.Option("--plot", help="Draw a picture there (PNG).")] = None,
) -> None:
    """Measure how long writes stop when the leader goes, as a client that writes all the time sees it."""
    others = screen.names(compare, "--compare", ("pysyncobj", "etcd"))
    faults = [part.strip() for part in fault.split(",")]
    for name in faults:
        screen.names(name.replace("none", ""), "--fault", ("crash", "freeze", "partition", "transfer"))
    screen.heading("Election")
    sizes = screen.numbers(nodes, "--nodes")
    systems = usable_systems(others, screen.warn)
    rows, failures = run(systems, sizes, faults, trials, rounds or (3 if others else 1), load, seed)
    show(rows)
    if json is not None:
        write_json(rows, json)
        screen.written(json)
    if plot_ is not None:
        plot(rows, plot_)
        screen.written(plot_)
    for failure in failures:
        screen.console.print(f"[red]failed: {failure}[/red]", highlight=False)
    if failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
