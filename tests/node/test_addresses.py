"""The book of addresses: the highest number wins, whoever says it, and it outlives the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from actorraft.errors import StorageFailed
from actorraft.node.addresses import BOOK_FILE, AddressBook, Announcement
from actorraft.raft.messages import Configuration, Member
from actorraft.storage.files import Files

ALL = frozenset({0, 1, 2})


def at(number: int, host: str) -> Announcement:
    return Announcement(number, f"{host}:1", f"{host}:2")


def test_a_seed_gives_way_to_what_a_member_says_itself() -> None:
    book = AddressBook(0, {1: at(0, "file")})
    assert book.hear({1: at(1, "new")}, ALL)
    assert book[1].peer == "new:1"


@pytest.mark.parametrize("number", [0, 3, 4])
def test_an_old_announcement_that_is_repeated_changes_nothing(number: int) -> None:
    book = AddressBook(0, {1: at(4, "now")})
    assert not book.hear({1: at(number, "then")}, ALL)
    assert book[1].peer == "now:1"


def test_nobody_says_where_this_node_is_and_strangers_are_not_noted() -> None:
    book = AddressBook(0, {})
    book.start("here:1", "here:2", "ff")
    assert not book.hear({0: at(99, "there"), 7: at(1, "stranger")}, ALL)
    assert book.known == {0: at(1, "here")}


def test_numbers_grow_with_each_start_and_what_was_heard_is_kept(tmp_path: Path) -> None:
    book = AddressBook(0, {1: at(0, "file")}, tmp_path)
    assert book.start("a:1", "a:2", "ff").number == 1
    book.hear({1: at(5, "moved")}, ALL)
    again = AddressBook(0, {1: at(0, "file")}, tmp_path)
    assert again.start("b:1", "b:2", "ff") == at(2, "b")
    assert again[1] == at(5, "moved")


def test_a_seed_that_has_changed_since_the_last_start_goes_before_what_was_kept(tmp_path: Path) -> None:
    book = AddressBook(0, {1: at(0, "file"), 2: at(0, "other")}, tmp_path)
    book.start("a:1", "a:2", "ff")
    book.hear({1: at(5, "gone"), 2: at(3, "stays")}, ALL)
    again = AddressBook(0, {1: at(0, "edited"), 2: at(0, "other")}, tmp_path)
    assert again[1] == at(5, "edited"), "an operator's word"
    assert again[2] == at(3, "stays")
    assert not again.hear({1: at(5, "gone")}, ALL), "whoever repeats what this node knew already says nothing new"
    assert again.hear({1: at(6, "elsewhere")}, ALL), "and the member's own goes before both"
    again.start("a:1", "a:2", "ff")
    third = AddressBook(0, {1: at(0, "edited"), 2: at(0, "other")}, tmp_path)
    assert third[1] == at(6, "elsewhere")


def test_the_log_is_heard_like_anybody_and_members_that_left_are_forgotten() -> None:
    book = AddressBook(0, {1: at(5, "newer"), 2: at(1, "b")})
    roster = (Member(1, "key", "older:1", "older:2", 4), Member(3, "key", "c:1", "c:2", 1))
    assert book.follow(Configuration(voters=frozenset({0, 1, 3}), roster=roster))
    assert book.known == {1: at(5, "newer"), 3: at(1, "c")}


def test_a_member_is_heard_whose_disk_remembers_its_last_life(tmp_path: Path) -> None:
    book = AddressBook(0, {1: at(0, "file")}, tmp_path)
    one, two, three = (1, "aa"), (2, "bb"), (3, "cc")
    assert book.meet(1, [one], on_probation=False) == ""
    assert book.meet(1, [one], on_probation=False) == "", "the same life, on another connection"
    assert book.meet(1, [one, two], on_probation=False) == ""
    again = AddressBook(0, {1: at(0, "file")}, tmp_path)
    copied = [one, (2, "dd")]
    for number in range(3, 9):  # however often a copy from before that life is started
        why = again.meet(1, copied, on_probation=False)
        assert f"start {number - 1}, and its disk knows nothing of start 2" in why
        copied.append((number, f"{number}"))
    assert again.meet(1, [one], on_probation=False) != "", "the original beside its copy"
    assert again.meet(1, [one, two, three], on_probation=False) == ""
    assert again.meet(1, [(500, "ee")], on_probation=False) == "", (
        "this node was away for longer than anybody remembers"
    )


def test_a_member_on_probation_is_heard_and_learns_which_numbers_it_has_used() -> None:
    book = AddressBook(0, {1: at(5, "known")})
    assert book.meet(1, [(5, "aa")], on_probation=False) == ""
    emptied = AddressBook(1, {})
    emptied.start("a:1", "a:2", "bb")
    assert book.meet(1, emptied.lives, on_probation=True) == ""
    assert emptied.start("a:1", "a:2", "bb", after=5).number == 6
    assert book.meet(1, emptied.lives, on_probation=False) == "", "it has begun since"
    emptied.start("a:1", "a:2", "cc")
    assert book.meet(1, emptied.lives, on_probation=False) == ""
    assert emptied.lives == [(6, "bb"), (7, "cc")]


def test_a_disk_that_is_full_stops_no_node_because_another_one_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    book = AddressBook(0, {1: at(0, "file")}, tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Files, "replace", full)
    assert book.meet(1, [(1, "aa")], on_probation=False) == ""
    assert book.hear({1: at(1, "new")}, ALL)
    assert book[1].peer == "new:1"
    assert "No space left on device" in caplog.text
    with pytest.raises(StorageFailed, match="No space left"):
        book.start("here:1", "here:2", "ff")  # its own number may never be used twice


def test_a_damaged_book_is_named(tmp_path: Path) -> None:
    (tmp_path / BOOK_FILE).write_text("{nonsense")
    with pytest.raises(StorageFailed, match=r"addresses\.json cannot be read"):
        AddressBook(0, {}, tmp_path)


def test_a_key_that_has_changed_since_the_last_start_is_an_operator_s_word_until_the_log_has_it(tmp_path: Path) -> None:
    def start(first: str, second: str) -> AddressBook:
        book = AddressBook(0, {}, tmp_path, keys={1: first, 2: second})
        book.start("a:1", "a:2", "ff")
        return book

    assert start("old", "other").new_keys == {}, "what a first start is told is no news"
    assert start("old", "other").new_keys == {}
    assert start("new", "other").new_keys == {1: "new"}
    assert start("new", "other").new_keys == {1: "new"}, "a start that did not come so far took nothing away"
    book = start("new", "other")
    book.follow_keys({1: ("old",), 2: ("other",)})
    assert book.new_keys == {1: "new"}
    book.follow_keys({1: ("new", "old"), 2: ("other",)})
    assert book.new_keys == {}
    assert start("new", "other").new_keys == {}
    assert start("old", "other").new_keys == {}, "an old file that was put back: who has that key now?"
    assert start("newer", "other").new_keys == {1: "newer"}


def test_a_key_that_the_log_has_replaced_is_never_believed_again(tmp_path: Path) -> None:
    def start(key: str) -> AddressBook:
        book = AddressBook(0, {}, tmp_path, keys={1: key})
        book.start("a:1", "a:2", "ff")
        return book

    book = start("first")
    book.follow_keys({1: ("third",)}, {1: ("first",)}, {1: ("second", "first")})
    assert start("second").new_keys == {}, "which no file has had"
    book = start("fourth")
    book.follow_keys({1: ("sixth",)}, {1: ("fourth",)}, {1: ("fifth",)})
    assert book.new_keys == {}, "it came and went with one batch"
    assert start("fourth").new_keys == {}
    assert start("seventh").new_keys == {1: "seventh"}


def test_the_book_of_a_version_that_kept_no_keys_is_read(tmp_path: Path) -> None:
    (tmp_path / BOOK_FILE).write_text('{"known": {"1": [3, "b:1", "b:2"]}, "seeds": {}}')
    book = AddressBook(0, {}, tmp_path, keys={1: "key"})
    assert (book.new_keys, book[1]) == ({}, at(3, "b"))
