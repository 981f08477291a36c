"""One run of the nemesis, from an empty cluster to the verdict."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actorraft import RaftConfig, ReplicatedStateMachine
from actorraft.cluster.cluster import Cluster
from actorraft.simulation.linearizability import Operation, read_history, write_history
from tests.nemesis import disks, namespaces, served
from tests.nemesis.clients import ClientProcess, Config
from tests.nemesis.faults import Faults
from tests.nemesis.judge import Judgement, judge, read_all, wait_until_equal
from tests.nemesis.machine import Registers

IMAGE_MEGABYTES = 192
QUIET_S = 1.0  # clients work on after the heal


@dataclass(kw_only=True)
class Options:
    """What a run is.

    Attributes:
        namespaces: nodes in network namespaces, joined by a router that drops packets; else frames are dropped in the
            nodes.
        serve: nodes are started by `actorraft serve`, each on a host of its own; no parent, no faults of disks or of
            membership.
        machine: the class that the nodes run; `Registers`, or one of it with a planted bug.
    """

    seconds: float = 60.0
    faults: set[str] = field(default_factory=set)
    nodes: int = 5
    clients: int = 6
    rate: float = 100.0
    seed: int = 0
    durability: str = "fsync"
    history: Path | None = None
    namespaces: bool = True
    serve: bool = False
    machine: type[Registers] = Registers
    timeout_s: float = 5.0


@dataclass
class Report:
    """What came of a run."""

    options: Options
    operations: list[Operation]
    faults: Faults
    judgement: Judgement
    skipped: dict[str, str]  # fault -> why
    network: str
    client_errors: list[str]
    seconds: float

    @property
    def complaints(self) -> list[str]:
        return self.judgement.complaints + self.client_errors


def run(options: Options, progress: Callable[[str, float], None] = lambda _text, _done: None) -> Report:
    """Run, judge, clean up. `progress` is told what is going on, and the share of the time that is over."""
    with contextlib.ExitStack() as stack:
        place = Path(tempfile.mkdtemp(prefix="nemesis-"))
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        progress("starting", 0.0)
        skipped: dict[str, str] = {}
        kinds = set(options.faults)
        if options.serve:
            skipped |= dict.fromkeys(kinds & {"disk", "membership"}, "not of served nodes")
            kinds -= skipped.keys()
        network, why = _network(stack, options)
        if "disk" in kinds and not disks.why_not():
            stack.enter_context(disks.shared(place))
        mounts = stack.enter_context(contextlib.ExitStack())  # let go of after the cluster
        if options.serve:
            cluster: Any = stack.enter_context(
                served.serve(options.machine, options.nodes, options.durability, place / "hosts")
            )
        else:
            cluster = stack.enter_context(_cluster(options, place, network))
        images: dict[int, disks.Image] = {}
        if "disk" in kinds:
            reason = disks.why_not() or _move_to_images(mounts, cluster, place, images)
            if reason:
                skipped["disk"] = reason
                kinds.discard("disk")
        clients = _start_clients(stack, options, cluster, place)

        def moved(endpoints: dict[int, str]) -> None:
            for client in clients:
                client.move(endpoints)

        faults = Faults(
            cluster,
            kinds,
            options.seed,
            network=None if options.serve else network,
            images=images,
            moved=moved,
            failing_disks=options.durability == "fsync",
        )
        if options.serve:
            faults.supervised = False
        began_s = time.monotonic()
        _make_faults(faults, options.seconds, progress)
        time.sleep(QUIET_S)
        errors = [error for client in clients if (error := client.stop())]
        seconds = time.monotonic() - began_s
        progress("judging", 1.0)
        operations = [one for client in clients for one in read_history(client.history)]
        last = read_all(cluster, (one.key for one in operations))
        equal = wait_until_equal(cluster)
        if options.history is not None:
            write_history(options.history, [*operations, *last])
        judgement = judge(operations, last, equal)
    return Report(options, operations, faults, judgement, skipped, why, errors, seconds)


def _network(stack: contextlib.ExitStack, options: Options) -> tuple[namespaces.Router | None, str]:
    """Return the router, or None and why there is none."""
    if options.serve:
        return None, "packets dropped between hosts"
    if not options.namespaces:
        return None, "frames dropped in the nodes (asked for)"
    reason = namespaces.why_not()
    if reason:
        return None, f"frames dropped in the nodes ({reason})"
    return stack.enter_context(namespaces.Router()), "packets dropped between network namespaces"


@contextlib.contextmanager
def _cluster(options: Options, place: Path, network: namespaces.Router | None) -> Iterator[Cluster[Any]]:
    """A cluster that takes snapshots all the time, so that they are met by every fault."""
    config = RaftConfig(
        snapshot_after_entries=3000, trailing_entries=300, snapshot_after_bytes=8 << 20, lease_reads=True
    )
    spawn_options: dict[str, Any] = {
        "data_dir": place / "data",
        "durability": options.durability,
        "config": config,
        "timeout": 60.0,
    }
    if network is None:
        cluster: Cluster[Any] = ReplicatedStateMachine(options.machine).spawn(options.nodes, **spawn_options)
    else:
        cluster = namespaces.spawn(options.machine, options.nodes, network, **spawn_options)
    with cluster:
        yield cluster


def _move_to_images(
    stack: contextlib.ExitStack, cluster: Cluster[Any], place: Path, images: dict[int, disks.Image]
) -> str | None:
    """Give each node's folder a disk of its own; return why that is not possible."""
    for node in list(cluster.nodes.values()):
        folder = place / "data" / f"node-{node.id}"
        node.stop()
        aside = folder.rename(folder.with_name(f"aside-{node.id}"))
        try:
            image = disks.Image(place / f"disk-{node.id}", folder, megabytes=IMAGE_MEGABYTES)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
            node.restart()
            return str(error)
        stack.callback(image.close)
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        image.sync()  # the node synced what it wrote; a copy of it is not
        shutil.rmtree(aside)
        images[node.id] = image
        node.restart()
    return None


def _start_clients(
    stack: contextlib.ExitStack, options: Options, cluster: Cluster[Any], place: Path
) -> list[ClientProcess]:
    machine = f"{options.machine.__module__}:{options.machine.__qualname__}"
    clients = []
    for number in range(options.clients):
        config = Config(
            name=f"c{number}",
            machine=machine,
            endpoints=cluster.endpoints,
            history=str(place / f"client-{number}.jsonl"),
            seed=options.seed * 1000 + number,
            rate=options.rate,
            timeout_s=options.timeout_s,
        )
        clients.append(ClientProcess(config))
        stack.callback(clients[-1].stop)
    return clients


def _make_faults(faults: Faults, seconds: float, progress: Callable[[str, float], None]) -> None:
    began_s = time.monotonic()
    faults.start()
    try:
        while (over_s := time.monotonic() - began_s) < seconds:
            last = faults.done[-1] if faults.done else None
            progress(f"{len(faults.done)} faults; {last.kind} {last.what}" if last else "working", over_s / seconds)
            time.sleep(min(0.2, seconds - over_s))
    finally:
        progress("healing", 1.0)
        faults.stop()
