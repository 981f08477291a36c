"""The runbook, typed on machines: every line of its shell blocks runs, in order, with what it is for gone wrong before."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from actorraft import connect
from statemachines.kv import KVStore
from tests.docs.shell import blocks, localized, typed, with_tools
from tests.machines.conftest import _namespaces, net  # noqa: F401
from tests.machines.hosts import REPOSITORY, Host, Hosts, eventually

PAGE = REPOSITORY / "docs" / "runbook.md"


def sections() -> list[tuple[str, list[tuple[list[str], list[str]]]]]:
    """Return (title, [(on which hosts, lines) of each shell block])."""
    parts = re.split(r"^## ", PAGE.read_text(), flags=re.M)
    return [(part.partition("\n")[0], blocks(part)) for part in parts]


@pytest.mark.cluster
@pytest.mark.slow  # about a minute; make slow
@pytest.mark.timeout(600)
def test_every_command_of_the_runbook_runs_in_order(net: Hosts, tmp_path: Path) -> None:  # noqa: F811
    machines, here = net.all[1:], net.all[0].directory
    environment = with_tools(tmp_path) | {"ACTORRAFT_CLIENT": str(here / "bank" / "client")}

    def run(line: str, host: Host | None) -> str:
        return typed(localized(line, host, machines), here if host is None else host.directory, environment)

    def serve(line: str, number: int) -> None:
        host = machines[number]
        words = localized(line, host, machines).split()
        (host.directory / "var" / "lib").mkdir(parents=True, exist_ok=True)
        if host.process is not None and host.process.poll() is None:  # the old cluster's: the machines are few
            host.signal(signal.SIGTERM)
            host.wait()
        host.serve_line(words[2:])
        eventually(lambda: host.serves_s, 60.0, lambda: f"{line}: {host.said()}")

    def settled(client: str = "bank") -> None:
        with connect(here / client / "client", KVStore, timeout=60.0) as session:
            net.settled(session)

    run("actorraft init bank --machine statemachines.kv:KVStore --nodes host0:7100,host1:7100,host2:7100", None)
    for number in range(3):
        run(f"scp -r bank/node-{number} host{number}:/etc/actorraft", None)
        serve("actorraft serve /etc/actorraft --data-dir /var/lib/actorraft", number)
    settled()
    run("actorraft exec set '\"ann\"' 5", None)

    def lose(*numbers: int) -> None:
        for number in numbers:
            machines[number].kill()

    def before_an_upgrade_s_start() -> None:
        machines[1].signal(signal.SIGTERM)
        assert machines[1].wait() == 0

    before: dict[str, Callable[[], None]] = {
        "A lost machine": lambda: (lose(2), shutil.rmtree(machines[2].directory / "var"))[0],
        "A lost majority": lambda: lose(0, 1, 3),
    }
    printed: dict[str, str] = {}
    for title, typed_there in sections():
        if title in before:
            before[title]()
        for where, lines in typed_there:
            for line in lines:
                if line.startswith("export "):
                    continue
                if where == ["here"]:
                    printed[line] = run(line, None)
                    continue
                for name in where:
                    number = int(name.removeprefix("host"))
                    if not line.startswith("actorraft serve"):
                        printed[line] = run(line, machines[number])
                        continue
                    if title == "An upgrade":
                        before_an_upgrade_s_start()
                    serve(line, number)
            if title in ("A lost machine", "An upgrade") and where != ["here"]:
                settled()
            if title == "A key that is lost or stolen":
                settled()
    assert printed["actorraft query get '\"ann\"' --client elsewhere/client"].strip() == "10"
    recovered = printed["actorraft recover /etc/actorraft --data-dir /var/lib/actorraft --keep 0"]
    new_id = re.findall(r"is cluster ([0-9a-f]{16}) now", recovered)
    toml = here / "bank" / "client" / "client.toml"
    toml.write_text(re.sub(r'(?m)^id = ".*"$', f'id = "{new_id[0]}"', toml.read_text()))
    assert run("actorraft query get '\"ann\"' --timeout 60", None).strip() == "10"


def test_the_page_has_what_an_operator_looks_for() -> None:
    titles = [title for title, _ in sections()]
    for title in ("A lost machine", "A lost majority", "A lost data centre", "A full disk", "A slow follower",
                  "A flapping leader", "An upgrade", "Restore", "A key that is lost or stolen"):  # fmt: skip
        assert title in titles
