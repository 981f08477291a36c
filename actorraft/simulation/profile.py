"""What a seed has chosen: which faults, how fast the clocks, how much load.

No profile has everything: each seed switches most kinds of fault off, so that the rest can go far (swarm testing);
a world in which everything fails all the time only ever holds elections.

Source:     Groce et al. 2012, "Swarm testing".
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from random import Random

from actorraft.raft.config import RaftConfig

KINDS = (
    "crash",
    "fuse",
    "power cut",
    "partition",
    "isolate",
    "one way",
    "bridge",
    "bad network",
    "disk stall",
    "disk failure",
    "pause",
    "clock leap",
    "wall clock",
    "disconnect",
    "membership",
    "transfer",
    "snapshot",
    "old disk",
    "full queue",
    "out of memory",
    "deploy",
)
ENDS_OF_PROCESSES = ("crash", "fuse", "power cut", "disk failure", "old disk", "membership")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What one seed has chosen."""

    kinds: tuple[str, ...]  # of faults
    every_us: int  # mean time between faults
    config: RaftConfig
    clients: int = 4
    think_us: int = 20_000  # mean time between the calls of a client
    keys: int = 12
    timeouts_s: tuple[float, ...] = (0.3, 1.0, 3.0)
    drift: float = 0.0  # clocks run up to so much too fast or too slow
    delayed_executor: bool = False
    wire: bool = False  # encode and decode every message
    ghosts: bool = False  # messages to a node reach its next process, too
    guest: bool = False  # the machine is a user's (guest.py), in the production host
    versions: bool = False  # nodes are started again with other code of the machine (versions.py)
    holds: bool = False  # and has commands that no node can apply

    @classmethod
    def draw(cls, rng: Random) -> Profile:
        """Choose for a seed."""
        kinds = tuple(kind for kind in KINDS[:-4] if rng.random() < 0.4)
        lease_reads = rng.random() < 0.3
        if lease_reads:
            kinds = tuple(kind for kind in kinds if kind != "clock leap")  # outside the stated bound of leases
        tick_s, election_timeout_ticks, heartbeat_ticks = rng.choice(((0.01, 20, 4), (0.02, 10, 2), (0.025, 8, 2)))
        kinds = kinds or ("crash",)
        config = RaftConfig(
            tick_s=tick_s,
            election_timeout_ticks=election_timeout_ticks,
            heartbeat_ticks=heartbeat_ticks,
            pre_vote=rng.random() < 0.85,
            check_quorum=True if lease_reads else rng.random() < 0.85,
            lease_reads=lease_reads,
            inflight_max=rng.choice((1, 4, 64)),
            append_bytes_max=rng.choice((200, 2_000, 1 << 20)),
            uncommitted_bytes_max=rng.choice((2_000, 1 << 20)),
            snapshot_after_entries=rng.choice((15, 60, 200, 100_000)),
            trailing_entries=rng.choice((0, 3, 30)),
            snapshot_chunk_bytes=rng.choice((80, 300, 1 << 20)),
            session_expiry_s=rng.choice((3600.0, 3600.0, 3600.0, 3.0)),
        )
        profile = cls(
            kinds=kinds,
            every_us=rng.choice((30_000, 100_000, 300_000)),
            config=config,
            clients=rng.choice((2, 4, 6)),
            think_us=rng.choice((10_000, 25_000, 60_000)),
            keys=rng.choice((3, 12, 40)),
            drift=rng.choice((0.0, 0.0, 0.01, 0.04)),
            delayed_executor=rng.random() < 0.5,
            wire=rng.random() < 0.15,
            ghosts=rng.random() < 0.3,
        )
        # Drawn last: what the seeds have chosen so far stays.
        if rng.random() < 0.3 and "membership" not in kinds:
            kinds = (*kinds, "old disk")
        if rng.random() < 0.3:
            kinds = (*kinds, "full queue")
        if rng.random() < 0.4:
            config = replace(config, digest_every_s=0.5)
        guest = rng.random() < 0.35
        if guest and rng.random() < 0.3:
            kinds = (*kinds, "out of memory")
        # Who may have applied a command in an earlier life never says that it holds there; then all stand for ever.
        holds = guest and rng.random() < 0.5 and not set(kinds) & set(ENDS_OF_PROCESSES)
        versions = not guest and rng.random() < 0.25
        if versions:
            kinds = (*kinds, "deploy")
        return replace(profile, kinds=kinds, config=config, guest=guest, holds=holds, versions=versions)


def profile_of(seed: int) -> Profile:
    """Return what a seed chooses."""
    return Profile.draw(Random(Random(seed).getrandbits(64)))


def mixing_versions(first: int, count: int) -> list[int]:
    """Return so many seeds, from `first` on, that start nodes again with other code of the machine."""
    return list(itertools.islice((seed for seed in itertools.count(first) if profile_of(seed).versions), count))
