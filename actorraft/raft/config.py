"""The numbers of the protocol, each with its unit in its name."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

LINK_MS_MAX = 600_000  # libzmq counts a heartbeat's time in tenths of a second, in 16 bits
MESSAGE_BYTES_MAX = 1 << 30  # of what travels as one frame: lengths on the wire are of 32 bits
LINK_SPARE_BYTES = 4 << 20  # of a message between nodes: it may have two client frames and so much more


@dataclass(frozen=True, kw_only=True)
class RaftConfig:
    """What a cluster can be tuned with. All nodes of a cluster have the same.

    The election timeout is drawn anew for each election from [n, 2n) ticks (§5.2).
    """

    tick_s: float = 0.01
    election_timeout_ticks: int = 20
    heartbeat_ticks: int = 4
    pre_vote: bool = True
    check_quorum: bool = True
    lease_reads: bool = False
    inflight_max: int = 64  # unacknowledged AppendEntries per follower
    inflight_bytes_max: int = 16 << 20  # and their bytes
    append_bytes_max: int = 1 << 20  # one AppendEntries; a single larger entry travels alone
    uncommitted_bytes_max: int = 64 << 20  # accepted by the leader and not yet applied; more is Busy
    frame_bytes_max: int = 16 << 20  # one client frame, so one log entry
    snapshot_after_bytes: int = 64 << 20  # of log; or as many bytes as the last snapshot has, if these are more
    snapshot_after_entries: int = 100_000
    trailing_entries: int = 1_000  # kept behind a snapshot for followers that are a little late
    trailing_bytes_max: int = 16 << 20  # and what they may take
    snapshot_chunk_bytes: int = 1 << 20
    disk_reserve_bytes: int = 64 << 20  # writes are refused before the disk has less, and room for a snapshot; 0: never
    slow_command_ms: float = 500.0  # commands of an entry that take longer are logged by name; 0: none
    session_expiry_s: float = 3600.0
    digest_every_s: float = 30.0  # how often replicas compare their states; 0: never
    link_heartbeat_ms: int = 200  # how often a link that carries nothing is tried
    link_timeout_ms: int = 600  # silent for so long, it is taken for dead and dialled anew
    reconnect_max_ms: int = 100  # the longest wait between two tries to dial

    def __post_init__(self) -> None:
        for field in fields(self):
            kind = type(field.default)
            object.__setattr__(self, field.name, _checked(field.name, getattr(self, field.name), kind))
        if self.link_timeout_ms <= self.link_heartbeat_ms:
            raise ValueError(
                f"RaftConfig.link_timeout_ms ({self.link_timeout_ms}) must be above link_heartbeat_ms "
                f"({self.link_heartbeat_ms}), or healthy links are cut"
            )
        if self.election_timeout_ticks <= self.heartbeat_ticks:
            raise ValueError(
                f"RaftConfig.election_timeout_ticks ({self.election_timeout_ticks}) must be above "
                f"heartbeat_ticks ({self.heartbeat_ticks}), or followers depose a healthy leader"
            )
        # Small entries take up to half as much again on the wire.
        link_bytes_max = self.frame_bytes_max + LINK_SPARE_BYTES // 2
        for name in ("append_bytes_max", "snapshot_chunk_bytes"):
            if getattr(self, name) > link_bytes_max:
                raise ValueError(
                    f"RaftConfig.{name} ({getattr(self, name)}) is over what a link between nodes takes with a "
                    f"frame_bytes_max of {self.frame_bytes_max}: {link_bytes_max}. A follower that is behind "
                    "would never catch up"
                )

    @classmethod
    def local(cls) -> RaftConfig:
        """Return what serves nodes on one machine (the default)."""
        return cls()

    @classmethod
    def lan(cls) -> RaftConfig:
        """Return what serves nodes on one network: round trips of a millisecond or so."""
        return cls(election_timeout_ticks=30, heartbeat_ticks=5)

    @classmethod
    def wan(cls) -> RaftConfig:
        """Return what serves nodes far apart: round trips of 100 ms or so."""
        return cls(
            tick_s=0.05,
            election_timeout_ticks=40,
            heartbeat_ticks=8,
            link_heartbeat_ms=500,
            link_timeout_ms=2000,
            reconnect_max_ms=500,
        )


COUNT_MAX = 1 << 62  # of entries or bytes: what every format of ours holds

# The least and the most of each number. What is not named here is a bool, or from 1 to COUNT_MAX.
BOUNDS: dict[str, tuple[float, float]] = {
    "tick_s": (0.0001, 60.0),
    "election_timeout_ticks": (2, 1_000_000),
    "heartbeat_ticks": (1, 1_000_000),
    "append_bytes_max": (1, MESSAGE_BYTES_MAX),
    "frame_bytes_max": (4096, MESSAGE_BYTES_MAX),  # 1 KiB of it goes with a command
    "snapshot_chunk_bytes": (1, MESSAGE_BYTES_MAX),
    "trailing_entries": (0, COUNT_MAX),
    "trailing_bytes_max": (0, COUNT_MAX),
    "disk_reserve_bytes": (0, COUNT_MAX),
    "slow_command_ms": (0.0, 1e9),
    "session_expiry_s": (0.001, 1e9),
    "digest_every_s": (0.0, 1e9),
    "link_heartbeat_ms": (10, LINK_MS_MAX),
    "link_timeout_ms": (20, LINK_MS_MAX),
    "reconnect_max_ms": (5, LINK_MS_MAX),
}


def _checked(name: str, value: Any, kind: type) -> Any:
    """See that a field has the kind of its default and lies within its bounds; return it as a plain number.

    Numbers of other kinds, numpy's among them, are shown in other words than JSON's, which the log takes.

    Raises:
        TypeError: it is of another kind.
        ValueError: it is out of bounds, as nan is of any.
    """
    if kind is bool:
        if type(value).__name__ not in ("bool", "bool_"):  # NumPy's too, which is not imported for that
            raise TypeError(f"RaftConfig.{name} is True or False, not {value!r}")
        return bool(value)
    wanted: Any = Integral if kind is int else Real
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise TypeError(f"RaftConfig.{name} is a {'whole ' if kind is int else ''}number, not {value!r}")
    least, most = BOUNDS.get(name, (1, COUNT_MAX))
    if not least <= value <= most:
        raise ValueError(f"RaftConfig.{name} is {least} to {most}, not {value!r}")
    return value if type(value) in (int, float) else int(value) if isinstance(value, Integral) else float(value)


DECIDING = ("frame_bytes_max", "session_expiry_s")


def deciding(config: RaftConfig) -> dict[str, str]:
    """Return the numbers that decide replicated state, by name, as JSON: a cluster has them once, in its log."""
    return {name: repr(getattr(config, name)) for name in DECIDING}
