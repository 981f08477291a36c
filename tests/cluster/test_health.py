"""Health and metrics over HTTP: what each path says, in a cluster that serves and in one that cannot."""

from __future__ import annotations

import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest

from actorraft import ReplicatedStateMachine, UsageError
from benchmarks.others.processes import free_ports
from statemachines.kv import KVStore

pytestmark = pytest.mark.cluster


def free_addresses(count: int) -> list[str]:
    return [f"127.0.0.1:{port}" for port in free_ports(count)]


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def wait_for(done: Callable[[], bool], seconds: float = 60.0) -> None:
    until_s = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until_s, "it did not come about in time"
        time.sleep(0.05)


def value(text: str, name: str) -> float:
    """The one value of a metric without labels."""
    return float(next(line.split()[1] for line in text.splitlines() if line.split()[0] == name))


def test_what_each_path_says_and_the_story_of_a_dead_leader(capsys: pytest.CaptureFixture[str]) -> None:
    http = free_addresses(3)
    with ReplicatedStateMachine(KVStore).spawn(3, http=http, supervision=None) as cluster:
        store = cluster.proxy()
        for number in range(20):
            store.set("x", number)
        assert store.get("x") == 19
        wait_for(lambda: all(get(each, "/readyz") == (200, "ok\n") for each in http))
        assert [get(each, "/livez") for each in http] == [(200, "ok\n")] * 3
        assert get(http[0], "/nonsense")[0] == 404

        leader = cluster.wait_for_leader()
        before = {node_id: get(http[node_id], "/metrics")[1] for node_id in cluster.nodes}
        assert [node_id for node_id, text in before.items() if value(text, "actorraft_leader") == 1] == [leader]
        assert value(before[leader], "actorraft_commit_seconds_count") >= 20
        assert value(before[leader], "actorraft_sync_seconds_count") >= 20
        assert 'actorraft_commands_total{outcome="answered"}' in before[leader]
        assert 'actorraft_peer_link_up{peer="' in before[leader]

        cluster.nodes[leader].kill()
        alive = [node_id for node_id in cluster.nodes if node_id != leader]
        store.set("x", "after")

        def told() -> bool:
            texts = {node_id: get(http[node_id], "/metrics")[1] for node_id in alive}
            return (
                sum(value(text, "actorraft_leader") for text in texts.values()) == 1
                and all(f'actorraft_peer_link_up{{peer="{leader}"}} 0.0' in text for text in texts.values())
                and all(
                    value(texts[n], "actorraft_current_term") > value(before[n], "actorraft_current_term")
                    for n in alive
                )
            )

        wait_for(told)
        live = get(http[alive[0]], "/metrics")[1]

        cluster.nodes[alive[1]].kill()
        wait_for(lambda: "knows no leader" in get(http[alive[0]], "/readyz")[1])
        assert get(http[alive[0]], "/readyz")[0] == 503
        assert get(http[alive[0]], "/livez")[0] == 200
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: make tools")
    checked = subprocess.run(["promtool", "check", "metrics"], input=live, capture_output=True, text=True, timeout=60)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_loop_that_does_not_turn_is_told() -> None:
    http = free_addresses(1)
    with ReplicatedStateMachine(KVStore).spawn(1, http=http) as cluster:
        cluster.proxy().set("x", 1)
        status = cluster.status()[0]
        assert (status.not_ready, status.uptime_s > 0, status.links) == ("", True, {})
        assert status.version
        assert "<table>" in cluster.status()._repr_html_()


@pytest.mark.parametrize("http", ["127.0.0.1:1", [], ["127.0.0.1"], [1], ["127.0.0.1:1", "127.0.0.1:2"]])
def test_addresses_that_cannot_be_are_refused(http: object) -> None:
    with pytest.raises(UsageError, match="http"):
        ReplicatedStateMachine(KVStore).spawn(1, http=http)  # type: ignore[arg-type]
