"""A bank behind FastAPI: two workers under load while leaders are killed, and a server that reloads itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actorraft import Client, Supervision, connect
from benchmarks.others.processes import free_ports
from tests.cluster.helpers import ROOT, eventually, is_gone

pytest.importorskip("fastapi")
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


class Web:
    """The example, running; `client` reaches the cluster beside it."""

    def __init__(self, client: Client[Any], port: int) -> None:
        self.client, self.port = client, port

    def ask(self, path: str, method: str = "GET") -> dict[str, int]:
        """One request; an answer other than 200 is an OSError."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        with urllib.request.urlopen(request, timeout=20.0) as answer:
            said: dict[str, int] = json.load(answer)
            return said


@contextlib.contextmanager
def web(cwd: Path, *options: str) -> Iterator[Web]:
    [port] = free_ports(1)
    stderr = (cwd / "stderr").open("w")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "web.py"), "--port", str(port), *options],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    stderr.close()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("{"), (cwd / "stderr").read_text()
        with connect(json.loads(line), timeout=30.0) as client:
            served = Web(client, port)
            eventually(lambda: served.ask("/accounts/nobody") == {"balance": 0}, what=(cwd / "stderr").read_text())
            pids = [row.pid for row in client.status()]
            yield served
        process.send_signal(signal.SIGINT)
        process.wait(60.0)
        eventually(lambda: all(pid is None or is_gone(pid) for pid in pids), what="the nodes are gone")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def deposits(server: Web, name: str, workers: set[int], stop: threading.Event, made: list[int]) -> None:
    """Deposit 1 again and again, each under an id of its own, and each until it is acknowledged."""
    number = 0
    while not stop.is_set():
        deadline_s = time.monotonic() + 60.0
        while True:
            try:
                said = server.ask(f"/accounts/{name}/deposits/{name}-{number}?amount=1", "POST")
                break
            except OSError:  # 503, 504: the same request again
                assert time.monotonic() < deadline_s
        number += 1
        workers.add(said["worker"])
        assert said["balance"] == number
        made.append(number)


def play(tmp_path: Path, kills: int) -> None:
    with web(tmp_path) as server:
        stop, workers = threading.Event(), set[int]()
        made: dict[str, list[int]] = {f"account{n}": [] for n in range(4)}
        threads = [
            threading.Thread(target=deposits, args=(server, name, workers, stop, mine)) for name, mine in made.items()
        ]
        for thread in threads:
            thread.start()
        limit = Supervision()  # of the example: who dies more often than that stays down
        killed: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=limit.max_restarts))
        try:
            for _ in range(kills):
                leader = server.client.wait_for_leader()
                if len(killed[leader]) == limit.max_restarts:
                    time.sleep(max(0.0, killed[leader][0] + limit.period_s - time.monotonic()))
                    leader = server.client.wait_for_leader()
                killed[leader].append(time.monotonic())
                before = sum(map(len, made.values()))
                pid = next(row.pid for row in server.client.status() if row.id == leader)
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
                eventually(lambda before=before: sum(map(len, made.values())) > before + 10, what="deposits go on")  # type: ignore[misc]
                eventually(lambda: all(row.error is None for row in server.client.status()), what="it is back")
            eventually(lambda: len(workers) == 2, what="both workers have answered")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        for name, mine in made.items():
            assert len(mine) > 0
            assert server.ask(f"/accounts/{name}") == {"balance": len(mine)}, (
                "acknowledged once each, applied once each"
            )


def test_two_workers_lose_nothing_and_do_nothing_twice_while_leaders_are_killed(tmp_path: Path) -> None:
    play(tmp_path, kills=2)


@pytest.mark.slow
def test_two_workers_lose_nothing_while_twenty_leaders_are_killed(tmp_path: Path) -> None:
    play(tmp_path, kills=20)


@pytest.mark.slow
def test_a_server_that_reloads_itself_finds_the_bank_as_it_was(tmp_path: Path) -> None:
    with web(tmp_path, "--reload") as server:
        first = server.ask("/accounts/ann/deposits/1?amount=5", "POST")
        (tmp_path / "changed.py").write_text("# a file of the application changes\n")

        def again() -> dict[str, int] | None:
            said = server.ask("/accounts/ann/deposits/1?amount=5", "POST")
            (tmp_path / "changed.py").write_text(f"# {time.monotonic()}\n")  # a change before it looked is none
            return said if said["worker"] != first["worker"] else None

        assert eventually(again, what="another worker")["balance"] == 5
