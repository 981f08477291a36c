"""Actors of xoscar's, in a module of their own: their processes import it by name."""

from __future__ import annotations

from typing import Any

import xoscar


class Echo(xoscar.Actor):  # type: ignore[misc]
    """Answers with what it is given, or its length."""

    async def echo(self, message: Any) -> Any:
        """Give it back."""
        return message

    async def length(self, message: Any) -> int:
        """Say how long it is."""
        return len(message)


class Stage(xoscar.Actor):  # type: ignore[misc]
    """Hands on what it is given."""

    def __init__(self, further: Any) -> None:
        super().__init__()
        self.further = further

    async def work(self, message: Any) -> int:
        """Hand it on; the last one says how long it is."""
        if self.further is None:
            return len(message)
        length: int = await self.further.work(message)
        return length
