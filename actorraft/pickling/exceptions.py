"""Exceptions of user code, read and rebuilt without trusting them.

An exception is user code through and through: `__str__`, `__notes__`, `__cause__`, `__class__`, `__getattribute__`, its
metaclass may raise anything or lie, and frozen ones refuse attributes. So what the interpreter itself keeps of an
exception (arguments, attributes, slots, traceback, cause) is read and written through the descriptors of C, which no
class can override; of user code only `__str__` is called, and whatever it does ends in a text.

What is told is equal on every node: files go by their module's name, and addresses are left out. Source lines are not
read here, since a file may differ or be missing on some nodes; whoever shows the text adds them (errors.py).

Shape:      parts are (class, arguments, attributes), or with slots (class, arguments, attributes, slots); an exception
            among the arguments or attributes is Parts in its turn.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from actorraft.errors import ActorRaftError

TEXT_CHARS_MAX: Final = 16_384
FRAMES_MAX: Final = 50  # of one traceback; what is between the first and the last is left out
EXCEPTIONS_MAX: Final = 50  # of one story: causes, contexts and members of groups
DEPTH_MAX: Final = 8

_HEAP_TYPE: Final = 1 << 9
_ADDRESS: Final = re.compile(r"\bat 0x[0-9a-fA-F]+")
_NOT_AS_ITSELF = (StopIteration, StopAsyncIteration, ActorRaftError)  # each means something else to a caller


def _descriptor(owner: type, name: str) -> Any:
    return vars(owner)[name]


_args = _descriptor(BaseException, "args").__get__
_attributes = _descriptor(BaseException, "__dict__").__get__
_traceback = _descriptor(BaseException, "__traceback__").__get__
_cause = _descriptor(BaseException, "__cause__")
_context = _descriptor(BaseException, "__context__").__get__
_suppresses = _descriptor(BaseException, "__suppress_context__").__get__
_members = _descriptor(BaseExceptionGroup, "exceptions").__get__
_headline = _descriptor(BaseExceptionGroup, "message").__get__
_mro = _descriptor(type, "__mro__").__get__
_own = _descriptor(type, "__dict__").__get__
_flags = _descriptor(type, "__flags__").__get__
_qualname = _descriptor(type, "__qualname__").__get__


# --- What it says -----------------------------------------------------------------------------------------------------


def type_name(error: BaseException) -> str:
    """Return the qualified name of an exception's class."""
    return name(type(error))


def name(kind: type) -> str:
    """Return the qualified name of a class, whatever its metaclass says."""
    return _text(_qualname(kind))


def message(error: BaseException) -> str:
    """Return what an exception says, at most TEXT_CHARS_MAX of it; never raises, whatever its `__str__` does."""
    try:
        return _text(str(error))
    except BaseException as problem:
        return f"<{type_name(problem)} in its __str__>"


def summary(error: BaseException) -> str:
    """Return an exception as one line for a message of ours: its class and what it says."""
    return f"{type_name(error)}: {message(error)}"


def story(error: BaseException) -> str:
    """Return an exception's traceback as text, causes and members of groups included, equal on every node.

    The frames of this library above the user's are left out.
    """
    try:
        lines = _Story().lines(error, 0)
        return "".join(f"{line}\n" for line in lines)[-TEXT_CHARS_MAX:]
    except BaseException as problem:
        return f"{type_name(error)}: <its traceback cannot be told: {type_name(problem)}>\n"


def _text(value: Any) -> str:
    """Return a plain string that UTF-8 can hold, of a string or of what claims to be one."""
    plain = str.__getitem__(value, slice(TEXT_CHARS_MAX))
    if plain.isascii() and " at 0x" not in plain:
        return plain
    return _ADDRESS.sub("at 0x…", plain.encode("utf-8", "backslashreplace").decode())


class _Story:
    def __init__(self) -> None:
        self._seen: set[int] = set()

    def lines(self, error: BaseException, depth: int) -> list[str]:
        """Tell an exception: what led to it first, then its frames, then itself."""
        self._seen.add(id(error))
        told: list[str] = []
        before, why = self._before(error)
        if before is not None and depth < DEPTH_MAX * 2 and len(self._seen) < EXCEPTIONS_MAX:
            told += [*self.lines(before, depth + 1), "", why, ""]
        trace = _after_ours(_traceback(error))
        if trace is not None:
            told.append("Traceback (most recent call last):")
            told += _frames(trace)
        told += self._itself(error)
        if issubclass(type(error), BaseExceptionGroup) and depth < DEPTH_MAX * 2:
            for number, member in enumerate(_members(error), 1):
                if id(member) not in self._seen and len(self._seen) < EXCEPTIONS_MAX:
                    told.append(f"  +---------------- {number} ----------------")
                    told += [f"  | {line}" for line in self.lines(member, depth + 1)]
        return told

    def _before(self, error: BaseException) -> tuple[BaseException | None, str]:
        cause = _cause.__get__(error)
        if cause is not None and id(cause) not in self._seen:
            return cause, "The above exception was the direct cause of the following exception:"
        context = _context(error)
        if cause is None and context is not None and not _suppresses(error) and id(context) not in self._seen:
            return context, "During handling of the above exception, another exception occurred:"
        return None, ""

    def _itself(self, error: BaseException) -> Iterator[str]:
        kind = type(error)
        module = _own(kind).get("__module__")
        home = "" if type(module) is not str or module in ("builtins", "__main__") else f"{_text(module)}."
        said = message(error)
        yield f"{home}{type_name(error)}: {said}" if said else f"{home}{type_name(error)}"
        notes = _attributes(error).get("__notes__")
        if type(notes) is list:
            yield from (_text(note) for note in notes[:FRAMES_MAX] if issubclass(type(note), str))


def _after_ours(trace: types.TracebackType | None) -> types.TracebackType | None:
    while trace is not None and trace.tb_next is not None and _is_ours(trace.tb_frame):
        trace = trace.tb_next
    return trace


def _is_ours(frame: types.FrameType) -> bool:
    name = dict.get(frame.f_globals, "__name__")
    return type(name) is str and name.startswith("actorraft.")


def _frames(trace: types.TracebackType | None) -> list[str]:
    """Return a line for each frame, the first and the last FRAMES_MAX / 2 of them."""
    lines: list[str] = []
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f'  File "{_text(_file(trace.tb_frame))}", line {trace.tb_lineno}, in {_text(code.co_name)}')
        trace = trace.tb_next
    if len(lines) > FRAMES_MAX:
        lines[FRAMES_MAX // 2 : -FRAMES_MAX // 2] = ["  ..."]
    return lines


def _file(frame: types.FrameType) -> str:
    """Return a file's name that is the same on every node: its module's place, wherever that is installed."""
    own, file = frame.f_globals, frame.f_code.co_filename
    name = dict.get(own, "__name__")
    if file.startswith("<") or type(name) is not str or name == "__main__" or dict.get(own, "__spec__") is None:
        return file  # of code that came by value the same on every node, too
    return name.replace(".", "/") + ("/__init__.py" if "__path__" in own else ".py")


# --- Taken apart and rebuilt ------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """An exception inside another one."""

    kind: type
    arguments: tuple[Any, ...]
    attributes: dict[str, Any]
    slots: dict[str, Any] = {}  # noqa: RUF012 (never changed)


def goes_as_itself(kind: type) -> bool:
    """Whether what a command raised is raised in its caller too."""
    return issubclass(kind, Exception) and not issubclass(kind, _NOT_AS_ITSELF)


def can_be_shown(error: BaseException) -> bool:
    """Whether showing an exception is harmless: one whose `__str__` exits would end whoever logs it."""
    try:
        str(error)
    except Exception:
        return True
    except BaseException:
        return False
    return True


def take_apart(error: Exception) -> Any:
    """Return an exception's parts, or the exception itself if its class has its own way to be pickled."""
    parts = _take_apart(error, ())
    return parts if parts is error else tuple(parts) if parts.slots else tuple(parts[:3])


def _take_apart(error: BaseException, inside: tuple[int, ...]) -> Any:
    kind = type(error)
    mro = _mro(kind)
    owner = next(each for each in mro if "__reduce__" in _own(each) or "__reduce_ex__" in _own(each))
    if _flags(owner) & _HEAP_TYPE or id(error) in inside or len(inside) > DEPTH_MAX:
        return error
    inside = *inside, id(error)
    _, arguments, *rest = _own(owner)["__reduce__"](error)
    attributes = dict(rest[0]) if rest and rest[0] else {}
    slots = {}
    for each in mro:
        for name, member in _own(each).items() if _flags(each) & _HEAP_TYPE else ():
            if type(member) is types.MemberDescriptorType and name not in slots:
                try:
                    slots[name] = member.__get__(error, kind)
                except AttributeError:
                    continue  # never set
    return Parts(
        kind,
        tuple(_sendable(value, inside) for value in arguments),
        {name: _sendable(value, inside) for name, value in attributes.items()},
        {name: _sendable(value, inside) for name, value in slots.items()},
    )


def _sendable(value: Any, inside: tuple[int, ...]) -> Any:
    kind = type(value)
    if kind is str:
        return _ADDRESS.sub("at 0x…", value) if " at 0x" in value else value
    if issubclass(kind, BaseException):
        return _take_apart(value, inside)
    if kind in (tuple, list) and any(issubclass(type(each), BaseException) for each in value):
        return kind(_sendable(each, inside) for each in value)
    return value


def put_together(parts: Any) -> Any:
    """Rebuild an exception without running a constructor written in Python: its arguments need not fit.

    Raises:
        BaseException: whatever goes wrong; it cannot be rebuilt here.
    """
    if issubclass(type(parts), BaseException):
        return parts
    kind, arguments, attributes, slots = parts if len(parts) == 4 else (*parts, {})
    arguments = tuple(_rebuilt(value) for value in arguments)
    base = next(each for each in _mro(kind) if not _flags(each) & _HEAP_TYPE and issubclass(each, BaseException))
    error = base.__new__(kind, *arguments)
    base.__init__(error, *arguments)
    for name, value in attributes.items():
        known = _c_member(kind, name)
        if known is not None:
            known.__set__(error, _rebuilt(value))
        else:
            _attributes(error)[name] = _rebuilt(value)
    for name, value in slots.items():
        members = (_own(each).get(name) for each in _mro(kind) if _flags(each) & _HEAP_TYPE)
        next(each for each in members if type(each) is types.MemberDescriptorType).__set__(error, _rebuilt(value))
    return error


def _rebuilt(value: Any) -> Any:
    if type(value) is Parts:
        return put_together(value)
    if type(value) in (tuple, list) and any(type(each) is Parts for each in value):
        return type(value)(_rebuilt(each) for each in value)
    return value


def _c_member(kind: type, name: str) -> Any:
    """Return the descriptor of a field that C keeps, such as an ImportError's `name`; None if there is none."""
    for each in _mro(kind):
        if not _flags(each) & _HEAP_TYPE and name in _own(each):
            found = _own(each)[name]
            return found if isinstance(found, types.MemberDescriptorType | types.GetSetDescriptorType) else None
    return None


def set_cause(error: BaseException, cause: BaseException) -> None:
    """Say what an exception came from, also to one that refuses attributes."""
    _cause.__set__(error, cause)
