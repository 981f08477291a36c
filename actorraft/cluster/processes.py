"""The processes of a cluster's nodes: started side by side, introduced to each other, watched, cut off, ended.

One object for each cluster that is owned here. It knows of processes, endpoints and links, and nothing of commands: a
client of the cluster is made after the nodes serve, and is told of what happens through `emit`. From the first start
on one monitor thread watches the processes, passes their log records on, and starts again what died unasked.

Invariant:  a node has at most one process that lives. Whoever starts it holds its lock (`_starts`); whoever takes it
            down does not wait for that one, but ends the process under its hands.
Source:     docs/decisions/0008 and 0013.
One idea:   the life of processes that belong together. Who may start, stop or cut off which one now hangs on what all
            of them do, so one lock guards it and one class holds it.
Threads:    every public method may be called from any thread.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from actorraft.actors.monitor import EXPLAINED, Monitor
from actorraft.actors.process import ActorProcess
from actorraft.actors.supervision import Supervision
from actorraft.cluster.place import Place
from actorraft.errors import StartError, UsageError
from actorraft.loggers import guarded_logger
from actorraft.node.process import run_node
from actorraft.node.spec import NodeSpec
from actorraft.raft.config import RaftConfig, deciding
from actorraft.raft.messages import Configuration
from actorraft.steady import monotonic
from actorraft.storage.show import running_entry

CUT_S: Final = 2.0  # how long `cut` waits for a node that does not obey
END_S: Final = 5.0  # what the nodes get to come to one index and leave a snapshot there
CLOSE_S: Final = 2.0  # what a node gets to leave by itself before SIGKILL
RESTART_S: Final = 30.0  # how long a node that died unasked may take to serve again
START_CLOSE_S: Final = 0.5  # the same for one that does not serve yet: it owes nobody anything

if TYPE_CHECKING:
    from transports.keys import RunKeys

logger = guarded_logger("actorraft")

Emit = Callable[[str, int, str], object]  # kind of event, node id, in words


class StaysDown(StartError):
    """A node did not start, and will not by itself: its own words say what must be done."""


class NodeProcess(ActorProcess):
    """One process of a node, and how far it has come."""

    def __init__(
        self,
        spec: NodeSpec,
        place: Place,
        *,
        run: Callable[..., Any] = run_node,
        launch_prefix: Sequence[str] = (),
    ) -> None:
        super().__init__(
            run,
            (spec,),
            name=f"node {spec.node_id}",
            run_dir=place.run_dir,
            logger=guarded_logger(f"actorraft.node.{spec.node_id}"),
            hash_seed=place.info.hash_seed,
            launch_prefix=launch_prefix,
        )
        self.node_id = spec.node_id
        self.introduced = False  # it was told who the others are
        self.serving = False  # it has served
        self.paused = False
        self.cut_serial = 0  # of the last partition that is in force there
        self.early: dict[str, Any] = {}  # what it said at its start before it was waited for
        self.ended: str | None = None  # it is at the end: "", or why it has no snapshot there

    def terminate(self) -> None:
        """Ask it to leave for good: it need not keep what is thrown away."""
        with contextlib.suppress(UsageError):  # it is gone, or takes no orders
            self.send(("leave", None), patience_s=0.0)  # a hint: without it, it takes the time for a snapshot
        super().terminate()


class NodeProcesses:
    """The processes of the nodes of one cluster.

    Args:
        place: where data and run directory are; closed with this.
        factory: the machine's class and arguments, as pickling.encode_factory makes them.
        supervision: how nodes that die unasked are started again; None: not at all.
        listen: node id -> endpoints for peers and for clients that it is to have; others are chosen here.
        http: node id -> where it serves its health; others do not.
    """

    def __init__(
        self,
        place: Place,
        factory: bytes,
        *,
        durability: str,
        transport: str,
        config: RaftConfig,
        supervision: Supervision | None,
        from_snapshot: Path | None,
        replay_from: int | None = None,
        listen: Mapping[int, tuple[str, str]] | None = None,
        http: Mapping[int, str] | None = None,
    ) -> None:
        self.place = place
        self.transport = transport
        self.config = config
        self.supervised = supervision is not None
        self.keys: RunKeys | None = None  # on tcp
        self.emit: Emit = _tell_nobody  # until somebody can listen
        self.owner_pid = os.getpid()
        self._factory = factory
        self._durability = durability
        self._from_snapshot = from_snapshot
        self._replay_from = replay_from
        self._listen = dict(listen or {})
        self._http = dict(http or {})
        self._lock = threading.RLock()  # of all below; nobody who holds it waits for a process
        self._starts: dict[int, threading.RLock] = {}  # node id -> held by whoever starts it: one at a time
        self._ending = False  # nothing is started any more
        self._processes: dict[int, NodeProcess] = {}  # node id -> its last process
        self._bound: dict[int, tuple[str, str]] = {}  # node id -> endpoints for peers, for clients
        self._cuts: dict[int, list[int]] = {}  # node id -> peers that it is cut off from
        self._cut_serial = 0  # of the last partition
        self._end_index = -1  # where the log ends, as a leader says that takes nothing more; -1: nobody has yet
        self._ends = False  # the nodes were told to take nothing more
        self._reported = threading.Condition()  # rung when a node has said something of the two above, or of the cut
        self._reasons: dict[int, str] = {}  # why a node stopped, in its own words
        self._run = int.from_bytes(os.urandom(7), "little")  # which run of the cluster this is
        self._given_up: set[int] = set()  # nodes that stay down until somebody has done something
        self._holds: dict[int, str] = {}  # at which command a node holds, and why
        self._monitor: Monitor[NodeProcess] = Monitor(
            supervision=supervision,
            restart=_weakly(self._restart_unasked),
            on_report=_weakly(self._on_report),
            on_exit=_weakly(self._on_exit),
        )
        _open.add(self)
        if transport == "tcp":
            from transports.keys import RunKeys

            # At addresses that stay, whoever knew them is to find whom he knew.
            kept = place.keys_path if self._listen and place.keeps_data else None
            self.keys = RunKeys((kept or place.run_dir) / "client", self.node_ids, kept)

    # --- What is known of them ---

    @property
    def node_ids(self) -> tuple[int, ...]:
        """Who is a member."""
        return self.place.info.node_ids

    def _clients(self) -> dict[int, str]:
        return {node_id: client for node_id, (_, client) in self._bound.items()}

    @property
    def bound(self) -> dict[int, tuple[str, str]]:
        """Where nodes have bound: node id -> endpoints for peers, for clients."""
        with self._lock:
            return dict(self._bound)

    @property
    def ending(self) -> bool:
        """Whether somebody closes the cluster: nothing is started any more."""
        return self._ending

    def find(self, node_id: int) -> NodeProcess | None:
        """Return the last process of a node, alive or not."""
        return self._processes.get(node_id)

    def check_owner(self) -> None:
        """Raise UsageError in a process that was forked from the nodes' owner."""
        if self.owner_pid != os.getpid():
            raise UsageError(
                f"these nodes are process {self.owner_pid}'s, from which this one was forked: they are started, "
                "stopped and cut there. Commands and reads work here too"
            )

    def living(self, node_id: int) -> NodeProcess:
        """Return the process of a node. Raises UsageError if there is none now."""
        self.check_owner()
        process = self._processes.get(node_id)
        if process is None or not process.alive:
            raise UsageError(f"node {node_id} has no process now; nodes[{node_id}].restart() starts it")
        return process

    def reason(self, node_id: int) -> str | None:
        """Say why a node stopped, in its own words; None if it serves, or nothing is known."""
        return self._reasons.get(node_id)

    @property
    def hopeless(self) -> bool:
        """Whether so many nodes stay down that no majority is left."""
        return 2 * len(self._given_up) >= len(self.node_ids)

    def what_is_wrong(self) -> str:
        """Say why nodes do not serve, in their own words; empty if none has said so."""
        said = {**self._holds, **self._reasons}
        return "\n".join(f"  node {node_id}: {said[node_id]}" for node_id in sorted(said))

    def fatal(self, node_id: int) -> str | None:
        """Say why a node is gone, if it will not come back as it is; None if it is there, or is started again."""
        process = self._processes.get(node_id)
        if process is None or process.alive or not process.wanted:
            return None
        return self._reasons.get(node_id) if not self.supervised or process.returncode in EXPLAINED else None

    def hold(self, node_id: int) -> str | None:
        """Say why a node applies nothing, in its own words; None if it does."""
        return self._holds.get(node_id)

    def last_lines(self) -> str:
        """Return the last lines that the nodes wrote."""
        lines: list[str] = []
        for node_id, process in list(self._processes.items()):
            lines.extend(f"  node {node_id}: {line}" for line in process.logs(5))
        return "\n".join(lines) or "  (they wrote nothing)"

    # --- Starting ---

    def start(self, deadline_s: float) -> None:
        """Start all nodes side by side, tell each where all are, and have the most up-to-date one campaign first.

        Raises:
            StartError: one did not come up; with its own words.
        """
        processes = [self._launch(node_id) for node_id in self.node_ids]
        for process in processes:
            self._bound[process.node_id] = self._expect(process, "bound", deadline_s)
        with self._lock:
            for process in processes:
                process.introduced = True
            self._tell_peers(processes)
        last = {process: self._expect(process, "ready", deadline_s) for process in processes}
        for process in processes:
            self._serves(process)
        with contextlib.suppress(UsageError):  # it died since: the others elect one of them when they hear no leader
            max(processes, key=lambda process: (last[process], -process.node_id)).send(("campaign", None))

    def add(self, free: int, deadline_s: float) -> int:
        """Start one more node, and return its id: `free`, or what is free here too.

        Raises:
            StartError: it did not come up; it leaves no trace then.
        """
        self.check_owner()
        with self._lock:
            members = self.node_ids
            node_id = max(free, *(known + 1 for known in members))
            self.place.update((*members, node_id))
        try:
            with self._starting(node_id):
                self._bring_up(node_id, deadline_s)
        except BaseException:  # nobody has heard of it yet
            self.forget(node_id)
            raise
        return node_id

    def restart(self, node_id: int, timeout_s: float) -> None:
        """Start a node again, on the data it left; return when it serves. One that still runs is stopped first.

        Raises:
            StartError: it did not come up; or it lives, and cannot take up its state.
        """
        self.check_owner()
        deadline_s = monotonic() + timeout_s
        self._monitor.pardon(f"node {node_id}")
        self.end(node_id)  # also one that is starting now, so nobody waits for that
        with self._starting(node_id):
            self.end(node_id)
            held = self._bring_up(node_id, deadline_s)
            if held:
                raise StartError(f"node {node_id} runs, and {held}")
            self.emit("restart", node_id, f"serves again as process {self._processes[node_id].pid}")

    def make_process(self, node_id: int) -> NodeProcess:
        """Make, and do not start, a process for a node."""
        return NodeProcess(self.spec(node_id), self.place)

    def spec(self, node_id: int) -> NodeSpec:
        """Say what a node is to be told at its start."""
        run_dir, info = self.place.run_dir, self.place.info
        if self.transport == "ipc":
            fresh = (f"ipc://{run_dir}/{node_id}.peer", f"ipc://{run_dir}/{node_id}.client")
        else:
            fresh = ("tcp://127.0.0.1:0",) * 2
        peer_endpoint, client_endpoint = self._bound.get(node_id) or self._listen.get(node_id, fresh)
        # Who joined later begins with nothing, and learns from the log who is who.
        founders = info.founder_ids if node_id in info.founder_ids else ()
        known = self.place.storage_ids()
        return NodeSpec(
            node_id=node_id,
            cluster_id=bytes.fromhex(info.cluster_id),
            factory=self._factory,
            machine_seed=info.machine_seed,
            directory=self.place.node_path(node_id),
            durability=self._durability,
            keeps_data=self.place.keeps_data,
            from_snapshot=self._from_snapshot if founders else None,
            replay_from=self._replay_from,
            pins=run_dir / "modules",
            configuration=Configuration(
                voters=frozenset(founders),
                next_node_id=max(founders, default=-1) + 1,
                storage_ids=tuple((one, storage_id) for one, storage_id in known.items() if one in founders),
            ),
            storage_id=known[node_id],
            peer_endpoint=peer_endpoint,
            client_endpoint=client_endpoint,
            keys=self.keys.of_node(node_id) if self.keys is not None else None,
            config=self.config,
            http=self._http.get(node_id, ""),
            settings=deciding(self.config),
            run=self._run,
        )

    def _starting(self, node_id: int) -> threading.RLock:
        return self._starts.setdefault(node_id, threading.RLock())

    def _launch(self, node_id: int, instead_of: NodeProcess | None = None) -> NodeProcess:
        """Start a node's process, and do not wait for it.

        Args:
            instead_of: the one that died; nothing is started if somebody has taken the node down since.
        """
        with self._lock:
            if self._ending:
                raise UsageError("this cluster is closed")
            old = self._processes.get(node_id)
            if instead_of is not None and (old is not instead_of or not instead_of.wanted):
                raise UsageError(f"node {node_id} was taken down")
            if old is not None:
                old.close()
            process = self._processes[node_id] = self.make_process(node_id)
            self._holds.pop(node_id, None)
            process.start()
            return process

    def _bring_up(self, node_id: int, deadline_s: float, instead_of: NodeProcess | None = None) -> str:
        """Start one node beside those that run; whoever ends its process meanwhile ends this, with a StartError.

        Returns:
            Why it has not taken up its state, and only stores and votes; empty if it has.
        """
        process = self._launch(node_id, instead_of)
        try:
            bound = self._expect(process, "bound", deadline_s)
            with self._lock:
                is_new = self._bound.get(node_id) != bound
                self._bound[node_id] = bound
                process.introduced = True
                self._tell_peers(self._introduced() if is_new else [process])
            self._expect(process, "ready", deadline_s)
            restored = self._expect(process, "restored", deadline_s)
            self._serves(process)
        except BaseException:
            process.kill()  # nobody watches it
            raise
        return restored if isinstance(restored, str) else ""

    def _expect(self, process: NodeProcess, verb: str, deadline_s: float) -> Any:
        """Wait for what a starting node has to say next."""
        if verb in process.early:
            return process.early.pop(verb)
        while True:
            said, value = process.receive(max(0.1, deadline_s - monotonic()))
            if said == verb:
                return value
            self._on_report(process, (said, value))
            if said == "restored" or (said == "hold" and value):  # it stores and votes, and tries again by itself
                if verb == "restored":
                    return value
                process.early["restored"] = value  # before the node has said that it is ready
            if said == "poisoned":
                raise StaysDown(f"{process.name} did not start: {value}")
            if said == "stopped":
                raise StartError(f"{process.name} did not start: {value}")

    def _serves(self, process: NodeProcess) -> None:
        """From now on the monitor looks after it."""
        with self._lock:
            if not process.wanted or self._ending:
                raise StartError(f"{process.name} was taken down while it started")
            process.serving = True
            self._reasons.pop(process.node_id, None)
            self._given_up.discard(process.node_id)
            self._monitor.watch(process)
            if self._ends:  # a quorum may be there again
                self._ends = False
                self._tell(self._introduced(), ("go on", None))

    def _introduced(self) -> list[NodeProcess]:
        return [process for process in self._processes.values() if process.introduced]

    def _tell_peers(self, processes: Sequence[NodeProcess]) -> None:
        """Tell nodes that know of each other already, or are to know now, where all are."""
        peers = {node_id: peer for node_id, (peer, _) in self._bound.items()}
        keys = self.keys.members() if self.keys is not None else {}
        clients = [(node_id, client, *keys.get(node_id, ())) for node_id, (_, client) in self._bound.items()]
        if self.keys is not None:
            self.keys.publish(self.place.info.cluster_id, self.place.info.name, self._clients())
        for process in processes:
            if not process.alive:
                continue  # it is told at its start
            with contextlib.suppress(UsageError):  # it died meanwhile
                if keys:
                    process.send(("keys", keys))
                if (
                    process.node_id in self._cuts
                ):  # one that is started during a partition is on its side from the first
                    process.send(("cut", (self._cut_serial, self._cuts[process.node_id])))
                process.send(("peers", peers))
                process.send(("clients", clients))

    # --- One of them ---

    def kill(self, node_id: int) -> None:
        """SIGKILL for a node, also one that is only starting; it stays down."""
        self._take_down(node_id, NodeProcess.kill)

    def stop(self, node_id: int) -> None:
        """Ask a node to leave, and wait until it has; it stays down. The last quorum comes to one index first."""
        self.check_owner()
        serving = [process.node_id for process in self._serving()]
        if node_id in serving and len(serving) - 1 <= len(self.node_ids) // 2 < len(serving):
            self.come_to_an_end(END_S)
        self.end(node_id)

    def end(self, node_id: int) -> None:
        """The same for one that is no member any more, or is started again at once: the others go on."""
        self._take_down(node_id, NodeProcess.terminate)

    def pause(self, node_id: int) -> None:
        """SIGSTOP. Raises UsageError if there is no process."""
        process = self.living(node_id)
        process.pause()
        process.paused = True

    def resume(self, node_id: int) -> None:
        """SIGCONT. Raises UsageError if there is no process."""
        process = self.living(node_id)
        process.resume()
        process.paused = False

    def _take_down(self, node_id: int, how: Callable[[NodeProcess], None]) -> None:
        self.check_owner()
        with self._lock:
            process = self._processes.get(node_id)
            if process is None:
                return
            process.wanted = False
            self._monitor.forget(process)  # asked for: not started again by itself
            was_alive = process.alive
            patience_s = CLOSE_S if process.serving else START_CLOSE_S
            how(process)
        if process.wait(patience_s) is None:
            process.kill()
            process.wait(CLOSE_S)
        if was_alive:
            self.emit("exit", node_id, "stopped on purpose")

    def forget(self, node_id: int) -> None:
        """Keep nothing of a node that is no member: process, links, data, sockets. Its id is not used again."""
        with self._lock:
            process = self._processes.pop(node_id, None)
            if self.keys is not None:
                self.keys.forget(node_id)
            if self._bound.pop(node_id, None) is not None:
                self._tell_peers(self._introduced())
            if process is not None:
                process.wanted = False
                self._monitor.forget(process)
                process.close()
            if self._ending:
                return
            self.place.update(tuple(one for one in self.node_ids if one != node_id))
        self.place.remove_node(node_id)

    # --- All of them ---

    def cut(self, cuts: Mapping[int, set[int]]) -> None:
        """Have each node drop what these peers send to it (node id -> peers), and nothing else."""
        self.check_owner()
        told: list[NodeProcess] = []
        with self._lock:
            self._cut_serial += 1
            serial = self._cut_serial
            self._cuts = {node_id: sorted(peers) for node_id, peers in cuts.items() if peers}
            for process in self._introduced():  # the others are told at their start
                if process.alive:
                    with contextlib.suppress(UsageError):  # it died meanwhile
                        process.send(("cut", (serial, self._cuts.get(process.node_id, []))))
                        if process.serving:
                            told.append(process)

        def in_force() -> bool:
            return all(process.cut_serial >= serial or process.paused or not process.alive for process in told)

        with self._reported:
            self._reported.wait_for(in_force, CUT_S)

    def heal(self) -> None:
        """End a partition, and do not wait for that."""
        self.check_owner()
        with self._lock:
            if self._cuts:
                self._cut_serial, self._cuts = self._cut_serial + 1, {}
                self._tell(self._introduced(), ("cut", (self._cut_serial, [])))

    def kill_together(self) -> None:
        """SIGKILL for all at once, none of which lives to see another die; they stay down."""
        self.check_owner()
        with self._lock:  # nobody is being started now
            processes = list(self._processes.values())
            for process in processes:
                process.wanted = False
                self._monitor.forget(process)
                process.pause()
            for process in processes:
                process.kill()
        for process in processes:
            process.wait(CLOSE_S)

    def _serving(self) -> list[NodeProcess]:
        with self._lock:
            return [one for one in self._processes.values() if one.serving and one.alive and not one.paused]

    def _tell(self, processes: Sequence[NodeProcess], order: tuple[str, Any]) -> None:
        for process in processes:
            with contextlib.suppress(UsageError):  # it died meanwhile
                process.send(order)

    def come_to_an_end(self, timeout_s: float) -> None:
        """Bring the nodes to one index and have each leave a snapshot there, in time; else say why it was skipped.

        The next start may run other code, and must find nothing to replay (node/leaving.py). They take no commands from
        here on, until one is started again.
        """
        deadline_s = monotonic() + timeout_s
        if not self.place.keeps_data:
            return
        ending = self._serving()
        if len(ending) <= len(self.node_ids) // 2:
            if ending:
                logger.warning("no clean end: nodes %s are no majority", [one.node_id for one in ending])
            return
        with self._lock:
            self._ends, self._end_index = True, -1
            for process in ending:
                process.ended = None
            self._tell(ending, ("end", None))

        def said(enough: Callable[[], bool]) -> bool:
            with self._reported:
                return self._reported.wait_for(enough, max(0.0, deadline_s - monotonic()))

        def missing() -> list[NodeProcess]:
            return [process for process in ending if process.ended is None and process.alive]

        if not said(lambda: self._end_index >= 0):
            logger.warning("no clean end: within %g s no leader had all of its log committed", timeout_s)
            return
        self._tell(ending, ("snapshot at", self._end_index))
        if not said(lambda: not missing()):
            late = [process.node_id for process in missing()]
            logger.warning("no clean end of nodes %s: no snapshot there within %g s", late, timeout_s)
        for process in ending:
            if process.ended:
                logger.warning("no clean end of node %d: %s", process.node_id, process.ended)

    def end_starts(self) -> None:
        """From now on nothing is started."""
        with self._lock:
            self._ending = True

    def close(self) -> None:
        """End every process: gone within 5 s, running, stuck or paused. Idempotent; does nothing in a fork."""
        if self.owner_pid != os.getpid():
            return
        self.end_starts()
        try:
            self._end(CLOSE_S)
        except BaseException:  # Ctrl-C while it waits: no more patience
            self._end(0.0)
            raise
        finally:
            self._monitor.close()
            self.place.close()
            _open.discard(self)

    def _end(self, patience_s: float) -> None:
        """End them all; whoever waits for one to start is told so by its end."""
        with self._lock:
            processes = list(self._processes.values())
            for process in processes:
                process.wanted = False
                self._monitor.forget(process)
                process.terminate()
        begun_s = monotonic()
        for process in sorted(processes, key=lambda one: one.serving):  # those that are starting have less time
            longest_s = patience_s if process.serving else min(patience_s, START_CLOSE_S)
            if process.wait(max(0.0, begun_s + longest_s - monotonic())) is None:
                process.kill()
        for process in processes:
            process.wait(CLOSE_S)
            process.close()
        with self._lock:
            self._processes.clear()

    # --- What the monitor says ---

    def _restart_unasked(self, process: NodeProcess) -> None:
        """A node died and may be started again."""
        node_id = process.node_id
        with self._starting(node_id):
            if self._unwanted(node_id) or self._processes[node_id].alive:
                return
            try:
                self._bring_up(node_id, monotonic() + RESTART_S, self._processes[node_id])
            except StaysDown as error:
                logger.error("%s", error)
                with self._lock:
                    self._given_up.add(node_id)
                self.emit("exit", node_id, str(error))
            except (StartError, UsageError):
                if not self._unwanted(node_id):
                    raise
            else:
                self.emit("restart", node_id, f"serves again as process {self._processes[node_id].pid}")

    def _unwanted(self, node_id: int) -> bool:
        """Whether somebody took it down, or removed it, or closes the cluster."""
        with self._lock:
            return self._ending or node_id not in self._processes or not self._processes[node_id].wanted

    def _on_report(self, process: NodeProcess, report: Any) -> None:
        verb, value = report
        if verb in ("stopped", "poisoned"):
            self._reasons[process.node_id] = value
        elif verb in ("cut", "end", "ended"):
            with self._reported:
                if verb == "cut":
                    process.cut_serial = value
                elif verb == "end":
                    self._end_index = max(self._end_index, value)
                else:
                    process.ended = value
                self._reported.notify_all()
        elif verb == "snapshot":
            self.emit("snapshot", process.node_id, f"took a snapshot up to index {value}")
        elif verb == "difference":
            self.emit("difference", process.node_id, value)
        elif verb == "lost log":
            self.emit("lost log", *value)
        elif verb == "disk":
            self.emit("disk", process.node_id, f"takes no writes: {value}" if value else "takes writes again")
        elif verb == "hold":
            self._holds.pop(process.node_id, None)
            if value:
                self._holds[process.node_id] = value
            self.emit("hold", process.node_id, value or "goes on")

    def _on_exit(self, process: NodeProcess, reason: str) -> None:
        died_in = running_entry(self.place.node_path(process.node_id))
        if died_in is not None:
            reason = f"it ended while it applied {died_in.words}: {reason}"
        self._reasons.setdefault(process.node_id, reason)
        self.emit("exit", process.node_id, reason)


def _tell_nobody(_kind: str, _node_id: int, _detail: str) -> None:
    return


def _weakly(method: Callable[..., None]) -> Callable[..., None]:
    """Call a method for as long as its object is there, without keeping it there."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> None:
        bound = reference()
        if bound is not None:
            bound(*args)

    return call


_open: weakref.WeakSet[NodeProcesses] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Leave nothing behind at interpreter exit, of a start that is under way too; starts no thread."""
    for processes in list(_open):
        processes.close()
