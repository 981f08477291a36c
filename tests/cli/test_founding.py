"""`actorraft init`: what it writes, and what it refuses; and the folder that `serve` reads."""

from __future__ import annotations

import json
import re
import shutil
import stat
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from actorraft.cli.app import app
from actorraft.cluster.joining import join_cluster
from actorraft.errors import StorageFailed, UsageError
from actorraft.node import standalone
from actorraft.node.folder import FIRST_START, NODE_FILE, read_folder, take_first_start, write_folder
from actorraft.node.interpreters import PYTHON
from actorraft.node.process import check_settings
from actorraft.node.standalone import (
    arguments_of,
    first_configuration,
    overrides_of,
    plan,
    prepare_data,
    settings_of,
)
from actorraft.storage.files import Files
from transports.keys import ClientFolder

NODES = "127.0.0.1:7100,[::1]:7200,host2:7300"


def init(tmp_path: Path, *more: str, nodes: str = NODES) -> Any:
    words = ["init", str(tmp_path / "bank"), "--machine", "bank:Bank", "--nodes", nodes, *more]
    return CliRunner().invoke(app, words)


def test_each_node_has_a_folder_of_its_own_and_no_other_s_secret(tmp_path: Path) -> None:
    assert init(tmp_path, "--kwargs", '{"currency": "USD", "none": null}').exit_code == 0
    folders = sorted((tmp_path / "bank").iterdir())
    assert [folder.name for folder in folders] == ["client", "node-0", "node-1", "node-2"]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}
    secrets = [(folder / "secret.key").read_text() for folder in folders]
    assert len(set(secrets)) == 4
    assert {stat.S_IMODE((folder / "secret.key").stat().st_mode) for folder in folders} == {0o600}
    for folder, secret in zip(folders, secrets, strict=True):
        for file in folder.iterdir():
            assert file.name == "secret.key" or not any(each.strip() in file.read_text() for each in secrets)
        assert (folder / FIRST_START).exists() == folder.name.startswith("node")
        assert secret


def test_ids_keys_and_addresses_agree_in_all_folders(tmp_path: Path) -> None:
    init(tmp_path)
    said = [tomllib.loads((tmp_path / "bank" / f"node-{n}" / "node.toml").read_text()) for n in range(3)]
    assert said[0]["members"] == said[1]["members"] == said[2]["members"]
    assert said[0]["cluster"] == said[1]["cluster"] == said[2]["cluster"]
    assert [one["node"]["storage_id"] for one in said] == [said[0]["members"][str(n)]["storage_id"] for n in range(3)]
    assert said[1]["members"]["1"]["peer"] == "[::1]:7200"
    assert said[1]["members"]["1"]["client"] == "[::1]:7201"
    assert [one["node"]["listen"] for one in said] == ["127.0.0.1:7100", "[::1]:7200", "0.0.0.0:7300"]


def test_all_nodes_begin_with_the_same_configuration(tmp_path: Path) -> None:
    init(tmp_path, "--args", "[1]")
    read = [read_folder(tmp_path / "bank" / f"node-{n}", environment={}) for n in range(3)]
    configurations = {first_configuration(one, one.config()) for one in read}
    assert len(configurations) == 1
    (configuration,) = configurations
    assert configuration.voters == {0, 1, 2}
    assert [client.role for client in configuration.clients] == ["admin"]
    assert dict(configuration.settings)["args"] == "[1]"
    assert settings_of(read[0], read[0].config())["machine"] == '"bank:Bank"'


@pytest.mark.parametrize(
    ("more", "nodes", "why"),
    [
        ((), "127.0.0.1", "looks like"),
        ((), "127.0.0.1:99999", "looks like"),
        ((), "127.0.0.1:65535", "the port after"),
        ((), "a:7100,a:7101", "used twice"),
        ((), "a:7100,a:7100", "used twice"),
        ((), "localhost:7100,127.0.0.1:7101", "used twice"),
        ((), "[::1]:7100,[0:0::1]:7100", "used twice"),
        ((), "0.0.0.0:7100", "nobody can dial"),
        ((), "a:7100,[::]:7100", "nobody can dial"),
        ((), "*:7100", "nobody can dial"),
        ((), "", "at least one node"),
        (("--no-keys",), "10.0.0.1:7100", "not on the loopback"),
        (("--args", "{}"), NODES, "--args is a list"),
        (("--kwargs", "{x"), NODES, "not JSON"),
        (("--machine", "bank"), NODES, "module:Class"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    more: tuple[str, ...], nodes: str, why: str, tmp_path: Path
) -> None:
    done = init(tmp_path, *more, nodes=nodes)
    assert done.exit_code == 2
    assert why in done.output
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize(
    ("module", "machine", "more", "why"),
    [
        ("", "no_such_module:Bank", (), "No module named 'no_such_module'"),
        ("", "odd:Bank", (), "no attribute 'Bank'"),
        ("def x(:", "odd:Bank", (), "SyntaxError"),
        ("print('noise'); raise RuntimeError('no database')", "odd:Bank", (), "no database"),
        ("import sys; sys.exit(3)", "odd:Bank", (), "SystemExit: 3"),
        ("import actorraft\nactorraft.ReplicatedStateMachine(dict).spawn(1)", "odd:Bank", (), "imports the module odd"),
        ("class Bank:\n  def __init__(self, currency): ...", "odd:Bank", (), "argument: 'currency'"),
        ("class Bank:\n  def __init__(self, currency=0): ...", "odd:Bank", ("--kwargs", '{"curency": 1}'), "curency"),
    ],
)
def test_a_machine_that_cannot_be_made_here_is_warned_of_and_may_still_be_made_elsewhere(
    module: str, machine: str, more: tuple[str, ...], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "odd", raising=False)
    done = init(tmp_path, "--machine", machine, *more, "-o", "json")
    monkeypatch.delitem(sys.modules, "odd", raising=False)
    assert done.exit_code == 0
    assert why in done.stderr
    assert json.loads(done.stdout)["folders"], "nothing else is printed there"


def test_who_listens_at_every_address_is_dialled_where_it_was(tmp_path: Path) -> None:
    assert overrides_of(None, "0.0.0.0:7100", "", "") == {
        "node.listen": "0.0.0.0:7100",
        "node.client_listen": "0.0.0.0:7101",
    }
    named = overrides_of(None, "[::]:7100", "a:7200", "")
    assert (named["node.advertise"], named["node.client_advertise"]) == ("a:7200", "a:7201")
    assert overrides_of(None, "10.0.0.1:7100", "", "")["node.advertise"] == "10.0.0.1:7100"
    assert init(tmp_path, "--machine", "statemachines.kv:KVStore").exit_code == 0
    folder = tmp_path / "bank" / "node-0"
    for advertise in ("[::]:7100", "a:0"):
        with pytest.raises(UsageError, match="nobody can dial"):
            plan(folder, read_folder(folder, overrides=overrides_of(None, "", advertise, "")))
        with pytest.raises(UsageError, match="nobody can dial"):
            join_cluster("-", tmp_path / "joined", listen="a:7100", advertise=advertise, learner=False)
    assert not (folder / "data").exists()
    assert not (tmp_path / "joined").exists()


def test_a_node_that_the_others_know_by_its_key_does_not_serve_without(tmp_path: Path) -> None:
    init(tmp_path, "--machine", "statemachines.kv:KVStore", nodes="127.0.0.1:7100")
    folder = tmp_path / "bank" / "node-0"
    (folder / "secret.key").unlink()
    with pytest.raises(UsageError, match=r"secret\.key is missing"):
        plan(folder, read_folder(folder, environment={}))
    assert not (folder / "data").exists()


def test_a_node_whose_machine_cannot_be_made_leaves_its_folder_as_it_was(tmp_path: Path) -> None:
    assert init(tmp_path, "--machine", "no_such_module:Bank").exit_code == 0
    folder = tmp_path / "bank" / "node-0"
    before = sorted(folder.iterdir())
    with pytest.raises(UsageError, match="no_such_module"):
        plan(folder, read_folder(folder))
    assert sorted(folder.iterdir()) == before


def test_a_directory_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / "mine").touch()
    assert init(tmp_path).exit_code == 2
    assert [one.name for one in (tmp_path / "bank").iterdir()] == ["mine"]


# -- reading


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("[node]", "[nodes]", "did you mean 'node'"),
        ("listen = ", "lisen = ", "did you mean 'listen'"),
        ("durability = ", "durabilty = ", "did you mean 'durability'"),
        ('durability = "fsync"', 'durability = "sometimes"', "Invalid enum value 'sometimes'.*one of fsync, os"),
        ('profile = "lan"', 'profile = "LAN"', "one of local, lan, wan"),
        ("[node]\nid = 0", "[node]\nid = 1", "by .members. node 0 has the storage id"),
        ("[node]\nid = 0", "[node]\nid = 7", "put back what actorraft init wrote"),
        ("[members.1]", "[members.-1]", "numbers from 0"),
        ("[raft]", "[raft]\nelection_timeout = 3", "did you mean 'election_timeout_ticks'"),
        ("public_key = ", "publickey = ", "did you mean 'public_key'"),
        ("[cluster]", "[cluster", "cannot be read"),
        ('\nid = "', '\nid = "x', "16 hexadecimal digits"),
        ('seed = ""', 'seed = "x"', "a whole number, or empty"),
        ('storage_id = "', 'storage_id = "x', "32 hexadecimal digits"),
    ],
)
def test_a_slip_of_the_pen_is_named_with_the_nearest_that_is_right(
    before: str, after: str, why: str, tmp_path: Path
) -> None:
    init(tmp_path)
    file = tmp_path / "bank" / "node-0" / "node.toml"
    file.write_text(file.read_text().replace(before, after, 1))
    with pytest.raises(UsageError, match=why):
        read_folder(file.parent, environment={})


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ('[http]\nlisten = ""', '[http]\nlisten = "127.0.0.1"', r"http\.listen: .*looks like"),
        ('peer = "127.0.0.1:7100"', 'peer = "127.0.0.1"', r"members\.0\.peer: .*looks like"),
        ('\nlisten = "127.0.0.1:7100"', '\nlisten = ""', r"node\.listen: .*looks like"),
        ('client = "127.0.0.1:7101"', 'client = "127.0.0.1:0"', r"members\.0\.client: nobody can dial"),
        ('\nadvertise = "127.0.0.1:7100"', '\nadvertise = "[::]:7100"', r"node\.advertise: nobody can dial"),
    ],
)
def test_an_address_that_cannot_be_is_named_before_anything_is_written(
    before: str, after: str, why: str, tmp_path: Path
) -> None:
    init(tmp_path, "--machine", "statemachines.kv:KVStore")
    file = tmp_path / "bank" / "node-0" / "node.toml"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after, 1))
    with pytest.raises(UsageError, match=why):
        plan(file.parent, read_folder(file.parent, environment={}))
    assert not (file.parent / "data").exists()


def test_what_an_editor_puts_before_the_first_line_is_no_slip(tmp_path: Path) -> None:
    init(tmp_path)
    for file in ((tmp_path / "bank" / "node-0" / "node.toml"), (tmp_path / "bank" / "client" / "client.toml")):
        file.write_text("\ufeff" + file.read_text(), "utf-8")
    assert read_folder(tmp_path / "bank" / "node-0", environment={}).node.id == 0
    assert ClientFolder.load(tmp_path / "bank" / "client").name == "admin"


def test_the_environment_goes_before_the_file_and_the_command_line_before_both(tmp_path: Path) -> None:
    init(tmp_path)
    folder = tmp_path / "bank" / "node-0"
    environment = {"ACTORRAFT_NODE__LISTEN": "127.0.0.1:1", "ACTORRAFT_RAFT__TICK_S": "0.02", "ACTORRAFT_CLIENT": "x"}
    read = read_folder(folder, environment=environment)
    assert read.node.listen == "127.0.0.1:1"
    assert read.config().tick_s == 0.02
    assert read_folder(folder, environment=environment, overrides={"node.listen": "127.0.0.1:2"}).node.listen.endswith(
        "2"
    )


@pytest.mark.parametrize("variable", ["ACTORRAFT_NODE__LISTN", "ACTORRAFT_NOD__LISTEN"])
def test_a_variable_that_nobody_would_read_is_refused(variable: str, tmp_path: Path) -> None:
    init(tmp_path)
    with pytest.raises(UsageError, match="did you mean"):
        read_folder(tmp_path / "bank" / "node-0", environment={variable: "x"})


def test_numbers_that_cannot_be_are_refused_by_name(tmp_path: Path) -> None:
    init(tmp_path)
    read = read_folder(tmp_path / "bank" / "node-0", environment={"ACTORRAFT_RAFT__TICK_S": "-1"})
    with pytest.raises(UsageError, match=r"\[raft\].*tick_s is 0.0001 to 60.0, not -1"):
        read.config()


def test_the_mark_of_the_first_start_is_taken_once(tmp_path: Path) -> None:
    init(tmp_path)
    folder = tmp_path / "bank" / "node-0"
    assert take_first_start(folder)
    assert not take_first_start(folder)


@pytest.mark.parametrize("name", ["🏦", 'Konten "A" \\ B', "銀行"])
def test_a_cluster_may_be_called_what_its_people_write(name: str, tmp_path: Path) -> None:
    assert init(tmp_path, "--name", name, "--kwargs", '{"separator": "\\u007f"}').exit_code == 0
    read = read_folder(tmp_path / "bank" / "node-0", environment={})
    assert (read.cluster.name, ClientFolder.load(tmp_path / "bank" / "client").cluster_name) == (name, name)
    assert arguments_of(read) == ((), {"separator": "\x7f"})


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--name", "a\nb"), "text that can be printed"),
        (("--name", "a\x7fb"), "text that can be printed"),
        (("--name", "a\udcffb"), "text that can be printed"),
        (("--args", "[" * 100_000), "--args is not JSON"),
        (("--kwargs", '{"a":' * 100_000), "--kwargs is not JSON"),
    ],
)
def test_a_name_or_arguments_that_cannot_be_written_down_found_nothing(
    more: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    done = init(tmp_path, *more)
    assert (done.exit_code, says in done.output) == (2, True), done.output
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_has_the_mark_of_its_first_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init(tmp_path)
    read = read_folder(tmp_path / "bank" / "node-0", environment={})
    replace = Files.replace

    def ends_before(file: str) -> None:
        def replaced(self: Files, path: Path, content: bytes) -> None:
            if path.name == file:
                raise OSError(28, "No space left on device")  # or the machine goes off
            replace(self, path, content)

        monkeypatch.setattr(Files, "replace", replaced)

    for file in (NODE_FILE, FIRST_START):
        ends_before(file)
        with pytest.raises(UsageError, match="cannot be written"):
            write_folder(tmp_path / file, read, first_start=True)
        assert not (tmp_path / file / NODE_FILE).exists(), "a later start would take it for one that has begun"


@pytest.mark.parametrize("of_another", [False, True])
def test_a_mark_that_a_start_did_not_come_to_is_taken_by_the_next(
    of_another: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init(tmp_path)
    first, data = tmp_path / "bank" / "node-0", tmp_path / "data"
    read = read_folder(first, environment={})

    def ends(_: Path) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(standalone, "take_first_start", ends)
    with pytest.raises(KeyboardInterrupt):
        prepare_data(first, data, read)
    monkeypatch.undo()
    if of_another:  # a slip: its own mark is not for another's data
        other = tmp_path / "bank" / "node-1"
        prepare_data(other, data, read_folder(other, environment={}))
        assert (other / FIRST_START).exists()
        return
    probation = prepare_data(first, data, read)
    assert probation is not None
    assert probation.marked
    assert not (first / FIRST_START).exists()
    shutil.rmtree(data)
    with pytest.raises(UsageError, match="has begun before"):
        prepare_data(first, data, read)


@pytest.mark.parametrize("public", ["~" * 40, "#" * 40, "é" * 40])
def test_a_key_that_is_none_is_named_with_its_file(public: str, tmp_path: Path) -> None:
    init(tmp_path, nodes="127.0.0.1:7100")
    node, client = tmp_path / "bank" / "node-0", tmp_path / "bank" / "client"
    for file in (node / "node.toml", client / "client.toml"):
        file.write_text(re.sub('public_key = ".{40}"', f'public_key = "{public}"', file.read_text()))
    with pytest.raises(UsageError, match=r"client\.toml: a public key has 40 characters of Z85"):
        ClientFolder.load(client)
    with pytest.raises(UsageError, match=r"node\.toml: a public key has 40 characters of Z85"):
        plan(node, read_folder(node, environment={}), dict)
    assert (node / FIRST_START).exists()
    (client / "client.toml").write_text('[cluster]\nid = "0011223344556677"\n[members]\n')
    with pytest.raises(UsageError, match=r"client\.toml: \[members\] names nobody"):
        ClientFolder.load(client)


def test_a_start_that_says_another_seed_than_the_cluster_s_is_refused(tmp_path: Path) -> None:
    init(tmp_path, nodes="127.0.0.1:7100")
    folder = tmp_path / "bank" / "node-0"
    read = read_folder(folder, environment={})
    configuration = first_configuration(read, read.config())
    other = read_folder(folder, environment={"ACTORRAFT_CLUSTER__SEED": "5"})
    assert not check_settings(
        plan(folder, read, dict), configuration._replace(settings=(*configuration.settings, (PYTHON, '"3"')))
    )
    with pytest.raises(StorageFailed, match='says seed = "5", and the cluster\'s is'):
        check_settings(plan(folder, other, dict), configuration)
