"""The records of a node that is served in the foreground: text or JSON lines, each with the node's id and term.

Shape of a JSON line:  time (UTC, ISO 8601), level, logger, node, term, message; `exception` where there is one, and
                       what else a record has to say of itself (a slow command: index, method, took_ms).
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from actorraft.errors import UsageError

TEXT: Final = "%(asctime)s %(levelname)s node %(node)s term %(term)s %(name)s: %(message)s"


class About(logging.Filter):
    """Puts into each record whose it is. One for the process, which is one node."""

    def __init__(self) -> None:
        super().__init__()
        self.node_id: int | None = None
        self.term: Callable[[], int] | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Let all pass."""
        record.node = "-" if self.node_id is None else self.node_id
        record.term = "-" if self.term is None else self.term()
        return True


about: Final = About()


class JsonLines(logging.Formatter):
    """One JSON object a record, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said: dict[str, Any] = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "node": None if record.node == "-" else record.node,  # type: ignore[attr-defined]
            "term": None if record.term == "-" else record.term,  # type: ignore[attr-defined]
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said | getattr(record, "fields", {}), default=repr, ensure_ascii=False)


def configure(style: str, levels: Sequence[str], node_id: int) -> None:
    """Have this process write its records to standard error.

    Args:
        style: "text" or "json".
        levels: LEVEL, or LOGGER=LEVEL for a logger and those below it.

    Raises:
        UsageError: a level is none.
    """
    about.node_id = node_id
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(about)
    handler.setFormatter(JsonLines() if style == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    known = logging.getLevelNamesMapping()
    for said in levels:
        name, separator, level = said.rpartition("=")
        if level.upper() not in known or (separator and not name):
            raise UsageError(
                f"--log-level is LEVEL or LOGGER=LEVEL, as in actorraft.slow=ERROR, with one of {', '.join(known)}; "
                f"not {said}"
            )
        logging.getLogger(name or None).setLevel(level.upper())
