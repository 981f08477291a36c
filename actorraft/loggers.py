"""The loggers of the library: whatever a user's filter or handler raises ends no thread of ours.

The standard library's own handlers never raise; a filter or a handler of a user's may, in the middle of whatever was
logged: in the thread that restarts nodes, or in the one that all calls of a client wait for.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback


class _Guarded(logging.Logger):
    """A logger that says on stderr what a filter or a handler raised, as logging does of its own handlers."""

    def handle(self, record: logging.LogRecord) -> None:
        try:
            super().handle(record)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            if logging.raiseExceptions and sys.stderr is not None:
                with contextlib.suppress(Exception):  # closed, or nobody reads it: that may be what was raised
                    print(f"--- A filter or a handler of the logger {self.name!r} raised ---", file=sys.stderr)
                    traceback.print_exc()


def guarded_logger(name: str) -> logging.Logger:
    """Return the logger of that name, which the user may have set up already, guarded."""
    found = logging.getLogger(name)
    if type(found) is logging.Logger:
        found.__class__ = _Guarded
    return found
