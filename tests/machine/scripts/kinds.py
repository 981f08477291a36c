"""Every kind of class a user may define in a script, sent to a node as command, argument, state and result.

Run as a file and from standard input; the arguments say what to do: `first SNAPSHOT` fills a machine and leaves a
snapshot, `second SNAPSHOT` is another run of the same script on what the first one left.
"""

# ruff: noqa: PT017, PT018 (a script, and no test of pytest)
from __future__ import annotations

import abc
import collections
import enum
import functools
import sys
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import attrs
import pydantic

import actorraft
from actorraft import StateMachine, command, query
from tests.machine.remote import Node

T = TypeVar("T")
LIMIT = 100


def check_limit(amount: int) -> int:
    if amount > LIMIT:
        raise TooMuch(amount, limit=LIMIT)
    return amount


class TooMuch(Exception):
    def __init__(self, amount: int, *, limit: int) -> None:
        super().__init__(f"{amount} is more than {limit}")
        self.amount, self.limit = amount, limit


class Plain:
    made: ClassVar[int] = 0

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


class Child(Plain):
    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.more = [value]


@dataclass
class Data:
    value: Any
    tags: list[str] = field(default_factory=list)
    count: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Frozen:
    value: Any
    other: int = 1


@dataclass(slots=True)
class Slotted:
    value: Any
    other: int = 1


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class FrozenSlotted:
    value: Any
    other: int = 1


@dataclass(slots=True)
class SlottedChild(Slotted):
    third: int = 3


class Slots:
    __slots__ = ("__hidden", "value")

    def __init__(self, value: Any) -> None:
        self.value, self.__hidden = value, "hidden"

    def hidden(self) -> str:
        return self.__hidden

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slots) and self.value == other.value

    __hash__ = None  # type: ignore[assignment]


class OneSlot(Slots):
    __slots__ = "extra"  # noqa: PLC0205 (Python allows it)


@attrs.define
class Attrs:
    value: Any
    other: int = attrs.field(default=1, validator=attrs.validators.instance_of(int))


@attrs.frozen
class AttrsFrozen:
    value: Any
    parts: list[int] = attrs.field(factory=list)

    def doubled(self) -> Any:
        return super().__hash__() * 0 + 2 * self.value


class Model(pydantic.BaseModel):
    value: Any
    other: int = 1
    inner: Inner | None = None

    @pydantic.field_validator("other")
    @classmethod
    def positive(cls, other: int) -> int:
        if other < 0:
            raise ValueError("negative")
        return other


class Inner(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)
    name: str


Model.model_rebuild()


class Colour(enum.Enum):
    RED = 1
    GREEN = 2
    CRIMSON = 1  # noqa: PIE796 (an alias)

    def lower(self) -> str:
        return self.name.lower()


class Planet(enum.Enum):
    EARTH = (5.97, 6.37)
    MARS = (0.64, 3.39)

    def __init__(self, mass: float, radius: float) -> None:
        self.mass, self.radius = mass, radius

    @property
    def gravity(self) -> float:
        return self.mass / self.radius**2


class Level(enum.IntEnum):
    LOW = 1
    HIGH = enum.auto()


class Right(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()
    BOTH = READ | WRITE


class Word(enum.StrEnum):
    YES = enum.auto()


class Labelled(bytes, enum.Enum):
    label: str

    def __new__(cls, value: int, label: str) -> Labelled:
        made = bytes.__new__(cls, [value])
        made._value_ = value
        made.label = label
        return made

    A = (1, "first")
    B = (2, "second")


class Point(NamedTuple):
    x: Any
    y: int = 2

    def total(self) -> Any:
        return self.x + self.y


Pair = collections.namedtuple("Pair", "left right")


class Box(Generic[T]):
    def __init__(self, value: T) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box) and self.value == other.value

    __hash__ = None  # type: ignore[assignment]


class IntBox(Box[int]):
    pass


class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self) -> float: ...


class Square(Shape):
    def __init__(self, value: float) -> None:
        self.value = value

    def area(self) -> float:
        return self.value**2

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Square) and self.value == other.value

    __hash__ = None  # type: ignore[assignment]


@Shape.register
class Dot:
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dot)

    __hash__ = None  # type: ignore[assignment]


class HasArea(Protocol):
    def area(self) -> float: ...


class Plugin:
    known: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls, /, tag: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.known[tag] = cls


class Tagged(Plugin, tag="tagged"):
    def __eq__(self, other: object) -> bool:
        return type(other) is Tagged

    __hash__ = None  # type: ignore[assignment]


class Cached:
    def __init__(self, value: Any) -> None:
        self.value = value

    @functools.cached_property
    def twice(self) -> Any:
        return 2 * self.value

    @staticmethod
    @functools.lru_cache
    def squared(number: int) -> int:
        return number * number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cached) and self.value == other.value

    __hash__ = None  # type: ignore[assignment]


class Outer:
    class Nested:
        def __eq__(self, other: object) -> bool:
            return type(other) is Outer.Nested

        __hash__ = None  # type: ignore[assignment]


class Words(dict[str, int]):
    pass


class Tree:
    """Two classes that mention each other."""

    def leaf(self) -> Leaf:
        return Leaf()

    def __eq__(self, other: object) -> bool:
        return type(other) is Tree

    __hash__ = None  # type: ignore[assignment]


class Leaf:
    def tree(self) -> Tree:
        return Tree()

    def __eq__(self, other: object) -> bool:
        return type(other) is Leaf

    __hash__ = None  # type: ignore[assignment]


SAMPLES: dict[str, Any] = {
    "plain": Plain(3),
    "child": Child(3),
    "dataclass": Data(3, ["t"]),
    "frozen dataclass": Frozen(3),
    "slotted dataclass": Slotted(3),
    "frozen slotted dataclass": FrozenSlotted(value=3),
    "slotted child": SlottedChild(3),
    "slots": Slots(3),
    "one slot": OneSlot(3),
    "attrs": Attrs(3),
    "frozen attrs": AttrsFrozen(3),
    "pydantic": Model(value=3, inner=Inner(name="n")),
    "enum": Colour.GREEN,
    "enum alias": Colour.CRIMSON,
    "enum with constructor": Planet.MARS,
    "int enum": Level.HIGH,
    "flag": Right.READ,
    "combined flag": Right.READ | Right.WRITE,
    "str enum": Word.YES,
    "enum with new": Labelled.B,
    "NamedTuple": Point(3),
    "namedtuple": Pair(1, 2),
    "generic": Box(3),
    "generic's child": IntBox(3),
    "abstract's child": Square(3.0),
    "registered": Dot(),
    "init_subclass": Tagged(),
    "cached": Cached(3),
    "nested": Outer.Nested(),
    "dict's child": Words(a=1),
    "mutual": Tree(),
}


class Keeper(StateMachine):
    """A machine of the script's own that keeps what it is given."""

    def __init__(self, start: Plain) -> None:
        self.start = start
        self.kept: dict[str, Any] = {}

    @command
    def keep(self, name: str, value: Any) -> Any:
        self.kept[name] = value
        return value

    @command
    def take(self, amount: int) -> int:
        return check_limit(amount)

    @query
    def names(self) -> list[str]:
        return sorted(self.kept)


@dataclass(frozen=True, slots=True)
class Probe:
    """A command object that looks at its subject on the node, as a script would."""

    subject: Any

    def apply(self, keeper: Keeper) -> list[str]:
        subject = self.subject
        kind = type(subject)
        assert isinstance(keeper, Keeper)
        assert isinstance(keeper.start, Plain)
        seen = [kind.__name__]
        if kind in (Slotted, FrozenSlotted, Slots, OneSlot, SlottedChild, AttrsFrozen):
            assert not hasattr(subject, "__dict__") or (kind is AttrsFrozen and not vars(subject)), "it must be slotted"
        if isinstance(subject, Slots):
            assert subject.hidden() == "hidden"
        if kind in (Frozen, FrozenSlotted):
            try:
                subject.value = 4
            except FrozenInstanceError:
                seen.append("frozen")
        if kind in (Data, Frozen, Slotted, FrozenSlotted, SlottedChild):
            assert replace(subject) == subject
            assert fields(subject)[0].name == "value"
            seen.append(repr(subject))
        if kind is Attrs:
            assert attrs.asdict(subject) == {"value": 3, "other": 1}
            assert attrs.evolve(subject, other=5).other == 5
        if kind is AttrsFrozen:
            assert subject.doubled() == 6
        if kind is Model:
            assert Model(value=3, inner=Inner(name="n")) == subject
            assert Model.model_validate({"value": 1, "other": 2}).other == 2
            assert subject.model_dump() == {"value": 3, "other": 1, "inner": {"name": "n"}}
            try:
                Model(value=1, other=-1)
            except pydantic.ValidationError:
                seen.append("validated")
        if isinstance(subject, enum.Enum):
            assert subject is kind[subject.name or "READ"] or isinstance(subject, Right)
            assert kind(subject.value) is subject
        if kind is Colour:
            assert Colour.CRIMSON is Colour.RED and subject.lower() == subject.name.lower()
            assert list(Colour) == [Colour.RED, Colour.GREEN]
        if kind is Planet:
            assert round(subject.gravity, 3) == 0.056
        if kind is Level:
            assert subject > 1 and subject + 1 == 3
        if kind is Right:
            assert Right.READ in subject and Right.BOTH == Right.READ | Right.WRITE
        if kind is Labelled:
            assert subject.label == "second" and subject == b"\x02"
        if kind is Point:
            assert subject.total() == 5 and subject._replace(y=1).y == 1
        if isinstance(subject, Shape) and kind is Square:
            assert subject.area() == 9.0
            try:
                Shape()
            except TypeError:
                seen.append("abstract")
        if kind is Dot:
            assert isinstance(subject, Shape)
        if kind is IntBox:
            assert IntBox.__mro__[1] is Box and Box[int](3) == subject
        if kind is Tagged:
            assert Plugin.known == {"tagged": Tagged}
        if kind is Cached:
            assert subject.twice == 6 and Cached.squared(3) == 9
        if kind is Tree:
            assert subject.leaf().tree() == subject
        return seen


def echo(node: Node, name: str, sample: Any) -> None:
    """A sample goes there as an argument, comes back as a result, and is the caller's own class, and equal."""
    before = len(node.definitions)
    back = node.call("keep", name, sample)
    assert type(back) is type(sample), (name, type(back), type(sample))
    assert back == sample, (name, back, sample)
    if isinstance(sample, enum.Enum):
        assert back is sample, name
    seen = node.execute(Probe(sample))
    assert seen[0] == type(sample).__name__, (name, seen)
    after = len(node.definitions)
    node.call("keep", name, sample)
    node.execute(Probe(sample))
    assert len(node.definitions) == after, f"{name} is defined twice"
    assert after - before <= 2, f"{name} took {after - before} definitions"


def first(snapshot: str) -> None:
    with Node(Keeper, Plain("start")) as node:
        for name, sample in SAMPLES.items():
            echo(node, name, sample)
        assert node.execute(lambda keeper: sorted(keeper.kept)) == sorted(SAMPLES)
        assert node.query(lambda keeper: keeper.kept["frozen dataclass"]) == Frozen(3)
        step = 5
        assert node.execute(lambda keeper: check_limit(step) + len(keeper.kept)) == 5 + len(SAMPLES)
        assert node.execute(functools.partial(bump, by=4)) == 4
        try:
            node.call("take", 101)
        except TooMuch as error:
            assert (error.amount, error.limit, str(error)) == (101, 100, "101 is more than 100")
            assert isinstance(error.__cause__, actorraft.RemoteTraceback)
            assert "check_limit" in str(error.__cause__), str(error.__cause__)
        else:
            raise AssertionError("no exception came back")
        node.execute(lambda keeper: keeper.kept.pop("bumped"))
        node.snapshot(snapshot)
        with Node(Keeper, Plain("start"), restore_from=snapshot) as other:
            assert other.digest() == node.digest()


def bump(keeper: Keeper, by: int) -> int:
    keeper.kept["bumped"] = by
    return by


def second(snapshot: str) -> None:
    """Another run of the same script: it finds its own classes in the state, and theirs are its own."""
    with Node(Keeper, Plain("start"), restore_from=snapshot) as node:
        for name, sample in SAMPLES.items():
            back = node.query(Look(name))
            assert type(back) is type(sample), name
            assert back == sample, name
            assert node.execute(Same(name, sample)), f"{name}: what the first run left is of another class"


@dataclass
class Look:
    name: str

    def apply(self, keeper: Keeper) -> Any:
        return keeper.kept[self.name]


@dataclass
class Same:
    name: str
    sample: Any

    def apply(self, keeper: Keeper) -> bool:
        kept = keeper.kept[self.name]
        return type(kept) is type(self.sample) and kept == self.sample


{"first": first, "second": second}[sys.argv[1]](sys.argv[2])
print("done")
