"""A user's own test file: copied elsewhere and run by pytest in every import mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actorraft import StateMachine, command
from tests.machine.remote import Node


@dataclass(frozen=True, slots=True)
class Entry:
    name: str


class Book(StateMachine):
    def __init__(self) -> None:
        self.entries: list[Entry] = []

    @command
    def add(self, entry: Entry) -> Entry:
        self.entries.append(entry)
        return entry


def count(book: Book) -> int:
    return len(book.entries)


def test_classes_of_the_test_file() -> None:
    with Node(Book) as node:
        assert node.call("add", Entry("ann")) == Entry("ann")
        assert node.execute(count) == 1
        assert node.query(lambda book: [type(each) for each in book.entries]) == [Entry]


def test_classes_of_the_test_function() -> None:
    class Local(Book):
        @command
        def add(self, entry: Any) -> Any:
            super().add(entry)
            return Found(entry)

    @dataclass
    class Found:
        what: Any

    with Node(Local) as node:
        assert node.call("add", Entry("ann")) == Found(Entry("ann"))
        assert node.execute(lambda book: book.add(Entry("bob"))) == Found(Entry("bob"))
