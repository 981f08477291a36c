"""What a client has defined at the nodes, for as long as it lives here.

Nothing is kept alive by having been sent: what the garbage collector has taken is told to the nodes with the next
definition, so that they need not keep it either.

Invariant:  a fingerprint is either held (something alive here was sent under it), or gone and told or about to be.
Threads:    the encoder's lock guards all of it, except that things end in any thread and at any moment.
"""

from __future__ import annotations

import weakref
from collections import Counter, deque
from typing import Any

from actorraft.pickling.byvalue import Ref
from actorraft.pickling.names import Name


class Sent:
    """Classes and functions that were sent, and under which fingerprint."""

    def __init__(self) -> None:
        self._refs: dict[int, tuple[weakref.ref[Any], Ref]] = {}  # by id
        self._ids: dict[bytes, set[int]] = {}  # by fingerprint: those in _refs
        self._versions: Counter[Name] = Counter()  # fingerprints in _ids of what is not plain, by name
        self._ended: deque[tuple[int, Ref]] = deque()  # not looked at yet
        self._gone: list[bytes] = []  # not told yet

    def __len__(self) -> int:
        self._settle()
        return len(self._refs)

    def ref(self, code: Any) -> Ref | None:
        """Return under what a class or function was sent; None if it was not."""
        found = self._refs.get(id(code))
        return found[1] if found is not None and found[0]() is code else None

    def holds(self, fingerprint: bytes) -> bool:
        """Whether the nodes keep this for us: it is alive here, or it was not told yet that it is gone."""
        self._settle()
        return fingerprint in self._ids or fingerprint in self._gone

    @property
    def held(self) -> set[bytes]:
        """The fingerprints of what is alive here."""
        self._settle()
        return set(self._ids)

    def versions(self, name: Name) -> int:
        """Return how many classes that share this name, and are not what it means, the nodes hold for us."""
        self._settle()
        return self._versions[name]

    def add(self, code: Any, ref: Ref) -> None:
        """Remember that this was sent."""
        self._settle()
        key = id(code)
        if key in self._refs:
            self._forget(key, self._refs[key][1])
        self._refs[key] = weakref.ref(code, lambda _: self._ended.append((key, ref))), ref
        if ref.fingerprint not in self._ids:
            self._ids[ref.fingerprint] = set()
            self._versions[ref.name] += not ref.plain
        self._ids[ref.fingerprint].add(key)

    def let_go(self, ref: Ref) -> None:
        """Forget what was sent under this, though it may be alive: it is sent again before it is used again.

        That it is gone was told already.
        """
        for key in list(self._ids.get(ref.fingerprint, ())):
            self._forget(key, ref)
        self._gone = [each for each in self._gone if each != ref.fingerprint]

    def take_gone(self) -> list[bytes]:
        """Return the fingerprints that the nodes need not keep for us any more, once."""
        self._settle()
        gone = [each for each in dict.fromkeys(self._gone) if each not in self._ids]
        self._gone.clear()
        return gone

    def put_back(self, gone: list[bytes]) -> None:
        """Tell these again: they could not be told."""
        self._gone += gone

    def _settle(self) -> None:
        while self._ended:
            key, ref = self._ended.popleft()
            found = self._refs.get(key)
            if found is not None and found[0]() is None:
                self._forget(key, ref)

    def _forget(self, key: int, ref: Ref) -> None:
        del self._refs[key]
        ids = self._ids[ref.fingerprint]
        ids.discard(key)
        if not ids:
            del self._ids[ref.fingerprint]
            self._gone.append(ref.fingerprint)
            self._versions[ref.name] -= not ref.plain
            if not self._versions[ref.name]:
                del self._versions[ref.name]
