"""A node's own key is replaced while its cluster serves: made here, told by its public half, taken into use at a word.

The new secret lies beside the old one until every voter knows its public half; then it takes the old one's place, and
the node begins anew in the same process. At every moment the key that a start would read is one that the others
believe, so a crash anywhere in between is only a restart.

Source:     docs/trust.md.
Threads:    the node's loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from actorraft.raft import roster
from actorraft.raft.messages import Configuration
from actorraft.storage.files import Files

NEXT: Final = ".next"  # behind the name of the secret's file


class KeyChange:
    """What an administrator may ask of one node.

    Args:
        file: the secret key that this node starts with.
        configuration: as of now.
        context: of the process; it must be able to begin anew.
    """

    def __init__(self, file: Path, configuration: Callable[[], Configuration], node_id: int, context: Any) -> None:
        self._file = file
        self._next = file.with_name(file.name + NEXT)
        self._configuration = configuration
        self._node_id = node_id
        self._begin_anew: Callable[[], None] | None = getattr(context, "begin_anew", None)
        self.verbs: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "make_key": lambda _: self.make(),
            "use_key": lambda _: self.use(),
        }

    def make(self) -> str:
        """Make the next key, or find the one that was made before; return its public half."""
        from transports.keys import KeyPair

        if self._begin_anew is None:
            raise ValueError(
                f"node {self._node_id} is hosted by a program, and does not begin anew by itself: stop it, and run "
                "actorraft serve"
            )
        if not self._next.exists():
            KeyPair.generate().save(self._next)
            Files().sync_directory(self._next.parent)
        return KeyPair.load(self._next).public

    def use(self) -> str:
        """Start with the next key from now on, and do so at once; return its public half."""
        from transports.keys import KeyPair

        believed = roster.member_of(self._configuration(), self._node_id).public_key
        if not self._next.exists():
            public = KeyPair.load(self._file).public
            if public != believed:
                raise ValueError(f"node {self._node_id} has no other key than the one before")
            return public  # asked for once more
        public = KeyPair.load(self._next).public
        if public != believed:
            raise ValueError(f"node {self._node_id} has not heard yet that its new key is believed: ask again soon")
        assert self._begin_anew is not None
        files = Files()
        files.rename(self._next, self._file)
        files.sync_directory(self._file.parent)
        self._begin_anew()
        return public
