"""Classes of a script's own: there and back, in a second client of the same script, and after a restart of everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actorraft import RaftConfig, ReplicatedStateMachine, connect, context
from tests.cluster.helpers import SCRIPTS, eventually, run

pytestmark = pytest.mark.cluster

SCRIPT = SCRIPTS / "kinds.py"


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_every_kind_of_class_from_main_survives_and_is_shared_by_name(how: str, tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    command, stdin = ([str(SCRIPT)], None) if how == "file" else (["-"], SCRIPT.read_text())
    assert run(*command, "first", data, str(SCRIPT), stdin=stdin) == "done\n"
    assert run(*command, "second", data, stdin=stdin) == "done\n"


def count(step: int) -> Any:
    class Count:
        def __init__(self, number: int) -> None:
            self.number = number

        def __call__(self, state: list[int]) -> int:
            return len(state) + self.number * step

    return Count


def log_time(_: list[int]) -> float:
    return context().time


@pytest.mark.parametrize("first", ["command", "read"])
def test_classes_that_only_an_expired_session_had_sent_are_sent_again(first: str) -> None:
    config = RaftConfig(session_expiry_s=3.0)  # longer than a busy machine takes for a call
    with ReplicatedStateMachine(list).spawn(3, config=config) as cluster, connect(cluster.endpoints) as other:
        one, two = count(1), count(2)
        assert [cluster.execute(one(1)), cluster.execute(two(1))] == [1, 2]
        began_s = other.execute(log_time)
        eventually(lambda: other.execute(log_time) > began_s + 3.5, what="its session is too old")
        if first == "read":
            cluster._check_s = 0.0  # as a minute later
            assert cluster.query(two(7)) == 14
        assert [cluster.execute(one(1)), cluster.execute(two(1))] == [1, 2]
