"""What a node is told at its start, by whoever starts it: a parent, `serve`, or a program that hosts a member.

Not here:   what the node does with it (process.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from actorraft.node.addresses import Announcement
from actorraft.node.backups import Schedule
from actorraft.raft.config import RaftConfig
from actorraft.raft.messages import Configuration
from actorraft.raft.probation import Probation

if TYPE_CHECKING:
    from transports.keys import Keys


@dataclass(frozen=True, kw_only=True)
class NodeSpec:
    """All that a node's process is told at its start.

    Attributes:
        factory: the machine's class and arguments, as pickling.encode_factory makes them.
        from_snapshot: a portable snapshot that a new cluster begins with.
        storage_id: which folder this node had from the first; with another one it is somebody else.
        configuration: what the cluster began with; nobody at a node that joined later. The log overrides it.
        keeps_data: False if the directory is removed with the cluster.
        replay_from: the entry from which on all nodes compute anew, by the code that they have; None: they do not.
        pins: where the nodes of this run keep the modules of commands, as they were loaded first.
        run: a number of the cluster's run: what was given up in one is tried once in another.
        peer_endpoint, client_endpoint: where to bind; a tcp port of 0 lets the system choose.
        keys: this node's own, its peers' and its clients'; needed on tcp.
        advertise: where peers and clients reach it, as host:port; None: a parent says where everybody is.
        seeds: where the others were last, without a parent.
        probation: the disk was empty under an id that may have begun (raft/probation.py).
        hands_over: hand leadership over before leaving.
        http: where health and metrics are served, as host:port; "": nowhere.
        settings: what decides replicated state, as this start says it, as JSON by name; the log must agree.
        key_file: where this node's secret key is, if it may be replaced while the cluster serves.
        actors: where administrators reach the public actors of this machine; "": nowhere.
        backups: when and where this node writes backups of the state; None: never.
    """

    node_id: int
    cluster_id: bytes
    factory: bytes
    machine_seed: int
    directory: Path
    durability: str
    keeps_data: bool
    from_snapshot: Path | None
    configuration: Configuration
    storage_id: str
    peer_endpoint: str
    client_endpoint: str
    keys: Keys | None
    config: RaftConfig
    advertise: tuple[str, str] | None = None
    seeds: dict[int, Announcement] = field(default_factory=dict)
    probation: Probation | None = None
    hands_over: bool = False
    http: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    key_file: Path | None = None
    replay_from: int | None = None
    pins: Path | None = None
    run: int = 0
    backups: Schedule | None = None
    actors: str = ""
