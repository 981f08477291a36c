"""How an update gets into the log: as one entry, or, where that would be a large one, in ranges ahead of its push.

An entry of many megabytes holds up each node's loop, and one above RaftConfig.frame_bytes_max is refused. Ranges are
sent without waiting, in the order of one session, so that one is written while the next is on its way.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from statemachines import updates
from statemachines.ranges import checksum, cut

if TYPE_CHECKING:
    from statemachines.updates import Vector

ENTRY_BYTES_MAX: Final = 4 << 20  # of an update in one entry


class Sender:
    """One session's way to push; it has one update under way in ranges at a time, since a session keeps its order.

    Args:
        server: the proxy of a ParameterServer.
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        self._number = secrets.randbits(62)

    def send(self, update: bytes | Vector, push: Callable[[bytes | Vector], Future[int]]) -> Future[int]:
        """Push an update, given how to push what stands for it; return the future of that.

        It fails with RangeRefused where a range got lost; nothing is applied then, and all of it is to be sent again.
        """
        size = len(update) if isinstance(update, bytes) else update.nbytes
        if size <= ENTRY_BYTES_MAX:
            return push(update)
        encoded = update if isinstance(update, bytes) else updates.whole(update)
        *ranges, last = cut(encoded)
        for number, data in enumerate(ranges):
            self._server.put_range.submit(self._number, number, len(encoded), data)
        return push(updates.ranged(self._number, len(encoded), checksum(ranges), last))
