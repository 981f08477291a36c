"""Records of a node that is served: text and JSON lines, levels, and the names of slow commands."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from actorraft.cluster.founding import found
from actorraft.node import logs
from tests.cli.served import Served, actorraft, eventually


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_each_record_has_the_node_and_the_term_and_slow_commands_their_names(tmp_path: Path) -> None:
    with Served(tmp_path, 1, machine="tests.cluster.machines:Ledger") as served:
        slow = {"ACTORRAFT_RAFT__SLOW_COMMAND_MS": "200"}
        served.start(more=("--log-format", "json", "--log-level", "actorraft.backup=ERROR"), environment=slow)
        served.settled()
        served.run("exec", "append", '"ann"', "1")
        served.run("exec", "append_slowly", '"ann"', "2", "0.5")
        served.run("snapshot")

        def records(logger: str) -> list[dict[str, Any]]:
            return [one for one in map(json.loads, served.lines[0][1:]) if one["logger"] == logger]

        [one] = eventually(lambda: records("actorraft.slow"), what=served.said)
        assert (one["node"], one["level"], one["method"]) == (0, "WARNING", "append_slowly")
        assert one["term"] >= 1
        assert one["took_ms"] >= 500
        assert f"at index {one['index']} " in one["message"]
        eventually(lambda: any("snapshot" in each["message"] for each in records("actorraft")), what=served.said)
        assert served.status()[0]["slow"][0]["method"] == "append_slowly"


def test_text_has_the_node_and_the_term_too_and_each_logger_its_level(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        logs.configure("text", ["WARNING", "actorraft.of_this_test=DEBUG"], 3)
        logging.getLogger("actorraft.of_this_test").debug("one")
        logging.getLogger("another").info("two")
        logging.getLogger("another").warning("three")
        logs.configure("json", [], 3)
        try:
            raise ValueError("what is wrong")
        except ValueError:
            logging.getLogger("another").exception("four")
    finally:
        logging.getLogger().handlers[:], level = before
        logging.getLogger().setLevel(level)
        logs.about.node_id = None
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.endswith(" DEBUG node 3 term - actorraft.of_this_test: one")
    assert second.endswith(" WARNING node 3 term - another: three")
    told = json.loads(third)
    assert (told["node"], told["term"], told["level"], told["message"]) == (3, None, "ERROR", "four")
    assert "ValueError: what is wrong" in told["exception"]


@pytest.mark.long
@pytest.mark.parametrize("words", [("--log-format", "xml"), ("--log-level", "LOUD"), ("--log-level", "=INFO")])
def test_a_format_or_a_level_that_is_none_is_used_wrongly(words: tuple[str, str], tmp_path: Path) -> None:
    found(tmp_path / "c", "statemachines.kv:KVStore", ["127.0.0.1:7000"])
    done = actorraft("serve", str(tmp_path / "c" / "node-0"), *words, check=False)
    assert (done.returncode, words[0] in done.stderr) == (2, True), done.stderr
