"""Every kind of class of a script's own, as command, argument, result and state of a machine of its own.

kinds.py first DATA_DIR     fills a cluster, has a second client (this script again) look at it, and closes it
kinds.py second DATA_DIR    brings it back, and finds everything, equal to classes of this run
kinds.py client ENDPOINTS   the second client
"""

import abc
import enum
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import attrs
import msgspec
import pydantic
import pytest

from actorraft import ReplicatedStateMachine, StateMachine, UsageError, command, connect, query

T = TypeVar("T")


class Plain:
    seen = 0

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


class Slots:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slots) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


@dataclass
class Data:
    value: Any


@dataclass(frozen=True)
class Frozen:
    value: Any


@dataclass(slots=True)
class Slotted:
    value: Any

    def twice(self) -> Any:
        return self.value * 2


@dataclass(frozen=True, slots=True)
class FrozenSlotted:
    value: Any


@attrs.define
class Attrs:
    value: Any


class Model(pydantic.BaseModel):
    value: int


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


class Pair(NamedTuple):
    value: Any
    other: int = 2


class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self) -> int: ...


class Square(Shape):
    def __init__(self, value: int) -> None:
        self.value = value

    def area(self) -> int:
        return self.value**2

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Square) and self.value == other.value

    def __hash__(self) -> int:
        return self.value


class Box(Generic[T]):
    def __init__(self, value: T) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


class Struct(msgspec.Struct):
    value: int


class Wrong(Exception):
    def __init__(self, item: Any, *, why: str) -> None:
        super().__init__(f"{item}: {why}")
        self.item, self.why = item, why


class Shelf(StateMachine):
    def __init__(self) -> None:
        self.items: dict[str, Any] = {}

    @command
    def put(self, name: str, item: Any) -> Any:
        self.items[name] = item
        return item

    @command
    def refuse(self, item: Any) -> None:
        raise Wrong(item, why="it is")

    @query
    def get(self, name: str) -> Any:
        return self.items[name]

    @query
    def kinds(self) -> dict[str, str]:
        return {name: type(item).__name__ for name, item in self.items.items()}


class PutObject:
    def __init__(self, name: str, item: Any) -> None:
        self.name, self.item = name, item

    def apply(self, shelf: Shelf) -> Any:
        return shelf.put(self.name, self.item)


KINDS = [Plain, Slots, Data, Frozen, Slotted, FrozenSlotted, Attrs, Model, Pair, Square, Box]
ITEMS: dict[str, Any] = {
    "colour": Colour.RED,
    "nested": {"a": [Data(Slotted(1)), (Frozen(2), Colour.GREEN)]},
    **{kind.__name__: kind(value=7) for kind in KINDS},
}


def check(shelf: Any) -> None:
    for name, item in ITEMS.items():
        found = shelf.get(name)
        assert found == item, (name, found)
        assert type(found) is type(item), (name, type(found))
    assert shelf.get("colour") is Colour.RED
    assert isinstance(shelf.get("Square"), Shape)
    assert shelf.get("Slotted").twice() == 14


def fill(cluster: Any) -> None:
    shelf = cluster.proxy()
    Plain.seen = 5  # an attribute of the caller's class is not touched by what comes back
    for name, item in ITEMS.items():
        back = shelf.put(name, item)
        assert back == item
        assert type(back) is type(item)
        assert cluster.execute(PutObject(name, item)) == item
        assert cluster.execute(lambda each, name=name, item=item: each.put(name, item)) == item
    assert Plain.seen == 5
    with pytest.raises(Wrong) as caught:
        shelf.refuse(Frozen(1))
    assert (caught.value.item, caught.value.why) == (Frozen(1), "it is")
    with pytest.raises(UsageError, match="module"):
        shelf.put("struct", Struct(1))


def main(what: str, where: str) -> None:
    if what == "client":
        endpoints = {int(node_id): endpoint for node_id, endpoint in json.loads(where).items()}
        with connect(endpoints, Shelf, timeout=30.0) as client:
            check(client.proxy())
            fill(client)
            check(client.proxy())
    else:
        with ReplicatedStateMachine(Shelf).spawn(3 if what == "first" else None, data_dir=where) as cluster:
            if what == "first":
                fill(cluster)
                subprocess.run([sys.executable, sys.argv[3], "client", json.dumps(cluster.endpoints)], check=True)
                cluster.take_snapshot()
                cluster.proxy().put("late", Frozen("after the snapshot"))
            check(cluster.proxy())
            assert cluster.proxy().get("late") == Frozen("after the snapshot")
            for node_id in cluster.nodes:
                check(cluster.proxy(to=node_id))
            if what == "second":
                fill(cluster)
            digests = {cluster.digest(node_id)[1] for node_id in cluster.nodes if cluster.proxy(to=node_id).kinds()}
            assert len(digests) == 1, digests
    if what != "client":
        print("done")


main(sys.argv[1], sys.argv[2])
