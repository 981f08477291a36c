"""What nodes answer: results and errors, encoded at a node and turned back in the caller's process.

Neither side trusts what travels. At a node an exception of user code always ends in an encoded error; in the caller's
process a pickle whose reading raises, SystemExit included, ends in an outcome that callers know (docs/clients.md).

Source:     the formats are in formats.py.
Threads:    no state of its own.
"""

from __future__ import annotations

import io
import pickle
import types
from collections.abc import Callable
from typing import Any, Final

import msgspec

from actorraft import codec
from actorraft.errors import ActorRaftError, CommandFailed, NotYet, RemoteTraceback, ResultLost, UnknownType, UsageError
from actorraft.futures import ResultFuture
from actorraft.pickling import beside, exceptions
from actorraft.pickling.formats import (
    ARRAYS,
    BY_VALUE,
    ERROR,
    LOST,
    MOVED,
    NOT_KNOWN,
    NOT_USABLE,
    OBJECT,
    RAISED,
    check_python,
)

BODY_BYTES_MAX: Final = 1 << 20  # of an exception's own parts; one that is larger goes as its text

# What calling an `async def`, or a function with `yield`, gives.
_NEVER_RUN: Final = (types.CoroutineType, types.AsyncGeneratorType, types.GeneratorType)

_encode = msgspec.msgpack.Encoder().encode
_Ext = msgspec.msgpack.Ext


# --- On the way out of a node -----------------------------------------------------------------------------------------


def encode_error(error: BaseException, dumps: Callable[[Any], bytes], kind: int = RAISED) -> Any:
    """Encode what a command raised, so that the client can raise the same. Never raises, whatever the exception does.

    What is no Exception, means something else to a caller (StopIteration, this library's own errors), ends whoever
    shows it, is huge or cannot be pickled goes without a body and arrives as CommandFailed.
    """
    body = None
    if kind == RAISED and exceptions.goes_as_itself(type(error)) and exceptions.can_be_shown(error):
        try:
            body = dumps(exceptions.take_apart(error))  # type: ignore[arg-type]
        except BaseException:
            body = None  # arrives as CommandFailed
        if body is not None and len(body) > BODY_BYTES_MAX:
            body = None
    told = exceptions.type_name(error), exceptions.message(error), exceptions.story(error)
    return _Ext(ERROR, _encode((kind, *told, body)))


def encode_loss(kind: type, error: BaseException) -> Any:
    """Say that a command was applied and why its result, of this type, cannot be sent. Never raises."""
    if kind in _NEVER_RUN:
        text = (
            f"its result, a {exceptions.name(kind)}, cannot be sent: no node runs its body, so what is written there "
            "was not done; return a plain value"
        )
    else:
        text = f"it was done; its result, a {exceptions.name(kind)}, cannot be sent: {exceptions.message(error)}"
    return _Ext(LOST, text.encode("utf-8", "backslashreplace"))


# --- Into a caller ----------------------------------------------------------------------------------------------------


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
    if value == codec.NOT_YET:
        raise NotYet("the state has not got to where the read asks for it yet")
    return decode_result(value)


def decode_result(value: Any) -> Any:
    """Turn a decoded result value into what the command returned, or raise what it raised.

    Raises:
        CommandFailed: it raised something that cannot be raised here.
        ResultLost: its result could not be sent, or cannot be rebuilt here.
        UnknownType: a class is missing, there or here; the message says where.
        Exception: whatever the command raised.
    """
    if type(value) is not _Ext:
        return value
    if value.code == OBJECT:
        return _load(value.data)
    if value.code == ARRAYS:
        return beside.loads(value.data, writable=True)
    if value.code == ERROR:
        raise _load_error(value.data)
    if value.code == LOST:
        raise ResultLost(bytes(value.data).decode("utf-8", "replace"))
    raise ResultLost(f"a result of kind {value.code}, which this version does not know")


def is_unknown_type(value: Any) -> bool:
    """Whether a decoded result value says that the node has no class or function of a name that it was sent."""
    return type(value) is _Ext and value.code == ERROR and msgspec.msgpack.decode(value.data)[0] == NOT_KNOWN


def _load(data: Any) -> Any:
    """Read a pickle of a node's. What it runs is user code, whose SystemExit must not end a thread of ours."""
    try:
        if data[0] == BY_VALUE:
            check_python(data[1], data[2], "the result")
            data = data[3:]
        return pickle.loads(data)
    except BaseException as error:
        missing = None
        if issubclass(type(error), ImportError | AttributeError):
            again = _Inquiry(io.BytesIO(data))
            try:
                return again.load()
            except BaseException:
                missing = again.missing
        raise _not_rebuilt(error, missing) from error


def _not_rebuilt(error: BaseException, missing: str | None) -> ActorRaftError:
    kind = type(error)
    if issubclass(kind, UnknownType):
        return UnknownType(exceptions.message(error))
    if issubclass(kind, UsageError):
        return ResultLost(f"it was done; {exceptions.message(error)}")
    if missing is not None:
        return UnknownType(f"the result holds a {missing}, which is not to be found in this process")
    return ResultLost(f"it was done; its result cannot be rebuilt here: {exceptions.summary(error)}")


class _Inquiry(pickle.Unpickler):
    """Reads a pickle that failed once more: by the names of today, or to find out which name is missing."""

    missing: str | None = None

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(MOVED.get(module, module), name)
        except BaseException:
            self.missing = f"{module}:{name}"
            raise


def _load_error(data: Any) -> BaseException:
    kind, type_name, message, text, body = msgspec.msgpack.decode(data)
    if kind == NOT_KNOWN:
        return UnknownType(message)
    if kind == NOT_USABLE:
        return UsageError(message)
    error = None if body is None else _rebuild(body)
    if error is None:
        error = CommandFailed(type_name, message, text)
    exceptions.set_cause(error, RemoteTraceback(text))
    return error


def _rebuild(body: bytes) -> BaseException | None:
    """Rebuild what a command raised; None if it cannot be rebuilt here, for whatever reason."""
    try:
        error = exceptions.put_together(_load(body))
    except BaseException:
        return None
    return error if exceptions.goes_as_itself(type(error)) else None
