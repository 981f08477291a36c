"""State digests: replicas compare what they hold, now and then, so that a machine that is not deterministic is named.

A leader appends a check entry every `RaftConfig.digest_every_s` seconds, if anything was applied since the last one.
Where it stands in the log, each node takes a sample: a digest of its state, and a running hash of what its commands
returned since the check before. A sample is taken at the same index everywhere, without a message; and the next
check entry carries the sample of the leader that made it. A node whose own sample is another one says so: at which
index, differing from whom, and until where they were equal.

So each node judges itself against the leader. If the leader is the one that went astray, all the others say so.
Nothing stops: a wrong leader would stop everybody else. What differs is for a person to mend (docs/operations.md).

What it costs: a sample covers the first SAMPLE_BYTES of a state, about 6 ms of the executor's time; a
machine's own `digest()` is taken as it is. If one takes over STATE_S all the same (one huge array), the node compares
results only from then on. Of results, those of every 16th entry count, and of those the plain values and whether a
command raised: pickles of equal values may differ.

While an upgrade rolls, nodes run different code, and a newer class may have attributes that an older one has not. Then
samples are of each attribute by itself, and of those both know; they are taken every MIXED_S seconds, and before the
newer version takes effect each node must have told the leader that they are equal. At a difference the nodes with the
newer code hold: so far the older code rules (rules.py).

Invariant:  a sample depends on the log alone, never on a clock, a restart or an installed snapshot: what is not known
            for certain after those is empty, and not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgspec

from actorraft import codec
from actorraft.loggers import guarded_logger
from actorraft.node.guest import HookFailed
from actorraft.pickling.canonical import SCALARS

logger = guarded_logger("actorraft")

STATE_S: Final = 0.05
MIXED_S: Final = 1.0  # between two checks while nodes run different code
EAGER_S: Final = 0.02  # and while commands wait for what they find
EVERY_ENTRIES_MASK: Final = 15  # results of entries whose index has none of these bits are counted

_encode = msgspec.msgpack.Encoder().encode


class Sample(NamedTuple):
    """What a node found at a check entry. Empty bytes: not known here."""

    index: int  # type: ignore[assignment]  # the field hides tuple.index, and is the better name
    state: bytes
    results: bytes
    changed: bool  # whether any command was applied since the check before
    parts: Mapping[str, bytes] = MappingProxyType({})  # where code is mixed, instead of the state
    mixed: bool = False


class Checked(NamedTuple):
    """What became of a check entry: the sample taken there, and what differs from the leader's earlier one, if so."""

    sample: Sample
    difference: str = ""
    compared_index: int = -1  # of that sample, if the two could be compared and code is mixed


class Checks:
    """The executor's side: takes samples, and compares them with a leader's.

    Args:
        digest: of the machine's state, cheap.
        timer: seconds, for noticing that it is not; None: it is taken to be.
        parts: digests of the attributes, cheap too.
    """

    def __init__(
        self,
        digest: Callable[[], bytes],
        timer: Callable[[], float] | None = None,
        parts: Callable[[], dict[str, bytes]] = dict,
    ) -> None:
        self._digest = digest
        self._parts = parts
        self._timer = timer
        self._cheap = True
        self.forget()

    def forget(self) -> None:
        """Begin anew, as after a restored snapshot: what was sampled before says nothing about now."""
        self._latest = Sample(-1, b"", b"", False)
        self._equal_index = -1
        self._results = 0
        self._since_check = False  # whether results were counted from a check entry on
        self._serial = -1

    def note(self, results: list[Any]) -> None:
        """Count the results of one entry."""
        plain = [result if type(result) in SCALARS else result.code for result in results]
        self._results = crc32(_encode(plain), self._results)

    def check(self, index: int, serial: int, entry: codec.Check, *, alike: bool = True) -> Checked:
        """Take a sample at `index`; compare the one before with what the leader said of it.

        Every check counts, for results are those since the one before.

        Args:
            serial: of the next command; equal serials, equal state.
            alike: this node runs the code that rules: else its state as a whole says nothing.
        """
        difference = self._compare(entry)
        mine = self._latest
        compared_index = entry.index if mine.mixed and 0 <= entry.index == mine.index else -1
        same = serial == self._serial
        if same and mine.mixed == entry.mixed:
            sample = mine._replace(index=index, changed=False)
        else:
            results = mine.results if same else self._results.to_bytes(4, "little") if self._since_check else b""
            if entry.mixed:
                sample = Sample(index, b"", results, True, self._parts(), True)
            else:
                sample = Sample(index, self._take_state() if alike else b"", results, True)
        self._latest, self._serial = sample, serial
        self._results, self._since_check = 0, True
        return Checked(sample, difference, compared_index)

    def _compare(self, entry: codec.Check) -> str:
        mine = self._latest
        if entry.index < 0 or entry.index != mine.index:
            return ""
        parts = [name for name, part in entry.parts.items() if mine.parts.get(name, part) != part]
        if parts:
            what = f"the state of this node ({', '.join(sorted(parts))}) is not that of"
        elif entry.state and mine.state and entry.state != mine.state:
            what = "the state of this node is not that of"
        elif entry.results and mine.results and entry.results != mine.results:
            what = "what commands returned on this node is not what they returned on"
        else:
            self._equal_index = entry.index
            return ""
        since = f"after index {self._equal_index}" if self._equal_index >= 0 else "at an unknown index"
        return (
            f"{what} node {entry.leader_id}, which leads, at index {entry.index}; they parted {since}. The machine is "
            "not deterministic (it reads a clock, random numbers, a file, the order of a set...), or code or memory "
            "differ. Once it is mended, replace the node that is wrong: remove_node(), add_node()"
        )

    def _take_state(self) -> bytes:
        if not self._cheap:
            return b""
        begin_s = self._timer() if self._timer is not None else 0.0
        try:
            state = self._digest()
        except HookFailed:  # the host has said so
            return b""
        if self._timer is not None and self._timer() - begin_s > STATE_S:
            self._cheap = False
            logger.info(
                "a digest of the state takes %.0f ms, so from now on only results are compared; a machine can offer "
                "a cheap digest()",
                (self._timer() - begin_s) * 1000,
            )
        return state


class Schedule:
    """The leader's side: when to append a check entry, and what it carries.

    Args:
        every_s: seconds between two; 0: none.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._latest: Sample | None = None
        self._appended_s: float | None = None
        self._carried_index = -1

    def checked(self, sample: Sample) -> None:
        """Take the newest sample of this node."""
        self._latest = sample

    @property
    def on(self) -> bool:
        """Whether samples are compared at all."""
        return self._every_s > 0

    def due(
        self, now_s: float, applied_index: int, *, mixed: bool = False, awaited: bool = False, eager: bool = False
    ) -> bool:
        """Whether to append a check entry now: there is something that no check has seen, or not told yet.

        Args:
            mixed: nodes run different code.
            awaited: an answer is waited for, whatever a check has seen.
            eager: and commands wait for it too.
        """
        if self._every_s <= 0:
            return False
        every_s = EAGER_S if eager else min(self._every_s, MIXED_S) if mixed else self._every_s
        if self._appended_s is None:
            self._appended_s = now_s
            return awaited
        if now_s < self._appended_s + every_s:
            return False
        if awaited:
            return True
        latest = self._latest
        if latest is None:
            return applied_index >= 0
        return applied_index > latest.index or (latest.changed and latest.index > self._carried_index)

    def entry(self, leader_id: int, *, mixed: bool = False) -> codec.Check:
        """Make the entry, at the leader."""
        if self._latest is None:
            return codec.Check(leader_id, -1, b"", b"", mixed=mixed)
        index, state, results, _, parts, _ = self._latest
        return codec.Check(leader_id, index, state, results, dict(parts), mixed)

    def appended(self, now_s: float) -> None:
        """The entry is in the log."""
        self._appended_s = now_s
        if self._latest is not None:
            self._carried_index = self._latest.index
