"""Exceptions that raise, lie, refuse or are huge: each arrives as itself or as CommandFailed, equal on every node."""

from __future__ import annotations

import dataclasses
import pickle
import threading
import traceback
from collections.abc import Callable
from typing import Any

import attrs
import msgspec
import pytest

from actorraft import CommandFailed, ResultLost
from actorraft.errors import RemoteTraceback
from actorraft.pickling import byvalue
from actorraft.pickling.exceptions import TEXT_CHARS_MAX
from actorraft.pickling.formats import ERROR, OBJECT
from actorraft.pickling.results import decode_result, encode_error, encode_loss

_Ext = msgspec.msgpack.Ext


def raising(name: str, problem: BaseException) -> type[Exception]:
    """Make an exception whose attribute `name` raises `problem`, read or called."""

    def get(self: Any) -> Any:
        raise problem

    made = type(f"Odd_{name}", (Exception,), {name: property(get), "__module__": __name__})
    globals()[made.__qualname__] = made
    return made


def method(name: str, act: Callable[..., Any]) -> type[Exception]:
    """Make an exception whose method `name` does `act`."""
    made = type(f"Odd_{name}", (Exception,), {name: act, "__module__": __name__})
    globals()[made.__qualname__] = made
    return made


def thrown(problem: BaseException) -> Callable[..., Any]:
    def act(*_: Any, **__: Any) -> Any:
        raise problem

    return act


def sent(error: BaseException) -> Any:
    """Send what a command raised through a node's encoding and a client's decoding; return what arrives."""
    try:
        raise error
    except BaseException as raised:
        encoded = encode_error(raised, pickle.dumps)
    with pytest.raises(Exception) as caught:
        decode_result(msgspec.msgpack.decode(msgspec.msgpack.encode(encoded)))
    assert type(BaseException.__dict__["__cause__"].__get__(caught.value)) is RemoteTraceback
    return caught.value


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    name: str
    missing: int


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlots(Exception):
    name: str
    missing: int = 5


@attrs.frozen
class FrozenAttrs(Exception):
    name: str
    missing: int = 3


class Slots(Exception):
    __slots__ = ("code", "never_set")

    def __init__(self, *, code: int) -> None:
        self.code = code


class MoreSlots(Slots):
    __slots__ = ("more",)

    def __init__(self) -> None:
        super().__init__(code=7)
        self.more = "m"


class Refuses(Exception):
    def __init__(self) -> None:
        self.__dict__["kept"] = 1

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name} cannot be deleted")


class NewWithKeywords(Exception):
    def __new__(cls, *, code: int) -> NewWithKeywords:
        made = super().__new__(cls)
        made.code = code
        return made

    def __init__(self, *, code: int) -> None:
        self.code = code


class Wraps(Exception):
    def __init__(self, inner: Exception, where: str) -> None:
        super().__init__(inner)
        self.inner, self.where = inner, where


class Equal(Exception):
    def __eq__(self, other: object) -> bool:
        raise SystemExit("eq")

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise SystemExit("bool")


class Getstate(Exception):
    def __getstate__(self) -> Any:
        raise SystemExit(1)


class Disk(OSError):
    def __init__(self, *, code: int) -> None:
        super().__init__(code, "no room", "/data")
        self.code = code


class Several(ExceptionGroup[Exception]):
    def __new__(cls, *errors: Exception) -> Several:
        return super().__new__(cls, "several", list(errors))

    def __init__(self, *errors: Exception) -> None:
        self.count = len(errors)


AS_ITSELF: dict[str, tuple[Exception, dict[str, Any]]] = {
    "a frozen dataclass": (Frozen("ann", missing=5), {"name": "ann", "missing": 5}),
    "a frozen dataclass with slots": (FrozenSlots("ann"), {"name": "ann", "missing": 5}),
    "frozen attrs": (FrozenAttrs(name="ann"), {"name": "ann", "missing": 3}),
    "slots, one of them never set": (Slots(code=4), {"code": 4}),
    "slots of a base": (MoreSlots(), {"code": 7, "more": "m"}),
    "attributes refused": (Refuses(), {"kept": 1}),
    "keywords only": (NewWithKeywords(code=9), {"code": 9}),
    "an OSError of one's own": (Disk(code=28), {"errno": 28, "filename": "/data", "code": 28}),
    "an ImportError's name": (ImportError("no", name="nowhere", path="p"), {"name": "nowhere", "path": "p"}),
    "== and bool that exit": (Equal("x"), {"args": ("x",)}),
    "__getstate__ that exits": (Getstate("x"), {"args": ("x",)}),
    "a decode error changed afterwards": (UnicodeDecodeError("utf-8", b"x", 0, 1, "r"), {"reason": "r"}),
    "a lone surrogate": (ValueError("\ud800"), {"args": ("\ud800",)}),
}


@pytest.mark.parametrize("what", AS_ITSELF)
def test_an_exception_that_can_be_rebuilt_arrives_as_itself_with_its_fields(what: str) -> None:
    error, fields = AS_ITSELF[what]
    arrived = sent(error)
    assert type(arrived) is type(error)
    assert {name: getattr(arrived, name) for name in fields} == fields


def test_exceptions_inside_of_an_exception_are_rebuilt_like_itself() -> None:
    arrived = sent(Wraps(Frozen("ann", 5), "here"))
    assert type(arrived.inner) is Frozen
    assert (arrived.inner.missing, arrived.where) == (5, "here")
    group = sent(Several(Slots(code=3), Wraps(NewWithKeywords(code=2), "there")))
    assert type(group) is Several
    assert group.count == 2
    assert group.exceptions[0].code == 3
    assert group.exceptions[1].inner.code == 2


class BaseOdd(BaseException): ...


class Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise RuntimeError(name)
        return super().__getattribute__(name)


class MetaError(Exception, metaclass=Meta): ...


class NoAttributes(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(f"getattribute {name}")


class Text(str):
    def __getitem__(self, key: Any) -> Any:
        raise SystemExit("getitem")

    def encode(self, *_: Any) -> bytes:
        raise SystemExit("encode")

    __slots__ = ()


def deep_group(depth: int) -> Exception:
    error: Exception = ValueError("innermost")
    for _ in range(depth):
        error = ExceptionGroup("g", [error])
    return error


def long_chain(length: int) -> Exception:
    error = ValueError("first")
    for _ in range(length):
        later = ValueError("later")
        later.__cause__ = error
        error = later
    return error


def cycle() -> Exception:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__context__ = other, one
    return one


def itself_inside() -> Exception:
    error = ValueError()
    error.args = (error, [error])
    return error


def wrong_notes(notes: Any) -> Exception:
    error = ValueError("x")
    error.__dict__["__notes__"] = notes
    return error


def syntax() -> Exception:
    error = SyntaxError("x")
    error.lineno, error.text, error.offset, error.filename = "a", 5, object(), 3  # type: ignore[assignment]
    return error


EXITS = SystemExit("bye"), KeyboardInterrupt(), StopIteration(), RecursionError("deep"), BaseOdd()
ODD: dict[str, Callable[[], BaseException]] = {
    **{
        f"{name} raises {type(problem).__name__}": lambda name=name, problem=problem: raising(name, problem)("x")  # type: ignore[misc]
        for name in (
            *("__notes__", "__cause__", "__context__", "__class__", "__dict__", "__traceback__", "args"),
            *("__suppress_context__", "__module__", "__doc__"),
        )
        for problem in EXITS
    },
    **{
        f"{name}() raises {type(problem).__name__}": lambda name=name, problem=problem: method(name, thrown(problem))(
            "x"
        )  # type: ignore[misc]
        for name in (
            "__str__",
            "__repr__",
            "__reduce__",
            "__reduce_ex__",
            "__getstate__",
            "__setstate__",
            "with_traceback",
        )
        for problem in EXITS
    },
    "__str__ returns a number": lambda: method("__str__", lambda self: 5)("x"),
    "__str__ returns a string that lies": lambda: method("__str__", lambda self: Text("text"))("x"),
    "__str__ is huge": lambda: method("__str__", lambda self: "x" * (50 << 20))(),
    "__reduce__ returns nonsense": lambda: method("__reduce__", lambda self: 5)(),
    "__reduce__ runs something else": lambda: method("__reduce__", lambda self: (exec, ("raise SystemExit(5)",)))(),
    "__reduce__ gives another's StopIteration": lambda: method("__reduce__", lambda self: (StopIteration, ()))(),
    "a metaclass that raises": lambda: MetaError("x"),
    "no attribute to be had": lambda: NoAttributes("x"),
    "an argument that is huge": lambda: ValueError("x" * (50 << 20)),
    "an argument with a lock": lambda: ValueError(threading.Lock()),
    "a class of a function": lambda: type("Local", (Exception,), {})(),
    "a deep group": lambda: deep_group(2000),
    "a wide group": lambda: ExceptionGroup("g", [deep_group(5) for _ in range(300)]),
    "a group with a BaseException": lambda: BaseExceptionGroup("g", [KeyboardInterrupt()]),
    "a long chain": lambda: long_chain(5000),
    "a cycle of causes": cycle,
    "itself inside": itself_inside,
    "a syntax error with wrong fields": syntax,
    "notes that are no list": lambda: wrong_notes(7),
    "notes that are no strings": lambda: wrong_notes([1, NoAttributes(), Text("t"), "\udfff"]),
    "notes without end": lambda: wrong_notes(["n" * 100_000] * 100),
    **{
        type(error).__name__: lambda error=error: error  # type: ignore[misc]
        for error in (*EXITS, GeneratorExit(), StopAsyncIteration(), CommandFailed("a", "b"), BaseException())
    },
}


@pytest.mark.parametrize("what", ODD)
def test_whatever_an_exception_does_it_ends_in_one_outcome(what: str) -> None:
    error = ODD[what]()
    arrived = sent(error)
    assert type(arrived) in (type(error), CommandFailed)
    if type(arrived) is CommandFailed:
        assert arrived.type_name == type.__dict__["__qualname__"].__get__(type(error))
        assert len(arrived.message) <= 2 * TEXT_CHARS_MAX
        assert len(arrived.traceback) <= TEXT_CHARS_MAX
    assert isinstance(str(BaseException.__dict__["__cause__"].__get__(arrived)), str)


def test_an_exception_whose_str_exits_does_not_end_the_caller_that_logs_it() -> None:
    for problem in (SystemExit("bye"), KeyboardInterrupt(), GeneratorExit()):
        arrived = sent(method("__str__", thrown(problem))("x"))
        assert type(arrived) is CommandFailed
        assert str(arrived) == f"Odd___str__: <{type(problem).__name__} in its __str__>"
    assert type(sent(method("__str__", thrown(RuntimeError()))("x"))).__name__ == "Odd___str__"


def test_a_slow_story_is_cut_and_still_names_what_was_raised() -> None:
    arrived = sent(ExceptionGroup("headline", [long_chain(200) for _ in range(200)]))
    text = str(arrived.__cause__)
    assert "headline (200 sub-exceptions)" in text
    assert len(text) <= 4 * TEXT_CHARS_MAX


def test_an_encoded_error_holds_no_addresses_and_no_place_of_a_module() -> None:
    encodings = set()
    for _ in range(2):
        thing = object()
        try:
            raise ValueError(f"bad {thing!r}", thing.__repr__()) from LookupError(repr(threading.Lock()))
        except ValueError as error:
            encodings.add(encode_error(error, pickle.dumps).data)
    (encoded,) = encodings
    assert b" at 0x7" not in encoded
    assert __file__.encode() not in encoded
    assert b"tests/machine/test_odd_exceptions.py" in encoded


def test_the_line_of_source_is_shown_where_the_source_is() -> None:
    arrived = sent(Frozen("ann", 5))  # raised by `sent`
    told = "".join(traceback.format_exception(arrived))
    assert 'File "tests/machine/test_odd_exceptions.py"' in told
    assert "    raise error\n" in told
    assert "raise error" not in arrived.__cause__.args[0]


def test_a_long_traceback_keeps_its_first_and_last_frames() -> None:
    def down(depth: int) -> None:
        if depth == 0:
            raise ValueError("bottom")
        down(depth - 1)

    try:
        down(200)
    except ValueError as error:
        told = msgspec.msgpack.decode(encode_error(error, pickle.dumps).data)[3]
    assert told.count("\n") < 60
    assert told.startswith("Traceback (most recent call last):\n  File")
    assert "  ...\n" in told
    assert told.endswith("ValueError: bottom\n")


def test_an_error_made_by_0_1_0_is_rebuilt() -> None:
    body = pickle.dumps((Disk, (28, "no room"), {"code": 28}))
    data = msgspec.msgpack.encode((0, "Disk", "no room", "Traceback ...", body))
    with pytest.raises(Disk) as caught:
        decode_result(_Ext(ERROR, data))
    assert (caught.value.errno, caught.value.code) == (28, 28)


def test_a_result_with_the_names_of_0_1_0_is_rebuilt() -> None:
    data = pickle.dumps(byvalue.remake_lru_cache, 0).replace(b"actorraft.pickling.byvalue", b"actorraft.byvalue")
    assert decode_result(_Ext(OBJECT, data)) is byvalue.remake_lru_cache


class Bomb:
    """An object whose unpickling does what it is told."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __reduce__(self) -> Any:
        return exec, (self.source,)


class SetsBomb(Exception):
    def __reduce__(self) -> Any:
        return exec, ("raise KeyboardInterrupt",)


@pytest.mark.parametrize(
    "problem",
    ["SystemExit(3)", "KeyboardInterrupt", "RecursionError", "MemoryError", "GeneratorExit", "StopIteration",
     "BaseExceptionGroup('g', [SystemExit()])", "type('Odd', (BaseException,), {'__str__': lambda self: 1 / 0})"],
)  # fmt: skip
def test_a_result_whose_unpickling_raises_is_lost_and_raises_nothing_else(problem: str) -> None:
    with pytest.raises(ResultLost, match="it was done; its result"):
        decode_result(_Ext(OBJECT, pickle.dumps(Bomb(f"raise {problem}"))))


def test_an_exception_whose_unpickling_interrupts_arrives_as_command_failed() -> None:
    arrived = sent(SetsBomb("x"))
    assert type(arrived) is CommandFailed
    assert arrived.type_name == "SetsBomb"


def test_why_a_result_was_lost_is_told_whatever_the_error_says_of_itself() -> None:
    lost = encode_loss(MetaError, method("__str__", thrown(SystemExit()))())
    with pytest.raises(ResultLost, match=r"a MetaError, cannot be sent: <SystemExit in its __str__>"):
        decode_result(lost)
