"""A cluster that is owned: the processes of its nodes, and a client of it.

`ReplicatedStateMachine(MyFSM).spawn(5)` makes the directories, starts the processes side by side, tells each where the
others are, and returns when a leader is ready. From then on one monitor thread watches the processes, passes their log
records on, and starts again what died unasked. The only module here that names files, processes and transports at once.

Source:     contract sections 1 and 2; architecture 8, 17 and 18.
Threads:    every public method may be called from any thread.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import copy
import logging
import os
import shutil
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

from actorraft.actors.process import ActorProcess, Monitor, refuse_nested_spawn
from actorraft.actors.supervision import Supervision
from actorraft.client.client import Client, open_client
from actorraft.client.status import MemberStatus
from actorraft.cluster.nodes import Node, Nodes
from actorraft.cluster.place import Place
from actorraft.errors import StartError, Unavailable, UsageError
from actorraft.node.process import NodeSpec, run_node
from actorraft.pickling.encoder import encode_factory, machine_name
from actorraft.raft.config import RaftConfig
from actorraft.storage.portable import check_portable

logger = logging.getLogger("actorraft")

M = TypeVar("M")
P = ParamSpec("P")

CUT_S = 2.0  # how long `partition` waits for a node that does not obey
CLOSE_S = 2.0  # what a node gets to leave by itself before SIGKILL
RESTART_S = 30.0  # how long a node that died unasked may take to serve again
START_CLOSE_S = 0.5  # the same for one that does not serve yet: it owes nobody anything


class ReplicatedStateMachine(Generic[M]):
    """A machine's class and its constructor's arguments, ready to be run on several nodes.

    Args:
        machine: a class (see contract section 1 for which kinds there are), never an instance.
        *args, **kwargs: go to the constructor, on every node.

    Raises:
        UsageError: `machine` is no class, or it or the arguments cannot be sent to another process.
    """

    def __init__(self, machine: Callable[P, M], /, *args: P.args, **kwargs: P.kwargs) -> None:
        self._machine = machine
        self._args = args
        self._factory = encode_factory(machine, args, kwargs)
        self._on_start: Callable[[Cluster[Any]], object] = _tell_nobody  # told of the cluster before it starts

    def spawn(
        self,
        nodes: int | None = None,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        durability: str | None = None,
        transport: str = "ipc",
        config: RaftConfig | None = None,
        supervision: Supervision | None = Supervision(),  # noqa: B008  (frozen)
        name: str | None = None,
        from_snapshot: str | os.PathLike[str] | None = None,
        timeout: float = 30.0,
    ) -> Cluster[M]:
        """Start the nodes, each in an OS process of its own; return once a leader is ready.

        Args:
            nodes: how many; None: 3 for a new cluster, else what `data_dir` holds.
            data_dir: where the cluster keeps its data; None: a private temporary directory, removed on close.
            durability: "fsync" (survives loss of power; the default with a `data_dir`) or "os" (survives the death of
                any or all processes; the default without).
            transport: "ipc" (sockets that only this user can reach) or "tcp" (loopback).
            config: the numbers of the protocol.
            supervision: how nodes that die unasked are started again; None: not at all.
            name: for logs and `repr`; by default the machine's.
            from_snapshot: what `export_snapshot` wrote: a new cluster begins with that state.
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
        if transport not in ("ipc", "tcp"):
            raise UsageError(f'transport is "ipc" or "tcp", not {transport!r}')
        if durability not in (None, "os", "fsync"):
            raise UsageError(f'durability is "os" or "fsync", not {durability!r}')
        refuse_nested_spawn()
        machine = machine_name(self._machine, self._args)
        if from_snapshot is not None:
            check_portable(from_snapshot, machine)
        place = Place(data_dir, machine, nodes, name)
        if from_snapshot is not None and not place.is_new:
            place.close()
            raise UsageError(f"{data_dir} holds a cluster already; from_snapshot is for a new one")
        return Cluster(
            self._machine,
            self._factory,
            place,
            durability=durability or ("os" if data_dir is None else "fsync"),
            transport=transport,
            config=config if config is not None else RaftConfig.local(),
            supervision=supervision,
            from_snapshot=Path(from_snapshot).absolute() if from_snapshot is not None else None,
            timeout=timeout,
            on_start=self._on_start,
        )

    async def spawn_async(self, nodes: int | None = None, **options: Any) -> Cluster[M]:
        """`spawn`, from a coroutine: the event loop goes on meanwhile. Cancelled, it leaves nothing behind."""
        loop, start, copied = asyncio.get_running_loop(), _Start(), copy.copy(self)
        copied._on_start = start.begin
        spawning = loop.run_in_executor(None, partial(copied.spawn, nodes, **options))
        try:
            return await asyncio.shield(spawning)
        except asyncio.CancelledError:
            spawning.add_done_callback(lambda done: done.exception())  # nobody asks for it any more
            loop.run_in_executor(None, start.give_up)
            raise


def _tell_nobody(_: Cluster[Any]) -> None:
    return


class _Start:
    """A spawn that another thread may give up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cluster: Cluster[Any] | None = None
        self._given_up = False

    def begin(self, cluster: Cluster[Any]) -> None:
        with self._lock:
            if self._given_up:
                raise StartError("the spawn was given up")
            self._cluster = cluster

    def give_up(self) -> None:
        with self._lock:
            self._given_up = True
            cluster = self._cluster
        if cluster is not None:
            cluster.close()


class Cluster(Client[M]):
    """A running cluster: a client that also owns the processes. Made by `ReplicatedStateMachine.spawn`."""

    def __init__(
        self,
        machine: Callable[..., M],
        factory: bytes,
        place: Place,
        *,
        durability: str,
        transport: str,
        config: RaftConfig,
        supervision: Supervision | None,
        from_snapshot: Path | None,
        timeout: float,
        on_start: Callable[[Cluster[Any]], object],
    ) -> None:
        self._closed = True  # nothing to close yet, should the start fail
        self._owner_pid = os.getpid()
        self._place = place
        self._factory = factory
        self._durability = durability
        self._transport = transport
        self._config = config
        self._from_snapshot = from_snapshot
        self._lock = threading.RLock()  # of what is known of the processes; nobody who holds it waits for one
        self._starts: dict[int, threading.RLock] = {}  # node id -> held by whoever starts it: one at a time
        self._ending = False  # nothing is started any more
        self._processes: dict[int, ActorProcess] = {}
        self._introduced: set[int] = set()  # nodes whose process was told who the others are
        self._serving: set[int] = set()  # nodes whose process has served
        self._kept_down: set[int] = set()  # nodes that were taken down on purpose
        self._bound: dict[int, tuple[str, str]] = {}  # node id -> endpoints for peers, for clients
        self._cuts: dict[int, list[int]] = {}  # node id -> peers that `partition` cut it off from
        self._cut_serial = 0  # of the last partition
        self._cut_obeyed: dict[int, int] = {}  # node id -> the last one in force there
        self._cut_changed = threading.Condition()
        self._paused: set[int] = set()
        self._reasons: dict[int, str] = {}  # why a node stopped, in its own words
        self._token = os.urandom(32) if transport == "tcp" else None
        self._supervised = supervision is not None
        self._monitor = Monitor(
            supervision=supervision,
            restart=_weakly(self._restart_unasked),
            on_report=_weakly(self._on_report),
            on_exit=_weakly(self._on_exit),
        )
        deadline_s = time.monotonic() + timeout
        try:
            if self._token is not None:
                token_file = place.run_dir / "token"
                token_file.touch(mode=0o600)
                token_file.write_bytes(self._token)
            _clusters.add(self)
            on_start(self)
            self._start(place.info.node_ids, deadline_s)
            from transports.zeromq import ZeroMQClientChannel

            super().__init__(
                {node_id: client for node_id, (_, client) in self._bound.items()},
                machine,
                channel=ZeroMQClientChannel(token=self._token),
                frame_bytes_max=config.frame_bytes_max,
            )
            self._machine_name = place.info.machine
            if self._ending:
                raise StartError("the cluster was closed while it started")
            self._wait_until_it_serves(deadline_s)
        except BaseException as error:
            if isinstance(error, Unavailable):
                error = StartError(f"no leader within {timeout} s. The nodes' last lines:\n{self._last_lines()}")
            self.close()
            raise error from None

    def _wait_until_it_serves(self, deadline_s: float) -> None:
        """Wait until the leader has applied all that there was before it, so that a stale read too finds it."""
        self.wait_for_leader(max(0.1, deadline_s - time.monotonic()))
        ends: dict[int, int] = {}  # term -> where the log ended when its leader was first asked
        while True:
            said = self._ask_leader("status", {}, max(0.1, deadline_s - time.monotonic()))
            if said["last_applied"] >= ends.setdefault(said["term"], said["last_index"]):
                return
            if time.monotonic() > deadline_s:
                raise Unavailable("the leader is not up to date yet")
            time.sleep(0.001)

    # --- Processes ---

    def _spec(self, node_id: int) -> NodeSpec:
        run_dir = self._place.run_dir
        ipc = self._transport == "ipc"
        fresh = (
            (f"ipc://{run_dir}/{node_id}.peer", f"ipc://{run_dir}/{node_id}.client")
            if ipc
            else ("tcp://127.0.0.1:0",) * 2
        )
        peer_endpoint, client_endpoint = self._bound.get(node_id, fresh)
        # Who joined later begins with nothing, and learns from the log who is who.
        founders = self._place.info.founder_ids if node_id in self._place.info.founder_ids else ()
        known = self._place.storage_ids()
        return NodeSpec(
            node_id=node_id,
            cluster_id=bytes.fromhex(self._place.info.cluster_id),
            factory=self._factory,
            machine_seed=int(self._place.info.cluster_id, 16),
            directory=self._place.node_path(node_id),
            durability=self._durability,
            keeps_data=self._place.keeps_data,
            from_snapshot=self._from_snapshot if founders else None,
            voters=frozenset(founders),
            storage_id=known[node_id],
            storage_ids=tuple((one, storage_id) for one, storage_id in known.items() if one in founders),
            peer_endpoint=peer_endpoint,
            client_endpoint=client_endpoint,
            token=self._token,
            config=self._config,
        )

    def _make_process(self, node_id: int) -> ActorProcess:
        return ActorProcess(
            run_node,
            (self._spec(node_id),),
            {},
            name=f"node {node_id}",
            run_dir=self._place.run_dir,
            logger=logging.getLogger(f"actorraft.node.{node_id}"),
            hash_seed=self._place.info.hash_seed,
        )

    def _launch(self, node_id: int) -> ActorProcess:
        """Start a node's process, and do not wait for it."""
        with self._lock:
            if self._ending:
                raise UsageError("this cluster is closed")
            old = self._processes.get(node_id)
            if old is not None:
                old.close()
            process = self._processes[node_id] = self._make_process(node_id)
            for group in (self._paused, self._introduced, self._serving):
                group.discard(node_id)
            process.start()
            return process

    def _start(self, node_ids: tuple[int, ...], deadline_s: float) -> None:
        """Start nodes side by side, tell each where all are, and have the most up-to-date one ask for votes first."""
        processes = {node_id: self._launch(node_id) for node_id in node_ids}
        for node_id, process in processes.items():
            self._bound[node_id] = self._expect(process, "bound", deadline_s)
        with self._lock:
            self._introduced.update(node_ids)
            self._tell_peers(node_ids)
        last = {node_id: self._expect(process, "ready", deadline_s) for node_id, process in processes.items()}
        for process in processes.values():
            self._serves(process)
        first = max(node_ids, key=lambda node_id: (last[node_id], -node_id))
        processes[first].send(("campaign", None))

    def _bring_up(self, node_id: int, deadline_s: float) -> None:
        """Start one node beside those that run; whoever ends its process meanwhile ends this, with a StartError."""
        process = self._launch(node_id)
        try:
            bound = self._expect(process, "bound", deadline_s)
            with self._lock:
                is_new = self._bound.get(node_id) != bound
                self._bound[node_id] = bound
                self._introduced.add(node_id)
                self._tell_peers(tuple(self._introduced) if is_new else (node_id,))
            self._expect(process, "ready", deadline_s)
            self._serves(process)
        except BaseException:
            process.kill()  # nobody watches it
            raise

    def _expect(self, process: ActorProcess, verb: str, deadline_s: float) -> Any:
        """Wait for what a starting node has to say next."""
        said, value = process.receive(max(0.1, deadline_s - time.monotonic()))
        if said == "stopped":
            self._reasons[_node_id(process)] = value
            raise StartError(f"{process.name} did not start: {value}")
        if said != verb:
            raise StartError(f"{process.name} did not start: it said {said} {value}")
        return value

    def _serves(self, process: ActorProcess) -> None:
        """From now on the monitor looks after it."""
        node_id = _node_id(process)
        with self._lock:
            if node_id in self._kept_down or self._ending:
                raise StartError(f"{process.name} was taken down while it started")
            self._serving.add(node_id)
            self._reasons.pop(node_id, None)
            self._monitor.watch(process)

    def _tell_peers(self, node_ids: tuple[int, ...]) -> None:
        """Tell nodes that know of each other already, or are to know now, where all are."""
        peers = {node_id: peer for node_id, (peer, _) in self._bound.items()}
        clients = [(node_id, client) for node_id, (_, client) in self._bound.items()]
        for node_id in node_ids:
            process = self._processes[node_id]
            if not process.alive:
                continue  # it is told at its start
            with contextlib.suppress(UsageError):  # it died meanwhile
                process.send(("peers", peers))
                process.send(("clients", clients))
                if node_id in self._cuts:  # a process that was started during a partition is on its side of it
                    process.send(("cut", (self._cut_serial, self._cuts[node_id])))

    def _process(self, node_id: int) -> ActorProcess:
        process = self._processes.get(node_id)
        if process is None or not process.alive:
            raise UsageError(f"node {node_id} has no process now; nodes[{node_id}].restart() starts it")
        return process

    def _take_down(self, node_id: int, how: Callable[[ActorProcess], None]) -> None:
        """End a node's process, also one that is only starting; it stays down."""
        with self._lock:
            self._kept_down.add(node_id)
            process = self._processes.get(node_id)
            if process is None:
                return
            self._monitor.forget(process)  # asked for: not started again by itself
            was_alive = process.alive
            patience_s = CLOSE_S if node_id in self._serving else START_CLOSE_S
            how(process)
        if process.wait(patience_s) is None:
            process.kill()
            process.wait(CLOSE_S)
        if was_alive:
            self._emit("exit", node_id, "stopped on purpose")

    def _restart(self, node_id: int, timeout: float) -> None:
        deadline_s = time.monotonic() + timeout
        self._take_down(node_id, ActorProcess.terminate)  # also one that is starting now, so nobody waits for that
        with self._starts.setdefault(node_id, threading.RLock()):
            self._take_down(node_id, ActorProcess.terminate)
            with self._lock:
                self._kept_down.discard(node_id)
            self._bring_up(node_id, deadline_s)
            self._emit("restart", node_id, f"serves again as process {self._processes[node_id].pid}")

    def _restart_unasked(self, process: ActorProcess) -> None:
        """The monitor says that a node died and may be started again."""
        node_id = _node_id(process)
        with self._starts.setdefault(node_id, threading.RLock()):
            if self._unwanted(node_id) or self._processes[node_id].alive:
                return
            try:
                self._bring_up(node_id, time.monotonic() + RESTART_S)
            except (StartError, UsageError):
                if not self._unwanted(node_id):
                    raise
            else:
                self._emit("restart", node_id, f"serves again as process {self._processes[node_id].pid}")

    def _unwanted(self, node_id: int) -> bool:
        """Whether somebody took it down, or removed it, or closes the cluster."""
        with self._lock:
            return self._ending or node_id in self._kept_down or node_id not in self._processes

    def _on_report(self, process: ActorProcess, report: Any) -> None:
        verb, value = report
        if verb == "stopped":
            self._reasons[_node_id(process)] = value
        elif verb == "cut":
            with self._cut_changed:
                self._cut_obeyed[_node_id(process)] = value
                self._cut_changed.notify_all()
        elif verb == "snapshot":
            self._emit("snapshot", _node_id(process), f"took a snapshot up to index {value}")
        elif verb == "difference":
            self._emit("difference", _node_id(process), value)

    def _on_exit(self, process: ActorProcess, reason: str) -> None:
        self._reasons.setdefault(_node_id(process), reason)
        self._emit("exit", _node_id(process), reason)

    def _emit(self, kind: str, node_id: int, detail: str) -> None:
        hub = getattr(self, "_events", None)
        if hub is not None:  # else it is still starting, and nobody can listen
            hub.emit(kind, node_id, detail)

    def _last_lines(self) -> str:
        lines: list[str] = []
        for node_id, process in self._processes.items():
            lines.extend(f"  node {node_id}: {line}" for line in process.logs(5))
        return "\n".join(lines) or "  (they wrote nothing)"

    # --- What an owner can do ---

    @property
    def nodes(self) -> Nodes:
        """The nodes by id, each with kill, stop, restart, pause, resume, pid, alive and logs."""
        return Nodes(self)

    @property
    def endpoints(self) -> dict[int, str]:
        """What `connect` takes: node id -> endpoint; over tcp with the path of the token's file."""
        suffix = f"#{self._place.run_dir / 'token'}" if self._token is not None else ""
        return {node_id: endpoint + suffix for node_id, endpoint in super().endpoints.items()}

    def client(self) -> Client[M]:
        """Open an independent session with this cluster."""
        client = open_client(self.endpoints, self._machine, frame_bytes_max=self._config.frame_bytes_max)
        client.wait_for_leader()
        return client

    def add_node(self, *, timeout: float = 60.0) -> int:
        """Start one more node and make it a voter once it has caught up; commands keep flowing.

        Returns:
            Its id, never used before.

        Raises:
            Unavailable: it is not a voter after `timeout` seconds; the message says how far it came.
        """
        deadline_s = time.monotonic() + timeout
        free: int = self._ask_leader("status", {}, timeout)["next_node_id"]
        with self._lock:
            members = self._place.info.node_ids
            node_id = max(free, *(known + 1 for known in members))
            self._place.update((*members, node_id))
        try:
            with self._starts.setdefault(node_id, threading.RLock()):
                self._bring_up(node_id, deadline_s)
        except BaseException:  # nobody has heard of it yet, so it leaves no trace
            self._forget_node(node_id)
            shutil.rmtree(self._place.node_path(node_id), ignore_errors=True)
            raise
        self._set_endpoints()
        change = ["add_voter", node_id, self._place.storage_ids()[node_id]]
        self._change_membership(change, lambda said: node_id in said["voters"], deadline_s)
        self._emit("membership", node_id, "is a voter")
        return node_id

    def remove_node(self, node_id: int, *, timeout: float = 60.0) -> None:
        """Take a node out of the cluster, then stop its process. A leader that is removed hands over first.

        Raises:
            Unavailable: it is still a member after `timeout` seconds.
        """
        if node_id not in self.nodes:
            raise UsageError(f"there is no node {node_id}; the nodes are {sorted(self.nodes)}")
        if len(self.nodes) == 1:
            raise UsageError("the last node cannot be removed; close() the cluster")
        deadline_s = time.monotonic() + timeout
        gone = lambda said: node_id not in (*said["voters"], *said["learners"])  # noqa: E731
        self._change_membership(["remove", node_id], gone, deadline_s)
        self._take_down(node_id, ActorProcess.terminate)
        self._forget_node(node_id)
        self._set_endpoints()
        self._emit("membership", node_id, "is no member any more")

    def _forget_node(self, node_id: int) -> None:
        """Keep nothing of a node that is no member, but its folder."""
        with self._lock:
            process = self._processes.pop(node_id, None)
            for group in (self._introduced, self._serving, self._kept_down):
                group.discard(node_id)
            if self._bound.pop(node_id, None) is not None:
                self._tell_peers(tuple(self._introduced))
            if process is not None:
                self._monitor.forget(process)
                process.close()
            if not self._ending:
                self._place.update(tuple(one for one in self._place.info.node_ids if one != node_id))

    def _change_membership(self, change: list[Any], done: Callable[[dict[str, Any]], bool], deadline_s: float) -> None:
        """Ask the leader, whoever it is meanwhile, until the change is committed."""
        said: dict[str, Any] = {}
        refusal = ""
        while time.monotonic() < deadline_s:
            try:
                said = self._ask_leader("status", {}, 5.0)
                if done(said) and not said["joint"] and said["configuration_index"] <= said["commit_index"]:
                    return
                if not done(said):
                    self._ask_leader("change_membership", {"changes": [change]}, 5.0)
            except Unavailable as error:  # another change, or no entry of this leader's term is committed yet
                refusal = str(error)
            time.sleep(0.02)
        raise Unavailable(f"the membership did not change in time; the leader says {said}, and last: {refusal}")

    def _set_endpoints(self) -> None:
        with self._lock:
            endpoints = {node_id: client for node_id, (_, client) in self._bound.items()}
            self._endpoints = endpoints
        self._request(lambda _: self._channel.set_endpoints(endpoints))

    def partition(self, *groups: set[int]) -> None:
        """Cut the links between groups of nodes, silently; a node in no group is isolated. Clients reach every side."""
        named = [node_id for group in groups for node_id in group]
        if len(named) != len(set(named)) or not set(named) <= set(self.nodes):
            raise UsageError(f"groups are disjoint sets of {sorted(self.nodes)}, not {groups!r}")
        side = {node_id: group for group in groups for node_id in group}
        self._cut({node_id: set(self.nodes) - set(side.get(node_id, {node_id})) for node_id in self.nodes})

    def _cut(self, cuts: Mapping[int, set[int]]) -> None:
        """Have each node drop what these peers send to it (node id -> peers), and nothing else."""
        told: dict[int, ActorProcess] = {}
        with self._lock:
            self._cut_serial += 1
            serial = self._cut_serial
            self._cuts = {node_id: sorted(peers) for node_id, peers in cuts.items() if peers}
            for node_id in self._introduced:  # the others are told at their start
                process = self._processes[node_id]
                if process.alive:
                    with contextlib.suppress(UsageError):  # it died meanwhile
                        process.send(("cut", (serial, self._cuts.get(node_id, []))))
                        if node_id in self._serving:
                            told[node_id] = process

        def in_force() -> bool:
            return all(
                self._cut_obeyed.get(node_id, 0) >= serial or node_id in self._paused or not process.alive
                for node_id, process in told.items()
            )

        with self._cut_changed:
            self._cut_changed.wait_for(in_force, CUT_S)

    def heal(self) -> None:
        """Mend every link."""
        self.partition(set(self.nodes))

    def _member(self, node_id: int, said: dict[str, Any], error: str | None = None) -> MemberStatus:
        row = super()._member(node_id, said, error)
        node = Node(self, node_id)
        reason = row.error if said else self._reasons.get(node_id, error)
        return replace(row, pid=node.pid, alive=node.alive, error=reason)

    # --- The end ---

    def close(self) -> None:
        """Close the client and end every process: gone within 5 s, running, stuck or paused. Idempotent."""
        if self._owner_pid != os.getpid():
            return
        with self._lock:
            self._ending = True  # before the client is closed: a start that is under way looks here after making it
        try:
            with contextlib.suppress(AttributeError):
                super().close()
        finally:
            self._shut_down()

    def _shut_down(self) -> None:
        try:
            self._end_processes(CLOSE_S)
        except BaseException:  # Ctrl-C while it waits: no more patience
            self._end_processes(0.0)
            raise
        finally:
            self._monitor.close()
            self._place.close()

    def _end_processes(self, patience_s: float) -> None:
        """End them all; whoever waits for one to start is told so by its end."""
        with self._lock:
            processes = dict(self._processes)
            for process in processes.values():
                self._monitor.forget(process)
                process.terminate()
        begun_s = time.monotonic()
        # Those that are starting first: they have less time.
        for node_id in sorted(processes, key=self._serving.__contains__):
            longest_s = patience_s if node_id in self._serving else min(patience_s, START_CLOSE_S)
            if processes[node_id].wait(max(0.0, begun_s + longest_s - time.monotonic())) is None:
                processes[node_id].kill()
        for process in processes.values():
            process.wait(CLOSE_S)
            process.close()
        with self._lock:
            self._processes.clear()
            self._introduced.clear()

    def __del__(self) -> None:
        if not self._closed and self._owner_pid == os.getpid():
            _warn_unclosed(self)
            with contextlib.suppress(Exception):
                self.close()

    def __enter__(self) -> Cluster[M]:
        return self

    def __repr__(self) -> str:
        info = self._place.info
        state = (
            "closed" if self._closed else f"leader {self._session.leader}, term {self._session.term}, {self._transport}"
        )
        return f'<Cluster "{info.name}" {len(info.node_ids)} nodes, {state}>'


def _node_id(process: ActorProcess) -> int:
    return int(process.name.removeprefix("node "))


def _weakly(method: Callable[..., None]) -> Callable[..., None]:
    """Call a method for as long as its object is there, without keeping it there."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> None:
        bound = reference()
        if bound is not None:
            bound(*args)

    return call


def _warn_unclosed(cluster: Cluster[Any]) -> None:
    with contextlib.suppress(ResourceWarning):  # where warnings are errors: the processes must go all the same
        warnings.warn(f"unclosed {cluster!r}", ResourceWarning, source=cluster, stacklevel=3)


_clusters: weakref.WeakSet[Cluster[Any]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Leave nothing behind at interpreter exit; starts no thread."""
    for cluster in list(_clusters):
        if not cluster._closed and cluster._owner_pid == os.getpid():
            _warn_unclosed(cluster)
        cluster.close()
