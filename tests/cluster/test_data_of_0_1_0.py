"""Data directories and a snapshot that 0.1.0 wrote are opened by today's code, with all that they held.

How they were made is in tests/fixtures/0.1.0/make.py. They are taken at their word: classes that travelled by value are
in them under the names that modules had then.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from actorraft import ReplicatedStateMachine, StartError, UsageError
from actorraft.storage.by_value import code_of_cluster
from statemachines.kv import KVStore

pytestmark = pytest.mark.cluster

FIXTURES = Path(__file__).parent.parent / "fixtures" / "0.1.0"
MADE_BY = (3, 11)  # the Python of the code in by_value.tar.xz
PLAIN = {f"k{number}": number for number in range(10, 20)} | {f"k{number}": {"again": [number]} for number in range(10)}
BY_VALUE = {
    **{f"p{number}": (2 * number, "RED") for number in range(5)},
    "flat": (10, "GREEN"),
    "later": (12, "GREEN"),
    "flat later": (14, "GREEN"),
    "closure": (100, "GREEN"),
}


def unpacked(name: str, tmp_path: Path) -> Path:
    with tarfile.open(FIXTURES / name) as archive:
        archive.extractall(tmp_path, filter="data")
    data: Path = tmp_path / "data"
    data.chmod(0o700)
    return data


def everything(store: KVStore) -> dict[str, Any]:
    return {key: store.get(key) for key in [*PLAIN, "last"]}


def as_plain_data(state: dict[str, Any]) -> dict[str, tuple[int, str]]:
    return {key: (item.number, item.colour.name) for key, item in state.items()}


def names_of_code(state: dict[str, Any]) -> set[tuple[str, str, int]]:
    return {(type(item).__module__, type(item).__qualname__, id(type(item))) for item in state.values()}


def test_a_data_directory_of_plain_data_is_opened(tmp_path: Path) -> None:
    with ReplicatedStateMachine(KVStore).spawn(data_dir=unpacked("plain.tar.xz", tmp_path)) as cluster:
        assert len(cluster.nodes) == 3
        assert everything(cluster.proxy()) == {**PLAIN, "last": True}
        cluster.take_snapshot()
    with ReplicatedStateMachine(KVStore).spawn(data_dir=tmp_path / "data") as cluster:
        assert everything(cluster.proxy()) == {**PLAIN, "last": True}


def test_an_exported_snapshot_is_begun_from() -> None:
    with ReplicatedStateMachine(KVStore).spawn(1, from_snapshot=FIXTURES / "plain.snapshot") as cluster:
        assert everything(cluster.proxy()) == {**PLAIN, "last": None}


def test_a_data_directory_with_code_by_value_is_opened_or_refused_for_its_python(tmp_path: Path) -> None:
    data = unpacked("by_value.tar.xz", tmp_path)
    if sys.version_info[:2] != MADE_BY:
        with pytest.raises(
            (UsageError, StartError),
            match=r"Python 3\.11 and this is Python 3\..* holds the definition of __main__:Colour",
        ):
            ReplicatedStateMachine(dict).spawn(data_dir=data)
        return
    for _ in range(2):
        with ReplicatedStateMachine(dict).spawn(data_dir=data) as cluster:
            for node in cluster.nodes:
                assert cluster.query(as_plain_data, to=node) == BY_VALUE
            assert len(cluster.query(names_of_code)) == 1  # one class, not one a snapshot or log
            cluster.take_snapshot()


def test_the_fixture_holds_code_under_the_names_of_0_1_0(tmp_path: Path) -> None:
    data = unpacked("by_value.tar.xz", tmp_path)
    held = b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file())
    assert b"actorraft.byvalue" in held
    assert b"actorraft.pickling.byvalue" not in held


def test_code_by_value_of_0_1_0_is_found_without_opening_it(tmp_path: Path) -> None:
    assert not list(code_of_cluster(unpacked("plain.tar.xz", tmp_path / "plain")))
    found = {one.what for one in code_of_cluster(unpacked("by_value.tar.xz", tmp_path / "code"))}
    assert found == {
        *(f"the definition of __main__:{name}" for name in ("Put", "Item", "Colour", "Flat", "double")),
        *(f"an object of __main__:{name}, which is defined by value" for name in ("Item", "Colour")),
        "the function main.<locals>.<lambda>, by value",
    }
