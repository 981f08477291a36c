"""A client's channel whose other end is a test."""

from __future__ import annotations

import queue
from typing import Any

from actorraft import codec
from actorraft.ports import Envelope, Kinds


class ByHand:
    """What every channel made by hand has; how it answers is its test's to say (`set_endpoints`, `send`)."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[Envelope | None] = queue.SimpleQueue()
        self.refusals: dict[Any, str] = {}

    def say(self, node_id: int, reply: codec.Reply) -> None:
        self.queue.put(Envelope(Kinds.FRAME, node_id, codec.encode(reply)))

    def wait(self, timeout_s: float) -> list[Envelope]:
        came: list[Envelope | None] = []
        try:
            came.append(self.queue.get(timeout=max(timeout_s, 0.0001)))
            while True:
                came.append(self.queue.get_nowait())
        except queue.Empty:
            return [each for each in came if each is not None]

    def unresolved(self) -> dict[str, str]:
        return {}

    def set_keys(self, keys: Any) -> None:
        pass

    def wake(self) -> None:
        self.queue.put(None)

    def close(self) -> None:
        pass
