"""etcd from the PATH, its data on the same disk, with a load generator in Go, its own client's language.

The generator (etcdload/main.go) is built once, offline, from Debian's golang-etcd-server-dev; a Python client would be
the bottleneck. Its writes go to the leader, which is where etcd is fastest.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.deployment import CACHE, MEND_S, Unusable, fresh_directory
from benchmarks.loadgen import LoadSpec
from benchmarks.others.processes import Opaque, Processes, free_ports, needed_program, wait_until

SOURCE = Path(__file__).with_name("etcdload") / "main.go"


def generator_binary() -> Path:
    """Return the built load generator, built anew when its source is newer.

    Raises:
        Unusable: etcd, Go or the client's sources are missing.
    """
    needed_program("etcd", "etcd-server")
    binary = CACHE / "etcdload"
    if binary.exists() and binary.stat().st_mtime > SOURCE.stat().st_mtime:
        return binary
    if shutil.which("go") is None:
        raise Unusable("Go is not in the PATH; on Debian: apt-get install golang-go golang-etcd-server-dev")
    CACHE.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": "", "CGO_ENABLED": "0"}
    command = ["go", "build", "-o", str(binary), str(SOURCE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise Unusable(
            "the generator for etcd cannot be built (on Debian: apt-get install golang-go golang-etcd-server-dev): "
            + done.stderr.strip()
        )
    return binary


class EtcdSystem:
    """etcd at its defaults: it always syncs."""

    name = "etcd"
    durabilities: Sequence[str] = ("fsync",)
    faults: Sequence[str] = ("crash", "freeze", "transfer")
    election_durability = "fsync"

    def __init__(self) -> None:
        self.binary = generator_binary()

    def deploy(self, nodes: int, durability: str, commands: str) -> EtcdDeployment:
        """Start `nodes` members."""
        return EtcdDeployment(self.binary, nodes)


class EtcdDeployment(Opaque):
    """Some members on loopback."""

    def __init__(self, binary: Path, nodes: int) -> None:
        self.binary = binary
        self.directory = fresh_directory("etcd")
        self.processes = Processes(self.directory)
        ports = free_ports(2 * nodes)
        self.clients = [f"http://127.0.0.1:{port}" for port in ports[:nodes]]
        peers = [f"http://127.0.0.1:{port}" for port in ports[nodes:]]
        self.broken: tuple[str, int] | None = None
        try:
            for number in range(nodes):
                cluster = ",".join(f"n{each}={peer}" for each, peer in enumerate(peers))
                self.processes.start(
                    number,
                    [
                        "etcd", "--name", f"n{number}", "--data-dir", str(self.directory / f"n{number}"),
                        "--listen-client-urls", self.clients[number], "--advertise-client-urls", self.clients[number],
                        "--listen-peer-urls", peers[number], "--initial-advertise-peer-urls", peers[number],
                        "--initial-cluster", cluster, "--log-level", "error", "--logger", "zap",
                    ],
                )  # fmt: skip
            wait_until(lambda: self.leader() is not None, "etcd's election")
        except BaseException:
            self.close()
            raise

    def _post(self, number: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.clients[number]}{path}", json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=2.0) as answer:
                said: dict[str, Any] = json.load(answer)
                return said
        except OSError:
            return {}

    def _status(self, number: int) -> dict[str, Any]:
        return self._post(number, "/v3/maintenance/status", {})

    def leader(self) -> int | None:
        """Return the number of the member that says it leads and is believed by all who answer."""
        broken = self.broken[1] if self.broken else None
        said = {number: self._status(number) for number in self.processes.running if number != broken}
        leaders = {status.get("leader") for status in said.values()}
        if len(leaders) != 1 or leaders & {None, "0"}:
            return None
        mine = [number for number, status in said.items() if status["header"]["member_id"] == status["leader"]]
        return mine[0] if mine else None

    def _leader_now(self) -> int:
        wait_until(lambda: self.leader() is not None, "etcd's election")
        leader = self.leader()
        assert leader is not None
        return leader

    def term(self) -> int:
        """Return the highest term that a member knows."""
        return max(int(self._status(number).get("raftTerm", 0)) for number in self.processes.running)

    def endpoints(self) -> dict[str, str]:
        """Return the members' addresses."""
        return {str(number): client for number, client in enumerate(self.clients)}

    def serves(self, operation: str) -> bool:
        """Return whether it can: writes, linearizable reads, and serializable ones, which may be stale."""
        return operation in ("set", "linearizable", "stale")

    def generator(self, spec: LoadSpec) -> list[str]:
        """Load the leader; a probe knows all members, as it must find the next leader."""
        leader = self._leader_now()
        first = [self.clients[leader]]
        rest = [client for client in self.clients if client not in first] if spec.mode == "probe" else []
        return [str(self.binary), spec.to_json(), *first, *rest]

    def pids(self) -> dict[str, list[int]]:
        """Return the processes by role."""
        leader = self._leader_now()
        followers = [self.processes.pid(number) for number in self.processes.running if number != leader]
        return {"leader": [self.processes.pid(leader)], "followers": followers}

    def fault(self, kind: str) -> float:
        """Break the leader, or hand over from it."""
        leader = self._leader_now()
        self.broken = (kind, leader)
        if kind == "transfer":
            target = self._status((leader + 1) % len(self.clients))["header"]["member_id"]
            at = time.monotonic()
            self._post(leader, "/v3/maintenance/transfer-leadership", {"targetID": target})
            return at
        at = time.monotonic()
        if kind == "crash":
            self.processes.kill(leader)
        else:
            self.processes.signal(leader, signal.SIGSTOP)
        return at

    def mend(self) -> None:
        """Bring it back and wait until it is level."""
        assert self.broken is not None
        kind, number = self.broken
        if kind == "crash":
            self.processes.start(number)
        elif kind == "freeze":
            self.processes.signal(number, signal.SIGCONT)
        others = [each for each in self.processes.running if each != number]
        target = max(int(self._status(each).get("raftAppliedIndex", 0)) for each in others)
        self.broken = None
        wait_until(
            lambda: self.leader() is not None and int(self._status(number).get("raftAppliedIndex", -1)) >= target,
            "catching up",
            MEND_S,
        )

    def close(self) -> None:
        """Kill everything and remove the data."""
        self.processes.close()
        shutil.rmtree(self.directory, ignore_errors=True)
