"""Every subcommand by its name: what it prints as a table and as JSON, and how it fails: 1 refused, 2 used wrongly."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from actorraft.cli.app import app
from actorraft.cli.output import as_json
from actorraft.client import administration
from actorraft.client.connect import zeromq_channel
from actorraft.client.requests import NodeRefused
from actorraft.client.thread import ClientThread
from actorraft.cluster.founding import found
from actorraft.cluster.joining import read_token
from benchmarks.others.processes import free_ports
from tests.cli.served import REPOSITORY, Served, eventually
from transports.keys import KeyPair, Keys

ASKING = [
    ("status",),
    ("top", "--count", "1"),
    ("events",),
    ("members", "list"),
    ("members", "add"),
    ("members", "remove", "1"),
    ("members", "promote", "1"),
    ("clients", "list"),
    ("clients", "add", "reports", "--folder", "OUT"),
    ("clients", "revoke", "reports"),
    ("token", "create"),
    ("transfer",),
    ("snapshot",),
    ("backup", "OUT"),
    ("exec", "deposit", '"ann"', "10"),
    ("query", "balance", '"ann"'),
    ("keys", "rotate"),
]
ALONE = ["init", "serve", "verify", "show", "skip", "recover", "k8s"]
NEEDS_A_QUORUM = [words for words in ASKING if words[0] not in ("status", "top", "events")]


def run(words: tuple[str, ...], tmp_path: Path, client: Path | None, *, timeout: str = "0.3") -> Result:
    said = [str(tmp_path / "out") if word == "OUT" else word for word in words]
    patience = [] if words[0] in ("top", "events") else ["--timeout", timeout]
    environment = {"ACTORRAFT_CLIENT": str(client) if client is not None else None, "COLUMNS": "80"}
    options = said.index("--") if "--" in said else len(said)
    return CliRunner().invoke(app, [*said[:options], *patience, *said[options:]], env=environment)


def plain(done: Result) -> str:
    """What it said on standard error, its frames and line breaks taken away."""
    return " ".join(done.stderr.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_where_no_node_runs_it_is_refused_and_says_what_to_look_at(words: tuple[str, ...], tmp_path: Path) -> None:
    found(tmp_path / "c", "tests.cli.bank:Bank", [f"127.0.0.1:{port}" for port in free_ports(3)])
    done = run(words, tmp_path, tmp_path / "c" / "client")
    assert done.exit_code == 1
    assert "no node can be reached" in plain(done) or "are the addresses in the client's folder right?" in plain(done)
    assert not (tmp_path / "out").exists(), "nothing half-made is left behind"


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_without_a_folder_or_its_key_it_is_used_wrongly_and_says_which(words: tuple[str, ...], tmp_path: Path) -> None:
    done = run(words, tmp_path, None)
    assert (done.exit_code, "--client FOLDER, or ACTORRAFT_CLIENT" in plain(done)) == (2, True)
    done = run(words, tmp_path, tmp_path / "nowhere")
    assert (done.exit_code, "is no client's folder" in plain(done)) == (2, True)
    found(tmp_path / "c", "tests.cli.bank:Bank", ["127.0.0.1:7000"])
    (tmp_path / "c" / "client" / "secret.key").unlink()
    done = run(words, tmp_path, tmp_path / "c" / "client")
    assert (done.exit_code, "actorraft clients add NAME" in plain(done)) == (2, True)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("statsu",), "Did you mean 'status'?"),
        (("members", "lsit"), "Did you mean 'list'?"),
        (("clients", "ad"), "Did you mean 'add'?"),
        (("status", "--clinet", "x"), "No such option: --clinet"),
        (("status", "-o", "xml"), "is not one of 'table', 'json'"),
        (("exec",), "Missing argument"),
        (("members", "remove", "one"), "valid int"),
        (("k8s", "rendr"), "Did you mean 'render'?"),
        (("exec", "deposit", "9" * 40), "cannot be sent as plain data"),
        (("query", "balance", '"\\ud800"'), "cannot be sent as plain data"),
        (("exec", "deposit", "[" * 100_000), "is not JSON"),
    ],
)
def test_a_name_that_is_mistyped_is_used_wrongly_and_the_nearest_is_named(words: tuple[str, ...], why: str) -> None:
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, why in plain(done)) == (2, True), done.stderr


@pytest.mark.long
def test_every_name_has_help_and_completion_offers_it() -> None:
    names = {words[0] for words in ASKING} | set(ALONE)
    told = CliRunner().invoke(app, ["--help"]).stdout
    assert not [name for name in names if name not in told]
    for shell, environment in (
        ("bash", {"COMP_WORDS": "actorraft ", "COMP_CWORD": "1"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "actorraft "}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "actorraft ", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ):
        offered = complete(shell, environment)
        assert not [name for name in names if name not in offered], shell
    assert "promote" in complete("bash", {"COMP_WORDS": "actorraft members ", "COMP_CWORD": "2"})


@pytest.mark.parametrize(
    "value",
    [
        {(1, 2): 3}, {b"a": 1}, [float("nan")], float("inf"), "\ud800", {1}, b"\xff", 10**5000, {1: object()},
        ValueError("no"), ["€"],
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_whatever_a_machine_answers_is_printed_as_json(value: Any) -> None:
    def no(_: str) -> None:
        raise AssertionError

    text = as_json(value)
    json.loads(text, parse_constant=no)
    text.encode()


def test_what_is_too_deep_or_a_ring_is_printed_as_json_too() -> None:
    ring: list[Any] = []
    ring.append(ring)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (ring, deep, {"badly": Rude()}):
        json.loads(as_json(value))


def test_where_the_terminal_has_not_all_letters_json_has_them_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert as_json(["€"]) == '["\\u20ac"]'


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError


def complete(shell: str, environment: dict[str, str]) -> str:
    """What a shell is offered; typer names the variable for the program, and the action for the shell."""
    program = "import sys; sys.argv[0] = 'actorraft'; from actorraft.cli.app import app; app(prog_name='actorraft')"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment, "_ACTORRAFT_COMPLETE": f"complete_{shell}", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    ).stdout


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("names"), machine="tests.cli.bank:Bank") as made:
        made.start()
        made.settled()
        yield made


def said(served: Served, tmp_path: Path, *words: str) -> tuple[str, Any]:
    """The same subcommand as a table and as JSON."""
    table = run(words, tmp_path, served.client, timeout="60")
    assert table.exit_code == 0, table.stderr
    if words not in (("token", "create"), ("members", "add")):  # these are to be copied, whole
        assert max(map(len, table.stdout.splitlines())) <= 80
    done = run((*words, "-o", "json"), tmp_path, served.client, timeout="60")
    assert done.exit_code == 0, done.stderr
    return table.stdout, json.loads(done.stdout)


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_each_asks_a_cluster_that_serves_and_prints_a_table_or_json(served: Served, tmp_path: Path) -> None:
    table, rows = said(served, tmp_path, "status")
    assert "leader" in table
    assert [row["id"] for row in rows] == [0, 1, 2]
    assert [row["pid"] for row in rows] == [served.processes[node_id].pid for node_id in range(3)]
    assert [row["address"] for row in rows] == [f"tcp://127.0.0.1:{port}" for port in served.ports]
    assert {"state", "term", "commit_index", "last_applied", "lag_entries", "alive", "error", "endpoint", "address",
            "version", "machine_version", "links", "uptime_s", "match_index", "not_ready", "not_ready_s", "dropped", "disk"} <= rows[0].keys()  # fmt: skip
    assert run(("exec", "deposit", '"ann"', "10"), tmp_path, served.client, timeout="60").stdout == "10\n"
    assert run(("query", "balance", '"ann"'), tmp_path, served.client, timeout="60").stdout == "10\n"
    table, rows = said(served, tmp_path, "members", "list")
    assert [(row["id"], row["role"]) for row in rows] == [(0, "voter"), (1, "voter"), (2, "voter")]
    assert set(rows[0]) == {"id", "role", "peer", "client", "storage_id"}
    _, token = said(served, tmp_path, "token", "create")
    assert set(token) == {"token", "ttl_s", "learner"}
    table, more = said(served, tmp_path, "members", "add")
    assert "actorraft serve --join" in table
    assert set(more) == {"token", "ttl_s", "learner"}
    added = run(("clients", "add", "r", "--folder", "OUT", "-o", "json"), tmp_path, served.client, timeout="60")
    assert set(json.loads(added.stdout)) == {"name", "role", "folder", "public_key"}
    table, rows = said(served, tmp_path, "clients", "list")
    assert {row["name"] for row in rows} == {"admin", "r"}
    before = rows
    not_it = run(("members", "remove", "2"), tmp_path, tmp_path / "out", timeout="60")
    assert (not_it.exit_code, "may not ask for change_membership" in plain(not_it)) == (1, True)
    assert said(served, tmp_path, "clients", "list")[1] == before
    revoked = run(("clients", "revoke", "r", "-o", "json"), tmp_path, served.client, timeout="60")
    assert json.loads(revoked.stdout) == {"revoked": "r"}
    shut_out = run(("status",), tmp_path, tmp_path / "out", timeout="3")
    assert (shut_out.exit_code, "no member answers: no node can be reached" in plain(shut_out)) == (1, True)
    assert run(("exec", "deposit", '"ann"', "-1"), tmp_path, served.client, timeout="60").stdout == "9\n"
    _, led = said(served, tmp_path, "transfer")
    assert led["leader"] in (0, 1, 2)
    _, taken = said(served, tmp_path, "snapshot")
    assert sorted(taken) == ["0", "1", "2"]


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_what_the_machine_or_the_cluster_refuses_is_told_by_name(served: Served, tmp_path: Path) -> None:
    for words, why in (
        (("exec", "depositt", '"ann"', "10"), "no command 'depositt'; it has deposit"),
        (("query", "balanc", '"ann"'), "no query 'balanc'; it has balance"),
        (("exec", "deposit", '"ann"'), "deposit"),
        (("transfer", "7"), "there is no node 7"),
        (("members", "promote", "7"), "there is no learner 7"),
        (("keys", "rotate", "7"), "there is no member 7"),
        (("clients", "revoke", "nobody"), "nobody"),
        (("clients", "revoke", "admin"), "the last administrator"),
        (("members", "remove", "7"), "there is no node 7"),
        (("members", "remove", "--", "-1"), "there is no node -1"),
        (("clients", "add", "OUT", "--role", "superuser"), "is not one of 'read', 'write', 'admin'"),
        (("clients", "add", ""), "text that can be printed"),
        (("clients", "add", "two\nlines", "--folder", "OUT"), "text that can be printed"),
        (("clients", "add", "reports", "--folder", str(served.client)), "is the folder of the client admin"),
        (("clients", "add", "reports", "--folder", str(served.folder(0))), "is the folder of a node"),
        (("exec", "deposit", '"ann"', "-x"), "there is no option -x"),
    ):
        done = run(words, tmp_path, served.client, timeout="60")
        assert done.exit_code in (1, 2), words
        assert why in plain(done), (words, done.stderr)
        assert done.stdout == ""
    assert not (tmp_path / "out").exists(), "nothing half-made is left behind"
    assert not (served.folder(0) / "client.toml").exists()


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_a_folder_that_is_older_than_a_member_reaches_that_too(served: Served, tmp_path: Path) -> None:
    def old() -> Path:
        shutil.rmtree(tmp_path / "old", ignore_errors=True)
        folder = shutil.copytree(served.client, tmp_path / "old")
        text = (folder / "client.toml").read_text()
        (folder / "client.toml").write_text(text[: text.index("[members.2]")])
        return folder

    taken = run(("snapshot", "-o", "json"), tmp_path, old(), timeout="60")
    assert sorted(json.loads(taken.stdout)) == ["0", "1", "2"]
    done = run(("transfer", "2"), tmp_path, old(), timeout="60")
    assert done.exit_code == 0, done.stderr
    asked = ("query", "balance", '"nobody"', "--to", "2")
    assert run(asked, tmp_path, old(), timeout="60").stdout == "0\n"


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_a_key_that_is_none_ends_no_node(served: Served, tmp_path: Path) -> None:
    token = run(("token", "create"), tmp_path, served.client, timeout="60").stdout.strip()
    said = read_token(token)
    keys = Keys(KeyPair.of_secret(said["k"]), {number: (key,) for number, (_, key) in enumerate(said["m"])})
    seeds = {number: at for number, (at, _) in enumerate(said["m"])}
    thread = ClientThread(seeds, lambda: zeromq_channel(keys, bytes.fromhex(said["c"])))
    asked = {"storage_id": "0" * 32, "learner": True, "peer": "127.0.0.1:9", "client": "127.0.0.1:10"}
    try:
        for odd in ({"public_key": "~" * 40}, {"public_key": KeyPair.generate().public, "peer": "nowhere"}):
            with pytest.raises(NodeRefused, match=r"looks like|characters of Z85"):
                administration.ask_leader(thread, "join", {**asked, **odd}, 60.0)
    finally:
        thread.close()
    assert all(process.poll() is None for process in served.processes.values())


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_a_client_may_be_called_what_its_people_write(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    add = ("clients", "add", "Kasse 😀", "--role", "read", "--folder", str(folder))
    assert run(add, tmp_path, served.client, timeout="60").exit_code == 0
    assert run(("query", "balance", '"ann"'), tmp_path, folder, timeout="60").exit_code == 0
    assert run(("clients", "revoke", "Kasse 😀"), tmp_path, served.client, timeout="60").exit_code == 0


@pytest.mark.cluster
@pytest.mark.slow  # every subcommand waits for its patience; make slow
@pytest.mark.timeout(300)
def test_without_a_quorum_what_needs_one_is_refused_and_status_tells_what_is_left(
    served: Served, tmp_path: Path
) -> None:
    for node_id in (1, 2):
        served.kill(node_id)
    client = tmp_path / "client"
    shutil.copytree(served.client, client)
    eventually(lambda: run(("transfer",), tmp_path, client).exit_code == 1)
    for words in NEEDS_A_QUORUM:
        done = run(words, tmp_path, client)
        assert done.exit_code == 1, (words, done.stdout, done.stderr)
        assert plain(done).startswith("actorraft: "), words
        assert "Traceback" not in done.stderr
    rows = json.loads(run(("status", "-o", "json"), tmp_path, client, timeout="2").stdout)
    assert [row["alive"] for row in rows] == [True, False, False]
    assert "knows no leader" in rows[0]["not_ready"]
    assert rows[0]["not_ready_s"] > 0
    assert run(("top", "--count", "1"), tmp_path, client).exit_code == 0
