"""Start a cluster: `ReplicatedStateMachine(Bank).spawn(5)` checks, makes the directories, starts the processes.

A cluster grows in one direction: its place, then its processes, then, once all serve, the client of them that is the
Cluster. What fails on the way closes what there is by then.

Threads:    every public method may be called from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Generic, Literal, ParamSpec, Protocol, TypeVar

from actorraft.actors.process import refuse_nested_spawn
from actorraft.actors.supervision import Supervision
from actorraft.actors.surroundings import check_descriptors, explained, interpreter
from actorraft.cluster.cluster import Cluster
from actorraft.cluster.member import Member, client_folder_of
from actorraft.cluster.on_ray import Ray, spawn_on
from actorraft.cluster.options import (
    check_a,
    check_http,
    check_kind,
    check_listen,
    check_one_of,
    check_path,
    check_timeout,
)
from actorraft.cluster.place import Place
from actorraft.cluster.processes import NodeProcesses
from actorraft.errors import StartError, Unavailable, UsageError
from actorraft.futures import running_loop
from actorraft.loggers import guarded_logger
from actorraft.node.folder import read_folder
from actorraft.node.standalone import arguments_of, overrides_of, plan
from actorraft.pickling.encoder import encode_factory, machine_name
from actorraft.raft.config import RaftConfig
from actorraft.steady import monotonic
from actorraft.storage.portable import check_portable

M = TypeVar("M")

logger = guarded_logger("actorraft")
P = ParamSpec("P")


class ReplicatedStateMachine(Generic[M]):
    """A machine's class and its constructor's arguments, ready to be run on several nodes.

    Args:
        machine: a class, never an instance: with `@command` and `@query` methods, or with `apply(self, command)`, or
            any other (then commands are objects with `apply(self, state)`, or callables).
        args, kwargs: go to the constructor, on every node.

    Raises:
        UsageError: `machine` is no class, or it or the arguments cannot be sent to another process.
    """

    def __init__(self, machine: Callable[P, M], /, *args: P.args, **kwargs: P.kwargs) -> None:
        self._machine = machine
        self._args, self._kwargs = args, kwargs
        check_kind(machine)
        self._factory = encode_factory(machine, args, kwargs)

    def spawn(
        self,
        nodes: int | None = None,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        durability: Literal["fsync", "os"] | None = None,
        transport: Literal["ipc", "tcp"] = "ipc",
        listen: Sequence[str] | None = None,
        http: Sequence[str] | None = None,
        on: Ray | None = None,
        config: RaftConfig | None = None,
        supervision: Supervision | None = Supervision(),  # noqa: B008  (frozen)
        name: str | None = None,
        from_snapshot: str | os.PathLike[str] | None = None,
        formerly: str | None = None,
        replay_with_new_code: bool = False,
        timeout: float = 30.0,
    ) -> Cluster[M]:
        """Start the nodes, each in an OS process of its own; return the cluster once a leader is ready.

        Args:
            nodes: how many; None: 3 for a new cluster, else what `data_dir` holds.
            data_dir: where the cluster keeps its data; None: a private temporary directory, removed on close.
            durability: "fsync" (survives loss of power; the default with a `data_dir`) or "os" (survives the death of
                any or all processes; the default without).
            transport: "ipc" (sockets that only this user can reach) or "tcp" (loopback).
            listen: one `host:port` a node, kept over restarts, for its peers; clients have the next port. Implies tcp.
            http: one `host:port` a node, for /livez, /readyz and /metrics.
            on: `Ray(...)`: members are placed, and replaced when they are lost, by Ray; what is returned is a client of
                them that owns them (on_ray.py). Only `name`, `durability` and `timeout` go with it.
            config: the numbers of the protocol.
            supervision: how nodes that die unasked are started again; None: not at all.
            name: for logs and `repr`; by default the machine's.
            from_snapshot: what `export_snapshot` wrote: a new cluster begins with that state.
            formerly: what the machine was called when `data_dir` or `from_snapshot` was made ("module:Class", or its
                `machine_name`), said once after it was renamed or moved.
            replay_with_new_code: compute anew what the log of `data_dir` has after its newest snapshot, by today's code
                of the machine: results that were acknowledged may be others. All nodes begin from that one snapshot.
            timeout: seconds until a leader must be ready.

        Raises:
            ValueError, TypeError: `nodes` is below 1, or no integer.
            UsageError: the directory or an option cannot be used; the message says why and what to do.
            StartError: a node's process did not come up; the message holds its own words.
        """
        if nodes is not None:
            if isinstance(nodes, bool) or not isinstance(nodes, int):
                raise TypeError(f"nodes is a whole number, not {nodes!r}")
            if nodes < 1:
                raise ValueError(f"a cluster has at least 1 node, not {nodes}")
        timeout_s = check_timeout(timeout)
        check_a("on", on, Ray)
        if on is not None:
            if any(given is not None for given in (data_dir, listen, http, config, from_snapshot, formerly)):
                raise UsageError("with on=Ray(...) only name, durability and timeout are said here; Ray has a data_dir")
            named = machine_name(self._machine, self._args)
            return spawn_on(  # type: ignore[return-value]  # a client that owns its members, as a Cluster is
                on,
                self._machine,
                named,
                self._args,
                self._kwargs,
                nodes,
                label=name,
                durability=durability,
                timeout=timeout_s,
            )
        check_one_of("transport", transport, ("ipc", "tcp"))
        check_one_of("durability", durability, (None, "os", "fsync"))
        check_a("config", config, RaftConfig)
        check_a("supervision", supervision, Supervision)
        check_a("name", name, str)
        check_a("formerly", formerly, str)
        check_a("replay_with_new_code", replay_with_new_code, bool)
        data_dir, from_snapshot = check_path("data_dir", data_dir), check_path("from_snapshot", from_snapshot)
        addresses = check_listen(listen) if listen is not None else ()
        health = check_http(http) if http is not None else ()
        if addresses and nodes is None:
            nodes = len(addresses)
        refuse_nested_spawn()
        _warn_of_workers()
        interpreter()
        check_descriptors(nodes or 3)
        with explained(), contextlib.ExitStack() as undo:
            machine = machine_name(self._machine, self._args)
            if from_snapshot is not None:
                check_portable(from_snapshot, machine, formerly)
            place = Place(data_dir, machine, nodes, name, formerly)
            undo.callback(place.close)
            if from_snapshot is not None and not place.is_new:
                raise UsageError(f"{data_dir} holds a cluster already; from_snapshot is for a new one")
            members = place.info.node_ids
            if addresses and len(addresses) != len(members):
                raise UsageError(f"listen names {len(addresses)} addresses for {len(members)} nodes: one a node")
            if health and len(health) != len(members):
                raise UsageError(f"http names {len(health)} addresses for {len(members)} nodes: one a node")
            durability = durability or ("os" if data_dir is None else "fsync")
            replay = replay_with_new_code and not place.is_new
            processes = NodeProcesses(
                place,
                self._factory,
                durability=durability,
                transport="tcp" if addresses else transport,
                listen=dict(zip(members, addresses, strict=False)),
                http=dict(zip(members, health, strict=False)),
                config=config if config is not None else RaftConfig.local(),
                supervision=supervision,
                from_snapshot=Path(from_snapshot) if from_snapshot is not None else None,
                replay_from=place.level(durability) if replay else None,
            )
            undo.pop_all()  # closed with the processes from here on
            return self._start(processes, timeout_s)

    def _start(self, processes: NodeProcesses, timeout: float) -> Cluster[M]:
        """Start the nodes; a client of them, which is the cluster, is made when all are there."""
        deadline_s = monotonic() + timeout
        running: _Closable = processes
        try:
            _started.get()(processes)
            processes.start(deadline_s)
            running = cluster = Cluster(self._machine, processes)
            _started.get()(cluster)
            cluster.wait_until_it_serves(deadline_s)
        except BaseException as error:
            if isinstance(error, Unavailable):
                error = StartError(_not_served(processes, timeout))
            running.close()
            raise error from None
        return cluster

    def serve(
        self,
        folder: str | os.PathLike[str],
        *,
        data_dir: str | os.PathLike[str] | None = None,
        listen: str = "",
        advertise: str = "",
        http: str = "",
        actors: bool = False,
        timeout: float = 30.0,
    ) -> Member[M]:
        """Host one member of a cluster over many machines, in a process that dies with this one; return the member.

        Args:
            folder: the node's folder, as `actorraft init` wrote it.
            data_dir: where its data is; by default in the folder.
            listen: "host:port" to bind for other nodes; clients get the next port.
            advertise: "host:port" that other nodes dial; by default what is bound.
            http: "host:port" for health and metrics.
            actors: let administrators reach public actors of this machine, at the port after the clients'.
            timeout: seconds until it must serve; that there is a leader is not waited for.

        Raises:
            UsageError: the folder, the data or an option cannot be used, or the folder is another machine's.
            StartError: the process did not come up; the message holds its own words.
        """
        refuse_nested_spawn()
        place, data_dir, timeout = (
            check_path("folder", folder),
            check_path("data_dir", data_dir),
            check_timeout(timeout),
        )
        if place is None:
            raise UsageError("folder is the folder of one node, as actorraft init wrote it, not None")
        for name, value in (("listen", listen), ("advertise", advertise), ("http", http)):
            check_a(name, value, str)
        read = read_folder(place, overrides=overrides_of(data_dir, listen or "", advertise or "", http or "", actors))
        name = machine_name(self._machine, self._args)
        asked = (name, list(self._args), self._kwargs)
        theirs = (read.cluster.machine, *arguments_of(read))
        if asked != (theirs[0], list(theirs[1]), theirs[2]):
            raise UsageError(
                f"{folder} is for {theirs[0]} with {list(theirs[1])} and {theirs[2]}, and this is {name} with "
                f"{list(self._args)} and {self._kwargs}: what decides the state is the cluster's"
            )
        spec = plan(Path(place), read)
        return Member(self._machine, read, spec, client_folder_of(folder), timeout)

    async def spawn_async(
        self,
        nodes: int | None = None,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        durability: Literal["fsync", "os"] | None = None,
        transport: Literal["ipc", "tcp"] = "ipc",
        listen: Sequence[str] | None = None,
        http: Sequence[str] | None = None,
        on: Ray | None = None,
        config: RaftConfig | None = None,
        supervision: Supervision | None = Supervision(),  # noqa: B008  (frozen)
        name: str | None = None,
        from_snapshot: str | os.PathLike[str] | None = None,
        formerly: str | None = None,
        replay_with_new_code: bool = False,
        timeout: float = 30.0,
    ) -> Cluster[M]:
        """As `spawn`, from a coroutine; the event loop goes on meanwhile. Returns and raises the same.

        Cancelled, it leaves nothing behind.
        """
        spawn = partial(
            self.spawn,
            nodes,
            data_dir=data_dir,
            durability=durability,
            transport=transport,
            listen=listen,
            http=http,
            on=on,
            config=config,
            supervision=supervision,
            name=name,
            from_snapshot=from_snapshot,
            formerly=formerly,
            replay_with_new_code=replay_with_new_code,
            timeout=timeout,
        )
        loop, start = running_loop("spawn_async", "replicated.spawn"), _Start()
        context = contextvars.copy_context()
        context.run(_started.set, start.goes_on_as)
        spawning = loop.run_in_executor(None, partial(context.run, spawn))
        try:
            return await asyncio.shield(spawning)
        except asyncio.CancelledError:
            spawning.add_done_callback(lambda done: done.exception())  # nobody asks for it any more
            loop.run_in_executor(None, start.give_up)
            raise


def _warn_of_workers() -> None:
    """Say that a web server's worker is no place for a cluster: each worker would have one of its own."""
    forked = "gunicorn.arbiter" in sys.modules
    server = "gunicorn" if forked else next((name for name in ("uvicorn", "hypercorn") if name in sys.modules), "")
    if server and (forked or multiprocessing.parent_process() is not None):
        logger.warning(
            "spawn() in a worker of %s: each worker has a cluster of its own then, which ends with it. Start the "
            "cluster outside of them, and connect() in each worker's lifespan (examples/web.py)",
            server,
        )


class _Closable(Protocol):
    def close(self) -> None: ...


def _not_served(processes: NodeProcesses, timeout: float) -> str:
    said = processes.what_is_wrong()
    if said:
        return f"the cluster does not serve within {timeout:g} s:\n{said}"
    return f"no leader within {timeout:g} s. The nodes' last lines:\n{processes.last_lines()}"


def _tell_nobody(_: _Closable) -> None:
    return


# Told of what is being started, as it grows.
_started: contextvars.ContextVar[Callable[[_Closable], object]] = contextvars.ContextVar(
    "started", default=_tell_nobody
)


class _Start:
    """A spawn that another thread may give up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: _Closable | None = None
        self._given_up = False

    def goes_on_as(self, running: _Closable) -> None:
        with self._lock:
            if self._given_up:
                raise StartError("the spawn was given up")
            self._running = running

    def give_up(self) -> None:
        with self._lock:
            self._given_up = True
            running = self._running
        if running is not None:
            running.close()
