"""A cluster on Ray: `spawn(3, on=Ray())`. Ray places machines and replaces them; who leads is decided here.

A placement group spreads one bundle over each of so many of Ray's nodes; in each bundle an actor of Ray's hosts one
member, as `ReplicatedStateMachine.serve` does, so the member's process dies with it. A member that is lost with its
machine is removed, and another with a new id joins from wherever Ray has put the bundle since: what the lost one had
acknowledged is gone with its disk, so it must not come back. Elections are a matter of milliseconds and do not wait for
Ray, which notices a lost machine after seconds.

Needs the extra `ray`; the machine's class is imported by name wherever Ray's workers run.

Threads:    a supervisor of this cluster's, which replaces members; the rest is Client's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from actorraft.client import administration
from actorraft.client.client import Client
from actorraft.client.connect import open_thread
from actorraft.cluster.founding import found, join_address
from actorraft.cluster.joining import create_token, join_cluster
from actorraft.errors import ActorRaftError, StartError, UsageError
from actorraft.loggers import guarded_logger
from actorraft.node.folder import Durability, read_folder
from actorraft.node.standalone import arguments_of, load_machine

M = TypeVar("M")
logger = guarded_logger("actorraft")

LOOK_S: Final = 0.5  # how often it is looked whether a member is lost
ANSWER_S: Final = 3.0  # what a member's host may take to say that it is there
TOKEN_S: Final = 600.0
CHANGE_S: Final = 20.0


@dataclass(frozen=True)
class Ray:
    """Where and how Ray runs members.

    Attributes:
        address: of Ray's cluster; not used where this process is connected to one already.
        data_dir: on each machine, where members keep their data; None: temporary, gone with the member.
        resources: of each bundle, as Ray counts them; a CPU if nothing is said.
        detached: members stay when this process ends; then nobody replaces those that are lost.
    """

    address: str = "auto"
    data_dir: str | None = None
    resources: dict[str, float] | None = field(default=None, hash=False)
    detached: bool = False


class Host:
    """One of Ray's actors: it hosts one member in its machine."""

    def __init__(self, data_dir: str | None) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="actorraft-ray-", dir=data_dir))
        self._member: Any = None

    def address(self) -> str:
        """Return host:port, free now and the next one too."""
        import socket

        from ray.util import get_node_ip_address

        host = get_node_ip_address()  # type: ignore[no-untyped-call, unused-ignore]
        while True:
            with socket.socket() as one, socket.socket() as other:
                one.bind((host, 0))
                port = one.getsockname()[1]
                with contextlib.suppress(OSError, OverflowError):
                    other.bind((host, port + 1))
                    return join_address(host, port)

    def found(self, files: dict[str, bytes]) -> int:
        """Serve a founder; return its id."""
        folder = self._directory / "node"
        folder.mkdir(mode=0o700)
        for name, content in files.items():
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600)
        return self._serve(folder)

    def join(self, token: str, address: str) -> int:
        """Become a new member; return its id."""
        return self._serve(join_cluster(token, self._directory / "node", listen=address, advertise="", learner=False))

    def _serve(self, folder: Path) -> int:
        from actorraft.cluster.spawn import ReplicatedStateMachine

        read = read_folder(folder)
        args, kwargs = arguments_of(read)
        self._member = ReplicatedStateMachine(load_machine(read.cluster.machine), *args, **kwargs).serve(folder)
        return int(self._member.id)

    def alive(self) -> bool:
        """Whether its member's process runs."""
        return bool(self._member.alive)

    def stop(self) -> None:
        """Leave well."""
        self._member.stop()
        shutil.rmtree(self._directory, ignore_errors=True)


class RayCluster(Client[M]):
    """A cluster whose members Ray runs.

    Attributes:
        folder: a client's, for `connect` and the command line, for as long as this is open.
    """

    def __init__(
        self,
        ray: Ray,
        machine: Callable[..., M],
        name: str,
        args: Any,
        kwargs: Any,
        nodes: int,
        *,
        label: str,
        durability: Durability,
        timeout: float,
    ) -> None:
        self._ray = ray
        self._directory = Path(tempfile.mkdtemp(prefix="actorraft-ray-"))
        self._hosts: list[Any] = []  # Ray's handles, one a bundle
        self._ids: list[int] = []  # of the member in each
        self._ended = threading.Event()
        self._group: Any = None
        try:
            self._start(nodes, name, args, kwargs, label, durability, timeout)
            self.folder = self._directory / "cluster" / "client"
            super().__init__(open_thread(self.folder), machine)
            self.wait_for_leader(timeout)
        except BaseException:
            self._end_hosts()
            raise
        self._supervisor = threading.Thread(target=self._supervise, name="ray supervisor", daemon=True)
        self._supervisor.start()

    def _start(
        self, nodes: int, name: str, args: Any, kwargs: Any, label: str, durability: Durability, timeout: float
    ) -> None:
        import ray
        from ray.util.placement_group import placement_group

        if not ray.is_initialized():
            ray.init(address=self._ray.address, log_to_driver=False)
        bundle = {"CPU": 1.0} | (self._ray.resources or {})
        lifetime = "detached" if self._ray.detached else None
        self._group = placement_group([bundle] * nodes, strategy="STRICT_SPREAD", lifetime=lifetime)
        ready, _ = ray.wait([self._group.ready()], timeout=timeout)
        if not ready:
            raise StartError(f"Ray has not {nodes} nodes with {bundle} free each within {timeout:g} s")
        self._hosts = [self._make_host(number) for number in range(nodes)]
        addresses = ray.get([host.address.remote() for host in self._hosts], timeout=timeout)
        made = self._directory / "cluster"
        found(made, name, addresses, args=args, kwargs=kwargs, name=label, durability=durability)
        files = [
            {file.name: file.read_bytes() for file in (made / f"node-{number}").iterdir()} for number in range(nodes)
        ]
        serving = [host.found.remote(each) for host, each in zip(self._hosts, files, strict=True)]
        self._ids = ray.get(serving, timeout=timeout)

    def _make_host(self, number: int) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        options = {"lifetime": "detached", "name": f"actorraft-{os.urandom(4).hex()}"} if self._ray.detached else {}
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=number)
        remote = ray.remote(Host).options(num_cpus=1, max_restarts=0, scheduling_strategy=strategy, **options)
        return remote.remote(self._ray.data_dir)

    # --- Members that are lost ---

    def _supervise(self) -> None:
        while not self._ended.wait(LOOK_S):
            for number in range(len(self._hosts)):
                if not self._ended.is_set() and self._is_lost(number):
                    try:
                        self._replace(number)
                    except Exception as error:  # of Ray's too: again at the next look
                        logger.warning("node %d is lost, and not replaced yet: %s", self._ids[number], error)

    def _is_lost(self, number: int) -> bool:
        import ray

        try:
            return not ray.get(self._hosts[number].alive.remote(), timeout=ANSWER_S)
        except ray.exceptions.GetTimeoutError:
            return False  # slow, or Ray has not noticed yet; the cluster does not wait for it
        except ray.exceptions.RayError:
            return True

    def _replace(self, number: int) -> None:
        """Remove who is lost, and have another member join from where Ray puts the bundle."""
        import ray

        lost = self._ids[number]
        thread = self._thread
        said = administration.ask_leader(thread, "status", {}, CHANGE_S)
        if lost in {*said["voters"], *said["learners"]}:
            logger.warning("node %d is lost with its machine: it is removed, and another one is to join", lost)
            with contextlib.suppress(ActorRaftError):  # another change is under way: at the next look
                administration.ask_leader(thread, "change_membership", {"changes": [["remove", lost]]}, CHANGE_S)
            return
        host = self._make_host(number)
        address = ""
        while not self._ended.is_set() and not address:  # until there is a machine for it
            with contextlib.suppress(ray.exceptions.GetTimeoutError):
                address = ray.get(host.address.remote(), timeout=ANSWER_S)
        if not address:
            return
        token = create_token(self.folder, thread, TOKEN_S, False, CHANGE_S)
        self._ids[number] = ray.get(host.join.remote(token, address), timeout=CHANGE_S * 3)
        self._hosts[number] = host
        logger.warning("node %d has joined in the place of node %d", self._ids[number], lost)

    # --- The end ---

    def close(self, timeout: float = 5.0) -> None:
        """End the members, unless they are detached, and this session. Idempotent."""
        self._ended.set()
        super().close()
        if not self._ray.detached:
            self._end_hosts(timeout)

    def _end_hosts(self, timeout: float = 0.0) -> None:
        import ray
        from ray.util import remove_placement_group

        with contextlib.suppress(Exception):  # whatever is gone already
            if timeout:
                ray.wait([host.stop.remote() for host in self._hosts], num_returns=len(self._hosts), timeout=timeout)
        for host in self._hosts:
            with contextlib.suppress(Exception):
                ray.kill(host)
        self._hosts = []
        with contextlib.suppress(Exception):
            if self._group is not None:
                remove_placement_group(self._group)
        shutil.rmtree(self._directory, ignore_errors=True)

    def __repr__(self) -> str:
        return f"<RayCluster {len(self._ids)} nodes, leader {self.leader()}, term {self._thread.term}>"


def spawn_on(
    ray: Ray,
    machine: Callable[..., M],
    name: str,
    args: Any,
    kwargs: Any,
    nodes: int | None,
    *,
    label: str | None,
    durability: Durability | None,
    timeout: float,
) -> RayCluster[M]:
    """Start a cluster on Ray.

    Raises:
        UsageError: Ray is not installed, or the machine's arguments are no JSON.
        StartError: Ray has not enough nodes, or a member did not come up.
    """
    try:
        import ray as _  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError("clusters on Ray need ray: pip install 'actorraft[ray]'") from error
    try:
        json.dumps([args, kwargs])
    except TypeError as error:
        raise UsageError(f"on other machines the machine's arguments travel as JSON: {error}") from error
    chosen: Durability = durability or ("fsync" if ray.data_dir is not None else "os")
    return RayCluster(
        ray, machine, name, args, kwargs, nodes or 3, label=label or "", durability=chosen, timeout=timeout
    )
