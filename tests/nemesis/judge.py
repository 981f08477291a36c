"""What is said of a run: is the history linearizable, was an acknowledged write lost, are the replicas equal?

The checker alone decides on the history. Lost writes are counted besides, from the last reads, by two rules that need
no search: what was appended and acknowledged is in the key's last content; and of a key with one value at its end, no
acknowledged write began after the write of that value had returned.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from actorraft.client.client import Client
from actorraft.cluster.cluster import Cluster
from actorraft.errors import ActorRaftError
from actorraft.simulation.linearizability import Operation, Verdict, check_history

UNKNOWN_MAX = 0.05
EQUAL_WITHIN_S = 20.0


class Replica(NamedTuple):
    """What one node said last."""

    last_applied: int
    digest: str
    error: str = ""


class Judgement(NamedTuple):
    """The verdict on a run and what it rests on."""

    linearizable: Verdict
    lost: list[Operation]
    replicas: dict[int, Replica]
    equal_after_s: float | None  # seconds from the heal until all nodes were equal; None: they were not
    statuses: Counter[str]

    @property
    def unknown_share(self) -> float:
        total = sum(self.statuses.values())
        return self.statuses["unknown"] / total if total else 0.0

    @property
    def complaints(self) -> list[str]:
        """What speaks against the system, empty if nothing does."""
        found = [f"not linearizable: {violation}" for violation in self.linearizable.violations]
        found += [f"undecided: key {key!r}" for key in self.linearizable.undecided]
        found += [f"acknowledged and lost: {operation}" for operation in self.lost]
        if self.equal_after_s is None:
            found.append(f"the replicas differ: {self.replicas}")
        if self.unknown_share > UNKNOWN_MAX:
            found.append(f"{self.unknown_share:.1%} of the outcomes are unknown, over {UNKNOWN_MAX:.0%}")
        if not self.statuses["ok"]:
            found.append("not one operation succeeded")
        return found


def read_all(client: Client[Any], keys: Iterable[str], name: str = "last") -> list[Operation]:
    """Read every key, linearizably, as one more client."""
    proxy = client.proxy(timeout=30.0)
    operations: list[Operation] = []
    wanted = sorted(set(keys))
    for start in range(0, len(wanted), 2000):
        chunk = wanted[start : start + 2000]
        call_ns = time.monotonic_ns()
        contents = proxy.get_many(chunk)
        return_ns = time.monotonic_ns()
        # One read of many keys is, to a checker that looks at keys one by one, a read of each in the same interval.
        operations += [
            Operation(f"{name} {key}", "get", key, None, None, contents.get(key), "ok", call_ns, return_ns)
            for key in chunk
        ]
    return operations


def lost_writes(operations: Iterable[Operation], last: Iterable[Operation]) -> list[Operation]:
    """Return the acknowledged writes that the last reads rule out."""
    writes: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.op != "get" and operation.status != "fail" and operation.result is not False:
            writes[operation.key].append(operation)
    lost: list[Operation] = []
    for read in last:
        written = writes[read.key]
        acknowledged = [operation for operation in written if operation.status == "ok"]
        if any(operation.op == "append" for operation in written):
            held = set((read.result or "").split(";"))
            lost += [one for one in acknowledged if one.value.rstrip(";") not in held]
        elif read.result is not None:
            writer = next((one for one in written if one.value == read.result), None)
            if writer is not None and writer.return_ns is not None:
                lost += [one for one in acknowledged if one.call_ns > writer.return_ns]
        elif not any(operation.op == "delete" for operation in written):
            lost += acknowledged
    return lost


def ask_digests(cluster: Cluster[Any], timeout: float = 5.0) -> dict[int, Replica]:
    """Ask every node for its digest."""
    asked = {node_id: cluster.ask_node(node_id, "digest", {}, timeout) for node_id in sorted(cluster.endpoints)}
    replicas: dict[int, Replica] = {}
    for node_id, future in asked.items():
        try:
            said = future.result(timeout + 5.0)
            replicas[node_id] = Replica(said["last_applied"], said["digest"])
        except (ActorRaftError, TimeoutError) as error:
            replicas[node_id] = Replica(-1, "", str(error))
    return replicas


def wait_until_equal(
    cluster: Cluster[Any], timeout_s: float = EQUAL_WITHIN_S
) -> tuple[dict[int, Replica], float | None]:
    """Wait until all nodes have applied and say the same; return what they said, and after how many seconds."""
    began_s = time.monotonic()
    while True:
        replicas = ask_digests(cluster)
        took_s = time.monotonic() - began_s
        if len(set(replicas.values())) == 1 and next(iter(replicas.values())).digest:
            return replicas, took_s
        if took_s > timeout_s:
            return replicas, None
        time.sleep(0.02)


def judge(
    operations: list[Operation], last: list[Operation], equal: tuple[dict[int, Replica], float | None]
) -> Judgement:
    """Judge a whole run."""
    verdict = check_history([*operations, *last])
    statuses = Counter(operation.status for operation in operations)
    return Judgement(verdict, lost_writes(operations, last), *equal, statuses)
