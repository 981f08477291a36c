"""What nodes answer, turned into results: values, or what the commands raised.

Source:     contract section 2; the formats are those of pickling.py.
"""

from __future__ import annotations

from typing import Any

import msgspec

from actorraft import codec
from actorraft.errors import ActorRaftError
from actorraft.futures import ResultFuture
from actorraft.pickling.encoder import decode_result

_Ext = msgspec.msgpack.Ext


def decode_many(
    futures: list[Any], values: list[Any]
) -> tuple[list[tuple[ResultFuture[Any], Any]], list[tuple[ResultFuture[Any], BaseException]]]:
    """Decode what came back for those who still wait: (future, result) and (future, what the command raised)."""
    results, failures = [], []
    for future, value in zip(futures, values, strict=False):
        if future is None:
            continue
        if type(value) is _Ext:
            try:
                value = decode_value(value)
            except BaseException as error:
                failures.append((future, error))
                continue
        results.append((future, value))
    return results, failures


def decode_value(value: Any) -> Any:
    """Turn what a node sent as a result into the value, or raise what the command raised."""
    if value == codec.MALFORMED:
        raise ActorRaftError("the nodes could not decode the frame that held this command; it changed nothing")
    return decode_result(value)
