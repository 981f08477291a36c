"""The benchmarks: what they count, what they say, and that they run."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import typer

from actorraft import codec
from benchmarks import election, measure, picture, recovery, screen, throughput
from benchmarks.deployment import Unusable
from benchmarks.harness import Generator, GeneratorFailed, Measured
from benchmarks.loadgen import LoadSpec, Window, thinned
from benchmarks.others import processes, redis_system
from benchmarks.systems import system, usable_systems

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_percentile_is_one_of_the_values() -> None:
    assert measure.percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert measure.percentile([5.0], 0.99) == 5.0
    assert measure.percentile([float(n) for n in range(1, 101)], 0.99) == 99.0
    assert math.isnan(measure.percentile([], 0.5))


def test_a_run_says_how_its_interpreter_was_built(capsys: pytest.CaptureFixture[str]) -> None:
    screen.heading("a run")
    assert f"{measure.built()} ·" in " ".join(capsys.readouterr().out.split())
    assert re.fullmatch(r"built (with(out)? PGO and LTO|with (PGO|LTO) alone)", measure.built())


def test_the_picture_of_the_readme_is_drawn_from_figures_that_the_pages_name(tmp_path: Path) -> None:
    rows = json.loads((ROOT / "docs" / "figures.json").read_text())
    pages = (ROOT / "docs" / "performance.md").read_text()

    picture.draw(rows, tmp_path / "picture.png")

    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert (ROOT / "docs" / "figures.png").exists()
    for row in rows:
        for figure in ("commits_per_s", "max_ms"):
            assert figure not in row or f"{row[figure]:,}" in pages


class Answering:
    """Answers each submission at once, or with an error, and counts what is outstanding."""

    def __init__(self, failing: int = 0) -> None:
        self.failing = failing
        self.submitted = 0

    def __call__(self, number: int) -> Future[Any]:
        assert number == self.submitted
        self.submitted += 1
        future: Future[Any] = Future()
        if self.failing and number % self.failing == 0:
            future.set_exception(OSError("refused"))
        else:
            future.set_result(number)
        return future


def test_a_window_keeps_exactly_so_many_outstanding() -> None:
    answering = Answering()
    window = Window(answering, 7, (OSError,))
    window.fill()
    assert (len(window.outstanding), answering.submitted) == (7, 7)
    assert window.take(1) == 1
    window.fill()
    assert (len(window.outstanding), answering.submitted) == (7, 8)
    assert window.take(3) == 3
    assert window.take(256) == 4
    window.fill()
    assert (len(window.outstanding), answering.submitted) == (7, 15)


def test_a_window_counts_what_succeeded_and_names_what_did_not(capsys: pytest.CaptureFixture[str]) -> None:
    answering = Answering(failing=10)
    window = Window(answering, 5, (OSError,))
    count, seconds = window.run(warmup_s=0.0, seconds=0.01)
    assert count > 0
    assert seconds > 0
    assert window.errors["OSError"] > 0
    assert count + window.errors["OSError"] <= answering.submitted
    assert not window.outstanding
    events = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert [event for event in events if event != "progress"] == ["measuring", "measured"]


def test_a_window_does_not_hide_an_error_that_it_was_not_told_of() -> None:
    with pytest.raises(OSError, match="refused"):
        Window(Answering(failing=1), 1, ()).run(0.0, 0.01)


def test_latencies_are_thinned_evenly() -> None:
    assert thinned([1.0, 2.0, 3.0], most=3) == [1.0, 2.0, 3.0]
    assert thinned([float(n) for n in range(10)], most=5) == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_a_spec_travels_as_text() -> None:
    spec = LoadSpec(endpoints={"0": "ipc:///tmp/x"}, concurrency=3, operation="lease")
    assert LoadSpec.from_json(spec.to_json()) == spec


def test_a_generator_that_dies_is_reported_with_its_last_words() -> None:
    dying = [sys.executable, "-c", "import sys; sys.exit('no such cluster')"]
    with Generator(dying) as generator, pytest.raises(GeneratorFailed, match="no such cluster"):
        generator.wait_for("ready", 30)


@pytest.mark.parametrize("text", ["", "a", "1,,b", "0", "-3", "1.5"])
def test_options_that_are_no_numbers_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="--nodes takes whole numbers"):
        screen.numbers(text, "--nodes")


def test_options_with_unknown_names_are_refused() -> None:
    assert screen.names("none", "--reads", ("lease",)) == []
    with pytest.raises(typer.BadParameter, match="--reads takes lease, not 'eventual'"):
        screen.names("lease,eventual", "--reads", ("lease",))
    with pytest.raises(Unusable, match="no system 'consul'"):
        system("consul")


def plan(**changes: Any) -> throughput.Plan:
    values: dict[str, Any] = {
        "nodes": [3], "concurrency": [1, 64], "payload": [128], "durability": ["fsync"], "reads": [],
        "commands": ["kv"], "clients": [1], "seconds": 1.0, "warmup_s": 0.0, "rounds": 1,
    }  # fmt: skip
    return throughput.Plan(**{**values, **changes})


def test_reads_run_once_and_not_for_each_durability() -> None:
    asked = plan(durability=["fsync", "os"], reads=["linearizable"])
    assert [operation for operation, *_ in asked.windows("fsync", "kv")] == ["set", "set", *["linearizable"] * 2]
    assert [operation for operation, *_ in asked.windows("os", "kv")] == ["set", "set"]
    assert asked.window_count([system("actorraft")]) == 6


def test_a_row_holds_medians_over_the_rounds() -> None:
    work = {"writes": 5, "entries_written": 20, "appends_sent": 10, "entries_sent": 40}
    rounds = [
        Measured(per_s, per_s / 10, 9.0, 100, 1, {"Busy": 1}, {"leader": 1.0}, work=work)
        for per_s in (10.0, 30.0, 20.0)
    ]
    row = throughput._row(("actorraft", 3, "fsync", "kv", "set", 1, 128, 64), rounds, plan(rounds=3))
    assert (row["commits_per_s"], row["p50_ms"], row["errors"], row["rounds"]) == (20.0, 2.0, 3, 3)
    assert {"benchmark", "system", "nodes", "concurrency", "payload_bytes", "durability", "p99_ms"} <= set(row)
    assert (row["commands_per_entry"], row["entries_per_message"], row["entries_per_fsync"]) == (5.0, 4.0, 4.0)


class Deposed:
    """A deployment whose new leader is known to be there at 10.0 s and to be missed from 9.5 s on."""

    def fault(self, kind: str) -> float:
        return 9.0

    def phases(self, at_s: float) -> tuple[float, float]:
        return 9.5, 10.0


class Telling:
    """A probe that says what it saw."""

    def tell(self, line: str) -> None:
        assert "until" in line

    def wait_for(self, event: str, timeout_s: float) -> dict[str, Any]:
        return {"recovered_s": 10.25, "gap_s": 1.5, "ends_s": [9.2, 10.75, 10.8], "errors": 0}


def test_a_trial_is_told_in_three_parts_that_sum_up_to_the_silence() -> None:
    trial = election._one_trial(Deposed(), Telling(), "crash")  # type: ignore[arg-type]
    assert (trial.silences_ms, trial.phases_ms) == ([1250.0], [(500.0, 500.0, 250.0)])


def test_writes_go_on_around_a_transfer_and_the_first_one_under_the_new_leader_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(election.time, "monotonic", lambda: 9.0)
    trial = election._one_trial(Deposed(), Telling(), "transfer")  # type: ignore[arg-type]
    assert (trial.silences_ms, trial.phases_ms) == ([1500.0], [(500.0, 500.0, 750.0)])


def test_a_term_that_grew_under_load_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"system": "actorraft", "nodes": 3, "minutes": 5.0, "commits": 10, "max_ms": 3.0, "errors": 0}
    assert election.show_watched([{**row, "term_before": 1, "term_after": 1}]) == []
    assert election.show_watched([{**row, "term_before": 1, "term_after": 2}]) == [
        "actorraft, 3 nodes: false elections took the term from 1 to 2"
    ]


def test_ratios_are_ours_over_theirs() -> None:
    base = {"nodes": 3, "concurrency": 64, "payload_bytes": 128, "operation": "set", "clients": 1, "commands": "kv"}
    ours = {
        **base,
        "system": "actorraft",
        "durability": "fsync",
        "commits_per_s": 300.0,
        "reads_per_s": 0.0,
        "p50_ms": 1.0,
    }
    slow = {**ours, "system": "other", "durability": "memory", "commits_per_s": 100.0, "p50_ms": 4.0}
    assert throughput.ratios([ours, slow]) == [["other", "memory", "set", "3", "64", "3.0", "0.25"]]


def test_a_system_that_is_not_installed_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    said: list[str] = []
    assert [each.name for each in usable_systems(["etcd"], said.append)] == ["actorraft"]
    assert said == ["without etcd: etcd is not in the PATH; on Debian: apt-get install etcd-server"]


@pytest.mark.parametrize(
    ("name", "packages"), [("zookeeper", "zookeeper default-jre-headless"), ("redis", "redis-server")]
)
def test_a_system_of_debians_says_which_packages_have_it(
    monkeypatch: pytest.MonkeyPatch, name: str, packages: str
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda module: module)
    with pytest.raises(Unusable, match=f"on Debian: apt-get install {packages}$"):
        system(name)


def test_a_client_that_is_missing_is_named_with_the_extra_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(Unusable, match=r"Python's kazoo is not installed: pip install 'actorraft\[rivals\]'"):
        processes.needed_module("kazoo")


class Pipeline:
    """A connection to a Redis of which so many replicas answer, and what was sent."""

    def __init__(self, have: int) -> None:
        self.have = have
        self.sent: list[Any] = []

    def pipeline(self, *, transaction: bool) -> Pipeline:
        assert not transaction
        return self

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None: ...

    def set(self, key: str, value: bytes) -> None:
        self.sent.append(("SET", key))

    def execute_command(self, *command: Any) -> None:
        self.sent.append(command[:2])

    def execute(self) -> list[Any]:
        return [*[True] * (len(self.sent) - 1), self.have]


@pytest.mark.parametrize(("have", "error"), [(2, None), (1, redis_system.TooFewReplicas)])
def test_a_write_to_redis_counts_when_all_replicas_have_it(have: int, error: type[Exception] | None) -> None:
    pipeline = Pipeline(have)
    lane = redis_system.Lane(LoadSpec(endpoints={"port": "0", "replicas": "2"}), pipeline)
    writes: list[redis_system.Write] = [(number, Future()) for number in (0, 1)]

    lane.send(writes)

    assert pipeline.sent == [("SET", "key-000000000000"), ("SET", "key-000000000001"), ("WAIT", 2)]
    assert [type(future.exception()) for _, future in writes] == [type(None) if error is None else error] * 2


class Stillborn:
    """A system that never starts."""

    name = "actorraft"
    durabilities = ("fsync",)
    faults = ("crash",)
    election_durability = "fsync"

    def deploy(self, nodes: int, durability: str, commands: str) -> Any:
        raise TimeoutError("no leader")


def test_what_fails_is_said_and_does_not_end_the_run() -> None:
    rows, failures = throughput.run(plan(), [Stillborn()])
    assert (rows, failures) == ([], ["actorraft, 3 nodes, fsync: no leader"])
    rows, failures = election.run([Stillborn()], [3], ["crash"], 2, 1, 0, 0)
    assert (rows, failures) == ([], ["actorraft, 3 nodes, crash: no leader"])


def run(module: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *options], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.cluster
def test_throughput_runs_and_writes_its_rows_and_its_picture(tmp_path: Path) -> None:
    options = ["--nodes", "3", "--concurrency", "1,64", "--seconds", "0.5", "--warmup", "0.2", "--durability", "os"]
    options += ["--commands", "kv,method,object", "--clients", "1,2"]
    said = run("benchmarks.throughput", *options, "--json", str(tmp_path / "t.json"), "--plot", str(tmp_path / "t.png"))
    assert "Throughput" in said
    rows = json.loads((tmp_path / "t.json").read_text())
    assert len(rows) == 3 * 4 + 4  # each command's shape, and the reads on the first
    for row in rows:
        assert row["commits_per_s"] + row["reads_per_s"] > 0
        assert row["errors"] == 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        if row["operation"] == "set":
            assert row["commands_per_entry"] > 0.9  # entries that are no commands (a check, a session) count too
            assert row["entries_per_fsync"] > 0
        assert {"leader", "client 0", "follower 0", "follower 1"} <= set(row["cpu_s_per_100k_by_process"])
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.cluster
def test_election_runs_and_writes_its_rows_and_its_picture(tmp_path: Path) -> None:
    options = ["--nodes", "3", "--trials", "3", "--fault", "crash,transfer"]
    said = run("benchmarks.election", *options, "--json", str(tmp_path / "e.json"), "--plot", str(tmp_path / "e.png"))
    assert "From the fault to the next committed write" in said
    rows = json.loads((tmp_path / "e.json").read_text())
    assert [(row["fault"], row["trials"]) for row in rows] == [("crash", 3), ("transfer", 3)]
    for row in rows:
        assert 0 < row["p50_ms"] <= row["max_ms"]
        assert all(row[name] > 0 for name in election.PHASES)
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.cluster
def test_full_load_costs_no_election(tmp_path: Path) -> None:
    options = ["--nodes", "3", "--false-elections", "--minutes", "0.05", "--json", str(tmp_path / "e.json")]
    assert "nothing broken" in run("benchmarks.election", *options)
    (row,) = json.loads((tmp_path / "e.json").read_text())
    assert row["term_before"] == row["term_after"] >= 1
    assert row["commits"] > 0
    assert row["errors"] == 0


@pytest.mark.cluster
def test_recovery_runs_from_log_and_snapshot_and_watches_a_stream(tmp_path: Path) -> None:
    options = ["--entries", "5000", "--commits", "20000", "--json", str(tmp_path / "r.json")]
    said = run("benchmarks.recovery", *options)
    assert "all processes start again, from a log of 5,000 entries" in said
    rows = {row["what"]: row for row in json.loads((tmp_path / "r.json").read_text())}
    assert len(rows) == 12
    assert all(row["value"] > 0 for row in rows.values())
    assert len(rows["20,000 commits: memory of the largest node, first half"]["memory_mib"]) == recovery.PARTS


@pytest.mark.cluster
def test_startup_runs_and_says_what_an_idle_node_holds(tmp_path: Path) -> None:
    run("benchmarks.startup", "--nodes", "1,3", "--trials", "1", "--json", str(tmp_path / "s.json"))
    rows = {row["what"]: row for row in json.loads((tmp_path / "s.json").read_text())}
    assert rows["spawn(3) to the first commit"]["p50_s"] > 0
    assert 10 << 20 < rows["close() of 3"]["idle_node_bytes"] < 40 << 20


@pytest.mark.long
def test_steps_shows_what_each_step_costs() -> None:
    shown = run("benchmarks.steps", "--commands", "8")
    for step in ("a call to bytes", "a future: made, resolved, looked at", "a call applied: session, machine, result"):
        assert step in shown


def test_a_log_made_by_hand_is_one_that_a_client_could_have_made() -> None:
    register, *commands = recovery.single_commands(7, 2, 3, 5)
    assert codec.decode_request(codec.unstamp(register.item)[1]) == codec.Register(7)
    frames = [codec.decode_request(codec.unstamp(entry.item)[1]) for entry in commands]
    assert [(frame.client_id, frame.first_sequence, frame.count) for frame in frames] == [(7, n, 1) for n in range(3)]
    assert codec.decode_body(frames[1].body) == [["set", "key-000000000001", b"vvvvv"]]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("other", ["zookeeper", "redis"])
def test_a_system_of_debians_is_measured_beside_ours(other: str, tmp_path: Path) -> None:
    try:
        system(other)
    except Unusable as error:
        pytest.skip(str(error))
    options = ["--nodes", "3", "--concurrency", "1,64", "--seconds", "0.5", "--warmup", "0.2", "--durability", "fsync"]
    options += ["--reads", "none", "--rounds", "1", "--clients", "1,2", "--compare", other]
    said = run("benchmarks.throughput", *options, "--json", str(tmp_path / "t.json"))
    assert "ActorRaft against the others" in said
    rows = [row for row in json.loads((tmp_path / "t.json").read_text()) if row["system"] == other]
    assert len(rows) == 4
    for row in rows:
        assert row["commits_per_s"] > 0
        assert (row["errors"], row["elections"]) == (0, 0)
        assert {"leader", "client 0", "follower 0", "follower 1"} <= set(row["cpu_s_per_100k_by_process"])
