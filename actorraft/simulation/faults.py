"""What goes wrong in a run: the nemesis carries out what the seed has chosen (profile.py), and mends it in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Protocol

from actorraft.simulation.node import SimNode
from actorraft.simulation.versions import NEWEST, Installed
from actorraft.simulation.workload import Operator, Station
from actorraft.simulation.world import World

KINDS_OF_STRANGERS = ("old disk", "out of memory", "deploy")  # only our own machines know what to make of these


class Stage(Protocol):
    """Where it happens: a run of ours (play.py), or a user's cluster (cluster.py)."""

    world: World
    faults: Counter[str]
    operator: Operator

    @property
    def clients(self) -> Sequence[Station]:
        """Who else is in the world."""


class Nemesis:
    """Carries out a profile."""

    def __init__(self, play: Stage) -> None:
        self.play, self.world = play, play.world
        self.timeline, self.network = play.world.timeline, play.world.network
        self.rng = Random(play.world.rng.getrandbits(64))
        self.mended = False

    def begin(self) -> None:
        """Start."""
        self._later()

    def _later(self) -> None:
        self.timeline.after(int(self.rng.expovariate(1 / self.world.profile.every_us)) + 1, self._strike, None)

    def _strike(self, _: object) -> None:
        if self.mended:
            return
        kind = self.rng.choice(self.world.profile.kinds)
        getattr(self, "_" + kind.replace(" ", "_"))()
        self.timeline.events += 1
        self._later()

    def _count(self, kind: str, node_id: int = -1, text: str = "") -> None:
        self.play.faults[kind] += 1
        self.world.note(node_id, text or kind)

    def _victim(self) -> SimNode | None:
        """Return a node that runs; often the leader."""
        up = [node for node in self.world.nodes.values() if node.up]
        if not up:
            return None
        leader = self.world.leader()
        return leader if leader is not None and self.rng.random() < 0.5 else self.rng.choice(up)

    # --- Processes ---

    def _crash(self) -> None:
        node = self._victim()
        if node is not None:
            node.crash("(killed)")

    def _fuse(self) -> None:
        """Let a node crash between two effects that are still to come."""
        node = self._victim()
        if node is not None:
            node.fuse = self.rng.randrange(1, 30)

    def _power_cut(self) -> None:
        if self.rng.random() < 0.3:
            self._count("power cut")
            for node in self.world.nodes.values():
                if node.up:
                    node.crash("(power cut)")

    def crashed(self, node: SimNode) -> None:
        """A node went down: decide when it comes back."""
        if not node.retired:
            delay_us = 50_000 if self.mended else self._around((1_000, 50_000, 400_000))
            self.timeline.after(delay_us, self.world.boot, node)

    def _pause(self) -> None:
        node = self._victim()
        if node is not None:
            timeout_us = int(self.world.profile.config.election_timeout_ticks * self.world.profile.config.tick_s * 1e6)
            us = int(timeout_us * self.rng.choice((0.3, 1.0, 3.0)))
            self._count("pause", node.node_id, f"stands still for {us / 1e6:.3f} s")
            node.pause(us)

    # --- Links ---

    def _members(self) -> list[int]:
        return list(self.world.nodes)

    def _for_a_while(self) -> None:
        """Mend the links some time later."""
        self.timeline.after(self._around((50_000, 300_000, 1_000_000)), self._mend_links, None)

    def _around(self, choices: tuple[int, ...]) -> int:
        """Return one of the choices, give or take a half."""
        return int(self.rng.choice(choices) * (0.5 + self.rng.random()))

    def _mend_links(self, _: object) -> None:
        if self.network.cut:
            self.world.note(-1, "links are mended")
        self.network.heal()

    def _partition(self) -> None:
        members = self._members()
        self.rng.shuffle(members)
        split = self.rng.randrange(1, len(members)) if len(members) > 1 else 0
        self._count("partition", text=f"partition: {sorted(members[:split])} | {sorted(members[split:])}")
        self.network.cut_between(members[:split], members[split:])
        self._cut_clients(members[:split])
        self._for_a_while()

    def _isolate(self) -> None:
        node = self._victim()
        if node is not None:
            self._count("isolate", node.node_id, "is isolated")
            self.network.cut_between([node.node_id], self._members())
            self._cut_clients([node.node_id])
            self._for_a_while()

    def _cut_clients(self, nodes: list[int]) -> None:
        """Sometimes clients are on one side, too."""
        for client in self.play.clients:
            if self.rng.random() < 0.3:
                self.network.cut_between([client.address], nodes)

    def _one_way(self) -> None:
        node = self._victim()
        if node is not None:
            inwards = self.rng.random() < 0.5
            self._count("one way", node.node_id, "hears nobody" if inwards else "is heard by nobody")
            for other in self._members():
                if other != node.node_id and self.rng.random() < 0.7:
                    link = (other, node.node_id) if inwards else (node.node_id, other)
                    self.network.cut_link(*link)
            self._for_a_while()

    def _bridge(self) -> None:
        """Two halves that only one node can reach."""
        members = self._members()
        if len(members) < 3:
            return
        self.rng.shuffle(members)
        half = (len(members) - 1) // 2
        self._count("bridge", members[-1], "is the only link between two halves")
        self.network.cut_between(members[:half], members[half:-1])
        self._for_a_while()

    def _bad_network(self) -> None:
        network, choice = self.network, self.rng.choice
        network.drop = choice((0.0, 0.02, 0.2))
        network.duplicate = choice((0.0, 0.02, 0.2))
        network.reorder = choice((0.0, 0.05, 0.3))
        network.late_us = choice((5_000, 60_000, 600_000))
        network.delay_us = choice(((100, 600), (1_000, 20_000), (5_000, 60_000)))
        self._count("bad network")
        self._for_a_while()

    def _disconnect(self) -> None:
        """A connection breaks and comes back, for no good reason."""
        node = self._victim()
        others = [n for n in self.world.nodes.values() if n.up and n is not node]
        if node is None or not others:
            return
        other = self.rng.choice(others)
        self._count("disconnect")
        world = self.world
        for one, peer in ((node, other), (other, node)):
            self.timeline.after(1, world.connection, (one, one.start, peer.node_id, False))
            self.timeline.after(20_000, world.connection, (one, one.start, peer.node_id, True))

    def _full_queue(self) -> None:
        """A client does not read for a while."""
        client = self.rng.choice(self.play.clients)
        self._count("full queue", client.address, "does not read")
        self.network.full.add(client.address)
        self._for_a_while()

    # --- Disks and clocks ---

    def _old_disk(self) -> None:
        """A node comes back on an older copy of its disk: it has lost entries that it had acknowledged.

        Only such as a majority of the others holds, so that nothing is lost, and one node in a run.
        """
        node = self._victim()
        checker = self.world.checker
        committed = len(checker.committed)
        if node is None or not committed or checker.behind not in (None, node.node_id):
            return
        if node.disk.last_index >= committed:
            return
        last_term = checker.committed[-1].term
        others = [
            one for one in self.world.nodes.values() if one is not node and one.disk.holds(committed - 1, last_term)
        ]
        kept = node.disk.last_index - self.rng.randrange(1, 40)
        if len(others) < len(self.world.nodes) // 2 + 1 or kept <= max(node.disk.snapshot_index, node.disk.first_index):
            return
        checker.behind, checker.told_by = node.node_id, None
        self._count("old disk", node.node_id, f"comes back with its log up to {kept} of {node.disk.last_index}")
        node.crash("(its disk is put back to an older copy)")
        node.disk.cut(kept)

    def _out_of_memory(self) -> None:
        node = self._victim()
        if node is not None:
            self._count("out of memory", node.node_id)
            node.mood.out_of_memory = self.rng.choice((1, 3))

    def _deploy(self) -> None:
        """Start a node again with other code: mostly newer, now and then older, or changed without a word."""
        node = self._victim()
        if node is None:
            return
        dice, version = self.rng.random(), node.installed.version
        agreed = self.world.checker.agreed_version
        if dice >= 0.9 and not (agreed and len(self.world.nodes) > 1):
            return  # the first code of all cannot be another one
        if dice < 0.75:
            node.installed = Installed(min(version + 1, NEWEST))
        elif dice < 0.9:
            node.installed = Installed(max(version - 1, 1))
        else:
            node.installed = Installed(agreed, changed=True)
        self._count("deploy", node.node_id, f"gets {node.installed}")
        node.crash("(to be started with other code)")

    def _disk_stall(self) -> None:
        node = self._victim()
        if node is not None:
            node.disk.stall_us = self._around((20_000, 300_000, 1_500_000))

    def _disk_failure(self) -> None:
        node = self._victim()
        if node is not None:
            node.disk.fail_next = True

    def _clock_leap(self) -> None:
        node = self._victim()
        if node is not None:
            leap_s = self.rng.choice((0.1, 1.0, 30.0))
            self._count("clock leap", node.node_id, f"its clock leaps {leap_s} s ahead")
            node.clock.ahead_s += leap_s
            node.wake()

    def _wall_clock(self) -> None:
        node = self._victim()
        if node is not None:
            self._count("wall clock")
            node.clock.wall_offset_s += self.rng.choice((-3600.0, -1.0, 1.0, 3600.0))

    # --- The operator ---

    def _transfer(self) -> None:
        leader = self.world.leader()
        if leader is not None:
            target = self.rng.choice([None, *self.world.nodes])
            self.play.operator.ask(leader.node_id, "transfer", target=target)
            self._count("transfer asked for")

    def _snapshot(self) -> None:
        node = self._victim()
        if node is not None:
            self.play.operator.ask(node.node_id, "snapshot")

    def _membership(self) -> None:
        """Ask the leader for a change: add, promote, demote, remove, or exchange members."""
        leader = self.world.leader()
        if leader is None or leader.server is None:
            return
        configuration = leader.server.configuration
        rng = self.rng
        changes: list[tuple[object, ...]] = []
        for _ in range(rng.choice((1, 1, 2, 4))):
            dice = rng.random()
            members = sorted(configuration.members)
            if dice < 0.4 and len(configuration.voters) < 6:
                node_id = configuration.next_node_id + len(changes)
                if node_id not in self.world.nodes:
                    newest = max(node.installed.version for node in self.world.nodes.values())
                    self.world.add_node(node_id).installed = Installed(newest)
                    self.world.boot(self.world.nodes[node_id])
                    self._introduce(node_id)
                changes.append((rng.choice(("add_voter", "add_voter", "add_learner")), node_id, f"disk-{node_id}"))
            elif dice < 0.6 and configuration.learners:
                changes.append(("add_voter", rng.choice(sorted(configuration.learners)), ""))
            elif dice < 0.7:
                changes.append(("add_learner", rng.choice(members), ""))
            elif len(configuration.voters) > 2:
                changes.append(("remove", rng.choice(members)))
        if changes:
            self._count("membership asked for", text=f"the operator asks for {changes}")
            self.play.operator.ask(leader.node_id, "change_membership", changes=changes)

    def _introduce(self, node_id: int) -> None:
        for client in self.play.clients:
            self.timeline.after(1_000, client.connection, (node_id, True))

    def retire_strangers(self, members: frozenset[int]) -> None:
        """Switch off what is no member (any more)."""
        for node in self.world.nodes.values():
            if node.node_id not in members and not node.retired:
                node.retired = True
                if node.up:
                    node.crash("(switched off: it is no member)")

    # --- The end ---

    def mend(self) -> None:
        """End everything that goes wrong; what is down comes up."""
        self.mended = True
        world = self.world
        self.network.heal()
        newest = Installed(max(node.installed.version for node in world.nodes.values()))
        for node in world.nodes.values():
            node.fuse = 0
            node.disk.fail_next = False
            node.disk.stall_us = 0
            node.mood.out_of_memory = 0
            node.calm = True
            node.resume()
            node.installed = newest
            if world.profile.versions and node.up and node.runs != newest:
                node.crash("(to be started with the newest code)")
            if not node.up and not node.retired:
                self.timeline.after(10_000, world.boot, node)
