"""Actors that are reached over machines: by a process that shares nothing with them but a network and a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.machines.hosts import CLIENT, REPOSITORY, Host, Hosts, eventually, hosts

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

OWNER = """
import os, sys, time
from pathlib import Path
from actorraft import Actor, ActorOptions
from actorraft.actors.system import system

class Jobs(Actor):
    def on_start(self):
        self.seen = []
    def receive(self, message):
        if type(message) is int:
            self.seen.append(message)
        elif message == "seen":
            return self.seen
        elif type(message) is tuple:
            Path(message[1] + ".begun").touch()
            while not Path(message[1]).exists():
                time.sleep(0.005)
        elif message == "end":
            os._exit(7)
        else:
            return message
    def twice(self, number):
        return 2 * number

ref = ActorOptions(name=sys.argv[1], public=True).spawn(Jobs)
print(system().run_dir, flush=True)
sys.stdin.read()
"""
CALLER = """
import json, os, sys, threading
from dataclasses import dataclass
from actorraft import actor_ref

@dataclass(frozen=True, slots=True)
class Job:
    number: int

def say(**said):
    print(json.dumps(said), flush=True)

name, folder, waits_for = sys.argv[1:]
jobs, exits, ended = actor_ref(name, through=folder), [], threading.Event()
jobs.watch(lambda end: (exits.append((end.code, end.restarting)), ended.set()))
for number in range(3000):
    jobs.tell(number)
large = os.urandom(1 << 20)
say(
    in_order=jobs.ask("seen", timeout=60).result() == list(range(3000)),
    large=jobs.ask(large, timeout=60).result() == large,
    same_class=jobs.ask(Job(3), timeout=60).result() == Job(3),
    proxy=jobs.proxy(timeout=60).twice(21),
    alive=jobs.is_alive(),
)
error = jobs.ask(("wait for", waits_for), timeout=None).exception()
say(error=type(error).__name__, text=str(error), exits=exits)
sys.stdin.readline()
seen = jobs.ask("seen", timeout=60).result()
end = jobs.ask("end", timeout=60).exception()
ended.wait(60)
say(seen=len(seen), end=type(end).__name__, exits=exits, afresh=jobs.ask("seen", timeout=60).result())
"""


@pytest.fixture
def pair(tmp_path: Path, _namespaces: None) -> Iterator[Hosts]:
    """Two hosts and the client's."""
    with hosts(tmp_path, 2) as made:
        yield made


def run(host: Host, script: str, *words: str, hide: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Run a script on a host, where these directories are empty."""
    mounts = "".join(f"mount -t tmpfs none {directory} && " for directory in hide)
    return subprocess.Popen(
        [
            "ip",
            "netns",
            "exec",
            host.namespace,
            "sh",
            "-c",
            f'{mounts} exec "$@"',
            "sh",
            sys.executable,
            script,
            *words,
        ],
        cwd=host.directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def heard(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline() or "null")


def test_an_actor_is_reached_from_a_machine_that_shares_nothing_but_the_network(pair: Hosts, tmp_path: Path) -> None:
    name, waits_for = f"jobs-{os.getpid()}", tmp_path / "go on"
    for script, text in (("owner.py", OWNER), ("caller.py", CALLER)):
        (tmp_path / script).write_text(text)
    pair.found(nodes=2)
    pair.nodes[0].serve()  # reaches no actors
    there = pair.nodes[1]
    there.serve("--actors")
    eventually(lambda: there.serves_s, what=there.said)
    owner = run(there, str(tmp_path / "owner.py"), name)
    caller = None
    try:
        assert owner.stdout is not None
        run_dir = owner.stdout.readline().strip()
        caller = run(
            pair.all[CLIENT],
            str(tmp_path / "caller.py"),
            name,
            str(pair.client_folder),
            str(waits_for),
            hide=(run_dir, f"/tmp/actorraft-names-{os.geteuid()}"),
        )
        assert heard(caller) == {"in_order": True, "large": True, "same_class": True, "proxy": 42, "alive": True}

        eventually(Path(f"{waits_for}.begun").exists)
        there.kill()

        said = heard(caller)
        assert said["error"] == "OutcomeUnknown", said
        assert "node 1" in said["text"]
        assert said["exits"] == []
        waits_for.touch()
        there.serve("--actors")
        eventually(lambda: there.serves_s, what=there.said)
        assert caller.stdin is not None
        caller.stdin.write("\n")
        caller.stdin.flush()
        assert heard(caller) == {"seen": 3000, "end": "ActorDead", "exits": [[7, True]], "afresh": []}
        assert caller.wait(60) == 0
    finally:
        for process in filter(None, (caller, owner)):
            try:
                process.communicate(timeout=20)  # its input ends, and so does it: no name is left behind
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
