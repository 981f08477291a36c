"""One member of a cluster, hosted by this program: `ReplicatedStateMachine(Bank).serve("bank/node-0")`.

For services that each host a node. The node is a process of its own, started and watched as those of a cluster that is
spawned here; its folder and its data are those of `actorraft serve`, which may take over at any later start.

Threads:    every public method may be called from any.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from actorraft.actors.monitor import Monitor
from actorraft.actors.process import ActorProcess
from actorraft.actors.rundir import RunDir
from actorraft.client.client import Client
from actorraft.client.connect import open_client
from actorraft.client.status import Status
from actorraft.errors import StartError, UsageError
from actorraft.loggers import guarded_logger
from actorraft.node.folder import NodeFolder
from actorraft.node.process import run_node
from actorraft.node.spec import NodeSpec
from actorraft.node.standalone import hash_seed_of
from actorraft.steady import monotonic

M = TypeVar("M")
CLOSE_S = 5.0  # what the node gets to hand over and close, before SIGKILL


class Member(Generic[M]):
    """A running member. Made by `ReplicatedStateMachine.serve`; its process dies with this one.

    Attributes:
        id: of the node.
    """

    def __init__(
        self, machine: Callable[..., M], folder: NodeFolder, spec: NodeSpec, client_folder: Path, timeout: float
    ) -> None:
        self.id = spec.node_id
        self._machine = machine
        self._client_folder = client_folder
        self._run = RunDir()
        self._logger = guarded_logger(f"actorraft.node.{self.id}")
        self._process = ActorProcess(
            run_node,
            (spec,),
            name=f"node {self.id}",
            run_dir=self._run.path,
            logger=self._logger,
            hash_seed=hash_seed_of(folder),
        )
        self._reason = ""
        self._bound: tuple[str, str] = ("", "")
        own = weakref.ref(self)
        self._monitor: Monitor[ActorProcess] = Monitor(
            supervision=None,
            restart=lambda process: None,
            on_report=lambda process, report: _heard(own, report),
            on_exit=lambda process, reason: _heard(own, ("exit", reason)),
        )
        try:
            self._process.start()
            deadline_s = monotonic() + timeout
            while (report := self._process.receive(max(0.1, deadline_s - monotonic())))[0] != "ready":
                if report[0] == "stopped":
                    raise StartError(f"node {self.id} did not start: {report[1]}")
                self.hear(report)
            self._monitor.watch(self._process)
        except BaseException:
            self.stop(0.0)
            raise

    def hear(self, report: tuple[str, Any]) -> None:
        """Take note of what the node's process says."""
        verb, value = report
        if verb == "bound":
            self._bound = value
        elif verb in ("stopped", "exit"):
            self._reason = self._reason or str(value)

    @property
    def endpoints(self) -> tuple[str, str]:
        """Where this node is bound: for other nodes, and for clients."""
        return self._bound

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process.alive

    def status(self, *, timeout: float = 1.0) -> Status:
        """Ask every member of the cluster how it is, as `Client.status` does."""
        with self.client() as client:
            return client.status(timeout=timeout)

    def logs(self, lines: int = 100) -> list[str]:
        """Return the last lines that the node's process wrote."""
        return self._process.logs(lines)

    def client(self) -> Client[M]:
        """Open a session with the cluster; it waits for nobody.

        Raises:
            UsageError: there is no client's folder beside the node's; `connect` takes one from elsewhere.
        """
        if not self._client_folder.is_dir():
            raise UsageError(
                f"{self._client_folder} is no client's folder: copy one there, or use actorraft.connect(FOLDER, …)"
            )
        return open_client(self._client_folder, self._machine)

    def stop(self, timeout: float = CLOSE_S) -> None:
        """Hand leadership over, close, and end the process. Idempotent.

        Args:
            timeout: seconds until it is killed.
        """
        self._monitor.forget(self._process)
        self._process.terminate()
        if self._process.wait(timeout) is None:
            self._process.kill()
            self._process.wait(CLOSE_S)
        self._process.close()
        self._monitor.close()
        self._run.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = f"serves at {self._bound[1]}" if self.alive else f"has ended: {self._reason or 'stopped'}"
        return f"<Member {self.id} {state}>"


def _heard(own: weakref.ref[Member[Any]], report: tuple[str, Any]) -> None:
    member = own()
    if member is not None:
        member.hear(report)


def client_folder_of(folder: str | os.PathLike[str]) -> Path:
    """Return where `init` puts the client's folder: beside the node's."""
    return Path(folder).absolute().parent / "client"
