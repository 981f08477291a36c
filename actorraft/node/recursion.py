"""How deep a command may call: equally deep on every node, and in every life of it.

RecursionError is the one error of Python that depends on who called: the interpreter counts frames from the thread's
first on. A command that recurses too deeply is to fail on all nodes or on none, whether it is applied between two
rounds of the loop, beside it, or in a replay after a start. So the limit is set anew from where the commands of a batch
are called, and a command has the same number of frames always.

What is written in C counts its own depth: in the same counter up to Python 3.11, from 3.12 on in another, whose
limit is a constant of the interpreter. The machine has a thread of its own (machine_thread.py), in which only Python
calls Python until a command is reached, so that one too is at the same depth always. It differs between Python's minor
versions, as do many other things: what a cluster's nodes apply, they apply under one (interpreters.py).

Threads:    the limit is the interpreter's. The other threads of a node are shallow.
"""

from __future__ import annotations

import sys
from types import FrameType

_last_depth = 0  # of the caller, when it was last counted


def limit_recursion(frames_max: int) -> None:
    """Allow so many frames above the caller's."""
    global _last_depth  # a guess, which is looked at before it is believed
    try:
        if _last_depth and sys._getframe(_last_depth).f_back is None:  # noqa: SLF001 (the interpreter's own)
            depth = _last_depth
        else:
            depth = _last_depth = _depth(sys._getframe(1))  # noqa: SLF001
    except ValueError:  # the stack is not that deep
        depth = _last_depth = _depth(sys._getframe(1))  # noqa: SLF001
    if sys.getrecursionlimit() != depth + frames_max:
        sys.setrecursionlimit(depth + frames_max)


def _depth(frame: FrameType | None) -> int:
    depth = 0
    while frame is not None:
        depth += 1
        frame = frame.f_back
    return depth
