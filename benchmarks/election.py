"""How long a cluster is silent when its leader goes: `python -m benchmarks.election`.

One client writes all the time, one write after the other, beside a load of others. The leader is broken at a random
point of the heartbeat interval; the figure is the time from just before the fault until the end of the first write
that began after it, as that client sees it. Then the node is mended and has caught up before the next trial.

A planned transfer breaks nothing: there the figure is the longest time without an acknowledged write around it.

The nodes say when the first of them missed its leader and when there was a new one, by the same clock, so each trial is
told in three parts: detection, vote, and from there to the first commit. `--false-elections` breaks nothing at all, and
shows that full load deposes nobody.
"""

from __future__ import annotations

import json as jsonlib
import math
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import measure, screen
from benchmarks.deployment import Deployment, System
from benchmarks.harness import START_S, Generator, GeneratorFailed
from benchmarks.loadgen import LoadSpec
from benchmarks.systems import usable_systems

HEARTBEAT_S = 0.04  # the default interval; a fault falls somewhere into it
SETTLE_S = 0.15  # of undisturbed writing between trials
AROUND_S = 0.5  # a transfer is watched for so long
SILENCE_S = 60.0  # no system may take longer
QUIET_FAULTS = ("transfer", "none")
FULL_LOAD = 1000  # outstanding, where no election is wanted
PHASES = ("detection_ms", "vote_ms", "first_commit_ms")


@dataclass
class Trials:
    """What one system did, fault after fault."""

    silences_ms: list[float] = field(default_factory=list)
    phases_ms: list[tuple[float, float, float]] = field(default_factory=list)  # as PHASES; nan where it is not known
    errors: int = 0

    def add(self, other: Trials) -> None:
        """Take in another part."""
        self.silences_ms += other.silences_ms
        self.phases_ms += other.phases_ms
        self.errors += other.errors


def run_trials(
    deployment: Deployment, fault: str, trials: int, load: int, rng: random.Random, bar: screen.Bar
) -> Trials:
    """Break the leader again and again under load."""
    seen = Trials()
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
            trial = _one_trial(deployment, probe, fault)
            seen.add(trial)
            deployment.mend()
            bar.advance(1)
            parts = ", ".join(screen.figure(part, 1) for part in trial.phases_ms[0])
            bar.note(f"  {fault}: {trial.silences_ms[0]:.1f} ms ({parts})")
    return seen


def _one_trial(deployment: Deployment, probe: Generator, fault: str) -> Trials:
    if fault in QUIET_FAULTS:
        at = time.monotonic()
        probe.tell(jsonlib.dumps({"at": at, "until": at + AROUND_S}))
        deployment.fault(fault)
    else:
        at = deployment.fault(fault)
        probe.tell(jsonlib.dumps({"at": at, "until": at}))
    line = probe.wait_for("recovered", SILENCE_S)
    quiet = fault in QUIET_FAULTS
    silence_s = line["gap_s"] if quiet else line["recovered_s"] - at
    lost_s, led_s = deployment.phases(at) if fault != "none" else (math.nan, math.nan)
    # Where nothing broke, writes go on; then it is the first one acknowledged under the new leader that counts.
    first_s = next((end_s for end_s in line.get("ends_s", []) if end_s >= led_s), math.nan)
    back_s = first_s if quiet else line["recovered_s"]
    phases = (lost_s - at, led_s - lost_s, back_s - led_s)
    return Trials([silence_s * 1e3], [(phases[0] * 1e3, phases[1] * 1e3, phases[2] * 1e3)], line["errors"])


def watch(each: System, nodes: int, minutes: float, bar: screen.Bar) -> dict[str, Any]:
    """Break nothing: keep the cluster fully loaded so long, and return a row with the term before and after."""
    deployment = each.deploy(nodes, each.election_durability, "kv")
    try:
        seconds = minutes * 60
        load = LoadSpec(endpoints=deployment.endpoints(), concurrency=FULL_LOAD, seconds=seconds)
        spec = LoadSpec(endpoints=deployment.endpoints(), mode="probe", first_key=1_000_000)
        with Generator(deployment.generator(load)) as background, Generator(deployment.generator(spec)) as probe:
            for generator in (background, probe):
                generator.wait_for("ready", START_S)
            term_before = deployment.term()
            background.tell("go")
            background.wait_for("measuring", START_S)
            start = at = time.monotonic()
            probe.tell(jsonlib.dumps({"at": start, "until": start + seconds}))

            def seen(_: int) -> None:
                nonlocal at
                now = time.monotonic()
                bar.advance(now - at)
                at = now

            background.wait_for("measured", SILENCE_S, seen)
            quiet = probe.wait_for("recovered", SILENCE_S)
            done = background.wait_for("done", SILENCE_S)
            term_after = deployment.term()
    finally:
        deployment.close()
    return {
        **_row(each.name, nodes, "none", Trials([quiet["gap_s"] * 1e3], [], quiet["errors"]), FULL_LOAD),
        "trials": 0,
        "minutes": minutes,
        "term_before": term_before,
        "term_after": term_after,
        "commits": done["count"],
        "errors": quiet["errors"] + sum(done["errors"].values()),
    }


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
                    seen.setdefault((each.name, count, fault), Trials()).add(found)
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
        **{name: _median_of(values) for name, values in zip(PHASES, zip(*seen.phases_ms, strict=True), strict=False)},
        "phases_ms": [[screen.number_or_none(value) for value in trial] for trial in seen.phases_ms],
    }


def _median_of(values: Sequence[float]) -> float | None:
    return screen.number_or_none(measure.percentile([value for value in values if not math.isnan(value)], 0.5))


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    names = ("min_ms", "p50_ms", "p99_ms", "max_ms", *PHASES)
    lines = [
        [row["system"], str(row["nodes"]), row["fault"], str(row["trials"])]
        + [screen.figure(row.get(name), 1) for name in names]
        + [str(row["errors"])]
        for row in rows
    ]
    columns = ["system", "nodes", "fault", "trials", "min ms", "p50 ms", "p99 ms", "max ms"]
    columns += ["detection p50", "vote p50", "first commit p50", "errors"]
    screen.table("From the fault to the next committed write, as a client sees it", columns, lines)


def show_watched(rows: list[dict[str, Any]]) -> list[str]:
    """Print what happened where nothing was broken; return what should not have happened."""
    lines = []
    for row in rows:
        before = [row["system"], str(row["nodes"]), screen.figure(row["minutes"], 1), screen.figure(row["commits"], 0)]
        terms = [str(row["term_before"]), str(row["term_after"])]
        lines.append([*before, *terms, screen.figure(row["max_ms"], 1), str(row["errors"])])
    columns = ["system", "nodes", "minutes", "commits", "term before", "term after", "longest silence ms", "errors"]
    screen.table(f"Full load ({FULL_LOAD} outstanding), nothing broken", columns, lines)
    return [
        f"{row['system']}, {row['nodes']} nodes: false elections took the term from {row['term_before']} "
        f"to {row['term_after']}"
        for row in rows
        if row["term_after"] != row["term_before"]
    ]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the distribution of each row (the share of trials that were over after so long), and its median parts."""
    with screen.picture(path, 2) as (shares_axes, parts_axes):
        for row in rows:
            values = sorted(row["silences_ms"])
            shares = [(number + 1) / len(values) for number in range(len(values))]
            shares_axes.step(values, shares, where="post", marker=".", label=_name(row))
        shares_axes.set(xscale="log", xlabel="ms from the fault to the next committed write", ylabel="share of trials")
        shares_axes.set_ylim(0, 1.02)
        shares_axes.legend(fontsize="small")
        told = [row for row in rows if all(row.get(name) is not None for name in PHASES)]
        for row in told:
            left = 0.0
            for number, name in enumerate(PHASES):
                label = name.removesuffix("_ms").replace("_", " ") if row is told[0] else None
                parts_axes.barh(_name(row), row[name], left=left, color=f"C{number}", label=label)
                left += row[name]
        parts_axes.set(xlabel="ms, medians")
        if told:
            parts_axes.legend(fontsize="small")


def _name(row: dict[str, Any]) -> str:
    return f"{row['system']}, {row['nodes']} nodes, {row['fault']}"


def main(
    nodes: Annotated[str, typer.Option(help="Cluster sizes.")] = "3,5",
    trials: Annotated[int, typer.Option(min=1, help="Faults for each cluster size and kind.")] = 100,
    fault: Annotated[
        str, typer.Option(help="crash (SIGKILL), freeze (SIGSTOP), partition, transfer, none (nothing is broken).")
    ] = "crash",
    load: Annotated[int, typer.Option(min=0, help="Commands that a second client keeps outstanding meanwhile.")] = 16,
    false_elections: Annotated[
        bool,
        typer.Option("--false-elections", help="Break nothing: full load for --minutes must not cost an election."),
    ] = False,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long, with --false-elections.")] = 5.0,
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
    if false_elections:
        with screen.bar(len(sizes) * len(systems) * minutes * 60) as bar:
            rows = [watch(each, size, minutes, bar) for size in sizes for each in systems]
        screen.finish(rows, show_watched(rows), json, plot_, plot)
        return
    rows, failures = run(systems, sizes, faults, trials, rounds or (3 if others else 1), load, seed)
    show(rows)
    screen.finish(rows, failures, json, plot_, plot)


if __name__ == "__main__":
    typer.run(main)
