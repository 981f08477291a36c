"""Hosts that share nothing but a network: a namespace and a directory each, and nodes started by the command line.

The test itself sits on one more host: its thread enters that host's namespace, and so does every thread and process
that it starts from then on. It reaches a node through its addresses or not at all; beyond that it may pull plugs: end a
node's process, cut a host off, and handle the disks of machines that are switched off.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from actorraft import ActorRaftError, Client, connect
from actorraft.errors import Busy, OutcomeUnknown, Unavailable, UsageError
from statemachines.kv import KVStore
from tests.nemesis.namespaces import Router

REPOSITORY: Final = Path(__file__).parents[2]
CLIENT: Final = 0  # the host of the test
PORT: Final = 7100
_NEW_NET: Final = 0x40000000  # CLONE_NEWNET


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Put this thread, and all that it starts meanwhile, into a network namespace."""
    with open(f"/proc/self/task/{threading.get_native_id()}/ns/net") as before:
        with open(f"/var/run/netns/{namespace}") as opened:
            _enter(opened.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _enter(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _NEW_NET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Host:
    """One machine: its address, its disk, and the node that runs on it (or not)."""

    def __init__(self, number: int, namespace: str, address: str, directory: Path) -> None:
        self.number = number
        self.namespace = namespace
        self.address = address
        self.directory = directory
        self.process: subprocess.Popen[str] | None = None
        self.lines: list[str] = []  # what the node printed, standard error included
        self.began_s = 0.0
        self.serves_s: float | None = None  # when it said so

    @property
    def name(self) -> str:
        return f"host-{self.number}"

    def knows(self, names: dict[str, str], name_server: str) -> None:
        """Have a file of names of its own, and a name server for all others: for what is started here from now on.

        The file is changed in place, so processes that run see it change.
        """
        self._etc.mkdir(parents=True, exist_ok=True)
        (self._etc / "hosts").write_text("".join(f"{address} {name}\n" for name, address in names.items()))
        (self._etc / "resolv.conf").write_text(f"nameserver {name_server}\noptions timeout:5 attempts:2\n")

    @property
    def _etc(self) -> Path:
        return Path("/etc/netns") / self.namespace  # `ip netns exec` puts these files in the place of /etc's

    def forget_names(self) -> None:
        shutil.rmtree(self._etc, ignore_errors=True)

    @property
    def folder(self) -> Path:
        """The folder that `init` wrote for this machine, copied there."""
        return self.directory / "folder"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def serve(self, *more: str, folder: bool = True, environment: dict[str, str] | None = None) -> None:
        """Run `actorraft serve` here; the same line for the first and every later start."""
        words = [*([str(self.folder)] if folder else []), "--data-dir", str(self.data), *more]
        self.serve_line(words, environment)

    def serve_line(self, words: list[str], environment: dict[str, str] | None = None) -> None:
        """Run `actorraft serve` with these words."""
        assert self.process is None or self.process.poll() is not None, f"host {self.number} serves already"
        self.lines, self.serves_s, self.began_s = [], None, time.monotonic()
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, sys.executable, "-m", "actorraft", "serve", *words],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.lines.append(line.rstrip())
                if " serves at " in line and self.serves_s is None:
                    self.serves_s = time.monotonic()

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """Pull the plug."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait(10)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for the node's end; return its exit code."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def said(self) -> str:
        return "\n".join(self.lines)


class Hosts:
    """A client's host and some more, on a router."""

    def __init__(self, directory: Path, count: int) -> None:
        self.directory = directory
        self.router = Router()
        try:
            self.all = [
                Host(number, self.router.host(number), self.router.address(number), directory / f"host-{number}")
                for number in range(count + 1)
            ]
        except BaseException:
            self.router.close()
            raise
        for host in self.all:
            host.directory.mkdir()
        self.nodes: dict[int, Host] = {}  # node id -> host

    @property
    def client_folder(self) -> Path:
        return self.directory / "host-0" / "client"

    def found(
        self,
        *more: str,
        nodes: int = 3,
        machine: str = "statemachines.kv:KVStore",
        names: bool = False,
        places: str = "",
    ) -> None:
        """Found a cluster and carry each folder to its machine; nothing runs yet.

        Args:
            names: the machines are called host-1, host-2, …; `name` says what that means on each.
            places: what others dial, if that is something else.
        """
        places = places or ",".join(
            f"{host.name if names else host.address}:{PORT}" for host in self.all[1 : nodes + 1]
        )
        made = self.all[CLIENT].directory / "cluster"
        self.run("init", str(made), "--machine", machine, "--nodes", places, "--durability", "os", *more)
        (made / "client").rename(self.client_folder)
        for node_id in range(nodes):
            host = self.nodes[node_id] = self.all[node_id + 1]
            (made / f"node-{node_id}").rename(host.folder)

    def start(self, *node_ids: int) -> None:
        for node_id in node_ids or tuple(self.nodes):
            self.nodes[node_id].serve()

    def run(self, *words: str, check: bool = True, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run the command line on the client's host."""
        done = subprocess.run(
            [sys.executable, "-m", "actorraft", *words],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "ACTORRAFT_CLIENT": str(self.client_folder)},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def status(self) -> dict[int, dict[str, Any]]:
        """What `actorraft status` prints, by node."""
        said = self.run("status", "--timeout", "3", "-o", "json", check=False).stdout
        return {row["id"]: row for row in json.loads(said)}

    def connect(self, timeout: float = 60.0) -> Client[KVStore]:
        return connect(self.client_folder, KVStore, timeout=timeout)

    def settled(self, client: Client[KVStore]) -> None:
        """Wait until every member has begun: until then one that came late does not count (rules.md R3)."""
        eventually(lambda: all(row.alive and not row.error for row in client.status()), 60.0, client.status)

    def cut_off(self, node_id: int) -> None:
        """Lose every packet to and from a node's host, without a word to anybody."""
        gone = self.nodes[node_id].number
        self.router.partition({host.number for host in self.all} - {gone}, {gone})

    def logs(self) -> str:
        """What all nodes printed, for a failure's report."""
        return "\n".join(f"--- node {node_id}\n{host.said()}" for node_id, host in self.nodes.items())

    def close(self) -> None:
        for host in self.all:
            host.kill()
            host.forget_names()
        self.router.close()


@contextlib.contextmanager
def hosts(directory: Path, count: int = 4, *, quiet: bool = False) -> Iterator[Hosts]:
    """Make hosts, be on the client's, and take everything away at the end; say what the nodes said, unless `quiet`."""
    made = Hosts(directory, count)
    try:
        with inside(made.all[CLIENT].namespace):
            yield made
    finally:
        made.close()
        if not quiet:
            print(made.logs())


def eventually(holds: Callable[[], Any], within_s: float = 60.0, what: str | Callable[[], Any] = "") -> Any:
    """Wait until something holds, and return it."""
    until_s = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < until_s, (what() if callable(what) else what) or f"not within {within_s} s"
        time.sleep(0.02)
    return found


class Load:
    """A client that writes one key after another, and remembers what came of each."""

    def __init__(self, client: Client[KVStore], prefix: str = "k", timeout: float = 40.0) -> None:
        self.acknowledged: list[tuple[str, int]] = []
        self.errors: list[ActorRaftError] = []
        self.unknown = 0
        self.times_s: list[float] = []  # of the acknowledgements
        self.client = client
        self._proxy = client.proxy(timeout=timeout)
        self._prefix = prefix
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            key = f"{self._prefix}{number}"
            try:
                self._proxy.set(key, number)
                self.acknowledged.append((key, number))
                self.times_s.append(time.monotonic())
            except OutcomeUnknown as error:
                self.unknown += 1
                self.errors.append(error)
            except UsageError:
                return  # the client was closed: the test has failed
            except (Unavailable, Busy) as error:
                self.errors.append(error)

    def wait_for_more(self, count: int = 10, within_s: float = 60.0) -> None:
        wanted = len(self.acknowledged) + count
        eventually(lambda: len(self.acknowledged) >= wanted, within_s, f"no {count} more writes: {self.errors[-3:]}")

    def longest_gap_s(self, since_s: float = 0.0) -> float:
        times = [time_s for time_s in self.times_s if time_s >= since_s]
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a call did not end"

    def check(self, client: Client[KVStore]) -> None:
        """Everything that was acknowledged is there."""
        proxy = client.proxy(timeout=20.0)
        lost = [(key, number) for key, number in self.acknowledged if proxy.get(key) != number]
        assert not lost, f"{len(lost)} of {len(self.acknowledged)} acknowledged writes are gone: {lost[:5]}"
