# ruff: noqa: B019, F821, N804, RUF012, UP044
"""Less usual kinds of class, of a script: each does at a node what it does here, and is defined there once.

`python more_kinds.py PATH`: writes what each class's fingerprint is, or compares it with what an earlier run wrote.
"""

import abc
import collections
import contextlib
import dataclasses
import enum
import functools
import json
import logging
import operator
import re
import sys
import typing
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import (
    Annotated,
    ClassVar,
    Concatenate,
    Final,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    TypeVarTuple,
    Union,
    Unpack,
    runtime_checkable,
)

from actorraft.pickling.byvalue import fingerprint_of
from tests.machine.remote import Node


class Registry:
    known = {}

    def __init_subclass__(cls, *, key, **kw):
        super().__init_subclass__(**kw)
        Registry.known[key] = cls
        cls.key = key


class Needs(Registry, key="needs"):
    def apply(self, s):
        return Registry.known["needs"] is Needs, Needs.key


class Deep(Needs, key="deep"):
    def apply(self, s):
        return super().apply(s), self.key


class AbcReg(abc.ABC):
    def __init_subclass__(cls, /, name, **kw):
        super().__init_subclass__(**kw)
        cls.name = name

    @abc.abstractmethod
    def apply(self, s): ...


class AbcDone(AbcReg, name="done"):
    def apply(self, s):
        return self.name


T = TypeVar("T")
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")
UserId = NewType("UserId", int)


class GenReg(Generic[T]):
    def __init_subclass__(cls, *, tag, **kw):
        super().__init_subclass__(**kw)
        cls.tag = tag


class GenDone(GenReg[int], tag="g"):
    def apply(self, s):
        return self.tag


class Movie(TypedDict):
    title: str


class Movie2(Movie, total=False):
    year: int


class GenTD(TypedDict, Generic[T]):
    v: T


Func = TypedDict("Func", {"a b": int})


class UsesTD:
    def apply(self, s):
        return Movie(title="x"), Movie2(title="y", year=3), Movie2.__required_keys__, GenTD[int](v=1), Func({"a b": 1})


class UsesNT:
    def apply(self, s):
        return UserId(4), UserId.__name__, UserId.__supertype__


class GivesNT:
    def apply(self, s):
        return UserId


class UsesPS(Generic[P]):
    f: "Callable[P, int]"

    def go(self, f: Callable[P, int]) -> Callable[Concatenate[int, P], int]: ...
    def apply(self, s):
        return P.__name__, UsesPS.__parameters__[0] is P


class UsesTVT(Generic[Unpack[Ts]]):
    def go(self, x: tuple[Unpack[Ts]]) -> tuple[Unpack[Ts]]: ...
    def apply(self, s):
        return Ts.__name__, UsesTVT.__parameters__[0] is Ts


class Proto(Protocol):
    x: int

    def m(self) -> int: ...


@runtime_checkable
class RProto(Protocol[T]):
    def m(self) -> T: ...


class Impl(Proto):
    def __init__(self):
        self.x = 2

    def m(self):
        return 1

    def apply(self, s):
        return isinstance(self, RProto), self.m()


@dataclasses.dataclass(kw_only=True, frozen=True, slots=True, order=True)
class KW:
    a: int
    b: list = dataclasses.field(default_factory=list)
    c: int = dataclasses.field(default=3, metadata={"k": 1})
    _: dataclasses.KW_ONLY = None

    def apply(self, s):
        return (
            self.a,
            self.b,
            KW(a=2) < KW(a=3),
            dataclasses.replace(self, a=9).a,
            dataclasses.fields(KW)[2].metadata["k"],
        )


def deco0(f):
    return f


class Methods:
    def __init__(self, n):
        self.n = n

    add = functools.partialmethod(lambda self, x: self.n + x, 5)

    @functools.singledispatchmethod
    def sd(self, x):
        return "obj"

    @sd.register
    def _(self, x: int):
        return "int"

    @sd.register(str)
    def _(self, x):
        return "str"

    @functools.cache
    def cached(self):
        return self.n * 2

    @functools.cache
    def cached2(self, y):
        return self.n * y

    @functools.cached_property
    def cp(self):
        return self.n

    @functools.wraps(len)
    def wrapped(self):
        return 3

    @contextlib.contextmanager
    def cm(self):
        yield self.n

    @staticmethod
    @functools.lru_cache
    def st(x):
        return x

    @classmethod
    @deco0
    def cl(cls):
        return cls.__name__

    def apply(self, s):
        with self.cm() as v:
            pass
        return (
            self.add(),
            self.sd(1),
            self.sd("a"),
            self.sd([]),
            self.cached(),
            self.cached2(2),
            self.cp,
            self.wrapped(),
            v,
            self.st(1),
            self.cl(),
        )


@functools.singledispatch
def disp(x):
    return "obj"


@disp.register
def _(x: int):
    return "int"


@disp.register
def _(x: Methods):
    return "methods"


class UsesDisp:
    def apply(self, s):
        return disp(1), disp(""), disp(Methods(1))


part = functools.partial(Methods, 5)


class UsesPart:
    def apply(self, s):
        return part().n


class MetaArgs(type):
    @classmethod
    def __prepare__(m, name, bases, **kw):
        return {"prepared": kw}

    def __new__(m, name, bases, ns, *, flag=0, **kw):
        c = super().__new__(m, name, bases, ns)
        c.flag = flag
        return c

    def __init__(cls, name, bases, ns, **kw):
        super().__init__(name, bases, ns)
        cls.inited = cls.flag


class WithMeta(metaclass=MetaArgs, flag=7):
    def apply(self, s):
        return self.flag, self.inited, self.prepared


class MetaReq(type):
    def __new__(m, name, bases, ns, *, flag):
        c = super().__new__(m, name, bases, ns)
        c.flag = flag
        return c

    def __init__(cls, name, bases, ns, *, flag):
        super().__init__(name, bases, ns)


class WithMetaReq(metaclass=MetaReq, flag=8):
    def apply(self, s):
        return self.flag


class MetaEq(type):
    def __eq__(cls, o):
        return NotImplemented

    def __hash__(cls):
        return 5


class WithMetaEq(metaclass=MetaEq):
    def apply(self, s):
        return 1


class Field:
    def __set_name__(self, owner, name):
        self.owner, self.name = owner, name

    def __get__(self, o, t=None):
        return self if o is None else o.__dict__.get("_" + self.name, 0)

    def __set__(self, o, v):
        o.__dict__["_" + self.name] = v


class WithField:
    x = Field()
    y = Field()

    def apply(self, s):
        self.x = 3
        return self.x, WithField.x.owner is WithField, WithField.y.name


class Outer:
    class Inner:
        def apply(self, s):
            return Outer().partner().__class__.__qualname__, type(self).__qualname__

        class Most:
            def apply(self, s):
                return Outer.Inner.Most is type(self)

    def partner(self):
        return Outer.Inner()

    def apply(self, s):
        return Outer.Inner().apply(s)


class A:
    def other(self):
        return B()

    def apply(self, s):
        return isinstance(self.other(), B), B.back is A, isinstance(B().other(), A)


class B:
    back = A

    def other(self):
        return A()


A.forward = B


class Colour(enum.StrEnum):
    RED = enum.auto()
    GREEN = "g"


class SlotEnumMix(int, enum.Enum):
    ONE = 1

    def apply(self, s):
        return self.ONE + 1, SlotEnumMix.ONE is self


class Fl(enum.Flag, boundary=enum.KEEP):
    A = 1
    B = 2
    AB = 3


class MemberEnum(enum.Enum):
    X = enum.member(lambda: 1)
    Y = enum.nonmember(3)

    @enum.property
    def z(self):
        return 5


class UsesEnum:
    def apply(self, s):
        return Colour("g") is Colour.GREEN, Fl.AB, Fl(8).value, MemberEnum.X.value(), MemberEnum.Y, MemberEnum.X.z


class DC(enum.Enum):
    @dataclasses.dataclass(frozen=True)
    class V:
        n: int

    P = 1


class BoundT:
    U = TypeVar("U", bound="BoundT")
    V = TypeVar("V", int, str, covariant=False)

    def apply(self, s):
        return BoundT.U.__bound__, BoundT.V.__constraints__


Alias = Union[int, "Movie"]
Cb = Callable[P, T]
Lit = Literal["a", 1]
Ann = Annotated[int, KW(a=1)]


class UsesAlias:
    a: Alias
    b: Cb
    c: Lit
    d: Ann

    def apply(self, s):
        return str(Lit), Ann.__metadata__[0].a, typing.get_type_hints(UsesAlias)["c"] is not None


class NT(NamedTuple):
    a: int
    b: int = 2


class GNT(NamedTuple, Generic[T]):
    v: T


Pt = collections.namedtuple("Pt", "x y", defaults=[0])


class UsesNTs:
    def apply(self, s):
        return NT(1), GNT(3), Pt(1), NT(1)._replace(b=4)


log = logging.getLogger("x")
lock_re = re.compile("a+")


class UsesGlobals:
    def apply(self, s):
        log.debug("x")
        return lock_re.match("aaa").group()


class SlotsDict:
    __slots__ = {"__dict__": "", "__weakref__": "", "a": "doc"}

    def __init__(self):
        self.a = 1
        self.b = 2

    def apply(self, s):
        return self.a, self.b, weakref.ref(self)() is self


class Priv:
    __slots__ = ("__x",)

    def __init__(self):
        self.__x = 4

    def apply(self, s):
        return self.__x


class Prop:
    @property
    @abc.abstractmethod
    def p(self):
        return 1

    @p.setter
    def p(self, v):
        pass

    def apply(self, s):
        return self.p


class Final_:
    x: Final = 3
    y: ClassVar[int] = 4

    def __class_getitem__(cls, k):
        return k

    def apply(self, s):
        return self.x, Final_[3]


def deco(f):
    @functools.wraps(f)
    def w(*a, **k):
        return f(*a, **k) + 1

    return w


class Deco:
    @deco
    def apply(self, s):
        return 1


class ExcM(Exception):
    def apply(self, s):
        return str(self)


class Self_:
    def me(self) -> "Self":
        return self

    async def co(self):
        return 1

    def gen(self):
        yield 1

    def apply(self, s):
        return list(self.gen())


class Meta2(abc.ABCMeta):
    def __call__(cls, *a):
        o = super().__call__(*a)
        o.tag = 1
        return o


class Single(metaclass=Meta2):
    def apply(self, s):
        return self.tag


class Callable_:
    def __call__(self, s):
        return functools.reduce(operator.add, [1, 2])


class GetSet:
    def __getattr__(self, n):
        if n.startswith("__"):
            raise AttributeError(n)
        return n

    def apply(self, s):
        return self.foo


class OwnClass:
    @property
    def __class__(self):
        return type(self)

    def apply(self, s):
        return type(vars(OwnClass)["__class__"].__get__(self)), type(self).__name__, self.__class__.__name__


class Quacks(Protocol):
    def quack(self): ...


class Duck(Quacks):
    def quack(self):
        return "quack"

    def apply(self, s):
        return self.quack(), isinstance(self, Duck)


CASES = [
    OwnClass(),
    Duck(),
    Needs(),
    Deep(),
    AbcDone(),
    GenDone(),
    UsesTD(),
    UsesNT(),
    GivesNT(),
    UsesPS(),
    UsesTVT(),
    Impl(),
    KW(a=1),
    Methods(3),
    UsesDisp(),
    UsesPart(),
    WithMeta(),
    WithMetaReq(),
    WithMetaEq(),
    WithField(),
    Outer(),
    Outer.Inner(),
    Outer.Inner.Most(),
    A(),
    UsesEnum(),
    SlotEnumMix.ONE,
    BoundT(),
    UsesAlias(),
    UsesNTs(),
    UsesGlobals(),
    SlotsDict(),
    Priv(),
    Prop(),
    Final_(),
    Deco(),
    ExcM("a"),
    Self_(),
    Single(),
    Callable_(),
    GetSet(),
]


def main(path: Path) -> None:
    with Node(dict) as node:
        for sample in CASES:
            name = type(sample).__name__
            here = (sample.apply if hasattr(sample, "apply") else sample)({})
            there = node.execute(sample)
            count = len(node.definitions)
            again = node.execute(sample)
            assert repr(here) == repr(there) == repr(again), (name, here, there, again)
            assert type(here) is not NewType or here is there is again, "it is told by identity"
            assert count == len(node.definitions), f"{name} is defined twice"
    prints = {type(sample).__qualname__: fingerprint_of(type(sample)).hex() for sample in CASES}
    if path.exists():
        before = json.loads(path.read_text())
        assert before == prints, {name for name in prints if prints[name] != before.get(name)}
    path.write_text(json.dumps(prints))
    print("done")


main(Path(sys.argv[1]))
