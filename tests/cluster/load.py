"""Clients that append unique items under faults, in threads and in processes of their own, and the audit afterwards.

A process prints nothing but, at its end, what was acknowledged and what stayed unknown; so the audit can say of every
item whether it may, must or must not be in the log, and that none is there twice.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

from actorraft import Client, Cluster, OutcomeUnknown, Unavailable, connect
from tests.cluster.helpers import ROOT
from tests.cluster.machines import Ledger


@dataclass
class Record:
    """What became of one client's items, in the order they were sent."""

    acknowledged: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def append_until(client: Client[Any], name: str, stop: threading.Event, record: Record, *, outstanding: int) -> None:
    """Append items under a key of its own, so many outstanding at once, until told to stop."""
    ledger = client.proxy(timeout=20.0)
    number = 0
    while not stop.is_set():
        batch = [f"{name}-{number + offset}" for offset in range(outstanding)]
        number += outstanding
        sent = [(item, ledger.append.submit(name, item)) for item in batch]
        for item, future in sent:
            try:
                future.result()
                record.acknowledged.append(item)
            except OutcomeUnknown:
                record.unknown.append(item)
            except Unavailable:
                record.refused.append(item)


class Load:
    """Clients of a cluster, in threads and in processes of their own, from `with` to its end."""

    def __init__(self, cluster: Cluster[Any], *, threads: int = 2, processes: int = 1, outstanding: int = 20) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self._outstanding = outstanding
        self.records: dict[str, Record] = {}
        self._clients: list[Client[Any]] = []
        self._threads: list[threading.Thread] = []
        self._processes: dict[str, subprocess.Popen[str]] = {}
        for number in range(threads):
            self._add_thread(f"thread{number}")
        for number in range(processes):
            self._add_process(f"process{number}")

    def _add_thread(self, name: str) -> None:
        client, record = self._cluster.client(), Record()
        self.records[name] = record
        self._clients.append(client)
        thread = threading.Thread(
            target=append_until, args=(client, name, self._stop, record), kwargs={"outstanding": self._outstanding}
        )
        self._threads.append(thread)
        thread.start()

    def _add_process(self, name: str) -> None:
        endpoints = json.dumps(self._cluster.endpoints)
        self._processes[name] = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.load", name, endpoints, str(self._outstanding)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def done(self) -> int:
        """How many were acknowledged to the threads so far."""
        return sum(len(record.acknowledged) for record in self.records.values())

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *failure: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for client in self._clients:
            client.close()
        for name, process in self._processes.items():
            said, _ = process.communicate("stop\n", timeout=60)
            self.records[name] = Record(**json.loads(said))

    def audit(self) -> int:
        """Compare every client's items with the log: none lost, none twice, none that was refused, in order."""
        ledger = self._cluster.proxy(timeout=60.0)
        for name, record in self.records.items():
            kept = ledger.get(name)
            assert len(kept) == len(set(kept)), (
                f"{name}: applied twice: {sorted({i for i in kept if kept.count(i) > 1})}"
            )
            lost = set(record.acknowledged) - set(kept)
            assert not lost, f"{name}: acknowledged and lost: {sorted(lost)}"
            strange = set(kept) - set(record.acknowledged) - set(record.unknown)
            assert not strange, f"{name}: refused and applied: {sorted(strange)}"
            numbers = [int(item.rpartition("-")[2]) for item in kept]
            assert numbers == sorted(numbers), f"{name}: applied out of order"
        return sum(len(record.acknowledged) for record in self.records.values())


def main() -> None:
    """Be one client in a process of its own, until told to stop."""
    name, endpoints, outstanding = sys.argv[1:]
    record, stop = Record(), threading.Event()
    client = connect(
        {int(node_id): endpoint for node_id, endpoint in json.loads(endpoints).items()}, Ledger, timeout=60
    )
    thread = threading.Thread(
        target=append_until, args=(client, name, stop, record), kwargs={"outstanding": int(outstanding)}
    )
    thread.start()
    sys.stdin.readline()
    stop.set()
    thread.join()
    client.close()
    print(json.dumps(vars(record)))


if __name__ == "__main__":
    main()
