"""Arrays of numpy in a snapshot: one that is read-only stays so.

Pickle keeps that for contiguous arrays of plain numbers only. A strided one, one of objects, or one of a subclass would
come back writable, and the next `+=` would raise on the nodes that never restored and succeed on those that did.

Source:     rules of what a machine keeps: the same after a restore as before, writability included.
Not here:   views: pickled apart, two arrays that shared memory no longer do.
"""

from __future__ import annotations

import sys
from typing import Any


def reduce_read_only(value: Any) -> Any:
    """Reduce a read-only array whose own reduction forgets that; NotImplemented for anything else."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not issubclass(type(value), numpy.ndarray) or value.flags.writeable:
        return NotImplemented
    reduced = value.__reduce_ex__(5)
    if len(reduced) != 3:  # its bytes, from which only a read-only array can be made
        return NotImplemented
    function, arguments, state = reduced
    return function, arguments, state, None, None, set_read_only


def set_read_only(array: Any, state: Any) -> None:
    """Called by pickles: put an array's state back."""
    array.__setstate__(state)
    array.setflags(write=False)
