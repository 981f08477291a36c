"""Keys that were rotated while somebody was away: who comes back is told what to fetch, and goes on with that."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from actorraft.cli import keys
from actorraft.cli.app import app
from actorraft.client import administration
from actorraft.client.connect import open_thread
from tests.cli.served import Served, actorraft, eventually
from transports.keys import ClientFolder

Rotate = Callable[..., tuple[Result, list[int]]]


@pytest.fixture
def rotate(monkeypatch: pytest.MonkeyPatch) -> Rotate:
    """Run `keys rotate` where members 0 to 3 are, 0 leads, and the leader says this more; return whose turn came."""
    rotated: list[int] = []
    told: dict[str, Any] = {"members": [[node_id, "", "", "key", ""] for node_id in range(4)]}

    @contextlib.contextmanager
    def cluster(_: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(leader=0)

    def rotate_one(_: object, node_id: int, *__: object) -> None:
        rotated.append(node_id)

    def run(*node_ids: str, **more: Any) -> tuple[Result, list[int]]:
        told.update(more)
        return CliRunner().invoke(app, ["keys", "rotate", *node_ids]), rotated

    monkeypatch.setattr(keys, "cluster", cluster)
    monkeypatch.setattr(administration, "ask_leader", lambda *_: told)
    monkeypatch.setattr(keys, "_rotate", rotate_one)
    monkeypatch.setattr(keys, "_write_folder", lambda *_: None)
    return run


def test_what_an_earlier_rotation_has_begun_comes_first(rotate: Rotate) -> None:
    done, rotated = rotate(rotating=[2])
    assert done.exit_code == 0
    assert rotated == [2, 1, 3, 0], "and who leads comes last"


def test_what_was_begun_comes_first_among_those_that_are_named_too(rotate: Rotate) -> None:
    done, rotated = rotate("0", "3", "1", rotating=[1])
    assert done.exit_code == 0
    assert rotated == [1, 0, 3], "and the others as they were named"


def test_nobody_s_turn_comes_beside_one_that_was_begun_and_is_not_named(rotate: Rotate) -> None:
    refused, rotated = rotate("0", "3", rotating=[1])
    assert refused.exit_code == 1
    assert "first actorraft keys rotate 1" in refused.output
    assert rotated == []


def test_a_leader_that_does_not_say_what_was_begun_is_no_error(rotate: Rotate) -> None:
    done, rotated = rotate()
    assert done.exit_code == 0
    assert rotated == [1, 2, 3, 0]


@pytest.mark.cluster
@pytest.mark.slow  # a dozen commands and restarts; make slow
@pytest.mark.timeout(300)
def test_who_comes_back_to_new_keys_goes_on_once_told_and_a_rotation_that_was_broken_off_is_finished(
    tmp_path: Path,
) -> None:
    with Served(tmp_path) as served:
        served.start()
        served.settled()
        old = shutil.copytree(served.client, tmp_path / "old")
        served.run("exec", "set", '"x"', "1")
        served.kill(2)
        for node_id in ("0", "1"):
            served.run("keys", "rotate", node_id, "--force", timeout_s=120.0)
        stale = actorraft("query", "get", '"x"', "--timeout", "2", client=old, check=False)
        assert stale.returncode == 1
        assert "fetch client.toml anew" in stale.stderr

        served.start(2)
        why = eventually(lambda: (served.status()[2]["not_ready"] or "").partition("; ")[2])
        assert "into node.toml" in why
        before, now = (ClientFolder.load(folder).keys.members for folder in (old, served.client))
        file = served.folder(2) / "node.toml"
        text = file.read_text()
        for node_id in (0, 1):
            assert before[node_id][0] in text
            text = text.replace(before[node_id][0], now[node_id][0])
        file.write_text(text)
        assert served.stop(2) == 0
        served.start(2)
        served.settled()
        assert served.run("query", "get", '"x"', "--to", "2").stdout.strip() == "1"

        thread = open_thread(served.client)  # whose rotation of node 1 does not come to its end
        try:
            administration.wait_for_leader(thread, 60.0)
            public = thread.admin(1, "make_key", {}, 60.0).result()
            asked = {"node_id": 1, "public_key": public}
            administration.ask_leader(thread, "rotate_key", asked, 60.0)
        finally:
            thread.close()
        refused = served.run("keys", "rotate", "0", "--timeout", "20", check=False)
        assert refused.returncode == 1
        assert "first actorraft keys rotate 1" in refused.stderr
        done = served.run("keys", "rotate", "-o", "json", timeout_s=120.0)
        assert sorted(json.loads(done.stdout)["rotated"]) == [0, 1, 2]
        assert ClientFolder.load(served.client).keys.members[1] == (public,)
