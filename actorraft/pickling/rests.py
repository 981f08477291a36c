"""Which definitions are needed still: those that somebody wants, and those that these rest on.

Nodes ask it of what clients hold, a client of what is alive there: so both keep the same.
"""

from __future__ import annotations

from typing import NamedTuple


class Rests(NamedTuple):
    """What a definition defines, and what it names of others; by fingerprint."""

    defines: frozenset[bytes]
    needs: frozenset[bytes]


def needed(definitions: dict[bytes, Rests], wanted: set[bytes]) -> dict[bytes, Rests]:
    """Return the definitions that have or are rested on by what is wanted, in order.

    Args:
        definitions: each after those it rests on.
        wanted: fingerprints.
    """
    kept: dict[bytes, Rests] = {}
    for definition, one in reversed(definitions.items()):
        if not wanted.isdisjoint(one.defines):  # else a later one has all of it that is wanted
            wanted = (wanted - one.defines) | one.needs
            kept[definition] = one
    return dict(reversed(kept.items()))
