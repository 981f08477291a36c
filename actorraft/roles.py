"""What a client may ask for, by the role of its key.

"admin" may do all. "write" and "read" send plain data only: no pickle, no callable, no definition of a class, since
each of these is a program that would run in every node. "join" is a token's: it may ask to join, and nothing else.

One rule at both ends: a node refuses, whatever a client is; and a client that knows its role says so to its caller at
once, before anything is sent, so that one call which may not be made takes no other down with it in one frame.

Source:     docs/trust.md (a pickle is a program).
Not here:   which role a key has (the configuration in the log says it), and the proof of the key (the transport).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from actorraft import codec

ADMIN: Final = "admin"
JOIN: Final = "join"
MAY_NOT: Final = "a key of the role "  # how each refusal here begins
_READS: Final = (codec.Hello, codec.Query, codec.Watch, codec.Unwatch)
_WRITES: Final = (*_READS, codec.Register, codec.Commands, codec.CloseSession)
_JOINS: Final = frozenset({"join", "endpoints"})
_ASKS: Final = frozenset({"status", "events", "endpoints", "quorum"})


def why_not(role: str, request: codec.Request) -> str:
    """Return why a client of this role may not ask for this; "" if it may."""
    if role == ADMIN:
        return ""
    if isinstance(request, codec.Admin):
        allowed = _JOINS if role == JOIN else _ASKS
        return "" if request.verb in allowed else f"{MAY_NOT}{role} may not ask for {request.verb}"
    if not isinstance(request, {"read": _READS, "write": _WRITES, JOIN: (codec.Hello,)}.get(role, ())):
        return f"{MAY_NOT}{role} may not send {type(request).__name__.lower()}"
    if isinstance(request, codec.Commands | codec.Query) and not _is_plain(request.body):
        return (
            f"{MAY_NOT}{role} sends plain data only (numbers, text, bytes, arrays, lists and dicts of these): "
            "objects, callables and keyword arguments are pickles, which are programs"
        )
    return ""


def _is_plain(body: codec.Body) -> bool:
    """Whether a body holds calls by name alone; a command that was given up (None) is no call, and harmless."""
    try:
        calls = codec.decode_body(body)
    except codec.MalformedFrame:
        return True  # of no use to anybody, and answered as such where it is looked at
    return all(call is None or (type(call) is list and not _holds_ext(call)) or _is_arrays(call) for call in calls)


def _is_arrays(call: Any) -> bool:
    """Whether a call is one with arrays, which is read without a pickle."""
    return type(call) is msgspec.msgpack.Ext and call.code == codec.ARRAYS


def _holds_ext(value: Any) -> bool:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if type(one) is msgspec.msgpack.Ext:
            return True
        if type(one) is list:
            waiting.extend(one)
        elif type(one) is dict:
            waiting.extend((*one.keys(), *one.values()))
    return False
