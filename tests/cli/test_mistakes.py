"""What an operator gets wrong at the command line: refused before anything is changed, with a word on what to do next."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from actorraft.cli import serving
from actorraft.cli.app import app
from actorraft.client.requests import NodeRefused
from actorraft.cluster import joining, recovering
from actorraft.cluster.joining import make_token, read_token
from actorraft.errors import UsageError
from actorraft.node import admission
from actorraft.node.folder import read_folder
from actorraft.node.standalone import hash_seed_of, prepare_data
from actorraft.storage.files import Files
from benchmarks.others.processes import free_ports
from transports import resolver
from transports.keys import ClientFolder, KeyPair, Keys

MACHINE = "statemachines.kv:KVStore"


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ("10.0.0.1", "host:5555"),
        ("host 0:7100", "host:5555"),
        ("http://10.0.0.1:7100", "host:5555"),
        ("10.0.0.1:0", "from 1 to 65534"),
        ("10.0.0.1:65535", "from 1 to 65534"),
        ("10.0.0.1:7100,10.0.0.1:7101", "would be used twice"),
        ("10.0.0.1:7100,10.0.0.1:7100", "would be used twice"),
        (",", "at least one node"),
    ],
)
def test_an_address_that_cannot_be_founds_nothing(tmp_path: Path, nodes: str, says: str) -> None:
    done = CliRunner().invoke(app, ["init", str(tmp_path / "new"), "--machine", MACHINE, "--nodes", nodes])
    assert done.exit_code == 2, done.output
    assert says in done.output
    assert not (tmp_path / "new").exists()


def test_a_place_that_cannot_be_written_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["init", str(tmp_path / "new"), "--machine", MACHINE, "--nodes", "10.0.0.1:7100"]
    monkeypatch.setattr(os, "fsync", no_space)
    full = CliRunner().invoke(app, words)
    assert "No space left on device" in full.output
    monkeypatch.undo()
    (tmp_path / "file").touch()
    not_there = CliRunner().invoke(app, ["init", str(tmp_path / "file" / "new"), *words[2:]])
    assert str(tmp_path / "file") in not_there.output
    for done in (full, not_there):
        assert done.exit_code in (1, 2), done.output
        assert done.exception is None or isinstance(done.exception, SystemExit), "a traceback"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    assert CliRunner().invoke(app, words).exit_code == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")
@pytest.mark.parametrize("words", [("init", "new", "--machine", MACHINE, "--nodes", "10.0.0.1:7100"), ("--version",)])
def test_what_cannot_be_printed_is_told_in_a_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "actorraft", *words], cwd=tmp_path, stdout=full, stderr=PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr.splitlines()[1:]) == (1, [])
    assert "standard output takes nothing: No space left" in done.stderr


def test_a_node_whose_line_nobody_takes_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    turned_off: list[bool] = []
    monkeypatch.setattr(serving, "say", no_space)
    monkeypatch.setattr(serving, "unread", lambda: turned_off.append(True))
    serving._say("node 0 serves")
    assert turned_off
    assert "node 0 serves" in caplog.text


def test_an_interpreter_that_ignores_the_cluster_s_hash_seed_does_not_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        CliRunner().invoke(app, ["init", str(tmp_path / "new"), "--machine", MACHINE, "--nodes", "h:7100"]).exit_code
        == 0
    )
    folder = read_folder(tmp_path / "new" / "node-0", environment={})
    monkeypatch.setattr(serving, "sys", SimpleNamespace(flags=SimpleNamespace(ignore_environment=1)))
    monkeypatch.setenv(serving.HASH_SEED, str(hash_seed_of(folder)))
    with pytest.raises(UsageError, match="PYTHONHASHSEED"):
        serving._with_hash_seed(folder)


def no_space(_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_key_or_a_folder_that_is_written_in_part_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ClientFolder("0" * 16, {0: "tcp://127.0.0.1:7101"}, Keys(KeyPair.generate()))
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match=r"secret\.key"):
        folder.save(tmp_path / "client")
    assert list((tmp_path / "client").iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr(Path, "replace", lambda *_: no_space(0))
    with pytest.raises(OSError, match=r"client\.toml"):
        folder.save(tmp_path / "client")
    assert [file.name for file in (tmp_path / "client").iterdir()] == ["secret.key"]
    monkeypatch.undo()
    folder.save(tmp_path / "client")
    assert ClientFolder.load(tmp_path / "client") == folder


@pytest.mark.parametrize("text", [b"", b"\xff\xfe\n", b"bm9uc2Vuc2U\n", None])
def test_what_is_no_token_is_refused_wherever_it_comes_from(
    text: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = (
        io.TextIOWrapper(io.BytesIO(text), "utf-8") if text is not None else None
    )  # closed, as a service may have it
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(UsageError, match="no token"):
        read_token("-")
    file = tmp_path / "token"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(UsageError, match="no token" if text is not None else "cannot be read from"):
        read_token(f"@{file}")


@pytest.mark.parametrize("answers", [True, False], ids=["there is none", "no name server answers"])
def test_a_name_of_a_host_without_an_address_is_told(
    answers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def look_up(host: str) -> tuple[str, ...]:
        if not answers:
            over.wait(60.0)
        raise socket.gaierror(socket.EAI_NONAME, f"nobody has heard of {host}")

    monkeypatch.setattr(resolver, "look_up", look_up)
    words = ["init", str(tmp_path / "new"), "--machine", MACHINE, "--nodes", "hots0:7100"]
    assert CliRunner().invoke(app, words).exit_code == 0
    ask = ["members", "list", "--client", str(tmp_path / "new" / "client"), "--timeout", "0.3"]
    done = CliRunner().invoke(app, ask)
    over.set()
    assert done.exit_code == 1
    why = "nobody has heard of hots0" if answers else "no name server has answered yet"
    assert f"the name hots0 cannot be resolved: {why}" in done.stderr


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_node_that_is_told_to_end_while_it_starts_ends_well(tmp_path: Path, number: signal.Signals) -> None:
    words = ["init", str(tmp_path / "new"), "--machine", MACHINE, "--nodes", f"127.0.0.1:{free_ports(1)[0]}"]
    assert CliRunner().invoke(app, words).exit_code == 0

    def with_a_signal_on_its_way() -> None:  # as it is blocked by a node that starts once more, with its hash seed
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        signal.signal(number, signal.SIG_DFL)  # who runs the tests may ignore it
        os.kill(os.getpid(), number)

    done = subprocess.run(
        [sys.executable, "-m", "actorraft", "serve", str(tmp_path / "new" / "node-0")],
        preexec_fn=with_a_signal_on_its_way,
        stdout=PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.cluster
@pytest.mark.parametrize("nohup", [False, True])
def test_a_node_whose_terminal_goes_away_leaves_unless_it_is_to_stay(tmp_path: Path, nohup: bool) -> None:
    words = ["init", str(tmp_path / "new"), "--machine", MACHINE, "--nodes", f"127.0.0.1:{free_ports(1)[0]}"]
    assert CliRunner().invoke(app, words).exit_code == 0
    node = subprocess.Popen(
        [sys.executable, "-m", "actorraft", "serve", str(tmp_path / "new" / "node-0")],
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL),
        stdout=PIPE,
        stderr=PIPE,
        text=True,
    )
    try:
        assert node.stdout is not None
        assert "serves at" in node.stdout.readline()
        node.send_signal(signal.SIGHUP)
        if nohup:
            node.send_signal(signal.SIGTERM)  # the first that asks it to leave: a second one would end it with 143
        said = node.communicate(timeout=60)[1]
    finally:
        node.kill()
        node.communicate()
    assert node.returncode == 0, said


@pytest.mark.cluster
def test_a_line_that_cannot_serve_says_why_and_what_to_do(tmp_path: Path) -> None:
    port, free, more = free_ports(3)
    words = ["init", str(tmp_path / "new"), "--machine", MACHINE, "--nodes", f"127.0.0.1:{port}"]
    assert CliRunner().invoke(app, words).exit_code == 0

    def copy(name: str) -> Path:
        return shutil.copytree(tmp_path / "new" / "node-0", tmp_path / name)

    elsewhere = copy("elsewhere")
    readable = copy("readable")
    (readable / "secret.key").chmod(0o644)
    no_module = copy("no-module")
    text = (no_module / "node.toml").read_text()
    (no_module / "node.toml").write_text(text.replace(MACHINE, "not_there:Bank"))
    other_arguments = copy("other-arguments")
    text = (other_arguments / "node.toml").read_text()
    (other_arguments / "node.toml").write_text(text.replace('kwargs = "{}"', """kwargs = '{"currency": "EUR"}'"""))
    other_data = copy("other-data")
    (other_data / "first-start").unlink()
    lines = {
        "another process listens there": [copy("taken")],
        "this machine has no such address": [elsewhere, "--listen", f"192.0.2.1:{free}"],
        "host:5555": [copy("no-port"), "--listen", "127.0.0.1"],
        "at most 65534": [copy("last-port"), "--listen", "127.0.0.1:65535"],
        "the port after this one": [copy("last-of-all"), "--listen", "127.0.0.1:65534", "--actors"],
        "chmod 600": [readable],
        "Install its package": [no_module],
        "KVStore does not take these arguments": [other_arguments, "--listen", f"127.0.0.1:{more}"],
        "has begun before": [other_data, "--data-dir", tmp_path / "empty"],
        "actorraft init makes one": [tmp_path],
        "token create": ["--join", "nonsense", "--data-dir", tmp_path / "joined", "--listen", f"127.0.0.1:{free}"],
        "HOST:PORT": ["--join", "nonsense", "--data-dir", tmp_path / "joined"],
    }
    with socket.create_server(("127.0.0.1", port)):
        running = {
            says: subprocess.Popen(
                [sys.executable, "-m", "actorraft", "serve", *map(str, line)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for says, line in lines.items()
        }
        for says, process in running.items():
            output = process.communicate(timeout=60)[0]
            assert says in output
            assert "Traceback" not in output
            assert process.returncode in (1, 2), output


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_machine_that_is_told_to_end_while_it_joins_ends_well(tmp_path: Path, number: signal.Signals) -> None:
    (port,) = free_ports(1)
    token = make_token(KeyPair.generate().secret, "00112233445566aa", [(f"tcp://127.0.0.1:{port}", "0" * 40)])
    words = ["serve", "--join", token, "--data-dir", str(tmp_path / "new"), "--listen", f"127.0.0.1:{port}"]
    node = subprocess.Popen([sys.executable, "-m", "actorraft", *words], stdout=PIPE, stderr=PIPE, text=True)
    try:
        while not (tmp_path / "new" / "storage-id").exists():
            assert node.poll() is None, node.communicate()
            time.sleep(0.02)
        node.send_signal(number)
        said = node.communicate(timeout=60)
    finally:
        node.kill()
    assert (node.returncode, *said) == (0, "", "")


def test_a_recovery_takes_no_other_cluster_s_client_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--machine", MACHINE, "--nodes", "h:7100"]
    for name in ("this", "other"):
        assert CliRunner().invoke(app, ["init", str(tmp_path / name), *words]).exit_code == 0
    node, other = tmp_path / "this" / "node-0", tmp_path / "other" / "client"
    went_on: list[Path] = []

    def go_on_alone(path: Path, _: object) -> str:
        went_on.append(path)
        return "0" * 16

    survivor = SimpleNamespace(words="node 0 has this and that")
    found = SimpleNamespace(folder=read_folder(node, environment={}), survivor=survivor)
    monkeypatch.setattr(recovering, "look", lambda *_: found)
    monkeypatch.setattr(recovering, "go_on_alone", go_on_alone)
    before = (other / "client.toml").read_bytes()
    for client, says in ((other, "is for clients of cluster"), (tmp_path / "none", "is no client's folder")):
        environment = {"ACTORRAFT_CLIENT": str(client)}
        done = CliRunner().invoke(app, ["recover", str(node), "--keep", "0"], env=environment)
        assert (done.exit_code, says in done.stderr) == (2, True), done.output
    assert (went_on, (other / "client.toml").read_bytes()) == ([], before)
    own = tmp_path / "this" / "client"
    assert CliRunner().invoke(app, ["recover", str(node), "--keep", "0", "--client", str(own)]).exit_code == 0
    assert (went_on, ClientFolder.load(own).cluster_id) == ([node], "0" * 16)


def test_a_machine_waits_for_its_turn_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[object] = [
        NodeRefused(f"{admission.NOT_NOW}node 3 is catching up"),
        NodeRefused(f"{admission.NOT_NOW}another change of membership is under way"),
        {"node_id": 4},
        NodeRefused("this token's time is over: ask for a new one"),
    ]

    def ask_leader(*_: object) -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(joining, "ask_leader", ask_leader)
    monkeypatch.setattr(joining, "AGAIN_S", 0.0)
    thread: Any = None
    assert joining._ask_to_join(thread, {}) == {"node_id": 4}
    with pytest.raises(NodeRefused, match="time is over"):
        joining._ask_to_join(thread, {})


def test_a_token_of_another_cluster_than_the_folder_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert (
        CliRunner().invoke(app, ["init", str(tmp_path / "c"), "--machine", MACHINE, "--nodes", "h:7100"]).exit_code == 0
    )
    folder = tmp_path / "c" / "node-0"
    own = read_folder(folder, environment={}).cluster.id
    for cluster_id, said in ((own, False), ("0" * 16, True)):
        token = make_token(KeyPair.generate().secret, cluster_id, [])
        assert joining.join_cluster(token, folder, listen="", advertise="", learner=False) == folder
        assert ("to join the other one, name a new directory" in caplog.text) is said
    for gone in ("-", "@/nowhere"):
        assert joining.join_cluster(gone, folder, listen="", advertise="", learner=False) == folder


@pytest.mark.parametrize(
    "words", [("verify",), ("show",), ("recover", "--show"), ("skip", "--index", "0", "--checksum", "0")]
)
def test_a_path_that_no_system_takes_is_told_in_a_line(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [words[0], "x" * 300, *words[1:]])
    assert (done.exit_code in (1, 2), "File name too long" in done.output) == (True, True)
    assert isinstance(done.exception, SystemExit), "a traceback"


def test_a_first_start_without_room_names_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        CliRunner().invoke(app, ["init", str(tmp_path / "c"), "--machine", MACHINE, "--nodes", "h:7100"]).exit_code == 0
    )
    folder = tmp_path / "c" / "node-0"
    monkeypatch.setattr(Files, "write", lambda *_: no_space(0))
    with pytest.raises(OSError, match="No space left") as raised:
        prepare_data(folder, tmp_path / "data", read_folder(folder, environment={}))
    assert str(raised.value.filename).startswith(str(tmp_path / "data"))
    assert (folder / "first-start").exists(), "nothing has begun"


@pytest.mark.parametrize("words", [("status",), ("snapshot",), ("transfer", "1"), ("members", "list")])
@pytest.mark.parametrize("timeout", ["1e12", "1e308", "inf", "0"])
def test_seconds_that_no_clock_counts_are_refused_by_name(words: tuple[str, ...], timeout: str) -> None:
    told = CliRunner().invoke(app, [*words, "--timeout", timeout])
    assert told.exit_code == 2
    assert "--timeout" in told.output
