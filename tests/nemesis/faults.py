"""What is done to the cluster while its clients work: two threads of faults, one of processes, one of all else.

They overlap, so that a node is removed while another is stopped and a third cut off; but one node has one fault at a
time, by `_claim`. Everything random comes from the seed; the moments are the machine's.

Source:     traps 15, 18, 19; the testbed's table of what can be done for real.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from actorraft.cluster.cluster import Cluster
from actorraft.errors import ActorRaftError
from actorraft.node.process import EXIT_DISK
from tests.nemesis.disks import Image

logger = logging.getLogger("nemesis")

PROCESS_FAULTS = ("kill", "pause")
OTHER_FAULTS = ("partition", "disk", "membership", "transfer", "snapshot")
ALL = PROCESS_FAULTS + OTHER_FAULTS
BALLAST_BYTES = 200_000
UNASKED_EVERY_S = 12.0  # supervision starts a node again at most 5 times in 30 s


class Network(Protocol):
    """Something that can cut nodes off from each other: the cluster itself, or packets between namespaces."""

    def partition(self, *groups: set[int]) -> None: ...

    def heal(self) -> None: ...


class Done(NamedTuple):
    """One fault that was made."""

    kind: str
    what: str
    at_s: float  # since the start
    leader: bool  # whether it hit the leader


def kill_together(cluster: Cluster[Any]) -> None:
    """SIGKILL every node at once: none lives to see another die."""
    cluster._processes.kill_together()


class Faults:
    """Makes faults until told to stop, and undoes them all.

    Args:
        kinds: some of `ALL`.
        network: what partitions; the cluster's own by default.
        images: node id -> the disk that its data lives on, for "disk".
        moved: called with the cluster's endpoints when nodes were added or removed.
        failing_disks: whether "disk" may also lose what was not synced.
    """

    def __init__(
        self,
        cluster: Cluster[Any],
        kinds: set[str],
        seed: int,
        *,
        network: Network | None = None,
        images: Mapping[int, Image] | None = None,
        moved: Callable[[dict[int, str]], None] = lambda _: None,
        failing_disks: bool = False,
    ) -> None:
        self.cluster = cluster
        self.kinds = kinds
        self.network: Network = network if network is not None else cluster
        self.images = dict(images or {})
        self.moved = moved
        self.failing_disks = failing_disks
        self.supervised = True  # somebody else starts a node again that has died
        self.done: list[Done] = []
        self.problems: list[str] = []  # what went wrong with a fault itself, or with mending it
        self._seed = seed
        self._size = len(cluster.nodes)
        self._began_s = time.monotonic()
        self._stop = threading.Event()
        self._busy: set[int] = set()
        self._lock = threading.Lock()
        self._last_unasked_s = 0.0
        self._threads: list[threading.Thread] = []

    # --- Running ---

    def start(self) -> None:
        """Begin."""
        for name, all_kinds in (("processes", PROCESS_FAULTS), ("others", OTHER_FAULTS)):
            kinds = [kind for kind in all_kinds if kind in self.kinds]
            if kinds:
                rng = random.Random(f"{self._seed} {name}")
                self._threads.append(threading.Thread(target=self._run, args=(kinds, rng), name=name))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the faults under way, and mend everything."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for image in self.images.values():
            image.thaw()
            image.free()
        self.network.heal()
        for node in self.cluster.nodes.values():
            if not node.alive:
                try:
                    node.restart()
                except ActorRaftError as error:  # the judge misses it among the replicas
                    self.problems.append(f"node {node.id} could not be started again: {error}")

    def _run(self, kinds: list[str], rng: random.Random) -> None:
        while not self._stop.wait(rng.uniform(0.1, 0.5)):
            kind = rng.choice(kinds)
            try:
                getattr(self, f"_{kind}")(rng)
            except ActorRaftError as error:
                self.problems.append(f"{self._now_s():.1f} s, {kind}: {type(error).__name__}: {error}")
            except Exception as error:
                logger.exception("a fault failed")
                self.problems.append(f"{self._now_s():.1f} s, {kind}: {type(error).__name__}: {error}")

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    def _note(self, kind: str, what: str, *, leader: bool) -> None:
        self.done.append(Done(kind, what, self._now_s(), leader))
        logger.info("%.1f s: %s %s", self._now_s(), kind, what)

    def _hold(self, seconds: float) -> None:
        """Leave a fault in place; not beyond the end of the run."""
        self._stop.wait(seconds)

    def counts(self) -> dict[str, Counter[str]]:
        """Return kind -> {"made": how many, "on the leader": how many of them}."""
        table: dict[str, Counter[str]] = {kind: Counter() for kind in ALL if kind in self.kinds}
        for done in self.done:
            table[done.kind]["made"] += 1
            table[done.kind]["on the leader"] += done.leader
        return table

    # --- Whom it hits ---

    @contextlib.contextmanager
    def _claim(self, rng: random.Random, *, leader_share: float, among: set[int] | None = None) -> Iterator[int | None]:
        """Choose one node that has no fault now; None if there is none."""
        with self._lock:
            free = [node_id for node_id in self.cluster.nodes if node_id not in self._busy]
            if among is not None:
                free = [node_id for node_id in free if node_id in among]
            leader = self.cluster.leader()
            chosen = leader if leader in free and rng.random() < leader_share else None
            if chosen is None and free:
                chosen = rng.choice(free)
            if chosen is not None:
                self._busy.add(chosen)
        try:
            yield chosen
        finally:
            with self._lock:
                self._busy.discard(chosen)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def _claim_all(self) -> Iterator[list[int]]:
        """Claim every node; none if one of them has a fault."""
        with self._lock:
            claimed = list(self.cluster.nodes) if not self._busy else []
            self._busy.update(claimed)
        try:
            yield claimed
        finally:
            with self._lock:
                self._busy.difference_update(claimed)

    # --- Processes ---

    def _kill(self, rng: random.Random) -> None:
        if rng.random() < 0.06:
            with self._claim_all() as everybody:
                self._kill_all(everybody)
            return
        with self._claim(rng, leader_share=0.85) as node_id:
            if node_id is None:
                return
            node, leads = self.cluster.nodes[node_id], node_id == self.cluster.leader()
            if self.supervised and rng.random() < 0.2 and time.monotonic() - self._last_unasked_s > UNASKED_EVERY_S:
                self._last_unasked_s = time.monotonic()
                self._kill_unasked(node_id, leads)
                return
            node.kill()
            self._note("kill", f"node {node_id}", leader=leads)
            self._hold(rng.uniform(0.0, 0.6))
            node.restart()

    def _kill_all(self, everybody: list[int]) -> None:
        if not everybody:
            return
        kill_together(self.cluster)
        self._note("kill", "all nodes at once", leader=True)
        for node_id in everybody:
            self.cluster.nodes[node_id].restart()

    def _kill_unasked(self, node_id: int, leads: bool) -> None:
        """Kill it behind the cluster's back: supervision starts it again."""
        node = self.cluster.nodes[node_id]
        pid = node.pid
        if pid is None:
            return
        os.kill(pid, signal.SIGKILL)
        self._note("kill", f"node {node_id}, left to supervision", leader=leads)
        deadline_s = time.monotonic() + 10.0
        while time.monotonic() < deadline_s:
            time.sleep(0.05)
            if node.pid not in (None, pid) and self._serves(node_id):
                return
        self.problems.append(f"supervision did not start node {node_id} again within 10 s")
        node.restart()

    def _serves(self, node_id: int) -> bool:
        try:
            self.cluster.ask_node(node_id, "status", {}, 1.0).result(2.0)
        except (ActorRaftError, TimeoutError):
            return False
        return True

    def _pause(self, rng: random.Random) -> None:
        with self._claim(rng, leader_share=0.85) as node_id:
            if node_id is None:
                return
            node, leads = self.cluster.nodes[node_id], node_id == self.cluster.leader()
            node.pause()
            try:
                self._note("pause", f"node {node_id}", leader=leads)
                self._hold(5.0 if rng.random() < 0.05 else rng.uniform(0.2, 1.2))
            finally:
                node.resume()

    # --- Links ---

    def _partition(self, rng: random.Random) -> None:
        nodes = list(self.cluster.nodes)
        rng.shuffle(nodes)
        leader = self.cluster.leader()
        minority = set(nodes[: rng.randint(1, max(1, (len(nodes) - 1) // 2))])
        if rng.random() < 0.6 and leader in nodes:
            minority = {leader, *list(minority)[1:]}
        groups = [minority, set(nodes) - minority]
        if rng.random() < 0.1:
            groups = []  # everybody alone
        self.network.partition(*groups)
        try:
            self._note("partition", f"{groups or 'everybody alone'}", leader=leader in minority or not groups)
            self._hold(rng.uniform(0.3, 2.5))
        finally:
            self.network.heal()

    # --- Disks ---

    def _disk(self, rng: random.Random) -> None:
        with self._claim(rng, leader_share=0.7, among=set(self.images)) as node_id:
            if node_id is None:
                return
            leads, how = node_id == self.cluster.leader(), rng.random()
            if how < 0.4:
                self._disk_hangs(node_id, leads, rng)
            elif how < 0.7 or not self.failing_disks:
                self._disk_full(node_id, leads)
            else:
                self._disk_fails(node_id, leads)

    def _disk_hangs(self, node_id: int, leads: bool, rng: random.Random) -> None:
        image = self.images[node_id]
        image.freeze()
        try:
            self._note("disk", f"node {node_id}: writes hang", leader=leads)
            self._hold(rng.uniform(0.2, 2.0))
        finally:
            image.thaw()

    def _disk_full(self, node_id: int, leads: bool) -> None:
        image, node = self.images[node_id], self.cluster.nodes[node_id]
        pid = node.pid
        image.fill()
        try:
            self._note("disk", f"node {node_id}: full", leader=leads)
            deadline_s = time.monotonic() + 4.0
            while node.pid == pid and time.monotonic() < deadline_s and not self._stop.is_set():
                self._write_ballast()
        finally:
            image.free()
        if node.pid != pid:
            self._note("disk", f"node {node_id}: stopped because it was full, as it should", leader=False)
            node.restart()  # by now supervision may have tried, in vain

    def _disk_fails(self, node_id: int, leads: bool) -> None:
        """EIO for every write and sync, from the kernel; what was not synced before is gone."""
        image, node = self.images[node_id], self.cluster.nodes[node_id]
        process = self.cluster._processes.living(node_id)
        image.cut_power()
        try:
            self._note("disk", f"node {node_id}: EIO", leader=leads)
            deadline_s = time.monotonic() + 4.0
            while process.alive and time.monotonic() < deadline_s:
                time.sleep(0.02)  # the clients' writes reach it
            if process.alive:
                self.problems.append(f"{self._now_s():.1f} s, disk: node {node_id} goes on although its disk fails")
            elif process.returncode == EXIT_DISK:
                self._note("disk", f"node {node_id}: stopped because of EIO, as it should", leader=False)
            else:
                self.problems.append(f"{self._now_s():.1f} s, disk: node {node_id} met EIO: {process.last_words()}")
        finally:
            node.kill()  # supervision tries it again, in vain
            image.power_on()
            node.restart()

    def _write_ballast(self) -> None:
        """Have every log grow, into what was allocated ahead and beyond; on a key that no client knows."""
        with contextlib.suppress(ActorRaftError):
            self.cluster.proxy(timeout=0.5).set("ballast", "x" * BALLAST_BYTES)

    # --- Members ---

    def _membership(self, rng: random.Random) -> None:
        cluster = self.cluster
        if len(cluster.nodes) <= self._size:
            node_id = cluster.add_node(timeout=20.0)
            self._note("membership", f"added node {node_id}", leader=False)
        else:
            # Those with a breakable disk go last: there are no new ones.
            plain = {node_id for node_id in cluster.nodes if node_id not in self.images}
            keep = bool(self.images) and len(cluster.nodes) - len(plain) <= 3
            among = plain if plain and (keep or rng.random() < 0.5) else None
            with self._claim(rng, leader_share=0.4, among=among) as gone:
                if gone is None:
                    return
                leads = gone == cluster.leader()
                cluster.remove_node(gone, timeout=20.0)
                self._note("membership", f"removed node {gone}", leader=leads)
                self.images.pop(gone, None)
        self.moved(cluster.endpoints)

    def _transfer(self, rng: random.Random) -> None:
        self.cluster.transfer_leadership(timeout=3.0)
        self._note("transfer", "to the most up to date", leader=True)

    def _snapshot(self, rng: random.Random) -> None:
        self.cluster.take_snapshot(timeout=5.0)
        self._note("snapshot", "on all nodes", leader=True)
