"""Where the members are, as far as this node knows: hints, which whoever comes back elsewhere replaces by itself.

A node says its addresses with a number that grows with each of its starts, in the introduction of every link it
dials, and passes on what it has heard of the others. The highest number wins, so an old announcement that is repeated
changes nothing. The log has them too, once there is a leader; but if a quorum came back elsewhere nothing could be
committed to say so, and therefore the book is kept beside the log, and dialled from at once. If all are elsewhere, so
that nobody can dial anybody, an operator says where one is, by its seed: a seed that has changed since the last start
goes before what was kept, until that member says otherwise.

Keys come from the log; but a node that was away while all others got new ones reaches nobody, and hears of none. Then
an operator says so in the same way: a member's key that is not what earlier starts were told is believed beside it.
Never again one that the log has replaced since: an old `node.toml` that is put back brings no retired key back.

A disk that was put back from a copy, or a copy that runs beside its original, has forgotten what it voted for and
acknowledged since. So a member also says which lives of its process its disk remembers: one that does not remember the
last life that was met here is not heard, however often it starts, unless it says itself that it is on probation.

Source:     docs/decisions/0033.
Invariant:  for each member the announcement with the highest number that was ever heard here; of nobody else. Whoever
            is heard remembers the life that was heard before it, if that is not LIVES_MAX starts ago. No key of
            `new_keys` is one that the log was seen to replace.
Not here:   whether a speaker is who it says (its key, in the transport).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from actorraft.errors import StorageFailed
from actorraft.loggers import guarded_logger
from actorraft.raft.messages import Configuration
from actorraft.storage.files import Files

logger = guarded_logger("actorraft")

BOOK_FILE: Final = "addresses.json"
LIVES_MAX: Final = 128  # of its own that a node remembers
Lives = Sequence[tuple[int, str]]  # (number of the start, incarnation in hexadecimal), the last one last


class Announcement(NamedTuple):
    """Where a member is since its start `number`: what other nodes dial, and what clients dial."""

    number: int
    peer: str
    client: str


class AddressBook:
    """The announcements of all members.

    Args:
        node_id: whose book it is.
        seeds: where to look first; number 0, so that anything a member says itself goes before; unless they are new.
        directory: where the book is kept; None: nowhere.
        keys: member -> the public key that this start is told of it.

    Attributes:
        new_keys: those of them that are not what earlier starts were told: an operator's word, until the log has them.
    """

    def __init__(
        self,
        node_id: int,
        seeds: Mapping[int, Announcement],
        directory: Path | None = None,
        files: Files | None = None,
        keys: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        self.node_id = node_id
        self._file = directory / BOOK_FILE if directory is not None else None
        self._files = files or Files()
        self._met: dict[int, tuple[int, str]] = {}  # member -> its last life that was met
        self.lives: Lives = ()  # of this node, this one included once it has started
        self._seeds = dict(seeds)
        self._known = dict(seeds)
        self._told_keys: dict[int, str] = {}  # by the starts before this one
        self._past_keys: dict[int, set[str]] = {}  # what the log has had, or took the place of
        kept, kept_seeds = self._load()
        self.new_keys = {
            node: key
            for node, key in keys.items()
            if self._told_keys.setdefault(node, key) != key and key not in self._past_keys.get(node, ())
        }
        for member_id, announcement in kept.items():
            seed = seeds.get(member_id)
            if seed is not None and kept_seeds.get(member_id, seed) != seed:  # an operator knows better
                announcement = seed._replace(number=announcement.number)
            self._take(member_id, announcement)

    def start(self, peer: str, client: str, incarnation: str, after: int = 0) -> Announcement:
        """Note where this node is in this run, under a number that it has never used; durable on return.

        Args:
            incarnation: of this process, in hexadecimal.
            after: a number that it has used, as others say.

        Raises:
            StorageFailed: the disk refused.
        """
        before = self._known.get(self.node_id)
        number = max(after, before.number if before is not None else 0) + 1
        own = self._known[self.node_id] = Announcement(number, peer, client)
        self.lives = [*(life for life in self.lives if life[1] != incarnation), (number, incarnation)][-LIVES_MAX:]
        self._store()
        return own

    def meet(self, member_id: int, lives: Lives, on_probation: bool) -> str:
        """Note which life of a member speaks; return why it must not be heard, if it must not.

        Args:
            lives: those that its disk remembers; it says nothing without one.
            on_probation: it says that it has forgotten everything, and asks for nothing to be counted.
        """
        if not lives:
            return ""
        life, met = lives[-1], self._met.get(member_id)
        if met is not None and met[1] != life[1]:
            remembers = met[1] in (incarnation for _, incarnation in lives) or met[0] < lives[0][0]
            if not remembers and not on_probation:
                return (
                    f"node {member_id} comes with its start {life[0]}, and its disk knows nothing of start {met[0]}: "
                    "its data directory is an older copy, or is used twice, and has forgotten what was acknowledged "
                    f"since. Put the newest back; or actorraft members remove {member_id}, and join anew with an "
                    "empty one"
                )
        if met != life:
            self._met[member_id] = life
            self._note()
        return ""

    def hear(self, told: Mapping[int, Announcement], members: frozenset[int]) -> bool:
        """Take in what another member said of itself and others; return whether any of it is news."""
        news = [
            member_id
            for member_id, announcement in told.items()
            if member_id in members and member_id != self.node_id and self._take(member_id, announcement)
        ]
        if news:
            self._note()
        return bool(news)

    def follow(self, configuration: Configuration) -> bool:
        """Take in what the log says; forget who is no member. Returns whether anything changed."""
        told = {row.node_id: Announcement(row.number, row.peer, row.client) for row in configuration.roster if row.peer}
        gone = self._known.keys() - configuration.members - {self.node_id}
        for member_id in gone:
            del self._known[member_id]
            self._met.pop(member_id, None)
            self._past_keys.pop(member_id, None)
        return self.hear(told, configuration.members) or bool(gone)

    def follow_keys(self, proofs: Mapping[int, tuple[str, ...]], *earlier: Mapping[int, tuple[str, ...]]) -> None:
        """The log says by which keys members are known: what it has, or had, is no news any more.

        Args:
            earlier: by which they were known before, as far as that is committed.
        """
        changed = False
        for member_id, keys in proofs.items():
            past = self._past_keys.setdefault(member_id, set())
            size = len(past)
            past.update(*(each.get(member_id, ()) for each in earlier))
            new = self.new_keys.get(member_id)
            if new is not None and new in keys:
                past.add(self._told_keys[member_id])
                self._told_keys[member_id] = new
            if new is not None and (new in keys or new in past):
                del self.new_keys[member_id]
                changed = True
            changed = changed or len(past) > size
        if changed:
            self._note()

    def __getitem__(self, member_id: int) -> Announcement:
        return self._known[member_id]

    @property
    def known(self) -> dict[int, Announcement]:
        """All that is known, this node's own included."""
        return dict(self._known)

    def _take(self, member_id: int, announcement: Announcement) -> bool:
        before = self._known.get(member_id)
        if before is not None and announcement.number <= before.number:
            return False
        self._known[member_id] = announcement
        return True

    def _load(self) -> tuple[dict[int, Announcement], dict[int, Announcement]]:
        if self._file is None:
            return {}, {}
        try:
            said = json.loads(self._file.read_bytes())
            kept, seeds = (
                {int(member_id): Announcement(*row) for member_id, row in said[name].items()}
                for name in ("known", "seeds")
            )
            self._met = {int(member_id): (row[0], row[1]) for member_id, row in said.get("met", {}).items()}
            self.lives = [(row[0], row[1]) for row in said.get("lives", ())]
            self._told_keys = {int(member_id): str(key) for member_id, key in said.get("keys", {}).items()}
            self._past_keys = {int(member_id): set(keys) for member_id, keys in said.get("past_keys", {}).items()}
        except FileNotFoundError:
            return {}, {}
        except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise StorageFailed(f"{self._file} cannot be read ({error}); remove it, and it is learned anew") from error
        return kept, seeds

    def _note(self) -> None:
        """Store what others have said, if the disk takes it: they say it again, and this node goes on."""
        try:
            self._store()
        except StorageFailed as error:
            logger.warning("what other members say of themselves is not kept: %s", error)

    def _store(self) -> None:
        if self._file is not None:
            try:
                said = {"known": self._known, "seeds": self._seeds, "met": self._met, "lives": self.lives}
                past = {member_id: sorted(keys) for member_id, keys in self._past_keys.items()}
                keys = {"keys": self._told_keys, "past_keys": past}
                self._files.replace(self._file, json.dumps({**said, **keys}).encode())
            except OSError as error:
                raise StorageFailed(f"{self._file} cannot be written: {error.strerror}") from error
