"""The deployment guide, typed on machines: every line of its shell blocks runs, in order, and does what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from actorraft import connect
from statemachines.kv import KVStore
from tests.docs.shell import blocks, localized, typed, with_tools
from tests.machines.conftest import _namespaces, net  # noqa: F401
from tests.machines.hosts import REPOSITORY, Hosts, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
PAGE = REPOSITORY / "docs" / "deployment.md"


def test_every_command_of_the_deployment_guide_runs_in_order(net: Hosts, tmp_path: Path) -> None:  # noqa: F811
    machines, here = net.all[1:], net.all[0].directory
    environment = with_tools(tmp_path)
    exported = ""
    printed: dict[str, str] = {}
    for where, lines in blocks(PAGE.read_text()):
        for line in lines:
            if where == ["here"]:
                if line.startswith("export "):
                    exported = line
                printed[line] = typed(f"{exported or ':'}; {localized(line, None, machines)}", here, environment)
                continue
            for name in where:
                host = machines[int(name.removeprefix("host"))]
                words = localized(line, host, machines).split()
                assert words[:2] == ["actorraft", "serve"]
                (host.directory / "var" / "lib").mkdir(parents=True, exist_ok=True)
                net.nodes[int(name.removeprefix("host"))] = host
                host.serve_line(words[2:])
            for name in where:
                host = machines[int(name.removeprefix("host"))]
                eventually(lambda host=host: host.serves_s, 40.0, f"{line} on {name}: {host.said()}")
            with connect(here / "bank" / "client", KVStore, timeout=30.0) as client:
                net.settled(client)
                last = machines.index(host)
                voters = lambda: client.status()  # noqa: E731
                eventually(lambda last=last, voters=voters: last in {row.id for row in voters()}, 40.0)
    assert printed["actorraft query get '\"ann\"'"].strip() == "10"
    assert "reports" in printed["actorraft clients list"]
    assert len(printed["actorraft keys rotate"].splitlines()) == 3


def test_the_page_names_every_command_that_asks_a_cluster() -> None:
    text = PAGE.read_text()
    for command in ("init", "serve", "status", "exec", "query", "clients", "token create", "members", "transfer",
                    "snapshot", "keys rotate", "verify", "show", "recover"):  # fmt: skip
        assert f"actorraft {command}" in text, command
