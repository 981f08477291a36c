"""ZooKeeper from Debian's package, an ensemble with its data on the same disk; and the load, by kazoo.

It is at its defaults, so it syncs every write before it answers. Its client is connected to the leader, where writes
are fastest. kazoo is Python, as ours is, and sends and takes one packet at a time, so that with many outstanding it is
the limit: several client processes get more out of the same ensemble. A read is answered from the memory of one server,
which is no linearizable read, so only writes are measured.

Run: `python -m benchmarks.others.zookeeper_system SPEC` is the load generator.
"""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.deployment import Unusable, fresh_directory
from benchmarks.loadgen import KEYS, LoadSpec, drive
from benchmarks.others.processes import Opaque, Processes, Whole, free_ports, needed_module, needed_program, wait_until

JAR = Path("/usr/share/java/zookeeper.jar")
PACKAGES = "zookeeper default-jre-headless"
MAIN = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
SETTINGS = "tickTime=2000\ninitLimit=10\nsyncLimit=5\nadmin.enableServer=false\n"  # as Debian's zoo.cfg has them


class ZooKeeperSystem:
    """ZooKeeper at its defaults: it always syncs."""

    name = "zookeeper"
    durabilities: Sequence[str] = ("fsync",)
    faults: Sequence[str] = ()
    election_durability = "fsync"

    def __init__(self) -> None:
        self.java = needed_program("java", PACKAGES)
        if not JAR.exists():
            raise Unusable(f"there is no {JAR}; on Debian: apt-get install {PACKAGES}")
        needed_module("kazoo")

    def deploy(self, nodes: int, durability: str, commands: str) -> ZooKeeperDeployment:
        """Start `nodes` servers."""
        return ZooKeeperDeployment(self.java, nodes)


class ZooKeeperDeployment(Opaque, Whole):
    """Some servers on loopback."""

    def __init__(self, java: str, nodes: int) -> None:
        self.directory = fresh_directory("zookeeper")
        self.processes = Processes(self.directory)
        ports = free_ports(3 * nodes)
        self.clients, peers, votes = ports[:nodes], ports[nodes : 2 * nodes], ports[2 * nodes :]
        ensemble = "".join(
            f"server.{number}=127.0.0.1:{peer}:{vote}\n"
            for number, (peer, vote) in enumerate(zip(peers, votes, strict=True))
        )
        try:
            for number in range(nodes):
                data = self.directory / f"n{number}"
                data.mkdir()
                (data / "myid").write_text(str(number))
                settings = self.directory / f"n{number}.cfg"
                client = f"clientPortAddress=127.0.0.1\nclientPort={self.clients[number]}\n"
                settings.write_text(f"{SETTINGS}dataDir={data}\n{client}{ensemble if nodes > 1 else ''}")
                self.processes.start(number, [java, "-Xmx512m", "-cp", str(JAR), MAIN, str(settings)])
            wait_until(self._is_up, "ZooKeeper's election")
        except BaseException:
            self.close()
            raise

    def _said(self, number: int) -> dict[str, str]:
        """Return what a server says of itself: "Mode" and "Zxid" among it; nothing if it does not answer."""
        try:
            with socket.create_connection(("127.0.0.1", self.clients[number]), 2.0) as connection:
                connection.sendall(b"srvr")
                with connection.makefile() as lines:
                    return dict(line.strip().split(": ", 1) for line in lines if ": " in line)
        except OSError:
            return {}

    def _is_up(self) -> bool:
        modes = sorted(self._said(number).get("Mode", "") for number in range(len(self.clients)))
        return modes in (["standalone"], [*["follower"] * (len(self.clients) - 1), "leader"])

    def _leader(self) -> int:
        modes = [self._said(number).get("Mode") for number in range(len(self.clients))]
        return next(number for number, mode in enumerate(modes) if mode in ("leader", "standalone"))

    def term(self) -> int:
        """Return the epoch that the leader is in: the upper half of its last transaction's number."""
        return int(self._said(self._leader())["Zxid"], 16) >> 32

    def endpoints(self) -> dict[str, str]:
        """Return where the leader listens."""
        return {"leader": f"127.0.0.1:{self.clients[self._leader()]}"}

    def serves(self, operation: str) -> bool:
        """Writes."""
        return operation == "set"

    def generator(self, spec: LoadSpec) -> list[str]:
        """Start this module."""
        return [sys.executable, "-m", "benchmarks.others.zookeeper_system", spec.to_json()]

    def pids(self) -> dict[str, list[int]]:
        """Return the servers' processes by role."""
        leader = self._leader()
        followers = [self.processes.pid(number) for number in range(len(self.clients)) if number != leader]
        return {"leader": [self.processes.pid(leader)], "followers": followers}

    def close(self) -> None:
        """Kill everything and remove the data."""
        self.processes.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class Answer:
    """kazoo's future by the names that the load generator knows."""

    __slots__ = ("_result", "done")

    def __init__(self, result: Any) -> None:
        self._result = result
        self.done = result.ready

    def result(self, timeout: float | None = None) -> Any:
        """Wait for it."""
        return self._result.get(timeout=timeout)


def main() -> None:
    """Write to the nodes that are there for it."""
    from kazoo.client import KazooClient
    from kazoo.exceptions import KazooException

    spec = LoadSpec.from_json(sys.argv[1])
    value = b"v" * spec.payload_bytes
    paths = [f"/key-{number + spec.first_key:012d}" for number in range(KEYS)]
    client = KazooClient(spec.endpoints["leader"])
    client.start()
    if client.exists(paths[-1]) is None:  # else an earlier window has made them
        for made in [client.create_async(path, value) for path in paths]:
            made.get()
    drive(spec, lambda number: Answer(client.set_async(paths[number % KEYS], value)), (KazooException,))
    client.stop()
    client.close()


if __name__ == "__main__":
    main()
