"""A machine joins a cluster whose log takes more than one message to send."""

from __future__ import annotations

from pathlib import Path

import pytest

from actorraft import connect
from benchmarks.others.processes import free_ports
from statemachines.kv import KVStore
from tests.cli.served import Served, eventually

pytestmark = pytest.mark.cluster


def test_who_joins_stays_though_what_it_gets_first_is_older_than_its_joining(tmp_path: Path) -> None:
    with Served(tmp_path, 1) as served:
        served.start()
        with connect(served.client, KVStore) as client:
            for number in range(4):
                client.proxy(timeout=30.0).set(str(number), "x" * 700_000)  # each travels alone

            token = served.run("token", "create").stdout.strip()
            [port] = free_ports(1)
            joined = ["--join", token, "--data-dir", str(tmp_path / "joined"), "--listen", f"127.0.0.1:{port}"]
            served.serve(1, *joined)

            def voters() -> list[int]:
                return client.ask_node(0, "status", {}, 10.0).result()["voters"]  # type: ignore[no-any-return]

            eventually(lambda: voters() == [0, 1], 100.0, what=served.said)
            assert served.processes[1].poll() is None
